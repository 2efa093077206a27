"""`%%kcompare`: the same calls on several engines, fairly timed, their results compared, the session left alone."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.engines import activate, require_installed
from helpers.fake_engines import lacking_engine, slow_engine
from helpers.messages import one_line
from helpers.notebooks import run_cells

import kernelk
from kernelk import backend as K
from kernelk.cli.main import main
from kernelk.errors import ArgumentError, BackendNotInstalledError, UnknownBackendError
from kernelk.session.current import current

BUDGET = 1.0


def step(size: int = 8) -> tuple[Any, Any, Any]:
    """A training step with momentum, its weights, and a batch."""
    x = K.placeholder((None, size), name="x")
    w, m = K.variable(np.full((size, 2), 0.5)), K.variable(np.zeros((size, 2)))
    loss = K.mean(K.square(K.dot(x, w)))
    velocity = 0.9 * m - 0.1 * K.gradients(loss, [w])[0]
    call = K.function([x], [loss], updates=[K.update(m, velocity), K.update_add(w, velocity)])
    return call, w, np.ones((4, size))


def test_all_engines_beside_each_other(every_engine: list[str]) -> None:
    activate("torch")
    call, w, batch = step()
    seen: list[list[float]] = []

    def body() -> None:
        noise = K.eval(K.random_normal((4, 8)))
        seen.append([float(call([batch + noise])[0]) for _ in range(3)])

    result = kernelk.compare(body, *every_engine, budget=2 * BUDGET)
    assert [side.label for side in result.sides] == every_engine
    assert not [side.failure for side in result.sides if side.failure]
    assert result.equal
    assert result.reference is result.sides[0]
    for side in result.sides:
        assert len(side.rounds) == len(result.sides[0].rounds) > 0
        assert [one.count for one in side.calls] == [1, 3]
        assert side.ratio is not None
        assert side.absolute < 1e-4
        assert all(one.steady.value > 0 and one.compile_seconds > 0 for one in side.calls)
    # The body ran once, on the active engine, and the session is as after that.
    assert len(seen) == 1
    assert current().active == "torch"
    _, v, _ = step()
    assert K.eval(K.sum(w)) != K.eval(K.sum(v))
    text = repr(result)
    assert all(name in text for name in every_engine)
    assert "pays after" in text


def test_the_session_is_as_after_one_run_of_the_body(spare: str) -> None:
    activate("numpy")
    call, w, batch = step()
    other, v, _ = step()
    other([batch])
    other([batch])
    noise: Any = K.random_uniform((2,))
    made: list[Any] = []

    def body() -> None:
        made.append(K.variable([1.0, 2.0]))
        K.eval(K.update_add(made[0], [1.0, 1.0]))
        call([batch])
        call([batch])
        K.eval(noise)

    result = kernelk.compare(body, "numpy", spare, budget=BUDGET)
    assert result.equal
    assert K.get_value(w).tolist() == K.get_value(v).tolist()
    assert K.get_value(made[0]).tolist() == [2.0, 3.0]
    assert noise.count.value == 1
    assert current().recorder is None


def test_a_body_that_does_twice_as_much_is_found_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_engine(monkeypatch, {"exp": 0.01})
    kernelk.set_backend("slow")
    v = K.variable([0.5])

    def once() -> None:
        K.eval(K.exp(v))

    def twice() -> None:
        K.eval(K.exp(K.exp(v)))

    result = kernelk.compare(once, twice, budget=BUDGET)
    slower = result.side("twice")
    assert slower.ratio is not None
    # A busy machine adds to either.
    assert slower.ratio.value > 1.5
    assert slower.ratio.low < 2.5
    assert "once is the fastest" in repr(result)
    # Other bodies, other results: said, without a word of %kdiff.
    assert not result.equal
    assert "kdiff" not in repr(result)
    same = kernelk.compare(once, once, budget=BUDGET)
    assert [side.label for side in same.sides] == ["body 1", "body 2"]
    assert same.equal


def test_an_engine_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch, spare: str) -> None:
    from kernelk.engines import registry

    lacking_engine(monkeypatch, "poor", ops={"tanh"})
    there = registry.interpreter

    def interpreter(engine: Any) -> Any:
        if engine.name == "cntk":
            raise BackendNotInstalledError(f"{engine.title} isn't installed: {engine.install}")
        return there(engine)

    monkeypatch.setattr(registry, "interpreter", interpreter)
    current().hosts.pop("cntk", None)
    v = K.variable([0.5])
    result = kernelk.compare(lambda: K.eval(K.tanh(v)), "poor", "cntk", "numpy", spare, budget=BUDGET)
    assert "it has no op 'tanh'" in result.side("poor").failure
    assert "CNTK isn't installed: kernelk install cntk" in result.side("cntk").failure
    assert result.reference is result.side("numpy")
    assert len(result.side(spare).rounds) > 2
    text = repr(result)
    assert "poor: Poor can't run this: it has no op 'tanh'" in text
    nothing = kernelk.compare(lambda: K.eval(K.tanh(v)), "poor", budget=BUDGET)
    assert "nothing could be timed" in repr(nothing)
    assert len(nothing.to_frame()) == 1


def wrong_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine "wrong", whose exponentials are 1 % too large."""
    module = lacking_engine(monkeypatch, "wrong")
    compute = module.Lacking.ops["exp"]
    module.Lacking.ops["exp"] = lambda instruction, x: compute(instruction, x) * np.float32(1.01)


def test_wrong_results_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_engine(monkeypatch)
    y = K.exp(K.variable([0.0, 1.0]))
    result = kernelk.compare(y, "numpy", "wrong", budget=BUDGET)
    side = result.side("wrong")
    assert not result.equal
    assert side.differing == 2
    assert 0.004 < side.relative < 0.0099
    differs = "wrong: 2 elements differ from numpy's beyond rounding; next: "
    assert f"{differs}add print(kernelk.diff(y, 'numpy', 'wrong')) to the script" in repr(result)
    with monkeypatch.context() as patch:
        patch.setattr("IPython.get_ipython", object)
        assert f"{differs}%kdiff y numpy wrong" in repr(result)
    nans = kernelk.compare(K.log(K.variable([-1.0])), "numpy", "wrong", budget=BUDGET)
    assert nans.equal
    assert "NaN in the results: numpy, wrong" in repr(nans)


def test_a_shell_is_shown_no_magic(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong_engine(monkeypatch)
    script = tmp_path / "script.py"
    script.write_text("from kernelk import backend as K\nK.eval(K.exp(K.variable([0.0, 1.0])))\n")
    assert main(["compare", str(script), "numpy", "wrong", "--budget", "0.3"]) == 0
    printed = capsys.readouterr().out
    assert "next: add print(kernelk.diff(y, 'numpy', 'wrong')) to the script" in printed
    assert "%k" not in printed


def test_threads_are_the_same_for_all_and_the_session_keeps_its_own() -> None:
    activate("torch")
    before = current().hosts["torch"]
    threads = before.facts["threads"]
    a = K.variable(np.ones((32, 32)))
    result = kernelk.compare(K.dot(a, a), "torch", "theano", threads=1, budget=BUDGET)
    assert [side.conditions.threads for side in result.sides if side.conditions] == [1, 1]
    assert "threads differ" not in repr(result)
    # numpy's are fixed when it loads.
    alone = kernelk.compare(K.dot(a, a), "numpy", threads=1, budget=BUDGET)
    used = alone.sides[0].conditions.threads  # type: ignore[union-attr]
    note = f"numpy can't be given another number of threads (numpy {used}); next: for numpy, set OPENBLAS_NUM_THREADS=1"
    assert (note in repr(alone)) == (used != 1)
    assert current().hosts["torch"] is before
    assert current().hosts["torch"].facts["threads"] == threads
    assert current().engine_options["theano"] == {"compiler": ""}


def test_a_sweep() -> None:
    import matplotlib

    matplotlib.use("agg")

    def body(n: int) -> None:
        K.eval(K.dot(K.ones((n, n)), K.ones((n, n))))

    result: Any = kernelk.compare(body, "numpy", budget=BUDGET, sweep={"n": [8, 64, 512]})
    assert [value for value, _ in result.points] == [8, 64, 512]
    times = [one.side("numpy").steady.value for _, one in result.points]
    assert times[0] < times[2]
    assert list(result.to_frame()["n"]) == [8, 64, 512]
    axes = result.plot()
    assert axes.get_xscale() == axes.get_yscale() == "log"
    assert axes.get_xlabel() == "n"
    assert len(json.loads(result.to_json())["points"]) == 3


def test_op_by_op_on_every_engine(every_engine: list[str]) -> None:
    activate(every_engine[0])
    call, w, batch = step()
    result = kernelk.compare(lambda: call([batch]), *every_engine, budget=BUDGET, per_op=True)
    assert result.per_op is not None
    assert result.per_op.labels == every_engine
    _, v, _ = step()
    assert K.get_value(w).tolist() != K.get_value(v).tolist()
    products = [ops for ops in result.per_op.ops if ops[0].op == "matmul"]
    assert products
    for ops in result.per_op.ops:
        assert len({(op.op, op.source, op.shape, op.count) for op in ops}) == 1
        assert all(op.steady.value > 0 and not op.failure for op in ops)
    text = repr(result)
    assert "each op on its own, unfused, on the same operands; these aren't parts of the times above" in text
    assert "matmul" in text
    assert "matmul" in result._repr_html_()
    frame = result.per_op.to_frame()
    assert set(frame["side"]) == set(every_engine)
    assert len(frame) == len(every_engine) * len(result.per_op.ops)
    assert "per_op" in json.loads(result.to_json())


def test_an_op_that_is_slow_on_one_engine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_engine(monkeypatch, {"exp": 0.003})
    y = K.tanh(K.exp(K.variable([1.0])))
    result = kernelk.compare(y, "numpy", "slow", budget=0.5, per_op=True)
    assert result.per_op is not None
    (exp, tanh) = result.per_op.ops
    assert (exp[0].op, tanh[0].op) == ("exp", "tanh")
    assert exp[1].steady.value > 0.003 > exp[0].steady.value
    lacking_engine(monkeypatch, "poor", ops={"tanh"})
    result = kernelk.compare(y, "poor", "numpy", budget=0.3, per_op=True)
    assert result.per_op is not None
    assert result.per_op.labels == ["numpy"]


@pytest.mark.parametrize("name", ["numpy", "spare"])
def test_ctrl_c_leaves_the_session_as_after_one_run(spare: str, name: str) -> None:
    activate(name)
    call, w, batch = step()
    other, v, _ = step()
    other([batch])
    timer = threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        kernelk.compare(lambda: call([batch]), "numpy", spare, budget=60)
    timer.join()
    assert current().active == name
    assert current().recorder is None
    assert K.get_value(w).tolist() == K.get_value(v).tolist()
    assert kernelk.compare(lambda: call([batch]), "numpy", spare, budget=0.2).equal


def never() -> None:
    """A body that no wrong option lets run."""
    raise AssertionError


def test_bad_input_is_one_line() -> None:
    require_installed("torch")
    y = K.variable([1.0]) + 1
    cases: list[tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
        (("numpy",), {}, ArgumentError, "there is nothing to run"),
        ((y, "nunpy"), {}, UnknownBackendError, "did you mean 'numpy'"),
        ((y, y, "numpy", "torch"), {}, ArgumentError, "cannot be combined"),
        ((never, "numpy", "torch", "numpy"), {}, ArgumentError, "compare: numpy was named twice; each .*numpy, torch"),
        ((never, "torch", "torch"), {"sweep": {"n": [1]}}, ArgumentError, "torch was named twice; .* name torch, "),
        ((y, y, "numpy", "numpy"), {}, ArgumentError, "compare: numpy was named twice; each engine is one side; next"),
        ((y, "numpy"), {"budget": -1}, ArgumentError, "budget=-1 isn't allowed; it is a number of seconds"),
        ((y, "numpy"), {"sweep": {"n": [1]}}, ArgumentError, "one function of it as the body"),
        ((lambda: y, "numpy"), {"sweep": {"n": [1]}}, ArgumentError, "the body can't be called with n alone"),
        ((lambda n: y, "numpy"), {"sweep": 3}, ArgumentError, "a sweep takes one name with its values"),
        ((y, "numpy"), {"feeds": [1]}, ArgumentError, "feeds map placeholders to arrays, not list"),
        ((lambda n: y, "numpy"), {"sweep": {"n": []}}, ArgumentError, "has no values"),
        ((lambda: 1, "numpy"), {}, ArgumentError, "nothing was evaluated"),
        ((y, y, "numpy"), {"per_op": True}, ArgumentError, "one body, several engines"),
        (
            (never, "numpy"),
            {"threads": "x"},
            ArgumentError,
            "compare: threads='x' isn't allowed; .*next: threads=[0-9]",
        ),
        ((never, "numpy"), {"device": " "}, ArgumentError, "compare: device=' ' isn't allowed; .*next: device='cpu:0'"),
    ]
    for what, options, kind, words in cases:
        with pytest.raises(kind, match=words) as caught:
            kernelk.compare(*what, **options)
        assert one_line(caught.value)
    # What an engine can't be given is its row's.
    result = kernelk.compare(y, "numpy", "torch", device="gpu:7", budget=BUDGET)
    for name in ("numpy", "torch"):
        assert "no device 'gpu:7' here" in result.side(name).failure


def test_a_budget_that_is_too_small_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_engine(monkeypatch, {"exp": 0.05})
    result = kernelk.compare(K.exp(K.variable([1.0])), "slow", "numpy", budget=0.01)
    assert len(result.sides[0].rounds) == 1
    assert "only 1 round in 0.01 s, too few for a verdict; next: a budget of " in repr(result)


@pytest.mark.parametrize(("runs", "shown"), [(None, ""), (1, "1 run"), (2, "2 runs")])
def test_runs_are_counted_in_words(runs: int | None, shown: str) -> None:
    activate("numpy")
    call, _, batch = step()
    result = kernelk.compare(lambda: call([batch]), "numpy", budget=0.1)
    result.sides[0].pays_after = runs
    assert result.table().rows[0][6] == shown
    once = kernelk.time(lambda: call([batch]), budget=0.1)
    once.calls[0].loops = runs or 1
    assert f"samples of {shown or '1 run'}, 99%" in once.table().rows[0][1]


def test_the_magic() -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            "import numpy as np\nfrom kernelk import backend as K\na = K.variable(np.ones((4, 4)))",
            "%%kcompare numpy, torch --budget 1 --per-op\nz = K.eval(K.dot(a, a))",
            "print(z.sum(), _.side('torch').label)",
            "n = 7\nruns = 0",
            "%%kcompare numpy --budget 0.3 --sweep n=2,4\nq = K.eval(K.ones((n, n)) * 2)",
            "%%kcompare numpy --budget 0.3 --sweep m=2,4\nK.eval(K.ones((m, m)) * 2)",
            "print(q.shape, n, 'm' in globals())",
            "%%kcompare numpy torch --threads x\nruns += 1\nK.eval(a + 1)",
            "print(runs)",
            "%%kcompare?",
            "%%kcompare numpy --sweep n\n1",
            "%%kcompare numpy torhc\nK.eval(a + 1)",
            "%%kcompare numpy, torch, numpy\nruns += 1\nK.eval(a + 1)",
            "%%kcompare numpy numpy --threads 1\nruns += 1\nK.eval(a + 1)",
            "print(runs)",
            "%%kcompare numpy\nK.eval(a +",
            "%%kcompare numpy\n# nothing",
            "%%kcompare numpy\nraise ValueError('mine')",
            "%kbackend",
        ],
        KERNELK_BACKEND="numpy",
    )
    assert "reference" in cells[2]["value"]
    assert "op by op" in cells[2]["value"]
    assert "64.0 torch" in cells[3]["out"]
    assert "time against n" in cells[5]["value"]
    assert "time against m" in cells[6]["value"]
    assert cells[7]["out"] == "(4, 4) 7 False\n"
    told = [cell["out"] for cell in cells]
    # Options are checked before the cell runs.
    assert "--threads x isn't allowed; allowed are 1 to" in told[8]
    assert "next: --threads " in told[8]
    assert told[9] == "0\n"
    assert "%%kcompare [--budget S]" in told[10]
    told = told[11:]
    assert "--sweep n isn't allowed; it takes a name and numbers" in told[0]
    assert "UnknownBackendError: unknown backend 'torhc': did you mean 'torch'" in told[1]
    assert "numpy was named twice; each engine is one side; next: name numpy, torch" in told[2]
    assert "numpy was named twice; each engine is one side; next: name numpy, " in told[3]
    assert told[4] == "0\n"
    told = told[3:]
    assert "has a syntax error in line 1" in told[2]
    assert "nothing was evaluated" in told[3]
    assert "ValueError: mine" in told[4]
    # From the user's line to its cause there is none of kernelk's, and the cell's number is its own.
    assert "kernelk/" not in told[4]
    assert "Cell In[19]" in told[4]
    assert "Cell In[20]" not in told[4]
    assert "* " in cells[-1]["value"]
