"""Processes: scripts that test this kernelk in a new interpreter, what others do, and an interrupt of this one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kernelk

# So long may another process take, on a machine however busy: it ends only what hangs.
PATIENCE = 1200

PROJECT = Path(kernelk.__file__).parent.parent
TESTS = Path(__file__).parent.parent


def environment(**settings: str | None) -> dict[str, str]:
    """The environment of a process that tests this kernelk; None takes a variable away."""
    chosen: dict[str, str | None] = {**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT), str(TESTS)])}
    chosen.update(settings)
    return {name: value for name, value in chosen.items() if value is not None}


def run_script(code: str, **settings: str | None) -> Any:
    """Runs code in a new interpreter; what it leaves in `result` comes back by way of JSON."""
    script = f"{code}\nimport json as _json, sys as _sys\n_sys.stdout.flush()\nprint('\\n' + _json.dumps(result))"
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment(**settings), capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def wait_until(predicate: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Waits for something that other processes do; False if it hasn't happened after all that time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if predicate():
            return True
        time.sleep(0.02)
    return predicate()


def alive(pid: int) -> bool:
    """Whether any thread of the process still runs: a process is dying while its first thread is a zombie already."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return False
    for task in tasks:
        try:
            stat = Path(f"/proc/{pid}/task/{task}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if stat.rpartition(")")[2].split()[0] not in "ZX":
            return True
    return False


def children(pid: int) -> list[int]:
    """The processes that a process has started and that it hasn't seen end."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            # A thread may end in between.
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return found


def interrupt() -> None:
    """The notebook's interrupt: a real SIGINT to this process."""
    os.kill(os.getpid(), signal.SIGINT)
