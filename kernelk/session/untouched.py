"""Runs measurements without side effects: afterwards the session is as it was before."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from ..engines.host import Host
from .session import Session


@contextlib.contextmanager
def untouched(session: Session, hosts: list[Host]) -> Iterator[None]:
    """Restores the count of draws and the compiled programs at the end of the block.

    Inside, calls wait for what an engine would otherwise build beside them.
    """
    with session.state.seeds.kept(), session.calls.patient(), forgetting({*hosts, session.host("numpy")}):
        yield


@contextlib.contextmanager
def forgetting(hosts: Iterable[Host]) -> Iterator[None]:
    """Lets the engines forget the programs that they compile inside the block."""
    before = [(host, set(host.compiled)) for host in hosts]
    try:
        yield
    finally:
        for host, known in before:
            new = [key for key in host.compiled if key not in known]
            if new:
                host.release_programs(new)
