"""A real ipyparallel cluster of this machine: a controller and engines, in a profile of the tests' own."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from helpers import namespaces
from helpers.brake import braked
from helpers.engines import absent
from helpers.namespaces import Machine, machine
from helpers.processes import PATIENCE, environment, wait_until
from helpers.relay import Relay
from kernelk.engines import registry, stuck, worker_host
from kernelk.remote import clusters, connection_files
from kernelk.session.current import current

# The connection files of a controller.
_CLIENTS, _ENGINES = "ipcontroller-client.json", "ipcontroller-engine.json"
_CLIENTS_PORTS = ("registration", "control", "mux", "task", "iopub", "notification", "broadcast")


class LocalCluster:
    """A cluster that runs, `name`d as users of kernelk name it."""

    def __init__(self, name: str, cluster: Any, client: Any) -> None:
        self.name = name
        self.cluster = cluster
        self.client = client

    @property
    def file(self) -> Path:
        """Its connection file."""
        return connection_files.files()[self.name]

    def pid(self, engine: int) -> int:
        """The process of one of its engines."""
        return int(self.client[engine].apply_sync(os.getpid))

    def kill(self, engine: int) -> None:
        """Ends an engine's process as a fault would, and waits until the controller has told everybody."""
        os.kill(self.pid(engine), signal.SIGKILL)
        assert wait_for(lambda: engine not in self.client.ids)

    def start_again(self) -> None:
        """Stops it, and starts another controller and other engines; a client of before stays open, and useless."""
        self.cluster.stop_cluster_sync()
        self.client = self.cluster.start_and_connect_sync()

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


def hold_up(flag: str) -> None:
    """Called in an engine's process: puts a brake into the workers that it starts from then on."""
    if "KERNELK_TEST_FLAG" not in os.environ:
        worker_host._BOOT = braked(worker_host._BOOT)
    os.environ["KERNELK_TEST_FLAG"] = flag


def report_after(seconds: float) -> None:
    """Called in an engine's process: a worker that makes no progress is stuck after so long."""
    stuck.REPORTED_AFTER.update(dict.fromkeys(stuck.REPORTED_AFTER, seconds))


def end_at_welcome() -> None:
    """Called in an engine's process: ends it as soon as a comparison asks for its engines."""
    from kernelk.measure import there

    there.welcome = lambda setup: os._exit(1)


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
            n=engines,
            profile=name,
            cluster_id="",
            controller_args=["--nodb"],
            log_level=logging.ERROR,
            engine_timeout=PATIENCE,
        )
        made = LocalCluster(name, cluster, cluster.start_and_connect_sync())
        try:
            yield made
        finally:
            _let_go()
            made.client.close()
            cluster.stop_cluster_sync()


@contextlib.contextmanager
def disconnected() -> Iterator[None]:
    """Ends what a test has on clusters, after it."""
    try:
        yield
    finally:
        _let_go()


def _let_go() -> None:
    """Ends what runs on clusters, and the connections to them."""
    session = current()
    for host in [host for known, host in session.hosts.items() if "@" in known]:
        host.end()
        del session.hosts[host.engine.name]
    _disconnect()


def _disconnect() -> None:
    for connection in list(clusters._connections.values()):
        connection.close()
    # A client of a test's own stays open, and stands for that cluster no more.
    clusters._connections.clear()
    clusters._given.clear()


class FarCluster:
    """A cluster `name`d so, with an engine on each of its machines; the controller is on one of these, or here."""

    def __init__(self, name: str, folder: Path, machines: list[Machine], controller: Machine) -> None:
        """`folder`: IPython's, as this machine has it."""
        self.name = name
        self.machines = machines
        self.controller = controller
        self.reached_at = ""  # the address at which kernelk reaches the controller
        self.client: Any = None
        self._there = folder / "there"
        self._relay: Relay | None = None
        self._files = self._there / f"profile_{name}" / "security"
        self.file = folder / f"profile_{name}" / "security" / _CLIENTS

    def start(self, options: tuple[str, ...], engine_options: tuple[str, ...]) -> None:
        """Starts the controller and the engines, and waits for them."""
        import ipyparallel

        address = self.controller.address if self.controller in self.machines else "0.0.0.0"
        self.controller.start(*self._command("controller", f"--ip={address}", *options))
        assert wait_for(lambda: all((self._files / file).is_file() for file in (_CLIENTS, _ENGINES)))
        for one in self.machines:
            file = self._there / one.name / _ENGINES
            self._write(file, _ENGINES, address if self.controller in self.machines else one.gateway)
            one.start(*self._command("engine", f"--file={file}", *engine_options))
        self.go_by(None)
        self.client = ipyparallel.Client(str(self.file), timeout=PATIENCE)
        assert wait_for(lambda: len(self.client) == len(self.machines))

    def _command(self, module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
        command = [sys.executable, "-m", f"ipyparallel.{module}", f"--profile={self.name}", *arguments]
        return command, environment(IPYTHONDIR=str(self._there))

    def _write(self, file: Path, original: str, address: str) -> dict[str, Any]:
        """A connection file by which the controller is reached at this address."""
        found = json.loads((self._files / original).read_text())
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({**found, "interface": f"tcp://{address}"}))
        return found

    def go_by(self, seconds: float | None, *ports: int) -> Relay | None:
        """Has kernelk reach the controller by a relay, which adds so much to a round trip; None: without one.

        `ports`: more of them that it serves.
        """
        _disconnect()
        if self._relay is not None:
            self._relay.close()
            self._relay = None
        self.reached_at = self.controller.address if seconds is None else self.controller.detour
        found = self._write(self.file, _CLIENTS, self.reached_at)
        if seconds is not None:
            own = [found[name] for name in _CLIENTS_PORTS]
            self._relay = Relay(self.reached_at, self.controller.address, [*own, *ports], seconds)
        return self._relay

    def stop(self) -> None:
        """Ends what runs on this machine."""
        if self.client is not None:
            self.client.close(linger=0)
        if self._relay is not None:
            self._relay.close()


@contextlib.contextmanager
def far_cluster(
    name: str,
    *machines: str,
    controller: str = "",
    options: tuple[str, ...] = (),
    engine_options: tuple[str, ...] = (),
) -> Iterator[FarCluster]:
    """A cluster of machines named so, the controller on one of them, or here; skips where there can't be any.

    `options` are the controller's.
    """
    if why := namespaces.problem():
        absent("netns", why)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kernelk-cluster-")))
        stack.enter_context(pytest.MonkeyPatch.context()).setenv("IPYTHONDIR", str(folder))
        made = {one: stack.enter_context(machine(one)) for one in machines}
        at = made.get(controller) or stack.enter_context(machine("controller", apart=False))
        cluster = FarCluster(name, folder, list(made.values()), at)
        try:
            cluster.start(options, engine_options)
            yield cluster
        finally:
            _let_go()
            cluster.stop()


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
