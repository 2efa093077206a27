"""Inputs and truths made once, and the results of the active engine measured against them, many in one `K.function`."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelk import backend as K

from . import points, ulps
from .arrays import ArrayFunction, exact
from .formulas import Function, Held
from .ulps import MP, NAN, Array, Truth, mpf

# A compilation costs much beside an op, and grows faster than its program.
BATCH = 12
# Errors below this are those of results that are as good as exact: 1 + 1e-30 as 1.
EXACT = 0.01


@dataclass(frozen=True)
class Part:
    """What is right of one output of a function: of those of its elements that are measured."""

    name: str
    taken: Array
    right: Truth


@dataclass(frozen=True)
class Prepared:
    """A function in one dtype with all that it is fed, and the truth of each output, for each round.

    A function of arrays is fed the weights of its results in the loss after its operands.
    """

    function: Function | ArrayFunction
    dtype: str
    feeds: list[list[Array]]
    rounds: list[list[Part]]

    def __str__(self) -> str:
        return f"{self.function.title} in {self.dtype}"

    def outputs(self) -> tuple[list[Any], list[Any]]:
        """New placeholders, and the tensors that are measured."""
        first, names = self.feeds[0], [part.name for part in self.rounds[0]]
        if isinstance(self.function, Function):
            inputs = [K.placeholder((None,), dtype=self.dtype) for _ in first]
            loss = value = self.function.graph(*inputs)
        else:
            inputs = [K.placeholder(feed.shape, dtype=feed.dtype) for feed in first]
            value = self.function.graph(*inputs[:-1])
            loss = K.sum(value * inputs[-1])
        moved = [inputs[int(name.partition(" ")[2])] for name in names[1:]]
        return inputs, [value, *(K.gradients(loss, moved) if moved else [])]


@dataclass(frozen=True)
class Measured:
    """How far off the values or the gradients of a function are, in one dtype on one engine.

    `typical` is the median of those that aren't exact (a hundredth of an ulp or more); `at` shows the operands of the
    worst.
    """

    engine: str
    title: str
    dtype: str
    part: str
    worst: float
    typical: float
    count: int
    at: str = ""

    def __str__(self) -> str:
        return f"{self.engine}, {self.title}, {self.part}, {self.dtype}: {self.worst:.3g} ulp at {self.at}"


# Preparing ------------------------------------------------------------------------------------------------


def prepared(function: Function | ArrayFunction, dtype: str, count: int, rounds: int, seed: int) -> Prepared:
    """A function's inputs and truths: `count` points and more (0 for all of float16), or so many rounds of arrays."""
    random = np.random.default_rng([seed, zlib.crc32(f"{function.title} {function.label} {dtype}".encode())])
    if isinstance(function, Function):
        feeds = _points(function, dtype, count, random)
        return Prepared(function, dtype, [feeds], [list(_elementwise(function, dtype, feeds))])
    found = [_arrays(function, dtype, random) for _ in range(rounds)]
    return Prepared(function, dtype, [feeds for feeds, _ in found], [parts for _, parts in found])


def _points(function: Function, dtype: str, count: int, random: np.random.Generator) -> list[Array]:
    if function.points == "numbers":
        whole = not count and dtype == "float16"
        found = points.everything() if whole else points.sample(dtype, count, random, function.kinks)
        return [found if function.infinities else found[~np.isinf(found)]]
    if function.points == "pairs":
        return list(points.pairs(dtype, count, random, function.kinks))
    if function.points == "powers":
        return list(points.powers(dtype, count, random))
    return list(points.chances(dtype, count, random, function.kinks, function.points == "targets"))


def _elementwise(function: Function, dtype: str, feeds: Sequence[Array]) -> Iterator[Part]:
    held = Held(dtype)
    rows = [tuple(map(mpf, row)) for row in zip(*[feed.astype("float64").tolist() for feed in feeds])]
    formulas = [("value", function.value)]
    formulas += [(f"gradient {number}", slope) for number, slope in enumerate(function.slopes) if slope is not None]
    for name, formula in formulas:
        values, magnitudes, taken = [], [], []
        for number, row in enumerate(rows):
            if any(not MP.isfinite(x) for x in row) and name != "value":
                continue
            found = NAN if any(MP.isnan(x) for x in row) else formula(held, *row)
            if found is not None:
                value, magnitude = found if isinstance(found, tuple) else (found, abs(found))
                values.append(mpf(value))
                magnitudes.append(magnitude)
                taken.append(number)
        yield Part(name, np.array(taken, int), ulps.truth(values, dtype, magnitudes))


def _arrays(function: ArrayFunction, dtype: str, random: np.random.Generator) -> tuple[list[Array], list[Part]]:
    held = Held(dtype)
    feeds = [np.asarray(feed) for feed in function.operands(random, dtype)]
    operands = [exact(feed) for feed in feeds]
    values, magnitudes = function.truth(held, *operands)
    weights = np.asarray(random.uniform(-1, 1, np.shape(values))).astype(dtype)
    parts = [_part("value", values, magnitudes, dtype)]
    if function.slopes is not None:
        for number, (slope, sizes) in enumerate(function.slopes(held, exact(weights), *operands)):
            parts.append(_part(f"gradient {number}", slope, sizes, dtype))
    return [*feeds, weights], parts


def _part(name: str, values: Any, magnitudes: Any, dtype: str) -> Part:
    flat, sizes = np.ravel(np.asarray(values, object)), np.ravel(np.asarray(magnitudes, object))
    taken = np.array([i for i, value in enumerate(flat) if value is not None], int)
    return Part(name, taken, ulps.truth(flat[taken], dtype, sizes[taken]))


# Measuring ------------------------------------------------------------------------------------------------


def measured(engine: str, batch: Sequence[Prepared], flushes: bool = False) -> list[Measured]:
    """What the active engine gives for these, measured; functions of one title and dtype together."""
    found: dict[tuple[str, str, str], list[tuple[Array, list[str]]]] = defaultdict(list)
    for start in range(0, len(batch), BATCH):
        for one, number, part, got in _run(batch[start : start + BATCH]):
            off = ulps.errors(np.ravel(got)[part.taken], part.right, flushes)
            key = one.function.title, one.dtype, part.name.partition(" ")[0]
            found[key].append((off, [_shown(one, number, part, off)]))
        K.clear_session()
    return [summed(engine, *key, parts) for key, parts in found.items()]


def summed(engine: str, title: str, dtype: str, name: str, parts: Sequence[tuple[Array, list[str]]]) -> Measured:
    """Several outputs' errors as one."""
    off = np.concatenate([errors for errors, _ in parts])
    _, worst = max((float(errors.max(initial=0.0)), shown) for errors, shown in parts)
    inexact = off[off >= EXACT]
    typical = float(np.median(inexact)) if len(inexact) else 0.0
    return Measured(engine, title, dtype, name, float(off.max(initial=0.0)), typical, len(off), worst[0])


def _run(batch: Sequence[Prepared]) -> Iterator[tuple[Prepared, int, Part, Array]]:
    inputs, outputs = [], []
    for one in batch:
        given, made = one.outputs()
        inputs += given
        outputs += made
    call = K.function(inputs, outputs)
    for number in range(max(len(one.rounds) for one in batch)):
        # One that has fewer rounds is fed its last one again.
        results = iter(call([feed for one in batch for feed in one.feeds[min(number, len(one.feeds) - 1)]]))
        for one in batch:
            for part in one.rounds[min(number, len(one.rounds) - 1)]:
                got = next(results)
                if number < len(one.rounds):
                    yield one, number, part, got


def _shown(one: Prepared, number: int, part: Part, off: Array) -> str:
    """The operands of the worst result; of arrays, its place."""
    if not len(off):
        return ""
    place = int(part.taken[int(np.argmax(off))])
    if isinstance(one.function, Function):
        return ", ".join(repr(float(feed[place])) for feed in one.feeds[0])
    return f"element {place} of round {number} ({one.function.label})"
