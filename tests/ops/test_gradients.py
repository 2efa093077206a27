"""Gradients: every VJP rule against central differences in float64, twice differentiated, on every engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.arrays import assert_close, fits
from hypothesis import given, settings
from hypothesis import strategies as st

import kernelk
from kernelk import backend as K
from kernelk.errors import ArgumentError, DTypeError, FeedError, SwapRefusedError
from kernelk.graph.nodes import Tensor, walk
from kernelk.graph.rules import RULES, apply
from kernelk.ops.shapes import sum_to

Shape = tuple[int, ...]


class Case(NamedTuple):
    """An expression of float64 operands of these shapes; unknown: which axes the placeholders leave open."""

    label: str
    graph: Callable[..., Any]
    shapes: list[Shape]
    positive: bool = False
    unknown: bool = True


M, V, C, ROW, S, T = (3, 4), (4,), (3, 1), (1, 4), (), (2, 3, 4)

CASES = [
    Case("negative", lambda x: -x, [M]),
    Case("abs", lambda x: K.abs(x), [M]),
    Case("sqrt", lambda x: K.sqrt(x), [M], positive=True),
    Case("exp", lambda x: K.exp(x), [M]),
    Case("log", lambda x: K.log(x), [M], positive=True),
    Case("tanh", lambda x: K.tanh(x), [M]),
    Case("sigmoid", lambda x: K.sigmoid(x), [M]),
    Case("relu", lambda x: K.relu(x), [M]),
    Case("relu alpha", lambda x: K.relu(x, 0.2, 1.5, 0.3), [M]),
    Case("square", lambda x: K.square(x), [M]),
    Case("clip", lambda x: K.clip(x, -0.7, 0.8), [M]),
    Case("clip by tensors", lambda x, y: K.clip(x, K.minimum(x, y), y + 1.0), [M, ROW]),
    Case("add", lambda x, y: x + y, [M, M]),
    Case("add row", lambda x, y: x + y, [M, V]),
    Case("add column", lambda x, y: x + y, [C, ROW]),
    Case("add scalar", lambda x, y: x + y, [S, M]),
    Case("subtract", lambda x, y: x - y, [V, M]),
    Case("multiply", lambda x, y: x * y, [M, C]),
    Case("multiply itself", lambda x: x * x * x, [M]),
    Case("divide", lambda x, y: x / y, [M, V], positive=True),
    Case("divide column", lambda x, y: x / y, [V, C], positive=True),
    Case("1 / x", lambda x: 1.0 / x, [M], positive=True),
    Case("mod", lambda x, y: x % y, [M, V], positive=True),
    Case("floor_divide", lambda x, y: x // y + x * y, [M, V], positive=True),
    Case("power 2", lambda x: K.pow(x, 2), [M]),
    Case("power 3", lambda x: x**3, [M]),
    Case("power 0.5", lambda x: x**0.5, [M], positive=True),
    Case("power y", lambda x, y: K.pow(x, y), [M, V], positive=True),
    Case("2 ** x", lambda x: 2.0**x, [M]),
    Case("maximum", lambda x, y: K.maximum(x, y), [M, V]),
    Case("minimum", lambda x, y: K.minimum(x, y), [C, ROW]),
    Case("select", lambda x, y: K.in_train_phase(x * 2.0, y, training=K.sum(x) > 0), [M, V]),
    Case("select row", lambda x, y: apply("select", x < y, x * y, y * y), [C, ROW]),
    Case("cast", lambda x: K.cast(K.cast(x, "float64") * 2.0, "float64"), [M]),
    Case("sign", lambda x: x * K.sign(x), [M]),
    Case("sum", lambda x: K.sum(x) * x, [M]),
    Case("sum 0", lambda x: K.sum(x * x, axis=0), [M]),
    Case("sum 1 k", lambda x: K.sum(x, axis=1, keepdims=True) * x, [M]),
    Case("sum 0, 2", lambda x: K.exp(K.sum(x, axis=(0, 2)) * 0.1), [T]),
    Case("sum 1 of 3", lambda x: K.square(K.sum(x, axis=1)), [T]),
    Case("mean", lambda x: K.mean(x) * x, [M]),
    Case("mean 0", lambda x: K.square(K.mean(x, axis=0)), [M]),
    Case("mean 1, 2", lambda x: K.square(K.mean(x, axis=(1, 2))), [T]),
    Case("max", lambda x: K.max(x * x), [M]),
    Case("max 0", lambda x: K.max(x, axis=0) * x, [M]),
    Case("min 1", lambda x: K.square(K.min(x, axis=1)), [M]),
    Case("max 0, 2 k", lambda x: K.max(x, axis=(0, 2), keepdims=True) * x, [T]),
    Case("softmax", lambda x: K.softmax(x), [M]),
    Case("softmax 0", lambda x: K.softmax(x, axis=0), [T]),
    Case("log_softmax", lambda x: apply("log_softmax", x, axis=1), [M]),
    Case("crossentropy", lambda x, y: K.categorical_crossentropy(K.softmax(y), K.softmax(x)), [M, M]),
    Case("from logits", lambda x, y: K.categorical_crossentropy(K.softmax(y), x, from_logits=True), [M, M]),
    Case("sin", lambda x: K.sin(x) * K.cos(x), [M]),
    Case("prod 1", lambda x: K.prod(x, axis=1), [T]),
    Case("prod", lambda x: K.prod(x), [(2, 3)]),
    Case("cumsum", lambda x: K.square(K.cumsum(x, axis=1)), [M]),
    Case("cumprod", lambda x: K.cumprod(x, axis=0), [M], unknown=False),
    Case("cumprod unknown", lambda x: K.cumprod(x, axis=1), [M], positive=True),
    Case("var", lambda x: K.var(x, axis=0), [M]),
    Case("logsumexp", lambda x: K.logsumexp(x, axis=1), [M]),
    Case("gather", lambda x: K.square(K.gather(x, K.constant([2, 0, 2], dtype="int32"))), [M]),
    Case("tile", lambda x: K.square(K.tile(x, [2, 1])), [M]),
    Case("pad", lambda x: K.square(K.temporal_padding(x)), [T]),
    Case("repeat_elements", lambda x: K.repeat_elements(x * x, 2, 1), [M]),
    Case("batch_dot", lambda x, y: K.batch_dot(x, y), [T, (2, 4, 2)]),
    Case("batch_dot axes", lambda x, y: K.batch_dot(x, y, axes=(1, 2)), [T, (2, 2, 3)]),
    Case("softplus", lambda x: K.softplus(x), [M]),
    Case("elu", lambda x: K.elu(x), [M]),
    Case("softsign", lambda x: K.softsign(x), [M]),
    Case("cast to an integer", lambda x: K.cast(K.cast(x * 3.0, "int32"), "float32") * x, [M]),
    Case("l2_normalize", lambda x: K.l2_normalize(x, axis=1), [M], positive=True),
    Case("binary_crossentropy", lambda x: K.binary_crossentropy(K.constant(0.3), K.sigmoid(x)), [M]),
    Case("categorical_crossentropy", lambda x: K.categorical_crossentropy(x * x, K.softmax(x)), [M]),
    Case("switch", lambda x, y: K.switch(x > y, x * y, y), [M, M]),
    Case("dot", lambda x, y: K.dot(x, y), [M, (4, 2)]),
    Case("dot transposed", lambda x, y: K.dot(K.transpose(x), y), [M, (3, 2)]),
    Case("matmul ta", lambda x, y: apply("matmul", x, y, transpose_a=True, transpose_b=False), [(4, 3), (4, 2)]),
    Case("matmul tb", lambda x, y: apply("matmul", x, y, transpose_a=False, transpose_b=True), [M, (2, 4)]),
    Case("matmul ta tb", lambda x, y: apply("matmul", x, y, transpose_a=True, transpose_b=True), [(4, 3), (2, 4)]),
    Case("dot 3, 2", lambda x, y: K.dot(x, y), [T, (4, 2)]),
    Case("dot 2, 3", lambda x, y: K.dot(x, y), [M, (2, 4, 2)]),
    Case("dot 1, 1", lambda x, y: K.dot(x, y) * x, [V, V]),
    Case("transpose", lambda x: K.transpose(x) * K.transpose(x), [T]),
    Case("permute", lambda x: K.square(K.permute_dimensions(x, (1, 2, 0))), [T]),
    Case("reshape", lambda x: K.square(K.reshape(x, (-1, 2))), [M]),
    Case("reshape fixed", lambda x: K.square(K.reshape(x, (2, 6))), [M], unknown=False),
    Case("reshape like", lambda x, y: K.reshape(x, K.shape(y)) * y, [M, (4, 3)]),
    Case("flatten", lambda x: K.square(K.flatten(x)), [T]),
    Case("batch_flatten", lambda x: K.square(K.batch_flatten(x)), [T]),
    Case("expand_dims", lambda x, y: K.expand_dims(x, 1) * y, [(2, 4), T]),
    Case("squeeze", lambda x: K.square(K.squeeze(x, 1)), [C], unknown=False),
    Case("concatenate", lambda x, y: K.square(K.concatenate([x, y, x], axis=1)), [M, C]),
    Case("concatenate 0", lambda x, y: K.square(K.concatenate([x, y], axis=0)), [M, ROW]),
    Case("slice", lambda x: K.square(x[1:, ::2]), [M]),
    Case("slice backwards", lambda x: K.exp(x[::-1, -2]), [M]),
    Case("index", lambda x: x[1, 2] * x[-1], [M]),
    Case("slices that overlap", lambda x: x[1:] * x[:-1], [M]),
    Case("one row over all", lambda x: x * x[:1], [M]),
    Case("new axis", lambda x: x[:, None] * x[None], [V]),
    Case("broadcast_to", lambda x, y: (K.zeros_like(y) + x) * y, [ROW, M]),
    Case("sum_to", lambda x, y: K.square(sum_to(x, y)) * y, [M, ROW]),
    Case("sum_to vector", lambda x, y: K.square(sum_to(x, y)) * y, [T, V]),
    Case("stop_gradient", lambda x: K.stop_gradient(x) * 1.0 + x * x, [M]),
    Case("identity", lambda x: K.identity(x) * x, [M]),
    Case("print_tensor", lambda x: K.print_tensor(x, "x") * x, [M]),
    Case("a small network", lambda x, w, b, v: K.softmax(K.dot(K.tanh(K.dot(x, w) + b), v)), [M, (4, 5), (5,), (5, 2)]),
]
for _name, _conv in [("conv2d", K.conv2d), ("depthwise", K.depthwise_conv2d)]:
    CASES += [
        Case(
            f"{_name} dilated {rate}",
            lambda x, k, conv=_conv, rate=rate: conv(x, k, padding="same", dilation_rate=(1, rate)),
            [(1, 2, 4, 2), (1, 2, 2, 1)],
            unknown=False,
        )
        for rate in (1, 2)
    ]
CASES += [
    Case(
        f"pool2d {mode}",
        lambda x, mode=mode: K.square(K.pool2d(x, (2, 2), (1, 2), "same", pool_mode=mode)),
        [(1, 3, 4, 2)],
    )
    for mode in ("max", "avg")
]
IDS = [case.label for case in CASES]


def values(case: Case) -> list[np.ndarray]:
    """Distinct values, none near a kink: differences of 1e-5 change no maximum and cross no threshold."""
    rng = np.random.RandomState(len(case.label))
    made = []
    for shape in case.shapes:
        count = int(np.prod(shape))
        spaced = (np.arange(count) - count / 2 + 0.37) * 0.31 + 0.05 * rng.rand(count)
        array = rng.permutation(spaced).reshape(shape)
        made.append(np.abs(array) + 0.6 + 0.013 * len(made) if case.positive else array)
    return made


class Built:
    """Loss, gradients and gradients of the gradients of one case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.feeds = values(case)
        shapes = [tuple(None if case.unknown and n != 1 else n for n in shape) for shape in case.shapes]
        self.inputs = [K.placeholder(shape, dtype="float64") for shape in shapes]
        self.value = case.graph(*self.inputs)
        # A loss that weighs elements differently, so that no rule can confuse them and pass.
        self.loss = K.sum(self.value * (self.value * 0.3 + 0.7))
        self.first = K.gradients(self.loss, self.inputs)
        spread = [g * K.tanh(x) + g * g * 0.2 for g, x in zip(self.first, self.inputs)]
        total = K.sum(spread[0])
        for other in spread[1:]:
            total = total + K.sum(other)
        self.again = total
        self.second = K.gradients(total, self.inputs)

    @property
    def outputs(self) -> list[Any]:
        return [self.loss, *self.first, *self.second]


def differences(function: Callable[[list[np.ndarray]], float], feeds: list[np.ndarray]) -> list[np.ndarray]:
    """Central differences of a scalar function by each element of each operand."""
    found = []
    for i, feed in enumerate(feeds):
        slope = np.zeros_like(feed)
        for index in np.ndindex(feed.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = [x.copy() for x in feeds]
                moved[i][index] += step
                ends.append(function(moved))
            slope[index] = (ends[0] - ends[1]) / 2e-5
        found.append(slope)
    return found


@pytest.mark.parametrize("case", CASES, ids=IDS)
def test_against_central_differences(case: Case) -> None:
    built = Built(case)
    for target, gradient in zip(built.inputs, built.first):
        assert gradient.dtype == "float64"
        assert len(gradient.shape) == len(target.shape)
    call = K.function(built.inputs, built.outputs)
    loss = K.function(built.inputs, built.loss)
    again = K.function(built.inputs, built.again)
    _, *gradients = call(built.feeds)
    first, second = gradients[: len(built.inputs)], gradients[len(built.inputs) :]
    for x, got in zip(built.feeds, gradients * 1):
        assert got.shape == x.shape
    if case.label == "stop_gradient":
        # Differences don't know of it: (c + x * x) with c fixed.
        x = built.feeds[0]
        value = x + x * x
        np.testing.assert_allclose(first[0], (0.6 * value + 0.7) * 2 * x, rtol=1e-9)
        return
    for got, wanted in zip(first, differences(lambda feeds: float(loss(feeds)), built.feeds)):
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-6 * max(1.0, np.abs(wanted).max()))
    for got, wanted in zip(second, differences(lambda feeds: float(again(feeds)), built.feeds)):
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-6 * max(1.0, np.abs(wanted).max()))


def test_every_rule_is_met_by_some_case() -> None:
    """A new op with a VJP needs a case here."""
    met: set[str] = set()
    for case in CASES:
        built = Built(case)
        met |= {node.op for node in walk(built.outputs, lambda node: node.inputs)}
    missing = {name for name, rule in RULES.items() if rule.vjp is not None} - met
    assert not missing


@pytest.mark.values
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("part", range(3))
def test_every_engine_agrees_with_numpy(backend: str, part: int, dtype: str) -> None:
    built = [Built(case) for case in CASES[part::3]]
    inputs = [x for b in built for x in b.inputs]
    feeds = [x for b in built for x in b.feeds]
    outputs = [y for b in built for y in b.outputs]
    labels = [b.case.label for b in built for _ in b.outputs]
    if dtype == "float32":
        small = [K.placeholder(x.shape, dtype="float32") for x in inputs]
        inputs, outputs, labels = [], [], []
        for b in built:
            own = [small.pop(0) for _ in b.inputs]
            inputs += own
            loss = K.sum(b.case.graph(*own)) if b.case.label != "cast" else K.sum(own[0])
            outputs += K.gradients(loss, own)
            labels += [b.case.label] * len(own)
    call = K.function(inputs, outputs)
    got = call(feeds)
    kernelk.set_backend("numpy")
    for label, output, value, wanted in zip(labels, outputs, got, call(feeds)):
        assert fits(output, value), label
        assert_close(value, wanted, dtype, label, scale=10.0)


# --- meaning --------------------------------------------------------------------------------------------------


def test_not_connected_is_zeros(backend: str) -> None:
    x, y, n = K.placeholder((None, 3)), K.variable(np.ones((2, 2))), K.placeholder((2,), dtype="int32")
    gradients = K.gradients(K.sum(x * 2.0), [x, y, n])
    assert [g.dtype for g in gradients] == ["float32", "float32", "int32"]
    for size in (2, 1, 0):
        got = K.function([x, n], gradients)([np.ones((size, 3)), [1, 2]])
        assert got[0].tolist() == [[2.0] * 3] * size
        assert got[1].tolist() == [[0.0, 0.0]] * 2
        assert got[2].tolist() == [0, 0]


def test_nothing_flows_through_integers_comparisons_and_stops(backend: str) -> None:
    x = K.placeholder((4,))
    loss = K.sum(
        K.cast(K.cast(x, "int32"), "float32")
        + K.cast(x > 0, "float32") * 3.0
        + K.stop_gradient(x) * 5.0
        + K.sign(x)
        + K.cast(K.argmax(x), "float32")
        + x // 2.0
    )
    assert K.function([x], K.gradients(loss, [x]))([[1.0, -2.0, 3.0, 0.5]])[0].tolist() == [0.0] * 4
    stopped = K.stop_gradient([x, x * 2.0])
    assert isinstance(stopped, list)
    assert K.function([x], K.gradients(K.sum(stopped[1] * x), [x]))([[1.0, 2.0, 3.0, 4.0]])[0].tolist() == [2, 4, 6, 8]


def test_ties_share_the_gradient_of_max(backend: str) -> None:
    x = K.placeholder((None, 3))
    g, h = K.gradients(K.sum(K.max(x, axis=1)), [x])[0], K.gradients(K.min(x), [x])[0]
    top, low = K.function([x], [g, h])([[[2.0, 2.0, 1.0], [1.0, 3.0, 1.0]]])
    assert top.tolist() == [[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]]
    assert_close(low, np.array([[0, 0, 1], [1, 0, 1]], "float32") / 3)
    assert top.sum(1).tolist() == [1.0, 1.0]


def test_equal_operands_of_maximum_count_once(backend: str) -> None:
    x, y = K.placeholder((3,)), K.placeholder((3,))
    outputs = [*K.gradients(K.sum(K.maximum(x, y)), [x, y]), *K.gradients(K.sum(K.minimum(x, y)), [x, y])]
    a, b, c, d = K.function([x, y], outputs)([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0]])
    assert (a + b).tolist() == [1.0] * 3
    assert (c + d).tolist() == [1.0] * 3
    assert a.tolist()[1:] == [0.0, 1.0]
    assert c.tolist()[1:] == [1.0, 0.0]


def test_kinks_have_finite_gradients(backend: str) -> None:
    x = K.placeholder((3,))
    parts = [K.relu(x), K.abs(x), K.clip(x, 0.0, 1.0), K.pow(x, 2), K.pow(x, 3), K.maximum(x, 0.0)]
    got = K.function([x], [K.gradients(K.sum(part), [x])[0] for part in parts])([[0.0, -1.0, 2.0]])
    for value, part in zip(got, parts):
        assert np.isfinite(value).all(), part
    assert got[0].tolist() == [0.0, 0.0, 1.0]
    assert got[1].tolist() == [0.0, -1.0, 1.0]


def test_a_power_with_an_unknown_exponent_at_zero_and_below(backend: str) -> None:
    x, e = K.placeholder((4,)), K.placeholder((4,))
    g = K.gradients(K.sum(K.pow(x, e)), [x, e])
    to_x, to_e = K.function([x, e], g)([[0.0, -2.0, 0.0, 2.0], [2.0, 2.0, 3.0, 3.0]])
    assert_close(to_x, np.array([0.0, -4.0, 0.0, 12.0], "float32"))
    assert_close(to_e, np.array([0.0, 0.0, 0.0, 8 * np.log(2)], "float32"))


@pytest.mark.parametrize("other", [(None, 3), (1, 3), (3,), (None, 1), (None, None), ()])
def test_broadcasting_of_unknown_lengths(backend: str, other: tuple[int | None, ...]) -> None:
    """(None, 3) with feeds of one row or of n: which axes are summed is known only at the call."""
    x, y = K.placeholder((None, 3), dtype="float64"), K.placeholder(other, dtype="float64")
    call = K.function([x, y], [x * y, *K.gradients(K.sum(K.square(x * y)), [x, y])])
    for rows in (4, 1, 0):
        for lines in (1, rows):
            shape = tuple(n if n is not None else (lines if i == 0 else 3) for i, n in enumerate(other))
            a = np.random.RandomState(rows).rand(rows, 3) + 0.5
            b = np.asarray(np.random.RandomState(9).rand(*shape) + 0.5)
            product, to_x, to_y = call([a, b])
            wanted = 2 * a * a * b
            while wanted.ndim > b.ndim:
                wanted = wanted.sum(0)
            for axis in range(b.ndim):
                if b.shape[axis] == 1 and wanted.shape[axis] != 1:
                    wanted = wanted.sum(axis, keepdims=True)
            assert_close(product, a * b)
            assert_close(to_x, 2 * a * b * b)
            assert_close(to_y, wanted, label=f"{rows} rows, {b.shape}")


def test_one_tensor_for_one_variable() -> None:
    v = K.variable([1.0, 2.0])
    (single,) = K.gradients(K.sum(v * v), v)
    assert isinstance(single, Tensor)
    assert K.eval(single).tolist() == [2.0, 4.0]
    assert K.eval(K.gradients(v * v, (v,))[0]).tolist() == [2.0, 4.0]


def test_the_loss_by_itself_and_by_an_intermediate(backend: str) -> None:
    x = K.placeholder((3,))
    middle = x * 2.0
    loss = K.sum(middle * middle)
    by_loss, by_middle, by_x = K.function([x], K.gradients(loss, [loss, middle, x]))([[1.0, 2.0, 3.0]])
    assert by_loss == 1.0
    assert by_middle.tolist() == [4.0, 8.0, 12.0]
    assert by_x.tolist() == [8.0, 16.0, 24.0]


def test_saliency(backend: str) -> None:
    """A gradient is a value like any other: used in a further op, in a loss, in an update."""
    x, w = K.placeholder((None, 3)), K.variable(np.arange(1.0, 7.0).reshape(3, 2))
    scores = K.softmax(K.dot(x, w))
    (saliency,) = K.gradients(K.max(scores, axis=1), [x])
    strongest = K.max(K.abs(saliency), axis=1) / (K.sum(K.abs(saliency)) + K.epsilon())
    penalty = K.sum(K.square(saliency))
    (step,) = K.gradients(penalty, [w])
    call = K.function([x], [strongest, penalty, step], [K.update_sub(w, step * 0.1)])
    data = np.random.RandomState(0).rand(4, 3).astype("float32")
    before = K.get_value(w)
    got = call([data])
    K.set_value(w, before)
    kernelk.set_backend("numpy")
    for value, wanted in zip(got, call([data])):
        assert_close(value, wanted, scale=10)
    assert np.isclose(got[0].sum(), got[0].sum())
    assert not np.array_equal(K.get_value(w), before)


def test_second_order_of_a_polynomial(backend: str) -> None:
    x = K.placeholder((), dtype="float64")
    derivatives = [x**5 + x**2]
    for _ in range(4):
        derivatives.append(K.gradients(derivatives[-1], [x])[0])
    got = K.function([x], derivatives)([2.0])
    assert [float(value) for value in got] == pytest.approx([36, 84, 162, 240, 240], rel=1e-12)


def test_the_learning_phase_chooses_the_gradient(backend: str) -> None:
    x = K.placeholder((3,))
    y = K.in_train_phase(x * x, x * 3.0)
    g = K.gradients(K.sum(y * 2.0), [x])[0]
    call = K.function([x, K.learning_phase()], [g, K.sum(g)])
    assert call([[1.0, 2.0, 3.0], 1])[0].tolist() == [4.0, 8.0, 12.0]
    assert call([[1.0, 2.0, 3.0], 0])[0].tolist() == [6.0, 6.0, 6.0]
    again = K.gradients(K.sum(g), [x])[0]
    second = K.function([x, K.learning_phase()], [again])
    assert second([[1.0, 2.0, 3.0], 1])[0].tolist() == [4.0] * 3
    assert second([[1.0, 2.0, 3.0], 0])[0].tolist() == [0.0] * 3


def test_the_dead_branch_spoils_no_gradient(backend: str) -> None:
    """Its slope is infinite where the other branch is used, and it needs a feed that isn't there."""
    x, mask = K.placeholder((2,)), K.placeholder((2,))
    y = K.in_train_phase(K.log(x) * mask, x * 3.0)
    g = K.gradients(K.sum(y), [x])[0]
    assert K.eval(g, {x: [0.0, -1.0]}).tolist() == [3.0, 3.0]
    with pytest.raises(FeedError):
        K.eval(g, {x: [1.0, 1.0], K.learning_phase(): 1})
    trained = K.eval(g, {x: [0.5, 2.0], mask: [1.0, 1.0], K.learning_phase(): 1})
    assert trained.tolist() == [2.0, 0.5]


def test_branches_of_different_shapes(backend: str) -> None:
    x = K.placeholder((None, 2))
    y = K.in_train_phase(x[:1] * 2.0, x)
    g = K.gradients(K.sum(y), [x])[0]
    call = K.function([x, K.learning_phase()], [g])
    assert call([np.ones((3, 2)), 0])[0].tolist() == [[1.0, 1.0]] * 3
    assert call([np.ones((3, 2)), 1])[0].tolist() == [[2.0, 2.0], [0.0, 0.0], [0.0, 0.0]]


def test_softmax_and_crossentropy_give_the_textbook_gradient(backend: str) -> None:
    x = K.placeholder((None, 5))
    target = np.eye(5)[[0, 3, 4, 1]]
    data = np.random.RandomState(1).randn(4, 5)
    soft = np.exp(data) / np.exp(data).sum(1, keepdims=True)
    t = K.constant(target)
    for loss in (
        K.categorical_crossentropy(t, K.softmax(x)),
        K.categorical_crossentropy(t, x, from_logits=True),
    ):
        g = K.gradients(K.mean(loss), [x])[0]
        assert_close(K.eval(g, {x: data}), ((soft - target) / 4).astype("float32"))


def test_crossentropies_of_a_saturated_sigmoid_and_softmax_are_those_of_its_logits(backend: str) -> None:
    """The numbers are those of Keras 2.3.1 on TensorFlow 1.15; the sigmoids have rounded to 0 and 1."""
    x, t = K.placeholder((4,)), K.constant([0.0, 1.0, 1.0, 0.3])
    loss = K.binary_crossentropy(t, K.sigmoid(x))
    value, slope = K.function([x], [loss, *K.gradients(loss, [x])])([[20.0, -20.0, -100.0, 50.0]])
    np.testing.assert_allclose(value, [20, 20, 100, 35], rtol=1e-6)
    np.testing.assert_allclose(slope, [1, -1, -1, 0.7], rtol=1e-6)

    logits = K.placeholder((None, 2))
    for loss in (
        K.categorical_crossentropy(K.constant([[0.0, 1.0]] * 2), K.softmax(logits)),
        K.sparse_categorical_crossentropy(K.constant([1, 1]), K.softmax(logits)),
    ):
        value, slope = K.function([logits], [loss, *K.gradients(loss, [logits])])([[[20.0, -20.0], [50.0, 3.0]]])
        np.testing.assert_allclose(value, [40, 47], rtol=1e-6)
        np.testing.assert_allclose(slope, [[1, -1], [1, -1]], rtol=1e-6)
    # Shares along another axis than the loss's are probabilities like any others.
    loss = K.categorical_crossentropy(K.constant([[0.0, 1.0]] * 2), K.softmax(logits, axis=0))
    assert K.eval(loss, {logits: [[0.0, 0.0], [0.0, 0.0]]}).tolist() == pytest.approx([np.log(2)] * 2)


def test_crossentropies_by_their_probabilities(backend: str) -> None:
    data = np.array([[1.5, -2.0, 0.25], [0.0, 3.0, -1.0]])
    x, t = K.placeholder((2, 3), dtype="float64"), np.eye(3)[[2, 0]]
    p, soft = K.sigmoid(x), K.softmax(x)
    whole = 1 / (1 + np.exp(-data))
    shares = np.exp(data) / np.exp(data).sum(1, keepdims=True)
    for loss, of, by_it, by_logits in (
        (K.binary_crossentropy(K.constant(t, dtype="float64"), p), p, (whole - t) / (whole * (1 - whole)), whole - t),
        (K.categorical_crossentropy(K.constant(t, dtype="float64"), soft), soft, 1 - t / shares, shares - t),
        (K.sparse_categorical_crossentropy(K.constant([2, 0]), soft), soft, 1 - t / shares, shares - t),
        # The probabilities are targets, too.
        (K.binary_crossentropy(p, p), p, -data, -data * whole * (1 - whole)),
    ):
        first, second, third = K.function([x], K.gradients(loss, [of, x, of]))([data])
        np.testing.assert_allclose(first, by_it, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(second, by_logits, rtol=1e-12, atol=1e-15)
        assert (third == first).all()


def test_a_crossentropy_in_a_loop_over_its_probabilities(backend: str) -> None:
    w = K.variable([0.5, -40.0], dtype="float64")
    rows = K.constant([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype="float64")
    p = K.sigmoid(w)
    for loss in (
        K.sum(K.map_fn(lambda row: K.binary_crossentropy(row, K.sigmoid(w)), rows)),
        K.sum(K.map_fn(lambda row: K.binary_crossentropy(row, p), rows)),
    ):
        (slope,) = K.function([], K.gradients(loss, [w]))([])
        np.testing.assert_allclose(slope, [3 / (1 + np.exp(-0.5)) - 2, -2], rtol=1e-12)


def test_large_logits_stay_finite(backend: str) -> None:
    x = K.placeholder((None, 3))
    t = K.constant([[1.0, 0.0, 0.0]])
    loss = K.categorical_crossentropy(t, x, from_logits=True)
    value, g = K.function([x], [loss, K.gradients(loss, [x])[0]])([[[-500.0, 500.0, 0.0]]])
    assert value.tolist() == [1000.0]
    assert g.tolist() == [[-1.0, 1.0, 0.0]]
    both = K.function([x], [K.sigmoid(x), K.gradients(K.sum(K.sigmoid(x)), [x])[0]])([[[-500.0, 500.0, 0.0]]])
    assert both[0].tolist() == [[0.0, 1.0, 0.5]]
    assert both[1].tolist() == [[0.0, 0.0, 0.25]]


def test_momentum_on_a_quadratic(backend: str) -> None:
    """Forty steps of the usual update, against the same arithmetic in numpy."""
    goal = np.array([3.0, -1.0])
    w, speed = K.variable(np.zeros(2), dtype="float64"), K.variable(np.zeros(2), dtype="float64")
    loss = K.sum(K.square(w - K.constant(goal, dtype="float64")))
    g = K.gradients(loss, [w])[0]
    step = speed * 0.9 - g * 0.05
    call = K.function([], [loss], [K.update(speed, step), K.update_add(w, step)])
    own_w, own_speed = np.zeros(2), np.zeros(2)
    for _ in range(40):
        assert_close(call([])[0], ((own_w - goal) ** 2).sum())
        own_speed = own_speed * 0.9 - 2 * (own_w - goal) * 0.05
        own_w = own_w + own_speed
        assert_close(K.get_value(w), own_w)


@settings(max_examples=40)
@given(data=st.data())
def test_random_chains(data: st.DataObject) -> None:
    """Any chain of rules: the chain rule itself is at work, and nodes used many times add up."""
    steps = data.draw(
        st.lists(
            st.sampled_from(["tanh", "sum", "mul", "max", "slice", "cat", "dot", "soft", "shift"]),
            min_size=1,
            max_size=8,
        )
    )
    x = K.placeholder((None, 3), dtype="float64")
    y = x
    for i, step in enumerate(steps):
        if step == "tanh":
            y = K.tanh(y)
        elif step == "sum":
            y = y + K.sum(y, axis=i % 2, keepdims=True) * 0.3
        elif step == "mul":
            y = y * (x * 0.5 + 0.1)
        elif step == "max":
            y = y + K.max(y * y, axis=1, keepdims=True) * 0.2
        elif step == "slice":
            y = y + y[:, ::-1] * y[:1]
        elif step == "cat":
            y = K.concatenate([y[:, :1], y[:, 1:] * x[:, :2]], axis=1)
        elif step == "dot":
            y = K.dot(y, K.dot(K.transpose(x), x)) * 0.1
        elif step == "soft":
            y = K.softmax(y) + y * 0.1
        else:
            y = y - K.mean(y)
    loss = K.sum(y * y)
    call = K.function([x], [loss, K.gradients(loss, [x])[0]])
    feed = np.random.RandomState(data.draw(st.integers(0, 99))).permutation(np.linspace(-1, 1.1, 12)).reshape(4, 3)
    _, got = call([feed])
    (wanted,) = differences(lambda feeds: float(call(feeds)[0]), [feed])
    scale = max(1.0, np.abs(wanted).max())
    np.testing.assert_allclose(got / scale, wanted / scale, rtol=1e-4, atol=1e-6)


def test_what_is_refused() -> None:
    x = K.placeholder((2,))
    with pytest.raises(ArgumentError, match="the loss is int32; it must be a float tensor"):
        K.gradients(K.cast(x, "int32"), [x])
    with pytest.raises(ArgumentError, match="expected tensors"):
        K.gradients(K.sum(x), [3.0])
    with pytest.raises((ArgumentError, DTypeError)):
        K.gradients("loss", [x])


def test_gradients_are_checked_at_a_swap_like_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    from helpers.fake_engines import lacking_engine

    lacking_engine(monkeypatch, "poor", ops={"unslice"})
    x = K.variable([1.0, 2.0, 3.0])
    call = K.function([], K.gradients(K.sum(x[1:] * x[:-1]), [x]))
    with pytest.raises(SwapRefusedError, match="no op 'unslice'"):
        kernelk.set_backend("poor")
    assert call([])[0].tolist() == [2.0, 4.0, 2.0]


def test_where_relu_gives_zero_no_infinity_comes_through(backend: str) -> None:
    x, w = K.placeholder((4,)), K.placeholder((4,))
    slope = K.function([x, w], K.gradients(K.sum(K.relu(x) * w), x))
    got = slope([[-1.0, 0.0, 2.0, np.nan], [np.inf, np.nan, np.inf, 1.0]])[0]
    assert got.tolist() == [0.0, 0.0, np.inf, 0.0]
