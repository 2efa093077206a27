"""Measures Keras 2.3.1 on kernelk beside itself on its own backends, and a swap between two of its batches."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import old_keras
from measure import HERE, Answering, Comparison, compare, interval, native_environment

import kernelk
from kernelk.session.current import current
from kernelk.session.swap import set_backend

Row = list[str]

# The engine's share of the peer's time for an epoch, at most.
SHARES = {"tensorflow": 0.9, "theano": 1.0, "cntk": 1.0}
# Written without Keras, too: where that alone takes more than the share, it is the target.
BY_HAND = {("tensorflow", "dense")}
TITLES = {"dense": "dense net", "cnn": "small CNN", "lstm": "LSTM", "mnist_cnn": "CNN of 4.8 MB"}
# For an import, and in seconds for a swap.
IMPORT_SHARE, SWAP = 2.0, 0.030


# Rounds go on until a ratio's interval is narrow, up to so many times as many.
MOST = 4


def sides(case: str, engine: str, how: str = "") -> tuple[Answering, Answering]:
    """kernelk's process and the peer's, for a case; `how`, if it isn't kernelk that does it."""
    ours = Answering(sys.executable, ["keras2_side.py", case, how or engine], {**os.environ, "KERNELK_QUIET": "1"})
    python, environment = _peer(engine)
    return ours, Answering(python, ["keras2_side.py", case], environment)


def _peer(engine: str) -> tuple[Path, dict[str, str]]:
    """The peer's Python and its environment, in which it sets Theano and CNTK up as kernelk's worker does."""
    python, environment = old_keras.interpreter(engine)
    return python, {**native_environment(engine), **environment}


def epochs(engine: str, case: str, rounds: int, calls: int = 3) -> list[Row]:
    """An epoch on kernelk and on the engine itself; before it, where there is one, by hand on the engine of today."""
    share, rows = SHARES[engine], []
    title = f"an epoch of a {TITLES[case]}"
    if (engine, case) in BY_HAND:
        result = _compared(sides(case, engine, "by hand"), rounds, calls)
        rows.append(_row(engine, f"{title}, by hand on today's {engine}, without Keras", result, None))
        share = max(share, round(result.ratio[0], 2))
    return [*rows, _row(engine, title, _compared(sides(case, engine), rounds, calls), share)]


def _compared(both: tuple[Answering, Answering], rounds: int, calls: int) -> Comparison:
    ours, peer = both
    try:
        return compare(lambda n: ours.ask(f"{n}"), lambda n: peer.ask(f"{n}"), rounds, calls, MOST * rounds)
    finally:
        ours.close()
        peer.close()


def _row(engine: str, what: str, result: Comparison, share: float | None) -> Row:
    """A row; `share`: what the interval has to reach, None where it has no target."""
    median, low, high = result.ratio
    times = [f"{seconds * 1e3:.0f} ms" for seconds in (result.baseline, result.ours)]
    target = ["", ""] if share is None else [f"at most {share}", "yes" if low <= share else "**no**"]
    row = [engine, what, *times, f"{median:.2f} [{low:.2f}, {high:.2f}]", *target]
    print(" | ".join(row), flush=True)
    return row


def imported(python: Path | str, environment: dict[str, str], *engine: str) -> float:
    """The seconds from `import keras` to a compiled model, in a new process; with an engine on kernelk."""
    command = [str(python), "-W", "ignore", str(HERE / "keras2_side.py"), "import", *engine]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return float(done.stdout)


def importing(engine: str, rounds: int) -> Row:
    """From `import keras` to a compiled model."""
    python, environment = _peer(engine)
    ours = {**os.environ, "KERNELK_QUIET": "1"}
    result = compare(
        lambda n: [imported(sys.executable, ours, engine) for _ in range(n)],
        lambda n: [imported(python, environment) for _ in range(n)],
        rounds,
        1,
    )
    return _row(engine, "`import keras` to a compiled model", result, IMPORT_SHARE)


def swaps(engine: str, rounds: int) -> Row:
    """A warm swap of a model of 10 MB between two batches, to this engine and back to numpy."""
    kernelk.enable_keras2()
    import keras
    from keras import layers as L

    keras.backend.clear_session()
    model = keras.models.Sequential([L.Dense(1024, activation="relu", input_shape=(1100,)), L.Dense(128), L.Dense(10)])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "mse")
    assert 9e6 < 2 * 4 * model.count_params() < 11e6
    x, y = np.ones((32, 1100), "float32"), np.ones((32, 10), "float32")
    seconds = []
    for _ in range(rounds + 1):
        set_backend("numpy")
        model.train_on_batch(x, y)
        start = time.perf_counter()
        set_backend(engine)
        seconds.append(time.perf_counter() - start)
        model.train_on_batch(x, y)
    median, low, high = interval(seconds[1:])
    met = "yes" if median < SWAP else "**no**"
    row = [engine, f"{median * 1e3:.1f} ms [{low * 1e3:.1f}, {high * 1e3:.1f}]", f"under {SWAP * 1e3:.0f} ms", met]
    print(" | ".join(row), flush=True)
    current().host(engine).stop()
    return row
