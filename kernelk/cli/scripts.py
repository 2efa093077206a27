"""Turns scripts into functions to measure, for the commands `kernelk time`, `profile` and `compare`."""

from __future__ import annotations

import contextlib
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, KernelKError, one_line


def script(path: str) -> Callable[[], None]:
    """A body that runs the script as Python itself would, at each call. Raises ArgumentError if there is none.

    Its errors are raised with the script's own line, as ArgumentError if they aren't kernelk's.
    """
    if not Path(path).is_file():
        raise ArgumentError(
            f"there is no script {path}", next_step="give the path of a Python file that evaluates something with K"
        )
    # A script's globals have to live as long as its calls are repeated.
    kept: list[Any] = []

    def run() -> None:
        arguments, paths = sys.argv, list(sys.path)
        sys.argv, sys.path[:0] = [path], [str(Path(path).resolve().parent)]
        try:
            kept.append(runpy.run_path(path, run_name="__main__"))
        except KernelKError as error:
            # An error from recording an op names no line, since a notebook's traceback shows it.
            location = _location(path, error)
            if location not in error.locations:
                error.location = location
            raise
        except SystemExit as end:
            if end.code not in (None, 0):
                raise ArgumentError(
                    f"{path} ended with {end.code!r}, so nothing was measured", next_step="run it on its own"
                ) from None
        except Exception as error:
            raise ArgumentError(
                f"{_location(path, error)}: {one_line(f'{type(error).__name__}: {error}')}", next_step=f"python {path}"
            ) from None
        finally:
            sys.argv, sys.path[:] = arguments, paths

    run.__name__ = Path(path).name
    return run


def _location(path: str, error: Exception) -> str:
    """The script's name and the line of it that led to the error."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return f"{path}, line {error.lineno}"
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f"{path}, line {lines[-1]}" if lines else path


def measure(what: str, paths: Sequence[str], options: dict[str, Any], engines: Sequence[str]) -> Any:
    """The result of the twin "time", "profile" or "compare" for these scripts. Raises what the twin raises."""
    from ..measure.comparison import compare
    from ..measure.profiling import profile
    from ..measure.timing import time
    from ..session.swap import set_backend

    twins: dict[str, Callable[..., Any]] = {"time": time, "profile": profile, "compare": compare}
    bodies = [script(path) for path in paths]
    given = {name: value for name, value in options.items() if value is not None}
    if engines and len(bodies) == 1:
        # A script that chooses no engine is recorded on the first of them, so that no other one is started. One that
        # can't start is refused below, like the others.
        with contextlib.suppress(KernelKError):
            set_backend(engines[0])
    return twins[what](*bodies, *engines, **given)


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """(scripts, engines' names) of a command's arguments: a script is what ends in .py or is a file."""
    scripts = [word for word in words if word.endswith(".py") or Path(word).is_file()]
    return scripts, [word for word in words if word not in scripts]
