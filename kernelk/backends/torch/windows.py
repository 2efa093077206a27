"""PyTorch's kernels for convolutions and pooling: part of its table of makers (see ops.py).

Channels come last in kernelk's arrays: seen by PyTorch, which wants them second, that is its "channels last" memory.
"""

import numpy as np

from ..base import registrar, window_ops
from ..lowering import resolve_dims
from ..numpy.windows import elements
from .elementwise import length_of, widened

# Set by `hand_over` when the first backend starts: makers are only called after that.
torch = None

MAKERS = {}
maker = registrar(MAKERS)


# (batch, *spatial, channels) -> (batch, channels, *spatial), and back
_FIRST = {n: (0, n - 1) + tuple(range(1, n - 1)) for n in (4, 5)}
_LAST = {n: (0,) + tuple(range(2, n)) + (1,) for n in (4, 5)}
# (*size, in, out) -> (out, in, *size), and back
_KERNEL = {n: (n - 1, n - 2) + tuple(range(n - 2)) for n in (4, 5)}
_KERNEL_BACK = {n: tuple(range(2, n)) + (1, 0) for n in (4, 5)}


def _first(x):
    """The same memory with the channels second."""
    return x.permute(_FIRST[x.dim()])


def _last(x):
    """The same memory with the channels last."""
    return x.permute(_LAST[x.dim()])


class _Geometry(object):
    """Windows in PyTorch's words. Its own padding is as wide before as after; any other is put around."""

    def __init__(self, strides, pads, dilation=None, own_padding=True):
        self.strides = tuple(strides)
        self.dilation = tuple(dilation or [1] * len(strides))
        own = own_padding and all(before == after for before, after in pads)
        self.padding = tuple(before if own else 0 for before, _ in pads)
        # What remains to be put around
        self.around = [(0, 0) if own else tuple(pair) for pair in pads]
        # PyTorch begins with the last axis.
        self.flat = [count for pair in reversed(self.around) for count in pair]

    def framed(self, x, value=0.0):
        return torch.constant_pad_nd(x, self.flat, value) if any(self.flat) else x

    def lengths(self, lengths):
        """The lengths with what is put around."""
        return tuple(n + before + after for n, (before, after) in zip(lengths, self.around))

    def unframed(self, x):
        if not any(self.flat):
            return x
        inner = tuple(slice(before, n - after) for n, (before, after) in zip(x.shape[2:], self.around))
        return x[(slice(None), slice(None)) + inner]


def _counts(window, strides, pads):
    """`counts(x)`: how many elements of `x` each window has, a number or a tensor (1, 1, rows, columns)."""
    if not any(before or after for before, after in pads):
        return lambda x: int(np.prod(window))
    made = {}

    def counts(x):
        key = tuple(x.shape[2:])
        if key not in made:
            made.clear()
            counted = torch.from_numpy(elements(key, window, strides, pads))
            made[key] = counted.to(device=x.device, dtype=x.dtype)[None, None]
        return made[key]

    return counts


def _weights(kernel, depthwise):
    """A kernel as PyTorch has it: (filters, channels of a group, *size), and how many groups there are."""
    rank = kernel.dim()
    if depthwise:
        channels, made = kernel.shape[-2:]
        return kernel.reshape(kernel.shape[:-2] + (1, channels * made)).permute(_KERNEL[rank]), channels
    return kernel.permute(_KERNEL[rank]), 1


def _row_by_row(shape):
    """The strides of memory where the last axis runs first, whatever axes of length 1 there are."""
    return tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))


def _backward(geometry, g, x, weights, groups, mask):
    return torch.ops.aten.convolution_backward(
        g,
        x,
        weights,
        None,
        geometry.strides,
        geometry.padding,
        geometry.dilation,
        False,
        [0] * len(geometry.strides),
        groups,
        mask,
    )


def _like(g, shape):
    """A tensor that has a shape and costs no memory."""
    return g.new_empty(1).expand(shape)


def share_maxima(instructions, calls):
    """Has a pooling's gradient take the positions of the maxima from the pooling itself, where that runs before it.

    `calls`: the functions of these instructions, changed in place.
    """
    poolings = {}
    for instruction in instructions:
        if instruction.op not in ("max_pool", "max_pool_grad"):
            continue
        attrs = instruction.attrs
        if any(before or after for before, after in attrs["pads"]):
            continue
        key = instruction.inputs[0], tuple(attrs["window"]), tuple(attrs["strides"])
        if instruction.op == "max_pool":
            poolings[key] = instruction
        elif key in poolings:
            index = poolings.pop(key).index
            calls[index], calls[instruction.index] = _sharing(*key[1:])


def _sharing(window, strides):
    positions = []
    settings = window, strides, (0, 0), (1, 1), False

    def pool(x):
        # What a call that failed has left
        positions.clear()
        pooled, where = torch.ops.aten.max_pool2d_with_indices(_first(widened(x)), *settings)
        positions.append(where)
        return _last(pooled).to(x.dtype)

    def gradient(x, g):
        if not positions:
            # The pooling's value was known when the program was made.
            pool(x)
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        return _last(backward(_first(widened(g)), _first(widened(x)), *settings, positions.pop())).to(x.dtype)

    return pool, gradient


@maker(*window_ops("conv"))
def conv(instruction, strides, pads, dilation):
    geometry, depthwise = _Geometry(strides, pads, dilation), "depthwise" in instruction.op
    function = torch.conv2d if len(strides) == 2 else torch.conv3d
    half = instruction.dtype == "float16"
    alone = len(strides) == 2 and strides[0] == 1 < strides[1]

    def call(x, kernel):
        weights, groups = _weights(widened(kernel), depthwise)
        values = _first(widened(x))
        if alone and values.shape[1] == 1:
            # Of one channel, where rows have one place, oneDNN computes other rows in "channels last" memory.
            values, weights = values.contiguous(), weights.contiguous()
            values = values.as_strided(values.shape, _row_by_row(values.shape))
            weights = weights.as_strided(weights.shape, _row_by_row(weights.shape))
        y = function(
            geometry.framed(values),
            weights,
            None,
            geometry.strides,
            geometry.padding,
            geometry.dilation,
            groups,
        )
        y = _last(y)
        return y.to(torch.float16) if half else y

    return call


@maker(*window_ops("conv_input"))
def conv_input(instruction, dims, strides, pads, dilation):
    geometry, depthwise = _Geometry(strides, pads, dilation), "depthwise" in instruction.op
    half = instruction.dtype == "float16"

    def call(g, kernel, *references):
        lengths = resolve_dims(dims, (g, kernel) + references, length_of)
        weights, groups = _weights(widened(kernel), depthwise)
        given = _first(widened(g))
        x = _like(given, (given.shape[0], kernel.shape[-2]) + geometry.lengths(lengths))
        result = _backward(geometry, given, x, weights, groups, [True, False, False])[0]
        result = _last(geometry.unframed(result))
        return result.to(torch.float16) if half else result

    return call


@maker(*window_ops("conv_kernel"))
def conv_kernel(instruction, size, strides, pads, dilation):
    half, size, depthwise = instruction.dtype == "float16", tuple(size), "depthwise" in instruction.op
    # oneDNN's own way to this gradient isn't sound where a kernel of one element has strides.
    thinned = len(size) == 2 and set(size) == {1} and set(strides) != {1}
    geometry = _Geometry([1, 1] if thinned else strides, pads, dilation, own_padding=not thinned)

    def call(x, g):
        values, given = geometry.framed(_first(widened(x))), _first(widened(g))
        if thinned:
            values = values[:, :, :: strides[0], :: strides[1]]
        channels, filters = values.shape[1], given.shape[1]
        groups = channels if depthwise else 1
        weights = _like(given, (filters, channels // groups) + size)
        result = _backward(geometry, given, values, weights, groups, [False, True, False])[1]
        result = result.permute(_KERNEL_BACK[result.dim()])
        if depthwise:
            result = result.reshape(size + (channels, filters // channels))
        return result.to(torch.float16) if half else result

    return call


@maker("max_pool")
def max_pool(instruction, window, strides, pads):
    around, window, strides = _Geometry(strides, pads, None, False), tuple(window), tuple(strides)

    def call(x):
        wide = around.framed(_first(widened(x)), float("-inf"))
        return _last(torch.max_pool2d(wide, window, strides)).to(x.dtype)

    return call


@maker("max_pool_grad")
def max_pool_grad(instruction, window, strides, pads):
    around, window, strides = _Geometry(strides, pads, None, False), tuple(window), tuple(strides)

    def call(x, g):
        values = _first(widened(x))
        if any(around.flat):
            # What is put around must not be the first of equals.
            values = torch.clamp(values, min=torch.finfo(values.dtype).min)
        wide = around.framed(values, float("-inf"))
        settings = window, strides, (0, 0), (1, 1), False
        _, positions = torch.ops.aten.max_pool2d_with_indices(wide, *settings)
        backward = torch.ops.aten.max_pool2d_with_indices_backward
        return _last(around.unframed(backward(_first(widened(g)), wide, *settings, positions))).to(x.dtype)

    return call


@maker("avg_pool")
def avg_pool(instruction, window, strides, pads):
    around, counts = _Geometry(strides, pads, None, False), _counts(window, strides, pads)
    window, strides = tuple(window), tuple(strides)

    def call(x):
        values = _first(widened(x))
        totals = torch.ops.aten.avg_pool2d(around.framed(values), window, strides, (0, 0), False, True, 1)
        return _last(totals / counts(values)).to(x.dtype)

    return call


@maker("avg_pool_grad")
def avg_pool_grad(instruction, window, strides, pads):
    around, counts = _Geometry(strides, pads, None, False), _counts(window, strides, pads)
    window, strides = tuple(window), tuple(strides)

    def call(g, like):
        values, given = _first(like), _first(widened(g))
        shape = (given.shape[0], given.shape[1]) + around.lengths(values.shape[2:])
        settings = window, strides, (0, 0), False, True, 1
        backward = torch.ops.aten.avg_pool2d_backward
        result = backward(given / counts(_like(given, values.shape)), _like(given, shape), *settings)
        return _last(around.unframed(result)).to(g.dtype)

    return call
