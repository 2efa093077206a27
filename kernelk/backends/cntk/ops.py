"""CNTK's own ops for the contract's primitives, each with the guards that make its edge values numpy's.

CNTK computes in float32 and float64 alone. Booleans are 0 or 1 and small integers whole floats inside a graph. Where
a guard would need what CNTK can't see (the sign of a zero) or would cost far more than the op (rare corners of
`power`), the graph raises a flag instead, and the whole stage is then computed by numpy's definition.
"""

import numpy as np

from ..base import registrar
from ..errors import CannotLower
from .known import EXACT_LIMIT, FLOATS, REORDERED, needed

OPS = {}
op = registrar(OPS)

# CNTK's kernels refuse more axes than these once neighbours that act alike are merged.
MOST_AXES = 12
MOST_MERGED = 4
MOST_REDUCED = 2
MOST_PADDED = 5
# log(x) is clamped below 1e-37 and 1/x overflows for denormals: what is above these needs no guard.
SMALLEST_LOG = 1e-36
SMALLEST_DIVISOR = 1.2e-38
# Rows of fewer elements than this are short, results of more are large.
SHORT_ROW = 64
LARGE = 4096
# A sum over so many rows at most is a product with ones, up to thirty times as fast as CNTK's own over leading axes.
MOST_ROWS = 1 << 16
BOOLEAN = {"equal", "not_equal", "less", "less_equal"}
TAKES_BOOL = BOOLEAN | {"logical_and", "logical_or", "logical_not", "select", "cast", "concatenate", "unslice"}
TAKES_BOOL |= {"pad", "gather"} | set(REORDERED)
TAKES_INTEGERS = BOOLEAN | {"select", "cast", "concatenate", "unslice", "sum", "max", "min", "maximum", "minimum"}
TAKES_INTEGERS |= {"pad", "gather"} | set(REORDERED)


class Val(object):
    """A CNTK node that stands for a value of `shape`; `real` is the node's own shape, which may still broadcast."""

    __slots__ = ("dtype", "known", "node", "real", "shape")

    def __init__(self, node, dtype, real, shape, known=None):
        self.node = node
        self.dtype = dtype
        self.real = tuple(real)
        self.shape = tuple(shape)
        self.known = known


def broadcast_shape(shapes):
    """The shape that operands of these shapes have together."""
    rank = max(len(shape) for shape in shapes)
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(max(column) for column in zip(*padded)) if rank else ()


def merged_rank(shapes):
    """How many axes a broadcast over these shapes has once neighbours that broadcast alike are merged."""
    whole = broadcast_shape(shapes)
    padded = [(1,) * (len(whole) - len(shape)) + tuple(shape) for shape in shapes]
    patterns = [tuple(p[i] == 1 for p in padded) for i in range(len(whole)) if whole[i] != 1]
    return sum(1 for i, pattern in enumerate(patterns) if i == 0 or pattern != patterns[i - 1])


def merged_permutation(shape, permutation):
    """How many axes a transposition moves once axes that stay neighbours are merged."""
    moved = [axis for axis in permutation if shape[axis] != 1]
    kept = sorted(moved)
    order = [kept.index(axis) for axis in moved]
    return sum(1 for i, axis in enumerate(order) if i == 0 or axis != order[i - 1] + 1)


def reduced_groups(shape, axes):
    """How many separate runs of axes a reduction takes."""
    flags = [axis in axes for axis in range(len(shape)) if shape[axis] != 1]
    return sum(1 for i, flag in enumerate(flags) if flag and (i == 0 or not flags[i - 1]))


def index_bound(instruction, operand):
    """For an operand that holds indices: how many there are to choose from; None for any other operand."""
    if instruction.op == "one_hot":
        return instruction.attrs["depth"]
    if operand == 1 and instruction.op in ("gather", "scatter_add"):
        return instruction.input_shapes[0 if instruction.op == "gather" else 2][0]
    return None


def why_not(instruction, position, known):
    """Why an instruction, whose value number is `position`, can't be CNTK's, in a few words; None where it can."""
    name = instruction.op
    if name not in OPS:
        return "no exact counterpart"
    count = len(needed(instruction))
    shapes = list(instruction.input_shapes[:count]) + [instruction.shape]
    if any(0 in shape for shape in shapes):
        return "no elements"
    for operand, (number, dtype) in enumerate(zip(instruction.inputs[:count], instruction.input_dtypes[:count])):
        if dtype in FLOATS or dtype == "bool" and name in TAKES_BOOL:
            continue
        if index_bound(instruction, operand) is not None and dtype not in FLOATS + ("float16", "bool"):
            continue
        limit = known[number].limit
        if dtype not in ("float16", "bool") and name in TAKES_INTEGERS and limit is not None and limit < EXACT_LIMIT:
            continue
        return "takes " + dtype
    if instruction.dtype not in FLOATS + ("bool",) and known[position].limit is None:
        return "gives " + instruction.dtype
    if name in ("gather", "scatter_add") and index_bound(instruction, 1) >= EXACT_LIMIT:
        return "more rows than float32 can count"
    if any(len(shape) > MOST_AXES for shape in shapes):
        return "more than %d axes" % MOST_AXES
    merged = 0
    if name == "transpose":
        merged = merged_permutation(shapes[0], instruction.attrs["permutation"])
    elif name in ELEMENTWISE or name == "broadcast_to":
        merged = merged_rank(shapes)
    if merged > MOST_MERGED:
        return "too many axes broadcast or moved"
    if name in ("sum", "max", "min", "prod") and reduced_groups(shapes[0], instruction.attrs["axes"]) > MOST_REDUCED:
        return "too many separate axes reduced"
    return None


class Builder(object):
    """The nodes of one native stage; passed to every op function in place of the engine."""

    def __init__(self, engine):
        self.engine = engine
        self.flags = []
        # id of a node: (the same with channels first, as a batch; the node itself)
        self.batches = {}
        self._constants = {}

    def constant(self, array, dtype=None):
        """A node for a small constant, made once; `array` may be a plain number."""
        array = np.asarray(array, dtype=dtype, order="C")
        key = (str(array.dtype), array.shape, array.tobytes()) if array.nbytes <= 4096 else id(array)
        if key not in self._constants:
            # The array is kept beside the node so that its id stays its own.
            node = self.engine.Constant(value=array, shape=array.shape, dtype=array.dtype.type)
            self._constants[key] = (node, array)
        return self._constants[key][0]

    def value(self, array, known=None):
        """A Val of a constant array, booleans and integers as float32."""
        if str(array.dtype) not in FLOATS:
            array = array.astype(np.float32)
        return Val(self.constant(array), str(array.dtype), array.shape, array.shape, known)

    def typed(self, value, dtype):
        if value.dtype == dtype:
            return value
        node = self.engine.cast(value.node, np.dtype(dtype).type)
        return Val(node, dtype, value.real, value.shape, value.known)

    def whole(self, value):
        """The node with all its elements: a pending broadcast is done here, by a product that is exact."""
        if value.real == value.shape:
            return value.node
        node = value.node
        if np.prod(value.real) == np.prod(value.shape):
            node = self.engine.reshape(node, value.shape)
        else:
            node = self.engine.element_times(node, self.constant(np.ones(value.shape), value.dtype))
        value.node, value.real = node, value.shape
        return node

    def flag(self, condition, dtype):
        """Asks for numpy's definition whenever an element of `condition` isn't 0."""
        worst = condition
        if condition.shape != ():
            worst = self.engine.reshape(self.engine.reduce_max(condition, axis=None), ())
        self.flags.append(worst if dtype == "float32" else self.engine.cast(worst, np.float32))


def common_dtype(values):
    """What values of different float types inside a stage are brought to (booleans have no type of their own)."""
    return "float64" if any(value.dtype == "float64" for value in values) else "float32"


def result(instruction, node, values):
    """An elementwise result: it is as much broadcast as its operands, and no more."""
    return Val(node, values[0].dtype, broadcast_shape([value.real for value in values]), instruction.shape)


def _spread_far(b, value, shape):
    """An operand that repeats a short row (a bias of few channels) with a longer one: CNTK takes a row at a time."""
    width = int(np.prod(value.real))
    if not 1 < width < SHORT_ROW or value.real != shape[len(shape) - len(value.real) :]:
        return value
    axis = len(shape) - len(value.real)
    while axis and width < SHORT_ROW:
        axis -= 1
        width *= shape[axis]
    whole = tuple(shape[axis:])
    node = b.engine.element_times(value.node, b.constant(np.ones(whole), value.dtype))
    return Val(node, value.dtype, whole, value.shape, value.known)


def _without_ones(b, value):
    """The same without leading axes of length 1."""
    real = value.real
    while real and real[0] == 1:
        real = real[1:]
    if real == value.real:
        return value
    return Val(b.engine.reshape(value.node, real), value.dtype, real, value.shape, value.known)


def _plain(name):
    def call(b, instruction, *values):
        if len(values) > 1 and np.prod(instruction.shape) > LARGE:
            values = [_spread_far(b, _without_ones(b, value), instruction.shape) for value in values]
        return result(instruction, getattr(b.engine, name)(*[value.node for value in values]), values)

    return call


for _op, _name in {
    "negative": "negate",
    "abs": "abs",
    "exp": "exp",
    "tanh": "tanh",
    "sin": "sin",
    "cos": "cos",
    "floor": "floor",
    "sigmoid": "sigmoid",
    "add": "plus",
    "subtract": "minus",
    "multiply": "element_times",
    "logical_and": "element_times",
    "logical_or": "element_max",
    "equal": "equal",
    "not_equal": "not_equal",
    "less": "less",
    "less_equal": "less_equal",
}.items():
    OPS[_op] = _plain(_name)


@op("logical_not")
def _logical_not(b, instruction, x):
    return result(instruction, b.engine.equal(x.node, b.constant(0, x.dtype)), [x])


@op("sign")
def _sign(b, instruction, x):
    zero = b.constant(0, x.dtype)
    signs = b.engine.minus(b.engine.greater(x.node, zero), b.engine.less(x.node, zero))
    # The comparison with itself keeps NaN.
    node = b.engine.element_select(b.engine.equal(x.node, x.node), signs, x.node)
    return result(instruction, node, [x])


@op("round")
def _round(b, instruction, x):
    # CNTK's own rounds halves up. Adding 2 ** 23 to a float32 below it leaves no room for a fraction, and the
    # processor rounds halves to the even neighbour.
    engine, dtype = b.engine, x.dtype
    limit = b.constant(2.0**23 if dtype == "float32" else 2.0**52, dtype)
    size = engine.abs(x.node)
    small = engine.minus(engine.plus(size, limit), limit)
    whole = engine.element_select(engine.less(size, limit), small, size)
    if x.known.low >= 0 and not x.known.minus_zero:
        return result(instruction, whole, [x])
    signs = engine.element_select(
        engine.less(x.node, b.constant(0, dtype)), b.constant(-1, dtype), b.constant(1, dtype)
    )
    node = engine.element_times(whole, signs)
    if x.known.minus_zero:
        node = engine.element_select(engine.equal(x.node, b.constant(0, dtype)), x.node, node)
    return result(instruction, node, [x])


@op("sqrt")
def _sqrt(b, instruction, x):
    # CNTK gives 0 for negative operands and for NaN.
    engine = b.engine
    inside = engine.greater_equal(x.node, b.constant(0, x.dtype))
    root = engine.element_select(inside, engine.sqrt(x.node), b.constant(np.nan, x.dtype))
    if x.known.minus_zero:
        # -0.0 is its own root.
        root = engine.element_select(engine.equal(x.node, b.constant(0, x.dtype)), x.node, root)
    return result(instruction, root, [x])


@op("log")
def _log(b, instruction, x):
    engine, dtype = b.engine, x.dtype
    if x.known.low >= SMALLEST_LOG:
        return result(instruction, engine.log(x.node), [x])
    shift = 64 if dtype == "float32" else 1000
    zero = b.constant(0, dtype)
    small = engine.less(x.node, b.constant(SMALLEST_LOG, dtype))
    scaled = engine.element_select(small, engine.element_times(x.node, b.constant(2.0**shift, dtype)), x.node)
    correction = engine.element_times(small, b.constant(shift * np.log(2.0), dtype))
    node = engine.minus(engine.log(scaled), correction)
    outside = engine.element_select(engine.equal(x.node, zero), b.constant(-np.inf, dtype), b.constant(np.nan, dtype))
    return result(instruction, engine.element_select(engine.greater(x.node, zero), node, outside), [x])


@op("divide")
def _divide(b, instruction, x, y):
    # CNTK's quotient is x * (1/y) with 1/0 = 0, and 1/y overflows for denormals.
    engine, dtype = b.engine, x.dtype
    smallest = SMALLEST_DIVISOR if dtype == "float32" else 2.3e-308
    reciprocal = engine.reciprocal(y.node)
    if y.known.array is not None:
        least = float(np.min(np.abs(y.known.array)))
        safe = least >= smallest
    else:
        safe = y.known.low >= smallest
    if not safe:
        size = y.node if y.known.low >= 0 else engine.abs(y.node)
        tiny = engine.less(size, b.constant(smallest, dtype))
        if not y.known.minus_zero:
            zero = engine.equal(y.node, b.constant(0, dtype))
            reciprocal = engine.element_select(zero, b.constant(np.inf, dtype), reciprocal)
            tiny = engine.minus(tiny, zero)
        # The sign of a zero can't be seen by CNTK, and it decides the result's.
        b.flag(tiny, dtype)
    return result(instruction, engine.element_times(x.node, reciprocal), [x, y])


@op("power")
def _power(b, instruction, x, y):
    engine, dtype = b.engine, x.dtype
    zero = b.constant(0, dtype)
    exponent = y.known.array
    if exponent is not None and exponent.size == 1:
        exponent = float(exponent.reshape(()))
        if exponent == 1:
            return Val(x.node, dtype, x.real, instruction.shape)
        if exponent == 2:
            return result(instruction, engine.element_times(x.node, x.node), [x])
    else:
        exponent = None
    conditions = []
    whole = exponent is not None and abs(exponent) < 2**20 and exponent == int(exponent)
    if not whole:
        conditions.append(engine.equal(x.node, b.constant(-np.inf, dtype)))
    if exponent is None or not exponent >= 0:
        below = engine.equal(engine.greater_equal(y.node, zero), zero)
        conditions.append(engine.element_times(engine.equal(x.node, zero), below))
    if exponent is None or not abs(exponent) < 2**20:
        large = engine.greater_equal(engine.abs(y.node), b.constant(2.0**20, dtype))
        conditions.append(engine.element_times(engine.less(x.node, zero), large))
    for condition in conditions:
        b.flag(condition, dtype)
    return result(instruction, engine.pow(x.node, y.node), [x, y])


def _bounded(b, x, bound, larger):
    """`x` and one number: a clip keeps NaN by itself and is one node, where CNTK's maximum is two."""
    low, high = (bound, np.inf) if larger else (-np.inf, bound)
    return b.engine.clip(x.node, b.constant(low, x.dtype), b.constant(high, x.dtype))


def _extreme(b, instruction, x, y, larger):
    # CNTK takes the second operand where the first is NaN, and keeps a NaN that comes second.
    take = b.engine.element_max if larger else b.engine.element_min
    if y.known.array is not None and not np.any(np.isnan(y.known.array)):
        x, y = y, x
    if x.known.array is not None and x.known.array.size == 1 and not np.any(np.isnan(x.known.array)):
        return result(instruction, _bounded(b, y, float(x.known.array.reshape(())), larger), [y])
    node = take(x.node, y.node)
    if x.known.array is None or np.any(np.isnan(x.known.array)):
        node = b.engine.element_select(b.engine.equal(x.node, x.node), node, x.node)
    return result(instruction, node, [x, y])


@op("maximum")
def _maximum(b, instruction, x, y):
    return _extreme(b, instruction, x, y, True)


@op("minimum")
def _minimum(b, instruction, x, y):
    return _extreme(b, instruction, x, y, False)


@op("relu")
def _relu(b, instruction, x):
    # CNTK's own relu makes NaN of -inf, and is slower.
    return result(instruction, _bounded(b, x, 0.0, True), [x])


@op("select")
def _select(b, instruction, condition, x, y):
    condition = b.typed(condition, x.dtype)
    node = b.engine.element_select(condition.node, x.node, y.node)
    return result(instruction, node, [x, y, condition])


ELEMENTWISE = set(OPS)


@op("cast")
def _cast(b, instruction, x, dtype):
    source = instruction.input_dtypes[0]
    if dtype == "bool" and source != "bool":
        return result(instruction, b.engine.not_equal(x.node, b.constant(0, x.dtype)), [x])
    if dtype in FLOATS:
        x = b.typed(x, dtype)
    # Booleans and small integers are whole floats already.
    return Val(x.node, x.dtype, x.real, instruction.shape)


def _reduce(b, instruction, node, name, axes):
    if not axes:
        return node
    return getattr(b.engine, name)(node, axis=list(axes))


def _reduced(b, instruction, node, x, keepdims):
    if not keepdims:
        node = b.engine.reshape(node, instruction.shape)
    return Val(node, x.dtype, instruction.shape, instruction.shape)


@op("sum")
def _sum(b, instruction, x, axes, keepdims):
    node = b.whole(x)
    rows = int(np.prod(x.shape[: len(axes)]))
    width = int(np.prod(x.shape)) // rows
    leading = list(axes) == list(range(len(axes)))
    if leading and width > 1 and 1 < rows <= MOST_ROWS and rows * width > LARGE:
        ones = b.constant(np.ones((1, rows)), x.dtype)
        node = b.engine.times(ones, _reshaped(b, node, (rows, width)))
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
    # CNTK's own loses all precision where operands lie far apart.
    engine, whole = b.engine, b.whole(x)
    shifted = engine.minus(whole, engine.reduce_max(whole, axis=axis))
    node = engine.minus(shifted, engine.log(engine.reduce_sum(engine.exp(shifted), axis=axis)))
    return Val(node, x.dtype, x.shape, instruction.shape)


def _reshaped(b, node, shape):
    return b.engine.reshape(node, tuple(shape))


@op("reshape")
def _reshape(b, instruction, x, dims):
    if x.shape == instruction.shape:
        return Val(x.node, x.dtype, x.real, instruction.shape)
    if np.prod(x.real) == 1:
        # One element may go on being broadcast.
        node = x.node if x.real == () else _reshaped(b, x.node, ())
        return Val(node, x.dtype, (), instruction.shape)
    node = _reshaped(b, b.whole(x), instruction.shape)
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


def ranges(slices, shape):
    """For each axis: lowest index, count, distance, and whether it runs backwards."""
    result = []
    for entry, length in zip(slices, shape):
        start, stop, step = slice(*entry).indices(length)
        count = len(range(start, stop, step))
        lowest = start if step > 0 else start + (count - 1) * step
        result.append((lowest, count, abs(step), step < 0 and count > 1))
    return result


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
def unslice(b, instruction, piece, slices):
    engine, node, dims = b.engine, b.whole(piece), list(piece.shape)

    def zeros(shape):
        return b.constant(np.zeros(shape), piece.dtype)

    for axis, (lowest, count, distance, backwards) in enumerate(ranges(slices, instruction.shape)):
        length = instruction.shape[axis]
        if count == length and not backwards:
            continue
        before, after = int(np.prod(dims[:axis])), int(np.prod(dims[axis + 1 :]))
        node = _reshaped(b, node, (before, count, after))
        if backwards:
            node = engine.slice(node, [1], [0], [count], [-1])
        spread = count
        if distance > 1 and count > 1:
            node = _reshaped(b, node, (before, count, 1, after))
            node = engine.splice(node, zeros((before, count, distance - 1, after)), axis=2)
            node = _reshaped(b, node, (before, count * distance, after))
            spread = (count - 1) * distance + 1
            node = engine.slice(node, [1], [0], [spread])
        parts = [node]
        if lowest:
            parts.insert(0, zeros((before, lowest, after)))
        if lowest + spread < length:
            parts.append(zeros((before, length - lowest - spread, after)))
        node = engine.splice(*parts, axis=1) if len(parts) > 1 else node
        dims[axis] = length
        node = _reshaped(b, node, dims)
    return Val(node, piece.dtype, instruction.shape, instruction.shape)


@op("one_hot")
def _one_hot(b, instruction, indices, depth):
    node = _reshaped(b, b.whole(indices), indices.shape + (1,))
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
        return unslice(b, instruction, x, [[n, n + length, 1] for (n, _), length in zip(pads, x.shape)])
    node = b.engine.pad(_reshaped(b, node, dims), groups, mode=b.engine.CONSTANT_PAD, constant_value=0)
    return Val(_reshaped(b, node, instruction.shape), x.dtype, instruction.shape, instruction.shape)


def _row_numbers(b, indices, length):
    """The indices as a vector, all of them inside; numpy computes the stage where one wasn't."""
    node = _reshaped(b, b.whole(indices), (int(np.prod(indices.shape)),))
    array = indices.known.array
    if array is not None and array.min() >= 0 and array.max() < length:
        return node
    inside = b.engine.clip(node, b.constant(0, indices.dtype), b.constant(length - 1, indices.dtype))
    b.flag(b.engine.not_equal(node, inside), indices.dtype)
    return inside


@op("gather")
def _gather(b, instruction, x, indices):
    rows = _reshaped(b, b.whole(x), (x.shape[0], int(np.prod(x.shape[1:]))))
    node = b.engine.gather(rows, _row_numbers(b, indices, x.shape[0]))
    return Val(_reshaped(b, node, instruction.shape), x.dtype, instruction.shape, instruction.shape)


@op("scatter_add")
def _scatter_add(b, instruction, values, indices):
    # A product with a sparse matrix takes the elements that there are, so that no NaN meets a 0.
    length, count = instruction.shape[0], int(np.prod(indices.shape))
    rows = _reshaped(b, b.whole(values), (count, int(np.prod(instruction.shape[1:]))))
    places = b.engine.one_hot(_row_numbers(b, indices, length), length, sparse_output=True)
    node = b.engine.transpose(b.engine.times(b.engine.transpose(rows, (1, 0)), places), (1, 0))
    return Val(_reshaped(b, node, instruction.shape), values.dtype, instruction.shape, instruction.shape)


@op("batch_matmul")
def _batch_matmul(b, instruction, x, y, transpose_a, transpose_b):
    def samples(value):
        shape = (int(np.prod(value.shape[:-2])),) + value.shape[-2:]
        return b.engine.to_batch(_reshaped(b, b.whole(value), shape))

    left = samples(x)
    if transpose_a:
        left = b.engine.transpose(left, (1, 0))
    product = b.engine.times_transpose if transpose_b else b.engine.times
    node = _reshaped(b, b.engine.unpack_batch(product(left, samples(y))), instruction.shape)
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
