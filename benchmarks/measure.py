"""Measures two sides in one run, in turns of random order; reports medians with bootstrap intervals."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

import kernelk
from kernelk.measure.timing import SETTLE_SECONDS

# A ratio's interval that is at most so wide is narrow enough.
NARROW = 0.06

HERE = Path(__file__).parent


def native_environment(engine: str) -> dict[str, str]:
    """The environment of the baseline, which can set its engine up as kernelk's worker does: see `natives.island`."""
    cache = platformdirs.user_cache_path("kernelk") / engine
    return {
        **os.environ,
        "KERNELK_ISLAND": str(Path(kernelk.__file__).parent / "backends"),
        "KERNELK_CACHE": str(cache),
    }


class Answering:
    """A script of this folder in a process of its own, which answers each line with one of JSON."""

    def __init__(self, python: Path | str, arguments: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            [str(python), "-W", "ignore", str(HERE / arguments[0]), *arguments[1:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            text=True,
        )

    def ask(self, question: str) -> Any:
        """The answer. Raises RuntimeError where the process has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"'{question}': the process ended with status {self._process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class Native(Answering):
    """A baseline of native.py, asked for samples in turns with kernelk."""

    def __init__(
        self, python: Path | str, engine: str, case: str, environment: dict[str, str], folder: str = ""
    ) -> None:
        super().__init__(python, ["native.py", engine, case, *([folder] if folder else [])], environment)

    def __call__(self, calls: int) -> list[float]:
        """The seconds of this many calls."""
        return self.ask(f"{calls}")  # type: ignore[no-any-return]

    def mean(self, calls: int, harness: str) -> float:
        """The mean of this many calls behind one another, in seconds, by "native" or "kernelk"."""
        return self.ask(f"{calls} {harness}")[0]  # type: ignore[no-any-return]


def repeated(call: Callable[[], object]) -> Callable[[int], list[float]]:
    """`call` as a function of a number of calls that returns the seconds of each."""

    def samples(calls: int) -> list[float]:
        seconds = []
        for _ in range(calls):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return seconds

    return samples


@dataclass
class Comparison:
    """Medians of each round's medians, their ratio and difference, each with a 95 % bootstrap interval over rounds."""

    ours: float
    baseline: float
    ratio: tuple[float, float, float]
    added: tuple[float, float, float]


def interval(values: list[float]) -> tuple[float, float, float]:
    """(median, low, high) at 95 %, by resampling the rounds."""
    generator = np.random.default_rng(0)
    array = np.asarray(values)
    medians = np.median(generator.choice(array, (2000, len(array))), axis=1)
    low, high = np.percentile(medians, [2.5, 97.5])
    return float(np.median(array)), float(low), float(high)


def compare(
    ours: Callable[[int], list[float]],
    baseline: Callable[[int], list[float]],
    rounds: int = 15,
    calls: int = 30,
    most: int = 0,
) -> Comparison:
    """Both sides in turns; within a round each is timed once, in random order.

    Rounds go on after these, up to `most` in all, until the ratio's interval is at most NARROW wide.
    Before each turn the other's threads get time to fall asleep, and one call is made that isn't counted.
    """
    sides = {"ours": ours, "baseline": baseline}
    for side in sides.values():
        side(calls)
    medians: dict[str, list[float]] = {"ours": [], "baseline": []}
    for done in range(1, max(rounds, most) + 1):
        for name in random.sample(list(sides), 2):
            time.sleep(SETTLE_SECONDS)
            medians[name].append(statistics.median(sides[name](calls + 1)[1:]))
        pairs = list(zip(medians["ours"], medians["baseline"]))
        ratio = interval([a / b for a, b in pairs])
        if done >= rounds and ratio[2] - ratio[1] <= NARROW:
            break
    return Comparison(
        statistics.median(medians["ours"]),
        statistics.median(medians["baseline"]),
        ratio,
        interval([a - b for a, b in pairs]),
    )
