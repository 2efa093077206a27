"""What `%kbackend` without a name tells: every engine, its state, and which setting chose the active one."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass

from . import registry
from .display import Rendered, Table
from .engines import Engine
from .errors import BackendNotInstalledError
from .session import Session, current


@dataclass(frozen=True)
class EngineStatus:
    """One engine: state is "active", "warm" (started earlier, quick to swap to), "installed" or "not installed"."""

    name: str
    title: str
    state: str
    version: str
    interpreter: str
    placement: str
    pid: int | None
    device: str
    compiled: int
    note: str

    def cells(self) -> list[str]:
        """The row of the table."""
        place = "this kernel" if self.placement == "kernel" else "worker"
        if self.pid is not None and self.placement == "worker":
            place += f" (pid {self.pid})"
        compiled = str(self.compiled) if self.compiled else ""
        return [self.name, self.state, self.version, self.interpreter, place, self.device, compiled, self.note]


@dataclass(frozen=True, repr=False)
class BackendTable(Rendered):
    """All engines, the active one's name and the setting that chose it."""

    active: str
    chosen_by: str
    engines: list[EngineStatus]

    def table(self) -> Table:
        """One row an engine."""
        header = ["", "engine", "state", "version", "interpreter", "runs in", "device", "compiled", "note"]
        rows = [["*" if engine.name == self.active else "", *engine.cells()] for engine in self.engines]
        strong = next((i for i, row in enumerate(rows) if row[0]), None)
        return Table(rows, header, below=f"active: {self.active}, chosen by {self.chosen_by}", strong=strong)


def list_backends() -> BackendTable:
    """The table of engines; starts nothing. The Python twin of `%kbackend`."""
    session = current()
    return BackendTable(session.active, session.chosen_by, [_status(session, name) for name in registry.names()])


def _status(session: Session, name: str) -> EngineStatus:
    active = name == session.active
    try:
        descriptor = registry.engine(name)
    except BackendNotInstalledError as error:
        state = "active, not installed" if active else "not installed"
        return EngineStatus(name, name, state, "", "", "", None, "", 0, str(error))
    host = session.hosts.get(name)
    placement = "kernel" if descriptor.in_kernel else "worker"
    if host is not None and host.started:
        return EngineStatus(
            name,
            descriptor.title,
            "active" if active else "warm",
            str(host.facts.get("version", "")),
            str(host.facts.get("interpreter", "")),
            placement,
            host.pid,
            str(host.facts.get("device", "")),
            len(host.compiled),
            str(host.facts.get("mode", "")),
        )
    note = ""
    version = interpreter = ""
    try:
        if not descriptor.in_kernel:
            registry.interpreter(descriptor)
        state = "installed"
        version, interpreter = _installed_version(descriptor)
    except BackendNotInstalledError:
        state = "not installed"
        note = descriptor.install
    if active:
        state = "active, starts at first use" if state == "installed" else "active, not installed"
    return EngineStatus(name, descriptor.title, state, version, interpreter, placement, None, "", 0, note)


def _installed_version(descriptor: Engine) -> tuple[str, str]:
    """(engine's version, interpreter) of an engine that hasn't been started."""
    own = "Python " + sys.version.split()[0]
    if descriptor.recipe is not None:
        from . import environments

        marker = environments.marker(descriptor.recipe) or {}
        return str(marker.get("engine", "")), f"Python {marker.get('python', '')}"
    for distribution in (descriptor.imports or descriptor.name, f"{descriptor.imports}-cpu"):
        try:
            return importlib.metadata.version(distribution), own
        except importlib.metadata.PackageNotFoundError:
            continue
    return "", own
