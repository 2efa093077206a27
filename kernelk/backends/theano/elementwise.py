"""Theano's elementwise ops, each with numpy's edge values: part of its table of ops."""

import numpy as np

from ..base import registrar
from ..errors import CannotLower

# Set by `hand_over` when the first backend starts: op functions are only called after that.
T = None
op_classes = None
with_c = False

OPS = {}


def promising(table):
    """Like `registrar`, and holds the result to the promised dtype and to the promised dimensions of 1."""
    enter_into = registrar(table)

    def op(*names):
        def enter(function):
            def call(instruction, *values, **attrs):
                result = T.as_tensor_variable(function(instruction, *values, **attrs))
                if result.dtype != instruction.dtype or result.ndim != len(instruction.shape):
                    raise CannotLower(
                        "Theano gave %s of rank %d for %s of rank %d"
                        % (result.dtype, result.ndim, instruction.dtype, len(instruction.shape))
                    )
                ones = [axis for axis, n in enumerate(instruction.shape) if n == 1 and not result.broadcastable[axis]]
                return T.addbroadcast(result, *ones) if ones else result

            enter_into(*names)(call)
            return function

        return enter

    return op


op = promising(OPS)


def cast(x, dtype):
    if x.dtype == dtype:
        return x
    if dtype == "bool":
        return T.neq(widened(x), np.zeros((), widened(x).dtype))
    # Theano's own cast is compiled for all but float16; without C it calls Python for each element.
    if with_c and "float16" not in (x.dtype, dtype):
        return T.cast(x, dtype)
    return op_classes.NumpyOp("cast", (dtype,), dtype, tuple(x.broadcastable))(x)


def widened(x):
    """float16 as float32: Theano compiles no arithmetic on float16, and numpy's own goes through float32 too."""
    return cast(x, "float32") if x.dtype == "float16" else x


def elementwise(function):
    """Makes an op of a function; float16 results are rounded after each op, as in numpy."""

    def call(instruction, *values):
        return cast(function(*[widened(value) for value in values]), instruction.dtype)

    return call


def is_integer(x):
    return x.dtype.startswith(("int", "uint"))


def _power(x, y):
    known = isinstance(y, T.Constant) and np.all(y.data >= 0)
    if is_integer(x) and not known:
        # Of an Elemwise that only a slice is taken of, Theano computes no more, and refuses no exponent beside it.
        ndim = max(x.ndim, y.ndim)
        patterns = [(True,) * (ndim - value.ndim) + tuple(value.broadcastable) for value in (x, y)]
        both = tuple(bool(a and b) for a, b in zip(*patterns))
        return op_classes.NumpyOp("power", (), x.dtype, both)(x, y)
    return op_classes.power(x, y)


def _maximum(x, y):
    return op_classes.maximum(x, y) if is_integer(x) else T.maximum(x, y)


def _minimum(x, y):
    return op_classes.minimum(x, y) if is_integer(x) else T.minimum(x, y)


def _sign(x):
    return cast(T.neq(x, np.zeros((), x.dtype)), x.dtype) if x.dtype.startswith("uint") else T.sgn(x)


def _floor_divide(x, y):
    if with_c:
        return op_classes.floor_divide(x, y)
    if is_integer(x):
        if x.dtype.startswith("uint"):
            return op_classes.floor_divide(x, y)
        # numpy 1.19 gives 0 for the lowest integer over -1, which wraps everywhere else.
        minus_one, one = np.array(-1, x.dtype), np.array(1, x.dtype)
        return T.switch(T.eq(y, minus_one), -x, op_classes.floor_divide(x, T.switch(T.eq(y, minus_one), one, y)))
    # numpy 1.19 gives NaN for x // 0; numpy 1.20 and later, and so the definition, x / 0.
    return T.switch(T.eq(y, np.zeros((), y.dtype)), T.true_div(x, y), op_classes.floor_divide(x, y))


def _mod(x, y):
    if not with_c and x.dtype.startswith("int"):
        # numpy 1.19 ends the process at the lowest integer modulo -1; modulo 1 gives 0 as well.
        y = T.switch(T.eq(y, np.array(-1, y.dtype)), np.array(1, y.dtype), y)
    return op_classes.mod(x, y)


def _define_elementwise():
    for name, function in {
        "negative": lambda x: -x,
        "abs": lambda x: abs(x),
        "sign": _sign,
        "sqrt": lambda x: T.sqrt(x),
        "exp": lambda x: T.exp(x),
        "log": lambda x: T.log(x),
        "tanh": lambda x: T.tanh(x),
        "sin": lambda x: T.sin(x),
        "cos": lambda x: T.cos(x),
        "floor": lambda x: x if is_integer(x) else T.floor(x),
        "round": lambda x: x if is_integer(x) else op_classes.round_to_even(x),
        "logical_not": lambda x: T.invert(x),
        "add": lambda x, y: T.add(x, y),
        "subtract": lambda x, y: T.sub(x, y),
        "multiply": lambda x, y: T.mul(x, y),
        "divide": lambda x, y: T.true_div(x, y),
        "floor_divide": _floor_divide,
        "mod": _mod,
        "power": _power,
        "maximum": _maximum,
        "minimum": _minimum,
        "logical_and": lambda x, y: T.and_(x, y),
        "logical_or": lambda x, y: T.or_(x, y),
        "equal": lambda x, y: T.eq(x, y),
        "not_equal": lambda x, y: T.neq(x, y),
        "less": lambda x, y: T.lt(x, y),
        "less_equal": lambda x, y: T.le(x, y),
        "select": lambda condition, x, y: T.switch(condition, x, y),
        "relu": lambda x: T.maximum(x, np.zeros((), x.dtype)),
        "sigmoid": lambda x: _sigmoid(x),
        "log1p": lambda x: T.log1p(x),
        "expm1": lambda x: T.expm1(x),
    }.items():
        op(name)(elementwise(function))


def _sigmoid(x):
    # Theano's own is 0 and 1 too early, takes a Python call per element without C, and shares nothing with its slope.
    # exp of what is never positive can't overflow.
    one = np.ones((), x.dtype)
    small = T.exp(-abs(x))
    return T.switch(T.lt(x, np.zeros((), x.dtype)), small, one) / (one + small)


_define_elementwise()


@op("cast")
def _cast(instruction, x, dtype):
    return cast(x, dtype)


def length_of(value, axis):
    return T.constant(np.array(1, "int64")) if value.broadcastable[axis] else value.shape[axis]
