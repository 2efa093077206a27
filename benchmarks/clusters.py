"""Measures a call on another machine against ipyparallel's own, over loopback and over slower networks."""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import neg
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("KERNELK_QUIET", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from helpers import namespaces
from helpers.clusters import far_cluster, local_cluster, wait_for
from measure import NARROW, Comparison, compare, interval, repeated

import kernelk
from kernelk import backend as K

Row = list[str]

# Where the bare network is measured: a port there that answers one byte to each message, which begins with its length.
PORT = 20001
ANSWER = """
import socket, sys
with socket.create_server((sys.argv[1], int(sys.argv[2]))) as server:
    while True:
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while head := connection.recv(8):
            left = int.from_bytes(head, "little")
            while left:
                left -= len(connection.recv(min(left, 1 << 18)))
            connection.sendall(b".")
"""

FED = 2_500_000  # of float32: 10 MB
STEP_BYTES = 32 * 784 * 4  # what a training step is fed


Interval = tuple[float, float, float]  # the median, and its interval's ends


@dataclass
class Network:
    """A way to an engine. `latency`: the seconds that a relay adds to a round trip; `rate`: as `tc` has it."""

    name: str
    latency: float | None = None
    rate: str = ""

    @property
    def most(self) -> int:
        """How many times as many rounds there may be for a narrow interval: where there is a target."""
        return 3 if self.has_target else 1

    @property
    def has_target(self) -> bool:
        """Whether the targets are meant for it."""
        return self.latency is None and not self.rate

    @property
    def calls(self) -> int:
        """So many short ones a turn, so that a turn is some tenths of a second."""
        return max(4, min(30, int(0.15 / (self.latency or 1e-3))))


FAR = [
    Network("another machine, nothing added"),
    Network("1 ms added", 0.001),
    Network("10 ms added", 0.01),
    Network("50 ms added", 0.05),
    Network("100 Mbit/s", rate="100mbit"),
]


@dataclass
class Measured:
    """What was found over one network; seconds, but for `bandwidth`, in bytes a second."""

    network: Network
    trip: float
    bandwidth: float
    empty: Comparison
    feed: Comparison
    here: float  # a step in a worker of this machine
    there: float
    # What the one there takes beyond 1.05 of it, in round trips of ipyparallel's, and in those with a pause as long.
    trips: Interval
    paused: Interval


def bare(address: str) -> tuple[float, float]:
    """A round trip in seconds, and the bandwidth, by TCP alone."""
    with socket.create_connection((address, PORT)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def send(data: bytes) -> Callable[[int], list[float]]:
            message = len(data).to_bytes(8, "little") + data

            def once() -> None:
                connection.sendall(message)
                connection.recv(1)

            return repeated(once)

        short, long = send(bytes(92)), send(bytes(4 * FED))
        short(3), long(1)
        trip = statistics.median(short(15))
        return trip, 4 * FED / (statistics.median(long(3)) - trip)


def empty_call(view: Any, network: Network, rounds: int) -> Comparison:
    """A call of one number against `apply_sync` of a function that does next to nothing."""
    x = K.placeholder((1,))
    f = K.function([x], [x + 1.0])
    fed = np.zeros(1, np.float32)
    ours, own = repeated(lambda: f([fed])), repeated(lambda: view.apply_sync(neg, 1))
    return compare(ours, own, rounds, network.calls, network.most * rounds)


def large_feed(view: Any, network: Network, rounds: int) -> Comparison:
    """10 MB fed, and one number back, against a push of the same array."""
    x = K.placeholder((None,))
    f = K.function([x], [x[0]])
    # Not zeros, whose pages aren't there.
    fed = np.ones(FED, np.float32)
    ours, own = repeated(lambda: f([fed])), repeated(lambda: view.push({"fed": fed}, block=True))
    return compare(ours, own, rounds, 1 if network.rate else min(8, network.calls), network.most * rounds)


def training() -> Callable[[], object]:
    """A step of a net with 9.7 MB of state, momentum included."""
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
    fed = random.normal(size=(STEP_BYTES // 4 // 784, 784)).astype(np.float32)
    return lambda: f([fed])


def steps(view: Any, network: Network, rounds: int) -> tuple[float, float, Interval, Interval]:
    """A step here and there, and what the latter takes beyond 1.05 of the former, in round trips of ipyparallel's.

    Then the same in round trips in whose midst the engine sleeps for as long as a step takes, which isn't counted:
    after a pause everything is slower, and in the midst of a step all but the engine pause.

    By one thread each: those of both machines, which wait for one another in a loop, share one machine's processors.
    Rounds go on as for a ratio, until the first interval is as narrow a part of a step there.
    """
    call = training()
    here, there, trips, paused = [], [], [], []

    def median(call: Callable[[], object], calls: int) -> float:
        return statistics.median(repeated(call)(calls))

    def beyond(trips: list[float]) -> Interval:
        return interval([(b - 1.05 * a) / trip for a, b, trip in zip(here, there, trips)])

    for done in range(1, network.most * rounds + 1):
        for name, found in (("torch", here), ("torch@bench", there)):
            kernelk.set_backend(name, threads=1)
            repeated(call)(3)
            found.append(median(call, min(15, network.calls)))
        trips.append(median(lambda: view.apply_sync(neg, 1), network.calls))
        nap = partial(time.sleep, here[-1])
        away = partial(view.apply_sync, time.sleep, here[-1])
        paused.append(median(away, network.calls) - median(nap, network.calls))
        _, low, high = beyond(trips)
        if done >= rounds and (high - low) * statistics.median(trips) <= NARROW * statistics.median(there):
            break
    return statistics.median(here), statistics.median(there), beyond(trips), beyond(paused)


def measured(view: Any, network: Network, address: str, rounds: int) -> Measured:
    """All of it, over one network."""
    trip, bandwidth = bare(address)
    kernelk.set_backend("numpy", on="bench")
    fewer = max(3, rounds // 3) if network.rate else rounds
    empty, feed = empty_call(view, network, rounds), large_feed(view, network, fewer)
    found = Measured(network, trip, bandwidth, empty, feed, *steps(view, network, fewer))
    kernelk.set_backend("numpy")
    for name in ("numpy@bench", "torch@bench"):
        kernelk.stop_backend(name)
    K.clear_session()
    for row in [*ratios(found), trips(found)]:
        print(" | ".join(row), flush=True)
    return found


@contextlib.contextmanager
def answering(address: str, start: Callable[..., subprocess.Popen[bytes]]) -> Iterator[None]:
    """Has the bare network's other end run."""
    process = start([sys.executable, "-c", ANSWER, address, str(PORT)])
    try:
        assert wait_for(lambda: _listens(address))
        yield
    finally:
        process.kill()
        process.wait()


def _listens(address: str) -> bool:
    try:
        socket.create_connection((address, PORT), 1.0).close()
    except OSError:
        return False
    return True


def networks(rounds: int, names: list[str]) -> tuple[list[Measured], str]:
    """What was found, and why nothing beyond this machine, if so. `names`: parts of those to measure; none: all."""

    def wanted(network: Network) -> bool:
        return not names or any(name in network.name for name in names)

    found, loopback = [], Network("loopback")
    if wanted(loopback):
        with local_cluster("bench", 1) as near, answering("127.0.0.1", subprocess.Popen):
            found.append(measured(near.client[0], loopback, "127.0.0.1", rounds))
    why = namespaces.problem()
    far = [network for network in FAR if wanted(network)]
    if why or not far:
        return found, why
    with far_cluster("bench", "far", controller="far", options=("--nodb",)) as cluster:
        (machine,) = cluster.machines
        with answering(machine.address, lambda command: machine.start(command, dict(os.environ))):
            for network in far:
                import ipyparallel

                cluster.go_by(network.latency, PORT)
                machine.limit(network.rate)
                with ipyparallel.Client(str(cluster.file)) as client:
                    found.append(measured(client[0], network, cluster.reached_at, rounds))
    return found, why


@dataclass
class Model:
    """The seconds of a call: `own` + `trips` round trips + bytes / bandwidth + bytes * `copying`."""

    own: float
    trips: float
    copying: float

    def __call__(self, found: Measured, nbytes: int) -> float:
        return self.own + self.trips * found.trip + nbytes / found.bandwidth + nbytes * self.copying


def model(found: list[Measured], side: str = "ours") -> Model:
    """The one that fits the empty calls best, by shares of them, and the feeds where the network is fastest.

    `side`: "baseline" for ipyparallel's own.
    """
    empty = np.array([getattr(one.empty, side) for one in found])
    columns = np.stack([1 / empty, np.array([one.trip for one in found]) / empty], axis=1)
    (own, trips), *_ = np.linalg.lstsq(columns, np.ones(len(found)), rcond=None)
    fast = max(found, key=lambda one: one.bandwidth)
    data = getattr(fast.feed, side) - getattr(fast.empty, side) - 4 * FED / fast.bandwidth
    return Model(float(own), float(trips), max(0.0, data / (4 * FED)))


def milliseconds(seconds: float) -> str:
    """With the digits that a measurement has."""
    return f"{seconds * 1e3:.{2 if seconds < 0.0095 else 1 if seconds < 0.0995 else 0}f} ms"


def ratios(found: Measured) -> list[Row]:
    """The rows of an empty call and of 10 MB."""
    rows = []
    for label, result, target in (("empty call", found.empty, 1.3), ("10 MB fed", found.feed, 1.2)):
        middle, low, high = result.ratio
        times = [milliseconds(result.baseline), milliseconds(result.ours), f"{middle:.2f} [{low:.2f}, {high:.2f}]"]
        rows.append([found.network.name, label, *times, *_met(found, low, target)])
    return rows


def trips(found: Measured) -> Row:
    """The row of a training step."""
    plain, paused = (f"{middle:.2f} [{low:.2f}, {high:.2f}]" for middle, low, high in (found.trips, found.paused))
    times = [milliseconds(found.here), milliseconds(found.there)]
    return [found.network.name, *times, plain, paused, *_met(found, found.trips[1], 1.5)]


def _met(found: Measured, low: float, target: float) -> Row:
    """The target, and whether the interval reaches it."""
    return [f"at most {target}", "yes" if low <= target else "**no**"] if found.network.has_target else ["", ""]


def modelled(found: list[Measured]) -> tuple[Model, Model, list[Row]]:
    """The models of kernelk's calls and of ipyparallel's, and rows: what was measured, and what the first one says."""
    fitted = model(found)
    rows = []
    for one in found:
        empty, feed, step = (
            f"{milliseconds(was)} ({milliseconds(says)})"
            for was, says in (
                (one.empty.ours, fitted(one, 4)),
                (one.feed.ours, fitted(one, 4 * FED)),
                (one.there, one.here + fitted(one, STEP_BYTES)),
            )
        )
        network = f"{milliseconds(one.trip)}, {one.bandwidth / 1e6:,.0f} MB/s"
        rows.append([one.network.name, network, empty, feed, step])
    return fitted, model(found, "baseline"), rows
