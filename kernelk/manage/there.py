"""What the kernel calls in an ipyparallel engine beside its workers: facts of the machine, installs and removals there.

A call takes a moment and no longer, since that engine has other users: what takes long is a process of its own, `task`,
which is asked for its news. Replies are as in `remote.serving`, with these words in their first line:

  facts     the machine, in `facts`
  lines     lines of progress, each as (whether the next one replaces it, text)
  over      how the process has ended, as `task` says it
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from .._version import __version__
from ..child_process import ChildProcess
from ..engines.machine import gpus
from ..errors import EngineError
from ..remote.serving import joined, other_version
from .machine_facts import machine_facts

# Seconds that a call waits for news, and those that a process has for clearing up.
_NEWS_WITHIN, _CLEARED_WITHIN = 0.5, 10.0

# The characters of an output that isn't the process's own that are kept for an error.
_MOST_WORDS = 2000


class _Running:
    """A process, what it has written and not ended with a line break, and its output that isn't its own."""

    def __init__(self, task: str) -> None:
        self.process: ChildProcess[bytes] = ChildProcess(
            [sys.executable, "-m", "kernelk.manage.task", task],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.unread = b""
        self.words = ""

    def news(self) -> dict[str, Any]:
        """What it has said since the last time, after a short wait."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.write(b".")  # its kernel is still there
            self.process.stdin.flush()
        output = self.process.stdout.fileno()
        news: dict[str, Any] = {"lines": []}
        text = os.read(output, 1 << 16) if select.select([output], [], [], _NEWS_WITHIN)[0] else None
        *lines, self.unread = (self.unread + (text or b"")).split(b"\n")
        for line in lines:
            try:
                kind, content = json.loads(line)
            except (TypeError, ValueError):
                self.words = (self.words + line.decode(errors="replace") + "\n")[-_MOST_WORDS:]
                continue
            if kind == "over":
                news["over"] = content
            else:
                news["lines"].append((kind == "moving", content))
        if text == b"" and "over" not in news:
            news["over"] = {"code": self.process.wait(), "words": self.words}
        return news

    def end(self) -> None:
        """Ends it; it clears up before that, if it can."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(_CLEARED_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


_running: dict[str, _Running] = {}


def _answer(head: dict[str, Any]) -> list[Any]:
    return [joined(head, b"")]


def facts() -> list[Any]:
    """The machine and the versions there."""
    found, problems = machine_facts()
    about = {
        "machine": socket.gethostname(),
        # Two machines may have one name.
        "started": _read("/proc/sys/kernel/random/boot_id"),
        "kernelk": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "ipyparallel": metadata.version("ipyparallel"),
        "gpus": gpus(),
        "facts": found,
        "problems": problems,
    }
    return _answer({"facts": about})


def _read(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8").strip()
    return ""


def start(token: str, version: str, task: str) -> list[Any]:
    """Starts a process for a task, in the JSON of `task.main`, under a name."""
    error = other_version(version)
    if error is not None:
        return _answer({"error": error.as_dict()})
    try:
        _running[token] = _Running(task)
    except OSError as problem:
        machine = socket.gethostname()
        failed = EngineError(
            f"no process can be started on {machine}: {problem}", next_step=f"end others on {machine}, and try again"
        )
        return _answer({"error": failed.as_dict()})
    return _answer({})


def news(token: str) -> list[Any]:
    """What is new of a process; it is forgotten with its end."""
    running = _running.get(token)
    if running is None:
        return _answer({"lines": [], "over": {"code": None, "words": ""}})
    found = running.news()
    if "over" in found:
        end(token)
    return _answer(found)


def end(token: str) -> None:
    """Ends a process, if it is still there, and waits until it has cleared up."""
    running = _running.pop(token, None)
    if running is not None:
        running.end()
