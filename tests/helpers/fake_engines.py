"""Engines made for a test: numpy under another name, without some ops or dtypes, or slow. Needs no pytest."""

from __future__ import annotations

import sys
import time
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint
from typing import Any

import numpy as np

from helpers.arrays import DTYPES
from kernelk.backends.lowering import lower
from kernelk.backends.numpy import backend
from kernelk.backends.serving.watching import Profiler
from kernelk.engines import registry
from kernelk.engines.descriptors import Engine
from kernelk.session.current import current


class _Known(EntryPoint):
    """An entry point whose object is here already."""

    def load(self) -> Any:
        return _descriptors[self.name]


_descriptors: dict[str, Engine] = {}


def register(monkeypatch: Any, engine: Engine) -> None:
    """Makes an engine known to the registry for one test."""
    _descriptors[engine.name] = engine
    registry._descriptor.cache_clear()
    entry = _Known(engine.name, "tests:engine", "kernelk.backends")
    monkeypatch.setitem(registry._entries(), engine.name, entry)


def lacking_engine(
    monkeypatch: Any,
    name: str,
    ops: set[str] | frozenset[str] = frozenset(),
    dtypes: set[str] | frozenset[str] = frozenset(),
) -> Any:
    """Registers a third party's engine in the kernel: numpy without some ops and dtypes. Returns its module."""

    class Lacking(backend.NumpyBackend):
        """A backend that is still incomplete, as a new engine's is."""

        def facts(self) -> dict[str, Any]:
            return {**super().facts(), "version": "0.1"}

        def compile(self, program: Any, constants: Any) -> Any:
            def run(feeds: Any, state: Any, draws: Any) -> Any:
                with np.errstate(all="ignore"):
                    values = lower(program, [*feeds, *state, *draws, *constants], self.ops)
                return [values[i] for i in program.outputs], [values[i] for _, i in program.updates]

            return run

    Lacking.name = name
    Lacking.ops = {op: function for op, function in backend.OPS.items() if op not in ops}
    Lacking.dtypes = tuple(dtype for dtype in DTYPES if dtype not in dtypes)
    module: Any = types.ModuleType(f"kernelk.backends.{name}_backend")
    module.Lacking = Lacking
    monkeypatch.setitem(sys.modules, module.__name__, module)
    register(monkeypatch, Engine(name, name.capitalize(), module.__name__, "Lacking", in_kernel=True))
    # The next test's engine of this name is another one.
    monkeypatch.setitem(current().hosts, name, None)
    del current().hosts[name]
    return module


def engine_on_a_gpu(monkeypatch: Any, seconds: dict[str, float]) -> Any:
    """An engine "far" in the kernel: numpy, whose profiler says that on a GPU an op takes so long, others nothing.

    Returns its backend's class; its `blind` has the profiler see nothing, and its `broken` fail.
    """
    made = lacking_engine(monkeypatch, "far").Lacking
    real = made.facts

    class Events(Profiler):
        """A GPU's own, for which the processor's clock says nothing."""

        label = "the stand-in's events"
        of_device = True

        @contextmanager
        def watching(self) -> Iterator[list[dict[str, Any]]]:
            if made.broken:
                raise RuntimeError("no events here")
            rows: list[dict[str, Any]] = []
            made.ran = Counter()
            yield rows
            if not made.blind:
                rows += [
                    {"name": op, "calls": n, "seconds": n * seconds[op], "instruction": None, "key": None}
                    for op, n in made.ran.items()
                    if op in seconds
                ]

    def counted(op: str, function: Any) -> Any:
        def call(*arguments: Any, **attrs: Any) -> Any:
            made.ran[op] += 1
            return function(*arguments, **attrs)

        return call

    made.blind = made.broken = False
    made.ran = Counter()
    made.ops = {op: counted(op, function) for op, function in made.ops.items()}
    made.facts = lambda self: {**real(self), "device": "cuda:0"}
    made.profiler = lambda self: Events(self)
    return made


def slow_engine(monkeypatch: Any, seconds: dict[str, float]) -> None:
    """An engine "slow" in the kernel: numpy, whose ops named here take at least so long."""
    ops = lacking_engine(monkeypatch, "slow").Lacking.ops

    def slowed(function: Any, pause: float) -> Any:
        def call(*arguments: Any, **attrs: Any) -> Any:
            time.sleep(pause)
            return function(*arguments, **attrs)

        return call

    for op, pause in seconds.items():
        ops[op] = slowed(ops[op], pause)
