"""CNTK's elementwise ops, each with the guards that make its edge values numpy's: part of its table of ops."""

import numpy as np

from ..base import registrar
from .known import FLOATS
from .nodes import Val, result

OPS = {}
op = registrar(OPS)

# log(x) is clamped below 1e-37 and 1/x overflows for denormals: what is above these needs no guard.
SMALLEST_LOG = 1e-36
SMALLEST_DIVISOR = 1.2e-38
# exp(x) - 1 is -1 from here on down, in float64 as well.
LEAST_ELU = -40.0
# Rows of fewer elements than this are short, results of more are large.
SHORT_ROW = 64
LARGE = 4096


def _repeated(b, value, shape):
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
            values = [_repeated(b, _without_ones(b, value), instruction.shape) for value in values]
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
    if x.known.low >= 0 and not x.known.minus_zero:
        return Val(x.node, x.dtype, x.real, instruction.shape)
    # CNTK's own relu makes NaN of -inf, and is slower.
    return result(instruction, _bounded(b, x, 0.0, True), [x])


@op("softplus")
def _softplus(b, instruction, x):
    # log of the rounded 1 + e, and what the rounding took: nearly as near as CNTK's own, in less time.
    engine, one = b.engine, b.constant(1.0, x.dtype)
    size, above = x.node, x.node
    if x.known.low < 0:
        size, above = engine.abs(x.node), _bounded(b, x, 0.0, True)
    small = engine.exp(engine.negate(size))
    total = engine.plus(one, small)
    # Its quotient by the total would be nearer by less than half an ulp.
    lost = engine.minus(small, engine.minus(total, one))
    return result(instruction, engine.plus(above, engine.plus(engine.log(total), lost)), [x])


@op("elu")
def _elu(b, instruction, x):
    if x.known.low >= 0:
        return Val(x.node, x.dtype, x.real, instruction.shape)
    # exp(x) - 1, for which CNTK has nothing: its own elu subtracts 1 from the rounded exp(x). That difference, in the
    # proportion of x to the logarithm of what was rounded, is right.
    engine, one = b.engine, b.constant(1.0, x.dtype)
    # Further down the difference is -1, and the logarithm wouldn't be x again. The positive ones, for which a select
    # is needed anyway, aren't bounded: a bound takes long where some are above it and some below.
    bounded = _bounded(b, x, LEAST_ELU, True)
    power = engine.exp(bounded)
    ratio = engine.element_divide(bounded, engine.log(power))
    below = engine.element_times(engine.minus(power, one), ratio)
    above = engine.less_equal(one, power)
    return result(instruction, engine.element_select(above, x.node, below), [x])


def log1p_of(b, node, dtype):
    """log(1 + x) of a node above -1, as asinh(x (1 + 1 / (1 + x)) / 2), which loses no digits anywhere."""
    engine, half = b.engine, b.constant(0.5, dtype)
    share = engine.element_times(half, engine.reciprocal(engine.plus(node, b.constant(1.0, dtype))))
    return engine.asinh(engine.element_times(node, engine.plus(half, share)))


@op("log1p")
def _log1p(b, instruction, x):
    engine, node = b.engine, log1p_of(b, x.node, x.dtype)
    if x.known.low < 0:
        least = b.constant(-1.0, x.dtype)
        outside = engine.element_select(
            engine.equal(x.node, least), b.constant(-np.inf, x.dtype), b.constant(np.nan, x.dtype)
        )
        node = engine.element_select(engine.greater(x.node, least), node, outside)
    return result(instruction, node, [x])


@op("expm1")
def _expm1(b, instruction, x):
    # 2 exp(x / 2) sinh(x / 2), which loses no digits anywhere. Far below, that is 0 times infinity; near it, rounding
    # would go below -1.
    engine, bounded = b.engine, x.node
    if x.known.low < LEAST_ELU:
        bounded = _bounded(b, x, LEAST_ELU, True)
    half = engine.element_times(bounded, b.constant(0.5, x.dtype))
    power = engine.exp(half)
    node = engine.element_times(engine.plus(power, power), engine.sinh(half))
    if x.known.low < 0:
        node = engine.clip(node, b.constant(-1.0, x.dtype), b.constant(np.inf, x.dtype))
    return result(instruction, node, [x])


@op("sigmoid_slope")
def _sigmoid_slope(b, instruction, x, y):
    rest = b.engine.sigmoid(b.engine.negate(x.node))
    return result(instruction, b.engine.element_times(y.node, rest), [x, y])


@op("tanh_slope")
def _tanh_slope(b, instruction, x):
    # The square of 1 / cosh(x), in this order: the square of a large cosh would overflow. By exp it would be an ulp
    # nearer, at twice the nodes.
    part = b.engine.reciprocal(b.engine.cosh(x.node))
    return result(instruction, b.engine.element_times(part, part), [x])


@op("select")
def _select(b, instruction, condition, x, y):
    condition = b.typed(condition, x.dtype)
    node = b.engine.element_select(condition.node, x.node, y.node)
    return result(instruction, node, [x, y, condition])


@op("cast")
def _cast(b, instruction, x, dtype):
    source = instruction.input_dtypes[0]
    if dtype == "bool" and source != "bool":
        return result(instruction, b.engine.not_equal(x.node, b.constant(0, x.dtype)), [x])
    if dtype in FLOATS:
        x = b.typed(x, dtype)
    # Booleans and small integers are whole floats already.
    return Val(x.node, x.dtype, x.real, instruction.shape)
