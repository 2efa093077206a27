"""`benchmarks/against.py`: what it says of two builds' times, and that both builds answer."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections import defaultdict
from typing import Any

import pytest
from helpers.processes import PROJECT

BENCHMARKS = PROJECT / "benchmarks"


@pytest.fixture
def against(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module("against")
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(BENCHMARKS)):
            del sys.modules[name]


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
    assert row.cells("label")[-1] == verdict


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
    rows: dict[str, Any] = defaultdict(against.Row)
    try:
        against.measure(sides, "empty_call", "numpy", rows)
    finally:
        for side in sides.values():
            side.close()
    ((label, row),) = rows.items()
    assert label == "numpy: empty call"
    assert [len(ratios) for ratios in row.ratios] == [against.LEAST_BLOCKS]
    assert len(row.this) == len(row.base) == 2 * against.LEAST_BLOCKS


def test_what_is_no_checkout_is_named() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "against.py"), "/nowhere"], capture_output=True, text=True, cwd=PROJECT
    )
    assert done.returncode == 2
    assert "/nowhere has no kernelk; next: make bench-against BASE=path" in done.stderr
