"""What Python text in a magic's line stands for: evaluates expressions and feeds in the notebook's names."""

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
        # Python's own text names a line of a file "<string>".
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise ArgumentError(
            f"{magic}: {expression} can't be evaluated: {type(error).__name__}: {one_line(reason)}",
            allowed=hint,
            next_step=f"{magic}? shows examples",
        ) from None


def engine_hint(expression: str) -> str:
    """For an expression that can't be evaluated: the engines, if its last word may be meant for one."""
    words = expression.split()
    if len(words) < 2:
        return ""
    if words[-1] in registry.names():
        return f"{words[-1]} is one engine too many"
    return f"{did_you_mean(words[-1], registry.names())}engines are {', '.join(registry.names())}"


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
