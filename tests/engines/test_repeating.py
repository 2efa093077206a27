"""Values that a worker had alone are there again after its end, at whatever moment that comes."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.arrays import same_bits
from helpers.repeating import BATCH, Training, batches, kill, wanted, worker
from helpers.training import equal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.backends.numpy.backend import NumpyBackend
from kernelk.engines import worker_host
from kernelk.engines.worker_host import WorkerHost, kill_group
from kernelk.errors import EngineError, ShapeError, WorkerDiedError
from kernelk.inspection.summaries import summary
from kernelk.magics import KernelKMagics
from kernelk.session.current import current

pytestmark = pytest.mark.usefixtures("kept")


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
        with pytest.raises(EngineError, match=r"drop_calls=True\) goes on without these 4 calls"):
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
