"""A worker's process is waited for whatever a signal handler raises, at any instruction of the waiting."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import Any

import pytest

from kernelk.child_process import ChildProcess


class Alarm(Exception):
    """What a signal handler raises."""


def run(source: str) -> ChildProcess[bytes]:
    return ChildProcess([sys.executable, "-I", "-S", "-c", source], stdin=subprocess.PIPE)


def raise_at(instruction: int, process: ChildProcess[bytes]) -> bool:
    """Polls, then waits 10 ms, with an exception at the n-th instruction; whether there were so many."""
    left = instruction

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if not frame.f_code.co_filename.endswith(("subprocess.py", "child_process.py")):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            left -= 1
            if left == 0:
                raise Alarm
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        process.poll()
        process.wait(timeout=0.001)
    except (Alarm, subprocess.TimeoutExpired):
        pass
    finally:
        sys.settrace(before)
    return left <= 0


@pytest.mark.parametrize("runs", [True, False], ids=["while it runs", "as it ends"])
def test_an_exception_at_each_instruction_keeps_no_later_wait_from_its_end(runs: bool) -> None:
    instruction = 0
    reached = True
    while reached:
        instruction += 1
        process = run("input()")
        if not runs:
            process.kill()
        reached = raise_at(instruction, process)
        process.kill()
        # A status that was told to the wait that was cut short is gone, as with `Popen`.
        assert process.wait(timeout=30) in (-signal.SIGKILL, 0)
        assert process.poll() == process.returncode
        assert process.stdin is not None
        process.stdin.close()
    assert instruction > 20


def test_the_status_is_the_processes_own() -> None:
    assert run("raise SystemExit(3)").wait() == 3
    process = run("input()")
    assert process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.01)
    process.terminate()
    assert process.wait() == process.poll() == -signal.SIGTERM


def test_two_threads_wait_for_it() -> None:
    process = run("input()")
    codes: list[int] = []
    threads = [threading.Thread(target=lambda: codes.append(process.wait())) for _ in range(2)]
    for thread in threads:
        thread.start()
    process.kill()
    for thread in threads:
        thread.join(30)
    assert len(codes) == 2
    assert process.returncode == -signal.SIGKILL
