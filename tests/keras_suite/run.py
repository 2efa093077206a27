"""`make keras-suite`: fetches Keras 2.3.1, runs its backend tests and models on each engine, shows what passed."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from typing import Any

from keras_on_kernelk import BUILD, KERAS, PACKAGES, PROJECT, SUITE

ENGINES = ("numpy", "tensorflow", "theano", "cntk", "jax", "torch")
HEADINGS = ("passed", "failed", "excluded", "models passed", "failed", "K calls", "runs")
WIDTHS = (8, 8, 10, 15, 8, 9, 7)
REQUIREMENTS = SUITE / "requirements.txt"


def fetch() -> None:
    """Keras's source distribution, which has its tests, from the package index, checked by its hash."""
    text = REQUIREMENTS.read_text()
    wanted = {word.removeprefix("--hash=sha256:") for word in text.split() if word.startswith("--hash=")}
    if not wanted <= _hashes():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", "keras", "--require-hashes", "-r", str(REQUIREMENTS), "-d", str(PACKAGES)]
        if subprocess.run(command).returncode:
            sys.exit("Keras 2.3.1 can't be fetched (see above); next: make keras-suite where the package index is")
    if not KERAS.exists():
        # Under another name first: what is there is whole.
        parts = BUILD / "unpacking"
        with tarfile.open(next(PACKAGES.glob("*.tar.gz"))) as archive:
            archive.extractall(parts, filter="data")
        (parts / KERAS.name).rename(KERAS)
        parts.rmdir()


def _hashes() -> set[str]:
    return {hashlib.sha256(file.read_bytes()).hexdigest() for file in PACKAGES.glob("*")}


def run(engine: str, arguments: list[str]) -> dict[str, Any] | str:
    """The report of `one_engine.py`, or why there is none."""
    report, log = BUILD / f"{engine}.json", BUILD / f"{engine}.log"
    report.unlink(missing_ok=True)
    with log.open("w") as output:
        command = [sys.executable, str(SUITE / "one_engine.py"), engine, str(report), *arguments]
        subprocess.run(command, cwd=PROJECT, stdout=output, stderr=subprocess.STDOUT)
    if report.exists():
        found: dict[str, Any] = json.loads(report.read_text())
        return found
    lines = log.read_text().strip().splitlines() or ["no output"]
    return f"{lines[-1]} (see {log.relative_to(PROJECT)})"


def main() -> int:
    """1 if a test failed, an engine couldn't run or a name is missing.

    An unavailable engine is skipped, unless KERNELK_REQUIRE names it.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", nargs="*", default=ENGINES, help="default: all")
    parser.add_argument("-k", dest="expression", help="only the tests that match, as in pytest")
    chosen = parser.parse_args()
    fetch()
    arguments = ["-k", chosen.expression] if chosen.expression else []
    reports = {}
    for engine in chosen.engines:
        print(f"{engine} ...", file=sys.stderr, flush=True)
        reports[engine] = run(engine, arguments)
    return show(reports)


def show(reports: dict[str, dict[str, Any] | str]) -> int:
    """Prints failures, what was left out and the table; the exit status."""
    wrong = 0
    rows = []
    excluded: dict[str, str] = {}
    failures: dict[tuple[str, str], list[str]] = {}
    missing: list[str] = []
    for engine, report in reports.items():
        if isinstance(report, str):
            rows.append((engine, "did not run: " + report))
            wrong = 1
            continue
        if "absent" in report:
            rows.append((engine, "not available here: " + report["absent"]))
            wrong |= engine in os.environ.get("KERNELK_REQUIRE", "").split(",")
            continue
        results = report["results"]
        missing = report["missing"]
        count = Counter(outcome for test, (outcome, _) in results.items() if not test.startswith("test_model_"))
        models = [outcome for test, (outcome, _) in results.items() if test.startswith("test_model_")]
        columns = [count["passed"], count["failed"], count["skipped"], models.count("passed"), models.count("failed")]
        columns += [report["calls"], report["runs"]]
        rows.append((engine, "".join(f"{number:>{width}}" for number, width in zip(columns, WIDTHS))))
        excluded.update({test: message for test, (outcome, message) in results.items() if outcome == "skipped"})
        for test, (outcome, message) in results.items():
            if outcome == "failed":
                failures.setdefault((test, " ".join(message.split())[:160]), []).append(engine)
        wrong |= bool(count["failed"] or models.count("failed") or not report["runs"])
    for (test, message), engines in failures.items():
        print(f"FAILED {test} on {', '.join(engines)}: {message}")
    if missing:
        wrong = 1
        print(f"kernelk.backend lacks: {', '.join(missing)}")
    for test, reason in excluded.items():
        print(f"excluded {test}: {reason.removeprefix('Skipped: ')}")
    print(f"\n{'engine':12}" + "".join(f"{heading:>{width}}" for heading, width in zip(HEADINGS, WIDTHS)))
    for engine, row in rows:
        print(f"{engine:12}{row}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
