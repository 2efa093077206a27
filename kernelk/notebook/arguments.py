"""How a magic's line becomes arguments: IPython's own decorators, and errors of one line in place of usage texts."""

from __future__ import annotations

import argparse
import difflib
import shlex
from collections.abc import Callable
from typing import Any

from IPython.core import magic_arguments as _ipython
from IPython.core.error import UsageError

from ..errors import ArgumentError

# IPython's decorators, with types.
argument: Callable[..., Callable[[Any], Any]] = _ipython.argument
magic_arguments: Callable[..., Callable[[Any], Any]] = _ipython.magic_arguments


def parse(magic: Any, line: str, words: str, example: str) -> argparse.Namespace:
    """The arguments of a magic that `magic_arguments` decorates.

    `words` says what it takes beside options ("one engine's name"), `example` is a line that works. Raises
    ArgumentError with what is wrong, the nearest option where one isn't known, and that example.
    """
    parser, name = magic.parser, f"%{magic.__name__}"
    # A prefix that means one option today would mean another one once there are more.
    parser.allow_abbrev = False
    try:
        found, surplus = parser.parse_known_args(shlex.split(line))
    except (UsageError, ValueError) as error:
        reason = str(error).replace("argument ", "", 1)
        # An option that lacks its value: with one.
        for action in parser._actions:
            if action.metavar and reason.startswith(f"{'/'.join(action.option_strings)}: expected"):
                example = f"{name} {action.option_strings[0]} {action.metavar}"
        raise ArgumentError(
            f"{name} {line.strip()} is incomplete or wrong ({reason}); e.g. {example}; {name}? shows examples"
        ) from None
    for word in surplus:
        if word.startswith("-"):
            option = word.partition("=")[0]
            known = options(magic)
            near = difflib.get_close_matches(option, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ArgumentError(
                f"{name} has no option {option}: {hint}allowed are {', '.join(known)}; {name}? shows examples"
            )
    if surplus:
        raise ArgumentError(f"{name} takes {words}, not {line.strip()!r}; e.g. {example}")
    return found  # type: ignore[no-any-return]


def options(magic: Any) -> list[str]:
    """The options that a decorated magic takes, in the order of its help."""
    return [option for action in magic.parser._actions for option in action.option_strings]
