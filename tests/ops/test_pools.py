"""Pools on every engine: equals, infinities and NaN in a window, pools in loops, and windows that aren't held.

test_windows.py has the values, the slopes and the refusals that they share with convolutions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernelk import backend as K
from kernelk.errors import ShapeError


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


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_a_window_that_what_is_fed_does_not_hold_is_refused(backend: str, mode: str) -> None:
    x = K.placeholder((None, None, None, 2))
    y = K.pool2d(x, (2, 2), padding="valid", data_format="channels_last", pool_mode=mode)
    call, slope = K.function([x], [y]), K.function([x], K.gradients(K.sum(y), [x]))
    for function in (call, slope):
        with pytest.raises(ShapeError, match="a window covers 2") as refused:
            function([np.ones((1, 1, 3, 2), "float32")])
        assert "test_pools.py" in str(refused.value)
    assert call([np.ones((1, 2, 3, 2), "float32")])[0].shape == (1, 1, 2, 2)
