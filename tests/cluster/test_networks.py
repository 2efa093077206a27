"""Engines on machines with a network of their own: what is left when it is slow, is cut, or a machine is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from helpers.brake import Brake
from helpers.clusters import FarCluster, far_cluster, hold_up, report_after, wait_for
from helpers.engines import absent, require_installed
from helpers.namespaces import problem
from helpers.processes import alive, run_script
from helpers.training import Training, equal, train, wanted

import kernelk
from kernelk import backend as K
from kernelk.errors import EngineError, WorkerDiedError
from kernelk.remote import clusters, remote_worker
from kernelk.session.current import current


@pytest.fixture(scope="module")
def box() -> Iterator[FarCluster]:
    """A machine that has both the engine and the controller, as one that is reached by ssh does.

    It has what the documentation advises, and no nanny, which answers for an engine elsewhere.
    """
    options = ("--IPController.enable_curve=True", "--nodb")
    engine_options = ("--IPEngine.enable_nanny=False",)
    with far_cluster("box", "gpu-box", controller="gpu-box", options=options, engine_options=engine_options) as cluster:
        yield cluster


@pytest.fixture
def brake(box: FarCluster, tmp_path_factory: pytest.TempPathFactory) -> Brake:
    """Holds up what a worker there computes."""
    flag = str(tmp_path_factory.mktemp("brake") / "hold-")
    box.client[0].apply_sync(hold_up, flag)
    with contextlib.suppress(KeyError):
        kernelk.stop_backend("numpy@box")
    return Brake(flag)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits for signs of life a quarter as long as for a user."""
    monkeypatch.setattr(remote_worker, "_ASK_AFTER", 0.5)
    monkeypatch.setattr(remote_worker, "_SILENT_AFTER", 2.0)
    monkeypatch.setattr(clusters, "_ANSWERS_WITHIN", 1.0)


class Held:
    """A call of the brake's op that changes the training's state: what happens `meanwhile` does so in its midst."""

    def __init__(self, model: Training, brake: Brake) -> None:
        self._brake = brake
        one = K.exp(K.zeros((1,)))
        self._call = K.function([], [one], [K.update_add(model.w, one), K.update_add(model.count, 1)])

    def __call__(self, meanwhile: Callable[[], object]) -> None:
        self._brake.hold("exp")

        def wait() -> None:
            assert wait_for(lambda: self._brake.reached("exp"))
            meanwhile()

        thread = threading.Thread(target=wait)
        thread.start()
        try:
            self._call([])
        finally:
            thread.join()
            self._brake.free("exp")


def started() -> Any:
    """The training's engine as the kernel sees it."""
    return current().hosts["numpy@box"]._worker  # type: ignore[attr-defined]


def press() -> None:
    """Ctrl-C."""
    main = threading.main_thread().ident
    assert main is not None
    signal.pthread_kill(main, signal.SIGINT)


def test_a_training_goes_over_a_slow_network_and_back(box: FarCluster) -> None:
    """Bit for bit, with 20 ms for a round trip."""
    for engine in ("tensorflow", "torch", "theano"):
        require_installed(engine)
    box.go_by(0.02)
    kernelk.set_backend("tensorflow")
    model = Training()
    train(model, 0, 3)
    for number, engine in enumerate(("torch@box", "theano@box", "numpy")):
        before = model.state()
        report = kernelk.set_backend(engine)
        assert report.variables == 4
        assert equal(model.state(), before)
        train(model, 3 + 2 * number, 2)
        assert model.alone == (0 if engine == "numpy" else 4)
    assert K.get_value(model.count) == 9
    assert current().hosts["theano@box"].facts["machine"] == "gpu-box"
    for engine in ("torch@box", "theano@box"):
        kernelk.stop_backend(engine)
    box.go_by(None)


def test_a_call_whose_reply_a_cut_has_lost_did_not_happen(
    box: FarCluster, brake: Brake, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends there, and nobody hears of it. Here signs of life are waited for as long as by a user."""
    losses, state = wanted(5, "numpy")
    kernelk.set_backend("numpy@box")
    model = Training()
    held = Held(model, brake)
    found = train(model, 0, 3)
    before, first = model.state(), started()
    old = box.machines[0].process(first.pid)

    def cut() -> None:
        box.machines[0].cut()
        brake.free("exp")
        assert wait_for(lambda: brake.passed("exp"))

    with pytest.raises(WorkerDiedError, match=r"has not answered for [89] s: .*that call did not happen") as caught:
        held(cut)
    assert "\n" not in str(caught.value)
    assert equal(model.state(), before)
    with monkeypatch.context() as patched:
        patched.setattr(clusters, "_ANSWERS_WITHIN", 1.0)
        with pytest.raises(EngineError, match=r"cluster 'box' doesn't answer: .*; next: ipcluster start"):
            train(model, 3, 1)
    box.machines[0].join()
    kernelk.set_backend("numpy@box")
    found += train(model, 3, 2)
    assert found == losses
    assert equal(model.state(), state)
    assert started().token != first.token
    # Whatever it has computed there, nobody asks for it, and its memory is wanted.
    assert wait_for(lambda: not alive(old))


@pytest.mark.parametrize("given", ["name", pytest.param("client", marks=pytest.mark.soak)])
def test_a_cut_between_calls(
    given: str, box: FarCluster, impatient: None, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client of the user's own stays open, so that replies may reach it that nobody waits for any more."""
    losses, state = wanted(7, "numpy")
    kernelk.set_backend("numpy", on="box" if given == "name" else box.client)
    model = Training()
    found = train(model, 0, 3)
    before = model.state()
    found += train(model, 3, 1)
    box.machines[0].cut()
    with pytest.raises(WorkerDiedError, match=r"has not answered for \d+ s: .*that call did not happen"):
        train(model, 4, 1)
    assert K.get_value(model.count) == 4
    assert not equal(model.state(), before)
    with pytest.raises(EngineError, match=r"; next: "):
        train(model, 4, 1)
    monkeypatch.undo()
    box.machines[0].join()
    # The client's connections are TCP's, which tries again less and less often.
    assert wait_for(lambda: box.client[0].apply_async(os.getpid).wait(1.0))
    kernelk.set_backend("numpy", on="box" if given == "name" else box.client)
    found += train(model, 4, 3)
    assert found == losses
    assert equal(model.state(), state)


def test_ctrl_c_during_a_cut(box: FarCluster, brake: Brake, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The user needn't wait until it is noticed."""
    monkeypatch.setattr(remote_worker, "_SILENT_AFTER", 1e6)
    losses, _ = wanted(4, "numpy")
    kernelk.set_backend("numpy@box")
    model = Training()
    held = Held(model, brake)
    found = train(model, 0, 3)

    def cut() -> None:
        box.machines[0].cut()
        for _ in range(2):
            press()
            time.sleep(0.2)

    with pytest.raises(KeyboardInterrupt):
        held(cut)
    box.machines[0].join()
    assert K.get_value(model.count) == 3
    found += train(model, 3, 1)
    assert found == losses


def test_ctrl_c_while_nobody_answers(box: FarCluster, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the worker is to be started again, over a network that is gone."""
    for module, name in ((remote_worker, "_SILENT_AFTER"), (clusters, "_ANSWERS_WITHIN")):
        monkeypatch.setattr(module, name, 1000.0)
    kernelk.set_backend("numpy@box")
    kernelk.stop_backend("numpy@box")
    for close in (False, True):
        if close:
            clusters._connections["box"].close()
        kernelk.set_backend("numpy")
        box.machines[0].cut()
        timer = threading.Timer(1.0, press)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            kernelk.set_backend("numpy@box")
        box.machines[0].join()
        assert current().active == "numpy"
    kernelk.set_backend("numpy@box")


def test_a_short_cut_is_waited_out(box: FarCluster, brake: Brake, said: list[str]) -> None:
    kernelk.set_backend("numpy@box")
    said.clear()
    model = Training()
    held = Held(model, brake)
    first = started()

    def cut() -> None:
        box.machines[0].cut()
        brake.free("exp")
        time.sleep(1.0)
        box.machines[0].join()

    held(cut)
    assert K.get_value(model.count) == 1
    assert started() is first
    assert said == []


def test_a_reply_that_is_lost_alone_is_missed(
    box: FarCluster, brake: Brake, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection is reset, as one that a firewall has forgotten: all are alive, and the reply is gone."""
    monkeypatch.setattr(remote_worker, "_ASK_AFTER", 0.5)
    losses, state = wanted(4, "numpy")
    relay = box.go_by(0.0)
    assert relay is not None
    kernelk.set_backend("numpy@box")
    model = Training()
    held = Held(model, brake)
    found = train(model, 0, 3)

    def reset() -> None:
        relay.reset()
        brake.free("exp")
        # Its engine has replied to nobody before there is a new connection.
        box.client[0].apply_sync(os.getpid)
        relay.go_on()

    with pytest.raises(WorkerDiedError, match=r"its reply was lost on the way.*that call did not happen"):
        held(reset)
    assert K.get_value(model.count) == 3
    found += train(model, 3, 1)
    assert found == losses
    assert equal(model.state(), state)
    box.go_by(None)


def test_one_that_sleeps_or_hears_slowly_is_not_called_stuck(
    box: FarCluster, brake: Brake, impatient: None, said: list[str]
) -> None:
    """Longer than its silence would be borne, and than a worker without progress is reported."""
    box.client[0].apply_sync(report_after, 1.0)
    kernelk.set_backend("numpy@box")
    said.clear()
    model = Training()
    held = Held(model, brake)
    held(lambda: (time.sleep(3.0), brake.free("exp")))
    x = K.placeholder((None,))
    total = K.function([x], [K.sum(x)])
    box.machines[0].limit("4mbit")
    try:
        assert float(total([np.ones(500_000)])[0]) == 500_000
    finally:
        box.machines[0].limit("")
    assert K.get_value(model.count) == 1
    assert said == []


def test_a_controller_that_listens_everywhere_is_the_same_one(box: FarCluster) -> None:
    """Its file says so, and has no key but CURVE's; what the client has instead is where it found it."""
    box.go_by(None)
    found = json.loads(box.file.read_text())
    assert not found["key"]
    assert found["curve_serverkey"]
    box.file.write_text(json.dumps({**found, "interface": "tcp://*", "location": box.reached_at}))
    connection = clusters.connected("box")
    assert clusters.connected("box") is connection
    assert clusters.place_of(connection.client).cluster == "box"
    box.go_by(None)


@pytest.mark.parametrize("field", ["key", "curve_serverkey"])
def test_another_key(field: str, box: FarCluster, impatient: None) -> None:
    box.go_by(None)
    right = box.file.read_text()
    other = zmq.curve_keypair()[0].decode()
    assert field in json.loads(right)
    box.file.write_text(json.dumps({**json.loads(right), field: other}))
    w = K.variable(np.arange(3.0))
    with pytest.raises(EngineError, match=r"cluster 'box' doesn't answer: .*another key.*; next: .*copy") as caught:
        kernelk.set_backend("numpy@box")
    assert "\n" not in str(caught.value)
    box.file.write_text(right)
    assert (current().active, K.get_value(w).tolist()) == ("numpy", [0, 1, 2])


def test_machines_and_the_controller_are_lost(impatient: None, said: list[str]) -> None:
    """One after the other, in the midst of a training: the next one goes on, as long as there is one."""
    losses, state = wanted(8, "numpy")
    with far_cluster("lab", "one", "two") as lab:
        kernelk.set_backend("numpy@lab")
        model = Training()
        found = train(model, 0, 2)
        first = current().hosts["numpy@lab"].facts["machine"]
        host = next(one for one in lab.machines if one.name == first)
        assert current().hosts["numpy@lab"].facts["machine"] != socket.gethostname()
        # For a while the controller takes it for one that is there.
        host.cut()
        with pytest.raises(WorkerDiedError, match=r"has not answered for \d+ s: .*that call did not happen"):
            train(model, 2, 1)
        found += train(model, 2, 2)
        assert current().hosts["numpy@lab"].facts["machine"] != first
        host.join()
        other = next(one for one in lab.machines if one.name != first)
        other.kill()
        with pytest.raises(WorkerDiedError, match=r"has not answered for \d+ s: .*that call did not happen"):
            train(model, 4, 1)
        found += train(model, 4, 2)
        assert current().hosts["numpy@lab"].facts["machine"] == first
        lab.controller.kill()
        with pytest.raises(WorkerDiedError, match=r"that call did not happen"):
            train(model, 6, 1)
        with pytest.raises(EngineError, match=r"cluster 'lab' doesn't answer: .*; next: ipcluster start"):
            train(model, 6, 1)
        kernelk.set_backend("numpy")
        found += train(model, 6, 2)
    assert found == losses
    assert equal(model.state(), state)


def test_nothing_of_a_machine_is_left_when_the_tests_are_killed(tmp_path: Path) -> None:
    script = f"""
import os, signal, subprocess, sys
from pathlib import Path
child = os.fork()
if not child:
    from helpers.namespaces import Machine
    machine = Machine("mortal")
    there = machine.start(["sleep", "1000"], dict(os.environ))
    Path({str(tmp_path / "left")!r}).write_text(f"{{machine.pid}} {{there.pid}} {{machine.link}}")
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
result = Path({str(tmp_path / "left")!r}).read_text()
"""
    if why := problem():
        absent("netns", why)
    first, there, link = run_script(script).split()
    assert wait_for(lambda: not alive(int(first)) and not alive(int(there)))
    assert wait_for(lambda: not os.path.exists(f"/sys/class/net/{link}"))
