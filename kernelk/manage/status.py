"""Lists the engines for `%kbackend`: each one's state, and which setting chose the active one; starts nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

from ..display.tables import Rendered, Table, filled, size
from ..engines import registry
from ..engines.descriptors import Engine
from ..engines.host import Host
from ..errors import BackendNotInstalledError, joined
from ..session.current import current
from ..session.session import Session


@dataclass(frozen=True)
class EngineStatus:
    """One engine: state is "active", "warm" (started earlier, quick to swap to), "installed" or "not installed".

    `placement` is "kernel" or "worker"; `machine`: that of a worker elsewhere, the cluster's name until it is known.
    `pid`, `memory` (resident bytes of that process), `device`, `devices`, `threads`, `precision` and `precisions` are a
    running engine's, as it reports them; None or empty where they aren't known. `options` are those that the user
    asked for. `compiled` programs are held, in `compiled_bytes`; `compile_count` were compiled so far, `dropped` were
    evicted (there is a limit on bytes), and `recompiled` of these were compiled again. The newest values of `alone`
    variables, `alone_bytes` of them, lie with it and not yet in the kernel; `checkpoints` says where copies of older
    ones lie, and how often they are made, where that is on two machines.
    """

    name: str
    title: str
    state: str
    version: str
    interpreter: str
    placement: str
    pid: int | None = None
    memory: int | None = None
    device: str = ""
    devices: tuple[str, ...] = ()
    threads: int | None = None
    precision: str = ""
    precisions: tuple[str, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    compiled: int = 0
    compiled_bytes: int = 0
    compile_count: int = 0
    dropped: int = 0
    recompiled: int = 0
    alone: int = 0
    alone_bytes: int = 0
    checkpoints: str = ""
    note: str = ""
    installed: bool = True
    machine: str = ""

    @property
    def running(self) -> bool:
        """Whether the engine is running."""
        return self.pid is not None

    def cells(self) -> list[str]:
        """The row of the table."""
        process = "this kernel" if self.placement == "kernel" else f"worker {self.pid}" if self.running else "worker"
        if self.machine:
            process += f" on {self.machine}"
        others = [name for name in self.devices if name != self.device]
        device = f"{self.device} (or {', '.join(others)})" if others else self.device
        memory = size(self.memory) if self.memory else "unknown" if self.running else ""
        threads = str(self.threads or "unknown") if self.running else ""
        version = " ".join(part for part in (self.version, self.interpreter.replace("Python ", "py")) if part)
        compiled = f"{self.compiled} ({size(self.compiled_bytes)})" if self.compile_count else ""
        return [self.name, self.state, version, process, memory, device, threads, self.precision, compiled]

    def lines(self) -> list[str]:
        """The lines below the table."""
        counts = (
            (self.compile_count if self.compile_count != self.compiled else 0, "in all"),
            (self.dropped, "dropped"),
            (self.recompiled, "compiled again"),
        )
        compiled = ", ".join(f"{count} {what}" for count, what in counts if count)
        values = "value of 1 variable lies" if self.alone == 1 else f"values of {self.alone} variables lie"
        alone = f"the newest {values} with it alone ({size(self.alone_bytes)})"
        wanted = (
            (f"compiled {compiled}", compiled),
            (alone, self.alone),
            (f"checkpoints: {self.checkpoints}", self.checkpoints),
            (self.note, self.note),
        )
        return [line for line, shown in wanted if shown]


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
        """One row per engine."""
        header = ["", "engine", "state", "version", "runs in", "memory", "device", "threads", "precision", "compiled"]
        rows = [["*" if engine.name == self.active else "", *engine.cells()] for engine in self.engines]
        # What is of no engine here takes no room.
        header, rows = filled(header, rows)
        strong = next((i for i, row in enumerate(rows) if row[0]), None)
        below = f"active: {self.active}, chosen by {self.chosen_by}"
        if self.functions:
            label, most = self.functions[0]
            counted = "1 compiled function" if len(self.functions) == 1 else f"{len(self.functions)} compiled functions"
            below += f"\n{counted}; most often {label}: {most} form{'s' if most > 1 else ''}"
        for engine in self.engines:
            below += "".join(f"\n{engine.name}: {line}" for line in engine.lines())
        return Table(rows, header, below=below, strong=strong)


def list_backends() -> BackendTable:
    """The table of engines; starts nothing. The Python twin of `%kbackend`."""
    session = current()
    # Of those on other machines, the ones that were there.
    used = [name for name, host in session.hosts.items() if "@" in name and host.facts]
    elsewhere = list(dict.fromkeys([*used, *([session.active] if "@" in session.active else [])]))
    engines = [_status(session, name) for name in [*registry.names(), *elsewhere]]
    return BackendTable(session.active, session.chosen_by, engines, _functions(session))


def _functions(session: Session) -> list[tuple[str, int]]:
    """Each function that the active engine holds compiled, with the number of its specialisations."""
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
        return EngineStatus(name, name, state, "", "", "", note=str(error), installed=False)
    host = session.hosts.get(name)
    held = [] if host is None else list(host.holding.values())
    alone_bytes = sum(slots.nbytes for slots in held)
    checkpoints = host.checkpoints if host is not None else ""
    options = session.engine_options.get(name, {})
    if host is not None and host.started:
        facts = host.facts
        return EngineStatus(
            name,
            descriptor.title,
            "active" if active else "warm",
            str(facts.get("version", "")),
            str(facts.get("interpreter", "")),
            host.placement,
            pid=host.pid,
            memory=host.memory,
            device=str(facts.get("device", "")),
            devices=tuple(facts.get("devices", ())),
            threads=facts.get("threads"),
            precision=str(facts.get("precision") or ""),
            precisions=tuple(facts.get("precisions", ())),
            options=dict(options),
            compiled=len(host.compiled),
            compiled_bytes=sum(host.compiled.values()),
            compile_count=host.compile_count,
            dropped=host.dropped_count,
            recompiled=host.recompile_count,
            alone=len(held),
            alone_bytes=alone_bytes,
            checkpoints=checkpoints,
            note=str(facts.get("mode", "")) + _building(host),
            machine=host.machine,
        )
    placement = "kernel" if descriptor.runs_in_kernel(options) else "worker"
    note = version = interpreter = ""
    installed = True
    try:
        registry.require(descriptor)
        if not descriptor.on:
            version, interpreter = _installed_version(descriptor)
    except BackendNotInstalledError:
        installed = False
        note = joined(registry.outdated(descriptor), next_step=descriptor.get)
    state = "not started" if descriptor.on else "installed" if installed else "not installed"
    if active:
        state = "active, not started" if installed else "active, not installed"
    return EngineStatus(
        name,
        descriptor.title,
        state,
        version,
        interpreter,
        placement,
        options=dict(options),
        note=note,
        installed=installed,
        alone=len(held),
        alone_bytes=alone_bytes,
        checkpoints=checkpoints,
        machine=descriptor.on,
    )


def _building(host: Host) -> str:
    return "; new programs run as numpy code until they are built" if host.building else ""


def _installed_version(descriptor: Engine) -> tuple[str, str]:
    """(engine's version, interpreter) of an engine that hasn't been started."""
    if descriptor.recipe is not None:
        from ..environments import places

        marker = places.marker(descriptor.recipe) or {}
        return str(marker.get("engine", "")), f"Python {marker.get('python', '')}"
    return registry.version(descriptor), "Python " + sys.version.split()[0]
