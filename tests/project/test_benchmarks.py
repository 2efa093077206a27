"""`benchmarks/`: its parts run, as far as they take seconds; what they measure is for `make bench`."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.benchmarks import benchmark
from helpers.engines import activate


@pytest.fixture
def bench() -> Iterator[Any]:
    with benchmark("run") as module:
        yield module


def test_an_op_beside_the_engines_own(bench: Any) -> None:
    activate("numpy")
    shown, ratio = bench.timing.paired("numpy", "gemm", bench.baseline, 2)
    assert len(shown) == 3
    assert ratio[0] > 0


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["theano", "torch"])
def test_a_step_beside_the_engines_own(bench: Any, engine: str) -> None:
    activate(engine)
    ours = bench.repeated(bench.model("large_step"))
    native = bench.baseline(engine, "large_step")
    assert bench.compare(ours, native, 2, 1).ratio[0] > 0
    native.close()


def test_rounds_go_on_until_the_interval_is_narrow(bench: Any) -> None:
    compare = bench.compare

    def spread(*seconds: float) -> Any:
        each = itertools.cycle(seconds)
        return lambda calls: [next(each)] * calls

    counts = []

    def counted(calls: int) -> list[float]:
        counts.append(calls)
        return [1.0] * calls

    assert compare(counted, spread(1.0), 4, 1, 16).ratio == (1, 1, 1)
    assert len(counts) == 1 + 4
    counts.clear()
    assert compare(counted, spread(1.0, 2.0, 4.0), 4, 1, 16).ratio[2] > 0.5
    assert len(counts) == 1 + 16


@pytest.mark.slow
def test_recoveries_and_peaks_of_memory(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Large enough for what Python itself takes meanwhile not to count.
    monkeypatch.setattr(bench.durable, "CASE", "huge_few")
    activate("jax")
    assert bench.durable.recovery("jax", 1, 2)[4].endswith("(2)")
    # The variables are there once in the kernel, and then in the engine, too.
    shares = [float(share) for share in bench.durable.peaks("jax")[1:]]
    assert shares[0] == pytest.approx(1, abs=0.3)
    assert shares[-1] > shares[0]


def test_an_epoch_of_an_old_model_and_what_its_import_takes(bench: Any) -> None:
    environment = {**os.environ, "KERNELK_QUIET": "1"}
    for case, how in [*((case, "numpy") for case in bench.keras2.TITLES), ("dense", "by hand")]:
        side = bench.keras2.Answering(sys.executable, ["keras2_side.py", case, how], environment)
        assert all(seconds > 0 for seconds in side.ask("1"))
        side.close()
    assert bench.keras2.imported(sys.executable, environment, "numpy") > 0
