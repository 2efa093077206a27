"""JAX's table of ops: reductions, arrangement, products and loops; joined with elementwise.py and windows.py."""

import numpy as np

from ..base import registrar
from ..lowering import last_neighbours, lower, python_slices, static_dims
from . import elementwise, windows
from .elementwise import FLOATS, broadcast, broadcast_to, factors, truth, typed, widened

# Set by `hand_over` when the first backend starts: op functions are only called after that.
lax = None

OPS = dict(elementwise.OPS, **windows.OPS)
op = registrar(OPS)


# Reductions -----------------------------------------------------------------------------------------------


def _reduce(function, x, axes, keepdims):
    result = function(x, tuple(axes))
    if keepdims:
        return lax.reshape(result, [1 if axis in axes else n for axis, n in enumerate(x.shape)])
    return result


def _total(instruction, x, axes, keepdims):
    name, boolean = {"sum": ("reduce_sum", "reduce_or"), "prod": ("reduce_prod", "reduce_and")}[instruction.op]
    function = getattr(lax, boolean if instruction.dtype == "bool" else name)
    if instruction.op == "sum" and instruction.dtype in FLOATS:
        return lax.convert_element_type(_added(widened(x), axes, keepdims), x.dtype)
    wide = _multiplied(x) if instruction.op == "prod" else x
    return lax.convert_element_type(_reduce(function, wide, axes, keepdims), x.dtype)


def _added(x, axes, keepdims):
    """The sum of floats. XLA adds along one axis as a tree, along several it may add one term after the other."""
    result = [1 if axis in axes else n for axis, n in enumerate(x.shape)]
    if not keepdims:
        result = [n for axis, n in enumerate(result) if axis not in axes]
    while axes:
        axes, neighbours = last_neighbours(x.shape, axes)
        before, after = x.shape[: neighbours[0]], x.shape[neighbours[-1] + 1 :]
        as_one = lax.reshape(x, before + (int(np.prod(x.shape[neighbours[0] : neighbours[-1] + 1])),) + after)
        x = lax.reshape(lax.reduce_sum(as_one, (len(before),)), before + (1,) * len(neighbours) + after)
    return lax.reshape(x, result)


def _multiplied(x):
    """Floats as they are multiplied up: each product rounds, and a part of them may be too large."""
    return lax.convert_element_type(x, np.float64) if np.issubdtype(x.dtype, np.floating) else x


OPS["sum"] = OPS["prod"] = _total


def _not_of_nothing(instruction, x, axes):
    if not all(x.shape[axis] for axis in axes):
        # XLA would answer with -inf or 0 where numpy refuses.
        raise ValueError("the %s of zero elements is undefined" % instruction.op)


def _extreme(instruction, x, axes, keepdims):
    name, boolean = {"max": ("reduce_max", "reduce_or"), "min": ("reduce_min", "reduce_and")}[instruction.op]
    _not_of_nothing(instruction, x, axes)
    return _reduce(getattr(lax, boolean if instruction.dtype == "bool" else name), x, axes, keepdims)


OPS["max"] = OPS["min"] = _extreme


def _arg_extreme(instruction, x, axis):
    _not_of_nothing(instruction, x, [axis])
    if x.dtype == np.bool_:
        x = lax.convert_element_type(x, np.int8)
    return getattr(lax, instruction.op)(x, axis, np.int64)


OPS["argmax"] = OPS["argmin"] = _arg_extreme


def _cumulative(instruction, x, axis):
    name, boolean = {"cumsum": ("cumsum", "cummax"), "cumprod": ("cumprod", "cummin")}[instruction.op]
    if x.dtype == np.bool_:
        return truth(getattr(lax, boolean)(lax.convert_element_type(x, np.int8), axis))
    wide = _multiplied(x) if instruction.op == "cumprod" else widened(x)
    return lax.convert_element_type(getattr(lax, name)(wide, axis), x.dtype)


OPS["cumsum"] = OPS["cumprod"] = _cumulative


@op("size")
def _size(instruction, x, axes):
    count = np.prod([x.shape[axis] for axis in axes], dtype=np.int64)
    return np.asarray(count).astype(instruction.dtype)


@op("shape")
def _shape(instruction, x):
    return np.asarray(x.shape, np.int32)


# Arrangement ----------------------------------------------------------------------------------------------


@op("reshape")
def _reshape(instruction, x, *references, **attrs):
    return lax.reshape(x, instruction.shape)


@op("broadcast_to")
def _broadcast_to(instruction, x, *references, **attrs):
    return broadcast_to(x, tuple(static_dims(instruction, attrs["dims"])))


@op("transpose")
def _transpose(instruction, x, permutation):
    return lax.transpose(x, permutation)


@op("concatenate")
def _concatenate(instruction, *values, **attrs):
    return lax.concatenate(values, attrs["axis"])


@op("unconcatenate")
def _unconcatenate(instruction, whole, *parts, **attrs):
    axis, part = attrs["axis"], attrs["part"]
    start = sum(value.shape[axis] for value in parts[:part])
    return lax.slice_in_dim(whole, start, start + parts[part].shape[axis], axis=axis)


def _ranges(slices, shape):
    """For each axis the first and last position that a slice takes, the distance between two, and whether backward;

    None where it takes nothing.
    """
    for entry, length in zip(python_slices(slices), shape):
        taken = range(*entry.indices(length))
        if not taken:
            yield None
        else:
            yield min(taken[0], taken[-1]), max(taken[0], taken[-1]), abs(taken.step), taken.step < 0


@op("slice")
def _slice(instruction, x, slices):
    ranges = list(_ranges(slices, x.shape))
    if None in ranges:
        return lax.full(instruction.shape, 0, x.dtype)
    first, last, step, backward = zip(*ranges)
    x = lax.slice(x, first, [n + 1 for n in last], step)
    return lax.rev(x, [axis for axis, turned in enumerate(backward) if turned]) if any(backward) else x


@op("unslice")
def _unslice(instruction, piece, like, slices):
    ranges = list(_ranges(slices, like.shape))
    if None in ranges:
        return lax.full(like.shape, 0, piece.dtype)
    backward = [axis for axis, entry in enumerate(ranges) if entry[3]]
    piece = lax.rev(piece, backward) if backward else piece
    pads = [(first, n - last - 1, step - 1) for (first, last, step, _), n in zip(ranges, like.shape)]
    return lax.pad(piece, typed(0, piece), pads)


@op("pad")
def _pad(instruction, x, pads):
    return lax.pad(x, typed(0, x), [(before, after, 0) for before, after in pads])


def _positions(indices):
    """Indices as int64: an unsigned one beyond it becomes negative, outside either way."""
    return lax.convert_element_type(indices, np.int64)


@op("one_hot")
def _one_hot(instruction, indices, depth):
    indices = _positions(indices)
    shape = indices.shape + (depth,)
    indices = lax.broadcast_in_dim(indices, shape, range(len(shape) - 1))
    return lax.convert_element_type(
        lax.eq(indices, lax.broadcasted_iota(np.int64, shape, len(shape) - 1)), instruction.dtype
    )


@op("gather")
def _gather(instruction, x, indices):
    missing = np.nan if instruction.dtype in FLOATS else instruction.dtype != "bool" and 0
    rank, rest = len(indices.shape), x.shape[1:]
    if not x.shape[0]:
        return lax.full(indices.shape + rest, missing, x.dtype)
    return lax.gather(
        x,
        lax.expand_dims(_positions(indices), [rank]),
        lax.GatherDimensionNumbers(
            offset_dims=tuple(range(rank, rank + len(rest))), collapsed_slice_dims=(0,), start_index_map=(0,)
        ),
        (1,) + rest,
        mode=lax.GatherScatterMode.FILL_OR_DROP,
        fill_value=missing,
    )


@op("scatter_add")
def _scatter_add(instruction, values, indices, like):
    boolean = instruction.dtype == "bool"
    wide = lax.convert_element_type(values, np.int32) if boolean else widened(values)
    rank, rest = len(indices.shape), like.shape[1:]
    total = lax.full(like.shape, 0, wide.dtype)
    if total.size and wide.size:
        total = lax.scatter_add(
            total,
            lax.expand_dims(_positions(indices), [rank]),
            wide,
            lax.ScatterDimensionNumbers(
                update_window_dims=tuple(range(rank, rank + len(rest))),
                inserted_window_dims=(0,),
                scatter_dims_to_operand_dims=(0,),
            ),
            mode=lax.GatherScatterMode.FILL_OR_DROP,
        )
    return truth(total) if boolean else lax.convert_element_type(total, instruction.dtype)


@op("matmul", "batch_matmul")
def _matmul(instruction, a, b, transpose_a, transpose_b):
    boolean = instruction.dtype == "bool"
    if boolean:
        a, b = lax.convert_element_type(a, np.int32), lax.convert_element_type(b, np.int32)
    a, b = factors(instruction, a, b)
    lead = tuple(range(len(a.shape) - 2))
    contracted = (len(lead) + (0 if transpose_a else 1),), (len(lead) + (1 if transpose_b else 0),)
    product = lax.dot_general(a, b, (contracted, (lead, lead)))
    return truth(product) if boolean else lax.convert_element_type(product, instruction.dtype)


# Composites that are better in one piece ------------------------------------------------------------------


@op("mean")
def _mean(instruction, x, axes, keepdims):
    wide = widened(x) if instruction.dtype in FLOATS else lax.convert_element_type(x, np.float64)
    count = np.prod([x.shape[axis] for axis in axes], dtype=np.float64)
    total = _added(wide, axes, keepdims)
    return lax.convert_element_type(lax.div(*broadcast(total, typed(count, wide))), x.dtype)


@op("softmax")
def _softmax(instruction, x, axis):
    wide = widened(x)
    _not_of_nothing(instruction, x, [axis] if wide.size else [])
    powers = lax.exp(lax.sub(*broadcast(wide, _reduce(lax.reduce_max, wide, [axis], True))))
    total = _added(powers, [axis], True)
    return lax.convert_element_type(lax.div(*broadcast(powers, total)), x.dtype)


# Loops ----------------------------------------------------------------------------------------------------


def scanned(instruction, operands, lowered):
    """A scan's values, and truths that no step may make: `lowered(body, leaves)` is the body's pair of both."""
    attrs = instruction.attrs
    body, count, n = attrs["body"], attrs["states"], attrs["sequences"]
    inputs = len(body.inputs)
    drawn = inputs + len(body.draws)
    results = body.outputs

    def promised(values, numbers):
        # A state that changed its type on the way would be another loop.
        return [lax.convert_element_type(x, body.values[number][0]) for x, number in zip(values, numbers)]

    def step(states, elements):
        leaves = list(elements[:n]) + list(states) + list(operands[n + count : inputs])
        leaves += list(elements[n:]) + list(operands[drawn:])
        values, refusals = lowered(body, leaves)
        stepped = promised([values[number] for number in results], results)
        return stepped[:count], (stepped[count:], refusals)

    states = promised(operands[n : n + count], range(n, n + count))
    elements = list(operands[:n]) + list(operands[inputs:drawn])
    states, (stacked, refusals) = lax.scan(step, states, elements, reverse=attrs["reverse"])
    return list(states) + list(stacked), [lax.reduce_or(refusal, (0,)) for refusal in refusals]


@op("scan")
def _scan(instruction, *operands, **attrs):
    return scanned(instruction, operands, lambda body, leaves: (lower(body, leaves, OPS), []))[0]


@op("item")
def _item(instruction, values, index):
    return values[index]
