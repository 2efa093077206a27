"""The IPython side: `%kbackend`, and the cell number that errors and nodes are shown with."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class

from .errors import ArgumentError
from .source import CELL


@magics_class
class KernelKMagics(Magics):
    """kernelk's magics; each has a Python twin that does the work."""

    @line_magic
    def kbackend(self, line: str) -> Any:
        """Shows or changes the engine under K.

        %kbackend            the table of engines, and which setting chose the active one
        %kbackend theano     makes Theano the active engine: variables move bit for bit, functions go on working

        Python twins: kernelk.list_backends() and kernelk.set_backend("theano").
        """
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise ArgumentError(f"%kbackend {line.strip()}: {error}; e.g. %kbackend tensorflow") from None
        if not words:
            from .status import list_backends

            return list_backends()
        if len(words) > 1 or words[0].startswith("-"):
            raise ArgumentError(f"%kbackend takes one engine's name, not {line.strip()!r}; e.g. %kbackend tensorflow")
        from .session import current
        from .swap import swap

        return swap(current(), words[0], "%kbackend")


class _Loaded:
    """What has to be undone at unload."""

    shell: InteractiveShell | None = None
    show_cell: Any = None


def load(shell: InteractiveShell) -> None:
    """Registers the magics and the cell counter, and says what is wrong with keras.json, if anything."""
    if _Loaded.shell is not None:
        return
    shell.register_magics(KernelKMagics)

    def show_cell(info: Any = None) -> None:
        # Not `execution_count`: some versions of IPython raise it before this event, others after the cell.
        history = shell.history_manager
        CELL.number = len(history.input_hist_parsed) if history is not None else shell.execution_count

    shell.events.register("pre_run_cell", show_cell)
    show_cell()
    # This very cell has its input in the history already.
    CELL.number = max(CELL.number - 1, 1)
    _Loaded.shell, _Loaded.show_cell = shell, show_cell
    from . import config

    for problem in config.settings().problems:
        config.say(f"kernelk: {problem}")


def unload(shell: InteractiveShell) -> None:
    """Takes back what `load` registered and stops all workers."""
    if _Loaded.shell is None:
        return
    shell.events.unregister("pre_run_cell", _Loaded.show_cell)
    for kind, name in (("line", "kbackend"),):
        shell.magics_manager.magics[kind].pop(name, None)
    shell.magics_manager.registry.pop(KernelKMagics.__name__, None)
    _Loaded.shell = _Loaded.show_cell = None
    CELL.number = 0
    # Without a session there are no workers; nothing is imported to find that out.
    loaded = sys.modules.get("kernelk.session")
    if loaded is not None:
        loaded.stop_engines()
