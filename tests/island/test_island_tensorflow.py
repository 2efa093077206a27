"""What the conformance cases don't show of the TensorFlow backend: whose memory it keeps, bits, options."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.processes import PROJECT

from kernelk.backends.base import DTYPES, PRIMITIVES
from kernelk.backends.errors import OptionError
from kernelk.backends.lowering import InstructionError, Program
from kernelk.backends.numpy.backend import NumpyBackend

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("TensorFlow is not installed", allow_module_level=True)

pytestmark = pytest.mark.worker

FLOATS = ["float16", "float32", "float64"]
SIGNED = ["int8", "int16", "int32", "int64"]
UNSIGNED = ["uint8", "uint16", "uint32", "uint64"]


def fresh_process(code):
    """Runs `code` in a process of its own, as the threads and the denormals are settled once in each."""
    code = "import json\nfrom kernelk.backends.tensorflow.backend import TensorFlowBackend\n" + code
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def backend():
    from kernelk.backends.tensorflow.backend import TensorFlowBackend

    return TensorFlowBackend({})


@pytest.fixture
def public_backend(backend):
    """As it is under a TensorFlow version without the inner entries."""
    from kernelk.backends.tensorflow.backend import TensorFlowBackend

    public = TensorFlowBackend({})
    public._prepare, public._make = None, public._make_publicly
    return public


def program(**parts):
    keys = ["inputs", "slots", "draws", "constants", "instructions", "outputs", "updates"]
    return Program(json.loads(json.dumps({key: parts.get(key, []) for key in keys})))


def aligned(values):
    """A copy of `values` in memory that TensorFlow takes without copying."""
    values = np.asarray(values)
    memory = np.zeros(values.nbytes + 64, "uint8")
    start = -memory.ctypes.data % 64
    copy = memory[start : start + values.nbytes].view(values.dtype).reshape(values.shape)
    copy[...] = values
    return copy


def bits(array):
    return np.ascontiguousarray(array).tobytes()


def one_op(engine, op, attrs, operands, dtype, rank):
    leaves = [[str(a.dtype), [None] * a.ndim] for a in operands]
    instruction = [op, list(range(len(operands))), attrs, dtype, [None] * rank]
    run = engine.compile(program(inputs=leaves, instructions=[instruction], outputs=[len(operands)]), [])
    return engine.to_numpy(run(operands, [], [])[0][0])


def same_as_numpy(backend, op, attrs, operands, dtype, tolerance=0):
    expected = one_op(NumpyBackend({}), op, attrs, operands, dtype, 0)
    got = one_op(backend, op, attrs, operands, dtype, expected.ndim)
    assert (got.dtype, got.shape) == (expected.dtype, expected.shape)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=0)
    return got, expected


def test_all_primitives_are_defined(backend):
    assert set(PRIMITIVES) <= set(backend.ops)


def test_facts(backend):
    facts = json.loads(json.dumps(backend.facts()))
    assert facts["device"] in facts["devices"]
    assert facts["threads"] >= 1
    assert facts["interpreter"].startswith("Python 3")
    assert facts["version"][0].isdigit()


def test_unknown_device_names_those_allowed(backend):
    with pytest.raises(OptionError, match="'tpu:9'") as caught:
        type(backend)({"device": "tpu:9"})
    assert "cpu:0" in caught.value.allowed


def test_other_threads_after_the_start_are_refused(backend):
    with pytest.raises(ValueError, match="restart"):
        type(backend)({"threads": backend.facts()["threads"] + 1})


def test_a_process_of_its_own_starts_without_warnings_with_these_threads_and_keeps_denormals():
    done = fresh_process(
        "import numpy as np\n"
        "backend = TensorFlowBackend({'threads': 3, 'denormals': 'keep'})\n"
        "import tensorflow as tf\n"
        "half = tf.function(lambda x: x * 0.5)\n"
        # Large enough for all threads.
        "kept = half(tf.fill([2000000], 1e-40)).numpy() == np.float32(1e-40) * np.float32(0.5)\n"
        "print(json.dumps([backend.facts(), bool(kept.all())]))"
    )
    facts, kept = json.loads(done.stdout)
    assert (facts["threads"], facts["denormals"], kept) == (3, "keep", True)
    # On some processors TensorFlow says at import, whatever its log level, that oneDNN is on.
    said = [line for line in done.stderr.splitlines() if "oneDNN custom operations are on" not in line]
    assert [line for line in said if not line.startswith("WARNING: All log messages before absl::")] == []


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_kept_is_no_view_of_what_is_overwritten(backend, public_backend, dtype):
    first, second = np.ones(6, dtype), np.array([0, 1, 0, 1, 0, 1], dtype)
    # Each is a way in which TensorFlow hands on the memory of its operand.
    views = [
        ["reshape", [0], {"dims": [6]}, dtype, [6]],
        ["slice", [0], {"slices": [[None, None, None]]}, dtype, [None]],
        ["transpose", [0], {"permutation": [0]}, dtype, [None]],
        ["concatenate", [0], {"axis": 0}, dtype, [None]],
        ["broadcast_to", [0], {"dims": [6]}, dtype, [6]],
        ["cast", [0], {"dtype": dtype}, dtype, [None]],
        ["reshape", [0], {"dims": [6, 1]}, dtype, [6, 1]],
        ["max", [9], {"axes": [1], "keepdims": False}, dtype, [6]],
        ["prod", [9], {"axes": [1], "keepdims": False}, dtype, [6]],
        ["pad", [0], {"pads": [[0, 0]]}, dtype, [None]],
        ["round", [0], {}, dtype, [None]],
    ]
    numbers = [0, *range(3, 9), *range(10, 14)]
    slots = [[dtype, [6]]] * 2
    updates = [[0, number] for number in numbers] + [[1, 1], [1, 2]]
    for engine in (backend, public_backend):
        feed, slot = aligned(first), aligned(second)
        leaf = [dtype, [None]]
        run = engine.compile(program(inputs=[leaf], slots=slots, instructions=views, updates=updates), [])
        _, kept = run([feed], [engine.load(slot), engine.load(slot)], [])
        feed[...], slot[...] = 0, 0
        for value in kept[: len(numbers)]:
            assert bits(engine.to_numpy(value)) == bits(first)
        for value in kept[len(numbers) :]:
            assert bits(engine.to_numpy(value)) == bits(second)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3)])
def test_kept_draws_and_feeds_of_any_shape(backend, shape):
    feed, draw = aligned(np.full(shape, 2.0, "float32")), aligned(np.full(shape, 3.0, "float32"))
    leaf = ["float32", list(shape)]
    updates = [[0, 0], [1, 3]]
    run = backend.compile(program(inputs=[leaf], slots=[leaf] * 2, draws=[leaf], updates=updates), [])
    _, kept = run([feed], [backend.load(feed), backend.load(feed)], [draw])
    feed[...], draw[...] = 0, 0
    found = [np.unique(backend.to_numpy(value)).tolist() for value in kept]
    assert found == ([[2], [3]] if feed.size else [[], []])
    assert [backend.to_numpy(value).shape for value in kept] == [shape, shape]


def test_ops_taken_for_fresh_write_nowhere_but_in_memory_of_their_own(backend):
    from kernelk.backends.tensorflow.ops import FRESH

    feed = aligned(np.linspace(1, 2, 64, dtype="float32").reshape(8, 8))
    slot = aligned(np.full((8, 8), 2, "float32"))
    before = bits(feed), bits(slot)
    leaf = ["float32", [8, 8]]
    unary = {"sqrt", "exp", "log", "tanh", "sigmoid", "relu", "softmax", "sin", "cos", "cumsum", "cumprod"}
    binary = {"add", "subtract", "multiply", "divide", "floor_divide", "mod", "power", "maximum", "minimum"}
    binary.add("matmul")
    attrs = {"softmax": {"axis": 1}, "cumsum": {"axis": 0}, "cumprod": {"axis": 1}}
    attrs["matmul"] = {"transpose_a": False, "transpose_b": False}
    assert unary | binary <= FRESH
    for op in sorted(unary | binary):
        for operands in [[0, 1], [1, 0], [1, 1]]:
            operands = operands[: 1 if op in unary else 2]
            run = backend.compile(
                program(
                    inputs=[leaf],
                    slots=[leaf],
                    instructions=[[op, operands, attrs.get(op, {}), "float32", [8, 8]]],
                    updates=[[0, 2]],
                ),
                [],
            )
            _, (kept,) = run([feed], [backend.load(slot)], [])
            assert not np.shares_memory(backend.to_numpy(kept), feed), op
            assert not np.shares_memory(backend.to_numpy(kept), slot), op
            # A value that TensorFlow owns isn't overwritten in place by the next call, either.
            held = bits(backend.to_numpy(kept))
            run([feed], [kept], [])
            assert bits(backend.to_numpy(kept)) == held, op
    assert (bits(feed), bits(slot)) == before


def test_rows_and_products_kept_are_no_views(backend):
    from kernelk.backends.tensorflow.ops import FRESH

    assert {"gather", "scatter_add", "batch_matmul"} <= FRESH
    for rows in (1, 4):
        shape = [rows, 4, 4]
        feed, slot = aligned(np.full(shape, 2, "float32")), aligned(np.full(shape, 3, "float32"))
        instructions = [
            ["gather", [2, 1], {}, "float32", shape],
            ["scatter_add", [0, 1, 2], {}, "float32", shape],
            ["batch_matmul", [0, 0], {"transpose_a": False, "transpose_b": True}, "float32", shape],
            ["gather", [0, 1], {}, "float32", shape],
        ]
        run = backend.compile(
            program(
                inputs=[["float32", shape], ["int32", [rows]]],
                slots=[["float32", shape]],
                instructions=instructions,
                updates=[[0, 3], [0, 4], [0, 5], [0, 6]],
            ),
            [],
        )
        _, kept = run([feed, np.arange(rows, dtype="int32")], [backend.load(slot)], [])
        for value in kept:
            assert not np.shares_memory(backend.to_numpy(value), feed)
            assert not np.shares_memory(backend.to_numpy(value), slot)


def embedding(lengths):
    """Rows of a table by indices, their squares' sum, and the table after a step down its gradient."""
    rows, count, width = lengths
    table, picked = ["float32", [rows, width]], ["float32", [count, 2, width]]
    scalar = ["float32", []]
    return program(
        inputs=[["int32", [count, 2]]],
        slots=[table],
        constants=[scalar, scalar],
        instructions=[
            ["gather", [1, 0], {}, *picked],
            ["multiply", [4, 4], {}, *picked],
            ["sum", [5], {"axes": [0, 1, 2], "keepdims": False}, *scalar],
            ["multiply", [2, 4], {}, *picked],
            ["scatter_add", [7, 0, 1], {}, *table],
            ["multiply", [3, 8], {}, *table],
            ["subtract", [1, 9], {}, *table],
        ],
        outputs=[6, 8],
        updates=[[0, 10]],
    )


@pytest.mark.parametrize("lengths", [(5, 3, 4), (None, None, None)])
def test_training_an_embedding(backend, public_backend, lengths):
    constants = [np.array(2, "float32"), np.array(0.1, "float32")]
    indices = np.array([[0, 4], [4, 4], [1, 0]], "int32")
    numpy_run = NumpyBackend({}).compile(embedding(lengths), constants)
    for engine in (backend, public_backend):
        run = engine.compile(embedding(lengths), constants)
        table = np.random.RandomState(0).standard_normal((5, 4)).astype("float32")
        value = engine.load(aligned(table))
        for _ in range(3):
            expected, (table,) = numpy_run([indices], [table], [])
            outputs, (value,) = run([indices], [value], [])
            for one, other in zip([*expected, table], [*outputs, value]):
                np.testing.assert_allclose(engine.to_numpy(other), one, rtol=3e-6)
        # A row that isn't there is NaN, and moves no row of the table.
        outputs, (moved,) = run([np.array([[5, 0], [-1, 9], [0, 0]], "int32")], [value], [])
        assert np.isnan(engine.to_numpy(outputs[0]))
        assert bits(engine.to_numpy(moved)[1:]) == bits(engine.to_numpy(value)[1:])


@pytest.mark.parametrize("dtype", FLOATS)
def test_whole_numbers_keep_the_sign_of_a_zero(backend, dtype):
    values = np.array([-0.5, -0.2, -0.0, 0.0, 0.5, 0.2, -1.5, 2.5, np.inf, np.nan], dtype)
    for op in ("floor", "round"):
        got, expected = same_as_numpy(backend, op, {}, [values], dtype)
        finite = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(got[finite]), np.signbit(expected[finite]))


@pytest.mark.parametrize("dtype", ["uint8", "uint64", "int8", "int64"])
def test_the_ends_of_an_index_type_are_outside(backend, dtype):
    info = np.iinfo(dtype)
    indices = np.array([info.min, info.max, 1, 3], dtype)
    table = np.arange(6, dtype="float32").reshape(3, 2)
    same_as_numpy(backend, "gather", {}, [table, indices], "float32")
    same_as_numpy(backend, "gather", {}, [table[:0], indices], "float32")
    same_as_numpy(backend, "scatter_add", {}, [np.ones((4, 2), "float32"), indices, table], "float32")


def test_multiplying_by_one_is_no_view_without_the_shortcuts(public_backend):
    feed = aligned(np.full(4, 2.0, "float32"))
    leaf = ["float32", [4]]
    run = public_backend.compile(
        program(
            slots=[leaf],
            constants=[["float32", []]],
            instructions=[["multiply", [0, 1], {}, "float32", [4]]],
            updates=[[0, 2]],
        ),
        [np.array(1, "float32")],
    )
    value = public_backend.load(feed)
    _, (kept,) = run([], [value], [])
    assert not np.shares_memory(public_backend.to_numpy(kept), public_backend.to_numpy(value))


def test_loading_aligned_memory_copies_nothing_and_reading_copies_nothing(backend):
    if not backend.facts()["device"].startswith("cpu"):
        pytest.skip("memory of a GPU")
    slot = aligned(np.arange(1000, dtype="float32"))
    assert np.shares_memory(backend.to_numpy(backend.load(slot)), slot)
    slot.flags.writeable = False
    assert np.shares_memory(backend.to_numpy(backend.load(slot)), slot)


@pytest.mark.parametrize("offset", [0, 4, 8])
def test_bits_survive(backend, offset):
    patterns = np.array([0x7FC00001, 0x7F800001, 0xFFC12345, 0x80000000, 1, 0x007FFFFF], "uint32")
    memory = aligned(np.zeros(64, "uint8"))
    source = memory[offset : offset + patterns.nbytes].view("float32")
    source.view("uint32")[...] = patterns
    value = backend.load(source)
    assert bits(backend.to_numpy(value)) == bits(patterns)
    leaf = ["float32", [None]]
    run = backend.compile(program(inputs=[leaf], slots=[leaf], outputs=[0, 1], updates=[[0, 0]]), [])
    outputs, kept = run([source], [value], [])
    destination = np.empty(len(patterns), "float32")
    for result in outputs + kept:
        backend.commit(result, destination)
        assert bits(destination) == bits(patterns)


def test_strided_feeds_and_states(backend):
    values = np.arange(24, dtype="int16").reshape(4, 6)
    for view in (values.T, values[::2, ::-1], values[:, 1:3], values[:0], np.asfortranarray(values)):
        np.testing.assert_array_equal(backend.to_numpy(backend.load(view)), view)


@pytest.mark.parametrize("size", [4, 4000])
def test_constants_are_taken_as_they_are_at_the_compilation(backend, public_backend, size):
    for engine in (backend, public_backend):
        constant = aligned(np.full(size, 0.5, "float64"))
        run = engine.compile(
            program(
                inputs=[["float64", [None]]],
                constants=[["float64", [size]]],
                instructions=[["add", [0, 1], {}, "float64", [None]]],
                outputs=[2, 1],
            ),
            [constant],
        )
        constant[...] = 7
        outputs, _ = run([np.ones(1)], [], [])
        assert [set(engine.to_numpy(value)) for value in outputs] == [{1.5}, {0.5}]


def test_no_rewriting_that_computes_something_else(backend):
    leaf, scalar = ["float32", [None]], ["float32", []]
    run = backend.compile(
        program(
            inputs=[leaf],
            constants=[scalar, scalar],
            instructions=[
                ["add", [0, 1], {}, "float32", [None]],
                ["subtract", [3, 1], {}, "float32", [None]],
                ["multiply", [0, 2], {}, "float32", [None]],
                ["add", [0, 2], {}, "float32", [None]],
            ],
            outputs=[4, 5, 6],
        ),
        [np.array(1e30, "float32"), np.array(0, "float32")],
    )
    outputs, _ = run([np.array([1, np.nan, -0.0], "float32")], [], [])
    rounded, zeros, sums = [backend.to_numpy(value) for value in outputs]
    assert rounded.tolist()[::2] == [0, 0]
    assert zeros[0] == 0
    assert np.isnan(zeros[1])
    assert not np.signbit(sums[2])


@pytest.mark.parametrize("dtype", SIGNED)
def test_least_integer_by_minus_one(backend, dtype):
    # In C this may trap, and end the process.
    least = np.iinfo(dtype).min
    operands = [np.array([least, least, 7, -7], dtype), np.array([-1, 0, -1, 0], dtype)]
    assert one_op(backend, "floor_divide", {}, operands, dtype, 1).tolist() == [least, 0, -7, 0]
    assert one_op(backend, "mod", {}, operands, dtype, 1).tolist() == [0, 0, 0, 0]
    same_as_numpy(backend, "abs", {}, operands[:1], dtype)
    same_as_numpy(backend, "negative", {}, operands[:1], dtype)


@pytest.mark.parametrize("dtype", UNSIGNED)
def test_the_upper_half_of_unsigned_integers(backend, dtype):
    most = np.iinfo(dtype).max
    a = np.array([most, most - 1, most // 2 + 1, 3, 0], dtype)
    b = np.array([2, most, most // 2, most, most], dtype)
    for op in ["add", "subtract", "multiply", "floor_divide", "mod", "maximum", "minimum"]:
        same_as_numpy(backend, op, {}, [a, b], dtype)
    for op in ["less", "less_equal", "equal"]:
        same_as_numpy(backend, op, {}, [a, b], "bool")
    same_as_numpy(backend, "power", {}, [a, np.array([3, 2, 1, 0, 5], dtype)], dtype)
    for op in ["sum", "max", "min"]:
        same_as_numpy(backend, op, {"axes": [0], "keepdims": False}, [a], dtype)
    same_as_numpy(backend, "argmax", {"axis": 0}, [a[::-1].copy()], "int64")
    for op in ["negative", "abs", "sign"]:
        same_as_numpy(backend, op, {}, [a], dtype)
    for target in ["float32", "float64", "int64", "uint8", "bool"]:
        same_as_numpy(backend, "cast", {"dtype": target}, [a], target)
    product = [a[:4].reshape(2, 2), b[:4].reshape(2, 2)]
    same_as_numpy(backend, "matmul", {"transpose_a": False, "transpose_b": True}, product, dtype)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("op", ["add", "divide", "floor_divide", "mod", "power", "maximum", "minimum"])
def test_all_pairs_of_special_numbers(backend, op, dtype):
    special = [0.0, -0.0, 1.0, -1.0, 0.1, 0.5, -2.5, 3.0, 7.0, -7.25, 6e4, np.inf, -np.inf, np.nan]
    special = np.array(special, dtype)
    tolerance = {"float16": 2e-3, "float32": 3e-6, "float64": 1e-12}[dtype] if op == "power" else 0
    got, expected = same_as_numpy(backend, op, {}, [special[:, None], special[None, :]], dtype, tolerance)
    if op not in ("maximum", "minimum"):
        # Which zero is greater, numpy itself leaves to the processor.
        zeros = expected == 0
        np.testing.assert_array_equal(np.signbit(got[zeros]), np.signbit(expected[zeros]))


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
        same_as_numpy(backend, "argmax", {"axis": axis}, [values], "int64")
    same_as_numpy(backend, "argmax", {"axis": 0}, [np.full(100000, -np.inf, dtype)], "int64")
    same_as_numpy(backend, "argmax", {"axis": 0}, [np.arange(100000).astype("int64") % 7 + 2**60], "int64")


def test_booleans_as_numpy_has_them(backend):
    a, b = np.array([False, False, True, True]), np.array([False, True, False, True])
    for op in ["add", "multiply", "maximum", "minimum", "less", "less_equal", "equal"]:
        same_as_numpy(backend, op, {}, [a, b], "bool")
    for op in ["sum", "max", "min"]:
        for operand in (a, a[:2], b[1::2]):
            same_as_numpy(backend, op, {"axes": [0], "keepdims": True}, [operand], "bool")
    for op in ["argmax", "argmin"]:
        same_as_numpy(backend, op, {"axis": 0}, [a], "int64")
    same_as_numpy(backend, "prod", {"axes": [0], "keepdims": False}, [a], "bool")
    for op in ["cumsum", "cumprod"]:
        same_as_numpy(backend, op, {"axis": 0}, [b], "bool")
    indices = np.array([0, 3, 4, 0], "int32")
    same_as_numpy(backend, "gather", {}, [b, indices], "bool")
    same_as_numpy(backend, "scatter_add", {}, [a, indices, b], "bool")


@pytest.mark.parametrize("op", ["max", "min", "argmax", "argmin"])
def test_extremes_of_nothing_are_refused(backend, op):
    attrs = {"axis": 0} if op.startswith("arg") else {"axes": [0], "keepdims": False}
    for operand in (np.zeros(0, "float32"), np.zeros((0, 3), "int32"), np.zeros((0, 0), "float32")):
        dtype = "int64" if op.startswith("arg") else str(operand.dtype)
        with pytest.raises(InstructionError):
            one_op(backend, op, attrs, [operand], dtype, operand.ndim - 1)
    if not op.startswith("arg"):
        attrs = {"axes": [1], "keepdims": False}
        same_as_numpy(backend, op, attrs, [np.zeros((0, 3), "float32")], "float32")


def test_errors_name_their_instruction(backend, public_backend):
    leaf = ["float32", [None]]
    for engine in (backend, public_backend):
        run = engine.compile(
            program(
                inputs=[leaf, leaf],
                instructions=[["negative", [0], {}, *leaf], ["add", [2, 1], {}, *leaf]],
                outputs=[3],
            ),
            [],
        )
        with pytest.raises(InstructionError, match="Incompatible shapes") as caught:
            run([np.ones(3, "float32"), np.ones(4, "float32")], [], [])
        assert caught.value.index == 1
        # The failure leaves the function usable.
        assert engine.to_numpy(run([np.ones(3, "float32")] * 2, [], [])[0][0]).tolist() == [0, 0, 0]
    with pytest.raises(InstructionError) as caught:
        backend.compile(program(inputs=[leaf] * 2, instructions=[["teleport", [0], {}, *leaf]], outputs=[2]), [])
    assert caught.value.index == 0


def test_programs_without_results_and_repeated_results(backend):
    leaf = ["float32", [None]]
    run = backend.compile(program(inputs=[leaf]), [])
    assert run([np.ones(2, "float32")], [], []) == ([], [])
    instructions = [["negative", [0], {}, *leaf]]
    outputs, updates = [2, 2, 0, 1], [[0, 2]]
    run = backend.compile(
        program(inputs=[leaf], slots=[leaf], instructions=instructions, outputs=outputs, updates=updates), []
    )
    outputs, kept = run([np.ones(2, "float32")], [backend.load(np.zeros(2, "float32"))], [])
    got = [backend.to_numpy(value).tolist() for value in outputs + kept]
    assert got == [[-1, -1], [-1, -1], [1, 1], [0, 0], [-1, -1]]


def test_inside_a_graph_of_the_users(backend):
    import tensorflow as tf

    with tf.Graph().as_default():
        same_as_numpy(backend, "negative", {}, [np.ones(3, "float32")], "float32")


def test_deep_programs(backend):
    depth = 1500
    instructions = [["add", [number, 0], {}, "float32", [None]] for number in range(depth)]
    run = backend.compile(program(inputs=[["float32", [None]]], instructions=instructions, outputs=[depth]), [])
    assert backend.to_numpy(run([np.ones(2, "float32")], [], [])[0][0]).tolist() == [depth + 1] * 2
    backend.synchronize()
