"""Checks a worker once a second while the kernel waits for it; reports one that makes no progress, or ends it."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .. import config
from ..display import progress
from .stuck import REPORTED_AFTER, Sample, is_over, is_reported, standing_since
from .worker_samples import sample

# Seconds between two checks of a worker.
EVERY = 1.0

_PROBLEMS = {
    "stopped": "has been stopped since {since}",
    "locked": "has been waiting since {since} for the lock of its compile cache, which {owner} holds",
    "still": "has made no progress since {since}: none of its processes is computing, and no device is busy",
}


class Worker(NamedTuple):
    """The worker that the kernel waits for: see `engines.worker_samples`."""

    title: str
    pid: int
    device: str | None
    cache_folder: Path | None


def in_steps(connection: socket.socket) -> None:
    """Makes a blocking socket raise BlockingIOError after EVERY seconds; a shorter wait costs nothing extra."""
    step = struct.pack("ll", int(EVERY), int(EVERY % 1 * 1e6))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, step)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, step)


class Wait:
    """One wait for a worker, called every EVERY seconds while it lasts.

    `notify(text)` shows the user a line, once for each time that the worker stops making progress; `end(words)`, which
    raises, is called to end it, with the reason.
    """

    def __init__(
        self, worker: Worker, notify: Callable[[str], None], end: Callable[[str], None], replaceable: bool = False
    ) -> None:
        """`replaceable`: another worker can do the same, so this one is ended where the user would be told of it."""
        self._worker = worker
        self._replaceable = replaceable
        self._notify = notify
        self._end = end
        self._since: Sample | None = None
        self._reported: Sample | None = None

    def __call__(self) -> None:
        pid = self._worker.pid
        now = sample(pid, self._worker.device, self._worker.cache_folder)
        if now is None:
            return
        since = self._since = now if self._since is None else standing_since(self._since, now)
        limit = config.LIMITS.stuck_seconds
        if self._replaceable:
            limit = min(limit or REPORTED_AFTER[now.kind], REPORTED_AFTER[now.kind])
        if is_over(since, now, limit):
            stood = "was stopped" if now.stopped else "made no progress"
            self._end(f"{stood} for {now.at - since.at:.0f} s")
        elif is_reported(since, now) and self._reported is not since:
            self._reported = since
            clock = time.strftime("%H:%M:%S", time.localtime(time.time() - (now.at - since.at)))
            problem = _PROBLEMS[now.kind].format(since=clock, owner=now.lock_owner)
            progress.make_room()
            self._notify(f"kernelk: {self._worker.title}'s worker (process {pid}) {problem}; {self._way_out(now)}")

    def _way_out(self, now: Sample) -> str:
        pid = self._worker.pid
        # Ctrl-C reaches the main thread alone.
        main = threading.current_thread() is threading.main_thread()
        ends = f"{'Ctrl-C' if main else f'`kill -9 {pid}`'} ends it, and no variable is lost"
        return f"{ends}; `kill -CONT {pid}` resumes it" if now.stopped else ends
