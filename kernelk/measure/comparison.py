"""Compares recorded calls for `%%kcompare`: several engines, or several bodies on one, in rounds of random order."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Any, NamedTuple

from ..display.progress import waiting
from ..engines import registry
from ..engines.descriptors import DEFAULT, Engine
from ..engines.host import Host
from ..engines.options import changed_options, check_honoured, known_precision, meant_precision, requested_options
from ..errors import ArgumentError, KernelKError, joined, one_line
from ..remote.clusters import Place, parsed, place_of, placed
from ..session.current import current
from ..session.session import Session
from ..session.targets import layers_of
from ..twins import in_ipython, option, typed_name
from .comparison_results import CompareResult, Side, SweepResult, differences
from .recording import Recording, record, restoring
from .results import noted
from .rounds import Rounds
from .spreading import Spread, Wanted, on_cluster, on_executor, spread
from .timing import checked_budget

BUDGET = 10.0


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
    `set_backend`, or any `concurrent.futures.Executor`. A sweep is spread over a cluster's machines, or an executor's,
    each value on one of them. Afterwards the session is as after one run of the targets.
    Raises ArgumentError, UnknownBackendError, FeedError, and what a body raises; an engine that fails is a row.
    """
    __tracebackhide__ = True  # in an error of a body
    seconds = checked_budget(budget, typed_name("compare"))
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
    engines, where = _engines(names, on, sweep is not None)
    if isinstance(where, Executor) and len(targets) > 1:
        raise ArgumentError(
            "compare: an executor takes one body", next_step="kernelk.compare(lambda: f([x]), 'torch', on=executor)"
        )
    if isinstance(where, Executor) and per_op:
        raise ArgumentError(
            f"compare: {option('per_op')} isn't possible on an executor", next_step="leave it out, or name a cluster"
        )
    if len(targets) > 1 and len(engines) > 1:
        raise ArgumentError(
            f"{typed_name('compare')}: {len(targets)} bodies and {len(engines)} engines cannot be combined",
            next_step="name one engine, or give one body",
        )
    if per_op and (len(targets) > 1 or sweep is not None):
        what_for = "a sweep" if sweep is not None else "several bodies"
        raise ArgumentError(
            f"{typed_name('compare')}: {option('per_op')} isn't possible for {what_for}",
            allowed="it needs one body, several engines and no sweep",
            next_step="leave it out",
        )
    session = current()
    _check_options(registry.engine(engines[0] if engines else session.active), device, threads, precision)
    asked = _Asked(device, threads, precision)
    with session.lock:
        session.ready_host()
        result: CompareResult | SweepResult
        if sweep is not None:
            result = _sweep(session, targets, engines, seconds, sweep, asked, where)
        elif where is not None:
            result = _elsewhere(session, targets[0], engines, feeds, seconds, asked, where)
        else:
            result = _compare(session, targets, engines, feeds, seconds, asked, per_op)
        return noted("compare", result)


def _engines(names: list[str], on: Any, swept: bool) -> tuple[list[str], Executor | Place | None]:
    """The engines' names; and the executor, or the cluster of a sweep all of whose sides run there, that measures."""
    if isinstance(on, Executor):
        engines = [registry.engine(name) for name in names]
        for engine in engines:
            if engine.on:
                raise ArgumentError(
                    f"compare: {engine.name} can't run on an executor, since it is on {engine.on}",
                    next_step=f"name {engine.base}, or leave on out",
                )
        return _once([engine.name for engine in engines]), on
    if on is None or not swept:
        placed_engines = [registry.engine(placed(name, on)) for name in names]
        places = {engine.on for engine in placed_engines}
        whole = swept and len(places) == 1 and "" not in places
        return _once([engine.name for engine in placed_engines]), parsed(places.pop()) if whole else None
    place = place_of(on)
    return _once([registry.engine(placed(name, place.cluster)).name for name in names]), place


def _once(engines: list[str]) -> list[str]:
    """The engines, each of which is one side. Raises ArgumentError for one that is there twice."""
    once = list(dict.fromkeys(engines))
    for name in once:
        if engines.count(name) > 1:
            others = [other for other in registry.names() if other != name and registry.installed(other)]
            named = once if len(once) > 1 else [name, *others[:1]]
            raise ArgumentError(
                f"{typed_name('compare')}: {name} was named twice",
                allowed="each engine is one side",
                next_step=f"name {', '.join(named)}",
            )
    return once


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
        (
            "precision",
            meant_precision(precision) or "float32",
            lambda: None if precision is None else known_precision(precision),
        ),
    ]
    for name, example, check in checks:
        try:
            check()
        except ArgumentError as error:
            # The comparison's own option: %kbackend would change the active engine.
            raise ArgumentError(
                f"{typed_name('compare')}: {error.problem}", allowed=error.allowed, next_step=option(name, example)
            ) from None


def _sweep(
    session: Session,
    targets: list[Any],
    engines: list[str],
    budget: float,
    sweep: Mapping[str, Sequence[float]],
    asked: _Asked,
    where: Executor | Place | None,
) -> SweepResult:
    __tracebackhide__ = True
    if not isinstance(sweep, Mapping) or len(sweep) != 1 or len(targets) != 1 or not callable(targets[0]):
        raise ArgumentError(
            "compare: this can't be swept",
            allowed="a sweep takes one name with its values, and one function of it as the body",
            next_step="kernelk.compare(lambda n: ..., sweep={'n': [128, 256, 512]})",
        )
    (name, given), body = next(iter(sweep.items())), targets[0]
    values = list(given)
    if not values:
        raise ArgumentError(
            f"compare: the sweep over {name} has no values", next_step=f"sweep={{'{name}': [128, 256, 512]}}"
        )
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise ArgumentError(
            f"{typed_name('compare')}: {name}={twice} was named twice",
            allowed="each value is one point of the sweep",
        )
    if not _takes(body, name):
        raise ArgumentError(
            f"compare: the body can't be called with {name} alone",
            next_step=f"kernelk.compare(lambda {name}: ..., sweep={{'{name}': [128, 256, 512]}})",
        )
    runs = []
    for value in values:

        def run(value: float = value) -> Any:
            __tracebackhide__ = True
            return body(**{name: value})

        runs.append(run)
    share = budget / len(runs)
    if where is not None:
        results, notes = _spread(session, runs, engines, None, share, asked, where)
    else:
        results, notes = [], []
        for run in runs:
            one = _compare(session, [run], engines, None, share, asked)
            results.append(one)
    return SweepResult(name, [(float(value), one) for value, one in zip(values, results)], notes)


def _elsewhere(
    session: Session,
    target: Any,
    engines: list[str],
    feeds: Any,
    budget: float,
    asked: _Asked,
    where: Executor | Place,
) -> CompareResult:
    """One comparison that an executor makes."""
    __tracebackhide__ = True
    (result,), notes = _spread(session, [target], engines, feeds, budget, asked, where)
    result.notes += notes
    return result


def _spread(
    session: Session,
    targets: list[Any],
    engines: list[str],
    feeds: Any,
    budget: float,
    asked: _Asked,
    where: Executor | Place,
) -> Spread:
    """A comparison for each target, elsewhere."""
    __tracebackhide__ = True
    notes: list[str] = []
    lanes = on_cluster(where, notes) if isinstance(where, Place) else on_executor(where, len(targets))
    wanted = []
    for label in engines:
        try:
            options = _options(session, registry.engine(label), asked)
            options.pop("in_kernel", None)
            wanted.append(Wanted(label, registry.engine(label).base, options))
        except KernelKError as error:
            wanted.append(Wanted(label, registry.engine(label).base, {}, one_line(error)))

    def recorded(target: Any) -> Callable[[], Recording]:
        def run() -> Recording:
            __tracebackhide__ = True
            return record(session, target, feeds, typed_name("compare"), "kernelk.compare(y, ..., feeds=...)")

        return run

    spreading = spread(session, lanes, wanted, [recorded(target) for target in targets], budget, notes)
    for result in spreading.results:
        result.notes += _unequal_conditions(result, asked.threads)
    return spreading


def _options(session: Session, engine: Engine, asked: _Asked) -> dict[str, Any]:
    """The options of an engine for this comparison. Raises ArgumentError."""
    changes = _changes(engine, asked)
    return changed_options(session.engine_options.get(engine.name, {}), changes, session.hosts.get(engine.name))


def _changes(engine: Engine, asked: _Asked) -> dict[str, Any]:
    # An engine of the notebook's own process keeps its threads, and a note says how many there are.
    threads = None if registry.engine(engine.base).in_kernel else asked.threads
    return requested_options(engine, asked.device, threads, precision=asked.precision)


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
        recordings += [record(session, target, feeds, typed_name("compare"), "kernelk.compare(y, ..., feeds=...)")]
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
        work = Rounds(session, hosts, rewind, result)
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
        result.notes.append(joined("a model's layers aren't timed separately", next_step=option("per_op", True)))
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
        notes.append(joined(why, next_step=option("precision", "float32")))
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
        fewest = min(conditions.threads for _, conditions in known if conditions.threads)
        notes.append(joined(f"threads differ ({listed})", next_step=option("threads", fewest)))
    notes += differences(known)
    kinds = {conditions.device.partition(":")[0] for _, conditions in known}
    if len(kinds) > 1:
        listed = ", ".join(f"{label} {conditions.device}" for label, conditions in known)
        notes.append(joined(f"devices differ ({listed})", next_step=option("device", "cpu:0")))
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
        if not _changes(engine, self._asked):
            host = session.host(name)
        elif name in self._made:
            host = self._made[name]
        else:
            options = _options(session, engine, self._asked)
            host = self._made[name] = session.make_host(name, options)
            host.start()
            check_honoured(host, options)
        if not host.started:
            host.start()
        return host
