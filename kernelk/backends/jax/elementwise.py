"""XLA's elementwise ops, each with numpy's edge values: part of JAX's table of ops."""

import numpy as np

from ..base import registrar
from ..errors import CannotLower

# Set by `hand_over` when the first backend starts: op functions are only called after that.
lax = None

OPS = {}
op = registrar(OPS)

FLOATS = ("float16", "float32", "float64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")


def broadcast_to(x, shape):
    """`x` broadcast as numpy does it; lax itself broadcasts nothing."""
    own = np.shape(x)
    if own == shape:
        return x
    return lax.broadcast_in_dim(x, shape, range(len(shape) - len(own), len(shape)))


def broadcast(*values):
    shape = np.broadcast(*[np.empty(np.shape(x), "V0") for x in values]).shape
    return [broadcast_to(x, shape) for x in values]


def typed(value, x):
    return np.asarray(value, x.dtype)


def where(condition, x, y):
    return lax.select(*broadcast(condition, x, y))


def compare(name, x, y):
    """The comparison `name` of lax, broadcast."""
    return getattr(lax, name)(*broadcast(x, y))


def widened(x):
    """float16 as float32, where it would be rounded at each step."""
    return lax.convert_element_type(x, np.float32) if x.dtype == np.float16 else x


def widened_all(*values):
    return [widened(x) for x in values]


def factors(instruction, *values):
    """The factors of a product as they are multiplied: float16 as float32, and as the precision has float32."""
    if not instruction.rounded:
        return widened_all(*values)
    # XLA takes no reduction of the precision out again, as it may a conversion there and back.
    return [lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7) for x in values]


def truth(x):
    return x if x.dtype == np.bool_ else compare("ne", x, typed(0, x))


def _unary(name):
    def call(instruction, x):
        return getattr(lax, name)(x)

    return call


def _binary(name, boolean=None):
    def call(instruction, x, y):
        chosen = boolean if boolean and instruction.input_dtypes[0] == "bool" else name
        return getattr(lax, chosen)(*broadcast(x, y))

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
    return lax.bitwise_not(truth(x))


@op("abs")
def _abs(instruction, x):
    return x if instruction.dtype in UNSIGNED or instruction.dtype == "bool" else lax.abs(x)


@op("sign")
def _sign(instruction, x):
    # XLA keeps the sign of a zero.
    return where(compare("eq", x, typed(0, x)), typed(0, x), lax.sign(x))


@op("exp")
def _exp(instruction, x):
    if x.dtype == np.float16:
        return lax.convert_element_type(lax.exp(widened(x)), x.dtype)
    # XLA gives 0 for every power that is less than the least normal number. There these sums are exact.
    start, shift = (-87, 64) if x.dtype == np.float32 else (-708, 512)
    small = compare("lt", x, typed(start, x))
    power = lax.exp(where(small, lax.add(*broadcast(x, typed(shift, x))), x))
    return where(small, lax.mul(*broadcast(power, typed(np.exp(-float(shift)), x))), power)


@op("log")
def _log(instruction, x):
    if x.dtype == np.float16:
        return lax.convert_element_type(lax.log(widened(x)), x.dtype)
    # XLA takes every denormal number for the least normal one.
    least = np.finfo(x.dtype).tiny
    small = lax.bitwise_and(compare("lt", x, typed(least, x)), compare("gt", x, typed(0, x)))
    power = 2.0 ** np.finfo(x.dtype).nmant
    raised = lax.log(where(small, lax.mul(*broadcast(x, typed(power, x))), x))
    return where(small, lax.sub(*broadcast(raised, typed(np.log(power), x))), raised)


@op("floor")
def _floor(instruction, x):
    return lax.floor(x) if instruction.dtype in FLOATS else x


@op("round")
def _round(instruction, x):
    return lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN) if instruction.dtype in FLOATS else x


@op("select")
def _select(instruction, condition, x, y):
    return where(condition, x, y)


# numpy's words.
NEGATIVE_POWER = "Integers to negative integer powers are not allowed."


@op("power")
def _power(instruction, x, y):
    x, y = broadcast(x, y)
    if instruction.dtype in FLOATS:
        return lax.convert_element_type(lax.pow(*widened_all(x, y)), x.dtype)
    if instruction.dtype == "bool":
        raise CannotLower("booleans can't be raised to a power")
    # Squares of the base by the bits of the exponent, wrapping as numpy's do.
    power, one = lax.full_like(x, 1), typed(1, y)
    for bit in range(np.dtype(instruction.dtype).itemsize * 8):
        if bit:
            x, y = lax.mul(x, x), lax.shift_right_logical(*broadcast(y, one))
        power = where(compare("ne", lax.bitwise_and(*broadcast(y, one)), typed(0, y)), lax.mul(power, x), power)
    return power


def _float_divmod(x, y):
    """numpy's floor_divide and remainder of floats, which differ from floor(x / y) by more than rounding."""
    zero, one = typed(0, x), typed(1, x)
    minus_zero = typed(-0.0, x)
    remainder, quotient = lax.rem(x, y), lax.div(x, y)
    inexact, negative = compare("ne", remainder, zero), compare("lt", y, zero)
    opposite = lax.bitwise_and(inexact, lax.ne(negative, compare("lt", remainder, zero)))
    whole = lax.div(lax.sub(x, remainder), y)
    whole = where(opposite, lax.sub(*broadcast(whole, one)), whole)
    floor = lax.floor(whole)
    # whole is an integer but for rounding.
    over = compare("gt", lax.sub(whole, floor), typed(0.5, x))
    floor = where(over, lax.add(*broadcast(floor, one)), floor)
    # A quotient of 0 has its own sign; one below 1 gives a 0 of the same sign.
    signed_zero = where(compare("eq", quotient, zero), quotient, zero)
    signed_zero = where(compare("lt", quotient, zero), minus_zero, signed_zero)
    floor = where(compare("ne", whole, zero), floor, signed_zero)
    floor = where(compare("eq", y, zero), quotient, floor)
    modulus = where(opposite, lax.add(remainder, y), remainder)
    modulus = where(inexact, modulus, where(negative, minus_zero, zero))
    return floor, modulus


@op("floor_divide", "mod")
def _floor_divide(instruction, x, y):
    wanted = 0 if instruction.op == "floor_divide" else 1
    x, y = broadcast(x, y)
    if instruction.dtype in FLOATS:
        return lax.convert_element_type(_float_divmod(*widened_all(x, y))[wanted], x.dtype)
    if instruction.dtype == "bool":
        raise CannotLower("booleans can't be divided")
    zero = typed(0, y)
    by_zero = compare("eq", y, zero)
    divisor = where(by_zero, typed(1, y), y)
    quotient, remainder = lax.div(x, divisor), lax.rem(x, divisor)
    if instruction.dtype not in UNSIGNED:
        # They are rounded to 0 and have the dividend's sign; XLA defines the least integer by -1 as it wraps.
        signs = lax.ne(compare("lt", remainder, zero), compare("lt", divisor, zero))
        down = lax.bitwise_and(compare("ne", remainder, zero), signs)
        quotient = where(down, lax.sub(*broadcast(quotient, typed(1, y))), quotient)
        remainder = where(down, lax.add(remainder, divisor), remainder)
    return where(by_zero, zero, quotient if wanted == 0 else remainder)


@op("cast")
def _cast(instruction, x, dtype):
    if dtype == "bool":
        return truth(x)
    if x.dtype == np.float64 and dtype == "float16":
        # XLA rounds to float32, and again. Rounding to odd in between (towards 0, then the last bit set if
        # anything is lost) leaves the second rounding its choice.
        single = lax.convert_element_type(x, np.float32)
        back = lax.convert_element_type(single, np.float64)
        bits = lax.bitcast_convert_type(single, np.int32)
        away, lost = compare("gt", lax.abs(back), lax.abs(x)), compare("ne", back, x)
        bits = lax.sub(bits, lax.convert_element_type(away, np.int32))
        bits = lax.bitwise_or(bits, lax.convert_element_type(lost, np.int32))
        x = lax.bitcast_convert_type(bits, np.float32)
    return lax.convert_element_type(x, dtype)


@op("saturating_cast")
def _saturating_cast(instruction, x, dtype):
    # XLA's conversion of a float to an integer is defined just so.
    return lax.convert_element_type(x, dtype)


@op("sigmoid")
def _sigmoid(instruction, x):
    return lax.convert_element_type(lax.logistic(widened(x)), x.dtype)


@op("sigmoid_slope")
def _sigmoid_slope(instruction, x, y):
    # sigmoid(-x) is 1 - y without its rounding.
    return lax.convert_element_type(lax.mul(*widened_all(y, lax.logistic(lax.neg(widened(x))))), x.dtype)


@op("log1p")
def _log1p(instruction, x):
    if x.dtype != np.float64:
        return lax.convert_element_type(lax.log1p(widened(x)), x.dtype)
    # XLA's log1p of float64 loses seven bits from -0.414 to -0.35; there 1 + x loses none that matter.
    below = compare("lt", x, lax.full_like(x, -0.3))
    return lax.select(below, lax.log(lax.add(x, lax.full_like(x, 1))), lax.log1p(x))


@op("expm1")
def _expm1(instruction, x):
    return lax.convert_element_type(lax.expm1(widened(x)), x.dtype)


@op("relu")
def _relu(instruction, x):
    return lax.max(*broadcast(x, typed(0, x)))


@op("elu")
def _elu(instruction, x):
    wide = widened(x)
    below = lax.min(wide, lax.full_like(wide, 0))
    if x.dtype == np.float64:
        return where(compare("ge", x, typed(0, x)), x, lax.expm1(below))
    # exp(x) - 1 by way of tanh(x / 2): XLA's expm1 takes longer, and is no nearer.
    half = lax.tanh(lax.mul(below, lax.full_like(below, 0.5)))
    power = lax.div(lax.add(half, half), lax.sub(lax.full_like(half, 1), half))
    # Where x / 2 might be flushed to 0, the result is x.
    return where(compare("ge", x, typed(-1e-20, x)), x, lax.convert_element_type(power, x.dtype))


@op("softplus")
def _softplus(instruction, x):
    wide = widened(x)
    small = lax.exp(lax.neg(lax.abs(wide)))
    near = _log1p_by_atanh(small) if wide.dtype == np.float32 else lax.log1p(small)
    return lax.convert_element_type(lax.add(lax.max(wide, lax.full_like(wide, 0)), near), x.dtype)


def _log1p_by_atanh(x):
    # 2 atanh(x / (2 + x)) by its series, to float32's digits for x from 0 to 1; XLA's log and log1p take longer.
    part = lax.div(x, lax.add(lax.mul(x, lax.full_like(x, 0.5)), lax.full_like(x, 1)))
    square = lax.mul(part, part)
    series = lax.full_like(x, 0)
    for power in range(14, 1, -2):
        series = lax.mul(square, lax.add(series, lax.full_like(x, 0.5**power / (power + 1))))
    return lax.add(part, lax.mul(part, series))
