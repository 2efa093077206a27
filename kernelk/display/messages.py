"""Prints kernelk's own messages for the user, unless they are captured or the user wants quiet."""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
from collections.abc import Iterator
from typing import NamedTuple, TextIO

from ..config import LIMITS


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this: its shell, unlike a terminal's, has a kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def quiet() -> bool:
    """Whether kernelk's own lines, and what engines print, are to be left out of the cells."""
    return LIMITS.quiet or bool(os.environ.get("KERNELK_QUIET"))


def stream() -> TextIO:
    """The stream for lines to the user: a notebook cell's output, or a script's standard error."""
    # A notebook colours standard error as if something had gone wrong.
    return sys.stdout if in_notebook() else sys.stderr


class Line(NamedTuple):
    """One line for the user; its `kind` is "announcement" (which engine is in use) or "note" (all else)."""

    kind: str
    text: str


# Where lines go instead of into a cell, if somebody else shows them.
_CAPTURED: contextvars.ContextVar[list[Line] | None] = contextvars.ContextVar("kernelk_captured", default=None)


@contextlib.contextmanager
def captured() -> Iterator[list[Line]]:
    """Collects the lines that would be shown in a cell, for the caller to show elsewhere."""
    lines: list[Line] = []
    token = _CAPTURED.set(lines)
    try:
        yield lines
    finally:
        _CAPTURED.reset(token)


def is_captured() -> bool:
    """Whether this is inside `captured`, so that no line appears in a cell."""
    return _CAPTURED.get() is not None


def say(text: str, kind: str = "note") -> None:
    """Shows the user one line, unless it is to be quiet (KERNELK_QUIET, or the setting KernelK.quiet)."""
    lines = _CAPTURED.get()
    if lines is not None:
        lines.append(Line(kind, text))
    elif not quiet():
        print(text, file=stream(), flush=True)
