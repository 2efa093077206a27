"""Asks the engine's own profiler about a call as it really runs, fused, for `%kprofile --engine`."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from ..display.tables import Rendered, Table, duration
from ..engines.host import Host
from ..errors import ArgumentError
from ..session.session import Session
from ..twins import option
from .estimates import Estimate
from .recording import Call
from .results import Result
from .timing import Timed, ready

# Rows, and letters of a name, that a table shows; the result has all.
SHOWN_ROWS = 20
SHOWN_LETTERS = 60
# Runs with and without the profiler take turns so often.
ROUNDS = 3
MOST_RUNS = 300
# What a profiler may have to hold at a time: so many events, of this many for each instruction of the program.
MOST_EVENTS = 300_000
EVENTS = 5


@dataclass
class EngineRow:
    """One row of an engine's profile, by the engine's own name for it.

    `calls` in a run, and `seconds` of all of them in a run, without what they called. `source`: your line,
    at `location`, where the profile tells which op it belongs to; of several fused ones it is one of them.
    """

    name: str
    calls: float
    seconds: float
    source: str = ""
    location: str = ""


@dataclass(repr=False)
class EngineProfile(Result, Rendered):
    """The report of the engine's own `profiler` on `runs` runs of a call: `rows`, the longest first.

    `seconds`: of one run under the profiler; `plain`: of one without it. `remark`: what the profiler leaves out.
    """

    profiler: str
    engine: str
    rows: list[EngineRow]
    runs: int
    seconds: float
    plain: float
    remark: str = ""

    @property
    def slowdown(self) -> float:
        """The time of a run under the profiler, in runs without it."""
        return self.seconds / self.plain

    @property
    def listed_seconds(self) -> float:
        """The seconds of a run that the rows account for; more than the run's where several ran at once."""
        return sum(row.seconds for row in self.rows)

    def share(self, row: EngineRow) -> float:
        """A row's part of what all rows took."""
        return row.seconds / self.listed_seconds if self.listed_seconds else 0.0

    def table(self) -> Table:
        """A row for each thing that ran."""
        lines = any(row.source for row in self.rows)
        header = ["what ran", *(["written in"] if lines else []), "calls per run", "time per run", "share"]
        rows = [
            [
                _short(row.name),
                *([row.location] if lines else []),
                f"{row.calls:g}",
                _brief(row.seconds),
                f"{self.share(row):.0%}",
            ]
            for row in self.rows[:SHOWN_ROWS]
        ]
        title = (
            f"{self.profiler}, for the call as {self.engine} runs it: {duration(self.seconds)} per run with the "
            f"profiler, {self.slowdown:.2f}x the {duration(self.plain)} without it"
        )
        return Table(rows, header, title=title, below="\n".join(self._below()))

    def _below(self) -> list[str]:
        if not self.rows:
            return ["the profiler recorded nothing: the engine computes none of this itself"]
        listed = duration(self.listed_seconds)
        if self.listed_seconds > self.seconds:
            lines = [f"the rows add up to {listed} per run, over {self.runs} runs: some run at once"]
        else:
            lines = [f"the rows add up to {listed} per run, over {self.runs} runs; the rest is time between them"]
        if len(self.rows) > SHOWN_ROWS:
            lines.append(f"{len(self.rows)} rows, {SHOWN_ROWS} shown (.rows has all)")
        return [*lines, self.remark] if self.remark else lines

    def records(self) -> list[dict[str, Any]]:
        """One dict for each row of `to_frame`."""
        return [{**asdict(row), "share": self.share(row)} for row in self.rows]

    def raw(self) -> dict[str, Any]:
        """The whole profile."""
        return asdict(self)

    def bars(self) -> tuple[list[str], list[Estimate]]:
        """The bars of `plot`: the ten rows that take most."""
        most = self.rows[:10]
        return [_short(row.name) for row in most], [Estimate(row.seconds, row.seconds, row.seconds) for row in most]


def _short(name: str) -> str:
    return name if len(name) <= SHOWN_LETTERS else name[: SHOWN_LETTERS - 3] + "..."


def _brief(seconds: float) -> str:
    """A time that may be far below a microsecond."""
    return f"{seconds * 1e6:.3g} us" if seconds < 1e-5 else duration(seconds)


def check_profiler(host: Host) -> None:
    """Raises ArgumentError for a started engine without a profiler of its own."""
    if not host.profiler:
        raise ArgumentError(
            f"{host.engine.title} has no profiler of its own for single ops",
            next_step=f"run it without {option('engine')}",
        )


def engine_profile(session: Session, host: Host, call: Call, budget: float) -> EngineProfile:
    """Runs one kind of call under the engine's own profiler. `budget`: seconds to run for, not counting compilation.

    The call is compiled again for it, and nothing in the session changes. Raises EngineError.
    """
    program = call.program(session, host.ops)
    specialisation = program.specialise(tuple(feed.shape for feed in call.feeds), host.specialises)
    with ready(session, host, call, profiled=True) as timed:
        assert host.profiler is not None
        rows, runs, under, plain = _in_turns(timed, budget, len(program.instructions), host.profiler["sees"])

    def written_in(instruction: int | None) -> tuple[str, str]:
        node = None if instruction is None else specialisation.blamed(program, [instruction])
        return ("", "") if node is None else (str(node.source), node.source.location)

    engine_rows = [
        EngineRow(name, calls / runs, seconds / runs, *written_in(instruction))
        for (name, instruction, _), (calls, seconds) in rows.items()
    ]
    engine_rows.sort(key=lambda row: -row.seconds)
    return EngineProfile(
        host.profiler["label"], host.engine.name, engine_rows, runs, under, plain, host.profiler["remark"]
    )


def _in_turns(
    timed: Timed, budget: float, instructions: int, sees: int
) -> tuple[dict[Any, list[float]], int, float, float]:
    """({(name, instruction, key): [calls, seconds]}, runs, the seconds of one under the profiler and of one without)"""
    if not sees:
        timed.warm_up(budget / 4)
    # The first time a profiler starts, it may take a second to load.
    one = min(timed.watch(1)[1] for _ in range(2))
    most = min(MOST_EVENTS // (ROUNDS * EVENTS * max(1, instructions)), (sees or MOST_RUNS) // ROUNDS)
    runs = max(1, min(most, int(budget / 4 / ROUNDS / one)))
    rows: dict[Any, list[float]] = {}
    under, plain = [], []
    for _ in range(ROUNDS):
        seen, seconds = timed.watch(runs)
        under.append(seconds)
        if not sees:
            plain += timed.sample(before=runs)
        for row in seen:
            total = rows.setdefault((row["name"], row["instruction"], row["key"]), [0, 0.0])
            total[0] += row["calls"]
            total[1] += row["seconds"]
    if sees:
        timed.warm_up(budget / 4)
        plain = timed.sample(ROUNDS)
    return rows, ROUNDS * runs, statistics.median(under), statistics.median(plain)
