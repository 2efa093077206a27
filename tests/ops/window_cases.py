"""What slides over images, in K and in plain loops: convolutions, transposed, separable and local ones, and pools.

The loops take channels last. test_windows.py holds every engine against the cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from kernelk import backend as K

Array = np.ndarray[Any, Any]


def before(n: int, size: int, stride: int, dilation: int, padding: str) -> tuple[int, int]:
    """Padding before the axis, and the number of windows."""
    reach = dilation * (size - 1) + 1
    if padding == "valid":
        return 0, (n - reach) // stride + 1
    if padding == "causal":
        return reach - 1, (n - 1) // stride + 1
    made = (n + stride - 1) // stride
    return max((made - 1) * stride + reach - n, 0) // 2, made


class Taps:
    """For each output position, the places of the window that lie inside: (place, position in x)."""

    def __init__(self, lengths: Any, size: Any, strides: Any, padding: str, dilation: Any = None) -> None:
        self.dilation = dilation or (1,) * len(size)
        pairs = [before(*entry, padding) for entry in zip(lengths, size, strides, self.dilation)]
        self.lengths, self.size, self.strides = lengths, size, strides
        self.starts = [start for start, _ in pairs]
        self.made = tuple(made for _, made in pairs)

    def __iter__(self) -> Any:
        for out in product(*map(range, self.made)):
            inside = []
            for place in product(*map(range, self.size)):
                at = [o * s + k * d - b for o, s, k, d, b in zip(out, self.strides, place, self.dilation, self.starts)]
                if all(0 <= i < n for i, n in zip(at, self.lengths)):
                    inside.append((place, tuple(at)))
            yield out, inside


def conv(x: Array, kernel: Array, strides: Any, padding: str, dilation: Any = None) -> Array:
    taps = Taps(x.shape[1:-1], kernel.shape[:-2], strides, padding, dilation)
    y = np.zeros((len(x), *taps.made, kernel.shape[-1]))
    for out, inside in taps:
        for place, at in inside:
            y[(slice(None), *out)] += x[(slice(None), *at)] @ kernel[place]
    return y


def depthwise(x: Array, kernel: Array, strides: Any, padding: str, dilation: Any = None) -> Array:
    taps = Taps(x.shape[1:-1], kernel.shape[:-2], strides, padding, dilation)
    y = np.zeros((len(x), *taps.made, kernel.shape[-2], kernel.shape[-1]))
    for out, inside in taps:
        for place, at in inside:
            y[(slice(None), *out)] += x[(slice(None), *at)][..., None] * kernel[place]
    return y.reshape(*y.shape[:-2], -1)


def transposed(x: Array, kernel: Array, lengths: Any, strides: Any, padding: str, dilation: Any = None) -> Array:
    taps = Taps(lengths, kernel.shape[:-2], strides, padding, dilation)
    assert taps.made == x.shape[1:-1]
    y = np.zeros((len(x), *lengths, kernel.shape[-2]))
    for out, inside in taps:
        for place, at in inside:
            y[(slice(None), *at)] += x[(slice(None), *out)] @ kernel[place].T
    return y


def pool(x: Array, size: Any, strides: Any, padding: str, mode: str) -> Array:
    taps = Taps(x.shape[1:-1], size, strides, padding)
    y = np.zeros((len(x), *taps.made, x.shape[-1]))
    for out, inside in taps:
        window = np.stack([x[(slice(None), *at)] for _, at in inside])
        y[(slice(None), *out)] = window.max(0) if mode == "max" else window.mean(0)
    return y


def local(x: Array, kernel: Array, size: Any, strides: Any) -> Array:
    taps = Taps(x.shape[1:-1], size, strides, "valid")
    y = np.zeros((len(x), *taps.made, kernel.shape[-1]))
    for number, (out, inside) in enumerate(taps):
        patch = np.concatenate([x[(slice(None), *at)] for _, at in inside], -1)
        y[(slice(None), *out)] = patch @ kernel[number]
    return y


def first(x: Array) -> Array:
    """Channels last to channels first."""
    return np.moveaxis(x, -1, 1)


def last(x: Array) -> Array:
    return np.moveaxis(x, 1, -1)


class Case(NamedTuple):
    """A K expression and the same in loops, of float operands with these shapes."""

    label: str
    graph: Callable[..., Any]
    expected: Callable[..., Array]
    shapes: list[tuple[int, ...]]


IMAGE, TALL, VOLUME, STEPS = (2, 5, 6, 2), (2, 7, 4, 3), (1, 4, 3, 5, 2), (2, 7, 3)
FIRST = "channels_first"

CONVOLUTIONS = [
    Case("conv1d", lambda x, k: K.conv1d(x, k), lambda x, k: conv(x, k, (1,), "valid"), [STEPS, (3, 3, 2)]),
    Case(
        "conv1d same even",
        lambda x, k: K.conv1d(x, k, 2, "same"),
        lambda x, k: conv(x, k, (2,), "same"),
        [STEPS, (4, 3, 2)],
    ),
    Case(
        "conv1d causal",
        lambda x, k: K.conv1d(x, k, padding="causal", dilation_rate=2),
        lambda x, k: conv(x, k, (1,), "causal", (2,)),
        [STEPS, (3, 3, 2)],
    ),
    Case(
        "conv1d causal first",
        lambda x, k: K.conv1d(x, k, 2, "causal", FIRST),
        lambda x, k: first(conv(last(x), k, (2,), "causal")),
        [(2, 3, 7), (2, 3, 4)],
    ),
    Case("conv2d", lambda x, k: K.conv2d(x, k), lambda x, k: conv(x, k, (1, 1), "valid"), [IMAGE, (3, 2, 2, 4)]),
    Case(
        "conv2d same",
        lambda x, k: K.conv2d(x, k, padding="same"),
        lambda x, k: conv(x, k, (1, 1), "same"),
        [IMAGE, (3, 3, 2, 3)],
    ),
    Case(
        "conv2d same strided even",
        lambda x, k: K.conv2d(x, k, (2, 3), "same"),
        lambda x, k: conv(x, k, (2, 3), "same"),
        [IMAGE, (4, 2, 2, 3)],
    ),
    Case(
        "conv2d leaves a rest",
        lambda x, k: K.conv2d(x, k, (3, 2)),
        lambda x, k: conv(x, k, (3, 2), "valid"),
        [TALL, (2, 1, 3, 2)],
    ),
    Case(
        "conv2d strides beyond the kernel",
        lambda x, k: K.conv2d(x, k, (3, 2), "same"),
        lambda x, k: conv(x, k, (3, 2), "same"),
        [TALL, (1, 1, 3, 2)],
    ),
    Case(
        "conv2d dilated first",
        lambda x, k: K.conv2d(x, k, padding="same", data_format=FIRST, dilation_rate=(2, 1)),
        lambda x, k: first(conv(last(x), k, (1, 1), "same", (2, 1))),
        [(2, 3, 5, 4), (3, 2, 3, 2)],
    ),
    Case(
        "conv2d dilated strided",
        lambda x, k: K.conv2d(x, k, (2, 2), "valid", dilation_rate=(2, 1)),
        lambda x, k: conv(x, k, (2, 2), "valid", (2, 1)),
        [TALL, (3, 2, 3, 2)],
    ),
    Case(
        "conv3d",
        lambda x, k: K.conv3d(x, k, (2, 1, 2), "same"),
        lambda x, k: conv(x, k, (2, 1, 2), "same"),
        [VOLUME, (2, 2, 3, 2, 3)],
    ),
    Case(
        "conv3d first",
        lambda x, k: K.conv3d(x, k, data_format=FIRST, dilation_rate=(1, 2, 1)),
        lambda x, k: first(conv(last(x), k, (1, 1, 1), "valid", (1, 2, 1))),
        [(1, 2, 3, 4, 3), (2, 2, 1, 2, 3)],
    ),
    Case(
        "depthwise",
        lambda x, k: K.depthwise_conv2d(x, k, (2, 2), "same"),
        lambda x, k: depthwise(x, k, (2, 2), "same"),
        [IMAGE, (3, 2, 2, 3)],
    ),
    Case(
        "depthwise first",
        lambda x, k: K.depthwise_conv2d(x, k, (1, 2), "valid", FIRST, (1, 1)),
        lambda x, k: first(depthwise(last(x), k, (1, 2), "valid")),
        [(2, 3, 5, 4), (2, 2, 3, 1)],
    ),
    Case(
        "depthwise dilated",
        lambda x, k: K.depthwise_conv2d(x, k, padding="same", dilation_rate=(2, 2)),
        lambda x, k: depthwise(x, k, (1, 1), "same", (2, 2)),
        [IMAGE, (2, 3, 2, 2)],
    ),
    Case(
        "separable",
        lambda x, d, p: K.separable_conv2d(x, d, p, padding="same"),
        lambda x, d, p: conv(depthwise(x, d, (1, 1), "same"), p, (1, 1), "valid"),
        [IMAGE, (2, 3, 2, 2), (1, 1, 4, 3)],
    ),
    Case(
        "separable first",
        lambda x, d, p: K.separable_conv2d(x, d, p, (2, 2), "valid", FIRST),
        lambda x, d, p: first(conv(depthwise(last(x), d, (2, 2), "valid"), p, (1, 1), "valid")),
        [(2, 3, 5, 4), (2, 2, 3, 1), (1, 1, 3, 2)],
    ),
    Case(
        "separable_conv1d",
        lambda x, d, p: K.separable_conv1d(x, d, p, 2, "same"),
        lambda x, d, p: conv(depthwise(x, d, (2,), "same"), p, (1,), "valid"),
        [STEPS, (4, 3, 2), (1, 6, 2)],
    ),
    Case(
        "separable_conv1d dilated first",
        lambda x, d, p: K.separable_conv1d(x, d, p, data_format=FIRST, dilation_rate=2),
        lambda x, d, p: first(conv(depthwise(last(x), d, (1,), "valid", (2,)), p, (1,), "valid")),
        [(2, 3, 7), (3, 3, 1), (1, 3, 4)],
    ),
]

OTHERS = [
    Case(
        "transpose",
        lambda x, k: K.conv2d_transpose(x, k, (None, 7, 12, 3), (2, 2)),
        lambda x, k: transposed(x, k, (7, 12), (2, 2), "valid"),
        [(2, 3, 6, 2), (3, 2, 3, 2)],
    ),
    Case(
        "transpose same",
        lambda x, k: K.conv2d_transpose(x, k, (2, 6, 11, 3), (2, 2), "same"),
        lambda x, k: transposed(x, k, (6, 11), (2, 2), "same"),
        [(2, 3, 6, 2), (3, 4, 3, 2)],
    ),
    Case(
        "transpose first",
        lambda x, k: K.conv2d_transpose(x, k, (None, 3, 5, 6), padding="same", data_format=FIRST),
        lambda x, k: first(transposed(last(x), k, (5, 6), (1, 1), "same")),
        [(2, 2, 5, 6), (2, 3, 3, 2)],
    ),
    Case(
        "transpose dilated",
        lambda x, k: K.conv2d_transpose(x, k, (None, 7, 6, 3), dilation_rate=(2, 2)),
        lambda x, k: transposed(x, k, (7, 6), (1, 1), "valid", (2, 2)),
        [(2, 3, 2, 2), (3, 3, 3, 2)],
    ),
    Case(
        "transpose lengths in the graph",
        lambda x, k: K.conv2d_transpose(x, k, (K.shape(x)[0], K.shape(x)[1] * 2, 12, 3), (2, 2), "same"),
        lambda x, k: transposed(x, k, (6, 12), (2, 2), "same"),
        [(2, 3, 6, 2), (3, 3, 3, 2)],
    ),
    Case(
        "conv3d_transpose",
        lambda x, k: K.conv3d_transpose(x, k, (None, 4, 3, 5, 2), (2, 1, 2), "same"),
        lambda x, k: transposed(x, k, (4, 3, 5), (2, 1, 2), "same"),
        [(1, 2, 3, 3, 3), (2, 2, 3, 2, 3)],
    ),
    Case(
        "conv3d_transpose first",
        lambda x, k: K.conv3d_transpose(x, k, (None, 2, 3, 4, 3), data_format=FIRST),
        lambda x, k: first(transposed(last(x), k, (3, 4, 3), (1, 1, 1), "valid")),
        [(1, 3, 2, 3, 3), (2, 2, 1, 2, 3)],
    ),
    *[
        Case(
            f"pool2d {mode} {size} {strides} {padding}",
            lambda x, a=(size, strides, padding), m=mode: K.pool2d(x, *a, pool_mode=m),
            lambda x, a=(size, strides, padding), m=mode: pool(x, *a, m),
            [IMAGE],
        )
        for mode in ("max", "avg")
        for size, strides, padding in [
            ((2, 2), (2, 2), "valid"),
            ((3, 2), (1, 1), "same"),
            ((2, 3), (2, 3), "same"),
            ((3, 3), (2, 1), "valid"),
            ((1, 2), (3, 1), "same"),
        ]
    ],
    Case(
        "pool2d first",
        lambda x: K.pool2d(x, (2, 3), (2, 2), "same", FIRST, "avg"),
        lambda x: first(pool(last(x), (2, 3), (2, 2), "same", "avg")),
        [(2, 3, 5, 4)],
    ),
    Case(
        "pool3d max",
        lambda x: K.pool3d(x, (2, 2, 3), (2, 1, 2), "same"),
        lambda x: pool(x, (2, 2, 3), (2, 1, 2), "same", "max"),
        [VOLUME],
    ),
    Case(
        "pool3d avg first",
        lambda x: K.pool3d(x, (2, 2, 2), data_format=FIRST, pool_mode="avg"),
        lambda x: first(pool(last(x), (2, 2, 2), (1, 1, 1), "valid", "avg")),
        [(1, 2, 3, 4, 3)],
    ),
    Case(
        "local_conv1d",
        lambda x, k: K.local_conv1d(x, k, (3,), (2,)),
        lambda x, k: local(x, k, (3,), (2,)),
        [STEPS, (3, 9, 2)],
    ),
    Case(
        "local_conv2d",
        lambda x, k: K.local_conv2d(x, k, (2, 3), (2, 1), (2, 4)),
        lambda x, k: local(x, k, (2, 3), (2, 1)),
        [IMAGE, (8, 12, 3)],
    ),
    Case(
        "local_conv2d first",
        lambda x, k: K.local_conv2d(x, k, (2, 3), (1, 1), (4, 4), FIRST),
        # A position's kernel has the channels first, too.
        lambda x, k: first(
            local(last(x), k.reshape(16, 2, 6, 3).transpose(0, 2, 1, 3).reshape(16, 12, 3), (2, 3), (1, 1))
        ),
        [(2, 2, 5, 6), (16, 12, 3)],
    ),
]


def operands(case: Case, random: np.random.Generator, dtype: str) -> list[Array]:
    return [random.uniform(-1, 1, shape).astype(dtype) for shape in case.shapes]


def wide(values: Sequence[Array]) -> list[Array]:
    return [value.astype("float64") for value in values]
