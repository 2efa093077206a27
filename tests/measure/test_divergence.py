"""`%kdiff` and `kernelk.diff`: the first op on which two engines differ, where NaN begins, a session left as it was."""

from __future__ import annotations

import os
import signal
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.brake import Brake
from helpers.engines import activate
from helpers.fake_engines import lacking_engine
from helpers.notebooks import run_cells

import kernelk
from kernelk import backend as K
from kernelk.backends.errors import CannotLower
from kernelk.errors import (
    ArgumentError,
    BackendNotInstalledError,
    EngineError,
    FeedError,
    KernelKError,
    UnknownBackendError,
    WorkerDiedError,
)
from kernelk.graph.state import current_state
from kernelk.measure import single_ops
from kernelk.session.calls import Calls
from kernelk.session.current import current

PAIRS = [("numpy", "tensorflow"), ("tensorflow", "theano"), ("theano", "cntk"), ("cntk", "jax"), ("jax", "torch")]


def planted(monkeypatch: Any, **defects: Callable[..., Any]) -> str:
    """An engine of a third party's, numpy with ops that are wrong: each gives `defect(right, *operands)`."""
    ops = lacking_engine(monkeypatch, "other").Lacking.ops

    def wrong(right: Callable[..., Any], defect: Callable[..., Any]) -> Callable[..., Any]:
        return lambda instruction, *values, **attrs: defect(right(instruction, *values, **attrs), *values)

    for op, defect in defects.items():
        ops[op] = wrong(ops[op], defect)
    return "other"


def network() -> tuple[Any, Any, Any]:
    """(input, result, updated variable): layers, dropout, gradients, a training step's new weights."""
    x = K.placeholder((None, 3), name="x")
    w = K.variable(np.random.RandomState(0).rand(3, 4), name="w")
    hidden = K.dropout(K.tanh(K.dot(x, w)), 0.3)
    loss = K.mean(K.square(K.softmax(hidden)))
    (slope,) = K.gradients(loss, [w])
    return x, K.function([x, K.learning_phase()], [loss, slope], [K.update_sub(w, 0.1 * slope)]), w


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_engines_agree_on_a_network(a: str, b: str) -> None:
    activate(a)
    activate(b)
    activate("numpy")
    x, call, _ = network()
    report = kernelk.diff(call, a, b, feeds={x: np.random.rand(5, 3)})
    assert report.agrees, report
    assert report.first is report.culprit is None
    assert report.own_failure == ""
    assert [row.op for row in report.rows[:4]] == ["placeholder", "variable", "draw", "matmul"]
    assert {"tanh", "softmax", "mean"} <= {row.op for row in report.rows}
    assert len(report.results) == 3
    assert all(row.own is not None for row in report.rows[3:])
    assert str(report).startswith(f"{a} and {b} agree within the tolerance")
    # Rounding is there all the same: nothing was merely compared with itself.
    assert any(row.gap.relative for row in report.rows)


@pytest.mark.parametrize(("a", "b"), [("numpy", "tensorflow"), ("theano", "cntk"), ("jax", "torch")])
def test_the_first_difference_of_real_engines(a: str, b: str) -> None:
    """With no tolerance at all: exact ops agree, and the first function of reals differs in its last bits."""
    activate(a)
    activate(b)
    x = K.placeholder((None, 100), name="x")
    exact = (x * 2.0 + 1.0) / 4.0
    bent = K.exp(exact)
    y = K.sum(bent, axis=1)
    report = kernelk.diff(y, a, b, {x: np.random.RandomState(1).randint(-9, 9, (200, 100))}, tolerance=0)
    assert report.first is not None
    assert report.first.op == "exp"
    assert report.first.name == bent.name
    assert "bent = K.exp(exact)" in report.first.source
    assert report.first.own is not None
    assert report.first.own.beyond
    assert not report.agrees


def test_a_defect_is_found_with_its_line(monkeypatch: Any) -> None:
    other = planted(monkeypatch, tanh=lambda right, x: right * np.float32(1.01))
    x, call, _ = network()
    report = kernelk.diff(call, "numpy", other, {x: np.random.rand(5, 3)})
    assert report.first is report.culprit
    assert report.first is not None
    assert report.first.op == "tanh"
    assert "hidden = K.dropout(K.tanh(K.dot(x, w)), 0.3)" in report.first.source
    assert 0.009 < report.first.gap.relative < 0.011
    # What follows differs too, but not of its own.
    later = [row for row in report.rows if row.gap.beyond and row is not report.first]
    assert later
    assert all(row.own is not None and not row.own.beyond for row in later)
    assert "numpy and other differ first at tanh" in repr(report)
    assert "other's own results differ most at tanh" in repr(report)
    # One percent of float32 is some 100,000 units in the last place.
    assert 80_000 < report.first.gap.ulps < 180_000
    assert report.truth is not None
    right, wrong = report.truth.errors
    assert right < 4 < 80_000 < wrong
    assert f"numpy is {right:.3g} ulps from it and other {wrong:.3g}: numpy is nearer" in repr(report)
    html = report._repr_html_()
    assert html.count("<table") == html.count("</table>") == 1
    assert "<b>tanh</b>" in html
    assert "<br>" in html
    # Named the other way round, the defect is the reference's, and found all the same.
    turned = kernelk.diff(call, other, "numpy", {x: np.random.rand(5, 3)})
    assert turned.first is not None
    assert turned.first.op == "tanh"
    assert turned.truth is not None
    assert turned.truth.errors[0] > 80_000
    assert ": numpy is nearer" in repr(turned)
    # What follows from draws, casts, several operands and a repeated one has a truth too.
    for y in (K.tanh(K.random_normal((3, 2))), K.tanh(K.cast(K.constant([0.3], dtype="float16"), "float32") * 1.5)):
        assert ": numpy is nearer" in repr(kernelk.diff(y, "numpy", other))


def test_a_cast_a_square_and_a_composite_have_a_truth(monkeypatch: Any) -> None:
    for op, y in {
        "multiply": K.constant([1.5, 2.5]) * 3.0,
        "matmul": K.dot(K.ones((2, 3)), K.ones((3, 2))),
        "cast": K.cast(K.variable([1.5], dtype="float16"), "float32"),
        "conv": K.conv2d(K.ones((1, 3, 3, 1)), K.ones((2, 2, 1, 1)), data_format="channels_last"),
    }.items():
        other = planted(monkeypatch, **{op: lambda right, *_, **__: right * right.dtype.type(1.01)})
        report = kernelk.diff(y, other, "numpy")
        assert report.first is not None
        assert report.first.op == op
        assert report.truth is not None, op
        assert report.truth.errors[1] < 4, op
        assert ": numpy is nearer" in repr(report)


def test_integers_and_float64_have_no_ulps_against_a_truth(monkeypatch: Any) -> None:
    other = planted(monkeypatch, add=lambda right, *_: right + 1)
    for dtype in ("int32", "float64"):
        report = kernelk.diff(K.constant([1, 2], dtype=dtype) + 1, "numpy", other)
        assert report.first is not None
        assert report.truth is None
        assert (report.first.gap.ulps > 0) == (dtype == "float64")


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_rounding_that_cancels_and_is_absorbed_is_no_difference(a: str, b: str) -> None:
    """Half of a softmax's gradient is a sum of nearly 0, whose digits are all rounding."""
    activate(a)
    activate(b)
    random = np.random.RandomState(3)
    x, t = K.placeholder((None, 50), name="x"), K.placeholder((None, 10), name="t")
    w = K.variable(random.randn(50, 10) * 0.1)
    loss = K.mean(K.categorical_crossentropy(t, K.softmax(K.dot(x, w))))
    slope = K.gradients(loss, [w])[0]
    labels = np.eye(10)[random.randint(0, 10, 40)]
    report = kernelk.diff([loss, slope], a, b, {x: random.rand(40, 50), t: labels})
    assert report.agrees, report
    assert report.first is None
    assert report.culprit is None, report


def test_a_defect_that_is_absorbed_is_told_apart(monkeypatch: Any) -> None:
    other = planted(monkeypatch, tanh=lambda right, x: right * 2)
    v = K.variable([1.0, 2.0], name="v")
    bent = K.tanh(v) * 1e-6
    report = kernelk.diff(bent + 5.0, "numpy", other)
    assert report.agrees
    assert report.first is None
    assert [row.op for row in report.absorbed] == ["tanh", "multiply"]
    assert report.culprit is report.absorbed[0]
    assert "2 intermediate nodes exceed the tolerance without affecting the result, first at tanh" in repr(report)
    report = kernelk.diff([bent + 5.0, bent], "numpy", other)
    assert report.first is report.culprit
    assert report.absorbed == []


def test_the_culprit_is_told_from_what_it_causes(monkeypatch: Any) -> None:
    """A small error, grown by an op that is right, and then a larger one."""
    other = planted(
        monkeypatch,
        tanh=lambda right, x: right + np.float32(2e-6),
        sqrt=lambda right, x: right * np.float32(1.5),
    )
    v = K.variable([0.25, 0.5], name="v")
    grown = (K.tanh(v) - np.tanh(np.float32([0.25, 0.5]))) + 1e-9
    y = K.sqrt(K.square(grown) * 1e12 + 4.0)
    report = kernelk.diff(y, "numpy", other)
    assert report.first is not None
    assert report.first.op == "add"
    assert report.first.own is not None
    assert not report.first.own.beyond
    assert report.culprit is not None
    assert report.culprit.op == "sqrt"
    steep = K.cast(K.tanh(v) * 1e6, "int32")
    report = kernelk.diff(steep, "numpy", other)
    assert report.first is not None
    assert report.first.op == "saturating_cast"
    assert report.culprit is None
    assert "given numpy's inputs, other agrees there: smaller differences in earlier ops were amplified" in repr(report)


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_where_a_nan_begins(a: str, b: str) -> None:
    activate(a)
    activate(b)
    x = K.placeholder((None, 2), name="x")
    shifted = x - 2.0
    logs = K.log(shifted)
    y = K.mean(K.exp(logs * 0.5) + 1.0)
    report = kernelk.diff(y, a, b, feeds={x: [[1.0, 3.0], [5.0, 6.0]]})
    (origin,) = report.origins
    assert (origin.kind, origin.engines, origin.row.name) == ("NaN", (a, b), logs.name)
    assert "logs = K.log(shifted)" in origin.row.source
    assert origin.inputs == ((shifted.name, report.rows[1].ranges[0]),)
    assert f"the first NaN on {a} and {b} is produced by log" in repr(report)
    assert f"whose operands are '{shifted.name}' -1 to 4" in repr(report)
    assert report.agrees


def test_an_infinity_a_nan_and_one_engines_own(monkeypatch: Any) -> None:
    activate("cntk")
    v = K.variable([0.0, 1.0], name="v")
    inverse = 1.0 / v
    report = kernelk.diff(inverse - inverse, "numpy", "cntk")
    assert [(origin.kind, origin.row.op) for origin in report.origins] == [("inf", "divide"), ("NaN", "subtract")]
    other = planted(monkeypatch, log=lambda right, x: np.where(np.isinf(right), np.float32(-85), right))
    report = kernelk.diff(K.log(v) * 2.0, "numpy", other)
    (origin,) = report.origins
    assert (origin.kind, origin.engines) == ("inf", ("numpy",))
    assert report.first is not None
    assert report.first.op == "log"
    assert report.first.gap.absolute == float("inf")
    assert "1 of 2 elements exceed the tolerance, the worst is -inf and -85.0 at [0]" in repr(report)
    assert "inf on numpy" in repr(report)


def test_a_nan_that_was_fed_or_held() -> None:
    activate("theano")
    x, v = K.placeholder((2,), name="x"), K.variable([1.0, np.nan], name="v")
    report = kernelk.diff(x * 2.0, "numpy", "theano", {x: [np.nan, 1.0]})
    assert "the first NaN is in the value of placeholder 'x'" in repr(report)
    report = kernelk.diff(v * 2.0, "numpy", "theano")
    assert "the first NaN is in the value of variable 'v'" in repr(report)


def test_float16_overflow_and_integers_that_differ(monkeypatch: Any) -> None:
    activate("tensorflow")
    x = K.placeholder((2,), dtype="float16", name="x")
    report = kernelk.diff(K.sum(x * x), "numpy", "tensorflow", {x: [300.0, 2.0]})
    assert [(origin.kind, origin.row.op) for origin in report.origins] == [("inf", "multiply")]
    other = planted(monkeypatch, floor_divide=lambda right, x, y: right + (np.asarray(x) == 7))
    n = K.variable([7, 8], dtype="int32")
    report = kernelk.diff(n // 2, "numpy", other, tolerance=10.0)
    assert report.first is not None
    assert (report.first.gap.beyond, report.first.gap.worst, report.first.gap.values) == (1, (0,), (3, 4))


def test_the_session_stays_as_it_was() -> None:
    activate("theano")
    activate("tensorflow")
    session = current()
    _, call, w = network()
    call([np.random.rand(4, 3), 1])
    compiled = {name: list(host.compiled) for name, host in session.hosts.items()}
    value, drawn, shown = K.get_value(w), current_state().seeds.state(), dict(session.shown)
    functions, swaps = len(session.functions), len(session.swaps)
    first = kernelk.diff(call, "theano", "numpy")
    assert session.active == "tensorflow"
    assert current_state().seeds.state() == drawn
    assert np.array_equal(K.get_value(w), value)
    assert {name: list(session.hosts[name].compiled) for name in compiled} == compiled
    assert (dict(session.shown), len(session.functions), len(session.swaps)) == (shown, functions, swaps)
    # The same draws again, and those that the session's next call gets.
    again = kernelk.diff(call, "theano", "numpy")
    assert [row.ranges for row in first.rows] == [row.ranges for row in again.rows]
    assert first.phase == 1
    drawn = K.random_uniform((3,))
    seen = kernelk.diff(drawn, "numpy", "theano").rows[0].ranges[0]
    got = K.eval(drawn)
    assert (seen.low, seen.high) == (float(got.min()), float(got.max()))


def test_what_was_fed_last_is_the_default() -> None:
    activate("theano")
    x, y = K.placeholder((None,), name="x"), K.placeholder((None,), name="y")
    z = x * 2.0 + y
    with pytest.raises(FeedError, match=r"feeds are missing for 'x' \(None,\) .*; 'y' .*; next: give feeds="):
        kernelk.diff(z, "numpy", "theano")
    data = np.array([1.0, 2.0, 3.0])
    z.eval({x: data, y: [5, 6, 7]})
    data[:] = 0.0
    report = kernelk.diff(z, "numpy", "theano")
    assert [(row.name, row.ranges[0].low) for row in report.rows[:2]] == [("x", 1.0), ("y", 5.0)]
    report = kernelk.diff(z, "numpy", "theano", {"y": [8.0, 8.0, 8.0]})
    assert report.rows[1].ranges[0].low == 8.0
    # Of a large array only where it is: it is used while it is there.
    large = np.ones(300_000)
    small = np.ones(300_000)
    z.eval({x: large, y: small})
    assert kernelk.diff(z, "numpy", "theano").rows[0].shape == (300_000,)
    del large
    with pytest.raises(
        FeedError, match=r"feeds are missing for 'x' \(None,\) \(test_divergence.py, line \d+: [^;]*\); next: give"
    ):
        kernelk.diff(z, "numpy", "theano")


def test_lengths_that_are_values() -> None:
    activate("theano")
    x = K.placeholder((None, 2), name="x")
    n = K.sum(K.cast(x, "int32"))
    y = K.cast(K.arange(n), "float32") * K.sum(x)
    report = kernelk.diff(y, "numpy", "theano", {x: [[1.0, 3.0]]})
    assert report.agrees
    assert report.rows[-1].shape == (4,)
    assert all(row.own is not None for row in report.rows[1:])


def test_updates_prints_and_several_tensors(capsys: Any) -> None:
    activate("theano")
    v = K.variable([1.0, 2.0], name="v")
    step = K.update_add(v, K.print_tensor(v * 3.0, "step"))
    report = kernelk.diff(step, "numpy", "theano")
    assert [row.op for row in report.rows] == ["variable", "multiply", "add"]
    assert K.get_value(v).tolist() == [1.0, 2.0]
    assert len(kernelk.diff([v + 1.0, v * 2.0], "numpy", "theano").results) == 2
    assert capsys.readouterr().out == ""


def test_a_long_graphs_table_shows_the_place(monkeypatch: Any) -> None:
    other = planted(monkeypatch, tanh=lambda right, x: right * 2)
    y = v = K.variable([1.0, 2.0])
    for _ in range(60):
        y = y + 1.0
    y = K.tanh(y * 0.01)
    for _ in range(60):
        y = y * 1.5
    report = kernelk.diff(y, "numpy", other)
    assert len(report.rows) == 123
    table = report.table()
    assert len(table.rows) == 40
    assert table.strong is not None
    assert table.rows[table.strong][0] == "tanh"
    assert "122 nodes, 40 shown" in table.below
    assert v is not y


def test_the_ordinary_compilation_is_checked_too(monkeypatch: Any) -> None:
    """An engine that errs only where it fuses: with every node an output it is right."""
    module = lacking_engine(monkeypatch, "other")
    compile_right = module.Lacking.compile

    def compile_fused(self: Any, program: Any, constants: Any) -> Any:
        run = compile_right(self, program, constants)
        if len(program.outputs) > 1:
            return run

        def fused(feeds: Any, state: Any, draws: Any) -> Any:
            outputs, updated = run(feeds, state, draws)
            return [output * 2 for output in outputs], updated

        return fused

    monkeypatch.setattr(module.Lacking, "compile", compile_fused)
    report = kernelk.diff(K.exp(K.variable([1.0, 2.0]) + 1.0), "numpy", "other")
    assert report.first is None
    assert not report.agrees
    assert "compiled as usual, without every node as an output, the result differs: 2 of 2 elements" in repr(report)


def test_an_engine_that_cant_take_ops_one_by_one(monkeypatch: Any) -> None:
    """The nodes are compared all the same, and the report says what isn't known."""
    module = lacking_engine(monkeypatch, "other")
    compile_right = module.Lacking.compile

    def compile_few(self: Any, program: Any, constants: Any) -> Any:
        if len(program.inputs) > 1:
            raise CannotLower("one input is all it takes")
        return compile_right(self, program, constants)

    monkeypatch.setattr(module.Lacking, "compile", compile_few)
    x = K.placeholder((2,), name="x")
    report = kernelk.diff(K.exp(x * 2.0) * 3.0, "numpy", "other", {x: [1.0, 2.0]})
    assert report.agrees
    assert [row.own for row in report.rows] == [None] * 4
    assert "the ops could not be compared one by one: Other failed: CannotLower: one input is all it takes" in repr(
        report
    )


def test_a_worker_that_dies_leaves_the_session_as_it_was(brake: Brake) -> None:
    activate("spare")
    activate("numpy")
    v = K.variable([1.0, 2.0])
    y = K.exp(v) * K.random_uniform((2,))
    drawn = current_state().seeds.state()
    pid = current().host("spare").pid
    assert pid is not None
    brake.hold("exp")
    thread = brake.when_reached("exp", lambda: os.kill(pid, signal.SIGKILL))
    with pytest.raises(WorkerDiedError, match="was killed by SIGKILL in the middle of a call"):
        kernelk.diff(y, "numpy", "spare")
    thread.join()
    brake.free("exp")
    assert (current_state().seeds.state(), current().active) == (drawn, "numpy")
    assert kernelk.diff(y, "numpy", "spare").agrees


def test_what_is_refused(monkeypatch: Any) -> None:
    x = K.placeholder((None, 3), name="x")
    y, v = x * 2.0, K.variable([1.0], name="v")
    data = np.ones((2, 3))
    refusals: list[tuple[type[KernelKError], str, tuple[Any, ...], dict[str, Any]]] = [
        (UnknownBackendError, "did you mean 'theano'", (y, "teano", "numpy"), {}),
        (ArgumentError, "numpy was named twice", (y, "numpy", "numpy"), {}),
        (ArgumentError, "int is neither a tensor nor a K.function; allowed are a tensor", (3, "numpy", "theano"), {}),
        (ArgumentError, "diff: the list is empty; allowed are a tensor", ([], "numpy", "theano"), {}),
        (ArgumentError, "a K.function stands alone", ([K.function([], [v]), v], "numpy", "theano"), {}),
        (ArgumentError, "no op is needed for 'v', only values .*; next: name a tensor", (v, "numpy", "theano"), {}),
        (
            ArgumentError,
            "tolerance='big' isn't allowed; it is a number such as 1e-4",
            (y, "numpy", "theano"),
            {"tolerance": "big"},
        ),
        (ArgumentError, "tolerance=-1 isn.t allowed", (y, "numpy", "theano"), {"tolerance": -1}),
        (FeedError, r"has shape \(None, 3\), but was fed \(2, 2\)", (y, "numpy", "theano", {x: np.ones((2, 2))}), {}),
        (FeedError, "it needs no placeholder named 'v'; it needs 'x'", (y, "numpy", "theano", {v: data}), {}),
        (FeedError, "it needs no placeholder named 'q'", (y, "numpy", "theano", {"q": data}), {}),
    ]
    for error, words, arguments, options in refusals:
        with pytest.raises(error, match=words) as caught:
            kernelk.diff(*arguments, **options)
        assert len(caught.value._render_traceback_()) == 1
    lacking_engine(monkeypatch, "poor", ops={"tanh"})
    with pytest.raises(EngineError, match="Poor can't run this: it has no op 'tanh'"):
        kernelk.diff(K.tanh(y), "numpy", "poor", {x: data})
    from kernelk.engines import registry

    def nowhere(engine: Any) -> Any:
        raise BackendNotInstalledError(f"{engine.title} isn't installed: {engine.install}")

    monkeypatch.setattr(registry, "interpreter", nowhere)
    with pytest.raises(BackendNotInstalledError, match="kernelk install theano"):
        kernelk.diff(y, "numpy", "theano", {x: data})
    assert current().active == "numpy"


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_leaves_the_session_as_it_was(brake: Brake, times: int) -> None:
    activate("spare")
    activate("numpy")
    v = K.variable([1.0, 2.0])
    y = K.exp(v) * K.random_uniform((2,))
    K.eval(y)
    drawn, compiled = current_state().seeds.state(), list(current().hosts["numpy"].compiled)
    brake.hold("exp")

    def stop() -> None:
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
        if times == 1:
            brake.free("exp")

    thread = brake.when_reached("exp", stop)
    with pytest.raises(KeyboardInterrupt):
        kernelk.diff(y, "numpy", "spare")
    thread.join()
    brake.free("exp")
    assert current().active == "numpy"
    assert current_state().seeds.state() == drawn
    assert list(current().hosts["numpy"].compiled) == compiled
    assert K.get_value(v).tolist() == [1.0, 2.0]
    report = kernelk.diff(y, "numpy", "spare")
    assert report.agrees
    assert current().hosts["spare"].compiled == {}


def test_the_magic() -> None:
    activate("theano")
    cells = run_cells(
        [
            "%load_ext kernelk",
            "import numpy as np\nfrom kernelk import backend as K\nx = K.placeholder((None, 3), name='features')\n"
            "w = K.variable(np.ones((3, 2)))\nrows = {'a': np.ones((2, 3))}",
            "h = K.dot(x, w)\ny = K.log(h - 1.0)\nf = K.function([x], [y])",
            "report = %kdiff y numpy theano --feed x=np.zeros((2, 3)) --tolerance 1e-3\n"
            "print(report.origins[0].row.source, report.tolerance)",
            "%kdiff y numpy theano",
            "got = f([np.ones((2, 3))])",
            "%kdiff f numpy theano",
            "%kdiff [y, K.sum(h)][1] numpy theano --feed features=rows['a'] * 2",
            "%kdiff y numpy theano --feed x={'b': np.ones((1, 3))}['b']",
            "%kdiff K.in_train_phase(h * 2.0, h - 2.0) numpy theano --feed K.learning_phase()=1",
        ],
        KERNELK_BACKEND="numpy",
    )
    assert [cell["error"] for cell in cells] == [None] * 4 + ["FeedError"] + [None] * 5, cells
    assert cells[3]["out"] == "cell 3, line 2: y = K.log(h - 1.0) 0.001\n"
    assert cells[4]["out"].strip() == (
        "FeedError: %kdiff: feeds are missing for 'features' (None, 3) (cell 2, line 3: x = K.placeholder((None, 3), "
        "name='features')); next: give feeds={placeholder: array} (%kdiff ... --feed NAME=ARRAY) (cell 5, line 1)"
    )
    assert "numpy and theano agree" in cells[6]["value"]
    assert "cell 3, line 1" in cells[6]["value"]
    assert "numpy and theano agree" in cells[7]["value"]
    assert "(2, 2)" in cells[7]["value"]
    assert "(1, 2)" in cells[8]["value"]
    assert "multiply" in cells[9]["value"]
    assert "subtract" not in cells[9]["value"]
    assert "learning phase 1" in cells[9]["value"]


@pytest.mark.parametrize(
    ("line", "error", "words"),
    [
        ("", "ArgumentError", "takes an expression and two engines' names"),
        ("y numpy", "ArgumentError", "takes an expression and two engines' names"),
        ("z numpy theano", "ArgumentError", "z can't be evaluated: NameError: name 'z' is not defined"),
        (
            "y numpy teano theano",
            "ArgumentError",
            "y numpy can't be evaluated: SyntaxError: invalid syntax; numpy is one engine too many",
        ),
        ("y teanoo numpy theano", "ArgumentError", "invalid syntax; did you mean 'theano'? engines are tensorflow"),
        ("y numpy theano --feed x", "ArgumentError", "--feed: 'x' isn't NAME=ARRAY"),
        ("y numpy theano --sped x=1", "ArgumentError", "has no option --sped: did you mean --feed?"),
        ("y numpy theano --tolerance", "ArgumentError", "--tolerance: expected one argument"),
        ("y numpy theano --feed x=1 / 0", "ArgumentError", "1 / 0 can't be evaluated: ZeroDivisionError"),
        ("y numpy teano", "UnknownBackendError", "did you mean 'theano'"),
        ("y numpy theano --feed x=3", "FeedError", "has shape (2,), but was fed ()"),
        (
            "K.squeeze(K.ones((2, 1)), 0) numpy theano",
            "ShapeError",
            "can go; next: K.squeeze(x, 1) (cell 3, line 1)",
        ),
    ],
)
def test_what_the_magic_refuses(line: str, error: str, words: str) -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            "from kernelk import backend as K\nx = K.placeholder((2,), name='x')\ny = x + 1.0",
            f"%kdiff {line}",
        ],
        KERNELK_BACKEND="numpy",
    )
    assert cells[2]["error"] == error, cells[2]
    assert words in cells[2]["out"]
    assert len(cells[2]["out"].strip().splitlines()) == 1


def test_a_loop_is_one_row_for_each_of_its_values(every_engine: list[str]) -> None:
    x, w = K.placeholder((2, 5, 3)), K.variable(np.ones((3, 4)))

    def cell(element: Any, states: Any) -> Any:
        h = K.tanh(K.dot(element, w) + states[0])
        return h, [h]

    last, _, _ = K.rnn(cell, x, [K.zeros((2, 4))])
    report = kernelk.diff(K.log(last - 2), "numpy", "tensorflow", feeds={x: np.ones((2, 5, 3))})
    assert [row.op for row in report.rows].count("item") == 1
    assert not any(row.op == "scan" for row in report.rows)
    assert report.origins[0].row.op == "log"


def test_a_loop_that_prints_is_compared_in_silence(capsys: Any) -> None:
    activate("theano")
    x = K.placeholder((2, 3))
    seen = K.map_fn(lambda row: K.sum(K.print_tensor(row * 2.0, "row")), x)
    report = kernelk.diff(seen, "numpy", "theano", {x: np.ones((2, 3))})
    assert report.agrees
    # Its printed values are a row of their own.
    assert [row.shape for row in report.rows if row.op == "item"] == [(2,), (2, 3)]
    assert capsys.readouterr().out == ""


def of_many_values() -> Any:
    """A function of 40 values of 8 kB, some used long after they are made, of a loop that draws, and of gradients."""
    x, w = K.placeholder((None, 50), name="x"), K.variable(np.random.RandomState(0).rand(50, 50) * 0.1, name="w")
    hidden = [x]
    for _ in range(6):
        hidden.append(K.tanh(K.dot(hidden[-1], w) + 0.1))
    noisy = K.map_fn(lambda row: row * K.random_uniform((50,)), hidden[-1])
    loss = K.mean(K.square(K.log(noisy + hidden[1]) + hidden[2]))
    return K.function([x], [loss, noisy], [K.update_sub(w, K.gradients(loss, w)[0])])


def test_values_are_compared_and_let_go(monkeypatch: Any) -> None:
    a, b = "theano", "cntk"
    activate(b)
    activate(a)
    call, fed = of_many_values(), {"x": np.random.RandomState(1).rand(40, 50)}
    K.set_random_seed(3)
    whole = kernelk.diff(call, a, b, fed)
    assert len(whole.chunk_bytes) == 1
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []
    execute = Calls.execute

    def watched(self: Any, host: Any, program: Any, *arguments: Any, **options: Any) -> Any:
        alive.append(sum(x.nbytes for x in (ref() for ref in made) if x is not None))
        values = execute(self, host, program, *arguments, **options)
        made.extend(weakref.ref(value) for value in values)
        return values

    monkeypatch.setattr(Calls, "execute", watched)
    bound = 40_000
    monkeypatch.setattr(single_ops, "CHUNK_BYTES", bound)
    compiled = {name: list(host.compiled) for name, host in current().hosts.items()}
    parts = kernelk.diff(call, a, b, fed)
    assert {name: list(host.compiled) for name, host in current().hosts.items()} == compiled
    assert max(parts.chunk_bytes) <= bound < whole.chunk_bytes[0] / 5
    assert len(parts.chunk_bytes) > whole.chunk_bytes[0] / bound
    # At most both engines' values of a part, while its ops are computed one by one.
    assert 8_000 < max(alive) <= 2 * bound
    assert [(x.op, x.name, x.shape, x.inputs) for x in parts.rows] == [
        (x.op, x.name, x.shape, x.inputs) for x in whole.rows
    ]
    assert (parts.roots, parts.own_failure) == (whole.roots, "")
    for one, other in zip(parts.rows, whole.rows):
        assert (one.own is None) == (other.own is None)
        # What an engine fuses depends on what it is asked for: the last bits may be others.
        assert one.gap.relative == pytest.approx(other.gap.relative, abs=2e-5)
        assert bool(one.gap.beyond) == bool(other.gap.beyond)


@pytest.mark.parametrize("bound", [1, 40_000])
def test_parts_make_no_difference(bound: int, monkeypatch: Any) -> None:
    """On engines that compute an op in one way whatever they are asked for: one op at a time, or some."""
    other = planted(monkeypatch, log=lambda right, x: right * np.float32(1.01))
    call, fed = of_many_values(), {"x": np.random.RandomState(1).rand(10, 50)}
    K.set_random_seed(3)
    whole = kernelk.diff(call, "numpy", other, fed)
    monkeypatch.setattr(single_ops, "CHUNK_BYTES", bound)
    parts = kernelk.diff(call, "numpy", other, fed)
    assert [parts.rows, parts.origins, parts.results] == [whole.rows, whole.origins, whole.results]
    assert parts.first is parts.culprit
    assert parts.first is not None
    assert parts.first.op == "log"
    assert str(parts) == str(whole)
    # All but what is fed and the variable, one by one.
    assert len(parts.chunk_bytes) == len(parts.rows) - 2 if bound == 1 else 1 < len(parts.chunk_bytes) < 20
