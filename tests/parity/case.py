"""A parity case: a K expression, the same in plain numpy, and how its operands are made."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import sparse

from kernelk import backend as K
from kernelk.graph.nodes import Tensor

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
NUMBERS = (*FLOATS, *INTEGERS)
ALL = (*NUMBERS, "bool")
ONE = ("float32",)
# The numbers that matrices of scipy.sparse hold.
MATRICES = tuple(dtype for dtype in NUMBERS if dtype != "float16")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Operand:
    """One placeholder and what is fed to it.

    `axes`: a character for each axis. A digit is that very length; a letter stands for a length that all axes of that
    letter in a case share: 1 to 4 for a small letter, 0 to 4 for a capital one, 3 to 7 for p, q and r (images), none
    for o. `values`: the name of a kind in `KINDS`, or "index", "label" or "steps". `dtype`: None stands for the case's.
    `below`: for indices, labels and numbers of steps (3 at least), the first that is out of range.
    `sparse`: the format of scipy.sparse ("csr", ...) in which a sparse placeholder is fed; none for a dense one.
    """

    axes: str
    values: str = "real"
    dtype: str | None = None
    below: int = 0
    sparse: str = ""


@dataclass(frozen=True)
class Case:
    """`graph` of K tensors must give what `expected` gives of arrays, in the dtype `gives(dtype)`.

    `expected` gets floats as float64 and everything else as it is fed; where it returns a function, that is asked
    whether the value is right (random numbers). All three may return a tuple. `known`: letters whose lengths the
    placeholder must have (the others are None now and then). `scale`: how many times the dtype's tolerance is allowed.
    `phase`: the learning phase that is fed.
    """

    function: str
    label: str
    graph: Callable[..., Any]
    expected: Callable[..., Any]
    operands: Sequence[Operand] = ()
    dtypes: Sequence[str] = FLOATS
    gives: Callable[[str], str | tuple[str, ...]] = field(default=lambda dtype: dtype)
    known: str = ""
    scale: float = 1.0
    phase: int | None = None

    def __str__(self) -> str:
        return f"{self.function} ({self.label})"


def numeric(dtype: str) -> str:
    """A result's dtype where bool counts as int32."""
    return "int32" if dtype == "bool" else dtype


def floating(dtype: str) -> str:
    """A result's dtype where integers become floatx."""
    return dtype if dtype in FLOATS else "float32"


def always(name: str | tuple[str, ...]) -> Callable[[str], str | tuple[str, ...]]:
    """A result's dtype, or those of several results, whatever the operands' are."""
    return lambda dtype: name


def real(axes: str, values: str = "real", dtype: str | None = None) -> Operand:
    """An operand of the case's dtype, or of one of its own."""
    return Operand(axes, values, dtype)


def index(axes: str, below: int, dtype: str = "int32") -> Operand:
    """Integers from 2 less than 0 to 1 beyond `below`, so that some are out of range."""
    return Operand(axes, "index", dtype, below)


def label(axes: str, below: int, dtype: str = "int32") -> Operand:
    """Integers that are all in range."""
    return Operand(axes, "label", dtype, below)


def flags(axes: str) -> Operand:
    """Booleans."""
    return Operand(axes, "real", "bool")


# --- values -----------------------------------------------------------------------------------------------------


def edge_values(kind: str, dtype: str) -> Array:
    """The values of a kind at which a function may break off; none if the kind has none."""
    if dtype == "bool":
        return np.array([], dtype)
    if dtype not in FLOATS:
        limits = np.iinfo(dtype)
        pool = [limits.min, limits.max, 0, 1, 2, limits.max - 1, limits.min + 1, limits.max // 2]
        return np.array(pool if kind in ("edges", "nonfinite", "extreme") else [], dtype)
    if kind == "nonfinite":
        return np.array([np.nan, np.inf, -np.inf], dtype)
    if kind != "edges":
        return np.array([], dtype)
    high, tiny = float(np.finfo(dtype).max), float(np.finfo(dtype).tiny)
    # The last three are denormal.
    pool = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1, -1, 0.5, -2.5, high, -high, tiny, -tiny, 3]
    return np.array([*pool, tiny / 2, -tiny / 2, float(np.finfo(dtype).smallest_subnormal)], dtype)


def _nonfinite(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    values = random.uniform(-3, 3, shape)
    return np.where(random.random(shape) < 0.2, random.choice([np.nan, np.inf, -np.inf], shape), values)


def _real(random: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Any:
    values = random.uniform(-3, 3, shape)
    # Some are whole or halves, so that there are equals, zeros and ties.
    return np.where(random.random(shape) < 0.3, np.rint(values * 2) / 2, values)


# What floats are made of; other dtypes have `_integers`.
KINDS: dict[str, Callable[[np.random.Generator, tuple[int, ...], str], Any]] = {
    "real": _real,
    "edges": lambda random, shape, dtype: random.choice(edge_values("edges", dtype), shape),
    "nonfinite": _nonfinite,
    "halves": lambda random, shape, dtype: random.integers(-6, 7, shape) / 2,
    "extreme": lambda random, shape, dtype: (
        random.choice([0, 1, 30, 90, 800, 1e4], shape) * random.choice([-1, 1], shape)
    ),
    "positive": lambda random, shape, dtype: random.uniform(0.2, 3, shape),
    "unit": lambda random, shape, dtype: random.uniform(0.02, 0.98, shape),
    "bits": lambda random, shape, dtype: random.integers(0, 2, shape),
    "small": lambda random, shape, dtype: random.integers(0, 4, shape),
}


def _integers(random: np.random.Generator, shape: tuple[int, ...], dtype: str, kind: str) -> Any:
    limits, pool = np.iinfo(dtype), edge_values(kind, dtype)
    if len(pool):
        return pool[random.integers(0, len(pool), shape)]
    low, high = {"positive": (1, 6), "unit": (0, 2), "bits": (0, 2), "small": (0, 4)}.get(kind, (-7, 8))
    return random.integers(max(low, limits.min), high, shape)


def values_of(operand: Operand, dtype: str, shape: tuple[int, ...], random: np.random.Generator) -> Array:
    """The value fed to an operand."""
    if operand.values == "index":
        made = random.integers(-2 if dtype.startswith("i") else 0, operand.below + 2, shape)
    elif operand.values == "label":
        made = random.integers(0, operand.below, shape)
    elif operand.values == "steps":
        made = random.integers(3, operand.below, shape)
    elif dtype == "bool":
        made = random.random(shape) < 0.5
    elif dtype in FLOATS:
        made = KINDS[operand.values](random, shape, dtype)
    else:
        made = _integers(random, shape, dtype, operand.values)
    with np.errstate(all="ignore"):
        return np.asarray(made).astype(dtype)


@dataclass(frozen=True)
class Trial:
    """A case with everything chosen: the dtype, what the placeholders know, and what is fed."""

    case: Case
    dtype: str
    shapes: list[tuple[int | None, ...]]
    feeds: list[Array]

    def __str__(self) -> str:
        fed = ", ".join(f"{feed.dtype}{list(feed.shape)} as {shape}" for feed, shape in zip(self.feeds, self.shapes))
        return f"{self.case} in {self.dtype}, fed {fed or 'nothing'}"

    def placeholders(self) -> list[Tensor]:
        """New placeholders for it, one for each operand."""
        given = zip(self.case.operands, self.shapes, self.feeds)
        return [K.placeholder(shape, dtype=feed.dtype, sparse=bool(x.sparse)) for x, shape, feed in given]

    def fed(self) -> list[Any]:
        """The feeds as a call gets them."""
        given = zip(self.case.operands, self.feeds)
        return [sparse.coo_array(feed).asformat(x.sparse) if x.sparse else feed for x, feed in given]

    def promised(self) -> tuple[str, ...]:
        """The dtype of each tensor."""
        dtypes = self.case.gives(self.dtype)
        return (dtypes,) * len(self.wanted()) if isinstance(dtypes, str) else dtypes

    def wanted(self) -> tuple[Any, ...]:
        """numpy's result."""
        wide = [feed.astype("float64") if feed.dtype.kind == "f" else feed for feed in self.feeds]
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # the mean of nothing
            result = self.case.expected(*wide)
        return result if isinstance(result, tuple) else (result,)


def limits(letter: str) -> tuple[int, int]:
    """The least and the largest length that a letter stands for."""
    if letter == "o":
        return 0, 0
    return (3, 7) if letter in "pqr" else (0 if letter.isupper() else 1, 4)


def trial(case: Case, dtype: str, random: np.random.Generator, open_axes: str = "some") -> Trial:
    """One trial of a case. `open_axes`: "none", "all" or "some" of its axes have unknown lengths (None)."""
    letters = sorted({axis for operand in case.operands for axis in operand.axes if axis.isalpha()})
    lengths = {letter: int(random.integers(low, high + 1)) for letter in letters for low, high in [limits(letter)]}
    shapes, feeds = [], []
    for operand in case.operands:
        shape = tuple(lengths[axis] if axis.isalpha() else int(axis) for axis in operand.axes)
        share = {"none": 0.0, "all": 1.0, "some": 0.5}[open_axes]
        shapes.append(
            tuple(
                None if axis.isalpha() and axis not in case.known and random.random() < share else n
                for axis, n in zip(operand.axes, shape)
            )
        )
        feeds.append(values_of(operand, operand.dtype or dtype, shape, random))
    return Trial(case, dtype, shapes, feeds)
