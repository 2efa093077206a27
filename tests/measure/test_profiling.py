"""`%kprofile`: each op separately on its real inputs, with the user's line, and the call as it is compiled."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from helpers.engines import activate
from helpers.fake_engines import slow_engine
from helpers.messages import one_line
from helpers.notebooks import run_cells

import kernelk
from kernelk import backend as K
from kernelk.errors import ArgumentError
from kernelk.graph.state import current_state
from kernelk.session.current import current

BUDGET = 0.3


def step() -> tuple[Any, Any, Any]:
    """A training step of two layers, its first weights, and a batch."""
    x = K.placeholder((None, 6), name="x")
    w, v = K.variable(np.full((6, 4), 0.5)), K.variable(np.full((4, 1), 0.25))
    loss = K.mean(K.square(K.dot(K.tanh(K.dot(x, w)), v)))
    slopes = K.gradients(loss, [w, v])
    return K.function([x], [loss], [K.update_sub(p, 0.1 * g) for p, g in zip((w, v), slopes)]), w, np.ones((3, 6))


def test_each_op_is_a_row_with_its_part_and_line(backend: str) -> None:
    call, w, batch = step()
    drawn = current_state().seeds.state()
    result = kernelk.profile(lambda: call([batch]), budget=BUDGET)
    assert result.conditions.engine == backend
    rows = {(op.op, op.part) for op in result.ops}
    assert {("matmul", "forward"), ("tanh", "forward"), ("matmul", "gradient"), ("multiply", "update")} <= rows
    assert not [op.failure for op in result.ops if op.failure]
    assert all(op.steady.value > 0 and op.bytes > 0 for op in result.ops)
    assert all("test_profiling.py" in op.source for op in result.ops)
    product = next(op for op in result.ops if op.op == "matmul" and op.shape == (3, 4) and op.part == "forward")
    assert product.flops == 2 * 3 * 4 * 6
    assert product.bytes == 4 * (3 * 6 + 6 * 4 + 3 * 4)
    assert sum(result.share(op) for op in result.ops) == pytest.approx(1)
    assert [op.total for op in result.ops] == sorted((op.total for op in result.ops), reverse=True)
    # As after one call.
    again, v, _ = step()
    again([batch])
    np.testing.assert_allclose(K.get_value(w), K.get_value(v), rtol=1e-6)
    assert current_state().seeds.state() == drawn
    text = repr(result)
    assert "its ops one by one" in text
    assert "one by one: forward" in text


def test_the_slow_op_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_engine(monkeypatch, {"tanh": 0.004})
    kernelk.set_backend("slow")
    x = K.variable(np.ones((4, 4)))
    result = kernelk.profile(K.tanh(K.exp(x)) + K.tanh(K.sin(x)), budget=BUDGET)
    slowest = result.ops[0]
    # Two that are alike are measured once, and counted.
    assert (slowest.op, slowest.count) == ("tanh", 2)
    assert slowest.steady.low >= 0.004
    assert result.share(slowest) > 0.8
    assert result.whole.steady.low >= 0.008


def test_a_loop_is_one_op(backend: str) -> None:
    x = K.placeholder((2, 5, 3))
    w = K.variable(np.full((3, 3), 0.1))
    last, _, _ = K.rnn(lambda inputs, states: (h := K.tanh(K.dot(inputs, w) + states[0]), [h]), x, [K.zeros((2, 3))])
    result = kernelk.profile(K.sum(last), feeds={x: np.ones((2, 5, 3))}, budget=BUDGET)
    loops = [op for op in result.ops if op.op == "scan"]
    assert len(loops) == 1
    assert not loops[0].failure
    assert loops[0].steady.value > 0
    assert "item" not in {op.op for op in result.ops}


def test_draws_and_convolutions(backend: str) -> None:
    x = K.placeholder((2, 8, 8, 3))
    kernel = K.variable(np.full((3, 3, 3, 4), 0.1))
    y = K.conv2d(x, kernel) * K.random_uniform((2, 6, 6, 4))
    result = kernelk.profile(y, feeds={x: np.ones((2, 8, 8, 3))}, budget=BUDGET)
    conv = next(op for op in result.ops if op.op == "conv")
    assert conv.shape == (2, 6, 6, 4)
    assert conv.flops == 2 * (2 * 6 * 6 * 4) * (3 * 3 * 3)
    assert not [op.failure for op in result.ops if op.failure]
    assert len(result.ops) >= 3


def test_what_cannot_be_profiled_is_said(spare: str) -> None:
    activate(spare)
    v = K.variable([1.0])
    with pytest.raises(ArgumentError, match="profile: nothing was evaluated") as caught:
        kernelk.profile(lambda: 3)
    assert one_line(caught.value)
    with pytest.raises(ArgumentError, match="profile: no op is needed for"):
        kernelk.profile(v)
    with pytest.raises(ArgumentError, match="profile: budget 'x' isn't allowed; it is a number"):
        kernelk.profile(v + 1, budget="x")
    assert current().recorder is None
    assert K.eval(v + 1).tolist() == [2.0]


def test_results_can_be_kept_and_drawn() -> None:
    import matplotlib

    matplotlib.use("agg")
    call, _, batch = step()
    result = kernelk.profile(lambda: call([batch]), budget=BUDGET)
    frame = result.to_frame()
    assert len(frame) == len(result.ops)
    assert frame["share"].sum() == pytest.approx(1)
    assert len(json.loads(result.to_json())["ops"]) == len(result.ops)
    assert len(result.plot().patches) == min(10, len(result.ops))
    assert "<table>" in result._repr_html_()


def test_the_magic() -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            "import numpy as np\nfrom kernelk import backend as K\na = K.variable(np.ones((4, 4)))",
            "r = %kprofile --budget 0.2 K.tanh(K.dot(a, a))\nprint(r)",
            "%%kprofile --budget 0.2\ny = K.eval(K.exp(a))",
            "%kprofile",
            "%kprofile --budget 0.2 a",
            "%kprofile nothing_of_this_name",
        ],
        KERNELK_BACKEND="numpy",
    )
    assert "cell 3, line 1" in cells[2]["out"]
    assert "tanh" in cells[2]["out"]
    assert "exp" in cells[3]["value"]
    assert "%kprofile was given nothing to run" in cells[4]["out"]
    assert "no op is needed for" in cells[5]["out"]
    assert "NameError" in cells[6]["out"]
    assert "kernelk/" not in cells[6]["out"]
