"""What is repeated after an end on another machine: checkpoints in its own memory, which a keeper holds, shorten it.

Over a network that is as slow as `slow` says, none is made in the kernel; there, one is made before each call.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
from helpers.arrays import same_bits
from helpers.clusters import MOMENTS, LocalCluster, damage, held_segments, local_cluster, no_room, strike, wait_for
from helpers.engines import require_installed
from helpers.processes import PATIENCE, alive, environment

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.engines import keeping_host
from kernelk.errors import EngineError, WorkerDiedError
from kernelk.remote import bandwidth, host
from kernelk.remote.host import RemoteHost
from kernelk.session.current import current

BATCH = np.linspace(-1, 1, 640).reshape(32, 20).astype(np.float32)


@pytest.fixture(scope="module")
def vault() -> Iterator[LocalCluster]:
    with local_cluster("vault", 2) as cluster:
        yield cluster


@pytest.fixture(autouse=True)
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """To fetch anything takes days, as far as is measured; to copy it there takes no time."""
    monkeypatch.setattr(bandwidth.Bandwidth, "seconds", lambda *_: 1e6)
    monkeypatch.setattr(config.LIMITS, "repeat_seconds", 0.0)
    monkeypatch.setattr(host, "CHECKPOINT_FACTOR", 0)
    yield
    # In a worker, as `wanted` has it, it has a log.
    current().logs.pop("numpy", None)


class Training:
    """Momentum with noise on weights that stay with an engine, a rate that only the kernel sets, and a count."""

    def __init__(self) -> None:
        values = np.random.default_rng(7)
        K.set_random_seed(3)
        self.w = K.variable(values.normal(size=(20, 40)), name="w")
        self.v = K.variable(values.normal(size=(40, 1)), name="v")
        self.speed = K.zeros((20, 40), name="speed")
        self.rate = K.variable(0.01, name="rate")
        self.count = K.variable(0, dtype="int64", name="count")
        self.x = K.placeholder((None, 20))
        noisy = self.x + 0.1 * K.random_normal((32, 20))
        loss = K.mean(K.square(K.dot(K.tanh(K.dot(noisy, self.w)), self.v)))
        slope_w, slope_v = K.gradients(loss, [self.w, self.v])
        speed = self.speed * 0.9 - self.rate * slope_w
        self.step = K.function(
            [self.x],
            [loss],
            [
                K.update(self.speed, speed),
                K.update(self.w, self.w + speed),
                K.update_sub(self.v, self.rate * slope_v),
                K.update_add(self.count, 1),
            ],
        )

    def state(self) -> list[np.ndarray]:
        return K.batch_get_value([self.w, self.v, self.speed, self.rate, self.count])


def train(model: Training, first: int, count: int) -> list[float]:
    return [float(model.step([BATCH + 0.01 * i])[0]) for i in range(first, first + count)]


def wanted(steps: int, engine: str = "numpy") -> tuple[list[float], list[np.ndarray]]:
    """Losses and state after so many steps without any fault, by the same engine on this machine."""
    kernelk.set_backend(engine, in_kernel=False)
    model = Training()
    return train(model, 0, steps), model.state()


def equal(found: list[np.ndarray], states: list[np.ndarray]) -> bool:
    return all(same_bits(a, b) for a, b in zip(found, states))


def remote() -> RemoteHost:
    found = current().host()
    assert isinstance(found, RemoteHost)
    return found


def keeper() -> int:
    """The process that holds the checkpoint."""
    assert remote()._keeper is not None
    return remote()._keeper[0]


def kill(*pids: int | None) -> None:
    for pid in pids:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: not any(alive(pid) for pid in pids if pid is not None))


def repeated(said: list[str]) -> tuple[int, str]:
    """How many calls were repeated at the last loss, and since when."""
    found = [re.search(r"(\d+) calls? since the last checkpoint (in this kernel|on \S+)", line) for line in said]
    last = [match for match in found if match][-1]
    return int(last[1]), "here" if "kernel" in last[2] else "there"


def test_the_end_of_a_worker_costs_the_calls_since_the_checkpoint_there(vault: LocalCluster, said: list[str]) -> None:
    losses, state = wanted(13)
    kernelk.set_backend("numpy@vault")
    model = Training()
    found = train(model, 0, 10)
    assert len(remote().history.records) == 10
    kill(remote().pid)
    found += train(model, 10, 1)
    assert repeated(said) == (1, "there")
    # The next checkpoint comes with the next call: until then it's the same one.
    kill(remote().pid)
    found += train(model, 11, 2)
    assert repeated(said) == (2, "there")
    assert found == losses
    assert equal(model.state(), state)


def test_without_it_all_calls_since_the_kernels_checkpoint_are_repeated(
    vault: LocalCluster, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RemoteHost, "_worth_it", False)
    losses, _ = wanted(11)
    kernelk.set_backend("numpy@vault")
    model = Training()
    found = train(model, 0, 10)
    kill(remote().pid)
    assert found + train(model, 10, 1) == losses
    assert repeated(said) == (10, "here")


@pytest.mark.parametrize("name", ["theano", *(pytest.param(x, marks=pytest.mark.soak) for x in ("torch", "jax"))])
def test_engines_that_write_over_old_values_go_on_bit_for_bit(name: str, vault: LocalCluster, said: list[str]) -> None:
    require_installed(name)
    current().engine_options[f"{name}@vault"] = current().engine_options.get(name, {})
    losses, state = wanted(8, name)
    kernelk.set_backend(f"{name}@vault")
    model = Training()
    found = train(model, 0, 5)
    kill(remote().pid)
    # Nothing is repeated where the values are looked at right away.
    assert K.get_value(model.count) == 5
    assert repeated(said) == (1, "there")
    found += train(model, 5, 3)
    assert found == losses
    assert equal(model.state(), state)


def test_another_engine_of_that_machine_takes_over_and_a_new_one_too(said: list[str]) -> None:
    losses, state = wanted(25)
    with local_cluster("mortal", 3) as cluster:
        kernelk.set_backend("numpy@mortal")
        model = Training()
        found = train(model, 0, 5)

        def lose(*others: int) -> None:
            cluster.kill(cluster.engine_of("numpy@mortal"))
            kill(*others)

        # In the midst of a checkpoint: the one before it counts.
        cluster.client[cluster.engine_of("numpy@mortal")].apply_sync(strike, "half noted", "engine")
        found += train(model, 5, 4)
        assert repeated(said) == (1, "there")
        # A keeper that ends is noticed at the next checkpoint.
        first = keeper()
        kill(first)
        found += train(model, 9, 3)
        assert keeper() != first
        lose()
        found += train(model, 12, 2)
        assert repeated(said) == (1, "there")
        # The last one ends, and a new one is started: it finds what the keeper holds.
        lose()
        cluster.cluster.start_engines_sync(n=1)
        assert wait_for(lambda: bool(cluster.client.ids))
        found += train(model, 14, 3)
        assert repeated(said) == (1, "there")
        # Without the keeper, it's the kernel's checkpoint that is left, and all calls since then.
        lose(keeper())
        cluster.cluster.start_engines_sync(n=1)
        assert wait_for(lambda: bool(cluster.client.ids))
        found += train(model, 17, 4)
        assert repeated(said) == (17, "here")
        # With all that is of that machine, numpy here.
        lose(keeper())
        with pytest.raises(EngineError, match="has no engines"):
            train(model, 21, 1)
        assert K.get_value(model.count) == 21
        assert repeated(said) == (21, "here")
        kernelk.set_backend("numpy")
        found += train(model, 21, 4)
    assert found == losses
    assert equal(model.state(), state)


def test_a_worker_and_the_keeper_end_at_once(vault: LocalCluster, said: list[str]) -> None:
    """The ipyparallel engine has that memory, too."""
    losses, state = wanted(8)
    kernelk.set_backend("numpy@vault")
    model = Training()
    found = train(model, 0, 5)
    kill(remote().pid, keeper())
    found += train(model, 5, 3)
    assert repeated(said) == (1, "there")
    assert found == losses
    assert equal(model.state(), state)


def struck(cluster: LocalCluster, whom: str, moments: list[tuple[str, float]], said: list[str]) -> None:
    """Trains, and ends somebody at each of these moments: no call is lost, and few are repeated."""
    name = f"numpy@{cluster.name}"
    losses, state = wanted(6 + 4 * len(moments))
    kernelk.set_backend(name)
    model = Training()
    found = train(model, 0, 3)
    for number, (moment, delay) in enumerate(moments):
        said.clear()
        cluster.client[cluster.engine_of(name)].apply_sync(strike, moment, whom, delay)
        for step in range(3 + 4 * number, 7 + 4 * number):
            try:
                found += train(model, step, 1)
            except WorkerDiedError:
                # In the midst of a call, by a delay: that one didn't happen.
                assert delay
                found += train(model, step, 1)
        assert len(said) == 1, (moment, said)
        assert repeated(said)[0] <= 3, (moment, said)
        assert repeated(said)[1] == "there"
    found += train(model, len(found), 3)
    assert found == losses
    assert equal(model.state(), state)


def test_a_worker_that_ends_in_the_midst_of_a_checkpoint(vault: LocalCluster, said: list[str]) -> None:
    struck(vault, "worker", [(moment, 0.0) for moment in MOMENTS], said)


@pytest.mark.soak
def test_an_engine_that_ends_in_the_midst_of_a_checkpoint(said: list[str]) -> None:
    with local_cluster("struck", 4) as cluster:
        struck(cluster, "engine", [(moment, 0.0) for moment in ("half copied", "half noted", "noted")], said)


@pytest.mark.soak
def test_ends_at_random_moments_of_checkpoints(vault: LocalCluster, said: list[str]) -> None:
    chosen = random.Random(11)
    for whom, count in (("worker", 60), ("engine", 7)):
        moments = [(chosen.choice(MOMENTS), chosen.uniform(1e-5, 0.01)) for _ in range(count)]
        if whom == "worker":
            struck(vault, whom, moments, said)
            continue
        with local_cluster("hit", count + 1) as cluster:
            struck(cluster, whom, moments, said)


def test_a_damaged_checkpoint_is_never_loaded(vault: LocalCluster, said: list[str]) -> None:
    losses, state = wanted(8)
    kernelk.set_backend("numpy@vault")
    model = Training()
    found = train(model, 0, 5)
    vault.client[vault.engine_of("numpy@vault")].apply_sync(damage, remote()._home)
    kill(remote().pid)
    found += train(model, 5, 3)
    assert repeated(said) == (5, "here")
    assert found == losses
    assert equal(model.state(), state)


def test_a_call_that_ended_unheard_is_in_no_checkpoint(vault: LocalCluster, said: list[str]) -> None:
    """Its worker has its values, and a checkpoint of the calls before it: the next worker begins with that one."""
    losses, state = wanted(6)
    kernelk.set_backend("numpy@vault")
    model = Training()
    found = train(model, 0, 3)
    worker: Any = remote()._worker
    answer = worker.answer
    asked: list[Any] = []

    def unheard(sent: Any) -> Any:
        asked.append(sent)
        if len(asked) == 1:
            return answer(sent)  # the checkpoint before the call
        sent.get()
        worker.connection.abort(worker.engine, worker.token)
        raise worker._lost("is out of reach")

    worker.answer = unheard
    with pytest.raises(WorkerDiedError, match=r"is out of reach.*that call did not happen"):
        train(model, 3, 1)
    found += train(model, 3, 3)
    assert repeated(said) == (0, "there")
    assert found == losses
    assert equal(model.state(), state)


def test_a_checkpoint_that_ended_unheard_is_taken_for_what_it_is(vault: LocalCluster, said: list[str]) -> None:
    losses, state = wanted(6)
    kernelk.set_backend("numpy@vault")
    model = Training()
    found = train(model, 0, 3)
    worker: Any = remote()._worker

    def unheard(sent: Any) -> Any:
        sent.get()
        worker.connection.abort(worker.engine, worker.token)
        raise worker._lost("is out of reach")

    worker.answer = unheard
    # The call comes after it, and goes to the next worker.
    found += train(model, 3, 3)
    assert repeated(said) == (0, "there")
    assert found == losses
    assert equal(model.state(), state)


@pytest.mark.parametrize("seed", [0, *(pytest.param(x, marks=pytest.mark.soak) for x in range(1, 12))])
def test_random_sessions_whose_worker_ends_again_and_again(
    seed: int, vault: LocalCluster, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Variables are set, looked at, made and dropped between the calls, and checkpoints are made now and then."""

    def session(engine: str) -> tuple[list[Any], int]:
        kernelk.set_backend("numpy")
        kernelk.set_backend(engine)
        chosen, seen, ends = random.Random(seed), [], 0
        held = [K.variable(np.full((40, 30), 0.5 + i), name=f"v{i}") for i in range(4)]
        rate = K.variable(np.full((40, 30), 0.25), name="rate")
        x = K.placeholder((40, 30))

        def function() -> Any:
            target, source = chosen.sample(held, 2)
            updates = [K.update(target, target * 0.5 + source * rate + x)]
            if chosen.random() < 0.5:
                updates.append(K.update_sub(source, 0.1 * target))
            return K.function([x], [K.sum(target)], updates)

        functions = [function() for _ in range(3)]
        for step in range(60):
            what = chosen.random()
            every = chosen.choice([0.0, 1e9])
            monkeypatch.setattr(RemoteHost, "_interval_there", every)
            if what < 0.6:
                fed = np.full((40, 30), step / 64, np.float32)
                seen.append(chosen.choice(functions)([fed])[0])
            elif what < 0.68:
                K.set_value(chosen.choice(held), np.full((40, 30), step / 32))
            elif what < 0.76:
                seen.append(K.get_value(chosen.choice(held)))
            elif what < 0.8:
                held[chosen.randrange(4)] = K.variable(np.full((40, 30), step / 16))
                functions = [function() for _ in range(3)]
            elif what < 0.84:
                K.set_value(rate, np.full((40, 30), step / 200))
            elif engine != "numpy" and remote().started and remote().holding:
                ends += 1
                kill(remote().pid)
        return [*seen, *K.batch_get_value([*held, rate])], ends

    expected, _ = session("numpy")
    found, ends = session("numpy@vault")
    assert len(found) == len(expected)
    assert all(same_bits(np.asarray(a), np.asarray(b)) for a, b in zip(found, expected))
    assert ends >= 2
    assert {repeated([line])[1] for line in said if "repeated" in line} >= {"there"}


def test_the_table_and_the_message_tell_of_both_places(
    vault: LocalCluster, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bandwidth.Bandwidth, "seconds", lambda *_: 9.0)
    monkeypatch.setattr(bandwidth.Bandwidth, "rate", 1.1e6)
    kernelk.set_backend("numpy@vault")
    model = Training()
    train(model, 0, 6)
    (line,) = [line for line in str(kernelk.list_backends()).splitlines() if "checkpoints: " in line]
    assert re.search(r"on its machine every 0 us of calls, the last 1 call ago; in this kernel every 7\.5 min", line)
    assert re.search(r"\(\d\.\d kB at 1\.1 MB/s\), the last 6 calls ago", line)
    kill(remote().pid)
    train(model, 6, 1)
    assert re.search(r"1 call since the last checkpoint on \S+ \(one every 0 us\) was repeated", said[-1])
    model.state()
    assert "checkpoints: " not in str(kernelk.list_backends())


def test_the_interval_here_follows_from_the_bandwidth(vault: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    w = K.variable(np.ones((300, 200)), name="w")
    kernelk.set_backend("numpy@vault")
    # The swap has loaded it.
    assert remote()._network.rate > 0
    step = K.function([], [], [K.update_add(w, 1.0)])
    step([])
    remote()._network.note("fetch", 1_000_000, remote()._network.trip + 2.0)
    assert "(240.0 kB at 500.0 kB/s), the last 1 call ago" in remote().checkpoints
    trip = remote()._network.trip
    assert remote().checkpoint_interval == pytest.approx(50 * (0.48 + trip))
    assert K.get_value(w)[0, 0] == 2
    assert remote()._network.rate > 1e6
    # A call has loaded what came after the swap.
    remote()._network._rates.clear()
    v = K.variable(np.ones((300, 200)), name="v")
    K.function([], [K.sum(v)], [])([])
    assert remote()._network.rate > 0


def test_over_a_fast_network_there_are_the_kernels_alone(vault: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(config.LIMITS, "repeat_seconds", 0.01)
    monkeypatch.setattr(keeping_host, "CHECKPOINT_FACTOR", 0)
    kernelk.set_backend("numpy@vault")
    model = Training()
    asked: list[str] = []
    request = RemoteHost.request
    monkeypatch.setattr(RemoteHost, "request", lambda self, m: (asked.append(m["do"]), request(self, m))[1])
    train(model, 0, 60)
    assert "checkpoint" not in asked
    assert "fetch" in asked


def test_what_has_no_room_there_is_said_and_costs_nothing_else(vault: LocalCluster, said: list[str]) -> None:
    losses, _ = wanted(6)
    kernelk.set_backend("numpy@vault")
    view = vault.client[0]
    view.apply_sync(no_room, True)
    try:
        model = Training()
        found = train(model, 0, 4)
        assert "checkpoints: none on its machine, since " in str(kernelk.list_backends())
        assert "are needed" in str(kernelk.list_backends())
        kill(remote().pid)
        found += train(model, 4, 2)
        assert repeated(said) == (4, "here")
        assert found == losses
    finally:
        view.apply_sync(no_room, False)


def test_nothing_is_left_when_the_engine_is_stopped(vault: LocalCluster) -> None:
    def segments() -> list[int]:
        return vault.client[:].apply_sync(held_segments)

    kernelk.set_backend("numpy")
    kernelk.stop_backend("numpy@vault")
    before = segments()
    kernelk.set_backend("numpy@vault")
    model = Training()
    train(model, 0, 4)
    kill(remote().pid)
    train(model, 4, 4)  # with memory that an engine may use in place, and other memory for the next checkpoints
    held = keeper()
    assert alive(held)
    # Once it has begun.
    assert wait_for(lambda: psutil.Process(held).cwd() == "/")
    names = {x.path for x in psutil.Process(held).open_files()}
    assert all("memfd:kernelk" in name for name in names)
    assert not psutil.Process(held).net_connections("all")
    kernelk.stop_backend("numpy@vault")
    assert wait_for(lambda: not alive(held))
    assert wait_for(lambda: segments() == before)
    assert not [name for name in os.listdir("/dev/shm") if "kernelk" in name]


SESSION = """
import os, signal, sys
import numpy as np
import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.remote import bandwidth, host, serving
from kernelk.session.current import current

bandwidth.Bandwidth.seconds = lambda *_: 1e6
host.CHECKPOINT_FACTOR = config.LIMITS.repeat_seconds = 0
if sys.argv[1] == "killed":
    serving.LEASE = 3.0
kernelk.set_backend("numpy@vault")
w = K.variable(np.zeros(4000))
step = K.function([], [], [K.update_add(w, 1.0)])
for _ in range(4):
    step([])
print(f"\\n{[current().host().pid, current().host()._keeper[0]]}", flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[1] == "without its engine":
    worker = current().host()._worker
    os.kill(worker.connection.client[worker.engine].apply_sync(os.getpid), signal.SIGKILL)
    while worker.engine in worker.connection.client.ids:
        pass
"""


@pytest.mark.parametrize("how", ["killed", "in good order", "without its engine"])
def test_nothing_is_left_when_the_kernel_ends(vault: LocalCluster, how: str) -> None:
    """A lease runs out for one that was killed alone. As the last test here: the cluster loses an engine."""
    command = [sys.executable, "-c", SESSION, how]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == (-signal.SIGKILL if how == "killed" else 0), done.stderr
    worker, held = json.loads(done.stdout.splitlines()[-1])
    assert wait_for(lambda: not alive(worker) and not alive(held))
