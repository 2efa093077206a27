"""What works with an engine of this machine works with one of another: magics, twins, the panel, Keras 2, forks."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.clusters import LocalCluster, local_cluster, wait_for
from helpers.forking import Child
from helpers.processes import PATIENCE, alive, environment, run_script
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

import kernelk
from kernelk import backend as K
from kernelk.errors import ArgumentError, EngineError, StaleTensorError
from kernelk.remote import clusters
from kernelk.remote.clusters import Connection
from kernelk.session.current import current
from kernelk.widgets import facts

HERE = socket.gethostname()


@pytest.fixture(scope="module")
def far() -> Iterator[LocalCluster]:
    with local_cluster("far", 2) as cluster:
        yield cluster


@pytest.fixture
def shell(far: LocalCluster) -> Iterator[InteractiveShell]:
    """IPython with kernelk's magics, and numpy on the cluster's machine."""
    shell = InteractiveShell(config=Config(HistoryManager={"enabled": False}))
    shell.run_line_magic("load_ext", "kernelk")
    shell.run_line_magic("kbackend", "numpy@far")
    yield shell
    shell.run_line_magic("unload_ext", "kernelk")


class Model:
    """A weight too large to come back with each reply, and a step that changes it."""

    def __init__(self) -> None:
        self.w = K.variable(np.linspace(-1e-3, 2e-3, 2000).reshape(1000, 2), name="w")
        self.x = K.placeholder((None, 1000), name="x")
        self.y = K.tanh(K.dot(self.x, self.w))
        loss = K.mean(K.square(self.y))
        self.step = K.function([self.x], [loss], [K.update_sub(self.w, 1e-4 * K.gradients(loss, [self.w])[0])])
        self.batch = np.linspace(0, 1, 3000).reshape(3, 1000)

    def __call__(self) -> float:
        return float(self.step([self.batch])[0])


def test_measurements_name_the_machine(shell: InteractiveShell) -> None:
    model = Model()
    shell.user_ns.update(model=model, y=model.y, x=model.x, batch=model.batch)
    line = shell.run_line_magic
    where = f"in a worker on {HERE}, cpu:0"
    assert where in str(line("ktime", "--budget 0.2 model()"))
    assert where in str(line("kprofile", "--budget 0.2 model()"))
    compared = str(shell.run_cell_magic("kcompare", "numpy@far numpy --budget 0.2", "model()"))
    assert where in compared
    # Both ran on this one.
    assert "machines differ" not in compared
    assert "numpy and numpy@far" in str(line("kdiff", "y numpy numpy@far --feed x=batch"))
    assert "device" in str(line("ktensors", ""))
    # Engines elsewhere that run are shown as others are, active or not.
    line("kbackend", "numpy")
    views = [view.engine for view in kernelk.show(model.y, feeds={model.x: model.batch}).views]
    assert views[0] == "numpy"
    assert "numpy@far" in views
    for magic in ("kdiff y numpy numpy --on far", "kshow y numpy --on far"):
        with pytest.raises(ArgumentError, match="is named with its cluster; next: torch@NAME"):
            line(*magic.split(" ", 1))


def test_the_settings_and_the_blocks(shell: InteractiveShell, tmp_path: Path) -> None:
    model = Model()
    losses = [model(), model()]
    with kernelk.using("numpy"):
        losses.append(model())
        with kernelk.using("numpy", on="far"):
            losses.append(model())
            assert current().active == "numpy@far"
        assert current().active == "numpy"
    assert current().active == "numpy@far"
    shell.run_line_magic("config", 'KernelK.backend = "numpy"')
    shell.run_line_magic("config", 'KernelK.backend = "numpy@far"')
    kernelk.save(tmp_path / "x.npz")
    following = [model(), model()]
    kernelk.load(tmp_path / "x.npz")
    assert [model(), model()] == following
    K.clear_session()
    with pytest.raises(StaleTensorError):
        model()
    again = Model()
    assert [again() for _ in range(4)] == losses
    assert sorted(set(losses), reverse=True) == losses
    # Random numbers go on where they are, whatever engine draws them.
    K.set_random_seed(5)
    here = K.eval(K.random_normal((4,)))
    K.set_random_seed(5)
    kernelk.set_backend("numpy")
    assert np.array_equal(K.eval(K.random_normal((4,))), here)


def test_the_panel_has_a_tile_for_it(shell: InteractiveShell) -> None:
    def tile() -> dict[str, Any]:
        return next(one for one in facts.engines(current(), {})["engines"] if one["name"] == "numpy@far")

    assert (tile()["state"], tile()["process"]) == ("active", f"worker {current().host().pid} on {HERE}")
    kernelk.stop_backend("numpy@far")
    assert (tile()["state"], tile()["process"]) == ("not started", "a worker on far")
    kernelk.set_backend("numpy")
    assert (tile()["state"], tile()["process"], tile()["install"]) == ("not started", "a worker on far", "")


def test_the_tab_key(shell: InteractiveShell) -> None:
    def offered(line: str) -> set[str]:
        with provisionalcompleter():
            return {one.text for one in shell.Completer.completions(line, len(line))}

    assert offered("%kbackend torch@") == {"torch@far"}
    assert "numpy@far" in offered("%kbackend n")
    assert "numpy@far" in offered("%kbackend --stop ")
    assert offered("%kbackend --install theano --") == {"--on"}
    assert offered("%kbackend --doctor --on ") == {"far"}
    assert offered("%kbackend torch --on ") == {"far"}
    assert offered("%kdiff y numpy t") == {"tensorflow", "theano", "torch"}
    assert offered("%%kcompare jax@") == {"jax@far"}


def test_keras_2_trains_on_it(far: LocalCluster) -> None:
    code = """
import numpy as np, kernelk
kernelk.enable_keras2()
kernelk.set_backend("numpy", on="far")
import keras
rng = np.random.RandomState(0)
model = keras.models.Sequential([keras.layers.Dense(4, activation="tanh", input_shape=(3,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
x, y = rng.normal(size=(64, 3)), rng.normal(size=(64, 1))
start = model.get_weights()
on = {}
for name in ("numpy@far", "numpy"):
    model.set_weights(start)
    kernelk.set_backend(name)
    on[name] = model.fit(x, y, epochs=3, shuffle=False, verbose=0).history["loss"]
from kernelk.session.current import current
result = [[float(loss) for loss in on[name]] for name in on], current().hosts["numpy@far"].machine
"""
    (there, here), machine = run_script(code, IPYTHONDIR=os.environ["IPYTHONDIR"])
    assert there == here
    assert there[2] < there[0]
    assert machine == HERE


def test_a_fork_has_a_worker_of_its_own_there(far: LocalCluster) -> None:
    kernelk.set_backend("numpy@far")
    model = Model()
    before = [model(), model()]
    parent = current().host().pid

    def job(wait: Any) -> Any:
        wait()
        losses = [model(), model()]
        pid = current().host().pid
        current().hosts["numpy@far"].stop()
        return losses, pid

    child = Child(job)
    child.go()
    losses, pid = child.result
    assert pid != parent
    # Each goes on by itself from the fork.
    assert [model(), model()] == losses
    assert current().host().pid == parent
    assert [*before, *losses] == sorted({*before, *losses}, reverse=True)


def test_the_worker_of_a_child_ends_with_it(far: LocalCluster) -> None:
    kernelk.set_backend("numpy@far")
    model, parent = Model(), current().host().pid
    losses = [model()]
    fork = multiprocessing.get_context("fork")
    found = fork.SimpleQueue()

    def job() -> None:
        found.put((model(), current().host().pid))

    child = fork.Process(target=job)
    child.start()
    loss, pid = found.get()
    child.join(PATIENCE)
    assert child.exitcode == 0
    assert wait_for(lambda: not alive(pid))
    assert current().host().pid == parent != pid
    assert losses[0] > model() == loss


def test_its_worker_ends_with_the_kernel(far: LocalCluster) -> None:
    code = """
import kernelk
from kernelk import backend as K
from kernelk.session.current import current
kernelk.set_backend("numpy", on="far")
assert float(K.eval(K.constant(1.0) + 1.0)) == 2.0
result = current().host().pid
"""
    pid = run_script(code, IPYTHONDIR=os.environ["IPYTHONDIR"])
    assert wait_for(lambda: not alive(pid))


def test_a_worker_in_mid_call_ends_with_a_script_that_ctrl_c_ends(far: LocalCluster) -> None:
    """What it was sent last is what ends it: this must leave before the process does."""
    code = """
import os, signal, threading, time
import numpy as np, kernelk
from kernelk import backend as K
from kernelk.session.current import current
kernelk.set_backend("numpy", on="far")
w = y = K.variable(np.ones((700, 700)) / 700)
for _ in range(400):
    y = K.dot(y, w)
long = K.function([], [K.mean(y)])
K.eval(K.constant(1.0) + 1.0)
print(f"\\n{current().host().pid}", flush=True)
# What is sent meanwhile takes its time.
loop = current().host()._worker.connection.client._io_loop
threading.Timer(0.6, loop.add_callback, (time.sleep, 1.0)).start()
for seconds in (0.5, 0.7):
    threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)).start()
long([])
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert "KeyboardInterrupt" in done.stderr, done.stderr
    assert wait_for(lambda: not alive(int(done.stdout.splitlines()[-1])))


class _Starting:
    """A client whose cluster's first engine comes after some looks; None: no engine comes."""

    def __init__(self, looks: int | None = 2) -> None:
        self.left = looks

    @property
    def ids(self) -> list[int]:
        if self.left:
            self.left -= 1
            return []
        return [] if self.left is None else [4]


def test_the_first_engine_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a cluster was started in another terminal, or in the cell before, a moment ago."""
    assert Connection("new", _Starting(), False).engines() == [4]
    # Whoever has given up may wait for it again.
    again = Connection("new", _Starting(9), False)
    again.await_engine(lambda: True)
    assert again.engines() == [4]
    monkeypatch.setattr(clusters, "_STARTS_WITHIN", 0.3)
    with pytest.raises(EngineError, match="the cluster 'new' has no engines; next: ipcluster engines --profile=new"):
        Connection("new", _Starting(None), False).engines()
