"""Output of the engines' processes: shown in the cell whose call caused it, and kept up to a number of bytes."""

from __future__ import annotations

import builtins
import contextlib
import os
import select
import sys
import threading
import warnings
from collections import deque
from typing import Any

import numpy as np

from .. import config
from ..display import messages
from ..display.tables import size
from ..errors import joined
from ..source import PACKAGE
from ..twins import as_usable
from . import forks

# At most so much of one call's output is shown in a cell, and so many lines of a log.
SHOWN_BYTES = 10_000
SHOWN_LINES = 200

# A pipe holds less than this: after so many bytes, all output from before a reply has been read.
_MOST_IN_PIPE = 1 << 20
_CHUNK = 1 << 16


class WorkerLog:
    """The last bytes that one engine's workers wrote to standard output and error, including those that have ended.

    `total` counts all bytes ever written, so that it can serve as a mark: `since(mark)` is the output after it.
    """

    def __init__(self) -> None:
        self.total = 0
        self._held = 0
        self._pieces: deque[bytes] = deque()
        self._lock = threading.Lock()
        # The open pipes, each with a poll for data: a read that finds none would cost 10 us.
        self._pipes: dict[int, select.poll] = {}
        forks.tell(self)

    def forked(self) -> None:
        """In a forked child: output so far stays, and only the parent keeps reading more."""
        # The thread that held the old one isn't in this process.
        self._lock = threading.Lock()
        for pipe in self._pipes:
            with contextlib.suppress(OSError):
                os.close(pipe)
        self._pipes = {}

    def follow(self, pipe: int) -> None:
        """Reads from a non-blocking pipe until its last writer is gone, and closes it.

        A thread does it, so that a worker never waits for a reader, whatever the kernel is doing.
        """
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        with self._lock:
            self._pipes[pipe] = ready
        threading.Thread(target=self._read_on, args=[pipe], name="kernelk-log", daemon=True).start()

    def _read_on(self, pipe: int) -> None:
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while True:
            poll.poll()
            with self._lock:
                if not self._read(pipe):
                    del self._pipes[pipe]
                    os.close(pipe)
                    return

    def _read(self, pipe: int) -> bool:
        """Reads what the pipe holds; False at its end. Called with the lock held."""
        taken = 0
        while taken < _MOST_IN_PIPE:
            try:
                piece = os.read(pipe, _CHUNK)
            except BlockingIOError:
                return True
            if not piece:
                return False
            self._add(piece)
            taken += len(piece)
        return True

    def _add(self, piece: bytes) -> None:
        self.total += len(piece)
        self._held += len(piece)
        self._pieces.append(piece)
        while self._held - len(self._pieces[0]) >= config.LIMITS.log_bytes:
            self._held -= len(self._pieces.popleft())

    def add(self, line: str) -> None:
        """Adds a line of kernelk's own."""
        with self._lock:
            self._add(f"{line}\n".encode())

    def drain(self) -> int:
        """Reads everything written so far, and returns `total`."""
        # Under the lock: the thread may have read something that it hasn't entered yet.
        with self._lock:
            for pipe, ready in self._pipes.items():
                if ready.poll(0):
                    self._read(pipe)
            return self.total

    def since(self, mark: int) -> tuple[str, int]:
        """The output after a mark, as far as it is held, and the number of bytes that no longer are."""
        with self._lock:
            count = self.total - mark
            pieces: list[bytes] = []
            for piece in reversed(self._pieces):
                if count <= 0:
                    break
                pieces.append(piece[-count:])
                count -= len(pieces[-1])
            return b"".join(reversed(pieces)).decode("utf-8", "replace"), max(count, 0)


def last_words(text: str) -> str:
    """The most telling line of a process's last output, in brackets for an error message; "" if there is none."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fatal = [line for line in lines if line.startswith("Fatal Python error")]
    last = (fatal or lines)[-1:]
    return f" ({last[0][:200]})" if last else ""


def show(name: str, log: WorkerLog, mark: int) -> None:
    """Prints the output after a mark, in the cell that is running, unless the user wants quiet."""
    if messages.quiet():
        return
    text, lost = log.since(mark)
    data = text.encode()
    if len(data) > SHOWN_BYTES:
        lost += len(data) - SHOWN_BYTES
        text = data[-SHOWN_BYTES:].decode("utf-8", "ignore")
    if lost:
        before = f"... {size(lost)} of {name}'s earlier output not shown"
        text = joined(before, next_step=as_usable(f"%kbackend --log {name}")) + "\n" + text
    print(text, end="" if text.endswith("\n") else "\n", file=messages.stream(), flush=True)


def note(caught: list[list[Any]], log: WorkerLog) -> None:
    """Adds warnings of an engine's process to its log."""
    for names, text, file, line in caught:
        log.add(f"{file}:{line}: {names[0]}: {text}")


def warn_again(title: str, caught: list[list[Any]], log: WorkerLog) -> None:
    """Repeats the warnings of an engine's process, at the user's own line, so that Python's filters apply to them.

    `caught`: [names of the category and its bases, text, file, line]...
    """
    frame = sys._getframe(1)
    while frame.f_code.co_filename.startswith(PACKAGE) and frame.f_back is not None:
        frame = frame.f_back
    note(caught, log)
    for names, text, file, line in caught:
        warnings.warn_explicit(
            f"{text} ({title}, {os.path.basename(file)}, line {line})",
            _category(names),
            frame.f_code.co_filename,
            frame.f_lineno,
            module=frame.f_globals.get("__name__", "__main__"),
            registry=frame.f_globals.setdefault("__warningregistry__", {}),
        )


def _category(names: list[str]) -> type[Warning]:
    """The nearest class of warnings that exists in this process too."""
    for name in names:
        for home in (builtins, np.exceptions):
            category = getattr(home, name, None)
            if isinstance(category, type) and issubclass(category, Warning):
                return category
    return RuntimeWarning
