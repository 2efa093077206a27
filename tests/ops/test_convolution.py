"""Convolutions on every engine: lengths that only a call knows, NaN behind a layer, strides and kernels beyond others.

test_windows.py has the values, the slopes and the refusals that they share with pools.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from window_cases import conv, transposed

import kernelk
from kernelk import backend as K
from kernelk.errors import ShapeError


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


def test_too_short_at_the_call(backend: str) -> None:
    x = K.placeholder((None, None, 4, 1))
    call = K.function([x], [K.conv2d(x, K.variable(np.ones((3, 3, 1, 1))))])
    assert call([np.ones((1, 3, 4, 1))])[0].shape == (1, 1, 2, 1)
    with pytest.raises(ShapeError, match="length 2"):
        call([np.ones((1, 2, 4, 1))])


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
