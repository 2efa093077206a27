"""What scripts that fork begin with: a light engine in a worker, and a child whose result comes back."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import traceback
import types
from collections.abc import Callable
from typing import Any

from helpers import own_settings  # noqa: F401
from helpers.fake_engines import register
from kernelk.engines.descriptors import Engine


def spare(name: str = "spare") -> str:
    """Makes numpy known under another name: in a worker, or in the kernel where it is asked for."""
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
        """Lets it go on."""
        os.write(self._tell, b".")

    @property
    def result(self) -> Any:
        """What the job returned, or its error in words."""
        with os.fdopen(self._result) as pipe:
            text = pipe.read()
        os.close(self._tell)
        os.waitpid(self.pid, 0)
        return json.loads(text)


def c_fork() -> int:
    """A fork that Python's hooks aren't told of."""
    return int(ctypes.PyDLL(None).fork())


def said(call: Callable[[], Any]) -> str:
    """The error of a call, in words; "" where there is none."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
