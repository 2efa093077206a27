"""Second stage of a call: the nodes that are needed, in order, as a neutral program with a structural key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array
from ..backends.lowering import Instruction as Lowered
from ..bounds import drop_oldest
from ..errors import KernelKError, ShapeError
from ..graph.loops import merge_shapes, stacked
from ..graph.nodes import (
    Constant,
    Draw,
    LearningPhase,
    Placeholder,
    Scan,
    Shape,
    Spec,
    Tensor,
    Variable,
    check_generation,
    located,
    walk,
)
from ..graph.rules import RULES
from ..graph.state import current_state
from ..ops.dtypes import INTEGERS
from ..ops.shapes import known_dims
from ..source import Source
from .leaves import constant_digest, not_fed
from .resolve import Resolver
from .specialisation import LoopShapes, Specialisation, with_ones, without_steps

# What is known of a program at certain feed shapes is kept for so many of them, fewer where the program is long.
MOST_SHAPES = 1024
MOST_SHAPED_VALUES = 500_000

# Of a program's key; what is compiled has the shapes after it.
KEY_LENGTH = 32


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
        # Where the node's values stand among those of the program.
        self.places = {i: place for place, i in enumerate([*sorted(carried), *results])}
        self.prints = [Print(one.node, (node, *one.loops), stacked(node, one.value)) for one in self.program.prints]
        for place, one in enumerate(self.prints, len(outputs)):
            self.places.setdefault(one.value.attrs["index"], place)

    def attrs(self) -> dict[str, Any]:
        """What tells the loop from others, as attributes of its instruction."""
        return {
            "sequences": self.sequences,
            "states": self.states,
            "reverse": self.reverse,
            "body": self.program.key,
        }

    def infer(self, shapes: Sequence[Shape], source: Source) -> LoopShapes:
        """The shapes for operands of these shapes. Raises ShapeError."""
        n, m = self.sequences, self.states
        lengths = {shape[0] for shape in shapes[:n] if shape[0] is not None}
        if len(lengths) > 1:
            raise located(
                ShapeError(
                    f"a loop's sequences have different lengths: {', '.join(map(str, shapes[:n]))}",
                    allowed="their first axes must be equal",
                ),
                source,
            )
        length = lengths.pop() if lengths else None
        program = self.program
        inner = program.infer([*(shape[1:] for shape in shapes[:n]), *shapes[n:]])
        found = [inner[number] for number in program.outputs]
        values: list[Shape] = []
        for initial, new in zip(shapes[n : n + m], found):
            if len(initial) != len(new) or any(
                a != b and a is not None and b is not None for a, b in zip(initial, new)
            ):
                raise located(
                    ShapeError(
                        f"a loop's state has shape {initial} at first and {new} after a step",
                        allowed="they must be equal",
                        next_step="give the initial state the shape that the step returns",
                    ),
                    source,
                )
            values.append(merge_shapes(initial, new))
        values += [(length, *shape) for shape in found[m:]]
        return LoopShapes(values, inner, length)


class Program:
    """The linear form of some outputs and updates in one learning phase, for a backend that defines `ops`.

    Values are numbered: inputs, slots (variables), draws, constants, instructions, in that order. The values of the
    `prints` that it passes, in the order in which they were written, are further outputs after those asked for;
    `printed` has values of others, which were known before (they decide shapes).
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
        self._phase = phase
        self._resolver = Resolver(inputs, phase, ops, values or {})
        self._specialised: dict[Any, Specialisation] = {}
        self.plans: dict[Any, Any] = {}  # the session's: how each kind of call is carried out
        self.printed: list[tuple[Print, Array]] = []
        self.slots: list[Variable] = []
        self.draws: list[Draw] = []
        self.constants: list[Constant] = []
        self.instructions: list[Instruction] = []
        self._draw_dims: list[tuple[tuple[int, ...], list[Any]]] = []
        self._loops: dict[int, Loop] = {}
        self._loop_draws: dict[int, list[int]] = {}  # id of a loop's node -> the draws that its body takes
        roots = [self._resolver.resolve(tensor) for tensor in outputs]
        new_values = [self._resolver.resolve(value) for _, value in updates]
        order = self._needed([*roots, *new_values])
        self.inputs = list(inputs)
        if required is not None:
            wanted = {id(x) for x in (*order, *required)}
            self.inputs = [x for x in inputs if id(x) in wanted]
        numbers = self._number_leaves(order, [variable for variable, _ in updates])
        self._number_instructions(order, numbers)
        passed: list[Print] = [Print(node, (), node) for node in self._resolver.prints.values()]
        passed = [one for one in passed if id(self._resolver.resolve(one.node)) in numbers]
        passed += [one for loop in self._loops.values() for one in loop.prints]
        self.prints: list[Print] = sorted(passed, key=lambda one: one.node.uid)
        roots += [self._resolver.resolve(one.value) for one in self.prints]
        self.outputs = [numbers[id(root)] for root in roots]
        self.output_dtypes = [root.dtype for root in roots]
        index = {id(variable): i for i, variable in enumerate(self.slots)}
        self.updates = [(index[id(variable)], numbers[id(value)]) for (variable, _), value in zip(updates, new_values)]
        self._dtypes = [x.dtype for x in (*self.inputs, *self.slots, *self.draws, *self.constants)]
        self._dtypes += [i.node.dtype for i in self.instructions]
        self.key = self._make_key()
        # It knows every node that was read; the program keeps those that are computed.
        del self._resolver

    # --- which nodes ---

    def _needed(self, roots: Sequence[Tensor]) -> list[Tensor]:
        """The nodes that `roots` need, in order; of a loop only what is used of its values counts."""
        resolver = self._resolver
        order = walk(roots, resolver.inputs_of)
        if not any(isinstance(node, Scan) for node in order):
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
                self._loops[id(node)] = Loop(node, used[id(node)], resolver)
            elif node.op == "item":
                used.setdefault(id(node.inputs[0]), {})[node.attrs["index"]] = node
            needed.update(id(x) for x in self._inputs_of(node))
        return kept[::-1]

    def _inputs_of(self, node: Tensor) -> Sequence[Tensor]:
        loop = self._loops.get(id(node)) if self._loops else None
        if loop is None:
            return self._resolver.inputs_of(node)
        return [self._resolver.resolve(x) for x in loop.operands]

    # --- numbers ---

    def _number_leaves(self, order: Sequence[Tensor], updated: Sequence[Variable]) -> dict[int, int]:
        fed = {id(placeholder): i for i, placeholder in enumerate(self.inputs)}
        variables: dict[int, Variable] = {}
        constants: dict[str, int] = {}
        constant_of: list[tuple[int, int]] = []
        generation = current_state().generation
        for node in order:
            if node.generation is not generation:
                check_generation(node)
            if id(node) in fed or type(node) is Tensor:
                continue
            if isinstance(node, LearningPhase):
                node = self._phase_constant(node)
            if isinstance(node, Placeholder):
                raise not_fed(node)
            if isinstance(node, Variable):
                variables.setdefault(id(node), node)
            elif isinstance(node, Draw):
                self.draws.append(node)
            elif isinstance(node, Scan):
                body = self._loops[id(node)].program
                self._loop_draws[id(node)] = list(range(len(self.draws), len(self.draws) + len(body.draws)))
                self.draws += body.draws
            held = [node] if isinstance(node, Constant) else []
            if isinstance(node, Scan):
                held = self._loops[id(node)].program.constants
            for constant in held:
                digest = constant_digest(constant)
                if digest not in constants:
                    constants[digest] = len(self.constants)
                    self.constants.append(constant)
                constant_of.append((id(constant), constants[digest]))
        for variable in updated:
            check_generation(variable)
            variables.setdefault(id(variable), variable)
        self.slots = list(variables.values())
        numbers = dict(fed)
        start = len(self.inputs)
        numbers.update({id(variable): start + i for i, variable in enumerate(self.slots)})
        start += len(self.slots)
        self.first_draw = start
        numbers.update({id(node): start + i for i, node in enumerate(self.draws)})
        start += len(self.draws)
        numbers.update({node: start + i for node, i in constant_of})
        self._phase_aliases(order, numbers)
        self.first = start + len(self.constants)
        return numbers

    def _phase_constant(self, node: LearningPhase) -> Constant:
        made: Constant = node.__dict__.setdefault("_values", {}).get(self._phase)
        if made is None:
            from ..graph.nodes import constant_node

            made = constant_node(np.asarray(bool(self._phase)))
            node.__dict__["_values"][self._phase] = made
        return made

    def _phase_aliases(self, order: Sequence[Tensor], numbers: dict[int, int]) -> None:
        for node in order:
            if type(node) is LearningPhase:
                numbers[id(node)] = numbers[id(self._phase_constant(node))]

    def _number_instructions(self, order: Sequence[Tensor], numbers: dict[int, int]) -> None:
        """Instructions in order; equal ones (same op, operands and attributes) are merged, draws are not."""
        merged_ones: dict[tuple[Any, ...], int] = {}
        self._schedule: list[tuple[str, int]] = []
        draws = {id(node): i for i, node in enumerate(self.draws)}
        self._draw_dims = [((), [])] * len(self.draws)
        items: dict[int, list[Tensor]] = {}
        for node in order:
            if node.op == "item" and id(node) not in numbers:
                items.setdefault(id(node.inputs[0]), []).append(node)

        def add(node: Tensor, inputs: tuple[int, ...], attrs: dict[str, Any], loop: Loop | None = None) -> None:
            key = (node.op, inputs, node.dtype, json.dumps(attrs)) if attrs else (node.op, inputs, node.dtype)
            number = merged_ones.get(key)
            if number is None:
                number = merged_ones[key] = self.first + len(self.instructions)
                self._schedule.append(("instruction", len(self.instructions)))
                self.instructions.append(Instruction(node, inputs, attrs, loop))
            numbers[id(node)] = number

        inputs_of = self._resolver.inputs_of
        for node in order:
            if id(node) in draws:
                operands, attrs = self._resolver.operands(node)
                references = tuple(numbers[id(self._resolver.resolve(x))] for x in operands)
                self._draw_dims[draws[id(node)]] = (references, attrs["dims"])
                self._schedule.append(("draw", draws[id(node)]))
                continue
            if id(node) in numbers:
                continue
            loop = self._loops.get(id(node)) if self._loops else None
            if loop is None:
                inputs = tuple([numbers[id(x)] for x in inputs_of(node)])
                add(node, inputs, self._resolver.operands(node)[1] if node.attrs else node.attrs)
                continue
            inputs = tuple([numbers[id(x)] for x in self._inputs_of(node)])
            inputs += tuple(self.first_draw + i for i in self._loop_draws[id(node)])
            add(node, inputs + tuple(numbers[id(x)] for x in loop.program.constants), loop.attrs(), loop)
            # Right behind it: no engine holds many values in one for longer.
            for picked in dict.fromkeys([*items[id(node)], *(one.value for one in loop.prints)]):
                add(picked, (numbers[id(node)],), {"index": loop.places[picked.attrs["index"]]})

    def _make_key(self) -> str:
        structure = [
            [[x.dtype, x.shape] for x in self.inputs],
            [[x.dtype, x.shape] for x in self.slots],
            [[x.dtype, x.attrs["kind"], *dims] for x, dims in zip(self.draws, self._draw_dims)],
            [constant_digest(x) for x in self.constants],
            [[i.node.op, i.inputs, i.attrs, i.node.dtype] for i in self.instructions],
            self.outputs,
            self.updates,
        ]
        text = json.dumps(structure, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]

    def lacking(self, ops: frozenset[str], dtypes: frozenset[str]) -> list[str]:
        """What an engine with these ops and dtypes can't do of it, one line each; variables are not looked at."""
        found: dict[str, None] = {}
        for instruction in self.instructions:
            node = instruction.node
            if instruction.loop is not None:
                found.update(dict.fromkeys(instruction.loop.program.lacking(ops, dtypes)))
                continue
            known = node.op in ops or node.op in ("sum_to", "item")
            if not known and RULES[node.op].decompose is None:
                found[f"it has no op '{node.op}' ({node.source})"] = None
            if node.dtype not in dtypes:
                found[f"it has no dtype {node.dtype} (op {node.op}, {node.source})"] = None
        leaves: list[Tensor] = [*self.inputs, *self.constants, *self.draws]
        for leaf in leaves:
            if leaf.dtype not in dtypes:
                found[f"it has no dtype {leaf.dtype} ({leaf.op} '{leaf.name}', {leaf.source})"] = None
        return list(found)

    # --- shapes ---

    def infer(self, feed_shapes: Sequence[Shape]) -> list[Any]:
        """The shape of every value (of a loop LoopShapes) when the inputs have these shapes.

        Raises ShapeError with the user's line.
        """
        shapes: list[Any] = [*feed_shapes, *(x.shape for x in self.slots)]
        shapes += [()] * len(self.draws) + [x.shape for x in self.constants] + [()] * len(self.instructions)
        specs: list[Any] = list(map(Spec, shapes, self._dtypes))
        alike: dict[tuple[Any, ...], Spec] = {}  # results of ops without attributes, by op and operands
        for kind, i in self._schedule:
            if kind == "draw":
                references, dims = self._draw_dims[i]
                number, shape = self.first_draw + i, tuple(known_dims(dims, [specs[n] for n in references]))
                shapes[number], specs[number] = shape, Spec(shape, specs[number].dtype)
                continue
            node, inputs, attrs, loop = self.instructions[i]
            number = self.first + i
            if loop is not None:
                shapes[number] = self._infer_loop(self.instructions[i], shapes)
                continue
            if node.op == "item":
                result = Spec(shapes[inputs[0]].values[attrs["index"]], node.dtype)
            elif attrs:
                result = self._inferred(node, [specs[n] for n in inputs], attrs)
            else:
                operands = [specs[n] for n in inputs]
                key = (node.op, *operands)
                if key not in alike:
                    alike[key] = self._inferred(node, operands, attrs)
                result = alike[key]
            shapes[number], specs[number] = result.shape, result
        return shapes

    @staticmethod
    def _inferred(node: Tensor, operands: Sequence[Spec], attrs: dict[str, Any]) -> Spec:
        """Shape and dtype of a node's value for these operands. Raises the rule's error with the user's line."""
        try:
            shape, _ = RULES[node.op].infer(*operands, **attrs)
        except KernelKError as error:
            raise located(error, node.source) from None
        return Spec(shape, node.dtype)

    def from_shapes(self, feed_shapes: Sequence[Shape]) -> list[Array] | None:
        """The outputs where they follow from the feeds' shapes and constants alone; None where they don't.

        Nothing that a length is asked of is computed: `K.shape(y)` costs no `y`.
        """
        # Writing a graph imports no backend.
        from ..backends.numpy.ops import OPS as NUMPY

        shapes = self.infer(feed_shapes)
        start = self.first - len(self.constants)
        known: dict[int, Array] = {start + i: node.array for i, node in enumerate(self.constants)}
        for number, (node, inputs, attrs, loop) in enumerate(self.instructions, self.first):
            if node.op == "shape":
                known[number] = np.asarray(shapes[inputs[0]], dtype=node.dtype)
            elif node.op == "size":
                lengths = [shapes[inputs[0]][axis] for axis in attrs["axes"]]
                known[number] = np.prod(np.asarray(lengths, dtype=node.dtype), dtype=node.dtype)
            elif loop is None and (node.dtype in INTEGERS or node.dtype == "bool") and all(n in known for n in inputs):
                call = Lowered(number, node.op, inputs, attrs, node.dtype, shapes[number])
                given = {name: value for name, value in attrs.items() if name != "result"}
                known[number] = np.asarray(NUMPY[node.op](call, *[known[n] for n in inputs], **given))
        if not all(n in known for n in self.outputs):
            return None
        return [known[n] for n in self.outputs]

    def _infer_loop(self, instruction: Instruction, shapes: list[Any]) -> LoopShapes:
        """A loop's shapes; enters those of its draws, which are made for all steps at once, into `shapes`."""
        loop = instruction.loop
        assert loop is not None
        body = loop.program
        given = len(body.inputs)
        found = loop.infer([shapes[n] for n in instruction.inputs[:given]], instruction.node.source)
        first = body.first_draw
        for number, shape in zip(instruction.inputs[given:], found.body[first : first + len(body.draws)]):
            shapes[number] = (found.length, *shape)
        return found

    def specialise(self, feed_shapes: tuple[tuple[int, ...], ...], mode: str) -> Specialisation:
        """What is compiled and made for feeds of these shapes, on a backend that specialises by `mode`."""
        found = self._specialised.get((feed_shapes, mode))
        if found is not None:
            return found
        exact = self.infer(feed_shapes)
        for slot, n in self.updates:
            if exact[n] != self.slots[slot].shape:
                # Unknown lengths let it be written; a backend might spread it over the variable.
                raise ShapeError(
                    f"update: variable '{self.slots[slot].name}' ({self.slots[slot].source}) has shape "
                    f"{self.slots[slot].shape}, at this call the value {exact[n]}",
                    allowed="they must be equal",
                )
        # What a loop without steps would have made can be told from exact shapes only.
        if mode == "all" or (self._loops and without_steps(exact)):
            shapes, suffix = exact, str(feed_shapes)
        else:
            masked = tuple(
                tuple(n if m is not None or n == 1 else None for n, m in zip(shape, x.shape))
                for shape, x in zip(feed_shapes, self.inputs)
            )
            shapes, ones = with_ones(self.infer(masked), exact)
            suffix = f"{masked}{ones or ''}"
        draws = self.first_draw
        result = Specialisation(
            f"{self.key}{suffix}",
            shapes,
            exact[draws : draws + len(self.draws)],
            [exact[n] for n in self.outputs],
        )
        self._specialised[feed_shapes, mode] = result
        drop_oldest(self._specialised, min(MOST_SHAPES, max(16, MOST_SHAPED_VALUES // max(1, len(shapes)))))
        return result
