"""Takes a graph apart for `divergence` and `profiling`, so that each node can be computed on its own."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from ..arrays import Array
from ..engines.host import Host
from ..errors import ArgumentError
from ..graph.loops import item
from ..graph.nodes import Placeholder, Scan, Tensor
from ..graph.rules import RULES
from ..ops.creation import placeholder
from ..ops.gradients import of_a_gradient
from ..program.inference import infer
from ..program.program import Instruction, Program
from ..session.function import Function
from ..session.session import Session
from ..session.untouched import forgetting

# Of one engine's values so many are held at once, unless those of one op and its operands are more. What comes after is
# computed by another call, with all that it needs.
CHUNK_BYTES = 1 << 28


class Nodes:
    """The nodes of some tensors, by their numbers in the neutral program: their operands, shapes, and values on a host.

    Every op stands as the user's lines recorded it, however the engines compose it.
    """

    def __init__(
        self, session: Session, roots: list[Tensor], phase: int, feeds: dict[Placeholder, Array], asker: str
    ) -> None:
        self._session = session
        self._roots = roots
        self._phase = phase
        self._places = session.state.seeds.places()
        self.placeholders = list(feeds)
        self.feeds = list(feeds.values())
        # With every op "native", no composite is written out: one node for each op that the user's lines recorded.
        call = Function(self.placeholders, roots, live=False)
        self.program: Program = call.program_for(session, frozenset(RULES), phase, self.feeds)
        program = self.program
        if not program.instructions and not program.draws:
            listed = ", ".join(f"'{root.name}'" for root in roots)
            raise ArgumentError(
                f"{asker}: no op is needed for {listed}, only values that every engine receives bit for bit",
                next_step="name a tensor that is computed",
            )
        leaves: list[Tensor] = [*program.inputs, *program.slots, *program.draws, *program.constants]
        self.nodes = [*leaves, *(x.node for x in program.instructions)]
        self.operands = [*([()] * len(leaves)), *(self._operands_of(x) for x in program.instructions)]
        self.shapes = infer(program, [feed.shape for feed in self.feeds])
        first_draw, first_constant = len(program.inputs) + len(program.slots), program.first - len(program.constants)
        # The numbers of what engines compute. A loop has no value but those of its items.
        self.computed = [
            n
            for n in (*range(first_draw, first_constant), *range(program.first, len(self.nodes)))
            if self.nodes[n].op != "scan"
        ]
        # A draw of a loop's steps is made for all of them only where the loop runs: with one of its items.
        self._with: dict[int, int] = {}
        for number, node in enumerate(self.nodes):
            if node.op == "item":
                inputs = [n for n in self.operands[number] if first_draw <= n < first_constant]
                self._with.update((n, number) for n in inputs if n not in self._with)

    @property
    def of_loops(self) -> Collection[int]:
        """The draws that loops' steps take."""
        return self._with.keys()

    def loop_of(self, number: int) -> int:
        """The number of the loop that an item is one of."""
        return self.program.instructions[number - self.program.first].inputs[0]

    def likeness(self, number: int) -> Any:
        """A key that nodes share if they take the same time: op, attributes, operands' shapes and dtypes."""
        node = self.nodes[number]
        if number < self.program.first:
            return node.op, json.dumps(node.attrs, default=str), tuple(self.shapes[number]), node.dtype
        _, inputs, attrs, _ = self.program.instructions[number - self.program.first]
        operands = tuple((str(self.shapes[n]), self.nodes[n].dtype) for n in inputs)
        return node.op, json.dumps(attrs), operands, node.dtype, of_a_gradient(node)

    def given(self, number: int) -> Array | None:
        """The value of a node that isn't computed: fed, a variable's or a constant's."""
        program = self.program
        slots = number - len(program.inputs)
        constants = number - (program.first - len(program.constants))
        if slots < 0:
            return self.feeds[number]
        if slots < len(program.slots):
            return self._session.read(program.slots[slots])
        if 0 <= constants < len(program.constants):
            return program.constants[constants].array
        return None

    def bytes(self, numbers: Iterable[int]) -> int:
        """The bytes of the values of these computed nodes."""
        return sum(math.prod(self.shapes[n]) * np.dtype(self.nodes[n].dtype).itemsize for n in numbers)

    def chunks(self) -> Iterator[tuple[list[int], list[int]]]:
        """(nodes, what else they need to be compared): all nodes in order, as many at a time as CHUNK_BYTES allow."""
        computed = set(self.computed)
        chunk: list[int] = []
        held: set[int] = set()
        size = 0
        for number in self.computed:
            needed = computed.intersection((number, *self.operands[number], self._with.get(number, number)))
            more = self.bytes(needed - held)
            if chunk and size + more > CHUNK_BYTES:
                yield chunk, sorted(held.difference(chunk))
                chunk, held, size = [], set(), 0
                more = self.bytes(needed)
            chunk.append(number)
            held |= needed
            size += more
        yield chunk, sorted(held.difference(chunk))

    def run(
        self, host: Host, inputs: Sequence[Placeholder], outputs: Sequence[Tensor], feeds: list[Array]
    ) -> list[Array]:
        """The outputs' values from one program on this host, with the draws that the session's next call would get."""
        seeds = self._session.state.seeds
        with seeds.rewound(self._places):
            program = Function(inputs, outputs, live=False).program_for(self._session, host.ops, self._phase, feeds)
        with seeds.rewound(self._places), forgetting([host]):
            return self._session.calls.execute(host, program, feeds, commit=False)[: len(outputs)]

    def values(self, host: Host, numbers: Sequence[int]) -> dict[int, Array]:
        """The host's values of these nodes."""
        return dict(zip(numbers, self.run(host, self.placeholders, [self.nodes[n] for n in numbers], self.feeds)))

    def alone(self, numbers: Sequence[int]) -> tuple[dict[int, Tensor], dict[int, Placeholder]]:
        """Each of these nodes as a graph of its own, and the placeholders for its computed or fed operands.

        Ops that can't stand alone (a draw, a loop and its items) are left out.
        """
        leaves = _Leaves(self)
        tensors: dict[int, Tensor] = {}
        for number in numbers:
            if number < self.program.first:
                continue
            node, inputs, attrs, _ = self.program.instructions[number - self.program.first]
            if type(node) is Tensor and node.op != "item":
                operands = tuple(leaves[n] for n in inputs)
                shape = self.shapes[number]
                tensors[number] = Tensor(node.op, operands, attrs, shape, node.dtype, node.source, node.name)
        return tensors, leaves.fed

    def loop_alone(self, number: int) -> tuple[list[Tensor], dict[int, Placeholder]]:
        """All values of a loop that are used, as a loop on its own, and its placeholders: see `alone`."""
        node, inputs, _, loop = self.program.instructions[number - self.program.first]
        assert isinstance(node, Scan)
        assert loop is not None
        leaves = _Leaves(self)
        known = {id(leaf): n for leaf, n in zip(loop.program.inputs, inputs)}
        # What its used values don't need is never asked for.
        operands = [
            leaves[known[id(leaf)]] if id(leaf) in known else placeholder(x.shape, dtype=x.dtype)
            for leaf, x in zip(node.body.leaves, node.inputs)
        ]
        copy = Scan("scan", tuple(operands), {}, (), node.dtype, node.source)
        copy.body, copy.items = node.body, {}
        return [item(copy, index) for index in loop.positions], leaves.fed

    def _operands_of(self, instruction: Instruction) -> tuple[int, ...]:
        """The operands of an instruction; those of the loop, for a loop's item."""
        if instruction.node.op != "item":
            return instruction.inputs
        return self.program.instructions[instruction.inputs[0] - self.program.first].inputs


class _Leaves:
    """The operands of ops that stand alone: variables and constants as they are, else placeholders."""

    def __init__(self, nodes: Nodes) -> None:
        program = nodes.program
        slots, constants = len(program.inputs), program.first - len(program.constants)
        self._nodes = nodes
        self._known: dict[int, Tensor] = {slots + i: variable for i, variable in enumerate(program.slots)}
        self._known.update((constants + i, node) for i, node in enumerate(program.constants))
        self.fed: dict[int, Placeholder] = {}

    def __getitem__(self, number: int) -> Tensor:
        if number not in self._known:
            nodes = self._nodes
            made = placeholder(nodes.shapes[number], dtype=nodes.nodes[number].dtype)
            self._known[number] = self.fed[number] = made
        return self._known[number]
