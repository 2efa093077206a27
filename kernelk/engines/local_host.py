"""`LocalHost`: an engine in the kernel's own process, the alternative to a worker."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from ..arrays import Array
from ..backends.errors import OptionError
from ..backends.serving.executor import Executor
from ..display import messages
from ..errors import ArgumentError, BackendNotInstalledError, EngineError, ForkedError, end_at_users_line, one_line
from ..twins import as_typed, as_usable
from . import forks, registry
from .checkpoint import Checkpoint, lost
from .descriptors import Engine
from .host import Host, cache_folder, engine_error, refused_option
from .interrupts import shield
from .storage import Slots, Storage

if TYPE_CHECKING:
    from ..program.program import Program

# Backends' notes that the user has seen.
_notes_shown: set[str] = set()

# Made once: a call passes it twice.
_UNHELD = contextlib.nullcontext()

# Engines that the parent of this forked process had started in it, by name: their threads aren't here, and what is left
# of them is kept, since it may hang or crash when it is freed.
_unusable: dict[str, list[Executor]] = {}


class LocalHost(Host):
    """A backend in the kernel's own process, whose arrays and the engine's own pass without a copy where they can.

    Raises ArgumentError for an engine that can't be there.
    """

    placement = "kernel"

    def __init__(self, engine: Engine, storage: Storage, options: dict[str, Any] | None = None) -> None:
        super().__init__(engine, storage, options)
        if not (engine.in_kernel or engine.in_kernel_too):
            allowed = registry.names_where(lambda engine: engine.in_kernel_too)
            raise ArgumentError(
                f"{engine.title} can't run in the notebook's own process",
                allowed=f"allowed are {', '.join(allowed)}",
                next_step=as_typed(f"%kbackend {engine.name}, which runs it in a worker"),
            )
        self._executor: Executor | None = None
        self._scratch: weakref.finalize[..., LocalHost] | None = None
        self._fed: list[Array] = []
        self._results: list[Any] = []
        self._wanted = "arrays"
        # Where the engine keeps newest values on a device that an error may leave unusable
        self.checkpoint: Checkpoint | None = None
        self._device_lost = False
        self.told = False  # whether an error has told what is lost with the device
        forks.tell(self)

    @property
    def started(self) -> bool:
        return self._executor is not None

    @property
    def pid(self) -> int | None:
        return os.getpid()

    def forked(self) -> None:
        """In a forked child: an engine with threads of its own can't continue, and the folder stays the parent's."""
        if self._scratch is not None:
            self._scratch.detach()
            self._scratch = None
        if self._executor is not None and not self.engine.in_kernel:
            _unusable.setdefault(self.engine.name, []).append(self._executor)
            self._executor = None
            self._forget()

    @property
    def lost(self) -> bool:
        return self._device_lost and bool(self.holding)

    def _welcome(self, hello: dict[str, Any]) -> None:
        super()._welcome(hello)
        if self.can_keep and not str(self.facts.get("device") or "cpu").startswith("cpu"):
            self.checkpoint = self.checkpoint or Checkpoint()

    def keeps(self, program: Program, feeds: list[Array]) -> bool:
        if self.checkpoint is not None:
            self.checkpoint.keep(program)
        return True

    def must_fetch(self, feeds: list[Array]) -> bool:
        return self.checkpoint is not None and self.checkpoint.due

    def fetched(self, seconds: float | None) -> None:
        if self.checkpoint is not None:
            # Replaced at once: cut short anywhere, there is a whole one.
            old, self.checkpoint = self.checkpoint, self.checkpoint.next(seconds)
            old.clear()

    def _forget(self) -> None:
        super()._forget()
        if not self.holding:
            # A call that has failed may have kept values.
            self.fetched(None)

    def hold(self, slots: Slots, version: int) -> None:
        Host.hold(self, slots, version)
        if self.checkpoint is not None:
            self.checkpoint.changed(slots, version, self.call, self.last_run_seconds)

    def release(self, variables: list[int], segments: list[int]) -> None:
        if self.checkpoint is not None:
            for number in variables:
                self.checkpoint.orphan(number)
        super().release(variables, segments)
        if not self.holding:
            self.fetched(None)

    def start(self) -> None:
        if self._executor is None:
            if self.engine.name in _unusable:
                raise ForkedError(
                    f"{self.engine.title} ran in this process's parent and can't continue in a forked child",
                    allowed="allowed are numpy and engines in a worker",
                    next_step=f"kernelk.set_backend('{self.engine.name}', in_kernel=False)",
                )
            begin = time.perf_counter()
            # Half an imported library can't be imported again: Ctrl-C waits for all of it.
            with shield(), np.errstate(all="ignore"), self.waiting("starting"):
                self._executor = self._started_executor()
            self.start_seconds = time.perf_counter() - begin
            for note in self.facts.get("notes", ()):
                if note not in _notes_shown:
                    _notes_shown.add(note)
                    messages.say(f"kernelk: {note}")

    def _started_executor(self) -> Executor:
        registry.require_version(self.engine)
        folders: dict[str, str | None] = {"cache": cache_folder(self.engine), "scratch": None}
        # One that is always in the kernel has none: it would stay behind where a kernel is killed. On a full or
        # read-only disk all engines in the kernel do without.
        if not self.engine.in_kernel:
            with contextlib.suppress(OSError):
                folders["scratch"] = tempfile.mkdtemp(prefix=f"kernelk-{self.engine.name}-")
                self._scratch = weakref.finalize(self, _remove, folders["scratch"])
                # Its children end without the exit handlers of other processes.
                processes = sys.modules.get("multiprocessing.util")
                if processes is not None:
                    processes.Finalize(None, self._scratch, exitpriority=0)
        try:
            module = importlib.import_module(self.engine.path)
            backend = getattr(module, self.engine.backend)({**folders, **self.options, "in_kernel": True})
            executor = Executor(backend)
            executor.segments = self.storage.segments
            if self._device_lost and not backend.usable():
                raise RuntimeError(f"{self.facts.get('device')} can't be used any more in this process")
            self._device_lost = False
            self._welcome(executor.do_facts({}))
        except BaseException as error:
            self._clean_up()
            if isinstance(error, ImportError):
                raise BackendNotInstalledError(
                    f"{self.engine.title} can't be imported in this kernel: {error}", next_step=self.engine.get
                ) from error
            if isinstance(error, OptionError):
                raise refused_option(error) from error
            if not isinstance(error, Exception):
                raise
            raise EngineError(
                f"{self.engine.title} can't be started: {type(error).__name__}: {one_line(error)}",
                next_step=as_usable(f"%kbackend {self.engine.name} --worker"),
            ) from error
        return executor

    def request(self, message: dict[str, Any]) -> dict[str, Any]:
        if self._executor is None:
            raise EngineError(
                f"{self.engine.title} has no device any more in this process", next_step=self._in_a_worker()
            )
        do = message["do"]
        if do == "run":
            message = {**message, "feeds": self._fed, "results": self._wanted}
        message["confirmed"] = self.confirmed
        # An engine's compiler may keep settings or caches half changed: Ctrl-C waits for it.
        held = shield() if do == "compile" else _UNHELD
        try:
            # The user's own setting, by which numpy raises or warns, isn't meant for what the engine does.
            with held, np.errstate(all="ignore"):
                reply: dict[str, Any] = self._executor.handle(message)
        except BaseException as cut_short:
            # Ctrl-C inside: the kernel's slots are untouched, so everything that lies there is loaded again.
            self.versions = {number: slots.version for number, slots in self.holding.items()}
            if isinstance(cut_short, KeyboardInterrupt):
                end_at_users_line(cut_short)
            raise
        finally:
            self._fed = []
        if "error" in reply:
            error = engine_error(self.engine, reply["error"])
            if reply["error"]["device_lost"]:
                self._lose_device(error, do == "run")
            raise error
        self._results = reply.pop("results", [])
        return reply

    def _lose_device(self, error: EngineError, tells: bool) -> None:
        """Ends an engine whose device can't be used any more; `tells`: the user will see this error."""
        self._device_lost = True
        executor, self._executor = self._executor, None
        self._forget()
        # What is freed on such a device may fail, too.
        with contextlib.suppress(Exception):
            if executor is not None:
                executor.close()
        calls, before = (self.checkpoint.calls, self.checkpoint.before()) if self.checkpoint is not None else (0, [])
        error.remark(f"{self.facts.get('device')} can't be used any more in this process; {lost(calls, before)}")
        error.next_step = self._in_a_worker()
        self.told = tells

    def _in_a_worker(self) -> str:
        return as_usable(f"%kbackend {self.engine.name} --worker, or restart the notebook's kernel")

    def confirm(self) -> None:
        # At rest the engine then has one value of each.
        if self._executor is not None:
            self._executor.confirm(self.confirmed)

    def feed(self, views: list[Array], feeds: list[Array], noted: bool) -> None:
        # The engine may compute otherwise, bit for bit, on another layout than a worker is given.
        self._fed = [
            np.asarray(feed, order="C") if isinstance(feed, np.ndarray) else self._borrowed(feed) for feed in feeds
        ]

    def _borrowed(self, feed: Any) -> Any:
        """A tensor that lies on some device as the engine's own, without a copy; else, its values."""
        assert self._executor is not None
        value = self._executor.backend.borrow(feed.tensor)
        return np.asarray(feed) if value is None else value

    def take(self, views: list[Array]) -> list[Any]:
        results, self._results = self._results, []
        return results

    @contextlib.contextmanager
    def handing_out(self) -> Iterator[None]:
        """Inside, the outputs of calls are the engine's own, to keep and to write to, and not ndarrays."""
        self._wanted = "native"
        try:
            yield
        finally:
            self._wanted = "arrays"

    def held(self) -> contextlib.AbstractContextManager[None]:
        return _UNHELD

    def end(self) -> None:
        executor, self._executor = self._executor, None
        self._forget()
        self._clean_up()
        if executor is not None:
            executor.close()

    def _clean_up(self) -> None:
        if self._scratch is not None:
            self._scratch()
            self._scratch = None


def _remove(folder: str) -> None:
    if forks.in_own_process():
        shutil.rmtree(folder, ignore_errors=True)
