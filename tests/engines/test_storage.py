"""Shared memory: blocks never overlap and all come back, and each variable's slots keep their values apart."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from helpers.arrays import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelk.backends.serving.shared_memory import ALIGNMENT, aligned
from kernelk.engines.storage import Journal, Slots, Storage, flipped


@settings(max_examples=60)
@given(data=st.data())
def test_blocks_never_overlap_and_all_come_back(data: st.DataObject) -> None:
    storage = Storage()
    held: list[Any] = []
    for _ in range(data.draw(st.integers(1, 60))):
        if held and data.draw(st.booleans()):
            storage.release(held.pop(data.draw(st.integers(0, len(held) - 1))))
        else:
            size = data.draw(st.sampled_from([0, 1, 63, 64, 65, 4096, 100_000]) | st.integers(0, 6 << 20))
            block = storage.allocate(size)
            assert block.size >= max(size, 1)
            assert block.size == aligned(size)
            assert block.offset % ALIGNMENT == 0
            held.append(block)
        ranges: dict[int, list[tuple[int, int]]] = {}
        for block in held:
            ranges.setdefault(block.segment, []).append((block.offset, block.offset + block.size))
        for number, spans in ranges.items():
            spans.sort()
            assert spans[-1][1] <= storage.segments[number].size
            assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        assert set(storage.segments) == set(ranges)
    for block in held:
        storage.release(block)
    assert storage.segments == {}
    assert storage.bytes == 0


@settings(max_examples=30)
@given(shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_slots_keep_their_values_apart(shapes: list[list[int]], seed: int) -> None:
    storage = Storage()
    rng = np.random.RandomState(seed)
    values = [np.asarray(rng.rand(*shape)) for shape in shapes]
    slots, journal = [Slots(storage, value) for value in values], Journal()
    for _ in range(20):
        i = rng.randint(len(slots))
        values[i] = np.asarray(rng.rand(*shapes[i]))
        slots[i].write(values[i])
        journal.unsettled = flipped([slots[i]])
        journal.settle()
        for slot, value in zip(slots, values):
            assert same_bits(np.array(slot.view()), value)
    for slot in slots:
        slot.release()
    assert storage.segments == {}
