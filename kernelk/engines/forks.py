"""Counts forks, below all sessions, and notifies whatever holds its parent's resources in a forked child.

A fork copies nothing. The memory of variables is shared with the child, and from then on neither side writes to it:
see `Storage`. Forks by C code run none of Python's hooks, so entering a session compares the process's id too.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from typing import Protocol


class Forked(Protocol):
    """An object that has to react in a forked child."""

    def forked(self) -> None:
        """Drops the parent's resources without touching them; raises nothing."""


class Source(Protocol):
    """An object that a child needs something from which it couldn't ask for."""

    def before_fork(self) -> None:
        """Puts it where the child can read it."""


# Goes up at each fork, on both sides: memory from before a fork is never written to again.
COUNT = 0
# The process that these modules believe they run in; its parent at the last fork.
PID = PARENT = os.getpid()

_holders: weakref.WeakSet[Forked] = weakref.WeakSet()
_sources: weakref.WeakSet[Source] = weakref.WeakSet()


def tell(holder: Forked) -> None:
    """Has `forked` called in each forked child, for as long as the object lives."""
    _holders.add(holder)


def ask(source: Source) -> None:
    """Has `before_fork` called before each fork, for as long as the object lives."""
    _sources.add(source)


def in_own_process() -> bool:
    """Whether this process is the expected one, and not a child that C code has forked."""
    return os.getpid() == PID


def _before() -> None:
    global PARENT
    # Not `PID`: a child that C code has forked may fork in its turn.
    PARENT = os.getpid()
    for source in tuple(_sources):
        # Where it can't, the child says so when it needs what is missing.
        with contextlib.suppress(Exception):
            source.before_fork()


def _in_parent() -> None:
    global COUNT
    COUNT += 1


def _in_child() -> None:
    global COUNT, PID
    COUNT += 1
    PID = os.getpid()
    for holder in tuple(_holders):
        # A child that only starts a program doesn't need it, and a session that missed it refuses to work.
        with contextlib.suppress(Exception):
            holder.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
