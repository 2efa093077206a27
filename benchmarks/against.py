"""`make bench-against BASE=path`: this build of kernelk against another checkout's, side by side in one run.

Each build works in processes of its own, which take short turns (this, base, base, this, or the other way round); a
block of four turns gives one ratio of times, so that whatever slows the machine down meets both. Both are started anew
again and again, since where a process has its memory makes one or two per cent. The interpreter, the engines, and this
folder's models are the same for both. Exits with 1 if anything is slower than it may be.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

from measure import HERE, Answering, interval

ENGINES = ["tensorflow", "theano", "cntk", "jax", "torch"]
MODELS = ["large_step", "lenet", "lstm", "activations"]
# What runs in one pair of processes: (work of side.py, engine).
GROUPS = {
    "session": [("record", "numpy"), ("graph", "numpy"), ("empty_call", "numpy"), ("small_step", "numpy")],
    "load": [("load", "numpy")],
    **{engine: [("empty_call", engine), ("small_step", engine)] for engine in ENGINES},
    **{f"{engine}-models": [(work, engine) for work in MODELS] for engine in ["numpy", *ENGINES]},
    "swap": [("swap", "torch")],
    "wire": [("wire", "numpy")],
}
# A turn is about so long, in seconds, where a call is shorter; before each, the other's threads get time to fall
# asleep.
TURN = 0.015
SETTLE = 0.02
# A row gets so many seconds of each pair of processes, and at least so many blocks and pairs.
SECONDS = 8.0
LEAST_BLOCKS, LEAST_PAIRS = 3, 3
# What a call may be slower by, and a model's step; or, in seconds, what it may take more.
ALLOWED, ALLOWED_STEP = 1.02, 1.03
STEPS = ("large training step", "LeNet step", "LSTM step", "chain of activations", "its gradient")
ALLOWED_SECONDS = {"the wire of a call, both ends": 2e-6}


class Side(Answering):
    """A build's process."""

    def __init__(self, checkout: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(checkout), "KERNELK_QUIET": "1"}
        super().__init__(sys.executable, ["side.py"], environment)

    def __call__(self, work: str, engine: str, calls: int) -> dict[str, float]:
        """The seconds of one call for each row of the work."""
        return self.ask(f"{work} {engine} {calls}")  # type: ignore[no-any-return]


class Row:
    """The measurements of one row."""

    def __init__(self, label: str = "") -> None:
        self.label = label
        self.this: list[float] = []
        self.base: list[float] = []
        self.ratios: list[list[float]] = []  # of each pair of processes, those of its blocks

    def ratio(self) -> tuple[float, float, float]:
        """The median of all blocks, and its 95 % interval."""
        return interval([ratio for ratios in self.ratios for ratio in ratios])

    def narrow(self, width: float) -> bool:
        """Whether it is known well enough."""
        if len(self.ratios) < LEAST_PAIRS:
            return False
        _, low, high = self.ratio()
        return high - low <= width

    def verdict(self) -> str:
        """The verdict from the interval."""
        _, low, high = self.ratio()
        if high < 1:
            return "faster"
        allowed = ALLOWED_STEP if self.label.endswith(STEPS) else ALLOWED
        if self.label in ALLOWED_SECONDS:
            allowed = 1 + ALLOWED_SECONDS[self.label] / statistics.median(self.base)
        if low > allowed:
            return "**slower**"
        return "no slower" if high <= allowed else "not told apart"

    def cells(self) -> list[str]:
        """A line of the table."""
        middle, low, high = self.ratio()
        by_pair = sorted(statistics.median(ratios) for ratios in self.ratios)
        return [
            self.label,
            duration(statistics.median(self.base)),
            duration(statistics.median(self.this)),
            f"{middle:.3f} [{low:.3f}, {high:.3f}]",
            f"{by_pair[0]:.2f} to {by_pair[-1]:.2f}",
            f"{sum(map(len, self.ratios))} in {len(self.ratios)}",
            self.verdict(),
        ]


def duration(seconds: float) -> str:
    """Seconds in a unit that suits them."""
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} us"


def measure(sides: dict[str, Side], work: str, engine: str, rows: dict[str, Row]) -> None:
    """Blocks of one work in one pair of processes."""
    for side in sides.values():
        side(work, engine, 1)
    calls = 1
    while True:
        start = time.perf_counter()
        sides["this"](work, engine, calls)
        if time.perf_counter() - start >= TURN:
            break
        calls *= 2
    found: dict[str, list[float]] = defaultdict(list)
    start = time.perf_counter()
    blocks = 0
    while blocks < LEAST_BLOCKS or time.perf_counter() - start < SECONDS:
        blocks += 1
        first, second = random.sample(list(sides), 2)
        seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: {"this": [], "base": []})
        for name in (first, second, second, first):
            time.sleep(SETTLE)
            for label, value in sides[name](work, engine, calls).items():
                seconds[label][name].append(value)
        for label, both in seconds.items():
            row = rows.setdefault(label, Row(label))
            row.this += both["this"]
            row.base += both["base"]
            found[label].append(sum(both["this"]) / sum(both["base"]))
    for label, ratios in found.items():
        rows[label].ratios.append(ratios)


def main() -> None:
    """Measures every row until its interval is narrow enough, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", type=Path, help="the other checkout, which has a folder kernelk")
    parser.add_argument("--only", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--width", type=float, default=0.06, help="of a ratio's 95 %% interval, which ends a row")
    parser.add_argument("--pairs", type=int, default=10, help="of processes, at most, for a row")
    options = parser.parse_args()
    checkouts = {"this": HERE.parent, "base": options.base.resolve()}
    if not (checkouts["base"] / "kernelk" / "__init__.py").is_file():
        parser.error(f"{options.base} has no kernelk; next: make bench-against BASE=path of a checkout")
    header = ["row", "base", "this", "ratio", "by pair of processes", "blocks", "verdict"]
    print(" | ".join(header), flush=True)
    slower = False
    for group in options.only:
        if group == "wire" and not (checkouts["base"] / "kernelk/backends/serving/wire.py").is_file():
            print("wire: left out, since the base's is elsewhere", flush=True)
            continue
        pending: dict[tuple[str, str], dict[str, Row]] = {work: {} for work in GROUPS[group]}
        tables = list(pending.values())
        for _ in range(options.pairs):
            sides = {name: Side(checkout) for name, checkout in checkouts.items()}
            try:
                for (work, engine), rows in pending.items():
                    measure(sides, work, engine, rows)
            finally:
                for side in sides.values():
                    side.close()
            pending = {
                work: rows
                for work, rows in pending.items()
                if not rows or not all(row.narrow(options.width) for row in rows.values())
            }
            if not pending:
                break
        for rows in tables:
            for row in rows.values():
                print(" | ".join(row.cells()), flush=True)
                slower |= row.verdict() == "**slower**"
    sys.exit(slower)


if __name__ == "__main__":
    main()
