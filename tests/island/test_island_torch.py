"""What the conformance cases don't show of the PyTorch backend: whose memory it keeps and reuses, bits, options."""

import importlib.util
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from helpers.processes import PROJECT, TESTS

from kernelk.backends.base import DTYPES, PRIMITIVES
from kernelk.backends.errors import OptionError
from kernelk.backends.lowering import InstructionError, Program
from kernelk.backends.numpy.backend import NumpyBackend

if importlib.util.find_spec("torch") is None:
    if "torch" in [name.strip() for name in os.environ.get("KERNELK_REQUIRE", "").split(",")]:
        raise RuntimeError("KERNELK_REQUIRE names torch, and PyTorch is not installed")
    pytest.skip("PyTorch is not installed", allow_module_level=True)

pytestmark = pytest.mark.worker

FLOATS = ["float16", "float32", "float64"]
SIGNED = ["int8", "int16", "int32", "int64"]
UNSIGNED = ["uint8", "uint16", "uint32", "uint64"]
SPECIAL = [0.0, -0.0, 1.0, -1.0, 0.1, 0.5, -2.5, 3.0, 7.0, -7.25, 6e4, np.inf, -np.inf, np.nan]


@pytest.fixture(scope="module")
def backend():
    from kernelk.backends.torch.backend import TorchBackend

    return TorchBackend({"device": "cpu:0"})


def program(**parts):
    keys = ["inputs", "slots", "draws", "constants", "instructions", "outputs", "updates"]
    return Program(json.loads(json.dumps({key: parts.get(key, []) for key in keys})))


def bits(array):
    return np.ascontiguousarray(array).tobytes()


def one_op(engine, op, attrs, operands, dtype, rank):
    leaves = [[str(a.dtype), [None] * a.ndim] for a in operands]
    instruction = [op, list(range(len(operands))), attrs, dtype, [None] * rank]
    run = engine.compile(program(inputs=leaves, instructions=[instruction], outputs=[len(operands)]), [])
    return engine.to_numpy(run(operands, [], [])[0][0])


def same_as_numpy(backend, op, attrs, operands, dtype, tolerance=0):
    operands = [np.asarray(operand) for operand in operands]
    expected = one_op(NumpyBackend({}), op, attrs, operands, dtype, 0)
    got = one_op(backend, op, attrs, operands, dtype, expected.ndim)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=0)
    return got, expected


def stepped(backend, run, feeds, state, destinations):
    """One call as the executor makes it: outputs copied at once, then every update committed."""
    outputs, updated = run(feeds, state, [], destinations)
    outputs = [np.array(backend.to_numpy(value)) for value in outputs]
    kept = [
        backend.commit(value, destination) if value is not destination else value
        for value, destination in zip(updated, destinations)
    ]
    return outputs, kept


def test_all_primitives_are_defined_and_callable_as_the_contract_says(backend):
    assert set(PRIMITIVES) <= set(backend.ops)
    instruction = program(
        inputs=[["int32", [2]], ["int32", [2]]], instructions=[["mod", [0, 1], {}, "int32", [2]]]
    ).instructions[0]
    values = [backend.load(np.array(pair, "int32")) for pair in ([5, -5], [0, 3])]
    assert backend.to_numpy(backend.ops["mod"](instruction, *values)).tolist() == [0, 1]


def test_conformance():
    script = str(TESTS / "island" / "island_conformance.py")
    island = str(PROJECT / "kernelk" / "backends")
    command = [sys.executable, "-W", "error::UserWarning", script, island, "torch", "TorchBackend"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, ISLAND_SAMPLE="3"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


def test_facts(backend):
    facts = json.loads(json.dumps(backend.facts()))
    assert facts["device"] == "cpu:0"
    assert facts["device"] in facts["devices"]
    assert facts["threads"] >= 1
    assert facts["interpreter"].startswith("Python 3")
    assert facts["version"][0].isdigit()


def test_options(backend):
    with pytest.raises(OptionError, match="'tpu:9'") as caught:
        type(backend)({"device": "tpu:9"})
    assert "cpu:0" in caught.value.allowed
    with pytest.raises(ValueError, match="threads=0"):
        type(backend)({"threads": 0})
    assert type(backend)({"device": "cpu"}).facts()["device"] == "cpu:0"
    before = backend.facts()["threads"]
    try:
        assert type(backend)({"threads": 3}).facts()["threads"] == 3
    finally:
        type(backend)({"threads": before})


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_kept_is_no_view_of_what_is_overwritten(backend, dtype):
    first, second = np.ones(6, dtype), np.array([0, 1, 0, 1, 0, 1], dtype)
    views = [
        ["reshape", [0], {"dims": [6]}, dtype, [6]],
        ["slice", [0], {"slices": [[None, None, None]]}, dtype, [None]],
        ["transpose", [0], {"permutation": [0]}, dtype, [None]],
        ["concatenate", [0], {"axis": 0}, dtype, [None]],
        ["broadcast_to", [0], {"dims": [6]}, dtype, [6]],
        ["cast", [0], {"dtype": dtype}, dtype, [None]],
        ["reshape", [0], {"dims": [6, 1]}, dtype, [6, 1]],
        ["max", [9], {"axes": [1], "keepdims": False}, dtype, [6]],
        ["pad", [0], {"pads": [[0, 0]]}, dtype, [None]],
    ]
    numbers = [0, *range(3, 9), 10, 11]
    # The second slot keeps its value, and gives it to the first one's namesakes.
    updates = [[0, number] for number in numbers] + [[1, 1], [1, 2]]
    run = backend.compile(
        program(inputs=[[dtype, [None]]], slots=[[dtype, [6]]] * 2, instructions=views, updates=updates), []
    )
    feed, slot = first.copy(), second.copy()
    destinations = [np.zeros(6, dtype) for _ in updates]
    state = [backend.load(slot), backend.load(slot)]
    _, kept = stepped(backend, run, [feed], state, destinations)
    feed[...], slot[...] = 0, 0
    for value, destination, expected in zip(kept, destinations, [first] * len(numbers) + [second] * 2):
        assert bits(backend.to_numpy(value)) == bits(destination) == bits(expected)
    addresses = {backend.to_numpy(value).ctypes.data for value in kept}
    assert len(addresses) == len(kept)


def momentum(shape):
    """velocity = 0.5 * velocity - gradient * 2; weight = weight + velocity; and both as they were."""
    leaf = ["float32", shape]
    return program(
        inputs=[leaf],
        slots=[leaf, leaf],
        constants=[["float32", []], ["float32", []]],
        instructions=[
            ["multiply", [3, 2], {}, *leaf],
            ["multiply", [4, 0], {}, *leaf],
            ["subtract", [5, 6], {}, *leaf],
            ["add", [1, 7], {}, *leaf],
        ],
        outputs=[1, 2, 8],
        updates=[[1, 7], [0, 8]],
    )


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3), (700, 300)])
def test_updates_are_computed_in_their_destinations(backend, shape):
    run = backend.compile(momentum(list(shape)), [np.float32(0.5), np.float32(2)])
    random = np.random.RandomState(0)
    gradient = random.standard_normal(shape).astype("float32")
    sides = [[np.array(random.standard_normal(shape), "float32") for _ in range(2)] for _ in range(2)]
    weight, velocity = sides[0][0].copy(), sides[0][1].copy()
    state = [backend.load(array) for array in sides[0]]
    for turn in range(1, 5):
        kept_before = [array.copy() for array in sides[1 - turn % 2]]
        weight_slot, velocity_slot = sides[turn % 2]
        outputs, updated = run([gradient], state, [], [velocity_slot, weight_slot])
        # Outputs see the values from before the updates.
        assert [bits(backend.to_numpy(value)) for value in outputs[:2]] == [bits(weight), bits(velocity)]
        velocity = np.float32(0.5) * velocity - np.float32(2) * gradient
        weight = weight + velocity
        assert bits(weight_slot) == bits(backend.to_numpy(outputs[2])) == bits(weight)
        assert bits(velocity_slot) == bits(velocity)
        kept = [backend.commit(v, d) for v, d in zip(updated, [velocity_slot, weight_slot])]
        for value, slot in zip(kept, [velocity_slot, weight_slot]):
            assert np.shares_memory(backend.to_numpy(value), slot) == bool(slot.size)
        assert [bits(a) for a in sides[1 - turn % 2]] == [bits(a) for a in kept_before]
        state = kept[::-1]


def test_destinations_are_optional_and_change_nothing(backend):
    run = backend.compile(momentum([3]), [np.float32(0.5), np.float32(2)])
    arrays = [np.array(values, "float32") for values in ([1, 2, 3], [4, 5, 6], [7, 8, 9])]
    state = [backend.load(array) for array in arrays[1:]]
    _, updated = run(arrays[:1], state, [])
    plain = [backend.to_numpy(value).tolist() for value in updated]
    destinations = [np.zeros(3, "float32") for _ in range(2)]
    _, updated = run(arrays[:1], state, [], destinations)
    assert plain == [array.tolist() for array in destinations] == [[1.5, 0, -1.5], [5.5, 5, 4.5]]
    assert [backend.to_numpy(value).tolist() for value in state] == [[4, 5, 6], [7, 8, 9]]
    # Another array than the one it was written into is copied to.
    other = np.zeros(3, "float32")
    backend.commit(updated[0], other)
    assert other.tolist() == plain[0]


def test_one_value_for_two_variables(backend):
    leaf = ["float32", [2]]
    run = backend.compile(
        program(slots=[leaf, leaf], instructions=[["add", [0, 1], {}, *leaf]], updates=[[0, 2], [1, 2]]), []
    )
    destinations = [np.zeros(2, "float32") for _ in range(2)]
    state = [backend.load(np.array(values, "float32")) for values in ([1, 2], [3, 4])]
    _, kept = stepped(backend, run, [], state, destinations)
    assert [d.tolist() for d in destinations] == [[4, 6], [4, 6]]
    destinations[0][...] = 0
    assert backend.to_numpy(kept[1]).tolist() == [4, 6]


def test_intermediates_that_are_seen_elsewhere_are_not_reused(backend):
    leaf, column = ["float32", [3]], ["float32", [3, 1]]
    instructions = [
        ["negative", [0], {}, *leaf],  # 2
        ["reshape", [2], {"dims": [3, 1]}, *column],  # 3: a view of 2
        ["exp", [2], {}, *leaf],  # 4: the last use of 2 itself
        ["multiply", [4, 4], {}, *leaf],  # 5
        ["add", [5, 4], {}, *leaf],  # 6
        ["reshape", [3], {"dims": [3]}, *leaf],  # 7
        ["subtract", [7, 6], {}, *leaf],  # 8
    ]
    x = np.array([0, 1, 2], "float32")
    for updates in ([], [[0, 8]]):
        parts = dict(inputs=[leaf], slots=[leaf], instructions=instructions, outputs=[8, 0, 1], updates=updates)
        run = backend.compile(program(**parts), [])
        slot, destination = np.ones(3, "float32"), np.zeros(3, "float32")
        (got, feed, state), _ = stepped(backend, run, [x], [backend.load(slot)], [destination][: len(updates)])
        e = np.exp(-x)
        np.testing.assert_allclose(got, -x - (e * e + e), rtol=1e-6)
        assert feed.tolist() == [0, 1, 2]
        assert state.tolist() == [1, 1, 1]


def test_fresh_results_are_memory_of_their_own(backend):
    from kernelk.backends.torch import ops

    for shape in ([], [1], [1, 1], [4, 4]):
        leaf = ["float32", shape]
        feed = np.full(shape, 2, "float32")
        axes = list(range(len(shape)))
        cases = [(op, [0], {}) for op in ["negative", "sqrt", "exp", "relu", "sigmoid"]]
        cases += [(op, [0, 0], {}) for op in ["add", "floor_divide", "mod", "power", "maximum"]]
        cases += [(op, [0], {"axes": axes, "keepdims": True}) for op in ["sum", "max", "min", "mean"]]
        if shape:
            cases += [(op, [0], {"axis": 0}) for op in ["cumsum", "cumprod", "softmax"]]
        if len(shape) == 2:
            cases.append(("matmul", [0, 0], {"transpose_a": False, "transpose_b": True}))
        for op, operands, attrs in cases:
            assert op not in ops.VIEWS
            reduced = [1] * len(shape) if "axes" in attrs else shape
            instruction = [op, operands, attrs, "float32", reduced]
            run = backend.compile(program(inputs=[leaf], instructions=[instruction], outputs=[1]), [])
            assert not np.shares_memory(backend.to_numpy(run([feed], [], [])[0][0]), feed), (op, shape)
            assert set(feed.reshape(-1)) == {2}


def test_a_slot_is_shared_also_read_only_and_without_a_warning(backend):
    slot = np.arange(1000, dtype="float32")
    assert np.shares_memory(backend.to_numpy(backend.load(slot)), slot)
    slot.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.shares_memory(backend.to_numpy(backend.load(slot)), slot)


@pytest.mark.parametrize("offset", [0, 4, 8])
def test_bits_survive(backend, offset):
    patterns = np.array([0x7FC00001, 0x7F800001, 0xFFC12345, 0x80000000, 1, 0x007FFFFF], "uint32")
    source = np.zeros(64, "uint8")[offset : offset + patterns.nbytes].view("float32")
    source.view("uint32")[...] = patterns
    value = backend.load(source)
    assert bits(backend.to_numpy(value)) == bits(patterns)
    leaf = ["float32", [None]]
    run = backend.compile(program(inputs=[leaf], slots=[leaf], outputs=[0, 1], updates=[[0, 0]]), [])
    outputs, kept = run([source], [value], [])
    destination = np.empty(len(patterns), "float32")
    for result in outputs + kept:
        assert bits(backend.to_numpy(backend.commit(result, destination))) == bits(destination) == bits(patterns)


@pytest.mark.parametrize("dtype", ["bool", "int16", "uint16", "uint64", "float16", "float64"])
def test_strided_arrays(backend, dtype):
    values = np.arange(24).reshape(4, 6).astype(dtype)
    for view in (values.T, values[::2, ::-1], values[:, 1:3], values[:0], np.asfortranarray(values), values[0, 0]):
        np.testing.assert_array_equal(backend.to_numpy(backend.load(np.asarray(view))), view)
    run = backend.compile(
        program(
            inputs=[[dtype, [4, 6]]],
            slots=[[dtype, [6, 4]]],
            instructions=[["transpose", [0], {"permutation": [1, 0]}, dtype, [6, 4]]],
            outputs=[2],
            updates=[[0, 2]],
        ),
        [],
    )
    destination = np.zeros((6, 4), dtype)
    (output,), (kept,) = stepped(backend, run, [values], [None], [destination])
    assert bits(output) == bits(destination) == bits(backend.to_numpy(kept)) == bits(values.T)


def test_denormals_are_kept_on_all_threads(backend):
    tiny = np.full(2000000, 1e-40, "float32")
    leaf = ["float32", [None]]
    run = backend.compile(
        program(
            inputs=[leaf], constants=[["float32", []]], instructions=[["multiply", [0, 1], {}, *leaf]], outputs=[2]
        ),
        [np.float32(0.5)],
    )
    assert set(backend.to_numpy(run([tiny], [], [])[0][0])) == {np.float32(1e-40) * np.float32(0.5)}


@pytest.mark.parametrize("dtype", SIGNED)
def test_least_integer_by_minus_one(backend, dtype):
    least = np.iinfo(dtype).min
    operands = [np.array([least, least, 7, -7] * 20, dtype), np.array([-1, 0, -1, 0] * 20, dtype)]
    assert one_op(backend, "floor_divide", {}, operands, dtype, 1).tolist() == [least, 0, -7, 0] * 20
    assert one_op(backend, "mod", {}, operands, dtype, 1).tolist() == [0] * 80
    for op in ("abs", "negative", "sign"):
        same_as_numpy(backend, op, {}, operands[:1], dtype)


@pytest.mark.parametrize("dtype", UNSIGNED)
def test_the_upper_half_of_unsigned_integers(backend, dtype):
    most = np.iinfo(dtype).max
    a = np.array([most, most - 1, most // 2 + 1, most // 2, 3, 2, 1, 0], dtype)
    for op in ["add", "subtract", "multiply", "floor_divide", "mod", "power", "maximum", "minimum"]:
        same_as_numpy(backend, op, {}, [a[:, None], a[None]], dtype)
    for op in ["less", "less_equal", "equal", "not_equal"]:
        same_as_numpy(backend, op, {}, [a[:, None], a[None]], "bool")
    for op in ["sum", "prod", "max", "min"]:
        same_as_numpy(backend, op, {"axes": [0], "keepdims": False}, [a], dtype)
    for op in ["argmax", "argmin"]:
        same_as_numpy(backend, op, {"axis": 0}, [a[::-1].copy()], "int64")
    for op in ["cumsum", "cumprod"]:
        same_as_numpy(backend, op, {"axis": 0}, [a], dtype)
    for op in ["negative", "abs", "sign"]:
        same_as_numpy(backend, op, {}, [a], dtype)
    for target in DTYPES:
        with np.errstate(all="ignore"):
            same_as_numpy(backend, "cast", {"dtype": target}, [a], target)
    for float_dtype in ["float32", "float64"]:
        high = np.array([most // 2 + 1, 3], float_dtype)
        same_as_numpy(backend, "cast", {"dtype": dtype}, [high], dtype)
    same_as_numpy(backend, "matmul", {"transpose_a": False, "transpose_b": True}, [a.reshape(2, 4)] * 2, dtype)
    table = np.arange(20, dtype="float32")
    same_as_numpy(backend, "gather", {}, [table, a], "float32")
    same_as_numpy(backend, "gather", {}, [np.resize(a, 20), a], dtype)
    same_as_numpy(backend, "scatter_add", {}, [a, a, np.resize(a, 3)], dtype)
    same_as_numpy(backend, "one_hot", {"depth": 5}, [a], "float32")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", ["add", "divide", "floor_divide", "mod", "power", "maximum", "minimum"])
def test_all_pairs_of_special_numbers(backend, op, dtype):
    special = np.array(SPECIAL, dtype)
    tolerance = {"float16": 2e-3, "float32": 3e-6, "float64": 1e-12}[dtype] if op == "power" else 0
    with np.errstate(all="ignore"):
        got, expected = same_as_numpy(backend, op, {}, [special[:, None], special[None, :]], dtype, tolerance)
    if op not in ("maximum", "minimum"):
        # Which zero is greater, numpy itself leaves to the processor.
        zeros = expected == 0
        np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(expected[zeros]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_mod_where_the_quotient_overflows(backend, dtype):
    x = np.array([8e30, -2e18, 5, np.inf] * 8, dtype)
    y = np.array([-1.5e-24, 2e-24, 3, 2] * 8, dtype)
    if dtype == "float64":
        x[::4], y[::4] = 7e191, 5e-237
    same_as_numpy(backend, "mod", {}, [x, y], dtype)


def test_float64_to_float16_is_rounded_once(backend):
    tie = 1 + 2.0**-11
    values = np.array([tie, tie + 2.0**-40, tie - 2.0**-40, -tie - 2.0**-40, 65520 - 1e-9, 65520, 1e300, 3e-8, -1e-300])
    values = np.concatenate([values, [np.inf, -np.inf, np.nan, -0.0, 2.0**-25, 2.0**-25 * (1 + 1e-12)]])
    with np.errstate(all="ignore"):
        got, expected = same_as_numpy(backend, "cast", {"dtype": "float16"}, [values], "float16")
    np.testing.assert_array_equal(np.signbit(got), np.signbit(expected))


def test_negative_integer_powers_are_refused_as_in_numpy(backend):
    with pytest.raises(InstructionError, match="negative integer powers"):
        one_op(backend, "power", {}, [np.array([2, 3]), np.array([1, -1])], "int64", 1)


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_wins_reductions(backend, dtype):
    random = np.random.RandomState(0)
    values = random.standard_normal((37, 333)).astype(dtype)
    values[random.randint(0, 37, 20), random.randint(0, 333, 20)] = np.nan
    values[3], values[:, 5] = np.nan, np.inf
    values[2, 2] = -np.inf
    for axes in ([0], [1], [0, 1]):
        for op in ("max", "min"):
            same_as_numpy(backend, op, {"axes": axes, "keepdims": False}, [values], dtype)
    for axis in (0, 1):
        for op in ("argmax", "argmin"):
            same_as_numpy(backend, op, {"axis": axis}, [values], "int64")
    same_as_numpy(backend, "argmax", {"axis": 0}, [np.full(100000, -np.inf, dtype)], "int64")
    same_as_numpy(backend, "argmax", {"axis": 0}, [np.arange(100000).astype("int64") % 7 + 2**60], "int64")


def test_booleans_as_numpy_has_them(backend):
    a, b = np.array([False, False, True, True]), np.array([False, True, False, True])
    for op in ["add", "multiply", "maximum", "minimum", "less", "less_equal", "equal"]:
        same_as_numpy(backend, op, {}, [a, b], "bool")
    for op in ["sum", "prod", "max", "min"]:
        for operand in (a, a[:2], b[1::2]):
            same_as_numpy(backend, op, {"axes": [0], "keepdims": True}, [operand], "bool")
    for op in ["argmax", "argmin"]:
        same_as_numpy(backend, op, {"axis": 0}, [a], "int64")
    for op in ["cumsum", "cumprod"]:
        same_as_numpy(backend, op, {"axis": 0}, [b], "bool")
    same_as_numpy(backend, "matmul", {"transpose_a": False, "transpose_b": False}, [a[:, None], b[None]], "bool")


@pytest.mark.parametrize("op", ["max", "min", "argmax", "argmin"])
def test_extremes_of_nothing_are_refused(backend, op):
    attrs = {"axis": 0} if op.startswith("arg") else {"axes": [0], "keepdims": False}
    for operand in (np.zeros(0, "float32"), np.zeros((0, 3), "int32"), np.zeros((0, 3), "uint32")):
        dtype = "int64" if op.startswith("arg") else str(operand.dtype)
        with pytest.raises(InstructionError):
            one_op(backend, op, attrs, [operand], dtype, operand.ndim - 1)


def test_errors_name_their_instruction(backend):
    leaf = ["float32", [None]]
    parts = dict(inputs=[leaf, leaf], instructions=[["negative", [0], {}, *leaf], ["add", [2, 1], {}, *leaf]])
    run = backend.compile(program(outputs=[3], **parts), [])
    with pytest.raises(InstructionError, match="size") as caught:
        run([np.ones(3, "float32"), np.ones(4, "float32")], [], [])
    assert caught.value.index == 1
    # The failure leaves the function usable.
    assert backend.to_numpy(run([np.ones(3, "float32")] * 2, [], [])[0][0]).tolist() == [0, 0, 0]
    for op in ("teleport", "floor_divide"):
        leaf = ["bool", [None]]
        with pytest.raises(InstructionError) as caught:
            backend.compile(program(inputs=[leaf] * 2, instructions=[[op, [0, 1], {}, *leaf]], outputs=[2]), [])
        assert caught.value.index == 0


def test_what_follows_from_constants_is_known_but_fails_only_at_the_call(backend):
    vector = ["float32", [4]]
    instructions = [
        ["size", [0], {"axes": [0]}, "float32", []],
        ["divide", [1, 2], {}, "float32", []],
        ["reshape", [3], {"dims": [1]}, "float32", [1]],
        ["broadcast_to", [4], {"dims": [4]}, *vector],
        ["multiply", [5, 0], {}, *vector],
        ["reshape", [1], {"dims": [7]}, "float32", [7]],
    ]
    parts = dict(inputs=[vector], constants=[["float32", []]])
    run = backend.compile(program(instructions=instructions[:5], outputs=[6, 5], **parts), [np.float32(1)])
    for _ in range(2):
        outputs, _ = run([np.ones(4, "float32")], [], [])
        assert [backend.to_numpy(value).tolist() for value in outputs] == [[0.25] * 4] * 2
    run = backend.compile(program(instructions=instructions, outputs=[7], **parts), [np.float32(1)])
    with pytest.raises(InstructionError) as caught:
        run([np.ones(4, "float32")], [], [])
    assert caught.value.index == 5


def test_programs_without_results_and_repeated_results(backend):
    leaf = ["float32", [None]]
    run = backend.compile(program(inputs=[leaf]), [])
    assert run([np.ones(2, "float32")], [], []) == ([], [])
    instructions = [["negative", [0], {}, *leaf]]
    parts = dict(inputs=[leaf], slots=[leaf], instructions=instructions)
    run = backend.compile(program(outputs=[2, 2, 0, 1], updates=[[0, 2]], **parts), [])
    outputs, kept = run([np.ones(2, "float32")], [backend.load(np.zeros(2, "float32"))], [])
    got = [backend.to_numpy(value).tolist() for value in outputs + kept]
    assert got == [[-1, -1], [-1, -1], [1, 1], [0, 0], [-1, -1]]


def test_intermediates_are_released(backend):
    import torch

    leaf = ["float32", [None]]
    depth = 30
    instructions = [["exp", [number], {}, *leaf] for number in range(depth)]
    run = backend.compile(program(inputs=[leaf], instructions=instructions, outputs=[depth]), [])
    with torch.profiler.profile(profile_memory=True) as profile:
        run([np.zeros(250000, "float32")], [], [])
    memory, most = 0, 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            memory += event.nbytes()
            most = max(most, memory)
    assert 0 < most <= 3 * 1000000


def test_deep_programs(backend):
    depth = 10000
    for shape in ([None], [2]):
        instructions = [["add", [number, 0], {}, "float32", shape] for number in range(depth)]
        run = backend.compile(program(inputs=[["float32", shape]], instructions=instructions, outputs=[depth]), [])
        assert backend.to_numpy(run([np.ones(2, "float32")], [], [])[0][0]).tolist() == [depth + 1] * 2
    backend.synchronize()
