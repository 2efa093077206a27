"""What an engine in the kernel's own process goes back to when its device is lost: the values of the last checkpoint.

Between `LocalHost`, whose engine has the newest values of variables alone, and `session.calls`, which puts these back.
In a worker the calls since the checkpoint are repeated instead: see `history`.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import config
from ..arrays import Array
from .history import History
from .storage import Slots

if TYPE_CHECKING:
    from ..program.program import Program

# Fetching all that an engine has alone takes at most this part (1/50) of the calls' own time.
CHECKPOINT_FACTOR = 50


class Checkpoint:
    """The variables that `calls` calls since then have changed, as they were before, in memory that nobody writes to.

    `seconds` is what those calls took.
    """

    def __init__(self, taken: float = 0.0) -> None:
        """`taken`: the seconds that it took to fetch the values."""
        self.calls = 0
        self.seconds = 0.0
        self._taken = taken
        self._values = History()
        self._versions: dict[int, int] = {}  # by the variable's number, as the last of these calls has left it
        self._programs: weakref.WeakSet[Program] = weakref.WeakSet()  # whose variables are all here
        self._last = 0

    @property
    def due(self) -> bool:
        """Whether it is time for the next one."""
        return self.seconds > max(config.LIMITS.repeat_seconds, CHECKPOINT_FACTOR * self._taken)

    def keep(self, program: Program) -> None:
        """Keeps the present values of the variables that a call is going to change."""
        if program in self._programs:
            return
        for slot, _ in program.updates:
            slots = program.slots[slot].slots
            if slots.holder is None and not self._values.has(slots):
                self._values.value(slots)
        self._programs.add(program)

    def changed(self, slots: Slots, version: int, call: int, seconds: float) -> None:
        """Notes that a call, by its number, has changed a variable; to note it twice changes nothing."""
        self._versions[slots.number] = version
        if call != self._last:
            self._last = call
            self.calls += 1
            self.seconds += seconds

    def orphan(self, number: int) -> None:
        """Notes that a variable is gone."""
        self._values.orphan(number)

    def before(self) -> list[tuple[Slots, Array]]:
        """The variables that the calls have changed, and nobody has set since, with their values from before them."""
        return [
            (slots, value)
            for slots, value in self._values.first_values(self._versions)
            if slots.holder is not None or slots.version == self._versions[slots.number]
        ]

    def next(self, seconds: float | None) -> Checkpoint:
        """The one after it, whose values took so long to fetch; None: as long as these."""
        return Checkpoint(self._taken if seconds is None else seconds)

    def clear(self) -> None:
        """Gives the memory back."""
        self._values.clear()


def lost(calls: int, variables: Sequence[object]) -> str:
    """What the user is told of calls that can't be had back."""
    if not calls:
        return "nothing is lost"
    were = (
        "1 call since the last checkpoint is lost"
        if calls == 1
        else f"{calls} calls since the last checkpoint are lost"
    )
    count = len(variables)
    return f"{were}: {count} variable{' has its value' if count == 1 else 's have their values'} from before"
