"""The course: each unit runs as it is solved, also with few engines; students' versions have no solutions in them."""

from __future__ import annotations

import ast
import importlib.util
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from helpers.engines import absent

import kernelk

COURSE = Path(kernelk.__file__).parents[1] / "notebooks" / "course"
UNITS = [path.stem for path in sorted(COURSE.glob("[0-9]*.ipynb"))]


def module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"kernelk_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = made
    spec.loader.exec_module(made)
    return made


run = module(COURSE.parent / "run.py")
student = module(COURSE / "student.py")


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def text_of(cell: Any) -> str:
    """All that a cell printed and showed: what it prints may come in pieces, also within a line."""
    return "".join(o.get("text") or o.get("data", {}).get("text/plain", "") + "\n" for o in cell.outputs)


def executed(unit: str, folder: Path, engines: tuple[str, ...]) -> Any:
    """A unit, executed where no other engines than numpy and these are."""
    notebook = read(COURSE / f"{unit}.ipynb")
    hidden = (
        "from kernelk.engines import registry\n"
        f"for name in set(registry._entries()) - { ({'numpy', *engines})!r}:\n    del registry._entries()[name]"
    )
    notebook.cells.insert(0, nbformat.v4.new_code_cell(hidden, id="hidden"))
    path = folder / f"{unit}.ipynb"
    nbformat.write(notebook, path)
    return run.execute(path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "engines",
    [
        ("jax",),
        pytest.param((), marks=pytest.mark.soak),
        pytest.param(("tensorflow", "theano", "cntk", "jax", "torch"), marks=pytest.mark.soak),
    ],
    ids=lambda engines: "+".join(engines) or "numpy alone",
)
@pytest.mark.parametrize(
    "unit", [pytest.param(unit, marks=pytest.mark.soak if i else ()) for i, unit in enumerate(UNITS)]
)
def test_a_unit_runs_as_it_is_solved(unit: str, engines: tuple[str, ...], tmp_path: Path) -> None:
    for name in set(engines) & set(run.missing()):
        absent(name, run.missing()[name])
    notebook = executed(unit, tmp_path, engines)
    cells = {cell.id: text_of(cell) for cell in notebook.cells if cell.cell_type == "code"}
    if unit.startswith("01"):
        assert f"The other engine: {engines[0] if engines else 'numpy'}" in cells["choose-engine"]
        losses = [float(x) for x in re.findall(r"\d\.\d{3}", cells["train-on"] + cells["go-on"])]
        assert losses[0] == 2.303
        # The last one before the swap, and the first one after it.
        assert losses[1] == pytest.approx(losses[2], abs=0.01)
        assert losses[3] < 0.3
    if unit.startswith("02"):
        assert cells["print-once"].splitlines() == [
            "Python is here",
            "the engine is here: [2. 4.]",
            "the engine is here: [6. 8.]",
        ]
        before, after = re.findall(r"0\.\d{4}", cells["another-engine"])
        assert 0 <= float(before) - float(after) <= 1e-4
        assert (engines[0] if engines else "numpy") in cells["another-engine"]
    if unit.startswith("03"):
        assert cells["check-numeric-gradient"] == cells["compare-gradient"]
        errors = [float(x) for x in re.findall(r"slope is (\S+)", cells["step-sizes"])]
        # With long steps the curve bends, with short ones the digits run out.
        assert min(errors) < 1e-9 < 1e-5 < min(errors[0], errors[-1])
        assert "graph of loss: 5 ops" in cells["draw-loss"]
        assert "sigmoid_slope (gradient)" in cells["draw-slope"]
        assert max(map(float, re.findall(r"\S+e-\d+", cells["check-backward"]))) < 1e-10
        assert cells["rounded-naively"].strip() == "the largest slope: 0.0"
        before, after = map(float, re.findall(r"0\.\d{3}", cells["check-straight-through"].splitlines()[0]))
        assert after < 0.2 * before
        slopes = [[float(x) for x in line.split()[1:]] for line in cells["depth"].splitlines()[1:]]
        assert [slope < 1e-12 for slope in (row[-1] for row in slopes)] == [True, False, False]
        assert slopes[2] == [1, 1, 1, 1]
        by_rule, sigmoid, square, crossentropy = map(float, re.findall(r": +(\S+)", cells["saturated"]))
        assert (by_rule, crossentropy) == (0, 1)
        assert 0 < sigmoid < square < 1e-17
        gaps = re.findall(r"(\S+): furthest from your gradient (\S+)", cells["every-engine"])
        assert len(gaps) == len(engines) + 1
        assert all(float(gap) < 1e-12 for _, gap in gaps)
    if unit.startswith("04"):
        names = ["numpy", *engines]
        assert "%3 = add(%2, x)" in cells["check-operations"]
        for cell in ("first-calls", "pays-after", "count-forms"):
            assert re.findall(rf"^({'|'.join(names)}) ", cells[cell], re.MULTILINE) == names
        assert "kernelk 6 ops -> " in cells["show-develop"]
        fused = re.findall(r"(\w+): one loop", cells["who-fuses"])
        compiles = {"jax": "JAX"} if "Left out" in cells["who-fuses"] else {"jax": "JAX", "theano": "Theano"}
        assert sorted(fused) == sorted(compiles[name] for name in engines if name in compiles)
        assert ("Left out" in cells["who-fuses"]) == ("theano" in engines and shutil.which("g++") is None)
        assert cells["check-bytes"].strip() == "42.6 MB one by one, 6.6 MB in one loop"
        forms = dict(re.findall(r"(\w+) +(\d+) compiled form", cells["count-forms"]))
        assert forms == {name: "3" if name in ("cntk", "jax") else "1" for name in names}
        before, after = re.findall(r"(\d+) (?:before|after)", cells["new-value"])
        assert before == after
        assert float(cells["new-value"].split()[-1]) > 0.05
        other = "jax" if "jax" in engines else names[-1]
        assert f"on {other}: {3 if other == 'jax' else 1}" in cells["check-padded"]
    if unit.startswith("05"):
        names = ["numpy", *engines]
        assert float(cells["define-nearest"].split("%")[0]) > 90
        assert cells["choose-engine"].splitlines()[0] == f"Compared here: {', '.join(names)}"
        assert re.findall(rf"^({'|'.join(names)}) ", cells["five-calls"], re.MULTILINE) == names
        found = re.search(r"(\d+) of 20 calls came back before", cells["the-trap"])
        assert found is not None
        assert int(found[1]) > 0
        for cell in ("compare-engines", "same-twice", "one-thread", "sweep"):
            assert "failed" not in cells[cell]
            assert "beyond rounding" not in cells[cell]
            assert "results differ" not in cells[cell]
        for cell in ("compare-engines", "one-thread"):
            assert re.findall(rf"^  ({'|'.join(names)}) ", cells[cell], re.MULTILINE) == names
        assert re.findall(r"^(\w+) +\S+ to \S+: you say", cells["check-verdict"], re.MULTILINE) == names[1:]
        assert cells["sweep"].split("---")[0].split()[4:] == names
        exponents = re.findall(rf"^({'|'.join(names)}) +(-?\S+ +-?\S+ +-?\S+)$", cells["check-exponents"], re.MULTILINE)
        assert [name for name, _ in exponents] == names
        assert cells["check-exponents"].count("has the least time") == 4
    if unit.startswith("06"):
        one_by_one = [float(x.replace(",", "")) for x in re.findall(r"off by ([\d,]+) ulps", cells["photo"])]
        assert len(one_by_one) == 3
        assert min(one_by_one) > 19  # what the sum in pairs may be off by
        assert "sum inf, mean 0.56" in cells["float16"]
        assert "differ first at mean" in cells["kdiff-plain"]
        assert f"The other engine: {engines[0] if engines else 'plain'}" in cells["choose-engine"]
        assert cells["kdiff-other"].count("agree within the tolerance") == 2
        (rounding, wide_rounding), (fault, wide_fault) = (
            map(float, pair) for pair in re.findall(r"(\S+) in float32, (\S+) in float64", cells["wide-model"])
        )
        # The fault looks smaller, and stays.
        assert wide_rounding < rounding / 1000
        assert fault < rounding
        assert wide_fault > fault / 2
        assert re.search(r"is (same|rounding)$", cells["check-verdict"])
        (_, one_on_numpy), (two_on_plain, one_on_plain) = (
            map(float, pair) for pair in re.findall(r"two passes (\S+) off, in one pass (\S+) off", cells["cancel"])
        )
        assert one_on_plain > 10 * max(two_on_plain, one_on_numpy)
        able = [name for name in engines if name in ("tensorflow", "jax", "torch")]
        assert (f"{able[0]} multiplies" if able else "Left out") in cells["bfloat16"]
    if unit.startswith("07"):
        old = [name for name in ("theano", "cntk") if name in engines]
        today = [name for name in ("tensorflow", "jax", "torch") if name in engines][:1]
        route = ["numpy", *old, *today]
        assert f"The route: {' -> '.join(route)}" in cells["choose-engines"]
        for name, version in (("Theano", "1.0.5"), ("CNTK", "2.7")):
            told = f"{name} {version} runs under Python 3." if name.lower() in old else f"{name}"
            assert told in cells["choose-engines"]
        assert cells["softplus"].startswith("(0.0, 2.06")
        values = dict(re.findall(r"(\w+): (\S+)$", cells["show-theano"], re.MULTILINE))
        assert values == {name: "2.06e-09" if name == "theano" else "0" for name in route}
        assert ("Elemwise{log1p" if "theano" in old else "Left out: Theano") in cells["show-theano"]
        newton, descent = (
            [float(x) for x in re.findall(r"\d\.\d{4}", line)] for line in cells["newton-steps"].split("descent")
        )
        assert newton[0] == descent[0] == 0.6931
        assert newton[-1] < 0.13 < 0.3 < descent[-1]
        compiler = next((name for name in ("cntk", "jax") if name in engines), None)
        assert (f"{compiler}, a batch of 8:" if compiler else "Left out") in cells["per-shape"]
        fitted = re.findall(r"(\w+): loss (\S+) -> (\S+)", cells["fit"])
        assert [name for name, _, _ in fitted] == route
        losses = [float(x) for _, first, last in fitted for x in (first, last)]
        assert losses == sorted(losses, reverse=True)
    if unit.startswith("08"):
        assert "it has no op 'add'" in cells["refused"]
        (failed,) = re.findall(r"trials, (\d+) failed", cells["first-verdict"])
        assert int(failed) > 0
        # Each of the four that are wrong is among the failures that are shown.
        assert {"argmax", "Tensor", "round"} <= set(re.findall(r"mine: (\w+)", cells["first-verdict"]))
        assert "not [[nan]]" in cells["first-verdict"]
        assert "trials, 0 failed" in cells["check-suite"]
        mine, other = re.findall(r"\d\.\d{4}", cells["go-on"])
        assert float(mine) == pytest.approx(float(other), abs=2e-4)
        assert f"on {engines[0] if engines else 'numpy'}: {other}" in cells["go-on"]
        first, last = re.findall(r"\d\.\d{3}\b", cells["train-mine"])
        assert float(last) < float(first) / 2 + 0.1


@pytest.mark.parametrize("unit", UNITS)
def test_students_get_what_is_committed_for_them_and_no_solution(unit: str) -> None:
    made = student.without_solutions(COURSE / f"{unit}.ipynb")
    committed = student.STUDENT / f"{unit}.ipynb"
    assert committed.read_text(encoding="utf-8") == made, "next: python notebooks/course/student.py"
    assert "SOLUTION" not in made
    solved, given = read(COURSE / f"{unit}.ipynb"), read(committed)
    assert [cell.id for cell in solved.cells] == [cell.id for cell in given.cells]
    for before, after in zip(solved.cells, given.cells):
        exercise = before.metadata.get("nbgrader", {}).get("solution", False)
        assert (before.source != after.source) == exercise
        if exercise:
            assert "raise NotImplementedError()" in after.source
            compile(after.source, unit, "exec")


@pytest.mark.parametrize("unit", UNITS)
def test_what_graders_are_told(unit: str) -> None:
    notebook = read(COURSE / f"{unit}.ipynb")
    nbformat.validate(notebook)
    told = [cell.metadata["nbgrader"] for cell in notebook.cells if "nbgrader" in cell.metadata]
    assert all(one["schema_version"] == 3 and one["solution"] != one["grade"] for one in told)
    assert len({one["grade_id"] for one in told}) == len(told)
    points = [one["points"] for one in told if one["grade"]]
    # nbgrader takes the value of a check's last line, if it has one, for the points.
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("grade"):
            last = ast.parse(cell.source).body[-1]
            assert not isinstance(last, ast.Expr) or isinstance(last.value, ast.Call), cell.id
    # Each exercise is followed by its check.
    assert [one["solution"] for one in told] == [True, False] * len(points)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert [int(x) for x in re.findall(r"\*\*Exercise \d\*\* \((\d) points\)", text)] == points
    assert f"{len(points)} exercises of {sum(points)} points in all" in text
