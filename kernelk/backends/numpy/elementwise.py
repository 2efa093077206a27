"""numpy's elementwise ops, the definition of all others' meaning: part of the table of ops."""

import functools

import numpy as np

from ..base import registrar

OPS = {}
op = registrar(OPS)


def widened(x):
    """float16 sums lose everything below 1/2048 of the running total, so they are accumulated in float32."""
    return x.astype(np.float32) if x.dtype == np.float16 else x


def exact(function):
    """A function of floats that gives float16 as float64 has it, rounded once; numpy's own goes by way of float32."""

    def call(instruction, *values):
        if instruction.dtype != "float16":
            return function(*values)
        return function(*[np.asarray(x).astype(np.float64) for x in values]).astype(np.float16)

    return call


# Typed numbers: numpy before 2 makes float64 of a float32 scalar and a plain one.
def _one(x):
    return np.ones((), x.dtype)


def _logistic(x):
    small = np.exp(-np.abs(x))
    return np.where(np.less(x, 0), small, _one(x)) / (_one(x) + small)


def _slope_of_logistic(x):
    small = np.exp(-np.abs(x))
    total = _one(x) + small
    return small / (total * total)


def _softsign(x):
    return x / (_one(x) + np.abs(x))


def _elu(x):
    zero = np.zeros((), x.dtype)
    return np.where(np.less_equal(zero, x), x, np.expm1(np.minimum(x, zero)))


def _softplus(x):
    return np.maximum(x, np.zeros((), x.dtype)) + np.log1p(np.exp(-np.abs(x)))


for _name, _function in {
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "sigmoid": _logistic,
    "elu": _elu,
    "softsign": _softsign,
    "softplus": _softplus,
    "sigmoid_slope": lambda x, y: _slope_of_logistic(x),
    "tanh_slope": lambda x: x.dtype.type(4) * _slope_of_logistic(x.dtype.type(2) * x),
}.items():
    OPS[_name] = exact(_function)


def _elementwise(function):
    def call(instruction, *values):
        return function(*values)

    return call


# numpy's own functions, each of which rounds the exact result, or picks an operand.
UFUNCS = {
    "negative": np.negative,
    "abs": np.abs,
    "logical_not": np.logical_not,
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "sign": np.sign,
}
for _name, _function in dict(UFUNCS, select=np.where).items():
    OPS[_name] = _elementwise(_function)


@op("power")
def _power(instruction, x, y):
    powers = np.power(x, y)
    if np.asarray(powers).dtype.kind != "f":
        return powers
    # numpy gives NaN for -inf to a power that isn't whole, where C and the engines have infinity, or 0.
    unknown = np.logical_and(np.equal(x, -np.inf), np.logical_and(np.isnan(powers), np.equal(y, y)))
    limits = np.where(np.less(y, 0), np.zeros((), powers.dtype), np.full((), np.inf, powers.dtype))
    return np.where(unknown, limits, powers)


def _but_minus_one(y):
    """A divisor with 1 for -1: numpy before 1.20 ends the process, or gives 0, at the least integer by -1."""
    return np.where(np.equal(y, -1), np.ones((), np.asarray(y).dtype), y)


@op("mod")
def _mod(instruction, x, y):
    return np.mod(x, _but_minus_one(y) if np.asarray(x).dtype.kind == "i" else y)


@op("floor_divide")
def _floor_divide(instruction, x, y):
    kind = np.asarray(x).dtype.kind
    if kind == "i":
        return np.where(np.equal(y, -1), np.negative(x), np.floor_divide(x, _but_minus_one(y)))
    quotient = np.floor_divide(x, y)
    if kind != "f":
        return quotient
    # numpy before 1.20 gives NaN for x // 0; the definition may not depend on the interpreter that runs it.
    return np.where(np.equal(y, 0), np.divide(x, y), quotient)


@op("cast")
def _cast(instruction, x, dtype):
    return np.asarray(x).astype(dtype)


@functools.lru_cache(maxsize=None)
def integer_bounds(source, dtype):
    """The least and the largest float of `source` (float32, float64) that the integer `dtype` holds; its upper end."""
    limits = np.iinfo(dtype)
    low, high = np.array([limits.min, limits.max], source)
    # The end is 2^n - 1, which a float may round to 2^n.
    high = high if int(high) <= limits.max else np.nextafter(high, low)
    return low, high, np.dtype(dtype).type(limits.max)


@op("saturating_cast")
def _saturating_cast(instruction, x, dtype):
    x = widened(np.asarray(x))
    low, high, end = integer_bounds(x.dtype, dtype)
    # What C, and so numpy, makes of a float out of range differs between processors, and within an array.
    inside = np.minimum(np.maximum(np.where(np.isnan(x), x.dtype.type(0), x), low), high)
    return np.where(x > high, end, inside.astype(dtype))


@op("floor")
def _floor(instruction, x):
    return np.floor(x) if instruction.dtype.startswith("float") else x


@op("round")
def _round(instruction, x):
    return np.rint(x) if instruction.dtype.startswith("float") else x
