"""Moves the session to another engine, in a transaction that either completes or changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from .. import config
from ..arrays import Array
from ..display import messages
from ..engines import registry
from ..engines.descriptors import Engine
from ..engines.host import Host
from ..engines.interrupts import shield
from ..engines.options import changed_options, check_honoured, requested_options, runs_with
from ..errors import ArgumentError, KernelKError, SwapRefusedError, WorkerDiedError
from ..graph.nodes import LearningPhase, Variable
from ..remote.clusters import placed
from .current import current, entered
from .feeds import as_feed, as_phase
from .linearise import linearised
from .session import MOST_SWAPS, Session
from .swap_report import Reevaluated, StopReport, StopReports, SwapReport


def set_backend(
    name: str,
    device: str | None = None,
    threads: int | str | None = None,
    in_kernel: bool | None = None,
    save: bool = False,
    compiler: bool | None = None,
    precision: str | None = None,
    drop_calls: bool = False,
    on: Any = None,
) -> SwapReport:
    """Makes `name` the active engine and moves the session there. The Python twin of `%kbackend NAME`.

    `device`: as the engine lists it, such as "cpu:0". `threads`: how many it may use. `in_kernel`: whether it runs in
    the notebook's own process. `compiler`: False has Theano compile no C, which answers at once and computes slower.
    `precision`: how it multiplies float32 in matrix products and convolutions, "float32", "tf32" or "bfloat16".
    What isn't given stays as it was asked for before; "default" leaves a device or a number of threads to the engine
    again, and compiler=True the search for a compiler. An engine that runs with other options is started again beside
    the old one, takes the variables over, and then the old one ends. `save`: keras.json chooses it from now on.
    `drop_calls`: gives up the calls whose results were lost with a worker, for when nothing can repeat them: the
    variables that they changed go back to the last checkpoint. `on`: the ipyparallel cluster whose machine it runs on,
    by its name, or as a Cluster, Client or View; "torch" on "gpu-box" is the engine "torch@gpu-box".

    Raises UnknownBackendError, ArgumentError, BackendNotInstalledError, EngineError or SwapRefusedError; then the old
    engine is still active and intact. Naming the active engine again only makes sure that it runs.
    """
    name = placed(name, on)
    changes = requested_options(registry.engine(name), device, threads, in_kernel, compiler, precision)
    if save:
        check_saved(name)
    if drop_calls:
        drop_lost_calls(current())
    report = swap(current(), name, "set_backend", changes)
    if save:
        report.saved = config.save_backend(name)
    return report


def check_saved(name: str) -> None:
    """Raises ArgumentError for an engine that keras.json can't choose."""
    engine = registry.engine(name)
    if engine.on:
        raise ArgumentError(
            f"keras.json can't choose {name}, which other programs don't know",
            allowed="it takes engines of this machine",
            next_step=f"export KERNELK_BACKEND={name}",
        )


def drop_lost_calls(session: Session) -> None:
    """Gives up the calls whose results were lost with a worker, and says how many they were."""
    with session.lock, entered(session):
        dropped = [line for host in list(session.hosts.values()) if (line := session.calls.drop_lost(host))]
    messages.say("; ".join(dropped) or "kernelk: no call was dropped, since no engine has lost any")


@dataclass(slots=True)
class Preparation:
    """The plan of a swap, decided before anything is started or changed: which host takes over, with which options.

    `replaces`: the host takes the place of one with other options. `changes` are what was asked for; `known_host` and
    `known_options` are the session's own at that time, and tell whether the decision still holds.
    """

    engine: Engine
    changes: dict[str, Any]
    options: dict[str, Any]
    host: Host
    replaces: bool
    known_host: Host | None
    known_options: dict[str, Any]

    def holds(self, session: Session) -> bool:
        """Whether the decision still holds: meanwhile, cells may have used or swapped to the engine."""
        host, name = session.hosts.get(self.engine.name), self.engine.name
        if host is not self.known_host or session.engine_options.get(name, {}) != self.known_options:
            return False
        return host is self.host or not runs_with(host, self.options)


def prepare(session: Session, name: str, changes: dict[str, Any] | None = None, beside: bool = False) -> Preparation:
    """Decides how `name` would become the active engine, with changes that are from `requested_options`.

    `beside`: its host will be started while the session's own keeps working, so it is a new one unless already running.
    Raises UnknownBackendError, and ArgumentError for options that the engine can't have.
    """
    engine = registry.engine(name)
    changes = changes or {}
    with session.lock:
        host = session.hosts.get(name)
        if host is not None:
            host.notice_end()
        options = changed_options(session.engine_options.get(name, {}), changes, host)
        return _decided(session, engine, changes, options, beside)


def _decided(
    session: Session, engine: Engine, changes: dict[str, Any], options: dict[str, Any], beside: bool = False
) -> Preparation:
    known_host, known_options = session.hosts.get(engine.name), dict(session.engine_options.get(engine.name, {}))
    same = options == known_options
    runs = (beside or not same) and runs_with(known_host, options)
    replaces = not same and not runs
    host = known_host
    if host is None or replaces or (beside and not runs):
        host = session.make_host(engine.name, options)
    return Preparation(engine, changes, options, host, replaces, known_host, known_options)


def swap(session: Session, name: str, chosen_by: str, changes: dict[str, Any] | None = None) -> SwapReport:
    """Makes `name` the active engine; `chosen_by` is shown as the setting that decided it."""
    return take_over(session, prepare(session, name, changes), chosen_by)


def take_over(session: Session, prepared: Preparation, chosen_by: str) -> SwapReport:
    """Carries out the swap. If the preparation no longer holds, its host is stopped and the swap is prepared again."""
    with session.lock, entered(session):
        try:
            if not prepared.holds(session):
                if prepared.host is not prepared.known_host:
                    prepared.host.stop()
                prepared = prepare(session, prepared.engine.name, prepared.changes)
            try:
                return _transaction(session, prepared, chosen_by)
            except WorkerDiedError as error:
                if not error.before_call:
                    raise
            # A warm worker ended before it had read anything of this: as if that had been noticed earlier.
            return _transaction(session, prepare(session, prepared.engine.name, prepared.changes), chosen_by)
        except SwapRefusedError as error:
            # A notebook keeps its last error, whose frames would keep alive the variables that prevent the swap.
            raise error.with_traceback(None) from None


def _transaction(session: Session, prepared: Preparation, chosen_by: str) -> SwapReport:
    session.calls.check_alone()
    session.safe_point()
    engine, options, target, replaces = prepared.engine, prepared.options, prepared.host, prepared.replaces
    own = prepared.known_host
    report = SwapReport(session.active, engine.name, chosen_by)
    clock = _Clock(report.seconds)
    if not replaces:
        # If the session can't move to it, it stays warm.
        session.hosts[engine.name] = target
    try:
        report.started = target is not own or not target.started
        if target.started and target is not own:
            report.seconds["start"] = target.start_seconds
        else:
            with clock("start"):
                target.start()
        if target.lost:
            session.calls.recover(target)
        if replaces:
            check_honoured(target, options)
        if "device" in options:
            options = {**options, "device": target.facts["device"]}
        report.facts, report.options = dict(target.facts), options
        variables = session.live_variables()
        with clock("check"):
            report.functions, report.to_lower = _check(session, target, variables)
        with clock("load"):
            session.calls.fetch([variable.slots for variable in variables if variable.slots.holder is not target])
        with target.held(), clock("load"):
            report.variables = len(variables)
            report.bytes = sum(variable.slots.nbytes for variable in variables)
            report.loaded, report.loaded_bytes = _load(target, variables)
        changed = session.active != engine.name
        with shield():
            report.restarted = replaces and own is not None and own.started
            session.hosts[engine.name] = target
            session.engine_options[engine.name] = target.options = options
            session.chosen_by = chosen_by
            session.active = engine.name
    finally:
        # Stop the host that the session doesn't use now.
        for host in (target, own):
            if host is not None and host is not session.hosts.get(engine.name):
                host.stop()
    if changed or not session.announced:
        session.announce(target)
    with clock("reevaluate"):
        if changed or report.restarted:
            _reevaluate(session, target, report)
    if changed or report.restarted:
        session.swap_count += 1
        session.swaps.append(report)
        del session.swaps[:-MOST_SWAPS]
    return report


@contextmanager
def using(
    name: str,
    device: str | None = None,
    threads: int | str | None = None,
    in_kernel: bool | None = None,
    compiler: bool | None = None,
    precision: str | None = None,
    on: Any = None,
) -> Iterator[SwapReport]:
    """`with kernelk.using("theano"):` makes that engine active inside; arguments and errors are those of `set_backend`.

    On any exit, by an exception or Ctrl-C too, the engine from before is active again and every engine has the options
    from before, whatever the body has done; variables keep the values that the body gave them.
    """
    session = current()
    with session.lock:
        before = _Choice(session)
    name = placed(name, on)
    changes = requested_options(registry.engine(name), device, threads, in_kernel, compiler, precision)
    try:
        yield swap(session, name, "using", changes)
    finally:
        with session.lock:
            before.restore(session)


class _Choice:
    """The active engine, who chose it, and every engine's options at one moment."""

    def __init__(self, session: Session) -> None:
        self.active, self.chosen_by = session.active, session.chosen_by
        self.options = {name: dict(options) for name, options in session.engine_options.items()}
        host = session.hosts.get(self.active)
        self.started = host is not None and host.started

    def restore(self, session: Session) -> None:
        """Restores this state. An engine that can't take over now becomes active all the same, and starts at its next

        use, which says what stands in the way; a line tells why.
        """
        wanted = self.options.get(self.active, {})
        try:
            same = session.active == self.active and session.engine_options.get(self.active, {}) == wanted
            # An engine that wasn't running before isn't started.
            if self.started and not same:
                take_over(session, _decided(session, registry.engine(self.active), {}, wanted), self.chosen_by)
        except KernelKError as error:
            messages.say(f"kernelk: {self.active} is active again, and will start when it is next used: {error}")
        finally:
            with shield():
                for name in [name for name in session.engine_options if name not in self.options]:
                    self.options[name] = {}
                for name, options in self.options.items():
                    if session.engine_options.get(name, {}) != options:
                        session.engine_options[name] = options
                        # The next use starts another one.
                        host = session.hosts.get(name)
                        if host is not None:
                            try:
                                host.stop()
                            except KernelKError as error:
                                # It keeps what can't be had from it now.
                                messages.say(f"kernelk: {error}")
                                host.end()
                            del session.hosts[name]
                session.active, session.chosen_by = self.active, self.chosen_by


@overload
def stop_backend(name: str, on: Any = None) -> StopReport: ...


@overload
def stop_backend(name: list[str] | tuple[str, ...], on: Any = None) -> StopReports: ...


def stop_backend(name: str | list[str] | tuple[str, ...], on: Any = None) -> StopReport | StopReports:
    """Stops an engine, or several, and frees its memory. The twin of `%kbackend --stop NAME`; `on` as in `set_backend`.

    Variables, functions and the choice of the engine stay: its next use starts it again, with the same options. One
    that isn't running is left alone. Raises ArgumentError and UnknownBackendError; then none is stopped.
    """
    if isinstance(name, str):
        return _stopped(registry.engine(placed(name, on)))
    if not isinstance(name, (list, tuple)) or not name or not all(isinstance(one, str) for one in name):
        raise ArgumentError(
            f"stop_backend: {name!r} names no engine",
            allowed="it takes a name, or a list of names",
            next_step="kernelk.stop_backend(['theano', 'cntk'])",
        )
    # All of them first: where one is unknown, none is stopped.
    engines = [registry.engine(placed(one, on)) for one in dict.fromkeys(name)]
    return StopReports([_stopped(engine) for engine in engines])


def _stopped(engine: Engine) -> StopReport:
    session = current()
    with session.lock:
        report = StopReport(engine.name, engine.title, active=session.active == engine.name)
        host = session.hosts.get(engine.name)
        if host is not None and host.started:
            report.pid, report.bytes, report.placement = host.pid, host.memory, host.placement
            report.machine = host.machine
            # Before Ctrl-C has to wait.
            session.calls.fetch(list(host.holding.values()))
            with shield():
                host.stop()
        return report


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[phase] = self._seconds.get(phase, 0.0) + time.perf_counter() - begin


def _check(session: Session, target: Host, variables: list[Variable]) -> tuple[int, int]:
    """The number of live functions, and of those without a compiled form on the target.

    Raises SwapRefusedError with every op and dtype that the target lacks.
    """
    reasons: dict[str, None] = {}
    for variable in variables:
        if variable.dtype not in target.dtypes:
            reasons[f"variable '{variable.name}' ({variable.source}) is {variable.dtype}"] = None
    functions = list(session.functions)
    to_lower = 0
    for call in functions:
        try:
            programs = [call.program_for(session, target.ops, phase, None) for phase in call.phases()]
        except KernelKError:
            # Its shapes depend on values that are known only at a call, or it can't run on any engine.
            continue
        for program in programs:
            for reason in program.lacking(target.ops, target.dtypes):
                reasons[reason] = None
        if not any(key.startswith(program.key) for key in target.compiled for program in programs):
            to_lower += 1
    if reasons:
        raise SwapRefusedError(
            f"{target.engine.title} cannot run this session, '{session.active}' stays active", list(reasons)
        )
    return len(functions), to_lower


def _load(target: Host, variables: list[Variable]) -> tuple[int, int]:
    """Loads the variables that the target doesn't have, reads them back and compares them bit for bit."""
    slots = [variable.slots for variable in variables]
    loads = target.loads(slots)
    if loads:
        reply = target.request({"do": "load", "variables": loads, "verify": True})
        if reply["different"]:
            different = set(reply["different"])
            reasons = [
                f"variable '{variable.name}' ({variable.dtype}, {variable.source}) isn't read back bit for bit"
                for variable in variables
                if variable.slots.number in different
            ]
            raise SwapRefusedError(f"{target.engine.title} can't keep every value exact, nothing was changed", reasons)
        target.loaded(slots)
    numbers = {number for number, _ in loads}
    return len(loads), sum(entry.nbytes for entry in slots if entry.number in numbers)


def _reevaluate(session: Session, target: Host, report: SwapReport) -> None:
    """Evaluates the tensors that the user has seen again, newest first, until the time limit is reached."""
    begin = time.perf_counter()
    shown = list(session.shown.items())
    for done, (tensor, (feeds, before, versions, _)) in enumerate(reversed(shown)):
        left = config.LIMITS.reevaluation_seconds - (time.perf_counter() - begin)
        if left <= 0:
            report.not_reevaluated += len(shown) - done
            break
        placeholders = [x for x in feeds if not isinstance(x, LearningPhase)]
        phase = next((as_phase(value) for x, value in feeds.items() if isinstance(x, LearningPhase)), 0)
        try:
            fed = [as_feed(x, feeds[x]) for x in placeholders]
            program, _ = linearised(session, placeholders, [tensor], (), phase, target.ops, fed)
            if program.draws or versions != {x.slots.number: x.slots.version for x in program.slots}:
                # New draws or newer variables: there is nothing to compare with.
                continue
            if not session.calls.compiled_within(target, program, fed, left):
                report.not_reevaluated += len(shown) - done
                break
            after = session.calls.execute(target, program, fed)[0]
        except KernelKError:
            report.not_reevaluated += 1
            continue
        gap = difference(before, after)
        report.reevaluated.append(Reevaluated(tensor.uid, tensor.name, after.shape, after.dtype.name, gap))


def difference(before: Array, after: Array) -> float:
    """The largest absolute difference; equal NaNs and infinities count as 0, a NaN on one side as infinity."""
    if before.shape != after.shape:
        return float("inf")
    if not before.size:
        return 0.0
    a, b = before.astype(np.float64), after.astype(np.float64)
    with np.errstate(all="ignore"):
        gap = np.asarray(np.abs(a - b))  # for two scalars numpy returns one that can't be written to
    gap[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
    gap[np.isnan(gap)] = np.inf
    return float(gap.max())
