"""Tells where an environment is and whether it is complete; runs no process, so that listing engines stays cheap."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from ..display.commands import in_shell_and_notebook
from ..errors import BackendNotInstalledError
from .recipes import Recipe, recipe_for

MARKER = "kernelk.json"


def python_in(environment: Path) -> Path:
    """The environment's interpreter."""
    return environment / "Scripts" / "python.exe" if os.name == "nt" else environment / "bin" / "python"


def user_root() -> Path:
    """The folder of environments in the user's data folder."""
    return Path(platformdirs.user_data_path("kernelk")) / "envs"


def roots() -> list[Path]:
    """All folders of environments, in the order of the search: those that `KERNELK_ENVS` names, then the user's."""
    chosen = [part for part in os.environ.get("KERNELK_ENVS", "").split(os.pathsep) if part]
    return list(dict.fromkeys([*(Path(os.path.expanduser(part)).absolute() for part in chosen), user_root()]))


def root() -> Path:
    """The folder that an install goes to: the first that can be written, as far as its permissions tell."""
    for place in roots():
        existing = place
        while not os.path.lexists(existing) and existing != existing.parent:
            existing = existing.parent
        if os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK):
            return place
    return user_root()


def folder_name(recipe: Recipe, series: str) -> str:
    # Another version of kernelk, with other pins, builds beside it and breaks nothing that is in use.
    return f"{recipe.name}-{recipe.hash(series)[:10]}"


def folder(name: str, series: str | None = None) -> Path:
    """Where the environment would be built; by default for the recipe's best Python.

    Its name holds a hash of the pins and of the Python's series.
    """
    recipe = recipe_for(name)
    return root() / folder_name(recipe, series or recipe.pythons[0])


def candidate_folders(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Where an environment of these pins may be, with the Python's series, best first."""
    for place in roots():
        for series in recipe.pythons:
            yield place / folder_name(recipe, series), series


def read_marker(place: Path, hash_: str) -> dict[str, object] | None:
    """The marker of an environment with these pins; whether its Python is still there isn't looked at."""
    try:
        content = json.loads((place / MARKER).read_text(encoding="utf-8"))
        return {**content, "folder": str(place)} if content["recipe"] == hash_ else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def marker(name: str) -> dict[str, object] | None:
    """What was written down about the installed environment, with its `folder`; None where there is none."""
    recipe = recipe_for(name)
    for place, series in candidate_folders(recipe):
        content = read_marker(place, recipe.hash(series))
        # The link dangles once the Python under it was removed or moved, or may not be read: not installed either.
        if content is not None and os.path.exists(python_in(place)):
            return content
    return None


def installed_python(name: str) -> Path | None:
    """The interpreter of the complete environment, or None; runs no process."""
    content = marker(name)
    return None if content is None else python_in(Path(str(content["folder"])))


def without_python(name: str) -> str:
    """What has become of an environment that was complete and can't be used any more, in words; "" for all others."""
    recipe = recipe_for(name)
    for place, series in candidate_folders(recipe):
        if read_marker(place, recipe.hash(series)) is not None:
            target = os.path.realpath(python_in(place))
            return f"is installed in {place}, but its Python ({target}) is gone or can't be read"
    return ""


def missing(name: str) -> str:
    """Why the engine's environment can't be used, in words, for one that isn't complete."""
    return without_python(name) or ("is only partly installed" if half_built(name) else "is not installed")


def require_python(name: str) -> Path:
    """The interpreter of the complete environment, or an error with the command that installs it."""
    python = installed_python(name)
    if python is None:
        raise BackendNotInstalledError(
            f"{recipe_for(name).title} {missing(name)}",
            next_step=in_shell_and_notebook(f"kernelk install {name}", f"%kbackend --install {name}"),
        )
    return python


def half_built(name: str) -> Path | None:
    """The folder of an install that was killed, or None."""
    if installed_python(name) is not None:
        return None
    return next((place for place, _ in candidate_folders(recipe_for(name)) if os.path.isdir(place)), None)


def superseded(name: str) -> list[Path]:
    """Folders built with other pins, by another version of kernelk; nothing here uses them."""
    recipe = recipe_for(name)
    current = {place for place, _ in candidate_folders(recipe)}
    pattern = re.compile(rf"{re.escape(name)}-[0-9a-f]{{10}}")
    folders: list[Path] = []
    for place in roots():
        with contextlib.suppress(OSError):
            folders += [p for p in sorted(place.iterdir()) if pattern.fullmatch(p.name) and p.is_dir()]
    return [place for place in folders if place not in current]
