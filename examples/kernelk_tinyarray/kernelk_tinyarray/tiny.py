"""The engine itself: arrays as flat lists of Python numbers, with a shape and a dtype; it knows nothing of kernelk."""

import ctypes
import math
import struct

BITS = {"int8": 8, "int16": 16, "int32": 32, "int64": 64, "uint8": 8, "uint16": 16, "uint32": 32, "uint64": 64}


def rounder(dtype):
    """The function that brings a Python number to a dtype: floats are rounded, integers wrap."""
    if dtype == "bool":
        return bool
    if dtype == "float64":
        return float
    if dtype == "float32":
        return lambda value: ctypes.c_float(value).value
    if dtype == "float16":
        return _half
    size = 1 << BITS[dtype]
    if dtype.startswith("u"):
        return lambda value: value % size
    return lambda value: (value + size // 2) % size - size // 2


def _half(value):
    try:
        return struct.unpack("e", struct.pack("e", float(value)))[0]
    except OverflowError:
        return math.copysign(math.inf, value)


class Array:
    """`items` in the order in which the last axis runs fastest."""

    __slots__ = ("dtype", "items", "shape")

    def __init__(self, items, shape, dtype):
        self.items = items
        self.shape = tuple(shape)
        self.dtype = dtype

    def take(self, shape, strides, start=0):
        """The items at `start` + sums of strides, as an array of this shape: what all arrangement comes down to."""
        return Array([self.items[i] for i in places(shape, strides, start)], shape, self.dtype)


def places(shape, strides, start=0):
    """The positions of the items of an array whose axes have these strides."""
    found = [start]
    for length, stride in zip(shape, strides):
        found = [place + i * stride for place in found for i in range(length)]
    return found


def strides_of(shape):
    """The distance between neighbours along each axis."""
    strides, step = [], 1
    for length in reversed(shape):
        strides.append(step)
        step *= length
    return strides[::-1]


def spread(x, shape):
    """`x` repeated along new axes and those where it has length 1."""
    if x.shape == tuple(shape):
        return x
    strides = [0 if n == 1 else step for n, step in zip(x.shape, strides_of(x.shape))]
    return x.take(shape, [0] * (len(shape) - len(strides)) + strides)


def common(*shapes):
    """The shape to which all of these are spread."""
    rank = max(map(len, shapes))
    columns = zip(*[(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes])
    return tuple(next((n for n in column if n != 1), 1) for column in columns)


def each(function, dtype, *arrays):
    """A function of numbers, applied to each place of arrays that are spread to one shape."""
    shape, fit = common(*[x.shape for x in arrays]), rounder(dtype)
    return Array([fit(function(*row)) for row in zip(*[spread(x, shape).items for x in arrays])], shape, dtype)


def groups(x, axes):
    """The items along `axes`, one list for each place of the others."""
    strides = strides_of(x.shape)
    kept = [i for i in range(len(x.shape)) if i not in axes]
    starts = places([x.shape[i] for i in kept], [strides[i] for i in kept])
    inside = places([x.shape[i] for i in axes], [strides[i] for i in axes])
    return [[x.items[start + i] for i in inside] for start in starts]
