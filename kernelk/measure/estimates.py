"""Estimates from samples: medians and paired ratios with confidence intervals, and whether the machine was steady."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

# The confidence of every interval. Higher than usual, since a machine's noise comes in bursts: neighbours resemble one
# another, and tell less than as many independent samples would.
CONFIDENCE = 0.99

# Times closer than this count as equal: where a program lies in memory makes as much of a difference.
RESOLUTION = 0.01

# Samples whose halves, or whose middle half, differ by more than this are called unsteady.
STEADY = 0.05

_Z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)


class Estimate(NamedTuple):
    """A value and its confidence interval, which is infinite where there are too few samples for one."""

    value: float
    low: float
    high: float


def median(samples: Sequence[float]) -> Estimate:
    """The median, with the interval between two of the samples that holds it whatever their distribution is."""
    ordered = sorted(samples)
    n = len(ordered)
    spread = _Z * math.sqrt(n) / 2
    low, high = math.floor(n / 2 - spread), math.ceil(n / 2 + spread)
    middle = float(np.median(ordered))
    if low < 0 or high >= n:
        return Estimate(middle, ordered[0], ordered[-1]) if n > 2 else Estimate(middle, 0.0, math.inf)
    return Estimate(middle, ordered[low], ordered[high])


def paired_ratio(samples: Sequence[float], reference: Sequence[float]) -> Estimate:
    """The ratio of two times that were taken in pairs: the Hodges-Lehmann estimate over the pairs' logarithms.

    Its interval is that of Wilcoxon's signed-rank test. What disturbs both of a pair alike cancels.
    """
    logs = np.log(np.asarray(samples, np.float64) / np.asarray(reference, np.float64))
    n = len(logs)
    rows, columns = np.triu_indices(n)
    averages = np.sort((logs[rows] + logs[columns]) / 2)
    middle = float(np.exp(np.median(averages)))
    cut = math.floor(len(averages) / 2 - _Z * math.sqrt(n * (n + 1) * (2 * n + 1) / 24))
    if cut < 0:
        return Estimate(middle, 0.0, math.inf)
    return Estimate(middle, float(np.exp(averages[cut])), float(np.exp(averages[len(averages) - 1 - cut])))


def verdict(ratio: Estimate) -> str:
    """The verdict on a ratio of times: "slower", "faster", "no difference", or that telling takes a larger budget."""
    if ratio.low > 1 + RESOLUTION:
        return "slower"
    if ratio.high < 1 - RESOLUTION:
        return "faster"
    if ratio.low == 0 or ratio.high - ratio.low > 0.2:
        return "unclear: needs a larger budget"
    return "no difference"


def unsteadiness(samples: Sequence[float]) -> str:
    """Signs of unsteadiness in samples in the order in which they were taken, in words; "" if there are none."""
    values = np.asarray(samples)
    if len(values) < 8:
        return f"only {len(values)} samples" if len(values) < 3 else ""
    remarks = []
    first, second = np.median(values[: len(values) // 2]), np.median(values[len(values) // 2 :])
    if abs(second / first - 1) > STEADY:
        remarks.append(f"the second half took {second / first:.2f}x the first")
    low, middle, high = np.percentile(values, [25, 50, 75])
    if (high - low) / middle > 2 * STEADY:
        remarks.append(f"the middle half of the samples spans {(high - low) / middle:.0%}")
    outliers = int((values > high + 3 * (high - low)).sum())
    if outliers > len(values) // 20:
        remarks.append(f"{outliers} of {len(values)} samples are outliers")
    return ", ".join(remarks)
