"""The current session: variables, calls, functions, feeds, swaps and saving. Importing it imports no engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .current import current as current
from .current import entered as entered
from .current import existing as existing

if TYPE_CHECKING:
    from .session import Session as Session

__all__ = ["Session", "current", "entered", "existing"]


def __getattr__(name: str) -> Any:
    # Imported on first use: it needs numpy, which checking for a session doesn't.
    if name == "Session":
        from .session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
