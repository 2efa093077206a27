"""Installs a recipe's environment: the first writable folder, one process at a time, an interpreter, then `build`."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..display.progress import Report
from ..errors import InstallError
from . import interpreters
from .build import Build, create_interpreter, disk_error, enough_space
from .interpreters import Interpreter
from .places import (
    MARKER,
    candidate_folders,
    chosen_roots,
    folder_name,
    free_slot,
    leftovers,
    python_in,
    read_marker,
    root,
    roots,
    unfinished,
    user_root,
    users,
)
from .recipes import Recipe
from .runner import Runner

if TYPE_CHECKING:
    from filelock import BaseFileLock

# Without flock a file is the lock. Its owner touches it; if it is left untouched for so long, as by a machine that was
# switched off, it is taken over.
_LEASE_SECONDS = 120
_POLL_SECONDS = 0.2
_ORPHAN_SECONDS = 5.0

_LEFT = ", left by an earlier install"

# The errors of flock if the system, or the file system, doesn't support it.
_NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


@contextlib.contextmanager
def one_at_a_time(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Holds a lock file; `on_wait` is called once if another process holds it. The lock of a killed owner is free."""
    # Imported when something is installed: `kernelk list` has to stay light.
    import filelock

    lock: BaseFileLock = filelock.FileLock(path, poll_interval=_POLL_SECONDS, fallback_to_soft=False)
    try:
        _acquire(lock, on_wait)
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
        lock = filelock.SoftFileLease(
            path.with_suffix(".lease"), poll_interval=_POLL_SECONDS, lease_duration=_LEASE_SECONDS
        )
        _acquire(lock, on_wait)
    try:
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, on_wait: Callable[[], None]) -> None:
    from filelock import Timeout

    try:
        # Some versions of filelock clear a dead owner's lock at the first try, and take it at the next.
        lock.acquire(timeout=3 * _POLL_SECONDS)
    except Timeout:
        on_wait()
        lock.acquire()


def install_recipe(
    recipe: Recipe,
    report: Report,
    rebuild: bool = False,
    wheels: Path | None = None,
    again: str = "",
    release: Callable[[], None] = lambda: None,
) -> Path:
    """Builds a recipe's environment unless it is installed; returns its interpreter. Raises InstallError.

    `wheels`: a folder that holds every file, so that no network is needed. `again` is the command that the messages
    name. `release` is called before a rebuild: it ends the workers in the environment, or raises InstallError.
    """
    name = recipe.name
    again = again or f"`kernelk install {name}`"
    refusal = recipe.refusal()
    if refusal is not None:
        raise refusal
    found = _installed_before(recipe, root())
    if found is not None and not rebuild:
        _tidy(recipe, found, report)
        report(f"{name}: already installed in {found}")
        return python_in(found)
    folder = _writable_root(recipe, report, again)
    found = _installed_before(recipe, folder)
    if found is not None and found.parent != folder:
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
        with one_at_a_time(_lock_of(recipe, folder), waiting):
            found = _installed_before(recipe, folder)
            if found is not None and not rebuild:
                report(f"{name}: already installed in {found} (by the other process)")
                return python_in(found)
            enough_space(recipe.title, folder, int(1.3 * recipe.bytes), again)
            run = Runner(recipe.title, name, folder / f"{name}.log", report, again)
            interpreter = _interpreter(recipe, folder, run, offline=wheels is not None)
            _remove_unfinished(recipe, folder, run.say)
            target = free_slot(folder / folder_name(recipe, interpreter.series))
            python = Build(recipe, interpreter, target, run, wheels).build(1 + _latest(recipe, folder))
            for other in (path for path, _ in candidate_folders(recipe) if path.parent == folder and path != target):
                _remove(other, run.say)  # an older build, or one with another Python
            closed = private_part(interpreter.path)
            if folder != user_root() and closed is not None:
                report(
                    f"{name}: only you can use it: its Python is inside {closed}, which others can't read; for a "
                    f"shared folder set another Python by KERNELK_PYTHON{interpreter.series.replace('.', '')}, then "
                    f"{again} with --rebuild"
                )
            return python
    except OSError as error:
        raise disk_error(recipe.title, folder, error, again) from error


def _latest(recipe: Recipe, folder: Path) -> int:
    """The number of the latest build in a folder of environments."""
    markers = (
        read_marker(path, recipe.hash(series)) for path, series in candidate_folders(recipe) if path.parent == folder
    )
    return max((n for content in markers if content and isinstance(n := content.get("build"), int)), default=0)


def _tidy(recipe: Recipe, found: Path, report: Report) -> None:
    """Removes the leftovers of killed builds next to the complete environment, unless a build is running there."""
    import filelock

    def say(text: str) -> None:
        report(f"{recipe.name}: {text}")

    left = [path for path in leftovers(recipe.name) if path.parent == found.parent]
    if not left:
        return
    with contextlib.suppress(OSError, filelock.Timeout), filelock.FileLock(_lock_of(recipe, found.parent), timeout=0):
        _remove_unfinished(recipe, found.parent, say)
        for path in left:
            _remove(path, say, _LEFT)


def _remove_unfinished(recipe: Recipe, folder: Path, report: Report) -> None:
    """Removes the leftovers of killed builds in a folder of environments. Called with its lock held."""
    for path in unfinished(recipe.name):
        if path.parent == folder:
            end_orphans(path)
            shutil.rmtree(path.with_name(f".{path.name}.partial"), ignore_errors=True)
            _remove(path, report, _LEFT)


def end_orphans(path: Path) -> None:
    """Ends processes that a killed build left running: with the lock held, nothing waits for them any more."""
    for pid in users(path):
        with contextlib.suppress(OSError):
            # The runner's commands have sessions of their own, which a user's in a terminal share with its shell.
            if (group := os.getpgid(pid)) == os.getsid(pid):
                os.killpg(group, signal.SIGKILL)
    end = time.monotonic() + _ORPHAN_SECONDS
    while users(path) and time.monotonic() < end:
        time.sleep(_POLL_SECONDS)


def _remove(path: Path, report: Report, what: str = "") -> None:
    """Removes an environment, unless a process runs in it: then a later install does."""
    if not os.path.isdir(path):
        return
    running = users(path)
    if running:
        report(f"{path}{what} is in use by process {running[0]}; a later install removes it")
        return
    if what:
        report(f"removing {path}{what}")
    with contextlib.suppress(OSError):
        (path / MARKER).unlink(missing_ok=True)  # first: from now on it isn't installed
    shutil.rmtree(path, ignore_errors=True)


def _lock_of(recipe: Recipe, folder: Path) -> Path:
    return folder / f"{recipe.name}.lock"


def private_part(path: Path) -> Path | None:
    """The first folder on the path to a file that other users may not enter, if there is one."""
    folders = reversed(path.resolve().parents)
    return next((folder for folder in folders if not folder.stat().st_mode & stat.S_IXOTH), None)


def _installed_before(recipe: Recipe, last: Path) -> Path | None:
    """The complete environment in a folder of the search up to `last`; those in later folders don't count."""
    for environment, series in candidate_folders(recipe):
        there = read_marker(environment, recipe.hash(series)) is not None and os.path.exists(python_in(environment))
        if there and roots().index(environment.parent) <= roots().index(last):
            return environment
    return None


def _writable_root(recipe: Recipe, report: Report, again: str) -> Path:
    """The first folder of environments in which a file can really be created. Raises InstallError if there is none."""
    refused = chosen_roots()[1]
    for folder in roots():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise disk_error(recipe.title, folder, error, again) from error
            refused.append(f"{folder} ({error.strerror})")
            continue
        if refused:
            report(f"{recipe.name}: installing in {folder}, since {refused[0]} can't be written")
        return folder
    raise InstallError(
        f"{recipe.title} could not be installed: no folder for it can be written: {', '.join(refused)}",
        next_step=f"choose another folder with KERNELK_ENVS, then {again}",
    )


def _interpreter(recipe: Recipe, folder: Path, run: Runner, offline: bool) -> Interpreter:
    """A suitable interpreter: found, or else created with conda or uv."""
    found = interpreters.search(recipe, roots())
    if found.interpreter is not None:
        return found.interpreter
    makers = [] if offline else interpreters.makers(recipe)
    if not makers:
        raise interpreters.nothing_found(recipe, found.broken)
    maker = makers[0]
    waiting = functools.partial(run.say, f"another process is creating a Python {maker.series}; waiting")
    with one_at_a_time(folder / f"python-{maker.series}.lock", waiting):
        found = interpreters.search(recipe, roots())
        return found.interpreter or create_interpreter(maker, folder, run)
