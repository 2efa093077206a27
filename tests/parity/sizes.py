"""Cases at the lengths where an engine's vector code, what it leaves over and its threads take turns.

Each edge value stands at each position: none may decide what comes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice

import numpy as np

from kernelk import backend as K
from kernelk.graph.nodes import Tensor

from . import check, suite
from .case import Array, Case, Operand, Trial, edge_values, real, values_of

LONG = 100_000
LENGTHS = (*range(1, 131), LONG)
# A prime: operands that go through as many values at different steps meet in all pairs.
POOL = 19
BATCH = 40
# Reductions over one axis, by the labels of their cases: each axis's length ("n", or 1), and which axis is reduced.
ALONG = {
    "of a vector": ("n", 0),
    "vector": ("n", 0),
    "first": ("nn", 0),
    "of no rows": ("nn", 1),
    "beside an empty axis": ("1nn", 1),
}


@dataclass(frozen=True)
class Sized:
    """A case in one dtype: `attempts(n)` times values for length `n`, made by `feeds(n, attempt)`."""

    case: Case
    dtype: str
    attempts: Callable[[int], int]
    feeds: Callable[[int, int], list[Array]]
    # Whether errors grow with the length, as in a sum.
    grows: bool = False
    # Whether its graph needs the length.
    known: bool = False

    def __str__(self) -> str:
        return f"{self.case} in {self.dtype}"

    def trial(self, n: int, attempt: int) -> Trial:
        """The case with the values of one attempt."""
        case = replace(self.case, scale=self.case.scale * n**0.5) if self.grows else self.case
        feeds = self.feeds(n, attempt % self.attempts(n))
        return Trial(case, self.dtype, [feed.shape if self.known else (None,) * feed.ndim for feed in feeds], feeds)


def _pool(operand: Operand, dtype: str, random: np.random.Generator) -> Array:
    """The values that an operand goes through: all edge values of its kind, others in the places that are left."""
    pool = values_of(replace(operand, values=_ordinary(operand)), dtype, (POOL,), random)
    edges = edge_values(operand.values, dtype)
    pool[: len(edges)] = edges
    return pool


def _ordinary(operand: Operand) -> str:
    return "real" if operand.values in ("edges", "nonfinite") else operand.values


def _elementwise(random: np.random.Generator) -> Iterator[Sized]:
    for case in suite.cases("elementwise"):
        letters = {operand.axes for operand in case.operands}
        shown = case.function == "print_tensor" or case.phase is not None
        if shown or not letters or letters - {"Ab", "ab"} or "[" in case.label:
            continue
        for dtype in case.dtypes:
            pools = [_pool(operand, operand.dtype or dtype, random) for operand in case.operands]

            def feeds(n: int, attempt: int, pools: Sequence[Array] = pools) -> list[Array]:
                steps = [attempt + np.arange(n), 5 * attempt + 3 * np.arange(n), 7 * attempt + 2 * np.arange(n)]
                return [pool[step % POOL][None] for pool, step in zip(pools, steps)]

            yield Sized(case, dtype, lambda n: POOL if n < LONG else 2, feeds)


def _along(random: np.random.Generator) -> Iterator[Sized]:
    for case in suite.cases("reductions"):
        axes, along = ALONG.get(case.label.rpartition(", ")[2], ("", 0))
        if not axes:
            continue
        (operand,) = case.operands
        for dtype in case.dtypes:
            yield _reduction(case, operand, operand.dtype or dtype, axes, along, random)


def _reduction(case: Case, operand: Operand, dtype: str, axes: str, along: int, random: np.random.Generator) -> Sized:
    """A case whose operand holds one edge value along the axis: of a matrix, at another position in each row."""
    edges = edge_values(operand.values, dtype)
    ordinary = replace(operand, values=_ordinary(operand))

    def feeds(n: int, attempt: int) -> list[Array]:
        shape = tuple(1 if axis == "1" else n for axis in axes)
        if n >= LONG:
            shape = tuple(length if axis == along else min(length, 3) for axis, length in enumerate(shape))
        x = values_of(ordinary, dtype, shape, random)
        if len(edges):
            edge = edges[(attempt + attempt // n) % len(edges)]
            if len(axes) == 1:
                x[attempt % n if n < LONG else attempt * (n - 1) // 15] = edge
            else:
                rows = np.moveaxis(x.reshape(x.shape[-2:]), along - len(axes), -1)
                rows[np.arange(len(rows)), (np.arange(len(rows)) * max(1, n // len(rows)) + attempt) % n] = edge
        return [x]

    def attempts(n: int) -> int:
        if not len(edges):
            return 2
        return len(edges) if len(axes) > 1 else min(2 * n, 16) if n >= LONG else 2 * n

    return Sized(case, dtype, attempts, feeds, grows=True)


def _tops(random: np.random.Generator) -> Iterator[Sized]:
    for case in suite.cases("networks"):
        if case.function == "in_top_k":
            for dtype in case.dtypes:
                yield _top(case, dtype, random)


def _top(case: Case, dtype: str, random: np.random.Generator) -> Sized:
    scores, targets = case.operands
    edges = edge_values(scores.values, dtype)

    def feeds(n: int, attempt: int) -> list[Array]:
        rows = np.arange(min(n, 3) if n >= LONG else n)
        places = rows * max(1, n // len(rows))
        x = values_of(real(""), dtype, (len(rows), n), random)
        if len(edges):
            x[rows, places] = edges[attempt % len(edges)]
        chosen = values_of(replace(targets, below=n), str(targets.dtype), (len(rows),), random)
        # Every other row asks for the edge value itself.
        chosen[::2] = places[::2]
        return [x, chosen]

    return Sized(case, dtype, lambda n: 3, feeds, known=True)


def _pools(random: np.random.Generator) -> Iterator[Sized]:
    for case in suite.cases("windows"):
        if case.function.startswith("pool"):
            for dtype in case.dtypes:
                yield _pooling(case, dtype, random)


def _pooling(case: Case, dtype: str, random: np.random.Generator) -> Sized:
    (operand,) = case.operands
    edges = edge_values("nonfinite", dtype)

    def feeds(n: int, attempt: int) -> list[Array]:
        # One axis after the other is the long one: two spatial ones, which hold a window, and that of the channels.
        long = "pq2"[attempt % 3]
        lengths = {"A": 1, "2": 2, "p": 3, "q": 3, "r": 3, long: n // 18 if n >= LONG else n if long == "2" else n + 2}
        x = values_of(real(""), dtype, tuple(lengths[axis] for axis in operand.axes), random)
        x.reshape(-1)[(attempt * 7 + 11 * np.arange(3)) % x.size] = edges[attempt // 3 % len(edges)]
        return [x]

    return Sized(case, dtype, lambda n: 9 if n < LONG else 3, feeds)


GROUPS: dict[str, Callable[[np.random.Generator], Iterator[Sized]]] = {
    "elementwise": _elementwise,
    "reductions": _along,
    "top_k": _tops,
    "pooling": _pools,
}


def failures(engine: str, chosen: Iterable[Sized], lengths: Sequence[int] = LENGTHS, most: int = LONG) -> list[str]:
    """What is wrong on the active engine, a line for each case and dtype; at most so many attempts at each length."""
    found: dict[str, str] = {}
    for _, alike in groupby(sorted(chosen, key=_count), key=_count):
        while batch := list(islice(alike, BATCH)):
            _together(engine, batch, lengths, most, found)
            # An engine that holds thousands of programs becomes slow.
            K.clear_session()
    return list(found.values())


def _count(one: Sized) -> int:
    return one.attempts(POOL)


def _together(engine: str, batch: Sequence[Sized], lengths: Sequence[int], most: int, found: dict[str, str]) -> None:
    """Runs these in common calls, and enters into `found` what is wrong."""
    try:
        _run(engine, batch, lengths, most, found)
    except Exception as error:
        if len(batch) == 1:
            one = batch[0]
            line = " ".join(f"{type(error).__name__}: {error}".split())[:600]
            found[str(one)] = f"{engine}: {one}: {line}"
            return
        # One of them stops all: which, is found by halves.
        middle = len(batch) // 2
        _together(engine, batch[:middle], lengths, most, found)
        _together(engine, batch[middle:], lengths, most, found)


def _run(engine: str, batch: Sequence[Sized], lengths: Sequence[int], most: int, found: dict[str, str]) -> None:
    for n in lengths:
        if n == lengths[0] or any(one.known for one in batch):
            inputs: list[list[Tensor]] = [one.trial(n, 0).placeholders() for one in batch]
            outputs: list[Tensor] = [one.case.graph(*own) for one, own in zip(batch, inputs)]
            call = K.function([x for own in inputs for x in own], outputs)
        for attempt in range(min(most, max(one.attempts(n) for one in batch))):
            trials = [one.trial(n, attempt) for one in batch]
            values = call([feed for trial in trials for feed in trial.feeds])
            for one, trial, made, value in zip(batch, trials, outputs, values):
                for line in check.differences(trial, [made], [value]):
                    found.setdefault(str(one), f"{engine}: {trial}: {line}"[:1500])


def every(group: str, seed: int) -> list[Sized]:
    """All of a group."""
    return list(GROUPS[group](np.random.default_rng(seed)))


def sample(group: str, seed: int, count: int) -> list[Sized]:
    """So many of a group."""
    random = np.random.default_rng(seed)
    found = every(group, seed)
    return [found[i] for i in sorted(random.choice(len(found), min(count, len(found)), replace=False))]
