"""A program prepared for timing in the process that runs it, on copies of its own: timing changes no variable."""

import gc
import time
from contextlib import contextmanager

import numpy as np

from ..lowering import Program
from ..staged import compile_program
from .shared_memory import Segment, aligned
from .watching import Profiler


class Timed(object):
    """One call, to be repeated for timing; it changes only its own memory.

    `encoded` has no inputs: feeds come as the first of its slots, so that handing them over isn't part of a run.
    `constants`, `feeds` and `variables` are ndarrays, and are copied; `draws` are [kind, dtype, shape, seed]...,
    `counts` how often each was made.
    Each sample begins with these values; within it, updates take their effect from run to run.
    `profiler`: the engine's own, if `watched` is going to be called.
    `compile_seconds` is the time to build the program, `first_seconds` that of its first run.
    """

    def __init__(self, backend, encoded, constants, feeds, variables, draws, counts, profiler=None):
        self.backend = backend
        self.profiler = profiler
        self.feeds = [_own(array) for array in feeds]
        self.draws = list(zip(draws, counts))
        program = Program(encoded)
        constants = [np.array(array) for array in constants]
        backend.compile_anew()
        start = time.perf_counter()
        with (profiler or Profiler(backend)).compiling():
            self.run = compile_program(backend, program, constants)
        self.compile_seconds = time.perf_counter() - start
        self.state = backend.load_all(self.feeds + [_own(array) for array in variables])
        self.updated = [slot for slot, _ in program.updates]
        # Two slots for each new value, as variables have: a run reads what the one before has written.
        self.into = [[_empty(*program.slots[slot]) for slot in self.updated] for _ in range(2)]
        start = time.perf_counter()
        self.outputs, _ = self._call(self.state, self.into[0])
        backend.synchronize()
        self.first_seconds = time.perf_counter() - start

    def _call(self, state, into):
        # Draws are made for each run, and so they are part of it.
        drawn = [self.backend.draw(*how, counter=n) for how, n in self.draws]
        if self.backend.writes_in_place:
            return self.run([], state, drawn, into)
        return self.run([], state, drawn)

    def _several(self, count):
        """`count` runs, one after the other, from the values at the beginning; the last one's outputs."""
        call = self._call
        if not self.updated:
            run, state, into = self.run, self.state, self.into[0]
            if self.draws:
                for _ in range(count):
                    outputs = call(state, into)[0]
            elif self.backend.writes_in_place:
                for _ in range(count):
                    outputs = run([], state, [], into)[0]
            else:
                for _ in range(count):
                    outputs = run([], state, [])[0]
            return outputs
        state = list(self.state)
        for i in range(count):
            outputs, values = call(state, self.into[i % 2])
            for slot, value in zip(self.updated, values):
                state[slot] = value
        return outputs

    def samples(self, loops, times, before):
        """The seconds of one run, as the mean of `loops` runs with a barrier behind them; `times` such means.

        `before`: so many runs are made first, and not counted.
        """
        seconds = []
        clock, barrier = time.perf_counter, self.backend.synchronize
        with self._undisturbed():
            if before:
                self._several(before)
                barrier()
            for _ in range(times):
                start = clock()
                self.outputs = self._several(loops)
                barrier()
                seconds.append((clock() - start) / loops)
        return seconds

    def watched(self, loops):
        """(rows, the seconds of one run) of `loops` runs under the engine's own profiler: see `Profiler.watching`."""
        clock, profiler = time.perf_counter, self.profiler
        with self._undisturbed(), profiler.watching() as rows:
            start = clock()
            self.outputs = self._several(loops)
            profiler.settle()
            seconds = (clock() - start) / loops
        return rows, seconds

    @contextmanager
    def _undisturbed(self):
        """Makes each run compute everything, without garbage collection."""
        collecting = gc.isenabled()
        gc.disable()
        self.backend.recompute(True)
        try:
            yield
        finally:
            self.backend.recompute(False)
            if collecting:
                gc.enable()

    def transfers(self, times):
        """Lists of seconds: to hand all feeds over, to get all outputs back, to write all new values down."""
        clock, backend = time.perf_counter, self.backend
        load, deliver, commit = [], [], []
        destinations = [np.empty_like(backend.to_numpy(value)) for value in self.outputs]
        for _ in range(times):
            start = clock()
            # Kept until the clock has been read: releasing them isn't part of the run.
            loaded = backend.load_all(self.feeds)
            backend.synchronize()
            load.append(clock() - start)
            del loaded
            outputs, updated = self._call(self.state, self.into[0])
            backend.synchronize()
            start = clock()
            backend.read_all(outputs, destinations)
            deliver.append(clock() - start)
            start = clock()
            backend.commit_all(updated, self.into[0])
            commit.append(clock() - start)
        return load, deliver, commit


def _empty(dtype, shape):
    """New memory that starts on a cache line, as a variable's does."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    return Segment(None, aligned(size)).array(0, dtype, shape)


def _own(array):
    copy = _empty(array.dtype, array.shape)
    copy[...] = array
    return copy
