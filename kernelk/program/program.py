"""Second stage of a call: the nodes that are needed, in order, as a neutral program with a structural key."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ..arrays import Array
from ..eviction import drop_oldest
from ..graph.loops import stacked
from ..graph.nodes import (
    Constant,
    Draw,
    LearningPhase,
    Placeholder,
    Scan,
    Tensor,
    Variable,
    check_generations,
    walk,
)
from ..graph.rules import RULES
from .leaves import Content, content_of, not_fed, phase_constant
from .resolve import Resolver
from .specialisation import Specialisation

# Specialisations of a program are kept for so many feed shapes, fewer if the program is long.
MOST_SHAPES = 1024
MOST_SHAPED_VALUES = 500_000

# The length of a program's key; compiled forms have the shapes after it.
KEY_LENGTH = 32

_JSON = json.JSONEncoder(separators=(",", ":"))


class Instruction(NamedTuple):
    """One op: the node that it came from, value numbers of its operands, and attributes without shape-only values."""

    node: Tensor
    inputs: tuple[int, ...]
    attrs: dict[str, Any]
    loop: Loop | None = None


class Print(NamedTuple):
    """A `print` node that a program passes, the loops in whose steps it stands (the outermost first), and its value.

    `value` is a tensor outside of all of them: the node itself, or the node's values at all steps, stacked.
    """

    node: Tensor
    loops: tuple[Scan, ...]
    value: Tensor


class Loop:
    """A scan as one program runs it: only those values that are used, and what they need.

    `operands` are the outer tensors of the first inputs of `program`, the body's: `sequences` of them sequences, then
    `states` initial states, then captures. The body's draws and constants follow them as operands. What the body prints
    is stacked behind the results: `prints` are the body's, as the loop's user sees them.
    """

    def __init__(self, node: Scan, used: dict[int, Tensor], resolver: Resolver) -> None:
        body = node.body
        inner = resolver.inside(body.leaves)
        numbers = {id(state): i for i, state in enumerate(body.states)}
        states = len(body.states)
        carried = {i for i in used if i < states}
        results = sorted(i for i in used if i >= states)
        pending = [*(body.new_states[i] for i in carried), *(body.results[i - states] for i in results)]
        reached: set[int] = set()
        while pending:
            order = walk([inner.resolve(x) for x in pending], inner.inputs_of)
            reached.update(id(x) for x in order)
            more = {numbers[id(x)] for x in order if id(x) in numbers} - carried
            carried |= more
            pending = [body.new_states[i] for i in more]
        required = [body.states[i] for i in sorted(carried)]
        if not any(id(x) in reached for x in body.sequences):
            # It tells the length.
            required.append(body.sequences[0])
        outputs = [body.new_states[i] for i in sorted(carried)] + [body.results[i - states] for i in results]
        self.program = Program(body.leaves, outputs, (), resolver.phase, resolver.ops, resolver.values, required)
        kept = {id(x) for x in self.program.inputs}
        self.operands = [x for leaf, x in zip(body.leaves, node.inputs) if id(leaf) in kept]
        self.sequences = sum(id(x) in kept for x in body.sequences)
        self.states = len(carried)
        self.reverse = body.reverse
        # The positions of the node's values among those of the program.
        self.positions = {i: position for position, i in enumerate([*sorted(carried), *results])}
        self.prints = [Print(one.node, (node, *one.loops), stacked(node, one.value)) for one in self.program.prints]
        for position, one in enumerate(self.prints, len(outputs)):
            self.positions.setdefault(one.value.attrs["index"], position)

    def attrs(self) -> dict[str, Any]:
        """The attributes that tell the loop's instruction from others."""
        return {
            "sequences": self.sequences,
            "states": self.states,
            "reverse": self.reverse,
            "body": self.program.key,
        }


class Program:
    """The linear form of some outputs and updates in one learning phase, for a backend that defines `ops`.

    Values are numbered: inputs, slots (variables), draws, constants, instructions, in that order. The values of the
    `prints` that it passes, in the order in which they were written, are further outputs after those asked for;
    `printed` has values of others, which were known before (they decide shapes), and `drawn_before` the draws that
    these needed.
    The body of a loop is a program, too: its inputs may be any tensors, and those that nothing needs are left out
    unless they are among `required`.
    Raises FeedError for a placeholder that isn't among `inputs`, NeedsValuesError before values are known that shapes
    depend on, StaleTensorError after `K.clear_session()`.
    """

    def __init__(
        self,
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        updates: Sequence[tuple[Variable, Tensor]],
        phase: int,
        ops: frozenset[str],
        values: dict[int, Array] | None = None,
        required: Sequence[Tensor] | None = None,
    ) -> None:
        resolver = Resolver(inputs, phase, ops, values or {})
        self._specialised: dict[Any, Specialisation] = {}
        self.plans: dict[Any, Any] = {}  # filled by the session: the plan of each kind of call
        self.printed: list[tuple[Print, Array]] = []
        self.drawn_before: list[Draw] = []
        self.draws: list[Draw] = []
        self.constants: list[Constant] = []
        self.instructions: list[Instruction] = []
        self.schedule: list[int] = []  # the values that are computed, instructions and draws, in order
        self.checks: list[Instruction] = []  # composites that aren't computed as such, for their shapes to be checked
        self._loops: dict[int, Loop] = {}
        self._loop_draws: dict[int, list[int]] = {}  # id of a loop's node -> the draws that its body takes
        roots = [resolver.resolve(tensor) for tensor in outputs]
        new_values = [resolver.resolve(value) for _, value in updates]
        order = self._needed([*roots, *new_values], resolver)
        self.inputs = list(inputs)
        if required is not None:
            wanted = {id(x) for x in (*order, *required)}
            self.inputs = [x for x in inputs if id(x) in wanted]
        updated = [variable for variable, _ in updates]
        check_generations([*order, *updated])
        numbers, contents = self._number_leaves(order, updated, phase)
        self.draw_dims: list[tuple[tuple[int, ...], list[Any]]] = [((), [])] * len(self.draws)
        texts = self._number_instructions(order, numbers, resolver)
        for node in resolver.checked.values():
            operands = [numbers.get(id(x)) for x in resolver.operands(node)]
            if None not in operands:
                self.checks.append(Instruction(node, tuple(operands), resolver.attrs(node), None))  # type: ignore[arg-type]
        passed: list[Print] = [Print(node, (), node) for node in resolver.prints.values()]
        passed = [one for one in passed if id(resolver.resolve(one.node)) in numbers]
        passed += [one for loop in self._loops.values() for one in loop.prints]
        self.prints: list[Print] = sorted(passed, key=lambda one: one.node.uid)
        roots += [resolver.resolve(one.value) for one in self.prints]
        self.outputs = [numbers[id(root)] for root in roots]
        self.output_dtypes = [root.dtype for root in roots]
        index = {id(variable): i for i, variable in enumerate(self.slots)}
        self.updates = [(index[id(variable)], numbers[id(value)]) for (variable, _), value in zip(updates, new_values)]
        self.key = self._make_key(contents, texts)

    @functools.cached_property
    def updated_bytes(self) -> int:
        """The bytes of all new values of a call."""
        return sum(self.slots[slot].slots.nbytes for slot, _ in self.updates)

    # --- which nodes ---

    def _needed(self, roots: Sequence[Tensor], resolver: Resolver) -> list[Tensor]:
        """The nodes that `roots` need, in order; of a loop only what is used of its values counts.

        A root that is drawn at a loop's steps is that loop's, where that is needed for another root.
        """
        computed = [root for root in roots if not isinstance(root, Draw)]
        order = self._ordered(computed, resolver)
        of_loops = {id(draw) for loop in self._loops.values() for draw in loop.program.draws}
        own = [root for root in roots if id(root) not in of_loops]
        return order if len(own) == len(computed) else self._ordered(own, resolver)

    def _ordered(self, roots: Sequence[Tensor], resolver: Resolver) -> list[Tensor]:
        order = walk(roots, resolver.inputs_of)
        if Scan not in set(map(type, order)):
            return order
        # Users come first, so that when a loop's turn comes, it is known which of its values are used.
        needed = {id(root) for root in roots}
        used: dict[int, dict[int, Tensor]] = {}
        kept: list[Tensor] = []
        for node in reversed(order):
            if id(node) not in needed:
                continue
            kept.append(node)
            if id(node) in resolver.leaves:
                continue
            if isinstance(node, Scan):
                loop = self._loops[id(node)] = Loop(node, used[id(node)], resolver)
                needed.update(id(resolver.resolve(x)) for x in loop.operands)
                continue
            if node.op == "item":
                used.setdefault(id(node.inputs[0]), {})[node.attrs["index"]] = node
            needed.update(id(x) for x in resolver.inputs_of(node))
        return kept[::-1]

    # --- numbers ---

    def _number_leaves(
        self, order: Sequence[Tensor], updated: Sequence[Variable], phase: int
    ) -> tuple[dict[int, int], list[Content]]:
        """Finds slots, draws and constants. Returns the number of each leaf, by id, and the content of each constant.

        Constants of equal content are one.
        """
        numbers = {id(placeholder): i for i, placeholder in enumerate(self.inputs)}
        variables: dict[int, Variable] = {}
        contents: dict[Content, int] = {}
        constant_of: list[tuple[int, int]] = []

        def hold(constant: Constant, alias: Tensor) -> None:
            index = contents.setdefault(content_of(constant), len(contents))
            if index == len(self.constants):
                self.constants.append(constant)
            constant_of.append((id(alias), index))

        for node in order:
            # Most of them are computed, and have no number yet.
            if type(node) is Tensor or id(node) in numbers:
                continue
            if isinstance(node, Constant):
                hold(node, node)
            elif isinstance(node, LearningPhase):
                hold(phase_constant(node, phase), node)
            elif isinstance(node, Placeholder):
                raise not_fed(node)
            elif isinstance(node, Variable):
                variables.setdefault(id(node), node)
            elif isinstance(node, Draw):
                self.draws.append(node)
            elif isinstance(node, Scan):
                body = self._loops[id(node)].program
                self._loop_draws[id(node)] = list(range(len(self.draws), len(self.draws) + len(body.draws)))
                self.draws += body.draws
                for constant in body.constants:
                    hold(constant, constant)
        variables.update((id(variable), variable) for variable in updated)
        self.slots: list[Variable] = list(variables.values())
        self.first_draw = len(self.inputs) + len(self.slots)
        first_constant = self.first_draw + len(self.draws)
        self.first = first_constant + len(self.constants)
        numbers.update((id(leaf), n) for n, leaf in enumerate([*self.slots, *self.draws], len(self.inputs)))
        numbers.update((leaf, first_constant + index) for leaf, index in constant_of)
        return numbers, list(contents)

    def _number_instructions(
        self, order: Sequence[Tensor], numbers: dict[int, int], resolver: Resolver
    ) -> Iterable[str]:
        """Instructions in order, each as the key has it; equal ones (same op, operands and attributes) are merged."""
        numbered: dict[str, int] = {}
        draws = {id(node): i for i, node in enumerate(self.draws)}
        items: dict[int, list[Tensor]] = {}
        if self._loops:
            for node in order:
                if node.op == "item" and id(node) not in numbers:
                    items.setdefault(id(node.inputs[0]), []).append(node)

        def add(node: Tensor, inputs: tuple[int, ...], attrs: dict[str, Any], loop: Loop | None = None) -> None:
            operands = ",".join(map(str, inputs))
            text = f'["{node.op}",[{operands}],{_JSON.encode(attrs) if attrs else "{}"},"{node.dtype}"]'
            number = numbered.get(text)
            if number is None:
                number = numbered[text] = self.first + len(numbered)
                self.schedule.append(number)
                self.instructions.append(Instruction(node, inputs, attrs, loop))
            numbers[id(node)] = number

        for node in order:
            key = id(node)
            if key in numbers:
                if key in draws:
                    references = tuple([numbers[id(x)] for x in resolver.operands(node)])
                    self.draw_dims[draws[key]] = (references, resolver.attrs(node)["dims"])
                    self.schedule.append(numbers[key])
                continue
            loop = self._loops.get(key)
            if loop is None:
                operands = tuple([numbers[id(x)] for x in resolver.operands(node)])
                add(node, operands, resolver.attrs(node))
                continue
            inputs = [numbers[id(resolver.resolve(x))] for x in loop.operands]
            inputs += [self.first_draw + i for i in self._loop_draws[key]]
            inputs += [numbers[id(x)] for x in loop.program.constants]
            add(node, tuple(inputs), loop.attrs(), loop)
            # Directly after it, so that no engine holds many values in one for long.
            for picked in dict.fromkeys([*items[key], *(one.value for one in loop.prints)]):
                add(picked, (numbers[key],), {"index": loop.positions[picked.attrs["index"]]})
        return numbered

    def _make_key(self, contents: Sequence[Content], texts: Iterable[str]) -> str:
        leaves = [
            [[x.dtype, x.shape] for x in self.inputs],
            [[x.dtype, x.shape] for x in self.slots],
            [[x.dtype, x.attrs["kind"], *dims] for x, dims in zip(self.draws, self.draw_dims)],
            [f"{dtype}{shape}{content.hex()}" for dtype, shape, content in contents],
        ]
        ends = [self.outputs, self.updates]
        text = f"{_JSON.encode(leaves)[:-1]},[{','.join(texts)}],{_JSON.encode(ends)[1:]}"
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]

    def lacking(self, ops: frozenset[str], dtypes: frozenset[str]) -> list[str]:
        """The parts that an engine with these ops and dtypes lacks, one line each; variables are not looked at."""
        problems: dict[str, None] = {}
        for instruction in self.instructions:
            node = instruction.node
            if instruction.loop is not None:
                problems.update(dict.fromkeys(instruction.loop.program.lacking(ops, dtypes)))
                continue
            known = node.op in ops or node.op in ("sum_to", "item")
            if not known and RULES[node.op].decompose is None:
                problems[f"it has no op '{node.op}' ({node.source})"] = None
            if node.dtype not in dtypes:
                problems[f"it has no dtype {node.dtype} (op {node.op}, {node.source})"] = None
        leaves: list[Tensor] = [*self.inputs, *self.constants, *self.draws]
        for leaf in leaves:
            if leaf.dtype not in dtypes:
                problems[f"it has no dtype {leaf.dtype} ({leaf.op} '{leaf.name}', {leaf.source})"] = None
        return list(problems)

    def specialise(self, feed_shapes: tuple[tuple[int, ...], ...], mode: str) -> Specialisation:
        """The program's specialisation to feeds of these shapes, on a backend that specialises by `mode`."""
        known = self._specialised.get((feed_shapes, mode))
        if known is None:
            known = self._specialised[feed_shapes, mode] = Specialisation(self, feed_shapes, mode)
            length = max(1, len(known.shapes))
            drop_oldest(self._specialised, min(MOST_SHAPES, max(16, MOST_SHAPED_VALUES // length)))
        return known
