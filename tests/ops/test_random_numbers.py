"""Random numbers and dropout on every engine: their distribution and dtypes, and that each run draws afresh."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.arrays import FLOATS, assert_close

from kernelk import backend as K
from kernelk.errors import ArgumentError


def test_draws_have_the_right_distribution(backend: str) -> None:
    u, n = K.random_uniform((20000,), -2.0, 6.0), K.random_normal((20000,), 3.0, 0.5)
    uniform, normal = K.function([], [u, n])([])
    assert uniform.dtype == normal.dtype == "float32"
    assert uniform.min() >= -2
    assert uniform.max() < 6
    assert abs(uniform.mean() - 2) < 0.1
    assert abs(uniform.std() - 8 / 12**0.5) < 0.1
    assert abs(normal.mean() - 3) < 0.02
    assert abs(normal.std() - 0.5) < 0.02


@pytest.mark.parametrize("dtype", FLOATS)
def test_draws_of_each_float(backend: str, dtype: str) -> None:
    x = K.placeholder((None, 3), dtype=dtype)
    u, n = K.random_uniform(K.shape(x), dtype=dtype), K.random_normal((2, 0), dtype=dtype)
    call = K.function([x], [u, n, K.random_uniform((), dtype=dtype)])
    for size in (500, 1, 0):
        uniform, normal, scalar = call([np.zeros((size, 3))])
        assert (uniform.shape, normal.shape, scalar.shape) == ((size, 3), (2, 0), ())
        assert uniform.dtype == normal.dtype == scalar.dtype == dtype
        assert ((uniform >= 0) & (uniform < 1)).all()


def test_each_run_draws_afresh_and_within_a_run_once(backend: str) -> None:
    u = K.random_uniform((100,))
    call = K.function([], [u, u * 2.0, u])
    first, doubled, again = call([])
    assert first.tolist() == again.tolist()
    assert_close(doubled, first * 2)
    assert not np.array_equal(call([])[0], first)


def test_dropout(backend: str) -> None:
    # So few columns are often far from their rate.
    K.set_random_seed(1)
    x = K.placeholder((None, 50))
    y = K.dropout(x, 0.4)
    rows = K.dropout(x, 0.4, noise_shape=(None, 1))
    same = K.dropout(x, 0.4, noise_shape=(1, K.shape(x)[1]))
    assert K.int_shape(rows) == K.int_shape(same) == (None, 50)
    call = K.function([x], [y, rows, same, K.sum(K.gradients(K.sum(y), [x])[0] * K.cast(K.equal(y, 0.0), "float32"))])
    value, by_row, by_column, leaked = call([np.ones((200, 50))])
    assert set(np.unique(value.round(5)).tolist()) == {0.0, np.float32(1 / 0.6).round(5)}
    assert 0.35 < (value == 0).mean() < 0.45
    assert leaked == 0
    assert (by_row == by_row[:, :1]).all()
    assert 0.2 < (by_row == 0).mean() < 0.6
    assert (by_column == by_column[:1]).all()
    assert 0.1 < (by_column == 0).mean() < 0.7
    none = K.function([x], [K.dropout(x, 0.0)])([np.ones((2, 50))])[0]
    assert none.tolist() == np.ones((2, 50)).tolist()


@pytest.mark.parametrize("draw", [K.random_normal, K.random_uniform, K.truncated_normal, K.random_binomial])
def test_an_unknown_length_is_refused_with_what_works(draw: Any) -> None:
    with pytest.raises(ArgumentError, match=r"-1 can't be a length.*next: K\.shape\(x\)\[axis\]"):
        draw((-1, 3))
    with pytest.raises(ArgumentError, match=r"can't hold None here; next: use K\.shape\(x\)\[axis\]"):
        draw((None, 3))
