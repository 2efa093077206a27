"""The swap: another engine takes the session over, as a transaction that either completes or changes nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .. import config
from ..display import messages
from ..engines import registry
from ..engines.descriptors import Engine
from ..engines.host import Host
from ..engines.interrupts import shield
from ..engines.options import asked, check_honoured, fulfilled, merged
from ..errors import KernelKError, SwapRefusedError
from ..graph.nodes import Variable
from .current import current
from .session import Session
from .swap_report import Reevaluated, StopReport, SwapReport


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
        with shield():
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
            messages.say(f"kernelk: {self.active} is active again, and starts at its next use: {error}")
        finally:
            with shield():
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
    from ..graph.nodes import LearningPhase
    from .feeds import as_feed, as_phase
    from .linearise import linearised

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
            after = session.calls.execute(target, program, fed)[0]
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
