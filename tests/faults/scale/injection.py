"""The kinds of fault that are injected into a step, each at a moment or at a call that the seed decides."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from kernelk.backends.serving.wire import Wire

from .world import worker_pid


class InjectedError(Exception):
    """The exception of a raising signal handler or a failing system call."""


# Threads that may still be about to send what they have for the block.
SENDING: list[threading.Thread] = []

KINDS = ["kill", "interrupt", "two_interrupts", "alarm", "stop", "wire", "memory", "none"]

_CALLS = ("recv_into", "recvmsg_into", "recvmsg", "send", "sendall", "sendmsg")


class _Counting:
    """A socket whose n-th call raises, before it has done anything or after; set by `wire`."""

    left: int | None = None
    after = False

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._connection, name)
        if name not in _CALLS:
            return found

        def call(*arguments: Any) -> Any:
            if _Counting.left is None:
                return found(*arguments)
            _Counting.left -= 1
            strikes = _Counting.left == 0
            if strikes:
                _Counting.left = None
                if not _Counting.after:
                    raise InjectedError(name)
            result = found(*arguments)
            if strikes:
                raise InjectedError(name)
            return result

        return call


def install() -> None:
    """Puts every kernel's end of a wire that is made from now on behind a counting socket."""
    plain = Wire.__init__

    def counting(self: Wire, connection: Any, *arguments: Any, **options: Any) -> None:
        plain(self, _Counting(connection), *arguments, **options)

    Wire.__init__ = counting  # type: ignore[method-assign]


@contextlib.contextmanager
def _later(seconds: float, act: Callable[[], None]) -> Iterator[None]:
    timer = threading.Timer(seconds, act)
    timer.daemon = True
    SENDING.append(timer)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _signal(pid: int | None, number: int) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


@contextlib.contextmanager
def injected(kind: str, seed: int, span: float) -> Iterator[None]:
    """A fault of this kind within the block, at a moment of its `span` (seconds) or at a call that the seed decides."""
    rng = random.Random(seed)
    moment = rng.random() * span
    if kind == "kill":
        if rng.random() < 0.3:
            _signal(worker_pid(), signal.SIGKILL)
            yield
        else:
            with _later(moment, lambda: _signal(worker_pid(), signal.SIGKILL)):
                yield
    elif kind in ("interrupt", "two_interrupts"):

        def interrupt() -> None:
            for _ in range(1 + (kind == "two_interrupts")):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)

        with _later(moment, interrupt):
            yield
    elif kind == "alarm":

        def strike(number: int, frame: Any) -> None:
            raise InjectedError("alarm")

        before = signal.signal(signal.SIGALRM, strike)
        signal.setitimer(signal.ITIMER_REAL, max(moment, 1e-6))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
    elif kind == "stop":

        def pause() -> None:
            # The same one both times: in between, another engine may have become the active one.
            pid = worker_pid()
            _signal(pid, signal.SIGSTOP)
            time.sleep(0.05)
            _signal(pid, signal.SIGCONT)

        thread = threading.Timer(moment, pause)
        thread.start()
        try:
            yield
        finally:
            thread.join()
    elif kind == "wire":
        _Counting.left, _Counting.after = rng.randrange(1, 9), rng.random() < 0.5
        try:
            yield
        finally:
            _Counting.left = None
    elif kind == "memory":
        plain, left = mmap.mmap, [rng.randrange(1, 3)]

        class Refusing(mmap.mmap):
            def __new__(cls, *arguments: Any, **options: Any) -> Any:
                left[0] -= 1
                if left[0] == 0:
                    raise OSError(12, "Cannot allocate memory")
                return plain(*arguments, **options)

        mmap.mmap = Refusing  # type: ignore[misc]
        try:
            yield
        finally:
            mmap.mmap = plain  # type: ignore[misc]
    else:
        yield
