"""Installs and removes engines by name with `environments.install`, and ends this session's workers in them.

Those on other machines are installed and removed there: see `elsewhere`.
"""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..display.commands import in_shell_and_notebook
from ..display.progress import Progress, Report
from ..engines import registry
from ..environments import interpreters, keras2
from ..environments.build import size
from ..environments.install import end_orphans, install_recipe, one_at_a_time
from ..environments.places import MARKER, candidate_folders, python_in, root, superseded, unfinished, users
from ..environments.recipes import RECIPES, Recipe
from ..errors import ArgumentError, BackendNotInstalledError, InstallError
from ..remote.clusters import placed
from ..session.current import existing

# Other builds of an engine's package by their common names, each with the engine.
BUILDS = {"tensorflow-cpu": "tensorflow"}


def install(name: str, report: Report | None = None, rebuild: bool = False, on: Any = None) -> Path:
    """Builds the engine's environment, unless it is there, and returns its interpreter. `kernelk install NAME`.

    `report(text)` gets lines of progress; those that replace one another go to its attribute `moving(text)` if it has
    one. By default they are printed. An engine in the kernel's own environment is already installed. Raises
    UnknownBackendError, BackendNotInstalledError if pip has to install it or no Python fits, and InstallError. After
    an error or Ctrl-C it isn't installed; a `rebuild` keeps the old environment then.

    `on`: as in `set_backend`; it is installed on each machine of that cluster, one after the other, and the interpreter
    is that of the machine whose engine kernelk uses.
    """
    report = Progress() if report is None else report
    name, place = _place(name, on)
    if place:
        from .elsewhere import on_each

        if rebuild:
            _release_there(name, place, f"kernelk install {name} --rebuild --on {place}")
        return Path(on_each(place, "install", name, {"rebuild": rebuild}, report)[0])
    if name == keras2.NAME:
        there = keras2.found()
        if there is not None and not rebuild:
            report(f"{name}: already installed in {there}")
        return keras2.install(report, rebuild)
    own = _recipe_of(name)
    if own is None:
        engine = registry.engine(BUILDS.get(name, name))
        if not registry.installed(engine.name):
            command = engine.install.replace(f"[{engine.name}]", f"[{name}]")
            raise BackendNotInstalledError(
                f"{name} needs no environment of its own and is not installed",
                next_step=in_shell_and_notebook(command),
            )
        report(f"{name}: already installed; it needs no environment of its own")
        return Path(sys.executable)
    return install_recipe(own, report, rebuild, release=releasing(own, f"kernelk install {own.name} --rebuild"))


def _place(name: str, on: Any) -> tuple[str, str]:
    """The name of what is to be installed or removed, and the cluster, "" for this machine: "theano@gpu-box" has both.

    Raises ArgumentError where these are two clusters, UnknownBackendError.
    """
    base, at, place = name.partition("@")
    if at and base != keras2.NAME:
        registry.engine(f"{BUILDS.get(base, base)}@{place}")
    if on is None:
        return base, place
    if place not in ("", given := placed("numpy", on).partition("@")[2]):
        raise ArgumentError(
            f"{name} is on {place}, not on {given}", next_step=f"kernelk.install({base!r}, on={given!r})"
        )
    return base, given


def _recipe_of(name: str) -> Recipe | None:
    """The recipe of an engine, None for one of the kernel's own environment. Raises UnknownBackendError."""
    if name in RECIPES:
        return RECIPES[name]
    recipe = registry.engine(BUILDS.get(name, name)).recipe
    return RECIPES[recipe] if recipe is not None else None


def uninstall(name: str, report: Report | None = None, on: Any = None) -> list[Path]:
    """Removes the engine's environments, those of older pins and half-built ones too. `kernelk uninstall NAME`.

    Only the folder that an install goes to is changed; environments in the other folders of the search are reported.
    Returns the folders that it has removed. Raises InstallError if one can't be removed or is in use in this notebook,
    or if only pip can remove it.

    `on`: as in `set_backend`; it is removed from each machine of that cluster.
    """
    report = Progress() if report is None else report
    name, place = _place(name, on)
    if place:
        from .elsewhere import on_each

        _release_there(name, place, f"kernelk uninstall {name} --on {place}")
        return [Path(path) for paths in on_each(place, "uninstall", name, {}, report) for path in paths]
    if name == keras2.NAME:
        gone = keras2.removed()
        report(f"{name}: " + (", ".join(f"{path} removed" for path in gone) or "not installed, nothing to remove"))
        return gone
    recipe = _recipe_of(name)
    if recipe is None:
        if registry.installed(BUILDS.get(name, name)):
            raise InstallError(
                f"{name} is in the environment that kernelk itself runs in ({sys.prefix})",
                next_step=f"`{sys.executable} -m pip uninstall {name}`",
            )
        report(f"{name}: not installed, nothing to remove")
        return []
    folder = root()
    every = [path for path, _ in candidate_folders(recipe) if os.path.isdir(path)] + superseded(name)
    doomed = [path for path in every if path.parent == folder]
    elsewhere = list(dict.fromkeys(path.parent for path in every if path.parent != folder))
    other = (
        f"`KERNELK_ENVS={elsewhere[0]} kernelk uninstall {name}`, run by the owner of that folder" if elsewhere else ""
    )
    if elsewhere and not doomed:
        raise InstallError(f"{recipe.title} isn't in {folder}, but in {elsewhere[0]}", next_step=other)
    if doomed:
        releasing(recipe, f"kernelk uninstall {name}")()
    if doomed or _unused_pythons(folder):
        try:
            waiting = functools.partial(report, f"{name}: it is being installed; waiting")
            with one_at_a_time(folder / f"{name}.lock", waiting):
                for path in doomed:
                    _require_unused(recipe, path)
                for path in doomed:
                    shutil.rmtree(path.with_name(f".{path.name}.partial"), ignore_errors=True)
                    _remove(path, report, name)
                (folder / f"{name}.log").unlink(missing_ok=True)
                for python in _unused_pythons(folder):
                    _remove(python, report, name)
        except OSError as error:
            raise InstallError(
                f"{recipe.title} could not be removed from {folder}: {error.strerror or error}",
                next_step=f"make it writable, then `kernelk uninstall {name}`",
            ) from error
    if not doomed:
        report(f"{name}: not installed, nothing to remove")
    elif elsewhere:
        report(f"{name}: the one in {elsewhere[0]} was kept; to remove it: {other}")
    return doomed


def _require_unused(recipe: Recipe, path: Path) -> None:
    """Raises InstallError for an environment that is in use, after ending what a killed build left running."""
    if path in unfinished(recipe.name):
        end_orphans(path)
    running = users(path)
    if running:
        raise InstallError(
            f"{recipe.title} in {path} is in use by process {running[0]}, perhaps another notebook's",
            next_step=f"kernelk.set_backend('numpy') there, or end it, then `kernelk uninstall {recipe.name}`",
        )


def _remove(path: Path, report: Report, name: str) -> None:
    freed = size(path)
    (path / MARKER).unlink(missing_ok=True)  # first: from now on it isn't installed
    shutil.rmtree(path)
    report(f"{name}: removed {path}, {freed / 1e6:.0f} MB")


def _unused_pythons(folder: Path) -> list[Path]:
    """Pythons that were created next to the environments and that no environment uses any more."""
    created = [path for path in interpreters.below(folder, "python-*") if os.path.isdir(path)]
    used = [os.path.realpath(python_in(path)) for path in interpreters.below(folder, "*-*") if path not in created]
    return [path for path in created if not any(Path(python).is_relative_to(path.resolve()) for python in used)]


def releasing(recipe: Recipe, command: str) -> Callable[[], None]:
    """A function that ends this notebook's worker in the environment; it raises InstallError for the active engine."""
    return functools.partial(_stop_workers, recipe.name, recipe.title, command)


def _release_there(name: str, place: str, command: str) -> None:
    """As `releasing`, of an engine on a cluster's machine."""
    if name in RECIPES:
        _stop_workers(name, f"{RECIPES[name].title} on {place}", command, place)


def _stop_workers(recipe: str, title: str, command: str, place: str = "") -> None:
    session = existing()
    if session is None:
        return
    for host in list(session.hosts.values()):
        if host.engine.recipe == recipe and host.engine.on == place and host.started:
            if session.active == host.engine.name:
                raise InstallError(
                    f"{title} is this notebook's active engine",
                    next_step=f"kernelk.set_backend('numpy'), then `{command}`",
                )
            with session.lock:
                host.stop()
