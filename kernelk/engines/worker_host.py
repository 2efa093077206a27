"""A backend in a process of its own: started, asked over the wire, interrupted, restarted when it has died."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..backends.errors import OptionError
from ..backends.serving.shared_memory import Segment
from ..backends.serving.wire import CAN_PASS_FILES, Wire, WireClosed
from ..errors import ArgumentError, BackendNotInstalledError, EngineError, WorkerDiedError
from . import registry
from .descriptors import Engine
from .host import Host, cache_folder, engine_error
from .interrupts import DeferInterrupt
from .storage import Storage
from .worker_log import WorkerLog, last_words, note, show, warn_again

_ISLAND = Path(__file__).parent.parent / "backends"

# The worker's first lines. The island is loaded from its folder under its own name, and `kernelk` itself only as the
# place where it lies: nothing of it is run, and neither its folder nor the notebook's comes into an old interpreter's
# path. A third party's module finds the same `kernelk.backends.base` there as the island does.
_BOOT = """
import importlib, importlib.util, json, os, sys, types
folder, fileno, module, backend, options, paths = json.loads(sys.argv[1])
sys.path.extend(path for path in paths if path not in sys.path)
home = types.ModuleType("kernelk")
home.__path__ = [os.path.dirname(folder)]
sys.modules["kernelk"] = home
spec = importlib.util.spec_from_file_location(
    "kernelk.backends", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder])
package = importlib.util.module_from_spec(spec)
sys.modules["kernelk.backends"] = home.backends = package
spec.loader.exec_module(package)
importlib.import_module("kernelk.backends.serving.worker").main(fileno, module, backend, options)
"""


def kill_group(pid: int) -> None:
    """Ends a worker and what it has started; without process groups, the worker alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM)


class WorkerHost(Host):
    """A backend in a process of its own, reached by a socket pair and shared memory.

    `notify(text)` shows the user a line, e.g. when a worker that has died is started again; `log` takes what
    its workers say.
    """

    placement = "worker"

    def __init__(
        self,
        engine: Engine,
        storage: Storage,
        notify: Callable[[str], None],
        log: WorkerLog,
        options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(engine, storage, options)
        self._notify = notify
        self._process: subprocess.Popen[bytes] | None = None
        self._wire: Wire | None = None
        self._scratch: str | None = None
        self._attached: set[int] = set()
        self._was_started = False
        self._gave_up = False
        self.interpreter: Path | None = None
        self.log = log
        self._mark = 0
        self._warned: list[list[Any]] = []

    @property
    def started(self) -> bool:
        # A worker that was told to end may take a moment to be gone.
        return self._process is not None and not self._gave_up and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        if self.started:
            return
        died = self._process is not None
        ended = self._ending() if died else ""
        self._clean_up()
        self.interpreter = registry.interpreter(self.engine)
        if not CAN_PASS_FILES:
            raise EngineError(
                f"{self.engine.title} needs a worker, which {platform.system()} can't run (it has no Unix sockets "
                "that pass memory)",
                allowed="allowed are engines in the notebook's own process",
                next_step="kernelk.set_backend('numpy')",
            )
        begin = time.perf_counter()
        with self.held():
            try:
                with self.waiting("starting"):
                    self._launch()
                    self._welcome(self._receive())
            except WorkerDiedError as error:
                words = self._last_words()
                self.stop()
                raise EngineError(
                    f"{self.engine.title}'s worker ended while starting{words}",
                    next_step=self.engine.repair(words),
                ) from error
            except OSError as error:
                self.stop()
                raise EngineError(
                    f"{self.engine.title}'s worker can't be started: {error}", next_step=self.engine.repair("")
                ) from error
            except BaseException:
                self.stop()
                raise
        self.start_seconds = time.perf_counter() - begin
        if died and self._was_started:
            self._notify(f"{self.engine.title}'s worker {ended}; it was restarted with all variables, nothing is lost")
        self._was_started = True
        # What is said at a start is for the log alone.
        self.log.drain()
        self.listen()

    def _launch(self) -> None:
        assert self.interpreter is not None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._scratch = tempfile.mkdtemp(prefix=f"kernelk-{self.engine.name}-")
        own = self.interpreter == Path(sys.executable)
        environment = dict(os.environ)
        if not own:
            # What the kernel's interpreter is told must not reach another version's.
            for name in ("PYTHONHOME", "PYTHONPATH", "PYTHONSTARTUP", "LD_PRELOAD"):
                environment.pop(name, None)
        options = {"cache": cache_folder(self.engine), "scratch": self._scratch, **self.options}
        setup = [str(_ISLAND), theirs.fileno(), self.engine.path, self.engine.backend, options]
        argument = json.dumps([*setup, [path for path in sys.path if path] if own else []])
        # One pipe for both, so that they stay in order.
        read_fd, write_fd = os.pipe()
        os.set_blocking(read_fd, False)
        self._wire = Wire(ours)
        try:
            with theirs, os.fdopen(write_fd, "wb"):
                self._process = subprocess.Popen(
                    [str(self.interpreter), "-I", "-c", _BOOT, argument],
                    stdin=subprocess.DEVNULL,
                    stdout=write_fd,
                    stderr=write_fd,
                    pass_fds=[theirs.fileno()],
                    env={**environment, "TMPDIR": self._scratch},
                    # A group of its own: the notebook's interrupt reaches the kernel alone.
                    start_new_session=True,
                )
        except BaseException:
            os.close(read_fd)
            raise
        self.log.add(f"--- {self.engine.title}, pid {self._process.pid}, {time.strftime('%H:%M:%S')}")
        self._mark = self.log.total
        self.log.follow(read_fd)
        _running.add(self)

    def listen(self) -> None:
        if self._warned:
            # Of what no call asked for, such as a swap's loading.
            note(self._warned, self.log)
            self._warned.clear()
        self._mark = self.log.total

    def tell(self) -> None:
        if self.log.drain() != self._mark:
            show(self.engine.name, self.log, self._mark)
        if self._warned:
            warned, self._warned = self._warned, []
            warn_again(self.engine.title, warned, self.log)

    def _hints(self, doing: str) -> list[str]:
        return ["Ctrl-C cancels", *(self.facts.get("while_compiling", ()) if doing == "compiling" else ())]

    def held(self) -> DeferInterrupt:
        """Ctrl-C waits up to 2 seconds for the call to end; then, or at a second one, the worker is ended."""
        return DeferInterrupt(self._give_up, 2.0 if self.facts else 0.0)

    def _give_up(self) -> None:
        self._gave_up = True
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            kill_group(self._process.pid)

    def _receive(self) -> dict[str, Any]:
        assert self._wire is not None
        try:
            reply = self._wire.receive()
        except WireClosed as error:
            raise WorkerDiedError("the worker ended") from error
        if "error" in reply:
            raise self._explain(reply["error"])
        return reply  # type: ignore[no-any-return]

    def _explain(self, error: dict[str, Any]) -> Exception:
        if error["type"] in ("ImportError", "ModuleNotFoundError") and not self.facts:
            return BackendNotInstalledError(
                f"{self.engine.title} can't be imported in {self.interpreter}: {error['message']}",
                next_step=self.engine.repair(error["message"]),
            )
        if error["type"] == OptionError.__name__:
            return ArgumentError(
                error["message"], allowed=error.get("allowed", ""), next_step=error.get("next_step", "")
            )
        return engine_error(self.engine, error, f"%kbackend --log {self.engine.name} shows what it printed")

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self._wire is not None
        new = [n for n in self.storage.segments if n not in self._attached]
        if new:
            # At most 64 descriptors fit into one message.
            for start in range(0, len(new), 64):
                self._attach(new[start : start + 64])
        try:
            self._wire.send(message)
            reply = self._wire.receive()
        except WireClosed as error:
            raise self._death(error.unread) from error
        if "warnings" in reply:
            self._warned += reply.pop("warnings")
        if "error" in reply:
            raise self._explain(reply["error"])
        return reply  # type: ignore[no-any-return]

    def _attach(self, numbers: list[int]) -> None:
        assert self._wire is not None
        segments: list[Segment] = [self.storage.segments[n] for n in numbers]
        message = {
            "do": "attach",
            "attach": [[n, segment.size] for n, segment in zip(numbers, segments)],
        }
        try:
            self._wire.send(message, [segment.fileno for segment in segments])
            self._wire.receive()
        except WireClosed as error:
            raise self._death(error.unread) from error
        self._attached.update(numbers)

    def _ending(self) -> str:
        """How the worker ended, in words."""
        assert self._process is not None
        if self._gave_up:
            return "was ended by Ctrl-C"
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        if code < 0:
            try:
                return f"was killed by {signal.Signals(-code).name}"
            except ValueError:
                return f"was killed by signal {-code}"
        return f"ended with status {code}"

    def _last_words(self) -> str:
        """What the worker said last, since its start or since the call began, for an error message."""
        self.log.drain()
        return last_words(self.log.since(self._mark)[0])

    def _death(self, before_call: bool) -> WorkerDiedError:
        if self._gave_up:
            # The user asked for it; KeyboardInterrupt follows.
            error = WorkerDiedError(f"{self.engine.title}'s worker {self._ending()}")
        else:
            error = WorkerDiedError(
                f"{self.engine.title}'s worker {self._ending()} in the middle of a call{self._last_words()}: that call "
                "did not happen, all earlier ones are kept",
                next_step="run the cell again, which restarts the worker",
            )
            error.before_call = before_call
        self._forget()
        return error

    def _clean_up(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        self._kill()
        if self._process is not None:
            self._process.wait()
            self._process = None
        self._gave_up = False
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
        self._attached.clear()
        self._forget()
        _running.discard(self)

    def release(self, variables: list[int], segments: list[int]) -> None:
        known = [n for n in segments if n in self._attached]
        self._attached.difference_update(known)
        super().release(variables, known)

    def stop(self) -> None:
        if self._wire is not None and self.started:
            with contextlib.suppress(WireClosed, OSError, subprocess.TimeoutExpired):
                self._wire.send({"do": "stop"})
                if self._process is not None:
                    self._process.wait(timeout=1)
        self._clean_up()


_running: weakref.WeakSet[WorkerHost] = weakref.WeakSet()


@atexit.register
def _stop_workers() -> None:
    for host in list(_running):
        host.stop()
