"""Trials made by hypothesis: it looks for shapes and values that fail, and makes them as small as it can."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from . import check, suite
from .case import FLOATS, Operand, Trial, limits, values_of

# What floats of a kind may be, beside those that are left to `values_of`.
RANGES: dict[str, dict[str, Any]] = {
    "real": {"min_value": -4, "max_value": 4, "allow_subnormal": False},
    "edges": {},
    "extreme": {"min_value": -1e4, "max_value": 1e4},
    "unit": {"min_value": 1 / 64, "max_value": 63 / 64},
}


@st.composite
def trials(draw: st.DrawFn, family: str | None = None) -> Trial:
    """Any case in any of its dtypes, with lengths, None in their places, and values."""
    case = draw(st.sampled_from(suite.cases(family)))
    dtype = draw(st.sampled_from(list(case.dtypes)))
    letters = sorted({axis for operand in case.operands for axis in operand.axes if axis.isalpha()})
    lengths = {letter: draw(st.integers(*limits(letter))) for letter in letters}
    shapes, feeds = [], []
    for operand in case.operands:
        shape = tuple(lengths[axis] if axis.isalpha() else int(axis) for axis in operand.axes)
        opened = [axis.isalpha() and axis not in case.known and draw(st.booleans()) for axis in operand.axes]
        shapes.append(tuple(None if unknown else n for n, unknown in zip(shape, opened)))
        feeds.append(draw(_values(operand, operand.dtype or dtype, shape)))
    return Trial(case, dtype, shapes, feeds)


def _values(operand: Operand, dtype: str, shape: tuple[int, ...]) -> st.SearchStrategy[Any]:
    if dtype in FLOATS and operand.values in RANGES:
        elements = arrays.from_dtype(np.dtype(dtype), **RANGES[operand.values])
    elif dtype not in FLOATS and operand.values == "edges":
        elements = arrays.from_dtype(np.dtype(dtype))
    else:
        seeds = st.integers(0, 2**16)
        return seeds.map(lambda seed: values_of(operand, dtype, shape, np.random.default_rng(seed)))
    return arrays.arrays(dtype, shape, elements=elements)


def failures(engine: str, examples: int) -> list[str]:
    """What is wrong on the active engine with the smallest failing trial that was found, if one was."""
    found: list[str] = []

    @settings(max_examples=examples, database=None)
    @given(one=trials())
    def attempt(one: Trial) -> None:
        wrong = check.failures(engine, [one])
        if wrong:
            found[:] = wrong
        assert not wrong

    with contextlib.suppress(AssertionError):
        attempt()
    return found
