"""First step of every measurement: runs a body of code once and notes its calls, to repeat them on any engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import ArgumentError
from ..graph.nodes import Tensor, Variable
from ..graph.seeds import Count, Places
from ..program.program import Program
from ..session.default_feeds import known_feeds, roots_of
from ..session.function import Function
from ..session.session import Session
from ..session.targets import adapted
from ..source import Source, user

# The feeds of repeated calls are kept for doing all of them again up to this size; of each kind of call the first is
# kept whatever its size.
KEPT_BYTES = 1 << 28


@dataclass(eq=False)
class Call:
    """One kind of call: a function, the learning phase, and feeds of certain shapes; `source` is where it was made.

    `seconds` are those of each such call as the body made it, compilation and all.
    """

    function: Function
    phase: int
    feeds: list[Array]
    source: Source
    seconds: list[float] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The number of times the body made it."""
        return len(self.seconds)

    @property
    def label(self) -> str:
        """Its source line, or the model that it evaluates."""
        return f"model '{self.function.name}'" if self.function.what == "model" else str(self.source)

    def program(self, session: Session, ops: frozenset[str]) -> Program:
        """The call's program for a backend that defines `ops`."""
        return self.function.program_for(session, ops, self.phase, self.feeds)


@dataclass(eq=False)
class Recording:
    """The calls of a body: the kinds of calls, and all calls in order with their feeds (None: no longer kept).

    `seconds` is the whole body's time. `before` has the values of updated variables as they were before their first
    update, `places` how far the random draws had got; `value` is that of the body's last expression.
    """

    calls: list[Call] = field(default_factory=list)
    sequence: list[tuple[Call, list[Array] | None]] = field(default_factory=list)
    seconds: float = 0.0
    before: dict[Variable, Array] = field(default_factory=dict)
    places: Places = field(default_factory=dict)
    value: Any = None

    @property
    def python_seconds(self) -> float:
        """The seconds that the body took outside its calls."""
        return max(0.0, self.seconds - sum(sum(call.seconds) for call in self.calls))


class _Recorder:
    """Notes a session's calls while a body runs."""

    def __init__(self, session: Session, recording: Recording) -> None:
        self._session = session
        self._recording = recording
        self._kinds: dict[Any, Call] = {}
        self._bytes = 0
        self._running: Call | None = None

    def begin(self, function: Function, program: Program, phase: int, feeds: list[Array]) -> None:
        """A call that is about to run."""
        recording = self._recording
        key = (program.key, phase, tuple(feed.shape for feed in feeds))
        call = self._kinds.get(key)
        kept: list[Array] | None = None
        self._bytes += sum(feed.nbytes for feed in feeds)
        if call is None or self._bytes <= KEPT_BYTES:
            # The body may change its arrays in place later.
            kept = [feed.copy() for feed in feeds]
        if call is None:
            call = self._kinds[key] = Call(function, phase, kept or [], user())
            recording.calls.append(call)
        for slot, _ in program.updates:
            variable = program.slots[slot]
            if variable not in recording.before:
                recording.before[variable] = self._session.read(variable)
        recording.sequence.append((call, kept))
        self._running = call

    def end(self, seconds: float) -> None:
        """Notes that the running call has ended, after so many seconds."""
        assert self._running is not None
        self._running.seconds.append(seconds)
        self._running = None


def record(session: Session, target: Any, feeds: Any, asker: str, magic: str) -> Recording:
    """Runs a target once and notes its calls.

    `target`: a function without arguments; a tensor, several, a K.function or a model, which are evaluated with `feeds`
    or what their placeholders were fed last. So is what a body returns that evaluates nothing itself. Called with the
    session's lock held. Raises ArgumentError for a body that neither evaluates nor returns anything of the kind, and
    what the body raises.
    """
    __tracebackhide__ = True  # in an error of the body
    recording = Recording(places=session.state.seeds.places())
    target = adapted(target)
    if callable(target) and not isinstance(target, Function):
        if feeds:
            raise ArgumentError(
                f"{asker}: feeds are given for a body",
                allowed="a body feeds its calls itself",
                next_step="leave feeds out",
            )
        begin = time.perf_counter()
        with _noting(session, recording):
            recording.value = target()
        recording.seconds = time.perf_counter() - begin
        if recording.calls:
            return recording
        target = adapted(recording.value)
        if not _evaluable(target):
            raise ArgumentError(
                f"{asker}: nothing was evaluated, so there is nothing to time",
                next_step="call a K.function or K.eval in the body, or let it end in a tensor "
                "(reading a variable doesn't count)",
            )
    roots = roots_of(target, asker)
    phase, fed = known_feeds(target, roots, feeds or {}, asker, magic)
    if isinstance(target, Function):
        call, values = _as_called(target, phase, fed)
    else:
        call, values = Function(list(fed), roots, live=False), list(fed.values())
    with _noting(session, recording):
        recording.value = call(values)
    for made in recording.calls:
        # Not the line that asks for the time: where what is timed was written.
        made.source = target.source if isinstance(target, Function) else roots[0].source
    return recording


def _as_called(function: Function, phase: int, fed: dict[Any, Array]) -> tuple[Function, list[Any]]:
    """The function and a list of values for its inputs; one that it doesn't need is fed zeros."""
    values: list[Any] = []
    for x in function.inputs:
        if x not in function.placeholders:
            values.append(phase)
        elif x in fed:
            values.append(fed[x])
        else:
            values.append(np.zeros([1 if n is None else n for n in x.shape], x.dtype))
    return function, values


def _evaluable(value: Any) -> bool:
    listed = value if isinstance(value, (list, tuple)) and value else [value]
    return all(isinstance(x, Tensor) for x in listed) or isinstance(value, Function)


@contextmanager
def _noting(session: Session, recording: Recording) -> Iterator[None]:
    outer, session.recorder = session.recorder, _Recorder(session, recording)
    try:
        yield
    finally:
        session.recorder = outer


@contextmanager
def restoring(session: Session, recordings: list[Recording]) -> Iterator[Callable[[], None]]:
    """Gives a function that makes the state that from before the recordings; at the end it is again as at the start."""
    before: dict[Variable, Array] = {}
    places: dict[Count, int] = {}
    for recording in reversed(recordings):
        before.update(recording.before)
        places.update(recording.places)
    after = {variable: session.read(variable) for variable in before}
    seeds = session.state.seeds

    def rewind() -> None:
        session.write(list(before.items()))
        seeds.rewind(places)

    with seeds.kept():
        try:
            yield rewind
        finally:
            session.write(list(after.items()))
