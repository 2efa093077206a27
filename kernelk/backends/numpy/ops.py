"""numpy's table of ops, the living definition of every op's meaning; joined with elementwise.py and windows.py."""

import numpy as np

from ..base import registrar
from ..ctc_search import beam_search
from ..lowering import InstructionError, Steps, python_slices, resolve_dims
from . import elementwise, windows
from .elementwise import widened

OPS = dict(elementwise.OPS, **windows.OPS)
op = registrar(OPS)


# Reductions -----------------------------------------------------------------------------------------------


def _accumulated(x):
    """Floats as they are added and multiplied up: in float64, so that their order and number don't show."""
    return np.asarray(x).astype(np.float64) if np.asarray(x).dtype in (np.float16, np.float32) else np.asarray(x)


def _multiplied(x):
    """The same where rounding each step shows more: float64 in what the machine has wider, if anything."""
    return np.asarray(x).astype(np.longdouble) if np.asarray(x).dtype.kind == "f" else np.asarray(x)


def _total(x, axes, keepdims):
    """The sum, in float64 for floats."""
    wide = _accumulated(x)
    if wide.dtype != np.float64 or not axes or not wide.size:
        return np.sum(wide, axis=tuple(axes), keepdims=keepdims, dtype=wide.dtype)
    # numpy adds pairwise along rows that lie together in memory, and one by one along all others.
    kept = [axis for axis in range(wide.ndim) if axis not in axes]
    rows = np.ascontiguousarray(np.transpose(wide, kept + list(axes)))
    total = np.sum(rows.reshape([wide.shape[axis] for axis in kept] + [-1]), axis=-1)
    if not keepdims:
        return total
    # numpy 1.19 expands one axis at a time.
    return np.reshape(total, [1 if axis in axes else length for axis, length in enumerate(wide.shape)])


@op("sum")
def _sum(instruction, x, axes, keepdims):
    return np.asarray(_total(x, axes, keepdims)).astype(np.asarray(x).dtype)


@op("mean")
def _mean(instruction, x, axes, keepdims):
    count = np.prod([np.shape(x)[axis] for axis in axes], dtype=np.float64)
    return np.asarray(_total(x, axes, keepdims) / count).astype(np.asarray(x).dtype)


@op("log_softmax")
def _log_softmax(instruction, x, axis):
    if not x.size:
        return x
    wide = _accumulated(x)
    top = np.max(wide, axis=axis, keepdims=True)
    shifted = wide - top
    # What the difference was rounded by changes its power by as large a share.
    back = shifted - wide
    lost = (wide - (shifted - back)) - (top + back)
    powers = np.exp(shifted) * (1 + np.where(np.isfinite(shifted), lost, 0))
    # Of the powers' sum the largest one, 1, is left out: where it is nearly all, the others decide the result.
    largest = np.expand_dims(np.argmax(wide, axis=axis), axis)
    order = np.reshape(np.arange(x.shape[axis]), [-1 if n == axis % x.ndim else 1 for n in range(x.ndim)])
    others = np.where(order == largest, np.zeros((), wide.dtype), powers)
    return (shifted - np.log1p(np.sum(others, axis=axis, keepdims=True))).astype(x.dtype)


@op("max")
def _max(instruction, x, axes, keepdims):
    return np.max(x, axis=tuple(axes), keepdims=keepdims)


@op("min")
def _min(instruction, x, axes, keepdims):
    return np.min(x, axis=tuple(axes), keepdims=keepdims)


@op("prod")
def _prod(instruction, x, axes, keepdims):
    wide = _multiplied(x)
    return np.prod(wide, axis=tuple(axes), keepdims=keepdims, dtype=wide.dtype).astype(x.dtype)


@op("argmax")
def _argmax(instruction, x, axis):
    return np.argmax(x, axis=axis).astype(np.int64)


@op("argmin")
def _argmin(instruction, x, axis):
    return np.argmin(x, axis=axis).astype(np.int64)


@op("cumsum")
def _cumsum(instruction, x, axis):
    wide = _multiplied(x)
    return np.cumsum(wide, axis=axis, dtype=wide.dtype).astype(x.dtype)


@op("cumprod")
def _cumprod(instruction, x, axis):
    wide = _multiplied(x)
    return np.cumprod(wide, axis=axis, dtype=wide.dtype).astype(x.dtype)


@op("size")
def _size(instruction, x, axes):
    return np.asarray(np.prod([np.shape(x)[axis] for axis in axes]), dtype=instruction.dtype)


@op("shape")
def _shape(instruction, x):
    return np.asarray(np.shape(x), dtype=np.int32)


# Arrangement ----------------------------------------------------------------------------------------------


def _length(value, axis):
    return np.shape(value)[axis]


@op("reshape")
def _reshape(instruction, x, *references, **attrs):
    dims = resolve_dims(attrs["dims"], (x,) + references, _length)
    return np.reshape(x, dims)


@op("broadcast_to")
def _broadcast_to(instruction, x, *references, **attrs):
    return np.broadcast_to(x, resolve_dims(attrs["dims"], (x,) + references, _length))


@op("transpose")
def _transpose(instruction, x, permutation):
    return np.transpose(x, permutation)


@op("concatenate")
def _concatenate(instruction, *values, **attrs):
    return np.concatenate(values, axis=attrs["axis"])


@op("unconcatenate")
def _unconcatenate(instruction, whole, *parts, **attrs):
    axis, part = attrs["axis"], attrs["part"]
    start = sum(np.shape(value)[axis] for value in parts[:part])
    index = [slice(None)] * whole.ndim
    index[axis] = slice(start, start + np.shape(parts[part])[axis])
    return whole[tuple(index)]


@op("slice")
def _slice(instruction, x, slices):
    return x[python_slices(slices)]


@op("unslice")
def _unslice(instruction, piece, like, slices):
    whole = np.zeros(np.shape(like), dtype=piece.dtype)
    whole[python_slices(slices)] = piece
    return whole


@op("one_hot")
def _one_hot(instruction, indices, depth):
    return np.equal(np.expand_dims(indices, -1), np.arange(depth)).astype(instruction.dtype)


@op("pad")
def _pad(instruction, x, pads):
    return np.pad(x, [tuple(pair) for pair in pads], mode="constant") if pads else x


@op("gather")
def _gather(instruction, x, indices):
    indices = np.asarray(indices)
    inside = np.logical_and(indices >= 0, indices < len(x))
    if not len(x):
        rows = np.zeros(indices.shape + x.shape[1:], x.dtype)
    else:
        rows = x[np.where(inside, indices, 0).astype(np.int64)]
    missing = np.asarray(np.nan if x.dtype.kind == "f" else 0, x.dtype)
    return np.where(inside.reshape(inside.shape + (1,) * (x.ndim - 1)), rows, missing)


@op("scatter_add")
def _scatter_add(instruction, values, indices, like):
    indices = np.asarray(indices)
    total = np.zeros(np.shape(like), widened(np.asarray(values)).dtype)
    inside = np.logical_and(indices >= 0, indices < len(total))
    np.add.at(total, indices[inside].astype(np.int64), np.asarray(values)[inside])
    return total.astype(instruction.dtype)


@op("batch_matmul")
def _batch_matmul(instruction, a, b, transpose_a, transpose_b):
    left = np.swapaxes(a, -1, -2) if transpose_a else a
    right = np.swapaxes(b, -1, -2) if transpose_b else b
    return np.matmul(widened(left), widened(right)).astype(a.dtype, copy=False)


@op("matmul")
def _matmul(instruction, a, b, transpose_a, transpose_b):
    # Not np.dot: a factor of 0 by one row gives 0 there, whatever the row holds.
    product = np.matmul(widened(a.T if transpose_a else a), widened(b.T if transpose_b else b))
    return product.astype(a.dtype, copy=False)


# Loops, and what is searched ------------------------------------------------------------------------------


class Plan(object):
    """A program's instructions with their functions, and which values are released after each."""

    def __init__(self, program):
        self.results = program.results()
        self.steps = []
        last_use = {}
        for instruction in program.instructions:
            for number in instruction.inputs:
                last_use[number] = instruction.index
        kept = set(self.results)
        first = len(program.leaves)
        for instruction in program.instructions:
            # Intermediates are released after their last use: numpy holds no other plan of its memory.
            done = [
                n for n in set(instruction.inputs) if n >= first and n not in kept and last_use[n] == instruction.index
            ]
            self.steps.append((instruction, OPS[instruction.op], instruction.inputs, instruction.attrs, done))

    def run(self, values):
        """The results, from a list of the leaves' values, which is filled."""
        for instruction, function, inputs, attrs, done in self.steps:
            try:
                values.append(function(instruction, *[values[i] for i in inputs], **attrs))
            except Exception as error:
                raise InstructionError(instruction, error) from error
            for number in done:
                values[number] = None
        return [values[i] for i in self.results]


def _element(x, t):
    # With the ellipsis an element of a vector is an array, too.
    return x[t, ...]


@op("scan")
def _scan(instruction, *operands, **attrs):
    body = attrs["body"]
    if body.plan is None:
        body.plan = Plan(body)
    length = len(operands[0])
    steps = Steps(instruction, operands, length, _element)
    count = steps.count
    stacked = None
    for t, leaves in steps:
        results = body.plan.run(leaves)
        steps.states = results[:count]
        if stacked is None:
            stacked = [np.empty((length,) + np.shape(x), np.asarray(x).dtype) for x in results[count:]]
        for whole, x in zip(stacked, results[count:]):
            whole[t] = x
    if stacked is None:
        stacked = [np.zeros((0,) + shape, dtype) for dtype, shape in (body.values[n] for n in body.outputs[count:])]
    return steps.states + stacked


@op("item")
def _item(instruction, values, index):
    return values[index]


@op("ctc_beam_search")
def _ctc_beam_search(instruction, logs, steps, **options):
    return beam_search(logs, steps, **options)
