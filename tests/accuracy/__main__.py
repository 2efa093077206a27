"""All of the suite on every engine, and the page that shows it: `make accuracy`.

    python tests/accuracy                                    # everything; writes docs/accuracy.md
    python tests/accuracy --engines numpy jax --only sigmoid # of these alone; the page stays as it is

Exits with 1 if an error is above its bar and no known excess (excesses.toml) covers it, or if an excess is none.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import date
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    # A sibling of this name must not stand in for a package's.
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent]

# Before kernelk is imported by anything.
import helpers.own_settings  # noqa: F401
from helpers.engines import ENGINES, reset
from parity.case import FLOATS

import kernelk
from accuracy import bars, measure, natives, report, suite
from kernelk import config
from kernelk.engines import registry
from kernelk.session.current import current

# Of the page's operands: another one's may need an excess that these don't, and not need one that these do.
SEED = 7


def run(
    engines: list[str], batch: list[measure.Prepared], device: str | None = None
) -> tuple[list[measure.Measured], report.Natives, list[str]]:
    """Measures these on each engine: the results, those of the engines' own functions, and the engines' versions.

    On a `device` that isn't the engine's own choice, its own functions aren't measured.
    """
    results: list[measure.Measured] = []
    owns: report.Natives = {}
    versions = []
    for engine in engines:
        begin = time.perf_counter()
        reset()
        kernelk.set_backend(engine, **({} if device is None else {"device": device}))
        found = measure.measured(engine, batch, engine in bars.FLUSHING)
        facts = current().host(engine).facts
        versions.append(f"{registry.engine(engine).title} {facts['version']} on {facts['device']}")
        results += found
        current().host(engine).stop()
        own = natives.measured(engine, batch) if device is None else {}
        owns.update(own)
        print(
            f"{engine}: {len(found)} measured, {len(own)} of its own ({time.perf_counter() - begin:.0f} s)", flush=True
        )
    return results, owns, versions


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python tests/accuracy", description=__doc__.partition("\n")[0])
    parser.add_argument("--engines", nargs="*", default=[], help=f"all by default: {', '.join(ENGINES)}")
    parser.add_argument("--only", default="", metavar="TEXT", help="only functions whose title has it: K.exp, x / y")
    parser.add_argument("--dtypes", nargs="*", default=list(FLOATS), choices=FLOATS)
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the operands; {SEED} by default, as on the page")
    parser.add_argument("--device", help="where the engines compute, as for %%kbackend: gpu:0, cuda:0")
    parser.add_argument("--propose", action="store_true", help="print entries for excesses.toml, without the reasons")
    parser.add_argument("--list", action="store_true", help="print every result, the worst first")
    chosen = parser.parse_args()
    # Theano's C code is measured.
    config.LIMITS.build_beside = False
    engines = chosen.engines or list(ENGINES)
    missing = [name for name in engines if not registry.installed(name)]
    engines = [name for name in engines if name not in missing]
    print(f"seed {chosen.seed}", flush=True)
    begin = time.perf_counter()
    batch = list(suite.whole(chosen.seed, chosen.only, tuple(chosen.dtypes)))
    print(f"{len(batch)} functions and dtypes prepared ({time.perf_counter() - begin:.0f} s)", flush=True)
    results, owns, versions = run(engines, batch, chosen.device)
    if chosen.list:
        for one in sorted(results, key=lambda one: -one.worst):
            print(f"  {one}, typically {one.typical:.2g}")
    excesses = bars.load()
    partial = bool(chosen.only or chosen.engines or chosen.device or missing or set(chosen.dtypes) != set(FLOATS))
    partial |= chosen.seed != SEED
    wrong = bars.failures(results, suite.elementwise(), owns, excesses)
    # What a partial run doesn't show may be needed elsewhere.
    wrong += [] if partial else bars.needless(results, suite.elementwise(), excesses)
    for line in wrong:
        print("  " + line)
    if chosen.propose:
        print(bars.proposed(one for one, _ in bars.over(results, suite.elementwise(), owns, excesses)))
    for name in missing:
        print(f"{name} isn't installed here: nothing was measured on it")
    if wrong or partial:
        print(f"{len(wrong)} failed; {report.PAGE.name} stays as it is")
        return int(bool(wrong or missing))
    told = f"Measured on {date.today()}: {', '.join(versions)}."
    report.PAGE.write_text(report.page(engines, results, owns, excesses, told), encoding="utf-8")
    print(f"wrote {report.PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
