"""What a worker's calls since the last checkpoint need to be repeated, if it ends while it alone has their results.

Between `session.calls`, which notes a call before it is committed, and `KeepingHost`, whose next engine repeats it.
A checkpoint copies all newest values to the kernel's memory as one cut, and the history begins anew.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array
from ..backends.bits import same_bits
from ..backends.serving.shared_memory import aligned
from ..errors import EngineError
from .storage import Block, Reference, Slots, Storage

# Values up to this size are copied: to protect a block has all plans made again. Of the outputs, so much is remembered.
SMALL_BYTES = 1 << 16

# What a record takes beside its arrays.
_RECORD_BYTES = 1000

# Beyond the plans that the session numbers.
_FIRST_PLAN = 1 << 62

Ask = Callable[[dict[str, Any]], dict[str, Any]]


class Recipe(NamedTuple):
    """What all calls of one plan share: the program as backends lower it, and what its arrays are."""

    key: str
    encoded: dict[str, Any]
    constants: list[Array]
    slots: list[Slots]
    draws: list[list[Any]]
    outputs: list[tuple[int, str, tuple[int, ...]]]


class Value(NamedTuple):
    """A variable's value that a repetition begins with: a block that nobody writes to, or a copy."""

    slots: Slots
    version: int
    block: Block | None
    copy: Array | None


class Record(NamedTuple):
    """One call: its feeds, the counts of its draws, the values that weren't there yet, and its small outputs."""

    recipe: Recipe
    feeds: list[Array]
    counts: list[int]
    values: list[Value]
    outputs: list[Array | None]
    nbytes: int
    seconds: float


class Cut(NamedTuple):
    """The state after so many of the calls, `seconds` of them, from which the later ones can be repeated.

    `kept` are the variables whose values then lie elsewhere; others that the later calls read begin with values that
    are kept here. `versions` are those of the history.
    """

    calls: int
    seconds: float
    versions: dict[int, int]
    kept: dict[int, Slots]


class Repeated(NamedTuple):
    """The result of a repetition: the number of calls, of those whose outputs were others, and of the last call."""

    calls: int
    different: int
    number: int


def told(repeated: Repeated, since: str = "the last checkpoint") -> str:
    """What the user is told of a repetition."""
    calls = f"1 call since {since} was" if repeated.calls == 1 else f"{repeated.calls} calls since {since} were"
    differs = f", {repeated.different} of them with other results than before" if repeated.different else ""
    return f"{calls} repeated{differs}"


class History:
    """The calls since the last checkpoint, in order; `seconds` is what they took, `nbytes` what is held for them.

    `versions` has the version of each variable that a repetition ends with.
    """

    def __init__(self) -> None:
        self.records: list[Record] = []
        # After so many calls, what somebody was told of the newest values: requests and their replies
        self._seen: dict[int, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
        self.versions: dict[int, int] = {}
        self.nbytes = 0
        self.seconds = 0.0
        self._values: dict[int, list[Value]] = {}  # by the variable's number; the newest comes last
        # What large feeds of an earlier history have left, by dtype and shape: fresh memory takes several times as long
        # to write to.
        self._spare: dict[tuple[Any, ...], list[Array]] = {}

    def value(self, slots: Slots) -> Value:
        """The committed value of a variable, kept for as long as this history."""
        known = self._values.setdefault(slots.number, [])
        if not known or known[-1].version != slots.version:
            if slots.nbytes <= SMALL_BYTES:
                made = Value(slots, slots.version, None, slots.view().copy())
            else:
                made = Value(slots, slots.version, slots.protect(), None)
            # The first one is the kernel's copy of that variable, which it has in any case.
            if known or made.copy is not None:
                self.nbytes += slots.nbytes
            known.append(made)
        return known[-1]

    def record(
        self, recipe: Recipe, feeds: list[Array], counts: list[int], outputs: list[Any], holder: Any, seconds: float
    ) -> Record:
        """A call that is about to be committed, while the variables still are what it has read."""
        values = [
            self.value(slots)
            for slots in recipe.slots
            if slots.holder is not holder and self.versions.get(slots.number) != slots.version
        ]
        fed = [self._copy(feed) for feed in feeds]
        seen = [np.array(x) if getattr(x, "nbytes", SMALL_BYTES) < SMALL_BYTES else None for x in outputs]
        nbytes = _RECORD_BYTES + sum([x.nbytes for x in (*fed, *seen) if x is not None])
        return Record(recipe, fed, counts, values, seen, nbytes, seconds)

    def _copy(self, feed: Array) -> Array:
        if feed.nbytes <= SMALL_BYTES:
            return np.array(feed)
        spare = self._spare.get((feed.dtype, feed.shape))
        if not spare:
            # Together with what is noted from here on, the rest could be more than an earlier history has held.
            self._spare = {}
            return np.array(feed)
        copy = spare.pop()
        copy[...] = feed
        return copy

    def enter(self, record: Record) -> None:
        """Adds a call that counts now; to enter it twice changes nothing."""
        if self.records and self.records[-1] is record:
            return
        self.versions.update({value.slots.number: value.version for value in record.values})
        self.nbytes += record.nbytes
        self.seconds += record.seconds
        self.records.append(record)

    def see(self, message: dict[str, Any], reply: dict[str, Any]) -> None:
        """Notes a request about the values after the last call, and its reply, which a repetition compares."""
        seen = self._seen.setdefault(len(self.records), [])
        # The same request has the same reply until the next call.
        if message not in [known for known, _ in seen]:
            seen.append((message, reply))
            self.nbytes += _RECORD_BYTES

    def orphan(self, number: int) -> None:
        """Notes that a variable is gone: what is kept of it is held for this history alone."""
        known = self._values.get(number)
        if known and known[0].block is not None:
            self.nbytes += known[0].slots.nbytes

    def before(self) -> list[tuple[Slots, Array]]:
        """The variables that the calls have changed and that are still there, with their values before all calls."""
        changed = {
            record.recipe.slots[slot].number: None
            for record in self.records
            for slot, _ in record.recipe.encoded["updates"]
        }
        return self.first_values(changed)

    def has(self, slots: Slots) -> bool:
        """Whether some value of a variable is kept."""
        return slots.number in self._values

    def first_values(self, numbers: Iterable[int]) -> list[tuple[Slots, Array]]:
        """Those of these variables, by their numbers, that are still there, with the first value that is kept."""
        firsts = [self._values[number][0] for number in numbers]
        return [
            (first.slots, first.slots.array(first.block) if first.copy is None else first.copy)
            for first in firsts
            if not first.slots.is_released
        ]

    def cut(self, held: dict[int, Slots], known: dict[int, int]) -> Cut:
        """The present state as one to repeat calls from, whose values an engine is about to copy.

        `held` are the variables whose newest values it has alone, `known` the versions of all that it has.
        """
        kept = dict(held)
        of_calls = {id(record.recipe): record.recipe.slots for record in self.records}.values()
        all_slots = {slots.number: slots for of_call in of_calls for slots in of_call}
        for number, version in self.versions.items():
            values = self._values.get(number)
            slots = all_slots.get(number)
            # What was set since then is noted by the call that reads it.
            if slots is None or number in kept or slots.is_released or slots.version != version:
                continue
            if values and values[-1].version == version:
                continue
            if known.get(number) == version:
                kept[number] = slots
            else:
                self.value(slots)
        return Cut(len(self.records), self.seconds, dict(self.versions), kept)

    def _beginning(self, cut: Cut) -> list[Value]:
        """The values kept here that the calls after a cut read. Raises EngineError where one is nowhere."""
        there, values = set(cut.kept), []
        for record in self.records[cut.calls :]:
            there.update([value.slots.number for value in record.values])
            for slots in record.recipe.slots:
                if slots.number in there:
                    continue
                there.add(slots.number)
                known = self._values.get(slots.number, ())
                found = [value for value in known if value.version == cut.versions.get(slots.number)]
                if not found:
                    raise EngineError("a checkpoint lacks a variable's value", next_step="run the cell again")
                values += found
        return values

    def clear(self, reuse: bool = False) -> None:
        """Begins anew, when all newest values lie in the kernel's memory; `reuse`: in the memory of these feeds."""
        self._spare = {}
        for record in self.records if reuse else ():
            for feed in record.feeds:
                if feed.nbytes > SMALL_BYTES:
                    self._spare.setdefault((feed.dtype, feed.shape), []).append(feed)
        self.records.clear()
        self._seen.clear()
        self.versions.clear()
        self.nbytes, self.seconds = 0, 0.0
        while self._values:
            for _, _, block, _ in (known := self._values.popitem()[1]):
                if block is not None:
                    known[0].slots.unprotect(block)

    def repeat(
        self,
        storage: Storage,
        ask: Ask,
        compiled: Callable[[Recipe, list[Reference]], None],
        number: int,
        cut: Cut | None = None,
    ) -> Repeated:
        """Has an engine make the calls again, in their order; `ask` sends it requests, `compiled` has it compile.

        The engine may have any values before; with a cut, it has those that this one has kept, and the calls after it
        are made. `number` is that of the last call that it knows. Nothing is printed. Raises what `ask` raises,
        OutOfMemoryError too.
        """
        records, done = (self.records, 0) if cut is None else (self.records[cut.calls :], cut.calls)
        first = [] if cut is None else self._beginning(cut)
        all_values = [*first, *[value for record in records for value in record.values]]
        copies = [value for value in all_values if value.copy is not None]
        # The calls use the same memory in turn; copies have places of their own, where an engine may leave them.
        room = max([_room(record) for record in records], default=0)
        segment = storage.new_segment(
            room + sum([aligned(value.slots.nbytes) for value in copies]) + 1, "repeated calls"
        )
        plans: dict[int, int] = {}
        numbers, used = itertools.count(_FIRST_PLAN), room
        different = 0
        memory = storage.segments[segment]
        try:
            for position, record in enumerate(records, done + 1):
                recipe, confirmed, number = record.recipe, number, number + 1
                place = 0
                known = plans.get(id(record.recipe))
                if known is None:
                    compiled(recipe, _written(storage, segment, recipe.constants)[0])
                    plans[id(recipe)] = next(numbers)
                load = []
                values, first = [*first, *record.values], []
                for value in values:
                    if value.copy is None:
                        load.append([value.slots.number, _reference(value.block, value.slots)])
                        continue
                    memory.array(used, value.slots.dtype, value.slots.shape)[...] = value.copy
                    load.append([value.slots.number, [segment, used, value.slots.dtype, list(value.slots.shape)]])
                    used += aligned(value.slots.nbytes)
                fed, place = _written(storage, segment, record.feeds)
                outputs, arrays = [], []
                for nbytes, dtype, shape in recipe.outputs:
                    outputs.append([segment, place, dtype, list(shape)])
                    arrays.append(memory.array(place, dtype, shape))
                    place += aligned(nbytes)
                definition = {
                    "key": recipe.key,
                    "feeds": fed,
                    "slots": [slots.number for slots in recipe.slots],
                    "draws": recipe.draws,
                    "into": [],
                    "outputs": outputs,
                }
                ask(
                    {
                        "do": "run",
                        "plan": plans[id(recipe)],
                        "define": definition if known is None else None,
                        "load": load,
                        "sides": [],
                        "counts": record.counts,
                        "keep": number,
                        "confirmed": confirmed,
                    }
                )
                pairs = zip(record.outputs, arrays)
                same = all([before is None or same_bits(before, after) for before, after in pairs])
                for message, before in self._seen.get(position, ()):
                    reply = ask({**message, "confirmed": number})
                    # As text: NaN is what NaN was.
                    same = same and repr({name: reply[name] for name in before}) == repr(before)
                different += not same
            none: dict[str, Any] = {"programs": [], "variables": [], "segments": [], "timed": []}
            ask({"do": "release", "plans": list(plans.values()), **none, "confirmed": number})
        finally:
            storage.drop_segment(segment)
        return Repeated(len(records), different, number)


def _room(record: Record) -> int:
    """The bytes of the memory that a call takes in turn with others."""
    recipe = record.recipe
    run: int = sum([aligned(x.nbytes) for x in record.feeds]) + sum(
        [aligned(nbytes) for nbytes, _, _ in recipe.outputs]
    )
    constants: int = sum([aligned(x.nbytes) for x in recipe.constants])
    return max(run, constants)


def _written(storage: Storage, segment: int, arrays: list[Array]) -> tuple[list[Reference], int]:
    """The places of arrays copied to the beginning of a segment, and where the next one would be."""
    references, place = [], 0
    for array in arrays:
        storage.segments[segment].array(place, array.dtype.name, array.shape)[...] = array
        references.append([segment, place, array.dtype.name, list(array.shape)])
        place += aligned(array.nbytes)
    return references, place


def _reference(block: Block | None, slots: Slots) -> Reference:
    assert block is not None
    return [block.segment, block.offset, slots.dtype, list(slots.shape)]
