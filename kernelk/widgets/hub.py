"""Connects the session to the open panels: observes swaps, cells and timings, serves requests, updates all panels.

A front end sends dicts with "do", one of the keys of `_DO`, and "request", its own number for the request.
What it gets is a dict with "kind":

    ack        {"request"}                the kernel has the request
    queued     {"request"}                a cell runs: it waits for its end
    engines    facts.engines
    job        {"job": null | {"engine", "title", "text", "seconds", "cancel"}}    what takes seconds just now
    notice     {"level": "done" | "error" | "info", "text", "reasons": [str]}
    rows       {"rows": [inventory's, with "version"]}     all of them
    changes    {"changed": [...], "gone": [key]}     since the last; then values may be new, too
    summaries  {"found": [summaries'], "later": [key]}
    losses     facts.losses
    timings    facts.timings
    graph      {"for": key, "graph": drawing's | null, "error"}
    native     {"for": key, "columns": [...], "error"}
    closed     {}                          the extension was unloaded

A panel's requests are done on the kernel's main thread, between cells. Some front ends send them past a running cell,
to a thread of their own; they wait for its end all the same, and so does one that comes while a cell awaits something.
An engine starts in a thread, and only then takes over, so cells can be run meanwhile. See `jobs`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..display import messages
from ..engines import forks
from ..errors import ArgumentError, KernelKError
from ..inspection.inventory import Row, checked_namespace, names_of, notebook_namespace, rows
from ..inspection.summaries import summary
from ..session.current import current, entered
from ..session.session import Session
from ..session.swap import stop_backend
from . import facts, static
from .jobs import Jobs
from .model import Panel

# Values are read for at most so many seconds per turn, so that cells can run between two turns.
TURN = 0.1
# While a cell trains, its losses are sent so often at most, in seconds.
LOSSES_EVERY = 0.5
# A host that doesn't say when a cell has ended is looked at so often, in seconds, and for so much of the time at most.
LOOK_EVERY, LOOK_SHARE = 0.5, 0.05


# The rows that a panel shows by their keys, each with the version of its value.
Known = dict[int, tuple[Row, int]]


class Hub:
    """The hub of a session; it listens only while a panel is in view."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.panels: list[Panel] = []
        self.jobs = Jobs(self)
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.get_ident()  # the kernel's own; marimo gives each visitor of an app another one
        self._look: asyncio.TimerHandle | None = None
        self._running = False
        self._waiting: deque[Callable[[], None]] = deque()
        self._shell: Any = None
        self._listening = False
        self._known: dict[Panel, Known] = {}
        self._pending: set[str] = set()
        self._losses_sent: dict[int, int] = {}  # functions' numbers -> their calls so far
        self._losses_due = 0.0
        forks.tell(self)

    def forked(self) -> None:
        """In a forked child: drops the panels, since only the parent communicates with their pages."""
        self.panels.clear()
        self._known.clear()
        self._waiting.clear()
        self._stop_listening()

    # --- panels ---

    def open(self, namespace: Mapping[str, Any] | None) -> Panel:
        """Opens a new panel that shows the same state as the others."""
        from IPython.core.getipython import get_ipython

        self._shell, self._thread = get_ipython(), threading.get_ident()
        with contextlib.suppress(RuntimeError):
            self.loop = asyncio.get_running_loop()
        if namespace is None:
            namespace = notebook_namespace()
        checked_namespace(namespace, "panel", "kernelk.panel()")
        panel = Panel(namespace, self.receive, self.forget)
        try:
            self._known[panel] = self._rows(panel)
            self._remember(panel, self._engines(), self._known[panel])
        except BaseException:
            # A panel that can't be shown must not be updated after each cell.
            panel.close()
            raise
        self.panels.append(panel)
        self._listen()
        # The hub wasn't listening yet when the cell that opens the first panel began.
        self._running = self._running or _in_cell(self._shell)
        return panel

    def forget(self, panel: Panel) -> None:
        """Removes a closed panel; after the last one, the hub stops listening."""
        if panel in self.panels:
            self.panels.remove(panel)
        self._known.pop(panel, None)
        if not self.panels:
            self._stop_listening()

    def close(self) -> None:
        """Closes all panels, and cancels the jobs that were started for them."""
        self.jobs.cancel()
        for panel in list(self.panels):
            panel.send({"kind": "closed"})
            panel.close()
        self._stop_listening()
        self.jobs.broken.clear()
        self._waiting.clear()

    # --- what happens in the session ---

    def _listen(self) -> None:
        if self._listening:
            return
        self._listening = True
        self.session.observe(self._refresh_soon, "active")
        self.session.observe(self._measured, "measurements")
        self.session.loss_listener = self._stepped
        if self._shell is not None:
            # Not "pre_execute" and "post_execute", which a panel's own messages trigger as well.
            self._shell.events.register("pre_run_cell", self._cell_begins)
            self._shell.events.register("post_run_cell", self._cell_ended)
        elif self.loop is not None:
            self._look = self.loop.call_later(LOOK_EVERY, self._look_again)

    def _stop_listening(self) -> None:
        if not self._listening:
            return
        self.session.unobserve(self._refresh_soon, "active")
        self.session.unobserve(self._measured, "measurements")
        self.session.loss_listener = None
        self._listening = False
        if self._look is not None:
            self._look.cancel()
            self._look = None
        if self._shell is not None:
            for event, call in (("pre_run_cell", self._cell_begins), ("post_run_cell", self._cell_ended)):
                with contextlib.suppress(ValueError):
                    self._shell.events.unregister(event, call)
        self._running = False

    def _cell_begins(self, info: Any = None) -> None:
        self._running = True

    def _cell_ended(self, result: Any = None) -> None:
        self._running = False
        self._refresh_soon()
        self._soon("waiting", self._do_waiting)

    def _look_again(self) -> None:
        """Updates the panels if anything has changed, where no event says so, as in marimo."""
        assert self.loop is not None
        begin = time.perf_counter()
        try:
            with entered(self.session):
                changes = [_changes(self._known.get(one, {}), self._rows(one)) for one in self._in_view()]
                if any(changed or gone for changed, gone in changes):
                    self._refresh()
        finally:
            seconds = time.perf_counter() - begin
            if self._listening:
                self._look = self.loop.call_later(max(LOOK_EVERY, seconds / LOOK_SHARE), self._look_again)

    def _refresh_soon(self, change: Any = None) -> None:
        self._soon("cell", self._refresh)

    def _measured(self, change: Any) -> None:
        self._soon("timings", self._tell_timings)

    def _stepped(self) -> None:
        """Sends the losses in the middle of a cell, which is when one wants to see them."""
        now = time.monotonic()
        if now < self._losses_due:
            return
        self._losses_due = now + LOSSES_EVERY
        if threading.get_ident() != self._thread:
            self._soon("losses", self._tell_losses)
            return
        # The call is done, and mustn't fail because a page can't be told.
        with contextlib.suppress(Exception):
            self._tell_losses()

    def _soon(self, what: str, call: Callable[[], None]) -> None:
        """Calls it on the main thread after the cell has ended, once, however often it was requested."""
        if self.loop is None or not self.loop.is_running():
            if not self._running:
                with entered(self.session):
                    call()
            return
        if what not in self._pending:
            self._pending.add(what)

            def run() -> None:
                self._pending.discard(what)
                if self._listening:
                    with entered(self.session):
                        call()

            self.loop.call_soon_threadsafe(run)

    def after_cell(self, call: Callable[[], None]) -> bool:
        """Defers the call to the end of the running cell; returns False, and defers nothing, if no cell is running."""
        if self._running:
            self._waiting.append(call)
        return self._running

    def _do_waiting(self) -> None:
        while self._waiting and not self._running:
            self._waiting.popleft()()

    # --- what a panel asks ---

    def receive(self, panel: Panel, message: dict[str, Any]) -> None:
        """Handles a front end's request, on any thread."""

        def turn() -> None:
            if self.after_cell(turn):
                panel.send({"kind": "queued", "request": message.get("request")})
                return
            panel.send({"kind": "ack", "request": message.get("request")})
            self._do(panel, message)

        if threading.get_ident() == self._thread:
            turn()
        else:
            if self._running:
                panel.send({"kind": "queued", "request": message.get("request")})
            assert self.loop is not None
            self.loop.call_soon_threadsafe(turn)

    def _do(self, panel: Panel, message: dict[str, Any]) -> None:
        do = _DO.get(str(message.get("do")))
        if do is None:
            return
        # Otherwise messages for a cell would appear in the one that ran last.
        with entered(self.session), self.capturing():
            try:
                do(self, panel, message)
            except Exception as error:  # shown in the panel: there is no cell to show it in
                panel.send(facts.refusal(error))

    @contextlib.contextmanager
    def capturing(self) -> Iterator[None]:
        """Sends the messages that would be shown in a cell to the panels instead."""
        with messages.captured() as lines:
            yield
        for line in lines:
            # The panel already shows which engine is in use.
            if line.kind != "announcement":
                self.tell({"kind": "notice", "level": "info", "text": line.text, "reasons": []})

    def tell(self, message: dict[str, Any]) -> None:
        """Sends a message to every panel that is in view."""
        for panel in list(self.panels):
            if not panel.away:
                panel.send(message)

    def _hello(self, panel: Panel, message: dict[str, Any]) -> None:
        panel.views.add(str(message.get("view")))
        panel.away = False
        self._listen()
        panel.send({"kind": "engines", **self._engines()})
        panel.send(self.jobs.as_message())
        listed = self._known[panel] = self._rows(panel)
        panel.send({"kind": "rows", "rows": [_row(row, version) for row, version in listed.values()]})
        panel.send({"kind": "losses", **facts.losses(self.session)})
        panel.send({"kind": "timings", **facts.timings(self.session)})

    def _bye(self, panel: Panel, message: dict[str, Any]) -> None:
        panel.views.discard(str(message.get("view")))
        panel.away = not panel.views
        if all(one.away for one in self.panels):
            self._stop_listening()

    # --- engines ---

    def _swap(self, panel: Panel, message: dict[str, Any]) -> None:
        self.jobs.swap(message)

    def _cancel(self, panel: Panel, message: dict[str, Any]) -> None:
        self.jobs.cancel()

    def _install(self, panel: Panel, message: dict[str, Any]) -> None:
        self.jobs.install(message)

    def _stop(self, panel: Panel, message: dict[str, Any]) -> None:
        report = stop_backend(str(message.get("engine")))
        self.tell({"kind": "notice", "level": "done", "text": report.table().title, "reasons": []})
        self._refresh()

    def swapped(self) -> None:
        """Sends the panels what a swap has changed."""
        self._refresh()
        self._tell_timings()

    def _engines(self) -> dict[str, Any]:
        return facts.engines(self.session, self.jobs.broken)

    def tell_engines(self) -> dict[str, Any]:
        """Sends the panels the state of all engines."""
        engines = self._engines()
        self.tell({"kind": "engines", **engines})
        return engines

    # --- tensors ---

    def _in_view(self) -> list[Panel]:
        return [one for one in self.panels if not one.away]

    def _rows(self, panel: Panel) -> Known:
        return {row.key: (row, _version(row)) for row in rows(self.session, panel.namespace)}

    def _refresh(self) -> None:
        """Sends each panel the changes since its last update."""
        if not self.panels:
            return
        engines = self.tell_engines()
        self._tell_losses()
        for panel in self._in_view():
            before, now = self._known.get(panel, {}), self._rows(panel)
            changed, gone = _changes(before, now)
            self._known[panel] = now
            panel.send({"kind": "changes", "changed": [_row(*now[key]) for key in changed], "gone": gone})
            self._remember(panel, engines, now)

    def _remember(self, panel: Panel, engines: dict[str, Any], known: Known) -> None:
        listed = [row for row, _ in known.values()]
        words = f"active: {engines['active']}, chosen by {engines['chosen_by']}"
        losses = facts.losses(self.session)["functions"]
        panel.remember(*static.forms(engines, losses, listed, words, panel.mark))

    def _summaries(self, panel: Panel, message: dict[str, Any]) -> None:
        """Sends the values of as many of these keys as one turn has time for."""
        begin = time.perf_counter()
        keys = [key for key in message.get("keys", ()) if isinstance(key, int)]
        names = names_of(panel.namespace)
        known = self._known.get(panel, {})
        summaries: list[dict[str, Any]] = []
        while keys and (not summaries or time.perf_counter() - begin < TURN):
            key = keys.pop(0)
            row = known.get(key)
            target = row and row[0].ref()
            if target is None or row is None or row[0].kind == "function":
                continue
            summaries.append(summary(self.session, target, names).as_dict())
        panel.send({"kind": "summaries", "found": summaries, "later": keys})

    # --- losses, timings, graph, native ---

    def _tell_losses(self) -> None:
        """Sends the losses if there are new ones."""
        now = {one.uid: one.losses.calls for one in list(self.session.functions) if one.losses is not None}
        if now != self._losses_sent:
            self._losses_sent = now
            self.tell({"kind": "losses", **facts.losses(self.session)})

    def _tell_timings(self) -> None:
        self.tell({"kind": "timings", **facts.timings(self.session)})

    def _target(self, panel: Panel, message: dict[str, Any]) -> Any:
        row = self._known.get(panel, {}).get(message.get("key", -1))
        target = row and row[0].ref()
        if target is None:
            raise ArgumentError("this tensor no longer exists", next_step="choose another")
        return target

    def _graph(self, panel: Panel, message: dict[str, Any]) -> None:
        from ..drawing.drawing import draw

        key = message.get("key")
        answer: dict[str, Any] = {"kind": "graph", "for": key, "graph": None, "error": ""}
        try:
            target = self._target(panel, message)
            opened = [name for name in message.get("opened", ()) if isinstance(name, str)]
            drawing = draw(target, opened=opened, times=bool(message.get("times")) or None, names=panel.namespace)
            answer["graph"] = drawing.as_dict()
        except KernelKError as error:
            answer["error"] = str(error)
        panel.send(answer)

    def _native(self, panel: Panel, message: dict[str, Any]) -> None:
        from ..drawing.engine_graphs import show

        key = message.get("key")
        try:
            views = facts.native(show(self._target(panel, message), names=panel.namespace))
        except KernelKError as error:
            views = {"columns": [], "note": "", "error": str(error)}
        panel.send({"kind": "native", "for": key, **views})


def _in_cell(shell: Any) -> bool:
    """Whether a notebook's cell is running, whose end will be noticed."""
    parent = messages.parent_message(shell)
    # xeus-python's has no content.
    silent = parent.get("content", {}).get("silent", False)
    return parent.get("header", {}).get("msg_type") == "execute_request" and not silent


def _row(row: Row, version: int) -> dict[str, Any]:
    return {**row.as_dict(), "version": version}


def _version(row: Row) -> int:
    """A number that changes with a variable's value; 0 for anything else."""
    if row.kind != "variable":
        return 0
    variable = row.ref()
    return 0 if variable is None else variable.slots.version


def _changes(before: Known, now: Known) -> tuple[list[int], list[int]]:
    """The keys of the rows that are new or differ, and of those that are gone."""
    return [key for key, row in now.items() if before.get(key) != row], [key for key in before if key not in now]


_DO: dict[str, Callable[[Hub, Panel, dict[str, Any]], None]] = {
    "hello": Hub._hello,
    "bye": Hub._bye,
    "swap": Hub._swap,
    "cancel": Hub._cancel,
    "stop": Hub._stop,
    "install": Hub._install,
    "summaries": Hub._summaries,
    "graph": Hub._graph,
    "native": Hub._native,
}

# The session holds its hub, so that both are freed together when a visitor's session ends.
_hubs: weakref.WeakSet[Hub] = weakref.WeakSet()


def hub() -> Hub:
    """The current session's hub; made at the first call."""
    session = current()
    if session.hub is None:
        session.hub = Hub(session)
        _hubs.add(session.hub)
    return session.hub  # type: ignore[no-any-return]


def close() -> None:
    """Closes all panels; the next one starts from scratch."""
    for one in list(_hubs):
        one.session.hub = None
        _hubs.discard(one)
        one.close()
