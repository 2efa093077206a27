"""The one parser of the magics' lines: options are declared once, and completion, help and errors come from there.

Three kinds of lines: words as in a shell; an expression that options follow (`%kdiff y numpy torch --feed x=a[0]`);
options that code follows (`%ktime --budget 3 f([x])`). An argument's `type`, Expression or Code, says which one it is.
"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from IPython.core import magic_arguments as _ipython
from IPython.core.error import UsageError

from ..engines import registry
from ..errors import ArgumentError, did_you_mean

# IPython's decorator, with types.
argument: Callable[..., Callable[[Any], Any]] = _ipython.argument


def magic_arguments(takes: str, example: str) -> Callable[[Any], Any]:
    """Declares a magic that `argument` decorates, for `parse`.

    `takes` says what it takes besides options ("one engine's name"), `example` is a line that works.
    """

    def declare(magic: Any) -> Any:
        # As it is written, less one "%", which IPython's usage line adds: "%kcompare" for a magic of cells alone.
        written = example.split()[0].removeprefix("%")
        magic = _ipython.magic_arguments(written)(magic)  # type: ignore[no-untyped-call]
        magic.parser.takes, magic.parser.example = takes, example
        # Otherwise argparse would exit, and only its message would be left.
        magic.parser.exit_on_error = False
        # An abbreviation would become ambiguous once there are more options.
        magic.parser.allow_abbrev = False
        return magic

    return declare


@dataclass(frozen=True)
class Expression:
    """The type of a first argument that is Python text up to the first option; `purpose` is the verb for messages.

    Engines' names may come between the two: they are the magic's next argument, as many as its `nargs` says.
    """

    purpose: str

    def __call__(self, text: str) -> str:
        return text


@dataclass(frozen=True)
class Code:
    """The type of the one argument that is Python text: all that follows the last option."""

    def __call__(self, text: str) -> str:
        return text


def feed(text: str) -> tuple[str, str]:
    """The type of `--feed`: the two Python texts of NAME=ARRAY."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"{text!r} isn't NAME=ARRAY")
    return name, value


# What IPython's "?" does, in the words of a shell.
_HELP = ("-h", "--help")

feed_argument = argument(
    "--feed",
    metavar="NAME=ARRAY",
    action="append",
    type=feed,
    default=[],
    help="a placeholder and its value, both Python expressions; repeat it for others",
)


def parse(magic: Any, line: str, cell: str | None = None) -> argparse.Namespace:
    """The arguments of a declared magic: Python arguments as text, the cell as its Code.

    Raises ArgumentError with what is wrong, the nearest option where one isn't known, and an example.
    """
    positionals = _positionals(magic)
    kind = python_kind(magic)
    if line.strip() in _HELP:
        raise _no_option(magic, line.strip())
    if isinstance(kind, Expression):
        text, words = _split_options(magic, line)
        if not text and words:
            _check_order(magic, words)
        names: list[str] = []
        if len(positionals) > 1:
            text, names = _split_names(magic, text, positionals[1].nargs, line)
        if not text:
            name, example = _name(magic), magic.parser.example
            raise ArgumentError(
                f"{name} was given nothing to {kind.purpose}", next_step=f"{example}; {name}? shows examples"
            )
        return _parse_words(magic, [*words, "--", text, *names], line)
    if isinstance(kind, Code) and cell is None:
        words, code = _split_code(magic, line)
        _check_code(magic, words, code)
        return _parse_words(magic, [*words, "--", code], " ".join(words))
    given = _parse_words(magic, line, line)
    if isinstance(kind, Code):
        if vars(given)[positionals[0].dest]:
            raise _other_words(magic, line, f"%{_name(magic)}")
        setattr(given, positionals[0].dest, cell)
    return given


def _parse_words(magic: Any, words: str | list[str], shown: str) -> argparse.Namespace:
    """The arguments of these words, or of a line as a shell splits it; errors show `shown`."""
    example, name = magic.parser.example, _name(magic)
    try:
        given, surplus = magic.parser.parse_known_args(shlex.split(words) if isinstance(words, str) else words)
    except (argparse.ArgumentError, UsageError, ValueError) as error:
        reason = str(error)
        if isinstance(error, argparse.ArgumentError):
            reason = f"{error.argument_name}: {error.message}"
            for action in magic.parser._actions:
                wrong = action.metavar and "/".join(action.option_strings) == error.argument_name
                # The example shows this option with a value; if an expression is needed too, the magic's own is better.
                if wrong and not isinstance(python_kind(magic), Expression):
                    example = f"{name} {action.option_strings[0]} {action.metavar}"
        raise ArgumentError(
            f"{name} {shown.strip()} is incomplete or wrong ({reason})", next_step=f"{example}; {name}? shows examples"
        ) from None
    for word in surplus:
        if word.startswith("-"):
            raise _no_option(magic, word.partition("=")[0])
    if surplus:
        kept = shown.split()
        for word in surplus:
            if word in kept:
                # The last one: what was taken came before it.
                del kept[len(kept) - 1 - kept[::-1].index(word)]
        raise _other_words(magic, shown, " ".join([name, *kept]) if kept else "")
    return given  # type: ignore[no-any-return]


def _split_options(magic: Any, line: str) -> tuple[str, list[str]]:
    """Splits a line into the text before the first option, and each option with the text up to the next one."""
    known = "|".join(re.escape(option) for option in options(magic))
    pattern = rf"(?:^|(?<=\s))((?:{known})(?=[\s=]|$)|--\w[\w-]*(?=\s|$))"
    head, *pieces = re.split(pattern, line.strip())
    words = []
    for option, text in zip(pieces[::2], pieces[1::2]):
        value = text.removeprefix("=").strip()
        words.append(f"{option}={value}" if value else option)
    return head.strip(), words


def _no_option(magic: Any, option: str) -> ArgumentError:
    """The error for an option that the magic doesn't have, with the nearest one."""
    name, known = _name(magic), options(magic)
    if not known:
        return ArgumentError(f"{name} takes no options", next_step=name)
    if option in _HELP:
        return ArgumentError(f"{name} has no option {option}", next_step=f"{name}? shows options and examples")
    if option == "--on" and takes_engines(magic):
        words = "an engine on another machine is named with its cluster"
        return ArgumentError(f"{name} has no option --on", allowed=words, next_step="torch@NAME in place of torch")
    # All begin with "--", which would make any two of them look similar.
    hint = did_you_mean(option.lstrip("-"), [one.lstrip("-") for one in known], "--{}", cutoff=0.5)
    return ArgumentError(
        f"{name} has no option {option}",
        allowed=f"{hint}allowed are {', '.join(known)}",
        next_step=f"{name}? shows examples",
    )


def _check_order(magic: Any, words: list[str]) -> None:
    """Raises ArgumentError if the expression comes after these options, where it would be the last one's value."""
    *before, last = words
    option, _, text = last.partition("=")
    value, _, expression = text.partition(" ") if takes_value(magic, option) else ("", "", text)
    if option in options(magic) and expression:
        right = " ".join([*(word.replace("=", " ", 1) for word in before), f"{option} {value}".strip()])
        name = _name(magic)
        raise ArgumentError(
            f"{name}: options come after the expression", next_step=f"{name} {expression.strip()} {right}"
        )


def _check_code(magic: Any, words: list[str], code: str) -> None:
    """Raises ArgumentError if the code is followed by one of the magic's options, which Python reads as two minuses."""
    known = "|".join(re.escape(option) for option in options(magic))
    for match in re.finditer(rf"\s({known})(?=[\s=]|$)", code):
        head, tail = code[: match.start()].strip(), code[match.start() :].strip()
        # Inside quotes or brackets it is part of the code: then the text before it isn't valid Python.
        try:
            ast.parse(head)
        except (SyntaxError, ValueError):
            continue
        name = _name(magic)
        raise ArgumentError(f"{name}: options come before the code", next_step=" ".join([name, *words, tail, head]))


def _split_names(magic: Any, text: str, count: int | str | None, line: str) -> tuple[str, list[str]]:
    """The expression and the names after it: `count` of them, or for "*" all that are engines. Commas are allowed."""
    if isinstance(count, int):
        parts = text.rsplit(None, count)
        if len(parts) <= count:
            raise _other_words(magic, line)
        return parts[0].removesuffix(","), [name.strip(",") for name in parts[1:]]
    names: list[str] = []
    while len(parts := text.rsplit(None, 1)) == 2 and registry.is_name(name := parts[1].strip(",")):
        text = parts[0].rstrip().removesuffix(",")
        names.insert(0, name)
    return text, names


def _split_code(magic: Any, line: str) -> tuple[list[str], str]:
    """The options at the line's beginning with their values, and the code after them."""
    words: list[str] = []
    rest = line.strip()
    while match := re.match(r"(--\w[\w-]*)(=\S*)?(?:\s+|$)", rest):
        words.append(match[0].strip())
        rest = rest[match.end() :]
        if match[2] is None and rest and takes_value(magic, match[1]):
            value, *following = rest.split(None, 1)
            words.append(value)
            rest = following[0] if following else ""
    return words, rest


def _other_words(magic: Any, line: str, example: str = "") -> ArgumentError:
    """The error for a line with too many words, or too few."""
    example = example or magic.parser.example
    return ArgumentError(f"{_name(magic)} takes {magic.parser.takes}, not {line.strip()!r}", next_step=example)


def _name(magic: Any) -> str:
    return f"%{magic.parser.prog}"


def _positionals(magic: Any) -> list[argparse.Action]:
    return [action for action in magic.parser._actions if not action.option_strings]


def python_kind(magic: Any) -> Expression | Code | None:
    """The Python part of a declared magic's line: an Expression, Code, or nothing."""
    kind = next((action.type for action in _positionals(magic)), None)
    return kind if isinstance(kind, (Expression, Code)) else None


def options(magic: Any) -> list[str]:
    """The options that a declared magic takes, in the order of its help."""
    return [option for action in magic.parser._actions for option in action.option_strings]


def takes_value(magic: Any, option: str) -> bool:
    """Whether a value follows the option; False for an unknown one."""
    action = magic.parser._option_string_actions.get(option)
    return action is not None and action.nargs != 0


def takes_engines(magic: Any) -> bool:
    """Whether the line names engines."""
    return any(action.dest == "engines" for action in _positionals(magic))
