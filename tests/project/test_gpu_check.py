"""`benchmarks/gpu_check.py`: what it does on a GPU, done on a processor, and what it says where there is no GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.benchmarks import benchmark
from helpers.engines import activate


@pytest.fixture
def check() -> Iterator[Any]:
    with benchmark("gpu_check") as module:
        yield module


def test_without_a_gpu_it_says_so(
    check: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = check.gpus()
    assert "torch lists cpu:0" in capsys.readouterr().out
    assert not any(device.startswith("cpu") for device in found.values())
    monkeypatch.setattr(check, "gpus", dict)
    assert check.main() == 0
    assert "no GPU: nothing was checked" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", pytest.param("jax", marks=pytest.mark.soak)])
def test_what_it_does_on_a_device(check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    activate(engine)
    monkeypatch.setattr(check, "processors", lambda: {engine: "cpu:0"})
    monkeypatch.setattr("sys.argv", ["gpu_check.py", "--device", "cpu"])
    monkeypatch.setattr(check, "HERE", tmp_path)
    monkeypatch.setattr(check, "DRAWN", (3, 4))
    monkeypatch.setattr(check, "STEPS", {"small_step": check.STEPS["small_step"]})
    monkeypatch.setattr(check, "ROUNDS", 1)
    monkeypatch.setattr(check, "MOVED", 2)
    monkeypatch.setattr(check, "COUNTS", (1, 3))
    monkeypatch.setattr(check, "FED", 1)
    real = {name: getattr(check.kernelk, name) for name in ("profile", "compare")}
    for name, call in real.items():
        monkeypatch.setattr(
            check.kernelk, name, lambda *what, call=call, budget=0.0: call(*what, budget=0.5), raising=False
        )
    assert check.main() == 0
    text = (tmp_path / "GPU_RESULTS.md").read_text()
    assert f"## {engine} on cpu:0" in text
    assert "its ops one by one" in text
    assert "reference" in text
    # In a worker and in this process: a matrix product and a convolution, in the two precisions of a processor.
    assert len(re.findall(r"^\| (?:a worker|this process) \|.*\| yes \|$", text, re.MULTILINE)) == 8
    assert "(3, 4) uniform draws and their maximum" in text
    assert "they are numpy's bit for bit" in text
    assert "| MLP step, 77 kB of state | " in text
    assert "A tensor of 1 MB on cpu:0 was fed where it lies" in text
    rows = re.findall(r"^\| 2 MB in (.*) \| [\d.]+ s \| [\d.]+ s \| [\d.]+ \[", text, re.MULTILINE)
    assert rows == ["1 variable, in", "1 variable, out", "3 variables, in", "3 variables, out"]


@pytest.mark.slow
def test_a_swap_between_two_devices(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for engine in ("torch", "jax"):
        activate(engine)
    monkeypatch.setattr(check, "SWAPPED", 1)
    monkeypatch.setattr(check, "ROUNDS", 1)
    rows = check.swaps({"torch": "cpu:0", "jax": "cpu:0"})
    assert [row.split(" | ")[0] for row in rows] == ["| torch to jax", "| jax to torch"]
