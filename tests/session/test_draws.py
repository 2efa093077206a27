"""Each draw has a count of its own: its n-th evaluation gives the n-th draw of its seed, whatever ran on any engine."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
import pytest
import scipy.stats
from helpers.arrays import FLOATS, assert_close, same_bits
from hypothesis import example, given, settings
from hypothesis import strategies as st

import kernelk
from kernelk import backend as K
from kernelk.backends import random_draws
from kernelk.backends.numpy.backend import NumpyBackend
from kernelk.backends.random_draws import draw
from kernelk.backends.serving.executor import Executor
from kernelk.errors import ArgumentError, KernelKError
from kernelk.graph.state import current_state
from kernelk.session.current import current
from kernelk.session.untouched import untouched

MOST = 40


def nth(node: Any, n: int) -> np.ndarray:
    """The n-th draw of a node, counted from 0."""
    value: np.ndarray = draw(node.attrs["kind"], node.dtype, node.shape, node.seed(), n)
    return value


def philox(seed: int, counter: int, count: int) -> list[int]:
    """Philox of four 64-bit words in whole numbers, written from the paper: ten rounds, two products in each."""
    words: list[int] = []
    for block in range(1, (count + 3) // 4 + 1):
        c, k = [block, 0, 0, counter], [seed, random_draws.KEY]
        for _ in range(10):
            a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
            c = [(b >> 64) ^ c[1] ^ k[0], b % 2**64, (a >> 64) ^ c[3] ^ k[1], a % 2**64]
            k = [(k[0] + 0x9E3779B97F4A7C15) % 2**64, (k[1] + 0xBB67AE8584CAA73B) % 2**64]
        words += c
    return words[:count]


@given(seed=st.integers(0, 2**64 - 1), counter=st.integers(0, 2**64 - 1), count=st.integers(0, 9))
@example(seed=2**63 + 1, counter=0, count=4)
@example(seed=1, counter=2**63 + 1, count=4)
def test_no_bit_of_a_seed_or_a_count_is_lost(seed: int, counter: int, count: int) -> None:
    words = philox(seed, counter, count)
    wanted = np.array([(word >> 11) * 2.0**-53 for word in words])
    assert same_bits(draw("uniform", "float64", (count,), seed, counter), wanted)
    halves = [half for word in words for half in (word % 2**32, word >> 32)]
    for dtype, bits in (("float32", 24), ("float16", 11)):
        wanted = np.array([(half >> (32 - bits)) * 2.0**-bits for half in halves], dtype)
        assert same_bits(draw("uniform", dtype, (2 * count,), seed, counter), wanted)


def test_truncated_draws_are_the_normal_distributions_quantiles() -> None:
    mpmath.mp.dps = 40
    for q in (0.0, 1e-12, -0.1, 0.3, 0.425, -0.4250001, 0.47, -0.477249868051820):
        exact = mpmath.sqrt(2) * mpmath.erfinv(2 * mpmath.mpf(q))
        found = float(random_draws.normal_quantile(np.asarray(q), np))
        assert abs(found - exact) <= 5 * np.spacing(abs(float(exact))), q
    assert mpmath.erf(mpmath.sqrt(2)) == pytest.approx(random_draws.INSIDE, rel=1e-16)
    # The ends of the uniform draws.
    least, most = random_draws.truncated(np.array([0.0, 1 - 2.0**-53]), np)
    assert -2 <= least < most <= 2
    draws = draw("truncated_normal", "float64", (100_000,), 1, 0)
    assert scipy.stats.kstest(draws, scipy.stats.truncnorm(-2, 2).cdf).pvalue > 0.001
    # A longer one begins as a shorter one does.
    assert same_bits(draw("truncated_normal", "float64", (7,), 1, 0), draws[:7])


def test_seeds_that_differ_in_a_bit_draw_otherwise(backend: str) -> None:
    for seed in range(8):
        K.set_random_seed(seed)
        values = [K.eval(K.random_uniform((4,), seed=n)).tobytes() for n in (4, 5, 6)]
        assert len(set(values)) == 3
        # Fresh ops, whose streams begin with them.
        kernelk.set_backend("numpy")
        assert [K.eval(K.random_uniform((4,), seed=n)).tobytes() for n in (4, 5, 6)] == values
        kernelk.set_backend(backend)


def test_draws_follow_numpys_seed_until_one_is_set(backend: str, tmp_path: Path) -> None:
    """As in Keras 2.3.1, whose ops take their seeds from np.random; `K.set_random_seed` decides alone."""

    def made() -> list[np.ndarray]:
        draws = [K.random_uniform((4,)), K.random_normal((4,)), K.dropout(K.ones((40,)), 0.5)]
        return [K.eval(draw) for draw in (*draws, *draws)]

    def again(seed: int) -> list[np.ndarray]:
        np.random.seed(seed)
        return made()

    K.clear_session()
    current_state().seeds.restart(None)
    first = again(1337)
    assert all(same_bits(a, b) for a, b in zip(first, again(1337)))
    assert not any(same_bits(a, b) for a, b in zip(first, again(1338)))
    assert not any(same_bits(a, b) for a, b in zip(first, first[3:]))
    # Ops that were given a seed take none.
    np.random.seed(5)
    K.random_uniform((2,), seed=3)
    untouched_state = np.random.randint(1000)
    np.random.seed(5)
    assert untouched_state == np.random.randint(1000)
    K.set_random_seed(2)
    second = again(1)
    K.set_random_seed(2)
    assert all(same_bits(a, b) for a, b in zip(second, again(7)))


def test_a_file_keeps_the_seeds_that_came_from_numpy(tmp_path: Path) -> None:
    kernelk.set_backend("numpy")

    def cells() -> tuple[Any, Any]:
        K.clear_session()
        current_state().seeds.restart(None)
        K.eval(K.random_uniform((1,)))  # one that nobody holds
        return K.random_uniform((4,)), K.dropout(K.ones((40,)), 0.5)

    np.random.seed(11)
    a, b = cells()
    K.eval(a)
    kernelk.save(tmp_path / "run")
    wanted = [K.eval(a), K.eval(b), K.eval(a)]
    np.random.seed(99)
    a, b = cells()
    kernelk.load(tmp_path / "run")
    assert all(same_bits(x, y) for x, y in zip(wanted, [K.eval(a), K.eval(b), K.eval(a)]))
    # Also of ops that are made only after it.
    np.random.seed(100)
    K.clear_session()
    current_state().seeds.restart(None)
    kernelk.load(tmp_path / "run")
    current_state().seeds.stream.count = 0
    K.random_uniform((1,))
    a, b = K.random_uniform((4,)), K.dropout(K.ones((40,)), 0.5)
    assert all(same_bits(x, y) for x, y in zip(wanted, [K.eval(a), K.eval(b), K.eval(a)]))


def test_seeds_from_numpy_take_no_memory_once_their_ops_are_gone() -> None:
    kernelk.set_backend("numpy")
    current_state().seeds.restart(None)
    for _ in range(100):
        K.eval(K.random_uniform((1,)))
    gc.collect()
    assert len(current_state().seeds.state()["taken"]) <= 1


def test_ops_with_one_seed_draw_the_same(backend: str) -> None:
    """As in Keras on TensorFlow, where an op's stream begins with the op."""
    K.eval(K.random_uniform((3,)))
    a, b = K.random_uniform((3,), seed=7), K.random_uniform((3,), seed=7)
    first = K.eval(a)
    second = K.eval(a)
    assert not same_bits(first, second)
    assert same_bits(K.eval(b), first)
    assert same_bits(K.eval(b), second)
    one, other = K.eval(K.dropout(K.ones((40,)), 0.5, seed=3)), K.eval(K.dropout(K.ones((40,)), 0.5, seed=3))
    assert same_bits(one, other)


def draws() -> Any:
    kinds = [K.random_uniform((7,), dtype=d) for d in FLOATS] + [K.random_normal((7,), dtype=d) for d in FLOATS]
    return K.function([], [*kinds, K.dropout(K.ones((50,)), 0.5), K.random_uniform((3,), -1.0, 2.0, seed=7)])


def test_the_same_draws_on_every_engine(every_engine: list[str]) -> None:
    found = {}
    for name in every_engine:
        K.set_random_seed(11)
        kernelk.set_backend(name)
        call = draws()
        found[name] = [call([]) for _ in range(2)]
    for name in every_engine[1:]:
        for wanted, got in zip(found["numpy"], found[name]):
            for a, b in zip(wanted[:3], got[:3]):
                assert same_bits(a, b), name
            for a, b in zip(wanted[3:6], got[3:6]):
                np.testing.assert_allclose(
                    a.astype("f8"), b.astype("f8"), rtol=1e-3 if a.dtype == "f2" else 1e-6, atol=1e-7
                )
            assert same_bits(wanted[6] == 0, got[6] == 0)
            assert_close(got[7], wanted[7])
    assert not np.array_equal(found["numpy"][0][0], found["numpy"][1][0])


def test_the_counter_survives_swaps(every_engine: list[str]) -> None:
    K.set_random_seed(3)
    call = K.function([], [K.random_uniform((5,))])
    alone = [call([])[0].tolist() for _ in every_engine * 2]
    K.set_random_seed(3)
    moved = []
    for name in every_engine * 2:
        kernelk.set_backend(name)
        moved.append(call([])[0].tolist())
    assert moved == alone
    assert len({tuple(x) for x in alone}) == len(alone)


def test_a_seed_makes_another_stream() -> None:
    def one(seed: int | None) -> list[float]:
        return K.eval(K.random_uniform((4,), seed=seed)).tolist()  # type: ignore[no-any-return]

    K.set_random_seed(1)
    first = one(5)
    K.set_random_seed(1)
    assert one(5) == first
    K.set_random_seed(1)
    assert one(6) != first
    K.set_random_seed(2)
    assert one(5) != first
    K.set_random_seed(1)
    nodes = [one(None), one(None)]
    assert nodes[0] != nodes[1]
    K.set_random_seed(1)
    assert [one(None), one(None)] == nodes


def test_a_draw_goes_on_from_function_to_function_and_from_engine_to_engine(every_engine: list[str]) -> None:
    a: Any = K.random_normal((2, 3))
    b: Any = K.random_uniform((4,))
    both, one = K.function([], [a, b]), K.function([], [b])
    for n, engine in enumerate(every_engine):
        kernelk.set_backend(engine)
        values = both([])
        np.testing.assert_allclose(values[0], nth(a, n), rtol=1e-6)
        assert same_bits(values[1], nth(b, 2 * n))
        assert same_bits(one([])[0], nth(b, 2 * n + 1))
    assert (a.count.value, b.count.value) == (len(every_engine), 2 * len(every_engine))


@settings(max_examples=MOST)
@given(data=st.data())
def test_random_evaluations(data: st.DataObject) -> None:
    """In any order, together or alone, rewound or refused, in sessions that are saved and loaded."""
    K.set_random_seed(data.draw(st.integers(0, 3)))
    nodes: list[Any] = [K.random_uniform((2,), seed=s) for s in (None, 1, 1, None)]
    counts = [0] * len(nodes)
    w = K.variable([0.0, 0.0])
    for _ in range(data.draw(st.integers(1, 12))):
        chosen = data.draw(st.lists(st.integers(0, len(nodes) - 1), min_size=1, max_size=3, unique=True))
        how = data.draw(st.sampled_from(["call", "update", "look", "kept", "fail", "drop"]))
        wanted = [nth(nodes[i], counts[i]) for i in chosen]
        outputs = [nodes[i] for i in chosen]
        if how == "drop":
            # Others come and go.
            K.eval(K.random_uniform((3,)))
            gc.collect()
            continue
        if how == "fail":
            x = K.placeholder((2,))
            with pytest.raises(KernelKError):
                K.function([x], [x + nodes[i] for i in chosen])([np.zeros(3)])
            continue
        if how == "look":
            session = current()
            with untouched(session, []):
                got = K.function([], outputs)([])
        elif how == "kept":
            session = current()
            places = session.state.seeds.places()
            K.function([], outputs)([])
            session.state.seeds.rewind(places)
            got = wanted
        else:
            got = K.function([], outputs, [K.update(w, outputs[0])] if how == "update" else [])([])
            if how == "update":
                assert same_bits(K.get_value(w), wanted[0])
            for i in chosen:
                counts[i] += 1
        assert all(same_bits(a, b) for a, b in zip(got, wanted))
    assert [node.count.value for node in nodes] == counts


def test_what_a_worker_draws_before_a_call_is_what_that_call_draws(spare: str) -> None:
    """Calls of several functions in any order, some of them looks, and seeds set in between."""
    kernelk.set_backend(spare)
    K.set_random_seed(5)
    x = K.placeholder((None, 2))
    nodes: list[Any] = [K.random_uniform((3,)), K.random_normal((2, 2), seed=4), K.random_uniform(K.shape(x))]
    calls = [K.function([x], [nodes[i] for i in chosen]) for chosen in ([0], [1, 0], [2], [0, 2])]
    chosen_nodes = [[0], [1, 0], [2], [0, 2]]
    choices = np.random.RandomState(0)
    for at in range(200):
        number, rows, how = choices.randint(4), choices.randint(1, 3), choices.randint(8)
        # Most calls are like the one before.
        number = number if how < 4 else 1
        wanted = [nth(nodes[i], nodes[i].count.value) for i in chosen_nodes[number] if i != 2]
        fed = [np.zeros((rows, 2))]
        if how == 0:
            with untouched(current(), []):
                got = calls[number](fed)
        else:
            got = calls[number](fed)
        assert all(same_bits(a, b) for a, b in zip(got, wanted))
        if 2 in chosen_nodes[number]:
            node, before = nodes[2], nodes[2].count.value - (how != 0)
            assert same_bits(got[-1], draw("uniform", "float32", (rows, 2), node.seed(), before))
        if at == 100:
            K.set_random_seed(6)


def test_the_next_draws_are_made_once_and_only_if_they_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Executor(NumpyBackend({}))
    made: list[list[int]] = []
    real = executor.backend.draw

    def noted(kind: str, dtype: str, shape: list[int], seed: int, counter: int) -> Any:
        made.append([shape[0], counter])
        return real(kind, dtype, shape, seed, counter)

    monkeypatch.setattr(executor.backend, "draw", noted)
    monkeypatch.setattr(executor, "array", lambda reference: np.empty(reference[3], reference[2]))
    for key, length in (("small", 4), ("large", 1 << 18 | 1)):
        kind = ["float32", [length]]
        encoded = {"inputs": [], "slots": [], "draws": [kind], "constants": [], "outputs": [1], "updates": []}
        encoded["instructions"] = [["negative", [0], {}, *kind]]
        executor.do_compile({"key": key, "program": encoded, "constants": []})

    def run(key: str, length: int, count: int, counts: Callable[[int], Any] = lambda count: [count]) -> Any:
        draws = [["uniform", "float32", [length], 7]]
        definition = {"key": key, "feeds": [], "outputs": [], "slots": [], "draws": draws, "into": []}
        definition["outputs"] = [[0, 0, "float32", [length]]]
        message = {"do": "run", "plan": key, "define": None if key in executor.plans else definition, "load": []}
        reply = executor.handle({**message, "sides": [], "counts": counts(count), "feeds": [], "results": "arrays"})
        executor.draw_ahead()
        assert same_bits(reply["results"][0], -draw("uniform", "float32", (length,), 7, count))

    run("small", 4, 0)
    # As a plan that is known comes over the wire.
    run("small", 4, 1, lambda count: (count,))
    run("small", 4, 1)
    assert made == [[4, 0], [4, 1], [4, 2], [4, 1], [4, 2]]
    executor.handle({"do": "release", "plans": ["small"], "variables": [], "programs": [], "segments": [], "timed": []})
    assert executor.ahead is None
    made.clear()
    run("large", 1 << 18 | 1, 0)
    run("large", 1 << 18 | 1, 1)
    assert [count for _, count in made] == [0, 1]


def test_lengths_that_depend_on_draws_have_those_of_their_call(backend: str) -> None:
    """However they are needed, in one call and one measurement a draw has one value, and is used up once."""
    K.set_random_seed(3)
    x: Any = K.random_uniform((10,))
    n = K.sum(K.cast(x > 0.5, "int32"))
    y = K.placeholder((None,))
    f, lone = K.function([], [n, K.arange(n), x]), K.function([], [K.arange(n)])
    failing = K.function([y], [K.arange(n), y + K.ones((4,)) + x[:4]])
    for i in (0, 2, 4):
        count, counted, drawn = f([])
        assert same_bits(drawn, nth(x, i))
        assert len(counted) == count == (drawn > 0.5).sum()
        assert len(lone([])[0]) == (nth(x, i + 1) > 0.5).sum()
        assert x.count.value == i + 2
    with pytest.raises(KernelKError):
        failing([np.ones(3)])
    assert x.count.value == 6
    kernelk.time(lone, budget=0.05)
    assert x.count.value == 7
    assert len(K.eval(K.arange(n))) == (nth(x, 7) > 0.5).sum()
    assert x.count.value == 8


@pytest.mark.parametrize("wrong", [-1, np.int64(-3), "x", 1.5, None])
def test_seeds_that_are_none(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match=r"set_random_seed: seed .* isn't allowed"):
        K.set_random_seed(wrong)
    if wrong in ("x", 1.5):
        with pytest.raises(ArgumentError, match=r"random numbers: seed .* isn't allowed"):
            K.random_uniform((2,), seed=wrong)


def test_what_a_file_has_goes_on_by_number(tmp_path: Path) -> None:
    """In a new session, the same cells' draws go on where they were, also those that are made after the loading."""

    def cells() -> list[Any]:
        return [K.random_uniform((2,)), K.random_uniform((2,), seed=5), K.random_normal((2,))]

    K.set_random_seed(1)
    first = cells()
    for n, node in enumerate(first):
        for _ in range(n + 1):
            K.eval(node)
    late = K.random_uniform((2,))
    K.eval(late)
    kernelk.save(tmp_path / "x")
    wanted = [K.eval(node) for node in [*first, late]]
    K.clear_session()
    current_state().seeds.restart(None)
    again = cells()
    K.eval(again[0])
    kernelk.load(tmp_path / "x.npz")
    got = [K.eval(node) for node in again]
    assert all(same_bits(a, b) for a, b in zip(got, wanted))
    # A second file of this session still has what the first one said of draws that weren't made here.
    kernelk.save(tmp_path / "y")
    assert current_state().seeds.state()["counts"] == {"0": 2, "1": 3, "2": 4, "3": 1}


def test_a_file_of_the_first_format_goes_on_as_it_would_have(tmp_path: Path) -> None:
    """All draws shared one counter then."""
    node = K.random_uniform((2,))
    seeds = current_state().seeds
    state = {"entropy": seeds.stream.entropy, "count": 1, "fixed": 0, "counter": 9, "counts": {}, "taken": {}}
    current().restore([], state)
    assert same_bits(K.eval(node), nth(node, 9))
    assert same_bits(K.eval(node), nth(node, 10))
    later = K.random_uniform((2,))
    assert same_bits(K.eval(later), nth(later, 9))


def test_counts_of_draws_that_are_gone_are_forgotten() -> None:
    before = len(current_state().seeds.counts)
    for _ in range(20):
        K.eval(K.random_uniform((2,)))
    gc.collect()
    K.clear_session()
    gc.collect()
    assert len(current_state().seeds.counts) <= before
