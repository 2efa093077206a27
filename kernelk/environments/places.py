"""Tells where an environment is and whether it is complete; runs no process, so that listing engines stays cheap.

The environments of one recipe and Python stand beside each other in a folder of environments: "theano-0123456789", and
with "-2", "-3" behind it those that were built while that one was there. A build writes its marker last, and of those
that have one the latest build counts. So nothing moves: whenever a build is killed, the one before it is still the
installed one, and a worker that runs in an environment keeps it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from .. import files
from ..display.commands import in_shell_and_notebook
from ..errors import BackendNotInstalledError, printable
from .recipes import Recipe, recipe_for

MARKER = "kernelk.json"
_MOST_BYTES = 1 << 20


def python_in(environment: Path) -> Path:
    """The environment's interpreter."""
    return environment / "Scripts" / "python.exe" if os.name == "nt" else environment / "bin" / "python"


def user_root() -> Path:
    """The folder of environments in the user's data folder."""
    return Path(platformdirs.user_data_path("kernelk")) / "envs"


def chosen_roots() -> tuple[list[Path], list[str]]:
    """The folders that `KERNELK_ENVS` names, and those of its parts that can't name one, each in a few words."""
    parts = [part for part in os.environ.get("KERNELK_ENVS", "").split(os.pathsep) if part]
    found, unfit = [], []
    for part in parts:
        # Scripts and markers in an environment hold its path as a line of text.
        if not part.isprintable():
            unfit.append(f"{printable(part, 200)} (not a line of text)")
            continue
        try:
            found.append(Path(os.path.abspath(os.path.expanduser(part))))
        except OSError:
            unfit.append(f"{part} (relative to a folder that is gone)")
    return found, unfit


def roots() -> list[Path]:
    """All folders of environments, in the order of the search: those that `KERNELK_ENVS` names, then the user's."""
    return list(dict.fromkeys([*chosen_roots()[0], user_root()]))


def root() -> Path:
    """The folder that an install goes to: the first that can be written, as far as its permissions tell."""
    for folder in roots():
        ancestor = folder
        while not os.path.lexists(ancestor) and ancestor != ancestor.parent:
            ancestor = ancestor.parent
        if os.path.isdir(ancestor) and os.access(ancestor, os.W_OK | os.X_OK):
            return folder
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
    for parent in roots():
        for series in recipe.pythons:
            for path in slots(parent / folder_name(recipe, series), recipe.hash(series)):
                yield path, series


def slots(base: Path, hash_: str) -> list[Path]:
    """The folder of a recipe's environment and those that stand beside it for the same; complete ones first, by age."""
    pattern = re.compile(rf"{re.escape(base.name)}-\d+|\.{re.escape(base.name)}\.previous")
    beside: list[Path] = []
    with contextlib.suppress(OSError):
        # An earlier layout put an environment aside as ".previous" while it was built again.
        beside = sorted(base.with_name(name) for name in os.listdir(base.parent) if pattern.fullmatch(name))
    if not beside:
        return [base]

    def age(path: Path) -> int:
        content = read_marker(path, hash_)
        if content is None or not os.path.exists(python_in(path)):
            return -1
        build = content.get("build")
        return build if isinstance(build, int) else 0

    return sorted([base, *beside], key=age, reverse=True)


def free_slot(base: Path) -> Path:
    """The first of the folders for an environment that isn't there."""
    number = 1
    while os.path.lexists(path := base if number == 1 else base.with_name(f"{base.name}-{number}")):
        number += 1
    return path


def read_marker(environment: Path, hash_: str) -> dict[str, object] | None:
    """The marker of an environment with these pins; whether its Python is still there isn't looked at."""
    try:
        content = json.loads(files.read_small(environment / MARKER, _MOST_BYTES))
        if content["recipe"] != hash_:
            return None
        versions, count = content.get("versions"), content.get("bytes")
        return {
            **content,
            "python": str(content.get("python", "unknown")),
            "engine": str(content.get("engine", "unknown")),
            "versions": versions if isinstance(versions, dict) else {},
            "bytes": count if isinstance(count, int) else 0,
            "folder": str(environment),
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def marker(name: str) -> dict[str, object] | None:
    """What was written down about the installed environment, with its `folder`; None where there is none."""
    recipe = recipe_for(name)
    for environment, series in candidate_folders(recipe):
        content = read_marker(environment, recipe.hash(series))
        # The link dangles once the Python under it was removed or moved, or may not be read: not installed either.
        if content is not None and os.path.exists(python_in(environment)):
            return content
    return None


def installed_python(name: str) -> Path | None:
    """The interpreter of the complete environment, or None; runs no process."""
    content = marker(name)
    return None if content is None else python_in(Path(str(content["folder"])))


def without_python(name: str) -> str:
    """What has become of an environment that was complete and can't be used any more, in words; "" for all others."""
    recipe = recipe_for(name)
    for environment, series in candidate_folders(recipe):
        if read_marker(environment, recipe.hash(series)) is not None:
            target = os.path.realpath(python_in(environment))
            return f"is installed in {environment}, but its Python ({target}) is gone or can't be read"
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
    """The folder of an install that was killed, or None; of a rebuild's too where nothing complete is left."""
    return next(iter(unfinished(name)), None) if installed_python(name) is None else None


def unfinished(name: str) -> list[Path]:
    """Folders of builds that were killed, or still run: they have no marker."""
    recipe = recipe_for(name)
    return [
        environment
        for environment, series in candidate_folders(recipe)
        if os.path.isdir(environment) and (read_marker(environment, recipe.hash(series)) is None)
    ]


def leftovers(name: str) -> list[Path]:
    """What builds that were killed have left beside the installed environment; a build that runs now is there, too."""
    content = marker(name)
    if content is None:
        return []
    installed = Path(str(content["folder"]))
    beside = (path for path, _ in candidate_folders(recipe_for(name)) if path.parent == installed.parent)
    return [path for path in beside if path != installed and os.path.isdir(path)]


def users(environment: Path) -> list[int]:
    """The processes that run in an environment, or build it; none where the system doesn't tell."""
    prefix = os.fsencode(environment)
    found = []
    with contextlib.suppress(OSError):
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            with contextlib.suppress(OSError), open(f"/proc/{entry}/cmdline", "rb") as file:
                words = file.read(1 << 16).split(b"\0")
                # The second one for a program that is a script.
                if any(word.startswith(prefix + b"/bin/") for word in words[:2]) or prefix in words:
                    found.append(int(entry))
    return found


def superseded(name: str) -> list[Path]:
    """Folders built with other pins, by another version of kernelk; nothing here uses them."""
    recipe = recipe_for(name)
    current = {environment for environment, _ in candidate_folders(recipe)}
    pattern = re.compile(rf"{re.escape(name)}-[0-9a-f]{{10}}(-\d+)?|\.{re.escape(name)}-[0-9a-f]{{10}}\.previous")
    folders: list[Path] = []
    for parent in roots():
        with contextlib.suppress(OSError):
            folders += [p for p in sorted(parent.iterdir()) if pattern.fullmatch(p.name) and p.is_dir()]
    return [folder for folder in folders if folder not in current]
