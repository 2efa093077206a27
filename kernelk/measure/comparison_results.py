"""The results of `comparison`: tables, data frames, JSON and pictures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..display.tables import Rendered, Table, duration
from ..errors import joined
from ..twins import in_ipython
from .by_layer import LayerTimes
from .estimates import CONFIDENCE, Estimate, median, paired_ratio, unsteadiness, verdict
from .profiling import SHOWN_ROWS, OpTime
from .results import Result, new_axes, unit_of
from .timing import CallTime, Conditions, shown


@dataclass
class Side:
    """One engine's, or one body's, side: its times, and how far its results are from the reference's.

    `rounds`: the seconds of all the body's calls in each round. `ratio`: to the reference, in pairs of one round.
    `absolute`, `relative`: the largest differences of an element, the latter relative to it and its tensor's mean size
    together; `differing` elements lie beyond the tolerance for the dtype.
    `pays_after`: the calls after which its longer build is worth it (None: never, or there is nothing to pay).
    `failure`: why there are no times, in one line.
    """

    label: str
    conditions: Conditions | None = None
    calls: list[CallTime] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)
    ratio: Estimate | None = None
    absolute: float = 0.0
    relative: float = 0.0
    differing: int = 0
    nans: int = 0
    pays_after: int | None = None
    failure: str = ""

    @property
    def steady(self) -> Estimate:
        """The median over the rounds, with its interval."""
        return median(self.rounds)

    @property
    def built(self) -> float:
        """Seconds until its first results: to build, and the first runs."""
        return sum(call.compile_seconds + call.first_seconds for call in self.calls)


def _shown(op: OpTime) -> str:
    """An op's time, and the part of it on the device where that is told."""
    return shown(op.steady) + ("" if op.device is None else f", {duration(op.device)} on the device")


@dataclass(repr=False)
class OpsResult(Result, Rendered):
    """Each op of a call, timed separately on each engine: `labels` names the engines, `ops` has a row for each op.

    `comparable`: all engines compute in the same precision. `by_layer`: the same times by a model's layers.
    """

    labels: list[str]
    label: str
    ops: list[list[OpTime]]
    comparable: bool = True
    by_layer: LayerTimes | None = None

    def also(self) -> LayerTimes | None:
        """By layer."""
        return self.by_layer

    def table(self) -> Table:
        """A row for each kind of op, a column for each engine; first the ops that take some engine longest."""
        header = ["op", "written in", "part", "shape", "times", *self.labels]
        rows = []
        for ops in self.ops[:SHOWN_ROWS]:
            first, least = ops[0], min((op.steady.value for op in ops if not op.failure), default=math.nan)
            least = least if self.comparable else math.nan
            cells = [
                "failed" if op.failure else f"{_shown(op)}{' *' if op.steady.value == least else ''}" for op in ops
            ]
            rows.append([first.op, first.location, first.part, str(first.shape), str(first.count), *cells])
        below = ["each op on its own, unfused, on the same operands; these aren't parts of the times above"]
        below[0] += " (* fastest)" if self.comparable else ""
        if len(self.ops) > SHOWN_ROWS:
            below.append(f"{len(self.ops)} kinds of ops, {SHOWN_ROWS} shown (.ops has all)")
        failures = [(name, op) for ops in self.ops for name, op in zip(self.labels, ops) if op.failure]
        below += [f"{name}: {op.op} could not be timed: {op.failure}" for name, op in failures[:3]]
        return Table(rows, header, title=f"{self.label}, op by op", below="\n".join(below))

    def records(self) -> list[dict[str, Any]]:
        """One dict for each op and engine."""
        return [
            {
                "side": name,
                **{key: getattr(op, key) for key in ("op", "name", "source", "part", "shape", "dtype", "count")},
                "steady": op.steady.value,
                "low": op.steady.low,
                "high": op.steady.high,
                "device": op.device,
                "failure": op.failure,
            }
            for ops in self.ops
            for name, op in zip(self.labels, ops)
        ]

    def raw(self) -> dict[str, Any]:
        """All measurements."""
        return asdict(self)

    def bars(self) -> tuple[list[str], list[Estimate]]:
        """The bars of `plot`: the first five ops, each on every engine."""
        bars = [
            (f"{op.op} {name}", op.steady)
            for ops in self.ops[:5]
            for name, op in zip(self.labels, ops)
            if not op.failure
        ]
        return [label for label, _ in bars], [estimate for _, estimate in bars]


@dataclass(repr=False)
class CompareResult(Result, Rendered):
    """The result of a comparison: a side for each engine or body; the first that works is the reference.

    `python_seconds`: the body's time outside its calls, once, on the active engine. `same_engine`: the sides are
    bodies. `per_op`: each op timed separately, if that was requested. `machine`: the one that all sides were sent to,
    "" where the kernel has measured them itself.
    """

    sides: list[Side]
    python_seconds: float
    budget: float
    same_engine: bool = False
    notes: list[str] = field(default_factory=list)
    per_op: OpsResult | None = None
    machine: str = ""

    def also(self) -> OpsResult | None:
        """Op by op."""
        return self.per_op

    @property
    def reference(self) -> Side | None:
        """The side that the others are compared with; None if none works."""
        return next((side for side in self.sides if not side.failure), None)

    def side(self, label: str) -> Side:
        """The side of this engine or body. Raises KeyError."""
        return {side.label: side for side in self.sides}[label]

    def precisions(self) -> list[tuple[str, str]]:
        """The label and the precision of each side that works, where its engine says which it is."""
        working = [(side.label, side.conditions) for side in self.sides if not side.failure]
        return [(label, known.precision) for label, known in working if known is not None and known.precision]

    @property
    def comparable(self) -> bool:
        """Whether all sides compute in the same precision: else a verdict would be one on different computations."""
        return len({precision for _, precision in self.precisions()}) < 2

    def verdict(self, side: Side) -> str:
        """The verdict on a side against the reference; "" for the reference itself, and where there is no ratio."""
        if side is self.reference or side.ratio is None:
            return ""
        return verdict(side.ratio) if self.comparable else "none: precision differs"

    @property
    def equal(self) -> bool:
        """Whether all results agree within the tolerance of their dtypes."""
        return not any(side.differing for side in self.sides)

    def table(self) -> Table:
        """A row for each side, and notes on the figures."""
        reference = self.reference
        what = "body" if self.same_engine else "engine"
        header = [what, "steady", "ratio", "verdict", "compile", "first run", "pays after", "abs", "rel", "threads"]
        rows = [self._cells(side, reference) for side in self.sides]
        times = [side.steady.value if not side.failure else math.inf for side in self.sides]
        strong = times.index(min(times)) if self.comparable and any(time < math.inf for time in times) else None
        return Table(rows, header, title=self._title(), below="\n".join(self._below()), strong=strong)

    def _cells(self, side: Side, reference: Side | None) -> list[str]:
        if side.failure:
            return [side.label, "failed", *[""] * 8]
        assert side.ratio is not None
        first, threads = side is reference, side.conditions.threads if side.conditions else None
        low, high = side.ratio.low, side.ratio.high
        return [
            side.label,
            shown(side.steady),
            "1" if first else f"{side.ratio.value:.3g} [{low:.3g}, {'?' if math.isinf(high) else f'{high:.3g}'}]",
            self.verdict(side) or "reference",
            duration(sum(call.compile_seconds for call in side.calls)),
            duration(sum(call.first_seconds for call in side.calls)),
            "" if side.pays_after is None else f"{side.pays_after} run{'' if side.pays_after == 1 else 's'}",
            "" if first else f"{side.absolute:.3g}",
            "" if first else f"{side.relative:.3g}",
            str(threads or "unknown"),
        ]

    def _title(self) -> str:
        working = [side for side in self.sides if not side.failure]
        if not working:
            return "nothing could be timed"
        best = min(working, key=lambda side: side.steady.value)
        others = [side for side in working if side is not best]
        if not others:
            return f"{best.label}: {shown(best.steady)}"
        if not self.comparable:
            return "no verdict: precision differs"
        second = min(others, key=lambda side: side.steady.value)
        ratio = paired_ratio(second.rounds, best.rounds)
        if verdict(ratio) != "slower":
            return f"{best.label} and {second.label}: {verdict(ratio)}"
        return f"{best.label} is the fastest, {second.label} takes {ratio.value:.3g}x as long"

    def _below(self) -> list[str]:
        lines = [f"{side.label}: {side.failure}" for side in self.sides if side.failure]
        for side in self.sides:
            if side.differing:
                reference = self.reference
                assert reference is not None
                lines.append(f"{side.label}: {side.differing} elements differ from {reference.label}'s beyond rounding")
                if not self.same_engine:
                    lines[-1] = joined(lines[-1], next_step=_diff_command(reference.label, side.label))
            remark = unsteadiness(side.rounds) if not side.failure else ""
            if remark:
                lines.append(f"{side.label}: unsteady ({remark})")
        if any(side.nans for side in self.sides):
            lines.append("NaN in the results: " + ", ".join(side.label for side in self.sides if side.nans))
        lines += self.notes
        working = [side for side in self.sides if not side.failure]
        if working:
            calls = working[0].calls
            inputs = sorted({text for call in calls for text in call.inputs})
            count = sum(call.count for call in calls)
            lines.append(
                f"one run is the body's {count} call{'s' if count > 1 else ''} of {', '.join(inputs) or 'no inputs'}; "
                f"{len(working[0].rounds)} rounds in random order, {CONFIDENCE:.0%} intervals, ratios within rounds"
            )
            if not self.same_engine:
                lines.append("all engines run the same graph, with the same dtypes, layout, values and random draws")
        if self.python_seconds > 1e-3:
            lines.append(f"Python outside the calls: {duration(self.python_seconds)}, not included in any time")
        seen = dict.fromkeys(side.conditions.words() for side in self.sides if side.conditions is not None)
        return [*lines, *seen]

    def records(self) -> list[dict[str, Any]]:
        """One dict per side: the rows of `to_frame`."""
        rows = []
        for side in self.sides:
            row: dict[str, Any] = {"side": side.label, "failure": side.failure}
            if not side.failure and side.ratio is not None:
                row.update(
                    steady=side.steady.value,
                    low=side.steady.low,
                    high=side.steady.high,
                    ratio=side.ratio.value,
                    ratio_low=side.ratio.low,
                    ratio_high=side.ratio.high,
                    compile=sum(call.compile_seconds for call in side.calls),
                    first=sum(call.first_seconds for call in side.calls),
                    absolute=side.absolute,
                    relative=side.relative,
                    differing=side.differing,
                    precision=side.conditions.precision if side.conditions is not None else "",
                    version=side.conditions.version if side.conditions is not None else "",
                    machine=side.conditions.machine if side.conditions is not None else "",
                )
            rows.append(row)
        return rows

    def raw(self) -> dict[str, Any]:
        """All measurements, samples included."""
        return asdict(self)

    def bars(self) -> tuple[list[str], list[Estimate]]:
        """The bars of `plot`: each side's median."""
        working = [side for side in self.sides if not side.failure]
        return [side.label for side in working], [side.steady for side in working]


def _diff_command(reference: str, other: str) -> str:
    """The command that finds the first op on which two engines differ; scripts and shells have no magics."""
    if in_ipython():
        return f"%kdiff y {reference} {other}"
    return f"add print(kernelk.diff(y, {reference!r}, {other!r})) to the script"


def differences(known: Sequence[tuple[str, Conditions]]) -> list[str]:
    """Lines on what differs between the conditions of these labels and makes their times differ by itself."""
    lines = []
    where = [one.machine if one.elsewhere else "this one" for _, one in known]
    if len(set(where)) > 1:
        listed = "; ".join(f"{label} on {machine}, {one.processor}" for machine, (label, one) in zip(where, known))
        lines.append(f"machines differ ({listed})")
    versions: dict[str, dict[str, list[str]]] = {}
    for label, one in known:
        versions.setdefault(label.partition("@")[0], {}).setdefault(one.version, []).append(label)
    for engine, found in versions.items():
        if len(found) > 1:
            listed = ", ".join(f"{', '.join(labels)} {version}" for version, labels in found.items())
            lines.append(f"versions of {engine} differ ({listed})")
    return lines


@dataclass(repr=False)
class SweepResult(Result, Rendered):
    """A comparison for each value of a name: `points` are (value, its comparison)."""

    name: str
    points: list[tuple[float, CompareResult]]
    notes: list[str] = field(default_factory=list)

    @property
    def machines(self) -> list[str]:
        """The machines that the points were sent to; none where the kernel has measured them itself."""
        return list(dict.fromkeys(result.machine for _, result in self.points if result.machine))

    def table(self) -> Table:
        """A row for each value, a column for each side."""
        labels = [side.label for side in self.points[0][1].sides]
        several = len(self.machines) > 1
        rows = []
        for value, result in self.points:
            cells = [shown(side.steady) if not side.failure else "failed" for side in result.sides]
            remarks = ["" if result.comparable else "precision differs", "" if result.equal else "results differ"]
            where = [result.machine] if several else []
            rows.append([f"{value:g}", *cells, *where, ", ".join(remark for remark in remarks if remark)])
        header = [self.name, *labels, *(["machine"] if several else []), ""]
        return Table(rows, header, title=f"time against {self.name}", below="\n".join(self._below()))

    def _below(self) -> list[str]:
        return [*self._failures(), *self.notes, *self._conditions()]

    def _failures(self) -> list[str]:
        """A line for each failure: with the values where all sides of them have it, else with the sides."""
        whole: dict[str, list[str]] = {}
        sides: dict[str, None] = {}
        for value, result in self.points:
            failures = {side.failure for side in result.sides}
            if len(failures) == 1 and len(result.sides) > 1 and "" not in failures:
                whole.setdefault(failures.pop(), []).append(f"{value:g}")
            else:
                sides.update((f"{side.label}: {side.failure}", None) for side in result.sides if side.failure)
        return [*(f"{self.name}={', '.join(values)}: {words}" for words, values in whole.items()), *sides]

    def _conditions(self) -> list[str]:
        """What the rows' times were measured under, where it differs from row to row or from side to side."""
        sides = [side for _, result in self.points for side in result.sides]
        known = [(side.label, side.conditions) for side in sides if side.conditions is not None]
        if len(self.machines) < 2:
            return differences(list(dict(known).items()))
        machines: dict[Conditions, dict[str, None]] = {}
        for _, conditions in known:
            machines.setdefault(replace(conditions, machine=""), {})[conditions.machine] = None
        return [
            "rows are from different machines: ratios hold within a row",
            *(replace(conditions, machine=", ".join(sorted(names))).words() for conditions, names in machines.items()),
        ]

    def records(self) -> list[dict[str, Any]]:
        """One dict for each value and side."""
        return [
            {self.name: value, **({"machine": result.machine} if result.machine else {}), **row}
            for value, result in self.points
            for row in result.records()
        ]

    def raw(self) -> dict[str, Any]:
        """All measurements, samples included."""
        points = [[value, result.raw()] for value, result in self.points]
        return {"name": self.name, "points": points, "notes": self.notes}

    def plot(self, ax: Any = None) -> Any:
        """Time against the value on logarithmic axes, a line for each side with its band; the Matplotlib Axes."""
        ax = ax if ax is not None else new_axes(6)
        points: dict[str, list[tuple[float, Estimate]]] = {}
        for value, result in self.points:
            for side in result.sides:
                if not side.failure:
                    points.setdefault(side.label, []).append((value, side.steady))
        scale, unit = unit_of([estimate.value for line in points.values() for _, estimate in line])
        for (label, line), marker in zip(points.items(), itertools.cycle("os^Dv*")):
            values = [value for value, _ in line]
            drawn = ax.plot(values, [e.value / scale for _, e in line], marker=marker, label=label, linewidth=2)
            low, high = [e.low / scale for _, e in line], [min(e.high, 2 * e.value) / scale for _, e in line]
            ax.fill_between(values, low, high, color=drawn[0].get_color(), alpha=0.2)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xlabel(self.name)
        ax.set_ylabel(f"time of one run [{unit}]")
        ax.legend(fontsize=14)
        return ax
