"""`make faults`: carries random programs out with faults in their steps, counts what is lost or wrong, and shrinks it.

    python tests/faults/scale/run.py --faults 9000 --engines light kernel
    python tests/faults/scale/run.py --faults 1000 --engines torch jax tensorflow theano cntk
    python tests/faults/scale/run.py --faults 1000 --engines kept-light light kernel

Results are lines of JSON in `--results`; what stands there already isn't run again, so that a run can be stopped and
taken up, or shared among machines by `--shard 1/4`. Exits with 1 if anything was lost, wrong, hung or left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import helpers.own_settings  # noqa: E402, F401, I001

from faults.scale.model import Model, Step, program  # noqa: E402

LENGTH = 14  # steps of a program; half of them get a fault
PROGRAMS = 20  # so many share a process
PATIENCE = 300  # seconds that a step may take on a busy machine: what takes longer hangs
LEAVING = 10.0  # seconds after which no process of a session that has ended may be there, on a busy machine

Faults = dict[int, tuple[str, int]]  # step -> kind and seed


def plan(seed: int, engines: list[str], kinds: list[str]) -> tuple[list[Step], Faults]:
    """The program of a seed, and the faults in it."""
    rng = random.Random(-seed - 1)
    steps = program(seed, engines, LENGTH)
    faults = {index: (rng.choice(kinds), rng.randrange(10**6)) for index in range(len(steps)) if rng.random() < 0.5}
    return steps, faults


def carry_out(
    steps: list[Step], faults: Faults, engines: list[str], folder: Path, each: Callable[[], None] = lambda: None
) -> dict[str, int]:
    """Carries a program out, checking the whole state after each step. Returns how many faults had an effect.

    Calls `each` before each step. Raises AssertionError with what was lost or wrong.
    """
    from faults.scale.injection import InjectedError, injected
    from faults.scale.world import CHECKED, KEPT, World, use

    from kernelk import backend as K
    from kernelk.errors import KernelKError

    K.clear_session()
    (folder / "saved.npz").unlink(missing_ok=True)
    world, model = World(folder), Model()
    use(engines[0])
    counts = {"faults": 0, "raised": 0}
    span = 0.002
    for index, step in enumerate(steps):
        each()
        if len(step) > 1 and step[0] not in ("make", "swap", "stop") and step[1] not in model.things:
            continue  # a fault kept it from being made
        if step[0] == "load" and model.saved is None:
            continue
        after = model.copy()
        expected, got, error = after.do(step), None, None
        start = time.perf_counter()
        allowed: tuple[type[BaseException], ...] = ()
        try:
            if index in faults:
                kind, seed = faults[index]
                counts["faults"] += 1
                allowed = (KernelKError, InjectedError, KeyboardInterrupt)
                with injected(kind, seed, span):
                    got = world.do(step)
            else:
                got = world.do(step)
            done = True
        except allowed as raised:
            done, error = False, raised
        if index in faults:
            settle()
        if index not in faults and index % 3 and engines[0].startswith((KEPT, CHECKED)):
            # To look fetches all values: what is to be repeated is let grow.
            assert got == expected, f"step {index} {step}: gave {got}, right is {expected}"
            model = after
            continue
        where = f"step {index} {step}, fault {faults.get(index)}, {type(error).__name__}: {error}"
        state, file_state = world.state(), world.file_state()
        if done:
            assert got == expected, f"{where}: gave {got}, right is {expected}"
            assert state == after.things, f"{where}: the variables are {state}, right is {after.things}"
            assert step[0] != "save" or file_state == after.saved, f"{where}: the file holds {file_state}"
            model = after
        else:
            counts["raised"] += 1
            both = [model.things, after.things]
            assert state in both, f"{where}: the variables are {state}, right is one of {both}"
            assert file_state in (model.saved, after.saved), f"{where}: the file holds {file_state}"
            after.things = after.things if state == after.things else model.things
            after.saved = file_state
            model = after
        for name in model.things:
            looked = world.do(["look", name])
            right = model.do(["look", name])
            assert looked == right, f"{where}: afterwards {name} gives {looked}, right is {right}"
        # A step of the usual length, for the moments of the faults in those that follow.
        span = 0.5 * span + 0.5 * max(1e-4, min(time.perf_counter() - start, 2.0))
    return counts


def settle() -> None:
    """Lets what was sent arrive here and not in what follows."""
    from faults.scale.injection import SENDING

    while SENDING:
        with contextlib.suppress(KeyboardInterrupt):
            SENDING[-1].join()
            SENDING.pop()
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(0.001)
    # Whatever a fault has left: Ctrl-C works at once.
    try:
        signal.raise_signal(signal.SIGINT)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError(f"Ctrl-C is left to {signal.getsignal(signal.SIGINT)}")
    handler = signal.getsignal(signal.SIGINT)
    assert handler is signal.default_int_handler, f"Ctrl-C is left to {handler} after the first one"


def child(jobs: list[dict[str, Any]], engines: list[str]) -> None:
    """Carries programs out in this process, one line of JSON for each; ends at the first that fails."""
    from faults.scale.injection import install

    install()
    with tempfile.TemporaryDirectory(prefix="kernelk-faults-") as folder:
        for job in jobs:
            faults = {int(index): (kind, seed) for index, (kind, seed) in job["faults"].items()}
            try:
                found: dict[str, Any] = carry_out(job["steps"], faults, engines, Path(folder), end_a_hang)
            except BaseException as error:
                print(json.dumps({"seed": job["seed"], "failed": f"{type(error).__name__}: {error}"}), flush=True)
                raise
            print(json.dumps({"seed": job["seed"], **found}), flush=True)


def end_a_hang() -> None:
    """Ends this process with its stacks unless this is called again, or the process ends, in time."""
    faulthandler.dump_traceback_later(PATIENCE, exit=True)


def in_child(jobs: list[dict[str, Any]], engines: list[str]) -> tuple[list[dict[str, Any]], str]:
    """The lines of a process of its own, and what it said last; to hang or to leave something behind is to fail."""
    mark = uuid.uuid4().hex
    command = [sys.executable, str(Path(__file__)), "--child", "--engines", *engines]
    done = subprocess.run(
        command,
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env={**os.environ, "KERNELK_FAULTS": mark, "KERNELK_QUIET": "1"},
    )
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"seed"')]
    if done.returncode and not (lines and "failed" in lines[-1]):
        seed = jobs[len(lines)]["seed"] if len(lines) < len(jobs) else jobs[-1]["seed"]
        lines.append({"seed": seed, "failed": f"the process ended with {done.returncode}"})
    left = left_behind(mark)
    if left:
        lines.append({"seed": jobs[-1]["seed"], "failed": f"left behind: {left}"})
    return lines, done.stderr[-3000:]


def left_behind(mark: str) -> list[str]:
    """The processes that a child has started and that haven't ended in time."""
    end = time.monotonic() + LEAVING
    while True:
        left = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and f"KERNELK_FAULTS={mark}".encode() in (entry / "environ").read_bytes():
                    left.append(f"{entry.name} {(entry / 'cmdline').read_bytes()[:80]!r}")
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.1)


def shrink(job: dict[str, Any], engines: list[str], attempts: int = 60) -> dict[str, Any]:
    """The same failure in fewer steps and faults, as far as so many attempts lead; timing may let some succeed."""
    best = job
    for _ in range(2):
        for index in reversed(range(len(best["steps"]))):
            if attempts <= 0:
                return best
            attempts -= 1
            smaller = without(best, index)
            lines, _ = in_child([smaller], engines)
            if any("failed" in line for line in lines):
                best = smaller
    return best


def without(job: dict[str, Any], index: int) -> dict[str, Any]:
    """A job without one of its steps."""
    steps = [step for number, step in enumerate(job["steps"]) if number != index]
    faults = {
        str(int(number) - (int(number) > index)): fault
        for number, fault in job["faults"].items()
        if int(number) != index
    }
    return {**job, "steps": steps, "faults": faults}


def cell(job: dict[str, Any], engines: list[str]) -> str:
    """A cell, or script, that carries a job out again."""
    return (
        "import json, sys, tempfile\nfrom pathlib import Path\n"
        "sys.path[:0] = ['.', 'tests']\n"
        "from faults.scale.run import carry_out\nfrom faults.scale.injection import install\n\n"
        "install()\n"
        f"steps = {job['steps']!r}\n"
        f"faults = { {int(number): tuple(fault) for number, fault in job['faults'].items()}!r}\n"
        f"carry_out(steps, faults, {engines!r}, Path(tempfile.mkdtemp()))\n"
    )


def main() -> None:
    """Runs the programs that have no result yet, and prints the sums."""
    from faults.scale.injection import KINDS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=["light", "kernel"])
    parser.add_argument("--faults", type=int, default=1000, help="how many to inject, at least")
    parser.add_argument("--seed", type=int, default=0, help="of the first program")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--results", type=Path, default=Path("build/faults.jsonl"))
    parser.add_argument("--shard", default="1/1", help="2/4: the second quarter")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(json.load(sys.stdin), options.engines)
        return
    options.results.parent.mkdir(parents=True, exist_ok=True)
    key = ",".join(options.engines)
    rows = [json.loads(line) for line in options.results.read_text().splitlines()] if options.results.exists() else []
    known = {row["seed"]: row for row in rows if row["engines"] == key}
    part, parts = (int(number) for number in options.shard.split("/"))
    failed = [row for row in known.values() if "failed" in row]
    total, wanted = sum(row.get("faults", 0) for row in known.values()), options.faults
    seeds = (seed for seed in range(options.seed, sys.maxsize) if seed % parts == part - 1 and seed not in known)
    while total < wanted and not failed:
        jobs = []
        for _ in range(PROGRAMS):
            seed = next(seeds)
            steps, faults = plan(seed, options.engines, options.kinds)
            jobs.append(
                {"seed": seed, "steps": steps, "faults": {str(index): fault for index, fault in faults.items()}}
            )
        lines, words = in_child(jobs, options.engines)
        with options.results.open("a") as file:
            for line in lines:
                file.write(json.dumps({**line, "engines": key}) + "\n")
                total += line.get("faults", 0)
                known[line["seed"]] = line
        failed = [line for line in lines if "failed" in line]
        print(f"{key}: {total} faults in {len(known)} programs, {len(failed)} failed", flush=True)
        for line in failed:
            print(f"seed {line['seed']}: {line['failed']}\n{words}", flush=True)
            if "step" not in line["failed"]:
                continue  # nothing of a program is to blame
            job = shrink(next(job for job in jobs if job["seed"] == line["seed"]), options.engines)
            print(f"in fewer steps:\n\n{cell(job, options.engines)}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
