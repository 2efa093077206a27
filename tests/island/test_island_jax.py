"""What the conformance cases don't show of the JAX backend: whose memory it keeps, bits, rewriting, options."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.island import FLOATS, all_as_numpy, draws_of_a_device_are_the_hosts, program, run_all, same_as_numpy
from helpers.processes import PROJECT
from island_ownership import aligned, bits

from kernelk.backends.lowering import InstructionError
from kernelk.backends.numpy.backend import NumpyBackend

if importlib.util.find_spec("jax") is None:
    if "jax" in os.environ.get("KERNELK_REQUIRE", "").replace(",", " ").split():
        pytest.fail("JAX is not installed, and KERNELK_REQUIRE names it", pytrace=False)
    pytest.skip("JAX is not installed", allow_module_level=True)


pytestmark = pytest.mark.worker


def fresh_process(code, **environment):
    """Runs `code` in a process of its own, as the threads and the denormals are settled once in each."""
    code = "import json\nimport numpy as np\nfrom kernelk.backends.jax.backend import JaxBackend\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def backend():
    from kernelk.backends.jax.backend import JaxBackend

    return JaxBackend({})


@pytest.fixture(scope="module")
def public_backend(backend):
    """As it is under a JAX version without the inner entries."""
    public = type(backend)({})
    import jax

    public._make, public._block = public._make_publicly, jax.block_until_ready
    return public


def test_unknown_options_name_those_allowed(backend):
    with pytest.raises(ValueError, match="denormals='maybe'") as refused:
        type(backend)({"denormals": "maybe"})
    assert "'keep' and 'flush'" in refused.value.allowed


def test_other_threads_after_the_start_are_refused(backend):
    with pytest.raises(ValueError, match="restart"):
        type(backend)({"threads": backend.facts()["threads"] + 1})
    assert type(backend)({"threads": backend.facts()["threads"]}).facts()["threads"] == backend.facts()["threads"]


def test_a_process_of_its_own_has_these_threads_keeps_denormals_and_leaves_the_rest_alone():
    done = fresh_process(
        "import os\n"
        "before = dict(os.environ)\n"
        "backend = JaxBackend({'threads': 3, 'denormals': 'keep', 'device': 'cpu:0'})\n"
        "import jax, jax.numpy as jnp\n"
        # Large enough for all threads.
        "half = jax.jit(lambda x: x * np.float32(0.5))\n"
        "big = np.asarray(half(np.full(2000000, 1e-40, np.float32)))\n"
        "kept = bool((big == np.float32(1e-40) * np.float32(0.5)).all())\n"
        "product = np.asarray(jax.jit(lambda x: x @ x)(np.full((300, 300), 1e-22, np.float32)))\n"
        "kept = kept and bool((product > 0).all())\n"
        "wide = str(jnp.asarray(np.ones(2)).dtype), str(jax.jit(lambda x: x * 2)(np.ones(2)).dtype)\n"
        "print(json.dumps([backend.facts(), kept, wide, dict(os.environ) == before, jax.config.jax_enable_x64]))",
        XLA_FLAGS="",
        # What JAX itself sets when it is imported.
        TF_CPP_MIN_LOG_LEVEL="1",
        TPU_SKIP_MDS_QUERY="1",
    )
    facts, kept, wide, same, enabled = json.loads(done.stdout)
    assert (facts["threads"], facts["denormals"], kept) == (3, "keep", True)
    # The user's own JAX is as it was.
    assert (wide, same, enabled) == (["float32", "float32"], True, False)


def test_jax_that_has_started_flushes_and_says_so():
    done = fresh_process(
        "import jax\n"
        "jax.devices()\n"
        "facts = JaxBackend({}).facts()\n"
        "try:\n"
        "    JaxBackend({'denormals': 'keep'})\n"
        "except ValueError as error:\n"
        "    print(json.dumps([facts['denormals'], error.next_step]))"
    )
    denormals, next_step = json.loads(done.stdout)
    assert denormals == "flush"
    assert "restart" in next_step


def test_wide_dtypes_in_a_process_that_has_not_enabled_them(backend, public_backend):
    import jax

    assert not jax.config.jax_enable_x64
    values = np.array([2**53 + 1, -(2**62) - 1], "int64"), np.array([1e300, 1 + 2.0**-50])
    for engine in (backend, public_backend):
        for value in values:
            assert bits(engine.to_numpy(engine.load(value))) == bits(value)
            for slots in (False, True):
                like = [("negative", [0], {}, value)]
                assert bits(run_all(engine, like, [value], slots=slots)[0]) == bits(-value)
    # What the user's code makes is as before.
    assert jax.numpy.asarray(np.ones(2)).dtype == np.float32
    with jax.enable_x64(True):
        same_as_numpy(backend, "negative", {}, [np.ones(3)], "float64")
        same_as_numpy(backend, "negative", {}, [np.ones(3, "float32")], "float32")


@pytest.mark.parametrize("size", [4, 4000])
def test_constants_are_taken_as_they_are_at_the_compilation(backend, size):
    constant = aligned(np.full(size, 0.5, "float64"))
    leaf = ["float64", [size]]
    run = backend.compile(
        program(inputs=[leaf], constants=[leaf], instructions=[["add", [0, 1], {}, *leaf]], outputs=[2, 1]),
        [constant],
    )
    constant[...] = 7
    outputs, _ = run([np.ones(size)], [], [])
    assert [set(backend.to_numpy(value)) for value in outputs] == [{1.5}, {0.5}]
    # Another program of the same structure, with other constants.
    run = backend.compile(
        program(inputs=[leaf], constants=[leaf], instructions=[["add", [0, 1], {}, *leaf]], outputs=[2]), [constant]
    )
    assert set(backend.to_numpy(run([np.ones(size)], [], [])[0][0])) == {8}


# Programs that a compiler likes to rewrite: (instructions as (op, inputs), constants, operands). Values are
# numbered operands, constants, instructions.
REWRITES = {
    "(x + 1e30) - 1e30": ([("add", 0, 1), ("subtract", 2, 1)], [1e30], [[1, -1, np.nan]]),
    "(x + 1e8) + -1e8": ([("add", 0, 1), ("add", 3, 2)], [1e8, -1e8], [[1, 3]]),
    "(x * 1e30) * 1e-30": ([("multiply", 0, 1), ("multiply", 3, 2)], [1e30, 1e-30], [[1e15, 3]]),
    "(x * 1e-30) * 1e30": ([("multiply", 0, 1), ("multiply", 3, 2)], [1e-30, 1e30], [[1e-15, 3]]),
    "x * 1e30 + x * -1e30": (
        [("multiply", 0, 1), ("multiply", 0, 2), ("add", 3, 4)],
        [1e20, -1e20],
        [[1e10, 1e15, 3]],
    ),
    "x - x": ([("subtract", 0, 0)], [], [[1, np.inf, np.nan]]),
    "x / x": ([("divide", 0, 0)], [], [[0, 1, np.inf, np.nan]]),
    "x * 0": ([("multiply", 0, 1)], [0], [[1, -1, np.inf, np.nan]]),
    "x + 0": ([("add", 0, 1)], [0], [[-0.0, 1]]),
    "0 - x": ([("subtract", 1, 0)], [0], [[0.0, -0.0, 1]]),
    "x * -1": ([("multiply", 0, 1)], [-1], [[0.0, -0.0, np.nan]]),
    "-(x - y)": ([("subtract", 0, 1), ("negative", 2)], [], [[1, 0], [1, 0]]),
    "x / 1e-40": ([("divide", 0, 1)], [1e-40], [[0, 1, 1e-20, 1e-40]]),
    "x / 3": ([("divide", 0, 1)], [3], [np.arange(50)]),
    "log(x + 1)": ([("add", 0, 1), ("log", 2)], [1], [[1e-20, 1e-10, -1, -2]]),
    "exp(x) - 1": ([("exp", 0), ("subtract", 2, 1)], [1], [[1e-20, 1e-10]]),
    "exp(x) * exp(-x)": ([("negative", 0), ("exp", 0), ("exp", 1), ("multiply", 2, 3)], [], [[88.8, -88.8]]),
    "exp(x) / exp(x)": ([("exp", 0), ("divide", 1, 1)], [], [[100, -200, 1]]),
    "log(exp(x))": ([("exp", 0), ("log", 1)], [], [[100, -200, 0]]),
    "log(sqrt(x))": ([("sqrt", 0), ("log", 1)], [], [[-1, 0, 1]]),
    "sqrt(x * x)": ([("multiply", 0, 0), ("sqrt", 1)], [], [[-3, 1e30, 1e-30]]),
    "sqrt(x) * sqrt(x)": ([("sqrt", 0), ("multiply", 1, 1)], [], [[-1, 0, 4]]),
    "x / sqrt(x)": ([("sqrt", 0), ("divide", 0, 1)], [], [[-1, 0, 4, np.inf, 1e-40]]),
    "x / y / y": ([("divide", 0, 1), ("divide", 2, 1)], [], [[1e-30, 1e30, 4], [1e-30, 1e30, 4]]),
    "(x / y) / (x / y)": (
        [("multiply", 0, 0), ("divide", 0, 1), ("divide", 0, 1), ("divide", 2, 3)],
        [],
        [[1e-15, 1e15, 3]],
    ),
    "(x ** 2) ** 0.5": ([("power", 0, 1), ("sqrt", 3)], [2, 0.5], [[-3, 1e30, 1e-30]]),
    "x / x ** 2": ([("power", 0, 1), ("divide", 0, 2)], [2], [[1e30, 1e-30, 0]]),
    "max(x, max(0, x))": ([("maximum", 1, 0), ("maximum", 0, 2)], [0], [[np.nan, 1, -1]]),
    "x == x": ([("equal", 0, 0)], [], [[np.nan, 1]]),
    "x * y - z": (
        [("multiply", 0, 1), ("subtract", 3, 2)],
        [],
        [[1.1, 1e30, 3.3], [1.3, 1e30, 7.7], [np.float32(1.1) * np.float32(1.3), np.inf, 25.41]],
    ),
    "z - reshape(x * y)": (
        [("multiply", 0, 1), ("negative", 3), ("add", 2, 4)],
        [],
        [[1.1, 1e30], [1.3, 1e30], [np.float32(1.1) * np.float32(1.3), np.inf]],
    ),
    "x ** 2 - y": ([("power", 0, 2), ("subtract", 3, 1)], [2], [[1.1, 1e30], [np.float32(1.1) ** 2, np.inf]]),
}


@pytest.mark.parametrize("name", sorted(REWRITES))
def test_no_rewriting_that_computes_something_else(backend, name):
    instructions, constants, operands = REWRITES[name]
    operands = [np.array(values, "float32") for values in operands]
    constants = [np.array(value, "float32") for value in constants]
    like = {"equal": np.zeros(operands[0].shape, bool)}
    encoded = [(op, list(numbers), {}, like.get(op, operands[0])) for op, *numbers in instructions]
    (expected,) = run_all(NumpyBackend({}), encoded, operands, constants)
    (got,) = run_all(backend, encoded, operands, constants)
    # No tolerance but for the functions that are never exact.
    rounded = 1e-6 if {"exp", "log"} & {op for op, *_ in instructions} else 0
    np.testing.assert_allclose(got, expected, rtol=rounded, atol=0)
    if expected.dtype.kind == "f":
        zero = expected == 0
        np.testing.assert_array_equal(np.signbit(got[zero]), np.signbit(expected[zero]))


def test_float16_is_rounded_after_each_op(backend):
    x = (np.arange(1, 1000) * 0.37).astype("float16")
    three = np.array(3000, "float16")
    encoded = [("multiply", [0, 1], {}, x), ("divide", [2, 1], {}, x), ("add", [3, 0], {}, x)]
    with np.errstate(over="ignore"):
        (expected,) = run_all(NumpyBackend({}), encoded, [x], [three])
    np.testing.assert_array_equal(run_all(backend, encoded, [x], [three])[0], expected)
    np.testing.assert_array_equal(run_all(backend, encoded, [x, three])[0], expected)


def test_denormals(backend):
    if backend.facts()["denormals"] != "keep":
        pytest.skip("JAX had started when the backend was made")
    tiny = np.array([1e-38, 1e-40, 3e-45, -1e-39, 1e-30], "float32")
    half = np.array(0.5, "float32")
    zeros, wide = np.zeros(5, "float32"), tiny.astype("float64")
    small, factor = np.array([6e-8, 1e-7, 3e-5], "float16"), np.array(1.5, "float16")
    all_as_numpy(
        backend,
        [
            ("add", {}, [tiny, tiny], "float32"),
            ("multiply", {}, [tiny, half], "float32"),
            ("divide", {}, [tiny, half], "float32"),
            ("maximum", {}, [tiny, zeros], "float32"),
            ("less", {}, [zeros, tiny], "bool"),
            ("mod", {}, [tiny, half], "float32"),
            ("abs", {}, [tiny], "float32"),
            ("sign", {}, [tiny], "float32"),
            ("floor", {}, [tiny], "float32"),
            ("sum", {"axes": [0], "keepdims": False}, [tiny], "float32"),
            ("cast", {"dtype": "float64"}, [tiny], "float64"),
            ("cast", {"dtype": "float32"}, [wide], "float32"),
            ("multiply", {}, [small, factor], "float16"),
        ],
    )
    positive, wide = tiny[[0, 1, 2, 4]], np.array([5e-324, 1e-310, 1e-300, 0, -1e-310])
    all_as_numpy(backend, [(op, {}, [positive], "float32") for op in ("sqrt", "log", "tanh")], 3e-6)
    low, lower = np.array([-80, -87.5, -90, -95], "float32"), np.array([-700.0, -709, -720])
    all_as_numpy(backend, [("exp", {}, [low], "float32")], 3e-5)
    all_as_numpy(backend, [("log", {}, [wide], "float64"), ("exp", {}, [lower], "float64")], 1e-10)
    same_as_numpy(backend, "exp", {}, [np.array([-np.inf, -200, np.nan, np.inf, 89], "float32")], "float32")


def test_powers_of_integers(backend):
    for dtype in ["int8", "uint16", "int64"]:
        base = np.array([[0, 1, 2, 3, 7, 100]], dtype)
        exponents = np.array([[0], [1], [2], [7], [63], [100]], dtype)
        same_as_numpy(backend, "power", {}, [base, exponents], dtype)


@pytest.mark.parametrize("source", FLOATS)
def test_casts_round_once(backend, source):
    random = np.random.RandomState(0)
    values = (random.standard_normal(5000) * 10.0 ** random.randint(-6, 5, 5000)).astype(source)
    # Halfway between two float16, but for a bit that float32 hasn't; and what is no number, or too large.
    values[:2] = np.array([1 + 2.0**-11 + 2.0**-40, 1 + 2.0**-11 - 2.0**-40]).astype(source)
    with np.errstate(over="ignore"):
        values[2:8] = np.array([np.nan, np.inf, -np.inf, -0.0, 1e300, -65519.99]).astype(source)
        cases = [("cast", {"dtype": target}, [values], target) for target in FLOATS]
        wide = {integer: random.randint(2**62, size=1000).astype(integer) for integer in ("int64", "uint64")}
        small = random.randint(-65000, 65000, size=1000)
        cases += [("cast", {"dtype": source}, [array], source) for array in [*wide.values(), small]]
        all_as_numpy(backend, cases)


def test_long_sums_are_accurate(backend):
    values = np.random.RandomState(0).uniform(0, 1, 1000000).astype("float32")
    exact = values.astype("float64").sum()
    (got,) = run_all(backend, [("sum", [0], {"axes": [0], "keepdims": False}, np.zeros((), "float32"))], [values])
    assert abs(got / exact - 1) < 3e-6
    square = values.reshape(1000, 1000)
    (got,) = run_all(backend, [("sum", [0], {"axes": [0], "keepdims": False}, np.zeros(1000, "float32"))], [square])
    np.testing.assert_allclose(got, square.astype("float64").sum(0), rtol=3e-6)


def test_errors_name_their_instruction(backend):
    leaf = ["float32", [3]]
    with pytest.raises(InstructionError) as caught:
        backend.compile(
            program(
                inputs=[leaf, ["float32", [4]]],
                instructions=[["negative", [0], {}, *leaf], ["add", [2, 1], {}, *leaf]],
                outputs=[3],
            ),
            [],
        )
    assert caught.value.index == 1
    with pytest.raises(InstructionError, match="teleport") as caught:
        backend.compile(program(inputs=[leaf] * 2, instructions=[["teleport", [0], {}, *leaf]], outputs=[2]), [])
    assert caught.value.index == 0


def test_inside_the_users_own_contexts(backend):
    import jax

    value = np.ones(3, "float64")
    with jax.disable_jit():
        same_as_numpy(backend, "negative", {}, [value], "float64")
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        same_as_numpy(backend, "sum", {"axes": [0], "keepdims": True}, [value], "float64")
        same_as_numpy(backend, "mod", {}, [value, np.array(0.3)], "float64")

    def traced(x):
        same_as_numpy(backend, "exp", {}, [value], "float64", 1e-12)
        return x

    jax.jit(traced)(1.0)
    jax.grad(traced)(1.0)


def test_deep_programs(backend):
    depth = 1500
    instructions = [["add", [number, 0], {}, "float32", [2]] for number in range(depth)]
    run = backend.compile(program(inputs=[["float32", [2]]], instructions=instructions, outputs=[depth]), [])
    assert backend.to_numpy(run([np.ones(2, "float32")], [], [])[0][0]).tolist() == [depth + 1] * 2
    backend.synchronize()


@pytest.mark.parametrize(
    ("precision", "traced"), [("float32", "HIGHEST"), ("tf32", "HIGH"), ("bfloat16", "HIGH")], ids=str
)
def test_products_are_traced_in_the_precision_whatever_the_user_has_chosen(backend, monkeypatch, precision, traced):
    import jax

    from kernelk.backends.jax import backend as module

    # As on a GPU: a processor computes in float32 all the same.
    monkeypatch.setattr(module, "_has_tf32", lambda device: True)
    engine = type(backend)({"device": "cpu:0", "precision": precision})
    assert engine.facts()["precisions"] == ["float32", "tf32", "bfloat16"]
    x, kernel = ["float32", [1, 4, 4, 2]], ["float32", [2, 2, 2, 3]]
    square = ["float32", [3, 3]]
    geometry = {"strides": [1, 1], "pads": [[0, 0], [0, 0]], "dilation": [1, 1]}
    made = program(
        inputs=[square, square, x, kernel],
        instructions=[
            ["matmul", [0, 1], {"transpose_a": False, "transpose_b": False}, *square],
            ["conv", [2, 3], geometry, "float32", [1, 3, 3, 3]],
        ],
        outputs=[4, 5],
    )
    with jax.default_matmul_precision("BF16_BF16_F32"):
        text = engine.describe(made, engine.compile(made, []), "abcd")["text"]
        assert jax.config.jax_default_matmul_precision == "BF16_BF16_F32"
    assert text.count(f"Precision.{traced}") == text.count("Precision.") == 4
    assert text.count("reduce_precision[") == (4 if precision == "bfloat16" else 0)


def test_a_gpu_that_has_tensorfloat32_is_told_by_its_capability():
    from kernelk.backends.jax.backend import _has_tf32

    capabilities = {"9.0": True, "8.0": True, "7.5": False, "gfx942": False}
    for capability, has in capabilities.items():
        assert _has_tf32(type("Device", (), {"compute_capability": capability})) is has
    assert not _has_tf32(object())


def test_draws_on_a_device(backend, monkeypatch):
    """As a GPU makes them; here XLA compiles the same for the processor."""
    from kernelk.backends.jax.draws import DeviceDraws

    assert type(backend.draw("uniform", "float32", (3,), 1, 0)) is np.ndarray
    monkeypatch.setattr(backend, "_device_draws", DeviceDraws(backend._executable, backend._make))
    draws_of_a_device_are_the_hosts(backend.draw, backend.to_numpy, backend)
    assert type(backend.draw("uniform", "float32", (3,), 1, 0)) is not np.ndarray
