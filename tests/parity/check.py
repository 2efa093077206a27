"""Runs trials on the active engine, many in one `K.function`, and says of each what is wrong with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from helpers.arrays import ATOL, RTOL, fits

import kernelk
from kernelk import backend as K
from kernelk.errors import SwapRefusedError
from kernelk.graph.nodes import Tensor, Update

from .case import Case, Trial, trial
from .gaps import gap_of

# A compilation costs much beside an op, and grows faster than its program.
BATCH = 60


def sampled(cases: Sequence[Case], seed: int) -> Iterator[Trial]:
    """One trial of each case, in one of its dtypes."""
    random = np.random.default_rng(seed)
    for case in cases:
        yield trial(case, str(random.choice(list(case.dtypes))), random)


def whole(cases: Sequence[Case], seed: int, rounds: int) -> Iterator[Trial]:
    """Each case in each of its dtypes: with all lengths known, with none, then with some."""
    random = np.random.default_rng(seed)
    for number in range(rounds):
        for case in cases:
            for dtype in case.dtypes:
                yield trial(case, dtype, random, ("none", "all", "some")[min(number, 2)])


def failures(engine: str, trials: Iterable[Trial]) -> list[str]:
    """What is wrong, a line for each trial that failed on the active engine; known gaps must be refused."""
    found: list[str] = []
    phases: dict[int | None, list[Trial]] = {}
    for one in trials:
        gap = gap_of(engine, one)
        if gap is None:
            phases.setdefault(one.case.phase, []).append(one)
        else:
            found += [f"{engine}: {one}: {line}" for line in refusal(one, gap.message)]
    for phase, batch in phases.items():
        remaining = iter(batch)
        while part := list(islice(remaining, BATCH)):
            found += [f"{engine}: {one}: {line}" for one, line in together(part, phase)]
            if len(part) == BATCH:
                # An engine that holds thousands of programs becomes slow.
                K.clear_session()
    return found


def refusal(one: Trial, message: str) -> list[str]:
    """Nothing if the engine refuses the trial in these words."""
    wrong = list(together([one], one.case.phase))
    if not wrong:
        return ["is listed in tests/known_gaps and works: take it out"]
    return [] if message in wrong[0][1] else [f"is refused in other words than tests/known_gaps has: {wrong[0][1]}"]


def swap_refused(one: Trial, engine: str) -> bool:
    """Whether a swap to the engine is refused while a function with the trial's graph is alive."""
    inputs = one.placeholders()
    made = one.case.graph(*inputs)
    alive = K.function(inputs, list(made) if isinstance(made, tuple) else [made])
    try:
        kernelk.set_backend(engine)
    except SwapRefusedError:
        return True
    finally:
        del alive
    return False


def together(batch: list[Trial], phase: int | None) -> Iterator[tuple[Trial, str]]:
    """The failures of trials that are run in one call."""
    try:
        yield from _run(batch, phase)
    except Exception as error:
        if len(batch) == 1:
            yield batch[0], " ".join(f"{type(error).__name__}: {error}".split())[:600]
            return
        # One of them stops all: which, is found by halves.
        middle = len(batch) // 2
        yield from together(batch[:middle], phase)
        yield from together(batch[middle:], phase)


def _run(batch: list[Trial], phase: int | None) -> Iterator[tuple[Trial, str]]:
    placeholders: list[Tensor] = []
    feeds: list[Any] = []
    outputs: list[Tensor] = []
    updates: list[Tensor] = []
    graphs = []
    for one in batch:
        inputs = one.placeholders()
        made = one.case.graph(*inputs)
        made = made if isinstance(made, tuple) else (made,)
        placeholders += inputs
        feeds += one.fed()
        outputs += [tensor for tensor in made if not isinstance(tensor, Update)]
        updates += [tensor for tensor in made if isinstance(tensor, Update)]
        graphs.append(made)
    if phase is not None:
        placeholders.append(K.learning_phase())
        feeds.append(phase)
    values = iter(K.function(placeholders, outputs, updates)(feeds))
    wrong = []
    for one, made in zip(batch, graphs):
        got = [K.get_value(t.variable) if isinstance(t, Update) else next(values) for t in made]
        wrong += [(one, line) for line in differences(one, made, got)]
    return iter(wrong)


def differences(one: Trial, made: Sequence[Tensor], got: Sequence[Any]) -> Iterator[str]:
    """The failures in the values of one trial."""
    wanted = one.wanted()
    if len(wanted) != len(made):
        yield f"gives {len(made)} tensors, not {len(wanted)}"
        return
    for tensor, value, expected, promised in zip(made, got, wanted, one.promised()):
        if tensor.dtype != promised:
            yield f"promises {tensor.dtype}, not {promised}"
        elif not fits(tensor, value):
            yield f"promises {tensor.dtype} {tensor.shape} and gives {value.dtype} {value.shape}"
        elif callable(expected):
            if not expected(value):
                yield f"gives {_short(value)}"
        else:
            with np.errstate(all="ignore"):
                # A float too large for its dtype is an infinity there.
                expected = np.asarray(expected).astype(promised)
            if value.shape != expected.shape:
                yield f"gives shape {value.shape}, not {expected.shape}"
            elif not _close(value, expected, one.case.scale):
                yield f"gives {_short(value)}, not {_short(expected)}, of {', '.join(map(_short, one.feeds))}"


def _close(value: Any, expected: Any, scale: float) -> bool:
    if expected.dtype.kind != "f":
        return bool(np.array_equal(value, expected))
    name = expected.dtype.name
    a, b = value.astype("float64"), expected.astype("float64")
    with np.errstate(all="ignore"):
        return bool(np.allclose(a, b, rtol=RTOL[name] * scale, atol=ATOL[name] * scale, equal_nan=True))


def _short(value: Any) -> str:
    return " ".join(np.array2string(np.asarray(value), threshold=40, precision=9).split())
