"""Values and slopes that lose no digits, on each engine: far out, near 0, over long axes, and in float16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest

from kernelk import backend as K
from kernelk.errors import EngineError


def at(function: Callable[[Any], Any], values: Any, dtype: str = "float32") -> tuple[Any, Any]:
    """A function's values at some points, and its slopes there."""
    x = K.placeholder((None,), dtype=dtype)
    y = function(x)
    value, slope = K.function([x], [y, *K.gradients(K.sum(y), [x])])([np.asarray(values, dtype)])
    return value, slope


def softplus(x: Any) -> Any:
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def logistic(x: Any) -> Any:
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)


def slope_of_logistic(x: Any) -> Any:
    small = np.exp(-np.abs(x))
    return small / (1 + small) ** 2


POINTS = np.array([-59, -20, -5, -1, -1e-3, -1e-6, 0, 1e-6, 1e-3, 0.5, 1, 5, 20, 59])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("function", "right", "slope"),
    [
        (lambda x: K.sigmoid(x), logistic, slope_of_logistic),
        (lambda x: K.softplus(x), softplus, logistic),
        (lambda x: K.tanh(x), np.tanh, lambda x: 4 * slope_of_logistic(2 * x)),
        (lambda x: K.elu(x), lambda x: np.where(x > 0, x, np.expm1(x)), lambda x: np.where(x > 0, 1, np.exp(x))),
        (
            lambda x: K.binary_crossentropy(K.ones_like(x), x, from_logits=True),
            lambda x: softplus(-x),
            lambda x: -logistic(-x),
        ),
        (lambda x: K.binary_crossentropy(K.zeros_like(x), x, from_logits=True), softplus, logistic),
    ],
    ids=["sigmoid", "softplus", "tanh", "elu", "crossentropy of 1", "crossentropy of 0"],
)
def test_no_digits_are_lost_far_out_or_near_0(backend: str, function: Any, right: Any, slope: Any, dtype: str) -> None:
    points = POINTS.astype(dtype).astype("float64")
    value, slopes = at(function, points, dtype)
    tolerance = 2e-6 if dtype == "float32" else 4e-15
    tiny = float(np.finfo(dtype).tiny)
    np.testing.assert_allclose(value, right(points), rtol=tolerance, atol=tiny)
    np.testing.assert_allclose(slopes, slope(points), rtol=tolerance, atol=tiny)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("alpha", [1, 1.0, 0.5])
def test_elu_at_its_edges(backend: str, dtype: str, alpha: float) -> None:
    tiny, large = float(np.finfo(dtype).tiny), float(np.finfo(dtype).max)
    points = np.array([-np.inf, -large, -1.5 * tiny, -0.0, 0.0, tiny, large, np.inf, np.nan], dtype)
    value, slope = at(lambda x: K.elu(x, alpha), points, dtype)
    below = [-alpha, -alpha, -1.5 * tiny * alpha]
    # Some engines flush subnormal results.
    np.testing.assert_allclose(value, [*below, 0, 0, tiny, large, np.inf, np.nan], atol=tiny if alpha != 1 else 0)
    np.testing.assert_array_equal(np.signbit(value[3:5]), [True, False])
    np.testing.assert_array_equal(slope, [0, 0, alpha, alpha, alpha, 1, 1, 1, np.nan])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_activations_of_what_is_never_negative(backend: str, dtype: str) -> None:
    points = np.array([-30, -0.5, -0.0, 0.0, 0.25, 7, np.inf, np.nan], dtype)
    plain = K.placeholder(points.shape, dtype=dtype)
    squares = K.square(plain)
    chosen = [K.elu(squares), K.relu(squares), K.elu(K.relu(plain)), K.relu(K.tanh(squares)), K.softplus(squares)]
    got = K.function([plain], chosen)([points])
    exact = np.square(points)
    tolerance = {"float16": 2e-3, "float32": 1e-6, "float64": 1e-14}[dtype]
    with np.errstate(invalid="ignore"):
        wanted = [exact, exact, np.maximum(points, 0), np.tanh(exact), np.logaddexp(exact, 0)]
    for value, expected in zip(got, wanted):
        np.testing.assert_allclose(value, expected, rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_of_a_nearly_certain_class_and_its_slope(backend: str, dtype: str) -> None:
    logits = K.placeholder((1, 4), dtype=dtype)
    target = K.constant([[1, 0, 0, 0]], dtype=dtype)
    loss = K.categorical_crossentropy(target, logits, from_logits=True)
    value, slopes = K.function([logits], [loss, *K.gradients(loss, [logits])])([np.array([[20, 0, -1, 3]], dtype)])
    powers = np.exp(np.array([-20.0, -21.0, -17.0]))
    rest, tolerance = powers.sum(), 4e-6 if dtype == "float32" else 1e-14
    np.testing.assert_allclose(value, [np.log1p(rest)], rtol=tolerance)
    np.testing.assert_allclose(slopes, [[-rest / (1 + rest), *powers / (1 + rest)]], rtol=tolerance)


@pytest.mark.parametrize("axis", [0, 1])
def test_small_shares_of_a_softmax(backend: str, axis: int) -> None:
    logits = K.placeholder((3, 3))
    rows = np.array([[0, -87.2, -50], [-10, 40, -47.25], [np.inf, 0, 1]], "float32")
    (got,) = K.function([logits], [K.softmax(logits, axis=axis)])([rows if axis else rows.T])
    powers = np.exp(rows[:2].astype("float64") - rows[:2].max(axis=1, keepdims=True))
    shares = powers / powers.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(got if axis else got.T, [*shares, [np.nan] * 3], rtol=1e-5)


def test_the_loss_of_a_chance_of_two_fifths(backend: str) -> None:
    chances = np.linspace(0.3, 0.5, 41)
    given = K.placeholder((41,), dtype="float64")
    (loss,) = K.function([given], [K.binary_crossentropy(K.zeros_like(given), given)])([chances])
    np.testing.assert_allclose(loss, -np.log1p(-chances), rtol=2e-15)


def test_a_step_that_rounds_is_not_undone(backend: str) -> None:
    x = K.placeholder((3,))
    (back,) = K.function([x], [(x + 1e8) - 1e8])([np.array([0.5, 3.0, 21.0], "float32")])
    assert back.tolist() == [0.0, 0.0, 24.0]


def test_slopes_far_out_in_a_loop(backend: str) -> None:
    x, w = K.placeholder((1, 2, 3)), K.variable([20.0, -20.0, 0.5])

    def step(element: Any, states: Any) -> Any:
        new = K.sigmoid(element * w) * K.tanh(element * w) + states[0]
        return new, [new]

    last, _, _ = K.rnn(step, x, [K.zeros((1, 3))])
    fed = np.array([[[1, 1, 1], [0.9, 0.1, 2]]], "float32")
    (slope,) = K.function([x], K.gradients(K.sum(last), [x]))([fed])
    wide = fed.astype("float64") * [20.0, -20.0, 0.5]
    right = slope_of_logistic(wide) * np.tanh(wide) + logistic(wide) * 4 * slope_of_logistic(2 * wide)
    np.testing.assert_allclose(slope, right * [20.0, -20.0, 0.5], rtol=4e-6)


def test_a_mean_of_many_in_float16(backend: str) -> None:
    x = K.placeholder((None,), dtype="float16")
    many = np.ones(70_000, "float16")
    assert float(K.function([x], [K.mean(x)])([many])[0]) == 1.0
    assert float(K.function([x], [K.var(x)])([many])[0]) == 0.0


def test_a_crossentropy_of_a_certain_and_wrong_prediction_is_finite_in_float16(backend: str) -> None:
    target, given = K.placeholder((1,), dtype="float16"), K.placeholder((1,), dtype="float16")
    f = K.function([target, given], [K.binary_crossentropy(target, given)])
    for wanted, predicted in ((0, 1), (1, 0)):
        (loss,) = f([np.full(1, wanted, "float16"), np.full(1, predicted, "float16")])
        assert 7 < float(loss[0]) < 17


def test_powers_of_infinity(backend: str) -> None:
    x, y = K.placeholder((4,)), K.placeholder((4,))
    (powers,) = K.function([x, y], [K.pow(x, y)])(
        [np.array([-np.inf, -np.inf, -np.inf, np.inf], "float32"), np.array([0.5, -0.5, 3, 0.5], "float32")]
    )
    assert powers.tolist() == [np.inf, 0.0, -np.inf, np.inf]


def test_long_sums(backend: str) -> None:
    x = K.placeholder((None, 2))
    rows = np.full((1_000_000, 2), 0.1, "float32")
    total, mean = K.function([x], [K.sum(x, axis=0), K.mean(x, axis=0)])([rows])
    np.testing.assert_allclose(total, 1e6 * float(np.float32(0.1)), rtol=2e-6)
    np.testing.assert_allclose(mean, float(np.float32(0.1)), rtol=2e-6)


def test_a_long_running_sum(backend: str) -> None:
    x = K.placeholder((None,))
    (sums,) = K.function([x], [K.cumsum(x)])([np.full(100_000, 0.1, "float32")])
    np.testing.assert_allclose(sums, np.arange(1, 100_001) * float(np.float32(0.1)), rtol=1e-6)


def test_the_variance_of_a_batch_far_from_0(backend: str) -> None:
    x = K.placeholder((None, 3))
    batch = (np.random.default_rng(0).normal(1e4, 1, (4096, 3))).astype("float32")
    _, mean, variance = K.normalize_batch_in_training(x, None, None, [0])
    mean, variance = K.function([x], [mean, variance])([batch])
    np.testing.assert_allclose(mean, batch.astype("float64").mean(0), rtol=3e-7)
    # 1e-7 of the mean is a thousandth of the deviation.
    np.testing.assert_allclose(variance, batch.astype("float64").var(0), rtol=1e-5)


def test_a_softmax_in_float16_is_rounded_once(backend: str) -> None:
    x = K.placeholder((None, 6), dtype="float16")
    rows = np.random.default_rng(1).normal(0, 3, (200, 6)).astype("float16")
    (shares,) = K.function([x], [K.softmax(x)])([rows])
    wide = np.exp(rows.astype("float64"))
    right = wide / wide.sum(1, keepdims=True)
    assert np.abs(shares - right).max() <= np.spacing(np.float16(1.0)) / 2
    assert (np.abs(shares - right) / np.spacing(right.astype("float16")).astype("float64")).max() < 0.52


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((64, 8, 20, 20), [0, 2, 3]),
        ((64, 8, 20, 20), None),
        ((3000, 2, 2, 30), [0, 2]),
        ((3000, 2, 2, 30), [0, 1, 3]),
        ((3000, 3, 40), [0, 2]),
        ((3000, 3, 40), [0, 1]),
        ((30, 30, 30, 30), None),
        ((5, 1, 30000, 2, 3), [0, 2, 4]),
        ((1000, 64), [0]),
        ((32, 24, 24, 8), [0, 1, 2]),
        ((1009, 64), [0]),
    ],
)
def test_sums_over_several_axes(backend: str, shape: tuple[int, ...], axes: list[int] | None, known: bool) -> None:
    given = K.placeholder(shape if known else (None,) * len(shape))
    # Fed transposed: the axes are in another order than in memory.
    reversed_axes = K.permute_dimensions(turned_over := K.placeholder(given.shape[::-1]), range(len(shape))[::-1])
    outputs = [K.sum(given, axes), K.sum(reversed_axes, axes), K.mean(given, axes), K.var(given, axes, keepdims=True)]
    call = K.function([given, turned_over], outputs)
    along = None if axes is None else tuple(axes)
    near = np.full(shape, 0.1, "float32")
    far = (1e4 + np.random.RandomState(0).randn(*shape)).astype("float32")
    for values in (near, far):
        total, turned, middle, spread = call([values, values.T])
        wide = values.astype("float64")
        np.testing.assert_allclose(total, wide.sum(along), rtol=1e-6)
        np.testing.assert_allclose(turned, wide.sum(along), rtol=1e-6)
        np.testing.assert_allclose(middle, wide.mean(along), rtol=1e-6)
        if values is far:
            np.testing.assert_allclose(spread, wide.var(along, keepdims=True), rtol=2e-6)


def test_float16_whose_squares_it_has_not(backend: str) -> None:
    small, large, spread = K.placeholder((2,), dtype="float16"), K.placeholder((2,), dtype="float16"), [6e4, -6e4, 1]
    column, one, zero = (K.constant(value, dtype="float16") for value in ([[300.0], [900.0]], [1.0], [0.0]))
    wanted = {
        "small": (K.l2_normalize(small), [0.6, 0.8]),
        "large": (K.l2_normalize(large), [0.6, 0.8]),
        "spread": (K.std(K.constant(spread, dtype="float16")), np.std(spread)),
        "narrow": (K.std(K.constant([1e-4, 2e-4, 3e-4], dtype="float16")), np.std([1e-4, 2e-4, 3e-4])),
        "batch": (K.normalize_batch_in_training(column, one, zero, [0])[0], [[-1], [1]]),
        "given": (
            K.batch_normalization(column, K.constant([600.0], dtype="float16"), 6e4, zero, one),
            [[-1.225], [1.225]],
        ),
    }
    got = K.function([small, large], [tensor for tensor, _ in wanted.values()])([[3e-4, 4e-4], [300, 400]])
    for label, value, (_, right) in zip(wanted, got, wanted.values()):
        assert value.dtype == "float16"
        np.testing.assert_allclose(value, right, rtol=2e-3, err_msg=label)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_epsilon_that_the_dtype_has_not(backend: str, dtype: str) -> None:
    before = K.epsilon()
    K.set_epsilon(1e-320 if dtype == "float64" else 1e-60)
    try:
        given = K.placeholder((3,), dtype=dtype)
        losses = [K.binary_crossentropy(given, given), K.binary_crossentropy(1 - given, given)]
        same, other = K.function([given], losses)([np.array([0, 1, 0.5], dtype)])
    finally:
        K.set_epsilon(before)
    np.testing.assert_allclose(same, [0, 0, np.log(2)], rtol=1e-3, atol=1e-3)
    assert np.all(np.isfinite(other))
    assert np.all(other[:2] > 7)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_impossible_class_costs_nothing_unless_it_is_wanted(backend: str, dtype: str) -> None:
    top = float(np.finfo(dtype).max)
    logits = K.placeholder((3, 3), dtype=dtype)
    rows = np.array([[top, 0, -top], [-np.inf, 0, 1], [2, -np.inf, 2]], dtype)
    labels = K.constant([0, 2, 1], dtype="int32")
    sparse = K.sparse_categorical_crossentropy(labels, logits, from_logits=True)
    dense = K.categorical_crossentropy(K.one_hot(labels, 3), logits, from_logits=True)
    slopes = K.gradients(K.sum(sparse[:2]), [logits]) + K.gradients(K.sum(dense[:2]), [logits])
    one, other, *both = K.function([logits], [sparse, dense, *slopes])([rows])
    share = 1 / (1 + np.exp(-1))
    for value in (one, other):
        np.testing.assert_allclose(value, [0, -np.log(share), np.inf], rtol=2e-3)
    for value in both:
        np.testing.assert_allclose(value[:2], [[0, 0, 0], [0, 1 - share, share - 1]], rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("scale", [1000.0, 1.0])
def test_the_scaled_slope_of_softplus_in_float16(backend: str, scale: float) -> None:
    given = K.placeholder((3,), dtype="float16")
    (got,) = K.function([given], K.gradients(K.softplus(given) * scale, [given]))([[-14, -16, -5]])
    np.testing.assert_allclose(got, scale / (1 + np.exp([14, 16, 5])), rtol=1e-3, atol=6e-8 if scale == 1 else 0)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64"])
def test_an_integer_to_a_negative_power_is_refused(backend: str, dtype: str) -> None:
    given, exponents = K.placeholder((3,), dtype=dtype), K.placeholder((3,), dtype=dtype)
    for power in (given**-1, K.pow(given, -1), given ** K.constant([1, -1, 2], dtype=dtype)):
        with pytest.raises(EngineError, match="Integers to negative integer powers are not allowed"):
            K.function([given], [power])([[2, 1, -1]])
    held = K.variable([2, 3, 4], dtype=dtype)
    raise_it = K.function([exponents], [held**exponents + 1], updates=[(held, held**exponents)])
    np.testing.assert_array_equal(raise_it([[0, 1, 2]]), [[2, 4, 17]])
    with pytest.raises(EngineError, match="Integers to negative integer powers are not allowed"):
        raise_it([[0, -1, 2]])
    np.testing.assert_array_equal(K.get_value(held), [1, 3, 16])
    with pytest.raises(EngineError, match="Integers to negative integer powers are not allowed"):
        K.function([given, exponents], [(given**exponents)[:1]], updates=[(held, held + 1)])([[2, 3, 4], [0, 1, -2]])
    np.testing.assert_array_equal(K.get_value(held), [1, 3, 16])
    nothing = K.placeholder((None, 3), dtype=dtype)
    power = K.function([nothing, exponents], [nothing**-1, nothing**exponents])
    assert [value.shape for value in power([np.zeros((0, 3), dtype), [1, -1, 2]])] == [(0, 3)] * 2
    np.testing.assert_array_equal(raise_it([[2, 1, 0]]), [[2, 4, 2]])


def test_the_largest_unsigned_exponents(backend: str) -> None:
    values = np.array([3, 3, 2, 0, 1, 5], "uint64")
    exponents = np.array([3, 2**63 + 1, 2**63 + 1, 2**63, 2**64 - 1, 2**64 - 1], "uint64")
    x, y = (K.placeholder((6,), dtype="uint64") for _ in range(2))
    (got,) = K.function([x, y], [x**y])([values, exponents])
    np.testing.assert_array_equal(got, values**exponents)


def test_an_integer_to_a_negative_power_in_a_loop_is_refused(backend: str) -> None:
    exponents = K.placeholder((None,), dtype="int32")
    total = K.foldl(lambda sum, y: sum + K.constant(2, dtype="int32") ** y, exponents, K.constant(0, dtype="int32"))
    call = K.function([exponents], [total, K.map_fn(lambda y: (y + 1) ** y, exponents)])
    for steps, powers in (([1, 3, 0], [2, 64, 1]), ([2], [9])):
        got, each = call([steps])
        assert got == np.sum(2 ** np.array(steps))
        np.testing.assert_array_equal(each, powers)
    with pytest.raises(EngineError, match="Integers to negative integer powers are not allowed"):
        call([[1, -3, 0, 2]])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_product_in_a_sum_is_rounded_by_itself(backend: str, dtype: str) -> None:
    a, b, c, d = (K.placeholder((1000,), dtype=dtype) for _ in range(4))
    x, y, z = (np.random.RandomState(seed).randn(1000).astype(dtype) for seed in range(3))
    call = K.function([a, b, c, d], [a * b + c, a * b - c * d, c - a * b])
    plus, minus, rest = call([x, y, z, x])
    np.testing.assert_array_equal(plus, x * y + z)
    np.testing.assert_array_equal(minus, x * y - z * x)
    np.testing.assert_array_equal(rest, z - x * y)
    np.testing.assert_array_equal(call([x, y, x, y])[1], np.zeros(1000))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logsumexp_near_0_and_at_its_edges(backend: str, dtype: str) -> None:
    given = K.placeholder((None, 3), dtype=dtype)
    total = K.logsumexp(given, axis=1)
    call = K.function([given], [total, K.logsumexp(given), K.gradients(K.sum(total), [given])[0]])
    rows = np.array([[0, -20, -21], [-20, 0, -20], [3, 3, 3], [-1e3, -1.1e3, -2e3], [700, 0, -700], [0, 0, -30]], dtype)
    with mpmath.workdps(50):
        sums = [mpmath.fsum(mpmath.exp(mpmath.mpf(float(x))) for x in row) for row in rows]
        exact = np.array([float(mpmath.log(x)) for x in sums])
        all_of_them = float(mpmath.log(mpmath.fsum(sums)))
    found, whole, slopes = call([rows])
    tolerance = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(found, exact, rtol=tolerance)
    np.testing.assert_allclose(whole, all_of_them, rtol=tolerance)
    powers = np.exp(rows.astype("float64") - exact[:, None])
    np.testing.assert_allclose(slopes, powers, rtol=1e3 * tolerance, atol=1e-30)
    edges = np.array([[np.inf, 1, 2], [-np.inf] * 3, [-np.inf, 0, 0], [np.nan, 0, 0], [np.inf, -np.inf, 0]], dtype)
    np.testing.assert_allclose(call([edges])[0], [np.inf, -np.inf, np.log(2), np.nan, np.inf], rtol=tolerance)


@pytest.mark.parametrize(
    ("dtype", "values"), [("float32", [1e30, 1e30, 1e-30, 1e-30]), ("float16", [1000, 1000, 1e-3, 1e-3])]
)
def test_the_slope_of_a_product_that_leaves_the_dtype_on_its_way(backend: str, dtype: str, values: list[float]) -> None:
    given = K.placeholder((4,), dtype=dtype)
    x = np.array(values, dtype)
    (slope,) = K.function([given], K.gradients(K.prod(given), [given]))([x])
    wide = x.astype("float64")
    right = [np.prod(np.delete(wide, i)) for i in range(4)]
    np.testing.assert_allclose(slope, right, rtol=2 * float(np.finfo(dtype).eps))
