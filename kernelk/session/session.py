"""The state of one notebook: the active engine, variables, engines; `calls` carries every call out."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from traitlets import Dict, HasTraits, Unicode

from .. import config
from ..arrays import Array
from ..display import messages
from ..engines import forks, memory, registry
from ..engines.host import Host
from ..engines.local_host import LocalHost
from ..engines.storage import Slots, Storage
from ..engines.worker_host import WorkerHost
from ..engines.worker_log import WorkerLog
from ..errors import CopyRefusedError, ForkedError, KernelKError, OutOfMemoryError
from ..graph.nodes import Tensor, Variable, check_generation
from ..graph.state import State
from .calls import Calls

# The reports of so many swaps are kept.
MOST_SWAPS = 1000

# Where more segments than this are left from before forks, the values in them are copied to a new one: each takes two
# file descriptors.
MOST_READ_ONLY = 32


class Shown(NamedTuple):
    """An evaluated tensor's feeds and value, the versions of the variables behind it, the engine that computed it."""

    feeds: dict[Tensor, Any]
    value: Array
    versions: dict[int, int]
    engine: str


class Session(HasTraits):
    """The state of one notebook, or of one visitor of a host.

    `active` (the engine) and `measurements` (the last result of each kind) can be observed; `chosen_by` says which
    setting decided the engine. `state` is what recording shares with it: a new one, unless one is given that has no
    session yet. The settings of keras.json and of `c.KernelK` are the process's, and hold for all of its sessions, but
    that each visitor of a marimo app has a copy of keras.json's.

    `pid` is the process that may use it: `current()`, and all that reads or changes its variables, compares it. `swaps`
    has the reports of the last `MOST_SWAPS` swaps, and `swap_count` says how many there were.
    """

    active = Unicode()
    measurements = Dict()

    def __init__(self, state: State | None = None) -> None:
        super().__init__()
        self.state = State() if state is None else state
        self.pid = os.getpid()
        self.lock = threading.RLock()
        self.storage = Storage()
        self.hosts: dict[str, Host] = {}
        self.variables: dict[int, weakref.ref[Variable]] = {}
        self.functions: weakref.WeakSet[Any] = weakref.WeakSet()
        self.shown: weakref.WeakKeyDictionary[Tensor, Shown] = weakref.WeakKeyDictionary()
        self.swaps: list[Any] = []
        self.swap_count = 0
        self.engine_options: dict[str, dict[str, Any]] = {}  # engine's name -> what the user asked for; see make_host
        self.logs: dict[str, WorkerLog] = {}
        self._slots: dict[int, Slots] = {}
        self._unreferenced: deque[int] = deque()
        self._forks = forks.COUNT
        self.calls = Calls(self.storage, self.state, self.safe_point)
        self.recorder: Any = None  # what notes the calls of K.functions while a body is recorded: see measure.recording
        self.hub: Any = None  # what tells the panels, once one was open: see widgets
        self.loss_listener: Callable[[], None] | None = None  # called after each call that a `LossHistory` has noted
        self.announced = False
        name, self.chosen_by = config.chosen_backend()
        self.active = name
        self.state.session = self
        forks.tell(self)
        forks.ask(self)
        memory.holders.add(self)

    def give_back(self) -> None:
        """Has idle workers give the memory that they have freed back to the system, unless a call is under way."""
        if self.pid == os.getpid() and self.lock.acquire(blocking=False):
            try:
                for host in self.hosts.values():
                    host.give_back()
            finally:
                self.lock.release()

    # --- processes ---

    def before_fork(self) -> None:
        """Fetches the newest values that engines have alone, which a child can't ask."""
        if self.pid == os.getpid() and self.lock.acquire(blocking=False):
            try:
                self.calls.check_alone()
                for host in self.hosts.values():
                    # What a worker had when it ended, a child's own worker can compute again.
                    if host.holding and host.started and not host.lost:
                        self.calls.fetch(list(host.holding.values()))
            finally:
                self.lock.release()

    def forked(self) -> None:
        """In a forked child: makes the session the child's own, if nothing was running at the fork."""
        lock, self.lock = self.lock, threading.RLock()
        under_way = lock._is_owned() or not lock.acquire(blocking=False)  # type: ignore[attr-defined]
        # The notebook's page talks with the parent alone.
        self.unobserve_all()
        self.hub = self.recorder = self.loss_listener = None
        self.calls.forked()
        if self.pid == forks.PARENT and not under_way:
            self.pid = forks.PID

    def check_process(self) -> None:
        """Raises ForkedError in a process that has no right to this session."""
        if self.pid == os.getpid():
            return
        if forks.in_own_process():
            problem = f"process {self.pid} forked this one in the middle of a call, whose variables may be half changed"
            advice = "fork while no other thread is in a call"
        else:
            problem = f"C code forked this process from {self.pid}, which may have changed the variables since"
            advice = "fork by os.fork or multiprocessing"
        raise ForkedError(
            f"{problem}: kernelk can't continue here",
            next_step=f"{advice}, or start processes by multiprocessing's 'spawn'",
        )

    def _after_fork(self) -> None:
        """Makes calls write only to memory that was mapped after the last fork."""
        self._forks = forks.COUNT
        self.calls.drop_plans()
        if self.storage.read_only_count > MOST_READ_ONLY:
            old = [slots for slots in self._slots.values() if slots.is_read_only and slots.holder is None]
            # Without memory for a new segment, they stay where they are.
            with contextlib.suppress(OutOfMemoryError):
                self.calls.write([(slots, slots.view()) for slots in old])
            for slots in self._slots.values():
                slots.release_spare()

    def __copy__(self) -> Session:
        raise CopyRefusedError("a session has engines and memory of its own", next_step="Session() makes a new one")

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise CopyRefusedError(
            "a session can't be copied, pickled or sent to another process",
            next_step="kernelk.save writes its variables to a file, and kernelk.load reads them there",
        )

    # --- variables ---

    def adopt(self, variable: Variable, value: Array) -> None:
        """Allocates a new variable's shared memory, with `value` cast to its dtype. Raises OutOfMemoryError."""
        self.check_process()
        with self.lock:
            self.safe_point()
            slots = Slots(self.storage, value, variable.dtype)
            variable.slots = slots
            self._slots[slots.number] = slots
            number, queue = slots.number, self._unreferenced

            # A finalizer may run anywhere, even inside a request: it only leaves a note.
            self.variables[number] = weakref.ref(variable, lambda _: queue.append(number))

    def safe_point(self) -> None:
        """Completes a commit that was cut short, and frees variables that nobody holds, here and in the engines.

        Each call passes here first. Called with the lock held.
        """
        if self.calls.journal.unsettled is not None or self.calls.journal.drawn is not None:
            self.calls.journal.settle()
        if self._forks != forks.COUNT:
            self._after_fork()
        if self.storage.moved:
            self.storage.release_moved()
        if not self._unreferenced and not self.storage.released_segments:
            return
        gone = []
        while self._unreferenced:
            number = self._unreferenced.popleft()
            slots = self._slots.pop(number, None)
            if slots is not None:
                self.variables.pop(number, None)
                slots.release()
                gone.append(number)
        segments = list(self.storage.released_segments)
        for host in self.hosts.values():
            host.release(gone, segments)
        for _ in segments:
            self.storage.released_segments.popleft()

    def show(self, tensor: Tensor, feeds: dict[Tensor, Any], value: Array, variables: list[Variable]) -> None:
        """Remembers a value that the user has seen, for the check after a swap."""
        self.shown.pop(tensor, None)
        # Copies, since the user may change the arrays in place.
        kept = {placeholder: np.array(feed) for placeholder, feed in feeds.items()}
        versions = {variable.slots.number: variable.slots.version for variable in variables}
        self.shown[tensor] = Shown(kept, value, versions, self.active)

    def live_variables(self) -> list[Variable]:
        """All live variables, oldest first."""
        return [variable for ref in list(self.variables.values()) if (variable := ref()) is not None]

    def read(self, variable: Variable) -> Array:
        """A copy of the committed value. Raises OutOfMemoryError."""
        self.check_process()
        with self.lock:
            check_generation(variable, self.state)
            self.calls.journal.settle()
            slots = variable.slots
            if slots.holder is not None:
                self.calls.fetch([slots])
            if slots.nbytes < memory.ASKED_FROM:
                return np.array(slots.view())
            memory.require(slots.nbytes, f"the value of variable '{variable.name}'")
            with memory.translated(f"the value of variable '{variable.name}'"):
                return np.array(slots.view())

    def write(self, values: list[tuple[Variable, Array]]) -> None:
        """Commits values of the right shapes: all at once, or none if they don't fit into memory.

        They are cast to the variables' dtypes. Raises OutOfMemoryError.
        """
        self.restore(values, None)

    def restore(self, values: list[tuple[Variable, Array]], random: dict[str, Any] | None) -> None:
        """Commits values as `write` does, and makes the next draws those that follow from `random`, if it is given."""
        self.check_process()
        with self.lock:
            for variable, _ in values:
                check_generation(variable, self.state)
            self.calls.write([(variable.slots, value) for variable, value in values], random)

    def clear(self) -> None:
        """`K.clear_session()`: frees all variables and compiled programs, and makes every older tensor stale."""
        with self.lock:
            self.check_process()
            self.calls.check_alone()
            self.state.clear()
            # First the steps that can't fail.
            self._unreferenced.extend(self._slots)
            self.functions.clear()
            self.shown.clear()
            self.calls.let_go()
            self.safe_point()
            for host in self.hosts.values():
                host.release_programs(list(host.compiled))

    # --- engines ---

    def host(self, name: str | None = None) -> Host:
        """The host of an engine (the active one by default), which may not be started."""
        name = name or self.active
        host = self.hosts.get(name)
        if host is None:
            host = self.hosts[name] = self.make_host(name, self.engine_options.get(name, {}))
        return host

    def make_host(self, name: str, options: dict[str, Any], log: WorkerLog | None = None) -> Host:
        """A new host for an engine with these options, not started and not yet the session's own.

        `options`: "device", "threads" and "precision" as asked for, "in_kernel", and what a backend takes beside these.
        `log`: where it is to be noted what its worker says, if not in the session's own.
        """
        engine = registry.engine(name)
        host: Host
        if engine.on:
            # ipyparallel isn't needed by anything else.
            from ..remote.host import RemoteHost

            host = RemoteHost(engine, self.storage, messages.say, log or self.log_of(name), options)
        elif engine.runs_in_kernel(options):
            host = LocalHost(engine, self.storage, options)
        else:
            host = WorkerHost(engine, self.storage, messages.say, log or self.log_of(name), options)
        host.fetch = self.calls.fetch
        return host

    def log_of(self, name: str) -> WorkerLog:
        """The log of an engine's workers, including those that have ended, for the whole life of the session."""
        return self.logs.setdefault(name, WorkerLog())

    def stop_engines(self) -> None:
        """Stops every engine; variables are kept, and the next use starts the engine that it needs.

        Raises KernelKError, once all others are stopped, where newest values can't be had from an engine.
        """
        self.check_process()
        problem: KernelKError | None = None
        with self.lock:
            for host in self.hosts.values():
                try:
                    host.stop()
                except KernelKError as error:
                    problem = error
        if problem is not None:
            raise problem

    def end(self) -> None:
        """Closes its panels and stops its engines, for whom it was made has left. Raises as `stop_engines` does."""
        if self.hub is not None:
            # The page that its panels were in may be gone.
            with contextlib.suppress(Exception):
                self.hub.close()
        self.stop_engines()

    def ready_host(self) -> Host:
        """The active engine, started; the first time, one line says which it is."""
        try:
            host = self.host()
            if not host.started:
                host.start()
        except KernelKError as error:
            # "My choice is ignored" and "I never chose this" look alike: say who chose.
            error.remark(f"'{self.active}' is chosen by {self.chosen_by}")
            raise
        if not self.announced:
            self.announce(host)
        return host

    def announce(self, host: Host) -> None:
        """Prints one line that says which engine is in use and which setting chose it."""
        self.announced = True
        line = f"Using {host.engine.title} {host.facts['version']} backend (chosen by {self.chosen_by})"
        messages.say(line, kind="announcement")
