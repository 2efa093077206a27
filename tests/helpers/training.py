"""A training whose state is large enough to stay with an engine on another machine, and what it comes to."""

from __future__ import annotations

from typing import Any

import numpy as np

import kernelk
from helpers.arrays import same_bits
from kernelk import backend as K
from kernelk.session.current import current

BATCH = np.linspace(-1, 1, 640).reshape(32, 20).astype(np.float32)


class Training:
    """Momentum on a small net whose weights are large enough to stay with an engine, and a count of its steps."""

    def __init__(self) -> None:
        random = np.random.default_rng(7)
        self.w = K.variable(random.normal(size=(20, 40)), name="w")
        self.v = K.variable(random.normal(size=(40, 1)), name="v")
        self.speed = K.zeros((20, 40), name="speed")
        self.count = K.variable(0, dtype="int64", name="count")
        self.x = K.placeholder((None, 20))
        loss = K.mean(K.square(K.dot(K.tanh(K.dot(self.x, self.w)), self.v)))
        slope_w, slope_v = K.gradients(loss, [self.w, self.v])
        speed = self.speed * 0.9 - 0.01 * slope_w
        self.step = K.function(
            [self.x],
            [loss],
            [
                K.update(self.speed, speed),
                K.update(self.w, self.w + speed),
                K.update_sub(self.v, 0.01 * slope_v),
                K.update_add(self.count, 1),
            ],
        )

    @property
    def variables(self) -> list[Any]:
        return [self.w, self.v, self.speed, self.count]

    def state(self) -> list[np.ndarray]:
        return K.batch_get_value(self.variables)

    @property
    def alone(self) -> int:
        return sum(variable.slots.holder is not None for variable in self.variables)


def train(model: Training, first: int, count: int) -> list[float]:
    return [float(model.step([BATCH + 0.01 * i])[0]) for i in range(first, first + count)]


def equal(found: list[np.ndarray], states: list[np.ndarray]) -> bool:
    return all(same_bits(a, b) for a, b in zip(found, states))


def wanted(steps: int, engine: str) -> tuple[list[float], list[np.ndarray]]:
    """Losses and state after so many steps without any fault, by the same engine on this machine."""
    active = current().active
    kernelk.set_backend(engine, in_kernel=False)
    model = Training()
    losses = train(model, 0, steps)
    state = model.state()
    kernelk.set_backend(active)
    return losses, state
