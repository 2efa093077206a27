"""The inputs of elementwise functions: exponents evenly over the dtype's range, its edges, the neighbours of kinks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from .ulps import FORMATS, Array, moved

# How many neighbours of a kink on either side.
NEIGHBOURS = 3


def everything() -> Array:
    """All numbers of float16."""
    return np.arange(2**16, dtype="uint16").view("float16")


def edges(dtype: str) -> Array:
    """The ends of a dtype's range and of its binades' kinds, zeros, ones and infinities, NaN."""
    limits = np.finfo(dtype)
    positive = [0.0, limits.smallest_subnormal, limits.tiny, limits.eps, limits.epsneg, 1.0, limits.max, np.inf]
    found = np.array(positive, dtype)
    with np.errstate(all="ignore"):
        found = np.concatenate([found, moved(found, 1), moved(found, -1)])
    return np.concatenate([found, -found, np.array([np.nan], dtype)])


def neighbours(dtype: str, kinks: Iterable[float]) -> Array:
    """The numbers around each of these, and around their negatives."""
    with np.errstate(over="ignore"):
        near = np.array([*kinks], dtype="float64").astype(dtype)
    found = np.concatenate([moved(near, step) for step in range(-NEIGHBOURS, NEIGHBOURS + 1)])
    return np.concatenate([found, -found])


def spread(dtype: str, count: int, random: np.random.Generator, low: int | None = None, high: int = 0) -> Array:
    """Numbers of either sign with exponents evenly from `low` to `high`; over the whole range without `low`."""
    form = FORMATS[dtype]
    if low is None:
        low, high = form.least - form.digits + 1, form.largest
    exponents = random.integers(max(low, form.least - form.digits + 1), min(high, form.largest) + 1, count)
    found = np.ldexp(random.uniform(1, 2, count), exponents) * random.choice([-1, 1], count)
    with np.errstate(all="ignore"):
        found = found.astype(dtype)
    # What rounds up to an infinity is an edge.
    return found[np.isfinite(found)]


def sample(dtype: str, count: int, random: np.random.Generator, kinks: Iterable[float] = ()) -> Array:
    """Edges, neighbours, and `count` others: a third over all exponents, the rest where functions have their shape."""
    digits = FORMATS[dtype].digits
    parts: list[Any] = [
        edges(dtype),
        neighbours(dtype, kinks),
        spread(dtype, count - 2 * count // 3, random),
        spread(dtype, count // 3, random, -digits - 4, 11),
        spread(dtype, count // 3, random, -4, 6),
    ]
    return np.concatenate(parts)


def pairs(dtype: str, count: int, random: np.random.Generator, kinks: Iterable[float] = ()) -> tuple[Array, Array]:
    """Finite first and second operands: all pairs of edges, equal and near ones, and `count` others."""
    ends = edges(dtype)
    ends = np.unique(np.concatenate([ends[np.isfinite(ends)], neighbours(dtype, kinks)]))
    # With many points these are all of them.
    ends = random.permutation(ends)[: max(16, count // 100)]
    first, second = (both.ravel() for both in np.meshgrid(ends, ends))
    x, y = (random.permutation(sample(dtype, count, random, kinks))[: count // 2] for _ in range(2))
    near = spread(dtype, count // 4, random, -8, 8)
    u, v = (spread(dtype, count // 4, random, -4, 4) for _ in range(2))
    length = min(len(u), len(v))
    xs = np.concatenate([first, x, near, u[:length]])
    ys = np.concatenate([second, y, moved(near, int(random.integers(0, 3))), v[:length]])
    finite = np.isfinite(xs) & np.isfinite(ys)
    return xs[finite], ys[finite]


def powers(dtype: str, count: int, random: np.random.Generator) -> tuple[Array, Array]:
    """Bases, and exponents whose powers mostly are in the dtype's range: whole ones where a base is negative."""
    form = FORMATS[dtype]
    bases = np.concatenate([spread(dtype, count // 2, random, -3, 3), spread(dtype, count // 2, random)])
    with np.errstate(all="ignore"):
        reach = form.largest / np.maximum(np.abs(np.log2(np.abs(bases.astype("float64")))), 2.0**-10)
    exponents = random.uniform(-1.1, 1.1, len(bases)) * reach
    whole = random.random(len(bases)) < 0.3
    exponents = np.where(whole | (bases < 0), np.rint(exponents), exponents)
    # A whole number that isn't one in the dtype is one of no parity.
    exponents = np.clip(exponents, -(2.0**form.digits) / 2, 2.0**form.digits / 2).astype(dtype)
    simple = np.array([0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0], dtype)
    x, y = (both.ravel() for both in np.meshgrid(np.array([0.25, 1.0, 2.0, 3.0, 1e-3, 1e3], dtype), simple))
    return np.concatenate([x, bases]), np.concatenate([y, exponents])


def chances(
    dtype: str, count: int, random: np.random.Generator, kinks: Iterable[float], logits: bool
) -> tuple[Array, Array]:
    """Targets, most of them 0 or 1, and finite outputs: probabilities, or logits over the whole range."""
    outputs = sample(dtype, count, random, kinks)
    outputs = outputs[np.isfinite(outputs)]
    if not logits:
        near = spread(dtype, count // 2, random, -FORMATS[dtype].digits, -1)
        with np.errstate(all="ignore"):
            outputs = np.abs(np.concatenate([outputs, near, (1 - np.abs(near)).astype(dtype)]))
        outputs = outputs[outputs <= 2]
    targets = random.choice(np.array([0, 1, 0.25, 0.9], dtype), len(outputs), p=[0.4, 0.4, 0.1, 0.1])
    return targets, outputs
