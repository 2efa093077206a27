"""Tests of the ruler: what is off by N ulps is measured as N."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accuracy import ulps

DTYPES = tuple(ulps.FORMATS)
WIDTHS = {"float16": 16, "float32": 32, "float64": 64}


def floats(dtype: str) -> st.SearchStrategy[float]:
    return st.floats(width=WIDTHS[dtype], allow_nan=False, allow_infinity=False)  # type: ignore[arg-type]


def measured(got: object, value: object, dtype: str, **more: object) -> float:
    return float(ulps.errors(np.array([got], dtype), ulps.truth([ulps.mpf(value)], dtype, **more))[0])  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data(), steps=st.integers(-9, 9))
def test_steps_between_neighbours_are_ulps(dtype: str, data: st.DataObject, steps: int) -> None:
    # So far from a power of two, below which neighbours lie twice as close, that all steps stay above it.
    digits = ulps.FORMATS[dtype].digits - 1
    mantissa = data.draw(st.integers(9, 2**digits - 10))
    exponent = data.draw(st.integers(1, 2 ** (WIDTHS[dtype] - 1 - digits) - 2))
    sign = data.draw(st.integers(0, 1))
    bits = (sign << WIDTHS[dtype] - 1) + (exponent << digits) + mantissa
    value = np.array([bits], f"uint{WIDTHS[dtype]}").view(dtype)
    got = ulps.moved(value, steps)
    assert measured(got[0], float(value[0]), dtype) == abs(steps)


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
def test_a_rounded_result_is_at_most_half_an_ulp_off(dtype: str, data: st.DataObject) -> None:
    x, y = (np.array(data.draw(floats(dtype)), dtype) for _ in range(2))
    with np.errstate(all="ignore"):
        rounded = x * y
    right = ulps.mpf(float(x)) * ulps.mpf(float(y))
    assert measured(rounded, right, dtype) <= 0.5
    with np.errstate(all="ignore"):
        assert measured(x + y, ulps.mpf(float(x)) + ulps.mpf(float(y)), dtype) <= 0.5


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ends_of_the_range(dtype: str) -> None:
    limits = np.finfo(dtype)
    beyond = ulps.MP.ldexp(1, ulps.FORMATS[dtype].largest + 1)
    largest, least = float(limits.max), float(limits.smallest_subnormal)
    assert measured(np.inf, beyond * 8, dtype) == 0
    assert measured(limits.max, beyond * 8, dtype) == 1
    assert measured(np.inf, largest, dtype) == 1
    assert measured(-np.inf, largest, dtype) > 1000
    assert measured(np.inf, ulps.mpf(largest) + (beyond - largest) / 4, dtype) == 0.75
    assert measured(limits.max, ulps.mpf(largest) + (beyond - largest) / 4, dtype) == 0.25
    assert measured(0, ulps.mpf(least) / 4, dtype) == 0.25
    assert measured(0, ulps.mpf(10) ** -5000, dtype) == 0
    assert measured(0, float(limits.tiny), dtype) == 2.0 ** (ulps.FORMATS[dtype].digits - 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_finite(dtype: str) -> None:
    for value in ("inf", "-inf", "nan"):
        assert measured(float(value), value, dtype) == 0
        assert measured(1.0, value, dtype) == np.inf
    assert measured(np.inf, "-inf", dtype) == np.inf
    assert measured(np.nan, 1.0, dtype) == np.inf
    assert measured(np.finfo(dtype).max, "inf", dtype) == np.inf


@pytest.mark.parametrize("dtype", DTYPES)
def test_magnitudes_of_terms_are_the_unit(dtype: str) -> None:
    # 0.75 - 0.5 with a term that is an ulp off: two ulps of the result, one of the terms.
    step = float(np.spacing(np.array(0.75, dtype)))
    assert measured(0.25 + step, 0.25, dtype) == 2
    assert measured(0.25 + step, 0.25, dtype, magnitudes=[ulps.mpf(1) - step]) == 1
    # A magnitude smaller than the result counts for nothing.
    assert measured(0.25 + step, 0.25, dtype, magnitudes=[ulps.mpf(0)]) == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_engine_that_flushes_is_measured_by_the_least_normal_number(dtype: str) -> None:
    tiny = float(np.finfo(dtype).tiny)
    right = ulps.truth([ulps.mpf(tiny) / 2, ulps.mpf(tiny)], dtype)
    flushed = np.zeros(2, dtype)
    assert ulps.errors(flushed, right, flushes=True).tolist() == [0.5, 2.0 ** (ulps.FORMATS[dtype].digits - 1)]


def test_the_digits_of_a_float64_are_not_the_limit() -> None:
    third = ulps.mpf(1) / 3
    nearest = float(third)
    off = (ulps.mpf(nearest) - third) / ulps.MP.ldexp(1, -54)
    assert measured(nearest, third, "float64") == pytest.approx(abs(float(off)), rel=1e-12)
    assert measured(np.nextafter(nearest, 1), third, "float64") == pytest.approx(abs(float(off + 1)), rel=1e-12)
