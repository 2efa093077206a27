"""`%kprofile`: each op separately on its real inputs, with the user's line, and the call as it is compiled."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from helpers.engines import activate
from helpers.fake_engines import engine_on_a_gpu, slow_engine
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


def test_an_op_with_a_scalar_is_timed_with_a_scalar(backend: str) -> None:
    """Not with an array of one element, which is another program, and on Theano none that runs."""
    x, s = K.placeholder((2, 3)), K.placeholder(())
    f = K.function([x, s], [x * K.exp(s)])
    result = kernelk.profile(lambda: f([np.ones((2, 3)), 2.0]), budget=0.1)
    assert {op.op: (op.shape, op.failure) for op in result.ops} == {"multiply": ((2, 3), ""), "exp": ((), "")}


def test_the_slow_op_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_engine(monkeypatch, {"tanh": 0.004})
    kernelk.set_backend("slow")
    x = K.variable(np.ones((4, 4)))
    result = kernelk.profile(K.tanh(K.exp(x)) + K.tanh(K.sin(x)), budget=BUDGET)
    slowest = result.ops[0]
    # Two that are alike are measured once, and counted.
    assert (slowest.op, slowest.count) == ("tanh", 2)
    assert slowest.steady.value >= 0.004
    assert result.share(slowest) > 0.8
    # The value and not the interval, which few samples of a busy machine leave open.
    assert result.whole.steady.value >= 0.008


# What each op takes on a GPU: on the processor that stands in for it, the product of two matrices takes longest.
ON_A_GPU = {"matmul": 2e-6, "tanh": 6e-6, "add": 1e-6}


def on_a_gpu() -> tuple[Any, Any]:
    x = K.variable(np.full((256, 256), 0.01))
    return x, K.tanh(K.dot(x, x)) + K.reshape(x, (256, 256))


def test_on_a_gpu_the_devices_own_times_count(monkeypatch: pytest.MonkeyPatch) -> None:
    engine_on_a_gpu(monkeypatch, ON_A_GPU)
    kernelk.set_backend("far")
    _, y = on_a_gpu()
    result = kernelk.profile(y, budget=BUDGET)
    found = {op.op: op for op in result.ops}
    assert {name: op.device for name, op in found.items()} == pytest.approx({**ON_A_GPU, "reshape": 0.0})
    assert result.whole.device == pytest.approx(9e-6)
    assert {name: result.share(op) for name, op in found.items()} == pytest.approx(
        {"tanh": 6 / 9, "matmul": 2 / 9, "add": 1 / 9, "reshape": 0}
    )
    assert result.ops[0].op == "tanh"
    assert result.fusion == pytest.approx(1)
    # The call's own time is there, too, and is another one.
    assert found["matmul"].steady.value > 10 * found["matmul"].device
    # Rates are of the device: a product of 1024 in 2 us; its sum of 4 Mi elements takes 1 us.
    assert result.machine.flops == pytest.approx(2 * 1024**3 / 2e-6)
    assert result.machine.bandwidth == pytest.approx(2 * 4 * (1 << 22) / 1e-6)
    assert result.reached(found["matmul"]) == f"{256**3 / 1024**3:.0%} of matmul"
    assert result.reached(found["reshape"]) == ""
    text = repr(result)
    assert "on the device" in text
    assert "sums, shares and rates are of that" in text
    assert next(row for row in result.records() if row["op"] == "tanh")["device"] == pytest.approx(6e-6)
    timed = kernelk.time(y, budget=BUDGET)
    assert timed.calls[0].device == pytest.approx(9e-6)
    assert "9 us of it, in all kernels" in repr(timed)
    compared = kernelk.compare(y, "far", "numpy", budget=BUDGET, per_op=True)
    assert "2 us on the device" in repr(compared.per_op)


@pytest.mark.parametrize("what", ["blind", "broken"])
def test_where_the_profiler_tells_nothing_the_calls_times_count(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    setattr(engine_on_a_gpu(monkeypatch, ON_A_GPU), what, True)
    kernelk.set_backend("far")
    _, y = on_a_gpu()
    result = kernelk.profile(y, budget=BUDGET)
    assert [op.device for op in result.ops] == [None] * 4
    assert not [op.failure for op in result.ops if op.failure]
    assert sum(result.share(op) for op in result.ops) == pytest.approx(1)
    assert "the stand-in's events didn't see all that ran on cuda:0: all times are the calls'" in repr(result)
    assert result.machine.flops < 1e15
    assert "kernels" not in repr(kernelk.time(y, budget=BUDGET))


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


def dropped_out() -> Any:
    """A training step of a recurrent net that draws a mask at each step, in the shape of what it is given there."""
    x, w = K.placeholder((None, 3, 4), name="x"), K.variable(np.eye(4) * 0.5)

    def step(xt: Any, states: list[Any]) -> tuple[Any, list[Any]]:
        new = K.tanh(K.dot(K.dropout(xt, 0.3), w) + states[0])
        return new, [new]

    last, _, _ = K.rnn(step, x, [K.zeros_like(x[:, 0])])
    drawn = K.random_uniform(K.shape(last), seed=3)
    loss = K.mean(K.square(last) * drawn)
    return K.function([x], [loss, drawn], [K.update_sub(w, K.gradients(loss, [w])[0])])


def test_draws_in_the_shape_of_a_steps_element(backend: str) -> None:
    call = dropped_out()
    result = kernelk.profile(lambda: call([np.ones((5, 3, 4))]), budget=BUDGET)
    assert not [op.failure for op in result.ops if op.failure]
    assert sum(op.op == "scan" for op in result.ops) == 2
    report = kernelk.diff(call, "numpy", backend if backend != "numpy" else "torch", {"x": np.ones((2, 3, 4))})
    assert report.first is None
    assert {row.op for row in report.rows} >= {"item", "draw"}


def test_what_cannot_be_profiled_is_said(spare: str) -> None:
    activate(spare)
    v = K.variable([1.0])
    with pytest.raises(ArgumentError, match="profile: nothing was evaluated") as caught:
        kernelk.profile(lambda: 3)
    assert one_line(caught.value)
    with pytest.raises(ArgumentError, match="profile: no op is needed for"):
        kernelk.profile(v)
    with pytest.raises(ArgumentError, match="profile: budget='x' isn't allowed; it is a number"):
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
