"""Pooling: the K functions, and the composites of images that they and their gradients are written in.

They go along one axis after another, since a maximum of maxima is one, and a mean of means. Of equal elements the first
one in a window (in the order of its axes) is the maximum, and gets the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..graph.nodes import Tensor, constant_node
from ..graph.rules import RULES, Gradients, Result, Rule, apply
from .dtypes import in_float32
from .shapes import own_dims, renumbered, scalar
from .windows import (
    WindowArguments,
    Windows,
    cropped,
    floats,
    lengths_of,
    output_length,
    padded,
    per_axis,
    positions,
    window_arguments,
)


def pool2d(
    x: Any,
    pool_size: Any,
    strides: Any = (1, 1),
    padding: str = "valid",
    data_format: Any = None,
    pool_mode: str = "max",
) -> Tensor:
    """The maximum ("max") or mean ("avg") of each window of images; padding counts for neither.

    `padding`: "valid" or "same". Raises ShapeError, DTypeError for anything but floats, ArgumentError.
    """
    return _pool(window_arguments("pool2d", 2, strides, padding, data_format), x, pool_size, pool_mode)


def pool3d(
    x: Any,
    pool_size: Any,
    strides: Any = (1, 1, 1),
    padding: str = "valid",
    data_format: Any = None,
    pool_mode: str = "max",
) -> Tensor:
    """The maximum ("max") or mean ("avg") of each window of volumes; padding counts for neither.

    `padding`: "valid" or "same". Raises ShapeError, DTypeError for anything but floats, ArgumentError.
    """
    return _pool(window_arguments("pool3d", 3, strides, padding, data_format), x, pool_size, pool_mode)


def _pool(arguments: WindowArguments, x: Any, pool_size: Any, pool_mode: str) -> Tensor:
    op = arguments.op
    (x,) = floats(op, x)
    if pool_mode not in ("max", "avg"):
        raise ArgumentError(f"{op}: pool_mode {pool_mode!r} isn't allowed", allowed="allowed are max, avg")
    moved = arguments.to_last(x)
    size = per_axis(pool_size, arguments.spatial, "pool_size", op)
    windows = arguments.windows(lengths_of(moved), size, 1)
    for axis, n in enumerate(moved.shape[1:-1]):
        output_length(n, windows, axis, op)
    pooled = _images if arguments.spatial == 2 else _volumes
    return arguments.from_last(pooled(f"{pool_mode}_pool", moved, size, arguments))


def _images(op: str, x: Tensor, size: list[int], arguments: WindowArguments) -> Tensor:
    return _apply(op, arguments.windows(lengths_of(x), size, 1), x)


def _volumes(op: str, x: Tensor, size: list[int], arguments: WindowArguments) -> Tensor:
    """Along the last two axes, then along the first: a maximum of maxima, a mean of means."""
    rows, *rest = arguments.strides
    flat = arguments._replace(spatial=2, dilation=[1, 1])
    slabs = apply("reshape", x, dims=[-1, *own_dims(x)[2:]])
    y = _images(op, slabs, size[1:], flat._replace(strides=rest))
    y = apply("reshape", y, x, dims=[*own_dims(x, 1)[:2], *own_dims(y)[1:]])
    turned = apply("transpose", y, permutation=[0, 2, 1, 3, 4])
    slabs = apply("reshape", turned, dims=[-1, *own_dims(turned)[2:]])
    z = _images(op, slabs, [size[0], 1], flat._replace(strides=[rows, 1]))
    z = apply("reshape", z, turned, dims=[*own_dims(turned, 1)[:2], *own_dims(z)[1:]])
    return apply("transpose", z, permutation=[0, 2, 1, 3, 4])


def _apply(op: str, windows: Windows, *inputs: Tensor) -> Tensor:
    return apply(op, *inputs, *windows.references, window=windows.size, strides=windows.strides, pads=windows.pads)


def _windows(window: Any, strides: Any, pads: Any, references: Sequence[Tensor] = ()) -> Windows:
    return Windows(window, strides, pads, [1] * len(window), tuple(references))


# --- the composites ---------------------------------------------------------------------------------------------


def _infer_pool(x: Any, *references: Any, **lie: Any) -> Result:
    windows = _windows(**lie)
    lengths = [output_length(n, windows, axis, "pooling") for axis, n in enumerate(x.shape[1:-1])]
    return (x.shape[0], *lengths, x.shape[-1]), x.dtype


def _infer_pick(x: Any, h: Any, *references: Any, **lie: Any) -> Result:
    return _infer_pool(x, **lie)


def _infer_max_grad(x: Any, g: Any, *references: Any, **lie: Any) -> Result:
    return x.shape, x.dtype


def _infer_avg_grad(g: Any, like: Any, *references: Any, **lie: Any) -> Result:
    return like.shape, g.dtype


class _Axis:
    """The windows along one spatial axis of some tensor, which has channels last and is `x`-shaped there."""

    def __init__(self, x: Tensor, windows: Windows, axis: int, first: int) -> None:
        spatial = x.ndim - 2
        pads: list[Any] = [[0, 0]] * spatial
        pads[axis] = windows.pads[axis]
        one = [1] * spatial
        size, strides = list(one), list(one)
        size[axis], strides[axis] = windows.size[axis], windows.strides[axis]
        self.windows = Windows(size, strides, pads, one, windows.references)
        self.first = first
        self.x = x
        self.axis = axis + 1
        self.is_padded = pads[axis] != [0, 0]
        self.slices = positions(self.windows)

    def pieces(self, x: Tensor) -> list[Tensor]:
        return [apply("slice", x, slices=slices) for slices in self.slices]

    def padded(self, x: Tensor) -> Tensor:
        return padded(x, self.windows, self.first)

    def inside(self, dtype: str) -> Tensor:
        """Ones (True) where the padded axis has elements, zeros beside; of length 1 along all others."""
        one = constant_node(np.ones((), dtype=dtype))
        dims: list[Any] = [1] * self.x.ndim
        dims[self.axis] = own_dims(self.x, 1)[self.axis]
        references = (self.x,) if isinstance(dims[self.axis], list) else ()
        return self.padded(apply("broadcast_to", one, *references, dims=dims))

    def with_least(self, x: Tensor) -> Tensor:
        """`x` with minus infinity around."""
        if not self.is_padded:
            return x
        return apply("select", self.inside("bool"), self.padded(x), scalar(-np.inf, x.dtype))

    def back(self, parts: Sequence[Tensor], like: Tensor) -> Tensor:
        """The sum of what belongs to each place in the windows, put back where it came from in `like`, padded."""
        placed = [apply("unslice", part, like, slices=slices) for part, slices in zip(parts, self.slices)]
        return cropped(_folded("add", placed), self.windows, self.first)

    def hits(self, best: Tensor) -> list[Tensor]:
        """For each place in the windows, where its element is the maximum `best`."""
        hits = [apply("equal", piece, best) for piece in self.pieces(self.with_least(self.x))]
        if self.is_padded:
            inside = self.pieces(self.inside("bool"))
            hits = [apply("logical_and", hit, real) for hit, real in zip(hits, inside)]
        return hits


def _folded(op: str, parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = apply(op, total, part)
    return total


def _maxima(x: Tensor, windows: Windows, first: int) -> list[tuple[_Axis, Tensor]]:
    """For each spatial axis, last one first, its windows and the maxima over them."""
    steps = []
    for axis in reversed(range(x.ndim - 2)):
        along = _Axis(x, windows, axis, first)
        x = _folded("maximum", along.pieces(along.with_least(x)))
        steps.append((along, x))
    return steps


def _max_pool(x: Tensor, *references: Tensor, **lie: Any) -> Tensor:
    return _maxima(x, _windows(**lie, references=references), 1)[-1][1]


def _max_pool_grad(x: Tensor, g: Tensor, *references: Tensor, **lie: Any) -> Tensor:
    for along, best in reversed(_maxima(x, _windows(**lie, references=references), 2)):
        zero = scalar(0, g.dtype)
        parts: list[Tensor] = []
        taken: Tensor | None = None
        for hit in along.hits(best):
            wins = hit if taken is None else apply("logical_and", hit, apply("logical_not", taken))
            taken = hit if taken is None else apply("logical_or", taken, hit)
            parts.append(apply("select", wins, g, zero))
        g = along.back(parts, along.padded(along.x))
    return g


def _max_pool_pick(x: Tensor, h: Tensor, *references: Tensor, **lie: Any) -> Tensor:
    for along, best in _maxima(x, _windows(**lie, references=references), 2):
        pieces = along.pieces(along.padded(h))
        h = scalar(0, h.dtype)
        # The first one has the last word.
        for hit, piece in reversed(list(zip(along.hits(best), pieces))):
            h = apply("select", hit, piece, h)
    return h


def _avg_pool(x: Tensor, *references: Tensor, **lie: Any) -> Tensor:
    windows = _windows(**lie, references=references)
    for axis in range(x.ndim - 2):
        along = _Axis(x, windows, axis, 1)
        x = apply("divide", _folded("add", along.pieces(along.padded(x))), _counts(along))
    return x


def _avg_pool_grad(g: Tensor, like: Tensor, *references: Tensor, **lie: Any) -> Tensor:
    windows = _windows(**lie, references=references)
    for axis in range(like.ndim - 2):
        along = _Axis(like, windows, axis, 2)
        # Along this axis as in `like`, along later ones as in g.
        dims = own_dims(g, 1)
        dims[along.axis] = own_dims(like, 2)[along.axis]
        zero = scalar(0, g.dtype)
        whole = along.padded(apply("broadcast_to", zero, g, like, dims=dims))
        part = apply("divide", g, _counts(along))
        g = along.back([part] * len(along.slices), whole)
    return g


def _counts(along: _Axis) -> Tensor:
    """The number of elements in each window along an axis, without padding."""
    dtype = along.x.dtype
    if not along.is_padded:
        return scalar(len(along.slices), dtype)
    return _folded("add", along.pieces(along.inside(dtype)))


def _lie(node: Tensor, operands: int, first: int) -> Windows:
    """The geometry of a node's windows; it has this many operands besides those of pads, now numbered from `first`."""
    attrs = dict(node.attrs, pads=renumbered(node.attrs["pads"], first - operands))
    return _windows(**attrs, references=node.inputs[operands:])


def _vjp_max_pool(node: Tensor, g: Tensor) -> Gradients:
    return [_apply("max_pool_grad", _lie(node, 1, 2), node.inputs[0], g)]


def _vjp_max_pool_grad(node: Tensor, h: Tensor) -> Gradients:
    return [None, _apply("max_pool_pick", _lie(node, 2, 2), node.inputs[0], h)]


def _vjp_max_pool_pick(node: Tensor, g: Tensor) -> Gradients:
    return [None, _apply("max_pool_grad", _lie(node, 2, 2), node.inputs[0], g)]


def _vjp_avg_pool(node: Tensor, g: Tensor) -> Gradients:
    return [_apply("avg_pool_grad", _lie(node, 1, 2), g, node.inputs[0])]


def _vjp_avg_pool_grad(node: Tensor, h: Tensor) -> Gradients:
    return [_apply("avg_pool", _lie(node, 2, 1), h), None]


RULES.update(
    {
        "max_pool": Rule(_infer_pool, _vjp_max_pool, _max_pool, checks=True),
        "max_pool_grad": Rule(_infer_max_grad, _vjp_max_pool_grad, in_float32(_max_pool_grad)),
        "max_pool_pick": Rule(_infer_pick, _vjp_max_pool_pick, _max_pool_pick),
        "avg_pool": Rule(_infer_pool, _vjp_avg_pool, in_float32(_avg_pool), checks=True),
        "avg_pool_grad": Rule(_infer_avg_grad, _vjp_avg_pool_grad, in_float32(_avg_pool_grad)),
    }
)
