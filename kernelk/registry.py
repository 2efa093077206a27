"""Backends by name, found through the entry points `kernelk.backends`; none is imported to be listed."""

from __future__ import annotations

import difflib
import importlib.util
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from .engines import Engine
from .errors import BackendNotInstalledError, UnknownBackendError

# The order in which the table of engines shows them; others follow by name.
_ORDER = ("tensorflow", "theano", "cntk", "jax", "torch", "numpy")


@cache
def _entries() -> dict[str, EntryPoint]:
    found = {entry.name: entry for entry in entry_points(group="kernelk.backends")}
    for name in ("numpy", "tensorflow", "theano", "cntk", "jax", "torch"):
        # Run from a source tree that isn't installed, the engines of the box are still there.
        found.setdefault(name, EntryPoint(name, f"kernelk.engines:{name.upper()}", "kernelk.backends"))
    return found


def names() -> list[str]:
    """All registered backends."""
    known = sorted(_entries())
    return [name for name in _ORDER if name in known] + [name for name in known if name not in _ORDER]


def engine(name: str) -> Engine:
    """The backend of this exact name. Raises UnknownBackendError with the nearest names."""
    if not isinstance(name, str) or name not in _entries():
        near = difflib.get_close_matches(str(name).lower(), names(), n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise UnknownBackendError(f"unknown backend {name!r}: {hint}available are {', '.join(names())}")
    return _descriptor(name)


@cache
def _descriptor(name: str) -> Engine:
    descriptor: Engine = _entries()[name].load()
    return descriptor


def interpreter(descriptor: Engine) -> Path:
    """The interpreter that runs this engine's worker. Raises BackendNotInstalledError with the next command."""
    if descriptor.imports is not None and importlib.util.find_spec(descriptor.imports) is not None:
        return Path(sys.executable)
    if descriptor.recipe is not None:
        from . import environments

        return environments.require_python(descriptor.recipe)
    raise BackendNotInstalledError(
        f"{descriptor.title} isn't installed in this notebook's environment ({sys.prefix}): {descriptor.install}"
    )


def installed(name: str) -> bool:
    """Whether the engine can be started here; nothing is started to find out."""
    descriptor = engine(name)
    if descriptor.in_kernel:
        return True
    try:
        interpreter(descriptor)
    except BackendNotInstalledError:
        return False
    return True
