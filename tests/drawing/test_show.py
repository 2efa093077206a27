"""`%kshow`: each engine's own graph of the same ops, in that engine's own words, and a session left as it was."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from helpers.engines import activate, require_installed
from helpers.fake_engines import lacking_engine
from helpers.messages import one_line
from helpers.notebooks import run_cells

import kernelk
from kernelk import backend as K
from kernelk.display.tables import MONOSPACE
from kernelk.errors import ArgumentError, UnknownBackendError
from kernelk.graph.state import current_state
from kernelk.session.current import current

# What each engine calls a product of matrices, a sum of two tensors, and tanh.
WORDS = {
    "numpy": ("= matmul(x, w)", "= add(", "= tanh("),
    "tensorflow": ("= MatMul(x, w)", "= AddV2(", "= Tanh("),
    "theano": ("Dot22", "Elemwise{", "tanh"),
    "cntk": ("= Times(x, w)", "= Plus(", "= Tanh("),
    "jax": ("dot_general", "= add ", "= tanh "),
    "torch": ("torch.mm(x, w)", "torch.add(", "torch.tanh("),
}


def small() -> tuple[Any, Any, Any]:
    x = K.placeholder((None, 4), name="x")
    w = K.variable(np.full((4, 3), 0.5), name="w")
    return x, w, K.tanh(K.dot(x, w) + K.random_uniform((3,)))


def test_every_engine_in_its_own_words(every_engine: list[str]) -> None:
    x, _, y = small()
    activate("numpy")
    session = current()
    compiled = {name: list(host.compiled) for name, host in session.hosts.items()}
    counts = {name: host.compile_count for name, host in session.hosts.items()}
    drawn = current_state().seeds.state()
    views = kernelk.show(y, *every_engine, feeds={x: np.ones((2, 4))})
    assert [view.engine for view in views.views] == every_engine
    for view in views.views:
        assert not view.failure, view
        for word in WORDS[view.engine]:
            assert word in views.text(view.engine), view
        assert "x" in view.text
        assert "random_uniform" in view.text
        assert 3 <= view.ops < 30
        assert view.version
        assert f"{view.title} {view.ops}" in views.summary
    assert "kernelk 4 ops" in views.summary
    # Nothing was run, kept or changed.
    assert current_state().seeds.state() == drawn
    assert session.active == "numpy"
    assert {name: list(host.compiled) for name, host in session.hosts.items()} == compiled
    assert {name: host.compile_count for name, host in session.hosts.items()} == counts
    assert x.fed is None
    html = views._repr_html_()
    assert html.count("<details") == len(every_engine)
    assert html.count(MONOSPACE) == len(every_engine)
    assert "<script" not in html
    assert "=== CNTK 2.7" in repr(views)


def test_loops_and_updates_on_every_engine(backend: str) -> None:
    x = K.placeholder((2, 5, 3), name="x")
    w = K.variable(np.full((3, 3), 0.1), name="w")
    last, _, _ = K.rnn(lambda inputs, states: (h := K.tanh(K.dot(inputs, w) + states[0]), [h]), x, [K.zeros((2, 3))])
    train = K.function([x], [K.sum(last)], [K.update_add(w, K.ones((3, 3)))])
    (view,) = kernelk.show(train, backend).views
    assert not view.failure
    assert "tanh" in view.text.lower()
    assert view.text.count("w") >= 2
    assert np.array_equal(K.get_value(w), np.full((3, 3), 0.1, "float32"))
    # What is no op at all.
    (view,) = kernelk.show(w, backend).views
    assert not view.failure


def test_the_running_engines_are_the_default_and_a_batch_is_assumed(spare: str) -> None:
    activate("numpy")
    x, _, y = small()
    first = kernelk.show(y)
    assert first.views[0].engine == "numpy"
    assert spare not in [view.engine for view in first.views]
    assert "'x' as (32, 4)" in repr(first)
    named = kernelk.show(y, spare, names={"batch": x})
    assert [view.engine for view in named.views] == [spare]
    assert "'batch' as (32, 4)" in named.notes[0]
    assert current().active == "numpy"
    assert current().hosts[spare].started
    assert spare in [view.engine for view in kernelk.show(y).views]
    K.function([x], [y])([np.ones((7, 4))])
    assert not kernelk.show(y, "numpy").notes


def test_an_engine_that_cannot_says_so_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking_engine(monkeypatch, "lacking", ops={"tanh"})
    _, _, y = small()
    views = kernelk.show(y, "lacking", "numpy")
    failed, worked = views.views
    assert "has no op 'tanh'" in failed.failure
    assert "\n" not in failed.failure
    assert not worked.failure
    assert "Lacking can't" in views.summary
    assert failed.failure in repr(views)
    assert "has no op &#x27;tanh&#x27;" in views._repr_html_()


def test_long_listings_are_cut_and_names_are_text() -> None:
    y = K.placeholder((3,), name="<b>x</b>")
    for i in range(100):
        y = K.tanh(y) * float(i)
    views = kernelk.show(y, "numpy")
    text = repr(views)
    assert 'more lines; all: print(kernelk.show(...).text("numpy"))' in text
    assert len(text.splitlines()) < 60
    assert views.text("numpy").count("tanh(") == 100
    assert "<b>x" not in views._repr_html_().replace("<b>numpy", "")
    assert "&lt;b&gt;x" in views._repr_html_()
    with pytest.raises(ArgumentError, match="isn't shown here") as caught:
        views.text("theano")
    assert one_line(caught.value)


def test_what_cannot_be_shown_is_said() -> None:
    _, _, y = small()
    with pytest.raises(UnknownBackendError, match="did you mean 'theano'"):
        kernelk.show(y, "theno")
    with pytest.raises(ArgumentError, match="show: int is neither"):
        kernelk.show(3)
    assert current().active == "numpy"


def test_the_magic() -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            "import numpy as np\nfrom kernelk import backend as K\nx = K.placeholder((None, 3), name='x')\n"
            "w = K.variable(np.ones((3, 2)))\ny = K.tanh(K.dot(x, w))",
            "%kshow y",
            "%kshow y * 2 numpy --feed x=np.ones((5, 3))",
            "%kshow K.function([x], [y]) numpy",
            "%kshow",
            "%kshow y theno",
            "%kshow y --feed x",
        ],
        KERNELK_BACKEND="numpy",
    )
    assert cells[2]["value"].startswith("y: kernelk 2 ops -> numpy 2")
    assert "%0 = matmul(x, w) : float32 (None, 2)" in cells[2]["value"]
    assert "multiply" in cells[3]["value"]
    assert "shown for" not in cells[3]["value"]
    assert "K.function" in cells[4]["value"]
    for cell, words in zip(
        cells[5:], ["nothing to show", "engines are tensorflow, theano", "--feed: 'x' isn't NAME=ARRAY"]
    ):
        assert words in cell["out"]


def test_pytorchs_kernels_are_shown_with_the_scalars_that_they_multiply_by() -> None:
    require_installed("torch")
    x, y = K.placeholder((3, 4), name="x"), K.placeholder((3, 5), name="y")
    w, rate = K.variable(np.ones((4, 5)), name="w"), K.variable(0.1, name="rate")
    updates = [K.update(w, 0.9 * w - rate * K.dot(K.transpose(x), y))]
    text = kernelk.show(K.function([x, y], [x + 0.3 * x, x - rate * x], updates), "torch").text("torch")
    assert "= torch.add(x, x, alpha=0.3)" in text
    assert "= torch.sub(x, x, alpha=rate)" in text
    assert re.search(r"= torch\.addmm\(w, \w+, y, beta=0\.9, alpha=-rate\b", text)
