"""Medians, paired ratios and verdicts, on samples whose truth is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kernelk.measure.estimates import RESOLUTION, Estimate, median, paired_ratio, unsteadiness, verdict

Generator = np.random.Generator


def noisy(generator: Generator, count: int, sides: int) -> Any:
    """Times of equal sides in rounds, as busy machines give them: a drift, bursts, and long tails."""
    drift = np.cumsum(generator.normal(0, 0.01, count))
    burst = np.repeat(generator.random(count // 5 + 1) < 0.15, 5)[:count] * generator.uniform(0, 0.6, count)
    own = generator.lognormal(0, 0.05, (sides, count)) + (generator.random((sides, count)) < 0.05) * 0.5
    return np.exp(drift) * (1 + burst) * own


def test_equal_sides_are_told_to_be_equal_and_a_slower_one_is_found() -> None:
    generator = np.random.default_rng(7)
    equal = found = 0
    trials = 1000
    for _ in range(trials):
        a, b = noisy(generator, 120, 2)
        equal += verdict(paired_ratio(a, b)) == "no difference"
        found += verdict(paired_ratio(a * 1.05, b)) == "slower"
    assert equal >= 0.95 * trials
    assert found >= 0.9 * trials


def test_the_interval_holds_the_ratio_as_often_as_it_says() -> None:
    generator = np.random.default_rng(8)
    held = 0
    for _ in range(600):
        a, b = generator.lognormal(0, 0.2, (2, 30))
        ratio = paired_ratio(1.3 * a, b)
        held += ratio.low <= 1.3 <= ratio.high
    assert held >= 0.975 * 600


def test_the_interval_of_a_median_holds_it() -> None:
    generator = np.random.default_rng(9)
    held = 0
    for _ in range(600):
        found = median(generator.lognormal(0, 0.5, 40))
        held += found.low <= 1 <= found.high
    assert held >= 0.975 * 600


@given(
    st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=40),
    st.floats(1e-3, 1e3),
)
def test_estimates_scale_with_their_samples(samples: list[float], factor: float) -> None:
    found = median(samples)
    assert found.low <= found.value <= found.high
    assert median([factor * x for x in samples]).value == pytest.approx(factor * found.value)
    ratio = paired_ratio([factor * x for x in samples], samples)
    assert ratio.value == pytest.approx(factor)
    there, back = paired_ratio(samples, samples[::-1]), paired_ratio(samples[::-1], samples)
    assert there.value * back.value == pytest.approx(1)


def test_too_few_samples_have_no_interval() -> None:
    assert math.isinf(median([1.0, 2.0]).high)
    ratio = paired_ratio([2.0] * 8, [1.0] * 8)
    assert ratio == (pytest.approx(2.0), 0.0, math.inf)
    assert verdict(ratio) == "unclear: needs a larger budget"


def test_what_is_within_the_resolution_is_no_difference() -> None:
    assert verdict(Estimate(1 + RESOLUTION / 2, 1 + RESOLUTION / 4, 1 + RESOLUTION * 0.9)) == "no difference"
    assert verdict(Estimate(1.05, 1.02, 1.08)) == "slower"
    assert verdict(Estimate(0.9, 0.85, 0.95)) == "faster"
    assert verdict(Estimate(1.0, 0.8, 1.3)) == "unclear: needs a larger budget"


def test_unsteady_samples_are_called_so() -> None:
    generator = np.random.default_rng(3)
    calm = generator.normal(1, 0.01, 100)
    assert unsteadiness(calm) == ""
    assert "second half took 1.5" in unsteadiness(np.concatenate([calm[:50], calm[50:] * 1.5]))
    assert "spans" in unsteadiness(generator.lognormal(0, 0.3, 100))
    assert "outliers" in unsteadiness(np.concatenate([calm, np.full(12, 9.0)])[generator.permutation(112)])
    assert "only 2 samples" in unsteadiness([1.0, 1.0])
