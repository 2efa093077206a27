"""An engine that is held up where a test wants it, for as long as the test needs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

from helpers.processes import wait_until

# Goes into the worker's code, before it serves.
_BRAKED = """
import time
held_up = importlib.import_module("kernelk.backends.numpy.backend")
def wait(what):
    flag = os.environ["KERNELK_TEST_FLAG"]
    if os.path.exists(flag + what):
        open(flag + what + ".seen", "w").close()
        while os.path.exists(flag + what):
            time.sleep(0.01)
        open(flag + what + ".passed", "w").close()
wait("start")
compute, load = held_up.OPS["exp"], held_up.NumpyBackend.load
def slow(instruction, x):
    os.write(1, b"chatter on 1\\n" * 50)
    os.write(2, b"chatter on 2\\n" * 50)
    print("printed")
    wait("exp")
    return compute(instruction, x)
def slow_load(self, array):
    wait("load")
    return load(self, array)
held_up.OPS["exp"], held_up.NumpyBackend.load = slow, slow_load
"""

_LAST = 'importlib.import_module("kernelk.backends.serving.worker").main('


def braked(boot: str) -> str:
    """A worker's first lines, with a brake."""
    assert _LAST in boot
    return boot.replace(_LAST, _BRAKED + _LAST)


class Brake:
    """Holds the worker at a place ("start", "load", "exp") between `hold` and `free`."""

    def __init__(self, flag: str) -> None:
        self._flag = flag

    def hold(self, place: str) -> None:
        Path(self._flag + place + ".passed").unlink(missing_ok=True)
        Path(self._flag + place).touch()

    def free(self, place: str) -> None:
        Path(self._flag + place).unlink(missing_ok=True)
        Path(self._flag + place + ".seen").unlink(missing_ok=True)

    def reached(self, place: str) -> bool:
        """Whether the worker waits there."""
        return Path(self._flag + place + ".seen").exists()

    def passed(self, place: str) -> bool:
        """Whether a worker that has waited there has gone on."""
        return Path(self._flag + place + ".passed").exists()

    def when_reached(self, place: str, do: Callable[[], object]) -> threading.Thread:
        """Does something, from a thread, once the worker waits there."""

        def run() -> None:
            if wait_until(lambda: self.reached(place)):
                do()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread
