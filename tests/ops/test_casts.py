"""Casts between all dtypes, out of range too: one result on every engine, wherever in an array a value stands."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from helpers.arrays import DTYPES, FLOATS, INTEGERS, same_bits, saturated

from kernelk import backend as K
from kernelk.backends.numpy.elementwise import OPS
from kernelk.graph.rules import apply, expand

# Shorter than any vector, a vector and some more, and enough for several threads.
LENGTHS = (1, 3, 37, 60_000)
NUMBERS = [0.5, -0.5, 1, -1.5, 2, 300, -300, 3e9, -3e9, 1e19, -1e19, 70000, 2049, 65519, 65520]


def values(dtype: str) -> Any:
    """Numbers of a dtype: its ends, and those of all others, with their neighbours; where it is rounded; NaN."""
    if dtype == "bool":
        return np.array([False, True])
    if dtype in INTEGERS:
        limits = np.iinfo(dtype)
        near = [end + step for kind in INTEGERS for end in _ends(kind) for step in (-1, 0, 1)]
        # Halfway between floats, and a bit beyond.
        near += [2**24 + 1, 2**25 + 2, 2**53 + 1, 2**54 + 2, 2**62 + 2**38, 2**62 + 2**38 + 1, 2**63 + 2**39 + 1]
        near += [int(number) for number in NUMBERS]
        return np.array(sorted({n for n in near if limits.min <= n <= limits.max}), dtype)
    limits = np.finfo(dtype)
    ends = np.array([float(end) for kind in INTEGERS for end in _ends(kind)] + NUMBERS)
    with np.errstate(all="ignore"):
        ends = ends.astype(dtype)
        near = [ends, np.nextafter(ends, np.inf), np.nextafter(ends, -np.inf)]
    tiny = limits.smallest_subnormal
    special = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, limits.max, limits.min, limits.tiny, tiny, -tiny], dtype)
    # Rounded twice, to float32 and then to float16, these come out otherwise.
    twice = np.array([1 + 2**-11 + 2**-30, 1 + 2**-11 - 2**-30, 2**-25 + 2**-50, 65520 - 2**-20], dtype)
    return np.unique(np.concatenate([*near, special, twice]).view(f"u{limits.dtype.itemsize}")).view(dtype)


def _ends(dtype: str) -> tuple[int, int]:
    return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)


def rounded(number: Any, dtype: str) -> Any:
    """An integer as the nearest float, the even one of two."""
    with np.errstate(all="ignore"):
        guess = np.array(float(number), "float64").astype(dtype)[()]
        near = [np.nextafter(guess, dtype_of(dtype)(-np.inf)), guess, np.nextafter(guess, dtype_of(dtype)(np.inf))]
    top = Fraction(float(np.finfo(dtype).max))
    beyond = Fraction(2) ** int(np.finfo(dtype).maxexp)
    exact = [Fraction(float(x)) if np.isfinite(x) else beyond * (1 if x > 0 else -1) for x in near]
    assert exact[0] <= number <= exact[2] or abs(number) > top

    def distance(index: int) -> Any:
        return abs(exact[index] - number), int(near[index].view(f"u{near[index].itemsize}")) & 1

    return near[min(range(3), key=distance)]


def dtype_of(name: str) -> Any:
    return np.dtype(name).type


def cast(x: Any, dtype: str) -> Any:
    """The definition, in whole numbers."""
    if dtype == "bool":
        return np.array([bool(value != 0) for value in x.tolist()])
    if x.dtype.kind == "f":
        if dtype in INTEGERS:
            return saturated(x, dtype)
        # numpy itself rounds once.
        with np.errstate(all="ignore"):
            return x.astype(dtype)
    whole = [int(value) for value in x.tolist()]
    if dtype in FLOATS:
        return np.array([rounded(value, dtype) for value in whole], dtype)
    bits = np.iinfo(dtype).bits
    low = int(np.iinfo(dtype).min)
    return np.array([(value - low) % 2**bits + low for value in whole], dtype)


def same(got: Any, wanted: Any) -> bool:
    """Bit for bit, but for the payload of NaN."""
    if wanted.dtype.kind != "f":
        return same_bits(got, wanted)
    missing = np.isnan(wanted)
    return bool(np.array_equal(np.isnan(got), missing)) and same_bits(
        np.where(missing, 0, got).astype(got.dtype), np.where(missing, 0, wanted).astype(wanted.dtype)
    )


@pytest.mark.parametrize("source", DTYPES)
def test_every_pair_at_every_place(backend: str, source: str) -> None:
    x = K.placeholder((None,), dtype=source)
    call = K.function([x], [K.cast(x, target) for target in DTYPES])
    pool = values(source)
    wanted = [cast(pool, target) for target in DTYPES]
    for n in LENGTHS:
        # Each value comes to stand everywhere, as far as a length has room.
        for shift in range(0, len(pool), 1 if n < 100 else 1 + len(pool) // 3):
            places = (shift + np.arange(n)) % len(pool)
            for target, got, right in zip(DTYPES, call([pool[places]]), wanted):
                assert same(got, right[places]), (
                    f"{source} to {target}, {n} from {shift}: {_first(pool, places, got, right)}"
                )


def _first(pool: Any, places: Any, got: Any, right: Any) -> str:
    for at, place in enumerate(places):
        if not same(got[at : at + 1], right[place : place + 1]):
            return f"{pool[place]!r} at {at} gives {got[at]!r}, not {right[place]!r}"
    return ""


@pytest.mark.parametrize("source", DTYPES)
def test_a_constant_is_cast_as_a_tensor_is(source: str) -> None:
    pool = values(source)
    constant = K.constant(pool, dtype=source)
    for target in DTYPES:
        made = K.cast(constant, target)
        assert made.op == ("constant" if source != target else constant.op)
        assert same(K.eval(made), cast(pool, target)), target


@pytest.mark.parametrize("source", FLOATS)
def test_the_decomposition_is_the_definition(source: str) -> None:
    # numpy has a function for it, and so do some engines: third parties' go by the decomposition.
    x = K.placeholder((None,), dtype=source)
    written = [expand(apply("saturating_cast", x, dtype=target)) for target in INTEGERS]
    pool = values(source)
    for target, got in zip(INTEGERS, K.function([x], written)([pool])):
        assert same(got, cast(pool, target)), target


def test_a_range_of_floats_saturates_too() -> None:
    assert K.eval(K.arange(-100.5, 400, 100, dtype="uint8")).tolist() == [0, 0, 99, 199, 255, 255]


def test_casts_to_integers_have_no_gradient() -> None:
    w = K.variable([1.5, np.nan])
    (slope,) = K.gradients(K.sum(K.cast(K.cast(w, "int32"), "float32") * w), [w])
    assert K.eval(slope).tolist() == [1.0, 0.0]


def test_numpys_own_function_takes_no_array_apart() -> None:
    # 0-d, empty and strided operands.
    for x in (np.array(300.0), np.zeros((0, 3)), np.arange(-2.0, 600.0, 100.0)[::-2]):
        made = OPS["saturating_cast"](None, x, dtype="uint8")
        assert isinstance(made, np.ndarray)
        assert made.dtype == np.uint8
        assert np.array_equal(made, saturated(x, "uint8"))
