"""Values that a worker has alone: when they are fetched, what is held for them, and who has the newest."""

from __future__ import annotations

import gc
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.arrays import same_bits
from helpers.repeating import BATCH, Training, batches, kill, wanted, worker
from helpers.training import equal

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.engines.worker_host import WorkerHost
from kernelk.inspection.summaries import summarised, summary
from kernelk.session.current import current

pytestmark = pytest.mark.usefixtures("kept")


def test_values_stay_and_are_fetched_one_by_one(light: str) -> None:
    model = Training()
    model.step([BATCH])
    assert model.held == 3
    assert len(worker().history.records) == 1
    K.get_value(model.w)
    assert model.held == 2
    model.step([BATCH])
    assert model.held == 3
    assert equal(model.state(), wanted([BATCH] * 2))
    assert model.held == 0
    model.state()
    assert worker().history.nbytes == 0


def test_at_rest_a_large_value_lies_there_once(light: str) -> None:
    w = K.variable(np.zeros(12_000_000))
    step = K.function([], [K.sum(w)], [K.update_add(w, 1.0)])

    def private() -> int:
        rows = [line.split() for line in Path(f"/proc/{worker().pid}/smaps_rollup").read_text().splitlines()[1:]]
        return 1024 * sum(int(row[1]) for row in rows if row[0].startswith("Private"))

    K.eval(K.constant(1.0))
    before = private()
    for _ in range(3):
        step([])
    deadline = time.monotonic() + 20
    while (held := private() - before) > 1.5 * w.slots.nbytes and time.monotonic() < deadline:
        time.sleep(0.02)
    assert 0.9 < held / w.slots.nbytes < 1.5
    assert K.get_value(w)[-1] == 3


@pytest.mark.parametrize("ended", [False, True])
def test_rows_of_the_panel_fetch_nothing(light: str, ended: bool) -> None:
    model = Training()
    model.step([BATCH])
    if ended:
        kill()
    found = [summary(current(), variable) for variable in model.variables]
    assert model.held == 3
    model.state()
    assert model.held == 0
    for variable, one in zip(model.variables, found):
        again = summary(current(), variable)
        assert one.origin == "committed"
        assert one.as_dict() == again.as_dict()


def test_rows_of_a_real_engine_and_of_large_values(real: str) -> None:
    values = np.random.RandomState(0).randn(300, 7).astype(np.float32)
    values[3, 2], values[200, 1] = np.nan, -np.inf
    dtypes = ["float32", "float16", "int64", "bool", "uint8"]
    with np.errstate(all="ignore"):
        arrays = [np.nan_to_num(values, posinf=0, neginf=0).astype(dtype) for dtype in dtypes[2:]]
        arrays += [values.astype(dtype) for dtype in dtypes[:2]]
    held = [K.variable(np.zeros_like(array), dtype=array.dtype.name) for array in arrays]
    fed = [K.placeholder(array.shape, dtype=array.dtype.name) for array in arrays]
    K.function(fed, [], list(zip(held, fed)))(arrays)
    for most in (1 << 24, 100):
        assert all(variable.slots.holder is not None for variable in held)
        for variable, array in zip(held, arrays):
            wanted_row = summarised(variable.uid, array, "committed", most=most).as_dict()
            assert summary(current(), variable, most=most).as_dict() == wanted_row


def test_several_values_are_fetched_at_once(light: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked = Training(), []
    request = type(worker()).request
    monkeypatch.setattr(
        WorkerHost, "request", lambda host, message: asked.append(message["do"]) or request(host, message)
    )
    for look in (model.state, lambda: kernelk.save(tmp_path / "weights.npz")):
        model.step([BATCH])
        asked.clear()
        look()
        assert asked.count("fetch") == 1
        assert model.held == 0


def test_a_call_that_changes_less_than_the_bound_is_committed(light: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config.LIMITS, "commit_bytes", 100)
    small, large = Training(), Training(4)
    small.step([BATCH])
    assert small.held == 0
    large.step([BATCH])
    assert large.held == 3
    # A small one after it stays with the worker, too: they are repeated together.
    small.step([BATCH])
    assert small.held == 3
    small.state(), large.state()
    small.step([BATCH])
    assert small.held == 0


def test_a_feed_may_be_changed_after_its_call(light: str) -> None:
    w, x = K.zeros((4, 3)), K.placeholder((4, 3))
    keep = K.function([x], [], [(w, x)])
    fed = BATCH.copy()
    keep([fed])
    fed[...] = 7
    K.eval(x * 2.0, {x: fed})
    assert same_bits(K.get_value(w), BATCH)
    keep([BATCH])
    kill()
    assert same_bits(K.get_value(w), BATCH)


def test_a_value_taken_from_another_variable_is_its_own(real: str) -> None:
    size = 1 << 12  # of a place that engines compute with where it lies
    a, b, x = K.variable(np.full(size, 3.0)), K.zeros((size,)), K.placeholder((size,))
    take = K.function([x], [], [K.update(b, a)])
    K.eval(a + b)
    take([np.zeros(size)])
    for i in range(3):
        K.set_value(a, np.full(size, 7.0 + i))
        K.eval(a + x, {x: np.full(size, 9.0)})
        assert K.eval(b + 0.0).tolist() == [3.0] * size
    assert K.get_value(b).tolist() == [3.0] * size


def test_arrays_handed_out_never_change(light: str) -> None:
    model = Training()
    found, copies = [], []
    for feed in batches(4):
        model.step([feed])
        found.append(K.get_value(model.w))
        copies.append(found[-1].copy())
        K.set_value(model.speed, np.zeros((3, 3)))
    kill()
    model.state()
    assert all(same_bits(a, b) for a, b in zip(found, copies))


def test_a_stopped_worker_keeps_no_look_waiting(light: str, said: list[str]) -> None:
    model = Training()
    model.step([BATCH])
    pid = worker().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    assert equal(model.state(), wanted([BATCH]))
    assert any("was ended, since it was stopped for" in line for line in said)


def test_what_is_held_to_repeat_calls_is_bounded(light: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Training()
    model.step([BATCH])
    once = worker().history.nbytes
    monkeypatch.setattr(config.LIMITS, "repeat_bytes", 5 * once)
    most = 0
    for _ in range(30):
        model.step([BATCH])
        most = max(most, len(worker().history.records))
    assert 2 < most <= 6
    # A feed that is larger than what may be held: all calls before it are fetched, and it is committed.
    x = K.placeholder((None,))
    add = K.function([x], [], [K.update(model.rate, K.sum(x) * 0.0 + 0.5)])
    add([np.ones(10_000)])
    assert model.held == 0
    assert worker().history.nbytes == 0
    monkeypatch.setattr(config.LIMITS, "repeat_seconds", 0.0)
    for _ in range(4):
        model.step([BATCH])
        worker()._checkpoint_seconds = 0.0
        assert len(worker().history.records) == 1
    assert equal(model.state(), wanted([BATCH] * 35))


def test_of_feeds_that_are_large_beside_the_model_few_are_held(light: str) -> None:
    x, w = K.placeholder((None,)), K.zeros((100_000,))
    step = K.function([x], [], [K.update_add(w, K.sum(x))])
    memory = set()
    for _ in range(40):
        # So quickly copied that a copy is due as soon as much is held.
        worker()._checkpoint_seconds = 0.0
        step([np.full((1 << 20,), 1.0)])
        memory.update([record.feeds[0].ctypes.data for record in worker().history.records])
    assert len(memory) <= 5
    kill()
    assert K.get_value(w).tolist() == [40.0 * (1 << 20)] * 100_000


def test_the_memory_of_values_to_begin_with_is_used_again(light: str) -> None:
    session = current()
    w = K.variable(np.zeros((1 << 20,), "float32"))
    step = K.function([], [], [K.update_add(w, 1.0)])
    sizes = []
    for _ in range(6):
        step([])
        step([])
        K.get_value(w)
        sizes.append(session.storage.bytes)
    assert len(set(sizes[1:])) == 1
    del w, step
    gc.collect()
    session.safe_point()
    assert session.storage.bytes <= sizes[0]
    assert not worker().history.records


def test_two_workers_in_turn(light: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that is protected for one engine is never what another one's calls write to."""
    w, v = K.variable(np.ones(30_000)), K.zeros((30_000,))
    add = K.function([], [K.sum(w)], [K.update_add(w, 1.0), K.update(v, v + w)])
    total, n, s = 0.0, 1.0, 0.0
    for turn in range(12):
        monkeypatch.setattr(config.LIMITS, "commit_bytes", 0 if turn % 3 else 1 << 20)
        for _ in range(1 + turn % 2):
            total = float(add([])[0])
            assert total == 30_000 * n
            n, s = n + 1, s + n
        if turn % 4 == 1:
            K.set_value(w, np.full(30_000, n))
        if turn % 4 == 3:
            kill(current().hosts[light])
        if turn % 2:
            kernelk.set_backend("numpy" if current().active == light else light)
    assert float(K.get_value(w)[0]) == n
    assert float(K.get_value(v)[0]) == s


@pytest.mark.parametrize("dead", [False, True])
def test_a_forked_child_has_the_newest_values(light: str, dead: bool) -> None:
    model = Training()
    for feed in batches(3):
        model.step([feed])
    if dead:
        kill()
    states = wanted(batches(4))
    if dead:
        # Looking at the other model has started another worker.
        kill()
    model.step([batches(4)[3]])
    if dead:
        kill()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            code = 0 if equal(model.state(), states) else 2
            current().host().end()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert equal(model.state(), states)
    model.step([BATCH])
    assert K.get_value(model.count) == 5


def test_kbackend_says_where_the_values_are(light: str) -> None:
    model = Training()
    model.step([BATCH])
    assert "spare: the newest values of 3 variables lie with it alone (80 B)" in str(kernelk.list_backends())
    model.state()
    assert "alone" not in str(kernelk.list_backends())
