"""Explains to the user why a worker ended while it was starting, and what to do about it."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

from ..display.tables import size
from ..errors import EngineError
from .descriptors import Engine

# The next step after a signal from outside.
RUN_AGAIN = "run it again"

# Signals of a crash in the engine's own code; all others come from outside.
_CRASHES = {"SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGSEGV", "SIGSYS", "SIGTRAP"}


def signal_name(code: int) -> str:
    """Returns the name of the signal behind a process's return code; "" if no signal ended it."""
    if code >= 0:
        return ""
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def failed_start(engine: Engine, code: int, words: str) -> EngineError:
    """The error for a worker that ended with this return code; `words`: its last output, in brackets."""
    name, problem = signal_name(code), f"{engine.title}'s worker ended while starting"
    if not name:
        return EngineError(f"{problem}{words}", next_step=engine.repair(words))
    problem += f": it was killed by {name}{words}"
    if name in _CRASHES:
        return EngineError(problem, next_step=f"{engine.repair(words)}, or {RUN_AGAIN}")
    free = free_memory() if name == "SIGKILL" else None
    if free is None:
        return EngineError(problem, next_step=RUN_AGAIN)
    # Nobody says who sent it; where memory is short, it was the system.
    return EngineError(
        f"{problem}, as the system does where memory runs out: {size(free)} are free now", next_step=RUN_AGAIN
    )


def free_memory() -> int | None:
    """The bytes of memory that processes can still have here, by the machine and by the control group; None if unknown.

    A version 1 group has it in other files, which are read too.
    """
    found = []
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds == "":
                group, names = Path("/sys/fs/cgroup") / path.lstrip("/"), ("memory.max", "memory.current")
            elif "memory" in kinds.split(","):
                group = Path("/sys/fs/cgroup/memory") / path.lstrip("/")
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            else:
                continue
            # "max" is no number, and the root has no such files.
            with contextlib.suppress(OSError, ValueError):
                most, used = (int((group / name).read_text()) for name in names)
                found.append(max(most - used, 0))
    return min(found, default=None)
