"""Evaluates the Python text in a magic's line, expressions and feeds, where the magic was called."""

from __future__ import annotations

import ast
import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from ..engines import registry
from ..errors import ArgumentError, KernelKError, did_you_mean, one_line
from .cell_body import closure


def names_in(shell: InteractiveShell, local: Mapping[str, Any] | None) -> dict[str, Any]:
    """The notebook's names, and before them those where a magic was called."""
    namespace: dict[str, Any] = shell.user_ns
    return namespace if local is None or local is namespace else {**namespace, **local}


def value_of(
    shell: InteractiveShell, expression: str, magic: str, hint: str = "", local: Mapping[str, Any] | None = None
) -> Any:
    """The value of an expression where a magic was called: in a notebook, or in a function with these local names.

    Raises ArgumentError with what went wrong, in one line, and the hint. An error of kernelk's own comes out as it is.
    """
    try:
        if local is None or local is shell.user_ns:
            return shell.ev(expression)  # type: ignore[no-untyped-call]
        written = ast.parse(expression.strip(), mode="eval").body
        statement: ast.stmt = ast.copy_location(ast.Expr(written), written)
        return closure([statement], "<string>", shell.user_ns, local)()
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
    if registry.is_name(words[-1]):
        return f"{words[-1]} is one engine too many"
    return f"{did_you_mean(words[-1], registry.names())}engines are {', '.join(registry.names())}"


def feeds_of(
    shell: InteractiveShell, texts: Iterable[tuple[str, str]], magic: str, local: Mapping[str, Any] | None = None
) -> dict[Any, Any]:
    """The values of `--feed` options by placeholder: the variable of that name, else the name itself."""
    feeds: dict[Any, Any] = {}
    for name, value in texts:
        placeholder: Any = name
        # If it isn't a variable, it may be a placeholder's own name; that is checked with the feeds.
        with contextlib.suppress(ArgumentError):
            placeholder = value_of(shell, name, magic, local=local)
        feeds[placeholder] = value_of(shell, value, magic, local=local)
    return feeds
