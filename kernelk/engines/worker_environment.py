"""Tells whether the environment that a worker runs in is still the one it was started from: others may rebuild it."""

from __future__ import annotations

import os
from pathlib import Path

from .descriptors import Engine


class WorkerEnvironment:
    """An engine's environment as it was at the start of its worker. The kernel's own one always counts as the same."""

    def __init__(self, engine: Engine, interpreter: Path) -> None:
        from ..environments.places import MARKER

        self._recipe = engine.recipe
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
        """ "removed", "rebuilt" where there is one now, here or elsewhere, or "" where nothing has changed."""
        now = self._identity()
        if self._before is None or now == self._before:
            return ""
        from ..environments.places import installed_python

        elsewhere = self._recipe is not None and installed_python(self._recipe) is not None
        return "rebuilt" if now is not None or elsewhere else "removed"
