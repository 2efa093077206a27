"""Runs a backend in a process of its own: starts it, sends requests over the wire, and restarts it when it has died."""

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
from typing import Any, NoReturn, Protocol

from ..backends.errors import OptionError
from ..backends.serving.shared_memory import Segment
from ..backends.serving.wire import CAN_PASS_FILES, Malformed, TooLong, Wire, WireClosed
from ..child_process import ChildProcess
from ..errors import (
    ArgumentError,
    BackendNotInstalledError,
    EngineError,
    KernelKError,
    WorkerDiedError,
    joined,
    one_line,
)
from ..twins import as_typed, as_usable
from . import forks, memory, registry
from .descriptors import Engine
from .exchange import Exchange
from .host import RELEASED, cache_folder, engine_error
from .interrupts import DeferInterrupt, is_deferred
from .keeping_host import KeepingHost
from .process_environment import worker_variables
from .start_failures import failed_start, signal_name
from .storage import Storage
from .waits import Wait, Worker, in_steps
from .worker_environment import WorkerEnvironment
from .worker_log import WorkerLog, last_words, note, show, warn_again

# At most so many things are named in one "release" message: small enough to be sent without waiting for the worker.
_MOST_RELEASED = 500

# A worker that takes longer, in seconds, to give freed memory back isn't waited for.
_GIVEN_BACK_WITHIN = 1.0

# From so many bytes on, the engine is told at once that it may forget what a call has replaced.
_CONFIRMED_AT_ONCE = 16 << 20

_ISLAND = Path(__file__).parent.parent / "backends"

# The worker's first lines. The island is loaded from its folder under its own name, and `kernelk` itself is only a
# namespace around it: none of its code is run, and neither its folder nor the notebook's gets into an old
# interpreter's path. A third party's module finds the same `kernelk.backends.base` there as the island does.
_BOOT = """
import importlib, importlib.util, json, os, sys, types
kernel, folder, fileno, module, backend, options, paths = json.loads(sys.argv[1])
sys.path.extend(path for path in paths if path not in sys.path)
home = types.ModuleType("kernelk")
home.__path__ = [os.path.dirname(folder)]
sys.modules["kernelk"] = home
spec = importlib.util.spec_from_file_location(
    "kernelk.backends", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder])
package = importlib.util.module_from_spec(spec)
sys.modules["kernelk.backends"] = home.backends = package
spec.loader.exec_module(package)
importlib.import_module("kernelk.backends.serving.watcher").watch(kernel, options["scratch"])
importlib.import_module("kernelk.backends.serving.worker").main(fileno, module, backend, options)
"""


def kill_group(pid: int) -> None:
    """Ends a worker and what it has started; without process groups, the worker alone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGTERM)


class Process(Protocol):
    """A worker's process: a `ChildProcess`, or what stands for one on another machine."""

    pid: int
    returncode: int | None

    def poll(self) -> int | None:
        """Its return code, None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Its return code, once it has ended. Raises subprocess.TimeoutExpired."""


class WorkerHost(KeepingHost):
    """A backend in a process of its own, reached by a socket pair and shared memory.

    `notify(text)` shows the user a line, e.g. that a dead worker was started again; `log` takes its workers' output.
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
        self._process: Process | None = None
        self._exchange: Exchange | None = None
        self._scratch: str | None = None
        self._attached: set[int] = set()
        self._was_started = False
        self._ended = ""  # how this side has ended the worker, in words
        self._gone: dict[str, list[Any]] = {}  # released here, but not yet in the worker
        self.interpreter: Path | None = None
        self._environment: WorkerEnvironment | None = None
        self.log = log
        self._mark = 0
        self._warned: list[list[Any]] = []
        self._told = 0  # the number of the last call that the worker knows to count
        self._told_of_building = False
        self._built = 0  # how many programs, or parts of them, are built since that was last told
        self._replaceable = False  # whether what is asked for can be had from a new worker just as well
        forks.tell(self)

    @property
    def started(self) -> bool:
        # A worker that was told to end may take a moment to exit.
        return self._process is not None and not self._ended and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        if self.started:
            return
        ended = self._ending() if self._process is not None else ""
        self._clean_up()
        self._find_interpreter()
        begin = time.perf_counter()
        with self.held():
            try:
                with self.waiting("starting"):
                    self._launch()
                    self._welcome(self._hello())
            except WorkerDiedError as error:
                failed = self._failed_start()
                self.end()
                raise failed from error
            except OSError as error:
                self.end()
                raise EngineError(
                    f"{self.engine.title}'s worker can't be started: {error}", next_step=self.engine.repair("")
                ) from error
            except BaseException:
                self.end()
                raise
        self.start_seconds = time.perf_counter() - begin
        self.last_end = ended
        if ended and self._was_started and not self.lost:
            self._notify(f"{self.engine.title}'s worker {ended}; it was restarted with all variables, nothing is lost")
        self._was_started = True
        # Output during the start is only kept in the log.
        self.log.drain()
        self.listen()

    def _failed_start(self) -> EngineError:
        """The error for a worker that ended while it was starting."""
        code = self._process.returncode if self._process is not None else None
        return failed_start(self.engine, code or 0, self._last_words())

    def _find_interpreter(self) -> None:
        """Finds the interpreter for the worker. Raises BackendNotInstalledError, EngineError where none can run."""
        self.interpreter = registry.interpreter(self.engine)
        if not CAN_PASS_FILES:
            raise EngineError(
                f"{self.engine.title} needs a worker, which {platform.system()} can't run (it has no Unix sockets "
                "that pass memory)",
                allowed="allowed are engines in the notebook's own process",
                next_step="kernelk.set_backend('numpy')",
            )

    def _launch(self) -> None:
        assert self.interpreter is not None
        self._environment = WorkerEnvironment(self.engine, self.interpreter)
        kernel_end, worker_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        for connection in (kernel_end, worker_end):
            # The user's own default timeout isn't meant for this socket.
            connection.settimeout(None)
        cache = cache_folder(self.engine)
        own = self.interpreter == Path(sys.executable)
        environment = worker_variables(own)
        # Made as late as possible: until the worker runs, nothing removes it if the kernel is killed.
        self._scratch = tempfile.mkdtemp(prefix=f"kernelk-{self.engine.name}-")
        options = {"cache": cache, "scratch": self._scratch, **self.options}
        setup = [os.getpid(), str(_ISLAND), worker_end.fileno(), self.engine.path, self.engine.backend, options]
        argument = json.dumps([*setup, [path for path in sys.path if path] if own else []])
        # One pipe for both streams, so that they stay in order.
        read_fd, write_fd = os.pipe()
        os.set_blocking(read_fd, False)
        in_steps(kernel_end)
        wire = Wire(kernel_end)
        wire.waiting = self._wait
        self._exchange = Exchange(wire)
        try:
            with worker_end, os.fdopen(write_fd, "wb"):
                self._process = ChildProcess(
                    [str(self.interpreter), "-I", "-c", _BOOT, argument],
                    stdin=subprocess.DEVNULL,
                    stdout=write_fd,
                    stderr=write_fd,
                    pass_fds=[worker_end.fileno()],
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
        running.add(self)

    def notify(self, text: str) -> None:
        self._notify(text)

    def silence(self) -> None:
        self._warned.clear()
        self.log.drain()
        self.listen()

    def listen(self) -> None:
        if self._warned:
            # Warnings outside any call, such as those of a swap's loading.
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
        self._ended = "was ended by Ctrl-C"
        self._kill()

    def cancel(self) -> None:
        """Ends the worker from another thread, while it starts or serves a request: whoever waits for it is told."""
        self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            kill_group(self._process.pid)

    def _hello(self) -> dict[str, Any]:
        assert self._exchange is not None
        try:
            reply = self._exchange.hello()
        except BaseException as error:
            self._raise_broken(error)
        return self._accepted(reply)

    def _accepted(self, reply: dict[str, Any]) -> dict[str, Any]:
        """Takes the warnings out of a reply and returns it. Raises the error that it holds, if any."""
        if "warnings" in reply:
            self._warned += reply.pop("warnings")
        if "built" in reply:
            self._tell_of_builds(**reply.pop("built"))
        if "error" in reply:
            raise self._explain(reply["error"])
        return reply

    def remember(self, key: str, reply: dict[str, Any]) -> None:
        if reply["building"] and not self._told_of_building:
            self._told_of_building = True
            self._notify(
                f"{self.engine.title} computes by numpy code until C code is built (%config KernelK.build_beside = "
                "False waits for it)"
            )
        super().remember(key, reply)

    def _tell_of_builds(self, programs: int, left: int, problems: list[str]) -> None:
        """Tells the user what has come of the programs that were being built beside the calls."""
        self._built += programs
        for problem in dict.fromkeys(problems):
            reason = one_line(problem)[:300]
            self._notify(
                joined(
                    f"{self.engine.title} goes on computing by numpy code, since C code can't be built: {reason}",
                    next_step="%config KernelK.build_beside = False, and run it again for all that the compiler says",
                )
            )
        if left:
            return
        self.building.clear()
        built, self._built = self._built, 0
        if built:
            self._notify(
                f"{self.engine.title}'s C code is built and runs from here on; the last digits of results may differ"
            )

    def _explain(self, error: dict[str, Any]) -> Exception:
        if error["type"] in ("ImportError", "ModuleNotFoundError") and not self.facts:
            return BackendNotInstalledError(
                f"{self.engine.title} can't be imported in {self.interpreter}: {error['message']}",
                next_step=self.engine.repair(error["message"]),
            )
        if error["type"] == OptionError.__name__:
            return ArgumentError(
                error["message"], allowed=error.get("allowed", ""), next_step=as_typed(error.get("next_step", ""))
            )
        shows = as_usable(f"%kbackend --log {self.engine.name}") + " shows what it printed"
        made, environment = engine_error(self.engine, error, shows), self._environment
        if error["device_lost"]:
            # The next use starts another one, in which calls are repeated whose results lay on the device alone.
            self._end(f"was ended, since {self.facts.get('device')} can't be used after an error")
            made.remark("its device can't be used after this, so the worker was ended; nothing is lost")
        change = environment.change() if environment is not None else ""
        if environment is None or not change:
            return made
        cause = f"its environment, {environment.folder}, was {change} while it ran"
        if change == "removed":
            made.remark(cause)
            made.next_step = self.engine.get
            return made
        self._end(f"was ended, since {cause}")
        died = WorkerDiedError(
            f"{self.engine.title}'s worker failed, since {cause}", next_step="run the cell again, which restarts it"
        )
        # A request that fails changes nothing: it can be made again.
        died.before_call = True
        return died

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        if is_deferred():
            return self._request(message)
        # A Ctrl-C just before the reply must not cost the worker.
        with self.held():
            return self._request(message)

    def _request(self, message: dict[str, Any]) -> dict[str, Any]:
        exchange = self._ready()
        confirmed = self.confirmed
        if confirmed != self._told:
            message.setdefault("confirmed", confirmed)
        self._replaceable = message["do"] in ("fetch", "summarise")
        try:
            reply = exchange.ask(message)
        except BaseException as error:
            self._raise_broken(error)
        self._told = confirmed
        return reply if len(reply) == 1 and "seconds" in reply else self._accepted(reply)

    def _ready(self) -> Exchange:
        """The exchange, when the worker has nothing else to do and knows all memory."""
        exchange = self._exchange
        if exchange is None:
            raise self._death(True)
        if exchange.under_way:
            self._refuse_second(exchange)
        if self._gone or exchange.owed:
            with self.waiting("compiling") if exchange.owes("compile") else contextlib.nullcontext():
                self._release_all(exchange)
        new = [n for n in self.storage.segments if n not in self._attached]
        if new:
            # At most 64 descriptors fit into one message.
            for start in range(0, len(new), 64):
                self._attach(exchange, new[start : start + 64])
        return exchange

    def forward(self, message: dict[str, Any]) -> dict[str, Any]:
        """The reply to a request just as it came, for another process to explain. Raises as `request`, if it ended."""
        exchange = self._ready()
        self._replaceable = message["do"] in ("fetch", "summarise")
        try:
            return exchange.ask(message)
        except BaseException as error:
            self._raise_broken(error)

    def request_within(self, message: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        end = time.perf_counter() + seconds
        with self.held():
            exchange = self._ready()
            try:
                exchange.post(message, True)
            except BaseException as error:
                self._raise_broken(error)
        try:
            while (reply := exchange.settle(False)) is None:
                if time.perf_counter() > end:
                    return None
                time.sleep(0.002)
        except BaseException as error:
            self._raise_broken(error)
        return self._accepted(reply)

    def give_back(self) -> None:
        if self.started and self._exchange is not None and not self._exchange.under_way:
            with contextlib.suppress(KernelKError):
                self.request_within({"do": "give_back"}, _GIVEN_BACK_WITHIN)

    def _attach(self, exchange: Exchange, numbers: list[int]) -> None:
        segments: list[Segment] = [self.storage.segments[n] for n in numbers]
        message = {"do": "attach", "attach": [[n, segment.size] for n, segment in zip(numbers, segments)]}
        try:
            reply = exchange.ask(message, [segment.fileno for segment in segments])
        except BaseException as error:
            self._raise_broken(error)
        if "error" in reply:
            wanted, reason = sum(segment.size for segment in segments), one_line(reply["error"]["message"])
            raise memory.refused(wanted, f"{self.engine.title}'s worker", MemoryError(reason))
        self._accepted(reply)
        self._attached.update(numbers)

    def _release(self, **gone: list[Any]) -> None:
        """Lets the worker forget these without waiting for it, so that one that hangs delays nothing."""
        for kind, items in gone.items():
            if items:
                self._gone[kind] = [*self._gone.get(kind, ()), *items]
        exchange = self._exchange
        # During another request, this is sent before the next one.
        if exchange is None or exchange.under_way:
            return
        with self.held():
            try:
                self._post_gone(exchange, False)
            except BaseException as error:
                with contextlib.suppress(KernelKError):
                    # Nothing is lost, and the next use reports what went wrong.
                    self._raise_broken(error)

    def confirm(self) -> None:
        # At rest the engine then has one value of each. What is small waits for the next request, and costs nothing.
        if self.updating >= _CONFIRMED_AT_ONCE:
            self._release()

    def _release_all(self, exchange: Exchange) -> None:
        try:
            while self._gone:
                self._post_gone(exchange, True)
            self._warned += (exchange.settle(True) or {}).get("warnings", ())
        except WireClosed as error:
            raise self._death(True) from error
        except BaseException as error:
            self._raise_broken(error)

    def _post_gone(self, exchange: Exchange, wait: bool) -> None:
        reply = exchange.settle(wait)
        if reply is None:
            return
        self._warned += reply.get("warnings", ())
        message: dict[str, Any] = {"do": "release", "confirmed": self.confirmed}
        rest, room = {}, _MOST_RELEASED
        for kind in RELEASED:
            items = self._gone.get(kind, [])
            message[kind] = items[:room]
            if items[room:]:
                rest[kind] = items[room:]
            room -= len(message[kind])
        if exchange.post(message, wait):
            self._gone = rest

    def _refuse_second(self, exchange: Exchange) -> NoReturn:
        """Refuses a request while another is unfinished: it was made within that one, or that one was cut short."""
        if exchange.is_inside:
            raise EngineError(
                f"{self.engine.title} is in the middle of a call, and this one came from a signal handler or a "
                "finalizer within it",
                next_step="make it after that call",
            )
        self._end("was ended in the middle of a call by an exception")
        raise self._death(True)

    def _raise_broken(self, error: BaseException) -> NoReturn:
        """Called when an exchange was cut short: ends the worker, and raises the error for the user."""
        exchange, title = self._exchange, self.engine.title
        if isinstance(error, TooLong):
            raise EngineError(f"{title} can't be sent this: {error}", next_step="write a smaller graph") from error
        if exchange is not None and not exchange.under_way:
            # Before the first byte or after the last one.
            raise error
        if isinstance(error, WireClosed):
            raise self._death(error.unread) from error
        kept = "it was ended, and all variables are kept"
        if isinstance(error, Malformed):
            self._end("was ended, since it sent an invalid reply")
            raise EngineError(
                f"{title}'s worker sent an invalid reply ({one_line(error)[:200]}): {kept}",
                next_step="run the cell again, which restarts the worker",
            ) from error
        self._end(f"was ended in the middle of a call by {type(error).__name__}")
        # An error raised by a signal handler, a TimeoutError too, has no errno.
        if isinstance(error, OSError) and error.errno is not None:
            raise EngineError(
                f"the connection to {title}'s worker failed ({error}): {kept}",
                next_step="run the cell again, which restarts the worker",
            ) from error
        raise error

    def _end(self, words: str) -> None:
        """Ends the worker, whatever its state; the next use starts another one and loads all variables."""
        self._ended = self._ended or words
        self._kill()
        if self._process is not None:
            # Until it is gone, it may write to memory that is used again.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)
        self._forget()

    def _wait(self) -> Wait:
        """The watch on the worker while the kernel waits for it."""
        folder = Path(cache_folder(self.engine)) if self.engine.compiles_c else None
        return Wait(
            Worker(self.engine.title, self.pid or 0, self.facts.get("device"), folder),
            self._notify,
            self._end_stuck,
            self._replaceable,
        )

    def _end_stuck(self, words: str) -> NoReturn:
        self._end(f"was ended, since it {words}")
        kept = "that call did not happen, all earlier ones are kept" if self.facts else "nothing is lost"
        raise EngineError(
            f"{self.engine.title}'s worker {words} and was ended (%config KernelK.stuck_seconds): {kept}",
            next_step="run the cell again, which restarts the worker",
        )

    def _ending(self) -> str:
        """Describes how the worker ended."""
        if self._ended:
            return self._ended
        assert self._process is not None
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "closed its connection"
        return f"was killed by {signal_name(code)}" if code < 0 else f"ended with status {code}"

    @property
    def ending(self) -> str:
        """How the worker has ended, in words."""
        return self._ending()

    def _last_words(self) -> str:
        """The worker's last output, since its start or since the call began, for an error message."""
        self.log.drain()
        return last_words(self.log.since(self._mark)[0])

    def _death(self, before_call: bool) -> WorkerDiedError:
        if self._ended:
            # This side ended it: the reason is being reported already.
            error = WorkerDiedError(
                f"{self.engine.title}'s worker {self._ended}", next_step="run the cell again, which restarts the worker"
            )
        else:
            ending = self._ending() if self._process is not None else "is gone"
            error = WorkerDiedError(
                f"{self.engine.title}'s worker {ending} in the middle of a call{self._last_words()}: that call "
                "did not happen, all earlier ones are kept",
                next_step="run the cell again, which restarts the worker",
            )
            self._end(ending)
        error.before_call = before_call
        return error

    def _forget(self) -> None:
        super()._forget()
        self._gone = {}

    def _clean_up(self) -> None:
        # If this is cut short, the next start repeats it.
        self._ended = self._ended or "was stopped"
        if self._exchange is not None:
            self._exchange.close()
            self._exchange = None
        self._kill()
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
        self._attached.clear()
        self._forget()
        running.discard(self)
        self._ended = ""

    def forked(self) -> None:
        """In a forked child: the worker stays the parent's and keeps running; this host isn't started, and can be."""
        if self._exchange is not None:
            # Closed in the child only: the parent's end of the connection stays open.
            self._exchange.close()
        if self._process is not None:
            self._process.returncode = 0  # only the parent can wait for it
        self._process = self._exchange = self._scratch = None
        self._ended, self._was_started, self._warned = "", False, []
        self._attached.clear()
        self._forget()
        running.discard(self)

    def release(self, variables: list[int], segments: list[int]) -> None:
        known = [n for n in segments if n in self._attached]
        self._attached.difference_update(known)
        super().release(variables, known)

    def end(self) -> None:
        if self._exchange is not None and self.started:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._exchange.finish()
                if self._process is not None:
                    self._process.wait(timeout=1)
        self._clean_up()


# Those whose workers end with this process.
running: weakref.WeakSet[WorkerHost] = weakref.WeakSet()


@atexit.register
def stop_workers() -> None:
    """Ends all of them, if they are this process's own."""
    for host in list(running) if forks.in_own_process() else ():
        # The values end with the kernel.
        host.end()
