"""Where the engines' environments are, which of them are complete, and their install and removal; `registry` asks here.

Rules of this module: `installed_python` runs no process, so that listing engines stays cheap. An environment counts as
installed only once its marker file is there, which is written last: whatever stops an install leaves "not installed".
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import platformdirs

from . import interpreters, registry
from .builds import MARKER, Build, Runner, create_interpreter, disk_error, enough_space, python_in, size
from .engines import in_shell_and_notebook
from .errors import BackendNotInstalledError, InstallError
from .interpreters import Interpreter
from .progress import Progress, Report
from .recipes import RECIPES, Recipe, recipe_for

try:
    import fcntl
except ImportError:  # no POSIX
    fcntl = None  # type: ignore[assignment]

# A lock file that its owner hasn't touched for so long is abandoned; owners touch it far more often.
_STALE_LOCK_SECONDS = 300
_TOUCH_SECONDS = 20

# Other builds of an engine's package, under the names that people know them by, and the engine.
BUILDS = {"tensorflow-cpu": "tensorflow"}


# ---------------------------------------------------------------------------- places


def user_root() -> Path:
    """The folder of environments in the user's data folder."""
    return Path(platformdirs.user_data_path("kernelk")) / "envs"


def roots() -> list[Path]:
    """All folders of environments, in the order of the search: those that `KERNELK_ENVS` names, then the user's."""
    chosen = [part for part in os.environ.get("KERNELK_ENVS", "").split(os.pathsep) if part]
    return list(dict.fromkeys([*(Path(os.path.expanduser(part)).absolute() for part in chosen), user_root()]))


def root() -> Path:
    """The folder that an install goes to: the first that can be written, as far as its permissions tell."""
    for place in roots():
        existing = place
        while not os.path.lexists(existing) and existing != existing.parent:
            existing = existing.parent
        if os.path.isdir(existing) and os.access(existing, os.W_OK | os.X_OK):
            return place
    return user_root()


def _folder_name(recipe: Recipe, series: str) -> str:
    # Another version of kernelk, with other pins, builds beside it and breaks nothing that is in use.
    return f"{recipe.name}-{recipe.hash(series)[:10]}"


def folder(name: str, series: str | None = None) -> Path:
    """Where the environment would be built; by default for the recipe's best Python.

    Its name holds a hash of the pins and of the Python's series.
    """
    recipe = recipe_for(name)
    return root() / _folder_name(recipe, series or recipe.pythons[0])


def _places(recipe: Recipe) -> Iterator[tuple[Path, str]]:
    """Where an environment of these pins may be, with the Python's series, best first."""
    for place in roots():
        for series in recipe.pythons:
            yield place / _folder_name(recipe, series), series


def _read_marker(place: Path, hash_: str) -> dict[str, object] | None:
    """The marker of an environment with these pins; whether its Python is still there isn't looked at."""
    try:
        content = json.loads((place / MARKER).read_text(encoding="utf-8"))
        return {**content, "folder": str(place)} if content["recipe"] == hash_ else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def marker(name: str) -> dict[str, object] | None:
    """What was written down about the installed environment, with its `folder`; None where there is none."""
    recipe = recipe_for(name)
    for place, series in _places(recipe):
        found = _read_marker(place, recipe.hash(series))
        # The link dangles once the Python under it was removed or moved, or may not be read: not installed either.
        if found is not None and os.path.exists(python_in(place)):
            return found
    return None


def installed_python(name: str) -> Path | None:
    """The interpreter of the complete environment, or None; runs no process."""
    found = marker(name)
    return None if found is None else python_in(Path(str(found["folder"])))


def missing(name: str) -> str:
    """Why the engine's environment can't be used, in words, for one that isn't complete."""
    recipe = recipe_for(name)
    for place, series in _places(recipe):
        if _read_marker(place, recipe.hash(series)) is not None:
            target = os.path.realpath(python_in(place))
            return f"is installed in {place}, but the Python under it ({target}) is gone or can't be read"
    return "was not installed to the end" if half_built(name) else "is not installed"


def require_python(name: str) -> Path:
    """The interpreter of the complete environment, or an error with the command that installs it."""
    python = installed_python(name)
    if python is None:
        raise BackendNotInstalledError(
            f"{recipe_for(name).title} {missing(name)}; next: "
            + in_shell_and_notebook(f"kernelk install {name}", f"%kbackend --install {name}")
        )
    return python


def half_built(name: str) -> Path | None:
    """The folder of an install that was killed, or None."""
    if installed_python(name) is not None:
        return None
    return next((place for place, _ in _places(recipe_for(name)) if os.path.isdir(place)), None)


def superseded(name: str) -> list[Path]:
    """Folders built with other pins, by another version of kernelk; nothing here uses them."""
    recipe = recipe_for(name)
    current = {place for place, _ in _places(recipe)}
    pattern = re.compile(rf"{re.escape(name)}-[0-9a-f]{{10}}")
    found: list[Path] = []
    for place in roots():
        with contextlib.suppress(OSError):
            found += [p for p in sorted(place.iterdir()) if pattern.fullmatch(p.name) and p.is_dir()]
    return [place for place in found if place not in current]


# ---------------------------------------------------------------------------- one at a time


@contextlib.contextmanager
def _lock(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Holds the lock file; `waiting` is called once if another process holds it."""
    with open(path, "a") as file:
        if _flock(file.fileno(), waiting):
            yield  # closing the file, or the end of the process in whatever way, releases it
            return
    with _held(path.with_suffix(".held"), waiting):
        yield


def _flock(fileno: int, waiting: Callable[[], None]) -> bool:
    """Waits for the lock; False where the system or the file system has none."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(fileno, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(fileno, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _held(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """The same by a file that is there as long as the lock is held, and is touched as long as its owner lives."""
    told = False
    while True:
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(f"{socket.gethostname()} {os.getpid()}")
            break
        except FileExistsError:
            if _abandoned(path):
                path.unlink(missing_ok=True)
                continue
            if not told:
                waiting()
                told = True
            time.sleep(0.2)
    done = threading.Event()

    def touch() -> None:
        while not done.wait(_TOUCH_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(path)

    threading.Thread(target=touch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        path.unlink(missing_ok=True)


def _abandoned(path: Path) -> bool:
    """Whether the owner of a held lock is gone: its process on this machine, or any that hasn't touched it for long."""
    try:
        if time.time() - path.stat().st_mtime > _STALE_LOCK_SECONDS:
            return True
        host, _, pid = path.read_text(encoding="utf-8").rpartition(" ")
        if host == socket.gethostname() and os.name == "posix":
            os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError):
        pass  # it went just now, is being written, or belongs to another user's process
    return False


# ---------------------------------------------------------------------------- install and uninstall


def install(name: str, report: Report | None = None, rebuild: bool = False) -> Path:
    """Builds the engine's environment, unless it is there, and returns its interpreter. `kernelk install NAME`.

    `report(text)` gets lines of progress; what moves goes to its attribute `moving(text)` if it has one. By default
    they are printed. An engine that is in the kernel's own environment is there already. Raises UnknownBackendError,
    BackendNotInstalledError where pip has to install it or no Python fits, and InstallError; then, as after Ctrl-C,
    it isn't installed, or in a `rebuild` the one from before is.
    """
    report = report or Progress()
    own = _recipe_of(name)
    if own is None:
        engine = registry.engine(BUILDS.get(name, name))
        if not registry.installed(engine.name):
            command = engine.install.replace(f"[{engine.name}]", f"[{name}]")
            raise BackendNotInstalledError(
                f"{name} needs no environment of its own and is not installed; next: "
                + in_shell_and_notebook(command, f"%{command}" if command.startswith("pip ") else "")
            )
        report(f"{name}: already installed; it needs no environment of its own")
        return Path(sys.executable)
    return install_recipe(own, report, rebuild)


def _recipe_of(name: str) -> Recipe | None:
    """The recipe of an engine, None for one of the kernel's own environment. Raises UnknownBackendError."""
    if name in RECIPES:
        return RECIPES[name]
    found = registry.engine(BUILDS.get(name, name)).recipe
    return RECIPES[found] if found is not None else None


def install_recipe(
    recipe: Recipe, report: Report, rebuild: bool = False, wheels: Path | None = None, again: str = ""
) -> Path:
    """The same for a recipe; `wheels`: a folder that holds every file, so that no network is needed.

    `again` is the command that the messages name.
    """
    name = recipe.name
    again = again or f"`kernelk install {name}`"
    if recipe.refusal():
        raise InstallError(recipe.refusal())
    found = _installed_before(recipe, root())
    if found is not None and not rebuild:
        report(f"{name}: already installed in {found}")
        return python_in(found)
    place = _writable_root(recipe, report, again)
    found = _installed_before(recipe, place)
    if found is not None and found.parent != place:
        if not rebuild:
            report(f"{name}: already installed in {found}")
            return python_in(found)
        raise InstallError(
            f"{recipe.title} is in the shared folder {found.parent}, which can't be written; next: let its owner run "
            f"{again}, or put a folder of your own first, KERNELK_ENVS={user_root()}{os.pathsep}{found.parent}"
        )
    if rebuild:
        _stop_workers(recipe, f"kernelk install {name} --rebuild")
    waiting = functools.partial(report, f"{name}: another process is installing it; waiting")
    try:
        with _lock(place / f"{name}.lock", waiting):
            found = _installed_before(recipe, place)
            if found is not None and not rebuild:
                report(f"{name}: already installed in {found} (by the other process)")
                return python_in(found)
            enough_space(recipe.title, place, int(1.3 * recipe.bytes), again)
            run = Runner(recipe.title, name, place / f"{name}.log", report, again)
            interpreter = _interpreter(recipe, place, run, offline=wheels is not None)
            target = place / _folder_name(recipe, interpreter.series)
            python = Build(recipe, interpreter, target, run, wheels).build()
            for other in (path for path, _ in _places(recipe) if path.parent == place and path != target):
                shutil.rmtree(other, ignore_errors=True)  # of another Python, or half-built
            closed = private_part(interpreter.path)
            if place != user_root() and closed is not None:
                report(
                    f"{name}: you alone can use it: its Python is below {closed}, which others may not enter; for a "
                    f"shared folder name another Python by KERNELK_PYTHON{interpreter.series.replace('.', '')}, then "
                    f"{again} with --rebuild"
                )
            return python
    except OSError as error:
        raise disk_error(recipe.title, place, error, again) from error


def private_part(path: Path) -> Path | None:
    """The first folder on the way to a file that other users may not enter, if there is one."""
    folders = reversed(path.resolve().parents)
    return next((folder for folder in folders if not folder.stat().st_mode & stat.S_IXOTH), None)


def _installed_before(recipe: Recipe, last: Path) -> Path | None:
    """The complete environment in a folder of the search up to `last`: one that comes later doesn't fill that one."""
    for place, series in _places(recipe):
        there = _read_marker(place, recipe.hash(series)) is not None and os.path.exists(python_in(place))
        if there and roots().index(place.parent) <= roots().index(last):
            return place
    return None


def _writable_root(recipe: Recipe, report: Report, again: str) -> Path:
    """The first folder of environments that really takes a file. Raises InstallError where there is none."""
    refused = []
    for place in roots():
        try:
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):
                pass
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_error(recipe.title, place, error, again) from error
            refused.append(f"{place} ({error.strerror})")
            continue
        if refused:
            report(f"{recipe.name}: installing in {place}, since {refused[0]} can't be written")
        return place
    raise InstallError(
        f"{recipe.title} could not be installed: no folder for it can be written: {', '.join(refused)}; next: choose "
        f"another folder with KERNELK_ENVS, then {again}"
    )


def _interpreter(recipe: Recipe, place: Path, run: Runner, offline: bool) -> Interpreter:
    """An interpreter that fits: found, or else created by what is on this machine."""
    found = interpreters.search(recipe, roots())
    if found.interpreter is not None:
        return found.interpreter
    makers = [] if offline else interpreters.makers(recipe)
    if not makers:
        raise interpreters.nothing_found(recipe, found.broken)
    maker = makers[0]
    waiting = functools.partial(run.say, f"another process is creating a Python {maker.series}; waiting")
    with _lock(place / f"python-{maker.series}.lock", waiting):
        found = interpreters.search(recipe, roots())
        return found.interpreter or create_interpreter(maker, place, run)


def find_interpreter(recipe: Recipe) -> Interpreter:
    """The best interpreter on this machine for the recipe. Raises BackendNotInstalledError with what gets one."""
    found = interpreters.search(recipe, roots())
    if found.interpreter is None:
        raise interpreters.nothing_found(recipe, found.broken)
    return found.interpreter


def uninstall(name: str, report: Report | None = None) -> list[Path]:
    """Removes the engine's environments, those of older pins and half-built ones too. `kernelk uninstall NAME`.

    It works in the one folder that an install goes to; what another folder of the search holds stays, and is told.
    Returns the folders that it has removed. Raises InstallError where one can't be, where it is in use in this
    notebook, or where only pip can remove it.
    """
    report = report or Progress()
    recipe = _recipe_of(name)
    if recipe is None:
        if registry.installed(BUILDS.get(name, name)):
            raise InstallError(
                f"{name} is in the environment that kernelk itself runs in ({sys.prefix}); next: "
                f"`{sys.executable} -m pip uninstall {name}`"
            )
        report(f"{name}: not installed, nothing to remove")
        return []
    place = root()
    every = [path for path, _ in _places(recipe) if os.path.isdir(path)] + superseded(name)
    doomed = [path for path in every if path.parent == place]
    elsewhere = list(dict.fromkeys(path.parent for path in every if path.parent != place))
    other = (
        f"`KERNELK_ENVS={elsewhere[0]} kernelk uninstall {name}`, by whom that folder belongs to" if elsewhere else ""
    )
    if elsewhere and not doomed:
        raise InstallError(f"{recipe.title} isn't in {place}, but in {elsewhere[0]}; next: {other}")
    if doomed:
        _stop_workers(recipe, f"kernelk uninstall {name}")
    if doomed or _unused_pythons(place):
        try:
            with _lock(place / f"{name}.lock", functools.partial(report, f"{name}: it is being installed; waiting")):
                for path in doomed:
                    _remove(path, report, name)
                (place / f"{name}.log").unlink(missing_ok=True)
                for python in _unused_pythons(place):
                    _remove(python, report, name)
        except OSError as error:
            raise InstallError(
                f"{recipe.title} could not be removed from {place}: {error.strerror or error}; next: make it writable, "
                f"then `kernelk uninstall {name}`"
            ) from error
    if not doomed:
        report(f"{name}: not installed, nothing to remove")
    elif elsewhere:
        report(f"{name}: the one in {elsewhere[0]} stays; to remove it: {other}")
    return doomed


def _remove(path: Path, report: Report, name: str) -> None:
    freed = size(path)
    (path / MARKER).unlink(missing_ok=True)  # first: while files go, it isn't installed
    shutil.rmtree(path)
    report(f"{name}: removed {path}, {freed / 1e6:.0f} MB")


def _unused_pythons(place: Path) -> list[Path]:
    """Pythons that were created beside the environments, and that none of them is built on any more."""
    created = [path for path in interpreters.below(place, "python-*") if os.path.isdir(path)]
    used = [os.path.realpath(python_in(path)) for path in interpreters.below(place, "*-*") if path not in created]
    return [path for path in created if not any(Path(python).is_relative_to(path.resolve()) for python in used)]


def _stop_workers(recipe: Recipe, command: str) -> None:
    """Ends this notebook's worker that runs in the environment. Raises InstallError if its engine is the active one."""
    # Without a session there are no workers; nothing is imported to find that out.
    loaded = sys.modules.get("kernelk.session")
    session = getattr(loaded, "_session", None)
    if session is None:
        return
    for host in list(session.hosts.values()):
        if host.engine.recipe == recipe.name and host.started:
            if session.active == host.engine.name:
                raise InstallError(
                    f"{recipe.title} is this notebook's active engine; next: kernelk.set_backend('numpy'), then "
                    f"`{command}`"
                )
            host.stop()
