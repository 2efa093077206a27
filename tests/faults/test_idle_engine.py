"""An engine that hangs holds up nobody who works on another one, and costs no variable where it is left or ended."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.processes import alive, environment, wait_until

import kernelk
from kernelk import backend as K
from kernelk.session.current import current


def mapped(pid: int) -> int:
    """The number of kernelk's segments that a process has mapped."""
    return len(re.findall(r"memfd:kernelk", Path(f"/proc/{pid}/maps").read_text()))


@pytest.fixture
def stopped(spare: str) -> Iterator[int]:
    """A worker that has six large variables, which "big" names, and is stopped; numpy is active."""
    kernelk.set_backend(spare)
    pid = current().host().pid
    assert pid is not None
    yield pid
    if alive(pid):
        os.kill(pid, signal.SIGCONT)


def hold(pid: int, *values: K.Variable) -> None:  # type: ignore[name-defined]
    """Lets the worker have these variables' values, and stops it."""
    for value in values:
        K.eval(K.sum(value))
    os.kill(pid, signal.SIGSTOP)


def test_work_goes_on_elsewhere_once_its_variables_are_dropped(stopped: int) -> None:
    kept, gone = K.variable([1.0, 2.0]), [K.variable(np.ones(1 << 22)) for _ in range(4)]
    hold(stopped, kept, *gone)
    kernelk.set_backend("numpy")
    before, theirs = mapped(os.getpid()), mapped(stopped)
    del gone
    gc.collect()
    # A new variable, a call, a cleared session: each of them lets the engines forget.
    other = K.variable([3.0, 4.0])
    assert K.eval(kept + other).tolist() == [4.0, 6.0]
    assert mapped(os.getpid()) < before
    for i in range(20):
        more = K.variable(np.full(1 << 18, i))
        assert K.eval(more[0]) == i
        del more
    # What it has goes at its next request.
    os.kill(stopped, signal.SIGCONT)
    kernelk.set_backend("spare")
    assert K.eval(kept * other).tolist() == [3.0, 8.0]
    assert mapped(stopped) < theirs
    os.kill(stopped, signal.SIGSTOP)
    kernelk.set_backend("numpy")
    K.clear_session()
    assert K.eval(K.variable([5.0]) + 1.0).tolist() == [6.0]


def test_one_that_hangs_is_left_looked_into_and_ended(stopped: int) -> None:
    """The active one."""
    v, gone = K.variable([1.0, 2.0]), K.variable(np.ones(1 << 20))
    call = K.function([], [v * 2.0], [K.update_add(v, 1.0)])
    call([])
    hold(stopped, gone)
    del gone
    gc.collect()
    assert K.get_value(v).tolist() == [2.0, 3.0]
    K.set_value(v, [5.0, 6.0])
    assert K.get_value(K.variable([9.0])).tolist() == [9.0]
    assert kernelk.set_backend("numpy").target == "numpy"
    assert call([])[0].tolist() == [10.0, 12.0]
    report = kernelk.stop_backend("spare")
    assert report.pid == stopped
    assert wait_until(lambda: not alive(stopped))
    kernelk.set_backend("spare")
    assert call([])[0].tolist() == [12.0, 14.0]
    assert K.get_value(v).tolist() == [7.0, 8.0]


ENDING = """
import os, signal, json
import kernelk
from kernelk import backend as K
from kernelk.session.current import current
from helpers.light import light
kernelk.set_backend(light())
K.eval(K.variable([1.0]) + 1.0)
os.kill(current().host().pid, signal.SIGSTOP)
print(json.dumps(current().host().pid), flush=True)
"""


def test_a_kernel_ends_although_its_worker_is_stopped(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING], env=environment(TMPDIR=str(tmp_path)), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert wait_until(lambda: not alive(int(done.stdout)))
    assert [name for name in os.listdir(tmp_path) if not name.startswith("kernelk-tests-")] == []
