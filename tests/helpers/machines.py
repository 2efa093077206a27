"""What the tests have a cluster's engines do, so that their machine is another one than it is."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from helpers.clusters import LocalCluster


def _settings(changes: dict[str, str | None]) -> dict[str, str | None]:
    """Called in an engine's process: changes environment variables; what they were."""
    before = {name: os.environ.get(name) for name in changes}
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    return before


@contextmanager
def settings(cluster: LocalCluster, **changes: str | None) -> Iterator[None]:
    """Environment variables of a cluster's engines."""
    before = cluster.client[:].apply_sync(_settings, changes)
    try:
        yield
    finally:
        for engine, values in zip(cluster.client.ids, before):
            cluster.client[engine].apply_sync(_settings, values)


def _named(name: str | None) -> None:
    """Called in an engine's process: gives the machine another name, or its own again."""
    own = getattr(socket, "own_gethostname", socket.gethostname)
    socket.own_gethostname = own  # type: ignore[attr-defined]
    socket.gethostname = own if name is None else lambda: name


@contextmanager
def another_machine(cluster: LocalCluster, engine: int, name: str) -> Iterator[None]:
    """An engine that says that it is on a machine of this name."""
    cluster.client[engine].apply_sync(_named, name)
    try:
        yield
    finally:
        cluster.client[engine].apply_sync(_named, None)


def _with_gpus(names: list[str] | None) -> None:
    """Called in an engine's process: the GPUs that its machine has."""
    from kernelk.engines import machine
    from kernelk.manage import machine_facts, there

    for module in (machine_facts, there):
        module.gpus = machine.gpus if names is None else lambda: names  # type: ignore[attr-defined]


@contextmanager
def gpus(cluster: LocalCluster, names: Sequence[str]) -> Iterator[None]:
    """The GPUs of a cluster's machines, as NVIDIA's driver would tell them."""
    cluster.client[:].apply_sync(_with_gpus, list(names))
    try:
        yield
    finally:
        cluster.client[:].apply_sync(_with_gpus, None)


class Lines(list[Any]):
    """A report that keeps its lines; with `moving`, those that replace one another too, as "... text"."""

    def __call__(self, text: str) -> None:
        self.append(text)

    def moving(self, text: str) -> None:
        """A line that the next one replaces."""
        self.append(f"... {text}")
