"""Runs the sides of a comparison: compares their results with the reference's, and times them in rounds.

Each round runs every side once, in random order. Below `comparison`, which does it here, and `there`, which does it
in another process.
"""

from __future__ import annotations

import contextlib
import math
import random
import time as clock
from collections.abc import Callable
from typing import Protocol

import numpy as np

from ..arrays import Array
from ..engines.host import Host
from ..errors import KernelKError, joined, one_line
from ..session.session import Session
from ..session.untouched import untouched
from .by_layer import by_layer
from .comparison_results import CompareResult, OpsResult, Side
from .divergence import TOLERANCES, gap_of
from .estimates import paired_ratio
from .profiling import op_times
from .recording import Recording
from .timing import SETTLE_SECONDS, WARM_UP, Conditions, Timed, ready

# The target number of rounds: enough to see 5 % on a machine whose samples spread by as much.
ROUNDS = 100
MOST_ROUNDS = 300
# The longest sample, in seconds, if a run is shorter: the sides alternate quickly.
LONGEST_SAMPLE = 0.03


class Hosts(Protocol):
    """The engines' hosts."""

    def started(self, name: str) -> Host:
        """The host of an engine, started. Raises KernelKError."""


class Rounds:
    """Runs the sides on their hosts: prepares one after the other, then times them in turns."""

    def __init__(
        self,
        session: Session,
        hosts: Hosts,
        rewind: Callable[[], None],
        result: CompareResult,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        """`look` is called between what the engines do, and may raise."""
        self._session = session
        self._hosts = hosts
        self._rewind = rewind
        self._result = result
        self._look = look
        self._open = contextlib.ExitStack()
        self._ready: dict[int, list[Timed]] = {}
        self._expected: list[list[Array]] | None = None

    def close(self) -> None:
        """Lets the engines forget the prepared calls."""
        self._open.close()

    def prepare(self, side: Side, engine: str, recording: Recording) -> None:
        """Makes the calls once, compares their results with the reference's, and prepares them; or notes why not."""
        session = self._session
        self._look()
        try:
            host = self._hosts.started(engine)
            side.conditions = Conditions.of(host)
            self._rewind()
            self._check(side, self._values(host, recording))
            self._rewind()
            timed = [self._open.enter_context(ready(session, host, call)) for call in recording.calls]
            side.calls = [one.call_time for one in timed]
            self._ready[id(side)] = timed
        except KernelKError as error:
            side.failure = one_line(error)

    def _values(self, host: Host, recording: Recording) -> list[list[Array]]:
        values_by_call = []
        for call, feeds in recording.sequence:
            if feeds is not None:
                program = call.program(self._session, host.ops)
                values = self._session.calls.execute(host, program, feeds)
                values_by_call.append(values[: len(call.function.outputs)])
        values_by_call.append([self._session.read(variable) for variable in recording.before])
        return values_by_call

    def _check(self, side: Side, values: list[list[Array]]) -> None:
        flat = [np.asarray(value) for group in values for value in group]
        side.nans = sum(int(np.isnan(value).sum()) for value in flat if value.dtype.kind == "f")
        if self._expected is None:
            self._expected = values
            return
        expected = [np.asarray(value) for group in self._expected for value in group]
        if [value.shape for value in flat] != [value.shape for value in expected]:
            self._result.notes.append(f"{side.label} has results of other shapes, so they aren't compared")
            return
        if [value.dtype for value in flat] != [value.dtype for value in expected]:
            self._result.notes.append(f"{side.label} has results of other dtypes, so the times aren't comparable")
        for value, other in zip(flat, expected):
            with np.errstate(all="ignore"):
                near = float(np.abs(other[np.isfinite(other)]).mean()) if np.isfinite(other).any() else 0.0
            allowed = max(TOLERANCES.get(one.dtype.name, 0.0) for one in (value, other))
            gap = gap_of(other, value, allowed, near)
            side.absolute, side.relative = max(side.absolute, gap.absolute), max(side.relative, gap.scaled)
            side.differing += gap.beyond

    def run(self, budget: float) -> None:
        """Warms the sides up, and runs rounds for the rest of the budget; each round runs every side once."""
        sides = [side for side in self._result.sides if id(side) in self._ready]
        if not sides:
            return
        begin = clock.perf_counter()
        share = budget / len(sides)
        longest = min(LONGEST_SAMPLE, share / ROUNDS / max(len(self._ready[id(side)]) for side in sides))
        for side in sides:
            timed = self._ready[id(side)]
            for one in timed:
                one.warm_up(share * WARM_UP / len(timed), longest)
        rounds = 0
        longest_round = 0.0
        while rounds < MOST_ROUNDS and len(sides) > 0:
            self._look()
            start = clock.perf_counter()
            if rounds and start - begin + longest_round > budget:
                break
            for side in random.sample(sides, len(sides)):
                if len(sides) > 1 and not self._result.same_engine:
                    clock.sleep(SETTLE_SECONDS)
                try:
                    timed = self._ready[id(side)]
                    side.rounds.append(sum(one.call_time.count * one.in_turn(longest) for one in timed))
                except KernelKError as error:
                    side.failure = one_line(error)
            sides = [side for side in sides if not side.failure]
            longest_round = max(longest_round, clock.perf_counter() - start)
            rounds += 1
        reference = self._result.reference
        for side in sides:
            assert reference is not None
            side.ratio = paired_ratio(side.rounds, reference.rounds)
        if self._result.comparable:
            self._break_even(sides)
        if rounds < 9 and sides:
            few = f"only {rounds} round{'s' if rounds > 1 else ''} in {budget:g} s, too few for a verdict"
            enough = math.ceil(longest_round * 30 + 1)
            self._result.notes.append(joined(few, next_step=f"a budget of {enough}"))

    def op_by_op(self, recording: Recording, budget: float) -> OpsResult | None:
        """Times each op of the slowest call separately on every engine that works; None if none does."""
        hosts = {side.label: self._hosts.started(side.label) for side in self._result.sides if id(side) in self._ready}
        if not hosts:
            return None
        call = max(recording.calls, key=lambda one: sum(one.seconds))
        with untouched(self._session, list(hosts.values())):
            ops = op_times(self._session, list(hosts.values()), call, budget)
        ops.sort(key=lambda row: -max(op.total for op in row))
        layers = by_layer(list(hosts), ops, call.function.roots)
        return OpsResult(list(hosts), call.label, ops, self._result.comparable, layers)

    @staticmethod
    def _break_even(sides: list[Side]) -> None:
        """Computes after how many runs a side with a longer build overtakes the one that is ready first."""
        if not sides:
            return
        first = min(sides, key=lambda side: side.built)
        for side in sides:
            gain = first.steady.value - side.steady.value
            if side is not first and gain > 0:
                side.pays_after = math.ceil((side.built - first.built) / gain)
