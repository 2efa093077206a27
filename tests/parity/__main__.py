"""All of the suite on every engine, and the page that shows what came of it: `make parity`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

# Before kernelk is imported by anything.
import helpers.own_settings  # noqa: F401
from helpers.engines import ENGINES, reset

import kernelk
from kernelk.engines import registry
from kernelk.session.current import current
from parity import case, check, gaps, search, sizes, slopes, suite

PAGE = Path(__file__).parent.parent.parent / "docs" / "engines_by_function.md"


def page() -> str:
    """The table of functions and engines, as the cases and the known gaps have it."""
    titles = [registry.engine(name).title for name in ENGINES]
    lines = [
        "# Functions and engines",
        "",
        "Written by `make parity`, which runs each case in each of its dtypes on every engine, with all lengths of its",
        "placeholders known, with none and with some, and compares the results with plain numpy's: integers and bools",
        "exactly, floats within the tolerances of `tests/helpers/arrays.py`; gradients are compared with finite",
        "differences. Elementwise functions, casts, reductions, sorting and pooling are also run at all lengths from 1",
        "to 130 and at 100,000, with edge values at every position. It writes the page when all of them agree.",
        "",
        "The number is how many cases the engine passed; a gap stands as its cause, and is explained below the table.",
        "",
        f"| function | dtypes | {' | '.join(titles)} |",
        f"|---|---|{'---|' * len(titles)}",
    ]
    for name in suite.tested():
        mine = [one for one in suite.cases() if one.function == name]
        dtypes = {dtype for one in check.whole(mine, 0, 1) for dtype in (one.dtype, *one.promised())}
        cells = [_cell(engine, name) for engine in ENGINES]
        shown = "`K." + name + "`" if name != "Tensor" else "operators and `[...]` of `K.Tensor`"
        lines.append(f"| {shown} | {_kinds(dtypes)} | {' | '.join(cells)} |")
    lines += ["", "## Gaps", ""]
    lines += [f"- **{gap.engine}, {gap.cause}** (`K.{gap.function}`): {gap.reason} {gap.proof}" for gap in gaps.GAPS]
    if not gaps.GAPS:
        lines.append("None: no engine refuses a case.")
    lines += ["", "## Names without cases", "", "| name | why |", "|---|---|"]
    lines += [f"| `K.{name}` | {reason} |" for name, reason in sorted(suite.WITHOUT.items())]
    return "\n".join(lines) + "\n"


def _cell(engine: str, name: str) -> str:
    # A trial's dtypes decide whether a gap covers it, and not its values.
    trials = list(check.whole([one for one in suite.cases() if one.function == name], 0, 1))
    found = Counter(gap.cause if (gap := gaps.gap_of(engine, one)) else "" for one in trials)
    passed = len({one.case.label for one in trials if not gaps.gap_of(engine, one)})
    return ", ".join([str(passed), *sorted(cause for cause in found if cause)])


def _kinds(dtypes: set[str]) -> str:
    kinds = [("floats", set(case.FLOATS)), ("integers", set(case.INTEGERS)), ("bool", {"bool"})]
    shown = [name if kind <= dtypes else ", ".join(sorted(kind & dtypes)) for name, kind in kinds if kind & dtypes]
    return ", ".join(shown)


def run(engines: list[str], seed: int, rounds: int, examples: int) -> int:
    """Runs all cases on these engines, and what hypothesis makes of them; returns how many trials failed."""
    current().engine_options["theano"] = {"compiler": ""}
    failed = 0
    for engine in engines:
        reset()
        kernelk.set_backend(engine)
        for family in suite.FAMILIES:
            trials = list(check.whole(suite.cases(family), seed, rounds))
            begin = time.perf_counter()
            failed += told(f"{engine}, {family}", len(trials), check.failures(engine, trials), begin)
        for open_axes in ("none", "all", "some"):
            found = list(slopes.slopes(suite.cases(), seed, open_axes))
            begin = time.perf_counter()
            failed += told(f"{engine}, gradients", len(found), slopes.failures(engine, found), begin)
        for group in sizes.GROUPS:
            chosen = sizes.every(group, seed)
            begin = time.perf_counter()
            failed += told(f"{engine}, sizes, {group}", len(chosen), sizes.failures(engine, chosen), begin)
        begin = time.perf_counter()
        failed += told(f"{engine}, hypothesis", examples, search.failures(engine, examples), begin)
        current().host(engine).stop()
    return failed


def told(what: str, trials: int, found: list[str], begin: float) -> int:
    """Prints what came of some trials; returns how many failed."""
    print(f"{what}: {trials} trials, {len(found)} failed ({time.perf_counter() - begin:.0f} s)", flush=True)
    for line in found:
        print("  " + line[:1000], flush=True)
    return len(found)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python tests/parity", description=__doc__)
    parser.add_argument("engines", nargs="*", help=f"all by default: {', '.join(ENGINES)}")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(2), "little"))
    parser.add_argument("--rounds", type=int, default=3, help="trials of each case and dtype")
    parser.add_argument("--examples", type=int, default=1000, help="trials that hypothesis makes")
    parser.add_argument("--page", action="store_true", help=f"only write {PAGE.name}")
    chosen = parser.parse_args()
    engines = chosen.engines or list(ENGINES)
    if not chosen.page:
        print(f"seed {chosen.seed}", flush=True)
        missing = [name for name in engines if not registry.installed(name)]
        failed = run([name for name in engines if name not in missing], chosen.seed, chosen.rounds, chosen.examples)
        for name in missing:
            print(f"{name} isn't installed here: nothing was run on it")
        if failed or missing or chosen.engines:
            print(f"{failed} trials failed; {PAGE.name} stays as it is")
            return int(bool(failed or missing))
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
