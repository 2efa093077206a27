"""Connectionist temporal classification: the loss as a loop in the space of logarithms, greedy and beam search."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import config
from ..errors import ArgumentError, DTypeError, ShapeError
from ..graph import Tensor, constant_node
from .arranging import arange
from .arranging import gather as rows
from .dtypes import INTEGERS, as_tensor, cast, floating
from .linear import permute_dimensions
from .loops import loop
from .primitives import own_dims, scalar, shaped_as, spread, zeros_shaped
from .rules import RULES, Rule, apply

# The logarithm of no probability: finite, so that its differences and slopes are no NaN.
_NEVER = -1e30


def ctc_label_dense_to_sparse(labels: Any, label_lengths: Any) -> Tensor:
    """Labels of shape (samples, longest) with -1 in place of all beyond `label_lengths`, of shape (samples,).

    Keras returns a sparse tensor here. Tensors are dense in kernelk: this one holds what that one would, and -1
    (`K.ctc_decode` gives the same form) where that one would hold nothing. Labels that are no integers become int32.
    """
    labels, lengths = _labels(labels), _lengths(label_lengths)
    if labels.dtype.startswith("uint"):
        labels = cast(labels, "int64")
    inside = apply("less", _places(labels, 1), _column(lengths))
    return apply("select", inside, labels, scalar(-1, labels.dtype))


def ctc_batch_cost(y_true: Any, y_pred: Any, input_length: Any, label_length: Any) -> Tensor:
    """The CTC loss of each sample, of shape (samples, 1).

    `y_true`: labels of shape (samples, longest), of which `label_length`, of shape (samples, 1), count. `y_pred`:
    softmax outputs of shape (samples, time, classes), of which `input_length` times count; the last class is the blank.
    Where there are too few times for the labels the loss is infinite and has no slope; a label that is no class makes
    it NaN.
    """
    given = floating(as_tensor(y_pred))
    logits, classes = _logits(given, "ctc_batch_cost")
    if logits.dtype == "float16":
        logits = cast(logits, "float32")
    labels = cast(_labels(y_true), "int32")
    if labels.ndim != 2:
        raise ShapeError(f"ctc_batch_cost: y_true has the shape (samples, longest), not {labels.shape}")
    lengths, times = _lengths(label_length), _lengths(input_length)
    dtype, blank = logits.dtype, scalar(classes - 1, "int32")
    counted = apply("less", _places(labels, 1), _column(lengths))
    known = apply("logical_and", apply("less_equal", scalar(0, "int32"), labels), apply("less", labels, blank))
    wrong = apply("logical_and", counted, apply("logical_not", known))
    labels = apply("select", apply("logical_and", counted, known), labels, blank)
    between = spread(blank, labels)
    extended = _pair(between, labels)
    ends = apply("broadcast_to", blank, lengths, dims=[*own_dims(lengths, 1), 1])
    extended = apply("concatenate", extended, ends, axis=1)
    never = scalar(_NEVER, dtype)
    place = _places(extended, 1)
    two_before = _moved(extended, 2, blank)
    may_skip = apply("logical_and", apply("not_equal", extended, blank), apply("not_equal", extended, two_before))
    emitted = _emitted(apply("log_softmax", logits, axis=2), extended, classes)
    running = apply("less", _places(logits, 0), times)
    start = apply("select", apply("equal", place, scalar(0, "int32")), scalar(0, dtype), never)
    start = spread(start, extended)

    def step(elements: list[Tensor], states: list[Tensor]) -> tuple[list[Any], list[Any]]:
        logarithms, on = elements
        (stay,) = states
        moved = _moved(stay, 1, never)
        skipped = apply("select", may_skip, _moved(stay, 2, never), never)
        new = _log_sum(stay, moved, skipped) + logarithms
        return [], [apply("select", _column(on), new, stay)]

    ((final,), _) = loop("ctc_batch_cost", step, [emitted, running], [start])
    last = _column(lengths * 2)
    zero = scalar(0, dtype)
    at_blank = apply("select", apply("equal", place, last), final, zero)
    at_label = apply("select", apply("equal", place, last - 1), final, zero)
    with_blank = apply("sum", at_blank, axes=[1], keepdims=True)
    with_label = apply("sum", at_label, axes=[1], keepdims=True)
    with_label = apply("select", apply("less", scalar(0, "int32"), _column(lengths)), with_label, never)
    total = _log_sum(with_blank, with_label)
    possible = apply("less", scalar(_NEVER / 2, dtype), total)
    cost = apply("select", possible, apply("negative", total), scalar(np.inf, dtype))
    any_wrong = apply(
        "max", apply("concatenate", cast(wrong, "int32"), zeros_shaped(ends), axis=1), axes=[1], keepdims=True
    )
    cost = apply("select", apply("less", scalar(0, "int32"), any_wrong), scalar(np.nan, dtype), cost)
    return cast(cost, given.dtype)


def ctc_decode(
    y_pred: Any,
    input_length: Any,
    greedy: bool = True,
    beam_width: int = 100,
    top_paths: int = 1,
    merge_repeated: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """The most probable labels for softmax outputs of shape (samples, time, classes); the last class is the blank.

    `input_length`, of shape (samples,), is how many times of each sample count. Greedy: returns ([labels], scores) with
    the sum of the largest logarithms, negated, of shape (samples, 1). Else the `top_paths` best sequences of a search
    that keeps `beam_width`, and their log probabilities, of shape (samples, top_paths); `merge_repeated` gives equal
    neighbours as one. Labels are int64, of shape (samples, longest), -1 beyond a sequence's end.
    The search is numpy's on every engine. How long the longest is is worked out by numpy before each call.
    """
    given = floating(as_tensor(y_pred))
    logits, classes = _logits(given, "ctc_decode")
    times = _lengths(input_length)
    if greedy:
        labels, scores = _greedy(logits, times, classes)
        return [_cut(labels)], cast(scores, given.dtype)
    beam_width, top_paths = int(beam_width), int(top_paths)
    if not 1 <= top_paths <= beam_width:
        raise ArgumentError(f"ctc_decode: top_paths must be in [1, beam_width], not {top_paths} of {beam_width}")
    logarithms = permute_dimensions(apply("log_softmax", logits, axis=2), (1, 0, 2))
    found = apply(
        "ctc_beam_search",
        logarithms,
        times,
        beam_width=beam_width,
        top_paths=top_paths,
        merge_repeated=bool(merge_repeated),
    )
    whole = [None, None, None]
    scores = apply("slice", found, slices=[whole, whole, [0, 1, None]])
    scores = apply("reshape", scores, dims=[[0, 0] if scores.shape[0] is None else scores.shape[0], top_paths])
    paths = []
    for path in range(top_paths):
        labels = apply("slice", found, slices=[whole, [path, path + 1, None], [1, None, None]])
        dims = [[0, i] if n is None else n for i, n in enumerate(labels.shape)]
        paths.append(_cut(cast(apply("reshape", labels, dims=[dims[0], dims[2]]), "int64")))
    return paths, cast(scores, given.dtype)


# --- parts --------------------------------------------------------------------------------------------------------


def _labels(labels: Any) -> Tensor:
    labels = as_tensor(labels)
    return labels if labels.dtype in INTEGERS else cast(labels, "int32")


def _lengths(lengths: Any) -> Tensor:
    """Lengths of shape (samples,) or (samples, 1) as an int32 vector."""
    lengths = as_tensor(lengths)
    if lengths.ndim not in (1, 2) or (lengths.ndim == 2 and lengths.shape[1] not in (1, None)):
        raise ShapeError(f"ctc: lengths have the shape (samples,) or (samples, 1), not {lengths.shape}")
    if lengths.dtype == "bool":
        raise DTypeError("ctc: lengths are numbers, not bool")
    return cast(apply("reshape", lengths, dims=[-1]) if lengths.ndim == 2 else lengths, "int32")


def _logits(y_pred: Tensor, op: str) -> tuple[Tensor, int]:
    """log(y_pred + epsilon), time first, and the number of classes."""
    if y_pred.ndim != 3:
        raise ShapeError(f"{op}: y_pred has the shape (samples, time, classes), not {y_pred.shape}")
    classes = y_pred.shape[2]
    if not classes:
        raise ShapeError(f"{op}: y_pred's last axis, the classes, must have a known length, not {y_pred.shape}")
    shifted = y_pred + scalar(config.epsilon(), y_pred.dtype)
    return apply("log", permute_dimensions(shifted, (1, 0, 2))), classes


def _column(x: Tensor) -> Tensor:
    """A vector as a matrix of one column."""
    return apply("reshape", x, dims=[*own_dims(x), 1])


def _places(x: Tensor, axis: int) -> Tensor:
    """0, 1, 2, ... along an axis of `x`, as int32 with axes of length 1 after it and, for axis 1, one before."""
    dims = own_dims(x, 1)[axis]
    ones = apply("broadcast_to", scalar(1, "int32"), x, dims=[1, dims] if axis else [dims, 1])
    return apply("cumsum", ones, axis=axis) - 1


def _pair(a: Tensor, b: Tensor) -> Tensor:
    """Columns of two equal matrices by turns."""
    dims = [*own_dims(a), 1]
    both = apply("concatenate", apply("reshape", a, dims=dims), apply("reshape", b, dims=dims), axis=2)
    length = a.shape[1]
    if length is not None:
        return apply("reshape", both, dims=[own_dims(a)[0], 2 * length])
    return apply("reshape", both, dims=[own_dims(a)[0], -1])


def _moved(x: Tensor, by: int, fill: Tensor) -> Tensor:
    """The columns of a matrix `by` places further, with `fill` before them."""
    whole = [None, None, None]
    ahead = apply("slice", x, slices=[whole, [0, 1, None]])
    filled = spread(fill, ahead)
    widened = apply("concatenate", *[filled] * by, x, axis=1)
    return apply("slice", widened, slices=[whole, [None, -by, None]])


def _log_sum(*parts: Tensor) -> Tensor:
    """log(sum(exp(parts)))."""
    largest = parts[0]
    for part in parts[1:]:
        largest = apply("maximum", largest, part)
    # It cancels out, and so needs no slope.
    largest = apply("stop_gradient", largest)
    total = apply("exp", parts[0] - largest)
    for part in parts[1:]:
        total = total + apply("exp", part - largest)
    return largest + apply("log", total)


def _emitted(logarithms: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Of (time, samples, classes) those of each sample's labels: (time, samples, labels)."""
    whole = [None, None, None]
    one = apply("slice", logarithms, slices=[whole, whole, [0, 1, None]])
    ones = apply("reshape", spread(scalar(1, "int32"), one), dims=[-1])
    begins = shaped_as((apply("cumsum", ones, axis=0) - 1) * classes, one)
    return apply("gather", apply("reshape", logarithms, dims=[-1]), begins + labels)


def _greedy(logits: Tensor, times: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Labels of shape (samples, time), -1 after their end, and scores of shape (samples, 1)."""
    running = apply("less", _places(logits, 0), times)
    best = apply("argmax", logits, axis=2)
    blank = scalar(classes - 1, "int64")
    before = apply("transpose", _moved(apply("transpose", best, permutation=[1, 0]), 1, blank), permutation=[1, 0])
    new = apply("logical_and", apply("not_equal", best, blank), apply("not_equal", best, before))
    taken = apply("logical_and", new, running)
    place = apply("cumsum", cast(taken, "int64"), axis=0) - 1
    # Labels go to (place, sample) of a matrix like `best`, all others nowhere.
    numbers = apply("cumsum", spread(scalar(1, "int64"), best), axis=1) - 1
    width = cast(apply("size", best, axes=[1], result="int32"), "int64")
    target = apply("select", taken, place * width + numbers, scalar(-1, "int64"))
    flat = apply("reshape", best, dims=[-1])
    added = apply("scatter_add", flat + 1, apply("reshape", target, dims=[-1]), flat)
    labels = apply("transpose", shaped_as(added - 1, best), permutation=[1, 0])
    largest = apply("max", logits, axes=[2], keepdims=False)
    counted = apply("select", running, largest, scalar(0, largest.dtype))
    return labels, _column(apply("negative", apply("sum", counted, axes=[0], keepdims=False)))


def _cut(labels: Tensor) -> Tensor:
    """Labels of shape (samples, time) without the columns that hold nothing but -1."""
    inside = cast(apply("less_equal", scalar(0, labels.dtype), labels), "int32")
    lengths = apply("sum", inside, axes=[1], keepdims=False)
    longest = apply(
        "max", apply("concatenate", lengths, constant_node(np.zeros(1, "int32")), axis=0), axes=[0], keepdims=False
    )
    columns = rows(apply("transpose", labels, permutation=[1, 0]), arange(longest))
    return apply("transpose", columns, permutation=[1, 0])


def _infer_beam_search(
    logarithms: Any, lengths: Any, beam_width: int, top_paths: int, merge_repeated: bool
) -> tuple[Any, str]:
    samples, time, _ = logarithms.shape
    return (samples, top_paths, None if time is None else time + 1), "float64"


RULES["ctc_beam_search"] = Rule(_infer_beam_search)
