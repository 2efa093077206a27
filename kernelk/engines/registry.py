"""Finds backends by name through the entry points `kernelk.backends`; listing them imports none."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..display.commands import in_shell_and_notebook
from ..errors import BackendNotInstalledError, UnknownBackendError, did_you_mean, one_line
from .descriptors import Engine

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

# The order in which the table of engines shows them; others follow by name.
_ORDER = ("tensorflow", "theano", "cntk", "jax", "torch", "numpy")


@cache
def _entries() -> dict[str, EntryPoint]:
    # Imported where it is used: it takes longer than all that `%load_ext` itself does.
    from importlib.metadata import EntryPoint, entry_points

    entries = {entry.name: entry for entry in entry_points(group="kernelk.backends")}
    for name in _ORDER:
        # Those of the box are there when it is run from a source tree too, and nobody else's takes their names.
        entries[name] = EntryPoint(name, f"kernelk.engines:{name.upper()}", "kernelk.backends")
    return entries


def _known(name: str) -> bool:
    """Whether the name is registered, also by a package that was installed since the notebook's kernel started."""
    if name not in _entries():
        from importlib.metadata import entry_points

        importlib.invalidate_caches()
        _entries().update({entry.name: entry for entry in entry_points(group="kernelk.backends", name=name)})
    return name in _entries()


def names() -> list[str]:
    """All registered backends."""
    known = sorted(_entries())
    return [name for name in _ORDER if name in known] + [name for name in known if name not in _ORDER]


def names_where(fits: Callable[[Engine], bool]) -> list[str]:
    """The backends whose descriptor fits."""
    fitting = []
    for name in names():
        # A third party's descriptor that can't be loaded is reported where its engine is asked for.
        with contextlib.suppress(BackendNotInstalledError):
            if fits(engine(name)):
                fitting.append(name)
    return fitting


# A cluster, and which of its ipyparallel engines.
_PLACE = re.compile(r"[^@ ,/\\\[\]]+(\[(0|[1-9]\d*)\])?")

# As they are imported, in most people's code.
_SHORT = {"tf": "tensorflow", "np": "numpy", "pt": "torch", "th": "theano"}


def near(name: str, known: Iterable[str], shown: str = "'{}'") -> str:
    """ "did you mean 'torch'? " for a name that is close to a known engine's, or short for it; "" otherwise."""
    return did_you_mean(_SHORT.get(name.lower(), name.lower()), known, shown)


def is_name(word: str) -> bool:
    """Whether a word names an engine, here or on another machine: "torch", "torch@gpu-box"."""
    base, at, place = word.partition("@")
    return base in names() and bool(place) == bool(at)


def engine(name: str) -> Engine:
    """The backend of this exact name; of "torch@gpu-box", PyTorch in a worker on that cluster's machine.

    Raises UnknownBackendError with the nearest names, BackendNotInstalledError for an entry point that leads nowhere.
    """
    if isinstance(name, str) and "@" in name:
        return _elsewhere(name)
    if not isinstance(name, str) or not _known(name):
        hint = near(str(name), names())
        raise UnknownBackendError(
            f"unknown backend {name!r}",
            allowed=f"{hint}available are {', '.join(names())}",
            next_step=in_shell_and_notebook("kernelk list", "%kbackend --list"),
        )
    return _descriptor(name)


@cache
def _elsewhere(name: str) -> Engine:
    base, _, place = name.partition("@")
    here = engine(base)
    if not _PLACE.fullmatch(place) or not place.isprintable():
        raise UnknownBackendError(
            f"{name!r} names no cluster",
            allowed="after the @ comes an ipyparallel profile or a cluster's id, such as torch@gpu-box, and, if it "
            "matters, which of its engines: torch@gpu-box[2]",
            next_step="ipcluster list",
        )
    return replace(here, name=name, title=f"{here.title}@{place}", on=place, in_kernel=False, in_kernel_too=False)


@cache
def _descriptor(name: str) -> Engine:
    entry = _entries()[name]
    package = entry.dist.name if entry.dist is not None else "its package"
    where = f"backend '{name}' of {package}: entry point '{entry.value}'"
    repair = f"pip install --upgrade {package}, or pip uninstall {package}" if entry.dist is not None else "fix it"
    try:
        descriptor = entry.load()
    except Exception as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise BackendNotInstalledError(f"{where} can't be loaded: {reason}", next_step=repair) from error
    if not isinstance(descriptor, Engine):
        raise BackendNotInstalledError(
            f"{where} is {type(descriptor).__name__}, not a kernelk.engines.Engine", next_step=repair
        )
    if descriptor.name != name:
        raise BackendNotInstalledError(f"{where} describes '{descriptor.name}', not '{name}'", next_step=repair)
    return descriptor


def interpreter(descriptor: Engine) -> Path:
    """The interpreter that runs this engine's worker. Raises BackendNotInstalledError with the next command."""
    if descriptor.in_kernel or (
        descriptor.imports is not None and importlib.util.find_spec(descriptor.imports) is not None
    ):
        require_version(descriptor)
        return Path(sys.executable)
    if descriptor.recipe is not None:
        from ..environments import places

        return places.require_python(descriptor.recipe)
    raise BackendNotInstalledError(
        f"{descriptor.title} isn't installed in this notebook's environment ({sys.prefix})",
        next_step=f"{descriptor.get}, or kernelk.set_backend('numpy'), which is always available",
    )


def require_version(descriptor: Engine) -> None:
    """Raises BackendNotInstalledError if the engine in the kernel's own environment is older than kernelk needs."""
    words = outdated(descriptor)
    if words:
        raise BackendNotInstalledError(words, next_step=descriptor.get)


def outdated(descriptor: Engine) -> str:
    """ "JAX 0.7.2 is too old: 0.10 or newer is needed" for such an engine, "" for any other."""
    found = version(descriptor) if descriptor.lowest else ""
    if not found or _numbers(found) >= _numbers(descriptor.lowest):
        return ""
    return f"{descriptor.title} {found} is too old: {descriptor.lowest} or newer is needed"


def _numbers(version: str) -> list[int]:
    """Its first two numbers: bounds have no more."""
    return [int(number) for number in re.findall(r"\d+", version)[:2]]


def require(descriptor: Engine) -> None:
    """Raises BackendNotInstalledError if the engine can't be started here; one on another machine isn't looked for."""
    if not (descriptor.in_kernel or descriptor.on):
        interpreter(descriptor)


def installed(name: str) -> bool:
    """Whether the engine can be started here; nothing is started to find out."""
    try:
        require(engine(name))
    except BackendNotInstalledError:
        return False
    return True


def version(descriptor: Engine) -> str:
    """The version of the engine's package in the kernel's own environment, "" where that isn't known."""
    from importlib import metadata

    imports = descriptor.imports or descriptor.name
    # Builds of one package have names of their own, such as tensorflow-cpu.
    for distribution in (imports, f"{imports}-cpu", f"{imports}-gpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(distribution)
    return ""
