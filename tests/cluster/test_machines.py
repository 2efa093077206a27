"""Engines on another machine, which is a cluster of this one: what they compute, and what is left after an end."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from helpers.clusters import LocalCluster, local_cluster, wait_for
from helpers.engines import require_installed
from helpers.processes import alive
from helpers.training import BATCH, Training, equal, train, wanted

import kernelk
from kernelk import backend as K
from kernelk.errors import ArgumentError, EngineError, WorkerDiedError
from kernelk.remote.host import RemoteHost
from kernelk.session.current import current
from kernelk.widgets import facts


@pytest.fixture(scope="module")
def box() -> Iterator[LocalCluster]:
    with local_cluster("box", 2) as cluster:
        yield cluster


@pytest.mark.parametrize("name", ["numpy", "torch", "theano"])
def test_a_session_goes_from_engine_to_engine_and_machine_to_machine(name: str, box: LocalCluster) -> None:
    """In the midst of a training, and bit for bit."""
    first, second = {"numpy": ("numpy", "numpy"), "torch": ("tensorflow", "torch"), "theano": ("torch", "theano")}[name]
    for engine in {first, second}:
        require_installed(engine)
    kernelk.set_backend(first)
    model = Training()
    train(model, 0, 3)
    before = model.state()
    report = kernelk.set_backend(second, on="box")
    assert (report.target, report.variables) == (f"{second}@box", 4)
    assert equal(model.state(), before)
    train(model, 3, 3)
    assert model.alone == 4
    moved = K.batch_get_value(model.variables)
    kernelk.set_backend("numpy")
    assert equal(model.state(), moved)
    train(model, 6, 2)
    assert K.get_value(model.count) == 8


def test_what_is_small_comes_back_with_each_reply(box: LocalCluster) -> None:
    kernelk.set_backend("numpy@box")
    x, w, empty = K.placeholder((None, 3)), K.variable(np.zeros(3), name="w"), K.placeholder((0, 2))
    step = K.function([x, empty], [K.sum(x), empty], [K.update_add(w, K.sum(x, axis=0))])
    for rows in (1, 4, 2):
        total, nothing = step([np.ones((rows, 3)), np.zeros((0, 2))])
        assert (float(total), nothing.shape) == (3.0 * rows, (0, 2))
        assert w.slots.holder is None
    assert K.get_value(w).tolist() == [7.0] * 3
    K.set_value(w, [1.0, 2.0, 3.0])
    step([np.ones((1, 3)), np.zeros((0, 2))])
    assert K.get_value(w).tolist() == [2.0, 3.0, 4.0]


def test_from_one_engine_there_to_another_there(box: LocalCluster) -> None:
    for engine in ("torch", "theano"):
        require_installed(engine)
    kernelk.set_backend("torch@box")
    model = Training()
    train(model, 0, 3)
    assert model.alone == 4
    kernelk.set_backend("theano@box")
    state = model.state()
    assert current().hosts["torch@box"].holding == {}
    kernelk.set_backend("numpy")
    assert equal(model.state(), state)


@pytest.mark.parametrize("kept", [True, False], ids=["state stays there", "state comes back"])
def test_large_feeds_arrive_as_they_are_and_are_repeated_as_they_were(box: LocalCluster, kept: bool) -> None:
    """Beside each other, small ones and others that aren't contiguous; their user changes them after each call."""
    rows = 300_000
    x, y, z = K.placeholder((None, 3)), K.placeholder((None, 3)), K.placeholder((2,))
    mask = K.placeholder((None,), dtype="bool")
    total, ends = K.sum(x * y) + K.sum(z), K.stack([x[0], x[-1], y[0], y[-1]])
    held = K.variable(np.zeros(3000 if kept else 3))
    update = K.update(held, held + total + K.cast(mask[-1], "float32"))
    look, step = K.function([x, y, z, mask], [total, ends]), K.function([x, y, z, mask], [total], [update])

    def run(name: str, kill_before: int = -1) -> list[Any]:
        kernelk.set_backend(name)
        K.set_value(held, np.zeros(K.int_shape(held)))
        random = np.random.default_rng(4)
        found: list[Any] = []
        first, second = np.empty((rows, 3), np.float32), np.empty((3, rows), np.float32)
        for number in range(4):
            random.random(dtype=np.float32, out=first)
            random.random(dtype=np.float32, out=second)
            fed = [first, second.T, np.arange(2.0), np.arange(2_000_000) % 2 == number % 2]
            if number == kill_before:
                os.kill(current().host().pid or 0, signal.SIGKILL)
            found += look(fed) + step(fed)
            # It is the user's again.
            first[...], second[...] = -1.0, -2.0
        assert bool(current().host().holding) == (kept and name != "numpy")
        return [*found, K.get_value(held)]

    wanted = run("numpy")
    assert equal(run("numpy@box"), wanted)
    assert equal(run("numpy@box", 3), wanted)


def test_a_feed_that_is_changed_meanwhile_is_repeated_as_it_was_sent(
    box: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread of the user's readies the next batch before the call is over."""
    batch, w = np.zeros(400_000, np.float32), K.variable(np.zeros(3000))
    x = K.placeholder((None,))
    step = K.function([x], [K.max(x)], [K.update_add(w, K.max(x) * K.ones_like(w))])
    request = RemoteHost.request

    def refilled(host: RemoteHost, message: dict[str, Any]) -> dict[str, Any]:
        reply = request(host, message)
        if message["do"] == "run":
            batch[...] += 1
        return reply

    kernelk.set_backend("numpy@box")
    with monkeypatch.context() as patch:
        patch.setattr(RemoteHost, "request", refilled)
        assert [float(step([batch])[0]) for _ in range(3)] == [0, 1, 2]
    os.kill(current().host().pid or 0, signal.SIGKILL)
    assert equal([K.get_value(w)], [np.full(3000, 3, np.float32)])


def test_no_completed_call_is_lost_with_the_worker_there(box: LocalCluster, said: list[str]) -> None:
    losses, state = wanted(6, "numpy")
    kernelk.set_backend("numpy@box")
    model = Training()
    found = train(model, 0, 3)
    assert model.alone == 4
    pid = current().host().pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: not alive(pid))
    found += train(model, 3, 3)
    assert found == losses
    assert equal(model.state(), state)
    assert current().active == "numpy@box"
    assert any("numpy@box's worker was killed by SIGKILL" in line and "nothing is lost" in line for line in said)


def test_no_completed_call_is_lost_with_the_process_of_ipyparallel(said: list[str]) -> None:
    losses, state = wanted(8, "numpy")
    with local_cluster("mortal", 2) as cluster:
        kernelk.set_backend("numpy@mortal")
        model = Training()
        found = train(model, 0, 3)
        pid = current().host().pid
        assert pid is not None
        cluster.kill(cluster.engine_of("numpy@mortal"))
        # It ends its worker, too.
        assert wait_for(lambda: not alive(pid))
        found += train(model, 3, 3)
        assert found == losses[:6]
        assert cluster.engine_of("numpy@mortal") in cluster.client.ids
        # With the last one, nothing is left that could go on, and numpy repeats the calls here.
        last = current().host().pid
        assert last is not None
        cluster.kill(cluster.engine_of("numpy@mortal"))
        assert wait_for(lambda: not alive(last))
        with pytest.raises(EngineError, match=r"cluster 'mortal' has no engines.*next: ipcluster engines"):
            train(model, 6, 1)
        kernelk.set_backend("numpy")
        found += train(model, 6, 2)
    assert found == losses
    assert equal(model.state(), state)


def test_a_swap_finds_a_cluster_that_was_started_again(said: list[str]) -> None:
    """Before a call would wait for an answer: of an engine that is active, warm, or reached by a Client."""
    losses, state = wanted(12, "numpy")
    model = Training()
    with local_cluster("lab", 1) as cluster:
        kernelk.set_backend("numpy@lab")
        found = train(model, 0, 3)
        for way in ("active", "warm", "by a Client"):
            before = cluster.client
            if way == "warm":
                kernelk.set_backend("numpy")
            elif way == "by a Client":
                kernelk.stop_backend("numpy@lab")
                kernelk.set_backend("numpy", on=before)
            cluster.start_again()
            report = kernelk.set_backend("numpy", on=cluster.client if way == "by a Client" else "lab")
            assert (report.target, report.started) == ("numpy@lab", True)
            found += train(model, len(found), 3)
            assert psutil.Process(current().host().pid).ppid() == cluster.pid(0)
            assert str(kernelk.set_backend("numpy@lab")) == "numpy@lab is already active"
            before.close()
        assert equal(model.state(), state)
    assert found == losses
    assert len([line for line in said if "is gone with its cluster, which was started again" in line]) == 3


def test_a_call_that_ended_unheard_did_not_happen(box: LocalCluster, said: list[str]) -> None:
    """The worker may have carried it out, and nobody here knows: it is taken for one that never was."""
    losses, state = wanted(4, "numpy")
    kernelk.set_backend("numpy@box")
    model = Training()
    found = train(model, 0, 3)
    worker: Any = current().host()._worker  # type: ignore[attr-defined]
    answer = worker.answer

    def unheard(sent: Any) -> Any:
        sent.get()
        worker.engine, worker.answer = worker.engine, answer
        worker.connection.abort(worker.engine, worker.token)
        raise worker._lost("is out of reach")

    worker.answer = unheard
    with pytest.raises(WorkerDiedError, match=r"numpy@box's worker is out of reach.*that call did not happen"):
        train(model, 3, 1)
    assert K.get_value(model.count) == 3
    found += train(model, 3, 1)
    assert found == losses
    assert equal(model.state(), state)


def test_what_a_signal_handler_raises_is_no_refusal(box: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a timeout of the user's own, in the midst of sending: it reaches the user, and no worker is left there."""

    class Timeout(Exception):
        pass

    expected, _ = wanted(4, "numpy")
    kernelk.set_backend("numpy@box")
    model = Training()
    losses = train(model, 0, 2)
    host: Any = current().host()
    view, pid = host._worker.connection._views[host._worker.engine], host.pid
    send = type(view).apply_async

    def interrupted(*arguments: Any) -> None:
        monkeypatch.undo()
        send(view, *arguments)
        raise Timeout

    monkeypatch.setattr(view, "apply_async", interrupted)
    with pytest.raises(Timeout):
        train(model, 2, 1)
    assert wait_for(lambda: not alive(pid))
    assert losses + train(model, 2, 2) == expected


def test_a_cluster_that_stops_answering_is_given_up(
    box: LocalCluster, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kernelk.remote import clusters, remote_worker

    monkeypatch.setattr(remote_worker, "_ASK_AFTER", 0.3)
    monkeypatch.setattr(remote_worker, "_SILENT_AFTER", 1.2)
    monkeypatch.setattr(clusters, "_ANSWERS_WITHIN", 0.5)
    losses, state = wanted(4, "numpy")
    kernelk.set_backend("numpy@box")
    model = Training()
    found = train(model, 0, 3)
    stopped = box.controllers()
    for process in stopped:
        process.suspend()
    try:
        with pytest.raises(WorkerDiedError, match=r"has not answered for \d+ s.*that call did not happen"):
            train(model, 3, 1)
        # What it had alone is had here, as long as nobody answers.
        assert K.get_value(model.count) == 3
        with pytest.raises(EngineError, match="cluster 'box' doesn't answer"):
            train(model, 3, 1)
    finally:
        for process in stopped:
            process.resume()
    monkeypatch.undo()
    found += train(model, 3, 1)
    assert found == losses
    assert equal(model.state(), state)


def test_ctrl_c_ends_a_call_that_is_out(box: LocalCluster, said: list[str]) -> None:
    """A worker that hangs there doesn't keep the user, and no earlier call is lost."""
    losses, _ = wanted(4, "numpy")
    kernelk.set_backend("numpy@box")
    model = Training()
    found = train(model, 0, 3)
    pid = current().host().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    main = threading.main_thread().ident
    assert main is not None
    presses = [threading.Timer(after, lambda: signal.pthread_kill(main, signal.SIGINT)) for after in (0.5, 0.7)]
    for press in presses:
        press.start()
    with pytest.raises(KeyboardInterrupt):
        train(model, 3, 1)
    # It is ended there as well.
    assert wait_for(lambda: not alive(pid))
    found += train(model, 3, 1)
    assert found == losses


def test_what_a_worker_prints_there_is_shown_here(box: LocalCluster) -> None:
    kernelk.set_backend("numpy@box")
    x = K.placeholder((2,))
    K.function([x], [K.print_tensor(x, "here it is")])([np.ones(2)])
    assert "numpy@box" in str(kernelk.log())


def test_the_table_says_where_each_engine_runs(box: LocalCluster) -> None:
    kernelk.set_backend("numpy@box")
    K.eval(K.constant(1.0) + 1.0)
    shown = str(kernelk.list_backends())
    assert f"on {socket.gethostname()}" in next(line for line in shown.splitlines() if "numpy@box" in line)
    assert "active: numpy@box" in shown
    tile = next(one for one in facts.engines(current(), {})["engines"] if one["name"] == "numpy@box")
    assert tile["process"] == f"worker {current().host().pid} on {socket.gethostname()}"
    assert K.backend() == "numpy"
    report = kernelk.stop_backend("numpy@box")
    assert f"on {socket.gethostname()} ended" in str(report)


def test_measurements_take_engines_elsewhere(box: LocalCluster) -> None:
    x, w = K.placeholder((None, 20)), K.variable(np.ones((20, 3)))
    y = K.dot(x, w)
    f = K.function([x], [y])
    compared = str(kernelk.compare(lambda: f([BATCH]), "numpy", "numpy@box", budget=0.2))
    assert "numpy@box 2" in compared
    assert "machines differ" not in compared
    with pytest.raises(ArgumentError, match="compare: on needs engines' names"):
        kernelk.compare(lambda: f([BATCH]), on="box")
    assert "numpy@box" in str(kernelk.compare(lambda: f([BATCH]), "numpy", on="box", budget=0.2))
    assert [engine.state for engine in kernelk.doctor("numpy", on="box").engines] == ["works"]
    assert "numpy@box" in str(kernelk.diff(y, "numpy", "numpy@box", feeds={x: BATCH}))
    kernelk.set_backend("numpy@box")
    assert "numpy@box" in str(kernelk.time(lambda: f([BATCH]), budget=0.2))
    kernelk.profile(lambda: f([BATCH]), budget=0.2)


def test_a_session_there_is_saved_and_loaded(box: LocalCluster, tmp_path: Path) -> None:
    kernelk.set_backend("numpy@box")
    model = Training()
    losses = train(model, 0, 2)
    kernelk.save(tmp_path / "there.npz")
    losses += train(model, 2, 2)
    kernelk.load(tmp_path / "there.npz")
    assert train(model, 2, 2) == losses[2:]


def test_what_needs_this_process_is_refused(box: LocalCluster) -> None:
    kernelk.set_backend("numpy@box")
    with pytest.raises(ArgumentError, match=r"K\.native: numpy@box runs in a worker"):
        K.native(K.constant(1.0))
    with pytest.raises(ArgumentError, match="can't run in the notebook's own process, since it is on another machine"):
        kernelk.set_backend("numpy@box", in_kernel=True)
    with pytest.raises(ArgumentError, match=r"keras\.json can't choose numpy@box"):
        kernelk.set_backend("numpy@box", save=True)


def test_a_cluster_may_be_given_as_ipyparallels_own_object(box: LocalCluster) -> None:
    report = kernelk.set_backend("numpy", on=box.client)
    assert report.target == "numpy@box"
    assert float(K.eval(K.constant(1.0) + 1.0)) == 2.0
    kernelk.set_backend("numpy", on=box.client[1])
    kernelk.set_backend("numpy", on=box.cluster)
    assert float(K.eval(K.constant(1.0) + 1.0)) == 2.0
    with pytest.raises(ArgumentError, match="on=3 isn't allowed"):
        kernelk.set_backend("numpy", on=3)


def test_two_clusters_are_never_taken_for_one(box: LocalCluster, tmp_path: Path, said: list[str]) -> None:
    """Whatever they are called: a Client that was made from a file says that its profile is the default one."""
    import ipyparallel

    def runs_in(cluster: LocalCluster) -> bool:
        parent = psutil.Process(current().host().pid).ppid()
        return parent in cluster.client[:].apply_sync(os.getpid)

    w = K.variable(np.zeros(3000), name="w")
    step = K.function([], [], [K.update_add(w, 1.0)])
    here = box.file
    with local_cluster("second", 1) as second, pytest.MonkeyPatch.context() as patch:
        there = second.file
        by_file = ipyparallel.Client(str(there))
        assert kernelk.set_backend("numpy", on=by_file).target == "numpy@second"
        patch.setenv("IPYTHONDIR", str(tmp_path))
        first, other = ipyparallel.Client(str(here)), by_file
        for client, cluster, name in ((first, box, "default"), (other, second, "default-2"), (first, box, "default")):
            assert kernelk.set_backend("numpy", on=client).target == f"numpy@{name}"
            step([])
            assert runs_in(cluster)
        # Its user closes it in the midst of a training.
        first.close()
        with pytest.raises(
            ArgumentError, match=r"this Client of the cluster 'default' is closed; next: kernelk\.set_b"
        ):
            kernelk.set_backend("numpy", on=first)
        with pytest.raises(EngineError, match="the cluster 'default' is gone, or its Client was closed"):
            step([])
        assert equal([K.get_value(w)], [np.full(3000, 3, np.float32)])
        kernelk.set_backend("numpy")
        # Another controller takes the place of one, with its file.
        profile = tmp_path / "profile_moved" / "security" / here.name
        profile.parent.mkdir(parents=True)
        for file, after, cluster in ((here, there, box), (there, here, second)):
            profile.write_bytes(file.read_bytes())
            kernelk.set_backend("numpy@moved")
            # What runs on the one before stays there, as long as that lives.
            profile.write_bytes(after.read_bytes())
            kernelk.set_backend("numpy@moved")
            step([])
            assert runs_in(cluster)
            kernelk.set_backend("numpy")
            kernelk.stop_backend("numpy@moved")
        by_file.close()
    assert equal([K.get_value(w)], [np.full(3000, 5, np.float32)])


def test_a_worker_nobody_asks_for_ends_by_itself(box: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernelk.remote import serving

    kernelk.stop_backend("numpy@box")
    monkeypatch.setattr(serving, "LEASE", 4.0)
    kernelk.set_backend("numpy@box")
    model = Training()
    losses = train(model, 0, 2)
    pid, worker = current().host().pid, current().host()._worker  # type: ignore[attr-defined]
    assert pid is not None
    worker._over.set()  # its kernel is gone
    assert wait_for(lambda: not alive(pid))
    worker._over.clear()
    monkeypatch.undo()
    assert [*losses, *train(model, 2, 1)] == wanted(3, "numpy")[0]


def test_options_hold_there(box: LocalCluster) -> None:
    require_installed("torch")
    report = kernelk.set_backend("torch@box", threads=1)
    assert report.facts["threads"] == 1
    with pytest.raises(ArgumentError, match="cuda:7"):
        kernelk.set_backend("torch@box", device="cuda:7")
    with pytest.raises(ArgumentError, match="numpy's threads are those of its BLAS"):
        kernelk.set_backend("numpy@box", threads=1)
    assert current().active == "torch@box"
