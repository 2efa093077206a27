"""CTC: the loss and the decoders against an enumeration of all paths, on every engine."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from kernelk import backend as K
from kernelk.errors import ArgumentError, DTypeError, ShapeError

BATCH, STEPS, CLASSES = 4, 5, 4
BLANK = CLASSES - 1
LABELS = np.array([[0, 1, 2], [1, 1, 0], [2, 0, 0], [0, 0, 0]])
LABEL_LENGTHS = np.array([[3], [2], [1], [3]])
STEP_LENGTHS = np.array([[5], [4], [5], [5]])


def predictions(seed: int = 0, dtype: str = "float64") -> np.ndarray[Any, Any]:
    powers = np.exp(2 * np.random.default_rng(seed).standard_normal((BATCH, STEPS, CLASSES)))
    return (powers / powers.sum(-1, keepdims=True)).astype(dtype)


def spelled(path: tuple[int, ...]) -> tuple[int, ...]:
    """The labels of a path: equal ones in a row are one, then blanks are left out."""
    return tuple(label for label, _ in itertools.groupby(path) if label != BLANK)


def probabilities(rows: np.ndarray[Any, Any]) -> dict[tuple[int, ...], float]:
    """The probability of each sequence of labels, over all paths."""
    rows = rows + K.epsilon()
    rows = rows / rows.sum(-1, keepdims=True)
    found: dict[tuple[int, ...], float] = {}
    for path in itertools.product(range(CLASSES), repeat=len(rows)):
        labels = spelled(path)
        found[labels] = found.get(labels, 0.0) + float(np.prod([row[label] for row, label in zip(rows, path)]))
    return found


def costs(p: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    wanted = []
    for sample in range(BATCH):
        labels = tuple(LABELS[sample, : LABEL_LENGTHS[sample, 0]])
        wanted.append([-np.log(probabilities(p[sample, : STEP_LENGTHS[sample, 0]])[labels])])
    return np.array(wanted)


def cost_function(dtype: str = "float64") -> tuple[Any, Any]:
    y_true, y_pred = K.placeholder((None, 3)), K.placeholder((None, STEPS, CLASSES), dtype=dtype)
    steps, lengths = K.placeholder((None, 1), dtype="int64"), K.placeholder((None, 1), dtype="int64")
    cost = K.ctc_batch_cost(y_true, y_pred, steps, lengths)
    assert K.int_shape(cost) == (None, 1)
    inputs = [y_true, y_pred, steps, lengths]
    return K.function(inputs, [cost]), K.function(inputs, K.gradients(K.sum(cost), y_pred))


def test_the_cost_is_that_of_all_paths_and_its_gradient_that_of_small_steps(backend: str) -> None:
    cost, slope = cost_function()
    p = predictions()
    feeds = [LABELS, p, STEP_LENGTHS, LABEL_LENGTHS]
    np.testing.assert_allclose(cost(feeds)[0], costs(p), rtol=1e-6)
    found = slope(feeds)[0]
    for place in [(0, 0, 0), (1, 2, 3), (1, 4, 1), (2, 3, 2), (3, 4, 0)]:
        step = np.zeros_like(p)
        step[place] = 1e-5
        wanted = (costs(p + step) - costs(p - step)).sum() / 2e-5
        np.testing.assert_allclose(found[place], wanted, rtol=1e-4, atol=1e-8)
    # The second sample's last step doesn't count.
    assert not found[1, 4].any()


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 1e-4), ("float16", 2e-2)])
def test_the_cost_keeps_the_dtype_of_the_predictions(dtype: str, rtol: float) -> None:
    found = cost_function(dtype)[0]([LABELS, predictions(dtype=dtype), STEP_LENGTHS, LABEL_LENGTHS])[0]
    assert found.dtype == dtype
    np.testing.assert_allclose(found, costs(predictions()), rtol=rtol)


def test_labels_that_do_not_fit_cost_infinity_and_have_no_slope(backend: str) -> None:
    cost, slope = cost_function()
    # Two equal labels in a row need a blank between them.
    feeds = [[[1, 1, 0]], predictions()[:1], [[2]], [[2]]]
    np.testing.assert_array_equal(cost(feeds)[0], [[np.inf]])
    assert not slope(feeds)[0].any()
    # What is no class, the blank included, has no cost; beyond the length it doesn't count.
    for wrong, count, numbers in ((BLANK, 2, False), (-1, 2, False), (CLASSES, 1, True)):
        found = cost([[[1, wrong, 0]], predictions()[:1], [[5]], [[count]]])[0]
        assert np.isfinite(found).all() == numbers
    # No label at all: only blanks.
    p = predictions()[:1]
    wanted = -np.log(probabilities(p[0])[()])
    np.testing.assert_allclose(cost([[[1, 1, 0]], p, [[5]], [[0]]])[0], [[wanted]], rtol=1e-6)


def decoded(p: np.ndarray[Any, Any], steps: Any, **options: Any) -> list[np.ndarray[Any, Any]]:
    y_pred, lengths = K.placeholder((None, STEPS, CLASSES), dtype="float64"), K.placeholder((None,), dtype="int32")
    rows, scores = K.ctc_decode(y_pred, lengths, **options)
    result: list[np.ndarray[Any, Any]] = K.function([y_pred, lengths], [*rows, scores])([p, steps])
    return result


def test_the_best_path(backend: str) -> None:
    for seed in range(2):
        p, steps = predictions(seed), [5, 4, 1, 0]
        rows, scores = decoded(p, steps)
        wanted = [spelled(tuple(p[i, :n].argmax(-1))) for i, n in enumerate(steps)]
        longest = max(map(len, wanted))
        assert rows.dtype == "int64"
        assert rows.tolist() == [[*labels, *[-1] * (longest - len(labels))] for labels in wanted]
        largest = [[-np.log(p[i, :n].max(-1) + K.epsilon()).sum()] for i, n in enumerate(steps)]
        np.testing.assert_allclose(scores, largest, rtol=1e-9, atol=1e-12)


def test_the_best_sequences_by_beams(backend: str) -> None:
    p, steps = predictions(3), [5, 4, 5, 3]
    first, second, third, scores = decoded(p, steps, greedy=False, beam_width=400, top_paths=3)
    for sample, n in enumerate(steps):
        best = sorted(probabilities(p[sample, :n]).items(), key=lambda item: -item[1])[:3]
        for rows, score, (labels, probability) in zip((first, second, third), scores[sample], best):
            assert [label for label in rows[sample] if label >= 0] == list(labels)
            np.testing.assert_allclose(score, np.log(probability), rtol=1e-6)


def test_equally_probable_sequences_come_in_the_order_of_their_labels(backend: str) -> None:
    # As likely as each other up to the last bits, in which engines' logarithms differ.
    likely = 0.3 + 1e-8 * np.random.default_rng(1).standard_normal((1, STEPS, CLASSES - 1))
    p = np.concatenate([likely, 1 - likely.sum(-1, keepdims=True)], -1)
    first, second, third, _ = decoded(p, [1], greedy=False, beam_width=3, top_paths=3)
    assert [first[0, 0], second[0, 0], third[0, 0]] == [0, 1, 2]


def test_repeated_labels_are_merged_where_that_is_asked_for() -> None:
    p = np.full((1, STEPS, CLASSES), 0.02)
    for step, label in enumerate([1, BLANK, 1, 0, BLANK]):
        p[0, step, label] = 0.94
    assert decoded(p, [5], greedy=False)[0].tolist() == [[1, 1, 0]]
    assert decoded(p, [5], greedy=False, merge_repeated=True)[0].tolist() == [[1, 0]]


def test_labels_behind_the_length_are_zero(backend: str) -> None:
    found = K.eval(
        K.ctc_label_dense_to_sparse(K.constant(LABELS + 5, dtype="int32"), K.constant([3, 1, 0, 2], "int32"))
    )
    assert found.tolist() == [[5, 6, 7], [6, 0, 0], [0, 0, 0], [5, 5, 0]]


@pytest.mark.parametrize(
    ("write", "error", "words"),
    [
        (lambda p, n: K.ctc_decode(K.placeholder((None, 4)), n), ShapeError, r"axes \(batch, steps, classes\)"),
        (lambda p, n: K.ctc_decode(K.placeholder((2, 3, None)), n), ShapeError, "known number of classes"),
        (lambda p, n: K.ctc_decode(K.cast(p, "int32"), n), DTypeError, "must be floats"),
        (lambda p, n: K.ctc_decode(p, n, greedy=False, beam_width=2, top_paths=3), ArgumentError, "1 to beam_width"),
        (lambda p, n: K.ctc_decode(p, K.placeholder((2, 3))), ShapeError, r"\(batch,\) or \(batch, 1\)"),
        (lambda p, n: K.ctc_batch_cost(n, p, n, n), ShapeError, r"y_true has shape .* axes \(batch, longest\)"),
        (lambda p, n: K.ctc_label_dense_to_sparse(n, n), ShapeError, r"\(batch, longest\)"),
    ],
)
def test_refused_when_written(write: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        write(K.placeholder((2, 5, 4)), K.placeholder((2,), dtype="int32"))
