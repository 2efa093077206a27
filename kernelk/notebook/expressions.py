"""Evaluates the Python text in a magic's line, expressions and feeds, in the notebook's namespace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from ..engines import registry
from ..errors import ArgumentError, KernelKError, did_you_mean, one_line


def value_of(shell: InteractiveShell, expression: str, magic: str, hint: str = "") -> Any:
    """The value of a notebook expression. Raises ArgumentError with what went wrong, in one line, and the hint.

    An error of kernelk's own comes out as it is.
    """
    try:
        return shell.ev(expression)  # type: ignore[no-untyped-call]
    except KernelKError:
        raise  # as of an op that is refused: it says itself what to do
    except Exception as error:
        # Python's own message would name a line of a file "<string>".
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ArgumentError(
            f"{magic}: {expression} can't be evaluated: {type(error).__name__}: {one_line(reason)}",
            allowed=hint,
            next_step=f"{magic}? shows examples",
        ) from None


def engine_hint(expression: str) -> str:
    """The hint for an expression that can't be evaluated: the engines, if its last word may be meant for one."""
    words = expression.split()
    if len(words) < 2:
        return ""
    if words[-1] in registry.names():
        return f"{words[-1]} is one engine too many"
    return f"{did_you_mean(words[-1], registry.names())}engines are {', '.join(registry.names())}"


def feeds_of(shell: InteractiveShell, texts: Iterable[tuple[str, str]], magic: str) -> dict[Any, Any]:
    """The values of `--feed` options by placeholder: the notebook variable of that name, else the name itself."""
    feeds: dict[Any, Any] = {}
    for name, value in texts:
        placeholder: Any = name
        # If it isn't a variable of the notebook, it may be a placeholder's own name; that is checked with the feeds.
        with contextlib.suppress(ArgumentError):
            placeholder = value_of(shell, name, magic)
        feeds[placeholder] = value_of(shell, value, magic)
    return feeds
