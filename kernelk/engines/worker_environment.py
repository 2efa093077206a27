"""Tells whether the environment that a worker runs in is still the one it was started from: others may rebuild it."""

from __future__ import annotations

import os
from pathlib import Path

from .descriptors import Engine


class WorkerEnvironment:
    """An engine's environment as it was at the start of its worker. The kernel's own one always counts as the same."""

    def __init__(self, engine: Engine, interpreter: Path) -> None:
        from ..environments.places import MARKER

        self.folder = interpreter.parent.parent
        # What a build writes last, and a removal takes first.
        self._marker = self.folder / MARKER if engine.recipe is not None else None
        self._before = self._identity()

    def _identity(self) -> tuple[int, ...] | None:
        try:
            found = os.stat(self._marker) if self._marker is not None else None
        except OSError:
            return None
        return None if found is None else (found.st_dev, found.st_ino, found.st_mtime_ns)

    def change(self) -> str:
        """ "rebuilt", "removed", or "" where nothing has changed."""
        if self._before is None:
            return ""
        now = self._identity()
        return "" if now == self._before else "removed" if now is None else "rebuilt"
