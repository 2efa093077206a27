"""The randomness of one session: which seed each recorded draw has, and how often it has drawn."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any
from weakref import WeakSet


def _seed_of(entropy: int, *spawn_key: int) -> int:
    import numpy as np  # not before something is drawn: the current session is found without numpy

    return int(np.random.SeedSequence(entropy, spawn_key=spawn_key).generate_state(1, np.uint64)[0])


class Stream:
    """The draws since the last `set_random_seed`, numbered, and seeds for those that were given none.

    The n-th one's seed follows from n and the stream's entropy. It is asked for at each plan, not once: a file that is
    loaded gives the stream the entropy of the one that was saved, and the same cells then get the same draws. `begins`
    has the counts that a file has for draws by their numbers; all others begin with `begin`. `taken` has the seeds that
    draws had taken from np.random where the file was saved.
    """

    def __init__(self, entropy: int | None = None) -> None:
        # What seeds that were given are combined with.
        self.fixed = 0 if entropy is None else _seed_of(entropy)
        self.entropy = int.from_bytes(os.urandom(16), "big") if entropy is None else int(entropy)
        self.count = 0
        self.begin = 0
        self.begins: dict[int, int] = {}
        self.taken: dict[int, int] = {}

    def next(self) -> int:
        """The number of the next node."""
        self.count += 1
        return self.count - 1

    def seed(self, number: int) -> int:
        """The 64-bit seed of a node."""
        return _seed_of(self.entropy, number)


class Count:
    """How often one draw was evaluated: its n-th evaluation gives the n-th draw of its seed, whatever else ran.

    `taken` is the seed that it took from np.random, as draws do in Keras; None if it has another.
    """

    __slots__ = ("__weakref__", "begin", "number", "stream", "taken", "value")

    def __init__(self, stream: Stream, taken: int | None) -> None:
        self.stream = stream
        self.number = stream.next()
        self.taken = stream.taken.get(self.number, taken)
        self.begin = self.value = stream.begins.get(self.number, stream.begin)

    def seed(self) -> int:
        """The seed of a draw that was given none."""
        return self.stream.seed(self.number) if self.taken is None else self.given_seed(self.taken)

    def given_seed(self, seed: int) -> int:
        """That of a draw that was given this one."""
        return (seed ^ self.stream.fixed) & (2**64 - 1)


Places = Mapping[Count, int]


class Seeds:
    """The state of randomness: what `set_random_seed` restarts, and `kernelk.save` keeps."""

    def __init__(self) -> None:
        self.counts: WeakSet[Count] = WeakSet()
        self.restart(None)

    def restart(self, seed: int | None) -> None:
        """Restarts the draws, from the system's entropy if no seed is given."""
        self.repeatable = seed is not None  # whether the user expects the same results from the same cells
        self._from_numpy = seed is None  # whether draws that are given no seed take one from np.random
        self.stream = Stream(seed)
        for count in self.counts:
            count.begin = count.value = 0

    def new(self, seeded: bool) -> Count:
        """The count of a new draw; `seeded`: it was given a seed."""
        taken = None
        if self._from_numpy and not seeded:
            import numpy as np

            taken = int(np.random.randint(2**31 - 1))
        count = Count(self.stream, taken)
        self.counts.add(count)
        return count

    def places(self) -> Places:
        """How often each draw was evaluated up to now."""
        return {count: count.value for count in self.counts}

    def rewind(self, places: Places) -> None:
        """Makes the next draws those that followed `places`; of draws that are newer, those from their beginning."""
        for count in list(self.counts):
            count.value = places.get(count, count.begin)

    @contextlib.contextmanager
    def rewound(self, places: Places) -> Iterator[None]:
        """Makes the next draws inside those that followed `places`; afterwards they are as before."""
        before = self.places()
        self.rewind(places)
        try:
            yield
        finally:
            self.rewind(before)

    def kept(self) -> contextlib.AbstractContextManager[None]:
        """Makes runs inside draw what the next call would, without using those draws up."""
        return self.rewound(self.places())

    def settled(self) -> dict[str, object]:
        """The `state` for a file: draws made from here on have the stream's seeds, as where the file is loaded."""
        self._from_numpy = False
        return self.state()

    def state(self) -> dict[str, object]:
        """The numbers that determine the next draws."""
        stream, counts, taken = self.stream, dict(self.stream.begins), dict(self.stream.taken)
        # After `restore`, two of one number may be there: what was made before and after the same seed was set.
        for count in sorted((x for x in self.counts if x.stream is stream), key=lambda x: x.value):
            counts[count.number] = count.value
            if count.taken is not None:
                taken[count.number] = count.taken
        return {
            "entropy": stream.entropy,
            "count": stream.count,
            "fixed": stream.fixed,
            "counter": stream.begin,
            "counts": {str(number): counts[number] for number in sorted(counts) if counts[number] != stream.begin},
            "taken": {str(number): taken[number] for number in sorted(taken)},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Makes the next draws, of the nodes that the present stream has made too, those that follow from `state`.

        Plans that already hold a seed have to be made again.
        """
        stream = self.stream
        # Of equal seeds the draws are the same, whenever these were set.
        continued = [x for x in self.counts if x.stream is stream or x.stream.entropy == state["entropy"]]
        stream.entropy, stream.count, stream.fixed = state["entropy"], state["count"], state["fixed"]
        self.repeatable, self._from_numpy = True, False
        # What was written when all draws shared one counter goes on from there.
        stream.begin = state["counter"]
        stream.begins = {int(number): value for number, value in state["counts"].items()}
        stream.taken = {int(number): seed for number, seed in state["taken"].items()}
        for count in continued:
            count.stream, count.taken = stream, stream.taken.get(count.number)
            count.begin = count.value = stream.begins.get(count.number, stream.begin)
