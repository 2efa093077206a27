"""Convolutions and pooling on every engine: values against plain loops, gradients against finite differences."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.arrays import assert_close
from helpers.fake_engines import lacking_engine
from hypothesis import given, settings
from hypothesis import strategies as st

import kernelk
from kernelk import backend as K
from kernelk.backends.base import COMPOSITES
from kernelk.errors import ArgumentError, DTypeError, ShapeError
from kernelk.graph.rules import RULES, apply, expand

Array = np.ndarray[Any, Any]

# --- the same in plain loops, channels last ---------------------------------------------------------------------


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
CASES = {"convolutions": CONVOLUTIONS, "others": OTHERS}


def operands(case: Case, random: np.random.Generator, dtype: str) -> list[Array]:
    return [random.uniform(-1, 1, shape).astype(dtype) for shape in case.shapes]


def wide(values: Sequence[Array]) -> list[Array]:
    return [value.astype("float64") for value in values]


@pytest.mark.values
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
@pytest.mark.parametrize("group", list(CASES))
def test_values_are_those_of_plain_loops(backend: str, group: str, dtype: str) -> None:
    random = np.random.default_rng(3)
    cases = CASES[group][:: 3 if dtype == "float16" else 1]
    placeholders, feeds, outputs, expected = [], [], [], []
    for case in cases:
        values = operands(case, random, dtype)
        # The batch is left open.
        inputs = [K.placeholder((None, *values[0].shape[1:]), dtype=dtype)]
        inputs += [K.placeholder(value.shape, dtype=dtype) for value in values[1:]]
        placeholders += inputs
        feeds += values
        outputs.append(case.graph(*inputs))
        expected.append(case.expected(*wide(values)))
    for case, output, wanted in zip(cases, outputs, expected):
        assert output.shape == (None, *wanted.shape[1:]), case.label
    for case, value, wanted in zip(cases, K.function(placeholders, outputs)(feeds), expected):
        assert value.dtype == dtype, case.label
        assert_close(value, wanted, dtype, case.label, scale=4)


class Slope(NamedTuple):
    """A case's operands, the weights of its outputs in a sum, and that sum's gradients (NaN: left out)."""

    values: list[Array]
    weights: Array
    gradients: list[Array]


@cache
def slopes(group: str) -> list[Slope]:
    """By finite differences of the loops, for some twenty elements of each operand; once for all engines."""
    random = np.random.default_rng(4)
    found = []
    for case in CASES[group]:
        values = operands(case, random, "float64")
        weights = random.uniform(-1, 1, case.expected(*values).shape)
        gradients = []
        for i, value in enumerate(values):
            slope = np.full(value.size, np.nan)
            for at in random.permutation(value.size)[:20]:
                ends = []
                for step in (1e-5, -1e-5):
                    moved = [v.copy() for v in values]
                    moved[i].reshape(-1)[at] += step
                    ends.append((case.expected(*moved) * weights).sum())
                slope[at] = (ends[0] - ends[1]) / 2e-5
            gradients.append(slope.reshape(value.shape))
        found.append(Slope(values, weights, gradients))
    return found


@pytest.mark.values
@pytest.mark.parametrize("group", list(CASES))
def test_gradients_are_those_of_finite_differences(backend: str, group: str) -> None:
    placeholders, feeds, outputs, expected = [], [], [], []
    for case, slope in zip(CASES[group], slopes(group)):
        inputs = [K.placeholder(value.shape, dtype="float64") for value in slope.values]
        loss = K.sum(case.graph(*inputs) * K.constant(slope.weights, dtype="float64"))
        placeholders += inputs
        feeds += slope.values
        outputs += K.gradients(loss, inputs)
        expected += [(case.label, gradient) for gradient in slope.gradients]
    for (label, wanted), value in zip(expected, K.function(placeholders, outputs)(feeds)):
        chosen = ~np.isnan(wanted)
        assert value.shape == wanted.shape, label
        np.testing.assert_allclose(value[chosen], wanted[chosen], rtol=1e-6, atol=1e-7, err_msg=label)


# --- each composite and its decomposition -----------------------------------------------------------------------


class Lie(NamedTuple):
    """The geometry of windows over a tensor of two or three spatial axes."""

    lengths: tuple[int, ...]
    size: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    def made(self) -> tuple[int, ...]:
        pairs = zip(self.lengths, self.size, self.strides, self.pads, self.dilation)
        return tuple((n + sum(pad) - d * (k - 1) - 1) // s + 1 for n, k, s, pad, d in pairs)


LIES = [
    Lie((5, 6), (3, 2), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    Lie((5, 6), (3, 3), (2, 1), ((1, 1), (0, 2)), (1, 1)),
    Lie((6, 5), (2, 4), (2, 3), ((0, 1), (1, 2)), (1, 1)),
    Lie((7, 5), (2, 3), (1, 2), ((1, 0), (2, 2)), (3, 1)),
    Lie((1, 9), (1, 3), (1, 1), ((0, 0), (4, 0)), (1, 2)),
    Lie((4, 3, 5), (2, 2, 3), (2, 1, 2), ((0, 0), (0, 1), (1, 1)), (1, 1, 1)),
    Lie((4, 4, 4), (2, 2, 2), (1, 1, 1), ((0, 1), (1, 1), (0, 0)), (1, 2, 1)),
]


def composites(lie: Lie, channels: int = 2, filters: int = 3) -> Any:
    """(op, operands' shapes, attributes, number of operands that are alike x) of all that have such windows."""
    x, made = (2, *lie.lengths, channels), lie.made()
    where = {"strides": list(lie.strides), "pads": [list(pad) for pad in lie.pads], "dilation": list(lie.dilation)}
    dilated = "dilated_" if max(lie.dilation) > 1 else ""
    for prefix, y in [("", (2, *made, filters)), ("depthwise_", (2, *made, channels * filters))]:
        if prefix and len(made) > 2:
            continue
        kernel = (*lie.size, channels, filters)
        yield f"{dilated}{prefix}conv", [x, kernel], where
        yield f"{dilated}{prefix}conv_input", [y, kernel], {**where, "dims": list(lie.lengths)}
        yield f"{dilated}{prefix}conv_kernel", [x, y], {**where, "size": list(lie.size)}
    if not dilated and len(made) == 2:
        pooled = {"window": list(lie.size), "strides": where["strides"], "pads": where["pads"]}
        y = (2, *made, channels)
        yield "max_pool", [x], pooled
        yield "max_pool_grad", [x, y], pooled
        yield "max_pool_pick", [x, x], pooled
        yield "avg_pool", [x], pooled
        yield "avg_pool_grad", [y, x], pooled


def compare_with_decompositions(lies: Sequence[Lie], dtype: str, seed: int) -> set[str]:
    """Every composite over these windows, as the engine has it and written out; which ones there were."""
    random = np.random.default_rng(seed)
    inputs, feeds, outputs, labels = [], [], [], []
    for lie in lies:
        for op, shapes, attrs in composites(lie):
            values = [random.integers(-3, 4, shape).astype(dtype) / 2 for shape in shapes]
            placeholders = [K.placeholder((None, *value.shape[1:]), dtype=dtype) for value in values]
            if "pool" not in op and not op.endswith("conv_kernel"):
                placeholders[1] = K.placeholder(values[1].shape, dtype=dtype)
            node = apply(op, *placeholders, **attrs)
            inputs += placeholders
            feeds += [value.astype(dtype) for value in values]
            outputs += [node, expand(node)]
            labels.append((op, attrs))
    found = K.function(inputs, outputs)(feeds)
    for label, node, native, written in zip(labels, outputs[::2], found[::2], found[1::2]):
        assert native.dtype == dtype
        assert all(n in (None, m) for n, m in zip(node.shape, native.shape)), label
        assert_close(native, written, dtype, label)
    return {op for op, _ in labels}


def test_every_composite_is_its_decomposition(backend: str) -> None:
    # Small whole numbers: there are equal elements in many windows, and no rounding.
    seen = compare_with_decompositions(LIES, "float32", 5)
    assert seen == {name for name in COMPOSITES if "conv" in name or "pool" in name}


def lies() -> Any:
    """Windows that fit, over short axes."""
    axis = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(0, 2))

    @st.composite
    def build(draw: Any) -> Lie:
        axes = [draw(axis) for _ in range(draw(st.sampled_from([2, 2, 3])))]
        dilation = draw(st.sampled_from([1, 1, 2]))
        fitting = []
        for n, k, s, left, right in axes:
            # Written out, a volume's window has a great many places.
            k = min(k, 4 if len(axes) == 2 else 2)
            # Padding never fills a whole window.
            left, right = min(left, k - 1), min(right, k - 1)
            fitting.append((max(n, dilation * (k - 1) + 1), k, s, (left, right), dilation))
        return Lie(*zip(*fitting))

    return build()


@pytest.mark.values
@settings(max_examples=4, derandomize=True)
@given(lie=lies())
def test_any_windows(backend: str, lie: Lie) -> None:
    compare_with_decompositions([lie], "float64", 6)


def test_an_engine_without_them_gets_them_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking_engine(monkeypatch, "young", frozenset(COMPOSITES))
    kernelk.set_backend("young")
    random = np.random.default_rng(8)
    for case in CONVOLUTIONS + OTHERS:
        values = operands(case, random, "float32")
        inputs = [K.placeholder((None, *values[0].shape[1:]))] + [K.placeholder(v.shape) for v in values[1:]]
        value = K.function(inputs, case.graph(*inputs))(values)
        assert_close(value, case.expected(*wide(values)), "float32", case.label, scale=4)


# --- second order, unknown lengths, edges -----------------------------------------------------------------------


def test_second_order(backend: str) -> None:
    """The gradient of a gradient's square, against finite differences of the gradient itself on numpy."""
    random = np.random.default_rng(9)
    values = [random.uniform(-1, 1, shape) for shape in [(1, 5, 4, 2), (3, 2, 2, 2), (2, 2, 2, 1)]]
    inputs = [K.placeholder(value.shape, dtype="float64") for value in values]
    x, kernel, depth = inputs
    y = K.conv2d(x, kernel, (2, 1), "same")
    y = K.pool2d(K.square(y), (2, 2), (1, 1), "same") + K.pool2d(y * y, (2, 2), (1, 1), "same", pool_mode="avg")
    y = K.depthwise_conv2d(y, depth, padding="same") + K.conv2d_transpose(y, kernel[:1, :1], (1, 3, 4, 2))
    slopes = K.gradients(K.sum(K.tanh(y)), inputs)
    total = K.sum(K.concatenate([K.flatten(K.square(slope)) for slope in slopes]))
    second = K.function(inputs, K.gradients(total, inputs))(values)
    kernelk.set_backend("numpy")
    measure = K.function(inputs, total)
    for i, value in enumerate(values):
        for at in random.permutation(value.size)[:6]:
            ends = []
            for step in (1e-5, -1e-5):
                moved = [v.copy() for v in values]
                moved[i].reshape(-1)[at] += step
                ends.append(float(measure(moved)))
            slope = (ends[0] - ends[1]) / 2e-5
            np.testing.assert_allclose(second[i].reshape(-1)[at], slope, rtol=2e-5, atol=1e-6)


def test_unknown_lengths(backend: str) -> None:
    """Where nothing but the channels is known, padding is worked out at each call, three layers deep."""
    random = np.random.default_rng(10)
    kernels = [random.uniform(-1, 1, shape).astype("float32") for shape in [(3, 4, 2, 3), (2, 3, 3, 2)]]
    x = K.placeholder(ndim=4)
    weights = [K.variable(kernel) for kernel in kernels]
    y = K.conv2d(x, weights[0], (2, 3), "same")
    assert y.shape == (None, None, None, 3)
    maxima = K.pool2d(y, (3, 2), (2, 2), "same")
    means = K.pool2d(y, (2, 3), (2, 2), "same", pool_mode="avg")
    z = K.conv2d(maxima + means, weights[1], (2, 1), "same")
    back = K.conv2d_transpose(z, weights[1], K.shape(maxima), (2, 1), "same")
    loss = K.sum(K.square(z)) + K.sum(back)
    call = K.function([x], [z, back, *K.gradients(loss, [x, *weights])])

    def known(value: Array) -> list[Array]:
        x = K.placeholder(value.shape)
        y = K.conv2d(x, weights[0], (2, 3), "same")
        maxima = K.pool2d(y, (3, 2), (2, 2), "same")
        z = K.conv2d(maxima + K.pool2d(y, (2, 3), (2, 2), "same", pool_mode="avg"), weights[1], (2, 1), "same")
        back = K.conv2d_transpose(z, weights[1], maxima.shape, (2, 1), "same")
        loss = K.sum(K.square(z)) + K.sum(back)
        found: list[Array] = K.function([x], [z, back, *K.gradients(loss, [x, *weights])])([value])
        return found

    for shape in [(2, 9, 8, 2), (1, 6, 7, 2), (2, 9, 8, 2)]:
        value = random.uniform(-1, 1, shape).astype("float32")
        got = call([value])
        first_layer = conv(value.astype("float64"), kernels[0], (2, 3), "same")
        pooled = pool(first_layer, (3, 2), (2, 2), "same", "max") + pool(first_layer, (2, 3), (2, 2), "same", "avg")
        assert_close(got[0], conv(pooled, kernels[1], (2, 1), "same"), "float32", scale=4)
        for unknown, fixed in zip(got, known(value)):
            assert_close(unknown, fixed, "float32", scale=8)


def test_lengths_that_follow_from_shapes_are_worked_out_once() -> None:
    x = K.placeholder((None, None, 4, 1))
    y = K.conv2d(x, K.variable(np.ones((3, 3, 1, 1))), (2, 2), "same")
    call = K.function([x], y)
    seen = []
    for rows in (5, 6, 5, 6):
        call([np.ones((1, rows, 4, 1))])
        seen.append(len(call._programs))
    assert seen == [1, 2, 2, 2]


def test_a_swap_evaluates_unknown_lengths_again(spare: str) -> None:
    x = K.placeholder((None, None, 4, 1))
    y = K.conv2d(x, K.variable(np.ones((3, 3, 1, 1))), (2, 2), "same")
    value = y.eval({x: np.ones((1, 5, 4, 1))})
    report = kernelk.set_backend(spare)
    assert [(entry.shape, entry.difference) for entry in report.reevaluated] == [(value.shape, 0.0)]


def test_values_that_are_fed_decide_lengths(backend: str) -> None:
    rows = K.placeholder((), dtype="int32")
    x = K.variable(np.arange(4, dtype="float32").reshape(1, 2, 2, 1))
    kernel = K.variable(np.ones((2, 2, 1, 1)))
    y = K.conv2d_transpose(x, kernel, (1, rows, 4, 1), (2, 2), "same")
    assert y.shape == (1, None, 4, 1)
    call = K.function([rows], y)
    for count in (3, 4, 3):
        wanted = transposed(np.arange(4.0).reshape(1, 2, 2, 1), np.ones((2, 2, 1, 1)), (count, 4), (2, 2), "same")
        np.testing.assert_array_equal(call([count]), wanted)
    with pytest.raises(ShapeError):
        call([7])


def test_default_data_format() -> None:
    K.set_image_data_format("channels_first")
    assert K.conv2d(K.placeholder((None, 3, 8, 9)), K.zeros((3, 3, 3, 5))).shape == (None, 5, 6, 7)
    assert K.pool2d(K.placeholder((None, 3, 8, 9)), (2, 2), (2, 2)).shape == (None, 3, 4, 4)


def test_an_empty_batch(backend: str) -> None:
    x = K.placeholder((None, 4, 5, 2))
    kernel = K.variable(np.ones((2, 2, 2, 3)))
    y = K.conv2d(x, kernel, padding="same")
    z = K.pool2d(y, (2, 2), (2, 2)) + K.pool2d(y, (2, 2), (2, 2), pool_mode="avg")
    depth = K.depthwise_conv2d(x, kernel)
    loss = K.sum(z) + K.sum(depth)
    call = K.function([x], [z, depth, *K.gradients(loss, [x, kernel])])
    found = call([np.zeros((0, 4, 5, 2))])
    assert [value.shape for value in found] == [(0, 2, 2, 3), (0, 3, 4, 6), (0, 4, 5, 2), (2, 2, 2, 3)]
    assert not found[-1].any()


def test_the_first_of_equals_gets_the_gradient(backend: str) -> None:
    x = K.placeholder((1, 2, 4, 1))
    (slope,) = K.gradients(K.sum(K.pool2d(x, (2, 2), (2, 2))), x)
    call = K.function([x], slope)
    equal = call([np.ones((1, 2, 4, 1))])
    np.testing.assert_array_equal(equal[0, :, :, 0], [[1, 0, 1, 0], [0, 0, 0, 0]])
    later = call([np.array([[0, 1, 0, 0], [1, 0, 2, 2]]).reshape(1, 2, 4, 1)])
    np.testing.assert_array_equal(later[0, :, :, 0], [[0, 1, 0, 0], [0, 0, 1, 0]])


def test_infinities_and_nan_in_pools(backend: str) -> None:
    x = np.zeros((1, 4, 4, 1), "float32")
    x[0, 0, 0], x[0, 0, 3], x[0, 2:, :2], x[0, 3, 3] = np.nan, np.inf, -np.inf, -np.inf
    largest, mean = [K.eval(K.pool2d(K.variable(x), (2, 2), (2, 2), pool_mode=mode)) for mode in ("max", "avg")]
    np.testing.assert_array_equal(largest[0, :, :, 0], [[np.nan, np.inf], [-np.inf, 0]])
    np.testing.assert_array_equal(mean[0, :, :, 0], [[np.nan, np.inf], [-np.inf, -np.inf]])
    bordered = K.eval(K.pool2d(K.variable(np.full((1, 3, 3, 1), -np.inf)), (2, 2), (2, 2), "same"))
    np.testing.assert_array_equal(bordered, np.full((1, 2, 2, 1), -np.inf))


def test_one_program_for_finite_values_and_others_and_for_no_sample(backend: str) -> None:
    """The quickest way through a pool on TensorFlow is for finite values of some samples: the others have another."""
    x = K.placeholder((None, 4, 4, 1))
    kernel = K.variable(np.ones((1, 1, 1, 2)))
    y = K.pool2d(K.conv2d(x, kernel), (2, 2), (2, 2))
    call = K.function([x], [y, *K.gradients(K.sum(y), [x, kernel])])
    ordinary = np.arange(32, dtype="float32").reshape(2, 4, 4, 1)
    odd = ordinary.copy()
    odd[0, 0, 0], odd[1, 3, 3], odd[1, :2, :2] = np.nan, np.inf, -np.inf
    expected = np.repeat([[[[5], [7]], [[13], [15]]], [[[21], [23]], [[29], [31]]]], 2, axis=3).astype("float32")
    strange = expected.copy()
    strange[0, 0, 0], strange[1, 1, 1], strange[1, 0, 0] = np.nan, np.inf, -np.inf
    for fed, wanted in ((ordinary, expected), (ordinary[:0], expected[:0]), (ordinary[:1], expected[:1])):
        found = call([fed])
        np.testing.assert_array_equal(found[0], wanted)
        assert found[1].sum() == 8 * len(fed)
        np.testing.assert_array_equal(found[2], np.full((1, 1, 1, 2), wanted.sum() / 2))
    for fed, wanted in ((odd, strange), (ordinary[:0], expected[:0]), (ordinary, expected), (odd, strange)):
        np.testing.assert_array_equal(call([fed])[0], wanted)


def test_windows_of_a_piece_that_may_be_empty(backend: str) -> None:
    x = K.placeholder((None, 4, 4, 1))
    kernel = K.variable(np.ones((2, 2, 1, 3)))
    y = K.pool2d(K.conv2d(K.relu(x)[2:], kernel), (2, 2), (1, 1))
    z = K.depthwise_conv2d(K.concatenate([x[2:], x[:1] * 2], 0), kernel)
    call = K.function([x], [y, z, *K.gradients(K.sum(y) + K.sum(z), [x, kernel])])
    for count in (3, 2, 4, 1, 0):
        found = call([np.ones((count, 4, 4, 1))])
        rows, more = max(0, count - 2), max(0, count - 2) + min(1, count)
        assert [value.shape for value in found] == [(rows, 2, 2, 3), (more, 3, 3, 3), (count, 4, 4, 1), (2, 2, 1, 3)]
        assert found[0].sum() == rows * 48
        assert found[1].sum() == (rows + 2 * min(1, count)) * 108


def test_a_pool_in_the_steps_of_a_loop_of_what_is_not_finite(backend: str) -> None:
    x = K.placeholder((None, 3, 4, 4, 1))

    def step(now: Any, states: list[Any]) -> tuple[Any, list[Any]]:
        new = K.pool2d(now, (2, 2), (2, 2)) + states[0]
        return new, [new]

    last, _, _ = K.rnn(step, x, [K.zeros_like(K.pool2d(x[:, 0], (2, 2), (2, 2)))])
    call = K.function([x], [last])
    values = np.ones((2, 3, 4, 4, 1), "float32")
    np.testing.assert_array_equal(call([values])[0], np.full((2, 2, 2, 1), 3))
    values[0, 1, 0, 0], values[1, 2, 2:, 2:] = np.nan, -np.inf
    wanted = np.full((2, 2, 2, 1), 3, "float32")
    wanted[0, 0, 0], wanted[1, 1, 1] = np.nan, -np.inf
    np.testing.assert_array_equal(call([values])[0], wanted)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("samples", [None, 2])
def test_relu_of_a_layer_with_a_bias_keeps_nan(backend: str, padding: str, samples: int | None) -> None:
    """What engines like to fuse into one kernel."""
    x, rows = K.placeholder((samples, 4, 4, 2)), K.placeholder((samples, 3))
    kernel, bias, weights = K.variable(np.ones((3, 3, 2, 2))), K.variable(np.ones(2)), K.variable(np.ones((3, 2)))
    across = kernel[..., :1]
    layers = [
        lambda: K.conv2d(x, kernel, padding=padding),
        lambda: K.depthwise_conv2d(x, across, padding=padding),
        lambda: K.separable_conv2d(x, across, K.ones((1, 1, 2, 2)), padding=padding),
        lambda: K.dot(rows, weights),
    ]
    values, few = np.ones((2, 4, 4, 2), "float32"), np.ones((2, 3), "float32")
    odd, odder = values.copy(), few.copy()
    odd[1, 1, 1], odder[1, 1] = np.nan, np.nan
    for layer, relu in product(layers, (K.relu, lambda y: K.relu(y, max_value=6.0))):
        call = K.function([x, rows], [relu(K.bias_add(layer(), bias))])
        assert np.isfinite(call([values, few])[0]).all()
        (found,) = call([odd, odder])
        assert np.isfinite(found[0]).all()
        assert np.isnan(found[1].reshape(-1, 2)[0]).all()


def image(*shape: int | None) -> Any:
    return K.placeholder(shape)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (lambda: K.conv2d(image(1, 8, 8, 3), image(3, 3, 4, 5)), ShapeError, ["(1, 8, 8, 3)", "(3, 3, 4, 5)"]),
        (lambda: K.conv2d(image(1, 8, 3), image(3, 3, 3, 5)), ShapeError, ["(1, 8, 3)", "4 axes"]),
        (lambda: K.conv2d(image(1, 8, 8, 3), image(3, 3, 3)), ShapeError, ["(3, 3, 3)", "4 axes"]),
        (lambda: K.conv2d(image(1, 8, 8, 3), image(None, 3, 3, 2)), ShapeError, ["(None, 3, 3, 2)"]),
        (lambda: K.conv2d(image(1, 2, 8, 3), image(3, 3, 3, 2)), ShapeError, ["conv2d", "length 2", "covers 3"]),
        (lambda: K.conv1d(image(1, 4, 3), image(3, 3, 2), dilation_rate=2), ShapeError, ["length 4", "covers 5"]),
        (lambda: K.pool2d(image(1, 2, 2, 3), (3, 3)), ShapeError, ["pool2d", "length 2"]),
        (lambda: K.pool3d(image(1, 2, 2, 3), (2, 2, 2)), ShapeError, ["(1, 2, 2, 3)", "5 axes"]),
        (lambda: K.conv2d(K.zeros((1, 4, 4, 1), dtype="int32"), image(3, 3, 1, 1)), DTypeError, ["int32", "K.cast"]),
        (lambda: K.conv2d(image(1, 4, 4, 1), K.zeros((3, 3, 1, 1), dtype="bool")), DTypeError, ["bool", "K.cast"]),
        (lambda: K.pool2d(K.zeros((1, 4, 4, 1), dtype="int64"), (2, 2)), DTypeError, ["int64", "K.cast"]),
        (lambda: K.conv2d(image(1, 4, 4, 1), image(3, 3, 1, 1), padding="full"), ArgumentError, ["'full'", "same"]),
        (lambda: K.conv2d(image(1, 4, 4, 1), image(3, 3, 1, 1), padding="causal"), ArgumentError, ["'causal'"]),
        (lambda: K.conv2d(image(1, 4, 4, 1), image(3, 3, 1, 1), strides=(0, 1)), ArgumentError, ["(0, 1)"]),
        (lambda: K.conv2d(image(1, 4, 4, 1), image(3, 3, 1, 1), strides=(1, 1, 1)), ArgumentError, ["2 ints"]),
        (lambda: K.conv2d(image(1, 4, 4, 1), image(3, 3, 1, 1), data_format="hwc"), ArgumentError, ["'hwc'"]),
        (lambda: K.pool2d(image(1, 4, 4, 1), (2, 2), pool_mode="sum"), ArgumentError, ["'sum'", "max, avg"]),
        (
            lambda: K.conv2d_transpose(image(1, 4, 4, 2), image(3, 3, 5, 3), (1, 6, 6, 5)),
            ShapeError,
            ["(1, 4, 4, 2)", "(3, 3, 5, 3)"],
        ),
        (
            lambda: K.conv2d_transpose(image(1, 4, 4, 2), image(3, 3, 5, 2), (1, 6, 6, 4)),
            ShapeError,
            ["(1, 6, 6, 4)", "(3, 3, 5, 2)"],
        ),
        (
            lambda: K.conv2d_transpose(image(1, 4, 4, 2), image(3, 3, 5, 2), (1, 7, 6, 5)),
            ShapeError,
            ["(1, 4, 4, 2)", "(7, 6)"],
        ),
        (lambda: K.conv2d_transpose(image(1, 4, 4, 2), image(3, 3, 5, 2), (1, -1, 6, 5)), ShapeError, ["(-1, 6)"]),
        (lambda: K.conv2d_transpose(image(1, 4, 4, 2), image(3, 3, 5, 2), (6, 6, 5)), ShapeError, ["4 entries"]),
        (
            lambda: K.conv2d_transpose(image(1, 4, 4, 2), image(3, 3, 5, 2), (2, 6, 6, 5)),
            ShapeError,
            ["(2, 6, 6, 5)", "(1, 4, 4, 2)"],
        ),
        (
            lambda: K.separable_conv2d(image(1, 4, 4, 2), image(3, 3, 2, 2), image(1, 1, 3, 2)),
            ShapeError,
            ["(1, 1, 3, 2)"],
        ),
        (
            lambda: K.separable_conv1d(image(1, 4, 2), image(3, 2, 2), image(1, 3, 2)),
            ShapeError,
            ["(3, 2, 2)", "(1, 3, 2)"],
        ),
        (
            lambda: K.separable_conv2d(image(1, 4, 4, 2), image(3, 3, 2, 1), image(2, 1, 2, 2)),
            ShapeError,
            ["(2, 1, 2, 2)"],
        ),
        (lambda: K.local_conv1d(image(1, 7, 3), image(3, 8, 2), (3,), (2,)), ShapeError, ["(1, 7, 3)", "(3, 8, 2)"]),
        (lambda: K.local_conv1d(image(1, 5, 3), image(3, 9, 2), (3,), (2,)), ShapeError, ["(1, 5, 3)"]),
        (
            lambda: K.local_conv2d(image(1, 5, 5, 1), image(9, 9, 2), (3, 3), (1, 1), (3, 4)),
            ShapeError,
            ["(9, 9, 2)", "12 positions"],
        ),
    ],
)
def test_what_cannot_work_is_refused_where_it_is_written(
    wrong: Callable[[], Any], error: type[Exception], words: list[str]
) -> None:
    with pytest.raises(error) as caught:
        wrong()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_too_short_at_the_call(backend: str) -> None:
    x = K.placeholder((None, None, 4, 1))
    call = K.function([x], [K.conv2d(x, K.variable(np.ones((3, 3, 1, 1))))])
    assert call([np.ones((1, 3, 4, 1))])[0].shape == (1, 1, 2, 1)
    with pytest.raises(ShapeError, match="length 2"):
        call([np.ones((1, 2, 4, 1))])


def test_rules_of_all_composites() -> None:
    for name in COMPOSITES:
        assert RULES[name].decompose is not None, name
        assert RULES[name].vjp is not None, name


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_a_window_that_what_is_fed_does_not_hold_is_refused(backend: str, mode: str) -> None:
    x = K.placeholder((None, None, None, 2))
    y = K.pool2d(x, (2, 2), padding="valid", data_format="channels_last", pool_mode=mode)
    call, slope = K.function([x], [y]), K.function([x], K.gradients(K.sum(y), [x]))
    for function in (call, slope):
        with pytest.raises(ShapeError, match="a window covers 2") as refused:
            function([np.ones((1, 1, 3, 2), "float32")])
        assert "test_convolution.py" in str(refused.value)
    assert call([np.ones((1, 2, 3, 2), "float32")])[0].shape == (1, 1, 2, 2)


@pytest.mark.parametrize("lengths", [(6, 4), (None, None)])
@pytest.mark.parametrize("strides", [(1, 2), (2, 1), (1, 3)])
def test_unequal_strides_of_one_channel(backend: str, lengths: Any, strides: Any) -> None:
    """oneDNN, by which two engines compute, takes other rows where each has one place."""
    values = np.arange(72, dtype="float32").reshape(3, 6, 4, 1)
    kernel = np.array([1, 10, 100], "float32")
    x = K.placeholder((None, *lengths, 1))
    for size, fed in (((1, 3, 1, 1), values), ((3, 1, 1, 1), values[:, :4])):
        if lengths[0] is None or fed is values:
            found = K.function([x], [K.conv2d(x, K.variable(kernel.reshape(size)), strides=strides)])([fed])[0]
            np.testing.assert_array_equal(found, conv(fed, kernel.reshape(size), strides, "valid"))


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("strides", [(2, 2), (2, 1), (1, 3)])
def test_slopes_of_a_kernel_of_one_element_with_strides(backend: str, strides: Any, padding: str) -> None:
    """Where oneDNN's own way isn't sound."""
    random = np.random.RandomState(0)
    values = random.standard_normal((3, 6, 5, 3)).astype("float32")
    met = values[:, :: strides[0], :: strides[1]]
    x, kernel, across = K.placeholder((None, 6, 5, 3)), K.variable(random.rand(1, 1, 3, 4)), K.ones((1, 1, 3, 2))
    y = K.conv2d(x, kernel, strides=strides, padding=padding)
    z = K.depthwise_conv2d(x, across, strides=strides, padding=padding)
    slopes = K.function([x], [*K.gradients(K.sum(y), [x, kernel]), *K.gradients(K.sum(z), [x, across])])
    of_x, of_kernel, of_x_again, of_across = slopes([values])
    wanted = np.zeros_like(values)
    wanted[:, :: strides[0], :: strides[1]] = K.get_value(kernel).sum((0, 1, 3))
    np.testing.assert_allclose(of_x, wanted, rtol=1e-5)
    np.testing.assert_allclose(of_x_again, np.where(wanted, 2, 0), rtol=1e-5)
    totals = met.sum((0, 1, 2))
    np.testing.assert_allclose(of_kernel[0, 0], np.repeat(totals[:, None], 4, 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(of_across[0, 0], np.repeat(totals[:, None], 2, 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("function", [K.conv2d, K.depthwise_conv2d])
def test_a_kernel_that_what_is_fed_does_not_hold_is_refused(backend: str, function: Any, dilation: int) -> None:
    x, kernel = K.placeholder((None, None, 6, 2)), K.ones((3, 1, 2, 3))
    y = function(x, kernel, dilation_rate=dilation)
    for result in (y, *K.gradients(K.sum(y), [x, kernel])):
        call = K.function([x], [result])
        with pytest.raises(ShapeError, match=f"a window covers {1 + 2 * dilation}") as refused:
            call([np.ones((1, 2 * dilation, 6, 2), "float32")])
        assert "test_convolution.py" in str(refused.value)
        assert np.isfinite(call([np.ones((1, 1 + 2 * dilation, 6, 2), "float32")])[0]).all()
