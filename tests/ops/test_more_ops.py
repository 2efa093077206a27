"""The K functions beyond a first classifier, on every engine against plain numpy: a table, one call an engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.arrays import assert_close

from kernelk import backend as K
from kernelk.errors import ArgumentError, DTypeError, ShapeError

Shape = tuple[int, ...]
M, V, T, B, IMAGES = (3, 4), (4,), (2, 3, 4), (2, 4, 5), (2, 3, 4, 2)


class Case(NamedTuple):
    """A K expression and the same in numpy, of float operands with these shapes."""

    label: str
    graph: Callable[..., Any]
    expected: Callable[..., Any]
    shapes: list[Shape]


def logistic(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def softmax(x: Any, axis: int = -1) -> Any:
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


def labels_of(x: Any) -> Any:
    return np.abs(x).astype("int64") % 4


def k_labels(x: Any) -> Any:
    return K.cast(K.abs(x), "int32") % 4


def truncated(x: Any) -> Any:
    return np.abs(x).astype("int64")


CASES = [
    Case("sin", lambda x: K.sin(x), np.sin, [M]),
    Case("cos", lambda x: K.cos(x), np.cos, [M]),
    Case("round", lambda x: K.round(x * 2.0), lambda x: np.rint(x * 2), [M]),
    Case("prod", lambda x: K.prod(x), np.prod, [M]),
    Case("prod 1", lambda x: K.prod(x, axis=1, keepdims=True), lambda x: x.prod(1, keepdims=True), [T]),
    Case("cumsum", lambda x: K.cumsum(x, axis=1), lambda x: x.cumsum(1), [M]),
    Case("cumprod", lambda x: K.cumprod(x), lambda x: x.cumprod(0), [M]),
    Case("var", lambda x: K.var(x, axis=0), lambda x: x.var(0), [M]),
    Case("var all", lambda x: K.var(x), np.var, [M]),
    Case("std", lambda x: K.std(x, axis=-1, keepdims=True), lambda x: x.std(-1, keepdims=True), [T]),
    Case("logsumexp", lambda x: K.logsumexp(x * 100.0, axis=1), lambda x: np.logaddexp.reduce(x * 100, axis=1), [M]),
    Case("logsumexp all", lambda x: K.logsumexp(x), lambda x: np.log(np.exp(x).sum()), [M]),
    Case("any", lambda x: K.any(x > 1.5, axis=1), lambda x: (x > 1.5).any(1), [M]),
    Case("any floats", lambda x: K.any(K.round(x * 0.4)), lambda x: np.rint(x * 0.4).any(), [M]),
    Case("all", lambda x: K.all(x > -1.5, axis=0, keepdims=True), lambda x: (x > -1.5).all(0, keepdims=True), [M]),
    Case("argmin", lambda x: K.argmin(x, axis=0), lambda x: x.argmin(0), [M]),
    Case("gather", lambda x, y: K.gather(x, k_labels(y)), lambda x, y: x[labels_of(y)], [(4, 3), (2, 3)]),
    Case("stack", lambda x, y: K.stack([x, y], axis=1), lambda x, y: np.stack([x, y], 1), [M, M]),
    Case("stack last", lambda x, y: K.stack([x, y], axis=-1), lambda x, y: np.stack([x, y], -1), [V, V]),
    Case("reverse", lambda x: K.reverse(x, (0, 2)), lambda x: x[::-1, :, ::-1], [T]),
    Case("slice", lambda x: K.slice(x, [1, 0], [2, -1]), lambda x: x[1:3], [M]),
    Case("tile", lambda x: K.tile(x, [2, 3]), lambda x: np.tile(x, (2, 3)), [M]),
    Case("tile one", lambda x: K.tile(x, 2), lambda x: np.tile(x, 2), [M]),
    Case("repeat_elements", lambda x: K.repeat_elements(x, 3, 1), lambda x: x.repeat(3, 1), [T]),
    Case("repeat_elements 0", lambda x: K.repeat_elements(x, 2, 0), lambda x: x.repeat(2, 0), [T]),
    Case("repeat", lambda x: K.repeat(x, 3), lambda x: np.repeat(x[:, None], 3, 1), [M]),
    Case("arange", lambda x: x + K.arange(4, dtype="float32"), lambda x: x + np.arange(4), [M]),
    Case("arange step", lambda x: K.arange(7, 1, -2) + K.cast(x, "int32") * 0, lambda x: np.arange(7, 1, -2), [(3,)]),
    Case(
        "temporal_padding",
        lambda x: K.temporal_padding(x, (1, 2)),
        lambda x: np.pad(x, ((0, 0), (1, 2), (0, 0))),
        [T],
    ),
    Case(
        "spatial_2d_padding",
        lambda x: K.spatial_2d_padding(x, ((1, 0), (2, 1)), "channels_last"),
        lambda x: np.pad(x, ((0, 0), (1, 0), (2, 1), (0, 0))),
        [IMAGES],
    ),
    Case(
        "spatial_2d_padding first",
        lambda x: K.spatial_2d_padding(x, data_format="channels_first"),
        lambda x: np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))),
        [IMAGES],
    ),
    Case(
        "spatial_3d_padding",
        lambda x: K.spatial_3d_padding(x[:, :, :, :, None], data_format="channels_last"),
        lambda x: np.pad(x[..., None], ((0, 0), (1, 1), (1, 1), (1, 1), (0, 0))),
        [IMAGES],
    ),
    Case(
        "resize_images",
        lambda x: K.resize_images(x, 2, 3, "channels_last"),
        lambda x: x.repeat(2, 1).repeat(3, 2),
        [IMAGES],
    ),
    Case(
        "resize_volumes",
        lambda x: K.resize_volumes(x[:, None], 2, 1, 2, "channels_first"),
        lambda x: x[:, None].repeat(2, 2).repeat(2, 4),
        [IMAGES],
    ),
    Case("elu", lambda x: K.elu(x, 0.7), lambda x: np.where(x > 0, x, 0.7 * np.expm1(x)), [M]),
    Case("softplus", lambda x: K.softplus(x * 40.0), lambda x: np.logaddexp(x * 40, 0), [M]),
    Case("softsign", lambda x: K.softsign(x), lambda x: x / (np.abs(x) + 1), [M]),
    Case("hard_sigmoid", lambda x: K.hard_sigmoid(x * 2.0), lambda x: np.clip(x * 0.4 + 0.5, 0, 1), [M]),
    Case(
        "l2_normalize",
        lambda x: K.l2_normalize(x, axis=1),
        lambda x: x / np.sqrt((x * x).sum(1, keepdims=True)),
        [M],
    ),
    Case(
        "binary_crossentropy",
        lambda x, y: K.binary_crossentropy(K.sigmoid(x), K.sigmoid(y)),
        lambda x, y: -(logistic(x) * np.log(logistic(y)) + (1 - logistic(x)) * np.log(1 - logistic(y))),
        [M, M],
    ),
    Case(
        "binary_crossentropy logits",
        lambda x, y: K.binary_crossentropy(K.sigmoid(x), y * 30.0, from_logits=True),
        lambda x, y: np.logaddexp(y * 30, 0) - logistic(x) * y * 30,
        [M, M],
    ),
    Case(
        "sparse_categorical_crossentropy",
        lambda x, y: K.sparse_categorical_crossentropy(k_labels(y), K.softmax(x)),
        lambda x, y: -np.log(np.take_along_axis(softmax(x), labels_of(y)[:, None], 1))[:, 0],
        [M, (3,)],
    ),
    Case(
        "sparse from logits, an axis kept",
        lambda x, y: K.sparse_categorical_crossentropy(k_labels(y), x, from_logits=True),
        lambda x, y: -np.log(np.take_along_axis(softmax(x), labels_of(y), 2))[:, :, 0],
        [T, (2, 3, 1)],
    ),
    Case(
        "in_top_k",
        lambda x, y: K.in_top_k(x, k_labels(y), 2),
        lambda x, y: (x > np.take_along_axis(x, labels_of(y)[:, None], 1)).sum(1) < 2,
        [M, (3,)],
    ),
    Case(
        "batch_normalization",
        lambda x, m, v, b, g: K.batch_normalization(x, m, K.abs(v), b, g, axis=-1, epsilon=0.1),
        lambda x, m, v, b, g: (x - m) / np.sqrt(np.abs(v) + 0.1) * g + b,
        [IMAGES, (2,), (2,), (2,), (2,)],
    ),
    Case(
        "batch_normalization 1",
        lambda x, m, v: K.batch_normalization(x, m, K.square(v), None, None, axis=1),
        lambda x, m, v: (x - m[:, None, None]) / np.sqrt(v * v + 1e-3)[:, None, None],
        [IMAGES, (3,), (3,)],
    ),
    Case(
        "normalize_batch_in_training",
        lambda x, g, b: K.normalize_batch_in_training(x, g, b, [0, 1, 2])[0],
        lambda x, g, b: (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-3) * g + b,
        [IMAGES, (2,), (2,)],
    ),
    Case("bias_add", lambda x, b: K.bias_add(x, b), lambda x, b: x + b, [IMAGES, (2,)]),
    Case(
        "bias_add first",
        lambda x, b: K.bias_add(x, b, "channels_first"),
        lambda x, b: x + b[:, None, None],
        [IMAGES, (3,)],
    ),
    Case(
        "bias_add per position",
        lambda x, b: K.bias_add(x, b, "channels_first"),
        lambda x, b: x + b.reshape(3, 4, 2),
        [IMAGES, (4, 2, 3)],
    ),
    Case("batch_dot", lambda x, y: K.batch_dot(x, y), lambda x, y: np.matmul(x, y), [T, B]),
    Case(
        "batch_dot vectors", lambda x, y: K.batch_dot(x, y, axes=1), lambda x, y: (x * y).sum(1, keepdims=True), [M, M]
    ),
    Case(
        "batch_dot axes",
        lambda x, y: K.batch_dot(x, y, axes=(1, 2)),
        lambda x, y: np.einsum("abc,adb->acd", x, y),
        [(2, 3, 4), (2, 5, 3)],
    ),
    Case(
        "batch_dot ranks",
        lambda x, y: K.batch_dot(x, y, axes=(1, -1)),
        lambda x, y: np.einsum("ab,acdb->acd", x, y),
        [(2, 3), (2, 4, 5, 3)],
    ),
    Case("switch", lambda x, y: K.switch(x > y, x, y * 2.0), lambda x, y: np.where(x > y, x, y * 2), [M, M]),
    Case(
        "switch rows",
        lambda x, y: K.switch(K.sum(x, axis=1) > 0, x, y),
        lambda x, y: np.where(x.sum(1)[:, None] > 0, x, y),
        [M, M],
    ),
    Case(
        "switch scalar",
        lambda x, y: K.switch(K.sum(x) > 0, lambda: x, lambda: y),
        lambda x, y: x if x.sum() > 0 else y,
        [M, M],
    ),
    Case("size", lambda x: K.size(x), lambda x: np.asarray(x.size), [T]),
]


@pytest.mark.values
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_each_function_is_numpys(backend: str, dtype: str) -> None:
    random = np.random.default_rng(7)
    placeholders, feeds, outputs, expected = [], [], [], []
    for case in CASES:
        values = [random.uniform(-2, 2, shape).astype(dtype) for shape in case.shapes]
        # The first axis of the first operand is left open where that makes no shape unknowable.
        inputs = [K.placeholder(ndim=value.ndim, dtype=dtype) for value in values[:1] if case.label in OPEN]
        inputs += [K.placeholder(value.shape, dtype=dtype) for value in values[len(inputs) :]]
        placeholders += inputs
        feeds += values
        outputs.append(case.graph(*inputs))
        expected.append(np.asarray(case.expected(*values)))
    got = K.function(placeholders, outputs)(feeds)
    for case, output, value, wanted in zip(CASES, outputs, got, expected):
        assert value.dtype == output.dtype, case.label
        assert value.shape == wanted.shape, case.label
        if dtype in str(value.dtype):
            assert_close(value, wanted, dtype, case.label, scale=4)
        else:
            np.testing.assert_array_equal(value, wanted, case.label)


OPEN = {"sin", "prod 1", "cumsum", "var", "std", "logsumexp", "any", "argmin", "stack", "reverse", "tile", "softplus"}
OPEN |= {"repeat_elements", "repeat_elements 0", "repeat", "temporal_padding", "resize_images", "l2_normalize", "size"}
OPEN |= {"batch_dot", "batch_dot vectors", "batch_dot axes", "switch rows", "bias_add", "batch_normalization"}


def test_bilinear_begins_at_each_pixel_as_in_keras_on_tensorflow(backend: str) -> None:
    x = np.array([[0.0, 6.0], [12.0, 18.0]], "float32").reshape(1, 2, 2, 1)
    resized = K.eval(K.resize_images(K.variable(x), 2, 3, "channels_last", interpolation="bilinear"))
    wanted = [[0, 2, 4, 6, 6, 6], [6, 8, 10, 12, 12, 12], [12, 14, 16, 18, 18, 18], [12, 14, 16, 18, 18, 18]]
    np.testing.assert_allclose(resized[0, :, :, 0], wanted, atol=1e-5)


def test_lengths_by_value(backend: str) -> None:
    n = K.placeholder((), dtype="int32")
    call = K.function([n], [K.arange(n), K.arange(1, n * 2, 3, dtype="float32"), K.random_normal((n, 2))])
    for value in (0, 1, 5):
        vector, spread, noise = call([value])
        np.testing.assert_array_equal(vector, np.arange(value))
        np.testing.assert_array_equal(spread, np.arange(1, value * 2, 3, dtype="float32"))
        assert noise.shape == (value, 2)


def test_truncated_and_binomial_draws(backend: str) -> None:
    draws = K.eval(K.truncated_normal((4000,), mean=3.0, stddev=2.0))
    assert draws.min() >= -1
    assert draws.max() <= 7
    assert abs(draws.mean() - 3) < 0.2
    assert 1.6 < draws.std() < 1.9
    coins = K.eval(K.random_binomial((4000,), p=0.25))
    assert set(np.unique(coins)) == {0, 1}
    assert abs(coins.mean() - 0.25) < 0.05


def test_embeddings_train(backend: str) -> None:
    table = K.variable(np.arange(12, dtype="float32").reshape(4, 3))
    rows = K.placeholder((None,), dtype="int32")
    loss = K.sum(K.gather(table, rows) * K.constant([1.0, 2.0, 3.0]))
    step = K.function([rows], [loss], [K.update_sub(table, K.gradients(loss, [table])[0])])
    step([np.array([0, 2, 2])])
    np.testing.assert_array_equal(
        K.get_value(table), np.arange(12).reshape(4, 3) - np.array([1, 0, 2, 0])[:, None] * [1, 2, 3]
    )


def test_names_and_kinds() -> None:
    assert [K.get_uid("a"), K.get_uid("a"), K.get_uid("b")] == [1, 2, 1]
    K.reset_uids()
    assert K.get_uid("a") == 1
    x = K.placeholder((2, None))
    assert not K.is_sparse(x)
    assert K.to_dense(x) is x
    assert K.is_symbolic(x)
    assert K.get_variable_shape(x) == (2, None)
    assert K.cast_to_floatx([1, 2]).dtype == K.floatx()
    assert K.cast_to_floatx(K.constant([1], dtype="int32")).dtype == K.floatx()
    assert K.normalize_data_format(None) == K.image_data_format()
    with K.control_dependencies([x]):
        assert K.symbolic(len)([1]) == 1


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (lambda: K.slice(K.constant([1.0, 2.0]), [1], [2]), ShapeError),
        (lambda: K.batch_dot(K.placeholder((2, 3)), K.placeholder((2, 4)), axes=1), ShapeError),
        (lambda: K.batch_dot(K.placeholder((2, 3)), K.placeholder((2, 3)), axes=0), ShapeError),
        (lambda: K.gather(K.placeholder((2, 3)), K.placeholder((2,))), DTypeError),
        (lambda: K.repeat(K.placeholder((2, 3, 4)), 2), ShapeError),
        (lambda: K.arange(0, 5, 0), ArgumentError),
        (lambda: K.resize_images(K.placeholder((1, 2, 2, 1)), 2, 2, "channels_middle"), ArgumentError),
        (lambda: K.resize_images(K.placeholder((1, 2, 2, 1)), 2, 2, None, "cubic"), ArgumentError),
        (lambda: K.resize_images(K.placeholder((1, None, 2, 1)), 2, 2, "channels_last", "bilinear"), ShapeError),
        (lambda: K.bias_add(K.placeholder((1, 2, 2, 1)), K.placeholder((1, 1))), ShapeError),
        (lambda: K.stack([]), ArgumentError),
        (lambda: K.temporal_padding(K.placeholder((1, 2))), ShapeError),
    ],
)
def test_what_cannot_work_is_refused_where_it_is_written(wrong: Callable[[], Any], error: type[Exception]) -> None:
    with pytest.raises(error) as caught:
        wrong()
    assert "\n" not in str(caught.value)


def test_an_empty_piece_of_one_computed_element_is_empty(backend: str) -> None:
    a, b, x = K.variable([5.0]), K.variable([7.0]), K.placeholder((None,))
    piece = (a + b)[:0]
    call = K.function([x], [piece, K.sum(piece), K.concatenate([piece, b * 2.0], axis=0), (x * 2.0)[1:]])
    for length in (1, 3):
        empty, total, joined, rest = call([np.ones(length)])
        assert (empty.shape, total, joined.tolist()) == ((0,), 0.0, [14.0])
        assert rest.tolist() == [2.0] * (length - 1)
