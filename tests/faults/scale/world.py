"""Carries the steps of `model` out on a real session, and reads back what it holds."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.errors import StaleTensorError
from kernelk.session.current import current

from .model import LENGTH, Pair, Step

# Two engines that start in a moment: numpy behind the wire, and numpy in the process itself.
LIGHT = {"light": False, "kernel": True}


# Before an engine's name: the new values of its calls stay with its worker, for as long as that is allowed, or until
# the next call.
KEPT, CHECKED = "kept-", "checked-"


def plain_name(engine: str) -> str:
    """The name without what stands before it."""
    return engine.removeprefix(KEPT).removeprefix(CHECKED)


def use(engine: str) -> None:
    """Makes an engine the active one, by the names that steps have."""
    limits, usual = config.LIMITS, config.Limits()
    limits.commit_bytes = 0 if engine.startswith((KEPT, CHECKED)) else usual.commit_bytes
    limits.repeat_seconds = 0.0 if engine.startswith(CHECKED) else usual.repeat_seconds
    plain = plain_name(engine)
    if plain in LIGHT:
        kernelk.set_backend("numpy", in_kernel=LIGHT[plain])
    else:
        kernelk.set_backend(plain)


def backend(engine: str) -> str:
    """What kernelk calls the engine that has this name in steps."""
    plain = plain_name(engine)
    return "numpy" if plain in LIGHT else plain


def whole(array: Any) -> list[int]:
    """An array's numbers; anything but whole ones is a fault."""
    found = np.asarray(array)
    assert found.dtype == np.float32, found.dtype
    numbers = found.astype(np.int64)
    assert np.array_equal(numbers, found), found
    return numbers.ravel().tolist()  # type: ignore[no-any-return]


class Thing:
    """Two variables and what is computed from them."""

    def __init__(self, name: str, w: list[int], v: list[int]) -> None:
        self.w = K.variable(np.array(w, "float32"), name=f"{name}_w")
        self.v = K.variable(np.array(v, "float32"), name=f"{name}_v")
        x, many = K.placeholder((LENGTH,)), K.placeholder((None,))
        updates = [K.update(self.w, x - self.w), K.update(self.v, 2 * self.w + x - self.v)]
        self.step = K.function([x], [self.w + self.v, x * self.w], updates)
        self.look = K.function([], [3 * self.w - self.v])
        ends = K.stack([many[0] + self.w[0], many[-1] + self.w[0]])
        self.feed = K.function([many], [ends, K.cast(K.shape(many)[:1], "float32")])


class World:
    """The things of a session by name."""

    def __init__(self, folder: Path) -> None:
        self.things: dict[str, Thing] = {}
        self.file = folder / "saved.npz"

    def do(self, step: Step) -> Any:
        """Carries a step out and returns what the user gets from it."""
        kind, *arguments = step
        return getattr(self, "do_" + kind)(*arguments)

    def do_make(self, name: str, w: list[int], v: list[int]) -> None:
        self.things[name] = Thing(name, w, v)

    def do_step(self, name: str, x: list[int]) -> list[list[int]]:
        return [whole(one) for one in self.things[name].step([np.array(x, "float32")])]

    def do_look(self, name: str) -> list[int]:
        return whole(self.things[name].look([])[0])

    def do_read(self, name: str) -> Pair:
        thing = self.things[name]
        return [whole(one) for one in K.batch_get_value([thing.w, thing.v])]

    def do_set(self, name: str, w: list[int], v: list[int]) -> None:
        thing = self.things[name]
        K.batch_set_value([(thing.w, np.array(w, "float32")), (thing.v, np.array(v, "float32"))])

    def do_feed(self, name: str, count: int, value: int) -> list[int]:
        ends, counted = self.things[name].feed([np.full(count, value, "float32")])
        return whole(ends) + whole(counted)

    def do_time(self, name: str, x: list[int]) -> None:
        kernelk.time(lambda: self.things[name].step([np.array(x, "float32")]), budget=0.02)

    def do_compare(self, name: str, x: list[int], engines: list[str]) -> None:
        named = [backend(one) for one in engines]
        kernelk.compare(lambda: self.things[name].step([np.array(x, "float32")]), *dict.fromkeys(named), budget=0.02)

    def do_swap(self, engine: str) -> None:
        use(engine)

    def do_stop(self, engine: str) -> None:
        kernelk.stop_backend(backend(engine))

    def do_drop(self, name: str) -> None:
        del self.things[name]

    def do_clear(self) -> None:
        K.clear_session()
        self.things.clear()

    def do_save(self) -> None:
        kernelk.save(self.file)

    def do_load(self) -> None:
        kernelk.load(self.file)

    def state(self) -> dict[str, Pair]:
        """The values of all things; those that `K.clear_session()` has made stale are gone."""
        found = {}
        for name, thing in list(self.things.items()):
            with contextlib.suppress(StaleTensorError):
                found[name] = [whole(one) for one in K.batch_get_value([thing.w, thing.v])]
                continue
            del self.things[name]
        return found

    def file_state(self) -> dict[str, Pair] | None:
        """The values in the saved file, as numpy alone reads them."""
        if not self.file.exists():
            return None
        with np.load(self.file) as arrays:
            names = {key.rpartition("_")[0] for key in arrays if key.endswith(("_w", "_v"))}
            return {name: [whole(arrays[f"{name}_w"]), whole(arrays[f"{name}_v"])] for name in names}


def worker_pid() -> int | None:
    """The active engine's own process, if it has one that runs."""
    host = current().hosts.get(current().active)
    return host.pid if host is not None and host.placement == "worker" and host.started else None
