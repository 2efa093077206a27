"""Helpers for scripts that fork: a light engine in a worker, and a child that returns its result."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from helpers import own_settings  # noqa: F401
from helpers.fake_engines import register
from kernelk import backend as K
from kernelk.engines.descriptors import Engine
from kernelk.session.current import current


def spare(name: str = "spare") -> str:
    """Registers numpy under another name: in a worker, or in the kernel on request."""
    put = types.SimpleNamespace(setitem=lambda table, key, value: table.__setitem__(key, value))
    pip = f"pip install {name}"
    register(put, Engine(name, name.title(), "numpy", "NumpyBackend", imports="numpy", install=pip, in_kernel_too=True))
    return name


class Child:
    """A forked child that runs `job(wait)`, where `wait()` returns once the parent says `go`; `result` is its end."""

    def __init__(self, job: Callable[[Callable[[], Any]], Any], fork: Callable[[], int] = os.fork) -> None:
        told, self._tell = os.pipe()
        self._result, result = os.pipe()
        self.pid = fork()
        if self.pid:
            os.close(told)
            os.close(result)
            return
        os.close(self._tell)
        os.close(self._result)
        try:
            value = job(lambda: os.read(told, 1))
        except BaseException as error:
            traceback.print_exc(file=sys.__stderr__)
            value = f"{type(error).__name__}: {error}"
        os.write(result, json.dumps(value).encode())
        os._exit(0)

    def go(self) -> None:
        """Lets the child continue."""
        os.write(self._tell, b".")

    @property
    def result(self) -> Any:
        """The job's return value, or its error as text."""
        with os.fdopen(self._result) as pipe:
            text = pipe.read()
        os.close(self._tell)
        os.waitpid(self.pid, 0)
        return json.loads(text)


def c_fork() -> int:
    """A fork that runs none of Python's fork hooks."""
    return int(ctypes.PyDLL(None).fork())


def said(call: Callable[[], Any]) -> str:
    """The error of a call as text; "" if there is none."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def written_after_a_fork() -> list[int]:
    """The segments from before a fork that the active engine or the kernel writes to after it, by number.

    Trains variables of several kinds and sizes on both sides of the fork, and checks their values.
    """
    v, n = K.variable(np.arange(6.0).reshape(2, 3)), K.variable(np.zeros(3))
    far = K.variable(np.ones(1 << 20))
    x = K.placeholder((2, 3))
    train = K.function([x], [K.sum(v)], updates=[K.update_add(v, x), K.update(n, K.sum(v, axis=0))])
    grow = K.function([], [], updates=[K.update(far, far + 1)])
    for _ in range(3):
        train([np.ones((2, 3))])
        grow([])
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    storage, transfer = current().storage, current().calls.transfer.segment
    # Maps of their own, which outlive the session's.
    old = {
        number: mmap.mmap(os.dup(segment.fileno), segment.size, prot=mmap.PROT_READ)
        for number, segment in storage.segments.items()
        if number != transfer
    }
    assert old
    before = {number: bytes(memory) for number, memory in old.items()}
    for i in range(4):
        total = train([np.full((2, 3), float(i))])[0]
        grow([])
    K.set_value(n, np.full(3, 7.0))
    train([np.ones((2, 3))])
    expected = np.arange(6.0).reshape(2, 3) + 3
    assert (total, K.get_value(far)[0]) == (np.sum(expected + 3), 8.0)
    np.testing.assert_array_equal(K.get_value(v), expected + 7)
    np.testing.assert_array_equal(K.get_value(n), (expected + 6).sum(axis=0))
    return [number for number, memory in old.items() if bytes(memory) != before[number]]
