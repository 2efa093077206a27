"""Raises an exception at the n-th use of the system by a call, as one of the user's signal handlers might."""

from __future__ import annotations

import itertools
import mmap
import os
import select
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Alarm(TimeoutError):
    """The exception that a timeout decorator raises in its signal handler."""


# As a handler may raise them, and as the system does where memory or descriptors run out.
RAISED: tuple[Callable[[], BaseException], ...] = (
    Alarm,
    KeyboardInterrupt,
    MemoryError,
    lambda: OSError(12, "Cannot allocate memory"),
    SystemExit,
)

KINDS = tuple(type(make()) for make in RAISED)

SOCKET = ("recv_into", "recv", "send", "sendall", "sendmsg")
PLACES = (*SOCKET, "poll", "mmap", "memfd_create", "ftruncate", "alive")


class Injector:
    """Counts the uses in the main thread; from the `at`-th of `place` on, for `times` uses of any place, each raises.

    `after`: once it has taken effect. `count` is of all uses, by place.
    """

    def __init__(
        self,
        place: str = "",
        at: int = 0,
        after: bool = False,
        raised: Callable[[], BaseException] = Alarm,
        times: int = 1,
    ) -> None:
        self.place, self.at, self.after, self.raised, self.times = place, at, after, raised, times
        self.count: Counter[str] = Counter()
        self.fired = 0
        self._inside = False

    def __str__(self) -> str:
        return f"{self.raised().__class__.__name__} {'after' if self.after else 'before'} {self.place} {self.at}"

    def _use(self, place: str, real: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        if self._inside or threading.current_thread() is not threading.main_thread():
            return real(*arguments, **named)
        self.count[place] += 1
        due = self.fired < self.times and (self.fired or (place == self.place and self.count[place] == self.at))
        if due and not self.after:
            self.fired += 1
            raise self.raised()
        self._inside = True
        try:
            result = real(*arguments, **named)
        finally:
            self._inside = False
        if due:
            self.fired += 1
            raise self.raised()
        return result

    @contextmanager
    def installed(self, monkeypatch: Any) -> Iterator[Injector]:
        """Inside, the uses are counted, and one of them raises."""
        use = self._use

        def method(place: str, real: Any) -> Any:
            return lambda self, *arguments: use(place, real, self, *arguments)

        def function(place: str, real: Any) -> Any:
            return lambda *arguments: use(place, real, *arguments)

        def received(real: Any, recv: Any) -> Any:
            def recv_into(self: Any, buffer: Any, nbytes: int = 0, flags: int = 0) -> Any:
                if flags & socket.MSG_DONTWAIT:
                    # How often somebody looks before there is something depends on the machine: that is no use.
                    recv(self, 1, flags | socket.MSG_PEEK)
                return use("recv_into", real, self, buffer, nbytes, flags)

            return recv_into

        class Poll:
            def __init__(self) -> None:
                self._poll = real_poll()
                self.register = self._poll.register

            def poll(self, *timeout: Any) -> Any:
                return use("poll", self._poll.poll, *timeout)

        real_poll = select.poll
        with monkeypatch.context() as patch:
            looking = received(socket.socket.recv_into, socket.socket.recv)
            for name in SOCKET:
                patch.setattr(socket.socket, name, method(name, getattr(socket.socket, name)), raising=False)
            patch.setattr(socket.socket, "recv_into", looking)
            patch.setattr(select, "poll", Poll)
            patch.setattr(mmap, "mmap", function("mmap", mmap.mmap))
            patch.setattr(os, "memfd_create", function("memfd_create", os.memfd_create))
            patch.setattr(os, "ftruncate", function("ftruncate", os.ftruncate))
            patch.setattr(subprocess.Popen, "poll", method("alive", subprocess.Popen.poll))
            yield self


def everywhere(count: Counter[str]) -> Iterator[Injector]:
    """One for each use that was counted, before it and after it; what is raised takes turns."""
    raised = itertools.cycle(RAISED)
    for place in PLACES:
        for at in range(1, count[place] + 1):
            for after in (False, True):
                yield Injector(place, at, after, next(raised))
