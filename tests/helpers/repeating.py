"""A small training on a worker of this machine, what it comes to, and the end of that worker."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelk import backend as K
from kernelk.engines.worker_host import WorkerHost, kill_group
from kernelk.session.current import current

BATCH = np.linspace(-1, 1, 12).reshape(4, 3).astype(np.float32)


class Training:
    """Momentum on one weight, a count of the steps, and a rate that no step changes."""

    def __init__(self, size: int = 3) -> None:
        self.w = K.variable(np.ones((3, size)), name="w")
        self.speed = K.zeros((3, size), name="speed")
        self.count = K.variable(0, dtype="int64", name="count")
        self.rate = K.variable(0.5, name="rate")
        self.x = K.placeholder((None, 3))
        slope = K.dot(K.transpose(self.x), K.dot(self.x, self.w)) / 8.0
        speed = self.speed * 0.5 + slope
        updates = [
            K.update(self.speed, speed),
            K.update(self.w, self.w - self.rate * speed),
            K.update_add(self.count, 1),
        ]
        self.step = K.function([self.x], [K.sum(self.w)], updates)

    @property
    def variables(self) -> list[Any]:
        return [self.w, self.speed, self.count, self.rate]

    def state(self) -> list[np.ndarray]:
        return K.batch_get_value(self.variables)

    @property
    def held(self) -> int:
        return sum(variable.slots.holder is not None for variable in self.variables)


def batches(count: int) -> list[np.ndarray]:
    return [BATCH + 0.1 * i for i in range(count)]


def wanted(feeds: list[np.ndarray]) -> list[np.ndarray]:
    """The state after these steps without any fault."""
    model = Training()
    for feed in feeds:
        model.step([feed])
    return model.state()


def kill(host: Any = None) -> None:
    """Ends a worker, and waits until it is gone."""
    host = host or current().host()
    if host.started:
        process = host._process
        kill_group(process.pid)
        process.wait()


def worker() -> WorkerHost:
    host = current().host()
    assert isinstance(host, WorkerHost)
    return host
