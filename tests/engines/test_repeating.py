"""Values that a worker has alone: what it had is there again after its end, at whatever moment that comes."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.arrays import same_bits
from helpers.engines import require_installed
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.backends.numpy.backend import NumpyBackend
from kernelk.display import messages
from kernelk.engines import worker_host
from kernelk.engines.worker_host import WorkerHost, kill_group
from kernelk.errors import EngineError, ShapeError, WorkerDiedError
from kernelk.inspection.summaries import summarised, summary
from kernelk.magics import KernelKMagics
from kernelk.session.current import current

BATCH = np.linspace(-1, 1, 12).reshape(4, 3).astype(np.float32)


@pytest.fixture(autouse=True)
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call's new values stay with its worker, and nothing is fetched before it is needed."""
    monkeypatch.setattr(config.LIMITS, "commit_bytes", 0)
    monkeypatch.setattr(config.LIMITS, "repeat_seconds", 1e6)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the user was told."""
    lines: list[str] = []
    monkeypatch.setattr(messages, "say", lambda text, *_, **__: lines.append(text))
    for host in current().hosts.values():
        if isinstance(host, WorkerHost):
            monkeypatch.setattr(host, "_notify", lines.append)
    return lines


class Training:
    """A step that changes three variables, with draws, and what it comes to in plain numpy."""

    def __init__(self, size: int = 3) -> None:
        self.w = K.variable(np.ones((3, size)), name="w")
        self.speed = K.zeros((3, size), name="speed")
        self.count = K.variable(0, dtype="int64", name="count")
        self.rate = K.variable(0.5, name="rate")
        self.x = K.placeholder((None, 3))
        slope = K.dot(K.transpose(self.x), K.dot(self.x, self.w)) / 8.0
        speed = self.speed * 0.5 + slope
        updates = [
            K.update(self.speed, speed),
            K.update(self.w, self.w - self.rate * speed),
            K.update_add(self.count, 1),
        ]
        self.step = K.function([self.x], [K.sum(self.w)], updates)

    @property
    def variables(self) -> list[Any]:
        return [self.w, self.speed, self.count, self.rate]

    def state(self) -> list[np.ndarray]:
        return K.batch_get_value(self.variables)

    @property
    def held(self) -> int:
        return sum(variable.slots.holder is not None for variable in self.variables)


def batches(count: int) -> list[np.ndarray]:
    return [BATCH + 0.1 * i for i in range(count)]


def wanted(feeds: list[np.ndarray]) -> list[np.ndarray]:
    """The state after these steps without any fault."""
    model = Training()
    for feed in feeds:
        model.step([feed])
    return model.state()


def equal(found: list[np.ndarray], states: list[np.ndarray]) -> bool:
    return all(same_bits(a, b) for a, b in zip(found, states))


def kill(host: Any = None) -> None:
    """Ends a worker, and waits until it is gone."""
    host = host or current().host()
    if host.started:
        process = host._process
        kill_group(process.pid)
        process.wait()


@pytest.fixture
def light(spare: str) -> str:
    kernelk.set_backend(spare)
    return spare


@pytest.fixture(params=["jax", "tensorflow", "torch", "theano", "cntk"])
def real(request: pytest.FixtureRequest) -> str:
    require_installed(request.param)
    kernelk.set_backend(request.param)
    return str(request.param)


def worker() -> WorkerHost:
    host = current().host()
    assert isinstance(host, WorkerHost)
    return host


def test_values_stay_and_are_fetched_one_by_one(light: str) -> None:
    model = Training()
    model.step([BATCH])
    assert model.held == 3
    assert len(worker().history.records) == 1
    K.get_value(model.w)
    assert model.held == 2
    model.step([BATCH])
    assert model.held == 3
    assert equal(model.state(), wanted([BATCH] * 2))
    assert model.held == 0
    model.state()
    assert worker().history.nbytes == 0


def test_at_rest_a_large_value_lies_there_once(light: str) -> None:
    w = K.variable(np.zeros(12_000_000))
    step = K.function([], [K.sum(w)], [K.update_add(w, 1.0)])

    def private() -> int:
        rows = [line.split() for line in Path(f"/proc/{worker().pid}/smaps_rollup").read_text().splitlines()[1:]]
        return 1024 * sum(int(row[1]) for row in rows if row[0].startswith("Private"))

    K.eval(K.constant(1.0))
    before = private()
    for _ in range(3):
        step([])
    deadline = time.monotonic() + 20
    while (held := private() - before) > 1.5 * w.slots.nbytes and time.monotonic() < deadline:
        time.sleep(0.02)
    assert 0.9 < held / w.slots.nbytes < 1.5
    assert K.get_value(w)[-1] == 3


@pytest.mark.parametrize("ended", [False, True])
def test_rows_of_the_panel_fetch_nothing(light: str, ended: bool) -> None:
    model = Training()
    model.step([BATCH])
    if ended:
        kill()
    found = [summary(current(), variable) for variable in model.variables]
    assert model.held == 3
    model.state()
    assert model.held == 0
    for variable, one in zip(model.variables, found):
        again = summary(current(), variable)
        assert one.origin == "committed"
        assert one.as_dict() == again.as_dict()


def test_rows_of_a_real_engine_and_of_large_values(real: str) -> None:
    values = np.random.RandomState(0).randn(300, 7).astype(np.float32)
    values[3, 2], values[200, 1] = np.nan, -np.inf
    dtypes = ["float32", "float16", "int64", "bool", "uint8"]
    with np.errstate(all="ignore"):
        arrays = [np.nan_to_num(values, posinf=0, neginf=0).astype(dtype) for dtype in dtypes[2:]]
        arrays += [values.astype(dtype) for dtype in dtypes[:2]]
    held = [K.variable(np.zeros_like(array), dtype=array.dtype.name) for array in arrays]
    fed = [K.placeholder(array.shape, dtype=array.dtype.name) for array in arrays]
    K.function(fed, [], list(zip(held, fed)))(arrays)
    for most in (1 << 24, 100):
        assert all(variable.slots.holder is not None for variable in held)
        for variable, array in zip(held, arrays):
            wanted_row = summarised(variable.uid, array, "committed", most=most).as_dict()
            assert summary(current(), variable, most=most).as_dict() == wanted_row


def test_several_values_are_fetched_at_once(light: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = Training(), []
    request = type(worker()).request
    monkeypatch.setattr(
        WorkerHost, "request", lambda host, message: asked.append(message["do"]) or request(host, message)
    )
    for look in (model.state, lambda: kernelk.save(tmp_path / "weights.npz")):
        model.step([BATCH])
        asked.clear()
        look()
        assert asked.count("fetch") == 1
        assert model.held == 0


def test_a_call_that_changes_less_than_the_bound_is_committed(light: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.LIMITS, "commit_bytes", 100)
    small, large = Training(), Training(4)
    small.step([BATCH])
    assert small.held == 0
    large.step([BATCH])
    assert large.held == 3
    # A small one after it stays with the worker, too: they are repeated together.
    small.step([BATCH])
    assert small.held == 3
    small.state(), large.state()
    small.step([BATCH])
    assert small.held == 0


LOOKS: dict[str, Callable[[Training, str], Any]] = {
    "nothing": lambda model, engine: None,
    "one": lambda model, engine: K.get_value(model.speed),
    "all": lambda model, engine: model.state(),
    "evaluated": lambda model, engine: K.eval(model.w * 2.0),
    "set": lambda model, engine: K.set_value(model.w, K.get_value(model.w)),
    "rate": lambda model, engine: K.set_value(model.rate, 0.5),
    "swapped": lambda model, engine: (kernelk.set_backend("numpy"), kernelk.set_backend(engine)),
    "stopped": lambda model, engine: kernelk.stop_backend(engine),
    "timed": lambda model, engine: kernelk.time(lambda: model.step([batches(2)[1]]), budget=0.02),
    "compared": lambda model, engine: kernelk.compare(
        lambda: model.step([batches(2)[1]]), engine, "numpy", budget=0.02
    ),
    "diverging": lambda model, engine: kernelk.diff(model.step, engine, "numpy"),
    "dropped": lambda model, engine: (K.eval(K.update(K.variable(np.ones(3)), np.zeros(3))), gc.collect()),
    "refused": lambda model, engine: refused(model),
    "all stopped": lambda model, engine: current().stop_engines(),
    "another engine for a block": lambda model, engine: inside_numpy(model),
    "a call that isn't committed": lambda model, engine: uncommitted(model),
}


def inside_numpy(model: Training) -> None:
    with kernelk.using("numpy"):
        K.eval(model.w + model.speed)


def uncommitted(model: Training) -> None:
    """As measuring does: it is neither recorded, nor does it let go of anything."""
    session, host = current(), worker()
    held, records = model.held, list(host.history.records)
    with session.lock:
        program = model.step.program_for(session, host.ops, 0, [BATCH])
        for _ in range(2):
            session.calls.execute(host, program, [BATCH], commit=False)
    assert (model.held, host.history.records) == (held, records)


def refused(model: Training) -> None:
    x = K.placeholder((None, None))
    broken = K.function([x], [], [K.update(model.count, model.count + 1), K.update(model.w, K.dot(x, model.w))])
    with pytest.raises((EngineError, ShapeError)):
        broken([np.ones((5, 3))])


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("killed", [(2,), (1, 3), (0, 1, 2, 3, 4)], ids=str)
def test_a_look_and_ends_at_any_place(light: str, look: str, killed: tuple[int, ...]) -> None:
    check_ends(light, look, killed)


@pytest.mark.parametrize("look", ["one", "rate", "swapped"])
def test_a_look_and_ends_of_a_real_engine(real: str, look: str) -> None:
    check_ends(real, look, (1, 3))


def check_ends(engine: str, look: str, killed: tuple[int, ...]) -> None:
    feeds = batches(5)
    # What is timed or compared runs once.
    states = wanted([*feeds[:2], *([feeds[1]] if look in ("timed", "compared") else []), *feeds[2:]])
    model = Training()
    for index, feed in enumerate(feeds):
        model.step([feed])
        if index == 1:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                LOOKS[look](model, engine)
        if index in killed:
            kill()
    assert equal(model.state(), states)


def test_what_the_user_is_told(light: str, said: list[str]) -> None:
    model = Training()
    for feed in batches(3):
        model.step([feed])
    kill()
    assert equal(model.state(), wanted(batches(3)))
    (line,) = said
    assert "killed by SIGKILL; it was restarted, and 3 calls since the last checkpoint were repeated" in line
    assert line.endswith("nothing is lost")


def test_results_that_differ_are_told(light: str, said: list[str]) -> None:
    model = Training()
    for feed in batches(3):
        model.step([feed])
    seen = worker().history.records[1].outputs[0]
    assert seen is not None
    seen[...] += 1
    kill()
    K.get_value(model.w)
    assert "repeated, 1 of them with other results than before" in said[0]


@pytest.mark.parametrize("look", ["read", "shown"])
@pytest.mark.parametrize("differs", [False, True])
def test_values_that_were_seen_are_compared(light: str, said: list[str], look: str, differs: bool) -> None:
    model = Training()
    model.step([BATCH])
    if look == "read":
        K.get_value(model.speed)
    else:
        summary(current(), model.speed)
    model.step([BATCH])
    (seen,) = worker().history._seen.values()
    assert len(seen) == 1
    if differs:
        (what,) = seen[0][1]
        seen[0][1][what] = [7]
    kill()
    assert equal(model.state(), wanted([BATCH] * 2))
    (line,) = said
    assert ("2 calls since the last checkpoint were repeated, 1 of them with other results" in line) == differs
    assert worker().history._seen == {}


def test_draws_are_repeated_and_prints_are_not(light: str, capfd: pytest.CaptureFixture[str]) -> None:
    K.set_random_seed(7)
    w = K.variable(np.zeros(4))
    drawn = K.random_normal((4,))
    step = K.function([], [K.print_tensor(drawn, "drawn ")], [K.update(w, w * 0.5 + drawn)])
    seen = np.zeros(4, np.float32)
    for _ in range(3):
        seen = seen * np.float32(0.5) + step([])[0]
    capfd.readouterr()
    kill()
    assert np.allclose(K.get_value(w), seen)
    out, err = capfd.readouterr()
    assert "drawn" not in out + err


def test_a_feed_may_be_changed_after_its_call(light: str) -> None:
    w, x = K.zeros((4, 3)), K.placeholder((4, 3))
    keep = K.function([x], [], [(w, x)])
    fed = BATCH.copy()
    keep([fed])
    fed[...] = 7
    K.eval(x * 2.0, {x: fed})
    assert same_bits(K.get_value(w), BATCH)
    keep([BATCH])
    kill()
    assert same_bits(K.get_value(w), BATCH)


def test_a_value_taken_from_another_variable_is_its_own(real: str) -> None:
    size = 1 << 12  # of a place that engines compute with where it lies
    a, b, x = K.variable(np.full(size, 3.0)), K.zeros((size,)), K.placeholder((size,))
    take = K.function([x], [], [K.update(b, a)])
    K.eval(a + b)
    take([np.zeros(size)])
    for i in range(3):
        K.set_value(a, np.full(size, 7.0 + i))
        K.eval(a + x, {x: np.full(size, 9.0)})
        assert K.eval(b + 0.0).tolist() == [3.0] * size
    assert K.get_value(b).tolist() == [3.0] * size


def test_arrays_handed_out_never_change(light: str) -> None:
    model = Training()
    found, copies = [], []
    for feed in batches(4):
        model.step([feed])
        found.append(K.get_value(model.w))
        copies.append(found[-1].copy())
        K.set_value(model.speed, np.zeros((3, 3)))
    kill()
    model.state()
    assert all(same_bits(a, b) for a, b in zip(found, copies))


class Deadly:
    """Ends the worker within its n-th request of a kind, as often as `times` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, do: str, at: int, times: int = 1) -> None:
        self.do, self.at, self.times, self.count = do, at, times, 0
        real = WorkerHost.request

        def request(host: WorkerHost, message: dict[str, Any]) -> dict[str, Any]:
            if message["do"] == self.do and self.times:
                self.count += 1
                if self.count == self.at:
                    self.times -= 1
                    self.count = 0
                    kill(host)
            return real(host, message)

        monkeypatch.setattr(WorkerHost, "request", request)


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("do", ["run", "fetch", "compile"])
def test_a_worker_that_ends_again_is_replaced_again(
    light: str, do: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Training()
    for feed in batches(4):
        model.step([feed])
    kill()
    deadly = Deadly(monkeypatch, do, at if do == "run" else 1)
    assert equal(model.state(), wanted(batches(4)))
    assert deadly.times == 0
    assert model.held == 0


# A device that an `exp` of more than 600 leaves unusable, and one of less than -600 doesn't.
DEVICE = """
from kernelk.backends.numpy import backend as numpy_backend
broken = []
def exp(instruction, x):
    if x.size and x.max() > 600:
        broken.append(True)
    if broken or (x.size and x.min() < -600):
        raise RuntimeError("device-side assert triggered")
    return real(instruction, x)
real = numpy_backend.OPS["exp"]
numpy_backend.OPS["exp"] = exp
numpy_backend.NumpyBackend.usable = lambda backend: not broken
"""


def test_an_error_that_leaves_a_device_unusable_costs_no_call(
    spare: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    last = 'importlib.import_module("kernelk.backends.serving.worker").main('
    assert last in worker_host._BOOT
    monkeypatch.setattr(worker_host, "_BOOT", worker_host._BOOT.replace(last, f"{DEVICE}\n{last}"))
    kernelk.set_backend(spare)
    monkeypatch.setattr(worker(), "_notify", said.append)
    model = Training()
    risky = K.function([model.x], [K.exp(model.x)], [K.update(model.w, model.w + K.exp(K.sum(model.x)))])
    for feed in batches(3):
        model.step([feed])
    pid = worker().pid
    with pytest.raises(EngineError, match="assert triggered") as caught:
        risky([np.full((1, 3), -1000.0)])
    assert "the worker was ended" not in str(caught.value)
    assert worker().pid == pid
    for feed in batches(3):
        model.step([feed])
    assert len(said) == 1, "only which engine is in use"
    with pytest.raises(EngineError, match=r"assert triggered.*its device can't be used after this.*is lost"):
        risky([np.full((1, 3), 1000.0)])
    assert not worker().started
    model.step([BATCH])
    assert worker().pid != pid
    assert "6 calls since the last checkpoint were repeated" in said[-1]
    assert "was ended, since cpu:0 can't be used after an error" in said[-1]
    assert equal(model.state(), wanted([*batches(3), *batches(3), BATCH]))


def test_numpy_repeats_what_no_worker_can(light: str, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    model = Training()
    for feed in batches(4):
        model.step([feed])
    kill()
    with monkeypatch.context() as patch:
        Deadly(patch, "run", 2, times=9)
        assert equal(model.state(), wanted_in_kernel(batches(4)))
    assert "by numpy, 4 calls since the last checkpoint were repeated" in said[0]
    model.step([BATCH])
    assert model.held == 3


def wanted_in_kernel(feeds: list[np.ndarray]) -> list[np.ndarray]:
    active = current().active
    kernelk.set_backend("numpy")
    try:
        return wanted(feeds)
    finally:
        current().active = active


def test_a_worker_that_cant_start_any_more_leaves_it_to_numpy(
    light: str, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    model = Training()
    for feed in batches(4):
        model.step([feed])
    states = wanted(batches(4))
    for feed in batches(4):
        model.step([feed])
    kill()
    K.batch_set_value(list(zip(model.variables, states)))
    with monkeypatch.context() as patch:
        patch.setattr(worker_host, "_BOOT", "import sys; sys.exit(3)")
        assert equal(model.state(), states)
        kernelk.set_backend("numpy")
        assert equal(model.state(), states)


def test_where_nothing_can_repeat_it_no_older_value_is_given(light: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Training()
    for feed in batches(4):
        model.step([feed])
    kill()

    def broken(*_: Any) -> Any:
        raise RuntimeError("numpy is out of order")

    with monkeypatch.context() as patch:
        patch.setattr(worker_host, "_BOOT", "import sys; sys.exit(3)")
        patch.setattr(NumpyBackend, "compile", broken)
        for look in (
            lambda: K.get_value(model.w),
            lambda: model.state(),
            lambda: kernelk.set_backend("numpy"),
            lambda: kernelk.save(os.devnull + "/nothing"),
        ):
            with pytest.raises(kernelk.errors.KernelKError):
                look()
        with pytest.raises(EngineError, match="can't be computed again") as caught:
            K.get_value(model.speed)
        assert "\n" not in str(caught.value)
        assert model.held == 3
    assert equal(model.state(), wanted(batches(4)))


@pytest.mark.parametrize("twin", [True, False])
def test_calls_that_nothing_can_repeat_are_dropped_on_demand(
    light: str, monkeypatch: pytest.MonkeyPatch, said: list[str], twin: bool
) -> None:
    model, other = Training(), K.variable(np.ones(3))
    model.step([BATCH])
    start = model.state()
    for feed in batches(3):
        model.step([feed])
    # Both what lies here and what has been changed since goes back, but for what no call has changed.
    K.get_value(model.w)
    K.set_value(model.count, 7)
    K.set_value(model.rate, 0.25)
    model.step([BATCH])
    kill()
    with monkeypatch.context() as patch:
        patch.setattr(worker_host, "_BOOT", "import sys; sys.exit(3)")
        patch.setattr(NumpyBackend, "compile", lambda *_: (_ for _ in ()).throw(RuntimeError("out of order")))
        with pytest.raises(EngineError, match="%kbackend numpy --drop-calls goes on without these 4 calls"):
            K.get_value(model.speed)
    said.clear()
    if twin:
        kernelk.set_backend("numpy", drop_calls=True)
    else:
        KernelKMagics(shell=None).kbackend("numpy --drop-calls")
    assert "4 calls since the last checkpoint are dropped: 3 variables have their values from before them" in said[0]
    assert model.held == 0
    assert equal(model.state()[:3], start[:3])
    assert K.get_value(model.rate) == 0.25
    assert K.get_value(other).tolist() == [1, 1, 1]
    kernelk.set_backend(light, drop_calls=True)
    assert "kernelk: no call was dropped, since no engine has lost any" in said
    after = wanted([BATCH])
    model.step([BATCH])
    assert same_bits(model.state()[2], after[2] + 1)


def test_ctrl_c_in_a_repetition_loses_nothing(light: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Training()
    for feed in batches(4):
        model.step([feed])
    real = WorkerHost.request
    for at in range(1, 6):
        kill()
        count = [0]

        def request(host: WorkerHost, message: dict[str, Any], at: int = at, count: list[int] = count) -> Any:
            count[0] += 1
            reply = real(host, message)
            if count[0] == at:
                signal.raise_signal(signal.SIGINT)
            return reply

        with monkeypatch.context() as patch:
            patch.setattr(WorkerHost, "request", request)
            with pytest.raises(KeyboardInterrupt):
                K.get_value(model.w)
    assert equal(model.state(), wanted(batches(4)))


def test_a_stopped_worker_keeps_no_look_waiting(light: str, said: list[str]) -> None:
    model = Training()
    model.step([BATCH])
    pid = worker().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert equal(model.state(), wanted([BATCH]))
    assert any("was ended, since it was stopped for" in line for line in said)


def test_what_is_held_to_repeat_calls_is_bounded(light: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Training()
    model.step([BATCH])
    once = worker().history.nbytes
    monkeypatch.setattr(config.LIMITS, "repeat_bytes", 5 * once)
    most = 0
    for _ in range(30):
        model.step([BATCH])
        most = max(most, len(worker().history.records))
    assert 2 < most <= 6
    # A feed that is larger than what may be held: all calls before it are fetched, and it is committed.
    x = K.placeholder((None,))
    add = K.function([x], [], [K.update(model.rate, K.sum(x) * 0.0 + 0.5)])
    add([np.ones(10_000)])
    assert model.held == 0
    assert worker().history.nbytes == 0
    monkeypatch.setattr(config.LIMITS, "repeat_seconds", 0.0)
    for _ in range(4):
        model.step([BATCH])
        worker()._checkpoint_seconds = 0.0
        assert len(worker().history.records) == 1
    assert equal(model.state(), wanted([BATCH] * 35))


def test_of_feeds_that_are_large_beside_the_model_few_are_held(light: str) -> None:
    x, w = K.placeholder((None,)), K.zeros((100_000,))
    step = K.function([x], [], [K.update_add(w, K.sum(x))])
    memory = set()
    for _ in range(40):
        # So quickly copied that a copy is due as soon as much is held.
        worker()._checkpoint_seconds = 0.0
        step([np.full((1 << 20,), 1.0)])
        memory.update([record.feeds[0].ctypes.data for record in worker().history.records])
    assert len(memory) <= 5
    kill()
    assert K.get_value(w).tolist() == [40.0 * (1 << 20)] * 100_000


def test_the_memory_of_values_to_begin_with_is_used_again(light: str) -> None:
    session = current()
    w = K.variable(np.zeros((1 << 20,), "float32"))
    step = K.function([], [], [K.update_add(w, 1.0)])
    sizes = []
    for _ in range(6):
        step([])
        step([])
        K.get_value(w)
        sizes.append(session.storage.bytes)
    assert len(set(sizes[1:])) == 1
    del w, step
    gc.collect()
    session.safe_point()
    assert session.storage.bytes <= sizes[0]
    assert not worker().history.records


def test_a_variable_that_is_gone_is_there_for_its_calls(light: str) -> None:
    session = current()
    a, b = K.variable(np.full(100_000, 2.0)), K.zeros((100_000,))
    use = K.function([], [], [K.update_add(b, a), K.update(a, a * 2.0)])
    use([])
    use([])
    number = a.slots.number
    del a, use
    gc.collect()
    session.safe_point()
    assert number not in session._slots
    assert worker().history.nbytes > 400_000
    kill()
    assert K.get_value(b).tolist() == [6.0] * 100_000
    assert worker().history.nbytes == 0


def test_a_program_whose_compiled_form_was_dropped_is_compiled_again(
    light: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config.LIMITS, "compiled_bytes", 1)
    w = K.variable(np.ones(3))
    add, double = K.function([], [], [K.update_add(w, 1.0)]), K.function([], [], [K.update(w, w * 2.0)])
    for call in (add, double, add, double):
        call([])
    kill()
    assert K.get_value(w).tolist() == [10.0] * 3
    add([])
    assert K.get_value(w).tolist() == [11.0] * 3


def test_two_workers_in_turn(light: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is protected for one engine is never what another one's calls write to."""
    w, v = K.variable(np.ones(30_000)), K.zeros((30_000,))
    add = K.function([], [K.sum(w)], [K.update_add(w, 1.0), K.update(v, v + w)])
    total, n, s = 0.0, 1.0, 0.0
    for turn in range(12):
        monkeypatch.setattr(config.LIMITS, "commit_bytes", 0 if turn % 3 else 1 << 20)
        for _ in range(1 + turn % 2):
            total = float(add([])[0])
            assert total == 30_000 * n
            n, s = n + 1, s + n
        if turn % 4 == 1:
            K.set_value(w, np.full(30_000, n))
        if turn % 4 == 3:
            kill(current().hosts[light])
        if turn % 2:
            kernelk.set_backend("numpy" if current().active == light else light)
    assert float(K.get_value(w)[0]) == n
    assert float(K.get_value(v)[0]) == s


@pytest.mark.parametrize("dead", [False, True])
def test_a_forked_child_has_the_newest_values(light: str, dead: bool) -> None:
    model = Training()
    for feed in batches(3):
        model.step([feed])
    if dead:
        kill()
    states = wanted(batches(4))
    if dead:
        # Looking at the other model has started another worker.
        kill()
    model.step([batches(4)[3]])
    if dead:
        kill()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if equal(model.state(), states) else 2
            current().host().end()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert equal(model.state(), states)
    model.step([BATCH])
    assert K.get_value(model.count) == 5


def test_a_hanging_engine_is_no_reason_to_lose_values(light: str) -> None:
    """Another thread's kill in the middle of calls, looks and swaps."""
    model = Training()
    done, over = 0, threading.Event()

    def killer() -> None:
        while not over.wait(0.03):
            host = current().hosts.get(light)
            process = getattr(host, "_process", None)
            if isinstance(process, subprocess.Popen):
                kill_group(process.pid)
            time.sleep(0.4)

    thread = threading.Thread(target=killer)
    thread.start()
    try:
        end = time.monotonic() + 8
        while time.monotonic() < end:
            try:
                model.step([BATCH])
                done += 1
            except (WorkerDiedError, EngineError):
                pass  # The latter, of one that is ended while it starts.
            if done % 50 == 0:
                assert K.get_value(model.count) == done
    finally:
        over.set()
        thread.join()
    assert K.get_value(model.count) == done
    assert done


def test_kbackend_says_where_the_values_are(light: str) -> None:
    model = Training()
    model.step([BATCH])
    assert "spare: the newest values of 3 variables lie with it alone (80 B)" in str(kernelk.list_backends())
    model.state()
    assert "alone" not in str(kernelk.list_backends())


class Machine(RuleBasedStateMachine):
    """Everything that may come between calls, against the same in plain Python."""

    def __init__(self) -> None:
        super().__init__()
        K.clear_session()
        kernelk.set_backend("spare")
        self.things: list[tuple[Any, Any, Any, list[float]]] = []
        self.large = False

    def close(self) -> None:
        for thing in self.things:
            self.check(thing)

    @staticmethod
    def check(thing: tuple[Any, Any, Any, list[float]]) -> None:
        w, v, _, values = thing
        found = [array.ravel()[[0, -1]].tolist() for array in K.batch_get_value([w, v])]
        assert found == [[values[0]] * 2, [values[1]] * 2]

    @precondition(lambda self: len(self.things) < 3)
    @rule(large=st.booleans())
    def make(self, large: bool) -> None:
        size = 20_000 if large else 3
        w, v = K.variable(np.zeros(size)), K.variable(np.ones(size))
        x = K.placeholder(())
        step = K.function([x], [w[0] + v[0]], [K.update(w, x + v), K.update(v, w - x)])
        self.things.append((w, v, step, [0.0, 1.0]))

    def one(self, index: int) -> tuple[Any, Any, Any, list[float]]:
        return self.things[index % len(self.things)]

    @precondition(lambda self: self.things)
    @rule(index=st.integers(0, 2), x=st.integers(-3, 3), times=st.integers(1, 4))
    def step(self, index: int, x: int, times: int) -> None:
        _, _, step, values = self.one(index)
        for _ in range(times):
            assert float(step([float(x)])[0]) == values[0] + values[1]
            values[:] = [x + values[1], values[0] - x]

    @precondition(lambda self: self.things)
    @rule(index=st.integers(0, 2), x=st.integers(-3, 3))
    def set_one(self, index: int, x: int) -> None:
        w, _, _, values = self.one(index)
        K.set_value(w, np.full(K.int_shape(w), float(x)))
        values[0] = float(x)

    @precondition(lambda self: self.things)
    @rule(index=st.integers(0, 2))
    def read_one(self, index: int) -> None:
        w, _, _, values = self.one(index)
        assert K.get_value(w).ravel()[-1] == values[0]

    @precondition(lambda self: self.things)
    @rule(index=st.integers(0, 2))
    def evaluate(self, index: int) -> None:
        w, v, _, values = self.one(index)
        assert float(K.eval(w[0] * 2.0 + v[1])) == 2 * values[0] + values[1]

    @precondition(lambda self: self.things)
    @rule(index=st.integers(0, 2))
    def drop(self, index: int) -> None:
        del self.things[index % len(self.things)]

    @rule()
    def kill(self) -> None:
        kill(current().hosts["spare"])

    @rule(moment=st.floats(0, 0.01))
    def kill_later(self, moment: float) -> None:
        process = current().hosts["spare"]._process  # type: ignore[attr-defined]
        timer = threading.Timer(moment, lambda: process and kill_group(process.pid))
        timer.start()
        try:
            for thing in self.things:
                self.check(thing)
        finally:
            timer.join()
            if process is not None:
                process.wait()

    @precondition(lambda self: self.things)
    @rule(index=st.integers(0, 2), moment=st.floats(0, 0.003))
    def interrupt(self, index: int, moment: float) -> None:
        _, _, step, values = thing = self.one(index)
        before = list(values)
        timer = threading.Timer(moment, lambda: os.kill(os.getpid(), signal.SIGINT))
        try:
            try:
                # It may fire before this returns.
                timer.start()
                while True:
                    step([1.0])
                    before[:] = values
                    values[:] = [1 + values[1], values[0] - 1]
            finally:
                timer.join()
        except KeyboardInterrupt:
            pass
        w, v = K.batch_get_value(list(thing[:2]))
        after = [1 + values[1], values[0] - 1]
        found = [float(w.ravel()[0]), float(v.ravel()[0])]
        assert found in (before, values, after)
        values[:] = found

    @rule()
    def swap(self) -> None:
        kernelk.set_backend("numpy" if current().active == "spare" else "spare")

    @rule()
    def stop(self) -> None:
        kernelk.stop_backend("spare")

    @rule(size=st.sampled_from([0, 1000, 1 << 20]))
    def policy(self, size: int) -> None:
        config.LIMITS.commit_bytes = size

    @rule(held=st.sampled_from([10_000, 1 << 28]))
    def bound(self, held: int) -> None:
        config.LIMITS.repeat_bytes = held

    def teardown(self) -> None:
        self.close()


def test_whatever_comes_between_calls(spare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.LIMITS, "repeat_bytes", config.LIMITS.repeat_bytes)
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
