"""Convolutions and pooling for Theano: part of its table of ops.

With a C compiler they are window_classes.py's; without one, and where that has no code, numpy's definitions. Theano's
own convolutions want channels first and take 150 times as long without a compiler, and its own pooling gives a
window's gradient to all of several equal elements.
"""

import numpy as np

from ..base import window_ops
from ..lowering import resolve_dims
from .elementwise import length, promising

# Set by `hand_over` when the first backend starts: op functions are only called after that.
T = None
op_classes = None
# None without a compiler
window_classes = None

OPS = {}
op = promising(OPS)


def _frozen(value):
    """Lists as tuples: an op's attributes have to be hashable."""
    return tuple(_frozen(entry) for entry in value) if isinstance(value, (list, tuple)) else value


def _by_windows(name, instruction, values, attrs):
    ones = tuple(n == 1 for n in instruction.shape)
    attrs = tuple(_frozen(value) for value in attrs)
    has_code = window_classes is not None and window_classes.has_code(name, attrs, instruction.dtype)
    kind = window_classes.WindowOp if has_code else op_classes.NumpyOp
    return kind(name, attrs, instruction.dtype, ones)(*values)


def _vector(lengths):
    return T.stack([T.constant(np.array(n, "int64")) if isinstance(n, int) else n for n in lengths])


@op(*window_ops("conv"))
def conv(instruction, x, kernel, strides, pads, dilation):
    attrs = strides, pads, dilation, "depthwise" in instruction.op
    return _by_windows("conv", instruction, [x, kernel], attrs)


@op(*window_ops("conv_input"))
def conv_input(instruction, g, kernel, *references, **attrs):
    lengths = _vector(resolve_dims(attrs["dims"], (g, kernel) + references, length))
    attrs = attrs["strides"], attrs["pads"], attrs["dilation"], "depthwise" in instruction.op
    return _by_windows("conv_input", instruction, [g, kernel, lengths], attrs)


@op(*window_ops("conv_kernel"))
def conv_kernel(instruction, x, g, size, strides, pads, dilation):
    attrs = size, strides, pads, dilation, "depthwise" in instruction.op
    return _by_windows("conv_kernel", instruction, [x, g], attrs)


@op("max_pool", "avg_pool")
def pool(instruction, x, window, strides, pads):
    return _by_windows(instruction.op, instruction, [x], (window, strides, pads))


@op("max_pool_grad", "max_pool_pick")
def placed(instruction, x, other, window, strides, pads):
    return _by_windows(instruction.op, instruction, [x, other], (window, strides, pads))


@op("avg_pool_grad")
def avg_pool_grad(instruction, g, like, window, strides, pads):
    # Of `like` the lengths alone, so that it isn't computed for nothing.
    lengths = _vector([length(like, axis) for axis in range(1, like.ndim - 1)])
    return _by_windows("avg_pool_grad", instruction, [g, lengths], (window, strides, pads))
