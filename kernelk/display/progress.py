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

# Where no line can be overwritten, progress is printed this often, in seconds.
EVERY = 5.0

# Nothing is shown for a wait of at most so many seconds.
DELAY = 1.5


def _width() -> int:
    """The number of characters that fit on a line: one that wraps can't be overwritten."""
    return shutil.get_terminal_size((120, 24)).columns - 1


class Progress:
    """A report that prints, by default to standard output; in terminals and notebooks, progress stays on one line."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        # A line in a file or a pipe can't be overwritten: progress there is a new line from time to time.
        overwrites = messages.in_notebook() or (stream or sys.stdout).isatty()
        self.moving: Report | None = self._move if overwrites else None
        self._shown = 0

    def __call__(self, text: str) -> None:
        """Prints a line that stays, at once even through a pipe."""
        self._print(f"{self._cleared()}{text}\n")

    def clear(self) -> None:
        """Erases the line that is rewritten."""
        if self._shown:
            self._print(self._cleared())

    def _move(self, text: str) -> None:
        """Prints the line that is rewritten, in place of the one before."""
        shown = text[: _width()]
        self._print(f"{self._cleared()}{shown}")
        self._shown = len(shown)

    def _print(self, text: str) -> None:
        print(text, end="", file=self._stream, flush=True)

    def _cleared(self) -> str:
        shown, self._shown = self._shown, 0
        return f"\r{' ' * shown}\r" if shown else ""


class Moving:
    """Reports progress: by the report's own `moving` if it has one, else as a line from time to time."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._moving: Report | None = getattr(report, "moving", None)
        self._last = time.monotonic()

    def __call__(self, text: str) -> None:
        """Reports the text, or skips it if the last line is too recent."""
        if self._moving is not None:
            self._moving(text)
        elif time.monotonic() - self._last >= EVERY:
            self._last = time.monotonic()
            self._report(text)


# --- waits of unknown length -------------------------------------------------------------------------------


class _Output:
    """A line that is rewritten as an output of its own in a notebook's cell.

    Carriage returns would erase a line that the user's own code has begun, and remain in the saved notebook. A console,
    where neither matters, would leave the first of these outputs standing.
    """

    def __init__(self) -> None:
        self._handle: Any = None

    def moving(self, text: str) -> None:
        """Shows the text in place of the one before."""
        from IPython.display import display

        if self._handle is None:
            self._handle = display({"text/plain": text}, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._handle.update({"text/plain": text}, raw=True)

    __call__ = moving

    def clear(self) -> None:
        """Leaves an empty output: a single output can't be removed."""
        if self._handle is not None:
            self._handle.update({"text/html": "", "text/plain": ""}, raw=True)


# The line that is counting seconds at present.
_COUNTING: list[_Output | Progress] = []


def make_room() -> None:
    """Erases the line that counts seconds until its next second, so that another line can be printed."""
    for line in _COUNTING:
        # In a notebook it is a separate output, which can stay.
        if isinstance(line, Progress):
            line.clear()


@contextlib.contextmanager
def waiting(doing: str | Callable[[], str], hints: Sequence[str] = ()) -> Iterator[None]:
    """Counts seconds on a line once the block takes longer than DELAY: "Theano is starting: 3 s (Ctrl-C cancels)".

    `doing` may be a function, for what changes meanwhile. `hints` are shown in the brackets, as many as fit. The line
    disappears with the block. Only the main thread shows it, the one that Ctrl-C reaches, and not if the user wants
    quiet, or where it would stay. A block inside another shows no line.
    """
    hidden = messages.quiet() or messages.is_captured() or messages.keeps_every_output()
    if hidden or _COUNTING or threading.current_thread() is not threading.main_thread():
        yield
        return
    line = _Output() if messages.replaces_outputs() else Progress(messages.stream())
    _COUNTING.append(line)
    over = threading.Event()
    # The context holds the cell that the output belongs to.
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


def _count(
    over: threading.Event, doing: str | Callable[[], str], hints: Sequence[str], line: _Output | Progress
) -> None:
    begin = time.monotonic()
    move = Moving(line)
    wait = DELAY
    # The reader of the stream may be gone.
    with contextlib.suppress(OSError, ValueError):
        while not over.wait(wait):
            words = doing() if callable(doing) else doing
            move(_hinted(f"{words}: {time.monotonic() - begin:.0f} s", hints))
            wait = 1.0
        line.clear()


def _hinted(text: str, hints: Sequence[str]) -> str:
    """The line with its hints; the last ones are left out if it would get too long."""
    for count in range(len(hints), 0, -1):
        whole = f"{text} ({'; '.join(hints[:count])})"
        if len(whole) <= _width():
            return whole
    return text
