"""Prints kernelk's own messages for the user, unless they are captured or the user wants quiet."""

from __future__ import annotations

import contextlib
import contextvars
import os
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, TextIO

from ..config import LIMITS


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs this: its shell, unlike a terminal's, has a kernel."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def parent_message(shell: Any) -> dict[str, Any]:
    """The Jupyter message whose handling this is part of; empty in a terminal, and what it has differs by kernel."""
    kernel = getattr(shell, "kernel", None)
    found: dict[str, Any] = {} if kernel is None else kernel.get_parent()
    return found


def replaces_outputs() -> bool:
    """Whether the front end shows an update of an output in its place, as notebooks do, and consoles don't.

    A notebook names the cell, and what runs notebooks lets nobody type: a console does neither.
    """
    ipython = sys.modules.get("IPython")
    message = parent_message(ipython and ipython.get_ipython())
    names_cell = bool(message.get("metadata", {}).get("cellId"))
    return in_notebook() and (names_cell or not message.get("content", {}).get("allow_stdin", False))


def keeps_every_output() -> bool:
    """Whether this is an engine of ipyparallel: `%%px` shows what came, and no update of it."""
    ipython = sys.modules.get("IPython")
    kernel = getattr(ipython and ipython.get_ipython(), "kernel", None)
    return type(kernel).__module__.startswith("ipyparallel.")


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
