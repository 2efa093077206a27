"""What `make soak` repeats thousands of times on a real session, and what it may cost for each time."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from faults.scale.world import use

from kernelk import backend as K

REAL = ("tensorflow", "theano", "cntk", "jax", "torch")
ENGINES = ("kernel", "light", *REAL)  # numpy in the kernel, numpy in a worker, and the five in their usual places

# A user's cell: it makes a variable, a placeholder and a function anew each time, computes and trains.
CELL = """
w = K.variable(np.arange(3.0))
x = K.placeholder((3,))
f = K.function([x], [K.sum(w * x)], [K.update_add(w, x)])
first, second = f([np.ones(3)]), f([np.ones(3)])
assert (float(first[0]), float(second[0]), K.get_value(w).tolist()) == (3.0, 6.0, [2.0, 3.0, 4.0])
"""


@dataclass(frozen=True)
class Job:
    """Something that is done `count` times in a process of its own.

    `per_time` is the memory in bytes that kernel and workers together may grow by each time, once warm.
    """

    name: str
    count: int
    per_time: int
    run: Callable[[Job], Iterator[None]]
    engine: str = ""

    @property
    def key(self) -> str:
        """The job's name in the results."""
        return f"{self.name} {self.engine}".strip()


def calls(job: Job) -> Iterator[None]:
    """A training step; each tenth call's outputs and, at last, the variables are compared with what is right."""
    use(job.engine)
    w, x = K.variable(np.zeros(4)), K.placeholder((4,))
    step = K.function([x], [w * 2.0], [K.update(w, (w + x) * 1.0)])
    ones = np.ones(4, "float32")
    # Floats hold whole numbers up to 2**24.
    assert job.count < 2**24
    for i in range(job.count):
        (got,) = step([ones])
        if i % 10 == 0:
            assert got.tolist() == [2.0 * i] * 4, (i, got)
        yield
    assert K.get_value(w).tolist() == [float(job.count)] * 4


def swaps(job: Job) -> Iterator[None]:
    """Swaps between all engines, each of them warm, in an order that changes; a step and its values after each."""
    rng = random.Random(job.engine)
    w, x = K.variable(np.zeros(4)), K.placeholder((4,))
    far = K.variable(np.arange(1000.0))
    step = K.function([x], [w * 2.0, K.sum(far[:10])], [K.update(w, w + x)])
    order: list[str] = []
    for i in range(job.count):
        if not order:
            order = list(ENGINES)
            rng.shuffle(order)
        use(order.pop())
        doubled, total = step([np.ones(4, "float32")])
        assert doubled.tolist() == [2.0 * i] * 4, (i, doubled)
        assert float(total) == 45.0
        yield
    assert K.get_value(w).tolist() == [float(job.count)] * 4
    assert K.get_value(far).tolist() == np.arange(1000.0).tolist()


def _shell() -> Callable[[str], None]:
    """A shell with kernelk, as a function that runs a cell and raises what the cell raises.

    Its history isn't written to a file, whose journal would be one descriptor more in some samples.
    """
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))

    def run(cell: str) -> None:
        shell.run_cell(cell, store_history=True).raise_error()

    run("%load_ext kernelk\nimport numpy as np\nfrom kernelk import backend as K")
    return run


def cells(job: Job) -> Iterator[None]:
    """A cell that is run again and again, in a shell."""
    run = _shell()
    use(job.engine)
    for _ in range(job.count):
        run(CELL)
        yield


def clears(job: Job) -> Iterator[None]:
    """The same cell with `K.clear_session()` before it."""
    run = _shell()
    use(job.engine)
    for _ in range(job.count):
        run("K.clear_session()\n" + CELL)
        yield


def reloads(job: Job) -> Iterator[None]:
    """The same cell after `%reload_ext kernelk`: what was made before goes on working."""
    run = _shell()
    use(job.engine)
    run("kept = K.variable(np.arange(3.0)); count = K.function([], [kept], [K.update_add(kept, K.ones((3,)))])")
    for i in range(job.count):
        run("%reload_ext kernelk")
        run(CELL)
        run(f"assert count([])[0].tolist() == [{i}, {i + 1}, {i + 2}]")
        yield


def jobs(share: float = 1.0) -> list[Job]:
    """All jobs: 1,000,000 calls, 10,000 swaps, 10,000 runs of a cell on each engine; or a share of each."""

    def count(whole: int) -> int:
        return max(20, round(whole * share))

    # IPython keeps each cell's text, input and result for `In`, `Out` and its history.
    history = 6_000
    made = [Job("calls", count(200_000), 64, calls, engine) for engine in ("kernel", "light")]
    made += [Job("calls", count(120_000), 64, calls, engine) for engine in REAL]
    made += [Job("swaps", count(2_500), 4_000, swaps, str(part)) for part in range(1, 5)]
    made += [Job("cells", count(10_000), history, cells, engine) for engine in ENGINES]
    # A real engine compiles anew each time.
    made += [Job("clears", count(2_000), history, clears, engine) for engine in ("kernel", "light")]
    made += [Job("clears", count(400), history, clears, engine) for engine in REAL]
    # Each ends the worker and starts one anew.
    made += [Job("reloads", count(1_000), 3 * history, reloads, engine) for engine in ("kernel", "light")]
    made += [Job("reloads", count(20), 10 * history, reloads, engine) for engine in REAL]
    return made
