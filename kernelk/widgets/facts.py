"""The data that the panel's front end receives, as strict JSON: engines, rows, losses, timings, swaps, native forms."""

from __future__ import annotations

import itertools
import math
from typing import Any

from ..display.tables import duration, size
from ..engines import registry
from ..engines.options import most_threads
from ..errors import BackendNotInstalledError, KernelKError, LoadRefusedError, SwapRefusedError, one_line
from ..inspection.inventory import number
from ..manage.status import EngineStatus, list_backends
from ..measure.timing import shown
from ..session.session import Session
from ..session.swap_report import SwapReport

# Bars of one profile, and swaps of the history, that a page has room for.
MOST_BARS = 12
MOST_SWAPS = 20
# Functions whose losses are drawn, and runs of calls on one engine that are written below each.
MOST_CURVES = 4
MOST_RUNS = 12
# Characters of one engine's listing.
MOST_TEXT = 20_000


def engines(session: Session, broken: dict[str, str]) -> dict[str, Any]:
    """All engines, as the bar shows them. `broken`: why an engine could not be started recently, by its name."""
    table = list_backends()
    return {
        "active": table.active,
        "chosen_by": table.chosen_by,
        "most_threads": most_threads(),
        "engines": [_engine(status, table.active, broken.get(status.name, "")) for status in table.engines],
        "swaps": session.swap_count,
    }


def _engine(status: EngineStatus, active: str, broken: str) -> dict[str, Any]:
    state, note = status.state, status.note
    if broken and not status.running:
        state, note = "broken", broken
    elif status.name == active:
        state = "active" if status.running else "not started" if status.installed else "not installed"
    return {
        "name": status.name,
        "title": status.title,
        "active": status.name == active,
        "state": state,
        "version": status.version,
        "interpreter": status.interpreter,
        "process": _process(status),
        "memory": size(status.memory) if status.memory else "",
        "running": status.running,
        "device": status.device,
        "devices": list(status.devices),
        "threads": status.threads,
        "precision": status.precision,
        "precisions": list(status.precisions),
        "requested": {name: status.options.get(name) for name in ("device", "threads")},
        "note": note,
        "install": _install(status),
    }


def _process(status: EngineStatus) -> str:
    if status.placement == "kernel":
        return "this kernel"
    where = f" on {status.machine}" if status.machine else ""
    return f"worker {status.pid}{where}" if status.running else f"a worker{where}"


def _install(status: EngineStatus) -> str:
    """ "button" for an engine that kernelk can install, "note" for one that pip has to, "" for an installed one."""
    if status.installed:
        return ""
    try:
        return "button" if registry.engine(status.name).recipe is not None else "note"
    except BackendNotInstalledError:
        return "note"


def swapped(report: SwapReport) -> dict[str, Any]:
    """One swap, as the history shows it."""
    gap = report.largest_difference
    return {
        "from": report.origin,
        "to": report.target,
        "restarted": report.restarted,
        "seconds": {name: number(value) for name, value in report.seconds.items()},
        "total": number(report.total_seconds),
        "shown": {name: duration(value) for name, value in report.seconds.items()},
        "words": in_words(report),
        "difference": None if gap is None else number(gap),
    }


def in_words(report: SwapReport) -> str:
    """A swap in one line."""
    if report.origin == report.target and not report.restarted:
        return f"{report.target} is already active"
    title = f"{report.target} restarted" if report.restarted else f"{report.origin} → {report.target}"
    parts = [f"{title} in {duration(report.total_seconds)}"]
    if report.variables:
        several = "s" if report.variables > 1 else ""
        parts.append(f"{report.variables} variable{several} ({size(report.bytes)}) moved bit for bit")
    if report.reevaluated:
        count, gap = len(report.reevaluated), report.largest_difference
        parts.append(f"{count} shown value{'s' if count > 1 else ''} evaluated again, largest difference {gap:.2g}")
    if report.not_reevaluated:
        parts.append(f"{report.not_reevaluated} not evaluated again")
    return "; ".join(parts)


def losses(session: Session) -> dict[str, Any]:
    """The losses of the functions that train, the last called first; see `session.loss_history`."""
    with session.lock:
        trained = [function for function in session.functions if function.losses is not None and function.losses.calls]
        trained.sort(key=lambda function: -function.losses.latest)
        functions = [_curve(function) for function in trained[:MOST_CURVES]]
    return {"functions": functions, "hidden": len(trained) - len(functions)}


def _curve(function: Any) -> dict[str, Any]:
    history = function.losses
    points = history.points()
    runs = []
    for name, grouped in itertools.groupby(points, key=lambda point: point.engine):
        run = list(grouped)
        begin, end = run[0], run[-1]
        last = end.first + end.calls - 1
        calls = f"call {last}" if begin.first == last else f"calls {begin.first} to {last}"
        loss = f"{begin.mean:.4g}" if begin is end else f"{begin.mean:.4g} → {end.mean:.4g}"
        runs.append({"engine": name, "title": _title(name), "calls": calls, "loss": loss})
    return {
        "key": function.uid,
        "name": function.name,
        "calls": history.calls,
        "every": history.every,
        "dropped": points[0].first - 1,
        "points": [[point.first, point.calls, number(point.mean), point.engine] for point in points],
        "runs": runs[-MOST_RUNS:],
        "earlier_runs": max(0, len(runs) - MOST_RUNS),
    }


def _title(engine: str) -> str:
    try:
        return registry.engine(engine).title
    except KernelKError:
        return engine  # no longer registered


def timings(session: Session) -> dict[str, Any]:
    """The last measurement of each kind, and the swaps, newest first."""
    latest = session.measurements
    return {
        "time": _timed(latest.get("time")),
        "profile": _profiled(latest.get("profile")),
        "profile_layers": _by_layer(getattr(latest.get("profile"), "by_layer", None)),
        "engine_profile": _watched(getattr(latest.get("profile"), "engine_profile", None)),
        "compare": _compared(latest.get("compare")),
        "per_op": _op_by_op(getattr(latest.get("compare"), "per_op", None)),
        "compare_layers": _by_layer(getattr(getattr(latest.get("compare"), "per_op", None), "by_layer", None)),
        "swaps": [swapped(report) for report in reversed(session.swaps[-MOST_SWAPS:])],
        "swap_count": session.swap_count,
    }


def _bar(label: str, seconds: float, low: float, high: float, text: str, **more: Any) -> dict[str, Any]:
    known = not math.isnan(seconds)
    return {
        "label": label,
        "seconds": seconds if known else None,
        "low": low if known and math.isfinite(low) else None,
        "high": high if known and math.isfinite(high) else None,
        "text": text,
        **more,
    }


def _timed(result: Any) -> dict[str, Any] | None:
    if result is None:
        return None
    bars = []
    for call in result.calls:
        parts = [("compile", call.compile_seconds), ("first run", call.first_seconds), ("whole call", call.call)]
        label, steady = call.label, call.steady
        bars.append(_bar(f"{label}: steady state", steady.value, steady.low, steady.high, shown(steady), strong=True))
        bars += [_bar(f"{label}: {name}", value, value, value, duration(value)) for name, value in parts]
    notes = [*result.notes(), result.conditions.words()]
    return {"title": f"on {result.conditions.engine}", "bars": bars, "notes": notes}


def _profiled(result: Any) -> dict[str, Any] | None:
    if result is None:
        return None
    bars = []
    for op in result.ops[:MOST_BARS]:
        label = f"{op.op} '{op.name}'" if op.name and not op.name.startswith(f"{op.op}_") else op.op
        text = "failed" if op.failure else f"{duration(op.total)}, {result.share(op):.0%}"
        times = f"{op.count}x " if op.count > 1 else ""
        detail = f"{times}{op.dtype}{list(op.shape)}, {op.part}, {op.source}"
        low, high = (op.total, op.total) if op.device is not None else (op.count * x for x in op.steady[1:])
        bars.append(_bar(label, math.nan if op.failure else op.total, low, high, text, detail=op.failure or detail))
    notes = [f"{len(result.ops) - MOST_BARS} more kinds of ops"] if len(result.ops) > MOST_BARS else []
    return {"title": result.table().title, "bars": bars, "notes": [*notes, *result._below()]}


def _compared(result: Any) -> dict[str, Any] | None:
    if result is None:
        return None
    if hasattr(result, "points"):
        parts = [(f"{result.name} = {value:g}: ", one) for value, one in result.points]
    else:
        parts = [("", result)]
    bars, notes = [], []
    for prefix, one in parts:
        for side in one.sides:
            if side.failure:
                bars.append(_bar(f"{prefix}{side.label}", math.nan, 0, 0, "failed", detail=side.failure))
                continue
            steady, ratio = side.steady, side.ratio
            first = side is one.reference
            words = "reference" if first else f"{ratio.value:.3g}x, {one.verdict(side)}" if ratio else ""
            detail = "results differ beyond rounding" if side.differing else ""
            text = ", ".join(part for part in (shown(steady), words) if part)
            bars.append(_bar(f"{prefix}{side.label}", steady.value, steady.low, steady.high, text, detail=detail))
        notes += one._below()
    return {"title": result.table().title, "bars": bars, "notes": list(dict.fromkeys(notes))}


def _watched(result: Any) -> dict[str, Any] | None:
    """The report of the engine's own profiler."""
    if result is None:
        return None
    bars = [
        _bar(row.name, row.seconds, row.seconds, row.seconds, f"{result.share(row):.0%}", detail=row.source)
        for row in result.rows[:MOST_BARS]
    ]
    return {"title": result.table().title, "bars": bars, "notes": result.table().below.splitlines()}


def _op_by_op(result: Any) -> dict[str, Any] | None:
    """The ops that take longest, each on every engine."""
    if result is None:
        return None
    bars = []
    for ops in result.ops[: max(1, MOST_BARS // len(result.labels))]:
        for i, (name, op) in enumerate(zip(result.labels, ops)):
            times = f"{op.count}x " if op.count > 1 else ""
            detail = op.failure or ("" if i else f"{times}{op.dtype}{list(op.shape)}, {op.part}, {op.source}")
            text = "failed" if op.failure else shown(op.steady)
            steady = math.nan if op.failure else op.steady.value
            bars.append(_bar(f"{op.op}: {name}", steady, op.steady.low, op.steady.high, text, detail=detail))
    return {"title": result.label, "bars": bars, "notes": result.table().below.splitlines()}


def _by_layer(result: Any) -> dict[str, Any] | None:
    """The layers of a model, or name scopes, each on every engine."""
    if result is None:
        return None
    most = max(1, MOST_BARS // len(result.labels))
    bars = []
    for layer in sorted(result.layers, key=lambda layer: -layer.total())[:most]:
        for i, name in enumerate(result.labels):
            seconds = layer.total(i)
            label = f"{layer.name or 'outside'}: {name}" if len(result.labels) > 1 else layer.name or "outside"
            parts = ", ".join(f"{part} {duration(time)}" for part, time in layer.seconds[i].items() if time)
            bars.append(_bar(label, seconds, seconds, seconds, duration(seconds), detail=parts))
    more = len(result.layers) - most
    notes = [f"{more} more"] if more > 0 else []
    return {"title": result.table().title, "bars": bars, "notes": [*notes, *result.table().below.splitlines()]}


def native(views: Any) -> dict[str, Any]:
    """Each engine's compiled form of a graph: `kernelk.show`'s result."""
    columns = []
    for view in views.views:
        ops = "" if view.failure else f"{view.ops} op{'' if view.ops == 1 else 's'}"
        what = ", ".join(part for part in (view.version, view.kind, ops) if part)
        text = view.text
        if len(text) > MOST_TEXT:
            text = f'{text[:MOST_TEXT]}\n... all of it: print(kernelk.show(...).text("{view.engine}"))'
        columns.append({"engine": view.engine, "title": view.title, "what": what, "text": text, "error": view.failure})
    return {"columns": columns, "note": "; ".join([views.summary, *views.notes]), "error": ""}


def refusal(error: Exception) -> dict[str, Any]:
    """An error as the panel's own message, with its reasons one by one if it has several."""
    reasons: list[str] = []
    if isinstance(error, (SwapRefusedError, LoadRefusedError)):
        reasons, text = error.reasons, error.problem
    elif isinstance(error, KernelKError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {one_line(error)[:500]}"
    return {"kind": "notice", "level": "error", "text": text, "reasons": reasons}
