"""The panels of two sessions in one process: each hears and does what concerns its own."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import types
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.processes import alive, wait_until

import kernelk
from kernelk import backend as K
from kernelk.errors import ArgumentError
from kernelk.session import Session, current, entered
from kernelk.widgets import close_panels, hub


@pytest.fixture
def two() -> Iterator[tuple[Session, Session]]:
    """Two sessions on numpy, beside the process's own; their panels are closed at the end."""
    sessions = Session(), Session()
    for session in sessions:
        session.active, session.chosen_by = "numpy", "the tests"
    yield sessions
    close_panels()
    for session in sessions:
        session.stop_engines()


class Told:
    """The messages to a panel."""

    def __init__(self, panel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.panel = panel
        self.messages: list[dict[str, Any]] = []
        monkeypatch.setattr(panel, "send", self.messages.append)

    def ask(self, **message: Any) -> list[dict[str, Any]]:
        """The answers to a request, which comes in as a front end's does: from outside any session."""
        self.messages.clear()
        self.panel._received(None, {"view": "v", "request": "q", **message}, None)
        return self.messages


def test_each_hub_is_its_session_s(two: tuple[Session, Session], monkeypatch: pytest.MonkeyPatch, spare: str) -> None:
    told = []
    for number, session in enumerate(two):
        with entered(session):
            v = K.variable([float(number)], name=f"v{number}")
            told.append(Told(kernelk.panel({"v": v}), monkeypatch))
    first, second = told
    for number, one in enumerate(told):
        (rows,) = [message["rows"] for message in one.ask(do="hello") if message["kind"] == "rows"]
        assert [row["name"] for row in rows] == [f"v{number}"]
    key = rows[0]["key"]
    second.messages.clear()
    own = current().active
    answers = first.ask(do="swap", engine=spare)
    assert next(one["text"] for one in answers if one["kind"] == "notice").startswith("numpy → spare")
    assert (two[0].active, two[1].active, current().active) == ("spare", "numpy", own)
    with entered(two[0]):
        kernelk.time(K.exp(K.variable([1.0])), budget=0.01)
    assert [one["time"] for one in first.messages if one["kind"] == "timings"][-1] is not None
    assert second.messages == []
    (answer,) = [one for one in second.ask(do="summaries", keys=[key]) if one["kind"] == "summaries"]
    assert answer["found"][0]["preview"]["values"] == [[1.0]]
    first.ask(do="stop", engine=spare)
    assert not two[0].hosts[spare].started


def test_a_panel_of_no_namespace_is_refused_and_not_kept() -> None:
    pytest.importorskip("anywidget")
    from kernelk.widgets.hub import hub

    session = Session()
    with entered(session):
        with pytest.raises(ArgumentError, match=r"panel: int is no namespace; it maps .*; next: kernelk.panel\(\)"):
            kernelk.panel(3)  # type: ignore[arg-type]
        assert hub().panels == []
        assert not hub()._listening
        # Whatever else goes wrong while it is filled: the next cell's end must not meet it.
        with pytest.raises(RuntimeError, match="of its own"):
            kernelk.panel(Failing())
        assert hub().panels == []
    close_panels()


class Failing(dict[str, Any]):
    """A namespace that fails when it is read."""

    def items(self) -> Any:
        raise RuntimeError("of its own")


def test_a_panel_says_that_a_worker_was_restarted(monkeypatch: pytest.MonkeyPatch, spare: str) -> None:
    pytest.importorskip("anywidget")
    from kernelk.widgets.hub import hub

    session = Session()
    session.active, session.chosen_by = spare, "the tests"
    with entered(session):
        told = Told(kernelk.panel({}), monkeypatch)
        with hub().capturing():
            K.eval(K.constant([1.0]) + 1.0)
        # Which engine is active stands in the panel already.
        assert [one for one in told.messages if one["kind"] == "notice"] == []
        pid = session.hosts[spare].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        assert wait_until(lambda: not alive(pid))
        with hub().capturing():
            K.eval(K.constant([1.0]) + 2.0)
    (line,) = [one["text"] for one in told.messages if one["kind"] == "notice"]
    assert "Spare's worker was killed by SIGKILL; it was restarted with all variables" in line
    close_panels()
    session.stop_engines()


def test_a_session_that_is_let_go_takes_its_panels_along() -> None:
    pytest.importorskip("anywidget")
    session = Session()
    with entered(session):
        panel = kernelk.panel({})
        panel.close()
    gone = weakref.ref(session), weakref.ref(session.hub)
    assert None not in [one() for one in gone]
    del session, panel
    gc.collect()
    assert [one() for one in gone] == [None, None]


def test_without_a_shell_a_panel_has_the_caller_s_names_and_follows_what_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in marimo, where no event says that a cell has ended."""
    pytest.importorskip("anywidget")
    monkeypatch.setattr(hub, "LOOK_EVERY", 0.01)
    cell = {"kernelk": kernelk, "K": K}

    async def notebook() -> list[dict[str, Any]]:
        exec("v = K.variable([1.0])\npanel = kernelk.panel()", cell)
        told = Told(cell["panel"], monkeypatch)
        (rows,) = [message["rows"] for message in told.ask(do="hello") if message["kind"] == "rows"]
        assert [row["names"] for row in rows] == [["v"]]
        told.messages.clear()
        await asyncio.sleep(0.1)
        assert told.messages == []
        exec("late = v * 2.0\nK.set_value(v, [5.0])", cell)
        while not any(one["kind"] == "changes" for one in told.messages):
            await asyncio.sleep(0.01)
        (changes,) = [one for one in told.messages if one["kind"] == "changes"]
        assert [row["names"] for row in changes["changed"]] == [["v"], ["late"]]
        told.ask(do="bye")
        told.messages.clear()
        exec("del late", cell)
        await asyncio.sleep(0.1)
        return [one for one in told.messages if one["kind"] != "ack"]

    session = Session()
    session.active, session.chosen_by = "numpy", "the tests"
    with entered(session):
        assert asyncio.run(notebook()) == []
        # What a page without a kernel shows there.
        assert "late" in cell["panel"].saved
    close_panels()


@pytest.mark.parametrize(
    ("parent", "in_cell"),
    [
        ({}, False),
        ({"header": {"msg_type": "execute_request"}, "content": {"silent": False}}, True),
        ({"header": {"msg_type": "execute_request"}, "content": {"silent": True}}, False),
        # As xeus-python has it.
        ({"header": {"msg_type": "execute_request"}}, True),
        ({"header": {"msg_type": "comm_msg"}}, False),
    ],
)
def test_whether_a_cell_is_running(parent: dict[str, Any], in_cell: bool) -> None:
    shell = types.SimpleNamespace(kernel=types.SimpleNamespace(get_parent=lambda: parent))
    assert hub._in_cell(shell) is in_cell
    assert hub._in_cell(types.SimpleNamespace()) is False
