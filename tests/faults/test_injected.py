"""Whatever is raised wherever in a call, a swap or a release: nothing is lost, and no later value is wrong."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import numpy as np
import pytest
from helpers.injector import KINDS, RAISED, Alarm, Injector, everywhere

import kernelk
from kernelk import backend as K
from kernelk.errors import EngineError, KernelKError
from kernelk.measure.recording import Call
from kernelk.measure.timing import ready
from kernelk.session.current import current


class Scenario:
    """Everything that talks to an engine, on small integers, and in plain Python what must come of it.

    Each step leaves the variables as they were or as they shall be: one that was cut short is found to be either, and
    the next ones build on that.
    """

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.model: dict[str, list[float]] = {}
        self.next: dict[str, list[float]] | None = None
        self.steps: list[Callable[[], None]] = [
            self.make,
            self.train,
            self.train,
            self.away,
            self.train,
            self.set,
            self.back,
            self.train,
            self.drop,
            self.train,
            self.grow,
            self.time,
            self.train,
            self.clear,
            self.make,
            self.train,
            self.quick,
        ]

    def make(self) -> None:
        self.a, self.b = K.variable([1.0, 2.0]), K.variable([3.0, 4.0])
        self.extra = K.variable(np.ones(50))
        x, v = K.placeholder(()), K.placeholder((None,))
        updates = [K.update_add(self.a, self.b), K.update(self.b, self.a + x)]
        self.train_with = K.function([x], [self.a + self.b + x], updates)
        self.quickly = K.function([x], [x + 1.0])
        self.total = K.function([v], [K.sum(v) + K.sum(self.a)])
        self.with_extra = K.function([], [K.sum(self.extra)])
        self.model = {"a": [1.0, 2.0], "b": [3.0, 4.0]}

    def train(self) -> None:
        a, b = self.model["a"], self.model["b"]
        self.next = {"a": [m + n for m, n in zip(a, b)], "b": [m + 2.0 for m in a]}
        assert self.train_with([2.0])[0].tolist() == [m + n + 2.0 for m, n in zip(a, b)]
        self.settle()

    def set(self) -> None:
        self.next = {"a": [5.0, 6.0], "b": [7.0, 8.0]}
        K.batch_set_value([(self.a, [5.0, 6.0]), (self.b, [7.0, 8.0])])
        self.settle()

    def away(self) -> None:
        kernelk.set_backend("numpy")
        self.quick()

    def back(self) -> None:
        kernelk.set_backend(self.engine)
        self.quick()

    def quick(self) -> None:
        for i in range(3):
            assert float(self.quickly([float(i)])[0]) == i + 1.0

    def drop(self) -> None:
        if hasattr(self, "with_extra"):
            assert float(self.with_extra([])[0]) == 50.0
            del self.with_extra, self.extra
        self.quick()

    def grow(self) -> None:
        # More than the transfer segment has at first.
        for size in (300_000, 600_000):
            assert float(self.total([np.ones(size)])[0]) == size + sum(self.model["a"])

    def time(self) -> None:
        session = current()
        call = Call(self.train_with, 0, [np.array(2.0, "float32")], self.a.source)
        with session.lock, ready(session, session.ready_host(), call) as timed:
            assert len(timed.sample(2)) == 2

    def clear(self) -> None:
        K.clear_session()

    def settle(self) -> None:
        """After a step: the variables are as the model says. After one that was cut short: as before it or after it."""
        values = {name: getattr(self, name) for name in self.model}
        found = dict(zip(values, [value.tolist() for value in K.batch_get_value(list(values.values()))]))
        assert found == self.next or (found == self.model and self.cut)
        self.model, self.next = found, None

    cut = False

    def run(self, injector: Injector | None, monkeypatch: Any) -> None:
        """All steps, with a fault in one of them; that one is done again, if it didn't happen."""
        pending = list(self.steps)
        if injector is not None:
            with injector.installed(monkeypatch):
                while pending:
                    try:
                        pending[0]()
                    except (*KINDS, KernelKError):
                        break
                    pending.pop(0)
        if self.next is not None:
            self.cut = True
            self.settle()
            self.cut = False
        for step in pending:
            step()
        assert float(self.quickly([4.0])[0]) == 5.0


def count(engine: str, monkeypatch: Any) -> Injector:
    """How often each place is used in a whole scenario on a warm engine."""
    kernelk.set_backend(engine)
    Scenario(engine).run(None, monkeypatch)
    counting = Injector()
    reset()
    Scenario(engine).run(counting, monkeypatch)
    return counting


def reset() -> None:
    """As at the beginning, and the transfer segment small again."""
    from kernelk.engines.storage import Transfer

    K.clear_session()
    session = current()
    if session.calls.transfer.segment is not None:
        session.storage.drop_segment(session.calls.transfer.segment)
    session.calls.transfer = Transfer(session.storage)


def run_with(injectors: list[Injector], engine: str, monkeypatch: Any) -> int:
    fired = 0
    for injector in injectors:
        kernelk.set_backend(engine)
        reset()
        try:
            Scenario(engine).run(injector, monkeypatch)
        except BaseException as error:
            error.add_note(f"with {injector}")
            raise
        fired += injector.fired
    return fired


@pytest.mark.slow
def test_at_every_use_of_the_system(spare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it or after it by turns; `make soak` has both, with everything that may be raised."""
    injectors = list(everywhere(count(spare, monkeypatch).count))
    injectors = [injector for i, injector in enumerate(injectors) if i % 4 in (0, 3)]
    assert run_with(injectors, spare, monkeypatch) >= len(injectors) * 0.75


@pytest.mark.soak
@pytest.mark.parametrize("raised", RAISED)
@pytest.mark.parametrize("times", [1, 2, 3])
def test_everything_at_every_use(
    raised: Callable[[], BaseException], times: int, spare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`times`: what is raised once more meets what handles it."""
    injectors = list(everywhere(count(spare, monkeypatch).count))
    for injector in injectors:
        injector.raised, injector.times = raised, times
    assert run_with(injectors, spare, monkeypatch) >= len(injectors) * 0.75


def sample(engine: str, number: int, seed: int, monkeypatch: Any) -> None:
    injectors = list(everywhere(count(engine, monkeypatch).count))
    assert run_with(random.Random(seed).sample(injectors, number), engine, monkeypatch)


def test_at_some_uses_on_each_engine(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(worker, 2, 5, monkeypatch)


@pytest.mark.soak
def test_at_many_uses_on_each_engine(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sample(worker, 40, 6, monkeypatch)


# --- at every line --------------------------------------------------------------------------------------------


def raise_at(line: int, do: Callable[[], object]) -> int:
    """Does it with an exception at the n-th line of kernelk's own; how many lines there were until then."""
    seen = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        name = frame.f_code.co_filename
        if not any(part in name for part in ("kernelk/session/", "kernelk/engines/", "kernelk/backends/serving/")):
            return None
        if event == "line":
            seen += 1
            if seen == line:
                raise Alarm
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        do()
    finally:
        sys.settrace(before)
    return seen


@pytest.mark.parametrize("step", ["train", "set", "grow", "drop", "away"])
def test_at_every_line_in_the_kernel(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """numpy in the kernel's own process; nothing waits for a worker, so that each line of Python can have its turn."""
    line = 0
    while True:
        line += 1
        reset()
        scenario = Scenario("numpy")
        scenario.make()
        scenario.train()
        try:
            raise_at(line, getattr(scenario, step))
        except (Alarm, EngineError):
            pass  # An engine's own errors and a handler's can't be told apart in one process.
        else:
            break
        # A trace raises where no signal handler can: as a `with` begins to leave its block, which keeps the lock.
        current().lock = threading.RLock()
        if scenario.next is not None:
            scenario.cut = True
            scenario.settle()
            scenario.cut = False
        scenario.train()
        scenario.drop()
        scenario.grow()
        scenario.set()
        scenario.train()
    assert line > 20
