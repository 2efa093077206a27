"""Engines' environments, as tests make them and find them."""

from __future__ import annotations

import json
from pathlib import Path

from helpers.fake_programs import this_python
from kernelk.environments import places
from kernelk.environments.recipes import RECIPES


def make_complete(name: str) -> Path:
    """An environment that counts as installed, with a Python that is this one."""
    place = places.folder(name)
    this_python(place / "bin" / "python")
    recipe = RECIPES[name]
    content = {"recipe": recipe.hash(recipe.pythons[0])}
    (place / places.MARKER).write_text(json.dumps(content))
    return place


def left(folder: Path) -> list[str]:
    """The leftovers of an install, besides its log and its lock."""
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".log", ".lock"))
