"""Gradients of the suite's cases, against finite differences of their definitions in float64."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from kernelk import backend as K
from kernelk.graph.nodes import Tensor

from .case import Case, Trial, trial

# Cases whose operands are smooth, by the kinds of values that are made; 0.5 or 0 may be a kink.
SMOOTH = {"real", "halves", "small", "bits", "positive", "unit", "index", "label", "steps"}
# Functions that have no slope to compare: none at all, one by agreement, or another at each call.
WITHOUT_SLOPE = {
    "stop_gradient",
    "gradients",
    "dropout",
    "in_top_k",
    "ctc_decode",
    "update",
    "update_add",
    "update_sub",
}
# These jump.
JUMPS = ("//", "%")
STEP = 1e-6
# Gradients are batched less: each brings its own graph.
BATCH = 25


@dataclass
class Slope:
    """One trial, the weights of its outputs in the loss, and directions in which its operands are moved."""

    one: Trial
    weights: list[Any]
    directions: dict[int, Any]

    def loss(self, feeds: Sequence[Any]) -> float:
        """The definition's loss."""
        values = Trial(self.one.case, self.one.dtype, self.one.shapes, list(feeds)).wanted()
        return float(sum(np.sum(value * weight) for value, weight in zip(values, self.weights) if weight is not None))

    def expected(self, operand: int) -> float:
        """The derivative of the loss in the operand's direction."""
        moved = []
        for step in (STEP, -STEP):
            feeds = list(self.one.feeds)
            feeds[operand] = feeds[operand] + step * self.directions[operand]
            moved.append(self.loss(feeds))
        return (moved[0] - moved[1]) / (2 * STEP)


def slopes(cases: Sequence[Case], seed: int, open_axes: str = "some") -> Iterator[Slope]:
    """Those of the cases that are smooth functions of float64 operands, with values of no special kind."""
    random = np.random.default_rng(seed)
    for case in cases:
        kinds = {operand.values for operand in case.operands}
        if "float64" not in case.dtypes or case.function in WITHOUT_SLOPE or not kinds <= SMOOTH or case.phase:
            continue
        if any(sign in case.label for sign in JUMPS):
            continue
        one = trial(case, "float64", random, open_axes)
        for i, (operand, feed) in enumerate(zip(case.operands, one.feeds)):
            if feed.dtype == np.float64 and operand.values in ("real", "halves", "small", "bits"):
                one.feeds[i] = random.uniform(-3, 3, feed.shape)
        wanted = one.wanted()
        if case.function == "std" and not np.all(wanted[0]):
            # A square root has no slope at 0.
            continue
        weights = [
            random.uniform(-1, 1, np.shape(value)) if dtype == "float64" and not callable(value) else None
            for value, dtype in zip(wanted, one.promised())
        ]
        floats = [i for i, feed in enumerate(one.feeds) if feed.dtype == np.float64]
        if floats and any(weight is not None for weight in weights):
            yield Slope(one, weights, {i: random.normal(size=one.feeds[i].shape) for i in floats})


def failures(engine: str, found: Sequence[Slope]) -> list[str]:
    """What is wrong with the gradients on the active engine, a line for each operand."""
    remaining = iter(found)
    batches = iter(lambda: list(islice(remaining, BATCH)), [])
    wrong = []
    for batch in batches:
        wrong += [f"{engine}: {line}" for line in _run(batch)]
        K.clear_session()
    return wrong


def _run(batch: list[Slope]) -> Iterator[str]:
    placeholders: list[Tensor] = []
    feeds: list[Any] = []
    outputs: list[Tensor] = []
    for slope in batch:
        one = slope.one
        inputs = one.placeholders()
        made = one.case.graph(*inputs)
        made = made if isinstance(made, tuple) else (made,)
        loss = K.constant(0.0, dtype="float64")
        for tensor, weight in zip(made, slope.weights):
            if weight is not None:
                loss = loss + K.sum(tensor * K.constant(weight, dtype="float64"))
        outputs += K.gradients(loss, [inputs[i] for i in slope.directions])
        placeholders += inputs
        feeds += one.fed()
    values = iter(K.function(placeholders, outputs)(feeds))
    for slope in batch:
        for operand, direction in slope.directions.items():
            value, fed = next(values), slope.one.feeds[operand]
            if value.shape != fed.shape or value.dtype != fed.dtype:
                yield f"gradient {operand} of {slope.one}: {value.dtype}{value.shape}"
                continue
            wanted, got = slope.expected(operand), float(np.sum(value * direction))
            # The definition may have none here: the logarithm of a negative number, a row that is out of range.
            if np.isfinite(wanted) and not abs(wanted - got) <= 1e-4 * max(1.0, abs(wanted)):
                yield f"gradient {operand} of {slope.one}: {got}, not {wanted}, of {slope.one.feeds}"
