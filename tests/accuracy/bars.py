"""How many ulps a result may be off: the bars, and the excesses over them that are known, each with its reason."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from .measure import Measured

# engine, function, dtype, part (patterns as for file names), ulps. The first row that fits counts.
BARS: list[tuple[str, str, str, str, float]] = [
    # numpy is the definition. Correctly rounded is half an ulp off at most.
    ("numpy", "`K.*crossentropy*", "*", "value", 4.0),
    ("numpy", "`K.sigmoid`*", "float64", "value", 2.4),
    ("numpy", "*elementwise*", "float64", "value", 2.0),
    ("numpy", "*elementwise*", "float16", "value", 0.5),
    ("numpy", "*", "*", "value", 4.0),
    ("*", "*", "*", "value", 4.0),
    ("*", "*", "*", "gradient", 5.0),
]

# Engines that flush subnormal results to zero, whose errors are measured in units of the least normal number.
FLUSHING = frozenset({"jax", "tensorflow"})

EXCESSES = Path(__file__).with_name("excesses.toml")


@dataclass(frozen=True)
class Excess:
    """Errors above the bar that are known. All but the last two are patterns; `ulps` may be infinite."""

    engine: str
    function: str
    dtype: str
    part: str
    ulps: float
    reason: str

    def covers(self, one: Measured) -> bool:
        """Whether it speaks of this."""
        pairs = ((one.engine, self.engine), (_plain(one.title), self.function), (one.dtype, self.dtype))
        return all(fnmatchcase(value, pattern) for value, pattern in [*pairs, (one.part, self.part)])


def _plain(title: str) -> str:
    return title.replace("`", "")


def load(file: Path = EXCESSES) -> list[Excess]:
    """The known excesses."""
    defaults = {"engine": "*", "dtype": "*", "part": "*"}
    return [
        Excess(**{**defaults, **entry}) for entry in tomllib.loads(file.read_text(encoding="utf-8")).get("excess", [])
    ]


def bar(one: Measured, elementwise: bool, native: float | None = None) -> float:
    """How many ulps it may be off: the bar, or what the engine's own function is off itself."""
    title = f"{one.title} elementwise" if elementwise else one.title
    values = (one.engine, title, one.dtype, one.part)
    found = next(row[-1] for row in BARS if all(fnmatchcase(v, p) for v, p in zip(values, row)))
    return max(found, native or 0.0)


def failures(
    results: Iterable[Measured],
    elementwise: Iterable[str],
    natives: dict[tuple[str, str, str], Measured],
    excesses: Sequence[Excess],
) -> list[str]:
    """A line for each result over its bar that no excess covers."""
    return [f"{one}; the bar is {most:g}" for one, most in over(results, elementwise, natives, excesses)]


def over(
    results: Iterable[Measured],
    elementwise: Iterable[str],
    natives: dict[tuple[str, str, str], Measured],
    excesses: Sequence[Excess],
) -> list[tuple[Measured, float]]:
    """The results over their bars that no excess covers, each with what it may be off by."""
    titles, found = set(elementwise), []
    for one in results:
        native = natives.get((one.engine, one.title, one.dtype))
        most = bar(one, one.title in titles, native.worst if native and one.part == "value" else None)
        most = max([most, *[excess.ulps for excess in excesses if excess.covers(one)]])
        if not one.worst <= most:
            found.append((one, most))
    return found


def proposed(over: Iterable[Measured]) -> str:
    """Entries of the file of excesses for these results, without their reasons."""
    rows: dict[tuple[str, str, str], list[Measured]] = {}
    for one in over:
        rows.setdefault((one.engine, _plain(one.title), one.part), []).append(one)
    entries = []
    for (engine, title, part), found in sorted(rows.items(), key=lambda row: (row[0][1], row[0][2], row[0][0])):
        dtype = found[0].dtype if len(found) == 1 else "*"
        worst = max(one.worst for one in found) * 1.25
        fields = {"engine": engine, "function": title, "dtype": dtype, "part": part}
        lines = [f'{name} = "{value}"' for name, value in fields.items()]
        entries.append("\n".join(["[[excess]]", *lines, f"ulps = {worst:.2g}".replace("e+0", "e"), 'reason = ""']))
    return "\n\n".join(entries)


def needless(results: Sequence[Measured], elementwise: Iterable[str], excesses: Sequence[Excess]) -> list[str]:
    """A line for each excess without which nothing would fail, or of which there is far less."""
    titles, found = set(elementwise), []
    for excess in excesses:
        covered = [one for one in results if excess.covers(one)]
        # The sample in `make test` measures no engine's own functions.
        needed = [one for one, _ in over(covered, titles, {}, [])]
        if covered and not needed:
            found.append(f"{excess.function} on {excess.engine} is no longer over its bar: take the excess out")
        elif needed and max(one.worst for one in needed) < excess.ulps / 2 < math.inf:
            worst = max(needed, key=lambda one: one.worst)
            found.append(f"the excess of {excess.ulps:g} is too large: {worst}")
    return found
