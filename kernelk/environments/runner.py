"""Runs the subprocesses of an installation, reads their output, and reports a failure in one line."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ..child_process import ChildProcess
from ..display.commands import missing_package
from ..display.progress import Moving, Report
from ..errors import InstallError
from .interpreters import clean_environment, last_line

_POLL_SECONDS = 0.5


_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|ProxyError|SSLError|Temporary failure in name resolution"
    r"|Name or service not known|Network is unreachable|Connection refused|Could not fetch URL"
    r"|CONNECTION FAILED|CondaHTTPError|error sending request|dns error",
)


_FULL = re.compile(r"No space left on device|Disk quota exceeded|\[Errno (28|122)\]|NoSpaceLeftError")


def megabytes(count: float) -> str:
    """A number of bytes as text, always in MB."""
    return f"{count / 1e6:.1f} MB"


class Runner:
    """Runs the commands of one task on an engine's environment, with all their output in a log.

    `again` is the command that repeats the task. Raises InstallError for a command that fails, in one line.
    """

    def __init__(self, title: str, name: str, log: Path, report: Report, again: str, doing: str = "installed") -> None:
        self.title = title
        self.name = name
        self.log = log
        self.again = again
        self._doing = doing
        self._report = report
        self._moving = Moving(report)
        self._started = time.monotonic()
        # A new file, whatever has this name: a link's target stays untouched, and a FIFO isn't waited for.
        log.unlink(missing_ok=True)
        log.touch()

    def _stamped(self, text: str) -> str:
        return f"{self.name}: [{time.monotonic() - self._started:3.0f} s] {text}"

    def say(self, text: str) -> None:
        """Reports a line that stays."""
        self._report(self._stamped(text))

    def move(self, text: str) -> None:
        """Reports a line that the next one replaces."""
        self._moving(self._stamped(text))

    def failed(self, reason: str) -> InstallError:
        """The task's failure, with the log and the next command."""
        return InstallError(
            f"{self.title} could not be {self._doing}: {reason} (log: {self.log})", next_step=f"{self.again} again"
        )

    def __call__(
        self,
        what: str,
        command: list[str],
        line: Callable[[str], None] | None = None,
        tick: Callable[[], None] | None = None,
        timeout: float | None = None,
        settings: dict[str, str] | None = None,
        logged: bool = True,
    ) -> str:
        """Runs it and returns what it wrote to standard output (with `line`: to standard error too).

        `line` gets each line as it comes, `tick` is called twice a second. `timeout` in seconds. Without `logged` only
        its standard error is kept in the log. However this ends, nothing of the command is left running.
        """
        lines: queue.Queue[str | None] = queue.Queue()
        output: list[str] = []
        end = time.monotonic() + timeout if timeout else float("inf")
        late = False
        with open(self.log, "a", encoding="utf-8", errors="replace") as log:
            print(f"--- {what}", file=log, flush=True)
            process = ChildProcess(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if line else log,
                text=True,
                errors="replace",
                env=clean_environment() | (settings or {}),
                cwd=self.log.parent,
                # A group of its own: Ctrl-C reaches this process alone, which then ends the whole group.
                start_new_session=True,
            )
            try:
                threading.Thread(target=_read, args=(process, lines), daemon=True).start()
                while True:
                    try:
                        text = lines.get(timeout=_POLL_SECONDS)
                    except queue.Empty:
                        text = ""
                    if text is None:
                        break
                    if text:
                        output.append(text)
                        if logged:
                            log.write(text)
                        if line:
                            line(text)
                    elif tick:
                        tick()
                    if time.monotonic() > end:
                        late = True
                        _kill(process)
                process.wait()
            finally:
                _kill(process)
        if late:
            raise self.failed(f"{what} took more than {timeout:.0f} s")
        if process.returncode:
            message = self.log.read_text(encoding="utf-8", errors="replace").rpartition("\n--- ")[2]
            if process.returncode < 0:
                message = f"ended by signal {-process.returncode}"
            raise self._explained(what, message)
        return "".join(output)

    def _explained(self, what: str, output: str) -> InstallError:
        """The error for a failed command, according to its output, with a suitable next command."""
        wrong = re.search(
            r"^ *(\S+==\S+) from (\S+?)(?:#\S*)?(?: \(from .*\))?:\s*\n\s*Expected sha256 (\w+)\s+Got\s+(\w+)",
            output,
            re.M,
        )
        begin = f"{self.title} could not be {self._doing}"
        if wrong:
            pin, url, expected, got = wrong.groups()
            return InstallError(
                f"{begin}: {url.rpartition('/')[2]} ({pin}) does not match the SHA-256 in kernelk's lock file "
                f"({got[:12]}... instead of {expected[:12]}...): it was damaged in transit, or the index serves "
                f"another file (log: {self.log})",
                next_step=f"`pip cache purge` and {self.again}, or, if that fails, another index (PIP_INDEX_URL)",
            )
        # venv, for one, doesn't report the reason.
        if _FULL.search(output) or shutil.disk_usage(self.log.parent).free < 4 << 20:
            return InstallError(
                f"{begin}: no space left on the disk of {self.log.parent} (log: {self.log})",
                next_step=f"free space, or choose another folder with KERNELK_ENVS, then {self.again}",
            )
        if _NO_NETWORK.search(output):
            return InstallError(
                f"{begin}: {'the package index' if what == 'pip' else f'the server of {what}'} can't be reached "
                f"(log: {self.log})",
                next_step=f"check the network and the proxy, then {self.again}; with no network: "
                "`kernelk install --from BUNDLE`",
            )
        if missing_package(output):
            return InstallError(
                f"{begin}: {what} failed: {last_line(output)} (log: {self.log})",
                next_step=f"{missing_package(output)}, then {self.again}",
            )
        return self.failed(f"{what} failed: {last_line(output)}")


def _read(process: ChildProcess[str], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError, OSError), process.stdout:
        for text in process.stdout:
            lines.put(text)
    lines.put(None)


def _kill(process: ChildProcess[str]) -> None:
    """Ends the command and the processes that it has started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()
