"""Where the engines' environments are, which of them are complete, and their install and removal; `registry` asks here.

Rules of this module: `installed_python` runs no process, so that listing engines stays cheap. An environment counts as
installed only once its marker file is there, which is written last: whatever stops an install leaves "not installed".
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ..display.progress import Report
from ..errors import InstallError
from . import interpreters
from .build import Build, create_interpreter, disk_error, enough_space
from .interpreters import Interpreter
from .places import _folder_name, _places, _read_marker, python_in, root, roots, user_root
from .recipes import Recipe
from .runner import Runner

try:
    import fcntl
except ImportError:  # no POSIX
    fcntl = None  # type: ignore[assignment]

# A lock file that its owner hasn't touched for so long is abandoned; owners touch it far more often.
_STALE_LOCK_SECONDS = 300
_TOUCH_SECONDS = 20


# ---------------------------------------------------------------------------- places


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


def install_recipe(
    recipe: Recipe,
    report: Report,
    rebuild: bool = False,
    wheels: Path | None = None,
    again: str = "",
    release: Callable[[], None] = lambda: None,
) -> Path:
    """Builds a recipe's environment unless it is there; returns its interpreter. Raises InstallError.

    `wheels`: a folder that holds every file, so that no network is needed. `again` is the command that the messages
    name. `release` is called before a rebuild: it ends what runs in the environment, or raises InstallError.
    """
    name = recipe.name
    again = again or f"`kernelk install {name}`"
    refusal = recipe.refusal()
    if refusal is not None:
        raise refusal
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
            f"{recipe.title} is in the shared folder {found.parent}, which you can't write",
            next_step=f"ask its owner to run {again}, or put a folder of your own first, "
            f"KERNELK_ENVS={user_root()}{os.pathsep}{found.parent}",
        )
    if rebuild:
        release()
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
                    f"{name}: only you can use it: its Python is inside {closed}, which others can't read; for a "
                    f"shared folder set another Python by KERNELK_PYTHON{interpreter.series.replace('.', '')}, then "
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
        f"{recipe.title} could not be installed: no folder for it can be written: {', '.join(refused)}",
        next_step=f"choose another folder with KERNELK_ENVS, then {again}",
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
