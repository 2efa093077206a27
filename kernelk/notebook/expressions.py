"""What Python text in a magic's line stands for: evaluates expressions and feeds in the notebook's names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from ..errors import ArgumentError, one_line


def value_of(shell: InteractiveShell, expression: str, magic: str, hint: str = "") -> Any:
    """The value of a notebook expression. Raises ArgumentError with what went wrong, in one line, and the hint."""
    try:
        return shell.ev(expression)  # type: ignore[no-untyped-call]
    except Exception as error:
        raise ArgumentError(
            f"{magic}: {expression} can't be evaluated: {type(error).__name__}: {one_line(error)}", allowed=hint
        ) from None


def feeds_of(shell: InteractiveShell, texts: Iterable[tuple[str, str]], magic: str) -> dict[Any, Any]:
    """The values of `--feed` options by placeholder: the one that a notebook name stands for, else that name."""
    feeds: dict[Any, Any] = {}
    for name, value in texts:
        placeholder: Any = name
        # Where it is no name of the notebook's, it may be a placeholder's own; whoever takes the feed knows.
        with contextlib.suppress(ArgumentError):
            placeholder = value_of(shell, name, magic)
        feeds[placeholder] = value_of(shell, value, magic)
    return feeds
