"""The TensorFlow backend: in the island, beside the numpy one; a program is one traced function."""

import os
import re
import sys
from contextlib import contextmanager

import numpy as np

from ..base import Backend, registrar
from ..choosing import FLUSHES, SHARED_THREADS, chosen_device, positive_threads, settled_threads
from ..describing import type_of
from ..errors import CannotLower
from ..lowering import InstructionError, Steps, lower, resolve_dims
from . import windows
from .denormals import keep_denormals
from .profiler import TensorFlowProfiler

# The engine's module, set when the first TensorFlowBackend is made: op functions are only called after that.
tf = None

OPS = {}
op = registrar(OPS)

FLOATS = ("float16", "float32", "float64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")

# Constants up to this many bytes are part of the traced function; larger ones are arguments, held once.
EMBEDDED_BYTES = 1024

# Nodes of a graph that compute nothing.
PASSIVE = ("Placeholder", "Const", "Identity", "NoOp")

# Ops whose kernels write into memory of their own, or into an intermediate's: never a view of an argument.
# Of all others (reshape, slice, cast, a sum over axes of length 1 ...) TensorFlow may return a view.
FRESH = {
    *("sqrt", "exp", "log", "tanh", "sigmoid", "relu", "softmax", "logical_not", "logical_and", "logical_or"),
    *("add", "subtract", "multiply", "divide", "floor_divide", "mod", "power", "maximum", "minimum"),
    *("equal", "not_equal", "less", "less_equal", "select", "one_hot", "matmul"),
    *("sin", "cos", "cumsum", "cumprod", "gather", "scatter_add", "batch_matmul", "conv", "conv_kernel"),
}


# Elementwise ----------------------------------------------------------------------------------------------


def _raw_unary(name):
    def call(instruction, x):
        return getattr(tf.raw_ops, name)(x=x)

    return call


def _raw_binary(name, boolean=None):
    def call(instruction, x, y):
        chosen = boolean if boolean and instruction.input_dtypes[0] == "bool" else name
        return getattr(tf.raw_ops, chosen)(x=x, y=y)

    return call


for _name, _kernel in {
    "sqrt": "Sqrt",
    "exp": "Exp",
    "log": "Log",
    "tanh": "Tanh",
    "sin": "Sin",
    "cos": "Cos",
    "logical_not": "LogicalNot",
}.items():
    OPS[_name] = _raw_unary(_kernel)

for _name, _kernels in {
    "add": ("AddV2", "LogicalOr"),
    "subtract": ("Sub",),
    "multiply": ("Mul", "LogicalAnd"),
    "divide": ("RealDiv",),
    "maximum": ("Maximum", "LogicalOr"),
    "minimum": ("Minimum", "LogicalAnd"),
    "logical_and": ("LogicalAnd",),
    "logical_or": ("LogicalOr",),
    "equal": ("Equal",),
    "not_equal": ("NotEqual",),
}.items():
    OPS[_name] = _raw_binary(*_kernels)


def _like(value, x):
    return tf.constant(value, dtype=x.dtype)


@op("less", "less_equal")
def _less(instruction, x, y):
    if instruction.input_dtypes[0] == "bool":
        # False < True; TensorFlow doesn't order booleans.
        x, y = tf.cast(x, tf.uint8), tf.cast(y, tf.uint8)
    kernel = tf.raw_ops.Less if instruction.op == "less" else tf.raw_ops.LessEqual
    return kernel(x=x, y=y)


@op("negative")
def _negative(instruction, x):
    if instruction.dtype in UNSIGNED:
        return tf.raw_ops.Sub(x=_like(0, x), y=x)
    return tf.raw_ops.Neg(x=x)


@op("abs")
def _abs(instruction, x):
    if instruction.dtype in UNSIGNED or instruction.dtype == "bool":
        return x
    return tf.raw_ops.Abs(x=x)


@op("sign")
def _sign(instruction, x):
    if instruction.dtype in UNSIGNED:
        return tf.cast(tf.raw_ops.NotEqual(x=x, y=_like(0, x)), x.dtype)
    return tf.raw_ops.Sign(x=x)


@op("floor", "round")
def _whole(instruction, x):
    if instruction.dtype not in FLOATS:
        return x
    # Round takes the even neighbour of a half; Rint would too, but lacks float16.
    return tf.raw_ops.Floor(x=x) if instruction.op == "floor" else tf.raw_ops.Round(x=x)


def _where(condition, x, y):
    return tf.raw_ops.SelectV2(condition=condition, t=x, e=y)


@op("select")
def _select(instruction, condition, x, y):
    shapes = instruction.input_shapes
    if instruction.dtype in FLOATS and shapes[1:] == (instruction.shape, ()) and _is_zero(y):
        # TensorFlow takes three times as long to spread a scalar. MulNoNan keeps to 0 whatever meets a 0.
        return tf.raw_ops.MulNoNan(x=x, y=tf.cast(condition, x.dtype))
    return _where(condition, x, y)


def _is_zero(x):
    """Whether a scalar is a constant +0."""
    value = tf.get_static_value(x)
    return value is not None and value == 0 and not np.signbit(value)


def _signed(x):
    """Unsigned integers as signed ones that wrap alike; others as they are."""
    if x.dtype == tf.uint64:
        return tf.bitcast(x, tf.int64)
    wider = {tf.uint8: tf.int32, tf.uint16: tf.int32, tf.uint32: tf.int64}.get(x.dtype)
    return x if wider is None else tf.cast(x, wider)


def _unsigned_again(x, dtype):
    if dtype == "uint64":
        return tf.bitcast(x, tf.uint64)
    return tf.cast(x, dtype)


@op("power")
def _power(instruction, x, y):
    return _unsigned_again(tf.raw_ops.Pow(x=_signed(x), y=_signed(y)), instruction.dtype)


def _float_divmod(x, y):
    """numpy's floor_divide and remainder of floats, which differ from floor(x / y) by more than rounding."""
    zero, one = _like(0, x), _like(1, x)
    minus_zero = _like(-0.0, x)
    remainder = tf.raw_ops.TruncateMod(x=x, y=y)
    quotient = tf.raw_ops.RealDiv(x=x, y=y)
    by_zero = tf.raw_ops.Equal(x=y, y=zero)
    inexact = tf.raw_ops.NotEqual(x=remainder, y=zero)
    negative = tf.raw_ops.Less(x=y, y=zero)
    opposite = tf.logical_and(inexact, tf.not_equal(negative, tf.less(remainder, zero)))
    whole = tf.raw_ops.RealDiv(x=tf.raw_ops.Sub(x=x, y=remainder), y=y)
    whole = _where(opposite, whole - one, whole)
    floor = tf.raw_ops.Floor(x=whole)
    # whole is an integer but for rounding.
    floor = _where(tf.greater(whole - floor, _like(0.5, x)), floor + one, floor)
    # A quotient of 0 has its own sign; one below 1 gives a 0 of the same sign.
    signed_zero = _where(tf.equal(quotient, zero), quotient, zero)
    signed_zero = _where(tf.less(quotient, zero), minus_zero, signed_zero)
    floor = _where(tf.not_equal(whole, zero), floor, signed_zero)
    floor = _where(by_zero, quotient, floor)
    modulus = _where(opposite, remainder + y, remainder)
    modulus = _where(inexact, modulus, _where(negative, minus_zero, zero))
    return floor, modulus


@op("floor_divide", "mod")
def _floor_divide(instruction, x, y):
    quotient = instruction.op == "floor_divide"
    if instruction.dtype in FLOATS:
        result = _float_divmod(*_widened(x, y))[0 if quotient else 1]
        return tf.cast(result, x.dtype)
    if instruction.dtype == "bool":
        raise CannotLower("booleans can't be divided")
    # TensorFlow refuses to divide an integer by 0, wherever in the array it is.
    zero = tf.raw_ops.Equal(x=y, y=_like(0, y))
    divisor = _where(zero, _like(1, y), y)
    if quotient:
        return _where(zero, _like(0, x), tf.raw_ops.FloorDiv(x=x, y=divisor))
    return tf.raw_ops.FloorMod(x=x, y=divisor)


@op("cast")
def _cast(instruction, x, dtype):
    if dtype == "bool":
        return x if x.dtype == tf.bool else tf.raw_ops.NotEqual(x=x, y=_like(0, x))
    return tf.cast(x, dtype)


# Reductions -----------------------------------------------------------------------------------------------


def _widened(*values):
    """float16 as float32, where it would be rounded at each step."""
    return [tf.cast(x, tf.float32) if x.dtype == tf.float16 else x for x in values]


@op("sum")
def _sum(instruction, x, axes, keepdims):
    if instruction.dtype == "bool":
        return tf.raw_ops.Any(input=x, axis=axes_of(axes), keep_dims=keepdims)
    total = tf.raw_ops.Sum(input=_widened(x)[0], axis=axes_of(axes), keep_dims=keepdims)
    return tf.cast(total, x.dtype)


def axes_of(axes):
    return tf.constant(axes, dtype=tf.int32, shape=[len(axes)])


def _extreme(instruction, x, axes, keepdims):
    name, boolean = {"max": ("Max", "Any"), "min": ("Min", "All")}[instruction.op]
    kernel = getattr(tf.raw_ops, boolean if instruction.dtype == "bool" else name)
    result = kernel(input=x, axis=axes_of(axes), keep_dims=keepdims)
    if any(not x.shape[axis] for axis in axes):
        # An unknown or zero length: TensorFlow would answer with -inf where numpy refuses.
        lengths = tf.gather(tf.shape(x), axes_of(axes))
        message = tf.constant("the %s of no elements is not defined" % instruction.op)
        # The function runs it whether or not something depends on it.
        tf.raw_ops.Assert(condition=tf.reduce_all(lengths > 0), data=[message])
    return result


OPS["max"] = OPS["min"] = _extreme


@op("prod")
def _prod(instruction, x, axes, keepdims):
    if instruction.dtype == "bool":
        return tf.raw_ops.All(input=x, axis=axes_of(axes), keep_dims=keepdims)
    product = tf.raw_ops.Prod(input=_widened(x)[0], axis=axes_of(axes), keep_dims=keepdims)
    return tf.cast(product, x.dtype)


@op("argmax", "argmin")
def _argmax(instruction, x, axis):
    most = instruction.op == "argmax"
    dimension = tf.constant(axis, tf.int32)
    if instruction.input_dtypes[0] in FLOATS:
        # ArgMax and ArgMin pass over NaN, which wins in numpy. No NaN equals the extreme.
        extreme = tf.raw_ops.Max if most else tf.raw_ops.Min
        best = extreme(input=x, axis=axes_of([axis]), keep_dims=True)
        found = tf.logical_or(tf.raw_ops.Equal(x=x, y=best), tf.raw_ops.NotEqual(x=x, y=x))
        return tf.raw_ops.ArgMax(input=found, dimension=dimension, output_type=tf.int64)
    kernel = tf.raw_ops.ArgMax if most else tf.raw_ops.ArgMin
    return kernel(input=x, dimension=dimension, output_type=tf.int64)


@op("cumsum", "cumprod")
def _cumulative(instruction, x, axis):
    kernel = tf.raw_ops.Cumsum if instruction.op == "cumsum" else tf.raw_ops.Cumprod
    dtype = instruction.dtype
    wide = tf.cast(x, tf.int64) if dtype == "bool" else _widened(x)[0]
    return _cast(instruction, kernel(x=wide, axis=tf.constant(axis, tf.int32)), dtype)


@op("size")
def _size(instruction, x, axes):
    lengths = [x.shape[axis] for axis in axes]
    if None not in lengths:
        return tf.constant(np.asarray(np.prod(lengths)).astype(instruction.dtype))
    if len(axes) == len(x.shape):
        count = tf.size(x, out_type=tf.int64)
    else:
        count = tf.reduce_prod(tf.gather(tf.shape(x, out_type=tf.int64), axes))
    return _cast(instruction, count, instruction.dtype)


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
    return tf.cast(_signed(indices), tf.int64)


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
    """Which indices are of a row of `like`, and how many rows it has, in the indices' dtype."""
    length = like.shape[0]
    if length is None:
        length = tf.cast(tf.shape(like, out_type=tf.int64)[0], indices.dtype)
    else:
        length = _like(length, indices)
    return tf.logical_and(indices >= _like(0, indices), indices < length), length


@op("gather")
def _gather(instruction, x, indices):
    indices = _indices(indices)
    inside, length = _inside(indices, x)
    if not x.shape[0]:
        # An unknown or zero length: where there is no row, one is added to be read. No padding copies nothing.
        missing = tf.cast(tf.equal(length, _like(0, length)), tf.int64)
        before_after = tf.scatter_nd([[0, 1]], [missing], [len(x.shape), 2])
        x = tf.raw_ops.Pad(input=x, paddings=before_after)
    # On a CPU an index outside is an error, on a GPU it gives zeros.
    rows = tf.raw_ops.GatherV2(params=x, indices=_where(inside, indices, _like(0, indices)), axis=tf.constant(0))
    outside = tf.constant(np.asarray(np.nan if instruction.dtype in FLOATS else 0).astype(instruction.dtype))
    spread = tf.raw_ops.Reshape(tensor=inside, shape=tf.concat([tf.shape(inside), [1] * (len(x.shape) - 1)], 0))
    return _where(spread, rows, outside)


@op("scatter_add")
def _scatter_add(instruction, values, indices, like):
    indices = _indices(indices)
    inside, length = _inside(indices, like)
    wide = tf.cast(values, tf.int32) if instruction.dtype == "bool" else _widened(values)[0]
    # A segment of -1 is left out.
    segments = _where(inside, indices, _like(-1, indices))
    total = tf.raw_ops.UnsortedSegmentSum(data=wide, segment_ids=segments, num_segments=length)
    return _cast(instruction, total, instruction.dtype)


@op("matmul", "batch_matmul")
def _matmul(instruction, a, b, transpose_a, transpose_b):
    dtype = instruction.dtype
    if dtype in ("bool", "int8", "int16"):
        a, b = tf.cast(a, tf.int32), tf.cast(b, tf.int32)
    else:
        a, b = [_signed(x) for x in _widened(a, b)]
    if instruction.op == "matmul":
        product = tf.raw_ops.MatMul(a=a, b=b, transpose_a=transpose_a, transpose_b=transpose_b)
    else:
        product = tf.raw_ops.BatchMatMulV2(x=a, y=b, adj_x=transpose_a, adj_y=transpose_b)
    if dtype == "bool":
        return tf.raw_ops.NotEqual(x=product, y=_like(0, product))
    return _unsigned_again(product, dtype)


# Composites that TensorFlow has kernels for ---------------------------------------------------------------


@op("mean")
def _mean(instruction, x, axes, keepdims):
    wide = _widened(x)[0] if instruction.dtype in FLOATS else tf.cast(x, tf.float64)
    return tf.cast(tf.raw_ops.Mean(input=wide, axis=axes_of(axes), keep_dims=keepdims), x.dtype)


@op("softmax")
def _softmax(instruction, x, axis):
    y = tf.nn.softmax(_widened(x)[0], axis=axis)
    # TensorFlow's kernel leaves 0 beside a NaN or an infinity, where every share of the sum is NaN.
    total = tf.raw_ops.Sum(input=y, axis=axes_of([axis]), keep_dims=True)
    return tf.cast(y + total * _like(0, total), x.dtype)


@op("sigmoid")
def _sigmoid(instruction, x):
    return tf.raw_ops.Sigmoid(x=x)


@op("sigmoid_grad")
def _sigmoid_grad(instruction, y, g):
    return tf.raw_ops.SigmoidGrad(y=y, dy=g)


@op("tanh_grad")
def _tanh_grad(instruction, y, g):
    return tf.raw_ops.TanhGrad(y=y, dy=g)


@op("relu")
def _relu(instruction, x):
    return tf.raw_ops.Relu(features=x)


windows.enter(op, resolve_dims)

# The backend ----------------------------------------------------------------------------------------------


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
    open_shape = tf.TensorShape(None)
    _, states, arrays = tf.while_loop(
        lambda done, states, arrays: done < length,
        step,
        (tf.constant(0), states, arrays),
        shape_invariants=(tf.TensorShape(()), shapes, [open_shape] * len(arrays)),
    )
    return states + [_stacked(array) for array in arrays]


def _stacked(array):
    """The elements of a TensorArray as one tensor; a loop that takes its elements never needs it (see _element)."""
    whole = array.stack()
    whole.kernelk_elements = array
    return whole


def _element(x, t):
    array = getattr(x, "kernelk_elements", None)
    return x[t] if array is None else array.read(t)


@op("item")
def _item(instruction, values, index):
    return values[index]


def _scoped(function):
    """Names the instruction in the graph, so that an error at the call can be traced to it."""

    def call(instruction, *values, **attrs):
        with tf.name_scope("k%d" % instruction.index):
            return function(instruction, *values, **attrs)

    return call


SCOPED = {_name: _scoped(_function) for _name, _function in OPS.items()}


def _import_tensorflow():
    """Imports TensorFlow, but not the Keras that it imports without needing it (2 s).

    `tensorflow.keras` stays there, and is imported when it is used.
    """
    skip = not {"tensorflow", "keras", "keras.src"} & set(sys.modules)
    if skip:
        # TensorFlow takes the ImportError for "not installed".
        sys.modules["keras.src"] = None
    try:
        import tensorflow
    finally:
        if skip:
            del sys.modules["keras.src"]
    return tensorflow


class TensorFlowBackend(Backend):
    """TensorFlow 2: native values are eager tensors, a program is one ConcreteFunction for all shapes.

    An option of its own: "denormals", "keep" or "flush" (what TensorFlow does by default). Without it they
    are kept if that can be had, and facts() tells which it is.
    oneDNN, TensorFloat-32 and everything else that decides on rounding is left as TensorFlow's user has it.
    """

    name = "tensorflow"
    ops = OPS

    def __init__(self, options):
        global tf
        Backend.__init__(self, options)
        denormals = options.get("denormals")
        if denormals not in (None, "keep", "flush"):
            raise ValueError("denormals=%r is unknown: allowed are 'keep' and 'flush'" % (denormals,))
        threads = positive_threads(options)
        self._in_kernel = bool(options.get("in_kernel"))
        self._notes = []
        if self._in_kernel:
            import tensorflow as tf

            if not tf.executing_eagerly():
                # tf.init_scope() leaves what the user is in the middle of, but not this.
                with tf.init_scope():
                    if not tf.executing_eagerly():
                        raise ValueError(
                            "TensorFlow's eager execution is disabled in this process: restart it without"
                            " tf.compat.v1.disable_eager_execution(), or take a worker"
                        )
        else:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
            # Without it a process takes a GPU's whole memory, and other engines' workers get none.
            os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
            if denormals != "flush":
                keep_denormals(options.get("scratch"))
            tf = _import_tensorflow()
        windows.tf = tf
        self._set_threads(threads)
        self._devices = {}
        for device in tf.config.list_logical_devices():
            kind, number = device.name.split(":")[-2:]
            self._devices["%s:%s" % (kind.lower(), number)] = device.name
        default = "gpu:0" if "gpu:0" in self._devices else "cpu:0"
        self._device = chosen_device("TensorFlow", self.name, options, sorted(self._devices), default)
        self._device_name = self._devices[self._device]
        self._on_cpu = self._device.startswith("cpu")
        self._take_shortcuts()
        with tf.device("/device:CPU:0"):
            kept = float(self.to_numpy(tf.constant([1e-40]) * tf.constant([0.5]))[0]) > 0
        self._denormals = "keep" if kept else "flush"
        if self._in_kernel and not kept and denormals is None:
            self._notes.append(FLUSHES % "TensorFlow")
        if denormals == "keep" and not kept:
            if self._in_kernel:
                raise ValueError(FLUSHES % "TensorFlow" + ": leave the option 'denormals' out, or take a worker")
            raise ValueError(
                "TensorFlow flushes denormals here, as it was loaded earlier or can't be kept from it:"
                " restart the process, or leave the option 'denormals' out"
            )

    def _set_threads(self, threads):
        if threads:
            try:
                tf.config.threading.set_intra_op_parallelism_threads(int(threads))
                if self._in_kernel:
                    self._notes.append(SHARED_THREADS % ("TensorFlow", int(threads), "TensorFlow"))
            except RuntimeError as error:
                # It has started already, and takes no other number in this process.
                if self._threads() != int(threads):
                    raise settled_threads("TensorFlow", self.name, self._threads(), threads) from error

    def _threads(self):
        configured = tf.config.threading.get_intra_op_parallelism_threads()
        if configured:
            return configured
        try:
            from_environment = int(os.environ.get("TF_NUM_INTRAOP_THREADS", "0"))
        except ValueError:
            from_environment = 0
        if from_environment:
            return from_environment
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()

    @contextmanager
    def _own_settings(self):
        """Without the user's callbacks for ops (tf.debugging.enable_check_numerics), which change what is traced."""
        engine = None
        if self._in_kernel:
            from tensorflow.python.eager import context

            engine = context.context()
        before = getattr(engine, "invoking_op_callbacks", None)
        if before is None:
            yield
            return
        try:
            engine.invoking_op_callbacks = True
            yield
        finally:
            engine.invoking_op_callbacks = before

    def _take_shortcuts(self):
        """Finds TensorFlow's inner entries for making a tensor and calling a function, 2-4 times as fast.

        Where a version lacks one of them, the public ones serve.
        """
        try:
            from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
            from tensorflow.python import pywrap_tfe
            from tensorflow.python.eager import context, core
            from tensorflow.python.framework import ops

            config = config_pb2.ConfigProto.FromString(context.context().function_call_options.config_proto_serialized)
            rewrites = config.graph_options.rewrite_options
            # These two compute something else: (x + 1e30) - 1e30 becomes x, and log(x + 1) log1p(x).
            rewrites.arithmetic_optimization = rewriter_config_pb2.RewriterConfig.OFF
            rewrites.constant_folding = rewriter_config_pb2.RewriterConfig.OFF
            attributes = ("executor_type", "", "config_proto", config.SerializeToString())
            engine = context.context()
            make = ops.EagerTensor
            failure, public_failure = core._NotOkStatusException, core._status_to_exception

            def prepare(concrete):
                name = concrete._inference_function.name
                name = name.decode("utf-8") if isinstance(name, bytes) else name
                count = len(concrete.outputs)
                device = self._device_name
                execute = pywrap_tfe.TFE_Py_Execute

                def call(arguments):
                    try:
                        return execute(engine._handle, device, name, arguments, attributes, count)
                    except failure as error:
                        raise public_failure(error) from None

                # The function lives as long as `concrete`.
                call.keep = concrete
                return call

            probe = np.arange(3, dtype=np.float32)
            with tf.init_scope():
                concrete = tf.function(lambda x: [x], autograph=False).get_concrete_function(
                    tf.TensorSpec((None,), tf.float32)
                )
                (got,) = prepare(concrete)([make(probe, self._device_name, None)])
            if not np.array_equal(np.asarray(got._numpy()), probe):
                raise ValueError("a shortcut gave a wrong value")
        except (ImportError, AttributeError, TypeError, ValueError):
            self._prepare = None
            self._make = self._make_publicly
        else:
            self._prepare = prepare
            self._make = make

    def _make_publicly(self, array, device, dtype):
        with tf.device(device):
            return tf.constant(array)

    def facts(self):
        return {
            "version": tf.__version__,
            "device": self._device,
            "devices": sorted(self._devices),
            "threads": self._threads(),
            "interpreter": "Python " + sys.version.split()[0],
            "denormals": self._denormals,
            "notes": self._notes,
        }

    def load(self, array):
        # Memory aligned to 64 bytes is shared, other memory copied.
        return self._make(np.asarray(array), self._device_name, None)

    def to_numpy(self, value):
        try:
            return np.asarray(value._numpy())
        except AttributeError:
            return np.asarray(value.numpy())

    def native(self, value, fresh):
        if fresh:
            return value
        with tf.init_scope(), tf.device(self._device_name):
            return tf.raw_ops.DeepCopy(x=value)

    def synchronize(self):
        if hasattr(tf.test.experimental, "sync_devices") and not self._on_cpu:
            tf.test.experimental.sync_devices()
        # Done at once unless the process asked for asynchronous eager execution.
        from tensorflow.python.eager import context

        context.async_wait()

    def profiler(self):
        return TensorFlowProfiler(self)

    def compile(self, program, constants):
        leaves = program.inputs + program.slots + program.draws
        embed = self._prepare is not None
        embedded = [embed and array.nbytes <= EMBEDDED_BYTES for array in constants]
        large = [array for array, small in zip(constants, embedded) if not small]
        specs = [tf.TensorSpec(shape, dtype) for dtype, shape in leaves]
        specs += [tf.TensorSpec(array.shape, array.dtype) for array in large]
        copied = self._copied(program)
        outputs, first = len(program.outputs), len(program.leaves)

        def body(*arguments):
            values, held = list(arguments[: len(leaves)]), list(arguments[len(leaves) :])
            for array, small in zip(constants, embedded):
                values.append(tf.constant(array) if small else held.pop(0))
            values = lower(program, values, SCOPED)
            results = [values[number] for number in program.results()]
            for position in copied:
                results[position] = tf.raw_ops.DeepCopy(x=results[position])
            return results

        with self._own_settings(), tf.init_scope(), tf.device(self._device_name):
            concrete = tf.function(body, autograph=False).get_concrete_function(*specs)
        kept = [self._make(np.array(array), self._device_name, None) for array in large]
        call = self._prepare(concrete) if self._prepare else _public_call(concrete)
        make, device = self._make, self._device_name

        def run(feeds, state, draws):
            arguments = [make(array, device, None) for array in feeds]
            arguments.extend(state)
            if draws:
                arguments.extend([make(array, device, None) for array in draws])
            if kept:
                arguments.extend(kept)
            try:
                results = call(arguments)
            except Exception as error:
                located = _located(program, error)
                if located is None:
                    raise
                raise located from error
            return results[:outputs], results[outputs:]

        run.fresh = [
            i for i in program.computed() if self._computes_afresh(program.instructions[program.outputs[i] - first])
        ]
        run.concrete = concrete
        if not program.results():

            def run(feeds, state, draws):
                return [], []

        return run

    def describe(self, program, run, names):
        concrete = getattr(run, "concrete", None)
        if concrete is None:
            return Backend.describe(self, program, run, names)
        definition = concrete.graph.as_graph_def()
        shapes = {tensor.op.name: tensor for op in concrete.graph.get_operations() for tensor in op.outputs[:1]}
        # Its arguments are the program's leaves, but for the constants that are part of it.
        given = {tensor.op.name: name for tensor, name in zip(concrete.inputs, names)}

        def lines(nodes, known):
            for node in nodes:
                if node.op in ("Placeholder", "NoOp"):
                    continue
                operands = [known.get(name.split(":")[0], name) for name in node.input]
                line = "%s = %s(%s)" % (node.name, node.op, ", ".join(operands))
                tensor = shapes.get(node.name) if known else None
                if tensor is not None:
                    dims = tensor.shape.as_list() if tensor.shape.rank is not None else ["?"]
                    line += " : " + type_of(tensor.dtype.name, dims)
                yield line

        found = list(lines(definition.node, given))
        ops = sum(node.op not in PASSIVE for node in definition.node)
        for function in definition.library.function:
            found.append("function %s:" % function.signature.name)
            found.extend("    " + line for line in lines(function.node_def, {}))
            ops += sum(node.op not in PASSIVE for node in function.node_def)
        return {"kind": "the graph of a tf.function (its concrete function)", "ops": ops, "text": "\n".join(found)}

    def _copied(self, program):
        """Positions of results that are kept and may be views of an argument's memory, soon overwritten."""
        if not self._on_cpu:
            return []
        first, copied = len(program.leaves), []
        for position, (_, number) in enumerate(program.updates, len(program.outputs)):
            if number < first or not self._computes_afresh(program.instructions[number - first]):
                copied.append(position)
        return copied

    def _computes_afresh(self, instruction):
        """Whether the result lies in memory of its own."""
        # Without the shortcuts, TensorFlow may have rewritten x * 1 as x.
        return instruction.op in FRESH and self._prepare is not None


def _public_call(concrete):
    def call(arguments):
        return list(concrete(*arguments))

    return call


def _located(program, error):
    """An InstructionError of the instruction that TensorFlow names in its message; None if it names none."""
    found = re.search(r"node (?:[^ }]*/)?k(\d+)/", str(error))
    if found is None or int(found.group(1)) >= len(program.instructions):
        return None
    return InstructionError(program.instructions[int(found.group(1))], error)
