"""Compares recorded calls for `%%kcompare`: several engines, or several bodies on one, in rounds of random order."""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import random
import time as clock
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array
from ..display.commands import in_ipython
from ..display.progress import waiting
from ..engines import registry
from ..engines.descriptors import DEFAULT, Engine
from ..engines.host import Host
from ..engines.options import changed_options, check_honoured, known_precision, requested_options
from ..errors import ArgumentError, KernelKError, joined, one_line
from ..remote.clusters import placed
from ..session.current import current
from ..session.session import Session
from ..session.targets import layers_of
from ..session.untouched import untouched
from .by_layer import by_layer
from .comparison_results import CompareResult, OpsResult, Side, SweepResult
from .divergence import TOLERANCES, gap_of
from .estimates import paired_ratio
from .profiling import op_times
from .recording import Recording, record, restoring
from .results import noted
from .timing import SETTLE_SECONDS, WARM_UP, Conditions, Timed, checked_budget, ready

BUDGET = 10.0
# The target number of rounds: enough to see 5 % on a machine whose samples spread by as much.
ROUNDS = 100
MOST_ROUNDS = 300
# The longest sample, in seconds, if a run is shorter: the sides alternate quickly.
LONGEST_SAMPLE = 0.03


def compare(
    *what: Any,
    feeds: Any = None,
    budget: float = BUDGET,
    device: str | None = None,
    threads: int | str | None = None,
    precision: str | None = None,
    sweep: Mapping[str, Sequence[float]] | None = None,
    per_op: bool = False,
    on: Any = None,
) -> CompareResult | SweepResult:
    """The same calls on several engines, or several bodies on one engine. The Python twin of `%%kcompare`.

    `what`: engines' names, and targets as `kernelk.time` takes them. One target is compared on all named engines (all
    that are installed, if none is named); several on one engine (the active one). A target runs once, on the active
    engine; its calls are then repeated on each side from the state before. `budget`: seconds of running in total.
    `device`, `threads`, `precision`: as in `set_backend`, for all sides alike, in processes of their own. `sweep`:
    {"n": values} runs the body, a function of `n`, for each. `per_op`: then each op of the slowest call is timed
    separately on every engine, for as many seconds again. `on`: the cluster that the named engines run on, as in
    `set_backend`. Afterwards the session is as after one run of the targets.
    Raises ArgumentError, UnknownBackendError, FeedError, and what a body raises; an engine that fails is a row.
    """
    __tracebackhide__ = True  # in an error of a body
    seconds = checked_budget(budget, "compare")
    names = [one for one in what if isinstance(one, str)]
    targets = [one for one in what if not isinstance(one, str)]
    if not targets:
        raise ArgumentError(
            "compare: there is nothing to run", next_step="kernelk.compare(lambda: f([x]), 'tensorflow', 'jax')"
        )
    if on is not None and not names:
        raise ArgumentError(
            "compare: on needs engines' names, since which are installed there isn't known here",
            next_step="kernelk.compare(lambda: f([x]), 'torch', 'jax', on='gpu-box')",
        )
    engines = [registry.engine(placed(name, on)).name for name in dict.fromkeys(names)]
    if len(targets) > 1 and len(engines) > 1:
        raise ArgumentError(
            f"compare: {len(targets)} bodies and {len(engines)} engines cannot be combined",
            next_step="name one engine, or give one body",
        )
    if per_op and (len(targets) > 1 or sweep is not None):
        raise ArgumentError(
            f"compare: per_op isn't possible for {'a sweep' if sweep is not None else 'several bodies'}",
            allowed="it needs one body, several engines and no sweep",
            next_step="leave it out",
        )
    session = current()
    _check_options(registry.engine(engines[0] if engines else session.active), device, threads, precision)
    asked = _Asked(device, threads, precision)
    with session.lock:
        session.ready_host()
        if sweep is not None:
            result: CompareResult | SweepResult = _sweep(session, targets, engines, seconds, sweep, asked)
        else:
            result = _compare(session, targets, engines, feeds, seconds, asked, per_op)
        return noted("compare", result)


class _Asked(NamedTuple):
    """The options that were asked for all sides alike."""

    device: str | None
    threads: int | str | None
    precision: str | None


def _check_options(engine: Engine, device: Any, threads: Any, precision: Any) -> None:
    """Raises ArgumentError for a value that no engine can have, before any body runs."""
    checks: list[tuple[str, Any, Callable[[], object]]] = [
        ("device", "cpu:0", lambda: requested_options(engine, device=device)),
        ("threads", os.cpu_count() or 1, lambda: requested_options(engine, threads=threads)),
        ("precision", "float32", lambda: None if precision is None else known_precision(precision)),
    ]
    for name, example, check in checks:
        try:
            check()
        except ArgumentError as error:
            # The comparison's own option: %kbackend would change the active engine.
            raise ArgumentError(
                f"compare: {error.problem}", allowed=error.allowed, next_step=f"--{name} {example}"
            ) from None


def _sweep(
    session: Session,
    targets: list[Any],
    engines: list[str],
    budget: float,
    sweep: Mapping[str, Sequence[float]],
    asked: _Asked,
) -> SweepResult:
    __tracebackhide__ = True
    if not isinstance(sweep, Mapping) or len(sweep) != 1 or len(targets) != 1 or not callable(targets[0]):
        raise ArgumentError(
            "compare: this can't be swept",
            allowed="a sweep takes one name with its values, and one function of it as the body",
            next_step="kernelk.compare(lambda n: ..., sweep={'n': [128, 256, 512]})",
        )
    (name, values), body = next(iter(sweep.items())), targets[0]
    if not len(values):
        raise ArgumentError(
            f"compare: the sweep over {name} has no values", next_step=f"sweep={{'{name}': [128, 256, 512]}}"
        )
    if not _takes(body, name):
        raise ArgumentError(
            f"compare: the body can't be called with {name} alone",
            next_step=f"kernelk.compare(lambda {name}: ..., sweep={{'{name}': [128, 256, 512]}})",
        )
    points = []
    for value in values:

        def run(value: float = value) -> Any:
            __tracebackhide__ = True
            return body(**{name: value})

        one = _compare(session, [run], engines, None, budget / len(values), asked)
        points.append((float(value), one))
    return SweepResult(name, points)


def _takes(body: Any, name: str) -> bool:
    try:
        inspect.signature(body).bind(**{name: 0})
    except TypeError:
        return False
    except ValueError:
        pass  # no signature is known, as of some builtin functions
    return True


def _compare(
    session: Session,
    targets: list[Any],
    engines: list[str],
    feeds: Any,
    budget: float,
    asked: _Asked,
    per_op: bool | None = None,
) -> CompareResult:
    """`per_op`: None where it can't be asked for."""
    __tracebackhide__ = True
    recordings = []
    # No comprehension: older Pythons would show its frame.
    for target in targets:
        recordings += [record(session, target, feeds, "compare", "kernelk.compare(y, ..., feeds=...)")]
    several = len(targets) > 1
    if not engines:
        engines = [session.active] if several else _installed(session.active)
    pairs = [(engine, recordings[0]) for engine in engines]
    labels = list(engines)
    if several:
        pairs = [(engines[0], recording) for recording in recordings]
        labels = _names(targets)
    python = sum(recording.python_seconds for recording in recordings)
    result = CompareResult([Side(label) for label in labels], python, budget, several)
    with _Hosts(session, asked) as hosts, restoring(session, recordings) as rewind:
        work = _Work(session, hosts, rewind, result)
        for side, (engine, recording) in zip(result.sides, pairs):
            work.prepare(side, engine, recording)
        try:
            with waiting(f"comparing, for {budget:g} s in all", ["Ctrl-C cancels"]):
                work.run(budget)
            if per_op:
                with waiting("timing each op separately", ["Ctrl-C cancels"]):
                    result.per_op = work.op_by_op(recordings[0], budget)
        finally:
            work.close()
    result.notes += _unequal_conditions(result, asked.threads)
    if per_op is False and not several and any(layers_of(call.function.roots) for call in recordings[0].calls):
        result.notes.append(joined("a model's layers aren't timed separately", next_step="--per-op"))
    return result


def _installed(active: str) -> list[str]:
    """The active engine, then all others that are installed."""
    return [active, *(name for name in registry.names() if name != active and registry.installed(name))]


def _names(targets: list[Any]) -> list[str]:
    """The labels of the bodies: their functions' names if these are distinct."""
    names = [str(getattr(target, "__name__", getattr(target, "name", ""))) for target in targets]
    if len(set(names)) == len(names) and all(name and name != "<lambda>" for name in names):
        return names
    return [f"body {i}" for i in range(1, len(targets) + 1)]


def _unequal_conditions(result: CompareResult, threads: int | str | None) -> list[str]:
    """Returns notes on conditions that differ between the sides; `threads` as requested."""
    notes = []
    if not result.comparable:
        listed = ", ".join(f"{label} {precision}" for label, precision in result.precisions())
        why = f"precision differs ({listed}): these are different computations, so there is no verdict on them"
        notes.append(joined(why, next_step="--precision float32"))
    known = [(side.label, side.conditions) for side in result.sides if side.conditions is not None and not side.failure]
    listed = ", ".join(f"{label} {conditions.threads or 'unknown'}" for label, conditions in known)
    if threads is not None and threads != DEFAULT:
        # An engine in this process has the threads that its library was loaded with.
        others = [label for label, conditions in known if conditions.threads != int(threads)]
        if others:
            process = "the notebook's kernel" if in_ipython() else "Python"
            remedy = f"for numpy, set OPENBLAS_NUM_THREADS={threads} before {process} starts"
            notes.append(joined(f"{', '.join(others)} can't be given another number of threads ({listed})", "", remedy))
    elif len({conditions.threads for _, conditions in known}) > 1:
        notes.append(joined(f"threads differ ({listed})", next_step="--threads N"))
    if len({conditions.machine for _, conditions in known}) > 1:
        listed = "; ".join(f"{label} on {c.machine or 'this one'}, {c.processor}" for label, c in known)
        notes.append(f"machines differ ({listed})")
    kinds = {conditions.device.partition(":")[0] for _, conditions in known}
    if len(kinds) > 1:
        listed = ", ".join(f"{label} {conditions.device}" for label, conditions in known)
        notes.append(joined(f"devices differ ({listed})", next_step="--device cpu:0"))
    return notes


class _Hosts:
    """The engines' hosts: the session's own, or others with the requested options, ended at the exit."""

    def __init__(self, session: Session, asked: _Asked) -> None:
        self._session = session
        self._asked = asked
        self._made: dict[str, Host] = {}

    def __enter__(self) -> _Hosts:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._made.values():
            host.stop()

    def started(self, name: str) -> Host:
        """The host of an engine, started. Raises KernelKError."""
        session, engine = self._session, registry.engine(name)
        # An engine in this process keeps its threads, and a note says how many there are.
        threads = None if engine.in_kernel else self._asked.threads
        changes = requested_options(engine, self._asked.device, threads, precision=self._asked.precision)
        if not changes:
            host = session.host(name)
        elif name in self._made:
            host = self._made[name]
        else:
            options = changed_options(session.engine_options.get(name, {}), changes, session.hosts.get(name))
            host = self._made[name] = session.make_host(name, options)
            host.start()
            check_honoured(host, options)
        if not host.started:
            host.start()
        return host


class _Work:
    """Runs the sides on their hosts: prepares one after the other, then times them in turns."""

    def __init__(self, session: Session, hosts: _Hosts, rewind: Any, result: CompareResult) -> None:
        self._session = session
        self._hosts = hosts
        self._rewind = rewind
        self._result = result
        self._open = contextlib.ExitStack()
        self._ready: dict[int, list[Timed]] = {}
        self._expected: list[list[Array]] | None = None

    def close(self) -> None:
        """Lets the engines forget the prepared calls."""
        self._open.close()

    def prepare(self, side: Side, engine: str, recording: Recording) -> None:
        """Makes the calls once, compares their results with the reference's, and prepares them; or notes why not."""
        session = self._session
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
            self._result.notes.append(joined(few, next_step=f"--budget {enough}"))

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
