"""Loops against the same nets written out step by step: values, first and second gradients, on every engine."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.engines import activate
from hypothesis import given, settings
from hypothesis import strategies as st

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
    (slope,) = K.gradients(K.sum(K.sin(x * s[0]) * K.dot(x, w)), x)
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


# What a random step is made of: the backward loop takes much of it from the first one, ready multiplied.
UNARY: list[Callable[..., Any]] = [K.sigmoid, K.tanh, K.sin, K.softplus, lambda x: x * 0.5, K.square, K.relu]
BINARY: list[Callable[..., Any]] = [lambda a, b: a * b, lambda a, b: a + b, lambda a, b: a - b, K.maximum]


@st.composite
def steps(draw: st.DrawFn) -> list[tuple[Any, ...]]:
    """Instructions: (unary, operand) or (binary, operand, operand), operands counted back from the newest value."""
    either = st.one_of(
        st.tuples(st.sampled_from(UNARY), st.integers(1, 6)),
        st.tuples(st.sampled_from(BINARY), st.integers(1, 6), st.integers(1, 6)),
    )
    return draw(st.lists(either, min_size=2, max_size=12))


@pytest.mark.values
@settings(max_examples=25)
@given(instructions=steps(), shape=st.sampled_from([(2,), (1, 2), (3, 2), ()]))
def test_a_random_elementwise_step(instructions: list[tuple[Any, ...]], shape: tuple[int, ...]) -> None:
    """First and second gradients of a loop are those of the unrolled net, whatever it multiplies."""
    draws = np.random.RandomState(2)
    x, h = K.placeholder((3, 4, 2), dtype="float64"), K.placeholder((3, 2), dtype="float64")
    w = K.variable(draws.randn(*shape), dtype="float64")

    def step(now: Any, states: Any) -> Any:
        values = [w, now, states[0]]
        for function, *operands in instructions:
            values.append(function(*[values[-min(n, len(values))] for n in operands]))
        new = K.tanh(values[-1] + now * 0.1 + states[0])
        return new * values[-2], [new]

    outputs: list[Any] = []
    for unroll in (False, True):
        _, every, (state,) = K.rnn(step, x, [h], unroll=unroll)
        first = K.gradients(K.sum(K.square(every)) + K.sum(state), [x, h, w])
        outputs += [every, *first, *K.gradients(K.sum(K.square(first[0])) + K.sum(K.sin(first[2])), [x, h, w])]
    feeds = [draws.randn(3, 4, 2), draws.randn(3, 2)]
    for engine in ("numpy", "torch"):
        activate(engine)
        got = K.function([x, h], outputs)(feeds)
        for number, (value, wanted) in enumerate(zip(got[: len(got) // 2], got[len(got) // 2 :])):
            size = float(np.max(np.abs(wanted), initial=1.0))
            np.testing.assert_allclose(value, wanted, rtol=1e-7, atol=1e-9 * size, err_msg=f"{engine}, output {number}")
