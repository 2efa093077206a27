"""Finds the Python interpreters that `install` builds on, or a program that can create one; installs nothing.

An interpreter counts only if it was run and has printed its version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import BackendNotInstalledError
from ..files import read_small
from .recipes import Recipe

_PROBE_SECONDS = 10

# The release of each series that the messages ask for; the last one there is.
_LAST_RELEASES = {"3.6": "3.6.15", "3.8": "3.8.20"}


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """A Python that was run and gave its version."""

    path: Path
    version: str  # such as "3.6.15"
    source: str  # where it was found
    shared: bool  # its libpython is a shared library

    @property
    def series(self) -> str:
        """The major and minor version, such as "3.6"."""
        return series_of(self.version)


@dataclasses.dataclass(frozen=True)
class Maker:
    """A program on this machine that can create a Python of this series: conda, mamba, micromamba or uv."""

    program: Path
    series: str

    @property
    def is_uv(self) -> bool:
        """Whether it is uv, which keeps a folder of Pythons; the others fill one folder."""
        return self.program.name.startswith("uv")

    def command(self, folder: Path) -> list[str]:
        """The command that creates it in this folder."""
        if self.is_uv:
            return [str(self.program), "python", "install", self.series]
        # One well-known channel, whatever the user's configuration lists: it keeps old releases.
        channel = ["--override-channels", "--channel", "conda-forge"]
        return [str(self.program), "create", "--yes", "--prefix", str(folder), *channel, f"python={self.series}"]

    def environment(self, folder: Path) -> dict[str, str]:
        """The environment variables for that command."""
        return {"UV_PYTHON_INSTALL_DIR": str(folder)} if self.is_uv else {}

    def python(self, folder: Path) -> Path | None:
        """The Python that it has created there; None if there is none."""
        patterns = [f"cpython-{self.series}.*/bin/python{self.series}"] if self.is_uv else [f"bin/python{self.series}"]
        return next((path for pattern in patterns for path in below(folder, pattern)), None)


def series_of(version: str) -> str:
    """The major and minor version, such as "3.6" for "3.6.15"."""
    return ".".join(version.split(".")[:2])


def below(folder: Path, pattern: str) -> list[Path]:
    """The paths in a folder that match, sorted; none if it can't be read, where `Path.glob` would raise."""
    return [folder / name for name in sorted(glob.glob(pattern, root_dir=folder))]


def created_folder(root: Path, series: str) -> Path:
    """The folder, inside a folder of environments, in which a Python of this series is created."""
    return root / f"python-{series}"


# Written for any Python, 2 included, so that a wrong version is reported as such and not just as "broken".
_PROBE = """
import sys
try:
    # Before any other import: it is about the program itself, not the libraries of its extension modules.
    with open("/proc/self/maps") as maps:
        shared = "/libpython%d.%d" % sys.version_info[:2] in maps.read()
except (IOError, OSError):
    import sysconfig
    shared = bool(sysconfig.get_config_var("Py_ENABLE_SHARED"))
import json
try:
    import ensurepip, venv
    fit = True
except ImportError:
    fit = False
base = getattr(sys, "real_prefix", getattr(sys, "base_prefix", sys.prefix))
print(json.dumps({"version": "%d.%d.%d" % sys.version_info[:3], "executable": sys.executable, "fit": fit,
                  "shared": shared, "base": base, "prefix": sys.prefix}))
"""


class BrokenError(Exception):
    """A candidate that can't be used; its text says why."""


def clean_environment() -> dict[str, str]:
    """The environment variables for another Python: without those for this one, and those that redirect pip."""
    elsewhere = {"TARGET", "PREFIX", "ROOT", "CONSTRAINT", "REQUIREMENT", "NO_BINARY", "ONLY_BINARY", "QUIET"}
    elsewhere.add("NO_CACHE_DIR")  # stops the pip that old Pythons bring: `build.pip_of` gives it as an option
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON")
        # Notebooks' kernels set the latter two; what pip says is read here, and has no use for colours.
        and name not in ("__PYVENV_LAUNCHER__", "FORCE_COLOR", "CLICOLOR_FORCE")
        and not (name.startswith("PIP_") and name.removeprefix("PIP_") in elsewhere)
    }
    return kept | {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def last_line(text: str) -> str:
    """The line that says what went wrong: pip's last ERROR, or else the last line that isn't a warning."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    notable = [line for line in lines if not line.startswith(("WARNING:", "You should", "[notice]"))]
    wrong = [line for line in notable if re.match(r"(ERROR: |\w*(Error|Exception): )", line)]
    return (wrong or notable or lines or ["it printed nothing"])[-1]


def _ask(command: list[str], settings: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Runs a program and captures its output, in a folder where none of the user's files changes the answer."""
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_PROBE_SECONDS,
        env=clean_environment() | (settings or {}),
        cwd=os.sep,
    )


def probe(path: Path, source: str, inside_environment: bool = False) -> Interpreter:
    """Runs a program to see whether it is a Python that can build environments. Raises BrokenError."""
    try:
        done = _ask([str(path), "-E", "-s", "-c", _PROBE])
    except subprocess.TimeoutExpired:
        raise BrokenError(f"it didn't answer within {_PROBE_SECONDS} s") from None
    except OSError as error:
        raise BrokenError(f"it can't be run: {error.strerror}") from None
    except ValueError:  # as a name with a NUL
        raise BrokenError("it can't be run: no program can have this name") from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        version, executable = str(answer["version"]), Path(answer["executable"])
        fit, shared, base, prefix = answer["fit"], answer["shared"], Path(answer["base"]), answer["prefix"]
    except (ValueError, IndexError, KeyError, TypeError, RecursionError):
        message = last_line(done.stdout + done.stderr)
        raise BrokenError(f"it doesn't behave like a Python ({message})") from None
    if str(base) != prefix and not inside_environment:
        # The Python of a virtual environment: use the one that it is based on, which outlives it.
        series = ".".join(version.split(".")[:2])
        under = base / "bin" / f"python{series}"
        return probe(under, source, inside_environment=True)
    if not fit:
        raise BrokenError(f"it is Python {version} without venv and ensurepip, which environments need")
    return Interpreter(executable, version, source, bool(shared))


def _setting_names(recipe: Recipe) -> dict[str, tuple[str, ...]]:
    """The environment variables that name an interpreter, each with the versions it may name."""
    names = {f"KERNELK_PYTHON_{recipe.name.upper()}": recipe.pythons}
    return names | {f"KERNELK_PYTHON{series.replace('.', '')}": (series,) for series in recipe.pythons}


def _set_interpreter(recipe: Recipe) -> Interpreter | None:
    for variable, allowed in _setting_names(recipe).items():
        value = os.environ.get(variable)
        if not value:
            continue
        wanted = " or ".join(allowed)
        program = shutil.which(os.path.expanduser(value))
        try:
            if program is None:
                raise BrokenError("no such program")
            interpreter = probe(Path(os.path.abspath(program)), variable)
            if interpreter.series not in allowed:
                raise BrokenError(f"it is Python {interpreter.version}")
        except BrokenError as error:
            raise BackendNotInstalledError(
                f"{variable} names {value}, but {error}",
                allowed=f"it must name a Python {wanted}",
                next_step=f"change it, or unset it to let kernelk search, then `kernelk install {recipe.name}`",
            ) from None
        return interpreter
    return None


def _home() -> Path:
    # Not Path.home, which raises for a user without a home, as containers have them.
    return Path(os.path.expanduser("~"))


def _pyenv_root() -> Path:
    return Path(os.environ.get("PYENV_ROOT") or _home() / ".pyenv")


def _conda_environments() -> Iterator[Path]:
    home = _home()
    roots = [home / name for name in ("miniconda3", "anaconda3", "miniforge3", "mambaforge", "micromamba")]
    roots += [Path("/opt/conda"), Path("/opt/miniconda3"), Path("/opt/anaconda3"), Path("/opt/miniforge3")]
    if os.environ.get("MAMBA_ROOT_PREFIX"):
        roots.insert(0, Path(os.environ["MAMBA_ROOT_PREFIX"]))
    if os.environ.get("CONDA_PREFIX"):
        active = Path(os.environ["CONDA_PREFIX"])
        yield active
        roots.insert(0, active.parent.parent if active.parent.name == "envs" else active)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in read_small(home / ".conda" / "environments.txt", 1 << 20).decode().splitlines():
            if line.strip():
                yield Path(line.strip())
    for root in roots:
        yield root
        with contextlib.suppress(OSError):
            yield from sorted((root / "envs").iterdir())


def _uv_pythons(series: str) -> Iterator[Path]:
    """The Pythons that uv manages."""
    uv = shutil.which("uv")
    if uv:
        settings = {"UV_PYTHON_PREFERENCE": "only-managed", "UV_PYTHON_DOWNLOADS": "never"}
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = _ask([uv, "python", "find", "--no-project", series], settings)
            if done.returncode == 0 and done.stdout.strip():
                yield Path(done.stdout.strip().splitlines()[-1])
    data = Path(os.environ.get("XDG_DATA_HOME") or _home() / ".local" / "share")
    folder = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    yield from reversed(below(folder, f"cpython-{series}.*/bin/python{series}"))


def _candidates(series: str, roots: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Paths where a Python of this series may be, each with a name for the location, in the order of the search."""
    if series == f"{sys.version_info[0]}.{sys.version_info[1]}":
        yield "the kernel's own", Path(sys.executable)
    for name in (f"python{series}", "python3", "python"):
        program = shutil.which(name)
        if program:
            yield "PATH", Path(os.path.abspath(program))
    # pyenv's shims, on PATH, answer only for versions chosen by `pyenv global`: look at the real programs.
    with contextlib.suppress(OSError):
        versions = list((_pyenv_root() / "versions").iterdir())
        versions.sort(key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])
        for version in reversed(versions):
            yield "pyenv", version / "bin" / f"python{series}"
    for folder in _conda_environments():
        yield "conda", folder / "bin" / f"python{series}"
    for path in _uv_pythons(series):
        yield "uv", path
    for root in roots:
        for maker in (Maker(Path("conda"), series), Maker(Path("uv"), series)):
            path_ = maker.python(created_folder(root, series))
            if path_ is not None:
                yield "created by kernelk", path_


@dataclasses.dataclass(frozen=True)
class Search:
    """The result of a search: the interpreter, or None, and the Pythons of the right name that can't be used."""

    interpreter: Interpreter | None
    broken: list[str]


def search(recipe: Recipe, roots: Sequence[Path] = ()) -> Search:
    """The best interpreter for the recipe: named by the user, else the first that fits.

    `roots`: the folders of environments, beside which Pythons may have been created. Raises BackendNotInstalledError
    for a setting that names none that fits.
    """
    explicit = _set_interpreter(recipe)
    if explicit is not None:
        return Search(explicit, [])
    seen: dict[Path, Interpreter | None] = {}
    broken: list[str] = []
    for series in recipe.pythons:
        for source, path in _candidates(series, roots):
            if path not in seen:
                seen[path] = None
                # Not Path.exists, which raises where a folder on the way may not be entered.
                if os.path.exists(path):
                    try:
                        seen[path] = probe(path, source)
                    except BrokenError as error:
                        # A shim or an old `python` is no news; a Python of the right name that fails is.
                        if path.name == f"python{series}" and "shims" not in path.parts:
                            broken.append(f"{path}: {error}")
            interpreter = seen[path]
            if interpreter is not None and interpreter.series == series:
                return Search(interpreter, broken)
    return Search(None, broken)


def makers(recipe: Recipe) -> list[Maker]:
    """The programs on this machine that can create a Python for the recipe, the preferred version's first."""
    usable = []
    conda = next((path for name in ("mamba", "conda", "micromamba") if (path := shutil.which(name))), None)
    uv = shutil.which("uv")
    for series in recipe.pythons:
        if conda:
            usable.append(Maker(Path(conda), series))
        elif uv and _uv_offers(uv, series):
            usable.append(Maker(Path(uv), series))
    return usable


def _uv_offers(uv: str, series: str) -> bool:
    try:
        done = _ask([uv, "python", "list", series, "--only-downloads"])
    except (OSError, subprocess.SubprocessError):
        return False
    return any(line.startswith(f"cpython-{series}.") for line in done.stdout.splitlines())


def nothing_found(recipe: Recipe, broken: list[str]) -> BackendNotInstalledError:
    """The error for a recipe without an interpreter, with the places searched and the command that installs one."""
    first = recipe.pythons[0]
    by_pyenv = f"`pyenv install {_LAST_RELEASES.get(first, first)}`"
    by_conda = f"`conda create -n py{first.replace('.', '')} -c conda-forge python={first}`"
    get = by_pyenv if shutil.which("pyenv") or os.path.isdir(_pyenv_root()) else f"{by_pyenv} or {by_conda}"
    return BackendNotInstalledError(
        f"{recipe.title} needs Python {' or '.join(recipe.pythons)}, and none was found (looked at "
        f"{', '.join(_setting_names(recipe))}, PATH, pyenv in {_pyenv_root()}, conda's environments, uv's "
        f"Pythons{''.join(f'; skipped {reason}' for reason in broken[:3])}), nor conda, mamba or uv, "
        "which could create one",
        next_step=f"{get}, then `kernelk install {recipe.name}`",
    )
