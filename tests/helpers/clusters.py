"""A real ipyparallel cluster of this machine: a controller and engines, in a profile of the tests' own."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import tempfile
import threading
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


MOMENTS = ("begun", "half copied", "copied", "half noted", "noted")


def strike(moment: str, whom: str, delay: float = 0.0) -> None:
    """Called in an engine's process: ends it, or its worker, at a moment of the next checkpoint that is made there.

    `delay`: or so many seconds after that moment, whatever goes on then.
    """
    from kernelk.remote import kept, serving

    served_class: Any = serving._Served
    checkpoint, asked, commit, head = served_class._checkpoint, served_class._asked, kept.Kept.commit, kept._HEAD
    serving_now: list[Any] = []

    def end(now: str) -> None:
        if now == moment and serving_now:
            pid = os.getpid() if whom == "engine" else serving_now.pop().pid
            served_class._checkpoint, served_class._asked = checkpoint, asked
            kept.Kept.commit, kept._HEAD = commit, head  # type: ignore[method-assign]
            if delay:
                threading.Timer(delay, os.kill, (pid, signal.SIGKILL)).start()
                return
            os.kill(pid, signal.SIGKILL)

    def begun(served: Any, message: Any) -> Any:
        serving_now.append(served)
        end("begun")
        return checkpoint(served, message)

    def half(served: Any, do: str, message: Any, where: Any, which: int, places: Any, **more: Any) -> Any:
        if do == "fetch" and moment == "half copied":
            asked(served, do, message, where, which, places[: len(places) // 2], **more)
            end("half copied")
        return asked(served, do, message, where, which, places, **more)

    def noted(where: Any, cut: str, places: Any) -> None:
        end("copied")
        commit(where, cut, places)
        end("noted")

    class Head:
        size, unpack_from = head.size, head.unpack_from

        @staticmethod
        def pack_into(*arguments: Any) -> None:
            end("half noted")
            head.pack_into(*arguments)

    served_class._checkpoint, served_class._asked = begun, half
    kept.Kept.commit, kept._HEAD = noted, Head  # type: ignore[assignment, method-assign]


def damage(home: str) -> None:
    """Called in an engine's process: changes one byte of the checkpoint that counts."""
    from kernelk.remote import kept

    where = kept._known[home][-1]
    found = where.checkpoint()
    assert found is not None
    memory = where.segments[found.segment].memory
    memory[5] ^= 1


def held_segments() -> int:
    """Called in an engine's process: how many pieces of kernelk's memory it has open."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{name}"))
    return sum(link.startswith("/memfd:kernelk") for link in links)


def no_room(wanted: bool) -> None:
    """Called in an engine's process: checkpoints find no memory there, or find it again."""
    from kernelk.engines import memory
    from kernelk.errors import OutOfMemoryError
    from kernelk.remote import kept

    class Full:
        @staticmethod
        def require(nbytes: int, what: str) -> None:
            raise OutOfMemoryError(f"{what}: {nbytes} B are needed, and there is no room")

    kept.memory = Full if wanted else memory  # type: ignore[assignment]
