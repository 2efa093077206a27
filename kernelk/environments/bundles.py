"""Writes and installs bundles: one file with all that an environment is built from, for machines without a network.

A bundle is a zip file: `bundle.json` says for which engines and Pythons, `files/` has what pip installs. Its files are
compared with the lock of the kernelk that installs them, so that a bundle needs no trust of its own.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .._version import __version__
from ..display.progress import Progress, Report
from ..errors import InstallError
from . import places
from .build import Downloads, bootstrap_of, disk_error, packages_for, pip_of
from .install import install_recipe
from .interpreters import series_of
from .recipes import LockedFile, Recipe, recipe_for, requirements_text
from .runner import Runner, megabytes

_CONTENTS = "bundle.json"
_FORMAT = 1


def bundle(names: Sequence[str], output: Path, report: Report | None = None) -> Path:
    """Writes a bundle of these engines, for machines of this kind. `kernelk bundle NAME... --output FILE`.

    An engine that isn't installed yet is installed first: what a bundle holds has been seen to work. Raises
    InstallError.
    """
    report = report or Progress()
    output = output.expanduser().absolute()
    recipes = [recipe_for(name) for name in dict.fromkeys(names)]
    if not output.parent.is_dir() or output.is_dir():
        raise InstallError(
            f"{output} can't be written",
            allowed="its folder must exist",
            next_step="run kernelk bundle again with another --output",
        )
    partial = output.with_name(f".{output.name}.partial")
    try:
        with tempfile.TemporaryDirectory(prefix="kernelk-bundle-") as scratch:
            files: dict[str, LockedFile] = {}
            engines = {}
            for recipe in recipes:
                python = install_recipe(recipe, report)
                collected = _download(recipe, python, Path(scratch), output, report)
                marker = places.marker(recipe.name) or {}
                files.update({file.name: file for file in collected})
                engines[recipe.name] = {
                    "python": series_of(str(marker["python"])),
                    "files": [file.name for file in collected],
                }
            contents = {"format": _FORMAT, "kernelk": __version__, "platform": sys.platform, "engines": engines}
            with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr(_CONTENTS, json.dumps(contents, indent=1))
                for name in sorted(files):
                    archive.write(Path(scratch) / name, f"files/{name}")
        os.replace(partial, output)
    except OSError as error:
        raise InstallError(
            f"the bundle {output} could not be written: {error.strerror or error}",
            next_step="run kernelk bundle again with --output in a writable folder that has enough space",
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    report(f"ready: {output}, {megabytes(output.stat().st_size)}, for {', '.join(engines)}")
    return output


def _download(recipe: Recipe, python: Path, folder: Path, output: Path, report: Report) -> list[LockedFile]:
    """All files of the environment, taken by its own pip from the index or from pip's cache, and checked."""
    again = f"`kernelk bundle {recipe.name} --output {output}`"
    run = Runner(recipe.title, recipe.name, folder / f"{recipe.name}.log", report, again, "bundled")
    files = [*bootstrap_of(recipe), *packages_for(recipe, python, run)]
    run.say(f"collecting {len(files)} files, {megabytes(sum(file.size for file in files))}")
    requirements = folder / f"{recipe.name}.txt"
    requirements.write_text(requirements_text(files), encoding="utf-8")
    options = ["--no-deps", "--require-hashes", "--progress-bar", "off", "--dest", str(folder)]
    progress = Downloads(files, folder, run)
    run(
        "pip",
        [*pip_of(python), "download", *options, "--requirement", str(requirements)],
        line=progress.line,
        tick=progress.tick,
        settings={"TMPDIR": str(folder)},
    )
    return files


def contents(path: Path) -> dict[str, str]:
    """The engines of a bundle, each with the Python's series that it is for. Raises InstallError for what is none."""
    return {name: str(entry["python"]) for name, entry in _read(path)["engines"].items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            found: dict[str, Any] = json.loads(archive.read(_CONTENTS))
        if found["format"] != _FORMAT:
            raise InstallError(
                f"{path} was made by kernelk {found['kernelk']} in a format this kernelk {__version__} can't read",
                next_step="run `kernelk bundle` with this version",
            )
        for entry in found["engines"].values():
            entry["python"], entry["files"]
    except OSError as error:
        raise InstallError(f"{path} can't be read: {error.strerror or error}", next_step="check the path") from error
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InstallError(
            f"{path} isn't a bundle, or wasn't copied completely",
            next_step="copy it again, or make a new one with `kernelk bundle NAME --output FILE`",
        ) from error
    return found


def install(
    path: Path, names: Sequence[str] = (), report: Report | None = None, rebuild: bool = False
) -> dict[str, Path]:
    """Installs engines of a bundle (all of them unless named) without network. `kernelk install --from BUNDLE`.

    Returns their interpreters. Raises InstallError, BackendNotInstalledError.
    """
    report = report or Progress()
    path = path.expanduser().absolute()
    engines = _read(path)["engines"]
    absent = [name for name in names if name not in engines]
    if absent:
        raise InstallError(
            f"{path} contains no {absent[0]!r}, only {', '.join(engines)}", next_step=f"`kernelk install --from {path}`"
        )
    made = {}
    for name in dict.fromkeys(names or engines):
        recipe = recipe_for(name)
        again = f"`kernelk install --from {path} {name}`"
        try:
            with tempfile.TemporaryDirectory(prefix="kernelk-bundle-") as scratch:
                _extract(path, recipe, engines[name], Path(scratch))
                # The bundle's own Python, even where another one would be better.
                narrowed = dataclasses.replace(recipe, pythons=(str(engines[name]["python"]),))
                made[name] = install_recipe(narrowed, report, rebuild, Path(scratch), again)
        except OSError as error:
            raise disk_error(recipe.title, Path(tempfile.gettempdir()), error, again) from error
    return made


def _extract(path: Path, recipe: Recipe, entry: dict[str, object], folder: Path) -> None:
    """Unpacks an engine's files, each compared with kernelk's lock. Raises InstallError."""
    locked = {file.name: file for file in recipe.locked()}
    if entry["python"] not in recipe.pythons:
        raise InstallError(
            f"{path} is for Python {entry['python']}, but {recipe.title} needs {' or '.join(recipe.pythons)}",
            next_step=f"make a new one with `kernelk bundle {recipe.name} --output FILE`",
        )
    names = entry["files"]
    assert isinstance(names, list)
    with zipfile.ZipFile(path) as archive:
        for name in names:
            file = locked.get(name)
            if file is None:
                raise InstallError(
                    f"{path} contains {name}, which isn't in the lock of this kernelk {__version__}",
                    next_step="make the bundle with this version, or install the one that made it",
                )
            digest = hashlib.sha256()
            try:
                with archive.open(f"files/{name}") as source, open(folder / name, "wb") as target:
                    shutil.copyfileobj(source, target, 1 << 20)
            except (KeyError, zipfile.BadZipFile) as error:
                raise _damaged(path, name) from error
            with open(folder / name, "rb") as written:
                while block := written.read(1 << 20):
                    digest.update(block)
            if digest.hexdigest() != file.sha256:
                raise _damaged(path, name)


def _damaged(path: Path, name: str) -> InstallError:
    return InstallError(
        f"{path} is damaged: {name} in it does not match the SHA-256 in kernelk's lock file",
        next_step="copy the bundle again, or make a new one with `kernelk bundle NAME --output FILE`",
    )
