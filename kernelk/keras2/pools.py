"""Pools of processes as Keras 2's generators and `Sequence`s make them, for every way that a process is started.

A forked process has Keras 2 already. One that is spawned imports what it unpickles, so that Keras 2 has to be found
there before; `old_modules` gives this `Pool` to Keras in place of multiprocessing's.
"""

from __future__ import annotations

import multiprocessing
import multiprocessing.pool
import pickle
import sys
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

from ..environments.keras2 import install
from .importing import Finder


class _Sealed:
    """A function and its arguments, unpickled in the other process only when that is ready for it."""

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._content = (function, arguments)

    def __getstate__(self) -> bytes:
        return bytes(ForkingPickler.dumps(self._content))

    def __setstate__(self, state: bytes) -> None:
        self._bytes = state

    def open(self) -> Any:
        return pickle.loads(self._bytes)


def _begin(sealed: _Sealed) -> None:
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, Finder(install()))
    function, arguments = sealed.open()
    function(*arguments)


def Pool(
    processes: int | None = None,
    initializer: Callable[..., Any] | None = None,
    initargs: tuple[Any, ...] = (),
    maxtasksperchild: int | None = None,
) -> multiprocessing.pool.Pool:
    """`multiprocessing.Pool`, whose processes find Keras 2."""
    if initializer is None or multiprocessing.get_start_method() == "fork":
        return multiprocessing.Pool(processes, initializer, initargs, maxtasksperchild)
    return multiprocessing.Pool(processes, _begin, (_Sealed(initializer, initargs),), maxtasksperchild)
