"""The notebooks, executed in a real kernel as by `make demo`: what they claim is checked in their outputs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
from helpers.engines import absent
from helpers.processes import PROJECT

NOTEBOOKS = PROJECT / "notebooks"
FIRST = NOTEBOOKS / "01_first_swap.ipynb"
LIVES = NOTEBOOKS / "03_keras2_lives.ipynb"
STATIONS = ["tensorflow", "theano", "cntk", "tensorflow"]
SWAPS = [("to-theano", "tensorflow", "theano"), ("to-cntk", "theano", "cntk")]
SWAPS += [("back-to-tensorflow", "cntk", "tensorflow")]


def _script() -> Any:
    spec = importlib.util.spec_from_file_location("notebooks_run", NOTEBOOKS / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


run = _script()


def executed_with(figures: str, source: Path, folder: Path) -> Any:
    """A notebook as it is executed in this folder, with one more cell, "figures", that has this code."""
    for name, line in run.missing().items():
        absent(name, line)
    notebook = nbformat.read(source, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(figures, id="figures"))
    path = folder / source.name
    nbformat.write(notebook, path)
    # As a user has it: without the silence, and the settings, of the other tests.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("KERNELK_QUIET", "KERAS_"))}
    return run.execute(path, env={**env, "KERAS_HOME": str(folder)})


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The executed notebook, with one more cell that prints the raw figures of the run."""
    figures = "import json\nprint(json.dumps([swapped_run[0], swapped_run[2], float(gap)]))"
    return executed_with(figures, FIRST, tmp_path_factory.mktemp("notebook"))


def outputs(notebook: Any, cell_id: str) -> list[Any]:
    return list(next(cell for cell in notebook.cells if cell.id == cell_id).outputs)


def printed(notebook: Any, cell_id: str) -> str:
    return "".join(o.text for o in outputs(notebook, cell_id) if o.output_type == "stream" and o.name == "stdout")


def errors_printed(notebook: Any) -> list[str]:
    streams = [o for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream"]
    return [line for o in streams if o.name == "stderr" for line in o.text.splitlines()]


def table(notebook: Any) -> dict[str, list[str]]:
    """The final table's rows, by engine."""
    lines = [[entry.strip() for entry in line.strip("| ").split("|")] for line in run.final_table(notebook).split("\n")]
    return {line[0]: line for line in lines[2:]}


def test_nothing_fails_and_nothing_is_printed_beside_the_engines_in_use(executed: Any) -> None:
    kinds = {o.output_type for cell in executed.cells for o in cell.get("outputs", [])}
    assert "error" not in kinds
    line = re.compile(r"Using (TensorFlow|Theano|CNTK|numpy) \S+ backend \(chosen by (%kbackend|set_backend)\)")
    # matplotlib says this once on a machine where it hasn't run before.
    others = [text for text in errors_printed(executed) if not line.fullmatch(text) and "font cache" not in text]
    assert others == []


@pytest.mark.parametrize(("cell", "origin", "target"), SWAPS, ids=[swap[0] for swap in SWAPS])
def test_each_swap_reports_and_moves_every_variable_bit_for_bit(
    executed: Any, cell: str, origin: str, target: str
) -> None:
    [report] = [o.data for o in outputs(executed, cell) if o.output_type == "execute_result"]
    assert report["text/plain"].startswith(f"{origin} -> {target}\n")
    assert re.search(r"variables +8 \(\S+ kB\), bit for bit", report["text/plain"])
    assert "<table>" in report["text/html"]


@pytest.mark.parametrize("cell", ["fit-theano", "fit-cntk", "fit-tensorflow-again"])
def test_the_engine_itself_shows_the_same_variables_and_loss_after_a_swap(executed: Any, cell: str) -> None:
    text = printed(executed, cell)
    assert "8 variables on" in text
    assert "bit-identical across the swap" in text
    found = re.search(r"loss on all training images: (\S+) before, (\S+) after", text)
    assert found is not None
    before, after = float(found[1]), float(found[2])
    assert after == pytest.approx(before, abs=2e-6)


def test_the_loss_goes_on_from_where_it_was(executed: Any) -> None:
    losses, engines, gap = json.loads(printed(executed, "figures"))
    assert [engines[i] for i in (0, 100, 200, 300)] == STATIONS
    assert len(losses) == len(engines) == 400
    change = np.abs(np.diff(np.log(losses)))  # between steps i and i + 1
    for swap in (100, 200, 300):
        around = np.r_[change[swap - 41 : swap - 1], change[swap : swap + 40]]
        assert change[swap - 1] <= around.max()
    assert np.mean(losses[-20:]) < 0.15 * losses[0]
    # Nor is the whole run any other than one on numpy alone.
    assert gap < 1e-4


def test_accuracy_on_images_never_seen(executed: Any) -> None:
    found = re.search(r"test accuracy: ([\d.]+)% of 450 images", printed(executed, "test-accuracy"))
    assert found is not None
    assert float(found[1]) > 93


def test_the_final_table_shows_real_engines_in_processes_of_their_own(executed: Any) -> None:
    rows = table(executed)
    assert list(rows) == ["numpy", "TensorFlow", "Theano", "CNTK"]
    major, minor = rows["TensorFlow"][1].split(".")[:2]
    assert (int(major), int(minor)) >= (2, 21)
    assert rows["Theano"][1] == "1.0.5"
    assert rows["CNTK"][1] == "2.7"
    assert rows["CNTK"][2].startswith("Python 3.6.")
    assert rows["Theano"][2].startswith(("Python 3.6.", "Python 3.8."))
    assert rows["numpy"][3].startswith("this kernel, ")
    assert all(rows[name][3].startswith("worker, ") for name in ("TensorFlow", "Theano", "CNTK"))
    assert len({row[3].split(", ")[1] for row in rows.values()}) == 4
    for row in rows.values():
        assert re.fullmatch(r"[\d,]+ ms", row[5])
        median, low, high = map(float, re.findall(r"\d+\.\d+", row[6]))
        assert 0 < low <= median <= high
        assert row[7] == "the reference" if row[0] == "numpy" else float(row[7]) < 1e-5


def test_the_page_holds_the_table_and_the_described_pictures(executed: Any) -> None:
    page = run.html(executed)
    assert re.search(r"<td[^>]*>CNTK</td>", page)
    pictures = re.findall(r"<img[^>]*>", page)
    assert len(pictures) == 2
    assert all("data:image/png;base64," in picture for picture in pictures)
    assert all(len(re.findall(r'alt="([^"]*)"', picture)[0]) > 30 for picture in pictures)
    assert "<script" not in page


def test_engines_that_cannot_be_had_are_left_out_with_a_line_that_says_so() -> None:
    notebook = nbformat.read(FIRST, as_version=4)
    run.leave_out(notebook, {"theano": "Theano isn't here", "cntk": "CNTK isn't here"})
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert re.findall(r"^%kbackend (.*)$", code, re.MULTILINE) == ["tensorflow", "tensorflow"]
    lines = [cell.source for cell in notebook.cells if cell.source.startswith("*Left out here: ")]
    assert lines == ["*Left out here: Theano isn't here*"] * 2 + ["*Left out here: CNTK isn't here*"] * 2
    nbformat.validate(notebook)


@pytest.mark.parametrize("path", [FIRST, LIVES], ids=lambda path: path.stem)
def test_the_committed_notebook_was_executed_in_order_and_holds_nothing_of_a_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not [o for cell in cells for o in cell.outputs if o.output_type == "error"]
    if path == FIRST:
        assert list(table(notebook)) == ["numpy", "TensorFlow", "Theano", "CNTK"]
    shown = "\n".join(json.dumps(o.get("text") or o.data.get("text/plain")) for cell in cells for o in cell.outputs)
    assert not re.search(r"/(root|home|work|tmp|Users|usr|opt)/", shown)


# --- which is faster ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The second notebook, executed; with a tenth of its budgets, which are for figures and not for tests."""
    for name, line in run.missing().items():
        absent(name, line)
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOKS / "02_which_is_faster.ipynb", as_version=4)
    for cell in notebook.cells:
        cell.source = re.sub(r"(budget[ =])(\d+)", lambda found: f"{found[1]}{int(found[2]) / 10}", cell.source)
    path = folder / "second.ipynb"
    nbformat.write(notebook, path)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("KERNELK_QUIET", "KERAS_"))}
    return run.execute(path, env={**env, "KERAS_HOME": str(folder)})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("compare-gemm", ["tensorflow", "theano", "cntk", "jax", "torch"]),
        ("sweep-gemm", ["numpy", "tensorflow", "theano", "torch"]),
        ("compare-chain", ["numpy", "tensorflow", "theano", "cntk", "jax", "torch"]),
        ("compare-layout", ["channels_last", "channels_first"]),
        ("compare-lstm", ["numpy", "tensorflow", "jax", "torch"]),
        ("compare-threads", ["tensorflow", "theano", "jax", "torch"]),
        ("compare-dtype", ["single", "double"]),
        ("profile-jax", ["tanh", "multiply", "add"]),
    ],
)
def test_each_comparison_has_times_of_all_and_equal_results(compared: Any, cell: str, labels: list[str]) -> None:
    [result] = [o.data for o in outputs(compared, cell) if o.output_type == "execute_result"]
    assert all(label in result["text/plain"] for label in labels)
    assert "failed" not in result["text/plain"]
    assert "beyond rounding" not in result["text/plain"]
    assert "<table>" in result["text/html"]


def test_the_pictures_are_there_and_say_what_they_show(compared: Any) -> None:
    page = run.html(compared)
    assert page.count("<img") == 2
    assert "No description" not in page
    assert {o.output_type for cell in compared.cells for o in cell.get("outputs", [])} <= {
        "execute_result",
        "display_data",
        "stream",
    }


# --- Keras 2 lives --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The third notebook, executed, with one more cell that prints the raw figures of its runs."""
    figures = (
        "import json\nprint(json.dumps([tour.losses, tour.engines, alone.losses, alone.engines,"
        " rows_tour.losses, rows_tour.engines, {name: float(np.max(np.abs(maps[name] - reference)) / np.max(reference))"
        " for name in route}]))"
    )
    return executed_with(figures, LIVES, tmp_path_factory.mktemp("notebook"))


ROUTE = ["tensorflow", "theano", "cntk", "jax", "torch"]


def test_keras_2_prints_nothing_but_its_epochs_and_the_engines_in_use(lived: Any) -> None:
    assert "error" not in {o.output_type for cell in lived.cells for o in cell.get("outputs", [])}
    lines = re.compile(
        r"Using (TensorFlow|Theano|CNTK|JAX|PyTorch) \S+ backend \(chosen by (%kbackend|set_backend)\)"
        r"|import keras gives Keras 2\.3\.1 on kernelk .*"
    )
    others = [text for text in errors_printed(lived) if not lines.fullmatch(text) and "font cache" not in text]
    assert others == []


def test_one_fit_goes_through_five_engines_and_is_the_same_as_on_one(lived: Any) -> None:
    losses, engines, alone, engine, rows, engines_of_rows, _ = json.loads(printed(lived, "figures"))
    assert len(losses) == len(rows) == 70
    assert engines == engines_of_rows == [ROUTE[step // 7 % 5] for step in range(70)]
    assert set(engine) == {"tensorflow"}
    np.testing.assert_allclose(losses, alone, rtol=0, atol=1e-4)
    for falling in (losses, rows):
        assert np.mean(falling[-7:]) < 0.4 * falling[0]
    for cell, least in (("define-tour", 90), ("train-lstm", 80)):
        found = re.search(r"test accuracy: ([\d.]+)% of 453 images", printed(lived, cell))
        assert found is not None
        assert float(found[1]) > least


def test_the_tools_show_the_model_by_its_layers(lived: Any) -> None:
    layers = ["conv2d_1", "last_conv", "max_pooling2d_1", "dropout_1", "flatten_1", "dense_1", "dropout_2", "dense_2"]
    [graph] = [o.data for o in outputs(lived, "graph") if o.output_type == "execute_result"]
    assert graph["text/plain"].startswith("graph of model 'cnn'")
    assert [name for name in layers if f"[{name}]" in graph["text/plain"]] == layers
    assert "data:image/svg+xml" in graph["text/html"]
    [times] = [o.data for o in outputs(lived, "profile-cnn") if o.output_type == "execute_result"]
    named = [line.split()[0] for line in times["text/plain"].splitlines()[3:-1]]
    assert named == [name for name in layers if not name.startswith("dropout")]
    assert printed(lived, "diff-cnn").startswith("torch and numpy agree within the tolerance")


def test_grad_cam_is_the_same_on_each_engine(lived: Any) -> None:
    gaps = json.loads(printed(lived, "figures"))[-1]
    assert list(gaps) == ROUTE
    assert max(gaps.values()) < 1e-3


def test_the_page_of_keras_2_holds_its_pictures(lived: Any) -> None:
    pictures = re.findall(r"<img[^>]*>", run.html(lived))
    # The graph, two losses, and the maps.
    assert len(pictures) == 4
    assert all(len(re.findall(r'alt="([^"]*)"', picture)[0]) > 30 for picture in pictures)


@pytest.mark.slow
def test_a_training_run_outlives_the_machine_that_it_is_on(tmp_path: Path) -> None:
    for name in set(run.missing()) & {"torch"}:
        absent(name, run.missing()[name])
    env = {name: value for name, value in os.environ.items() if not name.startswith(("KERNELK_QUIET", "KERAS_"))}
    done = run.execute(
        NOTEBOOKS / "04_another_machine.ipynb", env={**env, "KERAS_HOME": str(tmp_path), "IPYTHONDIR": str(tmp_path)}
    )
    assert printed(done, "start-cluster") == "2 engines\n"
    assert "variables  4 (98.4 kB), bit for bit" in outputs(done, "swap-there")[-1].data["text/plain"]
    assert re.search(r"calls since the last checkpoint.* were repeated", printed(done, "train-on"))
    assert "nothing is lost" in printed(done, "train-on")
    losses = [
        float(re.search(r"loss ([\d.]+)", printed(done, cell))[1])  # type: ignore[index]
        for cell in ("train-here", "train-there", "train-on", "swap-back")
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.1 * losses[0]
    assert printed(done, "swap-back").splitlines()[1:] == ["bit for bit: True", f"200 steps, loss {losses[-1]:.4f}"]
