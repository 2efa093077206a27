"""What the conformance cases don't show of the TensorFlow backend: whose memory it keeps, bits, options."""

import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
from helpers.island import program, same_as_numpy
from helpers.processes import PROJECT
from island_ownership import aligned, bits

from kernelk.backends.lowering import InstructionError
from kernelk.backends.numpy.backend import NumpyBackend

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("TensorFlow is not installed", allow_module_level=True)


pytestmark = pytest.mark.worker


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


def test_other_threads_after_the_start_are_refused(backend):
    with pytest.raises(ValueError, match="restart"):
        type(backend)({"threads": backend.facts()["threads"] + 1})


@pytest.mark.parametrize("op", ["conv_kernel", "depthwise_conv_kernel"])
def test_the_gradient_of_a_kernel_of_one_element_has_no_strides(backend, op):
    """oneDNN's own way to it isn't sound."""
    attrs = {"size": [1, 1], "strides": [2, 2], "pads": [[0, 0], [1, 1]], "dilation": [1, 1]}
    leaves = [["float32", [None, 5, 6, 3]], ["float32", [None, 3, 4, 6]]]
    size = [1, 1, 3, 6 if op == "conv_kernel" else 2]
    run = backend.compile(program(inputs=leaves, instructions=[[op, [0, 1], attrs, "float32", size]], outputs=[2]), [])
    strides = [x.get_attr("strides") for x in run.concrete.graph.get_operations() if x.type.endswith("BackpropFilter")]
    assert strides == [[1, 1, 1, 1]]


def test_a_sum_is_added_to_the_variable_itself(backend):
    """What is read later has the old value, and the new one stays in its memory: an optimizer's step copies nothing."""
    leaf = ["float32", [400, 400]]
    parts = program(
        inputs=[leaf],
        slots=[leaf],
        instructions=[
            ["matmul", [0, 1], {"transpose_a": False, "transpose_b": False}, *leaf],
            ["negative", [2], {}, *leaf],
            ["add", [1, 3], {}, *leaf],
        ],
        outputs=[2],
        updates=[[0, 4]],
    )
    backend.overwrites = True
    try:
        run = backend.compile(parts, [])
    finally:
        backend.overwrites = False
    random = np.random.RandomState(0)
    x, w = (random.standard_normal((400, 400)).astype("float32") * 0.01 for _ in range(2))
    value = backend.own(backend.load(w))
    places = set()
    for _ in range(3):
        outputs, (value,) = run.overwrite([x], [value], [], lambda: None)
        assert np.allclose(backend.to_numpy(outputs[0]), x @ w, atol=1e-6)
        w = w - x @ w
        assert np.allclose(backend.to_numpy(value), w, atol=1e-6)
        places.add(np.asarray(value.value()._numpy()).ctypes.data)
        # A program that changes nothing reads it as well.
        plain = backend.compile(program(slots=[leaf], instructions=[["negative", [0], {}, *leaf]], outputs=[1]), [])
        assert np.array_equal(backend.to_numpy(plain([], [value], [])[0][0]), -backend.to_numpy(value))
    assert len(places) == 1


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
    # On some processors TensorFlow says, whatever its log level, that oneDNN is on, and has no bool.
    known = ("oneDNN custom operations are on", "oneDNN supports DT_BOOL only")
    said = [line for line in done.stderr.splitlines() if not any(words in line for words in known)]
    assert [line for line in said if not line.startswith("WARNING: All log messages before absl::")] == []


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


def test_in_the_kernel_the_users_tensorfloat32_is_set_aside_and_put_back(backend):
    import tensorflow as tf

    enabled = tf.config.experimental.tensor_float_32_execution_enabled
    before, seen = enabled(), []
    engine = type(backend)({"device": "cpu:0", "in_kernel": True})
    call = engine._at_precision(lambda fail: seen.append(enabled()) or 1 / fail)
    try:
        for own in (True, False):
            tf.config.experimental.enable_tensor_float_32_execution(own)
            call(1)
            with pytest.raises(ZeroDivisionError):
                call(0)
            assert enabled() is own
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)
    assert seen == [False] * 4


def test_a_worker_computes_without_tensorfloat32_unless_it_is_asked_for():
    done = fresh_process(
        "import os\n"
        "os.environ['TF_CPP_MIN_LOG_LEVEL'] = '3'\n"
        "import tensorflow as tf\n"
        "enabled = tf.config.experimental.tensor_float_32_execution_enabled\n"
        "found = [enabled()]\n"
        "TensorFlowBackend._has_tf32 = lambda self: True\n"
        "for precision in (None, 'tf32', 'float32'):\n"
        "    facts = TensorFlowBackend({'device': 'cpu:0', 'precision': precision}).facts()\n"
        "    found += [facts['precision'], enabled()]\n"
        "print(json.dumps(found))"
    )
    assert json.loads(done.stdout) == [True, "float32", False, "tf32", True, "float32", False]
