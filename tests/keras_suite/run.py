"""`make keras-suite`: fetches Keras 2.3.1, runs its own tests and some models on each engine, shows what passed.

Each file runs in a process of its own, with a worker of its own: memory goes back after it, and an engine that ends
takes no other file's results with it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from keras_on_kernelk import BACKEND_TEST, BUILD, MODELS, PACKAGES, PROJECT, SITE, SUITE, TESTS
from sources import fetched, installed

ENGINES = ("numpy", "tensorflow", "theano", "cntk", "jax", "torch")
HEADINGS = ("collected", "passed", "failed", "excluded", "minutes", "K calls", "runs")
WIDTHS = (11, 8, 8, 16, 9, 10, 9)
# At most so much of what is collected on an engine may be excluded.
MOST_EXCLUDED = 0.05
# The documentation's own generator is no part of the package.
LEFT_OUT = "docs/"


def fetch() -> None:
    """Keras's source distribution, which has its tests, and what they import, from the package index."""
    fetched(SUITE / "requirements.txt", PACKAGES, BUILD)
    # Keras draws models by Graphviz's program, which this one computes the same as.
    installed(SUITE / "site-packages.txt", SITE, links={"dot": "graphviz-pure"})


def files(patterns: Iterable[str]) -> list[str]:
    """The files with tests that match one of the patterns, all if there is none, those that take longest first."""
    found = [file for file in TESTS.rglob("*.py") if not file.name.startswith(("conftest", "__init__"))]
    names = [name for file in found if not (name := str(file.relative_to(TESTS))).startswith(LEFT_OUT)]
    names.sort(key=lambda name: (name != BACKEND_TEST, -(TESTS / name).stat().st_size))
    chosen = [name for name in [*names, MODELS] if not (parts := list(patterns)) or any(part in name for part in parts)]
    if not chosen:
        sys.exit(f"no file of Keras's tests has {' or '.join(patterns)} in its name; next: ls {TESTS}")
    return chosen


def run(engine: str, file: str, arguments: list[str]) -> dict[str, Any] | str:
    """The report of `one_file.py`, or why there is none."""
    report = _report_of(engine, file)
    log = report.with_suffix(".log")
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    with log.open("w") as output:
        command = [sys.executable, str(SUITE / "one_file.py"), engine, file, str(report), *arguments]
        status = subprocess.run(command, cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT).returncode
    if report.exists():
        found: dict[str, Any] = json.loads(report.read_text())
        return found
    lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    return f"{lines[-1]} (exit status {status}, see {log.relative_to(PROJECT)})"


def _report_of(engine: str, file: str) -> Path:
    return BUILD / "reports" / engine / f"{file.replace('/', '.').removesuffix('.py')}.json"


def main() -> int:
    """1 if a test failed, an engine or a file couldn't run, too much is excluded or a name is missing.

    An unavailable engine is skipped, unless KERNELK_REQUIRE names it.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engines", nargs="*", metavar="ENGINE", help=f"of {', '.join(ENGINES)}; default: all")
    parser.add_argument("--files", nargs="+", default=[], metavar="PART", help="only files with PART in their name")
    parser.add_argument("-k", dest="expression", help="only the tests that match, as in pytest")
    parser.add_argument("--jobs", type=int, default=1, help="so many files at a time, each with an engine (default: 1)")
    parser.add_argument("--show", action="store_true", help="runs nothing, and shows the last results of each file")
    chosen = parser.parse_args()
    unknown = set(chosen.engines) - set(ENGINES)
    if unknown:
        parser.error(f"no engine is called {', '.join(sorted(unknown))}; they are: {', '.join(ENGINES)}")
    fetch()
    arguments = ["-k", chosen.expression] if chosen.expression else []
    reports: dict[str, dict[str, dict[str, Any] | str]] = {}
    if chosen.show:
        for engine in chosen.engines or ENGINES:
            paths = {file: _report_of(engine, file) for file in files(chosen.files)}
            reports[engine] = {
                file: json.loads(path.read_text()) if path.exists() else "has not been run"
                for file, path in paths.items()
            }
        return show(reports, whole=not chosen.files)
    with ThreadPoolExecutor(chosen.jobs) as pool:
        for engine in chosen.engines or ENGINES:
            names = files(chosen.files)
            begun = [pool.submit(run, engine, file, arguments) for file in names]
            reports[engine] = {}
            for file, future in zip(names, begun, strict=True):
                report = reports[engine][file] = future.result()
                print(f"{engine} {file}: {_in_words(report)}", file=sys.stderr, flush=True)
                if not isinstance(report, str) and "absent" in report:
                    for other in begun:
                        other.cancel()
                    break
    return show(reports, whole=not (chosen.files or chosen.expression))


def _in_words(report: dict[str, Any] | str) -> str:
    if isinstance(report, str):
        return report
    if "absent" in report:
        return str(report["absent"])
    count = Counter(outcome for outcome, _ in report["results"].values())
    return ", ".join(f"{number} {outcome}" for outcome, number in count.items()) + f" in {report['seconds']:.0f} s"


def show(reports: dict[str, dict[str, dict[str, Any] | str]], whole: bool) -> int:
    """Prints failures, what was left out and the table; the exit status."""
    wrong = 0
    rows = []
    excluded: dict[str, list[str]] = {}
    failures: dict[tuple[str, str], list[str]] = {}
    missing: list[str] = []
    for engine, found in reports.items():
        count: Counter[str] = Counter()
        seconds = calls = runs = 0
        absent = ""
        for file, report in found.items():
            if isinstance(report, str):
                failures.setdefault((file, report), []).append(engine)
                count["failed"] += 1
                continue
            if "absent" in report:
                absent = report["absent"]
                break
            missing = report["missing"]
            seconds, calls, runs = seconds + report["seconds"], calls + report["calls"], runs + report["runs"]
            for test, (outcome, message) in report["results"].items():
                count[outcome] += 1
                if outcome == "failed":
                    failures.setdefault((f"{file}::{test}", " ".join(message.split())[:160]), []).append(engine)
                elif outcome == "skipped":
                    excluded.setdefault(f"{message}: {file}::{test.split('[')[0]}", []).append(engine)
        if absent:
            rows.append((engine, "not available here: " + absent))
            wrong |= engine in os.environ.get("KERNELK_REQUIRE", "").split(",")
            continue
        collected = count.total()
        share = count["skipped"] / max(1, collected)
        columns = [collected, count["passed"], count["failed"], f"{count['skipped']} ({share:.1%})"]
        columns += [f"{seconds / 60:.1f}", calls, runs]
        rows.append((engine, "".join(f"{number:>{width}}" for number, width in zip(columns, WIDTHS, strict=True))))
        wrong |= bool(count["failed"] or not runs or (whole and share > MOST_EXCLUDED))
    for (test, message), engines in failures.items():
        print(f"FAILED {test} on {', '.join(engines)}: {message}")
    if missing:
        wrong = 1
        print(f"kernelk.backend lacks: {', '.join(missing)}")
    for test, engines in sorted(excluded.items()):
        everywhere = len(set(engines)) == len(reports)
        print(f"excluded{'' if everywhere else ' on ' + ', '.join(sorted(set(engines)))}: {test}")
    print(f"\n{'engine':12}" + "".join(f"{heading:>{width}}" for heading, width in zip(HEADINGS, WIDTHS, strict=True)))
    for engine, row in rows:
        print(f"{engine:12}{row}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
