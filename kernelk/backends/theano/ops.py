"""Theano's table of ops: reductions, arrangement and products; joined with elementwise.py and windows.py."""

import numpy as np

from ..lowering import python_slices, resolve_dims
from . import elementwise, windows
from .elementwise import cast, length_of, promising, widened

# Set by `hand_over` when the first backend starts: op functions are only called after that.
T = None
theano = None
op_classes = None
with_c = False

OPS = dict(elementwise.OPS, **windows.OPS)
op = promising(OPS)


# Reductions -----------------------------------------------------------------------------------------------


@op("sum", "prod")
def _sum(instruction, x, axes, keepdims):
    if not axes:
        return x
    x = widened(x)
    if instruction.op == "sum" and x.dtype == "float32" and _in_rows(instruction.input_shapes[0], axes):
        return cast(
            op_classes.NumpyOp("sum", (tuple(axes), keepdims), "float32", _kept(x, axes, keepdims))(x),
            instruction.dtype,
        )
    reduce = T.sum if instruction.op == "sum" else T.prod
    # In float32 a sum of a million rows would be off by a hundredth.
    wide = "float64" if x.dtype == "float32" else x.dtype
    return cast(reduce(x, axis=axes, keepdims=keepdims, dtype=x.dtype, acc_dtype=wide), instruction.dtype)


def _in_rows(shape, axes):
    """Whether whole rows are added up, and large enough for numpy: Theano's C code goes down one column at a time."""
    if shape[-1] is None or len(shape) - 1 in axes:
        return False
    return shape[-1] >= 32 and np.prod([32 if n is None else n for n in shape], dtype=float) >= 8192


def _kept(x, axes, keepdims):
    """The pattern of axes of length 1 that a reduction leaves, as Theano's types have it."""
    return tuple(
        keepdims if axis in axes else bool(broadcastable)
        for axis, broadcastable in enumerate(x.broadcastable)
        if keepdims or axis not in axes
    )


def _extreme(name, scalar_op):
    @op(name)
    def call(instruction, x, axes, keepdims):
        if not axes:
            return x
        if x.dtype in ("int64", "uint64"):
            # The C code of Theano's reduction passes through doubles.
            return op_classes.NumpyOp(name, (tuple(axes), keepdims), x.dtype, _kept(x, axes, keepdims))(x)
        y = widened(x)
        reduced = T.elemwise.CAReduce(getattr(theano.scalar, scalar_op), axes)(y)
        if keepdims:
            reduced = T.basic.makeKeepDims(y, reduced, axes)
        return cast(reduced, instruction.dtype)


_extreme("max", "maximum")
_extreme("min", "minimum")


@op("argmax")
def _argmax(instruction, x, axis):
    return cast(T.argmax(widened(x), axis=axis), "int64")


@op("argmin")
def _argmin(instruction, x, axis):
    # Theano's own is the argmax of -x, which wraps for unsigned integers and for the lowest signed one.
    kept = x.broadcastable[:axis] + x.broadcastable[axis + 1 :]
    return op_classes.NumpyOp("argmin", (axis,), "int64", kept)(x)


@op("cumsum", "cumprod")
def _cumulative(instruction, x, axis):
    return op_classes.NumpyOp(instruction.op, (axis,), x.dtype, tuple(x.broadcastable))(x)


@op("size")
def _size(instruction, x, axes):
    size = T.constant(np.array(1, "int64"))
    for axis in axes:
        size = size * x.shape[axis]
    return cast(size, instruction.dtype)


@op("shape")
def _shape(instruction, x):
    return cast(T.shape(x), "int32") if x.ndim else T.constant(np.zeros((0,), "int32"))


# Arrangement ----------------------------------------------------------------------------------------------


@op("reshape")
def _reshape(instruction, x, *references, **attrs):
    dims = resolve_dims(attrs["dims"], (x,) + references, length_of)
    if not dims:
        # A vector of no dimensions has no dtype of its own.
        dims = T.constant(np.zeros((0,), "int64"))
    return T.reshape(x, dims, ndim=len(attrs["dims"]))


@op("broadcast_to")
def _broadcast_to(instruction, x, *references, **attrs):
    dims = resolve_dims(attrs["dims"], (x,) + references, length_of)
    return T.alloc(x, *dims)


@op("transpose")
def _transpose(instruction, x, permutation):
    return x.dimshuffle(*permutation)


@op("concatenate")
def _concatenate(instruction, *values, **attrs):
    return T.join(attrs["axis"], *values) if len(values) > 1 else values[0]


@op("unconcatenate")
def _unconcatenate(instruction, whole, *parts, **attrs):
    axis, part = attrs["axis"], attrs["part"]
    start = T.constant(np.array(0, "int64"))
    for value in parts[:part]:
        start = start + value.shape[axis]
    index = [slice(None)] * whole.ndim
    index[axis] = slice(start, start + parts[part].shape[axis])
    return whole[tuple(index)]


@op("slice")
def _slice(instruction, x, slices):
    if not slices:
        return x
    piece = x[python_slices(slices)]
    if 0 in instruction.shape:
        # Of what is computed and has one element, Theano would leave the slice out.
        return T.zeros([piece.shape[axis] for axis in range(piece.ndim)], instruction.dtype)
    return piece


@op("unslice")
def _unslice(instruction, piece, like, slices):
    if not slices:
        return piece
    return _within_zeros(piece, [like.shape[axis] for axis in range(like.ndim)], python_slices(slices))


def _within_zeros(piece, lengths, index):
    # In float16, Theano does without C and prints that it does.
    filling = widened(piece)
    hole = T.alloc(np.zeros((), filling.dtype), *lengths)[index]
    return cast(T.set_subtensor(hole, T.patternbroadcast(filling, hole.broadcastable)), piece.dtype)


@op("one_hot")
def _one_hot(instruction, indices, depth):
    # uint64 with int64 would be compared as doubles; the smaller types may not hold every class number.
    dtype = "uint64" if indices.dtype == "uint64" else "int64"
    classes = T.constant(np.arange(depth, dtype=dtype))
    column = cast(indices, dtype).dimshuffle(*(list(range(indices.ndim)) + ["x"]))
    return cast(T.eq(column, classes), instruction.dtype)


@op("pad")
def _pad(instruction, x, pads):
    if not any(before or after for before, after in pads):
        return x
    lengths = [length_of(x, axis) + before + after for axis, (before, after) in enumerate(pads)]
    index = [slice(before, before + length_of(x, axis)) for axis, (before, _) in enumerate(pads)]
    return _within_zeros(x, lengths, tuple(index))


@op("gather")
def _gather(instruction, x, indices):
    kept = tuple(indices.broadcastable) + tuple(x.broadcastable[1:])
    return op_classes.NumpyOp("gather", (), x.dtype, kept)(x, indices)


@op("scatter_add")
def _scatter_add(instruction, values, indices, like):
    # Of `like` the length alone, so that it isn't computed for nothing; a length of 1 stays known.
    kept = (like.broadcastable[0],) + tuple(values.broadcastable[indices.ndim :])
    return op_classes.NumpyOp("scatter_add", (), values.dtype, kept)(values, indices, length_of(like, 0))


@op("batch_matmul")
def _batch_matmul(instruction, a, b, transpose_a, transpose_b):
    # Theano's own takes three axes alone, and without C a loop in Python.
    kept = tuple(x or y for x, y in zip(a.broadcastable[:-2], b.broadcastable[:-2]))
    kept += (a.broadcastable[-1 if transpose_a else -2], b.broadcastable[-2 if transpose_b else -1])
    return op_classes.NumpyOp("batch_matmul", (transpose_a, transpose_b), a.dtype, kept)(a, b)


@op("matmul")
def _matmul(instruction, a, b, transpose_a, transpose_b):
    a, b = widened(a), widened(b)
    return cast(T.dot(a.T if transpose_a else a, b.T if transpose_b else b), instruction.dtype)


# Composites that are better in one piece ------------------------------------------------------------------


@op("softmax")
def _softmax(instruction, x, axis):
    y = widened(x)
    if with_c and x.ndim == 2 and axis == 1:
        return cast(T.nnet.softmax(y), instruction.dtype)
    small = T.exp(y - _extreme_kept(y, axis))
    return cast(small / T.sum(small, axis=axis, keepdims=True, dtype=y.dtype, acc_dtype=y.dtype), instruction.dtype)


def _extreme_kept(x, axis):
    return T.basic.makeKeepDims(x, T.elemwise.CAReduce(theano.scalar.maximum, [axis])(x), [axis])
