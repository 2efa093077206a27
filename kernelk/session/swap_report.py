"""Reports of a swap or a stop, for the notebook."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..display.tables import Rendered, Table, duration, size


@dataclass
class Reevaluated:
    """One tensor that the user had seen, evaluated again: the largest absolute difference from before.

    `key`: the tensor's uid, by which `inventory` knows it.
    """

    key: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    difference: float


@dataclass(repr=False)
class SwapReport(Rendered):
    """The report of a swap. `variables` were moved bit for bit; `started`: the engine wasn't running before.

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
        """The largest difference over all re-evaluated tensors; None if there was none."""
        return max((entry.difference for entry in self.reevaluated), default=None)

    @property
    def total_seconds(self) -> float:
        """The time of all phases together."""
        return sum(self.seconds.values())

    def table(self) -> Table:
        """Pairs of a heading and figures; a single line if there was nothing to do."""
        if self.origin == self.target and not (self.started or self.restarted or self.loaded):
            mode = str(self.facts.get("mode", ""))
            below = "\n".join(line for line in (mode, self.saved) if line)
            return Table([], title=f"{self.target} is already active", below=below)
        engine = " ".join(
            str(self.facts[name]) for name in ("version", "interpreter", "device", "mode") if self.facts.get(name)
        )
        if self.facts.get("machine"):
            engine += f" on {self.facts['machine']}"
        moved = f"{self.variables} ({size(self.bytes)}), bit for bit"
        if self.loaded != self.variables:
            moved += f"; {self.loaded} of them ({size(self.loaded_bytes)}) had changed and were loaded"
        rows = [
            ["engine", f"{self.target} {engine}"],
            *([["threads", str(self.facts["threads"])]] if self.facts.get("threads") else []),
            *([["precision", str(self.facts["precision"])]] if self.options.get("precision") else []),
            ["variables", moved],
            ["functions", f"{self.functions}, {self.to_lower} to be compiled at their next call"],
        ]
        if self.reevaluated:
            gap = self.largest_difference
            rows.append(["re-evaluated", f"{len(self.reevaluated)} displayed tensors, largest difference {gap:.3g}"])
        if self.not_reevaluated:
            rows.append(["not re-evaluated", f"{self.not_reevaluated} displayed tensors (time limit)"])
        phases = ", ".join(f"{name} {duration(seconds)}" for name, seconds in self.seconds.items())
        rows.append(["time", f"{duration(self.total_seconds)} ({phases})"])
        title = f"{self.origin} -> {self.target}"
        if self.origin == self.target:
            title = f"{self.target} restarted" if self.restarted else f"{self.target} started"
            if not self.started:
                title = f"{self.target} is already active"
        return Table(rows, title=title, below=self.saved)


@dataclass(repr=False)
class StopReport(Rendered):
    """The report of a stop: `pid` is None if it wasn't running, `bytes` if its memory isn't known."""

    name: str
    title: str
    pid: int | None = None
    bytes: int | None = None
    placement: str = "worker"
    active: bool = False
    machine: str = ""

    def table(self) -> Table:
        """The report in one line."""
        if self.pid is None:
            return Table([], title=f"{self.name} isn't running")
        if self.placement == "kernel":
            words = f"{self.name} stopped: its compiled programs and values were released"
            if self.name != "numpy":
                words += (
                    f"; {self.title} itself stays imported in the notebook's process, with its threads and what it has "
                    "reserved, until the kernel is restarted"
                )
        else:
            gone = f", {size(self.bytes)} freed" if self.bytes else ""
            where = f" on {self.machine}" if self.machine else ""
            words = f"{self.name} stopped: process {self.pid}{where} ended{gone}"
        if self.active:
            words += "; it is still the active engine: the next call starts it again, with all variables"
        return Table([], title=words)


@dataclass(repr=False)
class StopReports(Rendered):
    """The reports of several stops, in the order in which the engines were named."""

    reports: list[StopReport]

    def table(self) -> Table:
        """A line for each."""
        return Table([], below="\n".join(report.table().title for report in self.reports))
