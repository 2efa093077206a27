"""Swaps: values move bit for bit, functions go on working, and the report says what was done."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from helpers.arrays import DTYPES, INTEGERS, assert_close, same_bits
from helpers.fake_engines import lacking_engine
from hypothesis import given, settings
from hypothesis import strategies as st

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.errors import UnknownBackendError
from kernelk.session import swap
from kernelk.session.current import current
from kernelk.session.swap_report import SwapReport


def edge_values(dtype: str) -> np.ndarray:
    """What conversions lose: limits, NaN with payloads, signed zeros, the smallest numbers."""
    if dtype == "bool":
        return np.array([True, False, True])
    if dtype in INTEGERS:
        limits = np.iinfo(dtype)
        values = [limits.min, limits.max, 0, 1, limits.max - 1]
        if limits.bits == 64:
            values += [2**53 + 1, 2**62 + 3, 2**31]
        return np.array(values, dtype)
    bits = {"float16": np.uint16, "float32": np.uint32, "float64": np.uint64}[dtype]
    info = np.finfo(dtype)
    plain = np.array(
        [0.0, -0.0, np.inf, -np.inf, info.max, info.tiny, info.smallest_subnormal, -info.tiny / 2, 1 / 3], dtype
    )
    exponent = int(np.array(np.inf, dtype).view(bits))
    quiet = int(np.array(np.nan, dtype).view(bits))
    sign = 1 << (8 * plain.itemsize - 1)
    # Quiet and signalling NaN, with payloads, of either sign.
    nans = [quiet, quiet | 5, sign | quiet | 0x155, exponent | 1, exponent | 0x2A, sign | exponent | 3]
    return np.concatenate([plain, np.array(nans, bits).view(dtype)])


def everything() -> list[tuple[Any, np.ndarray]]:
    """Variables of every dtype, in several shapes, with the values they must keep."""
    made = []
    for dtype in DTYPES:
        values = edge_values(dtype)
        for array in (values, values[-1:].reshape(()), values[:0].reshape(0, 3), values[:3].reshape(1, 3, 1)):
            made.append((K.variable(array, dtype=dtype), array.astype(dtype)))
    return made


def test_every_bit_moves(every_engine: list[str]) -> None:
    variables = everything()
    read = K.function([], [v for v, _ in variables])
    order = [a for pair in itertools.permutations(every_engine, 2) for a in pair]
    for name in order:
        report = kernelk.set_backend(name)
        assert (report.target, current().active) == (name, name)
        assert report.variables == len(variables)
        for v, array in variables:
            assert same_bits(K.get_value(v), array), f"{v.dtype}{v.shape} on {name}"
        if not report.loaded:
            continue
        # What the engine itself holds, through a call.
        for (v, array), value in zip(variables, read([])):
            assert same_bits(value, array), f"{v.dtype}{v.shape} read on {name}: {value!r}, not {array!r}"


@pytest.mark.parametrize("dtype", DTYPES)
def test_random_bits_move(every_engine: list[str], dtype: str) -> None:
    v = K.variable(np.zeros((4, 3)), dtype=dtype)
    read = K.function([], [v])

    @settings(max_examples=8)
    @given(bits=st.binary(min_size=96, max_size=96), order=st.permutations(every_engine))
    def check(bits: bytes, order: list[str]) -> None:
        raw = np.frombuffer(bits, "uint8")
        array = (raw[:12] & 1).astype(bool) if dtype == "bool" else raw.view(dtype)[:12]
        array = array.reshape(4, 3)
        K.set_value(v, array)
        for name in order:
            kernelk.set_backend(name)
            assert same_bits(K.get_value(v), array), name
            assert same_bits(read([])[0], array), name

    check()


class Model:
    """A session's variables and functions, made once, and what they must hold, computed by plain numpy."""

    def __init__(self) -> None:
        rng = np.random.RandomState(0)
        self.x, self.y = K.placeholder((None, 3)), K.placeholder((None, 2))
        self.w = K.variable(rng.randn(3, 2), name="w")
        self.speed = K.zeros((3, 2), name="speed")
        loss = K.mean(K.categorical_crossentropy(self.y, K.softmax(K.dot(self.x, self.w))))
        (g,) = K.gradients(loss, [self.w])
        step = self.speed * 0.5 - g * 0.1
        self.train = K.function([self.x, self.y], [loss], [K.update(self.speed, step), K.update_add(self.w, step)])
        self.predict = K.function([self.x], [K.softmax(K.dot(self.x, self.w)), K.max(self.x, axis=1)])
        self.edges = {dtype: K.variable(edge_values(dtype), dtype=dtype) for dtype in DTYPES}
        self.counter = K.variable(np.array([2**53 + 1, -(2**62), 7]), dtype="int64")
        self.small = K.variable(np.array([250, 3]), dtype="uint8")
        self.flag = K.variable(np.array(True), dtype="bool")
        self.amount = K.placeholder((), dtype="int64")
        self.count = K.function(
            [self.amount],
            [self.counter, self.small, self.flag],
            [
                K.update_add(self.counter, self.amount),
                K.update_add(self.small, 3),
                K.update(self.flag, K.equal(self.flag, False)),
            ],
        )
        self.draw = K.function([], [K.random_uniform((3,)), K.random_uniform((2,), dtype="float64")])
        self.variables = [self.w, self.speed, *self.edges.values(), self.counter, self.small, self.flag]

    def snapshot(self) -> list[np.ndarray]:
        return K.batch_get_value(self.variables)


def reference_step(w: np.ndarray, speed: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[Any, Any, Any]:
    z = x @ w
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    loss = -(y * np.log(np.clip(p, 1e-7, 1 - 1e-7))).sum(1).mean()
    g = x.T @ (p - y) / len(x)
    step = speed * 0.5 - g * 0.1
    return loss, w + step, step


def test_random_sequences(every_engine: list[str]) -> None:
    """Swaps, training, counting, drawing, writing and evaluating in any order: what numpy would have computed."""
    model = Model()
    actions = st.one_of(
        st.tuples(st.just("swap"), st.sampled_from(every_engine)),
        st.tuples(st.just("train"), st.sampled_from([1, 2, 5])),
        st.tuples(st.just("count"), st.integers(-(2**62), 2**62)),
        st.tuples(st.just("set"), st.tuples(st.sampled_from(DTYPES), st.randoms(use_true_random=False))),
        st.tuples(st.just("predict"), st.sampled_from([1, 3])),
        st.tuples(st.just("draw"), st.none()),
    )

    @settings(max_examples=25)
    @given(sequence=st.lists(actions, min_size=3, max_size=14), seed=st.integers(0, 2**32 - 1))
    def check(sequence: list[tuple[str, Any]], seed: int) -> None:
        rng = np.random.RandomState(seed)
        K.set_random_seed(seed)
        drawn = []
        for kind, argument in sequence:
            before = model.snapshot()
            if kind == "swap":
                report = kernelk.set_backend(argument)
                assert K.backend() == argument
                assert report.variables == len(current().live_variables())
                for v, old, new in zip(model.variables, before, model.snapshot()):
                    assert same_bits(old, new), f"{v.dtype} to {argument}"
            elif kind == "train":
                x = rng.randn(argument, 3).astype("float32")
                y = np.eye(2, dtype="float32")[rng.randint(0, 2, argument)]
                w, speed = (value.astype("float64") for value in before[:2])
                loss, new_w, new_speed = reference_step(w, speed, x, y)
                got = model.train([x, y])[0]
                assert_close(got, loss, "float32", scale=4)
                after = model.snapshot()
                assert_close(after[0], new_w, "float32", scale=4)
                assert_close(after[1], new_speed, "float32", scale=4)
                for old, new in zip(before[2:], after[2:]):
                    assert same_bits(old, new)
            elif kind == "count":
                counter, small, flag = before[-3:]
                outputs = model.count([argument])
                for old, value in zip(before[-3:], outputs):
                    assert same_bits(old, value)
                with np.errstate(all="ignore"):
                    wanted = [counter + np.int64(argument), small + np.uint8(3), ~flag]
                for value, right in zip(model.snapshot()[-3:], wanted):
                    assert same_bits(value, np.asarray(right))
            elif kind == "set":
                dtype, random = argument
                raw = np.array([random.randrange(256) for _ in range(160)], "uint8")
                size = model.edges[dtype].shape[0]
                value = (raw & 1).astype(bool)[:size] if dtype == "bool" else raw.view(dtype)[:size]
                K.set_value(model.edges[dtype], value)
                assert same_bits(K.get_value(model.edges[dtype]), value)
            elif kind == "predict":
                x = rng.randn(argument, 3).astype("float32")
                soft, top = model.predict([x])
                z = x.astype("float64") @ before[0]
                wanted = np.exp(z) / np.exp(z).sum(1, keepdims=True)
                assert_close(soft, wanted, "float32", scale=4)
                assert top.tolist() == x.max(1).tolist()
                assert all(same_bits(a, b) for a, b in zip(before, model.snapshot()))
            else:
                drawn.append(model.draw([]))
        K.set_random_seed(seed)
        kernelk.set_backend("numpy")
        for pair in drawn:
            for got, wanted in zip(pair, model.draw([])):
                assert same_bits(got, wanted)

    check()


def test_training_goes_on_from_where_it_was(every_engine: list[str]) -> None:
    """One function, trained by turns on all engines, ends where numpy alone ends."""
    rng = np.random.RandomState(5)
    batches = [(rng.randn(8, 3).astype("float32"), np.eye(2)[rng.randint(0, 2, 8)]) for _ in range(12)]
    model = Model()
    start = model.snapshot()
    losses = []
    for i, batch in enumerate(batches):
        kernelk.set_backend(every_engine[i % len(every_engine)])
        losses.append(float(model.train(list(batch))[0]))
    end = model.snapshot()
    K.batch_set_value(list(zip(model.variables, start)))
    kernelk.set_backend("numpy")
    for loss, batch in zip(losses, batches):
        assert np.isclose(loss, model.train(list(batch))[0], rtol=1e-4)
    for a, b in zip(end[:2], model.snapshot()[:2]):
        assert_close(a, b, scale=20)


def test_what_one_engine_computed_another_can_hold(every_engine: list[str]) -> None:
    """Values that an engine made itself, not ones that were set."""
    v = K.variable(np.linspace(-3, 3, 13), dtype="float64")
    half = K.variable(np.linspace(-3, 3, 13), dtype="float16")
    step = K.function([], [], [K.update(v, K.tanh(v) * 1.1), K.update(half, K.exp(half) * 0.5)])
    for name in every_engine * 2:
        before = K.batch_get_value([v, half])
        kernelk.set_backend(name)
        assert all(same_bits(a, b) for a, b in zip(before, K.batch_get_value([v, half])))
        step([])


# --- the report -----------------------------------------------------------------------------------------------


def test_the_report(worker: str) -> None:
    kernelk.set_backend("numpy")
    current().swaps.clear()
    big, small = K.variable(np.ones((100, 100)), name="big"), K.variable([1.0], dtype="float64")
    x = K.placeholder((1,), dtype="float64")
    call = K.function([x], [small * x], [K.update_add(small, x)])
    call([[2.0]])
    report = kernelk.set_backend(worker)
    assert isinstance(report, SwapReport)
    assert (report.origin, report.target, report.chosen_by) == ("numpy", worker, "set_backend")
    assert (report.variables, report.bytes) == (2, 40008)
    assert (report.loaded, report.loaded_bytes) == (2, 40008)
    assert (report.functions, report.to_lower) == (1, 1)
    assert set(report.seconds) == {"start", "check", "load", "reevaluate"}
    assert report.total_seconds == sum(report.seconds.values())
    assert report.facts["version"]
    assert current().swaps == [report]
    assert current().chosen_by == "set_backend"
    call([[1.0]])
    kernelk.set_backend("numpy")
    back = kernelk.set_backend(worker)
    # Nothing had changed since: nothing is loaded, nothing is compiled again.
    assert (back.loaded, back.loaded_bytes, back.to_lower) == (0, 0, 0)
    assert (back.variables, back.bytes) == (2, 40008)
    kernelk.set_backend("numpy")
    call([[1.0]])
    assert kernelk.set_backend(worker).loaded == 1
    text, html = repr(report), report._repr_html_()
    for part in (f"numpy -> {worker}", "2 (40.0 kB), bit for bit", "1, 1 to be compiled", "start", "load"):
        assert part in text
    assert f"numpy -&gt; {worker}" in html
    assert html.count("<table>") == html.count("</table>") == 1
    assert K.eval(big[0, 0]) == 1.0


def test_naming_the_active_engine_again(backend: str) -> None:
    current().swaps.clear()
    v = K.variable([1.0])
    K.eval(v + 1.0)
    report = kernelk.set_backend(backend)
    assert report.origin == report.target == backend
    assert report.reevaluated == []
    assert current().swaps == []
    assert "already active" in repr(report)


def test_what_was_shown_is_evaluated_again(worker: str) -> None:
    kernelk.set_backend("numpy")
    x, v = K.placeholder((None, 2), name="x"), K.variable([3.0, 4.0])
    shown = K.softmax(x * v, axis=1)
    shown.name = "shown"
    plain = K.identity(K.exp(v), name="plain")
    noisy = K.random_uniform((3,))
    outdated = v * 2.0
    gone = v * 3.0
    feed = np.array([[0.1, 0.2], [0.3, 0.4]], "float32")
    K.eval(outdated)
    K.eval(gone)
    K.eval(noisy)
    K.eval(v)
    del gone
    K.set_value(v, [1.0, 2.0])
    K.eval(shown, {x: feed})
    K.eval(plain)
    feed[...] = 99
    report = kernelk.set_backend(worker)
    assert {entry.name for entry in report.reevaluated} == {"shown", "plain"}
    by_name = {entry.name: entry for entry in report.reevaluated}
    assert (by_name["shown"].shape, by_name["shown"].dtype) == ((2, 2), "float32")
    assert 0 <= by_name["shown"].difference < 1e-5
    assert report.largest_difference == max(entry.difference for entry in report.reevaluated)
    assert "2 displayed tensors" in repr(report)
    assert report.not_reevaluated == 0
    del shown, plain
    assert kernelk.set_backend("numpy").largest_difference is None


def test_reevaluation_has_a_time_box(spare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    v = K.variable([1.0])
    shown = [v * float(i) for i in range(5)]
    for tensor in shown:
        K.eval(tensor)
    monkeypatch.setattr(config.LIMITS, "reevaluation_seconds", -1.0)
    report = kernelk.set_backend(spare)
    assert report.reevaluated == []
    assert report.not_reevaluated == 5
    assert "5 displayed tensors (time limit)" in repr(report)
    assert K.backend() == spare


def test_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    module = lacking_engine(monkeypatch, "wrong")
    module.Lacking.ops["exp"] = lambda instruction, x: np.exp(x) + np.float32(0.5)
    module.Lacking.ops["log"] = lambda instruction, x: np.where(x > 5, np.float32(np.nan), np.log(x))

    v = K.variable([1.0, 10.0])
    powers, logs, same = K.exp(v * 0.1), K.log(v), K.sqrt(v)
    for tensor in (powers, logs, same):
        K.eval(tensor)
    report = kernelk.set_backend("wrong")
    found = {entry.name: entry.difference for entry in report.reevaluated}
    assert found[powers.name] == pytest.approx(0.5)
    assert found[logs.name] == float("inf")
    assert found[same.name] == 0.0
    assert report.largest_difference == float("inf")


def test_equal_nan_and_infinities_are_no_difference() -> None:
    a = np.array([np.nan, np.inf, -np.inf, 1.0])
    assert swap.difference(a, a.copy()) == 0.0
    assert swap.difference(a, np.array([0.0, np.inf, -np.inf, 1.0])) == float("inf")
    assert swap.difference(a, np.array([np.nan, np.inf, np.inf, 1.0])) == float("inf")
    assert swap.difference(np.zeros((0, 2)), np.zeros((0, 2))) == 0.0
    assert swap.difference(np.zeros(2), np.zeros(3)) == float("inf")


def test_who_observes_the_engine_is_told() -> None:
    told = []
    session = current()

    def observe(change: Any) -> None:
        told.append((change["old"], change["new"], K.backend()))

    session.observe(observe, "active")
    try:
        with pytest.raises(UnknownBackendError):
            kernelk.set_backend("nothing")
        kernelk.set_backend("numpy")
        assert told == []
    finally:
        session.unobserve(observe, "active")
