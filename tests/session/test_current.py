"""Two sessions side by side in one process, as a host with several visitors has them: neither sees the other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from helpers.brake import Brake

import kernelk
from kernelk import backend as K
from kernelk.errors import ArgumentError, StaleTensorError
from kernelk.graph import state
from kernelk.session import Session, current, entered, existing
from kernelk.session.current import PROCESS, stop_engines


@pytest.fixture
def two() -> Iterator[tuple[Session, Session]]:
    """Two sessions on numpy, beside the process's own."""
    sessions = Session(), Session()
    for session in sessions:
        session.active, session.chosen_by = "numpy", "the tests"
    yield sessions
    for session in sessions:
        session.stop_engines()


def test_a_block_has_its_session_and_what_is_outside_the_process_s(two: tuple[Session, Session]) -> None:
    own = current()
    assert own is PROCESS.session
    assert own not in two
    with entered(two[0]):
        assert current() is existing() is two[0]
        with entered(two[1]):
            assert current() is two[1]
        assert current() is two[0]
        with pytest.raises(ZeroDivisionError), entered(two[1]):
            raise ZeroDivisionError
        assert current() is two[0]
    assert current() is own


def test_a_state_s_session_is_made_once_however_many_threads_ask() -> None:
    own, fresh = PROCESS.session, state.State()
    gate = threading.Barrier(8)

    def ask(_: int) -> Session:
        with state.entered(fresh):
            assert existing() is None or existing() is fresh.session
            gate.wait()
            return current()

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(ask, range(8)))
    assert found == {fresh.session}
    assert fresh.session.state is fresh
    # Only the process's own is told to those who wait for it.
    assert PROCESS.session is own


def test_numbers_uids_scopes_and_phase_are_each_session_s_own(two: tuple[Session, Session]) -> None:
    first, second = two
    with entered(first):
        names = [K.placeholder((2,)).name for _ in range(3)]
        K.get_uid("dense")
        K.set_learning_phase(1)
        with K.name_scope("outer"):
            assert (K.constant(1.0) + 1.0).scope == "outer"
            with entered(second), K.name_scope("inner"):
                assert (K.constant(1.0) + 1.0).scope == "inner"
                assert K.get_uid("dense") == 1
                assert not isinstance(K.learning_phase(), int)
            assert (K.constant(1.0) + 1.0).scope == "outer"
        assert K.get_uid("dense") == 2
        assert K.learning_phase() == 1
    third = Session()
    with entered(third):
        assert [K.placeholder((2,)).name for _ in range(3)] == names
        assert not isinstance(K.learning_phase(), int)


def test_draws_are_each_session_s_own(two: tuple[Session, Session]) -> None:
    def draws(session: Session, count: int) -> list[float]:
        with entered(session):
            return [float(K.eval(K.random_uniform(()))) for _ in range(count)]

    for session in two:
        with entered(session):
            K.set_random_seed(7)
    expected = draws(two[0], 6)
    assert len(set(expected)) == 6
    seen = draws(two[1], 3)
    draws(two[0], 2)
    with entered(two[0]):
        K.set_random_seed(8)
    own = current().state.seeds.state()
    seen += draws(two[1], 3)
    assert seen == expected
    assert current().state.seeds.state() == own


def test_clear_session_in_one_leaves_the_other_alone(two: tuple[Session, Session]) -> None:
    made = []
    for session in two:
        with entered(session):
            v = K.variable([1.0], name="v")
            made.append((v, K.function([], [v], [K.update_add(v, 1.0)])))
            made[-1][1]([])
    mine = K.variable([5.0])
    with entered(two[0]):
        K.clear_session()
        with pytest.raises(StaleTensorError, match=r"a session that K\.clear_session\(\) ended"):
            K.get_value(made[0][0])
        assert K.eval(K.variable([3.0]) * 2.0).tolist() == [6.0]
    with entered(two[1]):
        assert made[1][1]([])[0].tolist() == [2.0]
        assert K.get_value(made[1][0]).tolist() == [3.0]
        assert two[1].hosts["numpy"].compiled
    assert (K.get_value(mine) + K.eval(mine)).tolist() == [10.0]


def test_a_tensor_of_another_session_is_refused_in_one_line(two: tuple[Session, Session]) -> None:
    with entered(two[0]):
        v, x = K.variable([1.0], name="theirs"), K.placeholder((1,))
        y = v + x
        call = K.function([x], [y], [K.update_add(v, 1.0)])
        plain = K.function([x], [x * 2.0], name="plain")
        assert call([[1.0]])[0].tolist() == [2.0]
        assert plain([[1.0]])[0].tolist() == [2.0]
    uses: list[Callable[[], Any]] = [
        lambda: call([[1.0]]),
        lambda: plain([[1.0]]),
        lambda: K.get_value(v),
        lambda: K.set_value(v, [2.0]),
        lambda: K.eval(v),
        lambda: K.eval(y, {x: [1.0]}),
        lambda: v + 1.0,
        lambda: K.variable([1.0]) + v,
        lambda: K.update_add(v, 1.0),
        lambda: K.update(K.variable([1.0]), v),
        lambda: K.update(v, [2.0]),
        lambda: K.function([x], [y]),
        lambda: K.gradients(y, [v]),
        lambda: kernelk.draw(y),
        lambda: kernelk.show(y),
        lambda: kernelk.time(y, {x: [1.0]}),
    ]
    for session in (two[1], current()):
        with entered(session):
            for use in uses:
                with pytest.raises(StaleTensorError, match="belongs to another session of this process") as caught:
                    use()
                assert "\n" not in str(caught.value)
            with pytest.raises(
                StaleTensorError, match=r"^'theirs' \(made in .*v, x = K\.variable.*make it again in this"
            ):
                K.get_value(v)
            with pytest.raises(ArgumentError):
                kernelk.save("nowhere", [v])
    with entered(two[0]):
        assert call([[1.0]])[0].tolist() == [3.0]
    with pytest.raises(ArgumentError, match="a session is needed, not int"):
        entered(3)  # type: ignore[arg-type]


def test_what_is_inspected_is_the_session_s_own(two: tuple[Session, Session]) -> None:
    from kernelk.inspection.rich_repr import page

    with entered(two[0]):
        theirs = K.variable([1.0], name="theirs")
    with entered(two[1]):
        # Both are the first tensor of their session, and have its number.
        mine = K.variable([2.0], name="mine")
        assert mine.uid == theirs.uid
        listed = kernelk.tensors(namespace={"a": theirs, "b": mine})
        assert [row.names for row in listed.rows] == [("b",)]
        assert listed.stale == []
        assert "of another session of this process" in page(theirs)


def test_a_swap_in_one_leaves_the_other_s_engine(two: tuple[Session, Session], spare: str) -> None:
    for session in two:
        with entered(session):
            session.v = K.variable([1.0, 2.0])  # type: ignore[attr-defined]
    with entered(two[0]):
        report = kernelk.set_backend(spare)
        assert (report.variables, K.backend()) == (1, "spare")
        assert K.eval(two[0].v * 2.0).tolist() == [2.0, 4.0]  # type: ignore[attr-defined]
    with entered(two[1]):
        assert K.backend() == "numpy"
        with kernelk.using(spare):
            pids = [session.hosts[spare].pid for session in two]
            assert len(set(pids)) == 2
            K.eval(two[1].v * 3.0)  # type: ignore[attr-defined]
        assert K.backend() == "numpy"
        stop_engines()
    assert not two[1].hosts[spare].started if spare in two[1].hosts else True
    assert two[0].hosts[spare].started
    assert (len(two[0].swaps), spare in current().hosts) == (1, False)


def test_logs_are_each_session_s_own(two: tuple[Session, Session], brake: Brake) -> None:
    for session in two:
        with entered(session):
            kernelk.set_backend("spare")
    with entered(two[0]):
        K.eval(K.exp(K.variable([0.0])))
        assert "chatter on 1" in kernelk.log().text
    with entered(two[1]):
        assert "chatter" not in kernelk.log().text


def test_measurements_are_each_session_s_own_and_can_be_observed(two: tuple[Session, Session]) -> None:
    told: list[list[str]] = []
    two[0].observe(lambda change: told.append(sorted(change["new"])), "measurements")
    for session in reversed(two):
        with entered(session):
            y = K.exp(K.variable([1.0]))
            if session is two[0]:
                result = kernelk.time(y, budget=0.01)
            else:
                kernelk.profile(y, budget=0.01)
    assert told == [["time"]]
    assert two[0].measurements["time"] is result
    assert list(two[1].measurements) == ["profile"]


def _trained(session: Session, seed: int, steps: int) -> tuple[list[Any], list[str]]:
    """What some steps of gradient descent with dropout come to, and what the tensors are called."""
    with entered(session):
        K.set_random_seed(seed)
        x = K.placeholder((4, 3))
        w = K.variable(np.ones((3, 2)))
        y = K.dropout(K.dot(x, w), 0.3)
        loss = K.mean(K.square(y))
        step = K.function([x], [loss], [K.update_sub(w, 0.01 * K.gradients(loss, [w])[0])])
        names, values = [x.name, y.name, loss.name], []
        for i in range(steps):
            values.append(float(step([np.full((4, 3), i % 5)])[0]))
            extra = K.exp(w) + K.random_normal((3, 2))
            names.append(extra.name)
            values.append(float(K.eval(K.sum(extra))))
        return [*values, *K.get_value(w).ravel().tolist()], names


@pytest.mark.parametrize("engines", [("numpy", "numpy"), ("numpy", "spare")])
def test_two_threads_at_once_come_to_what_each_comes_to_alone(spare: str, engines: tuple[str, str]) -> None:
    def run(seed: int, engine: str, gate: threading.Barrier | None) -> tuple[list[Any], list[str]]:
        session = Session()
        session.active = "numpy"
        try:
            with entered(session):
                kernelk.set_backend(engine)
            if gate is not None:
                gate.wait()
            return _trained(session, seed, 40)
        finally:
            session.stop_engines()

    alone = [run(seed, engine, None) for seed, engine in enumerate(engines)]
    gate = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        together = [pool.submit(run, seed, engine, gate) for seed, engine in enumerate(engines)]
    assert [one.result() for one in together] == alone
    assert alone[0][1] == alone[1][1]
    assert alone[0][0] != alone[1][0]


def test_a_thread_that_enters_none_works_on_the_process_s_own(two: tuple[Session, Session]) -> None:
    found: list[Any] = []
    with entered(two[0]):
        v = K.variable([1.0])

        def work() -> None:
            found.append(current())
            try:
                K.get_value(v)
            except StaleTensorError as error:
                found.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found[0] is current()
    assert "belongs to another session of this process" in str(found[1])


def test_tasks_of_one_loop_take_turns(two: tuple[Session, Session]) -> None:
    async def visit(session: Session, value: float) -> tuple[list[str], float]:
        with entered(session):
            v, names = K.variable(value), []
            for _ in range(5):
                await asyncio.sleep(0)
                assert current() is session
                names.append((v * 2.0).name)
            return names, float(K.eval(v))

    async def both() -> list[tuple[list[str], float]]:
        return list(await asyncio.gather(visit(two[0], 1.0), visit(two[1], 2.0)))

    (first, one), (second, other) = asyncio.run(both())
    assert first == second
    assert (one, other) == (1.0, 2.0)


def test_a_variable_that_goes_away_in_another_s_block_frees_its_own_memory(two: tuple[Session, Session]) -> None:
    with entered(two[0]):
        kept, v = K.variable([1.0]), K.variable(np.ones(1000))
    assert len(two[0].live_variables()) == 2
    with entered(two[1]):
        other = K.variable([2.0])
        del v
        assert two[0].live_variables() == [kept]
        assert two[1].live_variables() == [other]
    with two[0].lock:
        two[0].safe_point()
    assert len(two[0].variables) == 1
