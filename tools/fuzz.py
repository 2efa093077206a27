"""Fuzzes kernelk's readers of files with atheris, one after the other: `make fuzz SECONDS=600 READERS="npz about"`.

Coverage-guided, on kernelk's own modules. Inputs stay in build/fuzz-inputs, which is not committed: they are where the
next run goes on, and some may trouble other programs. The last lines say how many inputs each reader has seen; one that
breaks the promise in tests/helpers/readers.py ends the run with status 1 and leaves its input there.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
INPUTS = PROJECT / "build" / "fuzz-inputs"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Fuzz kernelk's readers of files.")
    parser.add_argument("readers", nargs="*", help="which (default: all)")
    parser.add_argument("--seconds", type=int, default=600, help="for each reader")
    return parser


def _fuzz_one(name: str, arguments: list[str]) -> None:
    """Runs in a process of its own, which libFuzzer ends."""
    import atheris

    sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]
    os.environ.update(KERNELK_BACKEND="numpy", KERNELK_QUIET="1")
    with atheris.instrument_imports(include=["kernelk", "zipfile", "json", "numpy.lib"]):
        from helpers.readers import readers, scratch

        folder = scratch()
        os.environ["KERAS_HOME"] = str(folder)
        reader = readers(folder)[name]
    corpus = INPUTS / name
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(reader.seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    atheris.Setup([name, *arguments, str(corpus)], reader.read)
    atheris.Fuzz()


def main() -> int:
    """Fuzzes each reader for so many seconds, and prints what came of it."""
    # The process that fuzzes one.
    if sys.argv[1:2] == ["--one"]:
        _fuzz_one(sys.argv[2], sys.argv[3:])
        return 0
    chosen = _parser().parse_args()
    sys.path[:0] = [str(PROJECT), str(PROJECT / "tests")]
    if not chosen.readers:
        from faults.test_fuzzed_files import NAMES

        chosen.readers = NAMES
    failed = 0
    for name in chosen.readers:
        found = INPUTS / f"{name}-"
        INPUTS.mkdir(parents=True, exist_ok=True)
        options = [f"-max_total_time={chosen.seconds}", "-timeout=30", "-rss_limit_mb=4096", "-max_len=65536"]
        begin = time.monotonic()
        done = subprocess.run(
            [sys.executable, __file__, "--one", name, *options, f"-artifact_prefix={found}", "-print_final_stats=1"],
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        runs = re.findall(r"number_of_executed_units: (\d+)|^#(\d+)\s", done.stderr, re.M)
        count = max((int(a or b) for a, b in runs), default=0)
        covered = re.findall(r"cov: (\d+)", done.stderr)
        state = "held" if done.returncode == 0 else f"BROKEN (status {done.returncode})"
        print(
            f"{name}: {state}, {count} inputs in {time.monotonic() - begin:.0f} s, "
            f"{covered[-1] if covered else 0} places of the code reached",
            flush=True,
        )
        if done.returncode:
            failed += 1
            print(done.stderr[-3000:], flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
