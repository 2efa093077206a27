"""Installs, removes and lists engines on the machines of a cluster, and asks these for their facts: the kernel's side.

What is asked goes to one ipyparallel engine of each machine, whose side is `there`.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from .. import errors
from .._version import __version__
from ..backends.serving.wire import WireClosed
from ..display.progress import Moving, Report, waiting
from ..engines import registry
from ..errors import BackendNotInstalledError, EngineError, InstallError, KernelKError
from ..remote.clusters import Connection, Unsent, connected, parsed, placed
from ..remote.remote_worker import RemoteWorker
from . import there

# Seconds that a process there has to clear up after Ctrl-C, before this side goes on.
_CLEARED_WITHIN = 12.0

_HINTS = ("Ctrl-C cancels",)


class _Asked(RemoteWorker):
    """One ipyparallel engine that is asked for something: a wait for it is as that for a worker there."""

    def __init__(self, connection: Connection, number: int) -> None:
        super().__init__(connection, registry.engine(f"numpy@{connection.name}"), self._take, "", lambda: False)
        self.engine = number
        self._taken: dict[str, Any] = {}
        self.running = False

    def _take(self, heard: dict[str, Any]) -> None:
        self._taken = heard

    def reply(self, function: Any, *arguments: Any) -> dict[str, Any]:
        """What the function there replies. Raises the KernelKError that came in its place, and EngineError."""
        return self.sent(function, *arguments)()

    def sent(self, function: Any, *arguments: Any) -> Callable[[], dict[str, Any]]:
        """As `reply`, in two steps: the second one waits for it."""
        with self._translated():
            sent = self.ask(function, *arguments)

        def reply() -> dict[str, Any]:
            with self._translated():
                self.answer(sent)
            return self._taken

        return reply

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except WireClosed as error:
            raise EngineError(
                f"the task on {self.connection.name} {self.words}",
                next_step="ipcluster list, and the same command again",
            ) from error

    def _give_up(self) -> None:
        if self.running:
            self.running = False
            with contextlib.suppress(Unsent):
                # It is waited for: this process may end with its next line, and what it has sent with it.
                self.connection.call(self.engine, there.end, self.token).wait(_CLEARED_WITHIN)


class Machine:
    """A machine of a cluster, by one of its engines; `facts` are those of `there.facts`.

    Where these can't be had, as where that engine has no kernelk, there is the `error` in their place.
    """

    def __init__(
        self, connection: Connection, number: int, facts: dict[str, Any], error: KernelKError | None = None
    ) -> None:
        self.connection = connection
        self.number = number
        self.facts = facts
        self.error = error
        self.engines = 1

    @property
    def name(self) -> str:
        """Its own name."""
        return str(self.facts.get("machine", f"the machine of engine {self.number}"))

    def carry_out(self, do: str, arguments: dict[str, Any], report: Report) -> Any:
        """Has a task of `there.task` carried out, whose progress is reported; its result.

        Ctrl-C, and what else cuts the wait short, ends it there too. Raises the KernelKError that was raised there.
        """
        if self.error is not None:
            raise self.error
        asked, moving = _Asked(self.connection, self.number), Moving(report)
        try:
            asked.running = True
            with waiting(f"waiting for {self.name}", _HINTS):
                asked.reply(there.start, asked.token, __version__, json.dumps([do, arguments]))
            while "over" not in (heard := asked.reply(there.news, asked.token)):
                _show(heard["lines"], report, moving)
            asked.running = False
        finally:
            asked.kill()
        _show(heard["lines"], report, moving)
        over = heard["over"]
        if "error" in over:
            raise self._raised(over["error"])
        if "result" not in over:
            words = str(over["words"]).strip().rpartition("\n")[2]
            raise InstallError(
                f"on {self.name}: the process that was to {do} ended" + (f": {words}" if words else ""),
                next_step=f"on {self.name}: `{' '.join(['kernelk', do, *filter(None, [arguments.get('name')])])}`",
            )
        return over["result"]

    def _raised(self, described: dict[str, Any]) -> KernelKError:
        """An error that was raised there, said of that machine: so are the commands that it names."""
        kind = getattr(errors, str(described["kind"]), None)
        if not (isinstance(kind, type) and issubclass(kind, KernelKError)):
            kind = EngineError
        # A notebook there is none.
        step = re.sub(r" \(in a notebook: `[^`]*`\)", "", str(described["next_step"]))
        here = f"on {self.name}: "
        made = kind(f"{here}{described['problem']}", next_step=step and f"{here}{step}")
        made.allowed = str(described["allowed"])
        for remark in described["remarks"]:
            made.remark(str(remark))
        return made


def _show(lines: list[list[Any]], report: Report, moving: Moving) -> None:
    for replaced, text in lines:
        (moving if replaced else report)(str(text))


def machines(on: Any) -> list[Machine]:
    """The machines of a cluster, each by its first engine; first the one whose engine runs kernelk's workers.

    Where one of its engines is named, it is that one's machine alone. `on` as in `set_backend`. Raises ArgumentError
    for a name that no cluster has, BackendNotInstalledError and EngineError where it can't be reached, or has none.
    """
    # The doctor's trials, each in a thread of its own, find this connection.
    place = placed("numpy", on).partition("@")[2]
    connection = connected(place)
    chosen = parsed(place).engines
    used = connection.engines(chosen)[0]
    others = [] if chosen else sorted(connection.client.ids)
    numbers = [used, *(number for number in others if number != used)]
    found: dict[Any, Machine] = {}
    with waiting(f"waiting for the engines of {connection.name}", _HINTS):
        for asked, reply in [(asked, asked.sent(there.facts)) for asked in (_Asked(connection, n) for n in numbers)]:
            try:
                facts = reply()["facts"]
            except BackendNotInstalledError as error:
                found[asked.engine] = Machine(connection, asked.engine, {}, error)
                continue
            known = found.setdefault((facts["machine"], facts["started"]), Machine(connection, asked.engine, facts))
            known.engines += known.number != asked.engine
    every = list(found.values())
    if every[0].error is not None:
        raise every[0].error
    return every


def on_each(on: Any, do: str, name: str, arguments: dict[str, Any], report: Report) -> list[Any]:
    """Has a task for an engine carried out on each machine of a cluster, one after the other; the results.

    A machine where it fails doesn't stop the others: its error is raised at the end, after those of the others were
    reported.
    """
    every = machines(on)
    failed: list[KernelKError] = []
    results = []
    for machine in every:
        try:
            results.append(
                machine.carry_out(do, {"name": name, **arguments}, _Placed(report, name, machine, len(every)))
            )
        except KernelKError as error:
            failed.append(error)
    for other in failed[1:]:
        report(str(other))
    if failed:
        raise failed[0]
    return results


class _Placed:
    """A report whose lines say where what they tell happens."""

    def __init__(self, report: Report, name: str, machine: Machine, count: int) -> None:
        self._report = report
        self._begin = f"{name}: "
        self._instead = f"{name}@{machine.connection.name}: "
        if count > 1:
            self._instead = f"{name}@{machine.connection.name} on {machine.name}: "
        if getattr(report, "moving", None) is not None:
            self.moving = lambda text: report.moving(self._placed(text))  # type: ignore[attr-defined]

    def __call__(self, text: str) -> None:
        self._report(self._placed(text))

    def _placed(self, text: str) -> str:
        return self._instead + text.removeprefix(self._begin)
