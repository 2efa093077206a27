"""Convolutions and pools as the windows they are: on every engine against plain loops, against finite differences, and
against what each is written out as; nets of both, and what is refused. What each has of its own is in
test_convolution.py and test_pools.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.arrays import assert_close
from helpers.fake_engines import lacking_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from window_cases import CONVOLUTIONS, OTHERS, Array, conv, operands, pool, wide

import kernelk
from kernelk import backend as K
from kernelk.backends.base import COMPOSITES
from kernelk.errors import ArgumentError, DTypeError, ShapeError
from kernelk.graph.rules import RULES, apply, expand

CASES = {"convolutions": CONVOLUTIONS, "others": OTHERS}


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


def test_rules_of_all_composites() -> None:
    for name in COMPOSITES:
        assert RULES[name].decompose is not None, name
        assert RULES[name].vjp is not None, name


# --- nets of both: second order, unknown lengths, edges ---------------------------------------------------------


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


# --- what is refused, in the line that wrote it -----------------------------------------------------------------


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
