"""CNTK's table of ops: reductions, arrangement and products; joined with elementwise.py and windows.py.

Each op has the guards that make its edge values numpy's. CNTK computes in float32 and float64 alone. Booleans are 0 or
1 and small integers whole floats inside a graph. Where a guard would need what CNTK can't see (the sign of a zero) or
would cost far more than the op (rare corners of `power`), the graph raises a flag instead, and the whole stage is then
computed by numpy's definition.
"""

import numpy as np

from ..base import registrar
from ..errors import CannotLower
from . import elementwise, windows
from .elementwise import LARGE
from .known import FLOATS
from .nodes import Val, among_zeros, common_dtype, ranges, reshaped

OPS = dict(elementwise.OPS, **windows.OPS)
op = registrar(OPS)

# CNTK's kernel for padding refuses more axes than these once neighbours that act alike are merged.
MOST_PADDED = 5
# A sum over so many rows at most is a product with ones, up to thirty times as fast as CNTK's own over leading axes.
MOST_ROWS = 1 << 16
# So many of them may be added in float32, one after the other; CNTK's own sum adds in float64.
FEW_ROWS = 64


# Reductions -----------------------------------------------------------------------------------------------


def _reduce(b, instruction, node, name, axes):
    if not axes:
        return node
    return getattr(b.engine, name)(node, axis=list(axes))


def _reduced(b, instruction, node, x, keepdims):
    if not keepdims:
        node = b.engine.reshape(node, instruction.shape)
    return Val(node, x.dtype, instruction.shape, instruction.shape)


def _factors(count):
    """Factors of a number, none of them above FEW_ROWS, the largest ones first; none where a prime one is larger."""
    parts = []
    while count > 1:
        parts.append(max(n for n in range(1, FEW_ROWS + 1) if count % n == 0))
        if parts[-1] == 1:
            return []
        count //= parts[-1]
    return parts


@op("sum")
def _sum(b, instruction, x, axes, keepdims):
    node = b.whole(x)
    rows = int(np.prod(x.shape[: len(axes)]))
    width = int(np.prod(x.shape)) // rows
    leading = list(axes) == list(range(len(axes)))
    if leading and width > 1 and 1 < rows <= MOST_ROWS and rows * width > LARGE:
        # One product adds one row after the other in float32: few, in several steps.
        parts = _factors(rows)
        for i, count in enumerate(parts):
            rest = int(np.prod(parts[i + 1 :])) * width
            ones = b.constant(np.ones((1, count)), x.dtype)
            node = b.engine.times(ones, reshaped(b, node, (count, rest)))
        if parts:
            return _reduced(b, instruction, node, x, False)
    node = _reduce(b, instruction, node, "reduce_sum", axes)
    return _reduced(b, instruction, node, x, keepdims)


def _extreme_along(b, instruction, x, axes, keepdims, name):
    # CNTK's reductions skip NaN.
    whole = b.whole(x)
    node = _reduce(b, instruction, whole, name, axes)
    if instruction.dtype in FLOATS and axes:
        lost = _reduce(b, instruction, b.engine.not_equal(whole, whole), "reduce_max", axes)
        node = b.engine.element_select(lost, b.constant(np.nan, x.dtype), node)
    return _reduced(b, instruction, node, x, keepdims)


@op("max")
def _max(b, instruction, x, axes, keepdims):
    return _extreme_along(b, instruction, x, axes, keepdims, "reduce_max")


@op("min")
def _min(b, instruction, x, axes, keepdims):
    return _extreme_along(b, instruction, x, axes, keepdims, "reduce_min")


@op("prod")
def _prod(b, instruction, x, axes, keepdims):
    # CNTK multiplies in float64, as it adds.
    node = _reduce(b, instruction, b.whole(x), "reduce_prod", axes)
    return _reduced(b, instruction, node, x, keepdims)


@op("argmax", "argmin")
def _argmax(b, instruction, x, axis):
    whole = b.whole(x)
    if instruction.op == "argmin":
        whole = b.engine.negate(whole)
    # numpy takes the first NaN; where there is one, the NaNs themselves are searched.
    lost = b.engine.not_equal(whole, whole)
    any_lost = b.engine.reduce_max(lost, axis=axis)
    # CNTK's argmax is -1 where nothing exceeds the least float: the largest element itself is found by equality.
    largest = b.engine.equal(whole, b.engine.reduce_max(whole, axis=axis))
    key = b.engine.element_select(any_lost, lost, largest)
    node = b.engine.reshape(b.engine.argmax(key, axis=axis), instruction.shape)
    return Val(node, x.dtype, instruction.shape, instruction.shape)


@op("softmax")
def _softmax(b, instruction, x, axis):
    return Val(b.engine.softmax(b.whole(x), axis=axis), x.dtype, x.shape, instruction.shape)


@op("log_softmax")
def _log_softmax(b, instruction, x, axis):
    engine, whole = b.engine, b.whole(x)
    # Where there is a NaN, which CNTK's maximum skips, the sum is one.
    shifted = engine.minus(whole, engine.reduce_max(whole, axis=axis))
    # One of the largest, whose power is 1, is left out of the sum: where it is nearly all, the others decide.
    largest = engine.equal(shifted, b.constant(0, x.dtype))
    others = engine.reduce_sum(engine.minus(engine.exp(shifted), largest), axis=axis)
    more = engine.minus(engine.reduce_sum(largest, axis=axis), b.constant(1, x.dtype))
    node = engine.minus(shifted, elementwise.log1p_of(b, engine.plus(others, more), x.dtype))
    return Val(node, x.dtype, x.shape, instruction.shape)


# Arrangement ----------------------------------------------------------------------------------------------


@op("reshape")
def _reshape(b, instruction, x, dims):
    if x.shape == instruction.shape:
        return Val(x.node, x.dtype, x.real, instruction.shape)
    if np.prod(x.real) == 1:
        # One element may go on being broadcast.
        node = x.node if x.real == () else reshaped(b, x.node, ())
        return Val(node, x.dtype, (), instruction.shape)
    node = reshaped(b, b.whole(x), instruction.shape)
    return Val(node, x.dtype, instruction.shape, instruction.shape)


@op("broadcast_to")
def _broadcast_to(b, instruction, x, dims):
    return Val(x.node, x.dtype, x.real, instruction.shape)


@op("transpose")
def _transpose(b, instruction, x, permutation):
    node = b.whole(x)
    if list(permutation) != list(range(len(permutation))):
        node = b.engine.transpose(node, tuple(permutation))
    return Val(node, x.dtype, instruction.shape, instruction.shape)


@op("concatenate")
def _concatenate(b, instruction, *values, **attrs):
    dtype = common_dtype(values)
    nodes = [b.whole(b.typed(value, dtype)) for value in values]
    node = nodes[0] if len(nodes) == 1 else b.engine.splice(*nodes, axis=attrs["axis"])
    return Val(node, dtype, instruction.shape, instruction.shape)


@op("unconcatenate")
def _unconcatenate(b, instruction, whole, axis, part):
    starts = [0]
    for shape in instruction.input_shapes[1:]:
        starts.append(starts[-1] + shape[axis])
    node = b.engine.slice(b.whole(whole), [axis], [starts[part]], [starts[part + 1]])
    return Val(node, whole.dtype, instruction.shape, instruction.shape)


@op("slice")
def _slice(b, instruction, x, slices):
    node = b.whole(x)
    for axis, (lowest, count, distance, backwards) in enumerate(ranges(slices, x.shape)):
        if count == x.shape[axis] and not backwards:
            continue
        last = lowest + (count - 1) * distance + 1
        # A negative stride runs from the end of the range.
        node = b.engine.slice(node, [axis], [lowest], [last], [-distance if backwards else distance])
    return Val(node, x.dtype, instruction.shape, instruction.shape)


@op("unslice")
def _unslice(b, instruction, piece, slices):
    return among_zeros(b, piece, instruction.shape, slices)


@op("one_hot")
def _one_hot(b, instruction, indices, depth):
    node = reshaped(b, b.whole(indices), indices.shape + (1,))
    node = b.engine.equal(node, b.constant(np.arange(depth), indices.dtype))
    value = Val(node, indices.dtype, instruction.shape, instruction.shape)
    return b.typed(value, instruction.dtype) if instruction.dtype in FLOATS else value


@op("pad")
def _pad(b, instruction, x, pads):
    node, dims, groups = b.whole(x), [], []
    for length, (before, after) in zip(x.shape, pads):
        if groups and (before, after) == groups[-1] == (0, 0):
            dims[-1] *= length
        else:
            dims.append(length)
            groups.append((before, after))
    if groups in ([], [(0, 0)]):
        return Val(node, x.dtype, x.shape, instruction.shape)
    if len(groups) > MOST_PADDED:
        return among_zeros(b, x, instruction.shape, [[n, n + length, 1] for (n, _), length in zip(pads, x.shape)])
    node = b.engine.pad(reshaped(b, node, dims), groups, mode=b.engine.CONSTANT_PAD, constant_value=0)
    return Val(reshaped(b, node, instruction.shape), x.dtype, instruction.shape, instruction.shape)


def _row_numbers(b, indices, length):
    """The indices as a vector, all of them inside; numpy computes the stage where one wasn't."""
    node = reshaped(b, b.whole(indices), (int(np.prod(indices.shape)),))
    array = indices.known.array
    if array is not None and array.min() >= 0 and array.max() < length:
        return node
    inside = b.engine.clip(node, b.constant(0, indices.dtype), b.constant(length - 1, indices.dtype))
    b.flag(b.engine.not_equal(node, inside), indices.dtype)
    return inside


@op("gather")
def _gather(b, instruction, x, indices):
    rows = reshaped(b, b.whole(x), (x.shape[0], int(np.prod(x.shape[1:]))))
    node = b.engine.gather(rows, _row_numbers(b, indices, x.shape[0]))
    return Val(reshaped(b, node, instruction.shape), x.dtype, instruction.shape, instruction.shape)


@op("scatter_add")
def _scatter_add(b, instruction, values, indices):
    # A product with a sparse matrix takes the elements that there are, so that no NaN meets a 0.
    length, count = instruction.shape[0], int(np.prod(indices.shape))
    rows = reshaped(b, b.whole(values), (count, int(np.prod(instruction.shape[1:]))))
    positions = b.engine.one_hot(_row_numbers(b, indices, length), length, sparse_output=True)
    node = b.engine.transpose(b.engine.times(b.engine.transpose(rows, (1, 0)), positions), (1, 0))
    return Val(reshaped(b, node, instruction.shape), values.dtype, instruction.shape, instruction.shape)


@op("batch_matmul")
def _batch_matmul(b, instruction, x, y, transpose_a, transpose_b):
    def samples(value):
        shape = (int(np.prod(value.shape[:-2])),) + value.shape[-2:]
        return b.engine.to_batch(reshaped(b, b.whole(value), shape))

    left = samples(x)
    if transpose_a:
        left = b.engine.transpose(left, (1, 0))
    product = b.engine.times_transpose if transpose_b else b.engine.times
    node = reshaped(b, b.engine.unpack_batch(product(left, samples(y))), instruction.shape)
    return Val(node, x.dtype, instruction.shape, instruction.shape)


@op("matmul")
def _matmul(b, instruction, x, y, transpose_a, transpose_b):
    left = b.whole(x)
    if transpose_a:
        left = b.engine.transpose(left, (1, 0))
    product = b.engine.times_transpose if transpose_b else b.engine.times
    return Val(product(left, b.whole(y)), x.dtype, instruction.shape, instruction.shape)


def lower(b, instruction, values, known):
    """The Val of one instruction; `values` are those that it takes by value."""
    if len(values) > 1:
        dtype = common_dtype(values)
        if instruction.dtype in FLOATS and instruction.op != "cast":
            dtype = instruction.dtype
        # The condition of a select is typed by the op itself.
        first = 1 if instruction.op == "select" else 0
        values = values[:first] + [b.typed(value, dtype) for value in values[first:]]
    value = OPS[instruction.op](b, instruction, *values, **instruction.attrs)
    if value.shape != instruction.shape:
        raise CannotLower("%s gave %s instead of %s" % (instruction.op, value.shape, instruction.shape))
    value.known = known
    return value
