"""`kernelk.log`: a report of the output of an engine's workers."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

from ..display.tables import MONOSPACE, size
from ..engines.worker_log import SHOWN_LINES
from ..errors import ArgumentError


@dataclass(frozen=True, repr=False)
class LogReport:
    """Output of an engine's workers: the `text` that is kept, after `dropped` older bytes. Shows its last lines."""

    engine: str
    text: str
    dropped: int

    def _parts(self) -> tuple[str, str]:
        lines = self.text.splitlines()
        if not lines:
            return f"{self.engine}'s workers have printed no output", ""
        head = f"{self.engine}: output of its workers"
        if len(lines) > SHOWN_LINES:
            head += f", the last {SHOWN_LINES} of {len(lines)} lines (kernelk.log({self.engine!r}).text has all)"
        if self.dropped:
            head += f"; {size(self.dropped)} before them were dropped"
        return head, "\n".join(lines[-SHOWN_LINES:])

    def __repr__(self) -> str:
        return "\n".join(part for part in self._parts() if part)

    def _repr_html_(self) -> str:
        head, body = map(escape, self._parts())
        return f"<div>{head}</div>" + (f'<pre style="{MONOSPACE}">{body}</pre>' if body else "")


def log(name: str | None = None, on: Any = None) -> LogReport:
    """The latest output of an engine's workers (by default the active engine's), including workers that have ended.

    The Python twin of `%kbackend --log NAME`; `on` as in `set_backend`. Raises UnknownBackendError, ArgumentError for
    an engine that runs in the notebook's own process.
    """
    from ..engines.registry import engine
    from ..remote.clusters import placed
    from ..session.current import current

    session = current()
    descriptor = engine(placed(name or session.active, on))
    worker_log = session.log_of(descriptor.name)
    host = session.hosts.get(descriptor.name)
    in_kernel = descriptor.in_kernel if host is None else host.placement == "kernel"
    if in_kernel and not worker_log.total:
        raise ArgumentError(
            f"{descriptor.title} runs in the notebook's own process and has no log: its output is in the cells already",
            allowed="a log is of an engine in a worker",
        )
    worker_log.drain()
    return LogReport(descriptor.name, *worker_log.since(0))
