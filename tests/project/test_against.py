"""`benchmarks/against.py`: what it says of two builds' times, and that both builds answer."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.benchmarks import BENCHMARKS, benchmark
from helpers.processes import PROJECT


@pytest.fixture
def against() -> Iterator[Any]:
    with benchmark("against") as module:
        yield module


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([0.6, 0.61, 0.62], "faster"),
        ([1.0, 1.005, 1.01], "no slower"),
        ([0.9, 1.01, 1.2], "not told apart"),
        ([1.1, 1.12, 1.15], "**slower**"),
    ],
)
def test_a_rows_verdict(against: Any, ratios: list[float], verdict: str) -> None:
    row = against.Row()
    row.ratios = [ratios] * 3
    row.this, row.base = [1.0], [1.0]
    assert row.verdict() == verdict
    assert row.cells()[-1] == verdict


def test_some_rows_may_take_a_few_microseconds_more(against: Any) -> None:
    row = against.Row("the wire of a call, both ends")
    row.ratios = [[1.1, 1.12, 1.15]] * 3
    row.base = [40e-6]
    assert row.verdict() == "**slower**"
    row.base = [10e-6]
    assert row.verdict() == "no slower"


def test_a_row_ends_when_its_interval_is_narrow_and_processes_were_several(against: Any) -> None:
    row = against.Row()
    row.ratios = [[1.0] * 20]
    assert not row.narrow(0.06)
    row.ratios = [[1.0] * 20] * 3
    assert row.narrow(0.06)
    row.ratios = [[0.8, 1.0, 1.2]] * 3
    assert not row.narrow(0.06)


def test_two_builds_take_turns(against: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(against, "SECONDS", 0.0)
    sides = {name: against.Side(PROJECT) for name in ("this", "base")}
    rows: dict[str, Any] = {}
    try:
        against.measure(sides, "empty_call", "numpy", rows)
        against.measure(sides, "wire", "numpy", rows)
    finally:
        for side in sides.values():
            side.close()
    row = rows["numpy: empty call"]
    assert rows["the wire of a call, both ends"].this[0] < 1.0
    assert [len(ratios) for ratios in row.ratios] == [against.LEAST_BLOCKS]
    assert len(row.this) == len(row.base) == 2 * against.LEAST_BLOCKS


def test_what_is_no_checkout_is_named() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "against.py"), "/nowhere"], capture_output=True, text=True, cwd=PROJECT
    )
    assert done.returncode == 2
    assert "/nowhere has no kernelk; next: make bench-against BASE=path" in done.stderr
