"""A host whose engine may have variables' newest values alone: it notes the calls, and another engine repeats them.

Between `session.calls`, which asks what may stay with the engine, and `worker_host`, which knows how a worker ends.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .. import config
from ..arrays import Array
from ..backends.bits import checksum
from ..errors import KernelKError, one_line
from .checkpoint import CHECKPOINT_FACTOR
from .descriptors import Engine
from .history import Cut, History, Recipe, Record, told
from .host import Host
from .storage import Reference, Slots, Storage

if TYPE_CHECKING:
    from ..program.program import Program

# The fiftieth part is a hundredth where so many times the new values' bytes, and so many bytes at least, are held to
# repeat calls: that stays little then, and its memory is used again soon. To write to fresh memory takes several times
# as long.
EARLIER_FACTOR = 100
MUCH, MUCH_BYTES = 4, 16 << 20


# Larger values that somebody has read aren't compared after a repetition.
MOST_COMPARED_BYTES = 1 << 24


class KeepingHost(Host):
    """A host that can be started again, with what it takes to compute again what the last engine had alone."""

    def __init__(self, engine: Engine, storage: Storage, options: dict[str, Any] | None = None) -> None:
        super().__init__(engine, storage, options)
        self.history = History()
        self.record: Record | None = None  # the call that is committed next, or was last
        self.last_end = ""  # how the engine before this one ended
        self.updating = 0  # the bytes of all new values of the call under way
        self._checkpoint_seconds = 0.0
        self._due = False  # whether a checkpoint is due, after which calls go on as before
        self._lost = False
        self._torn = False  # whether a call that was cut short is to blame, and the engine still runs

    @property
    def lost(self) -> bool:
        if self.overwrites and self.uncommitted is not None:
            # It may have overwritten the committed values of these, and nobody knows how far it came.
            self.forget(self.uncommitted)
            self.uncommitted = None
            self._torn = not self._lost
            self._lost = True
        return self._lost and bool(self.holding)

    def _end(self, words: str) -> None:
        """Ends the engine, whatever its state; its next use starts another one."""
        raise NotImplementedError

    def notify(self, text: str) -> None:
        """Shows the user a line."""
        raise NotImplementedError

    @property
    def checkpoint_interval(self) -> float:
        """After so many seconds of calls all newest values are fetched."""
        return max(config.LIMITS.repeat_seconds, CHECKPOINT_FACTOR * self._checkpoint_seconds)

    def restored(self) -> Cut | None:
        """Has the engine load a later checkpoint than the kernel's own, if there is one, and returns its cut."""
        return None

    def since(self, cut: Cut | None = None) -> str:
        """What calls are repeated from, in words."""
        return "the last checkpoint"

    def silence(self) -> None:
        """Forgets what the engine has printed and warned of up to now: it was shown when the calls were first made."""
        raise NotImplementedError

    def _forget(self) -> None:
        super()._forget()
        self._lost, self._torn = bool(self.holding), False

    def release(self, variables: list[int], segments: list[int]) -> None:
        for number in variables:
            self.history.orphan(number)
        super().release(variables, segments)
        if not self.holding:
            self.fetched(None)

    def keeps(self, program: Program, feeds: list[Array]) -> bool:
        self.updating = program.updated_bytes
        if self.holding:
            return True
        if self.record is not None or self._lost:
            # All has been set or fetched since.
            self.fetched(None)
        large = program.updated_bytes > self.commit_bytes
        return large and sum([feed.nbytes for feed in feeds]) <= config.LIMITS.repeat_bytes

    def must_fetch(self, feeds: list[Array]) -> bool:
        history = self.history
        most = self.checkpoint_interval
        if history.nbytes > max(MUCH * self.updating, MUCH_BYTES):
            most = min(most, EARLIER_FACTOR * self._checkpoint_seconds)
        large = history.nbytes + sum([feed.nbytes for feed in feeds]) > config.LIMITS.repeat_bytes
        self._due = large or history.seconds > most
        return self._due

    def fetched(self, seconds: float | None) -> None:
        if seconds is not None:
            self._checkpoint_seconds = seconds
        self.record = None
        self.history.clear(reuse=self._due)
        self._due = self._lost = self._torn = False

    def read(self, variables: list[Slots]) -> None:
        small = [slots for slots in variables if slots.nbytes <= MOST_COMPARED_BYTES]
        if small:
            sums = [checksum(slots.view()) for slots in small]
            self.seen({"do": "checksum", "variables": [slots.number for slots in small]}, {"sums": sums})

    def seen(self, message: dict[str, Any], reply: dict[str, Any]) -> None:
        self.history.see(message, reply)

    def note(self, recipe: Recipe, feeds: list[Array], counts: list[int], outputs: list[Any], seconds: float) -> None:
        try:
            self.record = self.history.record(recipe, feeds, counts, outputs, self, seconds)
        except BaseException:
            if not self.holding:
                self.fetched(None)
            raise

    def hold(self, slots: Slots, version: int) -> None:
        if self.record is not None:
            self.history.enter(self.record)
        super().hold(slots, version)
        self.history.versions[slots.number] = version

    def repeat(self) -> None:
        """Has a worker make those calls again whose results are gone with the last one, or with a call in it.

        Raises KernelKError; another worker is needed then.
        """
        ended, torn, begin = self.last_end, self._torn, time.perf_counter()
        try:
            with self.waiting("repeating calls"):
                cut = self.restored()
                repeated = self.history.repeat(self.storage, self.request, self._compile_again, self.call, cut)
        except KernelKError as error:
            if self.started:
                self._end(f"was ended, since it couldn't repeat calls: {one_line(error)}")
            raise
        self.call = self.confirmed = repeated.number
        # What somebody has seen or set meanwhile is loaded from the kernel's memory, and of some variables all is gone.
        gone = [number for number in self.history.versions if number not in self.holding]
        for number in gone:
            self.versions.pop(number, None)
        self._release(variables=gone)
        self.versions.update({number: slots.version for number, slots in self.holding.items()})
        self._lost = self._torn = False
        self.silence()
        if torn:
            why = f"a call was cut short that overwrites variables in {self.engine.title}'s worker;"
        else:
            why = f"{self.engine.title}'s worker {ended or 'ended'}; it was restarted, and"
        self.notify(f"{why} {told(repeated, self.since(cut))} ({time.perf_counter() - begin:.1f} s): nothing is lost")

    def _compile_again(self, recipe: Recipe, constants: list[Reference]) -> None:
        if recipe.key not in self.compiled:
            message = {
                "do": "compile",
                "key": recipe.key,
                "program": recipe.encoded,
                "constants": constants,
                "keeps": True,
            }
            self.remember(recipe.key, self.request(message))
