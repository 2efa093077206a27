"""What the words of a magic's line mean in the notebook: expressions, placeholders, and options with values."""

from __future__ import annotations

import re
from typing import Any

from IPython.core.interactiveshell import InteractiveShell

from ..errors import ArgumentError


def split_options(line: str) -> tuple[str, list[tuple[str, str]]]:
    """What stands before the first option, and each option's name with what follows it: all of it may be Python."""
    head, *options = re.split(r"(?:^|(?<=\s))--(\w+)(?=\s|$)", line.strip())
    return head.strip(), [(name, text.strip()) for name, text in zip(options[::2], options[1::2])]


def value_of(shell: InteractiveShell, expression: str, magic: str, hint: str = "") -> Any:
    """The value of a notebook expression. Raises ArgumentError with what went wrong, in one line, and the hint."""
    try:
        return shell.ev(expression)  # type: ignore[no-untyped-call]
    except Exception as error:
        words = " ".join(str(error).split())
        more = f"; {hint}" if hint else ""
        raise ArgumentError(
            f"{magic}: {expression} can't be evaluated: {type(error).__name__}: {words}{more}"
        ) from None


def feed_of(shell: InteractiveShell, text: str, magic: str) -> tuple[Any, Any] | None:
    """`--feed`'s NAME=ARRAY: the placeholder that a notebook name stands for (else that name), and the value."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        return None
    try:
        placeholder = value_of(shell, name, magic)
    except ArgumentError:
        placeholder = name
    return placeholder, value_of(shell, value, magic)
