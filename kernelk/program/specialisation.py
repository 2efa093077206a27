"""A program at given feed shapes: its key, its arrays, and the JSON form that backends lower."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..graph.nodes import Shape, Tensor

if TYPE_CHECKING:
    from .program import Program


class LoopShapes(NamedTuple):
    """What is known of a loop in place of one shape: those of its values, of its body's values, and its length."""

    values: list[Shape]
    body: list[Any]
    length: int | None


class Specialisation:
    """What is compiled and made for feeds of certain shapes.

    `key` names the compiled form. `shapes` are those of every value, as far as the compiled form may know them;
    `draws` and `outputs` are exact. The program is handed in where it is needed: a reference to it would be a circle,
    which keeps its constants in memory.
    """

    __slots__ = ("_arrays", "draws", "key", "outputs", "shapes")

    def __init__(
        self, key: str, shapes: list[Any], draws: list[tuple[int, ...]], outputs: list[tuple[int, ...]]
    ) -> None:
        self.key = key
        self.shapes = shapes
        self.draws = draws
        self.outputs = outputs
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
            # Its values have shapes of their own; items tell them.
            shape = ()
        if "result" in attrs:
            # The result's dtype stands in the instruction itprogram.
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


def without_steps(exact: Sequence[Any]) -> bool:
    """Whether any loop has no steps."""
    return any(isinstance(x, LoopShapes) and (x.length == 0 or without_steps(x.body)) for x in exact)


def with_ones(known: Sequence[Any], exact: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """`known` with the lengths that turned out 1, and where they are.

    An unknown length that turns out 1 inside the graph (a slice, a reshape) broadcasts as a fed 1 does.
    """
    shapes = list(known)
    ones: list[Any] = []
    for number, shape in enumerate(known):
        if isinstance(shape, LoopShapes):
            body, found = with_ones(shape.body, exact[number].body)
            shapes[number] = shape._replace(body=body)
        elif None in shape:
            found = [axis for axis, n in enumerate(shape) if n is None and exact[number][axis] == 1]
            if found:
                shapes[number] = tuple(1 if axis in found else n for axis, n in enumerate(shape))
        else:
            continue
        if found:
            ones.append((number, found))
    return shapes, ones
