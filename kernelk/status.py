"""What `%kbackend` without a name tells: every engine, its state, and which setting chose the active one."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import dataclass, field

from . import registry
from .display import Rendered, Table, size
from .engines import Engine
from .errors import BackendNotInstalledError
from .session import Session, current


@dataclass(frozen=True)
class EngineStatus:
    """One engine: state is "active", "warm" (started earlier, quick to swap to), "installed" or "not installed".

    `compiled` programs are held, in `compiled_bytes`; `compile_count` were compiled so far, `dropped` gave way to
    others (the bound is on bytes), and `recompiled` of these were compiled again.
    """

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
    compiled_bytes: int = 0
    compile_count: int = 0
    dropped: int = 0
    recompiled: int = 0

    def cells(self) -> list[str]:
        """The row of the table."""
        place = "this kernel" if self.placement == "kernel" else "worker"
        if self.pid is not None and self.placement == "worker":
            place += f" (pid {self.pid})"
        compiled = [f"{self.compiled} ({size(self.compiled_bytes)})"] if self.compile_count else []
        counts = (
            (self.compile_count if self.compile_count != self.compiled else 0, "in all"),
            (self.dropped, "dropped"),
            (self.recompiled, "compiled again"),
        )
        compiled += [f"{count} {what}" for count, what in counts if count]
        return [
            self.name,
            self.state,
            self.version,
            self.interpreter,
            place,
            self.device,
            ", ".join(compiled),
            self.note,
        ]


@dataclass(frozen=True, repr=False)
class BackendTable(Rendered):
    """All engines, the active one's name and the setting that chose it.

    `functions`: the live K.functions that the active engine holds compiled, with the number of their forms (one for
    each learning phase, and for each shape where the engine needs that), most first.
    """

    active: str
    chosen_by: str
    engines: list[EngineStatus]
    functions: list[tuple[str, int]] = field(default_factory=list)

    def table(self) -> Table:
        """One row an engine."""
        header = ["", "engine", "state", "version", "interpreter", "runs in", "device", "compiled", "note"]
        rows = [["*" if engine.name == self.active else "", *engine.cells()] for engine in self.engines]
        strong = next((i for i, row in enumerate(rows) if row[0]), None)
        below = f"active: {self.active}, chosen by {self.chosen_by}"
        if self.functions:
            label, most = self.functions[0]
            counted = "1 compiled function" if len(self.functions) == 1 else f"{len(self.functions)} compiled functions"
            below += f"\n{counted}; most often {label}: {most} form{'s' if most > 1 else ''}"
        return Table(rows, header, below=below, strong=strong)


def list_backends() -> BackendTable:
    """The table of engines; starts nothing. The Python twin of `%kbackend`."""
    session = current()
    engines = [_status(session, name) for name in registry.names()]
    return BackendTable(session.active, session.chosen_by, engines, _functions(session))


def _functions(session: Session) -> list[tuple[str, int]]:
    """Each function that the active engine holds compiled, with the number of its forms."""
    host = session.hosts.get(session.active)
    if host is None:
        return []
    counted = [(f"'{call.name}' ({call.source})", call.specialisations(host)) for call in session.functions]
    return sorted([entry for entry in counted if entry[1]], key=lambda entry: (-entry[1], entry[0]))


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
            sum(host.compiled.values()),
            host.compile_count,
            host.dropped_count,
            host.recompile_count,
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
