"""K.function and K.eval: what is fed, what comes back, and what is refused before any engine is asked."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from helpers.arrays import FLOATS, INTEGERS, assert_close

from kernelk import backend as K
from kernelk.errors import ArgumentError, DTypeError, FeedError, KernelKError, ShapeError, StaleTensorError
from kernelk.session.current import current


def test_a_list_comes_back_for_a_list_and_an_array_for_a_tensor(backend: str) -> None:
    x = K.placeholder((None, 2))
    total = K.sum(x, axis=1)
    data = np.arange(6).reshape(3, 2)
    listed = K.function([x], [total, x])([data])
    assert isinstance(listed, list)
    assert [type(value) for value in listed] == [np.ndarray, np.ndarray]
    single = K.function([x], total)([data])
    assert isinstance(single, np.ndarray)
    assert single.tolist() == listed[0].tolist() == [1.0, 5.0, 9.0]
    nothing = K.function([x], [])([data])
    assert nothing == []
    assert K.function((x,), (total,))((data,))[0].tolist() == [1.0, 5.0, 9.0]


def test_results_belong_to_the_caller(backend: str) -> None:
    x = K.placeholder((3,))
    call = K.function([x], [x, x + 1.0, K.constant([1.0, 2.0, 3.0])])
    first = call([np.zeros(3)])
    kept = [value.copy() for value in first]
    second = call([np.ones(3)])
    for a, b in itertools.pairwise([*first, *second]):
        assert not np.shares_memory(a, b)
    for value, before in zip(first, kept):
        assert value.tolist() == before.tolist()
        value[...] = -5
    assert call([np.zeros(3)])[2].tolist() == [1.0, 2.0, 3.0]


def test_the_fed_array_is_not_changed(backend: str) -> None:
    x = K.placeholder((3,))
    data = np.array([1.0, 2.0, 3.0], "float32")
    v = K.variable(np.zeros(3))
    K.function([x], [x * 2.0], [K.update(v, x), K.update_add(v, x)])([data])
    assert data.tolist() == [1.0, 2.0, 3.0]


def test_one_function_for_many_batch_sizes(backend: str) -> None:
    x = K.placeholder((None, 3))
    w = K.variable(np.arange(12).reshape(3, 4))
    call = K.function([x], [K.dot(x, w), K.sum(x), K.max(x, axis=1), K.shape(x)])
    for size in (5, 1, 2, 5, 1, 0, 7):
        data = np.random.RandomState(size).rand(size, 3).astype("float32")
        product, total, largest, shape = call([data])
        assert_close(product, data @ np.arange(12, dtype="float32").reshape(3, 4), label=size)
        assert_close(total, data.sum(dtype="float32"), label=size)
        assert_close(largest, data.max(1))
        assert shape.tolist() == [size, 3]


def test_lists_and_numbers_are_fed(backend: str) -> None:
    x, s, n = K.placeholder((2, 2)), K.placeholder(()), K.placeholder((None,), dtype="int32")
    call = K.function([x, s, n], [x * s, n + 1])
    product, next_ = call([[[1, 2], [3, 4]], 2, (5, 6)])
    assert product.tolist() == [[2.0, 4.0], [6.0, 8.0]]
    assert product.dtype == "float32"
    assert next_.tolist() == [6, 7]
    assert next_.dtype == "int32"
    assert call([np.eye(2, dtype=bool), np.float64(0.5), np.array([], "int64")])[0].tolist() == [[0.5, 0], [0, 0.5]]


def test_memory_order_and_strides_do_not_matter(backend: str) -> None:
    x = K.placeholder((None, 3))
    call = K.function([x], [x, K.transpose(x)])
    whole = np.arange(24, dtype="float32").reshape(4, 6)
    for data in (np.asfortranarray(whole[:, :3]), whole[:, ::2], whole[::-1, 3:], whole[::2, 2::-1], whole.T[:3].T):
        same, turned = call([data])
        assert same.tolist() == data.tolist()
        assert turned.tolist() == data.T.tolist()
    big_endian = whole[:, :3].astype(">f4")
    assert call([big_endian])[0].tolist() == big_endian.tolist()
    locked = whole[:, :3].copy()
    locked.setflags(write=False)
    assert call([locked])[0].tolist() == locked.tolist()


@pytest.mark.parametrize("dtype", FLOATS)
def test_any_float_feeds_any_float(dtype: str) -> None:
    x = K.placeholder((3,), dtype=dtype)
    call = K.function([x], [x])
    for source in FLOATS:
        value = np.array([0.5, -2.0, 3.0], source)
        got = call([value])[0]
        assert got.dtype == dtype
        assert got.tolist() == value.tolist()
    assert np.isinf(call([np.array([1e300, -1e300, np.nan])])[0][0]) == (dtype != "float64")


@pytest.mark.parametrize("dtype", INTEGERS)
def test_integers_are_fed_where_they_fit(dtype: str) -> None:
    x = K.placeholder((2,), dtype=dtype)
    call = K.function([x], [x])
    limits = np.iinfo(dtype)
    for source in INTEGERS:
        both = np.iinfo(source)
        fitting = [max(limits.min, both.min), min(limits.max, both.max)]
        assert call([np.array(fitting, source)])[0].tolist() == fitting
    assert call([np.array([1.0, 0.0])])[0].tolist() == [1, 0]
    for wrong in ([0.5, 1.0], [np.nan, 1.0], [np.inf, 0.0]):
        with pytest.raises(DTypeError, match=f"is {dtype}, but the fed float64 values don't fit"):
            call([np.array(wrong)])
    if dtype not in ("int64", "uint64"):
        with pytest.raises(DTypeError, match="don't fit"):
            call([np.array([limits.max + 1, 0])])
    if dtype.startswith("u"):
        with pytest.raises(DTypeError, match="don't fit"):
            call([np.array([-1, 0])])


def test_wrong_numbers_of_inputs() -> None:
    x, y = K.placeholder((2,), name="x"), K.placeholder((2,), name="y")
    call = K.function([x, y], [x + y], name="adder")
    for given in ([], [[1, 2]], [[1, 2]] * 3):
        were = "was" if len(given) == 1 else "were"
        said = rf"^adder takes 2 inputs \('x', 'y'\), but {len(given)} {were} given; next: .* f\(\[x, y\]\)$"
        with pytest.raises(FeedError, match=said):
            call(given)
    with pytest.raises(FeedError, match=r"takes 0 inputs \(none\), but 1 was given"):
        K.function([], [K.constant(1.0)])([np.ones(2)])
    with pytest.raises(FeedError, match=r"takes 1 input \('x'\), but 0 were given"):
        K.function([x], [x])([])


def test_an_array_given_without_a_list_is_one_input() -> None:
    x = K.placeholder((2, 2))
    call = K.function([x], [x])
    assert call(np.eye(2))[0].tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
    ("shape", "wrong"),
    [((None, 3), (3,)), ((None, 3), (2, 4)), ((2, 3), (3, 3)), ((), (1,)), ((1,), ()), ((None,), (1, 1)), ((0,), (1,))],
)
def test_wrong_shapes(shape: tuple[int, ...], wrong: tuple[int, ...]) -> None:
    x = K.placeholder(shape, name="x")
    call = K.function([x], [x])
    with pytest.raises(FeedError) as caught:
        call([np.zeros(wrong)])
    text = str(caught.value)
    assert text.startswith("placeholder 'x' (test_functions.py, line ")
    assert f"has shape {shape}, but was fed {wrong}" in text
    assert "\n" not in text


def test_what_is_no_array_of_numbers() -> None:
    x = K.placeholder((2,), name="x")
    call = K.function([x], [x])
    for wrong in (["a", "b"], [None, 1.0], np.array([1j, 2j]), np.array(["2020-01-01"] * 2, "datetime64[D]")):
        with pytest.raises(FeedError, match="placeholder 'x' takes numbers"):
            call([wrong])
    with pytest.raises((FeedError, ValueError)):
        call([[[1.0], [1.0, 2.0]]])
    with pytest.raises(FeedError, match=r"fed a list that holds a tensor; next: feed K\.get_value") as caught:
        call([[K.variable(1.0), K.variable(1.0)]])
    assert "next: " not in caught.value.problem


def test_a_tensor_is_fed_as_its_value() -> None:
    x = K.placeholder((2,), name="x")
    call = K.function([x], [x * 2.0])
    w = K.variable([1.0, 2.0])
    for fed in (w, K.constant([1.0, 2.0]), w + 0.0, K.constant([1, 2], dtype="int32")):
        np.testing.assert_array_equal(call([fed])[0], [2.0, 4.0])
    K.set_value(w, [3.0, 4.0])
    np.testing.assert_array_equal(call([w])[0], [6.0, 8.0])
    with pytest.raises(FeedError, match=r"has shape \(2,\), but was fed \(3,\)"):
        call([K.zeros((3,))])
    with pytest.raises(FeedError, match=r"placeholder 'y' .* is needed but not fed"):
        call([K.placeholder((2,), name="y") + 1.0])


def test_a_ragged_list_is_refused_in_kernelks_words() -> None:
    call = K.function([x := K.placeholder((2, None), name="x")], [x])
    with pytest.raises(FeedError, match="'x'"):
        call([[[1.0], [1.0, 2.0]]])


def test_an_index_that_is_out_of_range_at_the_call_is_told_as_an_index() -> None:
    x = K.placeholder((None, 3), name="x")
    for row, words in ((x[10], r"index 10 .* axis 0 of length 2"), (x[:, 1][-3], r"index -3 .* axis 0 of length 2")):
        with pytest.raises(ShapeError, match=words) as caught:
            K.function([x], [row])([np.ones((2, 3))])
        assert "reshape" not in caught.value.problem


def test_what_is_no_list_is_refused_where_a_function_is_made() -> None:
    x = K.placeholder((3,), name="x")
    for inputs, outputs, updates, words in (
        (x, [x], None, "the inputs are a list of placeholders, not a tensor"),
        (None, [x], None, "the inputs are a list of placeholders, not NoneType"),
        ([x], None, None, "the outputs are a tensor or a list of tensors, not NoneType"),
        ([x], [x], 3, "the updates are a list, not int"),
        ([x], [x], K.update(K.variable(1.0), 2.0), "the updates are a list, not a tensor"),
    ):
        with pytest.raises(ArgumentError, match=words) as caught:
            K.function(inputs, outputs, updates)
        assert caught.value.next_step.startswith("K.function([x], [y]")


def test_inputs_must_be_placeholders() -> None:
    v = K.variable(1.0)
    with pytest.raises(ArgumentError, match="inputs must be placeholders"):
        K.function([v], [v])
    x = K.placeholder(())
    with pytest.raises(ArgumentError, match="appears twice in the inputs"):
        K.function([x, x], [x])


def test_tensorflow_sessions_arguments_are_refused() -> None:
    with pytest.raises(ArgumentError, match="feed_dict, run_metadata"):
        K.function([], [K.constant(1.0)], run_metadata=None, feed_dict={})


def test_a_missing_placeholder_is_named() -> None:
    x, y = K.placeholder((2,)), K.placeholder((None, 2), name="labels")
    with pytest.raises(FeedError, match=r"'labels' \(None, 2\) \(test_functions\.py, line \d+.*\) is needed"):
        K.function([x], [x + K.sum(y)])([[1, 2]])
    with pytest.raises(FeedError, match="'labels'"):
        K.eval(K.sum(y))
    assert K.sum(y).eval({y: [[1.0, 2.0]]}) == 3.0


def test_an_input_that_nothing_needs_is_still_checked(backend: str) -> None:
    x, unused = K.placeholder((2,)), K.placeholder((3,))
    call = K.function([x, unused], [x * 2.0])
    assert call([[1, 2], [1, 2, 3]])[0].tolist() == [2.0, 4.0]
    with pytest.raises(FeedError):
        call([[1, 2], [1, 2]])


def test_the_learning_phase_is_fed_or_zero(backend: str) -> None:
    x = K.placeholder((2,))
    y = K.in_train_phase(x * 10.0, x)
    phase = K.learning_phase()
    call = K.function([x, phase], [y, K.in_test_phase(x * 10.0, x)])
    for train in (0, 1, 1, 0, True, np.array([1]), 0.0):
        first, second = call([[1, 2], train])
        assert first.tolist() == ([10.0, 20.0] if train else [1.0, 2.0])
        assert second.tolist() == ([1.0, 2.0] if train else [10.0, 20.0])
    assert K.function([x], [y])([[1, 2]])[0].tolist() == [1.0, 2.0]
    assert y.eval({x: [1, 2], phase: 1}).tolist() == [10.0, 20.0]
    for wrong in (2, -1, 0.5, [0, 1], "train"):
        with pytest.raises(FeedError, match=r"the learning phase can't be .*: it is 0 \(test\) or 1"):
            call([[1, 2], wrong])


def test_keras_learns_which_tensors_need_the_learning_phase() -> None:
    x = K.placeholder((2,))
    phased, y = K.in_train_phase(x * 2.0, x), K.placeholder((4, 3))
    unphased = [x, K.variable([1.0]), x + 1.0, K.in_train_phase(x * 1.0, 0.0, training=1), K.dropout(x, 0.5)]
    recurrent = [
        K.rnn(lambda e, s, drop=drop: (h := s[0] + drop(e), [h]), K.reshape(y, (1, 4, 3)), [K.zeros((1, 3))])[0]
        for drop in (lambda e: K.in_train_phase(K.dropout(e, 0.5), e), lambda e: e)
    ]
    phased_too = [K.in_test_phase(x * 2.0, x), K.sum(phased) + 1.0, K.gradients(K.sum(phased), x)[0], recurrent[0]]
    assert [getattr(tensor, "_uses_learning_phase", False) for tensor in (phased, *phased_too)] == [True] * 5
    # Keras asks for its presence as well.
    assert [tensor._uses_learning_phase for tensor in unphased[:2]] == [False, False]
    assert not any(hasattr(tensor, "_uses_learning_phase") for tensor in (*unphased[2:], recurrent[1]))
    assert not any(hasattr(tensor, "_keras_shape") for tensor in (*unphased[2:], phased))
    unphased[0]._uses_learning_phase = True
    assert unphased[0]._uses_learning_phase
    K.set_learning_phase(1)
    assert not hasattr(K.in_train_phase(x * 2.0, x), "_uses_learning_phase")


def test_a_long_chain_is_asked_about_the_phase_without_recursion() -> None:
    x = K.placeholder((2,))
    y = x
    for _ in range(5000):
        y = y + 1.0
    assert not hasattr(y, "_uses_learning_phase")
    assert (y + K.in_train_phase(x, y))._uses_learning_phase


def test_a_list_among_the_outputs_is_refused() -> None:
    w = K.variable([1.0, 2.0])
    with pytest.raises(
        ArgumentError, match=r"one of the outputs is a list of tensors; each is a tensor; next: K\.function"
    ):
        K.function([], [K.sum(w), K.gradients(K.sum(w), w)])


def test_a_fixed_learning_phase(backend: str) -> None:
    x = K.variable([1.0, 2.0])
    K.set_learning_phase(1)
    assert K.learning_phase() == 1
    assert K.eval(K.in_train_phase(x * 10.0, x)).tolist() == [10.0, 20.0]
    K.set_learning_phase(0)
    assert K.eval(K.in_train_phase(lambda: x * 10.0, lambda: x)).tolist() == [1.0, 2.0]
    with pytest.raises(ArgumentError, match=r"isn't allowed; the learning phase is 0 \(test\) or 1"):
        K.set_learning_phase(2)


def test_the_learning_phase_can_be_computed_with(backend: str) -> None:
    phase = K.learning_phase()
    y = K.cast(phase, "float32") * 3.0 + 1.0
    assert K.function([phase], [y])([1])[0] == 4.0
    assert K.function([phase], [y])([0])[0] == 1.0
    assert K.eval(y) == 1.0


def test_an_explicit_training_flag(backend: str) -> None:
    flag = K.placeholder((), dtype="bool")
    y = K.in_train_phase(K.constant([1.0, 2.0]), 0.0, training=flag)
    assert y.eval({flag: True}).tolist() == [1.0, 2.0]
    assert y.eval({flag: False}).tolist() == [0.0, 0.0]


def test_the_dead_branch_is_not_computed() -> None:
    x = K.placeholder((2,))
    called = []

    def train() -> object:
        called.append(1)
        return K.reshape(x, (1, 2))

    y = K.in_train_phase(train, lambda: K.reshape(x, (2, 1)))
    assert called == [1]
    assert y.eval({x: [1, 2]}).shape == (2, 1)
    assert y.eval({x: [1, 2], K.learning_phase(): 1}).shape == (1, 2)


def test_eval_of_leaves(backend: str) -> None:
    assert K.eval(K.constant(3.0)) == 3.0
    assert K.eval(K.variable([1.0])).tolist() == [1.0]
    assert K.eval(K.constant([[1, 2]], dtype="int64")).tolist() == [[1, 2]]
    x = K.placeholder((2,))
    assert x.eval({x: [1, 2]}).tolist() == [1.0, 2.0]
    assert K.get_value(K.constant(2.0) + 1.0) == 3.0


def test_after_clear_session(backend: str) -> None:
    v, x = K.variable([1.0], name="old"), K.placeholder((1,))
    y = v + x
    call = K.function([x], [y], [K.update_add(v, 1.0)])
    call([[1.0]])
    K.clear_session()
    for use in (
        lambda: call([[1.0]]),
        lambda: K.get_value(v),
        lambda: K.set_value(v, [2.0]),
        lambda: K.eval(y, {x: [1.0]}),
        lambda: v + 1.0,
        lambda: K.update_add(v, 1.0),
        lambda: K.function([x], [y]),
        lambda: K.gradients(y, [v]),
    ):
        with pytest.raises(StaleTensorError, match=r"session that K\.clear_session\(\) ended"):
            use()
    fresh = K.variable([5.0])
    assert K.eval(fresh * 2.0).tolist() == [10.0]


def test_clear_session_frees_everything(backend: str) -> None:
    session = current()
    kept = [K.variable(np.ones(1000)) for _ in range(10)]
    K.function([], [sum(kept, K.constant(0.0))], [K.update_add(kept[0], 1.0)])([])
    host = session.host()
    assert host.compiled
    K.clear_session()
    assert not host.compiled
    assert not session.live_variables()
    assert sum(s.size for n, s in session.storage.segments.items() if n != session.calls.transfer.segment) == 0
    assert len(kept) == 10


def test_shapes_that_values_decide(backend: str) -> None:
    n = K.placeholder((2,), dtype="int32")
    x = K.placeholder((None,))
    y = K.reshape(x, n) * 2.0
    call = K.function([x, n], [y, K.shape(y)])
    for shape in ((2, 3), (3, 2), (6, 1), (2, 3)):
        value, seen = call([np.arange(6), shape])
        assert value.tolist() == (np.arange(6).reshape(shape) * 2.0).tolist()
        assert tuple(seen) == shape
    rows = K.placeholder((), dtype="int32")
    made = K.zeros((rows, 2)) + 1.0
    with pytest.raises(ShapeError, match=r"negative length.*test_functions\.py, line"):
        made.eval({rows: -1})
    assert made.eval({rows: 3}).tolist() == [[1, 1]] * 3
    assert made.eval({rows: 1}).tolist() == [[1, 1]]


def test_constants_of_the_same_bytes_are_told_apart(backend: str) -> None:
    x = K.placeholder((2,))
    values = [0.5, [0.5], [[0.5]], np.float64(0.5).view("int64").reshape(1, 1)]
    for value in values:
        constant = K.constant(value, dtype=np.asarray(value).dtype if np.ndim(value) == 2 else None)
        got = K.function([x], [x * 2.0, constant])([[1.0, 2.0]])
        assert got[0].tolist() == [2.0, 4.0]
        assert got[1].dtype.name == constant.dtype
        assert got[1].tolist() == np.asarray(value).tolist()


def test_tiled_as_often_as_the_graph_says(backend: str) -> None:
    x, row, n = K.placeholder((None, 3)), K.constant([[1.0], [2.0]]), K.placeholder((), dtype="int32")
    stacked = K.cast(K.stack([1, K.size(x)]), "int64")
    tiles = [K.tile(row, stacked), K.tile(x, n), K.tile(x, [n, 2]), K.tile(x[:, 0], n)]
    assert [K.int_shape(tile) for tile in tiles] == [(2, None), (None, None), (None, 6), (None,)]
    assert K.int_shape(K.reshape(x, K.stack([K.shape(x)[0], 3, 1]))) == (None, 3, 1)
    call = K.function([x, n], tiles)
    for size, times in ((2, 2), (1, 3), (2, 0)):
        data = np.arange(size * 3, dtype="float32").reshape(size, 3)
        wanted = [np.tile([[1.0], [2.0]], (1, size * 3))]
        wanted += [np.tile(data, times), np.tile(data, (times, 2)), np.tile(data[:, 0], times)]
        for got, expected in zip(call([data, times]), wanted):
            assert_close(got, expected.astype("float32"))
    with pytest.raises(ShapeError):
        call([data, -1])


def test_a_length_costs_nothing_but_shapes() -> None:
    x = K.placeholder((None, 2))
    y = K.reshape(K.exp(x), (K.size(K.exp(x)) * 1,))
    session = current()
    runs = []
    execute = session.calls.execute
    try:
        session.calls.execute = lambda *given: runs.append(given) or execute(*given)  # type: ignore[method-assign]
        assert K.function([x], [y])([np.zeros((3, 2))])[0].tolist() == [1.0] * 6
    finally:
        del session.calls.execute  # type: ignore[method-assign]
    assert len(runs) == 1


def test_an_index_that_a_call_knows(backend: str) -> None:
    x, i = K.placeholder((None, 3, 2)), K.placeholder((), dtype="int32")
    small = K.cast(i, "uint8")
    parts = [x[i], x[:, i], x[1:, ..., i], x[i, 0, None, small], x[small]]
    assert [K.int_shape(part) for part in parts] == [(3, 2), (None, 2), (None, 3), (1,), (3, 2)]
    (slope,) = K.gradients(K.sum(x[:, i] * 2.0), x)
    call = K.function([x, i], [*parts, slope])
    data = np.arange(12, dtype="float32").reshape(2, 3, 2)
    for at in (0, 1):
        got = call([data, at])
        wanted = [data[at], data[:, at], data[1:, ..., at], data[at, 0, None, at], data[at]]
        for value, expected in zip(got, wanted):
            assert_close(value, expected)
        expected = np.zeros_like(data)
        expected[:, at] = 2
        assert_close(got[-1], expected)
    last = K.function([x, i], [x[i], x[:, i]])([data, -1])
    assert [part.tolist() for part in last] == [data[-1].tolist(), data[:, -1].tolist()]
    assert np.isnan(K.function([x, i], [x[i]])([data, 2])[0]).all()
    with pytest.raises(
        ArgumentError, match=r"can't be indexed by a tensor of float32: .*next: K\.cast\(index, 'int32'\)"
    ):
        x[K.constant(0.0)]


def test_a_shape_taken_from_another_tensor(backend: str) -> None:
    x = K.placeholder((None, 3))
    zeros = K.zeros(K.shape(x)) + 1.0
    rows = K.ones((K.shape(x)[0], 2))
    flat = K.reshape(x, (K.shape(x)[0] * 3,))
    call = K.function([x], [zeros, rows, flat])
    for size in (2, 1, 5):
        data = np.arange(size * 3).reshape(size, 3)
        got = call([data])
        assert got[0].tolist() == np.ones((size, 3)).tolist()
        assert got[1].tolist() == np.ones((size, 2)).tolist()
        assert got[2].tolist() == data.reshape(-1).tolist()


def test_a_wrong_value_for_a_shape_is_one_clear_error() -> None:
    x, n = K.placeholder((None,)), K.placeholder((2,), dtype="int32")
    call = K.function([x, n], [K.reshape(x, n)])
    with pytest.raises(ShapeError, match=r"test_functions\.py, line \d+"):
        call([np.arange(6), (4, 2)])
    assert call([np.arange(6), (2, 3)])[0].shape == (2, 3)


def test_broadcasting_that_fails_at_the_call_names_the_line(backend: str) -> None:
    x, y = K.placeholder((None,)), K.placeholder((None,))
    call = K.function([x, y], [x + y])
    with pytest.raises(ShapeError, match=r"\(2,\) and \(3,\) don't broadcast.*test_functions\.py, line \d+: .*x \+ y"):
        call([[1, 2], [1, 2, 3]])
    assert call([[1, 2], [1]])[0].tolist() == [2.0, 3.0]
    assert call([[1, 2], [1, 5]])[0].tolist() == [2.0, 7.0]


def test_calls_from_several_threads(backend: str) -> None:
    import threading

    v = K.variable(0.0)
    x = K.placeholder(())
    call = K.function([x], [x * 2.0], [K.update_add(v, x)])
    call([0.0])
    wrong = []

    def work(number: int) -> None:
        for _ in range(20):
            if call([float(number)])[0] != 2.0 * number:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert K.get_value(v) == 20.0 * (1 + 2 + 3 + 4)


@pytest.mark.parametrize("wrong", [[[1.0], [1.0, 2.0]], ["a"], None, object(), {"a": 1}])
def test_what_is_no_tensor_is_refused_in_kernelks_words(wrong: object) -> None:
    v = K.variable([1.0])
    for use in (
        lambda: K.constant(wrong),
        lambda: K.variable(wrong),
        lambda: K.abs(wrong),
        lambda: v + wrong,
        lambda: K.set_value(v, wrong),
        lambda: K.dot(v, wrong),
    ):
        with pytest.raises(KernelKError):
            use()
    assert K.get_value(v).tolist() == [1.0]
