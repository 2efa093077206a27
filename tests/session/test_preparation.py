"""A swap that is prepared first and carried out later, as the panel does it while cells run in between."""

from __future__ import annotations

import pytest

import kernelk
from kernelk import backend as K
from kernelk.errors import ArgumentError, EngineError, SwapRefusedError, UnknownBackendError
from kernelk.session import current
from kernelk.session.swap import prepare, take_over


def test_a_preparation_starts_and_changes_nothing(spare: str) -> None:
    session = current()
    before = dict(session.hosts), dict(session.engine_options)
    prepared = prepare(session, spare, {"threads": 2}, beside=True)
    assert (dict(session.hosts), dict(session.engine_options)) == before
    assert not prepared.host.started
    assert prepared.options == {"threads": 2}
    with pytest.raises(UnknownBackendError, match="did you mean 'spare'"):
        prepare(session, "sparre")


def test_what_was_started_beside_takes_over(spare: str) -> None:
    session, v = current(), K.variable([1.0, 2.0])
    prepared = prepare(session, spare, beside=True)
    prepared.host.start()
    pid = prepared.host.pid
    report = take_over(session, prepared, "the tests")
    assert (K.backend(), session.hosts[spare].pid, session.chosen_by) == (spare, pid, "the tests")
    assert (report.started, report.restarted, report.variables) == (True, False, 1)
    assert report.seconds["start"] == prepared.host.start_seconds > 0
    assert K.eval(v * 2.0).tolist() == [2.0, 4.0]
    # It runs as it is wanted: nothing new is made for another panel's request.
    again = prepare(session, spare, beside=True)
    assert again.host is session.hosts[spare]
    assert not take_over(session, again, "the tests").started


def test_an_engine_that_a_cell_has_started_meanwhile_stays(spare: str) -> None:
    session = current()
    prepared = prepare(session, spare, beside=True)
    prepared.host.start()
    kernelk.set_backend(spare)
    own = session.hosts[spare]
    kernelk.set_backend("numpy")
    assert own is not prepared.host
    report = take_over(session, prepared, "the tests")
    assert (session.hosts[spare], own.started, report.started) == (own, True, False)
    assert not prepared.host.started


def test_options_that_a_cell_has_changed_meanwhile_are_kept(spare: str) -> None:
    session = current()
    prepared = prepare(session, spare, {"device": "cpu:0"}, beside=True)
    prepared.host.start()
    kernelk.set_backend(spare)
    session.engine_options[spare] = {"colour": "red"}
    take_over(session, prepared, "the tests")
    assert session.engine_options[spare] == {"colour": "red", "device": "cpu:0"}
    assert session.hosts[spare].options == session.engine_options[spare]
    assert not prepared.host.started


def test_an_engine_that_died_meanwhile_is_the_prepared_one(spare: str) -> None:
    session = current()
    kernelk.set_backend(spare)
    kernelk.stop_backend(spare)
    own = session.hosts[spare]
    prepared = prepare(session, spare, beside=True)
    assert prepared.host is not own
    prepared.host.start()
    take_over(session, prepared, "the tests")
    assert session.hosts[spare] is prepared.host
    assert prepared.host.started
    assert not own.started


def test_what_cannot_take_over_stays_warm_unless_it_was_for_other_options(
    spare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = current()
    kept = K.variable([1.0], name="kept")
    for changes, warm in (({}, True), ({"device": "cpu:0"}, False)):
        session.hosts.pop(spare, None)
        prepared = prepare(session, spare, changes, beside=True)
        prepared.host.start()
        monkeypatch.setattr(prepared.host, "dtypes", frozenset({"float64"}))
        with pytest.raises(SwapRefusedError, match="'kept'"):
            take_over(session, prepared, "the tests")
        assert prepared.host.started is warm
        assert (session.hosts.get(spare) is prepared.host) is warm
        prepared.host.stop()
    assert (K.backend(), K.get_value(kept).tolist()) == ("numpy", [1.0])


def test_an_engine_that_cannot_start_leaves_everything(spare: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = current()
    prepared = prepare(session, spare, {"threads": 2})

    def fail() -> None:
        raise EngineError("it can't")

    monkeypatch.setattr(prepared.host, "start", fail)
    with pytest.raises(EngineError, match="it can't"):
        take_over(session, prepared, "the tests")
    assert (K.backend(), spare in session.hosts, spare in session.engine_options) == ("numpy", False, False)
    with pytest.raises(ArgumentError, match="can't run in the notebook's own process"):
        prepare(session, spare, {"in_kernel": True})
