"""`make bench-clusters`: a call on another machine against ipyparallel's own, over loopback, in one run of turns."""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
from collections.abc import Callable
from operator import neg
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("KERNELK_QUIET", "1")

from measure import Comparison, compare, interval, repeated

import kernelk
from kernelk import backend as K

ROUNDS = 15


def row(label: str, found: Comparison, target: float) -> str:
    """One figure: the ratio with its interval, and what it should be."""
    middle, low, high = found.ratio
    met = "met" if low <= target else "missed"
    return f"{label}: {middle:.2f} [{low:.2f}, {high:.2f}] of ipyparallel's own, target {target:.2f}: {met}"


def empty_call(view: Any) -> Comparison:
    """A call of one number against `apply_sync` of a function that does next to nothing."""
    x = K.placeholder((1,))
    f = K.function([x], [x + 1.0])
    fed = np.zeros(1, np.float32)
    return compare(repeated(lambda: f([fed])), repeated(lambda: view.apply_sync(neg, 1)), ROUNDS, 30)


def large_feed(view: Any) -> Comparison:
    """10 MB fed, and one number back, against a push of the same array."""
    x = K.placeholder((None,))
    f = K.function([x], [x[0]])
    fed = np.zeros(2_500_000, np.float32)
    return compare(repeated(lambda: f([fed])), repeated(lambda: view.push({"fed": fed}, block=True)), ROUNDS, 8)


def step(name: str) -> Callable[[int], list[float]]:
    """Steps of a net with 9.7 MB of state on this engine, each timed with the lookup of its loss."""
    kernelk.set_backend(name)
    random = np.random.default_rng(3)
    sizes = [(784, 800), (800, 640), (640, 10)]
    variables = [K.variable(random.normal(size=size) * 0.05) for size in sizes]
    speeds = [K.zeros(K.int_shape(w)) for w in variables]
    x = K.placeholder((None, 784))
    y = x
    for w in variables:
        y = K.tanh(K.dot(y, w))
    loss = K.mean(K.square(y))
    updates = []
    for w, speed, slope in zip(variables, speeds, K.gradients(loss, variables)):
        moved = 0.9 * speed - 0.01 * slope
        updates += [K.update(speed, moved), K.update(w, w + moved)]
    f = K.function([x], [loss], updates)
    fed = random.normal(size=(32, 784)).astype(np.float32)
    f([fed])
    return repeated(lambda: f([fed]))


def main() -> None:
    """Starts a cluster of one engine, and measures on it."""
    import ipyparallel

    with tempfile.TemporaryDirectory() as folder:
        os.environ["IPYTHONDIR"] = folder
        os.environ["PYTHONPATH"] = os.pathsep.join(
            [str(Path(kernelk.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        )
        with ipyparallel.Cluster(n=1, profile="bench", cluster_id="", log_level=logging.ERROR) as client:
            view = client[0]
            kernelk.set_backend("numpy", on="bench")
            print(row("an empty call", empty_call(view), 1.3))
            print(row("a feed of 10 MB", large_feed(view), 1.2))
            kernelk.set_backend("numpy")
            kernelk.stop_backend("numpy@bench")
            training(view)


def training(view: Any) -> None:
    """A step there, less the same step in a worker here, in round trips of ipyparallel's own."""
    trip = repeated(lambda: view.apply_sync(neg, 1))
    more = []
    for _ in range(7):
        here, there, empty = (statistics.median(one) for one in (step("torch")(15), step("torch@bench")(15), trip(30)))
        more.append((there - 1.05 * here) / empty)
    middle, low, high = interval(more)
    trips = f"{middle:.2f} [{low:.2f}, {high:.2f}] round trips"
    print(f"a step of 9.7 MB of state: 1.05 of the step here and {trips}, target 1.50")
    kernelk.set_backend("numpy")


if __name__ == "__main__":
    main()
