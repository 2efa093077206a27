"""Runs a panel's slow work in a thread: starting or installing an engine."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from ..display import messages
from ..engines import registry
from ..engines.descriptors import Engine
from ..engines.host import Host
from ..engines.options import requested_options
from ..engines.worker_host import WorkerHost
from ..errors import ArgumentError, BackendNotInstalledError, EngineError, SwapRefusedError
from ..manage import install
from ..session.session import Session
from ..session.swap import Preparation, prepare, take_over
from . import facts

# A job's line is sent no more often than this, in seconds.
EVERY = 0.25


class Job:
    """A running job, as the panels show it. `host`: that of an engine that is starting, which can be cancelled."""

    def __init__(self, engine: Engine, text: str, host: Host | None = None) -> None:
        self.engine = engine
        self.text = text
        self.host = host
        self.begin = time.monotonic()
        self.cancelled = False
        self.error: Exception | None = None

    def as_dict(self) -> dict[str, Any]:
        """The job as the front end shows it."""
        return {
            "engine": self.engine.name,
            "title": self.engine.title,
            "text": self.text,
            "seconds": time.monotonic() - self.begin,
            "cancel": self.host is not None,
        }


class Panels(Protocol):
    """The part of the hub that the jobs use: the session and the kernel's loop, and how to tell all panels."""

    session: Session
    loop: asyncio.AbstractEventLoop | None

    def tell(self, message: dict[str, Any]) -> None:
        """Sends a message to every panel that is in view."""

    def after_cell(self, call: Callable[[], None]) -> bool:
        """Defers the call to the end of the running cell; returns False, and defers nothing, if no cell is running."""

    def capturing(self) -> contextlib.AbstractContextManager[None]:
        """Sends the messages that would be shown in a cell to the panels instead."""

    def swapped(self) -> None:
        """Sends the panels what a swap has changed."""

    def tell_engines(self) -> object:
        """Sends the panels the state of all engines."""


class Jobs:
    """Runs one job at a time. Its methods are called on the main thread; `broken`: why engines could not be started."""

    def __init__(self, panels: Panels) -> None:
        self._panels = panels
        self.current: Job | None = None
        self.broken: dict[str, str] = {}

    # --- swaps ---

    def swap(self, message: dict[str, Any]) -> None:
        """Makes an engine the active one: at once, or after its worker has started, if it needs one."""
        session = self._panels.session
        engine = registry.engine(str(message.get("engine")))
        if self.current is not None:
            raise ArgumentError(f"{self.current.text}; one thing at a time", next_step="wait for it, or cancel it")
        changes = requested_options(
            engine, message.get("device"), message.get("threads"), precision=message.get("precision")
        )
        prepared = prepare(session, engine.name, changes, beside=True)
        if self._takes_seconds(prepared):
            job = Job(engine, f"{engine.title} is starting", prepared.host)
            self._work(job, prepared.host.start, lambda: self._started(prepared))
        else:
            self._take_over(prepared)

    def _takes_seconds(self, prepared: Preparation) -> bool:
        if self._panels.loop is None or prepared.host.started or not isinstance(prepared.host, WorkerHost):
            return False
        try:
            registry.require(prepared.engine)
        except BackendNotInstalledError:
            return False  # the swap itself says what is missing
        return True

    def _started(self, prepared: Preparation) -> None:
        """Called when the thread is done: the engine takes over the session, now or when the running cell ends."""
        job, title = self.current, prepared.engine.title
        assert job is not None
        if self._panels.after_cell(lambda: self._started(prepared)):
            job.text = f"{title} takes over when the running cell ends"
            self._tell_job()
            return
        self.current = None
        self._tell_job()
        if job.cancelled:
            prepared.host.stop()
            self._tell("info", f"{title}'s start was cancelled")
        elif job.error is not None:
            self._failed(prepared.engine, job.error)
        else:
            self._take_over(prepared)

    def _take_over(self, prepared: Preparation) -> None:
        try:
            with self._panels.capturing():
                report = take_over(self._panels.session, prepared, "the panel")
        except Exception as error:
            self._failed(prepared.engine, error)
            return
        self.broken.pop(prepared.engine.name, None)
        self._tell("done", facts.in_words(report))
        self._panels.swapped()

    def cancel(self) -> None:
        """Stops an engine that is starting."""
        job = self.current
        if job is not None and job.host is not None and not job.cancelled:
            job.cancelled = True
            if isinstance(job.host, WorkerHost):
                job.host.cancel()

    # --- installs ---

    def install(self, message: dict[str, Any]) -> None:
        """Builds an engine's environment."""
        engine = registry.engine(str(message.get("engine")))
        if self.current is not None:
            raise ArgumentError(f"{self.current.text}; one thing at a time", next_step="wait for it")
        loop = self._panels.loop
        if loop is None:
            raise ArgumentError("this needs a notebook's kernel", next_step=engine.get)
        job, last = Job(engine, f"{engine.title} is being installed"), 0.0

        def report(text: str) -> None:
            nonlocal last
            job.text = text
            if time.monotonic() - last > EVERY:
                last = time.monotonic()
                loop.call_soon_threadsafe(self._tell_job)

        report.moving = report  # type: ignore[attr-defined]
        self._work(job, lambda: install.install(engine.name, report), lambda: self._installed(engine))

    def _installed(self, engine: Engine) -> None:
        job, self.current = self.current, None
        self._tell_job()
        if job is not None and job.error is not None:
            self._failed(engine, job.error)
            return
        self.broken.pop(engine.name, None)
        self._tell("done", f"{engine.title} is installed")
        self._panels.tell_engines()

    # --- both ---

    def _work(self, job: Job, work: Callable[[], object], then: Callable[[], None]) -> None:
        """Runs `work` in a thread, and then `then` on the main thread."""
        loop = self._panels.loop
        assert loop is not None
        self.current = job
        self._tell_job()

        def run() -> None:
            try:
                with messages.captured():
                    work()
            except Exception as error:
                job.error = error
            loop.call_soon_threadsafe(then)

        # The context says which session this is for.
        run_here = contextvars.copy_context().run
        threading.Thread(target=run_here, args=(run,), name="kernelk-panel", daemon=True).start()

    def _failed(self, engine: Engine, error: Exception) -> None:
        session = self._panels.session
        if isinstance(error, (EngineError, BackendNotInstalledError)):
            host = session.hosts.get(engine.name)
            if host is None or not host.started:
                self.broken[engine.name] = str(error)
        notice = facts.refusal(error)
        # A swap that is refused says it itself.
        if session.active != engine.name and not isinstance(error, SwapRefusedError):
            notice["text"] += f" ('{session.active}' stays active)"
        self._panels.tell(notice)
        self._panels.tell_engines()

    def _tell(self, level: str, text: str) -> None:
        self._panels.tell({"kind": "notice", "level": level, "text": text, "reasons": []})

    def _tell_job(self) -> None:
        self._panels.tell(self.as_message())

    def as_message(self) -> dict[str, Any]:
        """The message on the job that runs now, if one does."""
        return {"kind": "job", "job": self.current and self.current.as_dict()}
