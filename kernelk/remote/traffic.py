"""Tells which bytes of the shared memory each request reads and writes: they go to the other machine, or come back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ..backends.serving.shared_memory import aligned
from ..engines.storage import Reference

Range = tuple[int, int, int]  # segment, offset, bytes

# The fields that hold references to what a request reads; those of a run are in its plan.
_READ = {"compile": ("constants",), "describe": ("constants",), "time": ("constants", "feeds", "variables")}


# What is larger is a range of its own, so that it can be sent from where its user has it.
LARGE = 1 << 20


class _Places(NamedTuple):
    """The memory of one plan: see the executor's."""

    feeds: list[Range]
    outputs: list[Reference]
    into: list[list[Reference]]
    kept: list[Range]  # what a call writes whose updates stay with the engine


class Traffic:
    """The memory of one worker's requests, which it has to be told of one after the other."""

    def __init__(self) -> None:
        self._plans: dict[int, _Places] = {}

    def of(self, message: dict[str, Any]) -> tuple[list[Range], list[Range]]:
        """What a request reads, and what it writes."""
        do = message["do"]
        if do == "run":
            return self._of_run(message)
        if do == "load":
            return merged(reference for _, reference in message["variables"]), []
        if do == "fetch":
            return [], merged(reference for _, reference in message["variables"])
        if do == "release":
            for number in message["plans"]:
                self._plans.pop(number, None)
        return merged(reference for name in _READ.get(do, ()) for reference in message[name]), []

    def _of_run(self, message: dict[str, Any]) -> tuple[list[Range], list[Range]]:
        define = message["define"]
        if define is not None:
            outputs = define["outputs"]
            places = _Places(merged(define["feeds"]), outputs, define["into"], merged(outputs))
            self._plans[message["plan"]] = places
        places = self._plans[message["plan"]]
        reads = places.feeds
        if message["load"]:
            reads = [*reads, *merged(reference for _, reference in message["load"])]
        if "keep" in message:
            return reads, places.kept
        into = [pair[side] for pair, side in zip(places.into, message["sides"])]
        return reads, merged([*places.outputs, *into])


def merged(references: Iterable[Reference]) -> list[Range]:
    """The ranges of bytes behind references; those that lie side by side, as variables mostly do, are one.

    What is larger than LARGE is one of its own.
    """
    ranges: list[Range] = []
    for segment, offset, size in sorted({_range(reference) for reference in references}):
        if not size:
            continue
        if ranges:
            before, begin, length = ranges[-1]
            # What lies between a value's end and the next bound is no other value's.
            if before == segment and begin + aligned(length) == offset and max(length, size) <= LARGE:
                ranges[-1] = (segment, begin, offset - begin + size)
                continue
        ranges.append((segment, offset, size))
    return ranges


def _range(reference: Reference) -> Range:
    segment, offset, dtype, shape = reference
    return segment, offset, np.dtype(dtype).itemsize * math.prod(shape)
