"""Writes and installs bundles: one file with everything that an environment is built from, for offline machines.

A bundle is a zip file: `bundle.json` says for which engines and Pythons, `files/` has what pip installs. Its files are
compared with the lock of the kernelk that installs them, so a bundle itself needn't be trusted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .. import files
from .._version import __version__
from ..display.progress import Progress, Report
from ..errors import InstallError, KernelKError, printable
from . import places
from .build import Downloads, bootstrap_of, disk_error, packages_for, pip_of
from .install import install_recipe
from .interpreters import series_of
from .recipes import LockedFile, Recipe, recipe_for, requirements_text
from .runner import Runner, megabytes

_CONTENTS = "bundle.json"
_FORMAT = 1
_MOST_CONTENTS = 1 << 20
# Python's other decompressors return a block's whole content at once, however large.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


class _Engine(NamedTuple):
    """A bundle's entry for an engine: the Python series that it is for, and the names of its files."""

    python: str
    files: list[str]


def bundle(names: Sequence[str], output: Path, report: Report | None = None) -> Path:
    """Writes a bundle of these engines, for machines of this kind. `kernelk bundle NAME... --output FILE`.

    An engine that isn't installed yet is installed first, so that a bundle only holds what has been seen to work.
    Raises InstallError.
    """
    report = report or Progress()
    output = _absolute(output)
    recipes = [recipe_for(name) for name in dict.fromkeys(names)]
    if not os.path.isdir(output.parent) or os.path.isdir(output):
        raise InstallError(
            f"{printable(output, 300)} can't be written",
            allowed="its folder must exist",
            next_step="run kernelk bundle again with another --output",
        )
    try:
        with tempfile.TemporaryDirectory(prefix="kernelk-bundle-") as scratch:
            inside: dict[str, LockedFile] = {}
            engines = {}
            for recipe in recipes:
                python = install_recipe(recipe, report)
                collected = _download(recipe, python, Path(scratch), output, report)
                marker = places.marker(recipe.name) or {}
                inside.update({file.name: file for file in collected})
                engines[recipe.name] = {
                    "python": series_of(str(marker["python"])),
                    "files": [file.name for file in collected],
                }
            contents = {"format": _FORMAT, "kernelk": __version__, "platform": sys.platform, "engines": engines}
            with files.replacing(output) as target, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr(_CONTENTS, json.dumps(contents, indent=1))
                for name in sorted(inside):
                    archive.write(Path(scratch) / name, f"files/{name}")
    except OSError as error:
        raise InstallError(
            f"the bundle {printable(output, 300)} could not be written: {error.strerror or error}",
            next_step="run kernelk bundle again with --output in a writable folder that has enough space",
        ) from error
    report(f"ready: {output}, {megabytes(output.stat().st_size)}, for {', '.join(engines)}")
    return output


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def _download(recipe: Recipe, python: Path, folder: Path, output: Path, report: Report) -> list[LockedFile]:
    """Downloads all files of the environment with its own pip, from the index or from pip's cache, and checks them."""
    again = f"`kernelk bundle {recipe.name} --output {output}`"
    run = Runner(recipe.title, recipe.name, folder / f"{recipe.name}.log", report, again, "bundled")
    locked = [*bootstrap_of(recipe), *packages_for(recipe, python, run)]
    run.say(f"collecting {len(locked)} files, {megabytes(sum(file.size for file in locked))}")
    requirements = folder / f"{recipe.name}.txt"
    requirements.write_text(requirements_text(locked), encoding="utf-8")
    options = ["--no-deps", "--require-hashes", "--progress-bar", "off", "--dest", str(folder)]
    progress = Downloads(locked, folder, run)
    run(
        "pip",
        [*pip_of(python), "download", *options, "--requirement", str(requirements)],
        line=progress.line,
        tick=progress.tick,
        settings={"TMPDIR": str(folder)},
    )
    return locked


def contents(path: Path) -> dict[str, str]:
    """The engines of a bundle, each with the Python series that it is for. Raises InstallError if it isn't a bundle."""
    with _opened(path) as archive:
        return {name: engine.python for name, engine in _engines(path, archive).items()}


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Opens the bundle. Any error in the block, which only reads the file, becomes an InstallError."""
    shown = printable(path, 300)
    try:
        with files.open_regular(path) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except KernelKError:
        raise
    except OSError as error:
        raise InstallError(f"{shown} can't be read: {error.strerror or error}", next_step="check the path") from error
    # The errors that zipfile, zlib and json raise for damaged bytes aren't documented.
    except Exception as error:
        raise InstallError(
            f"{shown} isn't a bundle, or wasn't copied completely",
            next_step="copy it again, or make a new one with `kernelk bundle NAME --output FILE`",
        ) from error


def _member(archive: zipfile.ZipFile, name: str, most: int) -> zipfile.ZipInfo:
    """A file in the archive. Raises ValueError if it has more than `most` bytes, is encrypted or oddly compressed."""
    info = archive.getinfo(name)
    if info.file_size > most or info.flag_bits & 1 or info.compress_type not in _COMPRESSIONS:
        raise ValueError(f"{name} isn't as kernelk writes it")
    return info


def _engines(path: Path, archive: zipfile.ZipFile) -> dict[str, _Engine]:
    """The engines of a bundle. May raise anything if the file is damaged."""
    found = json.loads(archive.read(_member(archive, _CONTENTS, _MOST_CONTENTS)))
    if found["format"] != _FORMAT:
        raise InstallError(
            f"{printable(path, 300)} was made by kernelk {printable(found['kernelk'], 30)} in a format this kernelk "
            f"{__version__} can't read",
            next_step="run `kernelk bundle` with this version",
        )
    engines = {name: _Engine(entry["python"], entry["files"]) for name, entry in found["engines"].items()}
    for engine in engines.values():
        if type(engine.python) is not str or type(engine.files) is not list:
            raise ValueError("it doesn't say which files are for which Python")
    return engines


def install(
    path: Path, names: Sequence[str] = (), report: Report | None = None, rebuild: bool = False
) -> dict[str, Path]:
    """Installs engines of a bundle (all of them unless named) without network. `kernelk install --from BUNDLE`.

    Returns their interpreters. Raises InstallError, BackendNotInstalledError.
    """
    report = report or Progress()
    path = _absolute(path)
    with _opened(path) as archive:
        engines = _engines(path, archive)
    absent = [name for name in names if name not in engines]
    if absent:
        raise InstallError(
            f"{path} contains no {absent[0]!r}, only {printable(', '.join(engines), 300)}",
            next_step=f"`kernelk install --from {path}`",
        )
    made = {}
    for name in dict.fromkeys(names or engines):
        recipe = recipe_for(name)
        again = f"`kernelk install --from {path} {name}`"
        try:
            with tempfile.TemporaryDirectory(prefix="kernelk-bundle-") as scratch:
                _extract(path, recipe, engines[name], Path(scratch), again)
                # The bundle's own Python, even if another one would be preferred.
                narrowed = dataclasses.replace(recipe, pythons=(engines[name].python,))
                made[name] = install_recipe(narrowed, report, rebuild, Path(scratch), again)
        except OSError as error:
            raise disk_error(recipe.title, Path(tempfile.gettempdir()), error, again) from error
    return made


def _extract(path: Path, recipe: Recipe, engine: _Engine, folder: Path, again: str) -> None:
    """Unpacks an engine's files, once all of them have been compared with kernelk's lock. Raises InstallError."""
    locked = {file.name: file for file in recipe.locked()}
    if engine.python not in recipe.pythons:
        raise InstallError(
            f"{path} is for Python {printable(engine.python, 30)}, but {recipe.title} needs "
            f"{' or '.join(recipe.pythons)}",
            next_step=f"make a new one with `kernelk bundle {recipe.name} --output FILE`",
        )
    chosen = []
    for name in engine.files:
        # A name from the lock can't lead outside the folder.
        file = locked.get(name) if isinstance(name, str) else None
        if file is None:
            raise InstallError(
                f"{path} contains {printable(name, 200)}, which isn't in the lock of this kernelk {__version__}",
                next_step="make the bundle with this version, or install the one that made it",
            )
        chosen.append(file)
    with _opened(path) as archive:
        for file in chosen:
            for _ in _blocks(path, archive, file):
                pass
        for file in chosen:
            partial = folder / f".{file.name}.partial"
            try:
                with open(partial, "wb") as target:
                    # Compared once more: the bundle may have changed in between.
                    target.writelines(_blocks(path, archive, file))
                os.rename(partial, folder / file.name)
            except OSError as error:
                raise disk_error(recipe.title, folder, error, again) from error


def _blocks(path: Path, archive: zipfile.ZipFile, file: LockedFile) -> Iterator[bytes]:
    """Yields a file of the bundle in blocks. Raises InstallError, even after the last one, if it isn't the lock's."""
    digest = hashlib.sha256()
    try:
        with archive.open(_member(archive, f"files/{file.name}", file.size)) as source:
            while block := source.read(1 << 20):
                digest.update(block)
                yield block
    except OSError:
        raise
    except Exception as error:
        raise _damaged(path, file.name) from error
    if digest.hexdigest() != file.sha256:
        raise _damaged(path, file.name)


def _damaged(path: Path, name: str) -> InstallError:
    return InstallError(
        f"{path} is damaged: {name} in it does not match the SHA-256 in kernelk's lock file",
        next_step="copy the bundle again, or make a new one with `kernelk bundle NAME --output FILE`",
    )
