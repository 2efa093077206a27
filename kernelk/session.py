"""The state of one notebook: the active engine, variables, compiled programs; every call goes through `execute`."""

from __future__ import annotations

import contextlib
import itertools
import threading
import weakref
from collections import deque
from typing import Any, NamedTuple

import numpy as np
from traitlets import HasTraits, Unicode

from . import config, registry
from .backends.shared_memory import aligned
from .bounds import drop_oldest
from .errors import EngineError, KernelKError, WorkerDiedError
from .graph import GENERATION, Tensor, Variable, check_generation, located
from .host import Host, LocalHost
from .interrupts import HeldInterrupt
from .ops.random import SEEDS
from .program import Program, Specialisation
from .storage import Reference, Slots, Storage, Transfer
from .worker_host import WorkerHost

_plan_numbers = itertools.count()
_timed_numbers = itertools.count()

# How each kind of call is carried out is kept for so many kinds of one program.
MOST_PROGRAM_PLANS = 256


class Plan(NamedTuple):
    """What all calls of a program with feeds of certain shapes have in common on a host: see executor.Plan."""

    number: int
    segment: int | None
    definition: dict[str, Any]
    feeds: list[np.ndarray[Any, Any]]
    outputs: list[np.ndarray[Any, Any]]
    slots: list[Slots]
    updated: list[Slots]


class Shown(NamedTuple):
    """An evaluated tensor's feeds and value, the versions of the variables behind it, the engine that computed it."""

    feeds: dict[Tensor, Any]
    value: np.ndarray[Any, Any]
    versions: dict[int, int]
    engine: str


class Session(HasTraits):
    """One kernel's state. `active` is observable; `chosen_by` says which setting decided it."""

    active = Unicode()

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.RLock()
        self.storage = Storage()
        self.transfer = Transfer(self.storage)
        self.hosts: dict[str, Host] = {}
        self.variables: dict[int, weakref.ref[Variable]] = {}
        self.functions: weakref.WeakSet[Any] = weakref.WeakSet()
        self.shown: weakref.WeakKeyDictionary[Tensor, Shown] = weakref.WeakKeyDictionary()
        self.swaps: list[Any] = []
        self.engine_options: dict[str, dict[str, Any]] = {}  # engine's name -> what the user asked for; see make_host
        self._slots: dict[int, Slots] = {}
        self._unreferenced: deque[int] = deque()
        self._planned: weakref.WeakSet[Program] = weakref.WeakSet()
        self.recorder: Any = None  # what notes the calls of K.functions while a body is recorded: see timing
        self.announced = False
        name, self.chosen_by = config.chosen_backend()
        self.active = name

    # --- variables ---

    def adopt(self, variable: Variable, value: np.ndarray[Any, Any]) -> None:
        """Gives a new variable its place in shared memory."""
        with self.lock:
            self.safe_point()
            slots = Slots(self.storage, value)
            variable.slots = slots
            self._slots[slots.number] = slots
            number, queue = slots.number, self._unreferenced

            # A finalizer may run anywhere, even inside a request: it only leaves a note.
            self.variables[number] = weakref.ref(variable, lambda _: queue.append(number))

    def safe_point(self) -> None:
        """Frees variables that nobody holds any more, here and in the engines. Called with the lock held."""
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
        self.storage.released_segments.clear()
        for host in self.hosts.values():
            with contextlib.suppress(WorkerDiedError):
                host.release(gone, segments)

    def show(
        self, tensor: Tensor, feeds: dict[Tensor, Any], value: np.ndarray[Any, Any], variables: list[Variable]
    ) -> None:
        """Remembers a value that the user has been shown, for the check after a swap."""
        self.shown.pop(tensor, None)
        # Copies: the user may go on to change the arrays in place.
        kept = {placeholder: np.array(feed) for placeholder, feed in feeds.items()}
        versions = {variable.slots.number: variable.slots.version for variable in variables}
        self.shown[tensor] = Shown(kept, value, versions, self.active)

    def live_variables(self) -> list[Variable]:
        """All variables that somebody holds, oldest first."""
        return [variable for ref in list(self.variables.values()) if (variable := ref()) is not None]

    def read(self, variable: Variable) -> np.ndarray[Any, Any]:
        """A copy of the committed value."""
        with self.lock:
            check_generation(variable)
            return np.array(variable.slots.view())

    def write(self, values: list[tuple[Variable, np.ndarray[Any, Any]]]) -> None:
        """Commits values of the right shapes and dtypes, all at once."""
        with self.lock:
            for variable, _ in values:
                check_generation(variable)
            with HeldInterrupt(_let_it_end, 0.0):
                for variable, value in values:
                    variable.slots.write(value)

    def restore(self, values: list[tuple[Variable, np.ndarray[Any, Any]]], random: dict[str, int] | None) -> None:
        """Commits values as `write` does, and makes the next draws those that follow from `random`, if it is given."""
        with self.lock:
            self.write(values)
            if random is not None:
                SEEDS.restore(random)
                self._drop_plans()  # they hold the seeds

    def clear(self) -> None:
        """`K.clear_session()`: frees all variables and compiled programs, and makes every older tensor stale."""
        with self.lock:
            GENERATION.session += 1
            for host in self.hosts.values():
                if host.started:
                    with contextlib.suppress(WorkerDiedError):
                        host.release_programs(list(host.compiled))
            self._unreferenced.extend(self._slots)
            self.functions.clear()
            self.shown.clear()
            self.safe_point()

    # --- engines ---

    def host(self, name: str | None = None) -> Host:
        """The host of an engine (the active one by default), not necessarily started."""
        name = name or self.active
        host = self.hosts.get(name)
        if host is None:
            host = self.hosts[name] = self.make_host(name, self.engine_options.get(name, {}))
        return host

    def make_host(self, name: str, options: dict[str, Any]) -> Host:
        """A new host, not started and not the session's own yet, for an engine with these options.

        `options`: "device" and "threads" as asked for, "in_kernel", and what a backend takes beside these.
        """
        engine = registry.engine(name)
        if engine.in_kernel or options.get("in_kernel"):
            return LocalHost(engine, self.storage, options)
        return WorkerHost(engine, self.storage, config.say, options)

    def ready_host(self) -> Host:
        """The active engine, started; the first time, one line says which it is."""
        try:
            host = self.host()
            if not host.started:
                host.start()
        except KernelKError as error:
            # "My choice is ignored" and "I never chose this" look alike: say who chose.
            error.args = (f"{error.args[0]} ('{self.active}' is chosen by {self.chosen_by})", *error.args[1:])
            raise
        if not self.announced:
            self.announce(host)
        return host

    def announce(self, host: Host) -> None:
        """One line says which engine is in use and which setting chose it."""
        self.announced = True
        config.say(f"Using {host.engine.title} {host.facts['version']} backend (chosen by {self.chosen_by})")

    # --- calls ---

    def execute(
        self, host: Host, program: Program, feeds: list[np.ndarray[Any, Any]], commit: bool = True
    ) -> list[np.ndarray[Any, Any]]:
        """Runs a program on a started host: commits its updates, returns its outputs as new ndarrays.

        `feeds` have the inputs' dtypes and shapes that fit. Without `commit` the updates are computed and forgotten.
        A call that fails changes nothing. Called with the lock held.
        """
        self.safe_point()
        for variable in program.slots:
            check_generation(variable)
        specialisation = program.specialise(tuple([feed.shape for feed in feeds]), host.specialises)
        host.listen()
        try:
            try:
                return self._execute(host, program, specialisation, feeds, commit)
            except WorkerDiedError as error:
                if not error.before_call:
                    raise
            # It was gone before this call reached it, which nobody could know: as if it had been found out earlier.
            host.start()
            return self._execute(host, program, specialisation, feeds, commit)
        finally:
            host.tell()

    def _execute(
        self,
        host: Host,
        program: Program,
        specialisation: Specialisation,
        feeds: list[np.ndarray[Any, Any]],
        commit: bool,
    ) -> list[np.ndarray[Any, Any]]:
        with host.held():
            if specialisation.key in host.compiled:
                host.compiled.move_to_end(specialisation.key)
            else:
                self._compile(host, program, specialisation)
            return self._run(host, program, specialisation, feeds, commit)

    def _compile(self, host: Host, program: Program, specialisation: Specialisation) -> None:
        _check_able(host, program)
        encoded, _ = program.encode(specialisation)
        constants = [node.array for node in program.constants]
        references = self._place(constants)
        try:
            with host.waiting("compiling"):
                reply = host.request(
                    {"do": "compile", "key": specialisation.key, "program": encoded, "constants": references}
                )
        except EngineError as error:
            raise _blamed(error, program, specialisation) from None
        host.remember(specialisation.key, reply)

    def make_timed(
        self, host: Host, program: Program, feeds: list[np.ndarray[Any, Any]], profiled: bool = False
    ) -> tuple[int, float, float]:
        """Readies a call on a started host for the requests "sample" and "transfers": see `backends.timed`.

        `profiled`: and for "watch", which asks the engine's own profiler. Returns its number, and the seconds of its
        compilation and its first run. Called with the lock held; nothing of the session changes. Raises EngineError.
        """
        specialisation = program.specialise(tuple([feed.shape for feed in feeds]), host.specialises)
        _check_able(host, program)
        encoded, _ = program.encode(specialisation)
        shift = len(program.inputs)
        encoded = {
            **encoded,
            "inputs": [],
            "slots": [*encoded["inputs"], *encoded["slots"]],
            "updates": [[slot + shift, number] for slot, number in encoded["updates"]],
        }
        references = self._place([*(node.array for node in program.constants), *feeds])
        number = next(_timed_numbers)
        message = {
            "do": "time",
            "timed": number,
            "program": encoded,
            "constants": references[: len(program.constants)],
            "feeds": references[len(program.constants) :],
            "variables": [variable.slots.reference() for variable in program.slots],
            "draws": _draws(program, specialisation),
            "counter": SEEDS.counter,
            "profiled": profiled,
        }
        try:
            with host.held(), host.waiting("compiling"):
                reply = host.request(message)
        except EngineError as error:
            raise _blamed(error, program, specialisation) from None
        return number, reply["compile"], reply["first"]

    def describe(
        self, host: Host, program: Program, feeds: list[np.ndarray[Any, Any]], names: list[str]
    ) -> dict[str, Any]:
        """What a started host's engine makes of a program at these feeds' shapes: see `backends.describing`.

        `names` are those of the program's leaves. Called with the lock held; nothing of the session changes. Raises
        EngineError.
        """
        specialisation = program.specialise(tuple([feed.shape for feed in feeds]), host.specialises)
        _check_able(host, program)
        encoded, _ = program.encode(specialisation)
        references = self._place([node.array for node in program.constants])
        message = {"do": "describe", "program": encoded, "constants": references, "names": names}
        try:
            with host.held(), host.waiting("compiling"):
                return host.request(message)
        except EngineError as error:
            raise _blamed(error, program, specialisation) from None

    def _place(self, arrays: list[np.ndarray[Any, Any]]) -> list[Reference]:
        self._begin(sum(aligned(array.nbytes) for array in arrays))
        references = []
        for array in arrays:
            reference, place = self.transfer.place(array.nbytes, array.dtype.name, array.shape)
            place[...] = array
            references.append(reference)
        return references

    def _begin(self, size: int) -> None:
        """Readies the transfer segment; where another one is needed, no plan may keep the old one's memory."""
        before = self.transfer.segment
        self.transfer.begin(size)
        if self.transfer.segment != before:
            self._drop_plans()

    def _drop_plans(self) -> None:
        for program in self._planned:
            program.plans.clear()
        self._planned.clear()

    def _plan(
        self, host: Host, program: Program, specialisation: Specialisation, feeds: list[np.ndarray[Any, Any]]
    ) -> Plan:
        """The plan of this call, made at the first one of its kind."""
        key = (host, tuple([feed.shape for feed in feeds]))
        plan = program.plans.get(key)
        if plan is not None and self.transfer.holds(plan.segment):
            return plan  # type: ignore[no-any-return]
        outputs = program.output_arrays(specialisation)
        self._begin(sum(aligned(feed.nbytes) for feed in feeds) + sum(aligned(size) for size, _, _ in outputs))
        fed = [self.transfer.place(feed.nbytes, x.dtype, feed.shape) for x, feed in zip(program.inputs, feeds)]
        results = [self.transfer.place(*output) for output in outputs]
        slots = [variable.slots for variable in program.slots]
        updated = [slots[slot] for slot, _ in program.updates]
        definition = {
            "key": specialisation.key,
            "feeds": [reference for reference, _ in fed],
            "slots": [slot.number for slot in slots],
            "draws": _draws(program, specialisation),
            "into": [slot.references() for slot in updated],
            "outputs": [reference for reference, _ in results],
        }
        plan = Plan(
            next(_plan_numbers),
            self.transfer.segment,
            definition,
            [array for _, array in fed],
            [array for _, array in results],
            slots,
            updated,
        )
        program.plans[key] = plan
        drop_oldest(program.plans, MOST_PROGRAM_PLANS)
        self._planned.add(program)
        return plan

    def _run(
        self,
        host: Host,
        program: Program,
        specialisation: Specialisation,
        feeds: list[np.ndarray[Any, Any]],
        commit: bool,
    ) -> list[np.ndarray[Any, Any]]:
        plan = self._plan(host, program, specialisation, feeds)
        host.feed(plan.feeds, feeds)
        known = plan.number in host.plans
        message = {
            "do": "run",
            "plan": plan.number,
            "define": None if known else plan.definition,
            "load": host.loads(plan.slots),
            "sides": [1 - slot.active for slot in plan.updated],
            "counter": SEEDS.counter,
        }
        try:
            reply = host.request(message)
            # Before `define`, which may make a request of its own, to let the oldest plan go.
            values = host.take(plan.outputs)
            if not known:
                host.define(plan.number, specialisation.key)
            host.last_run_seconds = reply["seconds"]
            if message["load"]:
                host.loaded(plan.slots)
            if commit:
                self._commit(host, program, plan.updated)
            else:
                host.forget(plan.updated)
                SEEDS.counter += bool(program.draws)
        except EngineError as error:
            raise _blamed(error, program, specialisation) from None
        except BaseException:
            # Ctrl-C between the run and the commit: the engine may hold new values that were never committed.
            host.forget(plan.updated)
            raise
        return values

    def _commit(self, host: Host, program: Program, updated: list[Slots]) -> None:
        """Makes a call's new values the committed ones. Ctrl-C waits for it, on engines in this process too."""
        if not updated:
            SEEDS.counter += bool(program.draws)
            return
        with HeldInterrupt(_let_it_end, 0.0):
            SEEDS.counter += bool(program.draws)
            for slot in updated:
                slot.flip()
            host.loaded(updated)


def _check_able(host: Host, program: Program) -> None:
    """Raises EngineError with all that the engine lacks for this program."""
    reasons = program.lacking(host.ops, host.dtypes)
    reasons += [f"variable '{x.name}' ({x.source}) is {x.dtype}" for x in program.slots if x.dtype not in host.dtypes]
    if reasons:
        raise EngineError(f"{host.engine.title} can't run this: {'; '.join(reasons)}; choose an engine that can")


def _draws(program: Program, specialisation: Specialisation) -> list[list[Any]]:
    """The random arrays of a run, as the executor makes them."""
    return [
        [node.attrs["kind"], node.dtype, shape, node.seed()] for node, shape in zip(program.draws, specialisation.draws)
    ]


def _let_it_end() -> None:
    """A commit takes microseconds: Ctrl-C waits for it."""


def _blamed(error: EngineError, program: Program, specialisation: Specialisation) -> KernelKError:
    """The engine's error with the op and the user's line that it came from."""
    details = getattr(error, "details", {})
    index = details.get("instruction")
    if index is None:
        return error
    node = program.blamed(specialisation, [index, *details.get("inside", ())])
    if node is None:
        return error
    error.args = (f"{error.args[0]} (op {node.op})",)
    return located(error, node.source)


_session: Session | None = None
_session_lock = threading.Lock()


def current() -> Session:
    """The process's session; made at the first call."""
    global _session
    if _session is None:
        with _session_lock:
            if _session is None:
                _session = Session()
                for call in list(config.WHEN_MADE):
                    call(_session)
    return _session


def stop_engines() -> None:
    """Stops every engine of the session, if there is one; variables stay, and the next use starts what it needs."""
    if _session is not None:
        with _session.lock:
            for host in _session.hosts.values():
                host.stop()
