"""The swap: another engine takes the session over, as a transaction that either completes or changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from . import config, registry
from .display import Rendered, Table, duration, size
from .engines import Engine
from .errors import KernelKError, SwapRefusedError
from .graph import Variable
from .host import Host
from .interrupts import HeldInterrupt
from .options import asked, check_honoured, fulfilled, merged
from .session import Session, current


@dataclass
class Reevaluated:
    """One tensor that the user had been shown, evaluated again: the largest absolute difference from before.

    `key`: the tensor's uid, by which `inventory` knows it.
    """

    key: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    difference: float


@dataclass(repr=False)
class SwapReport(Rendered):
    """What a swap did. `variables` were moved bit for bit; `started`: the engine wasn't up before.

    `restarted`: it was, with other options, and a new process of its own took the session over. `options`: what it was
    asked for. `saved`: what came of writing keras.json, "" if that wasn't asked for. `seconds` has the phases: start,
    check, load, reevaluate.
    """

    origin: str
    target: str
    chosen_by: str
    variables: int = 0
    bytes: int = 0
    loaded: int = 0
    loaded_bytes: int = 0
    reevaluated: list[Reevaluated] = field(default_factory=list)
    not_reevaluated: int = 0
    started: bool = False
    restarted: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    saved: str = ""
    functions: int = 0
    to_lower: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def largest_difference(self) -> float | None:
        """Over all re-evaluated tensors; None where there was none."""
        return max((entry.difference for entry in self.reevaluated), default=None)

    @property
    def total_seconds(self) -> float:
        """All phases together."""
        return sum(self.seconds.values())

    def table(self) -> Table:
        """Pairs of what and how much; nothing but a line where there was nothing to do."""
        if self.origin == self.target and not (self.started or self.restarted or self.loaded):
            mode = str(self.facts.get("mode", ""))
            below = "\n".join(line for line in (mode, self.saved) if line)
            return Table([], title=f"{self.target} is active already", below=below)
        engine = " ".join(
            str(self.facts[name]) for name in ("version", "interpreter", "device", "mode") if self.facts.get(name)
        )
        moved = f"{self.variables} ({size(self.bytes)}), bit for bit"
        if self.loaded != self.variables:
            moved += f"; {self.loaded} of them ({size(self.loaded_bytes)}) had changed and were loaded"
        rows = [
            ["engine", f"{self.target} {engine}"],
            *([["threads", str(self.facts["threads"])]] if self.facts.get("threads") else []),
            ["variables", moved],
            ["functions", f"{self.functions}, {self.to_lower} to be compiled at their next call"],
        ]
        if self.reevaluated:
            gap = self.largest_difference
            rows.append(["re-evaluated", f"{len(self.reevaluated)} shown tensors, largest difference {gap:.3g}"])
        if self.not_reevaluated:
            rows.append(["not re-evaluated", f"{self.not_reevaluated} shown tensors (time box)"])
        phases = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.seconds.items())
        rows.append(["time", f"{duration(self.total_seconds)} ({phases})"])
        title = f"{self.origin} -> {self.target}"
        if self.origin == self.target:
            title = f"{self.target} restarted" if self.restarted else f"{self.target} started"
            if not self.started:
                title = f"{self.target} is active already"
        return Table(rows, title=title, below=self.saved)


def set_backend(
    name: str,
    device: str | None = None,
    threads: int | str | None = None,
    in_kernel: bool | None = None,
    save: bool = False,
    compiler: bool | None = None,
) -> SwapReport:
    """Makes `name` the active engine and moves the session there. The Python twin of `%kbackend NAME`.

    `device`: as the engine lists it, such as "cpu:0". `threads`: how many it may use. `in_kernel`: whether it runs in
    the notebook's own process. `compiler`: False has Theano compile no C, which answers at once and computes slower.
    What isn't given stays as it was asked for before; "default" leaves a device or a number of threads to the engine
    again, and compiler=True the search for a compiler. An engine that runs with other options is started anew beside
    the old one, takes the variables over, and then the old one ends. `save`: keras.json chooses it from now on.

    Raises UnknownBackendError, ArgumentError, BackendNotInstalledError, EngineError or SwapRefusedError; then the old
    engine is still active and intact. Naming the active engine again only makes sure that it runs.
    """
    changes = asked(registry.engine(name), device, threads, in_kernel, compiler)
    report = swap(current(), name, "set_backend", changes)
    if save:
        report.saved = config.save_backend(name)
    return report


def swap(
    session: Session, name: str, chosen_by: str, changes: dict[str, Any] | None = None, prepared: Host | None = None
) -> SwapReport:
    """The transaction; `chosen_by` is shown as the setting that decided the engine, `changes` are from `asked`.

    `prepared`: a host that was started beforehand with these very options; it takes over where a new one is needed,
    and is stopped where none is.
    """
    engine = registry.engine(name)
    with session.lock:
        try:
            options = merged(session.engine_options.get(name, {}), changes or {}, session.hosts.get(name))
            return _swap(session, engine, chosen_by, options, prepared)
        finally:
            if prepared is not None and session.hosts.get(name) is not prepared:
                prepared.stop()


def _swap(
    session: Session, engine: Engine, chosen_by: str, options: dict[str, Any], prepared: Host | None = None
) -> SwapReport:
    try:
        return _transaction(session, engine, chosen_by, options, prepared)
    except SwapRefusedError as error:
        # A notebook keeps its last error, whose frames would keep the very variables alive that stand in the way.
        raise error.with_traceback(None) from None


def _transaction(
    session: Session, engine: Engine, chosen_by: str, options: dict[str, Any], prepared: Host | None
) -> SwapReport:
    session.safe_point()
    report = SwapReport(session.active, engine.name, chosen_by)
    clock = _Clock(report.seconds)
    old = session.hosts.get(engine.name)
    if options == session.engine_options.get(engine.name, {}) or fulfilled(old, options):
        target = session.host(engine.name)
        if prepared is not None and not target.started:
            # As if it had just been started: it stays warm where the session can't move to it.
            session.hosts[engine.name] = target = old = prepared
    else:
        target = prepared or session.make_host(engine.name, options)
    replaces = target is not old
    try:
        report.started = target is prepared or not target.started
        with clock("start"):
            target.start()
        if target is prepared:
            report.seconds["start"] = target.start_seconds
        if replaces:
            check_honoured(target, options)
        if "device" in options:
            options = {**options, "device": target.facts["device"]}
        report.facts, report.options = dict(target.facts), options
        variables = session.live_variables()
        with clock("check"):
            report.functions, report.to_lower = _check(session, target, variables)
        with target.held(), clock("load"):
            report.variables = len(variables)
            report.bytes = sum(variable.slots.nbytes for variable in variables)
            report.loaded, report.loaded_bytes = _load(target, variables)
        changed = session.active != engine.name
        with HeldInterrupt(_let_it_end, 0.0):
            report.restarted = replaces and old is not None and old.started
            session.hosts[engine.name] = target
            session.engine_options[engine.name] = target.options = options
            session.chosen_by = chosen_by
            session.active = engine.name
    finally:
        # Whichever of the two the session doesn't have now.
        if replaces and session.hosts.get(engine.name) is not target:
            target.stop()
        elif replaces and old is not None:
            old.stop()
    if changed or not session.announced:
        session.announce(target)
    with clock("reevaluate"):
        if changed or report.restarted:
            _reevaluate(session, target, report)
    if changed or report.restarted:
        session.swaps.append(report)
    return report


def _let_it_end() -> None:
    """The change of a few references takes microseconds: Ctrl-C waits for it."""


@contextmanager
def using(
    name: str,
    device: str | None = None,
    threads: int | str | None = None,
    in_kernel: bool | None = None,
    compiler: bool | None = None,
) -> Iterator[SwapReport]:
    """`with kernelk.using("theano"):` has that engine active inside; arguments and errors are those of `set_backend`.

    On any exit, by an exception or Ctrl-C too, the engine from before is active again and every engine has the options
    from before, whatever the body has done; variables keep the values that the body gave them.
    """
    session = current()
    with session.lock:
        before = _Choice(session)
    changes = asked(registry.engine(name), device, threads, in_kernel, compiler)
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
        """Makes it so again. An engine that can't take over now has the session all the same, and starts at its next

        use, which says what stands in the way; a line tells why.
        """
        wanted = self.options.get(self.active, {})
        try:
            same = session.active == self.active and session.engine_options.get(self.active, {}) == wanted
            # An engine that wasn't up before isn't started to be left alone again.
            if self.started and not same:
                _swap(session, registry.engine(self.active), self.chosen_by, wanted)
        except KernelKError as error:
            config.say(f"kernelk: {self.active} is active again, and starts at its next use: {error}")
        finally:
            with HeldInterrupt(_let_it_end, 0.0):
                for name in [name for name in session.engine_options if name not in self.options]:
                    self.options[name] = {}
                for name, options in self.options.items():
                    if session.engine_options.get(name, {}) != options:
                        session.engine_options[name] = options
                        # The next use makes another one.
                        host = session.hosts.pop(name, None)
                        if host is not None:
                            host.stop()
                session.active, session.chosen_by = self.active, self.chosen_by


@dataclass(repr=False)
class StopReport(Rendered):
    """What stopping an engine did: `pid` is None where it wasn't running, `bytes` where its memory isn't known."""

    name: str
    title: str
    pid: int | None = None
    bytes: int | None = None
    placement: str = "worker"
    active: bool = False

    def table(self) -> Table:
        """One line."""
        if self.pid is None:
            return Table([], title=f"{self.name} isn't running")
        if self.placement == "kernel":
            words = f"{self.name} stopped: its programs and values are let go"
            if self.name != "numpy":
                words += (
                    f"; {self.title} itself stays imported in the notebook's process, with its threads and what it has "
                    "reserved, until the kernel is restarted"
                )
        else:
            gone = f" and its {size(self.bytes)}" if self.bytes else ""
            words = f"{self.name} stopped: process {self.pid}{gone} gone"
        if self.active:
            words += "; it is still the active engine: the next call starts it again, with all variables"
        return Table([], title=words)


def stop_backend(name: str) -> StopReport:
    """Stops an engine and gives its memory back; the Python twin of `%kbackend --stop NAME`.

    Variables, functions and the choice of the engine stay: its next use starts it again, with the same options. One
    that isn't running is left alone. Raises UnknownBackendError.
    """
    engine = registry.engine(name)
    session = current()
    with session.lock:
        report = StopReport(engine.name, engine.title, active=session.active == name)
        host = session.hosts.get(name)
        if host is not None and host.started:
            report.pid, report.bytes, report.placement = host.pid, host.memory, host.placement
            with HeldInterrupt(_let_it_end, 0.0):
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
            self._seconds[phase] = time.perf_counter() - begin


def _check(session: Session, target: Host, variables: list[Variable]) -> tuple[int, int]:
    """How many live functions there are, and how many have no compiled form on the target yet.

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
            # Its shapes depend on values that only a call has, or it can't run on any engine: not the target's fault.
            continue
        for program in programs:
            for reason in program.lacking(target.ops, target.dtypes):
                reasons[reason] = None
        if not any(key.startswith(program.key) for key in target.compiled for program in programs):
            to_lower += 1
    if reasons:
        listed = list(reasons)
        raise SwapRefusedError(
            f"{target.engine.title} can't take this session over, '{session.active}' stays active: "
            + "; ".join(listed),
            listed,
        )
    return len(functions), to_lower


def _load(target: Host, variables: list[Variable]) -> tuple[int, int]:
    """Loads the variables that the target doesn't have, reads them back and compares bit for bit."""
    slots = [variable.slots for variable in variables]
    loads = target.loads(slots)
    if loads:
        reply = target.request({"do": "load", "variables": loads, "verify": True})
        if reply["different"]:
            different = set(reply["different"])
            reasons = [
                f"variable '{variable.name}' ({variable.dtype}, {variable.source}) doesn't come back bit for bit"
                for variable in variables
                if variable.slots.number in different
            ]
            raise SwapRefusedError(
                f"{target.engine.title} can't hold every value exactly, nothing was changed: " + "; ".join(reasons),
                reasons,
            )
        target.loaded(slots)
    numbers = {number for number, _ in loads}
    return len(loads), sum(entry.nbytes for entry in slots if entry.number in numbers)


def _reevaluate(session: Session, target: Host, report: SwapReport) -> None:
    """Evaluates again what the user has been shown, newest first, until the time box is used up."""
    from .function import as_feed, as_phase, linearised
    from .graph import LearningPhase

    begin = time.perf_counter()
    shown = list(session.shown.items())
    for done, (tensor, (feeds, before, versions, _)) in enumerate(reversed(shown)):
        if time.perf_counter() - begin > config.LIMITS.reevaluation_seconds:
            report.not_reevaluated = len(shown) - done
            break
        placeholders = [x for x in feeds if not isinstance(x, LearningPhase)]
        phase = next((as_phase(value) for x, value in feeds.items() if isinstance(x, LearningPhase)), 0)
        try:
            fed = [as_feed(x, feeds[x]) for x in placeholders]
            program, _ = linearised(session, placeholders, [tensor], (), phase, target.ops, fed)
            if program.draws or versions != {x.slots.number: x.slots.version for x in program.slots}:
                # Fresh draws or newer variables: there is nothing to compare with.
                continue
            after = session.execute(target, program, fed)[0]
        except KernelKError:
            report.not_reevaluated += 1
            continue
        gap = difference(before, after)
        report.reevaluated.append(Reevaluated(tensor.uid, tensor.name, after.shape, after.dtype.name, gap))


def difference(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> float:
    """The largest absolute difference; equal NaNs and infinities count as 0, a NaN on one side as infinity."""
    if before.shape != after.shape:
        return float("inf")
    if not before.size:
        return 0.0
    a, b = before.astype(np.float64), after.astype(np.float64)
    with np.errstate(all="ignore"):
        gap = np.asarray(np.abs(a - b))  # of two scalars numpy makes one that can't be written to
    gap[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
    gap[np.isnan(gap)] = np.inf
    return float(gap.max())
