"""What `%ktime` tells, on every engine, and that it leaves the session as one run of its body does."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from helpers.engines import activate
from helpers.fake_engines import slow_engine
from helpers.messages import one_line
from helpers.notebooks import run_cells

import kernelk
from kernelk import backend as K
from kernelk.errors import ArgumentError, EngineError, FeedError, ShapeError
from kernelk.graph.state import current_state
from kernelk.session.current import current

BUDGET = 0.1


def step(size: int = 8) -> tuple[Any, Any, Any]:
    """A training step, its weights, and a batch."""
    x = K.placeholder((None, size), name="x")
    w = K.variable(np.full((size, 2), 0.5))
    loss = K.mean(K.square(K.dot(x, w)))
    call = K.function([x], [loss], updates=[K.update_sub(w, 0.1 * K.gradients(loss, [w])[0])], name="step")
    return call, w, np.ones((4, size))


def test_a_call_is_timed_part_by_part(backend: str) -> None:
    call, w, batch = step()
    drawn = current_state().seeds.state()
    result = kernelk.time(lambda: call([batch]), budget=BUDGET)
    (found,) = result.calls
    assert found.count == 1
    assert found.inputs == ["float32[4, 8]"]
    assert found.outputs == ["float32[]"]
    assert found.steady.low <= found.steady.value <= found.steady.high
    for seconds in (found.steady.value, found.compile_seconds, found.first_seconds, found.load, found.deliver):
        assert seconds > 0
    assert found.commit > 0
    assert found.call > 0
    facts = current().hosts[backend].facts
    conditions = result.conditions
    assert (conditions.engine, conditions.version) == (backend, facts["version"])
    assert conditions.threads == facts.get("threads")
    assert conditions.device == facts["device"]
    # As after one call, and not after the hundreds that were timed.
    again, v, _ = step()
    again([batch])
    np.testing.assert_allclose(K.get_value(w), K.get_value(v), rtol=1e-6)
    assert current_state().seeds.state() == drawn


def test_a_tensor_is_evaluated_and_a_large_product_takes_longer_than_a_small_one(backend: str) -> None:
    # Nothing that the engine has computed already may be taken for computed again.
    a, b = (K.variable(np.full((n, n), 1 / n)) for n in (16, 512))
    small, large = (kernelk.time(K.dot(x, x), budget=0.3).calls[0] for x in (a, b))
    assert large.steady.value > 10 * small.steady.value
    assert large.outputs == ["float32[512, 512]"]


def test_an_op_that_takes_a_known_time_is_told_to_take_it(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_engine(monkeypatch, {"exp": 0.1})
    kernelk.set_backend("slow")
    result = kernelk.time(K.exp(K.variable([1.0])), budget=2.0)
    found = result.calls[0]
    assert found.steady.value >= 0.1
    assert found.loops * min(found.samples) >= 0.001
    # Of a call nothing is left out.
    assert found.call >= 0.1
    assert found.compile_seconds < found.first_seconds


def test_draws_are_made_for_each_run_and_belong_to_it(backend: str) -> None:
    small, large = (kernelk.time(K.random_normal((n,)), budget=0.2).calls[0] for n in (4, 200_000))
    assert large.steady.value > 3 * small.steady.value


def test_each_kind_of_call_is_told_by_itself(backend: str) -> None:
    call, _, batch = step()

    def body() -> None:
        time.sleep(0.02)
        for _ in range(3):
            call([batch])
        call([batch[:2]])
        K.eval(K.variable([1.0]) + 1)

    result = kernelk.time(body, budget=BUDGET)
    assert [one.count for one in result.calls] == [3, 1, 1]
    assert [one.inputs for one in result.calls] == [["float32[4, 8]"], ["float32[2, 8]"], []]
    assert result.python_seconds >= 0.02
    assert result.steady == pytest.approx(
        3 * result.calls[0].steady.value + result.calls[1].steady.value + result.calls[2].steady.value
    )
    assert "3 kinds of calls" in repr(result)


def test_what_placeholders_were_fed_last_is_fed() -> None:
    x = K.placeholder((None, 3), name="features")
    y = K.sum(x)
    with pytest.raises(FeedError, match="time: feeds are missing for 'features'"):
        kernelk.time(y)
    assert kernelk.time(y, feeds={x: np.ones((5, 3))}, budget=BUDGET).calls[0].inputs == ["float32[5, 3]"]
    y.eval({x: np.ones((2, 3))})
    assert kernelk.time(y, budget=BUDGET).calls[0].inputs == ["float32[2, 3]"]
    call = K.function([x, K.learning_phase()], [y])
    call([np.ones((4, 3)), 0])
    assert kernelk.time(call, budget=BUDGET).calls[0].inputs == ["float32[4, 3]"]


def test_engines_forget_what_was_timed(spare: str) -> None:
    for name in ("numpy", spare):
        activate(name)
        host = current().hosts[name]
        kernelk.time(K.exp(K.variable([1.0])), budget=BUDGET)
        with pytest.raises(EngineError, match="KeyError"):
            host.request({"do": "sample", "timed": 0, "loops": 1, "times": 1, "before": 0})
        assert K.eval(K.variable([1.0]) + 1).tolist() == [2.0]
    executor: Any = current().hosts["numpy"]
    assert executor._executor.timed == {}


def test_bad_input_is_one_line_and_nothing_is_lost() -> None:
    v = K.variable([1.0])
    cases: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
        (lambda: 1, {}, ArgumentError, "nothing was evaluated"),
        (lambda: None, {}, ArgumentError, "nothing was evaluated"),
        ("text", {}, ArgumentError, "neither a tensor nor a K.function"),
        (v + 1, {"budget": "long"}, ArgumentError, "budget='long' isn't allowed; it is a number of seconds"),
        (v + 1, {"budget": 0}, ArgumentError, "budget=0 isn't allowed; it is a number of seconds"),
        (lambda: v + 1, {"feeds": {v: 1}}, ArgumentError, "a body feeds its calls itself"),
        (lambda: K.dot(v, K.ones((3, 3))), {}, ShapeError, "dot"),
        (lambda: 1 / 0, {}, ZeroDivisionError, "division"),
    ]
    for target, options, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            kernelk.time(target, **options)
        if kind is not ZeroDivisionError:
            assert one_line(caught.value)
        assert current().recorder is None
    assert K.get_value(v).tolist() == [1.0]


def test_a_budget_that_is_too_small_for_one_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_engine(monkeypatch, {"exp": 0.02})
    kernelk.set_backend("slow")
    result = kernelk.time(K.exp(K.variable([1.0])), budget=0.001)
    assert 1 <= len(result.calls[0].samples) <= 2
    assert "only" in repr(result)
    assert "too few samples" in repr(result)


@pytest.mark.parametrize("name", ["numpy", "spare"])
def test_ctrl_c_leaves_the_session_as_after_the_body(spare: str, name: str) -> None:
    activate(name)
    call, w, batch = step()
    pid = current().hosts[name].pid
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        kernelk.time(lambda: call([batch]), budget=60)
    timer.join()
    assert current().hosts[name].pid == pid
    again, v, _ = step()
    again([batch])
    np.testing.assert_allclose(K.get_value(w), K.get_value(v), rtol=1e-6)


def test_results_can_be_kept_and_drawn(tmp_path: Any) -> None:
    import matplotlib

    matplotlib.use("agg")
    call, _, batch = step()
    result = kernelk.time(lambda: [call([batch]), call([batch[:1]])], budget=BUDGET)
    frame = result.to_frame()
    assert list(frame["count"]) == [1, 1]
    assert frame["steady"].iloc[0] == result.calls[0].steady.value
    kept = json.loads(result.to_json(tmp_path / "times.json"))
    assert json.loads((tmp_path / "times.json").read_text()) == kept
    assert kept["calls"][0]["samples"] == result.calls[0].samples
    assert kept["conditions"]["engine"] == "numpy"
    axes = result.plot()
    assert len(axes.patches) == 2
    assert "<table>" in result._repr_html_()


def test_the_magic() -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            "import numpy as np\nfrom kernelk import backend as K\na = K.variable(np.ones((4, 4)))\n"
            "x = K.placeholder((None, 4))\nf = K.function([x], [K.dot(x, a)])",
            "r = %ktime --budget 0.1 K.dot(a, a)\nprint(r)",
            "%%ktime --budget 0.1\ny = f([np.ones((2, 4))])\nz = f([np.ones((3, 4))])\n",
            "print(y[0].shape, z[0].shape)",
            "%ktime 1 + 1",
            "%ktime",
            "%ktime K.dot(a,",
            "%%ktime --bugdet 3\nf([np.ones((2, 4))])",
            "%ktime K.dot(a, K.ones((3, 3)))",
            "%ktime nothing_of_this_name",
            "%unload_ext kernelk",
            "%ktime K.dot(a, a)",
        ],
        KERNELK_BACKEND="numpy",
    )
    assert "line 1: K.dot(a, a): " in cells[2]["out"]
    assert "steady state" in cells[2]["out"]
    assert "2 kinds of calls on numpy" in cells[3]["value"]
    assert "(2, 4) (3, 4)" in cells[4]["out"]
    told = [cell["out"] for cell in cells]
    assert "ArgumentError: %ktime: nothing was evaluated" in told[5]
    assert "ArgumentError: %ktime was given nothing to run; next: %ktime K.softmax(K.ones((500, 500)))" in told[6]
    assert "has a syntax error in line 1" in told[7]
    assert "did you mean --budget?" in told[8]
    assert "ShapeError: dot" in told[9]
    assert "NameError" in told[10]
    assert "kernelk/" not in told[10]
    assert "Cell In[11], line 1" in told[10]
    assert "not found" in cells[12]["err"]
