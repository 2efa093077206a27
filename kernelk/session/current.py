"""Which session is the current one. Light: it imports the session itself only when the first one is made."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from .. import config

if TYPE_CHECKING:
    from .session import Session

_lock = threading.Lock()
_session: Session | None = None


def current() -> Session:
    """The process's session; made at the first call."""
    global _session
    if _session is None:
        from .session import Session

        with _lock:
            if _session is None:
                _session = Session()
                for call in list(config.WHEN_MADE):
                    call(_session)
    return _session


def existing() -> Session | None:
    """The process's session if there is one already; none is made, and nothing is imported."""
    return _session


def stop_engines() -> None:
    """Stops every engine of the session, if there is one; variables stay, and the next use starts what it needs."""
    if _session is not None:
        with _session.lock:
            for host in _session.hosts.values():
                host.stop()
