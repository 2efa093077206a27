"""A real ipyparallel cluster of this machine: a controller and engines, in a profile of the tests' own."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers.processes import PATIENCE, environment, wait_until
from kernelk.engines import registry
from kernelk.remote import clusters
from kernelk.session.current import current


class LocalCluster:
    """A cluster that runs, `name`d as users of kernelk name it."""

    def __init__(self, name: str, cluster: Any, client: Any) -> None:
        self.name = name
        self.cluster = cluster
        self.client = client

    @property
    def file(self) -> Path:
        """Its connection file."""
        return clusters.files()[self.name]

    def pid(self, engine: int) -> int:
        """The process of one of its engines."""
        return int(self.client[engine].apply_sync(os.getpid))

    def kill(self, engine: int) -> None:
        """Ends an engine's process as a fault would, and waits until the controller has told everybody."""
        os.kill(self.pid(engine), signal.SIGKILL)
        assert wait_for(lambda: engine not in self.client.ids)

    def engine_of(self, name: str) -> int:
        """The engine that a host's worker belongs to."""
        return int(current().hosts[name]._worker.engine)  # type: ignore[attr-defined]

    def controllers(self) -> list[psutil.Process]:
        """The processes of its controller."""
        parent = psutil.Process(self.cluster.controller.pid)
        return [parent, *parent.children(recursive=True)]


def hide(name: str) -> None:
    """Called in an engine's process: makes this engine's package one that isn't there."""
    known = registry.engine
    descriptor = replace(known(name), imports="no_such_package")
    registry.engine = lambda wanted: descriptor if wanted == name else known(wanted)


def wait_for(predicate: Callable[[], bool]) -> bool:
    """Waits for what a cluster's processes do."""
    return wait_until(predicate, PATIENCE)


@contextlib.contextmanager
def local_cluster(name: str, engines: int) -> Iterator[LocalCluster]:
    """A cluster of so many engines, whose engines have this kernelk; what it serves is stopped with it."""
    import ipyparallel

    with tempfile.TemporaryDirectory(prefix="kernelk-cluster-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("IPYTHONDIR", folder)
        patch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        cluster = ipyparallel.Cluster(
            n=engines, profile=name, cluster_id="", log_level=logging.ERROR, engine_timeout=PATIENCE
        )
        client = cluster.start_and_connect_sync()
        try:
            yield LocalCluster(name, cluster, client)
        finally:
            session = current()
            for host in [host for known, host in session.hosts.items() if "@" in known]:
                host.end()
                del session.hosts[host.engine.name]
            for connection in list(clusters._connections.values()):
                connection.close()
            client.close()
            cluster.stop_cluster_sync()
