"""Compares this build with another checkout of kernelk, side by side in one run: `against.py PATH [ROW ...]`.

Each build has one process for all rows, and they take turns in an order that alternates from round to round. A row ends
when the 95 % interval of its ratio (this build / the other) is at most 0.06 wide, or after MOST_ROUNDS. Times are those
of the processor where a row computes in the kernel alone, so that neighbours on the machine disturb less; rows that
wait for a worker take the wall's.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

MOST_ROUNDS = 120
FEWEST_ROUNDS = 12
WIDTH = 0.06
ENGINES = ("numpy", "tensorflow", "theano", "cntk", "jax", "torch")
HERE = Path(__file__).resolve().parent.parent


# --- the side that is measured: its kernelk is the one on PYTHONPATH ---


def rows() -> dict[str, Callable[[], float]]:
    """Each row's measurement: seconds of one unit of work. Only names that every build has are used."""
    import numpy as np

    import kernelk
    from kernelk import backend as K
    from kernelk.session import current

    def timed(work: Callable[[], object], times: int, clock: Callable[[], float]) -> float:
        start = clock()
        for _ in range(times):
            work()
        return (clock() - start) / times

    a, b = K.placeholder((3, 4)), K.placeholder((3, 4))

    def linearised() -> float:
        x = y = K.placeholder((None, 3))
        for _ in range(5_000):
            y = K.tanh(y) * 0.5
        call = K.function([x], [y])
        host = current().host("numpy")
        host.start()
        start = time.process_time()
        call.program_for(current(), host.ops, 0, None).specialise(((2, 3),), host.specialises)
        return time.process_time() - start

    def step_on(engine: str) -> Callable[[], float]:
        x = K.placeholder((8, 16))
        w = K.variable(np.full((16, 4), 0.01, "float32"))
        loss = K.mean(K.square(K.dot(x, w) - 1.0))
        step = K.function([x], [loss], [K.update_sub(w, 0.01 * K.gradients(loss, [w])[0])])
        feed = np.ones((8, 16), "float32")
        clock = time.process_time if engine == "numpy" else time.perf_counter

        def measure() -> float:
            kernelk.set_backend(engine)
            step([feed])
            return timed(lambda: step([feed]), 100, clock)

        return measure

    def empty_on(engine: str) -> Callable[[], float]:
        call = K.function([], [K.constant(1.0)])
        clock = time.process_time if engine == "numpy" else time.perf_counter

        def measure() -> float:
            kernelk.set_backend(engine)
            call([])
            return timed(lambda: call([]), 200, clock)

        return measure

    def swap() -> float:
        kernelk.set_backend("torch")
        kernelk.set_backend("numpy")
        start = time.perf_counter()
        for _ in range(5):
            kernelk.set_backend("torch")
            kernelk.set_backend("numpy")
        return (time.perf_counter() - start) / 10

    def extension() -> float:
        code = (
            "import time\nfrom IPython.core.interactiveshell import InteractiveShell\nimport numpy\n"
            "shell = InteractiveShell.instance()\nstart = time.process_time()\n"
            "shell.run_line_magic('load_ext', 'kernelk')\nprint(time.process_time() - start)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(done.stdout.splitlines()[-1])

    found: dict[str, Callable[[], float]] = {
        "recording an op": lambda: timed(lambda: a + b, 2_000, time.process_time),
        "linearising and keying 10,000 nodes": linearised,
        "%load_ext kernelk": extension,
        "a warm swap numpy <-> torch": swap,
    }
    for engine in ENGINES:
        found[f"an empty call on {engine}"] = empty_on(engine)
        found[f"a small step on {engine}"] = step_on(engine)
    return found


def serve() -> None:
    """Measures the rows whose names come in, one a line."""
    known = rows()
    print(json.dumps(list(known)), flush=True)
    for line in sys.stdin:
        print(json.dumps(known[line.strip()]()), flush=True)


# --- the side that compares ---


class Build:
    """A build's process."""

    def __init__(self, folder: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(folder), "KERNELK_QUIET": "1"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--serve"],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.rows: list[str] = self._answer()

    def _answer(self) -> list[str]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("["):
                return list(json.loads(line))
        raise SystemExit("a build's process ended; its own error stands above")

    def measure(self, row: str) -> float:
        """Seconds of one unit of the row's work."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(row + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))


def interval(ratios: list[float]) -> tuple[float, float]:
    """The 95 % interval of the median ratio, by resampling the rounds."""
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(600))
    return medians[14], medians[-15]


def main(other: Path, wanted: list[str]) -> None:
    """Prints the table as it grows."""
    ours, theirs = Build(HERE), Build(other.resolve())
    print("| row | other | this | ratio | 95 % interval | rounds |\n|---|---|---|---|---|---|", flush=True)
    for row in ours.rows:
        if wanted and not any(word in row for word in wanted):
            continue
        for build in (ours, theirs):
            build.measure(row)
        new, old = [], []
        low, high = 0.0, 9.0
        while len(new) < FEWEST_ROUNDS or (high - low > WIDTH and len(new) < MOST_ROUNDS):
            pair = ((ours, new), (theirs, old))
            for build, samples in pair if len(new) % 2 else pair[::-1]:
                samples.append(build.measure(row))
            ratios = [x / y for x, y in zip(new, old)]
            low, high = interval(ratios)
        times = [f"{statistics.median(samples) * 1e6:,.1f} us" for samples in (old, new)]
        ratio = statistics.median(ratios)
        print(f"| {row} | {times[0]} | {times[1]} | {ratio:.3f} | {low:.3f} to {high:.3f} | {len(new)} |", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve()
    elif len(sys.argv) > 1 and (Path(sys.argv[1]) / "kernelk").is_dir():
        main(Path(sys.argv[1]), sys.argv[2:])
    else:
        raise SystemExit(
            "against.py needs the folder of another checkout of kernelk; next: against.py ../kernelk-before"
        )
