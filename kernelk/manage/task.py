"""Installs, removes or lists engines for a kernel elsewhere: the process that `there` starts on another machine.

Each line of its output is JSON: ["line", text] and ["moving", text] of progress, and at last ["over", outcome], where
the outcome has a "result" or an "error". It ends as by Ctrl-C when its standard input ends, or says nothing for long.
"""

from __future__ import annotations

import _thread
import json
import os
import select
import sys
import threading
from collections.abc import Callable
from typing import Any

from ..errors import KernelKError
from ..remote.serving import LEASE
from .install import install, uninstall
from .states import states


class _Report:
    """Progress as lines of JSON."""

    def __call__(self, text: str) -> None:
        _write("line", text)

    def moving(self, text: str) -> None:
        """A line that the next one replaces."""
        _write("moving", text)


def _write(kind: str, content: Any) -> None:
    print(json.dumps([kind, content]), flush=True)


def _watch() -> None:
    """Interrupts this process once nobody wants it any more."""
    while select.select([0], [], [], LEASE)[0] and os.read(0, 1 << 12):
        pass
    _thread.interrupt_main()


_TASKS: dict[str, Callable[..., Any]] = {
    "install": lambda name, rebuild: str(install(name, _Report(), rebuild)),
    "uninstall": lambda name: [str(path) for path in uninstall(name, _Report())],
    "list": lambda on: states(_Report(), on),
}


def main(task: str) -> None:
    """Carries out a task: its name and its arguments, in JSON."""
    threading.Thread(target=_watch, daemon=True).start()
    do, arguments = json.loads(task)
    try:
        outcome = {"result": _TASKS[do](**arguments)}
    except KernelKError as error:
        outcome = {"error": error.as_dict()}
    except KeyboardInterrupt:
        return
    _write("over", outcome)


if __name__ == "__main__":
    main(sys.argv[1])
