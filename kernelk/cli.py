"""The `kernelk` program: installs the old engines' environments and lists them; all work is `environments`'s.

Every problem is one line on standard error and exit status 1, without a traceback.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import __version__, environments
from .errors import KernelKError

# Engines that run in the notebook's own Python, with the command that gets them and the module they bring.
_NO_ENVIRONMENT = {
    "numpy": ("numpy", "pip install kernelk"),
    "tensorflow": ("tensorflow", 'pip install "kernelk[tensorflow]"'),
    "tensorflow-cpu": ("tensorflow", 'pip install "kernelk[tensorflow-cpu]"'),
}


def _say(text: str) -> None:
    print(text, flush=True)  # at once: a notebook's `!kernelk install` shows progress through a pipe


def _complain(text: str) -> None:
    print("kernelk: " + " ".join(text.split()), file=sys.stderr, flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _complain(f"{message}; next: `kernelk --help`")
        raise SystemExit(1)


def _unknown(name: str) -> str:
    known = [*environments.RECIPES, *_NO_ENVIRONMENT]
    close = difflib.get_close_matches(name.lower(), known, n=1)
    meant = f"did you mean `kernelk install {close[0]}`? " if close else ""
    return f"unknown engine {name!r}: {meant}It is one of {', '.join(sorted(known))}"


def _install(names: Sequence[str], rebuild: bool) -> int:
    failed = False
    for name in dict.fromkeys(names):
        if name in environments.RECIPES:
            try:
                environments.install(name, report=_say, rebuild=rebuild)
            except KernelKError as error:
                failed = True
                _complain(str(error))
        elif name in _NO_ENVIRONMENT:
            module, command = _NO_ENVIRONMENT[name]
            if importlib.util.find_spec(module) is not None:
                _say(f"{name}: already installed; it needs no environment of its own")
            else:
                failed = True
                _complain(f"{name} needs no environment of its own and is not installed; next: `{command}`")
        else:
            failed = True
            _complain(_unknown(name))
    return 1 if failed else 0


def _list() -> int:
    for name, recipe in environments.RECIPES.items():
        found = environments.marker(name)
        if found is not None:
            versions = found["versions"]
            assert isinstance(versions, dict)
            numpy = versions.get("numpy", "unknown")
            _say(
                f"{name}: installed, {recipe.title.split()[0]} {found['engine']}, Python {found['python']}, "
                f"numpy {numpy}, {float(str(found['bytes'])) / 1e6:.0f} MB in {found['folder']}"
            )
        else:
            rest = environments.half_built(name)
            state = f"not installed to the end ({rest})" if rest else "not installed"
            _say(f"{name}: {state}; next: `kernelk install {name}` (Python {' or '.join(recipe.pythons)})")
        for place in environments.superseded(name):
            _say(f"{name}: {place} was built with other pins, {environments.size(place) / 1e6:.0f} MB")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = _Parser(prog="kernelk", description="Install and list the engines that need their own Python.")
    parser.add_argument("--version", action="version", version=f"kernelk {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    install = commands.add_parser("install", help="build an engine's environment, unless it is there")
    install.add_argument("names", nargs="+", metavar="NAME", help=", ".join(environments.RECIPES))
    install.add_argument("--rebuild", action="store_true", help="build it again, even if it is there")
    commands.add_parser("list", help="show each engine's environment: its versions, folder and size")
    chosen = parser.parse_args(arguments)
    try:
        return _install(chosen.names, chosen.rebuild) if chosen.command == "install" else _list()
    except KernelKError as error:
        _complain(str(error))
        return 1
    except BrokenPipeError:
        sys.stderr.close()  # the reader left, as in `kernelk list | head`: nobody is there to complain to
        return 1
    except KeyboardInterrupt:
        _complain("stopped; what was begun is not installed; next: the same command again")
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
