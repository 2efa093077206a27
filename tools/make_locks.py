"""Writes `kernelk/environments/locks/*.txt`: the files of each recipe's pins, with their sizes and SHA-256.

    .venv/bin/python tools/make_locks.py

Every file is downloaded by pip, which compares it with the index's own hash, and hashed here again. Your own pip
configuration is left out: a lock speaks of the public index's files.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from kernelk.environments.recipes import RECIPES, LockedFile, Recipe

# pip's names of the platforms that a lock covers.
PLATFORMS = ("manylinux2010_x86_64", "manylinux1_x86_64", "manylinux2014_aarch64", "macosx_10_9_x86_64", "win_amd64")
# No wheel of these is on the index: the source is locked, which pip builds without a compiler.
FROM_SOURCE = ("theano",)


def download(folder: Path, *options: str) -> bool:
    """Whether pip got it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), *options]
    plain = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "PIP_CERT")}
    return subprocess.run(command, env={**plain, "PIP_CONFIG_FILE": os.devnull}).returncode == 0


def files(recipe: Recipe) -> list[LockedFile]:
    """All files that any platform needs for the recipe's pins."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for pin in (*recipe.bootstrap, *recipe.requirements):
            project = pin.partition("==")[0].lower()
            if project in FROM_SOURCE:
                # `pip download` of a source also runs its setup.py, which has to fit this Python.
                found = [download(folder, "--no-binary=:all:", "--no-build-isolation", pin)]
            else:
                found = [
                    download(folder, "--only-binary=:all:", "--python-version", series, "--platform", platform, pin)
                    for series in recipe.pythons
                    for platform in PLATFORMS
                ]
            if not any(found):
                sys.exit(f"{recipe.name}: the index has no file for {pin}")
        return [
            LockedFile(path.name, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
            for path in sorted(folder.iterdir())
        ]


def main() -> None:
    """Writes the lock of every recipe."""
    for recipe in RECIPES.values():
        lines = [f"{file.name} {file.size} {file.sha256}" for file in files(recipe)]
        text = f"# What `kernelk install {recipe.name}` may install: file, bytes, SHA-256; by tools/make_locks.py.\n"
        target = Path("kernelk/environments/locks") / f"{recipe.name}.txt"
        target.write_text(text + "\n".join(lines) + "\n", encoding="utf-8")
        print(f"{target}: {len(lines)} files")


if __name__ == "__main__":
    main()
