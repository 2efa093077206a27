"""What a session must hold after each step, in plain Python: small whole numbers, exact in float32 on every engine."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

# A step is a list that JSON can hold: what is done, and to what. `World.do` carries it out, `Model.do` says the result.
Step = list[Any]
Pair = list[list[int]]  # the values of a thing's two variables

LENGTH = 3
MOST_THINGS = 4


class Model:
    """The state: the values of each thing's two variables, and those in the file that was saved last."""

    def __init__(self) -> None:
        self.things: dict[str, Pair] = {}
        self.saved: dict[str, Pair] | None = None

    def copy(self) -> Model:
        """The same state, to go on from."""
        return deepcopy(self)

    def do(self, step: Step) -> Any:
        """Carries a step out and returns what the user gets from it."""
        kind, *arguments = step
        return getattr(self, "do_" + kind)(*arguments)

    def do_make(self, name: str, w: list[int], v: list[int]) -> None:
        """Two variables, and functions of them."""
        self.things[name] = [w, v]

    def do_step(self, name: str, x: list[int]) -> list[list[int]]:
        """Two updates at once, both of the values from before, as the outputs are."""
        w, v = self.things[name]
        self.things[name] = [[b - a for a, b in zip(w, x)], [2 * a + b - c for a, b, c in zip(w, x, v)]]
        return [[a + c for a, c in zip(w, v)], [b * a for a, b in zip(w, x)]]

    def do_look(self, name: str) -> list[int]:
        """An output alone."""
        w, v = self.things[name]
        return [3 * a - c for a, c in zip(w, v)]

    def do_read(self, name: str) -> Pair:
        """Both values at one moment."""
        return deepcopy(self.things[name])

    def do_set(self, name: str, w: list[int], v: list[int]) -> None:
        """Both values set at once."""
        self.things[name] = [w, v]

    def do_feed(self, name: str, count: int, value: int) -> list[int]:
        """A feed of so many numbers, which may need more memory than any before."""
        return [self.things[name][0][0] + value] * 2 + [count]

    def do_time(self, name: str, x: list[int]) -> None:
        """A body that is timed has run once."""
        self.do_step(name, x)

    def do_compare(self, name: str, x: list[int], _: list[str]) -> None:
        """And so has one that is compared."""
        self.do_step(name, x)

    def do_swap(self, engine: str) -> None:
        """Nothing changes."""

    def do_stop(self, engine: str) -> None:
        """Nothing changes."""

    def do_drop(self, name: str) -> None:
        """A thing that nobody holds any more."""
        del self.things[name]

    def do_clear(self) -> None:
        """`K.clear_session()`."""
        self.things.clear()

    def do_save(self) -> None:
        """The file has the values of now."""
        self.saved = deepcopy(self.things)

    def do_load(self) -> None:
        """Those in the file come back into the variables that are there."""
        for name, pair in (self.saved or {}).items():
            if name in self.things:
                self.things[name] = deepcopy(pair)


def program(seed: int, engines: list[str], length: int) -> list[Step]:
    """A random program that the model can carry out."""
    rng = random.Random(seed)
    model, steps = Model(), []

    def numbers() -> list[int]:
        return [rng.randrange(-9, 10) for _ in range(LENGTH)]

    names = (f"t{number}" for number in range(10**6))
    while len(steps) < length:
        kind = rng.choices(
            [
                "make",
                "step",
                "look",
                "read",
                "set",
                "feed",
                "time",
                "compare",
                "swap",
                "stop",
                "drop",
                "clear",
                "save",
                "load",
            ],
            [3, 9, 4, 2, 2, 2, 1, 1, 4, 1, 2, 1, 1, 1],
        )[0]
        name = rng.choice(sorted(model.things)) if model.things else None
        if kind == "make" or name is None:
            step = ["make", next(names), numbers(), numbers()] if len(model.things) < MOST_THINGS else ["drop", name]
        elif kind in ("step", "time"):
            step = [kind, name, numbers()]
        elif kind == "compare":
            step = [kind, name, numbers(), rng.sample(engines, min(2, len(engines)))]
        elif kind in ("look", "read", "drop"):
            step = [kind, name]
        elif kind == "set":
            step = [kind, name, numbers(), numbers()]
        elif kind == "feed":
            step = [kind, name, rng.choice([10, 1000, 300_000, 1_000_000]), rng.randrange(9)]
        elif kind in ("swap", "stop"):
            step = [kind, rng.choice(engines)]
        elif kind == "load" and model.saved is None:
            continue
        else:
            step = [kind]
        if kind == "stop" and len(engines) < 2:
            continue
        model.do(step)
        steps.append(step)
    return steps
