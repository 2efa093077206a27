"""Small programs, run on a backend of the island directly and compared with numpy's definitions."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from kernelk.backends import random_draws
from kernelk.backends.lowering import Program
from kernelk.backends.numpy.ops import OPS

# Who imports that takes this first.
pytest.register_assert_rewrite("island_ownership")

FLOATS = ["float16", "float32", "float64"]
SIGNED = ["int8", "int16", "int32", "int64"]
UNSIGNED = ["uint8", "uint16", "uint32", "uint64"]

# (op, attributes, operands, dtype of the result)
Case = tuple[str, dict[str, Any], Sequence[Any], str]


def program(**parts: Any) -> Program:
    keys = ["inputs", "slots", "draws", "constants", "instructions", "outputs", "updates"]
    return Program(json.loads(json.dumps({key: parts.get(key, []) for key in keys})))


def run_all(
    engine: Any,
    instructions: Iterable[tuple[str, list[int], dict[str, Any], Any]],
    operands: Sequence[Any],
    constants: Sequence[Any] = (),
    outputs: list[int] | None = None,
    slots: bool = False,
) -> list[Any]:
    """The values of several outputs; an instruction is (op, inputs, attrs, array like the result).

    An engine that doesn't specialise on shapes isn't told them.
    """

    def kind(array: Any) -> list[Any]:
        told = engine.specialises == "all" or slots
        return [str(array.dtype), list(array.shape) if told else [None] * array.ndim]

    leaves = [kind(a) for a in operands]
    first = len(operands) + len(constants)
    encoded = [[op, inputs, attrs, *kind(np.asarray(like))] for op, inputs, attrs, like in instructions]
    run = engine.compile(
        program(
            inputs=[] if slots else leaves,
            slots=leaves if slots else [],
            constants=[[str(a.dtype), list(a.shape)] for a in constants],
            instructions=encoded,
            outputs=[first + len(encoded) - 1] if outputs is None else outputs,
        ),
        list(constants),
    )
    state = [engine.load(a) for a in operands] if slots else []
    return [engine.to_numpy(value) for value in run([] if slots else list(operands), state, [])[0]]


def one_op(engine: Any, op: str, attrs: dict[str, Any], operands: Sequence[Any], like: Any) -> Any:
    """The value of one op, whose result is like this array."""
    return run_all(engine, [(op, list(range(len(operands))), attrs, like)], operands)[0]


def all_as_numpy(engine: Any, cases: Sequence[Case], tolerance: float = 0) -> list[tuple[Any, Any]]:
    """Compares the cases with numpy, as one program; returns (got, expected) of each."""
    cases = [(op, attrs, [np.asarray(a) for a in arrays], dtype) for op, attrs, arrays, dtype in cases]
    operands = {id(array): array for _, _, arrays, _ in cases for array in arrays}
    numbers = {key: number for number, key in enumerate(operands)}
    instructions, expected = [], []
    for op, attrs, arrays, dtype in cases:
        with np.errstate(all="ignore"):
            instruction = type("Instruction", (), {"dtype": dtype, "op": op})
            expected.append(np.asarray(OPS[op](instruction, *arrays, **attrs)))
        instructions.append((op, [numbers[id(array)] for array in arrays], attrs, expected[-1]))
    outputs = [len(operands) + number for number in range(len(cases))]
    with np.errstate(all="ignore"):
        found = run_all(engine, instructions, list(operands.values()), outputs=outputs)
    for (op, attrs, arrays, _), got, wanted in zip(cases, found, expected, strict=True):
        assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape), op
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=0, err_msg=f"{op} {attrs} {arrays}")
    return list(zip(found, expected, strict=True))


def same_as_numpy(
    engine: Any, op: str, attrs: dict[str, Any], operands: Sequence[Any], dtype: str, tolerance: float = 0
) -> tuple[Any, Any]:
    return all_as_numpy(engine, [(op, attrs, operands, dtype)], tolerance)[0]


def draws_of_a_device_are_the_hosts(draw: Any, to_numpy: Any, engine: Any) -> None:
    """`draw(kind, dtype, shape, seed, counter)`, made on a device: uniforms bit for bit, and a program takes them."""
    for kind, dtype in itertools.product(("uniform", "normal", "truncated_normal"), FLOATS):
        for shape, seed, counter in itertools.product(
            ((), (1,), (0,), (7,), (3, 5), (1001,)), (0, 2**63 + 1, 2**64 - 1), (0, 5, 2**64 - 1)
        ):
            wanted = random_draws.draw(kind, dtype, shape, seed, counter)
            got = to_numpy(draw(kind, dtype, shape, seed, counter))
            assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
            if kind == "uniform":
                assert got.tobytes() == wanted.tobytes(), (dtype, shape, seed, counter)
            else:
                rounding = {"float16": 1e-3, "float32": 2e-7, "float64": 1e-14}[dtype]
                np.testing.assert_allclose(got.astype("f8"), wanted.astype("f8"), rtol=rounding, atol=1e-15)
    run = engine.compile(
        program(
            draws=[["float32", [4]]],
            instructions=[["negative", [0], {}, "float32", [4]]],
            outputs=[1],
        ),
        [],
    )
    on_host = random_draws.draw("uniform", "float32", (4,), 3, 1)
    for drawn in (on_host, draw("uniform", "float32", (4,), 3, 1)):
        assert to_numpy(run([], [], [drawn])[0][0]).tobytes() == (-on_host).tobytes()
