"""Ctrl-C, alarms and memory that runs out, as real signals and limits: no later call gets another one's reply."""

from __future__ import annotations

import contextlib
import gc
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from helpers.brake import Brake
from helpers.notebooks import run_cells
from helpers.processes import PATIENCE, alive, environment, interrupt, run_script, wait_until
from jupyter_client.manager import start_new_kernel

import kernelk
from kernelk import backend as K
from kernelk.backends.serving.shared_memory import Segment
from kernelk.engines import interrupts
from kernelk.engines.host import RELEASED
from kernelk.engines.interrupts import DeferInterrupt, shield
from kernelk.errors import EngineError
from kernelk.session.current import current


class Timeout(Exception):
    """The exception of a timeout decorator."""


@pytest.fixture
def ringing() -> Iterator[None]:
    """An alarm raises Timeout."""

    def ring(*_: object) -> None:
        raise Timeout

    before = signal.signal(signal.SIGALRM, ring)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


class Cells:
    """What a user runs before and after, and what it must give."""

    def __init__(self) -> None:
        x = K.placeholder((), name="x")
        self.w = K.variable(np.zeros(3, "float32"), name="w")
        self.quick = K.function([x], [x + 1.0])
        self.step = K.function([x], [self.w], updates=[K.update_add(self.w, K.ones((3,)) * x)])
        self.steps = 0
        self.quick([0.0])
        self.step([0.0])

    def check(self) -> None:
        assert [float(self.quick([float(i)])[0]) for i in range(6)] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        for _ in range(4):
            assert self.step([1.0])[0].tolist() == [self.steps] * 3
            self.steps += 1
            assert K.get_value(self.w).tolist() == [self.steps] * 3


# --- alarms ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ringing")
def test_an_alarm_in_the_middle_of_a_call(
    brake: Brake, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KERNELK_QUIET")
    kernelk.set_backend("spare")
    cells = Cells()
    slow = K.function([], [K.exp(cells.w)], [K.update_add(cells.w, K.exp(cells.w))])
    slow_step = K.function([], [], [K.update(cells.w, K.exp(cells.w) * 0.0)])
    slow_step([])
    pid = current().host().pid
    brake.hold("exp")
    ringer = brake.when_reached("exp", lambda: os.kill(os.getpid(), signal.SIGALRM))
    with pytest.raises(Timeout):
        slow([])
    ringer.join()
    brake.free("exp")
    capfd.readouterr()
    cells.check()
    assert current().host().pid != pid
    told = [line for line in capfd.readouterr().err.splitlines() if "worker" in line]
    assert told == [
        "Spare's worker was ended in the middle of a call by Timeout; it was restarted with all variables, nothing is"
        " lost"
    ]


@pytest.mark.usefixtures("ringing")
def test_alarms_at_any_moment(spare: str) -> None:
    kernelk.set_backend(spare)
    alarms(5)


@pytest.mark.soak
@pytest.mark.usefixtures("ringing")
def test_many_alarms_at_any_moment(backend: str) -> None:
    alarms(60)


def alarms(trials: int) -> None:
    a = K.variable(np.ones((300, 300), "float32"))
    x, y = K.placeholder(()), a
    for _ in range(20):
        y = K.dot(y, a) / 300.0
    slow = K.function([x], [K.mean(y) * x])
    cells = Cells()
    slow([1.0])
    start = time.perf_counter()
    slow([1.0])
    took = time.perf_counter() - start
    rnd = random.Random(3)
    for _ in range(trials):
        # In one process the engine's own errors and an alarm can't be told apart.
        with contextlib.suppress(Timeout, EngineError):
            signal.setitimer(signal.ITIMER_REAL, took * (0.1 + rnd.random()))
            while True:
                slow([2.0])
        cells.check()


def test_a_call_from_a_signals_handler_is_refused(brake: Brake) -> None:
    """It would use the memory of the call that it came into."""
    kernelk.set_backend("spare")
    cells = Cells()
    v = K.variable([0.0, 0.0])
    slow = K.function([], [K.exp(v)], [K.update_add(v, K.exp(v))])
    slow([])
    K.set_value(v, [0.0, 0.0])
    asked = [
        lambda: cells.quick([1.0]),
        lambda: K.set_value(v, [7.0, 7.0]),
        lambda: K.clear_session(),
        lambda: kernelk.set_backend("spare"),
    ]
    told: list[str] = []

    def ring(*_: object) -> None:
        for ask in asked:
            with pytest.raises(EngineError) as caught:
                ask()
            told.append(str(caught.value))
        # What needs no engine goes on working.
        told.append(K.get_value(v).tolist())

    before = signal.signal(signal.SIGALRM, ring)
    pid = current().host().pid
    brake.hold("exp")

    def act() -> None:
        os.kill(os.getpid(), signal.SIGALRM)
        time.sleep(0.1)
        brake.free("exp")

    try:
        ringer = brake.when_reached("exp", act)
        assert slow([])[0].tolist() == [1.0, 1.0]
        ringer.join()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert told[-1] == [0.0, 0.0]
    assert len(told) == len(asked) + 1
    assert all("next: do it after that call" in line and "\n" not in line for line in told[:-1])
    assert K.get_value(v).tolist() == [1.0, 1.0]
    cells.check()
    assert current().host().pid == pid


# --- Ctrl-C ---------------------------------------------------------------------------------------------------


def test_ctrl_c_within_the_grace_lets_the_call_end(brake: Brake) -> None:
    kernelk.set_backend("spare")
    v = K.variable([1.0, 2.0])
    call = K.function([], [K.exp(v * 0.0)], [K.update_add(v, K.exp(v * 0.0))])
    call([])
    pid = current().host().pid
    brake.hold("exp")
    thread = brake.when_reached("exp", lambda: (interrupt(), brake.free("exp")))
    with pytest.raises(KeyboardInterrupt):
        call([])
    thread.join()
    # The call ended, so it is kept as a whole; the worker lives.
    assert K.get_value(v).tolist() == [3.0, 4.0]
    assert current().host().pid == pid
    call([])
    assert K.get_value(v).tolist() == [4.0, 5.0]


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_a_call_that_doesnt_end(brake: Brake, times: int) -> None:
    kernelk.set_backend("spare")
    v, w = K.variable([1.0, 2.0]), K.variable([1.0, 2.0])
    call = K.function([], [K.exp(v * 0.0)], [K.update_add(v, K.exp(v * 0.0)), K.update_add(w, K.exp(w * 0.0))])
    call([])
    pid = current().host().pid
    assert pid is not None
    brake.hold("exp")
    thread = brake.when_reached("exp", lambda: [interrupt() for _ in range(times)])
    with pytest.raises(KeyboardInterrupt):
        call([])
    thread.join()
    assert wait_until(lambda: not alive(pid))
    assert K.backend() == "spare"
    brake.free("exp")
    assert [x.tolist() for x in K.batch_get_value([v, w])] == [[2.0, 3.0]] * 2
    call([])
    assert current().host().pid != pid
    assert [x.tolist() for x in K.batch_get_value([v, w])] == [[3.0, 4.0]] * 2


def test_ctrl_c_on_a_real_engine(worker: str) -> None:
    """A long computation there; what the user had is kept, and the engine works again at the next call."""
    v, x = K.variable([1.0, 2.0]), K.placeholder((None, None))
    y = x
    for _ in range(300):
        y = K.tanh(K.dot(y, x))
    call = K.function([x], [K.sum(y)], [K.update_add(v, 1.0)])
    call([np.eye(2)])
    assert K.get_value(v).tolist() == [2.0, 3.0]
    timer = threading.Timer(0.6, interrupt)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            for _ in range(1000):
                call([np.eye(1000)])
                K.set_value(v, [2.0, 3.0])
    finally:
        timer.cancel()
    assert K.get_value(v).tolist() in ([2.0, 3.0], [3.0, 4.0])
    K.set_value(v, [2.0, 3.0])
    call([np.eye(2)])
    assert K.get_value(v).tolist() == [3.0, 4.0]


def test_ctrl_c_handlers_are_put_back(brake: Brake) -> None:
    kernelk.set_backend("spare")
    seen = []
    previous: Callable[..., Any] | int | None = signal.signal(signal.SIGINT, lambda *a: seen.append(1))
    try:
        K.eval(K.exp(K.variable([1.0])))
        interrupt()
        assert seen == [1]
    finally:
        signal.signal(signal.SIGINT, previous)


def test_ctrl_c_while_sessions_are_cleared(spare: str) -> None:
    clear_under_fire(spare, 6)


@pytest.mark.soak
def test_ctrl_c_while_sessions_are_cleared_on_each_engine(backend: str) -> None:
    clear_under_fire(backend, 30)


def clear_under_fire(engine: str, trials: int) -> None:
    kernelk.set_backend(engine)
    rnd = random.Random(1)
    Cells()
    for _ in range(trials):
        timer = threading.Timer(rnd.random() * 0.15, os.kill, (os.getpid(), signal.SIGINT))

        def loop(timer: threading.Timer = timer) -> None:
            timer.start()
            while True:
                K.clear_session()
                Cells()

        with pytest.raises(KeyboardInterrupt):
            loop()
        timer.join()
        Cells().check()


def test_a_ctrl_c_costs_no_worker_outside_a_call_either(spare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kernelk.set_backend(spare)
    cells = Cells()
    pid = current().host().pid
    real = socket.socket.recv_into

    def receive(self: socket.socket, *arguments: Any) -> int:
        signal.raise_signal(signal.SIGINT)
        return real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "recv_into", receive, raising=False)
        with pytest.raises(KeyboardInterrupt):
            current().host().request({"do": "release", **{kind: [] for kind in RELEASED}})
    cells.check()
    assert current().host().pid == pid


@pytest.mark.parametrize("engine", ["numpy", "spare"])
def test_ctrl_c_while_the_transfer_segment_is_replaced(
    engine: str, spare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernelk.set_backend(engine)
    x = K.placeholder((None,))
    total = K.function([x], [K.sum(x)])
    total([np.ones(3)])
    real = Segment.create.__func__  # type: ignore[attr-defined]

    def create(cls: type[Segment], size: int) -> Segment:
        os.kill(os.getpid(), signal.SIGINT)
        return real(cls, size)  # type: ignore[no-any-return]

    big = 2 * current().storage.bytes
    with monkeypatch.context() as patch:
        patch.setattr(Segment, "create", classmethod(create))
        with pytest.raises(KeyboardInterrupt):
            total([np.ones(big // 4, "float32")])
    for _ in range(2):
        assert float(total([np.ones(3)])[0]) == 3.0
    assert float(total([np.ones(big // 4, "float32")])[0]) == big // 4


def abandoned(ended: list[str]) -> DeferInterrupt:
    """A block that was entered and never left, by code that has ended."""
    block = DeferInterrupt(lambda: ended.append("given up"), 0.05)
    block.__enter__()
    return block


def test_a_block_that_an_exception_kept_from_closing_defers_nothing() -> None:
    """One that comes in as the block is left: neither is Ctrl-C lost, nor does it end a worker later."""
    ended: list[str] = []
    before = signal.getsignal(signal.SIGINT)
    block = DeferInterrupt(lambda: ended.append("given up"), 0.05)
    block.__enter__()
    signal.raise_signal(signal.SIGINT)
    assert interrupts.is_deferred()
    del block
    gc.collect()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    kept = abandoned(ended)
    assert interrupts.is_deferred()
    # Held by a traceback, as IPython holds the last one, it still defers nothing.
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    kept = abandoned(ended)
    with pytest.raises(KeyboardInterrupt), DeferInterrupt(lambda: ended.append("given up"), 1.0) as block:
        signal.raise_signal(signal.SIGINT)
    assert block.interrupted
    assert signal.getsignal(signal.SIGINT) is before
    assert kept is not None
    DeferInterrupt(lambda: None, 1.0).__enter__()
    with shield():
        assert interrupts.is_deferred()
    assert signal.getsignal(signal.SIGINT) is before
    time.sleep(0.2)
    assert not ended


# --- what the user sees -----------------------------------------------------------------------------------------

# `press` presses Ctrl-C so many times, once the cell is inside a function of this name.
_PRESS = """
import os, signal, sys, threading, time
import numpy as np, kernelk
from kernelk import backend as K

def press(times, inside):
    main = threading.main_thread().ident
    def wait():
        while True:
            frame = sys._current_frames()[main]
            while frame is not None and frame.f_code.co_name != inside:
                frame = frame.f_back
            if frame is not None:
                break
            time.sleep(0.005)
        for _ in range(times):
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=wait, daemon=True).start()

a = K.variable(np.ones((2000, 2000), "float32") / 2000)
y = a
for _ in range(1000):
    y = K.dot(y, a)
"""


def test_a_notebook_shows_one_traceback_that_ends_at_the_users_line() -> None:
    cells = run_cells(
        [
            "%load_ext kernelk",
            _PRESS + "kernelk.set_backend('numpy', in_kernel=False)\nstep = K.function([], [K.sum(y)])",
            "press(2, '_run')\nstep([])",
            "press(1, '_run')\nK.eval(y)",
            "press(1, 'hello')\nstep([])",
            "press(2, '_run')\n%ktime y",
            "press(2, '_run')\nkernelk.compare(y, 'numpy')",
            "kernelk.set_backend('numpy', in_kernel=True)",
            "press(1, 'do_run')\nstep([])",
            "%tb",
            "print(K.eval(K.sum(K.ones((3,)))), K.get_value(a).sum())",
        ],
        KERNELK_BACKEND="numpy",
    )
    lines = ["step([])", "K.eval(y)", "step([])", "'ktime', 'y')", "kernelk.compare(y, 'numpy')", "step([])"]
    told = [cell for cell in cells if cell["error"] is not None]
    assert [cell["error"] for cell in told] == ["KeyboardInterrupt"] * len(lines)
    for cell, line in zip(told, lines):
        text = cell["out"].strip()
        assert text.count("Traceback") == 1, text
        assert "exception" not in text
        assert "File" not in text
        *_, last, empty, name = text.splitlines()
        assert last.startswith("----> 2 ")
        assert last.endswith(line)
        assert empty == ""
        assert name.startswith("KeyboardInterrupt")
    # Whoever asks for all of it gets it.
    assert "local_host.py" in cells[-2]["out"]
    assert cells[-1]["out"] == "3.0 2000.0\n"


@pytest.mark.parametrize("in_kernel", [False, True])
def test_a_script_ends_with_one_traceback(in_kernel: bool) -> None:
    code = f"{_PRESS}\nkernelk.set_backend('numpy', in_kernel={in_kernel})\npress(2, '_run')\nK.eval(y)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.stderr.count("Traceback") == 1, done.stderr
    assert done.stderr.strip().endswith("KeyboardInterrupt")
    assert done.returncode != 0


# --- an engine that hangs -------------------------------------------------------------------------------------


def test_an_idle_engine_that_hangs_holds_nobody_up(spare: str) -> None:
    kernelk.set_backend(spare)
    cells = Cells()
    pid = current().host().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    kernelk.set_backend("numpy")
    try:
        for i in range(5):
            gone = K.variable(np.full(8, i))
            assert K.eval(gone * 2).tolist() == [2.0 * i] * 8
            del gone
            K.clear_session()
            cells = Cells()
            cells.check()
    finally:
        os.kill(pid, signal.SIGCONT)
    kernelk.set_backend(spare)
    cells.check()
    assert current().host().pid == pid


# --- memory ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["numpy", "numpy --worker"])
def test_a_feed_that_cant_be_had(engine: str) -> None:
    code = f"""
import resource
import numpy as np, kernelk
from kernelk import backend as K
kernelk.set_backend("numpy", in_kernel={"worker" not in engine})
x, w = K.placeholder((None,), name="x"), K.variable([1.0])
f = K.function([x], [K.sum(x)], [K.update_add(w, [1.0])])
result = [float(f([np.ones(3)])[0])]
big = np.ones(60_000_000, "float32")
size = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + (200 << 20), -1))
for array in (big, np.ones(3), np.ones(3)):
    try:
        result.append(float(f([array])[0]))
    except Exception as error:
        result.append(str(error).count("\\n"))
resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
result += [float(f([big])[0]), K.get_value(w).tolist()]
K.clear_session()
x = K.placeholder((None,))
result.append(float(K.function([x], [K.sum(x)])([np.ones(3)])[0]))
"""
    assert run_script(code) == [3.0, 0, 3.0, 3.0, 60_000_000.0, [5.0], 3.0]


# --- a notebook -----------------------------------------------------------------------------------------------


def test_a_notebook_interrupted_in_a_loop_that_clears_sessions() -> None:
    notebook_under_fire("numpy", "in_kernel=False", 2)


@pytest.mark.soak
def test_a_notebook_interrupted_on_pytorch() -> None:
    notebook_under_fire("torch", "", 15)


def notebook_under_fire(engine: str, options: str, trials: int) -> None:
    build = """
x = K.placeholder((None, 4)); w = K.variable(np.zeros((4, 1)))
loss = K.mean(K.square(K.dot(x, w) - 1.0))
train = K.function([x], [loss], updates=[K.update_sub(w, 0.1 * K.gradients(loss, [w])[0])])
"""
    loop = "while True:\n    K.clear_session()" + build.replace("\n", "\n    ") + "train([np.ones((8, 4))])"
    after = (
        build
        + """
q = K.function([x], [K.sum(x)])
print(float(train([np.ones((8, 4))])[0]), *[float(q([np.full((1, 4), float(i))])[0]) for i in range(1, 5)])
"""
    )
    rnd = random.Random(4)
    manager, client = start_new_kernel(kernel_name="python3", env=environment())
    try:
        start = "%load_ext kernelk\nimport numpy as np, kernelk\nfrom kernelk import backend as K\n"
        told = run(client, start + f"kernelk.set_backend({engine!r}, {options})\n" + build + "train([np.ones((8, 4))])")
        assert "Error" not in told
        for _ in range(trials):
            timer = threading.Timer(0.3 + rnd.random(), manager.interrupt_kernel)
            timer.start()
            assert "KeyboardInterrupt" in run(client, loop)
            timer.join()
            assert run(client, after).split() == ["1.0", "4.0", "8.0", "12.0", "16.0"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run(client: Any, code: str) -> str:
    """Returns a cell's output, and its error's name."""
    told: list[str] = []

    def hear(message: dict[str, Any]) -> None:
        content = message["content"]
        told.append(content.get("text", "") + content.get("ename", ""))

    client.execute_interactive(code, output_hook=hear, timeout=PATIENCE)
    return "".join(told)
