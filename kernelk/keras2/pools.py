"""Pools of processes as Keras 2's generators and `Sequence`s make them, for every way that a process is started.

A forked process has Keras 2 already. One that is spawned imports what it is handed, so that Keras 2 has to be found
there before. This `Pool` is given to Keras in place of multiprocessing's, by `old_modules`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from ..environments.keras2 import install
from .importing import Finder
from .old_modules import STAND_INS, StandIn


def _find_keras2() -> None:
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder(install()))


class _First:
    """The first thing that the other process gets: what comes after it finds Keras 2."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _find_keras2, ()


def _begin(first: None, initializer: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    initializer(*arguments)


def _pool_of(multiprocessing: Any) -> Callable[..., Any]:
    """`multiprocessing.Pool`, whose processes find Keras 2."""

    def Pool(
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
        maxtasksperchild: int | None = None,
    ) -> Any:
        if initializer is None or multiprocessing.get_start_method() == "fork":
            return multiprocessing.Pool(processes, initializer, initargs, maxtasksperchild)
        return multiprocessing.Pool(processes, _begin, (_First(), initializer, initargs), maxtasksperchild)

    return Pool


def _multiprocessing() -> StandIn:
    module: Any = importlib.import_module("multiprocessing")
    return StandIn("multiprocessing", module, Pool=_pool_of(module))


STAND_INS["multiprocessing"] = _multiprocessing
