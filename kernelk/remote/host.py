"""`RemoteHost`: an engine in a worker on another machine, which is started and reached by ipyparallel.

It is a `WorkerHost` in all but the way to its worker: what is noted of calls, and repeated after an end, lies here.
"""

from __future__ import annotations

from typing import Any

from ..display import messages
from ..engines.exchange import Exchange
from ..engines.worker_host import WorkerHost, running
from ..errors import EngineError
from .clusters import connected
from .remote_worker import RemoteWorker
from .wire import RemoteWire

# More than this isn't sent back with each reply, where it can stay.
_SMALL_COMMIT = 1 << 12


class RemoteHost(WorkerHost):
    """A backend in a worker on the machine of an ipyparallel engine."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._worker: RemoteWorker | None = None
        self._resident: int | None = None

    @property
    def commit_bytes(self) -> int:
        return min(super().commit_bytes, _SMALL_COMMIT)

    @property
    def memory(self) -> int | None:
        return self._resident if self.started else None

    def _find_interpreter(self) -> None:
        """That is found there."""

    def _launch(self) -> None:
        connection = connected(self.engine.on, lambda: bool(self._ended))
        worker = RemoteWorker(connection, self.engine, self._hear)
        self._process = self._worker = worker
        self._mark = self.log.total
        started = worker.start(self.options)
        self._exchange = Exchange(RemoteWire(worker, self.storage, started))
        running.add(self)

    def _failed_start(self) -> EngineError:
        return EngineError(
            f"{self.engine.title}'s worker {self._ending()} while it was starting{self._last_words()}",
            next_step=f"%kbackend --doctor {self.engine.name}",
        )

    def _hear(self, heard: dict[str, Any]) -> None:
        """Takes what comes beside a reply."""
        if "log" in heard:
            self.log.add(str(heard["log"]).removesuffix("\n"))
        for line in heard.get("said", ()):
            messages.say(str(line))
        if heard.get("resident") is not None:
            self._resident = int(heard["resident"])

    def _kill(self) -> None:
        if self._worker is not None:
            self._worker.kill()

    def _ending(self) -> str:
        words = self._worker.words if self._worker is not None else ""
        return self._ended or words or "is gone"

    def give_back(self) -> None:
        """Does nothing: what is free there is no room for this machine."""
