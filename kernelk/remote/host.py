"""`RemoteHost`: an engine in a worker on another machine, which is started and reached by ipyparallel.

It is a `WorkerHost` in all but the way to its worker: what is noted of calls, and repeated after an end, lies here.
Checkpoints are made in two places. Those in the kernel cost a fetch over the network, and are what is left when the
machine is gone. Those in that machine's memory cost a copy there, and shorten what is repeated after the end of a
worker or of its ipyparallel engine; the calls before them are kept here all the same, until a checkpoint comes here.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
import uuid
from typing import Any

from .. import config
from ..arrays import Array
from ..display import messages
from ..display.tables import duration, size
from ..engines import forks
from ..engines.checkpoint import CHECKPOINT_FACTOR
from ..engines.exchange import Exchange
from ..engines.history import Cut
from ..engines.worker_host import WorkerHost, running, stop_workers
from ..errors import EngineError, KernelKError, WorkerDiedError, one_line
from ..twins import as_usable
from .bandwidth import Bandwidth
from .clusters import connected
from .remote_worker import RemoteWorker
from .traffic import LARGE, merged
from .wire import RemoteWire, address

# More than this isn't sent back with each reply, where it can stay.
_SMALL_COMMIT = 1 << 12


class RemoteHost(WorkerHost):
    """A backend in a worker on the machine of an ipyparallel engine."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._worker: RemoteWorker | None = None
        self._resident: int | None = None
        self._wire: RemoteWire | None = None
        self._starting = False
        self._network = Bandwidth()
        self._alone = (0, 0)  # how many values the engine has alone, and their bytes
        # Of the checkpoints on its machine: by whose name they are known there, and the process that holds them.
        self._home = uuid.uuid4().hex
        self._keeper: list[int] | None = None
        # The last one that was heard of, and those that were asked for since, by their names: any may be there.
        self._cuts: dict[str, Cut] = {}
        self._names = itertools.count()
        self._kept_at = 0.0  # the history's seconds at the last one
        self._keep_seconds = 0.0  # what that took
        self._not_kept = ""  # why there is none
        self._asked = False

    @property
    def commit_bytes(self) -> int:
        return min(super().commit_bytes, _SMALL_COMMIT)

    @property
    def memory(self) -> int | None:
        return self._resident if self.started else None

    def _find_interpreter(self) -> None:
        """That is found there."""

    def _is_given_up(self) -> bool:
        """Whether Ctrl-C has cancelled the start."""
        return bool(self._ended)

    def _launch(self) -> None:
        connection = connected(self.engine.on, self._is_given_up)
        connection.await_engine(self._is_given_up)
        if self._is_given_up():
            # Whatever asks for the engines next would wait for them again.
            raise self._failed_start()
        if self._worker is not None:
            self._worker.leave()
        worker = RemoteWorker(connection, self.engine, self._hear, self._home, lambda: bool(self._cuts))
        self._process = self._worker = worker
        self._mark = self.log.total
        started = worker.start(self.options)
        self._wire = RemoteWire(worker, self.storage, started)
        self._exchange = Exchange(self._wire)
        running.add(self)
        _end_with_child()

    def _failed_start(self) -> EngineError:
        return EngineError(
            f"{self.engine.title}'s worker {self._ending()} while it was starting{self._last_words()}",
            next_step=as_usable(f"%kbackend --doctor {self.engine.name}"),
        )

    def start(self) -> None:
        self._starting = True
        try:
            super().start()
        finally:
            self._starting = False

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        begin = time.perf_counter()
        reply = super().request(message)
        seconds, do, moved = time.perf_counter() - begin, message["do"], ()
        if do in ("fetch", "load"):
            moved = message["variables"]
        elif do == "run" and message["load"]:
            # What the run itself took isn't the network's.
            seconds, do, moved = seconds - reply["seconds"], "load", message["load"]
        nbytes = sum([nbytes for _, _, nbytes in merged(reference for _, reference in moved)]) if moved else 0
        self._network.note(do, nbytes, seconds)
        return reply

    def feed(self, views: list[Array], feeds: list[Array], noted: bool) -> None:
        # A large one is sent from where it lies. Of a noted call, it is what was sent that would be repeated, whatever
        # another thread of the user's does to the array meanwhile: that is copied in any case, and before it is sent.
        direct = {}
        for view, feed in zip(views, feeds):
            same = (feed.dtype, feed.shape) == (view.dtype, view.shape)
            if same and not noted and feed.nbytes > LARGE and feed.flags.c_contiguous:
                direct[address(view)] = feed.reshape(-1).view("uint8")
            else:
                view[...] = feed
        if self._wire is not None:
            self._wire.direct = direct

    def tell(self) -> None:
        # The call is over: its feeds are its user's again.
        if self._wire is not None:
            self._wire.direct = {}
        super().tell()

    def must_fetch(self, feeds: list[Array]) -> bool:
        if self.history.seconds > config.LIMITS.repeat_seconds:
            self._estimate()
        if super().must_fetch(feeds):
            return True
        if self.history.seconds - self._kept_at > self._interval_there and self._worth_it and not self.lost:
            self._keep_there()
        return False

    def _estimate(self) -> None:
        """Sets what a checkpoint in the kernel would take by what is known of the network."""
        if self._alone[0] != len(self.holding):
            self._alone = len(self.holding), sum([slots.nbytes for slots in self.holding.values()])
        seconds = self._network.seconds(self._alone[1])
        if seconds is not None:
            self._checkpoint_seconds = seconds

    @property
    def _interval_there(self) -> float:
        """After so many seconds of calls the next checkpoint is made on its machine."""
        return max(config.LIMITS.repeat_seconds, CHECKPOINT_FACTOR * self._keep_seconds)

    @property
    def _worth_it(self) -> bool:
        """Whether checkpoints there can be made more often than here."""
        return self.checkpoint_interval >= 2 * self._interval_there

    def _keep_there(self) -> None:
        """Has its machine keep a checkpoint. An error is no more than a checkpoint less."""
        assert self._worker is not None
        cut = self.history.cut(self.holding, self.versions)
        # No other worker's, and no other call's: after a cut in the network, nobody takes one for another.
        name = f"{self._worker.token}.{next(self._names)}"
        self._cuts[name] = cut
        self._kept_at, self._asked = self.history.seconds, True
        begin = time.perf_counter()
        try:
            reply = self.request(
                {
                    "do": "checkpoint",
                    "home": self._home,
                    "keeper": self._keeper,
                    "cut": name,
                    "variables": [[number, slots.dtype, list(slots.shape)] for number, slots in cut.kept.items()],
                }
            )
        except KernelKError as error:
            # The next worker makes one; an engine that can't is asked again after a while.
            self._not_kept = one_line(error) if self.started else ""
            return
        self._keep_seconds, self._not_kept = time.perf_counter() - begin, reply["problem"]
        if self._not_kept:
            del self._cuts[name]
        else:
            self._cuts, self._keeper = {name: cut}, reply["keeper"]

    def fetched(self, seconds: float | None) -> None:
        super().fetched(seconds)
        self._cuts, self._kept_at, self._alone = {}, 0.0, (0, 0)

    def restored(self) -> Cut | None:
        if not self._cuts:
            return None
        message = {"do": "restore", "home": self._home, "keeper": self._keeper, "cuts": list(self._cuts)}
        found = self.request(message)["cut"]
        # Of the others, none is there.
        self._cuts = {name: cut for name, cut in self._cuts.items() if name == found}
        cut = self._cuts.get(found)
        self._kept_at = 0.0 if cut is None else cut.seconds
        return cut

    def repeat(self) -> None:
        try:
            super().repeat()
        except WorkerDiedError:
            raise
        except KernelKError:
            # The next attempt begins with the kernel's own checkpoint.
            self._cuts = {}
            raise

    def since(self, cut: Cut | None = None) -> str:
        if cut is not None:
            return f"the last checkpoint on {self.machine} (one every {_span(self._interval_there)})"
        return f"the last checkpoint in this kernel (one every {_span(self.checkpoint_interval)})"

    @property
    def checkpoints(self) -> str:
        if not self.holding:
            return ""
        self._estimate()
        parts, calls = [], len(self.history.records)
        if self._not_kept:
            parts.append(f"none on its machine, since {self._not_kept}")
        elif self._cuts:
            last = next(iter(self._cuts.values()))
            parts.append(f"on its machine every {_span(self._interval_there)} of calls, {_ago(calls - last.calls)}")
        rate = self._network.rate
        why = f" ({size(self._alone[1])} at {size(rate)}/s)" if rate else ""
        parts.append(f"in this kernel every {_span(self.checkpoint_interval)}{why}, {_ago(calls)}")
        return "; ".join(parts)

    def end(self) -> None:
        # A worker that couldn't be started leaves the checkpoints to the next one.
        if self._worker is not None and not self._starting:
            self._worker.leave()
            if self._asked:
                self._worker.forget(json.dumps({"home": self._home, "keeper": self._keeper}))
                self._cuts, self._keeper, self._asked = {}, None, False
        super().end()

    def forked(self) -> None:
        super().forked()
        # The checkpoints stay the parent's.
        self._home, self._keeper, self._cuts, self._asked = uuid.uuid4().hex, None, {}, False

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

    def notice_end(self) -> None:
        if self._worker is not None and self._exchange is not None and not self._exchange.under_way:
            self._worker.notice_end()

    def give_back(self) -> None:
        """Does nothing: what is free there is no room for this machine."""


# The children of multiprocessing's that have been told to end their workers.
_told: set[int] = set()


def _end_with_child() -> None:
    """Has a child process of multiprocessing's end its workers when it ends: it runs no exit handlers."""
    util, process = (sys.modules.get(f"multiprocessing.{name}") for name in ("util", "process"))
    if util is None or process is None or process.parent_process() is None or forks.PID in _told:
        return
    _told.add(forks.PID)
    util.Finalize(None, stop_workers, exitpriority=0)


def _span(seconds: float) -> str:
    """An interval for reading: 3 s, 8 min, 2.5 h."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.2g} {unit}" if seconds < 100 * length else f"{seconds / length:.0f} {unit}"
    return duration(seconds)


def _ago(calls: int) -> str:
    return f"the last {calls} call{'' if calls == 1 else 's'} ago"
