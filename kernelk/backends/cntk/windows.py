"""CNTK's convolutions and pooling, with numpy's edge values: part of its table of ops.

CNTK wants one sample's channels first, and a batch axis of its own. It has no gradients to call and no dilation on a
CPU, and slices with a step take far longer than what they feed: so a gradient is another convolution, in which zeros
stand between the elements. Where a zero might meet an infinity, the graph raises a flag (see ops.py).
"""

import itertools

import numpy as np

from ..base import registrar, window_ops
from ..numpy.windows import elements
from .nodes import Val, among_zeros

OPS = {}
op = registrar(OPS)


def _moved(b, node, permutation):
    return b.engine.transpose(node, tuple(permutation))


def _first(b, node, rank):
    """Channels second; then the batch is CNTK's own. Made once of each node, and not of what was made of such."""
    known = b.batches.get(id(node))
    if known is None:
        batch = b.engine.to_batch(_moved(b, node, [0, rank - 1] + list(range(1, rank - 1))))
        # The node is kept beside the batch so that its id stays its own.
        known = b.batches[id(node)] = (batch, node)
    return known[0]


def _unpacked(b, node, count):
    """A batch as an axis of known length: CNTK convolves with no kernel that is made of one of unknown length."""
    return b.engine.reshape(b.engine.unpack_batch(node), (count,) + node.shape)


def _last(b, node, count):
    """The reverse of `_first`."""
    result = _moved(b, _unpacked(b, node, count), [0] + list(range(2, len(node.shape) + 1)) + [1])
    b.batches[id(result)] = (node, result)
    return result


def _reached(size, dilation):
    return [(n - 1) * apart + 1 for n, apart in zip(size, dilation)]


def _with_zeros_between(b, value, lengths, distances, first_axis):
    """`value` with zeros between its elements: as long as `lengths` from `first_axis` on."""
    shape, slices = list(value.shape), [[None, None, None]] * len(value.shape)
    for axis, (length, distance) in enumerate(zip(lengths, distances), first_axis):
        count = shape[axis]
        shape[axis], slices[axis] = length, [0, (count - 1) * distance + 1, distance]
    if tuple(shape) == value.shape:
        return value
    return among_zeros(b, value, tuple(shape), slices)


def _framed(b, value, pads, fill=0):
    """The node with `fill` around its spatial axes."""
    node = b.whole(value)
    if not any(before or after for before, after in pads):
        return node
    pattern = [(0, 0)] + [tuple(pair) for pair in pads] + [(0, 0)]
    return b.engine.pad(node, pattern, mode=b.engine.CONSTANT_PAD, constant_value=fill)


def _part(b, node, axis, start, stop, length):
    if (start, stop) == (0, length):
        return node
    return b.engine.slice(node, [axis], [start], [stop])


def _unframed(b, node, pads, lengths):
    for axis, ((before, after), n) in enumerate(zip(pads, lengths), 1):
        node = _part(b, node, axis, before, before + n, before + n + after)
    return node


def _flag_unless(b, value, finite):
    """Asks for numpy's definition where an element is NaN, or with `finite` an infinity; a sum shows it cheaply."""
    node, dtype, width = b.whole(value), value.dtype, value.shape[-1]
    rows = int(np.prod(value.shape)) // width
    sums = b.engine.times(b.engine.reshape(node, (rows, width)), b.constant(np.ones((width, 1)), dtype))
    total = b.engine.times(b.constant(np.ones((1, rows)), dtype), sums)
    if finite:
        total = b.engine.minus(total, total)
    b.flag(b.engine.not_equal(total, total), dtype)


def _conv(b, operand, weights, strides, groups=1):
    """CNTK's convolution of a batch (channels, *spatial) with (filters, channels of a group, *size), no padding."""
    off = [False] * (len(strides) + 1)
    return b.engine.convolution(weights, operand, strides=tuple(strides), auto_padding=off, groups=groups)


def _weights(b, kernel, dilation, depthwise, turned=False):
    """(filters, channels of a group, *size) of a kernel, zeros between; `turned`: every length backwards."""
    spatial = len(kernel.shape) - 2
    channels, filters = kernel.shape[-2:]
    size = _reached(kernel.shape, dilation)
    value = _with_zeros_between(b, kernel, size, dilation, 0)
    node = b.whole(value)
    for axis, n in enumerate(size):
        if turned and n > 1:
            node = b.engine.slice(node, [axis], [0], [n], [-1])
    inner = list(range(spatial))
    if depthwise and turned:
        # From the multiplied channels back to each.
        return _moved(b, node, [spatial, spatial + 1] + inner)
    if depthwise:
        node = _moved(b, node, [spatial, spatial + 1] + inner)
        return b.engine.reshape(node, (channels * filters, 1) + tuple(size))
    return _moved(b, node, [spatial + 1, spatial] + inner)


def _result(instruction, node, value):
    return Val(node, value.dtype, instruction.shape, instruction.shape)


@op(*window_ops("conv"))
def _forwards(b, instruction, x, kernel, strides, pads, dilation):
    depthwise = "depthwise" in instruction.op
    if max(dilation) > 1:
        _flag_unless(b, x, finite=True)
    weights = _weights(b, kernel, dilation, depthwise)
    operand = _first(b, _framed(b, x, pads), len(x.shape))
    y = _conv(b, operand, weights, strides, x.shape[-1] if depthwise else 1)
    return _result(instruction, _last(b, y, x.shape[0]), x)


@op(*window_ops("conv_input"))
def _to_input(b, instruction, g, kernel, dims, strides, pads, dilation):
    depthwise, rank = "depthwise" in instruction.op, len(g.shape)
    lengths = instruction.shape[1:-1]
    around = [n + before + after for n, (before, after) in zip(lengths, pads)]
    if not depthwise:
        if max(dilation) > 1:
            _flag_unless(b, g, finite=True)
        node = b.engine.convolution_transpose(
            _weights(b, kernel, dilation, False),
            _first(b, b.whole(g), rank),
            strides=tuple(strides),
            auto_padding=[False] * (len(strides) + 1),
            output_shape=(instruction.shape[-1],) + tuple(around),
        )
        return _result(instruction, _unframed(b, _last(b, node, g.shape[0]), pads, lengths), g)
    # A convolution of g, zeros between and around, with the kernel turned round: no infinity may meet those.
    _flag_unless(b, kernel, finite=True)
    if max(dilation) > 1:
        _flag_unless(b, g, finite=True)
    size = _reached(kernel.shape, dilation)
    unit = [n - k + 1 for n, k in zip(around, size)]
    wide = _framed(b, _with_zeros_between(b, g, unit, strides, 1), [(k - 1, k - 1) for k in size])
    node = _conv(b, _first(b, wide, rank), _weights(b, kernel, dilation, True, True), [1] * len(size), kernel.shape[-2])
    return _result(instruction, _unframed(b, _last(b, node, g.shape[0]), pads, lengths), g)


@op(*window_ops("conv_kernel"))
def _to_kernel(b, instruction, x, g, size, strides, pads, dilation):
    """A convolution of x with g, where samples are channels: plain, x's channels are samples, else groups."""
    engine, depthwise, rank = b.engine, "depthwise" in instruction.op, len(x.shape)
    count, channels, filters = x.shape[0], x.shape[-1], g.shape[-1]
    if max(strides) > 1:
        _flag_unless(b, x, finite=True)
    lengths = [(n - 1) * stride + 1 for n, stride in zip(g.shape[1:-1], strides)]
    spatial = list(range(1, rank - 1))
    weights = _moved(b, b.whole(_with_zeros_between(b, g, lengths, strides, 1)), [rank - 1, 0] + spatial)
    turned = _moved(b, _framed(b, x, pads), [rank - 1, 0] + spatial)
    around = [n + before + after for n, (before, after) in zip(x.shape[1:-1], pads)]
    if depthwise:
        turned = engine.reshape(turned, (1, channels * count) + tuple(around))
    node = _conv(b, engine.to_batch(turned), weights, [1] * len(size), channels if depthwise else 1)
    node = _unpacked(b, node, turned.shape[0])
    for axis, (n, k, whole) in enumerate(zip(lengths, _reached(size, dilation), around), 2):
        node = _part(b, node, axis, 0, k, whole - n + 1)
        if dilation[axis - 2] > 1 and k > 1:
            node = engine.slice(node, [axis], [0], [k], [dilation[axis - 2]])
    if depthwise:
        node = engine.reshape(node, (channels, filters // channels) + tuple(size))
    # (channels, filters, *size)
    order = list(range(2, rank)) + [0, 1]
    return _result(instruction, _moved(b, node, order), x)


def _pool(b, node, kind, window, strides):
    return b.engine.pooling(_first(b, node, 4), kind, tuple(window), tuple(strides), auto_padding=[False])


@op("max_pool")
def _max_pool(b, instruction, x, window, strides, pads):
    # CNTK's maximum passes over NaN.
    _flag_unless(b, x, finite=False)
    node = _pool(b, _framed(b, x, pads, -np.inf), b.engine.MAX_POOLING, window, strides)
    return _result(instruction, _last(b, node, x.shape[0]), x)


@op("max_pool_grad")
def _max_pool_grad(b, instruction, x, g, window, strides, pads):
    """CNTK puts each element where its window has its maximum, but doesn't add: in turn for windows that are apart."""
    engine = b.engine
    lengths = [n + before + after for n, (before, after) in zip(x.shape[1:-1], pads)]
    if any(before or after for before, after in pads):
        # What is put around must not be the first of equals.
        least = float(np.finfo(x.dtype).min)
        clipped = engine.clip(b.whole(x), b.constant(least, x.dtype), b.constant(np.inf, x.dtype))
        x = Val(clipped, x.dtype, x.shape, x.shape)
    wide, given = _framed(b, x, pads, -np.inf), b.whole(g)
    turns = [-(-k // stride) for k, stride in zip(window, strides)]
    steps = tuple(turn * stride for turn, stride in zip(turns, strides))
    total = None
    for offsets in itertools.product(*[range(min(turn, n)) for turn, n in zip(turns, g.shape[1:-1])]):
        operand, values, around = wide, given, [(0, 0)]
        for axis, (offset, turn, stride) in enumerate(zip(offsets, turns, strides), 1):
            length, made = lengths[axis - 1], g.shape[axis]
            operand = _part(b, operand, axis, offset * stride, length, length)
            if turn > 1:
                # CNTK refuses a step that leads beyond the end.
                several = offset + turn < made
                stop, step = (made, turn) if several else (offset + 1, 1)
                values = engine.slice(values, [axis], [offset], [stop], [step])
            around.append((offset * stride, 0))
        node = engine.unpooling(
            _first(b, values, 4),
            _first(b, operand, 4),
            engine.MAX_UNPOOLING,
            tuple(window),
            steps,
            auto_padding=[False],
        )
        node = _last(b, node, x.shape[0])
        if any(offsets):
            node = engine.pad(node, around + [(0, 0)], mode=engine.CONSTANT_PAD, constant_value=0)
        total = node if total is None else engine.plus(total, node)
    return _result(instruction, _unframed(b, total, pads, x.shape[1:-1]), g)


def _counts(lengths, window, strides, pads):
    """The number of elements in each window, as (rows, columns, 1)."""
    return elements(lengths, window, strides, pads)[..., None]


@op("avg_pool")
def _avg_pool(b, instruction, x, window, strides, pads):
    node = _last(b, _pool(b, _framed(b, x, pads), b.engine.AVG_POOLING, window, strides), x.shape[0])
    if any(before or after for before, after in pads):
        factors = np.prod(window) / _counts(x.shape[1:-1], window, strides, pads)
        node = b.engine.element_times(node, b.constant(factors, x.dtype))
    return _result(instruction, node, x)


@op("avg_pool_grad")
def _avg_pool_grad(b, instruction, g, window, strides, pads):
    engine, (count, rows, columns, channels) = b.engine, instruction.shape
    lengths = rows, columns
    around = tuple(n + before + after for n, (before, after) in zip(lengths, pads))
    shares = engine.element_times(b.whole(g), b.constant(1.0 / _counts(lengths, window, strides, pads), g.dtype))
    # Every channel of every sample by itself
    images = engine.reshape(_moved(b, shares, (0, 3, 1, 2)), (count * channels, 1) + g.shape[1:-1])
    node = engine.convolution_transpose(
        b.constant(np.ones((1, 1) + tuple(window)), g.dtype),
        engine.to_batch(images),
        strides=tuple(strides),
        auto_padding=[False] * 3,
        output_shape=(1,) + around,
    )
    node = engine.reshape(engine.unpack_batch(node), (count, channels) + around)
    return _result(instruction, _unframed(b, _moved(b, node, (0, 2, 3, 1)), pads, lengths), g)
