"""Connects to ipyparallel clusters, to each once, by the name that its user knows or by ipyparallel's own object.

ipyparallel is imported here and nowhere else on the kernel's side, when an engine on another machine is asked for.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, NamedTuple

from ..display.progress import waiting
from ..engines import forks, registry
from ..errors import ArgumentError, BackendNotInstalledError, EngineError, one_line
from ..twins import as_typed, as_usable, option
from .connection_files import (
    cluster_options,
    file_of,
    files,
    key_in,
    key_of,
    require_one_encryption,
    ssh_server,
    unknown_host,
)

# Seconds that a controller may take to answer.
_ANSWERS_WITHIN = 5.0
# Seconds that a cluster's first engine has to come after the connection was made.
_STARTS_WITHIN = 15.0

# Seconds between two looks whether the user wants to wait any longer.
STEP = 0.25

# A task that no engine has: to abort it does nothing.
_NO_TASK = "kernelk"


class _ByName:
    """A function that is sent as its name: that machine's own is called there. ipyparallel would send its code."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def __reduce__(self) -> Any:
        return _same, (self._function,)

    def __call__(self) -> Any:
        """For ipyparallel, which sends nothing that can't be called."""
        raise NotImplementedError


def _same(function: Any) -> Any:
    return function


class Unsent(Exception):
    """Nothing can be sent to an engine, or to its cluster."""


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Raises Unsent for what ipyparallel raises, in many forms, where an engine or a cluster is gone.

    Other exceptions are those of the user's signal handlers, and nobody may take one for such a refusal.
    """
    from ipyparallel.error import IPythonError
    from zmq import ZMQBaseError

    try:
        yield
    except TimeoutError:
        raise  # which isn't one of these, though an OSError
    except (IPythonError, ZMQBaseError, OSError, LookupError, AttributeError, RuntimeError, ValueError) as error:
        raise Unsent(one_line(error)) from error


_PLACE = re.compile(r"([^\[\]]+)(?:\[\s*(\d+(?:\s*,\s*\d+)*)\s*\])?")


class Place(NamedTuple):
    """A cluster, and the numbers of those of its engines that may be used; none: any of them."""

    cluster: str
    engines: tuple[int, ...] = ()


class Connection:
    """A cluster that this process is connected to. `own`: kernelk has made the client, and closes it."""

    def __init__(self, name: str, client: Any, own: bool) -> None:
        self.name = name
        self.client = client
        self._own = own
        self._views: dict[int, Any] = {}
        self._made = time.monotonic()
        self._begun = False  # whether it has had an engine, or none came in time
        self._silent: set[int] = set()  # engines that have stopped answering; their numbers aren't used again
        self._silenced = False  # whether nobody has answered by it

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return bool(self.client._closed)

    @property
    def is_current(self) -> bool:
        """Whether whoever asks for its cluster gets this one, as far as is known without asking there."""
        return _connections.get(self.name) is self and not self.closed and not self._has_heir

    @property
    def _has_heir(self) -> bool:
        """Whether a file has its name, and nobody has answered by this one, or that has another controller."""
        file = files().get(self.name)
        return file is not None and (self._silenced or (self._own and key_in(file) not in ("", _key(self.client))))

    def engines(self, among: Sequence[int] = ()) -> list[int]:
        """The numbers of the engines to use, of these or of all, the first one first; those last that are silent.

        Raises EngineError where there is none.
        """
        self.await_engine()
        there = sorted(self.client.ids, key=lambda number: (number in self._silent, number))
        if not there:
            raise EngineError(
                f"the cluster '{self.name}' has no engines",
                next_step=f"ipcluster engines {cluster_options(self.name)}, there; or wait for the queue that starts "
                "them",
            )
        found = [number for number in there if not among or number in among]
        if not found:
            listed = ", ".join(str(number) for number in sorted(there))
            wanted = ", ".join(str(number) for number in among)
            raise EngineError(
                f"the cluster '{self.name}' has no engine {wanted}",
                allowed=f"it has {listed}",
                next_step=option("on", f"{self.name}[{there[0]}]"),
            )
        return found

    def await_engine(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Waits a while for the first engine ever: the cluster's user may have started it a moment ago.

        `given_up()` tells whether the user doesn't want to wait any longer.
        """
        until = self._made + _STARTS_WITHIN
        if not self._begun and not self.client.ids:
            with waiting(f"waiting for the first engine of {self.name}", ("Ctrl-C cancels",)):
                while not self.client.ids and time.monotonic() < until and not given_up():
                    time.sleep(0.1)
        # Whoever doesn't want to wait now may want to later.
        self._begun = self._begun or bool(self.client.ids) or time.monotonic() >= until

    def call(self, engine: int, function: Any, *arguments: Any) -> Any:
        """Has an engine call an importable function; the AsyncResult. Raises Unsent where nothing can be sent."""
        with _refusals():
            view = self._views.get(engine)
            if view is None:
                view = self._views[engine] = self.client.direct_view(engine)
            sent = view.apply_async(_ByName(function), *arguments)
        # A long training would fill both.
        view.history.clear()
        history = self.client.history
        if history and history[-1] == sent.msg_ids[0]:
            history.pop()
        return sent

    def ping(self, engine: int) -> Callable[[], bool]:
        """Asks for a sign of life, which an engine gives in the middle of a call, too. Raises Unsent.

        What comes back tells whether one has come. Signal 0 does nothing: the process that watches over the engine only
        looks whether that is there. Where there is no such process, the engine's control thread answers the other.
        """
        with _refusals():
            signs = [
                self.client.send_signal(0, targets=engine, block=False),
                self.client.abort([_NO_TASK], targets=engine, block=False),
            ]
        return lambda: any(sign.done() for sign in signs)

    def abort(self, engine: int, token: str) -> None:
        """Marks a task as one that isn't wanted any more."""
        with contextlib.suppress(Unsent), _refusals():
            self.client.abort([token], targets=engine, block=False)

    def avoid(self, engine: int) -> None:
        """Notes that an engine has stopped answering."""
        self._silent.add(engine)

    def close(self) -> None:
        """Ends the connection, so that the next one is made anew; one of the user's own isn't ended."""
        self._silenced = True
        if self._own:
            if _connections.get(self.name) is self:
                del _connections[self.name]
            with contextlib.suppress(Exception):
                self.client.close(linger=0)


_connections: dict[str, Connection] = {}
# The names of those that were given as ipyparallel's own objects: they may have no file here.
_given: set[str] = set()
_AGAIN = "kernelk.set_backend('torch', on=ipyparallel.Client(...)), with a new one"
# A forked child has no thread that would serve them, and closing them there isn't its business.
_parents: list[Connection] = []


class _Forked:
    def forked(self) -> None:
        _parents.extend(_connections.values())
        _connections.clear()


_forked = _Forked()
forks.tell(_forked)


def parsed(place: str) -> Place:
    """A cluster and engines of it, as written: "gpu-box", "gpu-box[2]", "gpu-box[0,2]". Raises ArgumentError."""
    found = _PLACE.fullmatch(place)
    if found is None:
        raise ArgumentError(
            f"on={place!r} isn't allowed",
            allowed="allowed are a cluster's name, and numbers of its engines in brackets, as in gpu-box[2]",
            next_step="ipcluster list",
        )
    numbers = [int(number) for number in (found[2] or "").split(",") if number]
    return Place(found[1], tuple(dict.fromkeys(numbers)))


def place_of(on: Any) -> Place:
    """What an engine is to run on: by its name, or ipyparallel's own Cluster, Client or View. Raises ArgumentError."""
    if isinstance(on, str) and on:
        return parsed(on)
    client = getattr(on, "client", on)  # a view's
    if hasattr(on, "connect_client_sync"):
        return Place(_name_of_cluster(on))
    if not hasattr(client, "send_apply_request"):
        # Dask's client isn't an executor, and has one.
        has_executor = hasattr(on, "get_executor")
        raise ArgumentError(
            f"on={on!r} isn't allowed",
            allowed="allowed are a cluster's name, a Cluster, Client or View of ipyparallel, and for kernelk.compare "
            "any concurrent.futures.Executor",
            next_step="kernelk.compare(f, 'torch', on=client.get_executor())"
            if has_executor
            else "kernelk.set_backend('torch', on='default')",
        )
    cluster = getattr(client, "cluster", None)
    name = _name_of(client, str(client.profile if cluster is None else cluster.cluster_id or cluster.profile))
    if client._closed:
        raise ArgumentError(f"this Client of the cluster '{name}' is closed", next_step=_AGAIN)
    known = _connections.get(name)
    if known is None or known.client is not client:
        _connections[name] = Connection(name, client, False)
        _given.add(name)
    return Place(name, _targets(on, client))


def _name_of_cluster(cluster: Any) -> str:
    """The name of a Cluster, which is connected to if it isn't yet. Raises EngineError."""
    wanted = str(cluster.cluster_id or cluster.profile)
    for name, known in _connections.items():
        if not known.closed and known.client.cluster is cluster:
            return name
    if cluster.controller is None:
        raise EngineError(f"the cluster '{wanted}' isn't running", next_step="cluster.start_cluster_sync()")
    with _translated(wanted, None):
        client = cluster.connect_client_sync()
    name = _name_of(client, wanted)
    if name in _connections and not _connections[name].closed:
        client.close(linger=0)
    else:
        _connections[name] = Connection(name, client, True)
        _given.add(name)
    return name


def _name_of(client: Any, wanted: str) -> str:
    """The name of a client's cluster: `wanted`, unless that is another one's.

    A client that was made from a file, or by a profile of another folder, doesn't know its cluster's name.
    """
    key = _key(client)
    keys = {name: key_in(file) for name, file in files().items()}
    same = [name for name, its in keys.items() if its == key]
    if same:
        return wanted if wanted in same else same[0]
    keys.update({name: _key(known.client) for name, known in _connections.items() if not known.closed})
    names = (wanted if number == 1 else f"{wanted}-{number}" for number in itertools.count(1))
    return next(name for name in names if keys.get(name, key) == key)


def _key(client: Any) -> str:
    """What tells a client's cluster from all others."""
    return key_of(client._config)


def _targets(on: Any, client: Any) -> tuple[int, ...]:
    """The engines that a view was made for: the one of `client[2]`; none for a client, and for a view of them all."""
    targets = None if on is client else on.targets
    if isinstance(targets, int):
        return (targets,)
    if targets is None or isinstance(targets, str) or set(targets) >= set(client.ids):
        return ()
    return tuple(targets)


def placed(name: str, on: Any) -> str:
    """The name of an engine on a cluster: "torch" on "gpu-box" is "torch@gpu-box"; on None it is what it was.

    Where some of the cluster's engines are named, it is the first of these that is there: "torch@gpu-box[2]". Raises
    UnknownBackendError, ArgumentError where the name has another cluster already, and what `connected` raises.
    """
    if on is None:
        return name
    engine, place = registry.engine(name), place_of(on)
    written = place.cluster
    if len(place.engines) == 1:
        written += f"[{place.engines[0]}]"
    elif place.engines:
        written += f"[{connected(place.cluster).engines(place.engines)[0]}]"
    if engine.on and engine.on != written:
        raise ArgumentError(
            f"{name} is on {engine.on}, not on {written}",
            next_step=as_typed(f"%kbackend {engine.base} --on {written}"),
        )
    return registry.engine(f"{engine.base}@{written}").name


def connected(name: str, given_up: Callable[[], bool] = lambda: False) -> Connection:
    """The connection to a cluster, by its profile's name or its own id; of two with one id, by "profile:id".

    `name` may name engines of it as well. `given_up()` tells whether its user doesn't want to wait any longer. Raises
    BackendNotInstalledError without ipyparallel, ArgumentError for a name that no cluster has, EngineError where its
    controller doesn't answer.
    """
    name = parsed(name).cluster
    known = _connections.get(name)
    if known is not None and known.is_current:
        return known
    _require()
    if name in _given and name not in files():
        raise EngineError(
            f"the cluster '{name}' is gone, or its Client was closed, and it has no connection file here",
            next_step=f"{_AGAIN}; {as_usable('%kbackend numpy')} goes on here",
        )
    file = file_of(name)
    with _translated(name, file):
        written = json.loads(file.read_text())
        require_one_encryption(name, file, written)
        try:
            client = _client(file, given_up)
        except Exception as error:
            told = _unanswered(name, file, written, error)
            if told is None:
                raise
            raise told from error
    made = _connections[name] = Connection(name, client, True)
    return made


def _client(file: Path, given_up: Callable[[], bool]) -> Any:
    """A client of the cluster with this file. ipyparallel waits for it without a look at Ctrl-C: in another thread.

    Raises TimeoutError, and what ipyparallel raises.
    """
    import ipyparallel

    made: Future[Any] = Future()

    def connect() -> None:
        client, failure = None, None
        try:
            # Nobody can be asked for a password here; there is one only for ssh.
            client = ipyparallel.Client(str(file), timeout=_ANSWERS_WITHIN, password=False)
        except BaseException as error:
            failure = error
        if not made.set_running_or_notify_cancel():
            if client is not None:
                with contextlib.suppress(Exception):
                    client.close(linger=0)
        elif failure is not None:
            made.set_exception(failure)
        else:
            made.set_result(client)

    threading.Thread(target=connect, name="kernelk-connecting", daemon=True).start()
    while not wait([made], STEP).done:
        if given_up() and made.cancel():
            raise TimeoutError
    return made.result()


def _unanswered(name: str, file: Path, written: dict[str, Any], error: Exception) -> EngineError | None:
    """What to say of a cluster that doesn't answer, given what ipyparallel has raised; None if it isn't that."""
    if server := ssh_server(written):
        return EngineError(
            f"cluster '{name}' doesn't answer through ssh to {server} ({type(error).__name__}: {one_line(error)})",
            next_step=f"set ControlMaster and ControlPersist for it in ~/.ssh/config, and run `ssh {server} true`",
        )
    # A message with another signature than its own key's, or with none, is a plain ValueError.
    if isinstance(error, json.JSONDecodeError) or not isinstance(error, (TimeoutError, ValueError)):
        return None
    if host := unknown_host(written):
        return EngineError(
            f"cluster '{name}' can't be reached: {file} says that its controller is on '{host}', and that has no "
            f"address here",
            next_step=f'start it with --location=ADDRESS; or have ssh reach it: put "ssh": "you@{host}" into that file',
        )
    return EngineError(
        f"cluster '{name}' doesn't answer: its controller isn't running, or has another key than {file} by now",
        next_step=f"ipcluster start {cluster_options(name)}; of one that runs elsewhere, copy {file.name} here again",
    )


def _require() -> None:
    import importlib.util

    if importlib.util.find_spec("ipyparallel") is None:
        raise BackendNotInstalledError(
            "an engine on another machine is reached by ipyparallel, which isn't installed here",
            next_step='`pip install "kernelk[cluster]"`',
        )


@contextlib.contextmanager
def _translated(name: str, file: Path | None) -> Any:
    """Says in a line what ipyparallel raises while it connects."""
    try:
        yield
    except (ArgumentError, EngineError):
        raise
    except Exception as error:
        raise EngineError(
            f"the cluster '{name}' can't be reached: {type(error).__name__}: {one_line(error)}",
            next_step=f"ipcluster list; the connection file is {file}" if file is not None else "ipcluster list",
        ) from error
