"""K as code for TensorFlow 1 and Keras 2 has it: names, shapes, arrays of float64, `@`, `feed_dict`."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.arrays import assert_close

from kernelk import backend as K
from kernelk.errors import ArgumentError, DTypeError, ShapeError


def test_name_scopes_are_part_of_names() -> None:
    with K.name_scope("outer") as prefix:
        w = K.variable(1.0, name="w")
        with K.name_scope("inner"):
            x = K.placeholder((2,), name="x")
            y = K.identity(x * w, name="y")
            unnamed = x * w
    assert prefix == "outer/"
    assert [t.name for t in (w, x, y)] == ["outer/w", "outer/inner/x", "outer/inner/y"]
    assert unnamed.name.startswith("outer/inner/multiply_")
    with K.name_scope("outer"):
        with K.name_scope(prefix):
            assert K.variable(1.0, name="v").name == "outer/v"
        for nothing in ("", None):
            with K.name_scope(nothing) as root:
                assert (root, K.variable(1.0, name="v").name) == ("", "v")
        with pytest.raises(ArgumentError, match="name_scope: 3 can't be a name"), K.name_scope(3):  # type: ignore[arg-type]
            pass
        assert K.variable(1.0, name="v").name == "outer/v"
    w.name = "mine"
    assert w.name == "mine"
    assert K.variable(1.0, name="w").name == "w"


def test_static_shapes() -> None:
    x = K.placeholder((None, 3, 4))
    shape = x.get_shape()
    assert shape == (None, 3, 4)
    assert shape.as_list() == [None, 3, 4]
    assert shape.ndims == len(shape) == 3
    assert [shape[1].value, shape[-1] * 2] == [3, 8]
    assert K.zeros(shape[1:]).shape == (3, 4)
    assert type(shape[1].value) is int
    assert [length.value for length in shape] == shape[:3].as_list() == [None, 3, 4]
    assert (str(shape), not shape[0], None in shape) == ("(None, 3, 4)", True, True)
    assert K.placeholder(shape).shape == (None, 3, 4)
    # Of `shape`, lengths that aren't known are None.
    for y in (x, K.exp(x), K.variable(np.ones((2, 3, 4))), K.sum(x, axis=0, keepdims=True)):
        assert y.shape[1].value == y.shape.as_list()[1] == 3
        assert [y.shape[2] * 2, isinstance(y.shape, tuple), isinstance(y.shape[2], int)] == [8, True, True]
        assert {type(n) for n in K.int_shape(y)} <= {int, type(None)}
    assert x.shape[0] is None
    assert repr(x.shape) == "(None, 3, 4)"
    assert pickle.loads(pickle.dumps(x.shape)) == copy.deepcopy(x.shape) == (None, 3, 4)
    assert json.dumps(x.shape) == "[null, 3, 4]"


@pytest.mark.parametrize(
    ("a", "b"),
    [((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((5, 2, 3), (5, 3, 4)), ((6, 5, 2, 3), (6, 5, 3, 4)), ((2, 0), (0, 4))],
)
def test_matrix_products(backend: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    left, right = np.random.RandomState(0).rand(*a).astype("float32"), np.random.RandomState(1).rand(*b)
    x = K.placeholder((None, *a[1:]))
    assert_close((x @ K.variable(right)).eval({x: left}), left @ right.astype("float32"))
    assert_close(K.eval(left @ K.variable(right)), left @ right.astype("float32"))
    assert_close(K.eval(K.variable(left) @ right), left @ right.astype("float32"))


@pytest.mark.parametrize(("a", "b"), [((3,), (3, 2)), ((2, 3), (4, 2)), ((5, 2, 3), (4, 3, 2)), ((2, 3), (5, 3, 2))])
def test_matrix_products_that_do_not_fit(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="don't fit"):
        K.placeholder(a) @ K.placeholder(b)


def test_feed_dict() -> None:
    x = K.placeholder((2,))
    assert (x * 2.0).eval(feed_dict={x: [1.0, 2.0]}).tolist() == [2.0, 4.0]
    with pytest.raises(ArgumentError, match="feeds and feed_dict are both given"):
        x.eval({x: [1.0, 2.0]}, feed_dict={x: [3.0, 4.0]})
    with pytest.raises(ArgumentError, match=r"there are no TensorFlow sessions here; next: y\.eval"):
        x.eval({x: [1.0, 2.0]}, session=object())


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [("float16", "float16"), ("float32", "float32"), ("float64", "float64"), ("int32", "float32"), ("bool", "float32")],
)
def test_an_array_of_float64_takes_the_tensors_dtype(dtype: str, wanted: str) -> None:
    array = np.array([0.1, 0.2])
    w = K.variable([1, 1], dtype=dtype)
    for y in (array * w, w - array, K.maximum(w, array), K.concatenate([array, w]), K.stack([w, array])):
        assert y.dtype == wanted
    assert K.switch(K.constant(True, dtype="bool"), w, array).dtype == wanted
    assert K.in_train_phase(w, array).dtype == wanted
    assert K.eval(w * array).dtype == wanted


def _rnn(initial: Any, **options: Any) -> list[Any]:
    steps = K.variable(np.ones((2, 3, 2)))
    last, outputs, states = K.rnn(lambda x, states: (states[0] + x, [states[0] + x]), steps, [initial], **options)
    return [last, outputs, *states]


FLOAT64 = np.array([[0.1, 0.2], [0.3, 0.4]])

# What has no float tensor beside it but through a third one.
BESIDE: dict[str, Callable[[], Any]] = {
    "switch": lambda: K.switch(K.greater(K.variable(FLOAT64), 0.2), FLOAT64, -FLOAT64),
    "switch of functions": lambda: K.switch(K.greater(K.variable(1.0), 0.2), lambda: FLOAT64, lambda: -FLOAT64),
    "in_train_phase": lambda: K.in_train_phase(FLOAT64, -FLOAT64),
    "gather": lambda: K.gather(FLOAT64, K.variable([1, 0], dtype="int32")),
    "batch_normalization": lambda: K.batch_normalization(FLOAT64, *[K.ones((2,))] * 4),
    "rnn": lambda: _rnn(FLOAT64),
    "rnn with a mask": lambda: _rnn(FLOAT64, mask=np.array([[1, 0, 1], [1, 1, 0]])),
    "rnn, unrolled": lambda: _rnn(FLOAT64, unroll=True),
    "rnn of an array": lambda: K.rnn(lambda x, s: (s[0] + x, [s[0] + x]), np.ones((2, 3, 2)), [K.ones((2, 2))])[0],
    "rnn with an array as output": lambda: K.rnn(lambda x, s: (FLOAT64, [s[0] + x]), K.ones((2, 3, 2)), [FLOAT64])[0],
    "foldl": lambda: K.foldl(lambda total, x: total + x, K.variable(FLOAT64), FLOAT64[0]),
    "foldr": lambda: K.foldr(lambda total, x: total + x, FLOAT64, K.variable(FLOAT64[0])),
    "foldl of ints": lambda: K.foldl(lambda total, x: total + x, K.variable([1, 2], dtype="int32"), FLOAT64[0]),
    "map_fn": lambda: K.map_fn(lambda x: FLOAT64[0], K.variable([1, 2], dtype="int32")),
}


@pytest.mark.parametrize("name", BESIDE)
def test_an_array_of_float64_takes_floatx_beside_any_tensor(backend: str, name: str) -> None:
    made = BESIDE[name]()
    made = made if isinstance(made, list) else [made]
    assert [x.dtype for x in made] == ["float32"] * len(made)
    assert [K.eval(x).dtype for x in made] == [np.float32] * len(made)


@pytest.mark.parametrize("unroll", [False, True])
def test_an_initial_state_follows_the_inputs_and_the_step(unroll: bool) -> None:
    steps = K.variable(np.ones((2, 3, 2)), dtype="float16")
    half = K.rnn(lambda x, s: (s[0] + x, [s[0] + x]), steps, [FLOAT64], unroll=unroll)
    assert [half[0].dtype, half[2][0].dtype] == ["float16", "float16"]
    # A step that makes it wider gets all the digits that were given.
    third = np.full((2, 2), 1 / 3)
    exact = K.constant(0.0, dtype="float64")
    wide = K.rnn(lambda x, s: (s[0] + exact, [s[0] + exact]), steps, [third], unroll=unroll)
    assert K.eval(wide[0]).tolist() == third.tolist()
    # A tensor keeps its dtype.
    with pytest.raises(DTypeError, match="state 0 is float32, but the step returned float64"):
        K.rnn(lambda x, s: (s[0] + exact, [s[0] + exact]), steps, [K.ones((2, 2))], unroll=unroll)
    # What counts goes on counting in ints.
    counted = K.foldl(lambda count, x: count + 1, K.variable([0.5, 0.5]), 0)
    assert (counted.dtype, K.eval(counted)) == ("int32", 2)
    assert K.foldl(lambda total, x: total + x, K.variable([0.5], dtype="float16"), 0.0).dtype == "float16"


def test_arrays_of_other_dtypes_and_float64_tensors_keep_theirs() -> None:
    w = K.variable([1.0, 1.0])
    assert (w * K.constant([0.1, 0.2], dtype="float64")).dtype == "float64"
    assert (K.variable([1.0, 1.0], dtype="float16") * np.ones(2, "float32")).dtype == "float32"
    assert (w * np.array([1, 2])).dtype == "float32"
    assert K.exp(np.array([0.1, 0.2])).dtype == "float64"
    step = K.function([], [], [K.update_sub(w, np.array([0.5, 0.25]) * w)])
    step([])
    assert K.get_value(w).tolist() == [0.5, 0.75]


def test_variables_are_trainable_until_someone_says_otherwise() -> None:
    first, second = K.variable(1.0), K.variable(1.0)
    first.trainable = False
    assert (first.trainable, second.trainable) == (False, True)


def test_the_gradient_of_one_tensor_is_in_a_list(backend: str) -> None:
    x = K.placeholder((None, 2))
    found = K.gradients(K.sum(x * x), x)
    assert isinstance(found, list)
    assert_close(found[0].eval({x: [[1.0, 2.0], [3.0, 4.0]]}), np.array([[2.0, 4.0], [6.0, 8.0]], "float32"))


def test_random_numbers_take_arrays_and_tensors_as_parameters(backend: str) -> None:
    low, high = np.array([-2.0, 100.0]), np.array([-1.0, 101.0])
    for drawn in (
        K.random_uniform((50, 2), minval=low, maxval=high),
        K.random_uniform((50, 2), minval=K.constant(low), maxval=high),
        K.clip(K.truncated_normal((50, 2), mean=(low + high) / 2, stddev=[0.1, 0.2]), low, high),
        K.clip(K.random_normal((50, 2), (low + high) / 2, K.constant([0.1, 0.1])), low, high),
    ):
        assert drawn.dtype == "float32"
        values = K.eval(drawn)
        assert (values >= low).all()
        assert (values <= high).all()
        assert len(np.unique(values)) > 50


def test_bounds_that_are_floats_give_floats_as_in_keras_on_tensorflow(backend: str) -> None:
    found = K.function(
        [], [K.arange(0.0, 1.0, 0.25), K.arange(0.5, 3), K.arange(np.float32(2)), K.arange(3, dtype="int32")]
    )([])
    assert [x.tolist() for x in found] == [[0, 0.25, 0.5, 0.75], [0.5, 1.5, 2.5], [0, 1], [0, 1, 2]]
    assert [x.dtype.name for x in found] == ["float32", "float32", "float32", "int32"]
    assert K.eval(K.arange(0.0, 2.0, 0.5, dtype="int64")).tolist() == [0, 0, 1, 1]


def test_axes_are_a_list_a_tuple_or_an_array() -> None:
    values = np.arange(24.0).reshape(2, 3, 4)
    x = K.constant(values)
    for function, wanted in ((K.sum, np.sum), (K.max, np.max), (K.mean, np.mean), (K.std, np.std), (K.any, np.any)):
        np.testing.assert_allclose(K.eval(function(x, axis=np.arange(1, 3))), wanted(values, axis=(1, 2)))
    np.testing.assert_array_equal(K.eval(K.sum(x, axis=np.array(1))), values.sum(1))
    np.testing.assert_array_equal(K.eval(K.reverse(x, np.array([1]))), values[:, ::-1])
    with pytest.raises(ArgumentError, match="axis"):
        K.sum(x, axis=np.array([[1]]))


def test_statistics_of_a_batch_of_any_shape_that_broadcasts(backend: str) -> None:
    values = np.random.RandomState(0).rand(2, 3, 4).astype("float32")
    x = K.constant(values)
    for axes, keepdims in ((0, False), (0, True), ((0, 1), False), (None, False)):
        mean, var = K.mean(x, axes, keepdims), K.var(x, axes, keepdims)
        wanted = (values - values.mean(axes, keepdims=keepdims)) / np.sqrt(values.var(axes, keepdims=keepdims) + 1e-3)
        np.testing.assert_allclose(K.eval(K.batch_normalization(x, mean, var, None, None)), wanted, 1e-5, 1e-6)


@pytest.mark.parametrize("number", [float, np.float32, np.array])
def test_activations_take_numbers_of_numpys_as_keras_layers_have_them(number: Any) -> None:
    x = K.constant([-np.inf, -1.0, 0.0, 3.0, 9.0, np.inf, np.nan])
    limited = K.relu(x, alpha=number(0.0), max_value=number(6.0), threshold=number(0.0))
    np.testing.assert_array_equal(K.eval(limited), np.array([0, 0, 0, 3, 6, 6, np.nan], "float32"))
    assert K.elu(x, number(1.0)).op == "elu"
    with pytest.raises(ArgumentError, match=r"dropout: level 1\.5 isn't allowed"):
        K.dropout(x, number(1.5))
