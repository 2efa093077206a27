"""The shape of every value of a program at given feed shapes, by the same rules that checked the graph when written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..arrays import Array
from ..backends.lowering import Instruction as Lowered
from ..errors import KernelKError, ShapeError
from ..graph.loops import merge_shapes
from ..graph.nodes import Shape, Spec, Tensor, located
from ..graph.rules import RULES
from ..ops.dtypes import INTEGERS
from ..ops.shapes import index_refused, known_dims
from ..source import Source

if TYPE_CHECKING:
    from .program import Loop, Program


class LoopShapes(NamedTuple):
    """A loop's shapes, in place of a value's one: those of its values, of its body's values, and its length."""

    values: list[Shape]
    body: list[Any]
    length: int | None


def infer(program: Program, feed_shapes: Sequence[Shape]) -> list[Any]:
    """The shape of every value (of a loop LoopShapes) when the inputs have these shapes.

    Raises ShapeError with the user's line.
    """
    first, first_draw, instructions = program.first, program.first_draw, program.instructions
    specs = [Spec(shape, x.dtype) for shape, x in zip(feed_shapes, program.inputs)]
    specs += [Spec(x.shape, x.dtype) for x in program.slots]
    specs += [Spec((), x.dtype) for x in program.draws]
    specs += [Spec(x.shape, x.dtype) for x in program.constants]
    # Space for the shapes of the instructions, entered one by one.
    specs += [Spec((), "")] * len(instructions)
    loops: dict[int, LoopShapes] = {}
    for number in program.schedule:
        if number < first:
            references, dims = program.draw_dims[number - first_draw]
            shape = tuple(known_dims(dims, [specs[n] for n in references]))
            specs[number] = Spec(shape, specs[number].dtype)
            continue
        node, inputs, attrs, loop = instructions[number - first]
        op = node.op
        if loop is not None:
            given = len(loop.program.inputs)
            made = loops[number] = _infer_loop(loop, [specs[n].shape for n in inputs[:given]], node.source)
            # Draws are made for all steps at once.
            body = loop.program.first_draw
            for n, shape in zip(inputs[given:], made.body[body : body + len(loop.program.draws)]):
                specs[n] = Spec((made.length, *shape), specs[n].dtype)
            continue
        if op == "item":
            specs[number] = Spec(loops[inputs[0]].values[attrs["index"]], node.dtype)
            continue
        specs[number] = Spec(_shape(program, specs, node, inputs, attrs), node.dtype)
    for node, inputs, attrs, _ in program.checks:
        _shape(program, specs, node, inputs, attrs)
    shapes: list[Any] = [spec.shape for spec in specs]
    for number, made in loops.items():
        shapes[number] = made
    return shapes


def _shape(
    program: Program, specs: Sequence[Spec], node: Tensor, inputs: Sequence[int], attrs: dict[str, Any]
) -> Shape:
    try:
        return RULES[node.op].infer(*[specs[n] for n in inputs], **attrs)[0]
    except KernelKError as error:
        found = _index_error(program, specs, node, inputs) if node.op == "reshape" else None
        raise located(found or error, node.source) from None


def _index_error(program: Program, specs: Sequence[Spec], node: Tensor, inputs: Sequence[int]) -> ShapeError | None:
    """Returns what is wrong with the reshape in an indexing like `x[10]`, whose slice found no element."""
    piece = inputs[0] - program.first
    if node.inputs[0].op != "slice" or piece < 0:
        return None
    _, (whole, *_), attrs, _ = program.instructions[piece]
    before, after = specs[whole].shape, specs[inputs[0]].shape
    for axis, ((begin, end, step), m) in enumerate(zip(attrs["slices"], after)):
        if m == 0 and begin is not None and step is None and end == (None if begin == -1 else begin + 1):
            return index_refused(begin, axis, before)
    return None


def _infer_loop(loop: Loop, shapes: Sequence[Shape], source: Source) -> LoopShapes:
    """The shapes of a loop whose operands have these shapes. Raises ShapeError."""
    n, m = loop.sequences, loop.states
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
    body = infer(loop.program, [*(shape[1:] for shape in shapes[:n]), *shapes[n:]])
    results = [body[number] for number in loop.program.outputs]
    values: list[Shape] = []
    for initial, new in zip(shapes[n : n + m], results):
        if len(initial) != len(new) or any(a != b and a is not None and b is not None for a, b in zip(initial, new)):
            raise located(
                ShapeError(
                    f"a loop's state has shape {initial} at first and {new} after a step",
                    allowed="they must be equal",
                    next_step="give the initial state the shape that the step returns",
                ),
                source,
            )
        values.append(merge_shapes(initial, new))
    values += [(length, *shape) for shape in results[m:]]
    return LoopShapes(values, body, length)


def outputs_from_shapes(program: Program, feed_shapes: Sequence[Shape]) -> list[Array] | None:
    """The outputs where they follow from the feeds' shapes and constants alone; None where they don't.

    Nothing that a length is asked of is computed: `K.shape(y)` costs no `y`.
    """
    # Imported here: recording a graph imports no backend.
    from ..backends.numpy.ops import OPS as NUMPY

    shapes = infer(program, feed_shapes)
    start = program.first - len(program.constants)
    known: dict[int, Array] = {start + i: node.array for i, node in enumerate(program.constants)}
    for number, (node, inputs, attrs, loop) in enumerate(program.instructions, program.first):
        if node.op == "shape":
            known[number] = np.asarray(shapes[inputs[0]], dtype=node.dtype)
        elif node.op == "size":
            lengths = [shapes[inputs[0]][axis] for axis in attrs["axes"]]
            known[number] = np.prod(np.asarray(lengths, dtype=node.dtype), dtype=node.dtype)
        elif loop is None and (node.dtype in INTEGERS or node.dtype == "bool") and all(n in known for n in inputs):
            call = Lowered(number, node.op, inputs, attrs, node.dtype, shapes[number])
            given = {name: value for name, value in attrs.items() if name != "result"}
            known[number] = np.asarray(NUMPY[node.op](call, *[known[n] for n in inputs], **given))
    if not all(n in known for n in program.outputs):
        return None
    return [known[n] for n in program.outputs]
