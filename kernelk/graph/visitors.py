"""Tells the visitors of a marimo app apart, whom threads of one process serve: each has a state of their own.

All of it is below `current_state`, so that no other part of kernelk has to know. A notebook that is edited, or run as a
script, has its process to itself, and the process's own state.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from ..errors import KernelKError

Made = TypeVar("Made")

# Once an app has had a visitor here, what serves none of them has no state.
_serving = False


def visitor() -> object | None:
    """What stands for the visitor whom this thread serves, for as long as the visit lasts; None where there are none.

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
        found: object = context._kernel
    except (AttributeError, ImportError) as error:
        raise KernelKError(
            f"marimo {getattr(sys.modules['marimo'], '__version__', '')} doesn't say which visitor this is ({error})",
            next_step="give each a session: with kernelk.session.entered(kernelk.session.Session()): ...",
        ) from None
    _serving = True
    return found


class PerVisitor(Generic[Made]):
    """One object for each visitor, made when first asked for, and freed with the visit."""

    def __init__(self, make: Callable[[], Made]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: weakref.WeakKeyDictionary[object, Made] = weakref.WeakKeyDictionary()

    def get(self) -> Made | None:
        """This visitor's; None where there are no visitors. Raises KernelKError as `visitor` does."""
        found = visitor()
        if found is None:
            return None
        with self._lock:
            if found not in self._made:
                self._made[found] = self._make()
            return self._made[found]
