"""Loops against the same nets written out step by step: values, first and second gradients, on every engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import kernelk
from kernelk import backend as K


def _softmax_step(x: Any, s: list[Any], w: Any, u: Any) -> Any:
    z = K.softmax(K.dot(x, K.exp(w)) + K.dot(s[0], u))
    return z * x, [z, s[1] + 1]


def _gathering_step(x: Any, s: list[Any], w: Any, u: Any) -> Any:
    new = K.sigmoid(K.dot(x, w) + K.gather(u, s[1] % 2)) * s[0]
    return K.max(new, axis=-1, keepdims=True), [new, s[1] + 1]


def _folding_step(x: Any, s: list[Any], w: Any, u: Any) -> Any:
    folded = K.foldl(lambda a, b: K.sin(a * b + x), K.dot(w, u), s[0])
    return K.concatenate([folded, x]), [K.relu(folded) - s[0], s[1] * 2]


def _handing_step(x: Any, s: list[Any], w: Any, u: Any) -> Any:
    return s[0], [s[0], s[1]]


def _phased_step(x: Any, s: list[Any], w: Any, u: Any) -> Any:
    chosen = K.in_train_phase(K.square(x) * K.sum(u), x)
    product = K.batch_dot(K.expand_dims(s[0], 1), K.expand_dims(x, 2))[:, 0]
    return chosen, [product * K.ones_like(s[0]) * 0.3, s[1]]


def _mapping_step(x: Any, s: list[Any], w: Any, u: Any) -> Any:
    mapped = K.map_fn(lambda row: K.tanh(row) * K.sum(w), K.dot(x, w))
    new = mapped + K.prod(s[0], axis=0, keepdims=True) * 0.1
    return K.logsumexp(mapped, axis=-1, keepdims=True), [new, s[1]]


def _differentiating_step(x: Any, s: list[Any], w: Any, u: Any) -> Any:
    slope = K.gradients(K.sum(K.sin(x * s[0]) * K.dot(x, w)), x)
    return slope, [s[0] * 0.5 + slope, s[1]]


STEPS = [
    _softmax_step,
    _gathering_step,
    _folding_step,
    _handing_step,
    _phased_step,
    _mapping_step,
    _differentiating_step,
]


@pytest.mark.values
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_a_loop_is_its_unrolled_self(backend: str, step: Callable[..., Any]) -> None:
    """Values, first and second gradients in both phases, plain and masked: as the unrolled net has them on numpy."""
    draws = np.random.RandomState(1)
    w, u = (K.variable(draws.randn(2, 2) * 0.5, dtype="float64") for _ in range(2))
    x, h = K.placeholder((None, 3, 2), dtype="float64"), K.placeholder((None, 2), dtype="float64")
    mask = K.constant(np.array([[1, 0, 1], [0, 0, 1], [1, 1, 1]]), dtype="bool")

    def made(unroll: bool) -> Any:
        outputs: list[Any] = []
        for options in ({}, {"mask": mask, "go_backwards": True}):
            last, every, (state, count) = K.rnn(
                lambda now, s: step(now, s, w, u), x, [h, K.zeros((), dtype="int32")], unroll=unroll, **options
            )
            loss = K.sum(K.square(every)) + K.sum(K.exp(state * 0.1)) + K.sum(last)
            first = K.gradients(loss, [x, h, w, u])
            second = K.gradients(K.sum(K.square(first[0])) + K.sum(first[2] * first[1][0, 0]), [x, h, w, u])
            outputs += [last, every, state, count, *first, *second]
        return K.function([x, h, K.learning_phase()], outputs)

    feeds = [draws.randn(3, 3, 2), draws.randn(3, 2)]
    loop, unrolled = made(False), made(True)
    got = [loop([*feeds, phase]) for phase in (0, 1)]
    kernelk.set_backend("numpy")
    for phase in (0, 1):
        for number, (value, wanted) in enumerate(zip(got[phase], unrolled([*feeds, phase]))):
            np.testing.assert_allclose(value, wanted, rtol=1e-8, atol=1e-9, err_msg=f"phase {phase}, output {number}")
