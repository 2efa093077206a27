"""Executes a program on a host: places its arrays, compiles, runs and commits; `Session.calls` is its interface."""

from __future__ import annotations

import contextlib
import itertools
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from .. import config
from ..arrays import Array
from ..backends.serving.shared_memory import aligned
from ..display import messages
from ..engines import memory
from ..engines.checkpoint import lost
from ..engines.history import Recipe, told
from ..engines.host import Host
from ..engines.interrupts import is_inside
from ..engines.keeping_host import KeepingHost
from ..engines.local_host import LocalHost
from ..engines.repeating import repeated_by_numpy
from ..engines.storage import Journal, Reference, Slots, Storage, Transfer, fetched, flipped, kept, replaced
from ..errors import EngineError, ForkedError, KernelKError, WorkerDiedError, one_line
from ..eviction import drop_oldest
from ..graph.nodes import check_generation, located
from ..graph.state import State
from ..program.program import Program
from ..program.specialisation import Specialisation
from ..twins import as_usable

_Answer = TypeVar("_Answer")

_plan_numbers = itertools.count()
_timed_numbers = itertools.count()

# Plans are kept for so many kinds of calls of one program.
MOST_PROGRAM_PLANS = 256

# So many workers in a row that end while values are fetched or computed again are replaced.
MOST_REPLACED = 2

# A transfer segment of at least this size is freed after so many calls in a row that need less than a quarter.
LARGE_TRANSFER = 16 << 20
SMALL_CALLS = 16


class Plan(NamedTuple):
    """The parts that all calls of a program with feeds of certain shapes share on a host: see executor.Plan."""

    number: int
    segment: int | None
    definition: dict[str, Any]
    feeds: list[Array]
    outputs: list[Array]
    slots: list[Slots]
    updated: list[Slots]
    recipe: Recipe | None  # what is needed to repeat a call whose updates stay with a worker


class Calls:
    """The calls of one session: its transfer segment, and the plans made so far. Used with the session's lock held.

    `safe_point` frees what nobody holds any more, before each call.
    """

    def __init__(self, storage: Storage, state: State, safe_point: Callable[[], None]) -> None:
        self._storage = storage
        self.transfer = Transfer(storage)
        self.journal = Journal()
        self._under_way = False
        self._state = state
        self._seeds = state.seeds
        self._safe_point = safe_point
        self._planned: weakref.WeakSet[Program] = weakref.WeakSet()
        self._patient = 0  # how many measurements are under way, which wait for what is built beside calls
        self._large = 0  # the transfer segment's size, while it may be freed
        self._small_calls = 0

    def execute(self, host: Host, program: Program, feeds: list[Array], commit: bool = True) -> list[Array]:
        """Runs a program on a started host: commits its updates, returns its outputs as new ndarrays.

        `feeds` have the inputs' dtypes and shapes that fit. Without `commit` the updates are computed and forgotten.
        A call that fails changes nothing. Called with the lock held. Raises EngineError within another call.
        """
        if self._under_way:
            self.check_alone()
        self._safe_point()
        elsewhere: list[Slots] = []
        for variable in program.slots:
            check_generation(variable, self._state)
            slots = variable.slots
            if slots.holder is not None and slots.holder is not host:
                elsewhere.append(slots)
        specialisation = program.specialise(tuple([feed.shape for feed in feeds]), host.specialises)
        host.listen()
        self._under_way = True
        try:
            if elsewhere:
                self._fetch(elsewhere)
            if host.holding:
                self._prepare(host, feeds if program.updates else [])
            try:
                values = self._execute(host, program, specialisation, feeds, commit)
            except WorkerDiedError as error:
                if not error.before_call:
                    raise
                # It ended before this call reached it: restart it, as if that had been noticed earlier.
                host.start()
                if host.lost:
                    self.recover(host)
                values = self._execute(host, program, specialisation, feeds, commit)
        except KernelKError:
            # It may be too large for the engine's process, which would try to map it again at each call.
            if self._large:
                self.let_go()
            raise
        finally:
            self._under_way = False
            host.tell()
        if self._large:
            self._watch(feeds, values)
        return values

    def check_alone(self) -> None:
        """Raises EngineError for a call made by a signal handler or a finalizer in the middle of a call or a commit.

        It would use the same memory.
        """
        if self._under_way and is_inside(self, Calls.execute.__code__, Calls.write.__code__):
            raise EngineError(
                "this was called by a signal handler or a finalizer in the middle of a call, whose memory it needs",
                next_step="do it after that call",
            )
        # Otherwise an exception cut that call short before its end was noted.
        self._under_way = False

    def write(self, values: list[tuple[Slots, Array]], random: dict[str, Any] | None = None) -> None:
        """Commits values of the right shapes, all at once, and with them a state of the draws.

        Called with the lock held. Raises EngineError within a call, OutOfMemoryError where they don't fit.
        """
        self.check_alone()
        self._under_way = True
        try:
            self.journal.settle()
            what = "the new value of a variable" if len(values) == 1 else f"the new values of {len(values)} variables"
            memory.require(sum([slots.missing_bytes for slots, _ in values]), what)
            for slots, value in values:
                slots.write(value)
            changed = flipped([slots for slots, _ in values])
            if random is not None:
                self.drop_plans()  # they hold the seeds
                self._seeds.restore(random)
            # Signal handlers run where a function begins, so not between these statements.
            self.journal.unsettled = changed
            self.journal.settle()
        finally:
            self._under_way = False

    def fetch(self, variables: list[Slots]) -> None:
        """Brings those newest values that an engine has alone to the kernel's memory.

        Called with the lock held. Raises EngineError within a call, OutOfMemoryError where they don't fit, and what
        `recover` raises.
        """
        self.journal.settle()
        if any(slots.holder is not None for slots in variables):
            self.check_alone()
            self._fetch(variables)

    def figures(self, slots: Slots, most: int) -> dict[str, Any] | None:
        """The figures of a value that an engine has alone, made there: see `backends.figures`; None if it lies here.

        Called with the lock held. Raises what `fetch` raises.
        """
        self.journal.settle()
        host: Any = slots.holder
        if host is None:
            return None
        self.check_alone()
        message = {"do": "summarise", "variable": slots.number, "most": most}
        found = self._from(host, [slots], lambda _: host.request(dict(message)))
        if found is None:
            return None
        host.seen(message, {"figures": found["figures"]})
        return found["figures"]  # type: ignore[no-any-return]

    def _fetch(self, variables: list[Slots]) -> None:
        apart: dict[Any, list[Slots]] = {}
        for slots in variables:
            if slots.holder is not None:
                apart.setdefault(slots.holder, []).append(slots)
        for host, held in apart.items():
            self._fetch_from(host, held)

    def _fetch_from(self, host: Host, variables: list[Slots]) -> None:
        def fetch(held: list[Slots]) -> tuple[list[Slots], float | None]:
            begin, all_at_once = time.perf_counter(), len(held) == len(host.holding)
            host.request({"do": "fetch", "variables": [[slots.number, slots.destination()] for slots in held]})
            return held, time.perf_counter() - begin if all_at_once else None

        held, seconds = self._from(host, variables, fetch) or ([], None)
        self.journal.unsettled = fetched(held)
        self.journal.settle()
        if not host.holding:
            host.fetched(seconds)
            return
        host.read(held)

    def _from(self, host: Host, variables: list[Slots], ask: Callable[[list[Slots]], _Answer]) -> _Answer | None:
        """The answer to `ask` about those of these variables whose newest values this host has alone; None if no more.

        If it has ended, or ends in the middle of it, its calls are repeated first.
        """
        attempt = 0
        while True:
            if host.lost or not host.started:
                self.recover(host)
            held = [slots for slots in variables if slots.holder is host]
            try:
                return ask(held) if held else None
            except KernelKError:
                # A worker that ends in the middle of it is replaced, as one that has ended before.
                if attempt == MOST_REPLACED or not host.lost:
                    raise
                attempt += 1

    def _prepare(self, host: Host, feeds: list[Array]) -> None:
        """Before a call of a host that has newest values alone: recovers them if it ended, fetches them when due."""
        # It may find out only here that it has ended.
        due = host.must_fetch(feeds)
        if host.lost:
            self.recover(host)
        if due and host.holding:
            self._fetch_from(host, list(host.holding.values()))

    def recover(self, host: Host) -> None:
        """Computes the newest values again that only this host had when it ended: its calls are repeated.

        In a new worker, if that ends in yet another one, and else by numpy in the kernel. Called with the lock held,
        and not while Ctrl-C is deferred. Raises KernelKError if none can, and the calls are kept then; ForkedError in
        a child that hasn't the engine.
        """
        if isinstance(host, LocalHost) and host.lost and host.checkpoint is not None:
            calls, before = host.checkpoint.calls, host.checkpoint.before()
            self._put_back(host, before)
            if not host.told:
                messages.say(f"{host.engine.title} can't use its device any more: {lost(calls, before)}")
            return
        if not isinstance(host, KeepingHost):
            raise ForkedError(
                f"the newest values of {len(host.holding)} variables are with {host.engine.title} in this process's "
                "parent, which forked in the middle of a call",
                next_step="fork while no other thread is in a call",
            )
        for _ in range(MOST_REPLACED):
            try:
                host.start()
                if host.lost:
                    host.repeat()
                return
            except KernelKError as error:
                problem = error
        held = list(host.holding.values())
        try:
            executor, repeated = repeated_by_numpy(host)
            places = [[slots.number, slots.destination()] for slots in held]
            executor.do_fetch({"variables": places})
        except Exception as error:
            raise EngineError(
                f"{host.engine.title}'s worker has ended, and the newest values of {len(held)} variables, which it "
                f"alone had, can't be computed again: {problem} (and by numpy: {one_line(error)})",
                next_step=as_usable(f"%kbackend --doctor {host.engine.name}; %kbackend numpy --drop-calls")
                + f" goes on without these {len(host.history.records)} calls",
            ) from problem
        self.journal.unsettled = fetched(held)
        self.journal.settle()
        host.fetched(None)
        messages.say(
            f"{host.engine.title}'s worker has ended, and another one failed ({one_line(problem)}): by numpy, "
            f"{told(repeated, host.since())}; the last digits may differ"
        )

    def drop_lost(self, host: Host) -> str:
        """Gives up the calls of a host that has lost their results; returns a line that says so, "" where it hasn't.

        The variables that they have changed get their values of the last checkpoint, all at once. Called with the lock
        held. Raises EngineError within a call, OutOfMemoryError where they don't fit.
        """
        self.journal.settle()
        if not isinstance(host, KeepingHost) or not host.lost:
            return ""
        self.check_alone()
        before = host.history.before()
        calls = len(host.history.records)
        self._put_back(host, before)
        return (
            f"{host.engine.title}'s {calls} calls since the last checkpoint are dropped: {len(before)} variables have "
            "their values from before them"
        )

    def _put_back(self, host: Host, before: list[tuple[Slots, Array]]) -> None:
        """Makes these the values of the variables that the host's calls since the last checkpoint have changed."""
        memory.require(sum([slots.nbytes for slots, _ in before]), "the values of the last checkpoint")
        for slots, value in before:
            if slots.holder is None:
                slots.write(value)
            else:
                self._storage.at(slots.destination())[...] = value
        self.journal.unsettled = replaced([slots for slots, _ in before])
        self.journal.settle()
        host.fetched(None)

    def _execute(
        self,
        host: Host,
        program: Program,
        specialisation: Specialisation,
        feeds: list[Array],
        commit: bool,
    ) -> list[Array]:
        if host.building and self._waits():
            host.finish_building()
        with host.held():
            if specialisation.key in host.compiled:
                host.compiled.move_to_end(specialisation.key)
            else:
                self._compile(host, program, specialisation)
            return self._run(host, program, specialisation, feeds, commit)

    def _waits(self) -> bool:
        """Whether what takes an engine's compiler long is waited for, rather than built beside the calls.

        What a seeded session computes, or a measurement finds, mustn't depend on when the compiler is done.
        """
        return self._seeds.repeatable or self._patient > 0 or not config.LIMITS.build_beside

    @contextlib.contextmanager
    def patient(self) -> Iterator[None]:
        """Inside, calls wait for what an engine would otherwise build beside them."""
        self._patient += 1
        try:
            yield
        finally:
            self._patient -= 1

    def compiled_within(self, host: Host, program: Program, feeds: list[Array], seconds: float) -> bool:
        """Whether a started host has this call's program compiled after so many seconds at most.

        If not, its engine is left to it where it can be. Called with the lock held. Raises EngineError.
        """
        specialisation = program.specialise(tuple([feed.shape for feed in feeds]), host.specialises)
        return specialisation.key in host.compiled or self._compile(host, program, specialisation, seconds)

    def _compile(
        self, host: Host, program: Program, specialisation: Specialisation, seconds: float | None = None
    ) -> bool:
        """Compiles a program; with `seconds`, returns whether it was done in that time."""
        check_able(host.engine.title, host.ops, host.dtypes, program)
        encoded = specialisation.encode(program)
        constants = [node.array for node in program.constants]
        references = self._written(constants)
        message = {
            "do": "compile",
            "key": specialisation.key,
            "program": encoded,
            "constants": references,
            "wait": self._waits(),
            "keeps": host.can_keep and program.updated_bytes > host.commit_bytes,
        }
        reply: dict[str, Any] | None
        try:
            with host.waiting("compiling"):
                reply = host.request(message) if seconds is None else host.request_within(message, seconds)
        except EngineError as error:
            raise _blamed(error, program, specialisation) from None
        if reply is None:
            # The memory that its constants lie in is used again.
            host.release_programs([specialisation.key])
            return False
        host.remember(specialisation.key, reply)
        return True

    def make_timed(
        self, host: Host, program: Program, feeds: list[Array], profiled: bool = False
    ) -> tuple[int, float, float]:
        """Prepares a call on a started host for the requests "sample" and "transfers": see `backends.serving.timed`.

        `profiled`: and for "watch", which asks the engine's own profiler. Returns its number, and the seconds of its
        compilation and its first run. Called with the lock held; nothing of the session changes. Raises EngineError.
        """
        self.check_alone()
        host.finish_building()
        self.fetch([variable.slots for variable in program.slots])
        specialisation = program.specialise(tuple([feed.shape for feed in feeds]), host.specialises)
        check_able(host.engine.title, host.ops, host.dtypes, program)
        encoded = specialisation.encode(program)
        shift = len(program.inputs)
        encoded = {
            **encoded,
            "inputs": [],
            "slots": [*encoded["inputs"], *encoded["slots"]],
            "updates": [[slot + shift, number] for slot, number in encoded["updates"]],
        }
        references = self._written([*(node.array for node in program.constants), *feeds])
        number = next(_timed_numbers)
        message = {
            "do": "time",
            "timed": number,
            "program": encoded,
            "constants": references[: len(program.constants)],
            "feeds": references[len(program.constants) :],
            "variables": [variable.slots.reference() for variable in program.slots],
            "draws": _draws(program, specialisation),
            "counts": [node.count.value for node in program.draws],
            "profiled": profiled,
        }
        try:
            with host.held(), host.waiting("compiling"):
                reply = host.request(message)
        except EngineError as error:
            raise _blamed(error, program, specialisation) from None
        return number, reply["compile"], reply["first"]

    def describe(self, host: Host, program: Program, feeds: list[Array], names: list[str]) -> dict[str, Any]:
        """Describes how a started host's engine compiles a program for these feeds' shapes: see `backends.describing`.

        `names` are those of the program's leaves. Called with the lock held; nothing of the session changes. Raises
        EngineError.
        """
        self.check_alone()
        specialisation = program.specialise(tuple([feed.shape for feed in feeds]), host.specialises)
        check_able(host.engine.title, host.ops, host.dtypes, program)
        encoded = specialisation.encode(program)
        references = self._written([node.array for node in program.constants])
        message = {"do": "describe", "program": encoded, "constants": references, "names": names}
        try:
            with host.held(), host.waiting("compiling"):
                return host.request(message)
        except EngineError as error:
            raise _blamed(error, program, specialisation) from None

    def _written(self, arrays: list[Array]) -> list[Reference]:
        """Copies arrays into the transfer segment and returns their locations there."""
        self._begin(sum(aligned(array.nbytes) for array in arrays))
        references = []
        for array in arrays:
            reference, memory = self.transfer.reserve(array.nbytes, array.dtype.name, array.shape)
            memory[...] = array
            references.append(reference)
        return references

    def _begin(self, size: int) -> None:
        """Prepares the transfer segment; before it is replaced, all plans have to drop the old one's memory."""
        before = self.transfer.segment
        self.transfer.begin(size)
        if self.transfer.segment != before:
            self.drop_plans()
            self._large = size if size >= LARGE_TRANSFER else 0
            self._small_calls = 0

    def _watch(self, feeds: list[Array], values: list[Any]) -> None:
        """Frees a large transfer segment once calls no longer need one."""
        if 4 * sum(getattr(array, "nbytes", 0) for array in (*feeds, *values)) > self._large:
            self._small_calls = 0
            return
        self._small_calls += 1
        if self._small_calls >= SMALL_CALLS:
            self.let_go()

    def let_go(self) -> None:
        """Frees the transfer segment's memory."""
        self.drop_plans()
        self.transfer.let_go()
        self._large = 0

    def forked(self) -> None:
        """In a forked child: sends feeds and results through the child's own memory."""
        self.let_go()

    def drop_plans(self) -> None:
        """Drops all plans, since what they hold is outdated; each is made again at its next call."""
        for program in self._planned:
            program.plans.clear()
        self._planned.clear()

    def _plan(
        self, host: Host, program: Program, specialisation: Specialisation, feeds: list[Array], keeps: bool
    ) -> Plan:
        """The plan of this call, made at the first call of its kind. `keeps`: its updates stay with the engine."""
        if self._storage.replaced:
            # In this order: what is replaced from here on is noted again.
            self._storage.replaced = False
            for planned in self._planned:
                for known in [known for known, plan in planned.plans.items() if plan.definition["into"]]:
                    del planned.plans[known]
        key = (host, keeps, tuple([feed.shape for feed in feeds]))
        plan = program.plans.get(key)
        if plan is not None and self.transfer.holds(plan.segment):
            return plan  # type: ignore[no-any-return]
        outputs = specialisation.output_arrays(program)
        self._begin(sum(aligned(feed.nbytes) for feed in feeds) + sum(aligned(size) for size, _, _ in outputs))
        fed = [self.transfer.reserve(feed.nbytes, x.dtype, feed.shape) for x, feed in zip(program.inputs, feeds)]
        results = [self.transfer.reserve(*output) for output in outputs]
        slots = [variable.slots for variable in program.slots]
        updated = [slots[slot] for slot, _ in program.updates]
        draws = _draws(program, specialisation)
        definition = {
            "key": specialisation.key,
            "feeds": [reference for reference, _ in fed],
            "slots": [slot.number for slot in slots],
            "draws": draws,
            "into": [] if keeps else [slot.references() for slot in updated],
            "outputs": [reference for reference, _ in results],
        }
        recipe = None
        if keeps and updated and host.placement == "worker":
            encoded = specialisation.encode(program)
            constants = [node.array for node in program.constants]
            recipe = Recipe(specialisation.key, encoded, constants, slots, draws, outputs)
        plan = Plan(
            next(_plan_numbers),
            self.transfer.segment,
            definition,
            [array for _, array in fed],
            [array for _, array in results],
            slots,
            updated,
            recipe,
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
        feeds: list[Array],
        commit: bool,
    ) -> list[Array]:
        keeps = host.can_keep and host.keeps(program, feeds)
        plan = self._plan(host, program, specialisation, feeds, keeps)
        host.feed(plan.feeds, feeds, commit and plan.recipe is not None)
        known = plan.number in host.plans
        updated = plan.updated
        counts = [node.count.value for node in program.draws]
        message = {
            "do": "run",
            "plan": plan.number,
            "define": None if known else plan.definition,
            "load": host.loads(plan.slots),
            "sides": [1 - slot.active for slot in updated],
            "counts": counts,
        }
        if keeps:
            # They are pending in the engine until the next request confirms this call.
            host.call += 1
            message["keep"] = host.call
            message["confirmed"] = host.confirmed
            if not commit:
                message["apart"] = True
            begin = time.perf_counter()
        if not keeps or (commit and host.overwrites):
            # Noted first: if anything interrupts from here to the commit, the engine's newer values are forgotten.
            host.uncommitted = updated or None
        try:
            reply = host.request(message)
            # Before `define`, which may itself make a request, to release the oldest plan.
            values = host.take(plan.outputs)
            if not known:
                host.define(plan.number, specialisation.key)
            host.last_run_seconds = reply["seconds"]
            if message["load"]:
                host.loaded(plan.slots)
            drawn = [(node.count, n + 1) for node, n in zip(program.draws, counts)]
            if program.drawn_before:
                drawn += [(node.count, node.count.value + 1) for node in program.drawn_before]
            if updated and commit:
                changed = kept(updated, host) if keeps else flipped(updated)
                if plan.recipe is not None:
                    seconds = time.perf_counter() - begin
                    # As the worker has read them, from memory that is about to be used again.
                    host.note(plan.recipe, plan.feeds, counts, values, seconds)
                # Signal handlers run where a function begins, so not between these statements.
                self.journal.drawn = drawn or None
                self.journal.unsettled = changed
                self.journal.settle()
                if keeps:
                    host.confirm()
                else:
                    host.loaded(updated)
                host.uncommitted = None
            elif drawn:
                self.journal.drawn = drawn
                self.journal.settle()
        except EngineError as error:
            if keeps and not getattr(error, "details", {}).get("changed", True):
                host.uncommitted = None
            raise _blamed(error, program, specialisation) from None
        return values


def check_able(title: str, ops: frozenset[str], dtypes: frozenset[str], program: Program) -> None:
    """Raises EngineError with everything that the engine of this title lacks for a program."""
    reasons = program.lacking(ops, dtypes)
    reasons += [f"variable '{x.name}' ({x.source}) is {x.dtype}" for x in program.slots if x.dtype not in dtypes]
    if reasons:
        raise EngineError(f"{title} can't run this: {'; '.join(reasons)}", next_step="choose an engine that can")


def _draws(program: Program, specialisation: Specialisation) -> list[list[Any]]:
    """The random arrays of a run, as the executor makes them."""
    return [
        [node.attrs["kind"], node.dtype, shape, node.seed()] for node, shape in zip(program.draws, specialisation.draws)
    ]


def _blamed(error: EngineError, program: Program, specialisation: Specialisation) -> KernelKError:
    """The engine's error with the op and the user's line that it came from."""
    details = getattr(error, "details", {})
    index = details.get("instruction")
    if index is None:
        return error
    node = specialisation.blamed(program, [index, *details.get("inside", ())])
    if node is None:
        return error
    error.remark(f"op {node.op}")
    return located(error, node.source)
