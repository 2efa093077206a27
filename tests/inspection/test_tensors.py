"""`%ktensors`, its twin, and tensors at the end of a cell: what is shown is right, and looking changes nothing."""

from __future__ import annotations

import gc
import json
import os
import signal
import weakref
from typing import Any

import numpy as np
import pytest
from helpers.brake import Brake
from helpers.engines import activate
from helpers.messages import one_line
from helpers.notebooks import run_cells

import kernelk
from kernelk import backend as K
from kernelk.backends import figures
from kernelk.errors import ArgumentError
from kernelk.graph.state import current_state
from kernelk.inspection import tensor_list
from kernelk.inspection.inventory import names_of, rows
from kernelk.inspection.summaries import Summary, summary
from kernelk.session.current import current


def look(tensor: Any, **names: Any) -> Summary:
    found = summary(current(), tensor, names_of(names))
    json.dumps(found.as_dict(), allow_nan=False)
    assert "\n" not in found.note
    return found


CELLS = [
    "%load_ext kernelk\nimport numpy as np, kernelk\nfrom kernelk import backend as K",
    "%ktensors",
    "x = K.placeholder((None, 3), name='<script>alert(1)</script>')\n"
    "layers = [K.variable(np.arange(6.0).reshape(3, 2), name='dense/kernel'), K.zeros((2,))]\n"
    "named = {'<img src=x onerror=alert(2)>': layers[1]}\n"
    "y = K.softmax(K.dot(x, layers[0]) + layers[1])\n"
    "step = K.function([x], [y], [K.update_add(layers[1], 1.0)], name='step')",
    "%ktensors --values",
    "y.eval({x: np.ones((4, 3))})",
    "r = %kbackend {worker}",
    "r = %ktensors\nr",
    "r.rows[3].names, r.rows[3].device, r.rows[3].swap, r.rows[3].fed, r.rows[0].fed",
    "%ktensors --values --sort mean",
    "%ktensors named['<img src=x onerror=alert(2)>']",
    "%ktensors --kind functon",
    "%ktensors --sort size",
    "%ktensors --values y and more",
    "%ktensors nothing_like_this",
    "y",
    "x",
    "step",
    "[y, step]",
    "K.clear_session()",
    "%ktensors",
    "y",
]


@pytest.mark.parametrize("worker", ["jax"])
def test_in_a_notebook(worker: str) -> None:
    activate(worker)
    found = run_cells([cell.replace("{worker}", worker) for cell in CELLS], KERNELK_BACKEND="numpy")
    errors = [cell["error"] for cell in found]
    assert errors == [None] * 10 + ["ArgumentError"] * 3 + [None] * 8, found
    text = [cell["out"] for cell in found]
    assert "this session has no tensors yet; next: x = K.placeholder" in text[1]
    assert "2 variables (32 B), 1 placeholder, 1 tensor, 1 function; active: numpy" in text[3]
    assert "y: 'x' hasn't been fed yet; next: y.eval({x: array})" in text[3]
    (kernel,) = [line for line in text[3].splitlines() if "layers[0]" in line]
    assert kernel.split()[-5:-1] == ["0", "5", "2.5", "1.708"]
    assert "differs by" in text[6] or "no difference" in text[6]
    assert found[7]["value"] == f"(('y',), 'cpu:0', ('numpy', '{worker}'), None, (4, 3))"
    assert "cell 3, line 4" in text[6]
    assert text[8].index("layers[0]") < text[8].index("y  ") < text[8].index("step")
    assert "1 variable (8 B) of 5 in all" in text[9]
    assert "there is no kind 'functon'; did you mean function? allowed are" in text[10]
    assert "there is no column 'size'" in text[11]
    assert "%ktensors takes one filter" in text[12]
    assert "none of the session's 5 objects matches 'nothing_like_this'; next: %ktensors" in text[13]
    assert text[14].splitlines()[1] == "<Tensor 'softmax_5' shape=(None, 2) dtype=float32>"
    assert f"by {worker}" in text[14]
    assert "last fed  (4, 3)" in text[15]
    assert "<Function 'step' (<script>alert(1)</script>(None, 3)) -> (float32(None, 2)), 1 update>" in text[16]
    assert text[17].count("\n") <= 3
    assert "from before K.clear_session(): x, layers[0], layers[1], named" in text[19]
    assert "next: run its cells again" in text[20]


def test_html_is_text_in_a_page() -> None:
    x = K.placeholder((None, 2), name="<script>alert(1)</script>\n&")
    y = K.exp(x)
    names = {"d": {"<script>": x}, "y": y}
    f = K.function([x], [y])
    for shown in (x, y, f, kernelk.tensors(namespace=names), kernelk.tensors(values=True, namespace=names)):
        page = shown._repr_html_()
        assert "<table" in page
        assert "<script" not in page
        assert "&lt;script&gt;" in page
    assert "\n" not in repr(x)


def test_names() -> None:
    v, w = K.variable(1.0), K.variable(2.0)
    y = v * w
    namespace = {"_": y, "_12": y, "__": v, "_i3": y, "In": [y], "Out": {1: y}, "__x__": y, "y": y, "_mine": y}
    namespace |= {"deep": [[v]], "pair": (w, 3), "d": {object(): w, 5: w}, "numbers": list(range(3000)), "K": K}
    found = {row.key: row for row in rows(current(), namespace)}
    assert found[y.uid].names == ("y", "_mine")
    assert found[w.uid].names == ("pair[0]", "d[...]", "d[5]")
    # Nothing names it, but it lives.
    assert found[v.uid].names == ()
    assert found[v.uid].label == v.name


def test_ten_thousand() -> None:
    many = [K.variable(float(i)) for i in range(10_000)]
    found = kernelk.tensors(namespace={"many": many})
    assert len(found) == 10_000
    assert found.rows[9_999].names == ("many[9999]",)
    assert "10,000 variables (40.0 kB)" in repr(found)
    assert "and 9,960 more: kernelk.tensors('w*') or kind= lists fewer, kernelk.tensors()" in repr(found)
    assert len(repr(found).splitlines()) < 60
    assert [row.label for row in kernelk.tensors("many[77]", namespace={"many": many}).rows] == ["many[77]"]
    assert len(found.to_frame()) == 10_000


def test_the_time_box_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_list, "VALUE_SECONDS", -1.0)
    found = kernelk.tensors(values=True, namespace={"v": K.variable(1.0)})
    assert found.summaries[0] is not None
    assert found.summaries[0].note.endswith("next: kernelk.tensors('v', values=True)")


def test_nothing_is_kept_alive() -> None:
    v = K.variable(np.ones(1000))
    y = K.exp(v)
    f = K.function([], [y])
    names = {"v": v, "y": [y], "f": f}
    held = kernelk.tensors(values=True, namespace=names), rows(current(), names), look(y), y._repr_html_()
    gone = [weakref.ref(one) for one in (v, y, f)]
    number = v.slots.number
    del v, y, f, names
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3
    current().safe_point()
    assert number not in current().variables
    assert held[1][0].ref() is None


@pytest.mark.parametrize(
    "value",
    [
        np.random.RandomState(0).randn(40, 50).astype("float32"),
        np.array([1e308, -1.7e308, np.nan, np.inf, -np.inf]),
        np.array([1.0, 1.0 + 2e-16, 1.0 + 4e-16]),
        np.array([5e-324, 1e-323]),
        np.array([65504, -65504, 1], dtype="float16"),
        np.array([True, False, True]),
        np.array([2**63 - 1, -(2**63)]),
        np.array([3, 3, 7], dtype="uint8"),
        np.zeros((0, 3)),
        np.array(5.0),
        np.full((2, 3, 4), np.nan),
    ],
    ids=str,
)
def test_figures(value: Any) -> None:
    found = look(K.variable(value, dtype=value.dtype.name))
    finite = value[np.isfinite(value)].astype(np.longdouble)
    assert (found.shape, found.dtype, found.size, found.looked_at) == (
        value.shape,
        value.dtype.name,
        value.size,
        value.size,
    )
    assert (found.nans, found.infinities) == (np.isnan(value).sum(), np.isinf(value).sum())
    if not finite.size:
        assert (found.minimum, found.mean, found.histogram) == (None, None, None)
        return
    assert (found.minimum, found.maximum) == (value[np.isfinite(value)].min(), value[np.isfinite(value)].max())
    assert found.mean == pytest.approx(float(finite.mean()), rel=1e-9, abs=1e-12 * float(np.abs(finite).max()))
    assert found.std == pytest.approx(float(finite.std()), rel=1e-6, abs=1e-300)
    assert found.histogram is not None
    counts, edges = found.histogram.counts, found.histogram.edges
    assert sum(counts) == finite.size
    assert len(edges) == len(counts) + 1 <= 33
    assert np.all(np.isfinite(edges))
    assert edges[0] <= found.minimum <= found.maximum <= edges[-1]


def test_integers_that_no_float_tells_apart() -> None:
    found = look(K.variable([2**60, 2**60 + 1], dtype="int64"))
    assert (found.minimum, found.maximum) == (2**60, 2**60 + 1)
    assert found.histogram is not None
    assert found.histogram.counts == (2,)


def test_json_holds_what_json_cant() -> None:
    given = look(K.variable(np.array([[np.nan, np.inf], [-np.inf, 2.0]]))).as_dict()
    assert given["preview"]["values"] == [["NaN", "Infinity"], ["-Infinity", 2.0]]
    assert (given["nan"], given["inf"], given["min"]) == (1, 2, 2.0)
    assert look(K.variable([2**60], dtype="int64")).as_dict()["max"] == str(2**60)
    x = K.placeholder((None, 2))
    row = next(row for row in rows(current(), {"x": x}))
    assert json.loads(json.dumps(row.as_dict(), allow_nan=False))["shape"] == [None, 2]


def test_a_preview_says_what_is_cut() -> None:
    assert look(K.variable(np.zeros((3, 4)))).preview.cut == ""  # type: ignore[union-attr]
    value = np.arange(2 * 40 * 5).reshape(2, 40, 5)
    preview = look(K.variable(value, dtype="int32")).preview
    assert preview is not None
    assert preview.cut == "[0, :32, :] of (2, 40, 5)"
    assert np.array_equal(preview.values, value[0, :32])


def test_a_large_array_is_sampled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_SPACED", 1000)
    value = np.tile(np.arange(10.0), (1000, 1))
    found = summary(current(), K.variable(value), most=5000)
    assert found.note == "from 910 of 10,000 elements, evenly spaced"
    assert (found.looked_at, found.size) == (910, 10_000)
    # Not the same column again and again.
    assert (found.minimum, found.maximum) == (0.0, 9.0)


def test_values_are_those_of_now(backend: str) -> None:
    x, w = K.placeholder((None, 2), name="in"), K.variable([[1.0], [2.0]])
    y = K.dot(x, w)
    f = K.function([x], [K.sum(x)])
    assert look(y, x=x, y=y).note == "'x' hasn't been fed yet; next: y.eval({x: array})"
    f([np.ones((3, 2))])
    assert (look(y).origin, look(y).mean, look(y).engine) == ("evaluated", 3.0, backend)
    assert (look(y).origin, look(y).mean) == ("shown", 3.0)
    K.set_value(w, [[1.0], [1.0]])
    assert (look(y).origin, look(y).mean) == ("evaluated", 2.0)
    f([np.zeros((3, 2))])
    assert (look(y).mean, look(x).mean, look(x).origin) == (0.0, 0.0, "fed")
    activate("numpy")
    assert (look(y).engine, look(y).mean) == ("numpy", 0.0)
    report = kernelk.set_backend(backend)
    if backend != "numpy":
        assert [entry.key for entry in report.reevaluated] == [y.uid]
        (row,) = [row for row in rows(current(), {"y": y}) if row.key == y.uid]
        assert (row.difference, row.swap) == (0.0, ("numpy", backend))


def test_looking_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    v = K.variable([1.0, 2.0])
    drawn = K.dropout(v, 0.5)
    change = K.update_add(v, K.random_uniform((2,)))
    printed = K.print_tensor(K.exp(v), "seen")
    state = current_state().seeds.state()
    names = {"v": v, "drawn": drawn, "change": change, "printed": printed}
    found = kernelk.tensors(values=True, namespace=names)
    notes = {row.label: one.note for row, one in zip(found.rows, found.summaries) if one is not None}
    assert notes["change"] == "what 'v' would become"
    assert notes["drawn"] == "drawn again at each call"
    assert current_state().seeds.state() == state
    assert K.get_value(v).tolist() == [1.0, 2.0]
    for one in names.values():
        one._repr_html_()
    assert capsys.readouterr().out == ""
    assert current_state().seeds.state() == state


def test_no_engine_is_started(spare: str) -> None:
    current().active = spare
    v = K.variable([1.0])
    y = v * 2.0
    assert look(y, y=y).note == "Spare isn't running; next: y.eval() starts it"
    assert "made in" in y._repr_html_()
    assert "[1.0" in str(v._repr_html_()) or ">1.0<" in v._repr_html_()
    assert not current().host(spare).started


def test_an_engine_that_dies_while_it_is_asked(brake: Brake) -> None:
    activate("spare")
    v = K.variable([1.0, 2.0])
    y = K.exp(v)
    pid = current().host("spare").pid
    assert pid is not None
    brake.hold("exp")
    thread = brake.when_reached("exp", lambda: os.kill(pid, signal.SIGKILL))
    found = kernelk.tensors(values=True, namespace={"v": v, "y": y})
    thread.join()
    brake.free("exp")
    assert found.summaries[0] is not None
    assert found.summaries[1] is not None
    assert found.summaries[0].mean == 1.5
    assert found.summaries[1].note.startswith("the engine died while this was evaluated: ")
    assert found.summaries[1].note in repr(found)
    np.testing.assert_allclose(y.eval(), np.exp([1.0, 2.0]), rtol=1e-6)
    assert look(y).size == 2


def test_what_has_no_value_says_why() -> None:
    x = K.placeholder((None, 2))
    f = K.function([x], [x * 2.0])
    assert look(f, f=f).note == "a K.function has no value; next: f([array, ...])"
    f([np.zeros((100_000, 2)).tolist()])
    assert look(x, x=x).note.startswith("the array of shape (100000, 2) that 'x' was last fed wasn't kept; next: ")
    assert rows(current(), {"x": x})[0].fed == (100_000, 2)
    big = K.ones((1 << 15,)) * K.ones((1 << 15, 1))
    assert look(big, big=big).note == "its value of shape (32768, 32768) takes 4096 MiB; next: big.eval()"
    old = K.variable(1.0)
    K.clear_session()
    assert look(old).note.startswith("it is from before K.clear_session()")


@pytest.mark.parametrize(
    "given", [{"kind": "variables"}, {"sort": "size"}, {"kind": 3}, {"filter": 7}, {"namespace": 3}]
)
def test_bad_arguments(given: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError) as caught:
        kernelk.tensors(**given)
    assert "allowed are" in one_line(caught.value) or "next: kernelk.tensors(" in one_line(caught.value)


def test_tab() -> None:
    found = run_cells(
        [
            "%load_ext kernelk",
            "import json, sys\nfrom IPython.core.completer import provisionalcompleter\n"
            "completer = get_ipython().Completer\n"
            "def tab(line):\n"
            "    with provisionalcompleter():\n"
            "        return sorted(line[: c.start] + c.text for c in completer.completions(line, len(line)))",
            "print(tab('%ktensors mo'), tab('%ktensors --k'))",
            "from kernelk import backend as K\nmodel = [K.ones((2,)), K.ones((3,))]",
            "print(tab('%ktensors mo'), tab('%ktensors --k'), tab('%ktensors --kind f'), tab('%ktensors --sort by'))",
        ],
        KERNELK_BACKEND="numpy",
    )
    assert found[2]["out"] == "['%ktensors mo'] ['%ktensors --kind']\n"
    assert found[4]["out"] == (
        "['%ktensors model[0]', '%ktensors model[1]'] ['%ktensors --kind'] ['%ktensors --kind function'] "
        "['%ktensors --sort bytes']\n"
    )
