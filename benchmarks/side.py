"""One build of kernelk at work in a process of its own, for `against.py`, which starts one for each build in turns.

`python side.py` reads lines "WORK ENGINE N" and answers each with a JSON object: for each row of the table that the
work belongs to, the seconds of one call, out of N. The build is the first kernelk on PYTHONPATH; only what all builds
have in common is used.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

LOAD = """
import time
from IPython.core.interactiveshell import InteractiveShell
import numpy
shell = InteractiveShell.instance()
start = time.perf_counter()
shell.run_line_magic("load_ext", "kernelk")
print(time.perf_counter() - start)
"""
Work = Callable[[int], dict[str, float]]


def loading() -> float:
    """The seconds of `%load_ext kernelk` in a fresh IPython that has numpy."""
    # Without -P the folder that the benchmark was started from would come before PYTHONPATH, and with it its kernelk.
    done = subprocess.run([sys.executable, "-P", "-c", LOAD], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def median_of(call: Callable[[], object], calls: int) -> float:
    """The median of the seconds of so many calls; one more, before them, isn't counted."""
    call()
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def load(engine: str) -> Work:
    """`%load_ext kernelk`."""
    return lambda calls: {"%load_ext kernelk": statistics.median(loading() for _ in range(calls))}


def record(engine: str) -> Work:
    """One op recorded with its source line."""
    import numpy as np

    from kernelk import backend as K

    a, b = K.variable(np.ones((3, 4))), K.variable(np.ones((3, 4)))

    def work(calls: int) -> dict[str, float]:
        start = time.perf_counter()
        for _ in range(calls):
            a + b
        return {"recording a + b": (time.perf_counter() - start) / calls}

    return work


def graph(engine: str) -> Work:
    """A chain of 10,000 nodes: recorded, and made into a program with its key."""
    from kernelk import backend as K
    from kernelk.session import current

    x = K.placeholder((None, 3))
    host = current().host("numpy")
    host.start()

    def work(calls: int) -> dict[str, float]:
        recorded, keyed = [], []
        for _ in range(calls):
            # Both builds meet the collector at the same places.
            gc.collect()
            start = time.perf_counter()
            y = x
            for _ in range(5_000):
                y = K.tanh(y) * 0.5
            recorded.append(time.perf_counter() - start)
            call = K.function([x], [y])
            start = time.perf_counter()
            call.program_for(current(), host.ops, 0, None).specialise(((2, 3),), host.specialises)
            keyed.append(time.perf_counter() - start)
            del call, y
        return {
            "a graph of 10,000 nodes, recorded": statistics.median(recorded),
            "the same, linearised and keyed": statistics.median(keyed),
        }

    return work


def empty_call(engine: str) -> Work:
    """A call that computes nothing."""
    import models

    import kernelk

    kernelk.set_backend(engine)
    call = models.empty()
    return lambda calls: {f"{engine}: empty call": median_of(call, calls)}


def _training(case: str, title: str) -> Callable[[str], Work]:
    def work(engine: str) -> Work:
        import models

        import kernelk

        kernelk.set_backend(engine)
        call = models.model(case)
        return lambda calls: {f"{engine}: {title}": median_of(call, calls)}

    return work


def activations(engine: str) -> Work:
    """A chain of activations, and its gradient."""
    import models

    import kernelk

    kernelk.set_backend(engine)
    forward, backward = models.activations()
    return lambda calls: {
        f"{engine}: chain of activations": median_of(forward, calls),
        f"{engine}: its gradient": median_of(backward, calls),
    }


def swap(engine: str) -> Work:
    """A warm swap from numpy to an engine and back: 20 variables of 100 kB have changed since it had them."""
    import numpy as np

    import kernelk
    from kernelk import backend as K

    variables = [K.variable(np.full(25_000, i)) for i in range(20)]
    kernelk.set_backend(engine)

    def work(calls: int) -> dict[str, float]:
        seconds = []
        for i in range(calls + 1):
            kernelk.set_backend("numpy")
            K.batch_set_value([(v, np.full(25_000, i, "float32")) for v in variables])
            start = time.perf_counter()
            kernelk.set_backend(engine)
            kernelk.set_backend("numpy")
            seconds.append(time.perf_counter() - start)
        kernelk.set_backend(engine)
        return {f"warm swap numpy - {engine} - numpy": statistics.median(seconds[1:])}

    return work


def wire(engine: str) -> Work:
    """A call's request and reply, encoded, sent and decoded at both ends, in one thread: what nobody waits for."""
    import socket

    from kernelk.backends.serving.wire import Wire

    ours, theirs = socket.socketpair()
    worker = Wire(theirs)
    run = {"do": "run", "plan": 7, "define": None, "load": (), "sides": [1, 0]}
    # What an earlier build calls it, and this one.
    run.update(counter=3, counts=())
    done = {"seconds": 1e-5}
    try:
        from kernelk.engines.exchange import Exchange
    except ImportError:
        kernel = Wire(ours)

        def turn(number: int) -> None:
            worker.send(done)
            kernel.send(run)
            kernel.receive()
            worker.receive_with_files()

    else:
        try:
            exchange = Exchange(Wire(ours))
        except TypeError:
            # A version that makes the wire itself.
            exchange = Exchange(ours, lambda: lambda: None)
        turns = iter(range(1, 1 << 60))

        def turn(number: int) -> None:
            # Before it is asked for, so that it is there at once.
            worker.send(done, next(turns))
            exchange.ask(run)
            worker.receive_with_files()

    def work(calls: int) -> dict[str, float]:
        start = time.perf_counter()
        for number in range(calls):
            turn(number)
        return {"the wire of a call, both ends": (time.perf_counter() - start) / calls}

    return work


WORKS = {
    **{work.__name__: work for work in (load, record, graph, empty_call, activations, swap, wire)},
    "small_step": _training("small_step", "small training step"),
    "large_step": _training("large_step", "large training step"),
    "lenet": _training("lenet32", "LeNet step"),
    "lstm": _training("lstm", "LSTM step"),
}


def main() -> None:
    """Answers until standard input ends."""
    os.environ["KERNELK_QUIET"] = "1"
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from kernelk import config

    # Theano's C code is compared; a build that always waits for it doesn't know the setting.
    config.LIMITS.build_beside = False
    prepared = functools.cache(lambda name, engine: WORKS[name](engine))
    for line in sys.stdin:
        name, engine, calls = line.split()
        print(json.dumps(prepared(name, engine)(int(calls))), file=answers, flush=True)


if __name__ == "__main__":
    main()
