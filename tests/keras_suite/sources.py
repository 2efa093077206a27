"""Fetches source distributions, which have their tests, from the package index: each is checked by its hash."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path


def fetched(requirements: Path, packages: Path, into: Path) -> list[Path]:
    """The unpacked folders, in `into`, of all that `requirements` pins; files already in `packages` are used again.

    Exits where one can't be had.
    """
    lines = [line for line in requirements.read_text().splitlines() if line and not line.startswith("#")]
    packages.mkdir(parents=True, exist_ok=True)
    wanted = {line.split("--hash=sha256:")[1]: line.split()[0] for line in lines}
    files = {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in packages.glob("*.tar.gz")}
    if not wanted.keys() <= files.keys():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", ":all:", "--require-hashes", "-r", str(requirements), "-d", str(packages)]
        if subprocess.run(command).returncode:
            names = ", ".join(name for digest, name in wanted.items() if digest not in files)
            sys.exit(f"{names} can't be fetched (see above); next: the same where the package index is")
        files = {hashlib.sha256(file.read_bytes()).hexdigest(): file for file in packages.glob("*.tar.gz")}
    return [_unpacked(files[digest], into) for digest in wanted]


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
