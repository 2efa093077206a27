"""Defines convolutions and pooling in numpy: part of its table of ops; Theano uses it where it has no C code.

Every function takes arrays with a batch axis, spatial axes and channels last; what differs by spatial axis (strides,
pads, dilation, window) is a sequence with one entry for each.
"""

import itertools

import numpy as np

from ..base import registrar, window_ops
from ..lowering import resolve_dims
from .elementwise import widened

OPS = {}
op = registrar(OPS)

# Windows are laid out as rows of a matrix for as many samples at a time as this allows.
PATCH_BYTES = 1 << 24


def reach(size, dilation):
    """The length that a window covers, along each axis."""
    return [(n - 1) * apart + 1 for n, apart in zip(size, dilation)]


def framed(x, pads, fill=0):
    """`x` with `fill` around its spatial axes."""
    if not any(before or after for before, after in pads):
        return x
    inner = tuple(slice(before, before + n) for (before, _), n in zip(pads, x.shape[1:]))
    lengths = tuple(before + n + after for (before, after), n in zip(pads, x.shape[1:]))
    whole = np.full(x.shape[:1] + lengths + x.shape[-1:], fill, x.dtype)
    whole[(slice(None),) + inner] = x
    return whole


def unframed(x, pads):
    """`x` without what is around it."""
    return x[(slice(None),) + tuple(slice(before, n - after) for (before, after), n in zip(pads, x.shape[1:]))]


def counts(lengths, size, strides, dilation):
    """The number of windows along each axis of these (padded) lengths."""
    covered = reach(size, dilation)
    return [(n - whole) // stride + 1 for n, whole, stride in zip(lengths, covered, strides)]


def elements(lengths, window, strides, pads):
    """The number of elements in each window, without padding, as an array with these windows' lengths."""
    counts = np.ones((), int)
    for n, size, stride, (before, after) in zip(lengths, window, strides, pads):
        starts = np.arange(0, n + before + after - size + 1, stride) - before
        counts = np.multiply.outer(counts, np.minimum(starts + size, n) - np.maximum(starts, 0))
    return counts


def at_offsets(size, strides, dilation, made):
    """Yields, for each offset within a window, the index of its elements in all `made` windows of a padded array."""
    for offset in itertools.product(*[range(n) for n in size]):
        yield (slice(None),) + tuple(
            slice(i * apart, i * apart + (n - 1) * stride + 1, stride)
            for i, apart, stride, n in zip(offset, dilation, strides, made)
        )


def patches(x, size, strides, dilation, made):
    """A view (batch, *made, *size, channels) of the windows of a padded array."""
    inner = x.strides[1:-1]
    return np.lib.stride_tricks.as_strided(
        x,
        x.shape[:1] + tuple(made) + tuple(size) + x.shape[-1:],
        x.strides[:1]
        + tuple(stride * step for stride, step in zip(inner, strides))
        + tuple(stride * apart for stride, apart in zip(inner, dilation))
        + x.strides[-1:],
        writeable=False,
    )


def _rows(x, made, width):
    """Slices of the batch whose windows, of `width` elements, may be laid out at once."""
    each = max(1, int(PATCH_BYTES // max(1, np.prod(made, dtype=float) * width * x.itemsize)))
    return [slice(start, start + each) for start in range(0, len(x), each)]


def conv(x, kernel, strides, pads, dilation, depthwise):
    size, (channels, filters) = kernel.shape[:-2], kernel.shape[-2:]
    wide, weights = framed(widened(x), pads), widened(kernel)
    made = counts(wide.shape[1:-1], size, strides, dilation)
    if depthwise:
        total = np.zeros((len(x),) + tuple(made) + (channels, filters), wide.dtype)
        for index, weight in zip(at_offsets(size, strides, dilation, made), weights.reshape((-1, channels, filters))):
            total += wide[index][..., np.newaxis] * weight
        return total.reshape(total.shape[:-2] + (channels * filters,)).astype(x.dtype, copy=False)
    width = int(np.prod(size)) * channels
    matrix = weights.reshape((width, filters))
    result = np.empty((len(x),) + tuple(made) + (filters,), x.dtype)
    windows = patches(wide, size, strides, dilation, made)
    for rows in _rows(wide, made, width):
        part = result[rows]
        part[...] = np.matmul(windows[rows].reshape((-1, width)), matrix).reshape(part.shape)
    return result


def conv_input(g, kernel, lengths, strides, pads, dilation, depthwise):
    size, (channels, filters) = kernel.shape[:-2], kernel.shape[-2:]
    wide, weights = widened(g), widened(kernel).reshape((-1, channels, filters))
    made = g.shape[1:-1]
    around = tuple(n + before + after for n, (before, after) in zip(lengths, pads))
    total = np.zeros(g.shape[:1] + around + (channels,), wide.dtype)
    where = list(at_offsets(size, strides, dilation, made))
    if depthwise:
        split = wide.reshape(g.shape[:-1] + (channels, filters))
        for index, weight in zip(where, weights):
            total[index] += (split * weight).sum(-1)
    else:
        matrix = weights.reshape((-1, filters)).T
        for rows in _rows(wide, made, matrix.shape[1]):
            part = wide[rows]
            columns = np.matmul(part.reshape((-1, filters)), matrix)
            columns = columns.reshape(part.shape[:-1] + (len(where), channels))
            spread = total[rows]
            for i, index in enumerate(where):
                spread[index] += columns[..., i, :]
    return unframed(total, pads).astype(g.dtype, copy=False)


def conv_kernel(x, g, size, strides, pads, dilation, depthwise):
    wide, given = framed(widened(x), pads), widened(g)
    made, channels = g.shape[1:-1], x.shape[-1]
    if depthwise:
        split = given.reshape(g.shape[:-1] + (channels, g.shape[-1] // channels))
        axes = tuple(range(split.ndim - 2))
        parts = [
            (wide[index][..., np.newaxis] * split).sum(axes, dtype=wide.dtype)
            for index in at_offsets(size, strides, dilation, made)
        ]
        result = np.stack(parts).reshape(tuple(size) + split.shape[-2:])
        return result.astype(x.dtype, copy=False)
    width = int(np.prod(size)) * channels
    total = np.zeros((width, g.shape[-1]), wide.dtype)
    windows = patches(wide, size, strides, dilation, made)
    for rows in _rows(wide, made, width):
        total += np.matmul(windows[rows].reshape((-1, width)).T, given[rows].reshape((-1, g.shape[-1])))
    return total.reshape(tuple(size) + (channels, g.shape[-1])).astype(x.dtype, copy=False)


class _Along(object):
    """The windows along one spatial axis of `x`; `frame` is the padded array's index of an element of `x`."""

    def __init__(self, x, axis, window, strides, pads):
        self.pads = [(0, 0)] * (x.ndim - 2)
        self.pads[axis] = tuple(pads[axis])
        length = x.shape[axis + 1] + sum(pads[axis])
        self.window, self.stride, self.axis = window[axis], strides[axis], axis + 1
        self.made = (length - self.window) // self.stride + 1
        self.length = x.shape[axis + 1]

    def pieces(self, wide):
        """Yields a view of its elements for each position in the windows."""
        for i in range(self.window):
            index = [slice(None)] * wide.ndim
            index[self.axis] = slice(i, i + (self.made - 1) * self.stride + 1, self.stride)
            yield wide[tuple(index)]

    def inside(self, ndim):
        """For each position in the windows, whether it isn't padding; the other axes have length 1."""
        shape = [1] * ndim
        shape[self.axis] = self.length
        return self.pieces(framed(np.ones(shape, bool), self.pads, False))

    def counts(self, ndim, dtype):
        """The number of elements of `x` in each window."""
        return sum(real.astype(dtype) for real in self.inside(ndim))


def _largest(pieces):
    best = None
    for piece in pieces:
        if best is None:
            best = np.array(piece)
        else:
            np.maximum(best, piece, out=best)
    return best


def _maxima(x, window, strides, pads):
    """(array, windows along an axis of it, their maxima), the last axis first."""
    steps = []
    for axis in reversed(range(x.ndim - 2)):
        along = _Along(x, axis, window, strides, pads)
        best = _largest(along.pieces(framed(x, along.pads, -np.inf)))
        steps.append((x, along, best))
        x = best
    return steps


def max_pool(x, window, strides, pads):
    return _maxima(x, window, strides, pads)[-1][2]


def _hits(x, along, best):
    wide = framed(x, along.pads, -np.inf)
    for piece, real in zip(along.pieces(wide), along.inside(x.ndim)):
        hit = np.equal(piece, best)
        yield np.logical_and(hit, real, out=hit) if any(along.pads[along.axis - 1]) else hit


def _where(hit, g):
    """`g` where `hit`, else 0: np.where takes four times as long, and hit * g makes NaN of an infinity."""
    bits = np.dtype("i%d" % g.itemsize)
    return (g.view(bits) & -hit.astype(bits)).view(g.dtype)


def max_pool_grad(x, g, window, strides, pads):
    result = widened(g)
    for array, along, best in reversed(_maxima(x, window, strides, pads)):
        wide = framed(np.zeros(array.shape, result.dtype), along.pads)
        left = np.ones(best.shape, bool)
        for hit, piece in zip(_hits(array, along, best), along.pieces(wide)):
            np.logical_and(hit, left, out=hit)
            np.logical_xor(left, hit, out=left)
            piece += _where(hit, result)
        result = unframed(wide, along.pads)
    return result.astype(x.dtype, copy=False)


def max_pool_pick(x, h, window, strides, pads):
    for array, along, best in _maxima(x, window, strides, pads):
        chosen = np.zeros(best.shape, h.dtype)
        pairs = list(zip(_hits(array, along, best), along.pieces(framed(h, along.pads))))
        for hit, piece in reversed(pairs):
            np.copyto(chosen, piece, where=hit)
        h = chosen
    return h


def avg_pool(x, window, strides, pads):
    result = widened(x)
    for axis in range(x.ndim - 2):
        along = _Along(result, axis, window, strides, pads)
        result = sum(along.pieces(framed(result, along.pads))) / along.counts(x.ndim, result.dtype)
    return result.astype(x.dtype, copy=False)


def avg_pool_grad(g, lengths, window, strides, pads):
    result = widened(g)
    for axis, n in enumerate(lengths):
        shape = list(result.shape)
        shape[axis + 1] = n
        array = np.zeros(shape, result.dtype)
        along = _Along(array, axis, window, strides, pads)
        wide = framed(array, along.pads)
        share = result / along.counts(g.ndim, result.dtype)
        for piece in along.pieces(wide):
            piece += share
        result = unframed(wide, along.pads)
    return result.astype(g.dtype, copy=False)


# As ops ---------------------------------------------------------------------------------------------------


@op(*window_ops("conv"))
def _conv(instruction, x, kernel, strides, pads, dilation):
    return conv(x, kernel, strides, pads, dilation, "depthwise" in instruction.op)


@op(*window_ops("conv_input"))
def _conv_input(instruction, g, kernel, *references, **attrs):
    lengths = resolve_dims(attrs["dims"], (g, kernel) + references, lambda value, axis: np.shape(value)[axis])
    geometry = attrs["strides"], attrs["pads"], attrs["dilation"]
    return conv_input(g, kernel, lengths, *geometry, depthwise="depthwise" in instruction.op)


@op(*window_ops("conv_kernel"))
def _conv_kernel(instruction, x, g, size, strides, pads, dilation):
    return conv_kernel(x, g, size, strides, pads, dilation, "depthwise" in instruction.op)


@op("max_pool")
def _max_pool(instruction, x, window, strides, pads):
    return max_pool(x, window, strides, pads)


@op("max_pool_grad")
def _max_pool_grad(instruction, x, g, window, strides, pads):
    return max_pool_grad(x, g, window, strides, pads)


@op("max_pool_pick")
def _max_pool_pick(instruction, x, h, window, strides, pads):
    return max_pool_pick(x, h, window, strides, pads)


@op("avg_pool")
def _avg_pool(instruction, x, window, strides, pads):
    return avg_pool(x, window, strides, pads)


@op("avg_pool_grad")
def _avg_pool_grad(instruction, g, like, window, strides, pads):
    return avg_pool_grad(g, np.shape(like)[1:-1], window, strides, pads)
