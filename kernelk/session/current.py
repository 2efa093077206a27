"""Finds the current session. Light: it imports the session itself only when the first one is made.

A kernel has one session, which every thread of it finds. Each visitor of a marimo app has one of their own; see
`visitors`. Any other host with several visitors in one process gives each a `Session()`, and runs what is theirs
inside `entered(session)`: a thread or an asyncio task that does so is that visitor's, for all that it computes. One
that has entered none works on the process's own session.
"""

from __future__ import annotations

import os
import threading
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from traitlets import Any, HasTraits

from ..errors import ArgumentError, KernelKError
from ..graph import state
from ..graph.state import PROCESS_STATE, current_state, visitors_state

if TYPE_CHECKING:
    from .session import Session

_lock = threading.Lock()
_getpid = os.getpid


def _forked() -> None:
    global _lock
    # One of the parent's threads may hold the old lock.
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


class _Process(HasTraits):
    """Holds the process's own `session`, None until it is needed: observe it to learn when it is made."""

    session = Any(None)


PROCESS = _Process()


def current() -> Session:
    """The session that this code belongs to; the process's own session is made at the first call.

    Raises ForkedError in a forked child that can't use its parent's.
    """
    session = current_state().session
    if session is None:
        return _made()
    if session.pid != _getpid():
        session.check_process()
    return session  # type: ignore[no-any-return]


def _made() -> Session:
    from .session import Session

    here = current_state()
    if here is not visitors_state():
        raise KernelKError(
            "kernelk was imported before marimo, and can't tell the visitors of the app apart",
            next_step="import marimo first",
        )
    with _lock:
        if here.session is None:
            here.session = Session(here)
            if here is PROCESS_STATE:
                PROCESS.session = here.session
        return here.session  # type: ignore[no-any-return]


def existing() -> Session | None:
    """The current session, or None if there is none yet. Makes none, and imports nothing."""
    return current_state().session  # type: ignore[no-any-return]


def entered(session: Session) -> AbstractContextManager[None]:
    """Makes `current()` this session inside the block, in this thread or asyncio task."""
    if not isinstance(getattr(session, "state", None), state.State):
        raise ArgumentError(
            f"entered: a session is needed, not {type(session).__name__}", next_step="with entered(Session()): ..."
        )
    return state.entered(session.state)


def stop_engines() -> None:
    """Stops every engine of the session, if there is one; variables are kept, and the next use starts an engine."""
    session = existing()
    if session is not None:
        session.stop_engines()
