"""The IPython side: `%kbackend`, and the cell number that errors and nodes are shown with."""

from __future__ import annotations

import re
import shlex
import sys
from copy import deepcopy
from typing import Any

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import Magics, line_magic, magics_class, no_var_expand
from traitlets import TraitError

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
        %kbackend --log cntk    what CNTK's worker said lately, also after it ended

        Python twins: kernelk.list_backends(), kernelk.set_backend("theano") and kernelk.log("cntk").
        """
        try:
            words = shlex.split(line)
        except ValueError as error:
            raise ArgumentError(f"%kbackend {line.strip()}: {error}; e.g. %kbackend tensorflow") from None
        if not words:
            from .status import list_backends

            return list_backends()
        if words[0] == "--log" and len(words) <= 2:
            from .logs import log

            return log(*words[1:])
        if len(words) > 1 or words[0].startswith("-"):
            raise ArgumentError(f"%kbackend takes one engine's name, not {line.strip()!r}; e.g. %kbackend tensorflow")
        from .session import current
        from .swap import swap

        return swap(current(), words[0], "%kbackend")

    # An expression's braces and dollars are the expression's own.
    @no_var_expand
    @line_magic
    def kdiff(self, line: str) -> Any:
        """Names the first op whose values differ on two engines, or where the first NaN or infinity appears.

        %kdiff y tensorflow cntk                         y: a tensor, a K.function, or an expression for one
        %kdiff y tensorflow cntk --feed x=np.ones((2, 3)) --feed t=labels --tolerance 1e-3

        A placeholder that isn't given a feed takes what it was fed last. Nothing is committed, the engine stays.
        Python twin: kernelk.diff(y, "tensorflow", "cntk", feeds={x: array}, tolerance=1e-3).
        """
        head, *options = re.split(r"(?:^|\s)--(\w+)(?:\s+|$)", line.strip())
        words = head.rsplit(None, 2)
        usage = "e.g. %kdiff y tensorflow cntk --feed x=array --tolerance 1e-3"
        if len(words) != 3:
            raise ArgumentError(f"%kdiff takes an expression and two engines' names, not {line.strip()!r}; {usage}")
        feeds: dict[Any, Any] = {}
        tolerance: str | None = None
        for option, text in zip(options[::2], options[1::2]):
            name, equals, value = (part.strip() for part in text.partition("="))
            if option == "tolerance" and text.strip():
                tolerance = text.strip()
            elif option == "feed" and name and equals and value:
                feeds[self._placeholder(name)] = self._value(value)
            else:
                raise ArgumentError(f"%kdiff: --{option} {text.strip()} isn't known or says nothing; {usage}")
        from .divergence import diff

        return diff(self._value(words[0]), words[1], words[2], feeds, tolerance)

    def _value(self, expression: str) -> Any:
        """The value of a notebook expression. Raises ArgumentError with what went wrong, in one line."""
        try:
            return self.shell.ev(expression)  # type: ignore[union-attr]
        except Exception as error:
            words = " ".join(str(error).split())
            raise ArgumentError(f"%kdiff: {expression} can't be evaluated: {type(error).__name__}: {words}") from None

    def _placeholder(self, name: str) -> Any:
        """The placeholder that a notebook name or expression stands for, else its own name."""
        try:
            return self._value(name)
        except ArgumentError:
            return name


class _Loaded:
    """What has to be undone at unload."""

    shell: InteractiveShell | None = None
    show_cell: Any = None
    settings: Any = None
    configuration: Any = None  # c.KernelK as it was before %config, which enters all that it sets


def load(shell: InteractiveShell) -> None:
    """Registers magics, settings and the cell counter, and says what is wrong with the settings' files, if anything."""
    if _Loaded.shell is not None:
        return
    from . import config
    from .configurable import KernelK

    shell.register_magics(KernelKMagics)
    problems = list(config.settings().problems)
    try:
        settings = KernelK(parent=shell)
    except TraitError as error:
        problems.append(f"c.KernelK in IPython's configuration: {error}; none of it is used until it is mended")
        config.LIMITS = config.Limits()
        settings = KernelK()
    configurables: list[Any] = shell.configurables
    configurables.append(settings)
    config.WHEN_MADE.append(settings.attach)
    made = sys.modules.get("kernelk.session")
    if made is not None and made._session is not None:
        settings.attach(made._session)

    def show_cell(info: Any = None) -> None:
        # Not `execution_count`: some versions of IPython raise it before this event, others after the cell.
        history = shell.history_manager
        CELL.number = len(history.input_hist_parsed) if history is not None else shell.execution_count

    shell.events.register("pre_run_cell", show_cell)
    show_cell()
    # This very cell has its input in the history already.
    CELL.number = max(CELL.number - 1, 1)
    _Loaded.shell, _Loaded.show_cell, _Loaded.settings = shell, show_cell, settings
    _Loaded.configuration = deepcopy(shell.config.get("KernelK"))
    for problem in problems:
        config.say(f"kernelk: {problem}")


def unload(shell: InteractiveShell) -> None:
    """Takes back what `load` registered and stops all workers; variables stay, and the next use starts a worker."""
    if _Loaded.shell is None:
        return
    from . import config

    shell.events.unregister("pre_run_cell", _Loaded.show_cell)
    for kind, names in KernelKMagics.magics.items():
        for name in names:
            shell.magics_manager.magics[kind].pop(name, None)
    magics = shell.magics_manager.registry.pop(KernelKMagics.__name__, None)
    ours: tuple[Any, Any] = (magics, _Loaded.settings)
    shell.configurables[:] = [one for one in shell.configurables if not any(one is other for other in ours)]
    config.WHEN_MADE.remove(_Loaded.settings.attach)
    _Loaded.settings.detach()
    shell.config.pop("KernelK", None)
    if _Loaded.configuration is not None:
        shell.config["KernelK"] = _Loaded.configuration
    _Loaded.shell = _Loaded.show_cell = _Loaded.settings = _Loaded.configuration = None
    CELL.number = 0
    # Without a session there are no workers; nothing is imported to find that out.
    loaded = sys.modules.get("kernelk.session")
    if loaded is not None:
        loaded.stop_engines()
