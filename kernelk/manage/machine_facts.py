"""Facts of the machine for `doctor`, and what stands in kernelk's way there; told of another machine by itself, too."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import platformdirs

from .. import config
from .._version import __version__
from ..display.tables import size
from ..engines import registry
from ..engines.machine import gpus
from ..environments import places
from ..errors import joined


def _access(folder: Path) -> str:
    """Returns why a folder can't be created or written to; "" if it can. Leaves nothing behind."""
    existing = folder
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            return ""
    except OSError as error:
        return str(error.strerror or error)


def machine_facts() -> tuple[list[tuple[str, str]], list[str]]:
    """Facts of the machine as (name, words), and its problems, one line each with what to do."""
    problems = []
    facts = [
        ("kernelk", f"{__version__}, Python {platform.python_version()} ({sys.executable})"),
        ("machine", f"{platform.platform()}, {os.cpu_count()} processors"),
        ("GPUs", _gpus()),
    ]
    refused = []
    for folder in places.roots():
        words = _access(folder)
        facts.append(("environments", f"{folder}, {f'not writable ({words})' if words else _free(folder)}"))
        refused.append(bool(words))
    if all(refused):
        problems.append(
            joined(
                "environments: none of the folders is writable, so nothing can be installed",
                next_step="set KERNELK_ENVS to a writable folder",
            )
        )
    problems += [
        joined(f"environments: KERNELK_ENVS names {words}", next_step="set KERNELK_ENVS to another folder")
        for words in places.chosen_roots()[1]
    ]
    for what, folder, why, setting in (
        ("cache", platformdirs.user_cache_path("kernelk"), "Theano compiles again in every worker", "XDG_CACHE_HOME"),
        ("temporary files", Path(tempfile.gettempdir()), "no worker can start", "TMPDIR"),
    ):
        words = _access(folder)
        facts.append((what, f"{folder}, {f'not writable ({words})' if words else _free(folder)}"))
        if words:
            problems.append(
                joined(
                    f"{what}: {folder} can't be written ({words}): {why}",
                    next_step=f"set {setting} to a writable folder",
                )
            )
    compiler = shutil.which("g++")
    facts.append(("C++ compiler", compiler or "g++ isn't on the PATH; only Theano uses it, and works without it too"))
    return facts, problems


def session_facts() -> tuple[list[tuple[str, str]], list[str]]:
    """What a new session here starts with, and what is wrong with it; as in `machine_facts`."""
    facts, problems = [], []
    name, by = config.chosen_backend()
    facts.append(("engine of a new session", f"{name}, chosen by {by}"))
    if not registry.is_name(name):
        problems.append(
            joined(
                f"'{name}', chosen by {by}, is not a known engine",
                next_step=f"choose one of {', '.join(registry.names())}",
            )
        )
    # Read again: the file may have changed since this process read it.
    if os.path.exists(config.path()):
        problems += config.Config().read().problems
    facts.append(("keras.json", str(config.path())))
    return facts, problems


def _gpus() -> str:
    """The GPUs that programs started here may see."""
    found = gpus()
    counted = [f"{found.count(name)} x {name}" for name in dict.fromkeys(found)]
    words = ", ".join(counted) or "none that NVIDIA's driver shows to this process"
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return words if shown is None or not found else f"{words}; CUDA_VISIBLE_DEVICES={shown!r} says which are used"


def _free(folder: Path) -> str:
    existing = folder
    while not os.path.exists(existing) and existing != existing.parent:
        existing = existing.parent
    return f"writable, {size(shutil.disk_usage(existing).free)} free"
