"""Finds, builds and checks the interpreters and environments that workers run in; `host` asks for a Python.

Rules of this module: it imports nothing of kernelk but `errors`, `mpi_stub` and the version, and no engine.
`installed_python` runs no process, so that listing engines stays cheap. An environment counts as installed
only once its marker file is there, which is written last: whatever stops an install leaves "not installed".
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs

from . import __version__, mpi_stub
from .errors import BackendNotInstalledError, InstallError

try:
    import fcntl
except ImportError:  # no POSIX
    fcntl = None  # type: ignore[assignment]

MARKER = "kernelk.json"
# Raise it when install() writes something else beside pip's packages: older environments are then rebuilt.
_LAYOUT = 1
_PROBE_SECONDS = 10
_CHECK_SECONDS = 300
_STALE_LOCK_SECONDS = 1800

Report = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an engine's environment is made; every pin is exact, so that it is the same one everywhere."""

    name: str
    title: str
    pythons: tuple[str, ...]  # the versions it works with, best first
    bootstrap: tuple[str, ...]
    requirements: tuple[str, ...]  # complete: pip adds nothing to it
    check: str  # run by the environment's Python; its last line of output is the engine's own version


@dataclasses.dataclass(frozen=True)
class Interpreter:
    """A Python that was run and gave its version."""

    path: Path
    version: str  # such as "3.6.15"
    source: str  # where it was found
    shared: bool  # its libpython is a shared library

    @property
    def series(self) -> str:
        return ".".join(self.version.split(".")[:2])


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
        ),
        Recipe(
            name="cntk",
            title="CNTK 2.7",
            pythons=("3.6",),
            bootstrap=_BOOTSTRAP,
            requirements=("numpy==1.19.5", "scipy==1.5.4", "cntk==2.7"),
            check=_CHECK_CNTK.format(preloads=CNTK_PRELOADS),
        ),
    )
}

# The release of each series that the messages ask for; the last one there is.
_LAST_RELEASES = {"3.6": "3.6.15", "3.8": "3.8.20"}


# ---------------------------------------------------------------------------- interpreters

# Written for any Python, 2 included, so that a wrong version is named and not merely "broken".
_PROBE = """
import sys
try:
    # Before any other import: what matters is the program itself, whatever its extension modules bring.
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


class _BrokenError(Exception):
    """A candidate that can't be used; its text says why."""


def _clean_environment() -> dict[str, str]:
    """The environment for another Python: without what was set up for this one, or sends pip elsewhere."""
    elsewhere = {"TARGET", "PREFIX", "ROOT", "CONSTRAINT", "REQUIREMENT", "NO_BINARY", "ONLY_BINARY", "QUIET"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PYTHON")
        and name != "__PYVENV_LAUNCHER__"
        and not (name.startswith("PIP_") and name.removeprefix("PIP_") in elsewhere)
    }
    return kept | {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _last_line(text: str) -> str:
    """The line that says what went wrong: pip's last ERROR, or else the last line that isn't a warning."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("WARNING:", "You should", "[notice]"))]
    wrong = [line for line in said if re.match(r"(ERROR: |\w*(Error|Exception): )", line)]
    return (wrong or said or lines or ["it said nothing"])[-1]


def _probe(path: Path, source: str, inside_environment: bool = False) -> Interpreter:
    try:
        done = subprocess.run(
            [str(path), "-E", "-s", "-c", _PROBE],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
            env=_clean_environment(),
            cwd=os.sep,
        )
    except subprocess.TimeoutExpired:
        raise _BrokenError(f"it gave no answer in {_PROBE_SECONDS} s") from None
    except OSError as error:
        raise _BrokenError(f"it can't be run: {error.strerror}") from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
        version, executable = str(answer["version"]), Path(answer["executable"])
        fit, shared, base, prefix = answer["fit"], answer["shared"], Path(answer["base"]), answer["prefix"]
    except (ValueError, IndexError, KeyError, TypeError):
        said = _last_line(done.stdout + done.stderr)
        raise _BrokenError(f"it doesn't answer as a Python ({said})") from None
    if str(base) != prefix and not inside_environment:
        # A virtual environment's Python: build on the one under it, which outlives it.
        series = ".".join(version.split(".")[:2])
        under = base / "bin" / f"python{series}"
        return _probe(under, source, inside_environment=True)
    if not fit:
        raise _BrokenError(f"it is Python {version} without venv and ensurepip, which build environments")
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
        found = shutil.which(os.path.expanduser(value))
        try:
            if found is None:
                raise _BrokenError("no such program")
            interpreter = _probe(Path(os.path.abspath(found)), variable)
            if interpreter.series not in allowed:
                raise _BrokenError(f"it is Python {interpreter.version}")
        except _BrokenError as error:
            raise BackendNotInstalledError(
                f"{variable} names {value}, but {error}; it must name a Python {wanted}: correct it, or "
                f"unset it to let kernelk search, then `kernelk install {recipe.name}`"
            ) from None
        return interpreter
    return None


def _pyenv_root() -> Path:
    return Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")


def _conda_environments() -> Iterator[Path]:
    home = Path.home()
    roots = [home / name for name in ("miniconda3", "anaconda3", "miniforge3", "mambaforge", "micromamba")]
    roots += [Path("/opt/conda"), Path("/opt/miniconda3"), Path("/opt/anaconda3"), Path("/opt/miniforge3")]
    if os.environ.get("MAMBA_ROOT_PREFIX"):
        roots.insert(0, Path(os.environ["MAMBA_ROOT_PREFIX"]))
    if os.environ.get("CONDA_PREFIX"):
        active = Path(os.environ["CONDA_PREFIX"])
        yield active
        roots.insert(0, active.parent.parent if active.parent.name == "envs" else active)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in (home / ".conda" / "environments.txt").read_text().splitlines():
            if line.strip():
                yield Path(line.strip())
    for root in roots:
        yield root
        with contextlib.suppress(OSError):
            yield from sorted((root / "envs").iterdir())


def _candidates(series: str) -> Iterator[tuple[str, Path]]:
    """Paths where a Python of this series may be, with the place's name, in the order of the search."""
    for name in (f"python{series}", "python3", "python"):
        found = shutil.which(name)
        if found:
            yield "PATH", Path(os.path.abspath(found))
    # pyenv's shims, on PATH, answer only for versions chosen by `pyenv global`: look at the real programs.
    with contextlib.suppress(OSError):
        versions = list((_pyenv_root() / "versions").iterdir())
        versions.sort(key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])
        for version in reversed(versions):
            yield "pyenv", version / "bin" / f"python{series}"
    for folder_ in _conda_environments():
        yield "conda", folder_ / "bin" / f"python{series}"


def find_interpreter(recipe: Recipe) -> Interpreter:
    """The best interpreter for the recipe: named by the user, or on PATH, from pyenv or from conda."""
    explicit = _set_interpreter(recipe)
    if explicit is not None:
        return explicit
    seen: dict[Path, Interpreter | None] = {}
    broken: list[str] = []
    for series in recipe.pythons:
        for source, path in _candidates(series):
            if path not in seen:
                seen[path] = None
                if path.exists():
                    try:
                        seen[path] = _probe(path, source)
                    except _BrokenError as error:
                        # A shim or an old `python` is no news; a Python of the right name that fails is.
                        if path.name == f"python{series}" and "shims" not in path.parts:
                            broken.append(f"{path}: {error}")
            found = seen[path]
            if found is not None and found.series == series:
                return found
    raise BackendNotInstalledError(_nothing_found(recipe, broken))


def _nothing_found(recipe: Recipe, broken: list[str]) -> str:
    first = recipe.pythons[0]
    by_pyenv = f"`pyenv install {_LAST_RELEASES[first]}`"
    by_conda = f"`conda create -n py{first.replace('.', '')} python={first}`"
    if shutil.which("pyenv") or _pyenv_root().is_dir():
        get = by_pyenv
    elif any(shutil.which(name) for name in ("conda", "mamba", "micromamba")):
        get = by_conda
    else:
        get = f"{by_pyenv} or {by_conda}"
    return (
        f"{recipe.title} needs Python {' or '.join(recipe.pythons)}, and none was found (looked at "
        f"{', '.join(_setting_names(recipe))}, PATH, pyenv in {_pyenv_root()}, conda's environments"
        f"{''.join(f'; passed over {reason}' for reason in broken[:3])}); next: {get}, then "
        f"`kernelk install {recipe.name}`"
    )


# ---------------------------------------------------------------------------- environments


def recipe_for(name: str) -> Recipe:
    """The recipe of that name; an engine that has none is an error that says so."""
    try:
        return RECIPES[name]
    except KeyError:
        allowed = ", ".join(sorted(RECIPES))
        message = f"there is no environment to install for {name!r}; there is one for {allowed}"
        raise BackendNotInstalledError(message) from None


def root() -> Path:
    """The folder of all environments: `KERNELK_ENVS`, or the user's data folder."""
    chosen = os.environ.get("KERNELK_ENVS")
    if chosen:
        return Path(chosen).expanduser().absolute()
    return Path(platformdirs.user_data_path("kernelk")) / "envs"


def _recipe_hash(recipe: Recipe, series: str) -> str:
    pins = json.dumps([_LAYOUT, recipe.bootstrap, recipe.requirements, series])
    return hashlib.sha256(pins.encode()).hexdigest()


def folder(name: str, series: str | None = None) -> Path:
    """Where the environment is, or would be, built; by default for the recipe's best Python.

    Its name holds a hash of the pins and of the Python's series: another version of kernelk, with other pins,
    builds beside it and breaks nothing that is in use.
    """
    recipe = recipe_for(name)
    return root() / f"{name}-{_recipe_hash(recipe, series or recipe.pythons[0])[:10]}"


def _python_in(environment: Path) -> Path:
    return environment / "bin" / "python"


def marker(name: str) -> dict[str, object] | None:
    """What was written down about the installed environment, with its `folder`; None where there is none."""
    recipe = recipe_for(name)
    for series in recipe.pythons:
        place = folder(name, series)
        try:
            content = json.loads((place / MARKER).read_text(encoding="utf-8"))
            complete = content["recipe"] == _recipe_hash(recipe, series)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        # The link dangles once the Python under it was removed or moved: that is "not installed" as well.
        if complete and _python_in(place).exists():
            return {**content, "folder": str(place)}
    return None


def installed_python(name: str) -> Path | None:
    """The interpreter of the complete environment, or None; runs no process."""
    found = marker(name)
    return None if found is None else _python_in(Path(str(found["folder"])))


def require_python(name: str) -> Path:
    """The interpreter of the complete environment, or an error with the command that installs it."""
    python = installed_python(name)
    if python is None:
        state = "was not installed to the end" if half_built(name) else "is not installed"
        raise BackendNotInstalledError(
            f"{recipe_for(name).title} {state}; next: `kernelk install {name}` "
            f"(in a notebook: `!kernelk install {name}`)"
        )
    return python


def half_built(name: str) -> Path | None:
    """The folder of an install that was stopped or failed, or None."""
    if installed_python(name) is not None:
        return None
    places = (folder(name, series) for series in recipe_for(name).pythons)
    return next((place for place in places if place.is_dir()), None)


def superseded(name: str) -> list[Path]:
    """Folders built with other pins, by another version of kernelk; nothing here uses or deletes them."""
    current = {folder(name, series) for series in recipe_for(name).pythons}
    pattern = re.compile(rf"{re.escape(name)}-[0-9a-f]{{10}}")
    with contextlib.suppress(OSError):
        places = sorted(root().iterdir())
        return [p for p in places if pattern.fullmatch(p.name) and p not in current and p.is_dir()]
    return []


def site_packages(environment: Path, series: str) -> Path:
    return environment / "lib" / f"python{series}" / "site-packages"


def size(environment: Path) -> int:
    """Bytes of all files below the folder; links count as themselves."""
    total = 0
    for place, _, names in os.walk(environment):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, name)).st_size
    return total


@contextlib.contextmanager
def _lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file; `waiting` is called once if another process holds it."""
    if fcntl is not None:
        with open(path, "a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
            yield  # closing the file, or the end of the process in whatever way, releases it
        return
    held = path.with_suffix(".held")
    told = False
    while True:
        try:
            os.close(os.open(held, os.O_CREAT | os.O_EXCL))
            break
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - held.stat().st_mtime > _STALE_LOCK_SECONDS:
                    held.unlink()  # its owner is gone: no install takes as long
                    continue
            if not told:
                waiting()
                told = True
            time.sleep(0.2)
    try:
        yield
    finally:
        held.unlink(missing_ok=True)


def install(name: str, report: Report = print, rebuild: bool = False) -> Path:
    """Build the engine's environment, unless it is there, and return its interpreter."""
    recipe = recipe_for(name)
    python = installed_python(name)
    if python is not None and not rebuild:
        report(f"{name}: already installed in {python.parent.parent}")
        return python
    if name == "cntk" and (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise InstallError(
            f"{recipe.title} can't be installed here: kernelk runs it on Linux with an x86-64 processor, and "
            f"this is {platform.system()} on {platform.machine()}; next: `kernelk install theano`"
        )
    interpreter = find_interpreter(recipe)
    waiting = functools.partial(report, f"{name}: another process is installing it; waiting")
    try:
        root().mkdir(parents=True, exist_ok=True)
        with _lock(root() / f"{name}.lock", waiting):
            python = installed_python(name)
            if python is not None and not rebuild:
                report(f"{name}: already installed in {python.parent.parent} (by the other process)")
                return python
            return _Build(recipe, interpreter, report).run()
    except OSError as error:
        raise InstallError(
            f"{recipe.title} could not be installed in {root()}: {error.strerror or error}; next: make it "
            f"writable, or choose another folder with KERNELK_ENVS, then `kernelk install {name}`"
        ) from error


class _Build:
    """One build of one environment, in its final place: its scripts hold their path, so it can't move."""

    def __init__(self, recipe: Recipe, interpreter: Interpreter, report: Report) -> None:
        self.recipe = recipe
        self.interpreter = interpreter
        self.folder = folder(recipe.name, interpreter.series)
        self.python = _python_in(self.folder)
        self.log = self.folder.with_name(self.folder.name + ".log")
        self.started = time.monotonic()
        self._report = report

    def say(self, text: str) -> None:
        self._report(f"{self.recipe.name}: [{time.monotonic() - self.started:3.0f} s] {text}")

    def run(self) -> Path:
        for series in self.recipe.pythons:
            # From here on it isn't installed; in a rebuild, nor is an environment of a fallback Python.
            (folder(self.recipe.name, series) / MARKER).unlink(missing_ok=True)
        if self.folder.exists():
            self.say(f"clearing {self.folder}, which an earlier install left")
            shutil.rmtree(self.folder)
        self.log.write_text("", encoding="utf-8")
        found = f"Python {self.interpreter.version} ({self.interpreter.source})"
        self.say(f"building with {found} in {self.folder}")
        self.command("venv", [str(self.interpreter.path), "-I", "-m", "venv", str(self.folder)])
        for requirements in (self.recipe.bootstrap, self.recipe.requirements):
            if requirements:
                self.pip(*requirements)
        if self.recipe.name == "cntk":
            self.write_stubs()
        self.say("checking that it computes")
        check = [str(self.python), "-I", "-W", "ignore", "-c", self.recipe.check]
        engine = self.command("check", check, timeout=_CHECK_SECONDS).splitlines()[-1].strip()
        listed = self.command("pip list", [*self.pip_command, "list", "--format=json"])
        versions = json.loads(listed.splitlines()[-1])
        total = size(self.folder)
        self.mark(
            {
                "recipe": _recipe_hash(self.recipe, self.interpreter.series),
                "python": self.interpreter.version,
                "engine": engine,
                "versions": {entry["name"]: entry["version"] for entry in versions},
                "bytes": total,
                "kernelk": __version__,
            }
        )
        self.say(f"ready: {self.recipe.name} {engine}, {total / 1e6:.0f} MB")
        return self.python

    @property
    def pip_command(self) -> list[str]:
        # -I keeps the current folder, PYTHONPATH and the user's site-packages out of pip.
        return [str(self.python), "-I", "-u", "-m", "pip"]

    def pip(self, *requirements: str) -> None:
        # The list is complete, so that --no-deps keeps out whatever the index holds newer.
        self.say(f"installing {', '.join(requirements)}")
        options = ["--no-deps", "--progress-bar", "off", "--no-warn-script-location"]
        self.command("pip", [*self.pip_command, "install", *options, *requirements], progress=True)

    def write_stubs(self) -> None:
        self.say("writing stubs for MPI, which only distributed training calls")
        libs = site_packages(self.folder, self.interpreter.series) / "cntk" / "libs"
        mpi_stub.write_mpi_stubs(libs)
        if not self.interpreter.shared:
            # The Python program itself has every symbol then; only the library's name is missing.
            mpi_stub.write(libs / LIBPYTHON36)

    def mark(self, content: dict[str, object]) -> None:
        partial = self.folder / f".{MARKER}.partial"
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self.folder / MARKER)

    def command(self, what: str, command: list[str], progress: bool = False, timeout: float = 0) -> str:
        """Run it, with all its output in the log, and return what it wrote to standard output."""
        with open(self.log, "a", encoding="utf-8", errors="replace") as log:
            print(f"--- {what}", file=log, flush=True)
            output: list[str] = []
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if progress else log,
                text=True,
                errors="replace",
                env=_clean_environment(),
                cwd=self.folder if self.folder.exists() else root(),
            )
            late = threading.Event()

            def stop() -> None:
                late.set()
                process.kill()

            timer = threading.Timer(timeout or threading.TIMEOUT_MAX, stop)
            timer.daemon = True
            timer.start()
            try:
                assert process.stdout is not None
                with process.stdout:
                    for line in process.stdout:
                        output.append(line)
                        log.write(line)
                        if progress:
                            self.say_progress(line)
                process.wait()
            except BaseException:  # Ctrl-C, or a report that can't be written: leave nothing running
                process.kill()
                process.wait()
                raise
            finally:
                timer.cancel()
        if process.returncode:
            said = _last_line(self.log.read_text(encoding="utf-8", errors="replace").rpartition("\n--- ")[2])
            if late.is_set():
                said = f"it took more than {timeout:.0f} s"
            elif process.returncode < 0:
                said = f"ended by signal {-process.returncode}"
            raise InstallError(
                f"{self.recipe.title} could not be installed: {what} failed: {said} (log: {self.log}); next: "
                f"`kernelk install {self.recipe.name}` again"
            )
        return "".join(output)

    def say_progress(self, line: str) -> None:
        match = re.match(r"\s*(Downloading|Using cached|Building wheel for) (\S+)(.*)", line)
        if match and "finished" not in match[3] and "started" not in match[3]:
            size_ = re.search(r"\(([\d.]+ ?[kM]B)\)", match[3])
            self.say(f"{match[1].lower()} {match[2].rpartition('/')[2]}{f' ({size_[1]})' if size_ else ''}")
        elif line.startswith("Installing collected packages:"):
            self.say(f"unpacking {line.partition(':')[2].strip()}")
