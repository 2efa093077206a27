"""A program at given feed shapes: its key for an engine, the arrays of a run, and the JSON that backends lower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ShapeError
from ..graph.nodes import Shape, Tensor
from .inference import LoopShapes, infer

if TYPE_CHECKING:
    from .program import Program


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
        return _encode(program, self.shapes)[0]

    def blamed(self, program: Program, path: Sequence[int]) -> Tensor | None:
        """The node behind an encoded instruction: its number, then those inside the bodies of loops; None for none."""
        return _blamed(program, self.shapes, path)


def _blamed(program: Program, shapes: list[Any], path: Sequence[int]) -> Tensor | None:
    nodes = _encode(program, shapes)[1]
    if path[0] >= len(nodes):
        return None
    node = nodes[path[0]]
    for i, instruction in enumerate(program.instructions):
        if instruction.node is node and instruction.loop is not None and len(path) > 1:
            return _blamed(instruction.loop.program, shapes[program.first + i].body, path[1:])
    return node


def _encode(program: Program, shapes: list[Any]) -> tuple[dict[str, Any], list[Tensor]]:
    """The JSON form, and the node behind each of its instructions."""
    moved = list(range(program.first))  # new number of each value
    nodes: list[Tensor] = []
    instructions: list[Any] = []

    def emit(node: Tensor, op: str, inputs: list[int], attrs: dict[str, Any], shape: Shape) -> int:
        instructions.append([op, inputs, attrs, node.dtype, list(shape)])
        nodes.append(node)
        return program.first + len(instructions) - 1

    for i, (node, inputs, attrs, loop) in enumerate(program.instructions):
        shape = shapes[program.first + i]
        operands = [moved[n] for n in inputs]
        if node.op == "sum_to":
            moved.append(_encode_sum_to(node, shapes[inputs[0]], shape, operands, emit))
            continue
        if loop is not None:
            attrs = {**attrs, "body": _encode(loop.program, shape.body)[0]}
            # Its values have different shapes, which their items hold.
            shape = ()
        if "result" in attrs:
            # The result's dtype is in the instruction itself.
            attrs = {name: value for name, value in attrs.items() if name != "result"}
        moved.append(emit(node, node.op, operands, attrs, shape))
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
    return encoded, nodes


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
