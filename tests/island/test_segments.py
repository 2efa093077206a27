"""Long programs: cut into segments they give what the whole gives, and chains of any depth run on every engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kernelk import backend as K
from kernelk.backends.lowering import InstructionError, Program
from kernelk.backends.numpy.backend import NumpyBackend
from kernelk.backends.segments import compile_in_segments


def chain(x: Any, ops: int) -> Any:
    """`ops` ops in a row whose values stay of one size."""
    y = x
    for i in range(ops // 2):
        y = K.tanh(y) * (1.5 if i % 2 else 0.8)
    return y


def program(**parts: Any) -> Program:
    keys = ["inputs", "slots", "draws", "constants", "instructions", "outputs", "updates"]
    return Program({key: parts.get(key, []) for key in keys})


def every_kind() -> Program:
    """Values of each kind that are used early, late, several times, as results, and not at all."""
    f = "float64"
    return program(
        inputs=[[f, [2]], [f, [2]]],
        slots=[[f, [2]], [f, [2]]],
        draws=[[f, [2]]],
        constants=[[f, []], [f, [2]]],
        instructions=[
            ["add", [0, 2], {}, f, [2]],  # 7
            ["multiply", [7, 5], {}, f, [2]],  # 8
            ["add", [7, 4], {}, f, [2]],  # 9
            ["subtract", [8, 3], {}, f, [2]],  # 10
            ["multiply", [10, 7], {}, f, [2]],  # 11
            ["add", [11, 6], {}, f, [2]],  # 12
        ],
        outputs=[12, 7, 0, 3, 6, 12],
        updates=[[0, 9], [1, 2]],
    )


@pytest.mark.parametrize("most", [1, 2, 4, 5, 6, 100])
def test_segments_give_what_the_whole_gives(most: int) -> None:
    whole, engine = every_kind(), NumpyBackend({})
    random = np.random.default_rng(0)
    constants = [np.asarray(3.0), random.random(2)]
    feeds, state, draws = ([random.random(2) for _ in range(n)] for n in (2, 2, 1))
    wanted = engine.compile(whole, constants)(feeds, state, draws)
    found = compile_in_segments(engine.compile, whole, constants, most)(feeds, state, draws)
    for a, b in zip(wanted, found):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            np.testing.assert_array_equal(x, y)


def test_an_error_in_a_segment_names_the_whole_programs_instruction() -> None:
    f = "float32"
    bad = [["tanh", [0], {}, f, [2]], ["tanh", [1], {}, f, [2]], ["reshape", [2], {"dims": [5]}, f, [5]]]
    whole = program(inputs=[[f, [2]]], instructions=bad, outputs=[3])
    run = compile_in_segments(NumpyBackend({}).compile, whole, [], 2)
    with pytest.raises(InstructionError) as caught:
        run([np.ones(2, "float32")], [], [])
    assert (caught.value.index, caught.value.op) == (2, "reshape")


def compare_chain(ops: int) -> None:
    """Values, and the gradient by the chain rule."""
    fed = np.linspace(-1, 1, 6).reshape(2, 3)
    x = K.placeholder((None, 3), dtype="float64")
    y = chain(x, ops)
    call = K.function([x], [y, *K.gradients(K.sum(y), [x])])
    value, slope = fed, np.ones_like(fed)
    for i in range(ops // 2):
        value = np.tanh(value)
        slope = slope * (1 - value**2) * (1.5 if i % 2 else 0.8)
        value = value * (1.5 if i % 2 else 0.8)
    found = call([fed])
    np.testing.assert_allclose(found[0], value, rtol=1e-9)
    np.testing.assert_allclose(found[1], slope, rtol=1e-7, atol=1e-300)


def test_a_chain_of_a_thousand_ops_with_its_gradient(backend: str) -> None:
    compare_chain(1_000)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_chain_of_ten_thousand_ops_with_its_gradient(backend: str) -> None:
    compare_chain(10_000)
