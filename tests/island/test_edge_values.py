"""Values at the edges of a dtype, in the engines that run under this interpreter: numpy's, on feeds and as arrays.

The conformance cases go through every op with random values; here are the ones at which some library traps, wraps
elsewhere, or passes over a NaN.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from typing import Any

import numpy as np
import pytest
from helpers.engines import absent
from helpers.island import FLOATS, SIGNED, UNSIGNED, all_as_numpy, one_op, same_as_numpy

from kernelk.backends.base import DTYPES, PRIMITIVES
from kernelk.backends.errors import OptionError
from kernelk.backends.lowering import InstructionError

CLASSES = {"tensorflow": "TensorFlowBackend", "jax": "JaxBackend", "torch": "TorchBackend"}
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.1, 0.5, -2.5, 3.0, 7.0, -7.25, 6e4, np.inf, -np.inf, np.nan]


@functools.cache
def made(name: str) -> Any:
    if importlib.util.find_spec(name) is None:
        absent(name, "it is not installed")
    return getattr(importlib.import_module(f"kernelk.backends.{name}.backend"), CLASSES[name])({"device": "cpu:0"})


@pytest.fixture(params=CLASSES)
def engine(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


def test_all_primitives_are_defined(engine: Any) -> None:
    assert set(PRIMITIVES) <= set(engine.ops)


def test_what_an_engine_says_of_itself(engine: Any) -> None:
    facts = engine.facts()
    assert facts["device"] in facts["devices"]
    assert facts["threads"] >= 1
    assert facts["interpreter"].startswith("Python 3")
    assert facts["version"][0].isdigit()


def test_an_unknown_device_names_those_allowed(engine: Any) -> None:
    with pytest.raises(OptionError, match="'tpu:9'") as caught:
        type(engine)({"device": "tpu:9"})
    assert "cpu:0" in caught.value.allowed


@pytest.mark.parametrize("dtype", SIGNED)
def test_least_integer_by_minus_one(engine: Any, dtype: str) -> None:
    # In C this may trap, and end the process; vector code and its remainder may differ.
    least = np.iinfo(dtype).min
    x, y = np.array([least, least, 7, -7] * 20, dtype), np.array([-1, 0, -1, 0] * 20, dtype)
    cases: list[Any] = [("floor_divide", {}, [x, y], dtype), ("mod", {}, [x, y], dtype)]
    pairs = all_as_numpy(engine, cases + [(op, {}, [x], dtype) for op in ("abs", "negative", "sign")])
    assert [got.tolist() for got, _ in pairs[:2]] == [[least, 0, -7, 0] * 20, [0] * 80]


@pytest.mark.parametrize("dtype", UNSIGNED)
def test_the_upper_half_of_unsigned_integers(engine: Any, dtype: str) -> None:
    most = np.iinfo(dtype).max
    a = np.array([most, most - 1, most // 2 + 1, most // 2, 3, 2, 1, 0], dtype)
    column, row = a[:, None].copy(), a[None].copy()
    binary = ["add", "subtract", "multiply", "floor_divide", "mod", "maximum", "minimum"]
    cases: list[Any] = [(op, {}, [column, row], dtype) for op in binary]
    # TensorFlow refuses exponents of uint64 beyond int64: it takes them as negative ones.
    beyond = engine.name == "tensorflow" and dtype == "uint64"
    cases.append(("power", {}, [column, np.array([[3, 2, 1, 0, 5]], dtype) if beyond else row], dtype))
    cases += [(op, {}, [column, row], "bool") for op in ("less", "less_equal", "equal", "not_equal")]
    cases += [(op, {"axes": [0], "keepdims": False}, [a], dtype) for op in ("sum", "prod", "max", "min")]
    cases += [(op, {"axis": 0}, [array], "int64") for op in ("argmax", "argmin") for array in (a, a[::-1].copy())]
    cases += [(op, {"axis": 0}, [a], dtype) for op in ("cumsum", "cumprod")]
    cases += [(op, {}, [a], dtype) for op in ("negative", "abs", "sign")]
    cases += [("cast", {"dtype": target}, [a], target) for target in DTYPES]
    halves = [np.array([most // 2 + 1, 3], kind) for kind in ("float32", "float64")]
    cases += [("cast", {"dtype": dtype}, [half], dtype) for half in halves]
    # XLA takes the row 0 for the least index of int64, which 2**63 becomes: see below.
    rows = a[a != 2**63] if engine.name == "jax" and dtype == "uint64" else a
    square, table = a.reshape(2, 4), np.arange(20, dtype="float32")
    cases += [
        ("matmul", {"transpose_a": False, "transpose_b": True}, [square, square], dtype),
        # An index above all of int64 is no row.
        ("gather", {}, [table, rows], "float32"),
        ("gather", {}, [np.resize(a, 20), rows], dtype),
        ("scatter_add", {}, [rows, rows, np.resize(a, 3)], dtype),
        ("one_hot", {"depth": 300}, [a], "float32"),
    ]
    all_as_numpy(engine, cases)


@pytest.mark.parametrize("dtype", ["uint8", "uint64", "int8", "int64"])
def test_the_ends_of_an_index_type_are_outside(engine: Any, dtype: str, request: pytest.FixtureRequest) -> None:
    if engine.name == "jax" and dtype == "int64":
        wrong = pytest.mark.xfail(strict=True, reason="XLA gathers row 0 for the least index of int64, not NaN")
        request.applymarker(wrong)
    info = np.iinfo(dtype)
    indices = np.array([info.min, info.max, 1, 3], dtype)
    table, values = np.arange(6, dtype="float32").reshape(3, 2), np.ones((4, 2), "float32")
    cases: list[Any] = [("gather", {}, [rows, indices], "float32") for rows in (table, table[:0].copy())]
    all_as_numpy(engine, [*cases, ("scatter_add", {}, [values, indices, table], "float32")])


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", ["add", "divide", "floor_divide", "mod", "power", "maximum", "minimum"])
def test_all_pairs_of_special_numbers(engine: Any, op: str, dtype: str) -> None:
    special = np.array(SPECIAL, dtype)
    tolerance = {"float16": 2e-3, "float32": 3e-6, "float64": 1e-12}[dtype] if op == "power" else 0
    got, expected = same_as_numpy(engine, op, {}, [special[:, None], special[None, :]], dtype, tolerance)
    if op not in ("maximum", "minimum"):
        # Which zero is greater, numpy itself leaves to the processor.
        zeros = expected == 0
        np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(expected[zeros]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_whole_numbers_keep_the_sign_of_a_zero(engine: Any, dtype: str) -> None:
    values = np.array([-0.5, -0.2, -0.0, 0.0, 0.5, 0.2, -1.5, 2.5, np.inf, np.nan], dtype)
    for got, expected in all_as_numpy(engine, [(op, {}, [values], dtype) for op in ("floor", "round")]):
        finite = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(got[finite]), np.signbit(expected[finite]))


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_wins_reductions(engine: Any, dtype: str) -> None:
    random = np.random.RandomState(0)
    values = random.standard_normal((37, 333)).astype(dtype)
    values[random.randint(0, 37, 20), random.randint(0, 333, 20)] = np.nan
    values[3], values[:, 5] = np.nan, np.inf
    values[2, 2] = -np.inf
    cases: list[Any] = [
        (op, {"axes": axes, "keepdims": False}, [values], dtype) for axes in ([0], [1], [0, 1]) for op in ("max", "min")
    ]
    cases += [(op, {"axis": axis}, [values], "int64") for op in ("argmax", "argmin") for axis in (0, 1)]
    low, equal = np.full(100000, -np.inf, dtype), np.arange(100000).astype("int64") % 7 + 2**60
    all_as_numpy(engine, [*cases, ("argmax", {"axis": 0}, [low], "int64"), ("argmax", {"axis": 0}, [equal], "int64")])


def test_booleans_as_numpy_has_them(engine: Any) -> None:
    a, b = np.array([False, False, True, True]), np.array([False, True, False, True])
    column, row, indices = a[:, None].copy(), b[None].copy(), np.array([0, 3, 4, 0], "int32")
    binary = ["add", "multiply", "maximum", "minimum", "less", "less_equal", "equal"]
    cases: list[Any] = [(op, {}, [a, b], "bool") for op in binary]
    for op in ("sum", "prod", "max", "min"):
        cases += [(op, {"axes": [0], "keepdims": True}, [x], "bool") for x in (a, a[:2].copy(), b[1::2].copy())]
    cases += [(op, {"axis": 0}, [a], "int64") for op in ("argmax", "argmin")]
    cases += [(op, {"axis": 0}, [x], "bool") for op in ("cumsum", "cumprod") for x in (a, b, a[::-1].copy())]
    cases += [
        ("matmul", {"transpose_a": False, "transpose_b": False}, [column, row], "bool"),
        ("gather", {}, [b, indices], "bool"),
        ("scatter_add", {}, [a, indices, b[:3].copy()], "bool"),
    ]
    all_as_numpy(engine, cases)


@pytest.mark.parametrize("op", ["max", "min", "argmax", "argmin"])
def test_extremes_of_nothing_are_refused(engine: Any, op: str) -> None:
    attrs: dict[str, Any] = {"axis": 0} if op.startswith("arg") else {"axes": [0], "keepdims": False}
    empty = [np.zeros(0, "float32"), np.zeros((0, 3), "int32"), np.zeros((0, 0), "float32"), np.zeros((0, 3), "uint32")]
    for operand in empty:
        like = np.zeros(operand.shape[1:], "int64" if op.startswith("arg") else operand.dtype)
        with pytest.raises(InstructionError):
            one_op(engine, op, attrs, [operand], like)
    if not op.startswith("arg"):
        same_as_numpy(engine, op, {"axes": [1], "keepdims": False}, [np.zeros((0, 3), "float32")], "float32")
