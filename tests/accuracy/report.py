"""docs/accuracy.md: how far off each function is on each engine, beside the engine's own, and the known excesses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from helpers.engines import ENGINES
from parity.case import FLOATS

from kernelk.engines import registry

from . import suite
from .bars import BARS, FLUSHING, Excess
from .measure import Measured

PAGE = Path(__file__).parents[2] / "docs" / "accuracy.md"
Natives = dict[tuple[str, str, str], Measured]

HEAD = """# Accuracy

Written by `make accuracy`. It compares the functions of floats and their first gradients with mpmath, in units in the
last place (ulps) of the dtype, and writes this page when no error is above its bar. A correctly rounded result is off
by half an ulp at most.

- A cell shows the worst error and, in brackets, the typical one: the median of those results that are off by a
  hundredth of an ulp or more. Below it stands the worst error of the engine's own function, if it has one.
- The truth is the documented formula, with its constants as the dtype holds them. `epsilon` keeps probabilities from 0
  and 1, and from 1 by what the dtype can tell from it.
- The operands of elementwise functions are spread evenly over the exponents of the dtype, with its edges and the
  neighbours of kinks; of `float16` they are all 65,536 numbers.
- Sums, products of matrices, convolutions, losses and normalisation are measured in ulps of the sum of their terms'
  magnitudes: where terms cancel, the result's own ulps mean nothing. For the same reason the unit of a row of their
  gradients is the ulp of the largest.
- An infinity that stands for a number beyond the largest counts as the power of two that follows that.
"""


def number(ulps: float) -> str:
    """An error as a cell shows it."""
    if math.isinf(ulps):
        return "wrong"
    if ulps and ulps < 0.005:
        return "<0.01"
    return f"{ulps:.2f}" if ulps < 10 else f"{ulps:,.0f}" if ulps < 1e5 else f"{ulps:.0e}"


def page(
    engines: Sequence[str], results: Sequence[Measured], natives: Natives, excesses: Sequence[Excess], versions: str
) -> str:
    """The whole page."""
    lines = [HEAD, versions, ""]
    if FLUSHING:
        lines += [f"{', '.join(sorted(FLUSHING))}: subnormal results count in units of the least normal number.", ""]
    found = {(one.engine, one.title, one.dtype, one.part): one for one in results}
    titles = list(dict.fromkeys(one.title for one in results))
    names = [registry.engine(engine).title for engine in engines]
    for part in ("value", "gradient"):
        for dtype in reversed(FLOATS):
            lines += [f"## {'Values' if part == 'value' else 'Gradients'} in {dtype}", ""]
            lines += [f"| function | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
            for title in titles:
                cells = [_cell(found.get((engine, title, dtype, part)), natives) for engine in engines]
                if any(cells):
                    lines.append(f"| {title} | {' | '.join(cells)} |")
            lines.append("")
    lines += ["## Bars", "", "The first row that fits counts; an engine's own function may be off by more.", ""]
    lines += ["| engine | function | dtype | of | ulps |", "|---|---|---|---|---|"]
    lines += [
        "| " + " | ".join("any" if cell == "*" else _readable(cell) for cell in row[:-1]) + f" | {row[-1]:g} |"
        for row in BARS
    ]
    lines += ["", "## Known excesses", ""]
    lines += [_excess(excess) for excess in excesses] or ["None."]
    lines += ["", "## Functions without a row", "", "| name | why |", "|---|---|"]
    lines += [f"| `K.{name}` | {reason} |" for name, reason in sorted(suite.WITHOUT.items())]
    return "\n".join(lines) + "\n"


def _readable(pattern: str) -> str:
    words = {
        "*elementwise*": "elementwise functions",
        "`K.*crossentropy*": "crossentropies",
        "`K.sigmoid`*": "`K.sigmoid`",
    }
    return words.get(pattern, pattern)


def _excess(excess: Excess) -> str:
    covered = [registry.engine(name).title for name in ENGINES if fnmatchcase(name, excess.engine)]
    where = ["all engines" if len(covered) == len(ENGINES) else ", ".join(covered)]
    where += [pattern for pattern in (excess.dtype, excess.part) if pattern != "*"]
    size = "wrong" if math.isinf(excess.ulps) else f"up to {excess.ulps:g} ulp"
    return f"- `{excess.function}` ({', '.join(where)}), {size}: {excess.reason}"


def _cell(one: Measured | None, natives: Natives) -> str:
    if one is None:
        return ""
    native = natives.get((one.engine, one.title, one.dtype)) if one.part == "value" else None
    own = f"<br>own: {number(native.worst)}" if native else ""
    return f"{number(one.worst)} ({number(one.typical)}){own}"
