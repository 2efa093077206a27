"""Records connectionist temporal classification (CTC): the loss as a recursion over time, and decoding."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import config
from ..errors import ArgumentError, DTypeError, ShapeError
from ..graph.nodes import Tensor, constant_node
from ..graph.rules import RULES, Result, Rule, apply
from . import elementwise, reductions
from .dtypes import FLOATS, as_tensor, cast
from .gradients import stop_gradient
from .loops import rnn
from .operators import binary
from .shapes import broadcast_to, own_dims, rank_refused
from .shaping import concatenate, expand_dims, one_hot_as, zeros_like

# The logarithm of an impossible path's probability: finite, so that its gradient is 0 and not NaN.
_NEVER = -1e30

# The axes of labels.
_LABELS = ("batch", "longest")


def ctc_label_dense_to_sparse(labels: Any, label_lengths: Any) -> Tensor:
    """`labels` (batch, longest) with 0 after the first `label_lengths` (batch,) of each row.

    A tensor here is dense: these are the values that Keras's sparse one stands for. Raises ShapeError.
    """
    labels = as_tensor(labels)
    if labels.ndim != 2:
        raise rank_refused("ctc_label_dense_to_sparse", "labels", labels.shape, _LABELS)
    lengths = _lengths("ctc_label_dense_to_sparse", label_lengths)
    inside = binary("less", _positions(labels), lengths)
    return apply("select", inside, labels, zeros_like(labels))


def ctc_batch_cost(y_true: Any, y_pred: Any, input_length: Any, label_length: Any) -> Tensor:
    """-log of the probability that each sample's path spells its labels: (batch, 1), in the dtype of `y_pred`.

    `y_true`: labels (batch, longest); `y_pred`: probabilities (batch, steps, classes), the last class is the blank;
    `input_length`, `label_length`: (batch, 1), how many steps and labels of each sample count. Infinity, with a
    gradient of 0, where the labels don't fit into the steps, and NaN where a label isn't a class. Raises ShapeError,
    and DTypeError for probabilities that aren't floats.
    """
    op = "ctc_batch_cost"
    predicted = _predictions(op, y_pred)
    labels = as_tensor(y_true)
    if labels.ndim != 2:
        raise rank_refused(op, "y_true", labels.shape, _LABELS)
    if labels.shape[1] == 0:
        raise ShapeError(f"{op}: y_true of shape {labels.shape} has no labels", allowed="its rows need 1 or more")
    labels = elementwise.cast(labels, "int32")
    steps, counts = _lengths(op, input_length), _lengths(op, label_length)
    wide = cast(predicted, "float32") if predicted.dtype == "float16" else predicted
    blank = int(predicted.shape[-1] or 0) - 1
    logs = apply("log_softmax", elementwise.log(wide + config.epsilon()), axis=2)

    # The states of a path: a blank, then each label and a blank.
    blanks = zeros_like(labels) + blank
    states = _between(blanks, labels)
    scores = _batch_matmul(logs, one_hot_as(states, blank + 1, wide.dtype))
    # From a label the path may jump over a blank to the next one, if that is another.
    never = _scalar(_NEVER, wide.dtype)
    before = concatenate([blanks[:, :1], labels], 1)[:, :-1]
    jump = apply("select", binary("not_equal", labels, before), _scalar(0, wide.dtype), never)
    jumps = _between(broadcast_to(never, labels), jump)

    def step(score: Tensor, previous: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        (alpha,) = previous
        column = broadcast_to(never, alpha[:, :1])
        one, two = (concatenate([column] * k + [alpha], 1)[:, :-k] for k in (1, 2))
        alpha = elementwise.maximum(_log_sum(alpha, one, two + jumps) + score, _NEVER)
        return alpha, [alpha]

    # Before the first step the path is where a blank or the first label can follow.
    position = _positions(states)
    start = apply("select", binary("equal", position, 0), broadcast_to(_scalar(0, wide.dtype), states), never)
    _, _, (alpha,) = rnn(step, scores, [start], mask=binary("less", _positions(logs[:, :, 0]), steps))
    on_blank = _picked(alpha, position, counts * 2)
    on_label = apply("select", binary("less", 0, counts), _picked(alpha, position, counts * 2 - 1), never)
    cost = -_log_sum(on_blank, on_label)
    impossible = binary("less", -_NEVER / 2, cost)
    cost = apply("select", impossible, _scalar(np.inf, wide.dtype), cost)
    known = apply("logical_and", binary("less_equal", 0, labels), binary("less", labels, blank))
    wrong = apply("logical_and", binary("less", _positions(labels), counts), apply("logical_not", known))
    cost = apply("select", reductions.any(wrong, axis=1, keepdims=True), _scalar(np.nan, wide.dtype), cost)
    return cast(cost, predicted.dtype)


def ctc_decode(
    y_pred: Any,
    input_length: Any,
    greedy: bool = True,
    beam_width: int = 100,
    top_paths: int = 1,
    merge_repeated: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """The most probable labels of `y_pred` (batch, steps, classes), of which `input_length` (batch,) steps count.

    Returns a list of int64 matrices (batch, longest), rows filled up with -1, and log-probabilities. `greedy`: the
    labels of the best path, one matrix, and minus the sum of its largest logarithms, (batch, 1). Otherwise a search
    with `beam_width` beams: `top_paths` matrices, and (batch, top_paths); `merge_repeated` merges equal labels in a
    row. Raises ShapeError, DTypeError, ArgumentError.
    """
    op = "ctc_decode"
    predicted = _predictions(op, y_pred)
    steps = _lengths(op, input_length)
    wide = cast(predicted, "float32") if predicted.dtype == "float16" else predicted
    logs = elementwise.log(wide + config.epsilon())
    if greedy:
        best, score = _best_path(logs, steps)
        return [_to_longest(best)], cast(score, predicted.dtype)
    if not 1 <= int(top_paths) <= int(beam_width):
        raise ArgumentError(
            f"{op}: top_paths={top_paths} isn't allowed", allowed=f"allowed are 1 to beam_width, which is {beam_width}"
        )
    options = {"beam_width": int(beam_width), "top_paths": int(top_paths), "merge_repeated": bool(merge_repeated)}
    beams = apply("ctc_beam_search", logs, steps, **options)
    rows = [_to_longest(elementwise.cast(beams[:, k, :-1], "int64")) for k in range(int(top_paths))]
    return rows, cast(beams[:, :, -1], predicted.dtype)


def _best_path(logs: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """The labels of the best path, (batch, steps) with -1 behind them, and minus the sum of its logarithms."""
    blank = int(logs.shape[-1] or 0) - 1
    best = elementwise.cast(reductions.argmax(logs, axis=-1), "int32")
    position = _positions(best)
    inside = binary("less", position, steps)
    before = concatenate([zeros_like(best[:, :1]) - 1, best], 1)[:, :-1]
    fresh = apply("logical_and", binary("not_equal", best, blank), binary("not_equal", best, before))
    kept = apply("logical_and", inside, fresh)
    # The label at step t goes to the position that counts the labels kept before it.
    target = apply("cumsum", cast(kept, "int32"), axis=1) - 1
    hit = binary("equal", expand_dims(target, 1), expand_dims(position, 2))
    hit = apply("logical_and", hit, expand_dims(kept, 1))
    labels = apply("select", hit, expand_dims(best + 1, 1), _scalar(0, "int32"))
    rows = elementwise.cast(reductions.sum(labels, axis=2) - 1, "int64")
    largest = apply("select", inside, reductions.max(logs, axis=-1), _scalar(0, logs.dtype))
    return rows, -reductions.sum(largest, axis=1, keepdims=True)


def _to_longest(rows: Tensor) -> Tensor:
    """Rows filled up with -1, cut after the longest one."""
    longest = reductions.max(reductions.sum(cast(binary("less", -1, rows), "int32"), axis=1))
    return apply("slice", rows, longest, slices=[[None, None, None], [None, ["value", 1, 0], None]])


def _predictions(op: str, y_pred: Any) -> Tensor:
    predicted = as_tensor(y_pred)
    if predicted.ndim != 3:
        raise rank_refused(op, "y_pred", predicted.shape, ("batch", "steps", "classes"))
    if not predicted.shape[-1]:
        raise ShapeError(
            f"{op}: y_pred has shape {predicted.shape}",
            allowed="its last axis needs a known number of classes, 1 or more",
            next_step="K.placeholder((None, None, classes))",
        )
    if predicted.dtype not in FLOATS:
        raise DTypeError(
            f"{op}: y_pred must be floats, not {predicted.dtype}", next_step="cast with K.cast(x, 'float32')"
        )
    return predicted


def _lengths(op: str, lengths: Any) -> Tensor:
    """Lengths of shape (batch,) or (batch, 1) as an int32 column."""
    given = elementwise.cast(as_tensor(lengths), "int32")
    if given.ndim == 1:
        return expand_dims(given, 1)
    if given.ndim != 2 or given.shape[1] not in (1, None):
        raise ShapeError(f"{op}: lengths have shape {given.shape}", allowed="it must be (batch,) or (batch, 1)")
    return given


def _positions(rows: Tensor) -> Tensor:
    """The number of each element in its row, int32."""
    return apply("cumsum", broadcast_to(_scalar(1, "int32"), rows), axis=1) - 1


def _between(outer: Tensor, inner: Tensor) -> Tensor:
    """(batch, n) twice as (batch, 2 n + 1): an element of `outer`, one of `inner`, ..., and one of `outer`."""
    pairs = concatenate([expand_dims(outer, 2), expand_dims(inner, 2)], 2)
    length = inner.shape[1]
    flat = apply("reshape", pairs, dims=[own_dims(pairs)[0], -1 if length is None else 2 * length])
    return concatenate([flat, outer[:, :1]], 1)


def _log_sum(*logs: Tensor) -> Tensor:
    """The logarithm of the sum of the numbers of these logarithms."""
    best = logs[0]
    for x in logs[1:]:
        best = elementwise.maximum(best, x)
    steady: Tensor = stop_gradient(best)
    total = elementwise.exp(logs[0] - steady)
    for x in logs[1:]:
        total = total + elementwise.exp(x - steady)
    return steady + elementwise.log(total)


def _picked(rows: Tensor, position: Tensor, wanted: Tensor) -> Tensor:
    """(batch, 1): of each row the element at the wanted position; 0 where there is none."""
    hit = binary("equal", position, wanted)
    return reductions.sum(apply("select", hit, rows, _scalar(0, rows.dtype)), axis=1, keepdims=True)


def _batch_matmul(x: Tensor, y: Tensor) -> Tensor:
    """(batch, n, k) with (batch, m, k): the scalar products, (batch, n, m)."""
    return apply("batch_matmul", x, y, transpose_a=False, transpose_b=True)


def _scalar(value: float, dtype: str) -> Tensor:
    return constant_node(np.asarray(value, dtype=dtype))


def _infer_beam_search(logs: Any, steps: Any, beam_width: int, top_paths: int, merge_repeated: bool) -> Result:
    batch, length, _ = logs.shape
    return (batch, top_paths, None if length is None else length + 1), logs.dtype


RULES["ctc_beam_search"] = Rule(_infer_beam_search)
