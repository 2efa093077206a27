"""What the kernel calls in an ipyparallel engine: it runs kernelk's own worker there, with memory of that machine.

What goes there and comes back are bytes and arrays. The first bytes are a line of JSON and a frame of the wire; after
them come the memory's own. The line of a request has the worker's name, the places of what it reads and of what it
writes, and the kernel's settings; that of a reply what there is to say beside it:

  pid, resident      the worker's process and its memory
  log, said          what it has printed since the last reply, and lines for the user
  gone, unread       it has ended, in words, and whether certainly before it had read the request
  error              an error of kernelk's in place of a reply
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from .. import config
from .._version import __version__
from ..arrays import Array
from ..backends.serving.executor import describe
from ..backends.serving.shared_memory import Segment
from ..backends.serving.wire import Malformed, encode, opened
from ..engines import memory, registry
from ..engines.host import RELEASED
from ..engines.storage import Storage
from ..engines.worker_host import WorkerHost
from ..engines.worker_log import WorkerLog
from ..errors import BackendNotInstalledError, EngineError, KernelKError, OutOfMemoryError, WorkerDiedError, one_line
from . import kept, machines

# After so many seconds without a word from its kernel, a worker is ended: that one may have been killed.
LEASE = 900.0

# Seconds between two looks at a worker's memory, each of which costs as much as a small call.
_LOOKED_EVERY = 0.5

# At most so much of a worker's output goes with one reply.
_MOST_LOG = 1 << 18

_served: dict[str, _Served] = {}
_watching: list[threading.Thread] = []
_started = threading.Event()  # set where there is another one to watch


class _Served(WorkerHost):
    """A worker for a kernel elsewhere: it forwards that one's requests, and starts no other worker in its place."""

    def __init__(self, token: str, setup: dict[str, Any]) -> None:
        self.said: list[str] = []
        engine = registry.engine(setup["engine"])
        super().__init__(engine, Storage(), self.said.append, WorkerLog(), setup["options"])
        self.token = token
        self.home = ""  # the name of its kernel's host, once that has checkpoints here
        self.hello: dict[str, Any] = {}
        self.lease = float(setup["lease"])
        self.heard = time.monotonic()
        self.busy = False
        self._shown = 0
        self._looked = -_LOOKED_EVERY

    def _welcome(self, hello: dict[str, Any]) -> None:
        super()._welcome(hello)
        self.hello = hello

    def _wait(self) -> Callable[[], None]:  # type: ignore[override]
        look = super()._wait()
        # What it would tell comes with the reply, when it is over.
        look._notify = _forget

        def check() -> None:
            if self.token in _aborted():
                self._end("was ended by its notebook")
            else:
                look()

        return check

    def carry_out(self, message: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request, as far as memory goes with this side's own doing."""
        if message["do"] == "attach":
            return self._attached_here(message["attach"])
        if message["do"] == "checkpoint":
            return self._checkpoint(message)
        if message["do"] == "restore":
            return self._restore(message)
        reply = self.forward(message)
        if message["do"] == "release":
            for number in message["segments"]:
                self._attached.discard(number)
                segment = self.storage.segments.pop(number, None)
                if segment is not None:
                    segment.close()
        return reply

    def _attached_here(self, sizes: list[list[int]]) -> dict[str, Any]:
        """Makes segments like the kernel's. Only what is written to takes memory."""
        try:
            for number, size in sizes:
                memory.require(size, f"{self.engine.title}'s worker on {socket.gethostname()}")
                self.storage.segments[number] = Segment.create(size)
            self._ready()
        except (OSError, MemoryError, OverflowError, OutOfMemoryError) as error:
            for number, _ in sizes:
                segment = self.storage.segments.pop(number, None)
                if segment is not None:
                    segment.close()
            return {"error": describe(error)}
        return {}

    def _checkpoint(self, message: dict[str, Any]) -> dict[str, Any]:
        """Fields: home, keeper, cut, variables ([id, dtype, shape]...). Copies their values to memory that outlives the

        worker, as one cut of that name. Replies with the keeper, None if there is none, and with the problem, "" if
        there is none; the checkpoint before this one is still there then.
        """
        self.home, known = message["home"], kept.of(message["home"], self.lease, message["keeper"])
        # Not before the kernel knows a later one.
        for old in [old for old in known[:-1] if old.identity != message["keeper"]]:
            self._let_go(old)
            known.remove(old)
            old.end()
        variables = message["variables"]
        places, size = kept.places(variables)
        record = len(json.dumps(variables)) + 100 * (1 + len(variables))
        try:
            if not known or not known[-1].fits(size, record):
                known.append(kept.Kept.create(self.home, self.lease, size * 5 // 4 + 1, record))
            target = known[-1]
            reply = self._asked("fetch", message, target, target.turn, places)
        except (OSError, MemoryError, OverflowError, OutOfMemoryError) as error:
            return {"problem": one_line(getattr(error, "problem", error)), "keeper": message["keeper"]}
        if "error" in reply:
            return reply
        target.commit(message["cut"], places)
        return {"problem": "", "keeper": target.identity or None}

    def _restore(self, message: dict[str, Any]) -> dict[str, Any]:
        """Fields: home, keeper, cuts. Loads the values of a whole checkpoint of one of these cuts, and replies with the

        cut, "" if there is none.
        """
        self.home = message["home"]
        for one in reversed(kept.of(self.home, self.lease, message["keeper"])):
            found = one.checkpoint()
            if found is None or found.cut not in message["cuts"]:
                continue
            one.loaded = True
            reply = self._asked("load", message, one, found.segment, found.places, verify=True)
            if "error" in reply:
                return reply
            if not reply["different"]:
                return {"cut": found.cut}
        return {"cut": ""}

    def _asked(
        self, do: str, message: dict[str, Any], where: kept.Kept, which: int, places: list[kept.Place], **more: Any
    ) -> dict[str, Any]:
        """The worker's reply to a request for variables at these places."""
        self.storage.segments[where.numbers[which]] = where.segments[which]
        variables = [[place[0], where.reference(which, place)] for place in places]
        confirmed = {name: message[name] for name in ("confirmed",) if name in message}
        return self.forward({"do": do, "variables": variables, **more, **confirmed})

    def _let_go(self, where: kept.Kept) -> None:
        """Has the worker forget this memory."""
        numbers = [number for number in where.numbers if number in self._attached]
        if numbers:
            self.carry_out({"do": "release", **{kind: [] for kind in RELEASED}, "segments": numbers})

    def news(self) -> dict[str, Any]:
        """What there is to say beside a reply."""
        news: dict[str, Any] = {"pid": self.pid or 0}
        self.log.drain()
        if self.log.total != self._shown:
            text, _ = self.log.since(self._shown)
            self._shown = self.log.total
            news["log"] = text[-_MOST_LOG:]
        if self.said:
            news["said"], self.said[:] = list(self.said), []
        now = time.monotonic()
        if now > self._looked + _LOOKED_EVERY and self.started:
            self._looked, news["resident"] = now, self.memory
        return news


def _forget(_: str) -> None:
    """Takes a line that nobody is told."""


def _aborted() -> Any:
    """The tasks that aren't wanted any more, as the engine's control thread notes them."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(getattr(shell, "kernel", None), "aborted", ())


def joined(head: Any, frame: bytes) -> bytes:
    """The first bytes of a message."""
    return json.dumps(head, separators=(",", ":")).encode() + b"\n" + frame


def split(first: bytes) -> tuple[Any, bytes]:
    """The line and the frame that `joined` has put together. Raises Malformed."""
    try:
        line, _, frame = first.partition(b"\n")
        return json.loads(line), frame
    except (AttributeError, TypeError, ValueError) as error:
        raise Malformed(f"it has no first line: {error}") from error


def _answer(head: dict[str, Any], frame: bytes = b"", *written: Array) -> list[Any]:
    return [joined(head, frame), *written]


def _described(error: KernelKError) -> dict[str, Any]:
    return error.as_dict()


def other_version(version: str) -> EngineError | None:
    """The error for a kernel whose kernelk is of another version than this one."""
    if version == __version__:
        return None
    machine = socket.gethostname()
    return EngineError(
        f"kernelk is {__version__} on {machine}, and {version} here",
        next_step=f"on {machine}: `pip install kernelk=={version}`, and restart its ipyparallel engines",
    )


def start(token: str, setup: str) -> list[Any]:
    """Starts a worker and replies with its first message; `setup`, in JSON, has engine, options, version and lease."""
    wanted = json.loads(setup)
    other = other_version(wanted["version"])
    if other is not None:
        return _answer({"error": _described(other)})
    try:
        served = _Served(token, wanted)
        try:
            served.start()
        except WorkerDiedError as error:
            return _answer({**served.news(), "gone": error.problem, "unread": False})
    except BackendNotInstalledError as error:
        # Said of this machine, and not of a notebook's environment.
        where = f"on {socket.gethostname()}, whose ipyparallel engines run {sys.executable}"
        if registry.engine(wanted["engine"]).recipe is None:
            error.problem = f"{registry.engine(wanted['engine']).title} isn't installed {where}"
        else:
            error.problem += f" on {socket.gethostname()}"
        return _answer({"error": _described(error)})
    except KernelKError as error:
        return _answer({"error": _described(error)})
    _served[token] = served
    _watch_leases()
    facts = {**served.hello["facts"], **machines.facts()}
    return _answer(served.news(), encode({**served.hello, "facts": facts}))


def request(first: bytes, *parts: Array) -> list[Any]:
    """Carries out a request, with the bytes that it reads, and replies with those that it has written."""
    (token, reads, writes, limits), frame = split(first)
    served = _served.get(token)
    if served is None:
        return _answer({"gone": "ended before this call: nothing was heard of its notebook for long", "unread": True})
    config.LIMITS.stuck_seconds = limits["stuck_seconds"]
    number, message = opened(frame)
    served.busy = True
    try:
        for (segment, offset, size), part in zip(reads, parts):
            served.storage.segments[segment].array(offset, "uint8", (size,))[...] = part
        reply = served.carry_out(message)
        written = [
            served.storage.segments[segment].array(offset, "uint8", (size,))
            for segment, offset, size in (() if "error" in reply else writes)
        ]
    except WorkerDiedError as error:
        answer = _answer({**served.news(), "gone": served.ending, "unread": error.before_call})
        # Its kernel starts another one, under another name.
        end(token)
        return answer
    except KernelKError as error:
        return _answer({**served.news(), "error": _described(error)})
    finally:
        served.busy, served.heard = False, time.monotonic()
    return _answer(served.news(), encode(reply, number), *written)


def renew(token: str, home: str) -> None:
    """Notes that a worker's kernel is still there, and so is its host, whose checkpoints go by that name."""
    served = _served.get(token)
    if served is not None:
        served.heard = time.monotonic()
    kept.renew(home)


def forget(setup: str) -> None:
    """Gives up all checkpoints of a host; `setup`, in JSON, has its home and the keeper."""
    wanted = json.loads(setup)
    kept.forget(wanted["home"], wanted["keeper"])


def end(token: str) -> None:
    """Ends a worker, if it is still there."""
    served = _served.pop(token, None)
    if served is not None:
        served.end()
        # Those of checkpoints stay.
        for number, segment in served.storage.segments.items():
            if number >= 0:
                segment.close()
    aborted = _aborted()
    with contextlib.suppress(AttributeError):
        aborted.discard(token)


def _watch_leases() -> None:
    _started.set()
    if not any(thread.is_alive() for thread in _watching):
        thread = threading.Thread(target=_end_forgotten, name="kernelk-leases", daemon=True)
        _watching[:] = [thread]
        thread.start()


def _end_forgotten() -> None:
    """Ends the workers whose kernels haven't been heard of for long, and gives up the checkpoints of such kernels, for

    as long as there are any.
    """
    lease = LEASE
    while kept.end_expired() or _served:
        _started.clear()
        lease = min([served.lease for served in list(_served.values())], default=lease)
        _started.wait(lease / 4)
        for token, served in list(_served.items()):
            if served.busy:
                # No word of the kernel's comes through meanwhile.
                kept.renew(served.home)
            elif time.monotonic() - served.heard > served.lease:
                end(token)
