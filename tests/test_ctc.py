"""The CTC functions against an enumeration of all paths, on every engine, with gradients."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from support import assert_close

import kernelk
from kernelk import backend as K
from kernelk.errors import ArgumentError, ShapeError
from kernelk.session import current

RANDOM = np.random.RandomState(5)
CLASSES = 4  # the last is the blank
BLANK = CLASSES - 1
RAW = np.exp(RANDOM.randn(5, 5, CLASSES) * 1.5)
SOFT = RAW / RAW.sum(-1, keepdims=True)
LABELS = np.array([[0, 1, 2], [1, 1, 0], [2, 9, 9], [0, 0, 0], [7, 7, 7]], "int32")
LABEL_LENGTHS = np.array([[3], [2], [1], [3], [0]], "int32")
INPUT_LENGTHS = np.array([[5], [4], [3], [4], [2]], "int32")


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    """The labels of a path: equal neighbours are one, blanks nothing."""
    return tuple(label for label, _ in itertools.groupby(path) if label != BLANK)


def probabilities(soft: Any, length: int) -> dict[tuple[int, ...], float]:
    """The probability of every label sequence, by way of all paths."""
    shifted = soft[:length] + 1e-7
    shifted = shifted / shifted.sum(-1, keepdims=True)
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(CLASSES), repeat=length):
        labels = collapsed(path)
        found[labels] = found.get(labels, 0.0) + float(np.prod([shifted[t, label] for t, label in enumerate(path)]))
    return found


def costs(soft: Any) -> Any:
    """The losses of all samples, of shape (samples, 1)."""
    result = []
    for sample, length, labels, count in zip(soft, INPUT_LENGTHS[:, 0], LABELS, LABEL_LENGTHS[:, 0]):
        probability = probabilities(sample, length).get(tuple(int(x) for x in labels[:count]), 0.0)
        result.append(-np.log(probability) if probability else np.inf)
    return np.array(result)[:, None]


def test_the_loss_and_its_gradients(backend: str) -> None:
    """Repeated labels, none, too many for the time, and fewer times than there are; twice differentiated."""
    soft = K.placeholder((None, None, CLASSES), dtype="float64")
    labels, counts = K.placeholder((None, None), dtype="int32"), K.placeholder((None, 1), dtype="int32")
    times = K.placeholder((None, 1), dtype="int32")
    cost = K.ctc_batch_cost(labels, soft, times, counts)
    assert cost.shape == (None, 1)
    slope = K.gradients(K.sum(cost), soft)
    second = K.gradients(K.sum(K.sum(slope * slope, axis=(1, 2))), soft)
    call = K.function([labels, soft, times, counts], [cost, slope, second])
    feeds = [LABELS, SOFT, INPUT_LENGTHS, LABEL_LENGTHS]
    got, got_slope, got_second = call(feeds)
    wanted = costs(SOFT)
    assert np.isinf(wanted[3])
    assert np.isfinite(np.delete(wanted, 3)).all()
    np.testing.assert_allclose(got, wanted, rtol=1e-9)
    assert np.isfinite(got_slope).all()
    assert np.isfinite(got_second).all()
    assert not got_slope[3].any()
    possible = [0, 1, 2, 4]
    for place in [(0, 0, 0), (0, 2, 1), (0, 4, 3), (1, 1, 1), (1, 3, 3), (1, 4, 0), (2, 0, 2), (4, 0, 3), (4, 1, 0)]:
        ends = []
        for sign in (1, -1):
            moved = SOFT.copy()
            moved[place] += sign * 1e-5
            ends.append(costs(moved)[possible].sum())
        np.testing.assert_allclose(got_slope[place], (ends[0] - ends[1]) / 2e-5, rtol=1e-5, atol=1e-7)
    if backend == "numpy":
        first = K.function([labels, soft, times, counts], [K.sum(slope * slope)])
        for place in [(0, 0, 0), (1, 2, 1), (2, 1, 3)]:
            ends = []
            for sign in (1, -1):
                moved = SOFT.copy()
                moved[place] += sign * 1e-5
                ends.append(first([LABELS, moved, INPUT_LENGTHS, LABEL_LENGTHS])[0])
            np.testing.assert_allclose(got_second[place], (ends[0] - ends[1]) / 2e-5, rtol=1e-4, atol=1e-5)
    else:
        kernelk.set_backend("numpy")
        np.testing.assert_allclose(got_second, call(feeds)[2], rtol=1e-7, atol=1e-9)


def test_the_loss_as_keras_calls_it(backend: str) -> None:
    """Float labels and lengths, float32 outputs, fixed shapes; a label that is no class makes the loss NaN."""
    soft = K.variable(SOFT)
    cost = K.eval(K.ctc_batch_cost(K.variable(LABELS), soft, K.variable(INPUT_LENGTHS), K.variable(LABEL_LENGTHS)))
    assert cost.dtype == np.float32
    np.testing.assert_allclose(cost, costs(SOFT), rtol=1e-5)
    wrong = LABELS.copy()
    wrong[0, 1], wrong[1, 0] = BLANK, -1
    cost = K.eval(K.ctc_batch_cost(K.constant(wrong), soft, K.constant(INPUT_LENGTHS), K.constant(LABEL_LENGTHS)))
    assert np.isnan(cost[:, 0]).tolist() == [True, True, False, False, False]


def test_greedy_decoding(backend: str) -> None:
    soft, times = K.placeholder((None, None, CLASSES)), K.placeholder((None,), dtype="int32")
    (labels,), scores = K.ctc_decode(soft, times)
    call = K.function([soft, times], [labels, scores])
    for lengths in (INPUT_LENGTHS[:, 0], np.array([1, 0, 0, 1, 1])):
        got, got_scores = call([SOFT, lengths])
        paths = [collapsed(tuple(sample[:n].argmax(-1))) for sample, n in zip(SOFT, lengths)]
        longest = max(map(len, paths))
        wanted = np.array([list(path) + [-1] * (longest - len(path)) for path in paths]).reshape(5, longest)
        assert_close(got, wanted.astype("int64"))
        sums = [-np.log(sample[:n].max(-1) + 1e-7).sum() for sample, n in zip(SOFT, lengths)]
        np.testing.assert_allclose(got_scores, np.array(sums)[:, None], rtol=1e-5)
    blanks = np.tile(np.eye(CLASSES)[BLANK], (2, 3, 1))
    assert call([blanks, [3, 3]])[0].shape == (2, 0)


def test_beam_search(backend: str) -> None:
    """With a beam for all sequences the best three of all paths; each cut to its longest, its logarithms beside it."""
    soft, times = K.placeholder((None, None, CLASSES)), K.placeholder((None,), dtype="int32")
    paths, scores = K.ctc_decode(soft, times, greedy=False, beam_width=400, top_paths=3)
    call = K.function([soft, times], [*paths, scores])
    lengths = INPUT_LENGTHS[:, 0]
    *got, got_scores = call([SOFT, lengths])
    best = [
        sorted(probabilities(sample, n).items(), key=lambda entry: -entry[1])[:3] for sample, n in zip(SOFT, lengths)
    ]
    np.testing.assert_allclose(got_scores, np.log([[p for _, p in entry] for entry in best]), rtol=1e-4)
    for place, labels in enumerate(got):
        assert labels.dtype == np.int64
        wanted = [entry[place][0] for entry in best]
        assert labels.shape == (5, max(map(len, wanted)))
        for row, path in zip(labels, wanted):
            assert row.tolist() == list(path) + [-1] * (labels.shape[1] - len(path))
    merged, _ = K.ctc_decode(soft, times, greedy=False, beam_width=400, top_paths=3, merge_repeated=True)
    for labels, plain in zip(K.function([soft, times], merged)([SOFT, lengths]), got):
        for row, path in zip(labels, plain):
            wanted_row = [int(label) for label, _ in itertools.groupby(path[path >= 0])]
            assert row[row >= 0].tolist() == wanted_row
    if backend == "cntk":
        kinds = {host[0] for stages in current().host().stages.values() for s in stages for host in s.get("host", ())}
        assert "ctc_beam_search" in kinds


def test_a_narrow_beam_and_a_step_of_its_own(backend: str) -> None:
    """A beam of one keeps the most probable prefix; the search works inside a loop's step, too."""
    steps = np.log(np.array([[[0.5, 0.1, 0.1, 0.3], [0.4, 0.1, 0.1, 0.4], [0.1, 0.6, 0.1, 0.2]]]))
    (labels,), _ = K.ctc_decode(K.constant(np.exp(steps)), K.constant([3]), greedy=False, beam_width=1)
    assert K.eval(labels).tolist() == [[0, 1]]
    soft = K.placeholder((None, 3, CLASSES))
    scores = K.map_fn(
        lambda sample: K.ctc_decode(K.expand_dims(sample, 0), K.constant([3]), False, beam_width=400)[1][0, 0], soft
    )
    wanted = [np.log(max(probabilities(sample[:3], 3).values())) for sample in SOFT]
    np.testing.assert_allclose(K.function([soft], [scores])([SOFT[:, :3]])[0], wanted, rtol=1e-4)


def test_dense_labels(backend: str) -> None:
    labels = K.ctc_label_dense_to_sparse(K.constant(LABELS), K.constant(LABEL_LENGTHS[:, 0]))
    wanted = np.where(np.arange(3) < LABEL_LENGTHS, LABELS, -1)
    assert_close(K.eval(labels), wanted.astype("int32"))


def test_refused() -> None:
    soft = K.constant(SOFT)
    with pytest.raises(ShapeError, match="samples, time, classes"):
        K.ctc_decode(soft[0], K.constant([3]))
    with pytest.raises(ShapeError, match="must have a known length"):
        K.ctc_decode(K.placeholder((None, None, None)), K.constant([3]))
    with pytest.raises(ArgumentError, match="top_paths must be in"):
        K.ctc_decode(soft, K.constant([3] * 5), greedy=False, beam_width=2, top_paths=3)
    with pytest.raises(ShapeError, match="lengths have the shape"):
        K.ctc_batch_cost(LABELS, soft, K.zeros((5, 2)), LABEL_LENGTHS)
