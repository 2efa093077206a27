"""Judges from samples of a worker whether it gets on while the kernel waits for it; reads and says nothing itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# What the threads of an idle engine use, in CPU seconds for each second, and what clocks are wrong by.
IDLE_SHARE = 0.005
TICK = 0.01
# One that waits for a lock looks at it several times a second.
LOCKED_SHARE = 0.05

# So many seconds it stands still until its user is told: of a long step nobody is told, of what is certain soon.
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
        """Returns why it makes no progress: a key of REPORTED_AFTER; "" if it does."""
        return "stopped" if self.stopped else "locked" if self.lock_owner else "still"


def got_on(before: Sample, now: Sample) -> bool:
    """Whether anything of the worker's has made progress between two samples."""
    if now.runs or (now.device_works and not now.stopped) or before.cpu.keys() != now.cpu.keys():
        # A process that has started or ended is progress too: compilers are short.
        return True
    gained = sum(now.cpu.values()) - sum(before.cpu.values())
    share = LOCKED_SHARE if now.kind == "locked" else IDLE_SHARE
    return gained > share * (now.at - before.at) + TICK


def standing_since(before: Sample, now: Sample) -> Sample:
    """The sample since which it stands still, after a further one; `before`: that of the samples until then."""
    return now if now.kind != before.kind or got_on(before, now) else before


def is_reported(since: Sample, now: Sample) -> bool:
    """Whether it stands still for so long that its user is to know."""
    return now.at - since.at >= REPORTED_AFTER[now.kind]


def is_over(since: Sample, now: Sample, limit: float) -> bool:
    """Whether it is to be ended, at `limit` seconds (0: never). One that waits for a lock will get it."""
    return 0 < limit <= now.at - since.at and now.kind != "locked"
