"""A worker on another machine as the kernel sees it: what is asked there, how long it is waited for, how it ends."""

from __future__ import annotations

import atexit
import contextlib
import json
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from .. import config
from .._version import __version__
from ..backends.serving.wire import Malformed, WireClosed
from ..engines import forks
from ..engines.descriptors import Engine
from ..errors import ArgumentError, BackendNotInstalledError, EngineError, KernelKError, OutOfMemoryError, one_line
from . import serving
from .clusters import STEP, Connection, Unsent, parsed
from .connection_files import cluster_options

# After so many seconds without a word, a sign of life is asked for; after so many in all, nobody is there.
_ASK_AFTER, _SILENT_AFTER = 2.0, 8.0

# Seconds between two looks whether an engine has answered.
_LOOK = 0.005

# After so many seconds a call is followed by another one, whose reply can't come before its own.
_FOLLOWED_AFTER, _FOLLOWED_EVERY = 2.0, 60.0

# What has to be there for an answer, in words.
_NOBODY = "has not answered for {seconds:.0f} s: its machine, the network or the cluster's controller is gone"

_ENDED = "is gone with its ipyparallel engine, which ended"

# The errors of kernelk's that keep their kind on the way.
_RAISED = {kind.__name__: kind for kind in (ArgumentError, BackendNotInstalledError, OutOfMemoryError)}

# Workers that have been given up, and may not have heard of it: by their cluster, with the request that they end.
_left: dict[str, dict[tuple[int, str], Any]] = {}


@atexit.register
def _see_off() -> None:
    """Waits a while until given up workers have been told: what wasn't sent yet would end with this process."""
    end = time.monotonic() + _ASK_AFTER
    for left in list(_left.values()) if forks.in_own_process() else ():
        for told in list(left.values()):
            if told is not None and not told._client._closed:
                told.wait(max(0.0, end - time.monotonic()))


class _Forked:
    def forked(self) -> None:
        # They are the parent's.
        _left.clear()


_forked = _Forked()
forks.tell(_forked)


class Silence:
    """Whether an ipyparallel engine is still there, which it tells in the middle of a call, too.

    Without a word for some seconds it is asked for a sign of life, and asked again: signs are lost on the way as well.
    """

    def __init__(self, connection: Connection, engine: int) -> None:
        self._connection = connection
        self._engine = engine
        self.begin()

    def begin(self) -> None:
        """From now on it is to be heard of."""
        self._seconds, self._before = 0.0, time.monotonic()
        self._signs: list[Callable[[], bool]] = []

    def broken_off(self) -> str:
        """Why nobody is there any more, in words, "" as long as somebody may be; to be asked each `STEP`."""
        now = time.monotonic()
        # Where this machine has slept meanwhile, the answer may still be on its way.
        self._seconds, self._before = self._seconds + min(now - self._before, 4 * STEP), now
        if any(sign() for sign in self._signs):
            self.begin()
        if self._seconds > _SILENT_AFTER:
            # The next one finds out what is still there.
            self._connection.avoid(self._engine)
            return _NOBODY.format(seconds=self._seconds)
        if self._seconds > _ASK_AFTER * (1 + len(self._signs)):
            with contextlib.suppress(Unsent):
                self._signs.append(self._connection.ping(self._engine))
        return ""


class RemoteWorker:
    """One worker, under a name that no later one has; it stands where a `ChildProcess` does for one on this machine.

    `words` say how it ended. `hear(heard)` is called with what comes beside a reply: see `serving`. `home` is the name
    of its host's checkpoints there; `wanted()` says whether they are wanted any longer once this worker has ended.
    """

    def __init__(
        self,
        connection: Connection,
        descriptor: Engine,
        hear: Callable[[dict[str, Any]], None],
        home: str,
        wanted: Callable[[], bool],
    ) -> None:
        self.connection = connection
        self.engine = connection.engines(parsed(descriptor.on).engines)[0]
        self.descriptor = descriptor
        self.token = f"kernelk-{uuid.uuid4().hex}"
        self.pid = 0
        self.returncode: int | None = None
        self.words = ""
        self._hear = hear
        self._home = home
        self._wanted = wanted
        self._waiting = False
        self._over = threading.Event()
        self._left = threading.Event()

    def start(self, options: dict[str, Any]) -> Any:
        """Has the worker started; what comes of it is a reply. Raises WireClosed."""
        self.engine = self._found()
        self._end_left()
        wanted = {"engine": self.descriptor.base, "options": options, "version": __version__, "lease": serving.LEASE}
        sent = self.ask(serving.start, self.token, json.dumps(wanted))
        threading.Thread(target=self._renew, name="kernelk-lease", daemon=True).start()
        return sent

    def _found(self) -> int:
        """The first engine that gives a sign of life. Raises EngineError, or WireClosed where it is given up.

        The controller takes an engine whose machine is gone for one of its own for half a minute.
        """
        engines = self.connection.engines(parsed(self.descriptor.on).engines)
        signs: dict[int, Callable[[], bool]] = {}
        begin = time.monotonic()
        while (waited := time.monotonic() - begin) < _SILENT_AFTER:
            for engine in engines if waited > _ASK_AFTER else engines[:1]:
                if engine not in signs:
                    with contextlib.suppress(Unsent):
                        signs[engine] = self.connection.ping(engine)
            for engine, sign in signs.items():
                if sign():
                    return engine
            if self._over.wait(_LOOK):
                raise WireClosed(self.words)
        for engine in engines:
            self.connection.avoid(engine)
        self.connection.close()
        count = f"none of its {len(engines)} engines has" if len(engines) > 1 else "its engine hasn't"
        name = self.connection.name
        raise EngineError(
            f"cluster '{name}' doesn't answer: {count} given a sign of life for {_SILENT_AFTER:.0f} s",
            next_step=f"`ipcluster engines {cluster_options(name)}` there, or, if its controller has ended as well, "
            f"`ipcluster start {cluster_options(name)}`",
        )

    def _end_left(self) -> None:
        """Ends earlier workers that couldn't be told to end: nobody asks for what they have, and they take memory."""
        left = {} if self.connection.closed else _left.get(self.connection.name, {})
        for (engine, token), told in list(left.items()):
            if told is not None and told.ready():
                del left[engine, token]
                continue
            try:
                # The first ends it in the middle of a request, the second one anywhere else.
                self.connection.abort(engine, token)
                left[engine, token] = self.connection.call(engine, serving.end, token)
            except Unsent:
                # Its engine has left the cluster.
                del left[engine, token]

    def ask(self, function: Any, *arguments: Any) -> Any:
        """Sends a call of one of the functions of `serving`. Raises WireClosed."""
        if self.poll() is not None:
            raise WireClosed(self.words, unread=True)
        try:
            return self.connection.call(self.engine, function, *arguments)
        except Unsent as error:
            # Its engine has left the cluster, or the connection is closed: nobody has read this.
            left = not self.connection.closed and self.engine not in self.connection.client.ids
            raise self._lost(_ENDED if left else f"is gone: {one_line(error)}", unread=True) from error

    def answer(self, sent: Any) -> list[Any]:
        """Waits for a reply: its frame, and the bytes that were written there.

        Raises WireClosed where none comes, and the KernelKError that came in its place.
        """
        self._waiting = True
        try:
            self._wait(sent)
        finally:
            self._waiting = False
        try:
            first, *parts = sent.get(0)
        except Exception as error:
            raise self._failed(error) from error
        heard, frame = serving.split(first)
        try:
            self.pid = int(heard.get("pid", self.pid))
            self._hear(heard)
            gone = str(heard["gone"]) if "gone" in heard else ""
            raised = _raised(heard["error"], self.descriptor) if "error" in heard else None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise Malformed(f"its first line can't be read: {one_line(error)}") from error
        if gone:
            raise self._lost(gone, heard.get("unread") is True)
        if raised is not None:
            raise raised
        return [frame, *parts]

    def _wait(self, sent: Any) -> None:
        silence = Silence(self.connection, self.engine)
        begin, after = time.monotonic(), _FOLLOWED_AFTER
        follower: Any = None
        overtaken = False
        while not sent.wait(STEP):
            if self._over.is_set():
                self._give_up()
                raise WireClosed(self.words)
            words = silence.broken_off()
            if words:
                self._give_up()
                self.connection.close()
                raise self._lost(words)
            if overtaken:
                self._give_up()
                raise self._lost("was given up, since its reply was lost on the way")
            # An engine does one thing after the other. Both may come at once where it has left the cluster.
            overtaken = follower is not None and follower.ready()
            waited = time.monotonic() - begin
            if waited > after:
                # That one may be lost as well.
                after = waited + min(waited, _FOLLOWED_EVERY)
                with contextlib.suppress(Unsent):
                    follower = self.connection.call(self.engine, serving.renew, self.token, self._home)

    def _lost(self, words: str, unread: bool = False) -> WireClosed:
        """Notes that this worker is never used again, whatever has become of it."""
        self.words = self.words or words
        self._over.set()
        self.returncode = 1
        return WireClosed(self.words, unread=unread)

    def _failed(self, error: Exception) -> Exception:
        """What an exception in that engine means."""
        kind = str(getattr(error, "ename", type(error).__name__))
        message = one_line(getattr(error, "evalue", error))
        machine = self.connection.name
        older = kind in ("ModuleNotFoundError", "ImportError") or message.startswith("Can't get attribute")
        if older and "kernelk" in message:
            self._lost(message)
            return BackendNotInstalledError(
                f"engine {self.engine} of the cluster '{machine}' has no kernelk of this version ({message})",
                next_step=f"on {machine}: `pip install kernelk=={__version__}`, and restart its ipyparallel engines",
            )
        if kind == "EngineError":
            self._lost(_ENDED)
        else:
            # As of its user's own interrupt there: nobody knows how far it came.
            raised = f"{kind}: {message}" if message else kind
            self._lost(f"was given up, since its ipyparallel engine raised {raised}")
            self._give_up()
        return WireClosed(self.words)  # type: ignore[no-any-return]

    def _renew(self) -> None:
        """Says from time to time that the kernel is still there; without it, all that is there ends by itself."""
        while not self._over.wait(serving.LEASE / 4):
            self._renew_once()
        while self._wanted() and not self._left.wait(serving.LEASE / 4):
            self._renew_once()

    def _renew_once(self) -> None:
        with contextlib.suppress(Unsent):
            self.connection.call(self.engine, serving.renew, self.token, self._home)

    def leave(self) -> None:
        """Notes that another worker takes its place, or none."""
        self._left.set()

    def _give_up(self) -> None:
        """Ends it there, now or as soon as there is a way to it again."""
        _left.setdefault(self.connection.name, {})[self.engine, self.token] = None
        self._end_left()

    def kill(self) -> None:
        """Ends it without waiting for it; from another thread or a signal handler too."""
        if self.returncode is None:
            self.returncode = 1
            self._over.set()
            # Whoever waits for it sees to the rest: here, ipyparallel may be in the middle of something.
            if not self._waiting:
                self._give_up()

    def finish(self) -> None:
        """Ends it in good order, after what it was asked last."""
        if self.returncode is None:
            self.returncode = 0
            self._over.set()
            with contextlib.suppress(Unsent):
                told = self.connection.call(self.engine, serving.end, self.token)
                if not told.wait(_ASK_AFTER):
                    self._give_up()

    def forget(self, setup: str) -> None:
        """Has the checkpoints of its host given up on its machine, by another engine of that machine if it is gone."""
        if self.connection.closed:
            return
        if self.poll() is None:
            with contextlib.suppress(Unsent):
                self.connection.call(self.engine, serving.forget, setup)
                return
        # Nothing else is sent there that would be waited for.
        with contextlib.suppress(Unsent, EngineError):
            self.connection.call(self.connection.engines()[0], serving.forget, setup).wait(_ASK_AFTER)

    def notice_end(self) -> None:
        """Notes that it is gone if its cluster was started again: the name is another one's, and it gives no sign."""
        if self.poll() is None and not self.connection.is_current and not self._gives_sign():
            self._give_up()
            self.connection.close()
            self._lost("is gone with its cluster, which was started again")

    def _gives_sign(self) -> bool:
        """Whether its engine gives a sign of life within a while."""
        end = time.monotonic() + _ASK_AFTER
        with contextlib.suppress(Unsent):
            sign = self.connection.ping(self.engine)
            while time.monotonic() < end:
                if sign():
                    return True
                time.sleep(_LOOK)
        return False

    def poll(self) -> int | None:
        """None until it has ended, as far as is known here."""
        if self.returncode is None and self.connection.closed:
            self._lost("is gone: the cluster's controller has ended")
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its return code; there is nothing to wait for, since no later worker shares anything with it."""
        return self.poll() or 0


def _raised(described: dict[str, Any], descriptor: Engine) -> KernelKError:
    """An error of kernelk's that was raised there."""
    words = {name: str(described[name]) for name in ("kind", "problem", "allowed", "next_step")}
    kind = _RAISED.get(words["kind"], EngineError)
    made = kind(words["problem"], allowed=words["allowed"], next_step=words["next_step"])
    if isinstance(made, BackendNotInstalledError):
        made.next_step = descriptor.get
    for remark in described["remarks"]:
        made.remark(str(remark))
    return made


def limits() -> dict[str, Any]:
    """The user's settings that hold there, too."""
    return {"stuck_seconds": config.LIMITS.stuck_seconds}
