"""Writes options and commands as their user types them: on a magic's line, in a shell, or in Python.

Every magic has a Python twin. Messages are written with the magic, and told with the twin to whoever has called that.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from types import FrameType
from typing import Any

from .source import is_users

_FOLDER = os.path.dirname(__file__)
_MAGICS = (os.path.join(_FOLDER, "magics.py"), os.path.join(_FOLDER, "notebook", ""))
_SHELL = os.path.join(_FOLDER, "cli", "")

# The functions of %kbackend's actions; without one of these it is `set_backend`.
_ACTIONS = {
    "--list": "list_backends",
    "--stop": "stop_backend",
    "--install": "install",
    "--doctor": "doctor",
    "--log": "log",
    "--keras2": "enable_keras2",
    "--keras3-back": "disable_keras2",
}
_FLAGS = {
    "--in-kernel": "in_kernel=True",
    "--worker": "in_kernel=False",
    "--compiler": "compiler=True",
    "--no-compiler": "compiler=False",
    "--save": "save=True",
    "--drop-calls": "drop_calls=True",
}
# Twins that aren't %kbackend's.
_NAMES = {
    "time": "%ktime",
    "profile": "%kprofile",
    "compare": "%%kcompare",
    "diff": "%kdiff",
    "show": "%kshow",
    "draw": "%kgraph",
}
# The line with all that belongs to it: names and options, up to a comma or another sign.
_LINE = re.compile(r"%kbackend((?: [\w@:.\[\]-]+)*)")


def in_ipython() -> bool:
    """Whether code runs in an IPython shell, of a terminal or a notebook, so that magics work."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


def _typed() -> str:
    """What led here, going by the code around kernelk's: "magic", "shell" or "python"."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(_MAGICS):
            return "magic"
        if file.startswith(_SHELL):
            return "shell"
        if is_users(frame):
            break
        frame = frame.f_back
    return "python"


def typed_name(twin: str) -> str:
    """What the user has typed of the two names of a function: "diff" or "%kdiff"."""
    return _NAMES[twin] if _typed() == "magic" else twin


def option(name: str, value: Any = None) -> str:
    """An option as the user has typed it, "--threads 2" or "threads=2"; without a value, its name alone.

    A flag's value is True.
    """
    if _typed() == "python":
        return name if value is None else f"{name}={value!r}"
    flag = f"--{name.replace('_', '-')}"
    return flag if value is None or value is True else f"{flag} {shlex.quote(str(value))}"


def as_typed(text: str, twin: str = "") -> str:
    """A text with lines of %kbackend, or with their twins in place of them unless the user has typed a magic.

    `twin`: the whole text in that case, where it has lines of other magics.
    """
    return text if _typed() == "magic" else twin or _LINE.sub(_twin, text)


def as_usable(text: str, twin: str = "") -> str:
    """A text with lines of %kbackend, or with their twins in place of them where there are no magics.

    `twin`: as in `as_typed`.
    """
    return text if in_ipython() or _typed() == "magic" else twin or _LINE.sub(_twin, text)


def _twin(line: re.Match[str]) -> str:
    words = line[1].split()
    function = "set_backend" if words else "list_backends"
    names, arguments = [], []
    rest = iter(words)
    for word in rest:
        if word in _ACTIONS:
            function = _ACTIONS[word]
        elif word in _FLAGS:
            arguments.append(_FLAGS[word])
        elif word.startswith("--"):
            value = next(rest)
            arguments.append(f"{word[2:]}={value if value.isdigit() else repr(value)}")
        else:
            names.append(repr(word))
    return f"kernelk.{function}({', '.join([*names, *arguments])})"
