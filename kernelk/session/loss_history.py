"""How a training function's loss falls, call by call, with the engine of each; for the panel, in bounded memory."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from ..arrays import Array

# Beyond so many points, neighbours are merged.
MOST_POINTS = 400

_order = itertools.count()


class Point(NamedTuple):
    """The mean of `calls` in a row on one engine, the first of which was the function's `first`-th call."""

    first: int
    calls: int
    mean: float
    engine: str


class LossHistory:
    """The first output of each call of a function.

    A point is one call, and the mean of `every` once there are many; an engine's first point begins with the swap.
    `calls` is how many there were, `latest` orders histories by their last call.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.every = 1
        self.latest = -1
        self._points: list[Point] = []
        # The last point, which is still filled.
        self._engine = ""
        self._count = 0
        self._sum = 0.0

    def add(self, engine: str, value: Array) -> None:
        """Notes the value that a call of an engine had; called once a call, with the session's lock held."""
        if self._count == self.every or engine != self._engine:
            self._close()
            self._engine = engine
        self.calls += 1
        self._count += 1
        self._sum += float(value)
        self.latest = next(_order)

    def points(self) -> list[Point]:
        """All points, oldest first. If each few calls had another engine, the oldest calls are missing."""
        return [*self._points, self._last()] if self._count else list(self._points)

    def _last(self) -> Point:
        return Point(self.calls - self._count + 1, self._count, self._sum / self._count, self._engine)

    def _close(self) -> None:
        if self._count:
            self._points.append(self._last())
        self._count, self._sum = 0, 0.0
        if len(self._points) < MOST_POINTS:
            return
        self.every *= 2
        merged: list[Point] = []
        for point in self._points:
            before = merged[-1] if merged else None
            if before and before.engine == point.engine and before.calls + point.calls <= self.every:
                count = before.calls + point.calls
                mean = (before.mean * before.calls + point.mean * point.calls) / count
                merged[-1] = Point(before.first, count, mean, point.engine)
            else:
                merged.append(point)
        # Points of different engines aren't merged, so that there may be as many as before.
        self._points = merged[-MOST_POINTS // 2 :] if len(merged) > MOST_POINTS * 3 // 4 else merged
