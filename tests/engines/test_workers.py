"""Workers: killed at any moment they cost nothing; they listen nowhere, end with their kernel and give memory back."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.arrays import DTYPES, same_bits
from helpers.brake import Brake
from helpers.engines import WORKERS, activate
from helpers.processes import PATIENCE, alive, environment, run_script, wait_until

import kernelk
from kernelk import backend as K
from kernelk.engines.storage import Transfer
from kernelk.errors import EngineError, KernelKError, WorkerDiedError
from kernelk.session.current import current


class Training:
    """Momentum SGD on a small problem, with plain numpy beside it to tell how many steps were kept."""

    def __init__(self) -> None:
        rng = np.random.RandomState(0)
        self.start = rng.randn(30, 10)
        self.w, self.speed = K.variable(self.start, dtype="float64"), K.zeros((30, 10), dtype="float64")
        self.steps = K.variable(0, dtype="int64")
        self.x = K.placeholder((None, 30), dtype="float64")
        self.data = rng.randn(8, 30)
        loss = K.sum(K.square(K.dot(self.x, self.w)))
        step = self.speed * 0.5 - K.gradients(loss, [self.w])[0] * 1e-4
        updates = [K.update(self.speed, step), K.update_add(self.w, step), K.update_add(self.steps, 1)]
        self.train = K.function([self.x], [loss, self.steps], updates)

    def step(self) -> list[np.ndarray]:
        return self.train([self.data])  # type: ignore[no-any-return]

    def wanted(self, steps: int) -> list[np.ndarray]:
        w, speed = self.start.copy(), np.zeros_like(self.start)
        for _ in range(steps):
            speed = speed * 0.5 - 2 * self.data.T @ (self.data @ w) * 1e-4
            w = w + speed
        return [w, speed]

    def check(self, steps: int) -> None:
        """Weights and momentum are those after exactly this many steps."""
        w, speed, count = K.batch_get_value([self.w, self.speed, self.steps])
        assert count == steps
        for got, wanted in zip((w, speed), self.wanted(steps)):
            np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-12)


def kill(pid: int | None = None) -> int:
    """SIGKILL to the active engine's worker."""
    pid = pid or current().host().pid
    assert pid is not None
    assert pid != os.getpid()
    os.kill(pid, signal.SIGKILL)
    return pid


def test_killed_between_two_calls(worker: str, capfd: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.delenv("KERNELK_QUIET")
    training = Training()
    for _ in range(5):
        training.step()
    pid = kill()
    assert wait_until(lambda: not alive(pid))
    training.check(5)
    capfd.readouterr()
    assert training.step()[1] == 5
    told = capfd.readouterr().err.splitlines()
    assert len(told) == 1
    assert "worker was killed by SIGKILL; it was restarted with all variables, nothing is lost" in told[0]
    training.step()
    training.check(7)
    assert current().host().pid != pid
    assert K.backend() == worker


def test_a_call_that_the_worker_never_read_is_run_again(worker: str) -> None:
    """Stopped, it takes the request and doesn't read it: nothing of it can have happened."""
    training = Training()
    for _ in range(3):
        training.step()
    pid = current().host().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    killer = threading.Timer(0.3, kill, [pid])
    killer.start()
    assert training.step()[1] == 3
    killer.join()
    training.check(4)
    assert current().host().pid != pid


def test_killed_in_the_middle_of_a_computation(worker: str) -> None:
    training = Training()
    for _ in range(3):
        training.step()
    x = K.placeholder((None, None))
    y = x
    for _ in range(300):
        y = K.tanh(K.dot(y, x))
    long = K.function([x], [K.sum(y)], [K.update_add(training.steps, 1), K.update(training.w, training.w * 0.0)])
    long([np.eye(2)])
    K.batch_set_value([(training.steps, 3), (training.w, training.wanted(3)[0])])
    pid = current().host().pid
    assert pid is not None
    before = cpu(pid)

    def act() -> None:
        assert wait_until(lambda: cpu(pid) > before + 200)
        kill(pid)

    killer = threading.Thread(target=act)
    killer.start()
    words = r"worker was killed by SIGKILL in the middle of a call.*that call did not happen, all earlier ones are kept"
    with pytest.raises(WorkerDiedError, match=words) as caught:
        long([np.eye(1100)])
    killer.join()
    assert "\n" not in str(caught.value)
    training.check(3)
    for _ in range(3):
        training.step()
    training.check(6)


def train_under_fire(training: Training, done: int, delay: float) -> int:
    """Trains until the worker has been killed and replaced; how many steps were kept. None may be lost or doubled."""
    pid = current().host().pid
    killer = threading.Timer(delay, kill, [pid])
    killer.start()
    while current().host().pid == pid:
        try:
            training.step()
        except WorkerDiedError:
            # This one didn't happen; the next has a new worker.
            training.check(done)
            training.step()
        done += 1
    killer.join()
    training.check(done)
    return done


def test_killed_while_it_computes(worker: str) -> None:
    """At a moment of its own choosing: after it, the state is that of a whole number of steps."""
    training = Training()
    training.step()
    assert train_under_fire(training, 1, 0.03) > 1


def test_killed_at_many_moments(spare: str) -> None:
    kernelk.set_backend(spare)
    training = Training()
    training.step()
    random = np.random.RandomState(2)
    done = 1
    for _ in range(10):
        done = train_under_fire(training, done, float(random.rand()) * 0.02)


def test_killed_during_a_swap_away_and_a_swap_back(worker: str) -> None:
    training = Training()
    training.step()
    pid = kill()
    kernelk.set_backend("numpy")
    training.step()
    training.check(2)
    assert wait_until(lambda: not alive(pid))
    report = kernelk.set_backend(worker)
    assert report.loaded == report.variables
    training.step()
    training.check(3)


def test_killed_before_a_swap_to_it_is_read(worker: str) -> None:
    """As where its end isn't noticed yet."""
    training = Training()
    training.step()
    pid = current().host().pid
    assert pid is not None
    kernelk.set_backend("numpy")
    training.step()
    os.kill(pid, signal.SIGSTOP)
    killer = threading.Timer(0.3, kill, [pid])
    killer.start()
    report = kernelk.set_backend(worker)
    killer.join()
    assert report.loaded == report.variables
    assert current().host().pid != pid
    training.step()
    training.check(3)


def test_killed_before_variables_are_freed(spare: str) -> None:
    """A finalizer's work meets a dead worker: nobody notices."""
    kernelk.set_backend(spare)
    kept, gone = K.variable([1.0]), K.variable(np.ones(1000))
    K.eval(kept + K.sum(gone))
    pid = kill()
    assert wait_until(lambda: not alive(pid))
    del gone
    gc.collect()
    other = K.variable([2.0])
    assert K.eval(kept + other).tolist() == [3.0]


def test_a_stop_costs_nothing_either(worker: str) -> None:
    training = Training()
    training.step()
    current().host().stop()
    assert not current().host().started
    training.check(1)
    training.step()
    training.check(2)


# --- processes and sockets ------------------------------------------------------------------------------------


_KERNEL = """
import json, sys, time
import kernelk
from kernelk import backend as K
from kernelk.session import current
current().engine_options["theano"] = {"compiler": ""}
kernelk.set_backend(sys.argv[1])
K.eval(K.variable([1.0]) + 1.0)
host = current().host()
print(json.dumps([host.pid, host._scratch]), flush=True)
if sys.argv[2] == "busy":
    x = K.placeholder((None, None))
    y = x
    for i in range(400):
        y = K.tanh(K.dot(y, x))
    K.eval(K.sum(y), {x: __import__("numpy").eye(900)})
elif sys.argv[2] == "wait":
    time.sleep(600)
"""


@pytest.mark.parametrize("doing", ["wait", "busy"])
def test_a_worker_ends_with_its_kernel(worker: str, doing: str) -> None:
    kernel = subprocess.Popen(
        [sys.executable, "-c", _KERNEL, worker, doing], env=environment(), stdout=subprocess.PIPE, text=True
    )
    try:
        assert kernel.stdout is not None
        pid = json.loads(kernel.stdout.readline())[0]
        assert alive(pid)
        if doing == "busy":
            before = cpu(pid)
            assert wait_until(lambda: cpu(pid) > before + 20 or kernel.poll() is not None)
        kernel.send_signal(signal.SIGKILL)
        kernel.wait()
        assert wait_until(lambda: not alive(pid))
    finally:
        kernel.kill()
        kernel.wait()


def cpu(pid: int) -> int:
    """Clock ticks that a process has computed."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return 0
    return int(fields[11]) + int(fields[12])


def test_a_kernel_that_ends_leaves_nothing_behind(worker: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KERNEL, worker, "end"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    pid, scratch = json.loads(done.stdout.splitlines()[-1])
    assert wait_until(lambda: not alive(pid))
    assert wait_until(lambda: not Path(scratch).exists())


def sockets(pid: int) -> set[str]:
    """Inodes of a process's sockets."""
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            match = re.fullmatch(r"socket:\[(\d+)\]", os.readlink(entry))
        except FileNotFoundError:
            continue
        if match:
            found.add(match[1])
    return found


def test_nothing_listens(worker: str) -> None:
    K.eval(K.variable([1.0]) + 1.0)
    pid = current().host().pid
    assert pid is not None
    for process in (pid, os.getpid()):
        own = sockets(process)
        for table in ("tcp", "tcp6", "udp", "udp6", "raw", "raw6"):
            file = Path(f"/proc/{process}/net/{table}")
            if not file.exists():
                continue
            # Column 9 is the inode, column 3 the state: 0A listens.
            rows = [line.split() for line in file.read_text().splitlines()[1:]]
            assert not [row for row in rows if row[9] in own and process == pid], table
        for line in Path(f"/proc/{process}/net/unix").read_text().splitlines()[1:]:
            fields = line.split()
            listening = int(fields[3], 16) & 0x10000
            assert not (fields[6] in own and listening and process == pid), line
    # One end of a socket pair, without a name.
    assert len(sockets(pid)) >= 1


def test_interrupts_reach_the_kernel_alone(worker: str) -> None:
    pid = current().host().pid
    assert pid is not None
    assert os.getpgid(pid) == pid != os.getpgid(0)
    training = Training()
    training.step()
    os.kill(pid, signal.SIGINT)
    training.step()
    training.check(2)
    assert current().host().pid == pid


def test_a_worker_knows_nothing_of_the_kernels_settings(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of the notebook's with a file named like an engine's module doesn't come in its way."""
    session = current()
    session.host(worker).stop()
    monkeypatch.setenv("PYTHONSTARTUP", "/nonexistent")
    monkeypatch.setenv("PYTHONOPTIMIZE", "2")
    assert K.eval(K.variable([1.0]) + 1.0).tolist() == [2.0]


def test_chatter_cant_break_the_wire(brake: Brake) -> None:
    kernelk.set_backend("spare")
    v = K.variable([0.0, 1.0])
    call = K.function([], [K.exp(v)], [K.update_add(v, K.exp(v) * 0.0)])
    for _ in range(50):
        assert call([])[0].tolist() == np.exp(np.array([0, 1], "float32")).tolist()
    text = kernelk.log("spare").text
    for words in ("chatter on 1", "chatter on 2", "printed"):
        assert text.count(words) >= 50


def test_engines_own_output_doesnt_reach_the_kernel(worker: str, capfd: pytest.CaptureFixture[str]) -> None:
    session = current()
    session.host(worker).stop()
    capfd.readouterr()
    K.eval(K.softmax(K.variable([[1.0, 2.0]])))
    assert capfd.readouterr() == ("", "")


def test_an_engines_error_names_the_op_and_the_line(brake: Brake, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernelk.engines import worker_host as host

    failing = 'def fail(instruction, x):\n    raise RuntimeError("no\\n  memory")\nheld_up.OPS["tanh"] = fail\n'
    last = 'importlib.import_module("kernelk.backends.serving.worker").main('
    monkeypatch.setattr(host, "_BOOT", host._BOOT.replace(last, failing + last))
    kernelk.set_backend("spare")
    v = K.variable([1.0])
    call = K.function([], [K.tanh(v * 2.0)], [K.update_add(v, 1.0)])
    for _ in range(2):
        with pytest.raises(
            EngineError,
            match=r"RuntimeError: no memory; next: kernelk\.log\('spare'\) .*\(op tanh\).*_workers\.py, line",
        ):
            call([])
    assert K.get_value(v).tolist() == [1.0]
    assert K.eval(v * 2.0).tolist() == [2.0]


# --- memory ---------------------------------------------------------------------------------------------------


def mapped(pid: int) -> int:
    """The number of kernelk's segments that a process has mapped."""
    return len(re.findall(r"memfd:kernelk", Path(f"/proc/{pid}/maps").read_text()))


def held_bytes() -> int:
    storage = current().storage
    return sum(s.size for number, s in storage.segments.items() if number != current().calls.transfer.segment)


def settle() -> None:
    """Garbage collected, and the notes that finalizers left worked off."""
    gc.collect()
    with current().lock:
        current().safe_point()


def test_variables_nobody_holds_are_freed_on_both_sides(spare: str) -> None:
    session = current()
    settle()
    kernelk.set_backend(spare)
    K.eval(K.variable([1.0]) + 1.0)
    settle()
    pid = session.host().pid
    assert pid is not None

    def taken() -> tuple[int, int, int, int]:
        return mapped(pid), mapped(os.getpid()), held_bytes(), len(os.listdir("/proc/self/fd"))

    # What the worker is to forget isn't waited for.
    assert wait_until(lambda: mapped(pid) == 1)
    before = taken()
    # Three of these fill a segment or more.
    variables = [K.variable(np.ones(1 << 21)) for _ in range(6)]
    call = K.function([], [K.sum(variables[0] + variables[5])], [K.update_add(v, 1.0) for v in variables])
    call([])
    # The new values stay with the worker.
    assert held_bytes() >= before[2] + 6 * (8 << 20)
    assert mapped(pid) > before[0]
    assert len(session.host().versions) >= 6
    del call, variables
    settle()
    K.eval(K.variable([1.0]) + 1.0)
    settle()
    assert wait_until(lambda: taken() == before), (taken(), before)
    assert len(session.live_variables()) == 0


def test_a_loop_of_new_variables_needs_no_more_memory(backend: str) -> None:
    """What a user does who runs the same cell a hundred times."""
    sizes = []
    for i in range(30):
        v = K.variable(np.ones(1 << 18), name=f"run{i}")
        call = K.function([], [K.sum(v)], [K.update_add(v, 1.0)])
        assert call([])[0] == 1 << 18
        settle()
        sizes.append(held_bytes())
    assert max(sizes[10:]) <= max(sizes[:10])
    assert len(current().live_variables()) == 1


def test_big_feeds_give_their_memory_back(backend: str) -> None:
    session = current()
    if session.calls.transfer.segment is not None:
        session.storage.drop_segment(session.calls.transfer.segment)
    session.calls.transfer = Transfer(session.storage)
    pid = session.host().pid
    assert pid is not None
    settle()
    # What earlier tests may have left is not this one's affair.
    others = [mapped(process) - len(session.storage.segments) for process in (os.getpid(), pid)]
    x = K.placeholder((None,))
    call = K.function([x], [K.sum(x)])
    for size in (1 << 10, 1 << 20, 3 << 20, 5 << 20, 9 << 20):
        assert call([np.ones(size)])[0] == size
    settle()
    call([np.ones(10)])
    # One transfer segment is in use; those that it outgrew are gone.
    now = [mapped(process) - len(session.storage.segments) for process in (os.getpid(), pid)]
    assert now[0] <= others[0]
    assert now[1] <= max(others[1], 0)


def test_more_than_64_segments(spare: str) -> None:
    """More than one message can carry descriptors for."""
    kernelk.set_backend(spare)
    session = current()
    numbers = [session.storage.new_segment(4096) for _ in range(150)]
    v = K.variable([1.0, 2.0])
    assert K.eval(v * 2.0).tolist() == [2.0, 4.0]
    for number in numbers:
        session.storage.drop_segment(number)
    assert K.eval(v * 3.0).tolist() == [3.0, 6.0]
    assert len(session.host()._attached) <= len(session.storage.segments)  # type: ignore[attr-defined]


def test_thousands_of_variables(worker: str) -> None:
    kernelk.set_backend("numpy")
    variables = [K.variable(np.full(1 + i % 7, i), dtype="int32" if i % 2 else "float32") for i in range(3000)]
    report = kernelk.set_backend(worker)
    assert report.variables == report.loaded == 3000
    for i in (0, 1, 1499, 2999):
        assert K.eval(variables[i] + 1).tolist() == [i + 1] * (1 + i % 7)
    some = variables[::60]
    total = K.function([], [], [K.update_add(v, 1) for v in some])
    total([])
    for i, v in enumerate(variables):
        assert K.get_value(v).tolist() == [i + (1 if i % 60 == 0 else 0)] * (1 + i % 7)


def test_fifty_megabytes_each_way(backend: str) -> None:
    x = K.placeholder((None, 1000))
    call = K.function([x], [x, K.sum(x, axis=0), K.transpose(x)[:5]])
    data = np.arange(12_500_000, dtype="float32").reshape(12_500, 1000)
    data[0, 0] = np.nan
    for _ in range(2):
        whole, total, first = call([data])
        assert same_bits(whole, data)
        assert np.isnan(total[0])
        assert same_bits(first, data.T[:5].copy())
    big = K.variable(data)
    grown = K.function([], [], [K.update_add(big, 1.0)])
    grown([])
    assert K.get_value(big)[12_499, 999] == np.float32(data[12_499, 999]) + 1


def test_every_dtype_travels(backend: str) -> None:
    rng = np.random.RandomState(0)
    inputs = [K.placeholder((None, 3), dtype=dtype) for dtype in DTYPES for _ in range(2)]
    call = K.function(inputs, inputs)
    for rows in (4, 1, 0):
        feeds = []
        for x in inputs:
            raw = rng.randint(0, 256, rows * 3 * 8).astype("uint8")
            array = (raw & 1).astype(bool)[: rows * 3] if x.dtype == "bool" else raw.view(x.dtype)[: rows * 3]
            feeds.append(array.reshape(rows, 3))
        for x, feed, value in zip(inputs, feeds, call(feeds)):
            assert same_bits(value, feed), x.dtype


# --- the C compiler -------------------------------------------------------------------------------------------


@pytest.mark.compiled_theano
def test_theano_with_its_own_compiler() -> None:
    """As users have it: in a session of its own, since this one's Theano runs without."""
    activate("theano")
    code = """
import numpy as np, kernelk
from kernelk import backend as K, config
from kernelk.session import current
config.LIMITS.build_beside = False
kernelk.set_backend("theano")
mode = current().host().facts.get("mode", "")
x, w = K.placeholder((None, 3)), K.variable(np.arange(6.0).reshape(3, 2))
loss = K.mean(K.square(K.dot(x, w)))
g = K.gradients(loss, [w])[0]
call = K.function([x], [loss, g], [K.update_sub(w, g * 0.1)])
data = np.arange(12.0).reshape(4, 3) / 10
first = [v.tolist() for v in call([data])] + [K.get_value(w).tolist()]
K.set_value(w, np.arange(6.0).reshape(3, 2))
kernelk.set_backend("numpy")
second = [v.tolist() for v in call([data])] + [K.get_value(w).tolist()]
same = all(np.allclose(a, b, rtol=1e-5) for a, b in zip(first, second))
result = [mode, same]
"""
    mode, same = run_script(code)
    assert same
    assert mode


def test_all_worker_engines_are_tested_here() -> None:
    """A new engine of the box that runs in a worker belongs into the fixture."""
    from kernelk.engines import registry

    known = {name for name in registry._entries() if not registry.engine(name).in_kernel and name != "spare"}
    assert known == set(WORKERS)
    assert issubclass(WorkerDiedError, KernelKError)
