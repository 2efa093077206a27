"""Tells machines apart, so that measurements on one of them take turns.

Two processes are on one machine if they run under the same boot of a system and have the same network address: a
container or a network namespace with its own counts as a machine, since whoever started it has given it its share of
the processors. `KERNELK_MACHINE`, in a process's environment, overrules this: the machine is the one of that name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
from filelock import FileLock, Timeout

from ..engines.machine import processor
from ..errors import EngineError

# Seconds between two looks whether a turn is still wanted.
_LOOK_EVERY = 0.2


class Machine(NamedTuple):
    """A machine: `key` is equal where two processes are on one, `name` is what its user knows."""

    key: str
    name: str
    processor: str
    python: str


def here() -> Machine:
    """The machine that this process runs on."""
    chosen = os.environ.get("KERNELK_MACHINE", "").strip()
    return Machine(chosen or _key(), chosen or socket.gethostname(), processor(), sys.executable)


def facts() -> dict[str, Any]:
    """What an engine on this machine can't know of it itself."""
    machine = here()
    return {
        "machine": machine.name,
        "machine_key": machine.key,
        "processor": machine.processor,
        "cores": os.cpu_count(),
    }


def _key() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.stat('/proc/self/ns/net').st_ino}"
    except OSError:
        # Elsewhere than on Linux, nothing shares a system with others.
        return f"{uuid.getnode():x} {socket.gethostname()}"


def folder() -> Path:
    """Where this user's processes see what others measure. Raises EngineError where it can't be made."""
    found = platformdirs.user_cache_path("kernelk") / "measuring"
    try:
        found.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(found, error) from error
    return found


def _unusable(path: Path, error: OSError) -> EngineError:
    return EngineError(
        f"measurements on {here().name} can't take turns: {path} can't be used ({error.strerror or error})",
        next_step="set XDG_CACHE_HOME there to a folder that can be written",
    )


@contextlib.contextmanager
def turn(look: Callable[[], None]) -> Iterator[None]:
    """Inside, no other process or thread of this user's on this machine is inside; `look` may end the wait by raising.

    Whoever ends in any way leaves it to the next one. Raises EngineError where there is no folder for it.
    """
    # The folder may be several machines'.
    path = folder() / f"{hashlib.sha256(here().key.encode()).hexdigest()[:16]}.lock"
    lock = FileLock(path, fallback_to_soft=False)
    try:
        while not lock.is_locked:
            look()
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=_LOOK_EVERY)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        yield
    finally:
        lock.release()
