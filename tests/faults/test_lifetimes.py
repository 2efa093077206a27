"""Workers end with their kernel whatever C code they are in, with all that they have started, and leave nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.engines import activate
from helpers.processes import alive, environment, wait_until

LIGHT = """
import json, os, sys, threading, time
import numpy as np
import kernelk
from kernelk import backend as K
from kernelk.session.current import current
from helpers.light import SPIN, light
def tell(*what):
    print(json.dumps([current().host().pid, *what]), flush=True)
def helper():
    text = kernelk.log("spare").text
    return int(text.split(" in C")[0].split()[-1]) if "in C" in text else None
def when_in_c():
    while helper() is None:
        time.sleep(0.01)
    tell(helper())
"""

SPINNING = """
kernelk.set_backend(light(SPIN))
threading.Thread(target=when_in_c, daemon=True).start()
K.eval(K.exp(K.variable([1.0])))
"""

# The worker was started by a thread that has ended, as the panel starts engines.
BY_A_THREAD = """
starter = threading.Thread(target=lambda: kernelk.set_backend(light()))
starter.start()
starter.join()
time.sleep(1.0)
pid = current().host().pid
values = [K.eval(K.exp(K.variable([0.0]))).tolist(), current().host().pid == pid]
tell(values)
time.sleep(1000)
"""

# A child of the kernel has the kernel's end of the socket, too, and lives on.
BESIDE_A_CHILD = """
import multiprocessing
kernelk.set_backend(light(SPIN))
child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,))
child.start()
tell(child.pid)
time.sleep(1000)
"""

ENDS = """
kernelk.set_backend(light(SPIN))
threading.Thread(target=lambda: K.eval(K.exp(K.variable([1.0]))), daemon=True).start()
when_in_c()
sys.stdin.read()
"""


@contextlib.contextmanager
def kernel(code: str, folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """A kernel that runs code, with `folder` for its temporary files, and the line of JSON that it tells first."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        env=environment(TMPDIR=str(folder), KERNELK_BACKEND="numpy"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    told: list[Any] = []
    try:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        yield process, told
    finally:
        process.kill()
        for pid in told:
            if isinstance(pid, int):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        # A child of it that lives on would keep its output open.
        process.communicate()


def left(folder: Path) -> list[str]:
    """The content of a folder for temporary files, except for the tests' own settings."""
    return [name for name in os.listdir(folder) if not name.startswith("kernelk-tests-")]


def all_gone(folder: Path, *pids: int) -> bool:
    return wait_until(lambda: not any(alive(pid) for pid in pids) and not left(folder))


def test_in_c_code_a_worker_ends_with_its_kernel(tmp_path: Path) -> None:
    """The code keeps Python's lock, so that no thread of the worker's could end it; its own children end too."""
    with kernel(LIGHT + SPINNING, tmp_path) as (process, (worker, helper)):
        assert alive(worker)
        assert alive(helper)
        assert left(tmp_path)
        process.kill()
        process.wait()
        assert all_gone(tmp_path, worker, helper)


@pytest.mark.parametrize("status", [3, None])
def test_a_kernel_that_ends_by_itself_ends_what_computes(tmp_path: Path, status: int | None) -> None:
    """By os._exit, which runs no handlers, and as programs end."""
    code = LIGHT + ENDS + (f"os._exit({status})" if status else "")
    with kernel(code, tmp_path) as (process, (worker, helper)):
        assert alive(worker)
        process.communicate()
        assert process.returncode == (status or 0)
        assert all_gone(tmp_path, worker, helper)


def test_a_stopped_worker_ends_with_its_kernel(tmp_path: Path) -> None:
    with kernel(LIGHT + SPINNING, tmp_path) as (process, (worker, helper)):
        os.kill(worker, signal.SIGSTOP)
        os.kill(helper, signal.SIGSTOP)
        process.kill()
        process.wait()
        assert all_gone(tmp_path, worker, helper)


def test_where_the_system_tells_of_no_ends_they_are_looked_for(tmp_path: Path) -> None:
    """As on macOS, and on a Linux that is older than the call."""
    poll = """
import kernelk.engines.worker_host as hosts
hosts._BOOT = hosts._BOOT.replace("importlib.import_module(", '''
import importlib as real
real.import_module("kernelk.backends.serving.watcher")._pidfd = lambda pid: None
importlib.import_module(''', 1)
"""
    with kernel(LIGHT + poll + SPINNING, tmp_path) as (process, (worker, helper)):
        process.kill()
        process.wait()
        assert all_gone(tmp_path, worker, helper)


def test_a_worker_outlives_the_thread_that_started_it_and_not_the_kernel(tmp_path: Path) -> None:
    with kernel(LIGHT + BY_A_THREAD, tmp_path) as (process, (worker, values)):
        assert values == [[1.0], True]
        assert alive(worker)
        process.kill()
        process.wait()
        assert all_gone(tmp_path, worker)


def test_a_forked_child_keeps_no_worker_of_a_dead_kernel_alive(tmp_path: Path) -> None:
    with kernel(LIGHT + BESIDE_A_CHILD, tmp_path) as (process, (worker, child)):
        process.kill()
        process.wait()
        assert wait_until(lambda: not alive(worker))
        assert alive(child)


def test_what_a_dead_worker_has_started_ends_too(tmp_path: Path) -> None:
    """While its kernel lives on: nobody waits for it any more."""
    with kernel(LIGHT + SPINNING, tmp_path) as (_, (worker, helper)):
        os.kill(worker, signal.SIGKILL)
        assert wait_until(lambda: not alive(worker) and not alive(helper))


def test_a_worker_whose_kernel_is_gone_before_it_runs_ends(tmp_path: Path) -> None:
    """Its number may be another process's by then: here it is one that lives."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    code = (
        "import sys\nfrom kernelk.backends.serving.watcher import watch\n"
        f"watch({os.getppid()}, {str(scratch)!r})\nprint('served')"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")
    assert not scratch.exists()


WATCHERS = """
import glob
kernelk.set_backend(light())
K.eval(K.variable([1.0]) + 1.0)
def watchers():
    found = []
    for place in glob.glob("/proc/[0-9]*"):
        try:
            command = open(place + "/cmdline").read()
            if open(place + "/comm").read() == "kernelk-watcher\\n" and current().host()._scratch in command:
                found.append(int(place.rpartition("/")[2]))
        except OSError:
            pass
    return found
(watcher,) = watchers()
held = [os.readlink(f"/proc/{watcher}/fd/{number}") for number in os.listdir(f"/proc/{watcher}/fd")]
children = open(f"/proc/{current().host().pid}/task/{current().host().pid}/children").read()
memory = sum(int(line.split()[1]) for line in open(f"/proc/{watcher}/smaps_rollup") if line.startswith("Private"))
tell(watcher, held, children, memory)
sys.stdin.read()
kernelk.stop_backend("spare")
"""


def test_the_watcher_is_small_and_holds_nothing(tmp_path: Path) -> None:
    with kernel(LIGHT + WATCHERS, tmp_path) as (process, (worker, watcher, held, children, memory)):
        assert sorted(held) == ["/dev/null"] * 3 + ["anon_inode:[pidfd]"] * 2
        # Engines wait for all children of their process.
        assert children == ""
        assert os.getsid(watcher) != os.getsid(worker)
        assert memory < 20_000  # kB; 4,000 under Python 3.11
        process.communicate()
        assert wait_until(lambda: not alive(watcher))


ANY = """
import time
from helpers.light import light
import kernelk
from kernelk import backend as K
name = light()
print("begins", flush=True)
while True:
    kernelk.set_backend(name)
    K.eval(K.exp(K.variable([1.0])))
    kernelk.stop_backend(name)
    kernelk.set_backend("numpy")
"""


def processes_of(folder: Path) -> list[int]:
    """The processes whose command names this folder: workers and watchers of kernels that have it for their files."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if os.fsencode(folder) in (place / "cmdline").read_bytes():
                found.append(int(place.name))
    return found


def kill_at_moments(folder: Path, count: int) -> None:
    random = np.random.RandomState(3)
    for _ in range(count):
        process = subprocess.Popen(
            [sys.executable, "-c", ANY],
            env=environment(TMPDIR=str(folder), KERNELK_BACKEND="numpy"),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begins\n"
        time.sleep(float(random.rand()))
        process.kill()
        process.communicate()
        assert wait_until(lambda: not processes_of(folder)), processes_of(folder)
    # One that is killed in the moment between making the folder and starting the worker leaves it, empty.
    assert [name for name in left(folder) if os.listdir(folder / name)] == []


def test_a_kernel_killed_at_some_moments_leaves_no_process(tmp_path: Path) -> None:
    """As its worker starts or ends, too."""
    kill_at_moments(tmp_path, 3)


@pytest.mark.soak
def test_a_kernel_killed_at_many_moments_leaves_no_process(tmp_path: Path) -> None:
    kill_at_moments(tmp_path, 60)


# --- real engines ---------------------------------------------------------------------------------------------

REAL = """
engine, kind, size = sys.argv[1], sys.argv[2], int(sys.argv[3])
kernelk.set_backend(engine, **({"compiler": True} if engine == "theano" else {}))
x = K.placeholder((None,)) if kind == "elementwise" else K.placeholder((None, None))
y = x
for _ in range(25 if kind == "elementwise" else 400):
    y = K.tanh(y) + x if kind == "elementwise" else K.tanh(K.dot(y, x))
f = K.function([x], [K.sum(y)])
f([np.ones(10) if kind == "elementwise" else np.eye(10)])
data = np.ones(size) if kind == "elementwise" else np.eye(size)
pid = current().host().pid
def ticks():
    fields = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])
begin = ticks()
def computes():
    while ticks() < begin + 100:
        time.sleep(0.01)
    tell()
threading.Thread(target=computes, daemon=True).start()
f([data])
"""

LONG = [
    ("theano", "elementwise", 30_000_000),
    ("cntk", "products", 1500),
    ("tensorflow", "products", 2000),
    ("jax", "products", 2000),
    ("torch", "products", 2000),
]


@pytest.mark.compiled_theano
@pytest.mark.parametrize(
    ("engine", "kind", "size"),
    [case if case[0] == "theano" else pytest.param(*case, marks=pytest.mark.soak) for case in LONG],
)
def test_a_real_engine_in_a_long_call_ends_with_its_kernel(tmp_path: Path, engine: str, kind: str, size: int) -> None:
    activate(engine)
    with kernel(LIGHT + REAL, tmp_path, engine, kind, str(size)) as (process, (worker,)):
        assert alive(worker)
        process.kill()
        process.wait()
        assert all_gone(tmp_path, worker)


COMPILING = """
from helpers.processes import children
from kernelk import config
config.LIMITS.build_beside = sys.argv[1] == "beside"
kernelk.set_backend("theano", compiler=True)
pid = current().host().pid
def compiles():
    while not (found := children(pid)):
        time.sleep(0.005)
    tell(*found)
threading.Thread(target=compiles, daemon=True).start()
x = K.placeholder((None, 3))
K.function([x], [K.sum(K.tanh(x) * K.exp(x))])([np.ones((2, 3))])
threading.Event().wait()  # where it is built beside, the call has been answered
"""


@pytest.mark.compiled_theano
@pytest.mark.parametrize("where", ["within", "beside"])
def test_the_compiler_ends_with_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """The compiler that a call waits for, and the processes that build beside the calls."""
    activate("theano")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    with kernel(LIGHT + COMPILING, temporary, where) as (process, (worker, *compilers)):
        process.kill()
        process.wait()
        assert all_gone(temporary, worker, *compilers)
