"""Second stage of a call: the nodes that are needed, in order, as a neutral program with a structural key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .bounds import drop_oldest
from .errors import FeedError, KernelKError, ShapeError
from .graph import (
    Constant,
    Draw,
    LearningPhase,
    Placeholder,
    Shape,
    Spec,
    Tensor,
    Update,
    Variable,
    check_generation,
    located,
    walk,
)
from .ops.primitives import known_dims
from .ops.rules import RULES, apply, expand

_ALIASES = {"identity", "stop_gradient", "print"}

# What is known of a program at certain feed shapes is kept for so many of them, fewer where the program is long.
MOST_SHAPES = 1024
MOST_SHAPED_VALUES = 500_000

# Of a program's key; what is compiled has the shapes after it.
KEY_LENGTH = 32


class NeedsValuesError(Exception):
    """Linearisation needs the values of these integer tensors first: they decide shapes."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__(tensors)
        self.tensors = tensors


class Instruction(NamedTuple):
    """One op: the node that it came from, value numbers of its operands, and attributes without shape-only values."""

    node: Tensor
    inputs: tuple[int, ...]
    attrs: dict[str, Any]


class Specialisation(NamedTuple):
    """A program at given feed shapes: the key of what is compiled, and every array that a run makes."""

    key: str
    shapes: list[Shape]  # of every value, as far as the compiled form may know them
    draws: list[tuple[int, ...]]
    outputs: list[tuple[int, ...]]


def update_value(node: Update) -> Tensor:
    """The new value that an update stands for."""
    if node.expansion is None:
        variable, value = node.inputs
        if node.kind == "assign":
            node.expansion = value
        else:
            node.expansion = apply("add", variable, value)
    return node.expansion


class Program:
    """The linear form of some outputs and updates in one learning phase, for a backend that defines `ops`.

    Values are numbered: inputs, slots (variables), draws, constants, instructions, in that order. The `prints` that it
    passes, in the order in which they were written, are further outputs after those asked for; `printed` has values of
    others, which were known before (they decide shapes).
    Raises FeedError for a placeholder that isn't among `inputs`, NeedsValuesError before values are known that shapes
    depend on, StaleTensorError after `K.clear_session()`.
    """

    def __init__(
        self,
        inputs: Sequence[Placeholder],
        outputs: Sequence[Tensor],
        updates: Sequence[tuple[Variable, Tensor]],
        phase: int,
        ops: frozenset[str],
        values: dict[int, np.ndarray[Any, Any]] | None = None,
    ) -> None:
        self._phase = phase
        self._ops = ops
        self._values = values or {}
        self._specialised: dict[Any, Specialisation] = {}
        self.plans: dict[Any, Any] = {}  # the session's: how each kind of call is carried out
        self._output_arrays: dict[str, list[tuple[int, str, tuple[int, ...]]]] = {}
        self.printed: list[tuple[Tensor, np.ndarray[Any, Any]]] = []
        self.inputs = list(inputs)
        self._prints: dict[int, Tensor] = {}
        self.slots: list[Variable] = []
        self.draws: list[Draw] = []
        self.constants: list[Constant] = []
        self.instructions: list[Instruction] = []
        self._draw_dims: list[tuple[tuple[int, ...], list[Any]]] = []
        roots = [self._resolve(tensor) for tensor in outputs]
        new_values = [self._resolve(value) for _, value in updates]
        order = walk([*roots, *new_values], self._inputs_of)
        numbers = self._number_leaves(order, [variable for variable, _ in updates])
        self._number_instructions(order, numbers)
        self.prints = sorted(self._prints.values(), key=lambda node: node.uid)
        roots += [self._resolve(node) for node in self.prints]
        self.outputs = [numbers[id(root)] for root in roots]
        self.output_dtypes = [root.dtype for root in roots]
        index = {id(variable): i for i, variable in enumerate(self.slots)}
        self.updates = [(index[id(variable)], numbers[id(value)]) for (variable, _), value in zip(updates, new_values)]
        self.key = self._make_key()

    # --- which nodes ---

    def _resolve(self, node: Tensor) -> Tensor:
        """The node that really computes the value: through aliases, the chosen branch, and decompositions."""
        while True:
            op = node.op
            if op in _ALIASES:
                if op == "print":
                    self._prints[id(node)] = node
                node = node.inputs[0]
            elif op == "phase_select":
                node = node.inputs[0 if self._phase else 1]
            elif isinstance(node, Update):
                node = update_value(node)
            elif op not in self._ops and op in RULES and RULES[op].decompose is not None:
                node = expand(node)
            else:
                return node

    def _operands(self, node: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Operands and attributes, with lengths that are values of integer tensors replaced by those values."""
        dims = node.attrs.get("dims")
        if dims is None or not any(isinstance(d, list) and d[0] == "value" for d in dims):
            return node.inputs, node.attrs
        missing = [node.inputs[d[1]] for d in dims if isinstance(d, list) and d[0] == "value"]
        missing = [tensor for tensor in missing if id(tensor) not in self._values]
        if missing:
            raise NeedsValuesError(missing)
        fixed = 0 if isinstance(node, Draw) else 1
        kept = list(node.inputs[:fixed])
        lengths: list[Any] = []
        for d in dims:
            if not isinstance(d, list):
                lengths.append(d)
            elif d[0] == "value":
                lengths.append(int(self._values[id(node.inputs[d[1]])].reshape(-1)[d[2]]))
            else:
                operand = node.inputs[d[0]]
                if operand not in kept:
                    kept.append(operand)
                lengths.append([kept.index(operand), d[1]])
        return tuple(kept), {**node.attrs, "dims": lengths}

    def _inputs_of(self, node: Tensor) -> Sequence[Tensor]:
        return [self._resolve(x) for x in self._operands(node)[0]] if node.inputs else ()

    # --- numbers ---

    def _number_leaves(self, order: Sequence[Tensor], updated: Sequence[Variable]) -> dict[int, int]:
        fed = {id(placeholder): i for i, placeholder in enumerate(self.inputs)}
        variables: dict[int, Variable] = {}
        constants: dict[str, int] = {}
        constant_of: list[tuple[int, int]] = []
        for node in order:
            check_generation(node)
            if isinstance(node, LearningPhase):
                node = self._phase_constant(node)
            if isinstance(node, Placeholder):
                if id(node) not in fed:
                    raise FeedError(
                        f"placeholder '{node.name}' {node.shape} ({node.source}) is needed but not fed: add it to the "
                        f"inputs of K.function, or use tensor.eval({{placeholder: value}})"
                    )
            elif isinstance(node, Variable):
                variables.setdefault(id(node), node)
            elif isinstance(node, Draw):
                self.draws.append(node)
            elif isinstance(node, Constant):
                digest = constant_digest(node)
                if digest not in constants:
                    constants[digest] = len(self.constants)
                    self.constants.append(node)
                constant_of.append((id(node), constants[digest]))
        for variable in updated:
            check_generation(variable)
            variables.setdefault(id(variable), variable)
        self.slots = list(variables.values())
        numbers = dict(fed)
        start = len(self.inputs)
        numbers.update({id(variable): start + i for i, variable in enumerate(self.slots)})
        start += len(self.slots)
        numbers.update({id(node): start + i for i, node in enumerate(self.draws)})
        start += len(self.draws)
        numbers.update({node: start + i for node, i in constant_of})
        self._phase_aliases(order, numbers)
        self.first = start + len(self.constants)
        return numbers

    def _phase_constant(self, node: LearningPhase) -> Constant:
        made: Constant = node.__dict__.setdefault("_values", {}).get(self._phase)
        if made is None:
            from .graph import constant_node

            made = constant_node(np.asarray(bool(self._phase)))
            node.__dict__["_values"][self._phase] = made
        return made

    def _phase_aliases(self, order: Sequence[Tensor], numbers: dict[int, int]) -> None:
        for node in order:
            if isinstance(node, LearningPhase):
                numbers[id(node)] = numbers[id(self._phase_constant(node))]

    def _number_instructions(self, order: Sequence[Tensor], numbers: dict[int, int]) -> None:
        """Instructions in order; equal ones (same op, operands and attributes) are merged, draws are not."""
        merged: dict[tuple[Any, ...], int] = {}
        self._schedule: list[tuple[str, int]] = []
        draws = {id(node): i for i, node in enumerate(self.draws)}
        dims_of_draws: dict[int, tuple[tuple[int, ...], list[Any]]] = {}
        for node in order:
            if id(node) in draws:
                operands, attrs = self._operands(node)
                references = tuple(numbers[id(self._resolve(x))] for x in operands)
                dims_of_draws[draws[id(node)]] = (references, attrs["dims"])
                self._schedule.append(("draw", draws[id(node)]))
                continue
            if id(node) in numbers:
                continue
            operands, attrs = self._operands(node)
            inputs = tuple(numbers[id(self._resolve(x))] for x in operands)
            key = (node.op, inputs, json.dumps(attrs) if attrs else "", node.dtype)
            number = merged.get(key)
            if number is None:
                number = merged[key] = self.first + len(self.instructions)
                self._schedule.append(("instruction", len(self.instructions)))
                self.instructions.append(Instruction(node, inputs, attrs))
            numbers[id(node)] = number
        self._draw_dims = [dims_of_draws[i] for i in range(len(self.draws))]

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
            if node.op not in ops and node.op != "sum_to" and RULES[node.op].decompose is None:
                found[f"it has no op '{node.op}' ({node.source})"] = None
            if node.dtype not in dtypes:
                found[f"it has no dtype {node.dtype} (op {node.op}, {node.source})"] = None
        leaves: list[Tensor] = [*self.inputs, *self.constants, *self.draws]
        for leaf in leaves:
            if leaf.dtype not in dtypes:
                found[f"it has no dtype {leaf.dtype} ({leaf.op} '{leaf.name}', {leaf.source})"] = None
        return list(found)

    # --- shapes ---

    def _infer(self, feed_shapes: Sequence[Shape]) -> list[Shape]:
        """The shape of every value when the inputs have these shapes. Raises ShapeError with the user's line."""
        shapes: list[Shape] = [*feed_shapes, *(x.shape for x in self.slots)]
        dtypes = [x.dtype for x in (*self.inputs, *self.slots, *self.draws, *self.constants)]
        dtypes += [i.node.dtype for i in self.instructions]
        shapes += [()] * len(self.draws) + [x.shape for x in self.constants] + [()] * len(self.instructions)
        draw_start = len(self.inputs) + len(self.slots)
        for kind, i in self._schedule:
            if kind == "draw":
                references, dims = self._draw_dims[i]
                specs = [Spec(shapes[n], dtypes[n]) for n in references]
                shapes[draw_start + i] = tuple(known_dims(dims, specs))
                continue
            instruction = self.instructions[i]
            specs = [Spec(shapes[n], dtypes[n]) for n in instruction.inputs]
            try:
                shapes[self.first + i], _ = RULES[instruction.node.op].infer(*specs, **instruction.attrs)
            except KernelKError as error:
                raise located(error, instruction.node.source) from None
        return shapes

    def specialise(self, feed_shapes: tuple[tuple[int, ...], ...], mode: str) -> Specialisation:
        """What is compiled and made for feeds of these shapes, on a backend that specialises by `mode`."""
        found = self._specialised.get((feed_shapes, mode))
        if found is not None:
            return found
        exact: list[Any] = self._infer(feed_shapes)
        for slot, n in self.updates:
            if exact[n] != self.slots[slot].shape:
                # Unknown lengths let it be written; a backend might spread it over the variable.
                raise ShapeError(
                    f"update: variable '{self.slots[slot].name}' ({self.slots[slot].source}) has shape "
                    f"{self.slots[slot].shape}, at this call the value {exact[n]}; they must be equal"
                )
        if mode == "all":
            shapes, suffix = exact, str(feed_shapes)
        else:
            masked = tuple(
                tuple(n if m is not None or n == 1 else None for n, m in zip(shape, x.shape))
                for shape, x in zip(feed_shapes, self.inputs)
            )
            # An unknown length that turns out 1 inside the graph (a slice, a reshape) broadcasts as a fed 1 does.
            shapes, ones = [], []
            for number, (known, shape) in enumerate(zip(self._infer(masked), exact)):
                found_ones = [axis for axis, n in enumerate(known) if n is None and shape[axis] == 1]
                if found_ones:
                    known = tuple(1 if axis in found_ones else n for axis, n in enumerate(known))
                    ones.append((number, found_ones))
                shapes.append(known)
            suffix = f"{masked}{ones or ''}"
        draws = len(self.inputs) + len(self.slots)
        result = Specialisation(
            f"{self.key}{suffix}",
            shapes,
            exact[draws : draws + len(self.draws)],
            [exact[n] for n in self.outputs],
        )
        self._specialised[feed_shapes, mode] = result
        drop_oldest(self._specialised, min(MOST_SHAPES, max(16, MOST_SHAPED_VALUES // max(1, len(shapes)))))
        return result

    def output_arrays(self, specialisation: Specialisation) -> list[tuple[int, str, tuple[int, ...]]]:
        """(bytes, dtype, shape) of each output."""
        found = self._output_arrays.get(specialisation.key)
        if found is None or [shape for _, _, shape in found] != specialisation.outputs:
            found = [
                (int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64)), dtype, shape)
                for dtype, shape in zip(self.output_dtypes, specialisation.outputs)
            ]
            self._output_arrays[specialisation.key] = found
            drop_oldest(self._output_arrays, MOST_SHAPES)
        return found

    def encode(self, specialisation: Specialisation) -> tuple[dict[str, Any], list[Tensor]]:
        """The JSON form that backends lower, and the node behind each of its instructions."""
        shapes = specialisation.shapes
        moved = list(range(self.first))  # new number of each value
        nodes: list[Tensor] = []
        instructions: list[Any] = []

        def emit(node: Tensor, op: str, inputs: list[int], attrs: dict[str, Any], shape: Shape) -> int:
            instructions.append([op, inputs, attrs, node.dtype, list(shape)])
            nodes.append(node)
            return self.first + len(instructions) - 1

        for i, (node, inputs, attrs) in enumerate(self.instructions):
            shape = shapes[self.first + i]
            operands = [moved[n] for n in inputs]
            if node.op == "sum_to":
                moved.append(self._encode_sum_to(node, shapes[inputs[0]], shape, operands, emit))
                continue
            if "result" in attrs:
                # The result's dtype stands in the instruction itself.
                attrs = {name: value for name, value in attrs.items() if name != "result"}
            moved.append(emit(node, node.op, operands, attrs, shape))
        draws = len(self.inputs) + len(self.slots)
        encoded = {
            "inputs": [[x.dtype, list(shapes[i])] for i, x in enumerate(self.inputs)],
            "slots": [[x.dtype, list(x.shape)] for x in self.slots],
            "draws": [[x.dtype, list(shapes[draws + i])] for i, x in enumerate(self.draws)],
            "constants": [[x.dtype, list(x.shape)] for x in self.constants],
            "instructions": instructions,
            "outputs": [moved[n] for n in self.outputs],
            "updates": [[slot, moved[n]] for slot, n in self.updates],
        }
        return encoded, nodes

    def _encode_sum_to(self, node: Tensor, wide: Shape, narrow: Shape, operands: list[int], emit: Any) -> int:
        """A sum over the axes that were broadcast; which ones is known now, since unknown lengths aren't 1."""
        extra = len(wide) - len(narrow)
        axes = [i for i in range(len(wide)) if i < extra or (narrow[i - extra] == 1 and wide[i] != 1)]
        if not axes:
            return operands[0]
        kept = tuple(1 if i in axes else n for i, n in enumerate(wide))
        total: int = emit(node, "sum", operands[:1], {"axes": axes, "keepdims": True}, kept)
        if not extra:
            return total
        dims = [[0, i + extra] if n is None else n for i, n in enumerate(narrow)]
        result: int = emit(node, "reshape", [total], {"dims": dims}, narrow)
        return result


def constant_digest(node: Constant) -> str:
    """A hash of the constant's dtype, shape and bytes, made once."""
    digest: str | None = node.__dict__.get("_digest")
    if digest is None:
        array = node.array
        content = array.tobytes()
        if len(content) > 32:
            content = hashlib.sha256(content).digest()
        digest = f"{array.dtype.name}{array.shape}{content.hex()}"
        node.__dict__["_digest"] = digest
    return digest
