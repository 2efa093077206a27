"""Builds one environment for `install`, in its final folder: venv, pip with hashes, stubs, the check, then the marker.

`install` decides where and when: always in a new folder, also for a rebuild. A build that ends before its marker is
written doesn't touch what was installed before. Unless its process was killed, it leaves nothing but its log.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from .._version import __version__
from ..display import tables
from ..errors import InstallError
from ..files import replacing
from . import mpi_stub
from .interpreters import Interpreter, Maker, below, created_folder, probe
from .places import MARKER, python_in
from .recipes import LIBPYTHON36, LockedFile, Recipe, requirements_text
from .runner import Runner, megabytes

_CHECK_SECONDS = 300

# Run by the environment's own Python with the pinned pip: prints the wheel tags that it accepts, and its platform.
_TAGS = """
import json, platform, sys
from pip._vendor.packaging.tags import sys_tags
where = "Python %d.%d on %s (%s)" % (sys.version_info[0], sys.version_info[1], platform.system(), platform.machine())
print(json.dumps([[str(tag) for tag in sys_tags()], where]))
"""


def size(folder: Path) -> int:
    """Bytes of all files below the folder; links count as themselves."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def site_packages(environment: Path, series: str) -> Path:
    """The folder of the environment's packages."""
    return environment / "lib" / f"python{series}" / "site-packages"


def enough_space(what: str, folder: Path, needed: int, next_step: str) -> None:
    """Raises InstallError if the disk of `folder` has fewer than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InstallError(
            f"{what} needs {megabytes(needed)} on the disk of {folder}, but {megabytes(free)} are free",
            next_step=f"free space, or choose another folder with KERNELK_ENVS, then {next_step}",
        )


def disk_error(title: str, folder: Path, error: OSError, next_step: str) -> InstallError:
    """The error for an install that the file system refused, in one line."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason, remedy = "no space left on the disk", "free space"
    else:
        reason, remedy = str(error.strerror or error), "make it writable"
    return InstallError(
        f"{title} could not be installed in {folder}: {reason}",
        next_step=f"{remedy}, or choose another folder with KERNELK_ENVS, then {next_step}",
    )


def create_interpreter(maker: Maker, root: Path, run: Runner) -> Interpreter:
    """Creates a Python with conda or uv in a folder next to the environments; a partial one is removed first."""
    folder = created_folder(root, maker.series)
    shutil.rmtree(folder, ignore_errors=True)
    run.say(f"creating a Python {maker.series} with {maker.program.name} in {folder}")

    def line(text: str) -> None:
        if text.strip():
            run.move(f"{maker.program.name}: {text.strip()[:80]}")

    try:
        run(maker.program.name, maker.command(folder), line=line, settings=maker.environment(folder))
        python = maker.python(folder)
        if python is None:
            raise run.failed(f"{maker.program.name} reported success, but there is no python{maker.series} in {folder}")
        return probe(python, f"created by {maker.program.name}")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


class Build:
    """One build of one environment, in its final place: its scripts hold their path, so it can't move.

    `wheels`: a folder to take the files from instead of the package index.
    """

    def __init__(
        self, recipe: Recipe, interpreter: Interpreter, folder: Path, run: Runner, wheels: Path | None = None
    ) -> None:
        self.recipe = recipe
        self.interpreter = interpreter
        self.folder = folder
        self.python = python_in(folder)
        self.run = run
        self._wheels = wheels
        # For pip's own temporary files: on the same disk, visible while they grow, and removed with the build.
        self._scratch = folder.with_name(f".{folder.name}.partial")

    def build(self, number: int) -> Path:
        """Runs all steps and returns the environment's interpreter. Raises InstallError, and then leaves only the log.

        `number`: higher than those of the existing environments of the recipe.
        """
        with self._cleared():
            python = f"Python {self.interpreter.version} ({self.interpreter.source})"
            self.run.say(f"building with {python} in {self.folder}")
            self.run("venv", [str(self.interpreter.path), "-I", "-m", "venv", str(self.folder)])
            files = bootstrap_of(self.recipe)
            if files:
                self._pip(files)
            packages = packages_for(self.recipe, self.python, self.run)
            self._pip(packages)
            if self.recipe.name == "cntk":
                self._write_stubs()
            self.run.say("checking that it works")
            check = [str(self.python), "-I", "-W", "ignore", "-c", self.recipe.check]
            printed = self.run("check", check, timeout=_CHECK_SECONDS).strip().splitlines()
            engine = printed[-1].strip() if printed else "unknown"
            listed = self.run("pip list", [*pip_of(self.python), "list", "--format=json"])
            versions = json.loads(listed.splitlines()[-1])
            total = size(self.folder)
            self._mark(
                {
                    "recipe": self.recipe.hash(self.interpreter.series),
                    "build": number,
                    "python": self.interpreter.version,
                    "engine": engine,
                    "versions": {entry["name"]: entry["version"] for entry in versions},
                    "files": {file.name: file.sha256 for file in (*files, *packages)},
                    "bytes": total,
                    "kernelk": __version__,
                }
            )
        self.run.say(f"ready: {self.recipe.name} {engine}, {megabytes(total)}")
        return self.python

    @contextlib.contextmanager
    def _cleared(self) -> Iterator[None]:
        """Makes a scratch folder for the build, and removes the build's own folder if the build doesn't finish."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        try:
            yield
        except BaseException:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise
        finally:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def _pip(self, files: list[LockedFile]) -> None:
        """Installs exactly these files, which pip compares with their hashes."""
        absent = [file.name for file in files if self._wheels is not None and not (self._wheels / file.name).exists()]
        if absent:
            raise InstallError(
                f"{self.recipe.title} could not be installed: the bundle lacks {absent[0]}, which this Python on "
                "this machine needs",
                next_step="make the bundle on a machine of this kind "
                f"(`kernelk bundle {self.recipe.name} --output FILE`)",
            )
        requirements = self._scratch / "requirements.txt"
        requirements.write_text(requirements_text(files), encoding="utf-8")
        total = sum(file.size for file in files)
        self.run.say(f"installing {', '.join(file.pin for file in files)}: {megabytes(total)}")
        # The list is complete, so that --no-deps keeps out whatever the index holds newer.
        options = ["--no-deps", "--require-hashes", "--progress-bar", "off", "--no-warn-script-location"]
        if self._wheels is not None:
            options += ["--no-index", "--find-links", str(self._wheels)]
        progress = Downloads(files, self._scratch, self.run)
        self.run(
            "pip",
            [*pip_of(self.python), "install", *options, "--requirement", str(requirements)],
            line=progress.line,
            tick=progress.tick,
            settings={"TMPDIR": str(self._scratch)},
        )

    def _write_stubs(self) -> None:
        self.run.say("writing stub libraries for MPI, which only distributed training needs")
        libs = site_packages(self.folder, self.interpreter.series) / "cntk" / "libs"
        mpi_stub.write_mpi_stubs(libs)
        if not self.interpreter.shared:
            # Then the Python program itself has every symbol; only the library's name is missing.
            mpi_stub.write(libs / LIBPYTHON36)

    def _mark(self, content: dict[str, object]) -> None:
        with replacing(self.folder / MARKER) as file:
            file.write(json.dumps(content, indent=1).encode())


def bootstrap_of(recipe: Recipe) -> list[LockedFile]:
    """pip itself and what it builds with, as locked files."""
    return recipe.choose(recipe.bootstrap, ["py3-none-any", "py2.py3-none-any"], "any Python")


def packages_for(recipe: Recipe, python: Path, run: Runner) -> list[LockedFile]:
    """The locked files of the engine and its libraries for this interpreter, which has the pinned pip."""
    tags, where = json.loads(run("tags", [str(python), "-I", "-c", _TAGS], logged=False).splitlines()[-1])
    return recipe.choose(recipe.requirements, tags, where)


def pip_of(python: Path) -> list[str]:
    """pip of this interpreter; -I keeps the current folder, PYTHONPATH and the user's site-packages out of it."""
    cache = ["--no-cache-dir"] if os.environ.get("PIP_NO_CACHE_DIR") else []
    return [str(python), "-I", "-u", "-m", "pip", *cache]


class Downloads:
    """Reports pip's progress, from its output and from the growth of the file that it downloads into `scratch`."""

    def __init__(self, files: list[LockedFile], scratch: Path, run: Runner) -> None:
        self._files = {file.name: file for file in files}
        self._total = sum(file.size for file in files)
        self._done = 0
        self._current: LockedFile | None = None
        self._scratch = scratch
        self._run = run

    def line(self, text: str) -> None:
        """Takes a line of pip's output."""
        match = re.match(r"\s*(Downloading|Using cached|Processing|Building wheel for|Saved) (\S+)(.*)", text)
        if match:
            what, name = match[1].lower(), match[2].rpartition("/")[2]
            file = self._files.get(name)
            if file is not None and what != "saved":
                self._arrived()
                self._current = file
                done = f"{self._done / 1e6:.1f} of {megabytes(self._total)} done"
                self._run.say(f"{what} {name} ({tables.size(file.size)}; {done})")
            elif what.startswith("building") and "started" in match[3]:
                self._arrived()
                self._run.say(f"building a wheel of {name}")
        elif text.startswith("Installing collected packages:"):
            self._arrived()
            self._run.say(f"unpacking {text.partition(':')[2].strip()}")
        elif "Retrying (" in text:
            self._run.say("no answer from the package index; trying again")

    def _arrived(self) -> None:
        if self._current is not None:
            self._done += self._current.size
            self._current = None

    def tick(self) -> None:
        """Reports how much of the current file has arrived."""
        if self._current is None:
            return
        for path in below(self._scratch, f"*/{self._current.name}"):
            with contextlib.suppress(OSError):
                there = path.stat().st_size
                self._run.move(
                    f"downloading {self._current.name}: {there / 1e6:.1f} of {megabytes(self._current.size)}, "
                    f"in all {(self._done + there) / 1e6:.1f} of {megabytes(self._total)}"
                )
