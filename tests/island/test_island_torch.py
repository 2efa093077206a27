"""What the conformance cases don't show of the PyTorch backend: whose memory it keeps and reuses, bits, options."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers.island import draws_of_a_device_are_the_hosts, one_op, program, same_as_numpy
from helpers.processes import PROJECT, TESTS
from island_ownership import bits

from kernelk.backends.base import PRIMITIVES
from kernelk.backends.errors import OptionError
from kernelk.backends.lowering import InstructionError

if importlib.util.find_spec("torch") is None:
    if "torch" in [name.strip() for name in os.environ.get("KERNELK_REQUIRE", "").split(",")]:
        raise RuntimeError("KERNELK_REQUIRE names torch, and PyTorch is not installed")
    pytest.skip("PyTorch is not installed", allow_module_level=True)


pytestmark = pytest.mark.worker


@pytest.fixture(scope="module")
def backend():
    from kernelk.backends.torch.backend import TorchBackend

    return TorchBackend({"device": "cpu:0"})


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


@pytest.mark.parametrize("op", ["conv_kernel", "depthwise_conv_kernel"])
def test_the_gradient_of_a_kernel_of_one_element_has_no_strides(backend, monkeypatch, op):
    """oneDNN's own way to it isn't sound."""
    from kernelk.backends.torch import windows

    seen, backward = [], windows._backward
    monkeypatch.setattr(
        windows, "_backward", lambda geometry, *given: seen.append(geometry.strides) or backward(geometry, *given)
    )
    attrs = {"size": [1, 1], "strides": [2, 2], "pads": [[0, 0], [1, 1]], "dilation": [1, 1]}
    arrays = [np.ones(shape, "float32") for shape in ((2, 5, 6, 3), (2, 3, 4, 6))]
    leaves = [["float32", list(array.shape)] for array in arrays]
    size = [1, 1, 3, 6 if op == "conv_kernel" else 2]
    run = backend.compile(program(inputs=leaves, instructions=[[op, [0, 1], attrs, "float32", size]], outputs=[2]), [])
    outputs, _ = run(arrays, [], [], [])
    # Of four places along a row, the first one is in the padding.
    assert (backend.to_numpy(outputs[0]) == 2 * 3 * 3).all()
    assert seen == [(1, 1)]


def test_conformance():
    script = str(TESTS / "island" / "island_conformance.py")
    island = str(PROJECT / "kernelk" / "backends")
    command = [sys.executable, "-W", "error::UserWarning", script, island, "torch", "TorchBackend"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, ISLAND_SAMPLE="3"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


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


@pytest.fixture
def overwriting(backend):
    backend.overwrites = True
    yield backend
    backend.overwrites = False


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 3), (700, 300)])
def test_updates_are_computed_over_the_old_values(overwriting, shape):
    backend = overwriting
    parts = momentum(list(shape))
    # The outputs are those that no update overwrites.
    parts.outputs = [8]
    run = backend.compile(parts, [np.float32(0.5), np.float32(2)])
    random = np.random.RandomState(0)
    gradient, weight, velocity = [np.array(random.standard_normal(shape), "float32") for _ in range(3)]
    state = [backend.own(backend.load(array)) for array in (weight, velocity)]
    memory = [value.data_ptr() for value in state]
    for _ in range(3):
        begun = []
        outputs, updated = run.overwrite([gradient], state, [], lambda begun=begun: begun.append(True))
        velocity = np.float32(0.5) * velocity - np.float32(2) * gradient
        weight = weight + velocity
        state = updated[::-1]
        assert begun == [True]
        assert [value.data_ptr() for value in state] == memory
        assert [bits(backend.to_numpy(value)) for value in [*state, *outputs]] == list(
            map(bits, [weight, velocity, weight])
        )


def test_what_is_read_later_is_overwritten_last(overwriting):
    """The weight's new value stands first, and another weight's gradient needs the old one: as in backpropagation."""
    backend = overwriting
    matrix = ["float32", [3, 3]]
    parts = program(
        inputs=[matrix],
        slots=[matrix, matrix],
        instructions=[
            ["add", [1, 0], {}, *matrix],  # 3: the first new value
            ["matmul", [0, 1], {"transpose_a": False, "transpose_b": True}, *matrix],  # 4 reads the old one
            ["add", [2, 4], {}, *matrix],  # 5
            ["multiply", [3, 3], {}, *matrix],  # 6 is of the new one
        ],
        outputs=[6],
        updates=[[0, 3], [1, 5]],
    )
    run = backend.compile(parts, [])
    x, a, b = (np.arange(9, dtype="float32").reshape(3, 3) + n for n in range(3))
    state = [backend.own(backend.load(array)) for array in (a, b)]
    memory = [value.data_ptr() for value in state]
    outputs, updated = run.overwrite([x], state, [], lambda: None)
    assert [value.data_ptr() for value in updated] == memory
    found = [backend.to_numpy(value).tolist() for value in [*updated, *outputs]]
    assert found == [(a + x).tolist(), (b + x @ a.T).tolist(), ((a + x) ** 2).tolist()]


def test_a_value_that_an_output_shows_is_not_overwritten(overwriting):
    backend, matrix = overwriting, ["float32", [2, 2]]
    parts = program(
        slots=[matrix],
        instructions=[
            ["add", [0, 0], {}, *matrix],
            ["transpose", [0], {"permutation": [1, 0]}, *matrix],
        ],
        outputs=[2],
        updates=[[0, 1]],
    )
    run = backend.compile(parts, [])
    value = backend.own(backend.load(np.float32([[1, 2], [3, 4]])))
    outputs, updated = run.overwrite([], [value], [], lambda: pytest.fail("it was overwritten"))
    assert backend.to_numpy(outputs[0]).tolist() == [[1, 3], [2, 4]]
    assert backend.to_numpy(updated[0]).tolist() == [[2, 4], [6, 8]]
    assert backend.to_numpy(value).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("op", ["add", "subtract"])
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_scaled_operand_is_rounded_once_at_most(backend, op, known, dtype):
    vector, scalar = [dtype, [1000]], [dtype, []]
    parts = program(
        inputs=[vector, vector, *([] if known else [scalar])],
        constants=[scalar] if known else [],
        instructions=[["multiply", [1, 2], {}, *vector], [op, [0, 3], {}, *vector]],
        outputs=[4],
    )
    random = np.random.RandomState(0)
    x, y = random.standard_normal((2, 1000)).astype(dtype)
    factor = np.array(0.3, dtype)
    run = backend.compile(parts, [factor] if known else [])
    text, count = run.code.described(["x", "y", "factor"])
    assert count == 1, text
    got = backend.to_numpy(run([x, y] if known else [x, y, factor], [], [])[0][0])
    wide = factor.astype("longdouble") * y.astype("longdouble")
    exact = x + wide if op == "add" else x - wide
    spacing = np.spacing(np.maximum(np.abs(x), np.abs(wide)).astype(dtype))
    assert np.max(np.abs(got - exact) / spacing) <= 1
    for special in (np.inf, np.nan):
        left = np.full(1000, special, dtype)
        with np.errstate(all="ignore"):
            wanted = left + factor * y if op == "add" else left - factor * y
        got = backend.to_numpy(run([left, y] if known else [left, y, factor], [], [])[0][0])
        assert np.array_equal(got, wanted, equal_nan=True)


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
        one_op(backend, "power", {}, [np.array([2, 3]), np.array([1, -1])], np.zeros(2, "int64"))


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


def test_in_the_kernel_the_users_precision_is_set_aside_and_put_back_as_it_was(backend):
    import torch
    from torch.backends import mkldnn

    seen, ops = [], (mkldnn.matmul, mkldnn.conv)

    def now():
        return [op.fp32_precision for op in ops]

    engine = type(backend)({"device": "cpu:0", "in_kernel": True})
    call = engine._inside(lambda fail: seen.append(now()) or 1 / fail)
    before = torch.backends.fp32_precision, now()
    try:
        # One is what is set for all, the other its own.
        torch.backends.fp32_precision, mkldnn.matmul.fp32_precision, mkldnn.conv.fp32_precision = "bf16", "none", "tf32"
        call(1)
        with pytest.raises(ZeroDivisionError):
            call(0)
        assert seen == [["ieee", "ieee"]] * 2
        assert now() == ["bf16", "tf32"]
        torch.backends.fp32_precision = "ieee"
        assert now() == ["ieee", "tf32"]
    finally:
        torch.backends.fp32_precision = before[0]
        for op, value in zip(ops, before[1], strict=True):
            op.fp32_precision = value


def test_the_settings_of_each_device_and_version(backend, monkeypatch):
    import torch
    from torch.backends import cuda, cudnn

    from kernelk.backends.torch import precision

    before = torch.get_float32_matmul_precision(), torch._C._get_cudnn_allow_tf32()
    newer = cuda.matmul.fp32_precision, cudnn.conv.fp32_precision
    try:
        for narrow, wanted in ((True, "tf32"), (False, "ieee")):
            for setting in precision.settings(False, narrow):
                setting.set(setting.wanted)
                assert setting.holds()
            assert (cuda.matmul.fp32_precision, cudnn.conv.fp32_precision) == (wanted, wanted)
    finally:
        cuda.matmul.fp32_precision, cudnn.conv.fp32_precision = newer
    monkeypatch.delattr(torch._C, "_get_fp32_precision_getter")
    try:
        for narrow, wanted in ((True, "high"), (False, "highest")):
            matmul, conv = precision.settings(False, narrow)
            (alone,) = precision.settings(True, narrow)
            for setting in (matmul, conv, alone):
                setting.set(setting.wanted)
                assert setting.holds()
            assert (matmul.own(), conv.own()) == (wanted, narrow)
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch._C._set_cudnn_allow_tf32(before[1])


def test_a_variable_that_decides_on_the_precision_is_refused_in_the_kernel(backend, monkeypatch):
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "BF16")
    with pytest.raises(OptionError, match="can't be kept to float32 in the notebook's own process: ONEDNN_") as caught:
        type(backend)({"device": "cpu:0", "in_kernel": True})
    assert caught.value.next_step.startswith("%kbackend torch --worker, or restart")
    monkeypatch.setenv("ONEDNN_DEFAULT_FPMATH_MODE", "STRICT")
    assert type(backend)({"device": "cpu:0", "in_kernel": True}).facts()["precision"] == "float32"


def test_draws_on_a_device(backend):
    """As a GPU makes them; here the same kernels run on the processor."""
    from kernelk.backends.torch import draws

    def draw(kind, dtype, shape, seed, counter):
        make = backend._inside(draws.KINDS[kind])
        return make(int(np.prod(shape)), dtype, seed, counter, backend._native_device).reshape(shape)

    assert type(backend.draw("uniform", "float32", (draws.WORTH,), 1, 0)) is np.ndarray
    draws_of_a_device_are_the_hosts(draw, backend.to_numpy, backend)
