"""The JAX backend: in the island, beside the numpy one; a program is one function that XLA compiles ahead of time."""

import os
import sys
import weakref
from contextlib import ExitStack, contextmanager, suppress

import numpy as np

from ..base import Backend, registrar
from ..choosing import FLUSHES, SHARED_THREADS, chosen_device, positive_threads, settled_threads
from ..errors import CannotLower
from ..lowering import lower, python_slices, static_dims
from ..segments import compile_in_segments
from . import windows
from .denormals import keep_denormals
from .profiler import JaxProfiler

# The engine's modules, set when the first JaxBackend is made: op functions are only called after that.
jax = None
lax = None

OPS = {}
op = registrar(OPS)

FLOATS = ("float16", "float32", "float64")
# Sums and products of the other are computed in float32, and rounded.
WIDE_FLOATS = ("float32", "float64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")

# XLA's time for a chain of 8,000 instructions and its gradient is minutes, that of pieces of this size seconds.
MOST_INSTRUCTIONS = 1000

# Constants up to this many bytes are part of the compiled program; larger ones are arguments, held once.
EMBEDDED_BYTES = 1024

# What XLA does by default, but the definition doesn't: flush denormals, let NaN lose a maximum, leave out the
# rounding of float16 between two ops, and rewrite algebraically. "algsimp" makes x of (x + 1e30) - 1e30, 1 of
# exp(x) * exp(-x) where either overflows, and x * inf of a division by a small constant. YNNPACK's maximum
# leaves NaN out; its matrix products are sound.
STRICT = {
    "xla_allow_excess_precision": False,
    "xla_cpu_enable_fast_math": False,
    "xla_cpu_enable_fast_min_max": False,
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT",
    "xla_cpu_ftz": False,
    "xla_disable_hlo_passes": "algsimp",
    "xla_gpu_enable_fast_min_max": False,
    "xla_gpu_ftz": False,
}


# Elementwise ----------------------------------------------------------------------------------------------


def _spread(x, shape):
    """`x` broadcast as numpy does it; lax itself broadcasts nothing."""
    own = np.shape(x)
    if own == shape:
        return x
    return lax.broadcast_in_dim(x, shape, range(len(shape) - len(own), len(shape)))


def _together(*values):
    shape = np.broadcast(*[np.empty(np.shape(x), "V0") for x in values]).shape
    return [_spread(x, shape) for x in values]


def _like(value, x):
    return np.asarray(value, x.dtype)


def _where(condition, x, y):
    return lax.select(*_together(condition, x, y))


def _is(name, x, y):
    """The comparison `name` of lax, broadcast."""
    return getattr(lax, name)(*_together(x, y))


def _unary(name):
    def call(instruction, x):
        return getattr(lax, name)(x)

    return call


def _binary(name, boolean=None):
    def call(instruction, x, y):
        chosen = boolean if boolean and instruction.input_dtypes[0] == "bool" else name
        return getattr(lax, chosen)(*_together(x, y))

    return call


for _name, _function in {"negative": "neg", "sqrt": "sqrt", "tanh": "tanh", "sin": "sin"}.items():
    OPS[_name] = _unary(_function)
OPS["cos"] = _unary("cos")

for _name, _functions in {
    "add": ("add", "bitwise_or"),
    "subtract": ("sub",),
    "multiply": ("mul", "bitwise_and"),
    "divide": ("div",),
    "maximum": ("max", "bitwise_or"),
    "minimum": ("min", "bitwise_and"),
    "logical_and": ("bitwise_and",),
    "logical_or": ("bitwise_or",),
    "equal": ("eq",),
    "not_equal": ("ne",),
    "less": ("lt",),
    "less_equal": ("le",),
}.items():
    OPS[_name] = _binary(*_functions)


@op("logical_not")
def _logical_not(instruction, x):
    return lax.bitwise_not(_truth(x))


def _truth(x):
    return x if x.dtype == np.bool_ else _is("ne", x, _like(0, x))


@op("abs")
def _abs(instruction, x):
    return x if instruction.dtype in UNSIGNED or instruction.dtype == "bool" else lax.abs(x)


@op("sign")
def _sign(instruction, x):
    # XLA keeps the sign of a zero.
    return _where(_is("eq", x, _like(0, x)), _like(0, x), lax.sign(x))


@op("exp")
def _exp(instruction, x):
    if x.dtype == np.float16:
        return lax.convert_element_type(lax.exp(_widened(x)), x.dtype)
    # XLA gives 0 for every power that is less than the least normal number. There these sums are exact.
    start, shift = (-87, 64) if x.dtype == np.float32 else (-708, 512)
    small = _is("lt", x, _like(start, x))
    power = lax.exp(_where(small, lax.add(*_together(x, _like(shift, x))), x))
    return _where(small, lax.mul(*_together(power, _like(np.exp(-float(shift)), x))), power)


@op("log")
def _log(instruction, x):
    if x.dtype == np.float16:
        return lax.convert_element_type(lax.log(_widened(x)), x.dtype)
    # XLA takes every denormal number for the least normal one.
    least = np.finfo(x.dtype).tiny
    small = lax.bitwise_and(_is("lt", x, _like(least, x)), _is("gt", x, _like(0, x)))
    power = 2.0 ** np.finfo(x.dtype).nmant
    raised = lax.log(_where(small, lax.mul(*_together(x, _like(power, x))), x))
    return _where(small, lax.sub(*_together(raised, _like(np.log(power), x))), raised)


@op("floor")
def _floor(instruction, x):
    return lax.floor(x) if instruction.dtype in FLOATS else x


@op("round")
def _round(instruction, x):
    return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN) if instruction.dtype in FLOATS else x


@op("select")
def _select(instruction, condition, x, y):
    return _where(condition, x, y)


@op("power")
def _power(instruction, x, y):
    x, y = _together(x, y)
    if instruction.dtype in FLOATS:
        return lax.convert_element_type(lax.pow(*_widened_all(x, y)), x.dtype)
    if instruction.dtype == "bool":
        raise CannotLower("booleans can't be raised to a power")
    # Squares of the base by the bits of the exponent, wrapping as numpy's do.
    power, one = lax.full_like(x, 1), _like(1, y)
    for bit in range(np.dtype(instruction.dtype).itemsize * 8):
        if bit:
            x, y = lax.mul(x, x), lax.shift_right_logical(*_together(y, one))
        power = _where(_is("ne", lax.bitwise_and(*_together(y, one)), _like(0, y)), lax.mul(power, x), power)
    return power


def _float_divmod(x, y):
    """numpy's floor_divide and remainder of floats, which differ from floor(x / y) by more than rounding."""
    zero, one = _like(0, x), _like(1, x)
    minus_zero = _like(-0.0, x)
    remainder, quotient = lax.rem(x, y), lax.div(x, y)
    inexact, negative = _is("ne", remainder, zero), _is("lt", y, zero)
    opposite = lax.bitwise_and(inexact, lax.ne(negative, _is("lt", remainder, zero)))
    whole = lax.div(lax.sub(x, remainder), y)
    whole = _where(opposite, lax.sub(*_together(whole, one)), whole)
    floor = lax.floor(whole)
    # whole is an integer but for rounding.
    over = _is("gt", lax.sub(whole, floor), _like(0.5, x))
    floor = _where(over, lax.add(*_together(floor, one)), floor)
    # A quotient of 0 has its own sign; one below 1 gives a 0 of the same sign.
    signed_zero = _where(_is("eq", quotient, zero), quotient, zero)
    signed_zero = _where(_is("lt", quotient, zero), minus_zero, signed_zero)
    floor = _where(_is("ne", whole, zero), floor, signed_zero)
    floor = _where(_is("eq", y, zero), quotient, floor)
    modulus = _where(opposite, lax.add(remainder, y), remainder)
    modulus = _where(inexact, modulus, _where(negative, minus_zero, zero))
    return floor, modulus


@op("floor_divide", "mod")
def _floor_divide(instruction, x, y):
    wanted = 0 if instruction.op == "floor_divide" else 1
    x, y = _together(x, y)
    if instruction.dtype in FLOATS:
        return lax.convert_element_type(_float_divmod(*_widened_all(x, y))[wanted], x.dtype)
    if instruction.dtype == "bool":
        raise CannotLower("booleans can't be divided")
    zero = _like(0, y)
    by_zero = _is("eq", y, zero)
    divisor = _where(by_zero, _like(1, y), y)
    quotient, remainder = lax.div(x, divisor), lax.rem(x, divisor)
    if instruction.dtype not in UNSIGNED:
        # They are rounded to 0 and have the dividend's sign; XLA defines the least integer by -1 as it wraps.
        signs = lax.ne(_is("lt", remainder, zero), _is("lt", divisor, zero))
        down = lax.bitwise_and(_is("ne", remainder, zero), signs)
        quotient = _where(down, lax.sub(*_together(quotient, _like(1, y))), quotient)
        remainder = _where(down, lax.add(remainder, divisor), remainder)
    return _where(by_zero, zero, quotient if wanted == 0 else remainder)


@op("cast")
def _cast(instruction, x, dtype):
    if dtype == "bool":
        return _truth(x)
    if x.dtype == np.float64 and dtype == "float16":
        # XLA rounds to float32, and again. Rounding to odd in between (towards 0, then the last bit set if
        # anything is lost) leaves the second rounding its choice.
        single = lax.convert_element_type(x, np.float32)
        back = lax.convert_element_type(single, np.float64)
        bits = lax.bitcast_convert_type(single, np.int32)
        away, lost = _is("gt", lax.abs(back), lax.abs(x)), _is("ne", back, x)
        bits = lax.sub(bits, lax.convert_element_type(away, np.int32))
        bits = lax.bitwise_or(bits, lax.convert_element_type(lost, np.int32))
        x = lax.bitcast_convert_type(bits, np.float32)
    return lax.convert_element_type(x, dtype)


# Reductions -----------------------------------------------------------------------------------------------


def _widened(x):
    """float16 as float32, where it would be rounded at each step."""
    return lax.convert_element_type(x, np.float32) if x.dtype == np.float16 else x


def _widened_all(*values):
    return [_widened(x) for x in values]


def _reduce(function, x, axes, keepdims):
    result = function(x, tuple(axes))
    if keepdims:
        return lax.reshape(result, [1 if axis in axes else n for axis, n in enumerate(x.shape)])
    return result


def _total(instruction, x, axes, keepdims):
    name, boolean = {"sum": ("reduce_sum", "reduce_or"), "prod": ("reduce_prod", "reduce_and")}[instruction.op]
    function = getattr(lax, boolean if instruction.dtype == "bool" else name)
    return lax.convert_element_type(_reduce(function, _widened(x), axes, keepdims), x.dtype)


OPS["sum"] = OPS["prod"] = _total


def _not_of_nothing(instruction, x, axes):
    if not all(x.shape[axis] for axis in axes):
        # XLA would answer with -inf or 0 where numpy refuses.
        raise ValueError("the %s of no elements is not defined" % instruction.op)


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
        return _truth(getattr(lax, boolean)(lax.convert_element_type(x, np.int8), axis))
    return lax.convert_element_type(getattr(lax, name)(_widened(x), axis), x.dtype)


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
    return _spread(x, tuple(static_dims(instruction, attrs["dims"])))


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
    x = lax.slice(x, first, [place + 1 for place in last], step)
    return lax.rev(x, [axis for axis, turned in enumerate(backward) if turned]) if any(backward) else x


@op("unslice")
def _unslice(instruction, piece, like, slices):
    ranges = list(_ranges(slices, like.shape))
    if None in ranges:
        return lax.full(like.shape, 0, piece.dtype)
    backward = [axis for axis, entry in enumerate(ranges) if entry[3]]
    piece = lax.rev(piece, backward) if backward else piece
    pads = [(first, n - last - 1, step - 1) for (first, last, step, _), n in zip(ranges, like.shape)]
    return lax.pad(piece, _like(0, piece), pads)


@op("pad")
def _pad(instruction, x, pads):
    return lax.pad(x, _like(0, x), [(before, after, 0) for before, after in pads])


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
    wide = lax.convert_element_type(values, np.int32) if boolean else _widened(values)
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
    return _truth(total) if boolean else lax.convert_element_type(total, instruction.dtype)


@op("matmul", "batch_matmul")
def _matmul(instruction, a, b, transpose_a, transpose_b):
    boolean = instruction.dtype == "bool"
    if boolean:
        a, b = lax.convert_element_type(a, np.int32), lax.convert_element_type(b, np.int32)
    a, b = _widened_all(a, b)
    lead = tuple(range(len(a.shape) - 2))
    contracted = (len(lead) + (0 if transpose_a else 1),), (len(lead) + (1 if transpose_b else 0),)
    product = lax.dot_general(a, b, (contracted, (lead, lead)))
    return _truth(product) if boolean else lax.convert_element_type(product, instruction.dtype)


# Composites that are better in one piece -------------------------------------------------------------------


@op("mean")
def _mean(instruction, x, axes, keepdims):
    wide = _widened(x) if instruction.dtype in FLOATS else lax.convert_element_type(x, np.float64)
    count = np.prod([x.shape[axis] for axis in axes], dtype=np.float64)
    total = _reduce(lax.reduce_sum, wide, axes, keepdims)
    return lax.convert_element_type(lax.div(*_together(total, _like(count, wide))), x.dtype)


@op("softmax")
def _softmax(instruction, x, axis):
    wide = _widened(x)
    _not_of_nothing(instruction, x, [axis] if wide.size else [])
    powers = lax.exp(lax.sub(*_together(wide, _reduce(lax.reduce_max, wide, [axis], True))))
    total = _reduce(lax.reduce_sum, powers, [axis], True)
    return lax.convert_element_type(lax.div(*_together(powers, total)), x.dtype)


@op("sigmoid")
def _sigmoid(instruction, x):
    return lax.convert_element_type(lax.logistic(_widened(x)), x.dtype)


@op("relu")
def _relu(instruction, x):
    return lax.max(*_together(x, _like(0, x)))


windows.enter(op)


# What XLA may not see through ------------------------------------------------------------------------------

# The processor multiplies and adds in one instruction that doesn't round the product: LLVM uses it wherever a
# product reaches a sum, and no option prevents that. x * y - z is then not 0 where z is x * y, nor NaN where both
# are infinite.
SUMS = ("add", "subtract", "cumsum", "mod", "floor_divide", "softmax")
MOVES = ("negative", "select", "reshape", "broadcast_to", "transpose", "concatenate", "unconcatenate", "slice")
MOVES += ("unslice", "pad", "gather")


def _products_in_sums(program):
    """Numbers of values that are products of floats, and get into a sum with nothing computed between."""
    found, added = set(), set()
    first = len(program.leaves)
    for instruction in reversed(program.instructions):
        number = first + instruction.index
        if instruction.op in SUMS or (instruction.op in MOVES and number in added):
            added.update(instruction.inputs)
        elif instruction.op in ("multiply", "power") and number in added and instruction.dtype in WIDE_FLOATS:
            found.add(number)
    return found


def _opaque(x, zero):
    """`x` as XLA can't know it: its bits exclusive-or `zero`, an int32 argument that is always 0."""
    integer = {2: np.int16, 4: np.int32, 8: np.int64}[x.dtype.itemsize]
    mask = lax.broadcast(lax.convert_element_type(zero, integer), x.shape)
    return lax.bitcast_convert_type(lax.bitwise_xor(lax.bitcast_convert_type(x, integer), mask), x.dtype)


# The backend ----------------------------------------------------------------------------------------------


@contextmanager
def _environment(values):
    """These environment variables inside; afterwards as before."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class JaxBackend(Backend):
    """JAX: native values are its arrays, a program is one executable for the shapes at hand.

    An option of its own: "denormals", "keep" or "flush" (what JAX does by default). Without it they are kept if
    that can be had, and facts() tells which it is. The precision of matrix products on a GPU is left as JAX's
    user has it. Wide dtypes are enabled where kernelk's arrays and programs are made, and nowhere else.
    """

    name = "jax"
    ops = OPS
    specialises = "all"

    def __init__(self, options):
        global jax, lax
        Backend.__init__(self, options)
        denormals = options.get("denormals")
        if denormals not in (None, "keep", "flush"):
            raise ValueError("denormals=%r is unknown: allowed are 'keep' and 'flush'" % (denormals,))
        threads = positive_threads(options)
        import jax
        from jax import lax

        windows.jax, windows.lax = jax, lax
        started = _started()
        self._in_kernel = bool(options.get("in_kernel"))
        if denormals != "flush" and not started and not self._in_kernel:
            keep_denormals(options.get("scratch"))
        if not started and not self._in_kernel and "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
            # A run waits for its results at once: to have another thread compute them costs a small one a third more.
            # A version without the setting does without.
            with suppress(AttributeError):
                jax.config.update("jax_cpu_enable_async_dispatch", False)
        settings = {}
        if "XLA_PYTHON_CLIENT_PREALLOCATE" not in os.environ and not self._in_kernel:
            # Without it a process takes most of a GPU's memory, and other engines' workers get none.
            settings["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
        if threads:
            # What XLA takes for the number of processors.
            settings["NPROC"] = str(int(threads))
        self._notes = []
        if threads and self._in_kernel and not started:
            self._notes.append(SHARED_THREADS % ("JAX", int(threads), "JAX"))
        self.load, self.to_numpy = self._alone(self.load), self._alone(self.to_numpy)
        with _environment(settings):
            self._devices = _devices()
        self._threads = _pool()
        if threads and started and self._threads not in (None, int(threads)):
            # It has started already, and takes no other number in this process.
            raise settled_threads("JAX", self.name, self._threads, threads)
        default = list(self._devices)[0]
        self._device = chosen_device("JAX", self.name, options, sorted(self._devices), default)
        self._place = self._devices[self._device]
        self._sharding = jax.sharding.SingleDeviceSharding(self._place)
        self._compiled = weakref.WeakValueDictionary()
        self._options = dict(STRICT)
        with self._own_settings():
            self._take_shortcuts()
            self._zero = self._make(np.asarray(0, np.int32))
            self._half, self._probe = self._first_executable(), self._make(np.full(3, 1e-40, np.float32))
            kept = self.to_numpy(self._half(self._probe)[0])[0] > 0
        self._denormals = "keep" if kept else "flush"
        if self._in_kernel and not kept and denormals is None:
            self._notes.append(FLUSHES % "JAX")
        if denormals == "keep" and not kept:
            if self._in_kernel:
                raise ValueError(FLUSHES % "JAX" + ": leave the option 'denormals' out, or take a worker")
            raise ValueError(
                "JAX flushes denormals here, as it started earlier or can't be kept from it:"
                " restart the process, or leave the option 'denormals' out"
            )

    def _take_shortcuts(self):
        """Finds JAX's inner entries for making and reading an array, 5-50 times as fast.

        Where a version lacks one of them, the public ones serve.
        """
        self._make, self._block = self._make_publicly, jax.block_until_ready
        try:
            from jax._src.lib import _jax

            put, avals, sharding, places = _jax.batched_device_put, {}, self._sharding, [self._place]
            shaped, block = jax.core.ShapedArray, _jax.batched_block_until_ready
            # The last argument keeps 64 bits, whatever the process has chosen.
            rest = True, False, _jax.HostBufferSemantics.ZERO_COPY, True

            def make(array):
                kind = array.dtype, array.shape
                aval = avals.get(kind)
                if aval is None:
                    if len(avals) > 10000:
                        avals.clear()
                    with jax.enable_x64(True):
                        aval = avals[kind] = shaped(array.shape, array.dtype)
                return put(aval, sharding, [array], places, *rest)

            for probe in (np.arange(3, dtype=np.float64), np.array(2**40 + 1)):
                made = make(probe)
                block([made])
                if made.dtype != probe.dtype or not np.array_equal(np.asarray(made), probe):
                    raise ValueError("a shortcut gave a wrong value")
        except (ImportError, AttributeError, TypeError, ValueError):
            pass
        else:
            self._make, self._block = make, block

    def _make_publicly(self, array):
        with jax.enable_x64(True):
            return jax.device_put(array, self._place)

    def _first_executable(self):
        """A program that halves three float32; on the way the options that this version doesn't have are dropped."""
        while True:
            try:
                return self._executable(lambda x: [lax.mul(x, np.full(3, 0.5, np.float32))], [("float32", (3,))])
            except Exception as error:
                unknown = [name for name in self._options if name in str(error)]
                if not unknown:
                    raise
                for name in unknown:
                    del self._options[name]

    def _executable(self, body, leaves):
        """The list-valued `body` compiled for arguments of these dtypes and shapes."""
        with jax.enable_x64(True), self._own_settings():
            specs = [jax.ShapeDtypeStruct(shape, dtype, sharding=self._sharding) for dtype, shape in leaves]

            def program(*arguments):
                return body(*arguments)

            return jax.jit(program).lower(*specs).compile(compiler_options=self._options)

    def _own_settings(self):
        """A context without those of the user's settings by which a program fails, or isn't compiled."""
        stack = ExitStack()
        stack.enter_context(jax.disable_jit(False))
        if self._in_kernel:
            stack.enter_context(jax.debug_nans(False))
            stack.enter_context(jax.debug_infs(False))
            stack.enter_context(jax.numpy_dtype_promotion("standard"))
            stack.enter_context(jax.transfer_guard("allow"))
        return stack

    def _alone(self, function):
        """`function` without the user's settings, which is quick where there are none."""
        disturbing, own_settings = self._disturbing, self._own_settings

        def call(*arguments):
            if not disturbing():
                return function(*arguments)
            with own_settings():
                return function(*arguments)

        return call

    def _disturbing(self):
        """Whether the user has a setting by which a compiled program would fail at its call."""
        config = jax.config
        return config.jax_disable_jit or (
            self._in_kernel
            and (
                config.jax_debug_nans
                or config.jax_debug_infs
                or config.jax_transfer_guard_host_to_device not in (None, "allow")
                or config.jax_transfer_guard_device_to_host not in (None, "allow")
            )
        )

    def facts(self):
        return {
            "version": jax.__version__,
            "device": self._device,
            "devices": sorted(self._devices),
            "threads": self._threads,
            "interpreter": "Python " + sys.version.split()[0],
            "denormals": self._denormals,
            "notes": self._notes,
        }

    def load(self, array):
        # Memory aligned to 64 bytes is shared, other memory copied.
        value = self._make(np.asarray(array))
        value.block_until_ready()
        return value

    def to_numpy(self, value):
        return np.asarray(value)

    def native(self, value, fresh):
        # Its arrays can't be written to; but one that is held here would be gone if the user donated it.
        return value if fresh else self.load(np.array(value))

    def synchronize(self):
        # Work on one device is done in order, and run() waits for its own.
        self._alone(self._half)(self._probe)[0].block_until_ready()

    def profiler(self):
        return JaxProfiler(self)

    def describe(self, program, run, names):
        if not hasattr(run, "traced"):
            return Backend.describe(self, program, run, names)
        body, specs, arguments, compiled = run.traced
        with jax.enable_x64(True), self._own_settings():
            jaxpr = jax.make_jaxpr(body)(*[jax.ShapeDtypeStruct(shape, dtype) for dtype, shape in specs])
        given = [names[number] for number in arguments] + ["a zero that XLA can't see"] * (len(specs) - len(arguments))
        lines = ["its arguments a, b, c, ... are: " + ", ".join(given), str(jaxpr)]
        optimised = compiled.as_text()
        entry = optimised[optimised.rfind("\nENTRY ") :].split("\n}")[0].strip().splitlines()
        steps = [line.strip() for line in entry[1:] if " parameter(" not in line and " tuple(" not in line]
        lines += ["", "XLA makes of it (its optimised module's entry, %d steps):" % len(steps)]
        lines += [line.split(", metadata=")[0] for line in steps]
        kind = "the jaxpr, and the %d steps that XLA makes of it" % len(steps)
        return {"kind": kind, "ops": _equations(jaxpr.jaxpr), "text": "\n".join(lines)}

    def compile_anew(self):
        self._compiled = weakref.WeakValueDictionary()

    def compile(self, program, constants):
        if len(program.instructions) > MOST_INSTRUCTIONS:
            return compile_in_segments(self._compile, program, constants, MOST_INSTRUCTIONS)
        return self._compile(program, constants)

    def _compile(self, program, constants):
        leaves, first = program.leaves, len(program.leaves)
        results = program.results()
        if not results:
            return lambda feeds, state, draws: ([], [])
        used = set(results).union(*[instruction.inputs for instruction in program.instructions])
        known = first - len(constants)
        embedded = {
            number: array
            for number, array in enumerate(constants, known)
            if array.nbytes <= EMBEDDED_BYTES and number in used
        }
        arguments = [number for number in range(first) if number in used and number not in embedded]
        floats = any(array.dtype.kind == "f" and array.size for array in embedded.values())
        opaque = floats or _has_products_in_sums(program)
        specs = [leaves[number] for number in arguments] + ([("int32", ())] if opaque else [])

        def body(*given):
            values = [None] * first
            for number, value in zip(arguments, given):
                values[number] = value
            zero = given[-1] if opaque else None
            for number, array in embedded.items():
                # Of a constant that it sees, a pass that has no name makes x of x + 0, whose -0.0 is another.
                floating = array.dtype.kind == "f" and array.size
                values[number] = _opaque(array, zero) if floating else array

            values = _lowered(program, values, embedded, zero)
            return [lax.convert_element_type(values[number], program.values[number][0]) for number in results]

        # Whether a value is fed or held makes no difference to XLA, and that takes most of a compilation's time.
        key = repr((leaves[:known], specs, results, [(n, leaves[n], a.tobytes()) for n, a in embedded.items()]))
        key += repr([(i.op, i.inputs, i.attrs, i.dtype, i.shape) for i in program.instructions])
        compiled = self._compiled.get(key)
        if compiled is None:
            compiled = self._compiled[key] = self._executable(body, specs)
        make, block = self._make, self._block
        kept = {number: self.load(np.array(constants[number - known])) for number in arguments if number >= known}
        feeds_end = len(program.inputs)
        slots_end = feeds_end + len(program.slots)
        fed = [number for number in arguments if number < feeds_end]
        held = [number - feeds_end for number in arguments if feeds_end <= number < slots_end]
        drawn = [number - slots_end for number in arguments if slots_end <= number < known]
        tail = [kept[number] for number in arguments if number >= known] + ([self._zero] if opaque else [])
        outputs = len(program.outputs)

        def run(feeds, state, draws):
            values = [make(feeds[number]) for number in fed]
            values += [state[slot] for slot in held]
            if drawn:
                values += [make(draws[number]) for number in drawn]
            if tail:
                values += tail
            found = compiled(*values)
            # The feeds' memory is read until then, and soon overwritten.
            block(found)
            return found[:outputs], found[outputs:]

        run = self._alone(run)
        run.fresh = program.computed()
        run.traced = body, specs, arguments, compiled
        return run


def _equations(jaxpr):
    """How many ops a jaxpr has, those of its loops' bodies included."""
    count = 0
    for equation in jaxpr.eqns:
        inner = [x for x in equation.params.values() if hasattr(x, "jaxpr") or hasattr(x, "eqns")]
        count += sum(_equations(getattr(x, "jaxpr", x)) for x in inner) if inner else 1
    return count


def _lowered(program, values, embedded, zero):
    """JAX's values of a program, or a body: `embedded` are the small constants among its leaves by number."""
    first = len(program.leaves)
    guarded = _products_in_sums(program)
    ops = _ops_for(program, embedded)

    def scan(instruction, *operands, **attrs):
        inner = {place: embedded[number] for place, number in enumerate(instruction.inputs) if number in embedded}
        return _scanned(instruction, operands, lambda body, leaves: _lowered(body, leaves, inner, zero))

    def protected(instruction, *operands, **attrs):
        value = ops[instruction.op](instruction, *operands, **attrs)
        return _opaque(value, zero) if first + instruction.index in guarded else value

    table = dict.fromkeys(ops, protected) if guarded else dict(ops)
    return lower(program, values, dict(table, scan=scan))


def _scanned(instruction, operands, lowered):
    """A scan's values; `lowered(body, leaves)` are the body's."""
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
        values = lowered(body, leaves)
        found = promised([values[number] for number in results], results)
        return found[:count], found[count:]

    states = promised(operands[n : n + count], range(n, n + count))
    elements = list(operands[:n]) + list(operands[inputs:drawn])
    states, stacked = lax.scan(step, states, elements, reverse=attrs["reverse"])
    return list(states) + list(stacked)


@op("scan")
def _scan(instruction, *operands, **attrs):
    return _scanned(instruction, operands, lambda body, leaves: lower(body, leaves, OPS))


@op("item")
def _item(instruction, values, index):
    return values[index]


def _has_products_in_sums(program):
    return bool(_products_in_sums(program)) or any(
        _has_products_in_sums(i.attrs["body"]) for i in program.instructions if i.op == "scan"
    )


def _ops_for(program, embedded):
    """OPS, where powers whose exponent is the constant 2 are products: numpy takes them so, too."""
    squares = set()
    for instruction in program.instructions:
        if instruction.op == "power" and instruction.dtype in FLOATS:
            exponent = embedded.get(instruction.inputs[1])
            if exponent is not None and exponent.size == 1 and exponent.reshape(-1)[0] == 2:
                squares.add(instruction.index)
    if not squares:
        return OPS

    def power(instruction, x, y):
        if instruction.index in squares:
            x, y = _together(x, y)
            return lax.mul(x, x)
        return _power(instruction, x, y)

    return dict(OPS, power=power)


def _started():
    """Whether JAX has started its engine in this process: then threads and denormals are settled."""
    try:
        from jax._src import xla_bridge

        return bool(xla_bridge.backends_are_initialized())
    except (ImportError, AttributeError):
        return False


def _devices():
    """JAX's devices in this process by name, such as cpu:0; those that it prefers come first."""
    found = list(jax.local_devices())
    # JAX_PLATFORMS may leave the processor out.
    with suppress(RuntimeError):
        found += jax.local_devices(backend="cpu")
    names = {}
    for device in found:
        names.setdefault(str(device).lower(), device)
    return names


def _pool():
    """How many threads XLA has for one computation on the processor; None where the system doesn't tell."""
    count = 0
    try:
        for task in os.listdir("/proc/self/task"):
            with open("/proc/self/task/%s/comm" % task) as name:
                count += "Eigen" in name.read()
    except OSError:
        pass
    if count:
        return count
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
