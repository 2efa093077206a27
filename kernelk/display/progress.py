"""Shows the progress of a long task: lines that stay and one that is rewritten, in a terminal and in a notebook."""

from __future__ import annotations

import contextlib
import contextvars
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from . import messages

Report = Callable[[str], None]

# Where no line can be overwritten, what moves is said this often, in seconds.
EVERY = 5.0

# What takes no longer than this, in seconds, needs no line.
DELAY = 1.5


def _width() -> int:
    """So much of a line fits: one that wraps could not be overwritten."""
    return shutil.get_terminal_size((120, 24)).columns - 1


class Progress:
    """A report that prints, by default to standard output; in terminals and notebooks what moves stays on one line."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        # Nobody can overwrite a line of a file or a pipe: there, what moves is a line from time to time.
        overwrites = messages.in_notebook() or (stream or sys.stdout).isatty()
        self.moving: Report | None = self._move if overwrites else None
        self._shown = 0

    def __call__(self, text: str) -> None:
        """Prints a line that stays, at once even through a pipe."""
        self._print(f"{self._cleared()}{text}\n")

    def clear(self) -> None:
        """Takes the line that moves away."""
        if self._shown:
            self._print(self._cleared())

    def _move(self, text: str) -> None:
        """Prints the line that moves, in place of the one before."""
        shown = text[: _width()]
        self._print(f"{self._cleared()}{shown}")
        self._shown = len(shown)

    def _print(self, text: str) -> None:
        print(text, end="", file=self._stream, flush=True)

    def _cleared(self) -> str:
        shown, self._shown = self._shown, 0
        return f"\r{' ' * shown}\r" if shown else ""


class Moving:
    """Says what moves: by the report's own `moving` if it has one, else as a line from time to time."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._moving: Report | None = getattr(report, "moving", None)
        self._last = time.monotonic()

    def __call__(self, text: str) -> None:
        """Says it, or leaves it out."""
        if self._moving is not None:
            self._moving(text)
        elif time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self._report(text)


# --- what nobody knew would take long -------------------------------------------------------------------------


class _Output:
    """A line that moves as an output of its own in a notebook's cell.

    Carriage returns would take a line along that the user's own code has begun, and stand in the saved notebook.
    """

    def __init__(self) -> None:
        self._handle: Any = None

    def moving(self, text: str) -> None:
        """Shows the line, in place of the one before."""
        from IPython.display import display

        if self._handle is None:
            self._handle = display({"text/plain": text}, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update({"text/plain": text}, raw=True)

    __call__ = moving

    def clear(self) -> None:
        """Leaves an output of no height: none can be taken away alone."""
        if self._handle is not None:
            self._handle.update({"text/html": "", "text/plain": ""}, raw=True)


# The line that is counting seconds at present.
_COUNTING: list[_Output | Progress] = []


def make_room() -> None:
    """Takes the line that counts seconds away until its next second: another one is to be said now."""
    for line in _COUNTING:
        # In a notebook it is an output of its own, in nobody's way.
        if isinstance(line, Progress):
            line.clear()


@contextlib.contextmanager
def waiting(doing: str, hints: Sequence[str] = ()) -> Iterator[None]:
    """While the block takes longer than DELAY, a line counts the seconds, "Theano is starting: 3 s (Ctrl-C cancels)".

    `hints` stand in the brackets, as many as fit. The line goes away with the block. It is the main thread's alone, the
    one that Ctrl-C reaches, and nothing is said where the user wants it quiet. A block inside another has no line.
    """
    told_elsewhere = messages.quiet() or messages.is_captured()
    if told_elsewhere or _COUNTING or threading.current_thread() is not threading.main_thread():
        yield
        return
    line = _Output() if messages.in_notebook() else Progress(messages.stream())
    _COUNTING.append(line)
    over = threading.Event()
    # The context says which cell's output it is.
    run = contextvars.copy_context().run
    arguments = (_count, over, doing, hints, line)
    thread = threading.Thread(target=run, args=arguments, name="kernelk-waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        _COUNTING.clear()
        over.set()
        thread.join()


def _count(over: threading.Event, doing: str, hints: Sequence[str], line: _Output | Progress) -> None:
    begin = time.monotonic()
    move = Moving(line)
    wait = DELAY
    # Whoever reads the line may be gone.
    with contextlib.suppress(OSError, ValueError):
        while not over.wait(wait):
            move(_hinted(f"{doing}: {time.monotonic() - begin:.0f} s", hints))
            wait = 1.0
        line.clear()


def _hinted(text: str, hints: Sequence[str]) -> str:
    """The line with its hints; the last ones are left out where it would get too long."""
    for count in range(len(hints), 0, -1):
        whole = f"{text} ({'; '.join(hints[:count])})"
        if len(whole) <= _width():
            return whole
    return text
