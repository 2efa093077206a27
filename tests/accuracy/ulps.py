"""Units in the last place: how far a result of a dtype is from a truth that mpmath holds with more digits.

A truth is kept in two floats, so that mpmath is asked once and every engine's results are compared in numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mpmath
import numpy as np

Array = np.ndarray[Any, Any]

# A context of its own: others in this process may set the precision of mpmath's global one.
MP = mpmath.mp.clone()
# A product of three float64 is exact, and what cancels in a formula leaves more than a float64 holds.
MP.prec = 240
mpf = MP.mpf
INFINITY, NAN = mpf("inf"), mpf("nan")


@dataclass(frozen=True)
class Format:
    """A binary format: its digits, and the exponents of its least and its largest normal binade."""

    digits: int
    least: int
    largest: int


FORMATS = {
    "float16": Format(11, -14, 15),
    "float32": Format(24, -126, 127),
    "float64": Format(53, -1022, 1023),
}


@dataclass(frozen=True)
class Truth:
    """True results for a dtype: `whole + rest` units of 2 ** `unit` each.

    The unit is the ulp of the result, or of the sum of its terms' magnitudes where that is given. Whatever lies beyond
    the largest number counts as the power of two that follows it, and so does an infinity that a function gives for it.
    `whole` is an infinity or NaN where the truth is. `subnormal`: the truth is less than the least normal number.
    """

    dtype: str
    whole: Array
    rest: Array
    unit: Array
    subnormal: Array

    def __len__(self) -> int:
        return len(self.whole)


def truth(values: Iterable[Any], dtype: str, magnitudes: Iterable[Any] | None = None) -> Truth:
    """The truth of numbers of mpmath. `magnitudes`: of each, the sum of its terms' magnitudes, if that is the unit."""
    form = FORMATS[dtype]
    values = [mpf(value) for value in values]
    scales = [abs(value) for value in values] if magnitudes is None else [mpf(size) for size in magnitudes]
    beyond = MP.ldexp(mpf(1), form.largest + 1)
    count = len(values)
    whole, rest, unit = np.zeros(count), np.zeros(count), np.zeros(count, "int32")
    small = np.zeros(count, bool)
    for i, (value, scale) in enumerate(zip(values, scales)):
        if not MP.isfinite(value):
            whole[i] = float(value)
            continue
        scale = max(abs(value), scale) if MP.isfinite(scale) else beyond
        # 2 ** (mag - 1) <= scale < 2 ** mag
        binade = form.least - 1 if not scale else int(MP.mag(scale)) - 1
        small[i] = abs(value) < MP.ldexp(mpf(1), form.least)
        unit[i] = min(max(binade, form.least), form.largest) - (form.digits - 1)
        if abs(value) > beyond:
            value = beyond if value > 0 else -beyond
        exact = MP.ldexp(value, -int(unit[i]))
        whole[i] = float(exact)
        rest[i] = float(exact - mpf(whole[i]))
    return Truth(dtype, whole, rest, unit, small)


def errors(got: Array, right: Truth, flushes: bool = False) -> Array:
    """How many ulps each result is off; infinite where one is NaN or truly infinite and the other isn't.

    `flushes`: results that are subnormal are measured in units of the least normal number.
    """
    form = FORMATS[right.dtype]
    wide = np.asarray(got).astype("float64").ravel()
    assert wide.shape == right.whole.shape, f"{wide.shape} results for {right.whole.shape} truths"
    finite = np.isfinite(right.whole)
    with np.errstate(all="ignore"):
        # The infinity that stands for what is beyond the largest number.
        following = np.ldexp(1.0, form.largest + 1 - right.unit)
        units = np.where(np.isinf(wide) & finite, np.copysign(following, wide), np.ldexp(wide, -right.unit))
        found = np.abs((units - right.whole) - right.rest)
    same = np.where(np.isnan(right.whole), np.isnan(wide), wide == right.whole)
    found = np.where(finite, np.where(np.isnan(found), np.inf, found), np.where(same, 0.0, np.inf))
    if not flushes:
        return found
    least = np.ldexp(np.where(right.subnormal, found, 0), right.unit - form.least)
    return np.where(right.subnormal, least, found)


def moved(values: Array, steps: int) -> Array:
    """Each number's neighbour so many steps away in its dtype, upwards where `steps` is positive."""
    for _ in range(abs(steps)):
        values = np.nextafter(values, values.dtype.type(np.copysign(np.inf, steps)))
    return values
