"""The call that a refused op names next is one that works, with the user's own shapes in it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from kernelk import backend as K
from kernelk.errors import FeedError, KernelKError


def of_shape(*shape: int | None) -> Any:
    return K.placeholder(shape)


def refused(code: str, names: dict[str, Any]) -> KernelKError:
    with pytest.raises(KernelKError) as caught:
        eval(code, names)
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize(
    ("code", "x", "y", "next_step"),
    [
        ("K.dot(x, y)", (None, 3), (2, 3), "K.dot(x, K.transpose(y))"),
        ("K.dot(x, y)", (3, 2), (3, 4), "K.dot(K.transpose(x), y)"),
        ("K.batch_dot(x, y)", (5, 3), (5, 4, 3), "K.batch_dot(x, y, axes=(1, 2))"),
        ("K.reshape(x, (4, 2))", (3, 2), None, "K.reshape(x, (-1, 2))"),
        ("K.slice(x, [1], [2])", (3, 2), None, "K.slice(x, [1, 0], [2, -1])"),
        ("K.squeeze(x, 0)", (3, 1, 2), None, "K.squeeze(x, 1)"),
        ("K.spatial_2d_padding(x, ((1, 1),))", (1, 4, 4, 2), None, "K.spatial_2d_padding(x, ((1, 1), (1, 1)))"),
        ("K.temporal_padding(x, 2)", (1, 4, 2), None, "K.temporal_padding(x, (1, 1))"),
        ("K.placeholder((2, 3), ndim=3)", None, None, "K.placeholder((2, 3))"),
    ],
)
def test_a_call_that_works_is_named(code: str, x: Any, y: Any, next_step: str) -> None:
    names = {"K": K, "x": of_shape(*x) if x else None, "y": of_shape(*y) if y else None}
    assert refused(code, names).next_step == next_step
    assert K.is_tensor(eval(next_step, names))


@pytest.mark.parametrize(
    ("code", "x", "y", "next_step"),
    [
        ("K.conv2d(x, y)", (1, 3, 8, 8), (3, 3, 3, 5), "K.permute_dimensions(x, (0, 2, 3, 1))"),
        (
            "K.conv2d(x, y, data_format='channels_first')",
            (1, 8, 8, 3),
            (3, 3, 3, 5),
            "K.permute_dimensions(x, (0, 3, 1, 2))",
        ),
        ("K.conv1d(x, y)", (1, 3, 8), (3, 3, 5), "K.permute_dimensions(x, (0, 2, 1))"),
        ("K.pool2d(x, (2, 2))", (1, 1, 4, 4, 2), None, "K.squeeze(x, 0)"),
        ("K.batch_flatten(x)", (), None, "K.expand_dims(x, 0)"),
        ("K.gather(x, [0])", (), None, "K.expand_dims(reference, 0)"),
        ("K.map_fn(K.exp, x)", (), None, "K.expand_dims(x, 0)"),
        ("K.rnn(lambda a, s: (a, s), x, [])", (5,), None, "K.expand_dims(x, 0) adds samples"),
        ("K.bias_add(x, y)", (1, 4, 4, 2), (1, 2), "K.flatten(bias)"),
        ("K.concatenate([y, x], 0)", (3,), (2, 3), "K.expand_dims(x, 0)"),
    ],
)
def test_a_call_that_brings_an_operand_to_fit_is_named(code: str, x: Any, y: Any, next_step: str) -> None:
    names = {"K": K, "x": of_shape(*x), "y": of_shape(*y) if y else None}
    assert refused(code, names).next_step == next_step
    operand = "y" if "bias" in next_step else "x"
    names["reference"], names["bias"] = names["x"], names["y"]
    names[operand] = eval(next_step.partition(" adds ")[0], names)
    if "rnn" in code:
        names[operand] = K.expand_dims(names[operand], -1)
    result = eval(code, names)
    assert result is not None


@pytest.mark.parametrize(
    ("padding", "strides", "lengths"),
    [("valid", 1, "(6, 7)"), ("valid", 2, "(9, 11)"), ("same", 2, "(8, 10)"), ("same", 1, "(4, 5)")],
)
def test_the_lengths_that_a_transposed_convolution_takes_are_named(padding: str, strides: int, lengths: str) -> None:
    def transposed(rows: int, columns: int) -> Any:
        shape = (None, rows, columns, 2)
        return K.conv2d_transpose(of_shape(2, 4, 5, 3), of_shape(3, 3, 2, 3), shape, (strides, strides), padding)

    with pytest.raises(KernelKError) as caught:
        transposed(30, 5)
    assert caught.value.next_step == f"give output_shape the spatial lengths {lengths}"
    assert transposed(*eval(lengths)).shape == (2, *eval(lengths), 2)


def test_a_missing_axis_is_named_by_what_it_holds() -> None:
    adds = "K.expand_dims(x, 0) adds batch, K.expand_dims(x, {}) adds channels"
    error = refused("K.conv2d(x, y)", {"K": K, "x": of_shape(8, 8, 3), "y": of_shape(3, 3, 3, 5)})
    assert (error.allowed, error.next_step) == ("it needs 4 axes (batch, height, width, channels)", adds.format(3))
    code = "K.spatial_3d_padding(x, data_format='channels_first')"
    error = refused(code, {"K": K, "x": of_shape(1, 8, 8, 8)})
    assert error.allowed == "it needs 5 axes (batch, channels, depth, height, width)"
    assert error.next_step == adds.format(1)
    error = refused("K.repeat(x, 2)", {"K": K, "x": of_shape(1, 2, 3, 4)})
    assert error.next_step == "K.reshape(x, (samples, dim))"


@pytest.mark.parametrize(
    ("shape", "fed", "next_step"),
    [
        ((None, 3), (3,), "feed x[None], a batch of one"),
        ((None, 3), (3, 5), "feed x.T"),
        ((None, 4, 4, 1), (2, 4, 4), "feed x[..., None]"),
        ((3,), (1, 3), "feed x[0]"),
        ((None,), (7, 1), "feed x[..., 0]"),
        ((None, 3), (2, 4), ""),
    ],
)
def test_what_would_fit_a_placeholder_is_named(shape: Sequence[Any], fed: tuple[int, ...], next_step: str) -> None:
    call = K.function([x := K.placeholder(shape)], [x])
    with pytest.raises(FeedError) as caught:
        call([np.zeros(fed)])
    assert caught.value.next_step == next_step
    assert caught.value.allowed
    if next_step:
        call([eval(next_step.removeprefix("feed ").partition(", a batch")[0], {"x": np.zeros(fed)})])
