"""`make soak`: repeats what users do thousands of times, and reports whether memory, files, threads and processes stay.

    python tests/soak/run.py                       # what hasn't passed yet
    python tests/soak/run.py --only calls swaps    # of these alone
    python tests/soak/run.py --report              # the results so far, as a table

Each job runs in a process of its own, and so does each test file with tests that are marked `soak`. Results are lines
of JSON in `--results`: what has passed there isn't run again, so that a run can be stopped and taken up. Exits with 1
if a job failed.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import helpers.own_settings  # noqa: E402, F401
from helpers.processes import children  # noqa: E402

from soak.jobs import Job, jobs  # noqa: E402

# What is opened once, and late where the machine is busy, is no leak: that rises again and again.
LEAST_STEPS = 3
SAMPLES = 40
PATIENCE = 900  # seconds between two samples, on a busy machine: what takes longer hangs

Sample = dict[str, int]


def family(pid: int) -> list[int]:
    """A process and all that it has started, directly or not."""
    found = [pid]
    for one in found:
        found += children(one)
    return found


def sample() -> Sample:
    """The session's use of the machine: memory in bytes, and numbers of descriptors, threads, processes and segments.

    Memory is what this process and its workers have for themselves, and their parts of the memory that they share; not
    the pages of libraries' files, which count more or less as other processes come and go.
    """
    from kernelk.session.current import current

    session = current()
    taken = {"memory": 0, "descriptors": 0, "threads": 0, "processes": 0}
    for pid in family(os.getpid()):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                    taken["memory"] += 1024 * int(line.split()[1])
            taken["descriptors"] += len(os.listdir(f"/proc/{pid}/fd"))
            taken["threads"] += len(os.listdir(f"/proc/{pid}/task"))
            taken["processes"] += 1
    taken["segments"] = len(session.storage.segments)
    taken["shared_memory"] = session.storage.bytes
    taken["swaps_kept"] = len(session.swaps)
    return taken


def slope(times: list[int], values: list[int]) -> float:
    """The median of the slopes between all pairs of points (Theil and Sen), which no single peak moves."""
    pairs = [
        (values[j] - values[i]) / (times[j] - times[i]) for i in range(len(times)) for j in range(i + 1, len(times))
    ]
    return statistics.median(pairs)


def steps(values: list[int]) -> int:
    """How many values are above the one before."""
    return sum(after > before for before, after in itertools.pairwise(values))


def carry_out(job: Job, each: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Does a job in this process and returns its result: slopes for each time, and `failed` where one isn't flat.

    Calls `each` before each of the samples.
    """
    at, taken = [], []
    every = max(1, job.count // SAMPLES)
    start = time.monotonic()
    done = 0
    for done, _ in enumerate(job.run(job), 1):
        if done % every == 0:
            each()
            gc.collect()
            at.append(done)
            taken.append(sample())
    result: dict[str, Any] = {"job": job.key, "count": done, "seconds": round(time.monotonic() - start)}
    # The first half warms up: allocators, caches of a fixed size, and engines that compile in the background.
    half = len(at) // 2
    slopes = {name: slope(at[half:], [one[name] for one in taken[half:]]) for name in taken[0]}
    result["last"], result["slopes"] = taken[-1], slopes
    rises = [
        f"{name} by {rise:.3g} each time"
        for name, rise in slopes.items()
        if rise > 0 and name != "memory" and steps([one[name] for one in taken[half:]]) >= LEAST_STEPS
    ]
    if slopes["memory"] > job.per_time:
        rises.append(f"memory by {slopes['memory']:.0f} bytes each time, more than {job.per_time}")
    if rises:
        result["failed"] = "rising: " + "; ".join(rises)
    return result


def end_a_hang() -> None:
    """Ends this process with its stacks unless this is called again, or the process ends, in time."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)


def in_child(key: str, share: float) -> dict[str, Any]:
    """The result of a job that a process of its own carries out."""
    command = [sys.executable, str(Path(__file__)), "--child", key, "--share", str(share)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "KERNELK_QUIET": "1"})
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"job"')]
    if done.returncode or not lines:
        said = (done.stdout + done.stderr)[-3000:]
        return {"job": key, "failed": f"its process ended with {done.returncode}: {said}"}
    result: dict[str, Any] = json.loads(lines[-1])
    return result


def test_files() -> list[str]:
    """The files of the suite that have tests for `make soak`."""
    command = [sys.executable, "-m", "pytest", "-m", "soak", "--collect-only", "-q", "tests"]
    listed = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent, check=True).stdout
    return sorted({line.partition("::")[0] for line in listed.splitlines() if "::" in line})


def run_tests(file: str) -> dict[str, Any]:
    """The result of a file's tests that are marked `soak`."""
    start = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-m", "soak", file]
    done = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent)
    result: dict[str, Any] = {"job": file, "seconds": round(time.monotonic() - start)}
    result["count"] = sum(int(n) for n in done.stdout.splitlines()[-1].split() if n.isdigit())
    if done.returncode:
        result["failed"] = done.stdout[-6000:]
    return result


def report(rows: list[dict[str, Any]]) -> str:
    """A table of the results."""
    lines = ["| job | times | memory, bytes each time | other rises | seconds |", "|---|---|---|---|---|"]
    for row in rows:
        slopes = row.get("slopes", {})
        memory = f"{slopes['memory']:.0f}" if slopes else ""
        rises = ", ".join(f"{name} {rise:.2g}" for name, rise in slopes.items() if name != "memory" and rise > 0)
        words = row["failed"].splitlines()[0] if "failed" in row else rises or ("none" if slopes else "")
        lines.append(f"| {row['job']} | {row.get('count', 0):,} | {memory} | {words} | {row.get('seconds', '')} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what has no result yet, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], help="the first words of jobs, or parts of files' names")
    parser.add_argument("--results", type=Path, default=Path("build/soak.jsonl"))
    parser.add_argument("--share", type=float, default=1.0, help="of each job's number of times: 0.01 for a look")
    parser.add_argument("--report", action="store_true", help="print the results so far and run nothing")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    known = {job.key: job for job in jobs(options.share)}
    if options.child:
        print(json.dumps(carry_out(known[options.child], end_a_hang)), flush=True)
        return
    options.results.parent.mkdir(parents=True, exist_ok=True)
    lines = options.results.read_text().splitlines() if options.results.exists() else []
    rows = {row["job"]: row for row in map(json.loads, lines)}
    if not options.report:
        wanted = [key for key in [*known, *test_files()] if not options.only or any(w in key for w in options.only)]
        for key in wanted:
            if key in rows and "failed" not in rows[key]:
                continue
            row = rows[key] = in_child(key, options.share) if key in known else run_tests(key)
            with options.results.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{key}: {row.get('failed', 'passed')}", flush=True)
    print(report(list(rows.values())))
    sys.exit(1 if any("failed" in row for row in rows.values()) else 0)


if __name__ == "__main__":
    main()
