"""Waiting has an end that the user sees: a worker that makes no progress is named, one that works slowly never is."""

from __future__ import annotations

import ctypes
import functools
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.engines import activate
from helpers.fake_engines import register
from helpers.light import LAST
from helpers.processes import alive, run_script, wait_until

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.display import progress
from kernelk.engines import stuck, worker_host, worker_samples
from kernelk.engines.descriptors import Engine
from kernelk.engines.stuck import Sample, is_over, is_reported, standing_since
from kernelk.errors import EngineError
from kernelk.notebook.settings import KernelK
from kernelk.session.current import current

# --- the judging ----------------------------------------------------------------------------------------------


def still(seconds: int, **settings: Any) -> list[Sample]:
    """One look a second at a worker in which nothing computes."""
    return [Sample(float(at), {7: 1.0, 8: 0.5}, **settings) for at in range(seconds)]


def told(samples: list[Sample]) -> bool:
    since = functools.reduce(standing_since, samples)
    return is_reported(since, samples[-1])


def computing(share: float, **settings: Any) -> list[Sample]:
    return [Sample(float(at), {7: 1.0, 8: 0.5 + share * at}, **settings) for at in range(100)]


def test_what_stands_still_is_told_in_its_time() -> None:
    assert not told(still(30))
    assert told(still(31))
    assert not told(still(3, stopped=True))
    assert told(still(4, stopped=True))
    assert told(still(6, lock_owner="process 9"))
    # What an idle engine's threads use is no progress; what a lock's waiter uses isn't either.
    assert told(computing(0.002))
    assert told(computing(0.02, lock_owner="process 9"))
    # A device may finish what it was given: the engine is stopped all the same.
    assert told(still(5, stopped=True, device_works=True))


def test_what_gets_on_is_never_told() -> None:
    assert not told(computing(0.01))
    assert not told(computing(0.5, lock_owner="process 9"))
    assert not told(still(100, device_works=True))
    # Ready to run on a machine that is too busy, or waiting for its disk.
    assert not told(still(100, runs=True))
    # One short process after the other, none seen twice.
    assert not told([Sample(float(at), {7: 1.0, 100 + at: 0.0}) for at in range(100)])
    # It has gone on in between.
    assert not told(
        [*still(29), Sample(29.0, {7: 1.0, 8: 0.9}), *[Sample(29.0 + i, {7: 1.0, 8: 0.9}) for i in range(9)]]
    )


def test_one_is_ended_at_the_users_limit_and_not_for_a_lock() -> None:
    for limit, ended in ((0.0, False), (50.0, False), (40.0, True), (1.0, True)):
        samples = still(41)
        assert is_over(samples[0], samples[-1], limit) is ended
        locked = still(41, lock_owner="process 9")
        assert not is_over(locked[0], locked[-1], limit)


# --- a worker that hangs --------------------------------------------------------------------------------------


@pytest.fixture
def hang(spare: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Makes "spare" the active engine, with an `exp` that does as the code says, and nothing waits long.

    What the user is told goes to the list, and then to `then`.
    """

    def make(exp: str, then: Callable[[int], object] = lambda pid: None) -> list[str]:
        code = f"import time, subprocess, sys\nplace = {str(tmp_path)!r}\n{exp}\n"
        code += 'importlib.import_module("kernelk.backends.numpy.backend").OPS["exp"] = exp\n'
        monkeypatch.setattr(worker_host, "_BOOT", worker_host._BOOT.replace(LAST, code + LAST))
        monkeypatch.setattr(stuck, "REPORTED_AFTER", {"stopped": 1.0, "locked": 1.0, "still": 2.0})
        lines: list[str] = []
        kernelk.set_backend(spare)
        host: Any = current().host()

        def notify(line: str) -> None:
            lines.append(line)
            then(host.pid)

        host._notify = notify
        return lines

    return make


SLEEPS = "def exp(instruction, x):\n    time.sleep(1e6)"
COMPUTES = "def exp(instruction, x):\n    return x + 1"


def test_a_stopped_worker_is_named_and_goes_on(hang: Any) -> None:
    lines = hang(COMPUTES, lambda pid: os.kill(pid, signal.SIGCONT))
    pid = current().host().pid
    v = K.variable([1.0])
    call = K.function([], [K.exp(v)], [K.update_add(v, 1.0)])
    assert call([])[0].tolist() == [2.0]
    os.kill(pid, signal.SIGSTOP)
    assert call([])[0].tolist() == [3.0]
    (line,) = lines
    assert f"Spare's worker (process {pid}) has been stopped since " in line
    assert f"Ctrl-C ends it, and no variable is lost; `kill -CONT {pid}` resumes it" in line
    assert K.get_value(v).tolist() == [3.0]
    assert current().host().pid == pid


def test_one_that_makes_no_progress_is_named_once_and_ctrl_c_ends_it(hang: Any) -> None:
    lines = hang(SLEEPS, lambda pid: os.kill(os.getpid(), signal.SIGINT))
    pid = current().host().pid
    v = K.variable([1.0])
    with pytest.raises(KeyboardInterrupt):
        K.function([], [K.exp(v)], [K.update_add(v, 1.0)])([])
    (line,) = lines
    assert f"Spare's worker (process {pid}) has made no progress since " in line
    assert "none of its processes is computing, and no device is busy; Ctrl-C ends it, and no variable is lost" in line
    assert wait_until(lambda: not alive(pid))
    assert K.get_value(v).tolist() == [1.0]


def test_a_child_that_computes_is_progress(hang: Any) -> None:
    """As a compiler's: its parent only waits for it, three times as long as one that stands still may."""
    code = "import time\nend = time.time() + 6\nwhile time.time() < end: pass"
    lines = hang(
        f"def exp(instruction, x):\n    subprocess.run([sys.executable, '-c', {code!r}], check=True)\n    return x"
    )
    assert K.eval(K.exp(K.variable([1.0]))).tolist() == [1.0]
    assert lines == []


def test_where_nobody_watches_it_is_ended(hang: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hang("def exp(instruction, x):\n    if x[0] > 1:\n        time.sleep(1e6)\n    return x + 1")
    monkeypatch.setattr(config.LIMITS, "stuck_seconds", 1.0)
    pid = current().host().pid
    v = K.variable([0.0])
    call = K.function([], [K.exp(v)], [K.update_add(v, 1.0)])
    assert [call([])[0].tolist() for _ in range(2)] == [[1.0], [2.0]]
    words = (
        r"Spare's worker made no progress for \d+ s and was ended \(%config KernelK.stuck_seconds\): that call did not "
        r"happen, all earlier ones are kept; next: run the cell again, which restarts the worker"
    )
    with pytest.raises(EngineError, match=words) as caught:
        call([])
    assert "\n" not in str(caught.value)
    assert wait_until(lambda: not alive(pid))
    assert K.get_value(v).tolist() == [2.0]
    K.set_value(v, [0.5])
    assert call([])[0].tolist() == [1.5]


def test_one_that_takes_no_more_is_ended_too(hang: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that is larger than what a socket holds, sent to a worker that is stopped."""
    hang(COMPUTES)
    v = K.variable([0.0])
    K.eval(v + 1.0)
    monkeypatch.setattr(config.LIMITS, "stuck_seconds", 1.0)
    os.kill(current().host().pid, signal.SIGSTOP)
    y = v
    for i in range(4000):
        y = y + float(i)
    with pytest.raises(EngineError, match=r"was stopped for \d+ s and was ended"):
        K.eval(y)
    assert K.eval(y).tolist() == [sum(range(4000))]


def test_one_that_hangs_as_it_starts_is_ended_too(spare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        hanging = f"import time\ntime.sleep(1e6)\n{LAST}"
        patch.setattr(worker_host, "_BOOT", worker_host._BOOT.replace(LAST, hanging))
        patch.setattr(config.LIMITS, "stuck_seconds", 1.0)
        with pytest.raises(
            EngineError, match=r"Spare's worker made no progress .* nothing is lost; next: run the cell"
        ):
            kernelk.set_backend(spare)
    assert K.backend() == "numpy"
    assert kernelk.set_backend(spare).target == spare


def test_a_default_for_connections_is_not_meant_for_the_workers(hang: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    socket.setdefaulttimeout(0.2)
    try:
        hang("def exp(instruction, x):\n    time.sleep(1.5)\n    return x + 1")
    finally:
        socket.setdefaulttimeout(None)
    assert K.eval(K.exp(K.variable([1.0]))).tolist() == [2.0]


# --- the lock of a compile cache ------------------------------------------------------------------------------


def test_who_waits_for_a_lock_is_told_whose_and_is_not_ended(
    hang: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    register(monkeypatch, Engine("spare", "Spare", "numpy", "NumpyBackend", compiles_c=True, imports="numpy"))
    lock = tmp_path / "kernelk/spare/numpy-1/compiledir_1/lock_dir/lock"
    lock.parent.mkdir(parents=True)
    host = socket.gethostname().replace("_", "-")
    lock.write_text(f"{os.getpid()}_123456_{host}\n")
    monkeypatch.setattr(config.LIMITS, "stuck_seconds", 1.0)
    lines = hang(
        f"def exp(instruction, x):\n    while os.path.exists({str(lock)!r}):\n        time.sleep(0.05)\n    return x",
        lambda pid: lock.unlink(),
    )
    assert K.eval(K.exp(K.variable([1.0]))).tolist() == [1.0]
    (line,) = lines
    assert f"for the lock of its compile cache, which process {os.getpid()} holds; Ctrl-C ends it" in line


def test_whose_a_lock_is(tmp_path: Path) -> None:
    lock = tmp_path / "a/b/lock_dir/lock"
    assert worker_samples.lock_owner(tmp_path, set()) == ""
    lock.parent.mkdir(parents=True)
    assert worker_samples.lock_owner(tmp_path, set()) == ""
    here = socket.gethostname().replace("_", "-")
    gone = subprocess.Popen(["true"])
    gone.wait()
    for text, group, wanted in (
        (f"{os.getpid()}_1_{here}", set(), f"process {os.getpid()}"),
        (f"{os.getpid()}_1_{here}", {os.getpid()}, ""),
        (f"{gone.pid}_1_{here}", set(), ""),
        ("12_1_elsewhere", set(), "process 12 on elsewhere"),
        ("nonsense", set(), ""),
        ("", set(), ""),
    ):
        lock.write_text(text)
        assert worker_samples.lock_owner(tmp_path, group) == wanted


REAL_LOCK = """
import os, socket, pathlib, kernelk
from kernelk import backend as K, config
config.LIMITS.build_beside = False
from kernelk.session.current import current
kernelk.set_backend("theano", compiler=True)
v = K.variable([0.5])
K.eval(K.tanh(v) + 1.0)
(folder,) = pathlib.Path(os.environ["XDG_CACHE_HOME"]).glob("kernelk/theano/*/compiledir*")
(folder / "lock_dir").mkdir()
lock = folder / "lock_dir" / "lock"
lock.write_text(f"{os.getpid()}_1234567890_{socket.gethostname().replace('_', '-')}\\n")
lines = []
def notify(line):
    lines.append(line)
    lock.unlink()
    (folder / "lock_dir").rmdir()
current().host()._notify = notify
result = [K.eval(K.exp(v) * K.sin(v)).tolist(), lines, os.getpid()]
"""


@pytest.mark.soak
@pytest.mark.compiled_theano
def test_theanos_own_lock(tmp_path: Path) -> None:
    activate("theano")
    value, lines, pid = run_script(REAL_LOCK, XDG_CACHE_HOME=str(tmp_path), KERNELK_BACKEND="numpy")
    np.testing.assert_allclose(value, np.exp([0.5]) * np.sin([0.5]), rtol=1e-5)
    (line,) = lines
    assert "Theano's worker (process " in line
    assert f"for the lock of its compile cache, which process {pid} holds" in line


# --- devices, settings, lines ---------------------------------------------------------------------------------


class Devices:
    """Two devices as NVIDIA's library tells of them; `use` in percent, None where one can't be read."""

    def __init__(self, *use: int | None) -> None:
        self.use = use

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = len(self.use)
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:
        handle._obj.value = index.value + 1
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: ctypes.c_void_p, use: Any) -> int:
        found = self.use[(handle.value or 0) - 1]
        use._obj.gpu = found or 0
        return 3 if found is None else 0


def test_a_device_that_cannot_be_read_counts_as_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    for library, device, works in (
        (None, "cpu:0", False),
        (None, None, False),
        (None, "cuda:0", True),
        (None, "tpu:0", True),
        (Devices(0, 0), "cuda:0", False),
        (Devices(0, 0), None, False),
        (Devices(0, 40), "cuda:0", True),
        (Devices(0, 40), "cpu:0", False),
        (Devices(0, None), "cuda:0", True),
    ):
        monkeypatch.setattr(worker_samples, "nvml", lambda library=library: library)
        assert worker_samples.device_works(device) is works


def test_a_process_is_seen_as_it_is() -> None:
    code = "import subprocess, sys\nprint(1, flush=True)\nsubprocess.run(['sleep', '1000'])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    try:
        found = worker_samples.sample(process.pid, "cpu:0", None)
        assert found is not None
        assert wait_until(lambda: len(worker_samples.sample(process.pid, "cpu:0", None).cpu) == 2)  # type: ignore[union-attr]
        os.killpg(process.pid, signal.SIGSTOP)
        assert wait_until(lambda: worker_samples.sample(process.pid, "cpu:0", None).stopped)  # type: ignore[union-attr]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert worker_samples.sample(process.pid, "cpu:0", None) is None


def test_one_stopped_while_it_starts_a_program_is_seen_as_stopped(tmp_path: Path) -> None:
    """Between vfork and exec, the parent doesn't stop: it waits uninterruptibly for its child, which does."""
    opened = tmp_path / "opened before exec"
    os.mkfifo(opened)
    actions = f"[(os.POSIX_SPAWN_OPEN, 0, {str(opened)!r}, os.O_RDONLY, 0)]"
    code = f"import os\nos.posix_spawn({sys.executable!r}, ['python'], {{}}, file_actions={actions})"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)

    def seen() -> Sample:
        found = worker_samples.sample(process.pid, "cpu:0", None)
        assert found is not None
        return found

    try:
        assert wait_until(lambda: len(seen().cpu) == 2)
        os.killpg(process.pid, signal.SIGSTOP)
        assert wait_until(lambda: seen().stopped)
        assert not seen().runs
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_the_setting() -> None:
    # One that follows the session beside it, as the extension's own does.
    other = KernelK()
    other.follow()
    settings = KernelK()
    try:
        assert config.LIMITS.stuck_seconds == 0
        settings.stuck_seconds = 90.0
        assert config.LIMITS.stuck_seconds == 90
        with pytest.raises(Exception, match=r"KernelK\.stuck_seconds must be at least 0"):
            settings.stuck_seconds = -1.0
    finally:
        settings.detach()
        other.detach()
    assert config.LIMITS.stuck_seconds == 0


def test_a_line_that_counts_makes_room_for_one_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    line = progress.Progress(stream)
    line._move("Theano is compiling: 3 s")
    monkeypatch.setattr(progress, "_COUNTING", [line])
    progress.make_room()
    assert stream.getvalue().endswith("\r" + " " * 24 + "\r")
