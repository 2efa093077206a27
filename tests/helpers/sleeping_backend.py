"""The engine of `sleeping`, in the process that runs it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, ClassVar

from kernelk.backends.lowering import lower
from kernelk.backends.numpy.backend import OPS, NumpyBackend


def _exp(instruction: Any, x: Any) -> Any:
    if x.size == 13:
        raise ValueError("thirteen is refused")
    begin = time.monotonic()
    diary = os.environ.get("SLEEPING_DIARY")
    if diary:
        Path(diary).touch()
    time.sleep(x.size / 1000)
    if diary:
        with Path(diary).open("a") as file:
            file.write(f"{os.environ.get('KERNELK_MACHINE')} {os.getpid()} {begin} {time.monotonic()}\n")
    return OPS["exp"](instruction, x)


class SleepingBackend(NumpyBackend):
    """numpy, op by op."""

    name = "sleeping"
    dtypes = tuple(dtype for dtype in NumpyBackend.dtypes if dtype != "int16")
    ops: ClassVar[dict[str, Any]] = {**OPS, "exp": _exp}

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "version": "0.1"}

    def compile(self, program: Any, constants: Any) -> Any:
        def run(feeds: Any, state: Any, draws: Any) -> Any:
            values = lower(program, [*feeds, *state, *draws, *constants], self.ops)
            return [values[i] for i in program.outputs], [values[i].copy() for _, i in program.updates]

        return run
