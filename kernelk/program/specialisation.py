"""A program at given feed shapes: its key for an engine, the arrays of a run, and the JSON that backends lower."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ShapeError
from ..graph.nodes import Shape, Tensor
from .inference import LoopShapes, infer

if TYPE_CHECKING:
    from .program import Program


# The node behind an encoded instruction, and those inside the body of a loop.
Origins = list[tuple[Tensor, "Origins | None"]]


class Specialisation:
    """A program's compiled form and arrays for feeds of these shapes, on a backend that specialises by `mode`.

    `key` is that of the compiled form. `shapes` are those of every value as far as that form may know them; `draws`
    and `outputs` the exact ones of every array that a run makes. The program, which keeps it, is handed in where it is
    needed: no circle may keep the variables. Raises ShapeError where an update doesn't fit.
    """

    def __init__(self, program: Program, feed_shapes: tuple[tuple[int, ...], ...], mode: str) -> None:
        exact = infer(program, feed_shapes)
        for slot, n in program.updates:
            variable = program.slots[slot]
            if exact[n] != variable.shape:
                # Unknown lengths allowed it to be recorded; a backend might broadcast it to the variable.
                raise ShapeError(
                    f"update: variable '{variable.name}' ({variable.source}) has shape {variable.shape}, "
                    f"at this call the value {exact[n]}",
                    allowed="they must be equal",
                )
        self.shapes: list[Any] = exact
        # The results of a loop without steps are known only from exact shapes.
        if mode == "all" or _without_steps(exact):
            suffix = str(feed_shapes)
        else:
            masked = tuple(
                tuple(n if m is not None or n == 1 else None for n, m in zip(shape, x.shape))
                for shape, x in zip(feed_shapes, program.inputs)
            )
            ones: list[Any] = []
            if masked != feed_shapes:
                self.shapes, ones = _with_ones(infer(program, masked), exact)
            suffix = f"{masked}{ones or ''}"
        self.key = f"{program.key}{suffix}"
        self.draws: list[tuple[int, ...]] = exact[program.first_draw : program.first_draw + len(program.draws)]
        self.outputs: list[tuple[int, ...]] = [exact[n] for n in program.outputs]
        self._arrays: list[tuple[int, str, tuple[int, ...]]] | None = None

    def output_arrays(self, program: Program) -> list[tuple[int, str, tuple[int, ...]]]:
        """(bytes, dtype, shape) of each output."""
        if self._arrays is None:
            self._arrays = [
                (int(np.dtype(dtype).itemsize * np.prod(shape, dtype=np.int64)), dtype, shape)
                for dtype, shape in zip(program.output_dtypes, self.outputs)
            ]
        return self._arrays

    def encode(self, program: Program) -> dict[str, Any]:
        """The JSON form that backends lower."""
        return self._encoded(program)[0]

    def _encoded(self, program: Program) -> tuple[dict[str, Any], Origins]:
        encoded, origins = _encode(program, self.shapes)
        return _needed(encoded, origins, range(len(program.inputs)))[:2]

    def origins(self, program: Program) -> list[Tensor]:
        """The node behind each encoded instruction."""
        return [node for node, _ in self._encoded(program)[1]]

    def blamed(self, program: Program, path: Sequence[int]) -> Tensor | None:
        """The node behind an encoded instruction: its number, then those inside the bodies of loops; None for none."""
        node: Tensor | None = None
        inside: Origins | None = self._encoded(program)[1]
        for index in path:
            if inside is None or index >= len(inside):
                break
            node, inside = inside[index]
        return node


def _encode(program: Program, shapes: list[Any]) -> tuple[dict[str, Any], Origins]:
    """The JSON form of all instructions, and what is behind each of them."""
    moved = list(range(program.first))  # new number of each value
    origins: Origins = []
    instructions: list[Any] = []

    def emit(
        node: Tensor, op: str, inputs: list[int], attrs: dict[str, Any], shape: Shape, inside: Origins | None = None
    ) -> int:
        instructions.append([op, inputs, attrs, node.dtype, list(shape)])
        origins.append((node, inside))
        return program.first + len(instructions) - 1

    for i, (node, inputs, attrs, loop) in enumerate(program.instructions):
        shape = shapes[program.first + i]
        operands = [moved[n] for n in inputs]
        if node.op == "sum_to":
            moved.append(_encode_sum_to(node, shapes[inputs[0]], shape, operands, emit))
            continue
        inside = None
        if loop is not None:
            body, inside = _encode(loop.program, shape.body)
            attrs = {**attrs, "body": body}
            # Its values have different shapes, which their items hold.
            shape = ()
        if "result" in attrs:
            # The result's dtype is in the instruction itself.
            attrs = {name: value for name, value in attrs.items() if name != "result"}
        moved.append(emit(node, node.op, operands, attrs, shape, inside))
    draws = program.first_draw
    encoded = {
        "inputs": [[x.dtype, list(shapes[i])] for i, x in enumerate(program.inputs)],
        "slots": [[x.dtype, list(x.shape)] for x in program.slots],
        "draws": [[x.dtype, list(shapes[draws + i])] for i, x in enumerate(program.draws)],
        "constants": [[x.dtype, list(x.shape)] for x in program.constants],
        "instructions": instructions,
        "outputs": [moved[n] for n in program.outputs],
        "updates": [[slot, moved[n]] for slot, n in program.updates],
    }
    return encoded, origins


def _needed(
    encoded: dict[str, Any], origins: Origins, fixed: Collection[int]
) -> tuple[dict[str, Any], Origins, list[int]]:
    """The same without what no result needs: what served for its shape alone, which the other instructions know now.

    A loop has neither results nor sequences and captures that it only had for that. `fixed`: the inputs that stay,
    whether they are needed or not. Returns also which inputs are left.
    """
    count = len(encoded["inputs"])
    first = count + len(encoded["slots"]) + len(encoded["draws"]) + len(encoded["constants"])
    live = {*encoded["outputs"], *(n for _, n in encoded["updates"])}
    items: dict[int, set[int]] = {}  # number of a loop -> those of its values that are needed
    loops: dict[int, dict[int, int]] = {}  # number of a loop -> the new positions of its values
    kept: list[tuple[int, list[Any], tuple[Tensor, Origins | None]]] = []
    for number in range(first + len(encoded["instructions"]) - 1, first - 1, -1):
        if number not in live:
            continue
        op, inputs, attrs, dtype, shape = encoded["instructions"][number - first]
        node, inside = origins[number - first]
        if op == "item":
            items.setdefault(inputs[0], set()).add(attrs["index"])
        elif inside is not None:
            inputs, attrs, inside, loops[number] = _needed_of_loop(inputs, attrs, inside, items[number])
        live.update(inputs)
        kept.append((number, [op, inputs, attrs, dtype, shape], (node, inside)))
    left = [i for i in range(count) if i in fixed or i in live]
    numbers = {old: new for new, old in enumerate([*left, *range(count, first), *(n for n, _, _ in reversed(kept))])}
    instructions: list[Any] = []
    for _, (op, inputs, attrs, dtype, shape), _ in reversed(kept):
        if op == "item":
            attrs = {**attrs, "index": loops[inputs[0]][attrs["index"]]}
        instructions.append([op, [numbers[n] for n in inputs], attrs, dtype, shape])
    encoded = {
        **encoded,
        "inputs": [encoded["inputs"][i] for i in left],
        "instructions": instructions,
        "outputs": [numbers[n] for n in encoded["outputs"]],
        "updates": [[slot, numbers[n]] for slot, n in encoded["updates"]],
    }
    return encoded, [origin for _, _, origin in reversed(kept)], left


def _needed_of_loop(
    inputs: list[int], attrs: dict[str, Any], inside: Origins, items: set[int]
) -> tuple[list[int], dict[str, Any], Origins, dict[int, int]]:
    """A loop's operands, attributes and what is behind its body, for these of its values; and their new positions."""
    body, sequences, states = attrs["body"], attrs["sequences"], attrs["states"]
    values = [i for i in range(len(body["outputs"])) if i < states or i in items]
    wanted = {**body, "outputs": [body["outputs"][i] for i in values]}
    carried = range(sequences, sequences + states)
    encoded, origins, left = _needed(wanted, inside, carried)
    if not left or left[0] >= sequences:
        # The first sequence tells the length.
        encoded, origins, left = _needed(wanted, inside, [0, *carried])
    operands = [inputs[i] for i in left] + inputs[len(body["inputs"]) :]
    attrs = {**attrs, "body": encoded, "sequences": sum(i < sequences for i in left)}
    return operands, attrs, origins, {old: new for new, old in enumerate(values)}


def _encode_sum_to(node: Tensor, wide: Shape, narrow: Shape, operands: list[int], emit: Any) -> int:
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


def _without_steps(exact: Sequence[Any]) -> bool:
    """Whether any loop has no steps."""
    return any(isinstance(x, LoopShapes) and (x.length == 0 or _without_steps(x.body)) for x in exact)


def _with_ones(known: Sequence[Any], exact: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """`known` with the lengths that turned out 1, and where they are.

    An unknown length that turns out 1 inside the graph (a slice, a reshape) broadcasts as a fed 1 does.
    """
    shapes: list[Any] = []
    ones: list[Any] = []
    for number, (shape, real) in enumerate(zip(known, exact)):
        if isinstance(shape, LoopShapes):
            body, axes = _with_ones(shape.body, real.body)
            shape = shape._replace(body=body)
        else:
            axes = []
            if 1 in real and None in shape:
                axes = [axis for axis, n in enumerate(shape) if n is None and real[axis] == 1]
                shape = tuple(1 if axis in axes else n for axis, n in enumerate(shape))
        if axes:
            ones.append((number, axes))
        shapes.append(shape)
    return shapes, ones
