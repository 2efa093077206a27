"""Copies between the host and a GPU, with the processor's memory in its place: how many waits, whose memory, what bits.

The worker's own code attaches and releases the segments; the library's calls that lock their pages are stand-ins.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from typing import Any

import numpy as np
import pytest
from helpers.arrays import DTYPES
from helpers.engines import absent
from helpers.far_devices import FAR, Counted
from island_ownership import CHECKS, Engine, aligned, bits, handed_on

from kernelk.backends import lowering
from kernelk.backends.serving.executor import Executor
from kernelk.backends.serving.shared_memory import Segment
from kernelk.backends.serving.shared_memory import aligned as rounded
from kernelk.backends.serving.worker import _attached

# What a promise about a processor's memory says
OF_A_PROCESSOR = {"a_slot_is_shared_also_where_it_is_read_only"}


@functools.cache
def made(name: str) -> tuple[Any, Counted]:
    if importlib.util.find_spec(name) is None:
        absent(name, "it is not installed")
    counted = Counted()
    return FAR[name](counted)({"device": "cpu:0"}), counted


@pytest.fixture(params=FAR)
def far(request: pytest.FixtureRequest) -> tuple[Any, Counted]:
    """A backend on such a GPU, and what it is told."""
    backend, counted = made(request.param)
    counted.reset()
    return backend, counted


def many() -> list[np.ndarray]:
    """Values of all dtypes and of many shapes."""
    random = np.random.default_rng(0)
    found = [random.integers(0, 2, (3, n + 1)).astype(dtype) for n, dtype in enumerate(DTYPES)]
    found += [np.zeros((0, 3), "float32"), np.asarray(2.0**-1074), np.array([np.nan, -0.0, np.inf], "float32")]
    return [aligned(array) for array in [*found, *(random.standard_normal((50, 7)) for _ in range(80))]]


@pytest.mark.parametrize("check", [name for name in CHECKS if name not in OF_A_PROCESSOR])
def test_a_gpu_keeps_the_promises_about_memory(far: tuple[Any, Counted], check: str) -> None:
    CHECKS[check](Engine(far[0], lowering))


def test_many_values_are_moved_with_one_wait(far: tuple[Any, Counted]) -> None:
    backend, counted = far
    arrays = many()
    wanted = [bits(array) for array in arrays]
    values = backend.load_all(arrays)
    assert counted.waits == 1
    # Afterwards nobody reads the memory that they came from.
    for array in arrays:
        array[...] = 0
    for move in (backend.read_all, backend.commit_all):
        counted.waits = 0
        places = [np.ones_like(array) for array in arrays]
        move(values, places)
        assert [bits(place) for place in places] == wanted
        assert counted.waits <= 1
        # What is handed out is the user's own.
        for place in places:
            place[...] = 1
    assert [bits(backend.to_numpy(value)) for value in values] == wanted


def test_a_value_that_reads_back_otherwise_is_named(far: tuple[Any, Counted], monkeypatch: pytest.MonkeyPatch) -> None:
    backend, counted = far
    arrays = many()
    values = backend.load_all(arrays)
    counted.waits = 0
    assert backend.differing(values, arrays) == []
    assert counted.waits <= 1
    # One bit of each of some, an other dtype and an other shape; in pieces that begin and end within values.
    other = {5, 30, 31, len(arrays) - 1}
    for position in other:
        arrays[position].reshape(-1).view("uint8")[-1] ^= 1
    arrays[40] = arrays[40].view("int64")
    arrays[41] = arrays[41].reshape(7, 50)
    for module in ("torch", "jax"):
        for name in ("PIECE_BYTES", "AHEAD_BYTES"):
            monkeypatch.setattr(f"kernelk.backends.{module}.gpu.{name}", 999, raising=False)
    assert backend.differing(values, arrays) == sorted({*other, 40, 41})
    assert backend.differing([], []) == []


def test_a_value_of_another_shape_or_dtype_is_no_result(far: tuple[Any, Counted]) -> None:
    backend, _ = far
    (value,) = backend.load_all([np.ones((2, 3), "float32")])
    for place in (np.zeros((3, 2), "float32"), np.zeros((2, 3), "float64")):
        with pytest.raises(RuntimeError, match=r"the engine returned float32\(2, 3\), but the graph promises"):
            backend.read_all([value], [place])
        assert not place.any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_new_value_is_a_view_of_a_tensor_that_was_fed_where_it_lies(far: tuple[Any, Counted], dtype: str) -> None:
    backend, _ = far
    run, feed, slots, wanted = handed_on(Engine(backend, lowering), dtype)
    lent = importlib.import_module("torch").from_numpy(aligned(feed))
    given = backend.borrow(lent)
    assert np.shares_memory(backend.to_numpy(given), lent.numpy())
    into = [np.zeros(6, dtype) for _ in wanted]
    state = backend.load_all(slots)
    _, new = run([given], state, [], into) if backend.writes_in_place else run([given], state, [])
    kept = backend.commit_all(new, into)
    lent.numpy()[...] = np.logical_not(feed) if dtype == "bool" else 77
    for value, place, expected in zip(kept, into, wanted):
        assert bits(backend.to_numpy(value)) == bits(place) == bits(expected)


def test_a_loaded_value_needs_no_copy_before_it_is_overwritten(far: tuple[Any, Counted]) -> None:
    """The executor's way of a swap and of the calls after it, whose new values lie over the old ones."""
    backend, _ = far
    executor = Executor(backend)
    executor.attach(0, Segment(None, 4096))
    place = [0, 0, "float32", [4]]
    executor.array(place)[...] = 3
    assert executor.handle({"do": "load", "variables": [[7, place]], "verify": True}) == {"different": []}
    assert executor.own == {7}
    executor.array(place)[...] = 0
    executor.handle({"do": "fetch", "variables": [[7, place]]})
    assert executor.array(place).tolist() == [3] * 4
    executor.handle({"do": "release", "variables": [], "plans": [], "programs": [], "segments": [0], "timed": []})


def test_each_segments_pages_are_locked_once_and_unlocked_before_it_is_unmapped(far: tuple[Any, Counted]) -> None:
    backend, counted = far
    executor = Executor(backend)
    blocks = [Segment.create(rounded(5000)) for _ in range(3)]
    files = [os.dup(block.fileno) for block in blocks]
    assert _attached(executor, [[number, block.size] for number, block in enumerate(blocks)], files) == {}
    locked = [address for _, address in counted.pages]
    assert [what for what, _ in counted.pages] == ["lock"] * 3
    assert len(set(locked)) == 3
    executor.handle({"do": "load", "variables": [[1, [0, 0, "float32", [8]]]], "verify": True})
    assert len(counted.pages) == 3
    for number, address in enumerate(locked):
        release = {"do": "release", "variables": [], "plans": [], "programs": [], "segments": [number], "timed": []}
        held = executor.segments[number].memory
        executor.handle(release)
        assert counted.pages[-1] == ("unlock", address)
        assert mapped(address)
        del held
        assert not mapped(address)


def test_memory_that_cant_be_locked_is_used_as_it_is(far: tuple[Any, Counted]) -> None:
    backend, counted = far
    executor = Executor(backend)
    counted.refuses = True
    block = Segment.create(4096)
    assert _attached(executor, [[0, 4096]], [os.dup(block.fileno)]) == {}
    block.array(0, "float32", (2,))[...] = [1, 2]
    executor.handle({"do": "load", "variables": [[1, [0, 0, "float32", [2]]]], "verify": True})
    executor.handle({"do": "fetch", "variables": [[1, [0, 64, "float32", [2]]]]})
    assert block.array(64, "float32", (2,)).tolist() == [1, 2]
    release = {"do": "release", "variables": [], "plans": [], "programs": [], "segments": [0], "timed": []}
    assert executor.handle(release) == {}
    assert counted.pages == []


def test_what_cant_be_unlocked_stays_mapped(far: tuple[Any, Counted]) -> None:
    backend, counted = far
    executor = Executor(backend)
    block = Segment.create(4096)
    assert _attached(executor, [[0, 4096]], [os.dup(block.fileno)]) == {}
    ((_, address),) = counted.pages
    counted.refuses = True
    executor.handle({"do": "release", "variables": [], "plans": [], "programs": [], "segments": [0], "timed": []})
    assert mapped(address)
    counted.refuses = False
    backend.close()
    assert not mapped(address)


def mapped(address: int) -> bool:
    """Whether there is memory at this address."""
    with open("/proc/self/maps") as lines:
        bounds = [[int(bound, 16) for bound in line.split()[0].split("-")] for line in lines]
    return any(start <= address < end for start, end in bounds)
