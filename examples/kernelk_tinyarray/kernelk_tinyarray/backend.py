"""The backend: one function for each primitive of `kernelk.backends.base`, and nothing else."""

import functools
import math
import operator
import sys

import numpy as np

from kernelk.backends.base import Backend, registrar
from kernelk.backends.lowering import python_slices, resolve_dims

from .tiny import Array, each, groups, places, rounder, spread, strides_of

OPS = {}
op = registrar(OPS)
NAN = math.nan


def is_float(dtype):
    return dtype.startswith("float")


# Elementwise ------------------------------------------------------------------------------------------------


def _or(function, otherwise):
    """A function of the standard library that gives what IEEE 754 says where Python raises an error."""

    def call(*values):
        try:
            return function(*values)
        except (ValueError, OverflowError, ZeroDivisionError):
            return otherwise(*values)

    return call


def _sign(x):
    return x if x != x else (x > 0) - (x < 0)


def _inverse(x, y):
    return NAN if x == 0 or x != x else math.copysign(math.inf, x) * math.copysign(1, y)


def _floor_divide(x, y):
    if y == 0:
        return _inverse(x, y) if isinstance(x, float) else 0
    return x // y


def _mod(x, y):
    if y == 0:
        return NAN if isinstance(x, float) else 0
    return x % y


def _power(x, y):
    if isinstance(x, int):
        if y < 0:
            raise ValueError("integers to negative integer powers are not allowed")
        return pow(x, y, 1 << 64) if x >= 0 else (-1) ** (y % 2) * pow(-x, y, 1 << 64)
    return _or(math.pow, _beyond)(x, y)


def _beyond(x, y):
    """x to the power y where `math.pow` refuses."""
    if x < 0 and y != math.floor(y):
        return NAN
    odd = y % 2 == 1
    return math.copysign(math.inf, x) if odd else math.inf


def _larger(x, y):
    return x if x != x or x > y else y


def _smaller(x, y):
    return x if x != x or x < y else y


def _round(x):
    return float(round(x)) if math.isfinite(x) else x


for _name, _function in {
    "negative": operator.neg,
    "abs": abs,
    "sign": _sign,
    "sqrt": _or(math.sqrt, lambda x: NAN),
    "exp": _or(math.exp, lambda x: math.inf),
    "log": _or(math.log, lambda x: -math.inf if x == 0 else NAN),
    "tanh": math.tanh,
    "sin": _or(math.sin, lambda x: NAN),
    "cos": _or(math.cos, lambda x: NAN),
    "floor": lambda x: float(math.floor(x)) if isinstance(x, float) and math.isfinite(x) else x,
    "round": lambda x: _round(x) if isinstance(x, float) else x,
    "logical_not": operator.not_,
    "add": operator.add,
    "subtract": operator.sub,
    "multiply": operator.mul,
    "divide": _or(operator.truediv, _inverse),
    "floor_divide": _floor_divide,
    "mod": _mod,
    "power": _power,
    "maximum": _larger,
    "minimum": _smaller,
    "logical_and": lambda x, y: x and y,
    "logical_or": lambda x, y: x or y,
    "equal": operator.eq,
    "not_equal": operator.ne,
    "less": operator.lt,
    "less_equal": operator.le,
    "select": lambda condition, x, y: x if condition else y,
}.items():
    # The instruction knows the result's dtype: bool for comparisons, the operands' for all others.
    OPS[_name] = lambda instruction, *values, function=_function: each(function, instruction.dtype, *values)


@op("cast")
def _cast(instruction, x, dtype):
    if is_float(dtype) or dtype == "bool" or not is_float(x.dtype):
        return each(lambda value: value, dtype, x)
    return each(lambda value: int(value) if math.isfinite(value) else 0, dtype, x)


# Reductions -------------------------------------------------------------------------------------------------


def _reduced(x, axes, keepdims, function):
    fit = rounder(x.dtype)
    shape = [1 if i in axes else n for i, n in enumerate(x.shape) if keepdims or i not in axes]
    return Array([fit(function(group)) for group in groups(x, axes)], shape, x.dtype)


for _name, _function in {
    "sum": sum,
    "prod": math.prod,
    "max": lambda group: functools.reduce(_larger, group),
    "min": lambda group: functools.reduce(_smaller, group),
}.items():
    OPS[_name] = lambda instruction, x, axes, keepdims, function=_function: _reduced(x, axes, keepdims, function)


def _first(better):
    def find(group):
        best = 0
        for i, value in enumerate(group):
            if group[best] == group[best] and (value != value or better(value, group[best])):
                best = i
        return best

    return find


@op("argmax")
def _argmax(instruction, x, axis):
    return Array([_first(operator.gt)(group) for group in groups(x, [axis])], _without(x, axis), "int64")


@op("argmin")
def _argmin(instruction, x, axis):
    return Array([_first(operator.lt)(group) for group in groups(x, [axis])], _without(x, axis), "int64")


def _without(x, axis):
    return x.shape[:axis] + x.shape[axis + 1 :]


def _running(function):
    def call(instruction, x, axis):
        fit = rounder(x.dtype)
        rows = [[fit(total) for total in _accumulated(function, group)] for group in groups(x, [axis])]
        moved = Array([value for row in rows for value in row], (*_without(x, axis), x.shape[axis]), x.dtype)
        order = list(range(len(x.shape) - 1))
        order.insert(axis, len(order))
        return _transposed(moved, order)

    return call


def _accumulated(function, group):
    totals = []
    for value in group:
        totals.append(function(totals[-1], value) if totals else value)
    return totals


OPS["cumsum"] = _running(operator.add)
OPS["cumprod"] = _running(operator.mul)


@op("size")
def _size(instruction, x, axes):
    return Array([rounder(instruction.dtype)(math.prod(x.shape[axis] for axis in axes))], (), instruction.dtype)


@op("shape")
def _shape(instruction, x):
    return Array(list(x.shape), (len(x.shape),), "int32")


# Arrangement ------------------------------------------------------------------------------------------------


def _length(value, axis):
    return value.shape[axis]


@op("reshape")
def _reshape(instruction, x, *references, dims):
    shape = resolve_dims(dims, (x, *references), _length)
    if -1 in shape:
        shape[shape.index(-1)] = len(x.items) // -math.prod(shape)
    return Array(x.items, shape, x.dtype)


@op("broadcast_to")
def _broadcast_to(instruction, x, *references, dims):
    return spread(x, resolve_dims(dims, (x, *references), _length))


def _transposed(x, permutation):
    strides = strides_of(x.shape)
    return x.take([x.shape[i] for i in permutation], [strides[i] for i in permutation])


@op("transpose")
def _transpose(instruction, x, permutation):
    return _transposed(x, permutation)


@op("concatenate")
def _concatenate(instruction, *values, axis):
    before = math.prod(values[0].shape[:axis])
    items = []
    for row in range(before):
        for x in values:
            size = math.prod(x.shape[axis:])
            items += x.items[row * size : (row + 1) * size]
    shape = list(values[0].shape)
    shape[axis] = sum(x.shape[axis] for x in values)
    return Array(items, shape, values[0].dtype)


def _cut(x, slices):
    """(shape, strides, start) of the slices."""
    chosen = [range(*entry.indices(n)) for entry, n in zip(slices, x.shape)]
    strides = strides_of(x.shape)
    start = sum(part.start * step for part, step in zip(chosen, strides))
    return [len(part) for part in chosen], [part.step * step for part, step in zip(chosen, strides)], start


@op("slice")
def _slice(instruction, x, slices):
    return x.take(*_cut(x, python_slices(slices)))


@op("unslice")
def _unslice(instruction, piece, like, slices):
    return _put(piece, like.shape, *_cut(like, python_slices(slices)))


def _put(piece, shape, part, strides, start):
    items = [rounder(piece.dtype)(0)] * math.prod(shape)
    for place, value in zip(places(part, strides, start), piece.items):
        items[place] = value
    return Array(items, shape, piece.dtype)


@op("unconcatenate")
def _unconcatenate(instruction, whole, *parts, axis, part):
    start = sum(x.shape[axis] for x in parts[:part])
    slices = [slice(None)] * len(whole.shape)
    slices[axis] = slice(start, start + parts[part].shape[axis])
    return whole.take(*_cut(whole, slices))


@op("pad")
def _pad(instruction, x, pads):
    shape = [before + n + after for n, (before, after) in zip(x.shape, pads)]
    strides = strides_of(shape)
    return _put(x, shape, x.shape, strides, sum(before * step for (before, _), step in zip(pads, strides)))


@op("one_hot")
def _one_hot(instruction, indices, depth):
    fit = rounder(instruction.dtype)
    items = [fit(number == i) for number in indices.items for i in range(depth)]
    return Array(items, (*indices.shape, depth), instruction.dtype)


@op("gather")
def _gather(instruction, x, indices):
    size = math.prod(x.shape[1:])
    missing = [NAN if is_float(x.dtype) else rounder(x.dtype)(0)] * size
    rows = [x.items[i * size : (i + 1) * size] if 0 <= i < x.shape[0] else missing for i in indices.items]
    return Array([value for row in rows for value in row], indices.shape + x.shape[1:], x.dtype)


@op("scatter_add")
def _scatter_add(instruction, values, indices, like):
    size, fit = math.prod(like.shape[1:]), rounder(values.dtype)
    items = [fit(0)] * len(like.items)
    for number, row in enumerate(indices.items):
        if 0 <= row < like.shape[0]:
            for i in range(size):
                items[row * size + i] += values.items[number * size + i]
    return Array([fit(value) for value in items], like.shape, values.dtype)


@op("matmul", "batch_matmul")
def _matmul(instruction, a, b, transpose_a, transpose_b):
    fit = rounder(a.dtype)
    rows = groups(a, [len(a.shape) - (2 if transpose_a else 1)])
    columns = groups(b, [len(b.shape) - (1 if transpose_b else 2)])
    m = a.shape[-1 if transpose_a else -2]
    n = b.shape[-2 if transpose_b else -1]
    items = []
    for batch in range(math.prod(a.shape[:-2])):
        for row in rows[batch * m : (batch + 1) * m]:
            for column in columns[batch * n : (batch + 1) * n]:
                items.append(fit(sum(x * y for x, y in zip(row, column))))
    return Array(items, (*a.shape[:-2], m, n), a.dtype)


def tiny_of(array):
    """An ndarray as an array of the engine's."""
    return Array(array.ravel().tolist(), array.shape, array.dtype.name)


def array_of(x):
    """Converts an array of the engine's back to an ndarray."""
    return np.array(x.items, dtype=x.dtype).reshape(x.shape)


# The engine -------------------------------------------------------------------------------------------------


class TinyBackend(Backend):
    """Lists of Python numbers; `compile` is the one that every backend has: op by op at each run."""

    name = "tinyarray"
    ops = OPS

    def facts(self):
        return {
            "version": "0.1.0",
            "device": "cpu",
            "devices": ["cpu"],
            "threads": 1,
            "interpreter": "Python " + sys.version.split()[0],
        }

    def load(self, array):
        return tiny_of(array)

    def to_numpy(self, value):
        return array_of(value)
