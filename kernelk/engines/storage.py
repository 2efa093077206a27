"""Where variables live: committed values in shared memory that the kernel owns, two slots each, flipped at a commit."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array
from ..backends.serving.shared_memory import Segment, aligned

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
        self._numbers = itertools.count()

    def new_segment(self, size: int) -> int:
        """Creates a segment outside the allocator's hands and returns its number."""
        number = next(self._numbers)
        self.segments[number] = Segment.create(size)
        return number

    def drop_segment(self, number: int) -> None:
        """Gives a segment's memory back; hosts forget it at their next request."""
        # Cut short anywhere, it leaves no range to be handed out of a segment that is gone.
        self._free.pop(number, None)
        self.released_segments.append(number)
        self.segments.pop(number).close()

    def allocate(self, size: int) -> Block:
        """A block of at least `size` bytes."""
        size = aligned(size)
        for number, ranges in self._free.items():
            for i, (offset, length) in enumerate(ranges):
                if length >= size:
                    if length == size:
                        del ranges[i]
                    else:
                        ranges[i] = (offset + size, length - size)
                    return Block(number, offset, size)
        number = self.new_segment(max(_SEGMENT, size))
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

    @property
    def bytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self.segments.values())


class Slots:
    """One variable's committed value, and a second slot that the next value is written to before it counts."""

    __slots__ = ("_blocks", "_storage", "active", "dtype", "number", "shape", "version")

    _numbers = itertools.count()

    def __init__(self, storage: Storage, value: Array) -> None:
        self._storage = storage
        self.dtype = value.dtype.name
        self.shape = value.shape
        self.number = next(Slots._numbers)
        self.version = 0
        self.active = 0
        self._blocks: list[Block | None] = [storage.allocate(value.nbytes), None]
        self.view()[...] = value

    def _block(self, slot: int) -> Block:
        block = self._blocks[slot]
        if block is None:
            block = self._blocks[slot] = self._storage.allocate(
                int(np.dtype(self.dtype).itemsize * np.prod(self.shape))
            )
        return block

    @property
    def nbytes(self) -> int:
        """Bytes of the value."""
        return int(np.dtype(self.dtype).itemsize * np.prod(self.shape, dtype=np.int64))

    def view(self) -> Array:
        """The committed value, sharing memory: copy it before it leaves kernelk."""
        return self._storage.array(self._block(self.active), self.dtype, self.shape)

    def reference(self) -> Reference:
        """Where the committed value is."""
        block = self._block(self.active)
        return [block.segment, block.offset, self.dtype, list(self.shape)]

    def references(self) -> list[Reference]:
        """Where both slots are."""
        blocks = [self._block(0), self._block(1)]
        return [[block.segment, block.offset, self.dtype, list(self.shape)] for block in blocks]

    def write(self, value: Array) -> None:
        """Puts a value of the same shape and dtype into the second slot, where it counts once it is committed."""
        block = self._block(1 - self.active)
        self._storage.array(block, self.dtype, self.shape)[...] = value

    def release(self) -> None:
        """Gives both slots back."""
        # In this order: a block that is given back twice would be handed out twice.
        blocks, self._blocks = self._blocks, [None, None]
        for block in blocks:
            if block is not None:
                self._storage.release(block)


class Journal:
    """Commits the second slots of several variables: all of them or none, whatever comes in between.

    To commit is to set `unsettled` to what `flipped` has made, one assignment, and to `settle`. If an exception comes
    in between, whoever next uses the session settles it: to settle twice changes nothing.
    """

    __slots__ = ("unsettled",)

    def __init__(self) -> None:
        self.unsettled: list[tuple[Slots, int, int]] | None = None

    def settle(self) -> None:
        """Completes a commit. Called with the session's lock held, before any value is used."""
        if self.unsettled is not None:
            for slots, active, version in self.unsettled:
                slots.active = active
                slots.version = version
            self.unsettled = None


def flipped(variables: Iterable[Slots]) -> list[tuple[Slots, int, int]]:
    """What the variables' active slots and versions will be once the values in their second slots are committed."""
    return [(slots, 1 - slots.active, slots.version + 1) for slots in variables]


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
        """Starts a call that needs `size` bytes in all (the sum of `aligned` sizes)."""
        self._used = 0
        old = self.segment
        if old is None or self._storage.segments[old].size < size:
            # The old one goes last: where there is no memory for another, the session goes on with it.
            self.segment = self._storage.new_segment(max(1 << 20, size * 5 // 4))
            if old is not None:
                self._storage.drop_segment(old)

    def reserve(self, nbytes: int, dtype: str, shape: tuple[int, ...]) -> tuple[Reference, Array]:
        """The next array of this call: its reference and the ndarray itself."""
        assert self.segment is not None
        offset = self._used
        self._used += aligned(nbytes)
        array = self._storage.segments[self.segment].array(offset, dtype, shape)
        return [self.segment, offset, dtype, shape], array
