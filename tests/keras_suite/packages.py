"""`make keras-packages`: fetches packages written for multi-backend Keras, runs their own tests on some engines."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

from sources import fetched

SUITE = Path(__file__).resolve().parent
PROJECT = SUITE.parent.parent
BUILD = PROJECT / "build" / "keras-packages"
REQUIREMENTS = SUITE / "packages.txt"
# The one that most of them were written on, and the one that Keras grew up with.
ENGINES = ("tensorflow", "theano")


def run(engine: str, folder: Path, others: list[Path]) -> tuple[list[str], bool]:
    """Lines about the tests of the package in `folder`, and whether all passed."""
    report, log = BUILD / f"{folder.name}-{engine}.json", BUILD / f"{folder.name}-{engine}.log"
    report.unlink(missing_ok=True)
    with log.open("w") as output:
        command = [sys.executable, str(SUITE / "one_package.py"), engine, str(report), str(folder), *map(str, others)]
        environment = {**os.environ, "KERNELK_QUIET": "1", "PYTHONPATH": str(PROJECT)}
        subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    if not report.exists():
        lines = log.read_text().strip().splitlines() or ["no output"]
        return [f"{folder.name} on {engine} did not run: {lines[-1]} (see {log.relative_to(PROJECT)})"], False
    found = json.loads(report.read_text())
    count = Counter(outcome for outcome, _ in found["results"].values())
    lines = [
        f"FAILED {test} on {engine}: {' '.join(message.split())[:300]}"
        for test, (outcome, message) in found["results"].items()
        if outcome == "failed"
    ]
    counts = f"{count['passed']} passed, {count['failed']} failed, {count['skipped']} skipped"
    lines.append(f"{folder.name} on {engine}: {counts}; {found['compiled']} programs compiled")
    all_passed = set(count) == {"passed"} and found["compiled"] > 0
    return lines, all_passed


def main() -> int:
    """1 if a test failed or was skipped, or an engine couldn't run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", nargs="*", default=ENGINES, help=f"default: {' '.join(ENGINES)}")
    parser.add_argument("--package", help="only the one whose name begins so")
    chosen = parser.parse_args()
    folders = fetched(REQUIREMENTS, BUILD / "downloads", BUILD)
    status = 0
    for engine in chosen.engines:
        for folder in folders:
            if folder.name.startswith(chosen.package or ""):
                lines, passed = run(engine, folder, [other for other in folders if other != folder])
                print(*lines, sep="\n", flush=True)
                status |= not passed
    return status


if __name__ == "__main__":
    sys.exit(main())
