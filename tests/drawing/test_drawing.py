"""`%kgraph`: every node by the names its user knows, as text, as a static picture for any page, and as data."""

from __future__ import annotations

import base64
import builtins
import json
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from helpers.fake_engines import slow_engine
from helpers.messages import one_line
from helpers.notebooks import run_cells

import kernelk
from kernelk import backend as K
from kernelk.display.tables import MONOSPACE
from kernelk.drawing.boxes import clean
from kernelk.drawing.drawing import graph_of
from kernelk.errors import ArgumentError, StaleTensorError
from kernelk.graph.state import current_state


def nodes_of(drawing: Any) -> dict[str, dict[str, Any]]:
    return {node["label"]: node for node in drawing.as_dict()["nodes"]}


def net(layers: int) -> tuple[Any, Any, list[Any]]:
    """A net in name scopes, two levels of them, its input and its weights."""
    x = y = K.placeholder((None, 8), name="x")
    weights = []
    for i in range(layers):
        with K.name_scope(f"block_{i // 4}"), K.name_scope(f"dense_{i}"):
            weights.append(K.variable(np.full((8, 8), 0.1), name="kernel"))
            y = K.tanh(K.dot(y, weights[-1]))
    return x, y, weights


def test_a_node_has_its_names_shape_dtype_kind_and_line() -> None:
    x = K.placeholder((None, 4), name="fed")
    w = K.variable(np.ones((4, 3)), name="weights")
    y = K.softmax(K.dot(x, w) * 2.0)
    drawing = graph_of(y, {"y": y, "w": w, "other": 3, "parts": [x]})
    found = drawing.as_dict()
    assert json.loads(json.dumps(found)) == found
    nodes = nodes_of(drawing)
    assert set(nodes) >= {"y", "w", "parts[0]"}
    soft = nodes["y"]
    assert (soft["key"], soft["op"], soft["kind"]) == (str(y.uid), "softmax", "op")
    assert (soft["shape"], soft["dtype"]) == ([None, 3], "float32")
    assert soft["source"]["file"] == "test_drawing.py"
    assert "K.softmax(" in soft["source"]["text"]
    assert (nodes["w"]["kind"], nodes["w"]["name"]) == ("variable", "weights")
    assert nodes["parts[0]"]["kind"] == "placeholder"
    constant = next(node for node in found["nodes"] if node["kind"] == "constant")
    assert constant["detail"] == "2"
    assert found["outputs"] == [str(y.uid)]
    product = next(node for node in found["nodes"] if node["op"] == "matmul")
    joined = {(edge["from"], edge["to"]) for edge in found["edges"]}
    assert {(str(x.uid), product["key"]), (str(w.uid), product["key"])} <= joined
    assert len(joined) == 5


def test_boxes_do_not_overlap_and_arrows_go_from_edge_to_edge() -> None:
    x, y, weights = net(12)
    train = K.function([x], [K.sum(y)], [K.update_sub(w, g) for w, g in zip(weights, K.gradients(K.sum(y), weights))])
    found = kernelk.draw(train, depth="all").as_dict()
    boxes = {node["key"]: node for node in found["nodes"]}
    assert len(boxes) > 90
    placed = list(boxes.values())
    for i, a in enumerate(placed):
        assert a["x"] >= 0
        assert a["x"] + a["width"] <= found["width"] + 0.2
        assert a["y"] + a["height"] <= found["height"] + 0.2
        for b in placed[i + 1 :]:
            apart = (
                a["x"] + a["width"] <= b["x"]
                or b["x"] + b["width"] <= a["x"]
                or a["y"] + a["height"] <= b["y"]
                or b["y"] + b["height"] <= a["y"]
            )
            assert apart, (a["lines"], b["lines"])
    for edge in found["edges"]:
        start, end = boxes[edge["from"]], boxes[edge["to"]]
        (x0, y0), (x1, y1) = edge["points"][0], edge["points"][-1]
        assert y0 == pytest.approx(start["y"] + start["height"], abs=0.2)
        assert y1 == pytest.approx(end["y"], abs=0.2)
        assert start["x"] <= x0 <= start["x"] + start["width"]
        assert end["x"] <= x1 <= end["x"] + end["width"]
        # Downwards, and through no other box.
        assert all(a[1] <= b[1] for a, b in zip(edge["points"], edge["points"][1:]))
        for px, py in edge["points"][1:-1]:
            assert not any(b["x"] < px < b["x"] + b["width"] and b["y"] < py < b["y"] + b["height"] for b in placed)


def test_a_function_has_its_updates_and_gradients_are_told() -> None:
    x = K.placeholder((None, 4), name="x")
    w = K.variable(np.ones((4, 3)))
    loss = K.mean(K.square(K.dot(x, w)))
    slope = K.gradients(loss, [w])[0]
    train = K.function([x], [loss], [K.update_sub(w, 0.1 * slope)])
    drawing = graph_of(train, {"w": w, "slope": slope})
    found = drawing.as_dict()
    parts = {node["part"] for node in found["nodes"]}
    assert parts == {"forward", "gradient", "update"}
    (update,) = [node for node in found["nodes"] if node["kind"] == "update"]
    assert update["detail"] == "w"
    assert update["key"] in found["outputs"]
    assert nodes_of(drawing)["slope"]["part"] == "gradient"
    assert "update w" in repr(drawing)
    assert "made by K.gradients" in drawing.svg()


def test_a_loop_is_one_box_that_says_what_it_holds() -> None:
    x = K.placeholder((2, 5, 3), name="x")
    w = K.variable(np.full((3, 3), 0.1))
    last, _, _ = K.rnn(lambda inputs, states: (h := K.tanh(K.dot(inputs, w) + states[0]), [h]), x, [K.zeros((2, 3))])
    drawing = graph_of(last)
    (loop,) = [node for node in drawing.as_dict()["nodes"] if node["kind"] == "loop"]
    assert loop["detail"] == "2 ops at each of 5 steps"
    assert loop["holds"] == 2
    assert "loop 2 ops at each of 5 steps" in repr(drawing)
    assert "one per step: " in repr(drawing)


def test_the_text_names_what_is_shared_and_writes_it_once() -> None:
    a = K.variable(np.ones(3), name="a")
    h = K.tanh(a)
    text = repr(graph_of(h + K.exp(h), {"h": h}))
    assert text.count("= tanh") == 1
    assert text.count("h (see above)") == 1
    assert "float32 (3,)" in text
    assert "test_drawing.py, line" in text


def test_two_hundred_nodes_are_drawn_and_more_are_collapsed_by_scope() -> None:
    _, y, _ = net(48)
    drawing = graph_of(y)
    assert not drawing.note
    assert len(drawing.as_dict()["nodes"]) == drawing.total == 3 * 48 + 1
    x, y, weights = net(48)
    train = K.function([x], [y], [K.update(w, g) for w, g in zip(weights, K.gradients(y, weights))])
    drawing = graph_of(train)
    found = drawing.as_dict()
    assert drawing.total > 200 >= len(found["nodes"])
    assert "groups" in found["note"]
    groups = {node["key"]: node for node in found["nodes"] if node["kind"] == "group"}
    assert {"scope:block_0/dense_0", "scope:block_0/dense_0:gradient", "updates"} <= set(groups)
    assert groups["scope:block_0/dense_0"]["detail"] == "2 ops, 1 variable"
    assert str(weights[0].uid) in groups["scope:block_0/dense_0"]["members"]
    opened = graph_of(train, opened=["scope:block_0/dense_0"]).as_dict()
    assert str(weights[0].uid) in {node["key"] for node in opened["nodes"]}
    assert "scope:block_0/dense_0" not in {node["key"] for node in opened["nodes"]}
    coarse = graph_of(y, depth=0).as_dict()
    assert [node["key"] for node in coarse["nodes"] if node["kind"] == "group"] == [
        f"scope:block_{i}" for i in range(12)
    ]
    # What gives to what is as before: one row of blocks.
    assert len(coarse["edges"]) == 12


@pytest.mark.parametrize("shape", ["row", "diamonds", "outputs"])
def test_ten_thousand_nodes_are_bounded(shape: str) -> None:
    v = K.variable(np.ones(3))
    y: Any = v
    if shape == "outputs":
        y = [K.tanh(v * float(i)) for i in range(3400)]
    for _ in range(5000 if shape != "outputs" else 0):
        y = K.tanh(y) * 0.5 if shape == "row" else K.tanh(y) + y
    for depth in (None, "all"):
        drawing = graph_of(y, depth=depth)
        assert drawing.total > 10000
        assert len(drawing.as_dict()["nodes"]) <= 200
        assert len(repr(drawing)) < 30000
        assert len(drawing.svg()) < 300000
        assert sum(node["holds"] for node in drawing.as_dict()["nodes"]) == drawing.total - sum(
            box.is_leaf for group in drawing.graph.boxes.values() for box in (group.members or [group])
        )
    assert "at most 1,000 boxes are drawn" in drawing.note


def test_names_with_markup_are_text() -> None:
    evil = '<script>alert("x")</script>&\x1b[31m'
    x = K.placeholder((2,), name=evil)
    with K.name_scope("<b>"):
        y = K.exp(x)
    drawing = graph_of([y, K.tanh(x)], {"<i>": y}, depth=0)
    html = drawing._repr_html_()
    assert html.count("<area ") == len(drawing.graph.boxes)
    (address,) = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', html)
    assert base64.b64decode(address).decode() == drawing.svg()
    html += drawing.svg()
    assert "<script" not in html
    assert "<b>" not in html
    assert "<i>" not in html
    assert "&lt;script&gt;" in html
    assert "\x1b" not in html + repr(drawing)
    svg = ElementTree.fromstring(drawing.svg())
    assert evil.replace("\x1b", " ")[:30] in "".join(svg.itertext())
    assert clean("a\nb\x00") == "a b"


def test_the_picture_is_static_and_says_what_it_is(tmp_path: Path) -> None:
    drawing = graph_of(K.tanh(K.variable(np.ones(3), name="v")))
    drawing.save(tmp_path / "graph.svg")
    text = (tmp_path / "graph.svg").read_text(encoding="utf-8")
    svg = ElementTree.fromstring(text)
    assert svg.attrib["role"] == "img"
    assert "graph of tanh" in svg.attrib["aria-label"]
    assert "<style" not in text
    assert "href" not in text
    titles = [title.text for title in svg.iter("{http://www.w3.org/2000/svg}title")]
    assert any("v: variable" in str(title) for title in titles)
    # Its own background, for dark pages.
    assert svg[1].tag.endswith("rect")
    with pytest.raises(ArgumentError, match=r"should end in \.svg") as caught:
        drawing.save(tmp_path / "graph.png")
    assert one_line(caught.value)


def test_without_igraph_the_text_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name == "igraph":
            raise ImportError(name)
        return real(name, *arguments, **named)

    monkeypatch.delitem(sys.modules, "igraph", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    drawing = graph_of(K.tanh(K.variable(np.ones(3))))
    assert "tanh" in repr(drawing)
    for call in (drawing.as_dict, drawing.svg, lambda: drawing.save(tmp_path / "x.svg")):
        with pytest.raises(ArgumentError, match="pip install igraph") as caught:
            call()
        assert one_line(caught.value)
    html = drawing._repr_html_()
    assert "tanh" in html
    assert f'<pre style="{MONOSPACE}">' in html
    assert "pip install igraph" in html


def test_times_are_written_as_well_as_coloured(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_engine(monkeypatch, {"tanh": 0.003})
    kernelk.set_backend("slow")
    x = K.placeholder((2, 2), name="x")
    w = K.variable(np.ones((2, 2)))
    y = K.tanh(K.dot(x, w))
    train = K.function([x], [y], [K.update(w, K.exp(y))])
    drawn = current_state().seeds.state()
    drawing = kernelk.draw(train, times=True, feeds={x: np.ones((2, 2))})
    assert np.array_equal(K.get_value(w), np.ones((2, 2)))
    assert current_state().seeds.state() == drawn
    slow = next(node for node in drawing.as_dict()["nodes"] if node["op"] == "tanh")
    assert slow["time"]["share"] > 0.8
    assert slow["time"]["text"] in slow["lines"]
    assert slow["time"]["text"] in repr(drawing)
    result = kernelk.profile(y, feeds={x: np.ones((2, 2))}, budget=0.2)
    again = kernelk.draw(y, times=result)
    assert next(node for node in again.as_dict()["nodes"] if node["op"] == "tanh")["time"]["seconds"] >= 0.003


def test_what_cannot_be_drawn_is_said() -> None:
    y = K.tanh(K.variable(np.ones(3)))
    for target, options, words in [
        (3, {}, "neither a tensor nor a K.function"),
        ([], {}, "draw: the list is empty"),
        (y, {"times": 3}, "times is True or what kernelk.profile gives, not int"),
        (y, {"depth": -1}, "depth is 0 or more"),
        (y, {"depth": "some"}, "depth is 0 or more"),
        (y, {"names": 3}, r"draw: int is no namespace; .*next: kernelk.draw\(y, names=globals\(\)\)"),
    ]:
        with pytest.raises(ArgumentError, match=words) as caught:
            kernelk.draw(target, **options)
        assert one_line(caught.value)
    K.clear_session()
    with pytest.raises(StaleTensorError):
        kernelk.draw(y)


def test_scopes_cost_a_program_nothing() -> None:
    v = K.variable(np.ones(3))
    with K.name_scope("here"):
        a = K.tanh(v)
        with K.name_scope("there"):
            b = K.tanh(v)
        with pytest.raises(ZeroDivisionError), K.name_scope("gone"):
            raise ZeroDivisionError
        c = K.tanh(v)
    assert [x.scope for x in (a, b, c, v)] == ["here", "here/there", "here", ""]
    assert K.gradients(K.sum(b), [v])[0].scope == "here/there"


def test_the_magic() -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            "import numpy as np\nfrom kernelk import backend as K\nx = K.placeholder((None, 3), name='x')\n"
            "w = K.variable(np.ones((3, 2)))\nwith K.name_scope('dense'):\n    h = K.tanh(K.dot(x, w))\n"
            "loss = K.mean(h)",
            "%kgraph loss",
            "d = %kgraph loss --depth 0\nprint(d)",
            "%kgraph [h, loss] --all",
            "d = %kgraph loss --times --feed x=np.ones((4, 3))\nprint('%' in repr(d).splitlines()[1])",
            "%kgraph",
            "%kgraph loss --deep 3",
            "%kgraph loss --feed x=3",
            "%kgraph nothing_here",
            "%kgraph K.exp(K.placeholder((2,), name='z')) --times",
        ],
        KERNELK_BACKEND="numpy",
    )
    assert cells[2]["value"].startswith("graph of loss: 3 ops, 1 variable, 1 placeholder\nloss = mean")
    assert "cell 2, line 6" in cells[2]["value"]
    assert "h = tanh" in cells[2]["value"]
    assert "[dense] 2 ops: matmul, tanh" in cells[3]["out"]
    assert "graph of h, loss" in cells[4]["value"]
    assert cells[5]["out"].rstrip().endswith("True")
    for cell, words in zip(
        cells[6:],
        [
            "nothing to draw",
            "--deep: did you mean --depth?",
            "only works together with --times; next: %kgraph loss --times --feed x=3 (",
            "NameError",
            "%kgraph: feeds are missing for 'z'",
        ],
    ):
        assert words in cell["out"]
        assert "%kgraph" in cell["out"]
