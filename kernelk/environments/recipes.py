"""Describes what `build` builds: for each old engine its pins, the lock file with the allowed files, and the check.

A lock (`locks/NAME.txt` beside this file) lists each file with its size and SHA-256, for every platform and Python;
`choose` takes those that one Python on one platform needs.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import resources
from itertools import product
from pathlib import Path

from ..errors import BackendNotInstalledError, InstallError
from . import mpi_stub

# Raise it when a build's own files change: environments with an older layout then no longer count as installed.
_LAYOUT = 1


def normalized(project: str) -> str:
    """A project's name, normalised as package indexes do."""
    return re.sub(r"[-_.]+", "-", project).lower()


@dataclasses.dataclass(frozen=True)
class LockedFile:
    """A file of the package index that may be installed; `size` in bytes, `sha256` in hexadecimal."""

    name: str
    size: int
    sha256: str

    @property
    def is_wheel(self) -> bool:
        """Whether it is a wheel, not a source archive."""
        return self.name.endswith(".whl")

    @property
    def pin(self) -> str:
        """The pin, such as "numpy==1.19.5"."""
        if self.is_wheel:
            project, version = self.name.split("-")[:2]
        else:
            project, _, version = self.name.removesuffix(".tar.gz").rpartition("-")
        return f"{normalized(project)}=={version}"

    @property
    def tags(self) -> list[str]:
        """A wheel's tags, such as "cp36-cp36m-manylinux2010_x86_64"; none for a source archive, which fits all."""
        if not self.is_wheel:
            return []
        parts = [part.split(".") for part in self.name.removesuffix(".whl").split("-")[-3:]]
        return ["-".join(tag) for tag in product(*parts)]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The recipe of an engine's environment; every pin is exact, so that it is the same everywhere."""

    name: str
    title: str
    pythons: tuple[str, ...]  # the versions it works with, best first
    bootstrap: tuple[str, ...]
    requirements: tuple[str, ...]  # complete: pip adds nothing to it
    check: str  # run by the environment's Python; its last line of output is the engine's own version
    bytes: int = 0  # what the environment takes on the disk
    platform: tuple[str, str] | None = None  # the only system and processor that it runs on, as Python names them
    lock: Path | None = None  # the lock file; by default kernelk's own of this name

    def refusal(self) -> InstallError | None:
        """The error on a machine where it can never be installed; None if it can."""
        if self.platform in (None, (sys.platform, platform.machine())):
            return None
        return InstallError(
            f"{self.title} can't be installed here: it runs on {' and '.join(self.platform or ())} only, and this is "
            f"{platform.system()} on {platform.machine()}",
            next_step="`kernelk install theano`",
        )

    def hash(self, series: str) -> str:
        """A hash of the pins and the Python series: environments with the same hash have the same content."""
        pins = json.dumps([_LAYOUT, self.bootstrap, self.requirements, series])
        return hashlib.sha256(pins.encode()).hexdigest()

    def locked(self) -> list[LockedFile]:
        """All files of the lock."""
        lock = self.lock or resources.files("kernelk.environments").joinpath("locks", f"{self.name}.txt")
        lines = lock.read_text(encoding="utf-8").splitlines()
        entries = [line.split() for line in lines if line.strip() and not line.startswith("#")]
        return [LockedFile(name, int(size), sha256) for name, size, sha256 in entries]

    def choose(self, pins: Iterable[str], tags: Sequence[str], where: str) -> list[LockedFile]:
        """The locked file for each pin that fits best; `tags`: what the Python takes, best first.

        `where` names that Python in the error. Raises InstallError for a platform that a pin has no file for.
        """
        rank = {tag: index for index, tag in reversed(list(enumerate(tags)))}
        chosen = []
        for pin in pins:
            project, _, version = pin.partition("==")
            files = [file for file in self.locked() if file.pin == f"{normalized(project)}=={version}"]
            fitting = [
                (min((rank[tag] for tag in file.tags if tag in rank), default=len(rank)), file)
                for file in files
                if not file.is_wheel or any(tag in rank for tag in file.tags)
            ]
            if not fitting:
                raise InstallError(
                    f"{self.title} can't be installed here: {pin} has no file for {where}",
                    next_step=f"use a Python {' or '.join(self.pythons)} of another build, set with "
                    f"KERNELK_PYTHON_{self.name.upper()}",
                )
            chosen.append(min(fitting, key=lambda entry: entry[0])[1])
        return chosen


def requirements_text(files: Iterable[LockedFile]) -> str:
    """These files as pip's requirements, each with its hash."""
    return "".join(f"{file.pin} --hash=sha256:{file.sha256}\n" for file in files)


# The last releases for Python 3.6.
_BOOTSTRAP = ("pip==21.3.1", "setuptools==59.6.0", "wheel==0.37.1")

_CHECK_THEANO = """
import os, tempfile
with tempfile.TemporaryDirectory() as folder:
    # Without the C compiler: this checks the environment, in a second, whatever the machine has.
    os.environ["THEANORC"] = os.devnull
    flags = "device=cpu,cxx=,optimizer_excluding=AbstractConvCheck,base_compiledir="
    os.environ["THEANO_FLAGS"] = flags + folder
    import numpy, theano
    x = theano.tensor.dmatrix()
    slope = theano.function([x], theano.grad((x.dot(x.T) ** 2).sum(), x))(numpy.ones((2, 3)))
    assert slope.shape == (2, 3) and (slope == 24).all(), slope
print(theano.__version__)
"""

_CHECK_CNTK = """
import ctypes, os, sysconfig
libs = os.path.join(sysconfig.get_path("purelib"), "cntk", "libs")
for name in {preloads!r}:
    if os.path.exists(os.path.join(libs, name)):
        ctypes.CDLL(os.path.join(libs, name), mode=ctypes.RTLD_GLOBAL)
import numpy, cntk
x = cntk.input_variable((2, 3), needs_gradient=True)
y = cntk.reduce_sum(cntk.square(cntk.times(x, numpy.ones((3, 2), "float32"))))
slope = y.grad({{x: numpy.ones((1, 2, 3), "float32")}}, wrt=[x])
assert slope.shape == (1, 2, 3) and (slope == 12).all(), slope
print(cntk.__version__)
"""

LIBPYTHON36 = "libpython3.6m.so.1.0"
# What the CNTK backend loads by full path, RTLD_GLOBAL and in this order, before `import cntk`: those of them
# that exist in <site-packages>/cntk/libs. CNTK's RUNPATH finds them there too, but only where LD_LIBRARY_PATH
# names no other MPI.
CNTK_PRELOADS = (LIBPYTHON36, mpi_stub.LIBMPI, mpi_stub.LIBMPI_CXX)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="theano",
            title="Theano 1.0.5",
            pythons=("3.6", "3.8"),
            bootstrap=_BOOTSTRAP,
            requirements=("numpy==1.19.5", "scipy==1.5.4", "six==1.16.0", "Theano==1.0.5"),
            check=_CHECK_THEANO,
            bytes=180_000_000,
        ),
        Recipe(
            name="cntk",
            title="CNTK 2.7",
            pythons=("3.6",),
            bootstrap=_BOOTSTRAP,
            requirements=("numpy==1.19.5", "scipy==1.5.4", "cntk==2.7"),
            check=_CHECK_CNTK.format(preloads=CNTK_PRELOADS),
            bytes=455_000_000,
            platform=("linux", "x86_64"),
        ),
    )
}


def recipe_for(name: str) -> Recipe:
    """The recipe of that name. Raises BackendNotInstalledError for an engine that has none."""
    try:
        return RECIPES[name]
    except KeyError:
        allowed = ", ".join(sorted(RECIPES))
        raise BackendNotInstalledError(
            f"there is no environment to install for {name!r}", allowed=f"there is one for {allowed}"
        ) from None
