"""Holds the variables' committed values, in shared memory that the kernel owns: two slots each, flipped at a commit.

A forked child maps the same memory. From the fork on, neither side writes to what was there before it: the next value
of a variable goes to new memory, and the child keeps reading the values from the moment of the fork. Likewise nobody
writes to a value that calls may have to be repeated from: it is protected, and the next one goes elsewhere.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..arrays import Array
from ..backends.serving.shared_memory import Segment, aligned
from ..errors import OutOfMemoryError
from . import forks, memory

Reference = list[Any]  # [segment, offset, dtype, shape], as the executor reads it

_SEGMENT = 16 << 20


class Block(NamedTuple):
    """A range of bytes in a segment."""

    segment: int
    offset: int
    size: int


class Storage:
    """Hands out blocks of shared memory: first fit, neighbours merged when given back."""

    def __init__(self) -> None:
        self.segments: dict[int, Segment] = {}
        self.released_segments: deque[int] = deque()
        self._free: dict[int, list[tuple[int, int]]] = {}  # segment -> sorted (offset, size)
        self._next = 0
        self._first = 0  # those before it are from before a fork
        self._forks = forks.COUNT
        self.moved: list[Slots] = []  # whose committed values lie beside their slots
        self.replaced = False  # whether a slot's block isn't the one any more that was told to an engine

    def new_segment(self, size: int, what: str = "a session") -> int:
        """Creates a segment outside the allocator's hands and returns its number. Raises OutOfMemoryError."""
        memory.require(size, what)
        try:
            segment = Segment.create(size)
        except (OSError, MemoryError, OverflowError, ValueError) as error:
            raise memory.refused(size, what, error) from error
        number = self._next
        self._next += 1
        self.segments[number] = segment
        return number

    def read_only(self, segment: int) -> bool:
        """Whether another process may read there, since there was a fork after the segment was made."""
        if self._forks != forks.COUNT:
            # In this order: another thread may fork in between.
            self._forks = forks.COUNT
            self._first = self._next
        return segment < self._first

    @property
    def read_only_count(self) -> int:
        """The number of variables' segments that are now read-only."""
        return sum(self.read_only(number) for number in self._free)

    def release_moved(self) -> None:
        """Gives back the memory of values beside their slots that are no longer the committed ones."""
        self.moved = [slots for slots in self.moved if not slots.release_kept()]

    def drop_segment(self, number: int) -> None:
        """Gives a segment's memory back; hosts forget it at their next request."""
        # Cut short anywhere, it leaves no range to be handed out of a segment that is gone.
        self._free.pop(number, None)
        self.released_segments.append(number)
        self.segments.pop(number).close()

    def allocate(self, size: int, what: str = "a variable") -> Block:
        """A block of at least `size` bytes. Raises OutOfMemoryError."""
        size = aligned(size)
        for number, ranges in self._free.items():
            if self.read_only(number):
                continue
            for i, (offset, length) in enumerate(ranges):
                if length >= size:
                    if length == size:
                        del ranges[i]
                    else:
                        ranges[i] = (offset + size, length - size)
                    return Block(number, offset, size)
        number = self.new_segment(max(_SEGMENT, size), what)
        rest = self.segments[number].size - size
        self._free[number] = [(size, rest)] if rest else []
        return Block(number, 0, size)

    def release(self, block: Block) -> None:
        """Takes a block back; a segment that is wholly free is returned to the system."""
        ranges = self._free[block.segment]
        ranges.append((block.offset, block.size))
        ranges.sort()
        merged: list[tuple[int, int]] = []
        for offset, size in ranges:
            if merged and sum(merged[-1]) == offset:
                merged[-1] = (merged[-1][0], merged[-1][1] + size)
            else:
                merged.append((offset, size))
        self._free[block.segment] = merged
        if merged[0] == (0, self.segments[block.segment].size):
            self.drop_segment(block.segment)

    def array(self, block: Block, dtype: str, shape: Iterable[int]) -> Array:
        """The ndarray in this block."""
        found: Array = self.segments[block.segment].array(block.offset, dtype, tuple(shape))
        return found

    def at(self, reference: Reference) -> Array:
        """The ndarray behind a reference."""
        segment, offset, dtype, shape = reference
        found: Array = self.segments[segment].array(offset, dtype, tuple(shape))
        return found

    @property
    def bytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self.segments.values())


class Slots:
    """One variable's committed value, and a second slot that the next value is written to before it counts.

    After a fork, or where it is protected, the committed value stays where it is, beside both slots, until the next one
    is committed.
    """

    __slots__ = (
        "_blocks",
        "_kept",
        "_protected",
        "_released",
        "_storage",
        "active",
        "dtype",
        "holder",
        "number",
        "shape",
        "version",
    )

    _numbers = itertools.count()

    def __init__(self, storage: Storage, value: Array, dtype: str | None = None) -> None:
        """`value` is cast to `dtype` in its place. Raises OutOfMemoryError."""
        self._storage = storage
        self.dtype = dtype or value.dtype.name
        self.shape = value.shape
        self.number = next(Slots._numbers)
        self.version = 0
        self.active = 0
        # The host whose engine alone has the newest value; None where it lies here.
        self.holder: Holder | None = None
        self._blocks: list[Block | None] = [storage.allocate(self.nbytes), None]
        # The committed value's block where it is beside both slots, as long as the value is of that version.
        self._kept: tuple[int, Block] | None = None
        self._protected: dict[Block, int] = {}  # how many times each; none of them is a slot's
        self._released = False
        self.view()[...] = value

    def _committed(self) -> Block:
        kept = self._kept
        block = self._blocks[self.active] if kept is None or kept[0] != self.version else kept[1]
        assert block is not None
        return block

    def _writable(self, slot: int) -> Block:
        """The slot's block, another one where the one it had is only read any more."""
        block = self._blocks[slot]
        if block is not None and not self._storage.read_only(block.segment):
            return block
        made = self._storage.allocate(self.nbytes)
        # In this order: cut short anywhere, the committed value is found. One that is outdated needn't be.
        committed = self._committed() if self.holder is None else None
        if block is not None and block == committed:
            self.release_kept()
            self._kept = (self.version, committed)
            self._storage.moved.append(self)
        self._blocks[slot] = made
        if block is not None:
            self._storage.replaced = True
            if block != committed:
                self._storage.release(block)
        return made

    def release_kept(self) -> bool:
        """Gives back the block of a value beside the slots, once another one is committed; whether none is left."""
        kept = self._kept
        if kept is not None and kept[0] != self.version:
            self._kept = None
            if kept[1] not in self._protected:
                self._storage.release(kept[1])
        return self._kept is None

    def protect(self) -> Block:
        """Leaves the committed value, which must have been fetched, in its block until `unprotect`."""
        assert self.holder is None
        block = self._committed()
        self._protected[block] = self._protected.get(block, 0) + 1
        if self._blocks[self.active] == block:
            self.release_kept()
            self._storage.moved.append(self)
            self._storage.replaced = True
            # On one line: cut short anywhere, the committed value is found, and in one place.
            self._kept, self._blocks[self.active] = (self.version, block), None
        return block

    def unprotect(self, block: Block) -> None:
        """Ends what `protect` has begun; the block then serves as a slot again, or is given back."""
        left = self._protected.pop(block) - 1
        if left:
            self._protected[block] = left
            return
        usable = not self._released and not self._storage.read_only(block.segment)
        if self._kept is not None and self._kept[1] == block and not self._released:
            if self._kept[0] == self.version and usable and self._blocks[self.active] is None:
                self._kept, self._blocks[self.active] = None, block
            # Otherwise it is given back once another value is committed.
        elif usable and None in self._blocks:
            # Memory that was written to before is written to ten times as fast as fresh memory.
            self._blocks[self._blocks.index(None)] = block
        else:
            self._storage.release(block)

    @property
    def nbytes(self) -> int:
        """Bytes of the value."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    @property
    def missing_bytes(self) -> int:
        """The number of bytes that `write` will allocate."""
        block = self._blocks[1 - self.active]
        return self.nbytes if block is None or self._storage.read_only(block.segment) else 0

    def view(self) -> Array:
        """The committed value, sharing memory: copy it before it leaves kernelk. It must have been fetched."""
        assert self.holder is None
        return self._storage.array(self._committed(), self.dtype, self.shape)

    def array(self, block: Block | None) -> Array:
        """The value in a block that `protect` has returned."""
        assert block is not None
        return self._storage.array(block, self.dtype, self.shape)

    @property
    def is_released(self) -> bool:
        """Whether its memory was given back."""
        return self._released

    def reference(self) -> Reference:
        """The location of the committed value, which must have been fetched."""
        assert self.holder is None
        block = self._committed()
        return [block.segment, block.offset, self.dtype, list(self.shape)]

    def references(self) -> list[Reference]:
        """The locations of both slots, which are written to in turn. Raises OutOfMemoryError."""
        blocks = [self._writable(0), self._writable(1)]
        return [[block.segment, block.offset, self.dtype, list(self.shape)] for block in blocks]

    def destination(self) -> Reference:
        """Where the newest value, which an engine has alone, is to be written: in place of the one that is outdated."""
        assert self.holder is not None
        block = self._writable(self.outdated)
        return [block.segment, block.offset, self.dtype, list(self.shape)]

    @property
    def outdated(self) -> int:
        """The slot that `destination` is of: one that has memory, if any has."""
        other = 1 - self.active
        return other if self._blocks[self.active] is None and self._blocks[other] is not None else self.active

    def write(self, value: Array) -> None:
        """Puts a value of the same shape, cast to the dtype, into the second slot: it counts once it is committed."""
        block = self._writable(1 - self.active)
        self._storage.array(block, self.dtype, self.shape)[...] = value

    @property
    def is_read_only(self) -> bool:
        """Whether the committed value lies in memory from before a fork."""
        return self._storage.read_only(self._committed().segment)

    def release_spare(self) -> None:
        """Gives the second slot back where it is from before a fork: nobody writes there any more."""
        block = self._blocks[1 - self.active]
        if block is not None and self._storage.read_only(block.segment):
            self._blocks[1 - self.active] = None
            self._storage.release(block)

    def release(self) -> None:
        """Gives all its memory back."""
        # In this order: a block that is given back twice would be handed out twice.
        self._released = True
        blocks, self._blocks = {*self._blocks, self._kept and self._kept[1]}, [None, None]
        self._kept = None
        for block in blocks:
            if block is not None and block not in self._protected:
                self._storage.release(block)


class Counting(Protocol):
    """What counts the evaluations of a draw."""

    value: int


class Journal:
    """Commits the second slots of several variables, and the draws of a call: all of them or none, whatever interrupts.

    To commit is to set `unsettled` to what `flipped` has made, one assignment, and to `settle`; `drawn` has the counts
    of draws with their new values. If an exception comes in between, whoever next uses the session settles it: to
    settle twice changes nothing.
    """

    __slots__ = ("drawn", "unsettled")

    def __init__(self) -> None:
        self.unsettled: list[Change] | None = None
        self.drawn: Sequence[tuple[Counting, int]] | None = None

    def settle(self) -> None:
        """Completes a commit. Called with the session's lock held, before any value is used."""
        if self.unsettled is not None:
            for slots, active, version, holder in self.unsettled:
                if slots.holder is not None and slots.holder is not holder:
                    slots.holder.let_go_of(slots)
                if holder is not None:
                    holder.hold(slots, version)
                slots.active = active
                slots.version = version
                slots.holder = holder
            self.unsettled = None
        if self.drawn is not None:
            for count, value in self.drawn:
                count.value = value
            self.drawn = None


class Holder(Protocol):
    """A host whose engine may have variables' newest values alone."""

    def hold(self, slots: Slots, version: int) -> None:
        """Notes that the last call's value is the newest, and that it lies with the engine alone."""

    def let_go_of(self, slots: Slots) -> None:
        """Notes that the newest value lies with the kernel."""


Change = tuple[Slots, int, int, "Holder | None"]


def flipped(variables: Iterable[Slots]) -> list[Change]:
    """The variables as they will be once the values in their second slots are committed."""
    return [(slots, 1 - slots.active, slots.version + 1, None) for slots in variables]


def kept(variables: Iterable[Slots], holder: Holder) -> list[Change]:
    """The variables as they will be once the values that the last call has left with the engine are committed."""
    return [(slots, slots.active, slots.version + 1, holder) for slots in variables]


def fetched(variables: Iterable[Slots]) -> list[Change]:
    """The variables as they will be once the values that were written to `destination` count."""
    return [(slots, slots.outdated, slots.version, None) for slots in variables]


def replaced(variables: Iterable[Slots]) -> list[Change]:
    """The variables as they will be once other values count that were written to `destination`, or by `write`."""
    return [
        (slots, 1 - slots.active if slots.holder is None else slots.outdated, slots.version + 1, None)
        for slots in variables
    ]


class Transfer:
    """The reused block that a call's feeds and results lie in; it grows to the largest call."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.segment: int | None = None
        self._used = 0

    def holds(self, segment: int | None) -> bool:
        """Whether places in this segment are still good."""
        return segment == self.segment

    def begin(self, size: int) -> None:
        """Starts a call that needs `size` bytes in all (the sum of `aligned` sizes). Raises OutOfMemoryError."""
        self._used = 0
        old = self.segment
        if old is None or self._storage.segments[old].size < size:
            what = "a call's feeds and results"
            try:
                # Some more than is needed, so that not each call that is a little larger takes another one.
                made = self._storage.new_segment(max(1 << 20, size * 5 // 4), what)
            except OutOfMemoryError:
                # It may fit without what the largest call so far has left.
                self.let_go()
                old, made = None, self._storage.new_segment(size, what)
            # The old one is removed last: whatever interrupts, the session has one of them.
            self.segment = made
            if old is not None:
                self._storage.drop_segment(old)

    def let_go(self) -> None:
        """Gives the memory back; the next call takes what it needs."""
        number, self.segment = self.segment, None
        if number is not None and number in self._storage.segments:
            self._storage.drop_segment(number)

    def reserve(self, nbytes: int, dtype: str, shape: tuple[int, ...]) -> tuple[Reference, Array]:
        """The next array of this call: its reference and the ndarray itself."""
        assert self.segment is not None
        offset = self._used
        self._used += aligned(nbytes)
        array = self._storage.segments[self.segment].array(offset, dtype, shape)
        return [self.segment, offset, dtype, shape], array
