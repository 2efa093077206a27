"""Measures what durability costs beside a call's time: how long a worker's death holds one up, and peaks of memory."""

from __future__ import annotations

import gc
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from measure import Answering, interval
from models import model
from native import shapes

from kernelk.backends.serving.freed import REST
from kernelk.session.current import current
from kernelk.session.swap import set_backend

Row = list[str]

CASE = "large_state"
# The bar of a recovery, in seconds, beyond the engine's start, its compiling and the calls that are repeated.
BEYOND = 5.0


def checkpoint(host: Any) -> None:
    """Brings all values that the engine has alone to the kernel's memory."""
    if host.fetch is not None and host.holding:
        host.fetch(list(host.holding.values()))


def recovery(engine: str, rounds: int, calls: int = 10) -> Row:
    """A call whose worker was killed before it, after so many calls since the last checkpoint."""
    set_backend(engine)
    step = model(CASE)
    step()
    host = current().host(engine)
    spent: dict[str, float] = {}
    made: dict[str, int] = {}
    ask = host.request

    def request(message: dict[str, Any]) -> dict[str, Any]:
        begin = time.perf_counter()
        reply = ask(message)
        what = message["do"]
        spent[what] = spent.get(what, 0.0) + time.perf_counter() - begin
        made[what] = made.get(what, 0) + 1
        return reply

    host.request = request  # type: ignore[method-assign]
    found = []
    for _ in range(rounds):
        # The calls from here on are those that a death would cost.
        checkpoint(host)
        seconds = []
        for _ in range(calls):
            begin = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - begin)
        assert host.pid is not None
        os.kill(host.pid, signal.SIGKILL)
        spent.clear()
        made.clear()
        begin = time.perf_counter()
        step()
        total = time.perf_counter() - begin
        repeated = made["run"] - 1
        replay = repeated * statistics.median(seconds)
        found.append((total, host.start_seconds, spent.get("compile", 0.0), repeated, replay))
    beyond = interval([total - start - compiling - replay for total, start, compiling, _, replay in found])
    total, start, compiling, repeated, replay = (statistics.median(column) for column in zip(*found))
    met = "yes" if beyond[2] <= BEYOND else "**no**"
    row = [
        engine,
        f"{total:.1f} s",
        f"{start:.1f} s",
        f"{compiling:.1f} s",
        f"{replay:.1f} s ({repeated:.0f})",
        f"{beyond[0]:.1f} s [{beyond[1]:.1f}, {beyond[2]:.1f}]",
        f"at most {BEYOND:.0f} s",
        met,
    ]
    print(" | ".join(row), flush=True)
    return row


def peaks(engine: str) -> Row:
    """The memory of the kernel and the engine's worker together, in multiples of the bytes of all variables.

    At rest in the kernel, the peak of a swap, at rest after it, the peak of some steps, and that of a checkpoint.
    """
    state = 2 * sum(4 * math.prod(shape) for shape in shapes(CASE)[0])
    set_backend("numpy")
    host = current().host(engine)
    host.stop()
    set_backend(engine)
    assert host.pid is not None
    sampler = Answering(sys.executable, ["sampler.py", str(os.getpid()), str(host.pid)], dict(os.environ))

    def most(action: Callable[[], object]) -> float:
        sampler.ask("begin")
        action()
        return float(sampler.ask("end"))

    def rest() -> float:
        gc.collect()
        # A worker gives back what it keeps for the next call.
        time.sleep(2 * REST)
        return most(lambda: time.sleep(0.2))

    try:
        before = rest()
        set_backend("numpy")
        step = model(CASE)
        found = [rest(), most(lambda: set_backend(engine)), rest()]
        found.append(most(lambda: [step() for _ in range(5)]))
        found.append(rest())
        found.append(most(lambda: checkpoint(host)))
        found.append(rest())
    finally:
        sampler.close()
    row = [engine, *(f"{(nbytes - before) / state:.1f}" for nbytes in found)]
    print(" | ".join(row), flush=True)
    return row
