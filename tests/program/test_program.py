"""Programs: structural keys, pruning, merging, depth; what is compiled again and what isn't."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers.arrays import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelk import backend as K
from kernelk.graph.nodes import LearningPhase
from kernelk.program.program import Program
from kernelk.session.current import current


def program(outputs: list[Any], inputs: list[Any] = (), updates: list[Any] = (), phase: int = 0) -> Program:  # type: ignore[assignment]
    """The program of a function on numpy."""
    call = K.function(list(inputs), outputs, updates)
    host = current().host("numpy")
    host.start()
    return call.program_for(current(), host.ops, phase, None)


def ops(made: Program) -> list[str]:
    return [instruction.node.op for instruction in made.instructions]


def cell(units: int = 4, name: str | None = None, seed: int | None = None) -> tuple[Any, list[np.ndarray]]:
    """What a user's training cell does, all of it made anew."""
    x = K.placeholder((None, 3), name=name and name + "_x")
    y = K.placeholder((None, units), name=name and name + "_y")
    w = K.variable(np.random.rand(3, units), name=name and name + "_w")
    b = K.variable(np.random.rand(units))
    speed = K.zeros((3, units))
    hidden = K.dropout(K.dot(x, w) + b, 0.5, seed=seed)
    hidden = K.in_train_phase(hidden, K.dot(x, w) + b)
    loss = K.mean(K.categorical_crossentropy(y, K.softmax(hidden)))
    (gradient,) = K.gradients(loss, [w])
    step = speed * 0.9 - gradient * 0.1
    call = K.function([x, y, K.learning_phase()], [loss], [K.update(speed, step), K.update_add(w, step)])
    return call, [np.random.rand(5, 3), np.eye(units)[np.zeros(5, int)]]


def test_a_cell_run_again_compiles_nothing(backend: str) -> None:
    host = current().host()
    counts = []
    for i in range(4):
        call, data = cell(name=f"run{i}", seed=i)
        for phase in (0, 1):
            loss = call([*data, phase])
            assert np.isfinite(loss[0])
        if i == 2:
            K.set_random_seed(3)
        counts.append(host.compile_count)
    assert counts[0] == counts[-1], counts


def test_another_constant_or_shape_does_compile(backend: str) -> None:
    host = current().host()
    v = K.variable([1.0, 2.0])
    K.eval(v * 2.0)
    before = host.compile_count
    K.eval(v * 2.0)
    assert host.compile_count == before
    K.eval(v * 3.0)
    assert host.compile_count == before + 1
    K.eval(K.variable([1.0, 2.0, 3.0]) * 2.0)
    assert host.compile_count == before + 2
    K.eval(K.variable([1.0, 2.0], dtype="float64") * 2.0)
    assert host.compile_count == before + 3


def test_batch_sizes_compile_once_on_engines_that_allow_it(backend: str) -> None:
    x = K.placeholder((None, 3))
    call = K.function([x], [K.sum(x * 2.0, axis=1)])
    host = current().host()
    call([np.ones((4, 3))])
    before = host.compile_count
    for size in (2, 7, 4, 30):
        assert call([np.ones((size, 3))])[0].tolist() == [6.0] * size
    if host.specialises != "all":
        assert host.compile_count == before
    middle = host.compile_count
    for size in (2, 7, 4, 30):
        call([np.ones((size, 3))])
    assert host.compile_count == middle


def test_swapping_back_compiles_nothing(every_engine: list[str]) -> None:
    import kernelk

    call, data = cell()
    for name in every_engine:
        kernelk.set_backend(name)
        call([*data, 1])
    counts = {name: current().hosts[name].compile_count for name in every_engine}
    for name in every_engine:
        report = kernelk.set_backend(name)
        assert report.to_lower == 0
        call([*data, 1])
    assert counts == {name: current().hosts[name].compile_count for name in every_engine}


def test_names_lines_values_and_seeds_stay_out_of_the_key() -> None:
    def build(name: str, value: float, seed: int) -> Program:
        x = K.placeholder((None, 2), name=name)
        v = K.variable([value, value], name=name)
        return program([x * v + K.random_uniform((2,), seed=seed)], [x], [K.update(v, v * 2.0)])

    assert build("a", 1.0, 1).key == build("b", 2.0, 99).key


def differing() -> dict[str, Callable[[], Program]]:
    """Programs of which no two may share a key."""
    x = K.placeholder((None, 2))
    x64 = K.placeholder((None, 2), dtype="float64")
    static = K.placeholder((3, 2))
    v, w = K.variable([1.0, 2.0]), K.variable([3.0, 4.0])
    return {
        "plain": lambda: program([x + v], [x]),
        "other op": lambda: program([x - v], [x]),
        "other order": lambda: program([v + x], [x]),
        "other dtype": lambda: program([x64 + K.cast(v, "float64")], [x64]),
        "other shape": lambda: program([static + v], [static]),
        "a constant": lambda: program([x + K.constant([1.0, 2.0])], [x]),
        "another constant": lambda: program([x + K.constant([1.0, 3.0])], [x]),
        "minus zero": lambda: program([x + K.constant([1.0, -0.0])], [x]),
        "zero": lambda: program([x + K.constant([1.0, 0.0])], [x]),
        "constant of another shape": lambda: program([x + K.constant([[1.0, 2.0]])], [x]),
        "two outputs": lambda: program([x + v, x + v], [x]),
        "an update": lambda: program([x + v], [x], [K.update_add(v, [1.0, 1.0])]),
        "another update": lambda: program([x + v], [x], [K.update_add(v, [2.0, 1.0])]),
        "an update of another variable": lambda: program([x + v], [x], [K.update_add(w, [1.0, 1.0])]),
        "axis 0": lambda: program([K.sum(x, axis=0)], [x]),
        "axis 1": lambda: program([K.sum(x, axis=1)], [x]),
        "axis 1 kept": lambda: program([K.sum(x, axis=1, keepdims=True)], [x]),
        "the same variable twice": lambda: program([v * v]),
        "two variables": lambda: program([v * w]),
        "one draw": lambda: program([x * K.random_uniform((2,))], [x]),
        "one normal draw": lambda: program([x * K.random_normal((2,))], [x]),
        "one draw of another length": lambda: program([x * K.random_uniform((1,))], [x]),
        "slice": lambda: program([x[:, 0]], [x]),
        "another slice": lambda: program([x[:, 1]], [x]),
        "slice kept": lambda: program([x[:, 0:1]], [x]),
    }


def test_what_computes_something_else_has_another_key() -> None:
    keys: dict[str, str] = {}
    for label, make in differing().items():
        key = make().key
        assert key not in keys, f"{label} has the key of {keys.get(key)}"
        assert key == make().key, label
        keys[key] = label


def test_two_draws_and_one_draw_used_twice_differ() -> None:
    one = K.random_uniform((2,))
    assert program([one - one]).key != program([K.random_uniform((2,)) - K.random_uniform((2,))]).key


def test_equal_nodes_are_merged(backend: str) -> None:
    x = K.placeholder((None, 2))
    made = program([K.exp(x * 2.0) + K.exp(x * 2.0), K.exp(x * 2.0)], [x])
    assert sorted(ops(made)) == ["add", "exp", "multiply"]
    assert len(made.constants) == 1
    values = K.function([x], [K.exp(x * 2.0) + K.exp(x * 2.0), K.exp(x * 2.0)])([[[0.0, 1.0]]])
    assert_close(values[0], 2 * np.exp([[0.0, 2.0]]).astype("float32"))
    assert_close(values[1], np.exp([[0.0, 2.0]]).astype("float32"))


def test_draws_are_not_merged(backend: str) -> None:
    a, b = K.random_uniform((1000,)), K.random_uniform((1000,))
    same = K.function([], [a - a, a - b])([])
    assert not same[0].any()
    assert (same[1] != 0).sum() > 900
    assert len(program([a - b]).draws) == 2


def test_nodes_stay_apart_in_the_graph() -> None:
    x = K.placeholder((2,))
    assert (x * 2.0) is not (x * 2.0)
    assert len({x * 2.0, x * 2.0}) == 2
    assert K.identity(x) is not x


def test_what_no_output_needs_is_left_out() -> None:
    x, y = K.placeholder((2,)), K.placeholder((2,))
    K.exp(x)
    made = program([x * 2.0], [x, y])
    assert ops(made) == ["multiply"]
    v = K.variable([1.0])
    assert program([x * 2.0], [x]).slots == []
    assert program([x * 2.0], [x], [K.update(v, v)]).slots == [v]


def test_the_phase_prunes_the_dead_branch() -> None:
    x = K.placeholder((2,))
    w = K.variable([1.0, 2.0])
    y = K.in_train_phase(K.exp(K.dropout(x, 0.5)) * w, K.sqrt(x))
    (g,) = K.gradients(K.sum(y), [x])
    train, test = (program([y, g], [x], phase=phase) for phase in (1, 0))
    assert "exp" in ops(train)
    assert "sqrt" not in ops(train)
    assert len(train.draws) == 1
    assert train.slots == [w]
    assert "exp" not in ops(test)
    assert "sqrt" in ops(test)
    assert test.draws == []
    assert test.slots == []
    assert train.key != test.key


def test_a_dead_branch_asks_for_no_feed() -> None:
    x, mask = K.placeholder((2,)), K.placeholder((2,))
    y = K.in_train_phase(x * mask, x)
    assert K.eval(y, {x: [1, 2]}).tolist() == [1.0, 2.0]
    assert isinstance(K.learning_phase(), LearningPhase)


def test_aliases_cost_nothing() -> None:
    x = K.placeholder((2,))
    assert ops(program([K.identity(K.stop_gradient(K.identity(x)))], [x])) == []
    assert program([K.identity(x)], [x]).key == program([x], [x]).key


def test_equal_constants_are_kept_once() -> None:
    big = np.random.rand(100, 100)
    x = K.placeholder((100, 100))
    made = program([x * K.constant(big) + K.constant(big.copy())], [x])
    assert len(made.constants) == 1


def test_ten_thousand_nodes_in_a_chain() -> None:
    # Far deeper than Python's recursion limit.
    assert sys.getrecursionlimit() < 10_000
    x = K.placeholder((2,))
    y = x
    for i in range(10_000):
        y = y + float(i % 3)
    made = program([y], [x])
    assert len(made.instructions) == 10_000
    assert len(made.key) == 32
    value = K.function([x], [y])([[0.0, 1.0]])[0]
    assert value.tolist() == [9999.0, 10000.0]


def test_gradients_of_a_deep_chain() -> None:
    x = K.placeholder((2,))
    y = x
    for _ in range(3000):
        y = K.tanh(y) + y * 0.0
    (g,) = K.gradients(K.sum(y), [x])
    value = K.function([x], [g])([[0.0, 0.0]])[0]
    assert value.tolist() == [1.0, 1.0]


def test_a_wide_sum(backend: str) -> None:
    x = K.placeholder((2,))
    total = K.constant([0.0, 0.0])
    for i in range(200):
        total = total + x * float(i)
    assert_close(K.function([x], [total])([[1.0, 2.0]])[0], np.array([19900.0, 39800.0], "float32"))


def test_a_doubling_graph_stays_small() -> None:
    # 2 ** 200 paths lead through it.
    y = x = K.placeholder((2,))
    for _ in range(200):
        y = (y + y) * 0.5
    (g,) = K.gradients(K.sum(y), [x])
    made = program([y, g], [x])
    assert len(made.instructions) < 2000
    values = K.function([x], [y, g])([[1.0, 3.0]])
    assert values[0].tolist() == [1.0, 3.0]
    assert values[1].tolist() == [1.0, 1.0]


def test_a_slice_that_turns_out_to_hold_one_row(backend: str) -> None:
    """An unknown length that becomes 1 inside the graph, not in a feed: sums over what was broadcast must know."""
    x = K.placeholder((None, 3))
    scale = x[:1]
    y = K.sum(K.square(x * scale))
    (g,) = K.gradients(y, [x])
    data = np.arange(1.0, 13.0).reshape(4, 3)
    value, gradient = K.function([x], [y, g])([data])
    first = data[:1]
    wanted = 2 * data * first**2
    wanted[0] += (2 * data**2 * first).sum(0)
    assert_close(value, np.float32(((data * first) ** 2).sum()))
    assert_close(gradient, wanted.astype("float32"))


def test_a_reshape_that_turns_out_to_hold_one_row(backend: str) -> None:
    x, wide = K.placeholder((None, 4)), K.placeholder((None, 8))
    rows = K.reshape(x, (-1, 8))
    (g,) = K.gradients(K.sum(rows * wide), [x])
    call = K.function([x, wide], [rows * wide, g])
    for count, lines in ((2, 5), (2, 1), (6, 3), (2, 5)):
        a = np.random.RandomState(0).rand(count, 4).astype("float32")
        b = np.random.RandomState(1).rand(lines, 8).astype("float32")
        product, gradient = call([a, b])
        assert_close(product, a.reshape(-1, 8) * b)
        wanted = np.broadcast_to(b.sum(0) if count == 2 else b, (count // 2, 8)).reshape(count, 4)
        assert_close(gradient, wanted)


@settings(max_examples=40)
@given(data=st.data())
def test_random_graphs_have_one_key_and_one_meaning(data: st.DataObject) -> None:
    """Built twice from the same recipe, a graph has the same key; its value is what numpy computes step by step."""
    steps = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(["add", "multiply", "maximum", "abs", "sum", "transpose", "relu"]), st.integers(0, 99)
            ),
            min_size=1,
            max_size=25,
        )
    )
    arrays = [np.random.RandomState(i).randint(-3, 4, (3, 3)).astype("float64") for i in range(3)]

    def build() -> tuple[Any, np.ndarray, list[Any]]:
        inputs = [K.placeholder((None, 3), dtype="float64") for _ in arrays]
        nodes: list[Any] = list(inputs)
        values = list(arrays)
        for op, pick in steps:
            a, b = pick % len(nodes), (pick * 7 + 3) % len(nodes)
            if op in ("add", "multiply", "maximum"):
                made = {"add": nodes[a] + nodes[b], "multiply": nodes[a] * nodes[b] * 0.5}.get(op)
                nodes.append(made if made is not None else K.maximum(nodes[a], nodes[b]))
                values.append(
                    values[a] + values[b]
                    if op == "add"
                    else values[a] * values[b] * 0.5
                    if op == "multiply"
                    else np.maximum(values[a], values[b])
                )
            elif op == "sum":
                nodes.append(nodes[a] * 0.0 + K.sum(nodes[a], axis=0, keepdims=True) / 3.0)
                values.append(values[a] * 0 + values[a].sum(0, keepdims=True) / 3)
            elif op == "transpose":
                nodes.append(K.transpose(nodes[a]) if nodes[a].shape == (3, 3) else nodes[a] + 0.0)
                values.append(values[a].T if nodes[a].shape == (3, 3) else values[a])
            else:
                nodes.append(K.abs(nodes[a]) if op == "abs" else K.relu(nodes[a]))
                values.append(abs(values[a]) if op == "abs" else np.maximum(values[a], 0))
        return nodes[-1], values[-1], inputs

    first, wanted, inputs = build()
    second, _, others = build()
    assert program([first], inputs).key == program([second], others).key
    with np.errstate(all="ignore"):
        np.testing.assert_allclose(K.function(inputs, [first])(arrays)[0], wanted, rtol=1e-12)


def test_compiled_programs_are_bounded_by_bytes(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernelk import config

    host = current().host()
    monkeypatch.setattr(config.LIMITS, "compiled_bytes", 1)
    v = K.variable([1.0, 2.0])
    calls = [K.function([], [v * float(i)]) for i in range(4)]
    for _ in range(2):
        for i, call in enumerate(calls):
            assert call([])[0].tolist() == [i, 2.0 * i]
            assert len(host.compiled) == 1


@pytest.mark.parametrize("backend", ["jax"], indirect=True)
def test_compiled_programs_are_bounded_by_memory_maps(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernelk.engines import host as hosts

    host = current().host()
    x = K.placeholder((None,))
    # A number that no other test has.
    call = K.function([x], [K.sin(x) * 1237.5 + float(i) for i in range(20)])
    call([np.zeros(2)])
    taken = list(host.maps.values())[-1]
    # A process that may have 65,530 has room for hundreds of such programs, and not for thousands.
    assert taken > 10
    monkeypatch.setattr(hosts, "MOST_MAPS", sum(host.maps.values()) + 3 * taken)
    before = host.dropped_count
    for length in range(3, 12):
        assert call([np.zeros(length)])[7].tolist() == [7.0] * length
        assert sum(host.maps.values()) <= hosts.MOST_MAPS
    assert host.dropped_count > before
    assert host.maps.keys() == host.compiled.keys()


def test_many_plans_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernelk.engines import host as hosts

    monkeypatch.setattr(hosts, "MOST_PLANS", 8)
    x = K.placeholder((None,))
    call = K.function([x], [x + 1.0])
    host = current().ready_host()
    for _ in range(2):
        for size in range(1, 40):
            assert call([np.zeros(size)])[0].tolist() == [1.0] * size
            assert len(host.plans) <= 8
