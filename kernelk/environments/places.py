"""Finds an environment and tells whether it is complete; runs no process, so that listing engines stays cheap.

The environments of one recipe and Python are next to each other in a folder of environments: "theano-0123456789", and
with the suffix "-2", "-3" those that were built while that one existed. A build writes its marker last, and among those
with a marker the latest build counts. Environments are never moved: if a build is killed, the one before it is still
the installed one, and a worker keeps the environment that it runs in.
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
    """The folders that `KERNELK_ENVS` names, and its parts that can't be a folder's name, each with the reason."""
    parts = [part for part in os.environ.get("KERNELK_ENVS", "").split(os.pathsep) if part]
    found, unfit = [], []
    for part in parts:
        # Scripts and markers in an environment contain its path as a line of text.
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
    # A version of kernelk with other pins builds another folder, and breaks nothing that is in use.
    return f"{recipe.name}-{recipe.hash(series)[:10]}"


def folder(name: str, series: str | None = None) -> Path:
    """The folder in which the environment would be built; by default for the recipe's preferred Python.

    Its name holds a hash of the pins and of the Python's series.
    """
    recipe = recipe_for(name)
    return root() / folder_name(recipe, series or recipe.pythons[0])


def candidate_folders(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """The folders where an environment with these pins may be, each with its Python series, best first."""
    for parent in roots():
        for series in recipe.pythons:
            for path in slots(parent / folder_name(recipe, series), recipe.hash(series)):
                yield path, series


def slots(base: Path, hash_: str) -> list[Path]:
    """The folder of a recipe's environment and its numbered alternatives; complete ones first, the latest first."""
    pattern = re.compile(rf"{re.escape(base.name)}-\d+|\.{re.escape(base.name)}\.previous")
    beside: list[Path] = []
    with contextlib.suppress(OSError):
        # An earlier layout renamed an environment to ".previous" while it was rebuilt.
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
    """The first of an environment's folders that doesn't exist yet."""
    number = 1
    while os.path.lexists(path := base if number == 1 else base.with_name(f"{base.name}-{number}")):
        number += 1
    return path


def read_marker(environment: Path, hash_: str) -> dict[str, object] | None:
    """The marker of an environment with these pins; doesn't check whether its Python still exists."""
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
    """The marker of the installed environment, with its `folder`; None if there is none."""
    recipe = recipe_for(name)
    for environment, series in candidate_folders(recipe):
        content = read_marker(environment, recipe.hash(series))
        # If the Python behind the link was removed, moved or made unreadable, it doesn't count as installed.
        if content is not None and os.path.exists(python_in(environment)):
            return content
    return None


def installed_python(name: str) -> Path | None:
    """The interpreter of the complete environment, or None; runs no process."""
    content = marker(name)
    return None if content is None else python_in(Path(str(content["folder"])))


def without_python(name: str) -> str:
    """Explains why a complete environment can't be used any more; "" for all others."""
    recipe = recipe_for(name)
    for environment, series in candidate_folders(recipe):
        if read_marker(environment, recipe.hash(series)) is not None:
            target = os.path.realpath(python_in(environment))
            return f"is installed in {environment}, but its Python ({target}) is gone or can't be read"
    return ""


def missing(name: str) -> str:
    """Explains why an engine's environment can't be used; called only if it can't."""
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
    """The folder of an install or rebuild that was killed, or None; None too if a complete environment exists."""
    return next(iter(unfinished(name)), None) if installed_python(name) is None else None


def unfinished(name: str) -> list[Path]:
    """Folders of builds that were killed or are still running: they have no marker."""
    recipe = recipe_for(name)
    return [
        environment
        for environment, series in candidate_folders(recipe)
        if os.path.isdir(environment) and (read_marker(environment, recipe.hash(series)) is None)
    ]


def leftovers(name: str) -> list[Path]:
    """Leftovers of killed builds next to the installed environment; includes a build that is running now."""
    content = marker(name)
    if content is None:
        return []
    installed = Path(str(content["folder"]))
    beside = (path for path, _ in candidate_folders(recipe_for(name)) if path.parent == installed.parent)
    return [path for path in beside if path != installed and os.path.isdir(path)]


def users(environment: Path) -> list[int]:
    """The processes that run in an environment or build it; none if the system doesn't tell."""
    prefix = os.fsencode(environment)
    found = []
    with contextlib.suppress(OSError):
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            with contextlib.suppress(OSError), open(f"/proc/{entry}/cmdline", "rb") as file:
                words = file.read(1 << 16).split(b"\0")
                # The second word is the program if it is a script.
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
