"""TensorFlow's table of ops: reductions, arrangement, products and loops; joined with elementwise.py and windows.py."""

import numpy as np

from ..base import registrar
from ..lowering import Steps, lower
from ..products import PRODUCTS
from . import elementwise, windows
from .elementwise import FLOATS, cast, signed, typed, unsigned_again, where, widened, widened_all

# Set by `hand_over` when the first backend starts: op functions are only called after that.
tf = None

OPS = dict(elementwise.OPS, **windows.OPS)
op = registrar(OPS)

# Ops whose kernels write into memory of their own, or into an intermediate's: never a view of an argument.
# Of all others (reshape, slice, cast, a sum over axes of length 1 ...) TensorFlow may return a view.
FRESH = {
    *("sqrt", "exp", "log", "tanh", "sigmoid", "relu", "softmax", "logical_not", "logical_and", "logical_or"),
    *("add", "subtract", "multiply", "divide", "floor_divide", "mod", "power", "maximum", "minimum"),
    *("equal", "not_equal", "less", "less_equal", "select", "one_hot", "matmul"),
    *("sin", "cos", "cumsum", "cumprod", "gather", "scatter_add", "batch_matmul", "conv", "conv_kernel"),
}

# So many terms may be added in float32, one after the other.
FEW_TERMS = 128
# Along the last axes it keeps several sums beside each other: so many may be added there.
FEW_AT_THE_END = 1024

# TensorFlow's own work for a turn of a loop shows where a step is short: two of up to so many instructions share it.
SHORT_STEP = 100


# Reductions -----------------------------------------------------------------------------------------------


@op("sum")
def _sum(instruction, x, axes, keepdims):
    if instruction.dtype == "bool":
        return tf.raw_ops.Any(input=x, axis=axes_of(axes), keep_dims=keepdims)
    return tf.cast(_total(widened(x), axes, keepdims), x.dtype)


def _total(x, axes, keepdims):
    """The sum, of integers or of float32 and wider."""
    if x.dtype != tf.float32 or not axes:
        return tf.raw_ops.Sum(input=x, axis=axes_of(axes), keep_dims=keepdims)
    # TensorFlow adds one term after the other along most axes: of a million rows, a hundredth is lost.
    few, count, last = [], 1, x.shape.rank
    for axis in reversed(axes):
        length = x.shape[axis]
        # Where the axes at the end begin, as far as they are summed; None before them.
        last = axis if last is not None and all(n == 1 for n in x.shape[axis + 1 : last]) else None
        if length is None or count * length > (FEW_TERMS if last is None else FEW_AT_THE_END):
            break
        few.insert(0, axis)
        count *= length
    many = axes[: len(axes) - len(few)]
    if few:
        x = tf.raw_ops.Sum(input=x, axis=axes_of(few), keep_dims=keepdims)
    if many:
        total = tf.raw_ops.Sum(input=tf.cast(x, tf.float64), axis=axes_of(many), keep_dims=keepdims)
        x = tf.cast(total, tf.float32)
    return x


def axes_of(axes):
    return tf.constant(axes, dtype=tf.int32, shape=[len(axes)])


def _extreme(instruction, x, axes, keepdims):
    name, boolean = {"max": ("Max", "Any"), "min": ("Min", "All")}[instruction.op]
    kernel = getattr(tf.raw_ops, boolean if instruction.dtype == "bool" else name)
    result = kernel(input=x, axis=axes_of(axes), keep_dims=keepdims)
    if any(not x.shape[axis] for axis in axes):
        # An unknown or zero length: TensorFlow would answer with -inf where numpy refuses.
        lengths = tf.gather(tf.shape(x), axes_of(axes))
        message = tf.constant("the %s of zero elements is undefined" % instruction.op)
        # The function runs it whether or not something depends on it.
        tf.raw_ops.Assert(condition=tf.reduce_all(lengths > 0), data=[message])
    return result


OPS["max"] = OPS["min"] = _extreme


@op("prod")
def _prod(instruction, x, axes, keepdims):
    if instruction.dtype == "bool":
        return tf.raw_ops.All(input=x, axis=axes_of(axes), keep_dims=keepdims)
    wide = tf.cast(x, tf.float64) if instruction.dtype in FLOATS else x
    return tf.cast(tf.raw_ops.Prod(input=wide, axis=axes_of(axes), keep_dims=keepdims), x.dtype)


@op("argmax", "argmin")
def _argmax(instruction, x, axis):
    most = instruction.op == "argmax"
    dimension = tf.constant(axis, tf.int32)
    if instruction.input_dtypes[0] in FLOATS:
        # ArgMax and ArgMin pass over NaN, which wins in numpy. No NaN equals the extreme.
        extreme = tf.raw_ops.Max if most else tf.raw_ops.Min
        best = extreme(input=x, axis=axes_of([axis]), keep_dims=True)
        hits = tf.logical_or(tf.raw_ops.Equal(x=x, y=best), tf.raw_ops.NotEqual(x=x, y=x))
        return tf.raw_ops.ArgMax(input=hits, dimension=dimension, output_type=tf.int64)
    kernel = tf.raw_ops.ArgMax if most else tf.raw_ops.ArgMin
    return kernel(input=x, dimension=dimension, output_type=tf.int64)


@op("cumsum", "cumprod")
def _cumulative(instruction, x, axis):
    kernel = tf.raw_ops.Cumsum if instruction.op == "cumsum" else tf.raw_ops.Cumprod
    dtype = instruction.dtype
    if dtype == "bool":
        wide = tf.cast(x, tf.int64)
    else:
        wide = tf.cast(x, tf.float64) if dtype in FLOATS else x
    return cast(instruction, kernel(x=wide, axis=tf.constant(axis, tf.int32)), dtype)


@op("size")
def _size(instruction, x, axes, dtype=None):
    dtype = dtype or tf.as_dtype(instruction.dtype)
    lengths = [x.shape[axis] for axis in axes]
    if None not in lengths:
        return tf.constant(np.asarray(np.prod(lengths)).astype(dtype.as_numpy_dtype))
    if len(axes) == len(x.shape):
        count = tf.size(x, out_type=tf.int64)
    else:
        count = tf.reduce_prod(tf.gather(tf.shape(x, out_type=tf.int64), axes))
    return cast(instruction, count, dtype.name)


@op("shape")
def _shape(instruction, x):
    return tf.shape(x, out_type=tf.int32)


# Arrangement ----------------------------------------------------------------------------------------------


def _dims(dims, values):
    """`dims` as a list of ints where all are known, or a vector that is computed at the call."""
    known = [values[d[0]].shape[d[1]] if isinstance(d, list) else d for d in dims]
    if None not in known:
        return tf.constant(known, dtype=tf.int64, shape=[len(known)])
    operand = dims[0][0] if isinstance(dims[0], list) else 0
    if dims == [[operand, axis] for axis in range(len(values[operand].shape))]:
        return tf.shape(values[operand])
    shapes = {}
    for dim, length in zip(dims, known):
        if length is None and dim[0] not in shapes:
            shapes[dim[0]] = tf.shape(values[dim[0]])
    return tf.stack([shapes[d[0]][d[1]] if length is None else length for d, length in zip(dims, known)])


@op("reshape")
def _reshape(instruction, x, *references, **attrs):
    return tf.raw_ops.Reshape(tensor=x, shape=_dims(attrs["dims"], (x,) + references))


@op("broadcast_to")
def _broadcast_to(instruction, x, *references, **attrs):
    return tf.raw_ops.BroadcastTo(input=x, shape=_dims(attrs["dims"], (x,) + references))


@op("transpose")
def _transpose(instruction, x, permutation):
    return tf.raw_ops.Transpose(x=x, perm=axes_of(permutation))


@op("concatenate")
def _concatenate(instruction, *values, **attrs):
    if len(values) == 1:
        return values[0]
    return tf.raw_ops.ConcatV2(values=values, axis=tf.constant(attrs["axis"], tf.int32))


@op("unconcatenate")
def _unconcatenate(instruction, whole, *parts, **attrs):
    axis, part = attrs["axis"], attrs["part"]
    lengths = [value.shape[axis] for value in parts[: part + 1]]
    if None in lengths:
        lengths = [tf.shape(value)[axis] if length is None else length for value, length in zip(parts, lengths)]
    start = sum(lengths[:part]) if part else 0
    begin, size = [0] * len(whole.shape), [-1] * len(whole.shape)
    begin[axis], size[axis] = start, lengths[part]
    return tf.slice(whole, begin, size)


def _strides(slices):
    """Python slices as the arguments of TensorFlow's strided slices."""
    begin, end, strides, begin_mask, end_mask = [], [], [], 0, 0
    for axis, (start, stop, step) in enumerate(slices):
        begin_mask |= (start is None) << axis
        end_mask |= (stop is None) << axis
        begin.append(start or 0)
        end.append(stop or 0)
        strides.append(1 if step is None else step)
    return {
        "begin": tf.constant(begin, tf.int64, shape=[len(begin)]),
        "end": tf.constant(end, tf.int64, shape=[len(end)]),
        "strides": tf.constant(strides, tf.int64, shape=[len(strides)]),
        "begin_mask": begin_mask,
        "end_mask": end_mask,
    }


@op("slice")
def _slice(instruction, x, slices):
    return tf.raw_ops.StridedSlice(input=x, **_strides(slices))


@op("unslice")
def _unslice(instruction, piece, like, slices):
    shape = tf.shape(like, out_type=tf.int64)
    return tf.raw_ops.StridedSliceGrad(shape=shape, dy=piece, **_strides(slices))


def _indices(indices):
    if indices.dtype in (tf.int32, tf.int64):
        return indices
    # Beyond int64 an index becomes negative: out of range either way.
    return tf.cast(signed(indices), tf.int64)


@op("one_hot")
def _one_hot(instruction, indices, depth):
    indices = _indices(indices)
    on, off = (tf.constant(np.asarray(value).astype(instruction.dtype)) for value in (1, 0))
    depth = tf.constant(depth, tf.int32)
    return tf.raw_ops.OneHot(indices=indices, depth=depth, on_value=on, off_value=off, axis=-1)


@op("pad")
def _pad(instruction, x, pads):
    return tf.raw_ops.Pad(input=x, paddings=tf.constant(pads, tf.int64, shape=[len(pads), 2]))


def _inside(indices, like):
    """A mask of the indices that are rows of `like`, and the number of its rows, in the indices' dtype."""
    length = like.shape[0]
    if length is None:
        length = tf.cast(tf.shape(like, out_type=tf.int64)[0], indices.dtype)
    else:
        length = typed(length, indices)
    return tf.logical_and(indices >= typed(0, indices), indices < length), length


@op("gather")
def _gather(instruction, x, indices):
    indices = _indices(indices)
    inside, length = _inside(indices, x)
    if not x.shape[0]:
        # An unknown or zero length: where there is no row, one is added to be read. No padding copies nothing.
        missing = tf.cast(tf.equal(length, typed(0, length)), tf.int64)
        before_after = tf.scatter_nd([[0, 1]], [missing], [len(x.shape), 2])
        x = tf.raw_ops.Pad(input=x, paddings=before_after)
    # On a CPU an index outside is an error, on a GPU it gives zeros.
    rows = tf.raw_ops.GatherV2(params=x, indices=where(inside, indices, typed(0, indices)), axis=tf.constant(0))
    outside = tf.constant(np.asarray(np.nan if instruction.dtype in FLOATS else 0).astype(instruction.dtype))
    column = tf.raw_ops.Reshape(tensor=inside, shape=tf.concat([tf.shape(inside), [1] * (len(x.shape) - 1)], 0))
    return where(column, rows, outside)


@op("scatter_add")
def _scatter_add(instruction, values, indices, like):
    indices = _indices(indices)
    inside, length = _inside(indices, like)
    wide = tf.cast(values, tf.int32) if instruction.dtype == "bool" else widened(values)
    # A segment of -1 is left out.
    segments = where(inside, indices, typed(-1, indices))
    total = tf.raw_ops.UnsortedSegmentSum(data=wide, segment_ids=segments, num_segments=length)
    return cast(instruction, total, instruction.dtype)


@op("matmul", "batch_matmul")
def _matmul(instruction, a, b, transpose_a, transpose_b):
    dtype = instruction.dtype
    if dtype in ("bool", "int8", "int16"):
        a, b = tf.cast(a, tf.int32), tf.cast(b, tf.int32)
    else:
        a, b = [signed(x) for x in widened_all(a, b)]
    if instruction.op == "matmul":
        product = tf.raw_ops.MatMul(a=a, b=b, transpose_a=transpose_a, transpose_b=transpose_b)
    else:
        product = tf.raw_ops.BatchMatMulV2(x=a, y=b, adj_x=transpose_a, adj_y=transpose_b)
    if dtype == "bool":
        return tf.raw_ops.NotEqual(x=product, y=typed(0, product))
    return unsigned_again(product, dtype)


# Composites that TensorFlow has kernels for ---------------------------------------------------------------


@op("mean")
def _mean(instruction, x, axes, keepdims):
    wide = widened(x) if instruction.dtype in FLOATS else tf.cast(x, tf.float64)
    mean = _total(wide, axes, keepdims) / _size(instruction, wide, axes, wide.dtype)
    return tf.cast(mean, x.dtype)


@op("softmax")
def _softmax(instruction, x, axis):
    # TensorFlow's own, which is oneDNN's on some processors, is 0 where the result is small but normal, and leaves 0
    # beside a NaN or an infinity, where every share of the sum is NaN.
    axes, wide = axes_of([axis]), widened(x)
    power = tf.raw_ops.Exp(x=tf.raw_ops.Sub(x=wide, y=tf.raw_ops.Max(input=wide, axis=axes, keep_dims=True)))
    return tf.cast(tf.raw_ops.RealDiv(x=power, y=_total(power, [axis], True)), x.dtype)


# Loops ----------------------------------------------------------------------------------------------------


def _known(x, shape):
    """`x` with the shape that the graph knows."""
    return x if x.shape == shape else tf.ensure_shape(x, shape)


@op("scan")
def _scan(instruction, *operands, **attrs):
    body, count = attrs["body"], attrs["states"]
    length = operands[0].shape[0]
    first = attrs["sequences"]
    shapes = [tf.TensorShape(shape) for _, shape in body.inputs[first : first + count]]
    kinds = [body.values[number] for number in body.outputs[count:]]
    if length == 0:
        empty = [tf.zeros((0,) + shape, tf.as_dtype(dtype)) for dtype, shape in kinds]
        return list(operands[first : first + count]) + empty
    if length is None:
        length = tf.shape(operands[0])[0]
    arrays = [tf.TensorArray(dtype, size=length, element_shape=shape) for dtype, shape in kinds]

    def step(done, states, arrays):
        t = length - 1 - done if attrs["reverse"] else done
        steps = Steps(instruction, operands, 0, _element)
        steps.states = list(states)
        # Not scoped: an error inside is the loop's.
        values = lower(body, steps.leaves(t), OPS)
        results = [values[number] for number in body.outputs]
        new = [_known(x, shape) for x, shape in zip(results, shapes)]
        return done + 1, new, [array.write(t, x) for array, x in zip(arrays, results[count:])]

    states = [_known(x, shape) for x, shape in zip(operands[first : first + count], shapes)]
    loop = tf.constant(0), states, arrays
    short = len(body.instructions) <= SHORT_STEP and not any(i.op == "scan" for i in body.instructions)
    in_pairs = short and isinstance(length, int)
    if in_pairs and length % 2:
        loop = step(*loop)
    _, states, arrays = tf.while_loop(
        lambda done, states, arrays: done < length,
        (lambda *loop: step(*step(*loop))) if in_pairs else step,
        loop,
        shape_invariants=(tf.TensorShape(()), shapes, [tf.TensorShape(None)] * len(arrays)),
        # Steps that need one another gain nothing by running ahead.
        parallel_iterations=1 if count else 10,
    )
    return states + [_stacked(array) for array in arrays]


def _stacked(array):
    """The elements of a TensorArray as one tensor; a loop that takes its elements never needs it (see _element)."""
    whole = array.stack()
    whole.kernelk_elements = array
    return whole


def _element(x, t):
    array = getattr(x, "kernelk_elements", None)
    if array is not None:
        return array.read(t)
    # x[t], which would compute an end as well, that isn't looked at.
    return tf.raw_ops.StridedSlice(input=x, begin=tf.reshape(t, [1]), end=[0], strides=[1], shrink_axis_mask=1)


@op("item")
def _item(instruction, values, index):
    return values[index]


def _of_factors(product):
    """The product, which rounds its factors to bfloat16 where the instruction is marked so."""

    def call(instruction, a, b, *rest, **attrs):
        if instruction.rounded:
            a, b = [tf.cast(tf.cast(x, tf.bfloat16), tf.float32) for x in (a, b)]
        return product(instruction, a, b, *rest, **attrs)

    return call


OPS.update([(_name, _of_factors(OPS[_name])) for _name in PRODUCTS.intersection(OPS)])


def _scoped(function):
    """Names the instruction in the graph, so that an error at the call can be traced to it."""

    def call(instruction, *values, **attrs):
        with tf.name_scope("k%d" % instruction.index):
            return function(instruction, *values, **attrs)

    return call


SCOPED = {_name: _scoped(_function) for _name, _function in OPS.items()}
