"""Times recorded calls for `%ktime`: compile, first run, steady state and transfer, each separately."""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import time as clock
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from ..display.tables import Rendered, Table, duration
from ..engines.host import Host
from ..engines.machine import processor
from ..errors import ArgumentError, EngineError
from ..remote import machines
from ..session.current import current
from ..session.session import Session
from ..twins import option, typed_name
from .estimates import CONFIDENCE, Estimate, median, unsteadiness
from .recording import Call, Recording, record, restoring
from .results import Result, noted

# A sample lasts at least this long, in seconds, so that reading the clock is less than a thousandth of it.
SHORTEST_SAMPLE = 1e-3
# One request asks for samples of about this many seconds in total: Ctrl-C takes effect between requests.
REQUEST = 0.1
# The share of the budget, at most, that goes by until the times are steady.
WARM_UP = 0.25
MOST_SAMPLES = 400
# Before a sample that is taken in turns with others', so many runs more are made: the caches hold the others' data.
CACHE_WARM_FRACTION = 0.25
# After an engine's turn, others wait this long in seconds: OpenBLAS's threads spin for up to 2**26 cycles before they
# sleep, and take a core from whoever runs in another process meanwhile.
SETTLE_SECONDS = 0.03
# Each sample restarts the updates, which slows its first run: short runs share that cost in samples of so many.
RUNS_WITH_UPDATES = 4
# A profiler watches so many runs at most for the time on the device, which needs no clock in this process.
DEVICE_RUNS = 20
# ... and for about so many seconds.
DEVICE_SECONDS = 0.05
BUDGET = 2.0


@dataclass(frozen=True)
class Conditions:
    """Under what a time was measured. `threads` and `precision` as the engine reports them; `processor`: the device.

    `machine`: its name where a cluster's engine ran, "" otherwise; `elsewhere`: whether it is another one than this.
    """

    engine: str
    title: str
    version: str
    interpreter: str
    placement: str
    device: str
    processor: str
    threads: int | None
    cores: int
    blas: str = ""
    mode: str = ""
    precision: str = ""
    machine: str = ""
    elsewhere: bool = False

    @classmethod
    def of(cls, host: Host) -> Conditions:
        """The conditions of a started host."""
        facts = host.facts
        on_cpu = str(facts.get("device", "cpu")).startswith("cpu")
        return cls(
            host.engine.name,
            host.engine.title,
            str(facts.get("version", "")),
            str(facts.get("interpreter", "")),
            host.placement,
            str(facts.get("device", "")),
            str(facts.get("processor") or processor()) if on_cpu else str(facts.get("device_name", "")),
            facts.get("threads"),
            facts.get("cores") or os.cpu_count() or 1,
            str(facts.get("blas", "")),
            str(facts.get("mode", "")),
            str(facts.get("precision") or ""),
            host.machine,
            "machine_key" in facts and facts["machine_key"] != machines.here().key,
        )

    def words(self) -> str:
        """All conditions in words, for a line below a table."""
        where = "in the kernel" if self.placement == "kernel" else "in a worker"
        if self.machine:
            where += f" on {self.machine}"
        parts = [
            f"{self.engine} {self.version} ({self.interpreter}) {where}",
            f"{self.device}{f' ({self.processor})' if self.processor else ''}",
            f"{self.threads or 'unknown'} thread{'' if self.threads == 1 else 's'} of {self.cores} cores",
            f"products in {self.precision}" if self.precision else "",
            self.mode,
            f"BLAS {self.blas}" if self.blas else "",
        ]
        return ", ".join(part for part in parts if part)


@dataclass
class CallTime:
    """The times of one kind of call, in seconds.

    `compile_seconds`: the engine's building of the program; `first_seconds`: its first run; `samples`: one run each,
    the mean of `loops`, when it is warm; `load`, `deliver`, `commit`: to hand its feeds over, to get its outputs back,
    to commit new values; `whole`: a whole call as K.function makes it. `count`: how often the body makes it.
    `device`: for how much of a warm run the GPU itself works, by the engine's own profiler; None on a processor, and
    where that doesn't tell.
    """

    label: str
    count: int
    inputs: list[str]
    outputs: list[str]
    compile_seconds: float
    first_seconds: float
    loops: int = 1
    samples: list[float] = field(default_factory=list)
    load: float = 0.0
    deliver: float = 0.0
    commit: float = 0.0
    whole: list[float] = field(default_factory=list)
    device: float | None = None

    @property
    def steady(self) -> Estimate:
        """The median of a warm run, with its confidence interval."""
        return median(self.samples)

    @property
    def call(self) -> float:
        """The median of a whole call through kernelk."""
        return statistics.median(self.whole)


def shown(estimate: Estimate) -> str:
    """A time and its interval."""
    if math.isinf(estimate.high):
        return f"{duration(estimate.value)} (too few samples)"
    return f"{duration(estimate.value)} [{duration(estimate.low)}, {duration(estimate.high)}]"


@dataclass(repr=False)
class TimeResult(Result, Rendered):
    """The result of `%ktime`: the times of each kind of call that the body makes, under these conditions.

    `python_seconds`: the body's time outside its calls, once.
    """

    conditions: Conditions
    calls: list[CallTime]
    python_seconds: float
    budget: float

    @property
    def steady(self) -> float:
        """The time of all the body's calls when warm, in seconds."""
        return sum(call.count * call.steady.value for call in self.calls)

    def notes(self) -> list[str]:
        """Warnings that belong to the figures."""
        notes = []
        for call in self.calls:
            remark = unsteadiness(call.samples)
            if remark:
                notes.append(f"unsteady{f': {call.label}' if len(self.calls) > 1 else ''} ({remark})")
        return notes

    def table(self) -> Table:
        """Pairs for one call, a row each for several."""
        below = [*self.notes(), self.conditions.words()]
        if len(self.calls) == 1:
            call = self.calls[0]
            return Table(
                self._pairs(call),
                title=f"{call.label}: {shown(call.steady)} on {self.conditions.engine}",
                below="\n".join(below),
            )
        header = ["call", "times", "compile", "first run", "steady state", "whole call", "inputs"]
        rows = [
            [
                call.label,
                str(call.count),
                duration(call.compile_seconds),
                duration(call.first_seconds),
                shown(call.steady),
                duration(call.call),
                ", ".join(call.inputs),
            ]
            for call in self.calls
        ]
        total = f"all steady runs {duration(self.steady)}; Python outside the calls {duration(self.python_seconds)}"
        title = f"{len(self.calls)} kinds of calls on {self.conditions.engine}"
        return Table(rows, header, title=title, below="\n".join([total, *below]))

    def _pairs(self, call: CallTime) -> list[list[str]]:
        runs = f"{call.loops} run{'' if call.loops == 1 else 's'}"
        samples = f"median of {len(call.samples)} samples of {runs}, {CONFIDENCE:.0%} interval"
        rows = [
            ["steady state", f"{shown(call.steady)}, {samples}"],
            *([["on the device", f"{duration(call.device)} of it, in all kernels"]] if call.device else []),
            ["compile", duration(call.compile_seconds)],
            ["first run", duration(call.first_seconds)],
            ["transfer", f"inputs {duration(call.load)}, outputs {duration(call.deliver)}"],
            *([["commit", f"{duration(call.commit)} for new values"]] if call.commit else []),
            ["whole call", f"{duration(call.call)} through kernelk"],
            *([["in the cell", f"{call.count} times, all steady runs {duration(self.steady)}"]] * (call.count > 1)),
            ["inputs", ", ".join(call.inputs) or "none"],
            ["outputs", ", ".join(call.outputs) or "none"],
        ]
        if self.python_seconds > 0.05 * self.steady:
            rows.append(["Python", f"{duration(self.python_seconds)} in the cell, outside its calls"])
        return rows

    def records(self) -> list[dict[str, Any]]:
        """One dict per call: the rows of `to_frame`."""
        rows = []
        for call in self.calls:
            low, high = call.steady.low, call.steady.high
            rows.append(
                {
                    "engine": self.conditions.engine,
                    "call": call.label,
                    "count": call.count,
                    "steady": call.steady.value,
                    "low": low,
                    "high": high,
                    "compile": call.compile_seconds,
                    "first": call.first_seconds,
                    "load": call.load,
                    "deliver": call.deliver,
                    "commit": call.commit,
                    "whole": call.call,
                    "device": call.device,
                }
            )
        return rows

    def raw(self) -> dict[str, Any]:
        """All measurements, samples included."""
        return asdict(self)

    def bars(self) -> tuple[list[str], list[Estimate]]:
        """The bars of `plot`: each kind of call."""
        return [call.label for call in self.calls], [call.steady for call in self.calls]


def checked_budget(budget: Any, asker: str) -> float:
    """The budget in seconds. Raises ArgumentError."""
    try:
        seconds = float(budget)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ArgumentError(
            f"{asker}: {option('budget', budget)} isn't allowed",
            allowed=f"it is a number of seconds such as {BUDGET:g}",
        )
    return seconds


def time(target: Any, feeds: Any = None, budget: float = BUDGET) -> TimeResult:
    """Times code on the active engine, each part separately. The Python twin of `%ktime`.

    `target`: a body, as a function without arguments that evaluates something; or a tensor, several, or a K.function,
    with `feeds` (placeholder to array) or what its placeholders were fed last. It runs once as always; its calls are
    then run again from the state that it left, for `budget` seconds in total plus compilation, and change nothing.
    Raises ArgumentError, FeedError, EngineError, and what the body raises.
    """
    __tracebackhide__ = True  # in an error of the body
    seconds = checked_budget(budget, typed_name("time"))
    session = current()
    with session.lock:
        session.ready_host()
        recording = record(session, target, feeds, typed_name("time"), "kernelk.time(y, feeds={x: array})")
        # The body may have changed the engine.
        host = session.ready_host()
        calls = [measured(session, host, call, seconds / len(recording.calls)) for call in recording.calls]
        return noted("time", TimeResult(Conditions.of(host), calls, recording.python_seconds, seconds))


def measured(session: Session, host: Host, call: Call, budget: float) -> CallTime:
    """Measures one kind of call on a started host for about `budget` seconds, plus its compilation."""
    with session.calls.patient():
        with ready(session, host, call, tells_of_device(host)) as timed:
            timed.warm_up(budget * WARM_UP)
            timed.sample_for(budget)
            timed.on_device()
            timed.transfers()
        timed.call_time.whole = _whole_calls(session, host, call, budget)
    return timed.call_time


# Hosts whose engine's profiler has run, and the process that it has run in
_watched: weakref.WeakKeyDictionary[Host, int | None] = weakref.WeakKeyDictionary()


def tells_of_device(host: Host) -> bool:
    """Whether a started host's engine computes on a GPU, and has a profiler that tells how long that works."""
    profiler, device = host.profiler, str(host.facts.get("device") or "cpu")
    return profiler is not None and bool(profiler["of_device"]) and not device.startswith("cpu")


class Timed:
    """One kind of call that is prepared on a host to be run repeatedly."""

    def __init__(self, host: Host, number: int, call_time: CallTime, runs: int) -> None:
        self._host = host
        self._number = number
        self._runs = runs
        self.call_time = call_time

    def sample(self, times: int = 1, before: int = 0) -> list[float]:
        """The seconds of a run, `times` times; each is the mean of as many runs as `warm_up` found right.

        `before`: so many runs are made first, and not counted.
        """
        with self._host.held():
            reply = self._host.request(
                {
                    "do": "sample",
                    "timed": self._number,
                    "loops": self.call_time.loops,
                    "times": times,
                    "before": before,
                }
            )
        return list(reply["samples"])

    def in_turn(self, longest: float) -> float:
        """Takes one sample, after runs that fill the caches again with what this call needs.

        Where it took far longer than `longest`, since the machine is busy, the next one is shorter.
        """
        call_time = self.call_time
        sample = self.sample(before=math.ceil(call_time.loops * CACHE_WARM_FRACTION))[0]
        call_time.samples.append(sample)
        if sample * call_time.loops > 3 * longest:
            call_time.loops = max(1, math.ceil(longest / sample))
        return sample

    def warm_up(self, seconds: float, longest: float = SHORTEST_SAMPLE * 10) -> None:
        """Runs until the time doesn't fall any more, or `seconds` are over, and settles how many runs a sample has.

        `longest`: how long a sample is to be, where one run doesn't take longer.
        """
        begin = clock.perf_counter()
        best, since = math.inf, 0
        while since < 3 and clock.perf_counter() - begin < seconds:
            one = self.sample()[0]
            since = 0 if one < 0.97 * best else since + 1
            best = min(best, one)
            if one * self.call_time.loops < longest / 2:
                self.call_time.loops = min(self.call_time.loops * 4, max(1, math.ceil(longest / one)))
                since = 0
        if self._runs > 1 and best < 0.05:
            self.call_time.loops = max(self.call_time.loops, self._runs)

    def sample_for(self, seconds: float) -> None:
        """Takes samples for about so many seconds: one at least, and not more than are of use."""
        begin = clock.perf_counter()
        samples = self.call_time.samples
        times = 1
        while len(samples) < MOST_SAMPLES:
            samples += self.sample(times)
            left = seconds - (clock.perf_counter() - begin)
            each = statistics.median(samples) * self.call_time.loops
            if left < each:
                break
            times = max(1, int(min(REQUEST, left) / each))

    def watch(self, runs: int) -> tuple[list[dict[str, Any]], float]:
        """(rows of the engine's own profiler over so many runs, seconds of one): see `backends.serving.watching`."""
        with self._host.held():
            reply = self._host.request({"do": "watch", "timed": self._number, "loops": runs})
        return reply["rows"], reply["seconds"]

    def on_device(self) -> None:
        """Asks the profiler for the time on the device, where it tells that."""
        if not tells_of_device(self._host):
            return
        one = statistics.median(self.call_time.samples)
        runs = max(1, min(DEVICE_RUNS, int(DEVICE_SECONDS / one)))
        # The times of the calls don't depend on whether there is a profiler that works.
        with contextlib.suppress(EngineError):
            if _watched.get(self._host) != self._host.pid:
                # It may miss what runs while it loads.
                self.watch(1)
                _watched[self._host] = self._host.pid
            rows, _ = self.watch(runs)
            self.call_time.device = sum(row["seconds"] for row in rows) / runs

    def transfers(self) -> None:
        """Measures what lies between the runs and the notebook."""
        with self._host.held():
            reply = self._host.request({"do": "transfers", "timed": self._number, "times": 5})
        self.call_time.load, self.call_time.deliver = (statistics.median(reply[name]) for name in ("load", "deliver"))
        self.call_time.commit = statistics.median(reply["commit"]) if self._runs > 1 else 0.0


@contextlib.contextmanager
def ready(session: Session, host: Host, call: Call, profiled: bool = False) -> Iterator[Timed]:
    """The call compiled for being timed on a started host, which forgets it afterwards.

    `profiled`: and for `watch`. Raises EngineError.
    """
    program = call.program(session, host.ops)
    shapes = tuple(feed.shape for feed in call.feeds)
    host.listen()
    try:
        number, compile_seconds, first_seconds = session.calls.make_timed(host, program, call.feeds, profiled)
    finally:
        host.tell()
    outputs = program.specialise(shapes, host.specialises).outputs
    call_time = CallTime(
        call.label,
        call.count,
        [f"{feed.dtype}{list(feed.shape)}" for feed in call.feeds],
        [f"{dtype}{list(shape)}" for dtype, shape in zip(program.output_dtypes, outputs)],
        compile_seconds,
        first_seconds,
    )
    try:
        yield Timed(host, number, call_time, RUNS_WITH_UPDATES if program.updates else 1)
    finally:
        host.release_timed([number])


def _whole_calls(session: Session, host: Host, call: Call, budget: float) -> list[float]:
    """The seconds of some calls as K.function makes them; the variables are as before afterwards."""
    program = call.program(session, host.ops)
    updated = Recording(before={program.slots[slot]: session.read(program.slots[slot]) for slot, _ in program.updates})
    seconds: list[float] = []
    with restoring(session, [updated]):
        begin = clock.perf_counter()
        # The first may have to compile, or to load what was changed.
        session.calls.execute(host, program, call.feeds)
        while len(seconds) < 20 and (len(seconds) < 3 or clock.perf_counter() - begin < budget / 10):
            start = clock.perf_counter()
            session.calls.execute(host, program, call.feeds)
            seconds.append(clock.perf_counter() - start)
    return seconds
