"""The bounded part of `make faults`: a few seeded programs with faults on the light engine, and on one real one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faults.scale.injection import KINDS
from faults.scale.model import Model
from faults.scale.run import carry_out, in_child, plan, without
from helpers.engines import activate


def jobs(seeds: range, engines: list[str]) -> list[dict[str, Any]]:
    """The program that a child carries out."""
    made = []
    for seed in seeds:
        steps, faults = plan(seed, engines, KINDS)
        made.append({"seed": seed, "steps": steps, "faults": {str(index): fault for index, fault in faults.items()}})
    return made


@pytest.mark.parametrize(
    "engines",
    [["light", "kernel"], ["kept-light", "light", "kernel"], ["checked-light", "kernel"], ["kept-torch", "kernel"]],
    ids=" ".join,
)
def test_programs_with_faults_lose_nothing_and_are_never_wrong(engines: list[str]) -> None:
    if "kept-torch" in engines:
        activate("torch")
    lines, words = in_child(jobs(range(1000, 1006), engines), engines)
    assert [line for line in lines if "failed" in line] == [], words
    assert sum(line["faults"] for line in lines) > 20


def test_a_wrong_value_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [["make", "t0", [1, 2, 3], [4, 5, 6]], ["step", "t0", [1, 0, 0]]]
    assert carry_out(steps, {}, ["kernel"], tmp_path) == {"faults": 0, "raised": 0}
    monkeypatch.setattr(Model, "do_look", lambda self, name: [0, 0, 0])
    with pytest.raises(AssertionError, match=r"step 0 .*afterwards t0 gives"):
        carry_out(steps, {}, ["kernel"], tmp_path)


def test_the_model_computes_all_updates_from_the_values_before() -> None:
    model = Model()
    model.do(["make", "a", [1, 2, 3], [0, 0, 1]])
    assert model.do(["step", "a", [5, 5, 5]]) == [[1, 2, 4], [5, 10, 15]]
    assert model.do(["read", "a"]) == [[4, 3, 2], [7, 9, 10]]
    model.do(["save"])
    model.do(["set", "a", [0, 0, 0], [0, 0, 0]])
    model.do(["load"])
    assert model.do(["look", "a"]) == [5, 0, -4]


def test_a_step_is_taken_out_with_its_fault() -> None:
    job = {"seed": 1, "steps": [["a"], ["b"], ["c"]], "faults": {"0": ["kill", 1], "2": ["wire", 2]}}
    assert without(job, 0) == {"seed": 1, "steps": [["b"], ["c"]], "faults": {"1": ["wire", 2]}}
    assert without(job, 1) == {"seed": 1, "steps": [["a"], ["c"]], "faults": {"0": ["kill", 1], "1": ["wire", 2]}}
