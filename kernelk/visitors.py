"""Tells the visitors of a marimo app apart, whom threads of one process serve: each has a state of their own.

All of it is below `graph.state.current_state` and `config.settings`, so that no other part of kernelk has to know. A
notebook that is edited, or run as a script, has its process to itself, and the process's own state and settings.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from .errors import KernelKError

Made = TypeVar("Made")

# Once an app has had a visitor here, what serves none of them has no state.
_serving = False


def visitor() -> object | None:
    """marimo's kernel of the visitor whom this thread serves; None where there are no visitors.

    Raises KernelKError in a thread of which marimo doesn't know for whom it works.
    """
    global _serving
    if "marimo" not in sys.modules:
        return None
    try:
        from marimo._runtime.context import ContextNotInitializedError, get_context

        try:
            context = get_context()
        except ContextNotInitializedError:
            context = None
        if context is None or getattr(context, "session_mode", None) != "run":
            if context is None and _serving:
                raise KernelKError(
                    "this thread belongs to no visitor of the app, and each has variables and engines of their own",
                    next_step="start it as marimo.Thread(target=...)",
                )
            return None
        while context.parent is not None:  # an app within an app
            context = context.parent
        # Threads have copies of the context, with the same kernel.
        found: object = context._kernel  # type: ignore[attr-defined]
    except (AttributeError, ImportError) as error:
        raise KernelKError(
            f"marimo {getattr(sys.modules['marimo'], '__version__', '')} doesn't say which visitor this is ({error})",
            next_step="give each a session: with kernelk.session.entered(kernelk.session.Session()): ...",
        ) from None
    _serving = True
    return found


class PerVisitor(Generic[Made]):
    """One object for each visitor, made when first asked for; `end` is called with it when the visit is over.

    `name`: among the objects that a visitor has.
    """

    def __init__(self, name: str, make: Callable[[], Made], end: Callable[[Made], None] | None = None) -> None:
        self._name, self._make, self._end = f"_kernelk_{name}", make, end
        self._lock = threading.Lock()
        self._here = threading.local()

    def get(self) -> Made | None:
        """This visitor's; None where there are no visitors. Raises KernelKError as `visitor` does."""
        found = visitor()
        if found is None:
            return None
        # On the visitor's kernel, since what is made refers to it, and a registry would keep both alive.
        kept = vars(found)
        with self._lock:
            if self._name not in kept:
                kept[self._name] = self._make()
        made: Made = kept[self._name]
        if self._end is not None and not hasattr(self._here, "ending"):
            # marimo ends a visitor's thread with the visit, unlike those that the visitor's cells have started.
            started = isinstance(threading.current_thread(), sys.modules["marimo"].Thread)
            self._here.ending = None if started else _Ending(made, self._end)
        return made


class _Ending(Generic[Made]):
    """Calls `end` when the thread whose local variable this is has ended."""

    def __init__(self, made: Made, end: Callable[[Made], None]) -> None:
        self._made, self._end = weakref.ref(made), end

    def __del__(self) -> None:
        made = self._made()
        if made is not None:
            with contextlib.suppress(Exception):
                self._end(made)
