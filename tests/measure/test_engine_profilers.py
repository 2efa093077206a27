"""`%kprofile --engine`: what the engine's own profiler says of the call as it runs, beside kernelk's op by op."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.engines import activate
from helpers.messages import one_line
from helpers.notebooks import run_cells

import kernelk
from kernelk import backend as K
from kernelk.errors import ArgumentError
from kernelk.graph.state import current_state
from kernelk.measure.engine_profile import EngineProfile
from kernelk.session.current import current
from kernelk.widgets.facts import timings

BUDGET = 0.4

# What the profiler is called, what it must have seen of a matmul and a tanh, and whether it tells the user's lines.
PROFILERS: dict[str, tuple[str, tuple[str, ...], bool]] = {
    "tensorflow": ("TensorFlow's profiler (XPlane)", ("MatMul", "Tanh"), True),
    "theano": ("Theano's profile=True", ("Dot22", "tanh"), True),
    "cntk": ("CNTK's node timing", ("Times", "Tanh"), False),
    "jax": ("JAX's profiler (XPlane)", ("dot", "fusion"), False),
    "torch": ("torch.profiler", ("aten::mm", "aten::tanh"), False),
}


def step() -> tuple[Any, Any, Any]:
    """A training step, its weights, and a batch."""
    x = K.placeholder((None, 64), name="x")
    w = K.variable(np.full((64, 64), 0.01))
    loss = K.mean(K.square(K.tanh(K.dot(x, w))))
    return K.function([x], [loss], [K.update_sub(w, 0.1 * K.gradients(loss, [w])[0])]), w, np.ones((128, 64))


def own(result: Any) -> EngineProfile:
    assert isinstance(result.engine_profile, EngineProfile)
    return result.engine_profile


def folders(name: str) -> set[Path]:
    """Traces that a profiler has left behind, in the system's folder or in the worker's own."""
    places = [Path(tempfile.gettempdir()), Path(str(getattr(current().host(name), "_scratch", None)))]
    return {found for place in places if place.is_dir() for found in place.glob("kernelk-trace-*")}


def test_the_engines_own_words_stand_beside_the_ops(worker: str) -> None:
    call, w, batch = step()
    label, names, has_lines = PROFILERS[worker]
    drawn, before = current_state().seeds.state(), folders(worker)
    result = kernelk.profile(lambda: call([batch]), budget=BUDGET, engine=True)
    found = own(result)
    assert found.profiler == label
    assert found.engine == worker
    seen = " ".join(row.name for row in found.rows)
    assert [name for name in names if name not in seen] == [], seen
    assert sum(found.share(row) for row in found.rows) == pytest.approx(1)
    assert [row.seconds for row in found.rows] == sorted((row.seconds for row in found.rows), reverse=True)
    assert found.runs >= 3
    # Each runs as often in every run, so that nothing else was watched.
    assert all(row.calls >= 1 and row.calls == round(row.calls) for row in found.rows)
    # Rows that run at once, and threads that wait for a processor, add up to more than the call: only a wrong unit, a
    # thousand times, can be told.
    assert 0 < found.listed_seconds < 300 * found.seconds
    assert any("test_engine_profilers.py" in row.source for row in found.rows) == has_lines
    # As the panel is told of it.
    told = timings(current())["engine_profile"]
    assert told["bars"][0]["label"] == found.rows[0].name
    # One is never part of the other.
    assert result.alone == pytest.approx(sum(op.total for op in result.ops))
    text = repr(result)
    assert label in text.split("its ops one by one")[1]
    assert result._repr_html_().count("<table>") == 2
    # As after one call.
    again, v, _ = step()
    again([batch])
    np.testing.assert_allclose(K.get_value(w), K.get_value(v), rtol=1e-6)
    assert current_state().seeds.state() == drawn
    assert folders(worker) == before


def test_a_loop_is_seen_from_inside(worker: str) -> None:
    x = K.placeholder((2, 7, 16))
    w = K.variable(np.full((16, 16), 0.1))
    last, _, _ = K.rnn(lambda inputs, states: (h := K.tanh(K.dot(states[0], w) + inputs), [h]), x, [K.zeros((2, 16))])
    found = own(kernelk.profile(K.sum(last), feeds={x: np.ones((2, 7, 16))}, budget=BUDGET, engine=True))
    # The steps' own ops, once for each step.
    if worker == "tensorflow":
        # Two steps share a turn, and have rows of their own, as the first of an odd number has.
        assert sum(row.calls for row in found.rows if row.name.endswith(":Tanh")) == 7
    else:
        assert max(row.calls for row in found.rows) >= 7
    assert sum(found.share(row) for row in found.rows) == pytest.approx(1)


def test_the_slowdown_is_measured_and_the_result_kept(tmp_path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    activate("torch")
    call, _, batch = step()
    result = kernelk.profile(lambda: call([batch]), budget=BUDGET, engine=True)
    found = own(result)
    assert found.slowdown == found.seconds / found.plain
    assert f"{found.slowdown:.2f}x" in repr(found)
    frame = found.to_frame()
    assert list(frame["name"]) == [row.name for row in found.rows]
    assert frame["share"].sum() == pytest.approx(1)
    assert len(json.loads(found.to_json(tmp_path / "own.json"))["rows"]) == len(found.rows)
    assert json.loads(result.to_json())["engine_profile"]["profiler"] == "torch.profiler"
    assert len(found.plot().patches) == min(10, len(found.rows))
    # Only where it was asked for.
    assert kernelk.profile(lambda: call([batch]), budget=0.1).engine_profile is None


def test_an_engine_without_a_profiler_says_so_before_anything_runs(spare: str) -> None:
    for name in ("numpy", spare):
        activate(name)
        ran: list[int] = []
        with pytest.raises(ArgumentError, match=r"no profiler of its own.*next: run it without engine") as caught:
            kernelk.profile(lambda ran=ran: ran.append(1), engine=True)
        assert one_line(caught.value)
        assert not ran


def test_the_magic() -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            "import numpy as np\nfrom kernelk import backend as K\na = K.variable(np.ones((64, 64)))",
            "r = %kprofile --engine --budget 0.3 K.tanh(K.dot(a, a))\nprint(r.engine_profile)",
            "%%kprofile --budget=0.3 --engine\ny = K.eval(K.exp(a))",
            "%ktime --engine K.exp(a)",
            "%kbackend numpy",
            "%kprofile --engine K.exp(a)",
        ],
        KERNELK_BACKEND="torch",
    )
    assert "torch.profiler" in cells[2]["out"]
    assert "aten::mm" in cells[2]["out"]
    assert "aten::exp" in cells[3]["value"]
    # What the profiler itself prints is no part of the user's cell.
    assert "profiler_start" not in cells[2]["out"] + cells[2]["err"]
    assert "%ktime has no option --engine" in cells[4]["out"]
    assert "numpy has no profiler of its own" in cells[6]["out"]
