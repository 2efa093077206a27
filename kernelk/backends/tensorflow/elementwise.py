"""TensorFlow's elementwise ops, each with numpy's edge values: part of its table of ops."""

import numpy as np

from ..base import registrar
from ..errors import CannotLower

# Set by `hand_over` when the first backend starts: op functions are only called after that.
tf = None

OPS = {}
op = registrar(OPS)

FLOATS = ("float16", "float32", "float64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")


def typed(value, x):
    return tf.constant(value, dtype=x.dtype)


def widened(x):
    """float16 as float32, where it would be rounded at each step."""
    return tf.cast(x, tf.float32) if x.dtype == tf.float16 else x


def widened_all(*values):
    return [widened(x) for x in values]


def where(condition, x, y):
    return tf.raw_ops.SelectV2(condition=condition, t=x, e=y)


def signed(x):
    """Unsigned integers as signed ones that wrap alike; others as they are."""
    if x.dtype == tf.uint64:
        return tf.bitcast(x, tf.int64)
    wider = {tf.uint8: tf.int32, tf.uint16: tf.int32, tf.uint32: tf.int64}.get(x.dtype)
    return x if wider is None else tf.cast(x, wider)


def unsigned_again(x, dtype):
    if dtype == "uint64":
        return tf.bitcast(x, tf.uint64)
    return tf.cast(x, dtype)


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
        return tf.raw_ops.Sub(x=typed(0, x), y=x)
    return tf.raw_ops.Neg(x=x)


@op("abs")
def _abs(instruction, x):
    if instruction.dtype in UNSIGNED or instruction.dtype == "bool":
        return x
    return tf.raw_ops.Abs(x=x)


@op("sign")
def _sign(instruction, x):
    if instruction.dtype in UNSIGNED:
        return tf.cast(tf.raw_ops.NotEqual(x=x, y=typed(0, x)), x.dtype)
    return tf.raw_ops.Sign(x=x)


@op("floor", "round")
def _whole(instruction, x):
    if instruction.dtype not in FLOATS:
        return x
    # Round takes the even neighbour of a half; Rint would too, but lacks float16.
    return tf.raw_ops.Floor(x=x) if instruction.op == "floor" else tf.raw_ops.Round(x=x)


@op("select")
def _select(instruction, condition, x, y):
    shapes = instruction.input_shapes
    if instruction.dtype in FLOATS and shapes[1:] == (instruction.shape, ()) and _is_zero(y):
        # TensorFlow takes three times as long to spread a scalar. MulNoNan keeps to 0 whatever meets a 0.
        return tf.raw_ops.MulNoNan(x=x, y=tf.cast(condition, x.dtype))
    return where(condition, x, y)


def _is_zero(x):
    """Whether a scalar is a constant +0."""
    value = tf.get_static_value(x)
    return value is not None and value == 0 and not np.signbit(value)


@op("power")
def _power(instruction, x, y):
    wide, exponent = signed(x), signed(y)
    if instruction.dtype != "uint64":
        return unsigned_again(tf.raw_ops.Pow(x=wide, y=exponent), instruction.dtype)
    # As int64, exponents from 2**63 on are negative. Modulo 2**64 that power is 1 of odd numbers, and 0 of even ones.
    power = tf.raw_ops.Pow(x=wide, y=tf.bitwise.bitwise_and(exponent, typed(2**63 - 1, exponent)))
    even = tf.equal(tf.bitwise.bitwise_and(wide, typed(1, wide)), typed(0, wide))
    return unsigned_again(where(tf.logical_and(tf.less(exponent, 0), even), typed(0, wide), power), "uint64")


def _float_divmod(x, y):
    """numpy's floor_divide and remainder of floats, which differ from floor(x / y) by more than rounding."""
    zero, one = typed(0, x), typed(1, x)
    minus_zero = typed(-0.0, x)
    remainder = tf.raw_ops.TruncateMod(x=x, y=y)
    quotient = tf.raw_ops.RealDiv(x=x, y=y)
    by_zero = tf.raw_ops.Equal(x=y, y=zero)
    inexact = tf.raw_ops.NotEqual(x=remainder, y=zero)
    negative = tf.raw_ops.Less(x=y, y=zero)
    opposite = tf.logical_and(inexact, tf.not_equal(negative, tf.less(remainder, zero)))
    whole = tf.raw_ops.RealDiv(x=tf.raw_ops.Sub(x=x, y=remainder), y=y)
    whole = where(opposite, whole - one, whole)
    floor = tf.raw_ops.Floor(x=whole)
    # whole is an integer but for rounding.
    floor = where(tf.greater(whole - floor, typed(0.5, x)), floor + one, floor)
    # A quotient of 0 has its own sign; one below 1 gives a 0 of the same sign.
    signed_zero = where(tf.equal(quotient, zero), quotient, zero)
    signed_zero = where(tf.less(quotient, zero), minus_zero, signed_zero)
    floor = where(tf.not_equal(whole, zero), floor, signed_zero)
    floor = where(by_zero, quotient, floor)
    modulus = where(opposite, remainder + y, remainder)
    modulus = where(inexact, modulus, where(negative, minus_zero, zero))
    return floor, modulus


@op("floor_divide", "mod")
def _floor_divide(instruction, x, y):
    quotient = instruction.op == "floor_divide"
    if instruction.dtype in FLOATS:
        result = _float_divmod(*widened_all(x, y))[0 if quotient else 1]
        return tf.cast(result, x.dtype)
    if instruction.dtype == "bool":
        raise CannotLower("booleans can't be divided")
    # TensorFlow refuses to divide an integer by 0, wherever in the array it is.
    zero = tf.raw_ops.Equal(x=y, y=typed(0, y))
    divisor = where(zero, typed(1, y), y)
    if quotient:
        return where(zero, typed(0, x), tf.raw_ops.FloorDiv(x=x, y=divisor))
    return tf.raw_ops.FloorMod(x=x, y=divisor)


@op("cast")
def cast(instruction, x, dtype):
    if dtype == "bool":
        return x if x.dtype == tf.bool else tf.raw_ops.NotEqual(x=x, y=typed(0, x))
    return _half(x) if x.dtype == tf.float64 and dtype == "float16" else tf.cast(x, dtype)


def _half(x):
    """float64 to float16, which TensorFlow rounds twice: to float32 first, whose last bit here marks what was lost."""
    single = tf.cast(x, tf.float32)
    back = tf.cast(single, tf.float64)
    even = tf.equal(tf.bitwise.bitwise_and(tf.bitcast(single, tf.int32), 1), 0)
    towards = where(tf.less(back, x), tf.constant(np.inf, tf.float32), tf.constant(-np.inf, tf.float32))
    odd = tf.raw_ops.NextAfter(x1=single, x2=tf.broadcast_to(towards, tf.shape(single)))
    return tf.cast(where(tf.logical_and(tf.not_equal(back, x), even), odd, single), tf.float16)


@op("sigmoid")
def _sigmoid(instruction, x):
    return tf.raw_ops.Sigmoid(x=x)


@op("log1p")
def _log1p(instruction, x):
    return tf.cast(tf.raw_ops.Log1p(x=widened(x)), x.dtype)


@op("expm1")
def _expm1(instruction, x):
    return tf.cast(tf.raw_ops.Expm1(x=widened(x)), x.dtype)


@op("elu")
def _elu(instruction, x):
    wide = widened(x)
    zero = typed(0, wide)
    below = tf.raw_ops.Minimum(x=wide, y=zero)
    if x.dtype == tf.float64:
        return where(tf.raw_ops.GreaterEqual(x=wide, y=zero), wide, tf.raw_ops.Expm1(x=below))
    # exp(x) - 1 by way of tanh(x / 2) is faster than TensorFlow's Expm1, and nearer. In float64 it isn't nearer. With
    # t = tanh(x / 2), which is never positive, 2 t / (1 - t) is twice its softsign.
    power = 2 * tf.raw_ops.Softsign(features=tf.raw_ops.Tanh(x=0.5 * below))
    # Where x / 2 might be flushed to 0, the result is x. A select would take longer than both extremes.
    power = tf.raw_ops.Minimum(x=power, y=tf.raw_ops.Maximum(x=wide, y=typed(-1e-20, wide)))
    # exp(x) - 1 is never less than x.
    return tf.cast(tf.raw_ops.Maximum(x=wide, y=power), x.dtype)


@op("softplus_grad")
def _softplus_grad(instruction, g, x):
    wide_g, wide_x = widened_all(g, x)
    return tf.cast(tf.raw_ops.SoftplusGrad(gradients=wide_g, features=wide_x), x.dtype)


# TensorFlow's SigmoidGrad and TanhGrad take y alone, of which 1 - y has lost its digits where y is near 1.
@op("sigmoid_slope")
def _sigmoid_slope(instruction, x, y):
    wide, y = widened_all(x, y)
    # The slope of softplus at -x is sigmoid(-x), which is 1 - y.
    return tf.cast(tf.raw_ops.SoftplusGrad(gradients=y, features=-wide), x.dtype)


@op("tanh_slope")
def _tanh_slope(instruction, x):
    # The slope of softsign at e is 1 / (1 + e)^2.
    wide = widened(x)
    small = tf.raw_ops.Exp(x=-2 * tf.raw_ops.Abs(x=wide))
    return tf.cast(4 * tf.raw_ops.SoftsignGrad(gradients=small, features=small), x.dtype)


@op("relu")
def _relu(instruction, x):
    return tf.raw_ops.Relu(features=x)
