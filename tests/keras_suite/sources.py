"""Fetches source distributions, which have their tests, and what they import from the package index, by their hashes.

Runs that begin at the same time take turns: the first one fetches, the others use what it got.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

from filelock import FileLock

PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


def fetched(requirements: Path, packages: Path, into: Path) -> list[Path]:
    """The unpacked folders, in `into`, of all that `requirements` pins; files already in `packages` are used again.

    Exits where one can't be had.
    """
    wanted = _hashes_in(requirements)
    packages.mkdir(parents=True, exist_ok=True)
    into.mkdir(parents=True, exist_ok=True)
    with FileLock(into / "fetching.lock"):
        files = _files_by_hash(packages)
        if not wanted.keys() <= files.keys():
            options = ["--no-deps", "--no-binary", ":all:", "--require-hashes", "-r", str(requirements)]
            missing = ", ".join(name for digest, name in wanted.items() if digest not in files)
            _pip(["download", *options, "-d", str(packages)], missing)
            files = _files_by_hash(packages)
        return [_unpacked(files[digest], into) for digest in wanted]


def installed(requirements: Path, into: Path, links: dict[str, str]) -> None:
    """Puts all that `requirements` pins in the folder `into`, unless it is there already.

    `links` are further names of programs: name -> the program's own. Exits where one can't be had.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(into.with_suffix(".lock")):
        done = into / requirements.name
        if done.exists() and done.read_text() == requirements.read_text():
            return
        options = ["--upgrade", "--no-deps", "--require-hashes", "-r", str(requirements)]
        _pip(["install", *options, "-t", str(into)], ", ".join(dict.fromkeys(_hashes_in(requirements).values())))
        for name, program in links.items():
            (into / "bin" / name).symlink_to(program)
        done.write_text(requirements.read_text())


def _pip(arguments: list[str], wanted: str) -> None:
    if subprocess.run([*PIP, *arguments]).returncode:
        sys.exit(f"{wanted} can't be fetched (see above); next: the same where the package index is")


def _hashes_in(requirements: Path) -> dict[str, str]:
    """Hash -> the requirement that has it."""
    lines = [line.split() for line in requirements.read_text().splitlines() if line and not line.startswith("#")]
    return {word.removeprefix("--hash=sha256:"): line[0] for line in lines for word in line[1:]}


def _files_by_hash(packages: Path) -> dict[str, Path]:
    return {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in packages.glob("*.tar.gz")}


def _unpacked(file: Path, into: Path) -> Path:
    folder = into / file.name.removesuffix(".tar.gz")
    if not folder.exists():
        # Under another name first: what is there is whole.
        parts = into / "unpacking"
        with tarfile.open(file) as archive:
            archive.extractall(parts, filter="data")
        (parts / folder.name).rename(folder)
        parts.rmdir()
    return folder
