"""`x[...]` and `K.slice` against numpy: slices, indices and masks, also such as only a call knows, and their slopes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers.arrays import assert_close, same_bits
from hypothesis import given, settings
from hypothesis import strategies as st

import kernelk
from kernelk import backend as K
from kernelk.errors import ArgumentError, ShapeError

DATA = np.arange(60, dtype="float32").reshape(4, 5, 3)
DATA[0, 0, 0] = -0.0
DATA[1, 1, 1] = np.nan


def slopes(x: Any, y: Any, feeds: dict[Any, Any]) -> np.ndarray:
    """How often each element of `x` is in `y`."""
    (slope,) = K.gradients(K.sum(y * 1.0), x)
    return slope.eval(feeds)


def test_bounds_that_a_call_knows(backend: str) -> None:
    x, t = K.placeholder((None, 5, 3)), K.placeholder((), dtype="int32")
    parts = [x[:, t : t + 2], x[t:], x[:-t], x[-t:, ::-1, 1], x[0, t : K.shape(x)[1]], x[..., : t - 1]]
    call = K.function([x, t], [*parts, *K.gradients(K.sum(parts[0]), x), *K.gradients(K.sum(parts[3]), x)])
    for n in (1, 2, 3):
        *found, first, second = call([DATA, n])
        wanted = [DATA[:, n : n + 2], DATA[n:], DATA[:-n], DATA[-n:, ::-1, 1], DATA[0, n:5], DATA[..., : n - 1]]
        for value, expected in zip(found, wanted):
            assert same_bits(value, np.ascontiguousarray(expected))
        counted = np.zeros_like(DATA)
        counted[:, n : n + 2] = 1
        assert_close(first, counted)
        counted = np.zeros_like(DATA)
        counted[-n:, ::-1, 1] = 1
        assert_close(second, counted)


def test_bounds_that_follow_from_shapes_are_known_before(backend: str) -> None:
    positions = K.variable(np.arange(12).reshape(6, 2))
    fixed, free = K.placeholder((7, 4)), K.placeholder((7, None))
    assert K.int_shape(positions[: K.shape(fixed)[1]]) == (4, 2)
    for length in (2, 5):
        value = positions[: K.shape(free)[1]].eval({free: np.zeros((7, length))})
        assert value.shape == (length, 2)


def test_blocks_that_a_call_knows(backend: str) -> None:
    x, t, n = K.placeholder((None, 5, 3)), K.placeholder((), dtype="int32"), K.placeholder((3,), dtype="int64")
    block = K.slice(x, [0, t, 1], [-1, 2, 1])
    assert K.int_shape(block) == (None, 2, 1)
    assert same_bits(block.eval({x: DATA, t: 3}), np.ascontiguousarray(DATA[:, 3:5, 1:2]))
    assert_close(slopes(x, block, {x: DATA, t: 3})[:, 3:, 1], np.ones((4, 2), "float32"))
    sized = K.slice(x, K.constant([1, 0, 0], dtype="int32"), n)
    assert same_bits(sized.eval({x: DATA, n: [2, -1, 3]}), np.ascontiguousarray(DATA[1:3]))
    stacked = K.slice(x, K.stack([t, 0, 0]), K.concatenate([K.shape(x)[:1] - t, [1, 1]]))
    assert same_bits(stacked.eval({x: DATA, t: 2}), np.ascontiguousarray(DATA[2:, :1, :1]))
    for wrong in (4, 7, -1):
        with pytest.raises(ShapeError, match=r"slice: a block of shape \(4, 2, 1\) was asked for, and \(4, ., 1\)"):
            block.eval({x: DATA, t: wrong})
    with pytest.raises(ShapeError, match="slice: a block of shape"):
        sized.eval({x: DATA, n: [4, 1, 1]})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: K.slice(x, [0, 0], [1, 1]), "each needs one entry for each axis"),
        (lambda x: K.slice(x, 0, [1, 1, 1]), "slice: the start is 0"),
        (lambda x: K.slice(x, [0, 0, 0], K.constant([1.0, 1.0, 1.0])), r"next: K\.cast\(x, 'int32'\)"),
        (lambda x: K.slice(x, [0, K.constant([1]), 0], [1, 1, 1]), "can't be a start"),
        (lambda x: x[: K.constant(1.5)], r"a slice's bound is a tensor of dtype float32.*K\.cast\(bound, 'int32'\)"),
        (lambda x: x[:: K.constant(1, dtype="int32")], "a slice's step is a tensor: it must be a Python int"),
        (lambda x: x[["a"]], "an index is an array of"),
        (lambda x: x["a"], "a tensor can't be indexed by str"),
        (lambda x: x[True], "a tensor can't be indexed by bool"),
        (lambda x: x[[0, 1], [1, 2]], r"next: index twice, as in x\[:, 0\]\[rows\]"),
        (lambda x: x[0, [1, 2]], "an array beside another array or an index"),
        (lambda x: x[:, np.ones(5, bool)], r"a mask isn't the first index.*x\[mask\]"),
        (lambda x: x[np.ones(5, bool)], r"a mask of shape \(5,\) doesn't fit a tensor of shape \(4, 5, 3\)"),
        (lambda x: x[[0, 4]], "index 4"),
        (lambda x: x[:, [-6]], "index -6"),
    ],
)
def test_what_is_no_index(wrong: Any, message: str) -> None:
    with pytest.raises((ArgumentError, ShapeError), match=message):
        wrong(K.variable(DATA))


@pytest.mark.parametrize("unknown", [False, True])
def test_arrays_of_indices(backend: str, unknown: bool) -> None:
    x = K.placeholder((None, None, 3) if unknown else DATA.shape)
    keys: list[Any] = [
        [0, -1, 0],
        np.array([[1, 2], [3, -4]]),
        np.array([3, 0], "uint8"),
        (slice(None), [4, 0]),
        (slice(1, None, 2), np.array([[0], [-1]]), slice(None, None, -1)),
        (Ellipsis, [2, 2]),
        (None, Ellipsis, [0, 1], slice(None)),
        [],
    ]
    parts = [x[key] for key in keys]
    call = K.function([x], [*parts, *K.gradients(K.sum(parts[0]) + K.sum(parts[4]), x)])
    *found, slope = call([DATA])
    counted = np.zeros_like(DATA)
    np.add.at(counted, ([0, -1, 0],), 1)
    np.add.at(counted, keys[4], 1)
    for value, key in zip(found, keys):
        wanted = DATA[:0] if isinstance(key, list) and not key else DATA[key]
        assert same_bits(value, np.ascontiguousarray(wanted))
    assert_close(slope, counted)


def test_tensors_of_indices(backend: str) -> None:
    x, at = K.placeholder((None, 5, 3)), K.placeholder((None, 2), dtype="int32")
    index = np.array([[0, 3], [-1, 1], [2, 2]])
    feeds = {x: DATA, at: index}
    assert same_bits(x[at].eval(feeds), DATA[index])
    assert same_bits(x[:, at].eval(feeds), np.ascontiguousarray(DATA[:, index]))
    assert same_bits(x[K.constant([1, 0], dtype="int32")].eval({x: DATA}), DATA[[1, 0]])
    assert np.isnan(x[:, at].eval({x: DATA, at: [[5, 0]]})[:, 0, 0]).all()


def test_masks_that_do_not_fit_at_the_call(backend: str) -> None:
    x, m, pairs = K.placeholder((None,)), K.placeholder((None,), dtype="bool"), K.placeholder((None, 2), dtype="bool")
    y = K.placeholder((None, None))
    given = K.function([x, m], [x[m]])
    for mask in ([True, False, True, True], [True, False]):
        with pytest.raises(ShapeError, match=r"a mask of shape \(\d,\) doesn't fit a tensor of shape \(3,\)"):
            given([[1, 2, 3], mask])
    assert given([[1, 2, 3], [True, False, True]])[0].tolist() == [1, 3]
    with pytest.raises(ShapeError, match=r"shape \(3, 2\) doesn't fit a tensor of shape \(2, 3\)"):
        y[pairs].eval({y: [[0, 1, 2], [3, 4, 5]], pairs: [[1, 0], [0, 0], [0, 1]]})
    with pytest.raises(ShapeError, match=r"shape \(4,\) doesn't fit a tensor of shape \(3,\)"):
        x[np.array([True, False, True, True])].eval({x: [1, 2, 3]})


def test_small_indices_into_long_axes() -> None:
    kernelk.set_backend("numpy")
    x, at = K.variable(np.arange(300.0)), K.placeholder((None,), dtype="int8")
    assert x[at].eval({at: [-1, 100]}).tolist() == [299, 100]


def test_constant_blocks_and_sizes_below_minus_one() -> None:
    kernelk.set_backend("numpy")
    x, n = K.variable(np.arange(6.0)), K.placeholder((1,), dtype="int32")
    assert K.int_shape(K.slice(x, K.constant([2], dtype="int32"), K.constant([3], dtype="int32"))) == (3,)
    block = K.slice(x, [2], n)
    assert block.eval({n: [-1]}).tolist() == [2, 3, 4, 5]
    with pytest.raises(ShapeError, match="slice: a block of shape"):
        block.eval({n: [-3]})


def test_masks(backend: str) -> None:
    x, m = K.placeholder((None, 5, 3)), K.placeholder((None, 5), dtype="bool")
    mask = np.arange(20).reshape(4, 5) % 3 == 0
    parts = [x[m], x[m, 1:], x[x > 6.0], x[x[:, 0, 0] > 20.0], x[mask], x[mask[:, 0]]]
    call = K.function([x, m], [*parts, *K.gradients(K.sum(parts[0]) + 2.0 * K.sum(parts[2]), x)])
    *found, slope = call([DATA, mask])
    above = np.nan_to_num(DATA) > 6
    wanted = [DATA[mask], DATA[mask][:, 1:], DATA[above], DATA[DATA[:, 0, 0] > 20], DATA[mask], DATA[mask[:, 0]]]
    for value, expected in zip(found, wanted):
        assert same_bits(value, np.ascontiguousarray(expected))
    assert_close(slope, (mask[..., None] + 2.0 * above).astype("float32"))
    none, *_ = call([DATA, np.zeros_like(mask)])
    assert none.shape == (0, 3)
    # Of integers and truths, too.
    assert K.eval(K.variable([[1, 2], [3, 4]], dtype="int64")[np.array([[True, False], [False, True]])]).tolist() == [
        1,
        4,
    ]
    truths = K.variable([True, False, True], dtype="bool")
    assert K.eval(truths[truths]).tolist() == [True, True]


def key_of(draw: Any, length: int) -> Any:
    bound = st.none() | st.integers(-length - 2, length + 2)
    step = st.none() | st.integers(-3, 3).filter(bool)
    return draw(
        st.builds(slice, bound, bound, step)
        | st.integers(-length, length - 1)
        | st.none()
        | st.just(Ellipsis)
        | st.lists(st.integers(-length, length - 1), max_size=4).map(lambda x: np.array(x, int))
    )


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_any_key_is_as_in_numpy_or_refused(data: Any) -> None:
    kernelk.set_backend("numpy")
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    values = np.arange(np.prod(shape), dtype="float32").reshape(shape)
    known = data.draw(st.booleans())
    x = K.placeholder(shape if known else (None,) * len(shape))
    key = tuple(key_of(data.draw, min(shape)) for _ in range(data.draw(st.integers(0, len(shape) + 1))))
    try:
        wanted = values[key]
    except IndexError:
        with pytest.raises((ArgumentError, ShapeError)):
            x[key]
        return
    try:
        y = x[key]
    except ArgumentError:
        # Numpy broadcasts arrays and indices that stand beside each other.
        assert sum(isinstance(entry, (int, np.ndarray)) for entry in key) > 1
        return
    assert same_bits(y.eval({x: values}), np.ascontiguousarray(wanted).reshape(wanted.shape))
