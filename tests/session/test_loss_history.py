"""The history of a training function's losses: exact while it is short, means when it is long, bounded always."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kernelk import backend as K
from kernelk.errors import FeedError
from kernelk.session import current
from kernelk.session.loss_history import MOST_POINTS, LossHistory


def filled(values: list[float], engines: list[str]) -> LossHistory:
    history = LossHistory()
    for value, engine in zip(values, engines, strict=True):
        history.add(engine, np.asarray(value, "float32"))
    return history


def test_a_short_one_has_each_call_with_its_engine() -> None:
    history = filled([3.0, 2.0, 1.0], ["numpy", "numpy", "torch"])
    assert history.points() == [(1, 1, 3.0, "numpy"), (2, 1, 2.0, "numpy"), (3, 1, 1.0, "torch")]
    assert (history.calls, history.every) == (3, 1)
    assert LossHistory().points() == []


@pytest.mark.parametrize("calls", [MOST_POINTS, 10 * MOST_POINTS + 7, 50 * MOST_POINTS])
def test_a_long_one_has_means_that_miss_no_call_and_mix_no_engines(calls: int) -> None:
    values = np.arange(calls, dtype="float64")
    engines = ["numpy" if i < calls // 3 else "torch" for i in range(calls)]
    history = filled(values.tolist(), engines)
    points = history.points()
    assert len(points) <= MOST_POINTS + 1
    covered = 0
    for first, count, mean, engine in points:
        assert first == covered + 1
        assert count <= history.every
        assert math.isclose(mean, values[covered : covered + count].mean())
        assert set(engines[covered : covered + count]) == {engine}
        covered += count
    assert covered == history.calls == calls


def test_one_that_changes_engines_at_each_call_forgets_its_oldest_calls() -> None:
    calls = 5 * MOST_POINTS
    history = filled(list(range(calls)), ["numpy", "torch"] * (calls // 2))
    points = history.points()
    assert MOST_POINTS // 4 < len(points) <= MOST_POINTS + 1
    assert points[-1] == (calls, 1, calls - 1, "torch")
    assert [point.first for point in points] == list(range(points[0].first, calls + 1))


def test_a_loss_that_is_lost_stays_so() -> None:
    means = [point.mean for point in filled([1.0, math.nan, math.inf], ["numpy"] * 3).points()]
    assert means[0] == 1.0
    assert math.isnan(means[1])
    assert means[2] == math.inf


def test_which_functions_have_one(backend: str) -> None:
    w = K.variable([4.0])
    loss, step = K.sum(w), [K.update_sub(w, [1.0])]
    train = K.function([], [loss], step)
    assert K.function([], [loss]).losses is None
    assert K.function([], [w * 2.0], step).losses is None
    assert K.function([], [K.cast(loss, "int32")], step).losses is None
    assert K.function([], [], step).losses is None
    for _ in range(2):
        train([])
    with pytest.raises(FeedError, match="takes 0 inputs"):
        train([1, 2])
    K.eval(K.update_sub(w, [1.0]))
    assert train.losses is not None
    assert train.losses.points() == [(1, 1, 4.0, backend), (2, 1, 3.0, backend)]
    heard: list[int] = []
    current().loss_listener = lambda: heard.append(1)
    try:
        K.function([], [loss])([])
        train([])
    finally:
        current().loss_listener = None
    assert heard == [1]
