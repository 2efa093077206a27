"""A process that was started, a worker or a build: whatever cuts a wait for it short, the next one works."""

from __future__ import annotations

import os
import subprocess
import time
from typing import AnyStr


class ChildProcess(subprocess.Popen[AnyStr]):
    """A `Popen` without its lock.

    An exception of a signal handler between the taking of that lock and its `try` leaves it taken for good: `poll`
    then says forever that the process runs, and `wait` never returns.
    """

    def poll(self) -> int | None:
        """The return code as `Popen` has it, None while it runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                # Another thread, or a wait that was cut short, was told; as in `Popen`, the status is unknown.
                pid, status = self.pid, 0
            if pid and (status or self.returncode is None):
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The return code, once it has ended. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        delay = 0.0005
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
            time.sleep(delay)
            delay = min(2 * delay, 0.05)
        return code
