"""Decides from samples of a worker whether it makes progress while the kernel waits; reads nothing itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# What the threads of an idle engine use, in CPU seconds per second, and the resolution of the clocks.
IDLE_SHARE = 0.005
TICK = 0.01
# A process that waits for a lock polls it several times a second.
LOCKED_SHARE = 0.05

# Seconds without progress until the user is told: long where it may be a long step, short where it is certain.
REPORTED_AFTER = {"stopped": 3.0, "locked": 5.0, "still": 30.0}


class Sample(NamedTuple):
    """A worker at one moment.

    `at`: seconds, of a clock that is never set. `cpu`: the CPU seconds so far of each process of its group, by number.
    `stopped`: whether its own process is. `runs`: whether any thread of the group computes, is ready to, or waits for a
    disk. `device_works`: a device that can't be read does. `lock_owner`: who has the lock that it waits for, in words.
    """

    at: float
    cpu: Mapping[int, float]
    stopped: bool = False
    runs: bool = False
    device_works: bool = False
    lock_owner: str = ""

    @property
    def kind(self) -> str:
        """The kind of standstill that this would be: a key of REPORTED_AFTER."""
        return "stopped" if self.stopped else "locked" if self.lock_owner else "still"


def got_on(before: Sample, now: Sample) -> bool:
    """Whether any process of the worker has made progress between two samples."""
    if now.runs or (now.device_works and not now.stopped) or before.cpu.keys() != now.cpu.keys():
        # A process that has started or ended is progress too: compilers are short.
        return True
    gained = sum(now.cpu.values()) - sum(before.cpu.values())
    share = LOCKED_SHARE if now.kind == "locked" else IDLE_SHARE
    return gained > share * (now.at - before.at) + TICK


def standing_since(before: Sample, now: Sample) -> Sample:
    """The sample since which there is no progress, given a new one; `before`: the result for the samples until then."""
    return now if now.kind != before.kind or got_on(before, now) else before


def is_reported(since: Sample, now: Sample) -> bool:
    """Whether it has made no progress for so long that the user should know."""
    return now.at - since.at >= REPORTED_AFTER[now.kind]


def is_over(since: Sample, now: Sample, limit: float) -> bool:
    """Whether it is to be ended, after `limit` seconds (0: never). One that waits for a lock will get it."""
    return 0 < limit <= now.at - since.at and now.kind != "locked"
