"""What the kernel has called in another process to measure there: in ipyparallel's engines, or by any executor.

Each call brings JSON and arrays, and returns JSON, with a "failure" where it can't do what it was asked. The engines
run in workers of that process's own, which are kept for the calls of one comparison, known by its token, and end when
nothing has been asked of them for some time.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import config
from .._version import __version__
from ..arrays import Array
from ..engines import registry
from ..engines.host import Host
from ..engines.options import check_honoured
from ..engines.worker_host import WorkerHost
from ..engines.worker_log import WorkerLog
from ..errors import BackendNotInstalledError, EngineError, KernelKError, one_line
from ..graph.state import State, entered
from ..remote import machines, serving
from ..session.session import Session
from .comparison_results import CompareResult, Side
from .parcel import Opened
from .recording import restoring
from .rounds import Rounds

# Seconds after which workers end that nobody asks anything of.
LINGER = 30.0

# The reply to what nobody waits for any more.
_GIVEN_UP = json.dumps({"failure": "it was given up there"})


class Cancelled(Exception):
    """Nobody waits any more for what was asked."""


class _Host(WorkerHost):
    """A worker to measure in: what it prints stays in its log, and it ends in mid-call where nobody waits for it."""

    def __init__(self, bench: _Bench, name: str, options: dict[str, Any]) -> None:
        super().__init__(registry.engine(name), bench.session.storage, lambda text: None, WorkerLog(), options)
        self._bench = bench

    def _welcome(self, hello: dict[str, Any]) -> None:
        super()._welcome(hello)
        self.facts = {**self.facts, **machines.facts()}

    def tell(self) -> None:
        self._warned.clear()

    def _wait(self) -> Any:
        look = super()._wait()

        def check() -> None:
            if self._bench.is_cancelled:
                self._end("was ended, since nobody waits for it any more")
            else:
                look()

        return check


class _Bench:
    """The engines of one comparison in this process, and a session of their own."""

    def __init__(self, setup: dict[str, Any]) -> None:
        self.token: str = setup["token"]
        self.session = Session(State())
        self.busy = threading.Lock()
        self._options: dict[str, dict[str, Any]] = dict(setup["engines"])
        self._leash: str = setup["leash"]
        # On another machine it is seen only where that has the same home.
        same = machines.here().key == setup["machine"] and Path(self._leash).parent == machines.folder()
        self._leashed = same or os.path.exists(self._leash)
        self._idle: threading.Timer | None = None

    @property
    def names(self) -> list[str]:
        """The engines that are wanted."""
        return list(self._options)

    @property
    def is_cancelled(self) -> bool:
        """Whether the kernel has given this up: by ipyparallel, or by a file that isn't there any more."""
        return self.token in serving._aborted() or (self._leashed and not os.path.exists(self._leash))

    def look(self) -> None:
        """Raises Cancelled if it was given up."""
        if self.is_cancelled:
            raise Cancelled

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """Inside, nothing else is measured on this machine. Raises Cancelled."""
        with machines.turn(self.look), self.busy, entered(self.session.state), self.session.lock:
            self._wind(None)
            try:
                yield
            finally:
                self._wind(LINGER)

    def _wind(self, seconds: float | None) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None
        if seconds is not None:
            self._idle = threading.Timer(seconds, self._end_idle)
            self._idle.daemon = True
            self._idle.start()

    def _end_idle(self) -> None:
        if self.busy.acquire(blocking=False):
            try:
                self.end()
            finally:
                self.busy.release()

    def started(self, name: str) -> Host:
        """The host of an engine, started. Raises KernelKError, said of this machine."""
        host = self.session.hosts.get(name)
        if host is None:
            host = self.session.hosts[name] = _Host(self, name, self._options[name])
            host.fetch = self.session.calls.fetch
        if not host.started:
            try:
                host.start()
                check_honoured(host, self._options[name])
            except BackendNotInstalledError as error:
                machine = machines.here()
                if registry.engine(name).recipe is None:
                    title, where = registry.engine(name).title, f"on {machine.name}, where {machine.python} runs"
                    error.problem = f"{title} isn't installed {where}"
                else:
                    error.problem += f" on {machine.name}"
                error.next_step = f"there: `{registry.engine(name).install}`"
                raise
        return host

    def end(self) -> None:
        """Ends the workers."""
        _benches.pop(self.token, None)
        self._wind(None)
        for host in self.session.hosts.values():
            host.end()
        self.session.hosts.clear()


_benches: dict[str, _Bench] = {}
_making = threading.Lock()


def _bench(setup: dict[str, Any]) -> _Bench:
    if setup["version"] != __version__:
        machine = machines.here().name
        raise EngineError(
            f"kernelk is {__version__} on {machine}, and {setup['version']} in the notebook",
            next_step=f"on {machine}: `pip install kernelk=={setup['version']}`",
        )
    with _making:
        known = _benches.get(setup["token"])
        if known is None:
            known = _benches[setup["token"]] = _Bench(setup)
    config.LIMITS.stuck_seconds = setup["stuck_seconds"]
    return known


class Called:
    """A function of this module by its name: ipyparallel's executor would send its code."""

    def __init__(self, function: Callable[..., str]) -> None:
        self._name = function.__name__

    def __call__(self, *arguments: Any) -> str:
        reply: str = globals()[self._name](*arguments)
        return reply


def here() -> str:
    """This process's machine, and kernelk's version there."""
    return json.dumps({**machines.here()._asdict(), "version": __version__})


def welcome(setup: str) -> str:
    """Starts the engines, and replies with what each of them can, or with its failure.

    `setup` has token, version (kernelk's), machine (the kernel's), leash (a file that is gone when it gives this up),
    engines (names with their options) and stuck_seconds.
    """
    engines = {}
    try:
        bench = _bench(json.loads(setup))
        with bench.in_turn():
            for name in bench.names:
                try:
                    host = bench.started(name)
                    engines[name] = {
                        "ops": sorted(host.ops),
                        "dtypes": sorted(host.dtypes),
                        "specialises": host.specialises,
                    }
                except KernelKError as error:
                    engines[name] = {"failure": one_line(error)}
                    if isinstance(error, BackendNotInstalledError):
                        engines[name]["absent"] = one_line(error.problem)
    except Cancelled:
        return _GIVEN_UP
    except KernelKError as error:
        return json.dumps({"failure": one_line(error)})
    return json.dumps({"engines": engines})


def measure(head: str, *arrays: Array) -> str:
    """Compares the calls of a recording on engines of this machine, one side at a time, and replies with the sides.

    `head` has the setup, the engines by the labels of their sides, the budget, and a parcel's head.
    """
    sent = json.loads(head)
    try:
        bench = _bench(sent["setup"])
        session = bench.session
        with bench.in_turn():
            opened = Opened(session, sent, list(arrays))
            result = CompareResult([Side(label) for label in sent["engines"]], 0.0, sent["budget"])
            try:
                with restoring(session, [opened.recording]) as rewind:
                    rounds = Rounds(session, bench, rewind, result, bench.look)
                    try:
                        for side in result.sides:
                            rounds.prepare(side, sent["engines"][side.label], opened.recording)
                        rounds.run(sent["budget"])
                    finally:
                        rounds.close()
            finally:
                session.clear()
    except Cancelled:
        return _GIVEN_UP
    except KernelKError as error:
        return json.dumps({"failure": one_line(error)})
    sides = [asdict(side) for side in result.sides]
    return json.dumps({"machine": machines.here().name, "sides": sides, "notes": result.notes})


def finish(token: str) -> None:
    """Ends the workers of a comparison, if they are still there."""
    bench = _benches.get(token)
    if bench is not None:
        with bench.busy:
            bench.end()
    aborted: Any = serving._aborted()
    with contextlib.suppress(AttributeError):
        aborted.discard(token)
