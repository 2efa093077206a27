"""What a long task says while it runs: lines that stay, and one that moves, in a terminal and in a notebook alike."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable

from . import config

Report = Callable[[str], None]

# Where no line can be overwritten, what moves is said this often, in seconds.
EVERY = 5.0


class Progress:
    """A report that prints to standard output; in a terminal and in a notebook what moves stays on one line."""

    def __init__(self) -> None:
        # Nobody can overwrite a line of a file or a pipe: there, what moves is a line from time to time.
        self.moving: Report | None = self._move if config.in_notebook() or sys.stdout.isatty() else None
        self._width = 0

    def __call__(self, text: str) -> None:
        """Prints a line that stays, at once even through a pipe."""
        print(f"{self._cleared()}{text}", flush=True)

    def _move(self, text: str) -> None:
        """Prints the line that moves, in place of the one before."""
        # A line that wraps could not be overwritten.
        shown = text[: shutil.get_terminal_size((120, 24)).columns - 1]
        print(f"{self._cleared()}{shown}", end="", flush=True)
        self._width = len(shown)

    def _cleared(self) -> str:
        width, self._width = self._width, 0
        return f"\r{' ' * width}\r" if width else ""


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
