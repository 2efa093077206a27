"""The one worker of `make test-fast`: it and numpy take turns at one training run, and it is killed."""

from __future__ import annotations

import os
import signal
from typing import Any

import numpy as np
from helpers.engines import WORKERS, absent
from helpers.processes import wait_until

import kernelk
from kernelk import backend as K
from kernelk.engines import registry
from kernelk.session.current import current


def network() -> tuple[list[Any], Any]:
    """A linear regression with momentum: its variables, and the function that trains it."""
    x, y = K.placeholder((None, 3)), K.placeholder((None, 1))
    w, velocity = K.zeros((3, 1)), K.zeros((3, 1))
    loss = K.mean(K.square(K.dot(x, w) - y))
    step = 0.9 * velocity - 0.02 * K.gradients(loss, [w])[0]
    train = K.function([x, y], [loss], updates=[K.update(velocity, step), K.update(w, w + step)])
    return [w, velocity], train


def test_numpy_and_one_worker_take_turns() -> None:
    name = next((name for name in ("theano", "tensorflow", "cntk") if registry.installed(name)), None)
    if name is None:
        absent(WORKERS[0], "nor any other engine that runs in a worker")
    assert name is not None
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 3)).astype("float32")
    y = x @ np.array([[1.0], [-2.0], [0.5]], "float32")

    def steps(train: Any, count: int) -> list[float]:
        return [float(train([x, y])[0]) for _ in range(count)]

    variables, train = network()
    alone = steps(train, 40)
    final = K.batch_get_value(variables)

    variables, train = network()
    losses = steps(train, 10)
    before = K.batch_get_value(variables)
    report = kernelk.set_backend(name)
    assert (report.variables, report.target) == (2, name)
    held = K.function([], variables)([])
    assert [a.tobytes() for a in held] == [a.tobytes() for a in before]
    losses += steps(train, 10)

    host = current().host()
    pid = host.pid
    assert pid is not None
    assert pid != os.getpid()
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not host.started)
    losses += steps(train, 10)
    assert current().host().pid != pid

    kernelk.set_backend("numpy")
    losses += steps(train, 10)
    np.testing.assert_allclose(losses, alone, rtol=1e-4, atol=1e-6)
    for got, wanted in zip(K.batch_get_value(variables), final):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)
    assert losses[-1] < 0.1 * losses[0]
