"""What K functions refuse, in the line that wrote it: an error of its kind, one line that says what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kernelk import backend as K
from kernelk.errors import ArgumentError, DTypeError, ShapeError


@pytest.mark.parametrize(
    ("write", "error", "words"),
    [
        (
            lambda x: K.dot(x, K.ones((3, 2))),
            ShapeError,
            r"\(None, 4\) and \(3, 2\) don't fit: inner dimensions 4 and 3 differ",
        ),
        (lambda x: x + K.ones((3,)), ShapeError, r"\(None, 4\) and \(3,\) don't broadcast"),
        (
            lambda x: K.reshape(K.ones((3, 4)), (5, 2)),
            ShapeError,
            r"\(3, 4\) \(12 elements\).*\(5, 2\) \(10 elements\)",
        ),
        (lambda x: K.reshape(x, (-1, -1)), ShapeError, "only one axis"),
        (lambda x: K.reshape(x, (-2, 4)), ShapeError, "-2 can't be a length"),
        (lambda x: K.concatenate([x, K.ones((2, 3))], 0), ShapeError, r"\(None, 4\) and \(2, 3\) differ in axis 1"),
        (lambda x: K.concatenate([]), ArgumentError, "at least one"),
        (lambda x: K.sum(x, axis=2), ShapeError, "axis 2 is out of range for a tensor of 2 axes; allowed are -2 to 1"),
        (lambda x: K.sum(x, axis=(0, -2)), ArgumentError, "one axis twice"),
        (lambda x: K.sum(x, axis="a"), ArgumentError, "it must be an int"),
        (lambda x: K.squeeze(x, 1), ShapeError, "has length 4, not 1"),
        (lambda x: x[:, 4], ShapeError, "index 4 is out of range for axis 1 of length 4"),
        (lambda x: x[0, 0, 0], ShapeError, "3 indices for a tensor of 2 axes"),
        (lambda x: x[..., ...], ArgumentError, "only one"),
        (lambda x: x["a"], ArgumentError, "can't be indexed by str: allowed are ints"),
        (lambda x: x[::0], ArgumentError, "step can't be 0"),
        (lambda x: K.permute_dimensions(x, (0, 0)), ShapeError, "isn't an order of the 2 axes"),
        (lambda x: K.max(K.ones((0, 2)), axis=0), ShapeError, "one of them is empty"),
        (lambda x: K.argmax(K.ones((2, 0))), ShapeError, "is empty"),
        (lambda x: K.one_hot(x, 3), DTypeError, "indices must be integers, not float32"),
        (lambda x: K.cast(x, "complex64"), DTypeError, "isn't supported: allowed are"),
        (lambda x: K.variable([1.0], dtype="float8"), DTypeError, "isn't supported: allowed are"),
        (lambda x: x & x, DTypeError, "takes bool"),
        (lambda x: -(x > 0), DTypeError, "isn't defined for bool"),
        (lambda x: K.random_uniform((2,), dtype="int32"), DTypeError, "floats, not int32"),
        (lambda x: K.placeholder(), ArgumentError, "give `shape`"),
        (lambda x: K.placeholder((2, -3)), ArgumentError, "negative length"),
        (lambda x: K.placeholder((2, 3), ndim=3), ArgumentError, "contradicts"),
        (lambda x: K.zeros((None, 3)), ArgumentError, "known lengths"),
        (lambda x: K.count_params(x), ShapeError, "unknown axes"),
        (lambda x: bool(x > 0), ArgumentError, "K.eval"),
        (lambda x: len(x), ArgumentError, "isn't known"),
        (lambda x: np.asarray(x), ArgumentError, "isn't known"),
        (lambda x: list(x), ArgumentError, "isn't known"),
        (lambda x: K.variable(2**40, dtype="int32"), DTypeError, "doesn't fit into int32"),
        (lambda x: K.dot(x, 3.0), ShapeError, "scalar"),
        (lambda x: K.dot(x, [[x]]), ArgumentError, "isn't known"),
        (lambda x: K.constant([x]), ArgumentError, "isn't known"),
        (lambda x: float(x), ArgumentError, "isn't known"),
        (lambda x: int(x), ArgumentError, "isn't known"),
        (lambda x: round(x), ArgumentError, "isn't known"),
        (lambda x: range(x), ArgumentError, "isn't known"),
        (lambda x: K.placeholder("a"), ArgumentError, "a shape is a tuple of ints"),
        (lambda x: K.placeholder((2, "b")), ArgumentError, "a shape is a tuple of ints"),
        (
            lambda x: K.reshape(x, "a"),
            ArgumentError,
            "reshape: 'a' can't be a length; a length must be an int or a 0-d",
        ),
        (lambda x: K.gradients(K.sum(x), 2), ArgumentError, "expected tensors to differentiate by, not int"),
        (lambda x: K.stack([x, [x]]), ShapeError, r"stack: shapes \(None, 4\) and .* differ; they must be equal"),
        (
            lambda x: K.resize_images(K.ones((1, 2, 2, 1)), 2, 2, "channels_last", "cubic"),
            ArgumentError,
            "interpolation 'cubic' isn't allowed; allowed are nearest and bilinear",
        ),
        (lambda x: x.eval({"x": 1}), ArgumentError, "feeds map placeholders to arrays, not str 'x'"),
        (lambda x: x.eval([1]), ArgumentError, "feeds map placeholders to arrays, not list"),
        (lambda x: K.variable([[x]]), ArgumentError, "isn't known"),
        (lambda x: K.batch_flatten(K.constant(1.0)), ShapeError, "x is a scalar; it needs at least one axis"),
        (lambda x: K.gradients(K.argmax(x), [x]), ArgumentError, "must be a float"),
    ],
)
def test_refused_when_written(write: Callable[[Any], Any], error: type[Exception], words: str) -> None:
    x = K.placeholder((None, 4))
    with pytest.raises(error, match=words) as caught:
        write(x)
    assert "\n" not in str(caught.value)
    # No other error's whole line, with its own next command, stands inside the problem.
    assert "next: " not in caught.value.problem  # type: ignore[attr-defined]


def test_empty_batches_are_refused_only_where_there_is_no_answer(backend: str) -> None:
    x = K.placeholder((None, 3))
    top = K.function([x], [K.max(x, axis=0)])
    assert top([np.ones((2, 3))])[0].tolist() == [1.0] * 3
    with pytest.raises(ShapeError, match=r"max: can't reduce along axes \(0,\).*test_refused_ops\.py, line"):
        top([np.ones((0, 3))])
    assert np.isnan(K.function([x], [K.mean(x)])([np.ones((0, 3))])[0])
    assert top([np.ones((2, 3))])[0].tolist() == [1.0] * 3
