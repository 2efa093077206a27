"""The randomness of one session: which seed each recorded draw has, and how many runs have drawn."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


def _seed_of(entropy: int, *spawn_key: int) -> int:
    import numpy as np  # not before something is drawn: the current session is found without numpy

    return int(np.random.SeedSequence(entropy, spawn_key=spawn_key).generate_state(1, np.uint64)[0])


class Stream:
    """Seeds for nodes that were given none: the n-th node's follows from n and the stream's entropy.

    The nodes ask for it at each plan, not once: a file that is loaded gives their stream the entropy of the one that
    was saved, and the same cells then get the same draws.
    """

    def __init__(self, entropy: int | None = None) -> None:
        self.entropy = int.from_bytes(os.urandom(16), "big") if entropy is None else int(entropy)
        self.count = 0

    def next(self) -> int:
        """The number of the next node."""
        self.count += 1
        return self.count - 1

    def seed(self, number: int) -> int:
        """The 64-bit seed of a node."""
        return _seed_of(self.entropy, number)


class Seeds:
    """The state of randomness: what `set_random_seed` restarts, and `kernelk.save` keeps."""

    def __init__(self) -> None:
        self.restart(None)

    def restart(self, seed: int | None) -> None:
        """Restarts the draws, from the system's entropy if no seed is given."""
        self.fixed = 0 if seed is None else _seed_of(seed)
        self.repeatable = seed is not None  # whether the user expects the same results from the same cells
        self.stream = Stream(seed)
        # How many runs have drawn; part of each draw's key, so that it lives on across swaps and restarts.
        self.counter = 0

    @contextlib.contextmanager
    def counted_from(self, counter: int) -> Iterator[None]:
        """Makes runs inside draw what they would after so many runs; the count is restored afterwards."""
        before, self.counter = self.counter, counter
        try:
            yield
        finally:
            self.counter = before

    def counter_kept(self) -> contextlib.AbstractContextManager[None]:
        """Makes runs inside draw what the next call would, without using those draws up."""
        return self.counted_from(self.counter)

    def state(self) -> dict[str, int]:
        """The numbers that determine the next draws."""
        return {
            "entropy": self.stream.entropy,
            "count": self.stream.count,
            "fixed": self.fixed,
            "counter": self.counter,
        }

    def restore(self, state: dict[str, int]) -> None:
        """Makes the next draws, of the nodes that the present stream has made too, those that follow from `state`.

        Plans that already hold a seed have to be made again.
        """
        self.stream.entropy, self.stream.count = state["entropy"], state["count"]
        self.fixed, self.counter = state["fixed"], state["counter"]
        self.repeatable = True
