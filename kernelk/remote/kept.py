"""Checkpoints in the memory of a worker's machine: two segments, written in turn, and a page that says which counts.

Between `serving`, which has a worker copy its variables there, and the `keeper`, whose process holds the same memory.
None of it has a name: after the end of an ipyparallel engine another one takes it out of the keeper's descriptors, as
the system lets processes of one user. A checkpoint counts from the moment that its record is whole in the page; until
then the one before it does, which lies in the other segment.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import json
import math
import os
import platform
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..backends.bits import checksum
from ..backends.serving.shared_memory import Segment, aligned
from ..child_process import ChildProcess
from ..engines import forks, memory
from ..engines.storage import Reference
from . import keeper

# After the time at which the notebook was heard of comes the name of its host, and then the two records.
_HOME, _RECORDS = 64, 128
_HEAD = struct.Struct("<QII")  # which one it is, how long, its checksum
_LEAST_RECORD = 1 << 16

# What the system shows for the descriptors of such memory.
_LINK = "/memfd:kernelk"

# [number of the variable, offset, dtype, shape, checksum]
Place = list[Any]

Identity = list[int]  # a keeper's process, and its descriptors of the page and of both segments

_numbers = itertools.count()


class Checkpoint(NamedTuple):
    """A whole one: the cut that it is of, the segment's number, and the variables' places there."""

    cut: str
    segment: int
    places: list[Place]


class Kept:
    """The memory of one host's checkpoints. `numbers` are those of its segments, which no segment of a kernel has.

    `loaded`: whether an engine may use its memory in place, so that nothing is written there any more.
    """

    def __init__(self, home: str, lease: float, page: Segment, segments: list[Segment], identity: Identity) -> None:
        self.home = home
        self.lease = lease
        self.page = page
        self.segments = segments
        self.identity = identity
        first = -1 - 2 * next(_numbers)
        self.numbers = [first, first - 1]
        self.loaded = False
        self._process: ChildProcess[bytes] | None = None

    @classmethod
    def create(cls, home: str, lease: float, size: int, record: int) -> Kept:
        """Makes room for checkpoints of this size and records of that one, and starts the keeper, where one can be.

        Raises OutOfMemoryError, OSError.
        """
        memory.require(2 * size, f"checkpoints on {platform.node()}")
        made: list[Segment] = []
        try:
            made.append(Segment.create(_RECORDS + 2 * aligned(max(_LEAST_RECORD, 2 * record))))
            made += [Segment.create(size) for _ in range(2)]
            page, *segments = made
            page.memory[_HOME : _HOME + len(home)] = home.encode()
            kept = cls(home, lease, page, segments, [])
            kept.renew()
            kept._start_keeper()
        except BaseException:
            for segment in made:
                segment.close()
            raise
        return kept

    @classmethod
    def taken(cls, home: str, lease: float, identity: Identity) -> Kept | None:
        """The memory that a keeper on this machine holds for this host; None where there is no such keeper."""
        opened: list[Segment] = []
        try:
            pid, *files = (int(number) for number in identity)
            for file in files:
                path = f"/proc/{pid}/fd/{file}"
                # Another process may have the same number by now, and nothing else of one's is opened.
                if not os.readlink(path).startswith(_LINK):
                    raise ProcessLookupError
                fileno = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    opened.append(Segment(fileno, os.fstat(fileno).st_size))
                except BaseException:
                    os.close(fileno)
                    raise
            page, one, other = opened
            if page.memory[_HOME : _HOME + len(home)] != home.encode():
                raise ProcessLookupError
        except (OSError, ValueError):
            for segment in opened:
                segment.close()
            return None
        kept = cls(home, lease, page, [one, other], list(identity))
        kept.renew()
        return kept

    def _start_keeper(self) -> None:
        # What the system doesn't show can't be taken from it.
        if not os.path.isdir("/proc/self/fd"):
            return
        files = [segment.fileno for segment in (self.page, *self.segments)]
        # It goes on with this process's end, and isn't reached by its terminal's signals.
        self._process = ChildProcess(
            [sys.executable, "-I", "-S", str(Path(keeper.__file__)), str(self.page.fileno), str(self.lease)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=files,
            cwd="/",
            start_new_session=True,
        )
        self.identity = [self._process.pid, *files]

    @property
    def expired(self) -> bool:
        """Whether nothing was heard of its notebook for longer than the lease."""
        heard: float = keeper.HEARD.unpack_from(self.page.memory)[0]
        return time.monotonic() - heard > self.lease

    def renew(self) -> None:
        """Notes that its notebook is there."""
        keeper.HEARD.pack_into(self.page.memory, 0, time.monotonic())

    def fits(self, size: int, record: int) -> bool:
        """Whether the next checkpoint, of this size, can be written, and is held by a keeper where there can be one."""
        if self.loaded or (self._process is not None and self._process.poll() is not None):
            return False
        room: int = self.segments[0].size
        return size <= room and record <= self._room - _HEAD.size

    @property
    def _room(self) -> int:
        return int(self.page.size - _RECORDS) // 2

    @property
    def turn(self) -> int:
        """Which of the segments is written to next."""
        return (self._last()[0] + 1) % 2

    def _last(self) -> tuple[int, bytes]:
        """The number of the last whole record, and the record; 0 where there is none."""
        found = [self._record(which) for which in range(2)]
        return max(found, key=lambda record: record[0])

    def _record(self, which: int) -> tuple[int, bytes]:
        begin = _RECORDS + which * self._room
        number, length, check = _HEAD.unpack_from(self.page.memory, begin)
        if number % 2 != which or length > self._room - _HEAD.size:
            return 0, b""
        body: bytes = self.page.memory[begin + _HEAD.size : begin + _HEAD.size + length]
        return (number, body) if check == _check(number, body) else (0, b"")

    def reference(self, which: int, place: Place) -> Reference:
        """A place, as an executor knows it."""
        return [self.numbers[which], *place[1:4]]

    def commit(self, cut: str, places: list[Place]) -> None:
        """Makes what was written to the segment whose turn it is the checkpoint that counts."""
        number, which = self._last()[0] + 1, self.turn
        segment = self.segments[which]
        summed = [[*place[:4], checksum(segment.array(*place[1:4]))] for place in places]
        body = json.dumps([cut, summed], separators=(",", ":")).encode()
        begin = _RECORDS + which * self._room
        self.page.memory[begin + _HEAD.size : begin + _HEAD.size + len(body)] = body
        _HEAD.pack_into(self.page.memory, begin, number, len(body), _check(number, body))
        self.renew()

    def checkpoint(self) -> Checkpoint | None:
        """The one that counts, if there is one and all of its bytes are as they were written."""
        number, body = self._last()
        if not number:
            return None
        try:
            cut, places = json.loads(body)
            segment = self.segments[number % 2]
            for _, offset, dtype, shape, total in places:
                if checksum(segment.array(offset, dtype, shape)) != total:
                    return None
        except (TypeError, ValueError):
            return None
        return Checkpoint(str(cut), number % 2, places)

    def end(self) -> None:
        """Gives the memory back, and ends the keeper."""
        try:
            if self._process is not None:
                self._process.kill()
                self._process.wait(timeout=5)
            elif self.identity:
                self._end_taken()
        except (OSError, subprocess.TimeoutExpired):
            pass  # then its lease ends it
        for segment in (self.page, *self.segments):
            segment.close()

    def _end_taken(self) -> None:
        pid = self.identity[0]
        process = os.pidfd_open(pid)
        try:
            # By now, it may be another process's number.
            if (again := Kept.taken(self.home, self.lease, self.identity)) is not None:
                for segment in (again.page, *again.segments):
                    segment.close()
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)


def _check(number: int, body: bytes) -> int:
    return zlib.crc32(body, number & 0xFFFFFFFF)


def places(variables: list[list[Any]]) -> tuple[list[Place], int]:
    """Where variables, each [number, dtype, shape], lie one after the other, and the bytes of all."""
    found, used = [], 0
    for number, dtype, shape in variables:
        found.append([number, used, dtype, shape, 0])
        used += aligned(np.dtype(dtype).itemsize * math.prod(shape))
    return found, used


# Of this process's workers, by the names of their hosts; the newest comes last.
_known: dict[str, list[Kept]] = {}


def of(home: str, lease: float, identity: Identity | None) -> list[Kept]:
    """All memory that is known of a host's checkpoints here; that of the keeper which its kernel knows is among it."""
    known = _known.setdefault(home, [])
    if identity and all(kept.identity != identity for kept in known):
        taken = Kept.taken(home, lease, identity)
        if taken is not None:
            # Whoever has written there may not have ended, and still be writing.
            taken.loaded = True
            known.insert(0, taken)
    return known


def renew(home: str) -> None:
    """Notes that a host's kernel is still there."""
    for kept in _known.get(home, ()):
        kept.renew()


def forget(home: str, identity: Identity | None = None) -> None:
    """Gives up all of a host's checkpoints."""
    for kept in of(home, math.inf, identity):
        kept.end()
    del _known[home]


@atexit.register
def _forget_all() -> None:
    """An ipyparallel engine that ends in good order leaves nothing."""
    for home in list(_known) if forks.in_own_process() else ():
        forget(home)


def end_expired() -> bool:
    """Gives up what nobody has asked for in its lease's time; returns whether any is left."""
    for home, known in list(_known.items()):
        if all(kept.expired for kept in known):
            with contextlib.suppress(KeyError):
                forget(home)
    return bool(_known)
