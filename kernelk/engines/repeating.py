"""Repeats calls by numpy in the kernel, where a worker alone had their results and no other worker can repeat them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ..backends.serving.executor import Executor
from .history import Recipe, Repeated
from .host import engine_error
from .storage import Reference

if TYPE_CHECKING:
    from .keeping_host import KeepingHost


def repeated_by_numpy(host: KeepingHost) -> tuple[Executor, Repeated]:
    """Makes the calls of a worker's history again: the executor that has their values, and what came of it.

    Raises what goes wrong; nothing is changed then.
    """
    backend = importlib.import_module("kernelk.backends.numpy.backend").NumpyBackend({})
    executor = Executor(backend)
    executor.segments = host.storage.segments

    def ask(message: dict[str, Any]) -> dict[str, Any]:
        reply: dict[str, Any] = executor.handle(message)
        if "error" in reply:
            raise engine_error(host.engine, reply["error"])
        return reply

    def compiled(recipe: Recipe, constants: list[Reference]) -> None:
        ask({"do": "compile", "key": recipe.key, "program": recipe.encoded, "constants": constants})

    with host.waiting("repeating calls"):
        repeated = host.history.repeat(host.storage, ask, compiled, 0)
    executor.confirm(repeated.number)
    return executor, repeated
