"""Losses, and metrics that are written like them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import config
from ..graph.nodes import Crossentropy, Tensor
from ..graph.rules import apply
from ..source import caller
from . import elementwise, reductions
from .dtypes import as_tensor, cast, floating, operands
from .operators import binary
from .shapes import axis_of, scalar
from .shaping import one_hot_as


def categorical_crossentropy(target: Any, output: Any, from_logits: bool = False, axis: int = -1) -> Tensor:
    """Cross entropy along `axis` between one-hot `target` and `output`, probabilities unless `from_logits`.

    Probabilities are normalised, then kept `K.epsilon()` away from 0 and 1, unless they are the `K.softmax` of logits:
    it is computed from these then. The result has no `axis`.
    """
    target, output = operands(target, output)
    wanted, given = floating(target), floating(output)
    axis = axis_of(axis, given.ndim, "categorical_crossentropy")
    if from_logits:
        logs = apply("log_softmax", given, axis=axis)
        # A class that isn't wanted adds nothing, even one that is impossible.
        zero = scalar(0, wanted.dtype)
        terms = apply("select", apply("equal", wanted, zero), scalar(0, logs.dtype), wanted * logs)
        return -reductions.sum(terms, axis)
    inside = _inside(given / reductions.sum(given, axis, keepdims=True))
    loss = -reductions.sum(wanted * elementwise.log(inside), axis)
    if given.op == "softmax" and given.attrs["axis"] == axis:
        return _computed(categorical_crossentropy(wanted, given.inputs[0], from_logits=True, axis=axis), loss)
    return loss


def sparse_categorical_crossentropy(target: Any, output: Any, from_logits: bool = False, axis: int = -1) -> Tensor:
    """Cross entropy along `axis` between integer labels and `output`, probabilities unless `from_logits`.

    Probabilities are kept `K.epsilon()` away from 0 and 1, unless they are the `K.softmax` of logits. `target` has the
    shape of `output` without `axis`, or with length 1 there. A label out of range counts as no class and gives 0. The
    result has no `axis`.
    """
    given = floating(as_tensor(output))
    axis = axis_of(axis, given.ndim, "sparse_categorical_crossentropy")
    labels = as_tensor(target)
    if labels.ndim == given.ndim:
        labels = reductions.sum(labels, axis)
    if not from_logits and given.op == "softmax" and given.attrs["axis"] == axis:
        direct = sparse_categorical_crossentropy(labels, elementwise.log(_inside(given)), from_logits=True, axis=axis)
        return _computed(sparse_categorical_crossentropy(labels, given.inputs[0], from_logits=True, axis=axis), direct)
    logits = given if from_logits else elementwise.log(_inside(given))
    logs = apply("log_softmax", logits, axis=axis)
    if axis != given.ndim - 1:
        order = [i for i in range(given.ndim) if i != axis] + [axis]
        logs = apply("transpose", logs, permutation=order)
    classes = one_hot_as(cast(labels, "int64"), logs.shape[-1], "bool")
    return -reductions.sum(apply("select", classes, logs, scalar(0, logs.dtype)), -1)


def binary_crossentropy(target: Any, output: Any, from_logits: bool = False) -> Tensor:
    """Elementwise cross entropy between `target` and `output`, probabilities unless `from_logits`.

    Probabilities are kept `K.epsilon()` away from 0 and 1, unless they are the `K.sigmoid` of logits: it is computed
    from these then.
    """
    target, output = operands(target, output)
    wanted, given = floating(target), floating(output)
    if from_logits:
        # -log of what is predicted for the likelier class, and what the other one adds: for targets of 0 and 1 each
        # is exact, and so are their slopes, at 0 too.
        negative = apply("less", given, scalar(0, given.dtype))
        likelier = apply("softplus", apply("select", negative, given, -given))
        return likelier + apply("select", negative, -wanted, 1.0 - wanted) * given
    p = _inside(given)
    loss = -(wanted * elementwise.log(p) + (1.0 - wanted) * apply("log1p", -p))
    if given.op == "sigmoid":
        return _computed(binary_crossentropy(wanted, given.inputs[0], from_logits=True), loss)
    return loss


def _computed(by_logits: Tensor, direct: Tensor) -> Tensor:
    """A crossentropy computed from logits, as Keras on TensorFlow does: their sigmoid or softmax rounds to 0 and 1,
    where the loss would be no larger than for `K.epsilon()`, and have no slope.
    """
    node = Crossentropy("crossentropy", (by_logits,), {}, by_logits.shape, by_logits.dtype, caller())
    node.direct = direct
    return node


def _inside(p: Tensor) -> Tensor:
    """Probabilities kept `K.epsilon()` from 0 and 1; from 1 by what the dtype can tell from it, if that is more."""
    kind, limits = np.dtype(p.dtype).type, np.finfo(p.dtype)
    # float16 is computed in float32, where its subnormal numbers are normal ones.
    least = limits.smallest_subnormal if p.dtype == "float16" else limits.tiny
    epsilon = max(kind(config.epsilon()), least) if config.epsilon() > 0 else kind(0)
    # 1 - epsilon rounds to 1 in float16, whose logarithm of 1 - p would be infinite.
    below = min(kind(1) - epsilon, np.nextafter(kind(1), kind(0)))
    return elementwise.clip(p, float(epsilon), float(below))


def in_top_k(predictions: Any, targets: Any, k: int) -> Tensor:
    """For each row, whether fewer than `k` classes are predicted above its target class; bool.

    False where the prediction isn't finite or the target isn't a class.
    """
    scores = as_tensor(predictions)
    chosen = one_hot_as(cast(as_tensor(targets), "int64"), scores.shape[-1], "bool")
    zero = scalar(0, scores.dtype)
    own = reductions.sum(apply("select", chosen, scores, zero), -1, keepdims=True)
    above = reductions.sum(cast(apply("less", own, scores), "int32"), -1)
    finite = apply("less", apply("abs", own), scalar(np.inf, scores.dtype))
    valid = apply("logical_and", reductions.any(chosen, -1), reductions.all(finite, -1))
    return apply("logical_and", binary("less", above, int(k)), valid)
