"""Loops: rnn, map_fn, foldl and foldr against plain numpy loops, with gradients, draws, phases and swaps between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.arrays import assert_close
from helpers.fake_engines import lacking_engine

import kernelk
from kernelk import backend as K
from kernelk.backends.staged import _Loop
from kernelk.errors import ArgumentError, DTypeError, EngineError, FeedError, ShapeError, SwapRefusedError, UpdateError
from kernelk.graph.nodes import Tensor
from kernelk.program.program import Program
from kernelk.session.current import current

RANDOM = np.random.RandomState(3)
W, U, C = RANDOM.randn(3, 4) * 0.5, RANDOM.randn(4, 4) * 0.5, RANDOM.randn(4)
X, H, M = RANDOM.randn(2, 5, 3), RANDOM.randn(2, 4), RANDOM.randn(2, 2, 2)
MASK = np.array([[0, 1, 0, 1, 1], [1, 0, 0, 1, 0]], bool)


class Way(NamedTuple):
    """The options of a recurrent net's run."""

    label: str
    go_backwards: bool = False
    mask: Any = None
    unroll: bool = False
    steps: int = 5


WAYS = [
    Way("plain"),
    Way("backwards", go_backwards=True),
    Way("masked", mask=MASK),
    Way("masked backwards, mask of 3 axes", go_backwards=True, mask=MASK[:, :, None]),
    Way("unrolled", unroll=True),
    Way("unrolled, masked, backwards", unroll=True, mask=MASK, go_backwards=True),
    Way("one step", steps=1),
    Way("one step, unrolled", steps=1, unroll=True),
]


def by_numpy(x: Any, h: Any, m: Any, way: Way) -> tuple[Any, Any, Any, Any]:
    """A step with states of rank 2 and 3, a constant, and an output that is no state: what rnn returns of it."""
    outputs, last = [], np.zeros((len(x), 3))
    times = range(x.shape[1])
    for t in reversed(times) if way.go_backwards else times:
        new_h = np.tanh(x[:, t] @ W + h @ U + C)
        new_m = m * 0.5 + new_h[:, :2, None]
        output = new_m[:, :, 0].sum(1, keepdims=True) * x[:, t]
        if way.mask is not None:
            keep = way.mask.reshape(way.mask.shape[:2])[:, t]
            new_h, new_m = np.where(keep[:, None], new_h, h), np.where(keep[:, None, None], new_m, m)
            output = np.where(keep[:, None], output, last)
        h, m, last = new_h, new_m, output
        outputs.append(output)
    return last, np.stack(outputs, 1), h, m


def net(x: Any, h: Any, m: Any, way: Way, mask: Any = None) -> tuple[Any, Any, list[Any]]:
    """The same by K.rnn, on tensors of a float dtype."""
    w, u, c = (K.constant(value, dtype=x.dtype) for value in (W, U, C))

    def step(xt: Any, states: list[Any]) -> Any:
        last_h, last_m, bias = states
        new_h = K.tanh(K.dot(xt, w) + K.dot(last_h, u) + bias)
        new_m = last_m * 0.5 + K.expand_dims(new_h[:, :2])
        return K.sum(new_m[:, :, 0], axis=1, keepdims=True) * xt, [new_h, new_m]

    return K.rnn(step, x, [h, m], way.go_backwards, mask, [c], way.unroll)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.label)
def test_rnn(backend: str, way: Way) -> None:
    x, h, m = (
        K.placeholder((None, way.steps if way.unroll else None, 3)),
        K.placeholder((None, 4)),
        K.placeholder((None, 2, 2)),
    )
    mask = None if way.mask is None else K.placeholder((None,) * way.mask.ndim, dtype="bool")
    last, outputs, states = net(x, h, m, way, mask)
    assert outputs.shape == (None, way.steps if way.unroll else None, 3)
    feeds = [X[:, : way.steps], H, M] + ([way.mask] if way.mask is not None else [])
    call = K.function([x, h, m] + ([mask] if mask is not None else []), [last, outputs, *states])
    for got, wanted in zip(call(feeds), by_numpy(X[:, : way.steps], H, M, way)):
        assert_close(got, wanted.astype("float32"), label=way.label)


def test_rnn_of_no_steps(backend: str) -> None:
    x, h, m, mask = (
        K.placeholder((None, None, 3)),
        K.placeholder((None, 4)),
        K.placeholder((None, 2, 2)),
        K.placeholder((None, None)),
    )
    last, outputs, states = net(x, h, m, WAYS[0], mask)
    slopes = K.gradients(K.sum(outputs) + K.sum(states[0] * states[0]), [x, h])
    call = K.function([x, h, m, mask], [last, outputs, *states, *slopes])
    got = call([X[:, :0], H, M, MASK[:, :0]])
    wanted = [np.zeros((2, 3)), np.zeros((2, 0, 3)), H, M, np.zeros((2, 0, 3)), 2 * H]
    for value, expected in zip(got, wanted):
        assert_close(value, expected.astype("float32"), label="no steps")
    # The same function with steps.
    assert_close(call([X, H, M, MASK])[2], by_numpy(X, H, M, WAYS[2])[2].astype("float32"), label="some steps")


def slopes_by_differences(f: Callable[..., float], arrays: list[Any], which: int) -> Any:
    """Central differences of a float64 function along one of its arrays."""
    slope = np.zeros(arrays[which].shape)
    for place in np.ndindex(*slope.shape):
        ends = []
        for sign in (1, -1):
            moved = [np.array(array) for array in arrays]
            moved[which][place] += sign * 1e-5
            ends.append(f(*moved))
        slope[place] = (ends[0] - ends[1]) / 2e-5
    return slope


@pytest.mark.parametrize("way", [WAYS[0], WAYS[3], WAYS[5]], ids=lambda way: way.label)
def test_gradients_through_rnn(backend: str, way: Way) -> None:
    """First order against differences of the plain loop, second order against differences of the first."""
    x, h, m = (
        K.placeholder(value.shape if way.unroll else (None, *value.shape[1:]), dtype="float64") for value in (X, H, M)
    )
    mask = None if way.mask is None else K.constant(way.mask, dtype="bool")
    last, outputs, (final_h, final_m) = net(x, h, m, way, mask)
    loss = K.sum(K.square(outputs)) + K.sum(last) + K.sum(final_h * final_h * final_h) + K.sum(final_m)
    first = K.gradients(loss, [x, h, m])
    second = K.gradients(K.sum(K.square(first[0])), [x, h])
    call = K.function([x, h, m], [*first, *second])

    def plain(x: Any, h: Any, m: Any) -> float:
        last, outputs, h, m = by_numpy(x, h, m, way)
        return float(np.sum(outputs**2) + np.sum(last) + np.sum(h**3) + np.sum(m))

    got = call([X, H, M])
    for which in range(3):
        np.testing.assert_allclose(got[which], slopes_by_differences(plain, [X, H, M], which), rtol=1e-5, atol=1e-6)
    kernelk.set_backend("numpy")
    slope = K.function([x, h, m], [first[0]])
    for which in range(2):
        wanted = slopes_by_differences(lambda *arrays: float(np.sum(slope(list(arrays))[0] ** 2)), [X, H, M], which)
        np.testing.assert_allclose(got[3 + which], wanted, rtol=1e-4, atol=1e-6)


def test_map_and_folds(backend: str) -> None:
    v = K.placeholder((None,), dtype="float64")
    rows, counts = K.placeholder((None, 3), dtype="float64"), K.placeholder((None,), dtype="int32")
    values, table, numbers = np.array([1.0, 2.0, 4.0]), RANDOM.randn(3, 3), np.array([3, 0, 5], "int32")
    pairs = K.map_fn(lambda pair: (K.sum(pair[0]) * 2.0, [pair[1] > 1, pair[1] + 1]), (rows, counts))
    assert isinstance(pairs, tuple)
    assert isinstance(pairs[1], list)
    outputs = [
        K.map_fn(lambda a: a * a + 1.0, v),
        K.map_fn(lambda row: K.cast(K.sum(row), "int32"), rows * 3.0, dtype="float32"),
        pairs[0],
        *pairs[1],
        K.foldl(lambda a, b: a * 10.0 + b, v),
        K.foldr(lambda a, b: a * 10.0 + b, v),
        K.foldl(lambda a, b: a * 10.0 + b, v, 5),
        K.foldr(lambda a, b: a * 10.0 + b, v, K.constant(5.0, dtype="float64")),
        K.foldl(lambda a, b: a + b, rows),
        K.foldl(lambda a, b: K.maximum(a, b), counts),
        *K.foldl(lambda a, b: (a[0] + b[0] * b[1], a[1] * 2), (v, v), (0, 1)),
        K.foldl(lambda a, b: a + b, v[:0], 7.0),
        K.map_fn(lambda a: a * 2.0, rows[:0]),
    ]
    wanted = [
        values**2 + 1,
        (table * 3).sum(1).astype("int32").astype("float32"),
        table.sum(1) * 2,
        numbers > 1,
        numbers + 1,
        np.float64(124),
        np.float64(421),
        np.float64(5124),
        np.float64(5421),
        table.sum(0),
        np.int32(5),
        np.float64(21),
        np.int32(8),
        np.float64(7.0),
        np.zeros((0, 3)),
    ]
    got = K.function([v, rows, counts], outputs)([values, table, numbers])
    assert len(got) == len(wanted)
    for number, (value, expected) in enumerate(zip(got, wanted)):
        if number == 13:
            expected = expected.astype(value.dtype)
        assert_close(value, np.asarray(expected), label=f"output {number}")


def test_loops_in_loops(backend: str) -> None:
    """A fold inside a map that takes a tensor of the outer step, and its gradients, first and second."""
    x, scale = K.placeholder((None, None), dtype="float64"), K.variable([1.5, -0.5], dtype="float64")

    def row(values: Any) -> Any:
        shift = K.sum(values) * scale[0]
        return K.foldl(lambda a, b: K.sin(a * scale[1] + b * shift), values, K.sum(values * 0.0))

    folded = K.map_fn(row, x)
    (slope,) = K.gradients(K.sum(folded), x)
    (second,) = K.gradients(K.sum(K.square(slope)), scale)
    value = RANDOM.randn(3, 4)

    def plain(x: Any, scale: Any) -> Any:
        results = []
        for values in x:
            shift, a = values.sum() * scale[0], 0.0
            for b in values:
                a = np.sin(a * scale[1] + b * shift)
            results.append(a)
        return np.array(results)

    got = K.function([x], [folded, slope, second])([value])
    s = np.array([1.5, -0.5])
    assert_close(got[0], plain(value, s), label="values")
    wanted = slopes_by_differences(lambda x: float(plain(x, s).sum()), [value], 0)
    np.testing.assert_allclose(got[1], wanted, rtol=1e-6, atol=1e-8)

    def squares(scale: Any) -> float:
        return float(np.sum(slopes_by_differences(lambda x: float(plain(x, scale).sum()), [value], 0) ** 2))

    np.testing.assert_allclose(got[2], slopes_by_differences(squares, [s], 0), rtol=1e-3, atol=1e-4)


def test_draws_are_made_at_each_step_and_again_at_each_call(backend: str) -> None:
    def cell() -> Any:
        x = K.placeholder((None, 3))
        noisy = K.map_fn(lambda row: row + K.random_uniform(K.shape(row)) + K.random_normal(()), x)
        (slope,) = K.gradients(K.sum(noisy * noisy), x)
        return K.function([x], [noisy, slope])

    zeros = np.zeros((4, 3))
    K.set_random_seed(11)
    call = cell()
    first, slope = call([zeros])
    assert len(np.unique(first)) == 12
    assert_close(slope, 2 * first, label="the gradient is of the same draws")
    assert not np.intersect1d(first, call([zeros])[0]).size
    host = current().host()
    compiled = host.compile_count
    assert cell()([zeros])[0].shape == (4, 3)
    assert host.compile_count == compiled
    K.set_random_seed(11)
    kernelk.set_backend("numpy")
    assert_close(cell()([zeros])[0], first, label="numpy draws the same")


def test_phases(backend: str) -> None:
    """Each phase follows its own branch inside the body, and so does its gradient; dropout is drawn at each step."""
    phase = K.learning_phase()
    x = K.placeholder((None, 6))

    def step(a: Any, row: Any) -> Any:
        return a + K.in_train_phase(lambda: row * row, lambda: K.log(row * 0.0 - 1.0) * 0.0 + row)

    total = K.foldl(step, x, K.zeros((6,)))
    dropped = K.map_fn(lambda row: K.in_train_phase(K.dropout(row, 0.5), row), x)
    call = K.function([x, phase], [total, *K.gradients(K.sum(total), x), dropped])
    value = RANDOM.rand(8, 6) + 0.5
    trained, slope, mask = call([value, 1])
    assert_close(trained, (value**2).sum(0).astype("float32"), label="train")
    assert_close(slope, (2 * value).astype("float32"), label="gradient of the train branch alone")
    hidden = mask == 0
    assert 0 < hidden.sum() < hidden.size
    assert any((hidden[0] != row).any() for row in hidden[1:])
    tested, slope, whole = call([value, 0])
    assert np.isnan(tested).all()
    assert_close(whole, value.astype("float32"), label="test")


def test_an_update_from_a_loop(backend: str) -> None:
    """New values that a loop hands through share no memory with feeds, captures or other variables."""
    x, a, b = K.placeholder((None, 2)), K.variable([1.0, 2.0]), K.variable([0.0, 0.0])
    handed, total = K.foldl(lambda s, row: (s[0], s[1] + row), x, (a, K.zeros((2,))))
    last = K.foldl(lambda s, row: row, x, K.zeros((2,)))
    call = K.function([x], [K.sum(total)], [K.update(b, handed), K.update(a, last)])
    assert call([[[1, 2], [3, 4]]])[0] == 10
    assert K.get_value(a).tolist() == [3, 4]
    assert K.get_value(b).tolist() == [1, 2]
    assert call([[[5, 6]]])[0] == 11
    assert K.get_value(a).tolist() == [5, 6]
    assert K.get_value(b).tolist() == [3, 4]


def test_swaps_between_calls(every_engine: list[str]) -> None:
    x, w = K.placeholder((None, None, 3)), K.variable(W)
    _, outputs, (state,) = K.rnn(lambda xt, s: (s[0], [s[0] * 0.5 + K.dot(xt, w)]), x, [K.placeholder((None, 4))])
    h = next(node for node in state.inputs[0].inputs if node.op == "placeholder" and node is not x)
    loss = K.sum(K.square(state))
    call = K.function([x, h], [outputs, loss], [K.update_sub(w, K.gradients(loss, w)[0] * 0.01)])
    losses = []
    for name in every_engine:
        kernelk.set_backend(name)
        losses.append(float(call([X, H])[1]))
    assert losses == sorted(losses, reverse=True)
    kernelk.set_backend("numpy")
    K.set_value(w, W)
    again = [float(call([X, H])[1]) for _ in every_engine]
    np.testing.assert_allclose(losses, again, rtol=1e-4)


def test_dtypes(backend: str) -> None:
    """Whole numbers are counted exactly, bools and halves keep their dtype."""
    for dtype in ("int8", "int32", "int64", "uint8", "uint32", "float16", "float64"):
        x = K.placeholder((None,), dtype=dtype)
        total = K.foldl(lambda a, b: a + b, x)
        doubled = K.map_fn(lambda a: a + a, x)
        value = np.array([1, 2, 100], dtype)
        got = K.function([x], [total, doubled])([value])
        assert_close(got[0], np.asarray(value.sum(dtype=dtype)), label=dtype)
        assert_close(got[1], value + value, label=dtype)
    flags = K.placeholder((None, 2), dtype="bool")
    any_so_far = K.foldl(lambda a, b: K.any(K.stack([a, b]), axis=0), flags)
    assert K.function([flags], [any_so_far])([[[True, False], [False, False]]])[0].tolist() == [True, False]


def test_several_inputs_and_no_states(backend: str) -> None:
    x, y = K.placeholder((2, None, 3)), K.placeholder((2, None))
    last, outputs, states = K.rnn(lambda both, s: (both[0] * K.expand_dims(both[1]), []), [x, y], [])
    got = K.function([x, y], [last, outputs])([X, X[:, :, 0]])
    wanted = (X * X[:, :, :1]).astype("float32")
    assert states == []
    assert_close(got[0], wanted[:, -1], label="last")
    assert_close(got[1], wanted, label="outputs")


def test_a_backend_without_loops_runs_them_in_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them one after the other, one inside the other, a feed, a constant and a variable as operands."""
    lacking_engine(monkeypatch, "plain", ops={"scan", "item"})
    x, w = K.placeholder((None, 3)), K.variable(W)
    inner = K.map_fn(lambda row: K.foldl(lambda a, b: a * 0.5 + b, row * K.sum(w), 1.0), x)
    outer = K.foldl(lambda a, b: a * b + K.sum(inner), inner, K.sum(x))
    call = K.function([x], [outer, inner, x, K.gradients(outer, [x, w])[1]], [K.update(w, w + outer)])
    wanted = call([X[0]])
    updated = K.get_value(w)
    K.set_value(w, W)
    kernelk.set_backend("plain")
    for got, expected in zip(call([X[0]]), wanted):
        assert_close(got, expected, label="staged")
    assert_close(K.get_value(w), updated, label="the update")
    assert [stage["kind"] for stages in current().host().stages.values() for stage in stages].count("loop") >= 2


def test_the_memory_of_stacked_results_is_used_again_once_nobody_holds_it() -> None:
    loop = object.__new__(_Loop)
    loop._kept = {}
    first = loop._room(0, (2, 3), np.dtype("float32"))
    view = first[1]
    del first
    second = loop._room(0, (2, 3), np.dtype("float32"))
    assert not np.shares_memory(second, view)
    address = second.ctypes.data
    del second
    assert loop._room(0, (2, 3), np.dtype("float32")).ctypes.data == address
    assert loop._room(0, (4, 3), np.dtype("float32")).shape == (4, 3)


def test_what_does_not_vary_is_computed_once_and_what_is_unused_never() -> None:
    x, w = K.placeholder((None, 3)), K.variable(W)
    _, _, (state, _) = K.rnn(
        lambda xt, s: (s[1], [s[0] + K.dot(xt, K.exp(w)), s[1] + K.sin(xt)]),
        K.expand_dims(x, 0),
        [K.zeros((1, 4)), K.zeros((1, 3))],
    )
    program = Program([x], [state], (), 0, current().host("numpy").ops or frozenset())
    ops = [instruction.node.op for instruction in program.instructions]
    (loop,) = [instruction.loop for instruction in program.instructions if instruction.loop is not None]
    assert "exp" in ops
    # One product of all steps' rows.
    assert "matmul" in ops
    assert [instruction.node.op for instruction in loop.program.instructions] == ["add"]
    assert (loop.sequences, loop.states, len(loop.program.outputs)) == (1, 1, 1)


@pytest.mark.parametrize("rows", [8, None])
def test_a_gates_slope_and_what_it_is_multiplied_with_are_one_value_of_the_first_loop(rows: int | None) -> None:
    x, h, c = (K.placeholder((rows, *GATED[name][1:])) for name in ("x", "h", "c"))
    given = {name: K.variable(RANDOM.randn(*GATED[name])) for name in ("w", "u", "b")}

    def step(xt: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        new = lstm(K, xt, *states, given)
        return new[0], list(new)

    slopes = K.gradients(K.sum(K.rnn(step, x, [h, c])[0]), list(given.values()))
    _, backward = loops_of(*slopes, inputs=[x, h, c])
    # One for each gate, the memory, and the memory before.
    assert backward.count("multiply") == 6


def test_a_last_output_that_is_a_state_needs_no_stack(backend: str) -> None:
    def cell(xt: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        new = K.tanh(K.dot(xt, w) + states[0] * 0.5)
        return new, [new]

    w, x, h = K.constant(W), K.placeholder((2, 5, 3)), K.placeholder((2, 4))
    last, outputs, _ = K.rnn(cell, x, [h])
    program = Program([x, h], [last], (), 0, current().host("numpy").ops or frozenset())
    (loop,) = [instruction.loop for instruction in program.instructions if instruction.loop is not None]
    assert len(loop.program.outputs) == loop.states == 1
    slopes = [K.gradients(K.sum(K.square(y)), [x, h]) for y in (last, outputs[:, -1])]
    value, same, *both = K.function([x, h], [last, outputs[:, -1], *slopes[0], *slopes[1]])([X, H])
    np.testing.assert_array_equal(value, same)
    for one, other in zip(both[:2], both[2:]):
        assert_close(one, other)
    # No state at the beginning is the output of a step that there wasn't.
    none = K.placeholder((2, 0, 3))
    np.testing.assert_array_equal(
        K.function([none, h], [K.rnn(cell, none, [h])[0]])([X[:, :0], H])[0], np.zeros((2, 4))
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_slopes_of_a_loops_sigmoids_far_out(backend: str, dtype: str) -> None:
    x, c = K.placeholder((1, 2, 6), dtype=dtype), K.placeholder((1, 6), dtype=dtype)

    def cell(xt: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        new = K.sigmoid(xt) * states[0]
        return new, [new]

    slopes = K.gradients(K.sum(K.rnn(cell, x, [c])[0]), [x])
    gates = np.array([[[-40, -20, -1, 1, 20, 40], [0.5, -3, 3, 0, 30, -30]]], dtype)
    state = np.array([[1, 2, -3, 4, 5, -6]], dtype)
    (got,) = K.function([x, c], slopes)([gates, state])
    low, high = 1 / (1 + np.exp(gates.astype("float64"))), 1 / (1 + np.exp(-gates.astype("float64")))
    wanted = state[:, None] * np.prod(high, axis=1, keepdims=True) * low
    np.testing.assert_allclose(got, wanted, rtol=2e-6 if dtype == "float32" else 4e-15)


GATED = {"x": (8, 5, 3), "h": (8, 4), "c": (8, 4), "w": (3, 16), "u": (4, 16), "b": (16,), "w3": (3, 12), "u3": (4, 12)}


def lstm(k: Any, xt: Any, h: Any, c: Any, given: dict[str, Any]) -> tuple[Any, Any]:
    """A step as Keras writes it, with K or with numpy: the gates are columns of one matrix."""
    z = k.dot(xt, given["w"]) + k.dot(h, given["u"]) + given["b"]
    i, f, g, o = (z[:, n * 4 : n * 4 + 4] for n in range(4))
    c = k.sigmoid(f) * c + k.sigmoid(i) * k.tanh(g)
    return k.sigmoid(o) * k.tanh(c), c


def gru(k: Any, xt: Any, h: Any, c: Any, given: dict[str, Any]) -> tuple[Any, Any]:
    x, inner = k.dot(xt, given["w3"]), k.dot(h, given["u3"][:, :8])
    z, r = k.sigmoid(x[:, :4] + inner[:, :4]), k.sigmoid(x[:, 4:8] + inner[:, 4:])
    new = k.tanh(x[:, 8:] + k.dot(r * h, given["u3"][:, 8:]))
    return z * h + (1.0 - z) * new, c + new


def joining(k: Any, xt: Any, h: Any, c: Any, given: dict[str, Any]) -> tuple[Any, Any]:
    """Columns are joined, multiplied and cut."""
    both = k.dot(k.concatenate([xt, k.sin(h), xt], axis=1), k.concatenate([given["w"], given["u"], given["w"]], axis=0))
    return k.tanh(both[:, :4] * both[:, 12:]), c * 0.5 + k.sigmoid(both[:, 2:6])


class Plain:
    """numpy, by K's names."""

    dot, tanh, sin, concatenate = np.dot, np.tanh, np.sin, np.concatenate

    @staticmethod
    def sigmoid(x: Any) -> Any:
        return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("cell", [lstm, gru, joining])
@pytest.mark.parametrize("rows", [8, None])
def test_gates_that_are_columns_of_one_matrix(backend: str, cell: Callable[..., Any], rows: int | None) -> None:
    values = {name: np.random.RandomState(0).randn(*shape) for name, shape in GATED.items()}
    given = {name: K.variable(value, dtype="float64") for name, value in values.items() if name not in ("x", "h", "c")}
    x, h, c = (K.placeholder((rows, *GATED[name][1:]), dtype="float64") for name in ("x", "h", "c"))

    def step(xt: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        new = cell(K, xt, *states, given)
        return new[0], list(new)

    def plain(values: dict[str, Any]) -> tuple[Any, Any, Any]:
        h, c, outputs = values["h"], values["c"], []
        for t in range(5):
            h, c = cell(Plain, values["x"][:, t], h, c, values)
            outputs.append(h)
        return h, np.stack(outputs, 1), c

    def loss(values: dict[str, Any]) -> float:
        last, outputs, c = plain(values)
        return float(np.sum(outputs**2) + np.sum(last * c))

    last, outputs, (_, memory) = K.rnn(step, x, [h, c])
    weights = {lstm: ["w", "u", "b"], gru: ["w3", "u3"], joining: ["w", "u"]}
    names = ["x", "h", "c", *weights[cell]]
    sources = [{"x": x, "h": h, "c": c, **given}[name] for name in names]
    slopes = K.gradients(K.sum(K.square(outputs)) + K.sum(last * memory), sources)
    call = K.function([x, h, c], [last, outputs, memory, *slopes])
    # The second run has memory of the first one's.
    for scale in (1.0, 0.5):
        at = {**values, "x": values["x"] * scale}
        got = call([at[name] for name in ("x", "h", "c")])
        for value, expected in zip(got, plain(at)):
            assert_close(value, expected)
        for name, slope in zip(names, got[3:]):
            way = np.random.RandomState(1).randn(*GATED[name])
            ends = [loss({**at, name: at[name] + sign * 1e-6 * way}) for sign in (1, -1)]
            np.testing.assert_allclose(np.sum(slope * way), (ends[0] - ends[1]) / 2e-6, rtol=2e-6)


@pytest.mark.parametrize("rows", [8, None])
def test_slopes_whose_factors_together_are_too_large(backend: str, rows: int | None) -> None:
    x, h, weight = (K.placeholder((rows, *shape)) for shape in ((1, 4), (4,), (4,)))

    def step(xt: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        new = states[0] * K.exp(xt) * K.exp(2 * xt)
        return new, [new]

    _, _, (final,) = K.rnn(step, x, [h])
    slope = K.function([x, h, weight], K.gradients(K.sum(final * weight), [h]))
    for scale in (1e-35, 0.0):
        (got,) = slope([np.full((8, 1, 4), 31.0), np.ones((8, 4)), np.full((8, 4), scale)])
        assert_close(got, np.full((8, 4), scale * np.exp(93.0), "float32"), scale=10.0)


@pytest.mark.parametrize("engine", ["numpy", "theano", "cntk"])
def test_an_op_that_fails_beside_gates_is_blamed_itself(engine: str) -> None:
    kernelk.set_backend(engine)
    x, powers = K.placeholder((8, 5, 16)), K.placeholder((8, 5, 4), dtype="int32")
    u = K.variable(np.ones((4, 16)))

    def step(elements: list[Tensor], states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        z = K.dot(states[0], u) + elements[0]
        h = K.sigmoid(z[:, :4]) * K.tanh(z[:, 4:8]) + z[:, 8:12] * z[:, 12:]
        n = K.pow(states[1], elements[1])
        return K.sin(K.cos(h)), [h, n]

    _, outputs, (_, last) = K.rnn(step, [x, powers], [K.zeros((8, 4)), K.ones((8, 4), dtype="int32")])
    call = K.function([x, powers], [outputs, last])
    with pytest.raises(EngineError, match=r"\(op power\).*n = K\.pow\(states\[1\], elements\[1\]\)"):
        call([np.ones((8, 5, 16)), np.full((8, 5, 4), -1)])
    np.testing.assert_array_equal(call([np.ones((8, 5, 16)), np.full((8, 5, 4), 1)])[1], np.ones((8, 4)))


@pytest.mark.parametrize("one", ["x", "h"])
def test_slopes_where_an_unknown_number_of_rows_is_1(backend: str, one: str) -> None:
    x, h = K.placeholder((None, 3, 4), dtype="float64"), K.placeholder((None, 4), dtype="float64")
    rows = {"x": 5, "h": 5, one: 1}
    if one == "h":
        # A state keeps its shape.
        h = K.tile(h, [5, 1])

    def cell(xt: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        gate = K.sigmoid(xt)
        return gate * states[0], [K.tanh(gate * K.sin(xt)) * K.tanh(states[0])]

    def plain(x: Any, h: Any) -> float:
        h = np.broadcast_to(h, (5, 4))
        total = 0.0
        for t in range(3):
            gate = 1 / (1 + np.exp(-x[:, t]))
            total += float(np.sum(gate * h))
            h = np.tanh(gate * np.sin(x[:, t])) * np.tanh(h)
        return total + float(np.sum(h))

    _, outputs, (final,) = K.rnn(cell, x, [h])
    inputs = [x, h if one == "x" else h.inputs[0]]
    values = [RANDOM.randn(rows["x"], 3, 4), RANDOM.randn(rows["h"], 4)]
    got = K.function(inputs, K.gradients(K.sum(outputs) + K.sum(final), inputs))(values)
    for which, slope in enumerate(got):
        np.testing.assert_allclose(slope, slopes_by_differences(plain, values, which), rtol=1e-6, atol=1e-8)


def loops_of(*outputs: Tensor, inputs: Sequence[Any] = ()) -> list[list[str]]:
    """The ops in the bodies of the loops that these tensors need."""
    program = Program(list(inputs), outputs, (), 0, current().host("numpy").ops or frozenset())
    loops = [instruction.loop for instruction in program.instructions if instruction.loop is not None]
    return [[instruction.node.op for instruction in loop.program.instructions] for loop in loops]


def test_a_product_stays_in_the_step_where_its_matrix_varies_or_it_is_far_wider_than_its_rows() -> None:
    x, w = K.placeholder((2, None, 3)), K.variable(W)

    def products(matrix: Callable[[Any], Any]) -> int:
        outputs = K.rnn(lambda xt, s: (K.dot(xt, matrix(s[0])), [s[0] * 0.5]), x, [w])[1]
        return sum(op == "matmul" for ops in loops_of(outputs, inputs=[x]) for op in ops)

    assert products(lambda state: K.exp(w)) == 0
    assert products(lambda state: state) == 1
    assert products(lambda state: K.random_normal((3, 4))) == 1
    assert products(lambda state: K.tile(w, [1, 20])) == 1


def test_the_gradient_of_a_cell_of_gates_sums_and_joins_outside_the_loop(backend: str) -> None:
    """What its slices' gradients make up is joined; weights and bias are summed over all steps at once."""
    units = 3
    # Of its own: how far two orders of summing differ must not depend on the tests that ran before.
    random = np.random.default_rng(7)
    x, initial = K.placeholder((None, None, 4)), K.placeholder((None, units))
    weights = [
        K.variable(random.standard_normal(shape)) for shape in ((4, 2 * units), (units, 2 * units), (2 * units,))
    ]

    def cell(piece: Any, states: list[Any]) -> Any:
        gates = K.dot(piece, weights[0]) + K.dot(states[0], weights[1]) + weights[2]
        h = K.sigmoid(gates[:, :units]) * states[0] + K.tanh(gates[:, units:])
        return h, [h]

    given = [random.standard_normal((2, 5, 4)), random.standard_normal((2, units))]
    found = []
    for unroll in (False, True):
        last = K.rnn(cell, x, [initial], unroll=unroll, input_length=5)[0]
        slopes = K.gradients(K.sum(last * last), [*weights, x, initial])
        if not unroll:
            _, backward = loops_of(*slopes, inputs=[x, initial])
            assert not {"unslice", "sum"} & set(backward)
            assert [op for op in backward if op in ("concatenate", "matmul")] == ["concatenate", "matmul"]
        found.append(K.function([x, initial], slopes)(given))
    for got, wanted in zip(*found):
        assert_close(got, wanted, label="slope")


def test_gradients_add_what_they_need_without_changing_what_is_there() -> None:
    """A function made before the gradient, and called after it, is what it was."""
    x = K.placeholder((None,))
    total = K.foldl(lambda a, b: K.sin(a) * b, x, 1.0)
    before = K.function([x], [total])
    value = before([[1.0, 2.0, 3.0]])[0]
    slope = K.function([x], K.gradients(total, x))
    assert slope([[1.0, 2.0, 3.0]])[0].shape == (3,)
    assert before([[1.0, 2.0, 3.0]])[0] == value
    assert K.function([x], [total])([[1.0, 2.0, 3.0]])[0] == value


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (
            lambda x: K.rnn(lambda a, s: (a, []), x, [K.zeros((2, 4))]),
            ArgumentError,
            "returned 0 states, but was given 1",
        ),
        (lambda x: K.rnn(lambda a, s: a, x, []), ArgumentError, "an output and a list of new states"),
        (lambda x: K.rnn(lambda a, s: (a, [a]), x, [K.zeros((2, 4))]), ShapeError, "state 0 has shape (2, 4)"),
        (lambda x: K.rnn(lambda a, s: (a, [a]), x, [K.zeros((2, 3), dtype="int32")]), DTypeError, "state 0 is int32"),
        (lambda x: K.rnn(lambda a, s: (a, []), x, [], mask=x[:, :, 0:2]), ShapeError, "the mask has shape"),
        (lambda x: K.rnn(lambda a, s: (a, []), x[0, 0], []), ShapeError, "need the axes (samples, time, ...)"),
        (lambda x: K.rnn(lambda a, s: (a, []), x, [], input_length=4), ArgumentError, "input_length is 4"),
        (lambda x: K.rnn(lambda a, s: (a, []), [x, x[:, 1:]], []), ShapeError, "4, 5 elements"),
        (lambda x: K.map_fn(lambda a: a, K.sum(x)), ShapeError, "x is a scalar"),
        (lambda x: K.foldl(lambda a, b: a, x[:0]), ShapeError, "give an initializer"),
        (
            lambda x: K.rnn(lambda a, s: (a, []), K.placeholder((2, None, 3)), [], unroll=True),
            ArgumentError,
            "a known number of steps",
        ),
    ],
)
def test_refused(make: Callable[[Any], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        make(K.placeholder((2, 5, 3)))
    assert words in str(caught.value)


def test_lists_of_numbers_are_tensors() -> None:
    assert K.eval(K.map_fn(lambda a: a * 2, [1, 2, 3])).tolist() == [2, 4, 6]
    assert K.eval(K.foldl(lambda a, b: a + b, [[1, 2], [3, 4]], [0.5, 0.0])).tolist() == [4.5, 6.0]
    assert K.eval(K.foldr(lambda a, b: a * 2 + b, np.array([1.0, 2.0]))) == 5.0


def test_an_engine_without_an_op_of_the_step_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    lacking_engine(monkeypatch, "plain", ops={"sin"}, dtypes={"int8"})
    x = K.placeholder((None,))
    call = K.function([x], [K.map_fn(lambda a: K.cast(K.cast(K.sin(a), "int8"), "float32"), x)])
    assert call([[0.0]])[0].tolist() == [0.0]
    with pytest.raises(SwapRefusedError) as caught:
        kernelk.set_backend("plain")
    assert "no op 'sin'" in str(caught.value)
    assert "no dtype int8" in str(caught.value)
    assert call([[0.0]])[0].tolist() == [0.0]


def test_updates_inside_are_refused() -> None:
    v = K.variable(0.0)
    with pytest.raises(UpdateError, match="can't be made inside a loop's step"):
        K.map_fn(lambda a: K.update_add(v, a), K.zeros((3,)))


def test_what_belongs_to_a_step_has_no_value_outside() -> None:
    kept = []
    K.map_fn(lambda a: kept.append(a * 2.0) or a, K.zeros((3,)))
    with pytest.raises(FeedError, match="only inside the step of a loop"):
        K.eval(kept[0])


def test_shapes_known_at_the_call_only() -> None:
    """Sequences of different lengths, or a state that grows, are refused in the line that wrote the loop."""
    x, y = K.placeholder((None,)), K.placeholder((None,))
    both = K.function([x, y], [K.map_fn(lambda pair: pair[0] + pair[1], [x, y])])
    assert both([[1, 2], [3, 4]])[0].tolist() == [4, 6]
    with pytest.raises(ShapeError, match=r"different lengths.*test_loops.py, line"):
        both([[1, 2], [3]])
    grown = K.function([x, y], [K.foldl(lambda a, b: K.concatenate([a, x]), y, x)])
    with pytest.raises(ShapeError, match=r"has shape \(2,\) at first and \(4,\) after a step.*test_loops.py, line"):
        grown([[1, 2], [3]])


def test_lengths_from_outside_values(backend: str) -> None:
    """A length inside the step that is the value of an outer tensor is worked out before the call."""
    x, n = K.placeholder((None,)), K.placeholder((), dtype="int32")
    table = K.map_fn(lambda a: a * K.cast(K.arange(n), "float32"), x)
    call = K.function([x, n], [table])
    for length in (3, 1):
        assert_close(call([[1, 2], length])[0], np.outer([1, 2], np.arange(length)).astype("float32"), label="outer")


@pytest.mark.parametrize("staged", [False, True])
def test_a_failure_inside_names_the_line_in_the_step(staged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernelk.backends.numpy import ops

    def fail(instruction: Any, x: Any) -> Any:
        raise RuntimeError("no power")

    monkeypatch.setitem(ops.OPS, "exp", fail)
    if staged:
        lacking_engine(monkeypatch, "plain", ops={"scan", "item"})

    def row(values: Any) -> Any:
        return K.foldl(lambda a, b: a + K.exp(b), values, 0.0)  # here

    x = K.placeholder((None, None))
    call = K.function([x], [K.map_fn(row, x)])
    if staged:
        kernelk.set_backend("plain")
    with pytest.raises(EngineError, match=r"no power \(op exp\).*K\.exp\(b\).*# here"):
        call([[[1.0, 2.0]]])
