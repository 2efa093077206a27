"""`make bench-sweeps`: a sweep over the machines of a cluster against the same sweep on one of them, in turns.

The engine's op sleeps, so that two processors don't decide how many machines work at once. Without `--on`, the
machines are four network namespaces of this one, or, where it can't have any, four engines that are told to be four;
with it, those of a cluster that runs, whose engines have this project's `tests` in their PYTHONPATH.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("KERNELK_QUIET", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from helpers import namespaces
from helpers.clusters import far_cluster, local_cluster
from helpers.sleeping import package, settle
from measure import interval

import kernelk
from kernelk import backend as K

# So many points, each for so many seconds; the ops of one call sleep for as many milliseconds as it has elements.
POINTS, SECONDS, FIRST = 16, 3.0, 20
ROUNDS = 5
TARGET = 3.0


def seconds(on: Any) -> float:
    """What one sweep takes. Raises RuntimeError where a point has failed."""
    x = K.placeholder((None,))
    f = K.function([x], [K.sum(K.exp(x))])
    values = list(range(FIRST, FIRST + POINTS))
    start = time.perf_counter()
    found = kernelk.compare(lambda n: f([np.zeros(n)]), "sleeping", on=on, sweep={"n": values}, budget=POINTS * SECONDS)
    taken = time.perf_counter() - start
    failures = [side.failure for _, point in found.points for side in point.sides if side.failure]
    if failures:
        raise RuntimeError(failures[0])
    return taken


def measured(client: Any, rounds: int) -> tuple[float, float, float]:
    """How many times as fast all engines are as the first one, with its interval."""
    with tempfile.TemporaryDirectory() as folder:
        package(Path(folder))
        sys.path.append(folder)
        for number in client.ids:
            client[number].apply_sync(settle, [folder])
        kernelk.set_backend("numpy")
        first = client[client.ids[0]]
        # The first one has the engines' processes import kernelk.
        seconds(client)
        ratios = []
        for _ in range(rounds):
            alone, together = seconds(first), seconds(client)
            print(f"{alone:.1f} s on one, {together:.1f} s on all", flush=True)
            ratios.append(alone / together)
    return interval(ratios)


def main() -> None:
    """Measures on the cluster that is named, or on one of four engines."""
    import ipyparallel

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--on", metavar="NAME", help="a cluster that runs")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    if given.on:
        with ipyparallel.Client(profile=given.on) as client:
            return told(client, given.rounds)
    names = [f"m{number}" for number in range(4)]
    if why := namespaces.problem():
        print(f"on one machine, told to be four: {why}", flush=True)
    else:
        with far_cluster("four", *names) as far:
            return told(far.client, given.rounds)
    with local_cluster("four", 4) as cluster:
        for number in cluster.client.ids:
            cluster.client[number].apply_sync(settle, KERNELK_MACHINE=names[number])
        return told(cluster.client, given.rounds)


def told(client: Any, rounds: int) -> None:
    """Prints the figure."""
    count = len(client.ids)
    middle, low, high = measured(client, rounds)
    met = "met" if high >= TARGET else "missed"
    ratio = f"{middle:.2f} [{low:.2f}, {high:.2f}]"
    print(f"a sweep over {count} engines: {ratio} times as fast as on one, target {TARGET:g} on 4: {met}")


if __name__ == "__main__":
    main()
