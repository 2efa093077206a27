"""Says for `kernelk list` what is installed of each engine on this machine: versions, folder, size and leftovers."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ..engines import registry
from ..engines.descriptors import Engine
from ..environments import build, places
from ..environments.recipes import RECIPES
from ..errors import KernelKError, joined, one_line


def states(say: Callable[[str], None], on: str = "") -> None:
    """Says each engine's state, in a line or more. `on`: the cluster by which whoever asks reaches this machine."""
    for name in registry.names():
        try:
            say(f"{name}: {_state(registry.engine(name), on)}")
        except KernelKError as error:
            say(f"{name}: can't be used: {one_line(error)}")
            continue
        if name in RECIPES:
            for folder in places.leftovers(name):
                words = f"{folder} was left by an earlier install, or is being built"
                say(f"{name}: {joined(words, next_step=f'`{_install(name, on)}` removes it')}")
            for folder in places.superseded(name):
                say(f"{name}: {folder} was built with other pins, {build.size(folder) / 1e6:.0f} MB")


def _install(name: str, on: str) -> str:
    return f"kernelk install {name} --on {on}" if on else f"kernelk install {name}"


def _state(engine: Engine, on: str) -> str:
    """An engine's state on this machine, in one line."""
    if engine.recipe is None:
        if not registry.installed(engine.name):
            step = f"there: `{engine.install}`" if on else f"`{engine.install}`"
            return joined(registry.outdated(engine) or "not installed", next_step=step)
        return (
            f"installed, {engine.title} {registry.version(engine)}, Python {sys.version.split()[0]}, "
            f"in the environment of kernelk itself, {sys.prefix}"
        )
    marker = places.marker(engine.recipe)
    if marker is not None:
        versions = marker["versions"]
        assert isinstance(versions, dict)
        return (
            f"installed, {engine.title} {marker['engine']}, Python {marker['python']}, numpy "
            f"{versions.get('numpy', 'unknown')}, {float(str(marker['bytes'])) / 1e6:.0f} MB in {marker['folder']}"
        )
    partial = places.half_built(engine.recipe)
    state = "not installed"
    if partial:
        state = places.without_python(engine.recipe) or f"only partly installed ({partial})"
    pythons = " or ".join(RECIPES[engine.recipe].pythons)
    return joined(state, next_step=f"`{_install(engine.name, on)}` (Python {pythons})")
