"""The memory of checkpoints: which one counts, who may take it from its keeper, and when that ends."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import numpy as np
import pytest
from helpers.processes import alive, wait_until

from kernelk.remote import kept
from kernelk.remote.bandwidth import Bandwidth
from kernelk.remote.kept import Kept

HOME = "5" * 32


@pytest.fixture
def room() -> Iterator[Kept]:
    made = Kept.create(HOME, 600.0, 4096, 200)
    yield made
    made.end()


def write(where: Kept, cut: str, value: float) -> None:
    places, size = kept.places([[3, "float32", [5, 7]], [4, "int64", []], [9, "float64", [0, 2]]])
    assert size <= 4096
    for _, offset, dtype, shape, _ in places:
        where.segments[where.turn].array(offset, dtype, shape)[...] = value
    where.commit(cut, places)


def read(where: Kept | None) -> tuple[str, list[float]]:
    found = where.checkpoint() if where is not None else None
    if where is None or found is None:
        return "", []
    arrays = [where.segments[found.segment].array(*place[1:4]) for place in found.places]
    return found.cut, sorted({float(x) for array in arrays for x in np.ravel(array)})


def test_the_last_whole_one_counts(room: Kept) -> None:
    assert read(room) == ("", [])
    for cut in range(5):
        write(room, f"cut {cut}", cut)
        assert read(room) == (f"cut {cut}", [cut])
    # The next one is half written.
    room.segments[room.turn].memory[:] = b"\xff" * room.segments[0].size
    assert read(room) == ("cut 4", [4])


@pytest.mark.parametrize("which", [0, 1])
def test_a_record_that_is_not_whole_is_none(room: Kept, which: int) -> None:
    write(room, "first", 1)
    write(room, "second", 2)
    begin = kept._RECORDS + which * room._room
    for place in (begin, begin + 8, begin + kept._HEAD.size + 3):
        room.page.memory[place] ^= 1
        assert read(room)[0] == ("first" if which == 0 else "second")
        room.page.memory[place] ^= 1
    assert read(room) == ("second", [2])


def test_bytes_that_are_others_are_none(room: Kept) -> None:
    write(room, "first", 1)
    found = room.checkpoint()
    assert found is not None
    room.segments[found.segment].memory[70] ^= 4
    assert read(room) == ("", [])


def test_what_grows_needs_another(room: Kept) -> None:
    assert room.fits(4096, 60_000)
    assert not room.fits(4097, 60_000)
    assert not room.fits(4096, 70_000)
    room.loaded = True
    assert not room.fits(1, 1)


def test_only_whoever_knows_its_name_takes_it_from_the_keeper(room: Kept) -> None:
    write(room, "first", 1)
    pid, *files = room.identity
    taken = Kept.taken(HOME, 600.0, room.identity)
    assert read(taken) == ("first", [1])
    write(room, "second", 2)
    assert read(taken) == ("second", [2])
    assert Kept.taken("6" * 32, 600.0, room.identity) is None
    for wrong in ([pid], [pid, *files[:2]], [pid, 0, 1, 2], [os.getpid(), 0, 1, 2], [2**30, *files], [pid, *files, 3]):
        assert Kept.taken(HOME, 600.0, wrong) is None
    assert taken is not None
    # Another one ends the keeper, too.
    taken.end()
    assert wait_until(lambda: not alive(pid))
    assert Kept.taken(HOME, 600.0, room.identity) is None
    assert not room.fits(1, 1)
    assert read(room) == ("second", [2])


def test_a_keeper_ends_when_nobody_renews_its_lease() -> None:
    short = Kept.create(HOME, 0.5, 4096, 200)
    pid = short.identity[0]
    assert wait_until(lambda: not alive(pid))
    assert short.expired
    short.end()


def test_the_bandwidth_is_that_of_what_was_fetched_last() -> None:
    network = Bandwidth()
    assert network.seconds(1000) is None
    network.note("run", 0, 0.02)
    network.note("load", 10_000_000, 2.02)
    assert math.isclose(network.rate, 5e6)
    # Too small to tell.
    network.note("fetch", 1000, 0.03)
    assert math.isclose(network.rate, 5e6)
    network.note("fetch", 1_000_000, 1.02)
    assert math.isclose(network.seconds(3_000_000) or 0, 3.02)
    network.note("load", 1_000_000, 0.12)
    assert math.isclose(network.rate, 1e6)
