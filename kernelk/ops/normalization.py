"""Normalisation over batches and features, and biases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import ShapeError
from ..graph.nodes import Tensor
from ..graph.rules import apply
from . import reductions
from .arranging import normalize_data_format
from .dtypes import FLOATS, as_tensor, cast, floating, partner_of
from .operators import binary
from .shapes import axes_of, axis_of


def l2_normalize(x: Any, axis: Any = None) -> Tensor:
    """`x` divided by its Euclidean length along `axis` (at least 1e-6)."""
    values = floating(as_tensor(x))
    if values.dtype == "float16":
        return cast(l2_normalize(cast(values, "float32"), axis), "float16")
    squares = reductions.sum(values * values, axis, keepdims=True)
    return values / apply("sqrt", binary("maximum", squares, 1e-12))


def _along(x: Tensor, parameter: Any, axis: int) -> Tensor:
    """A vector set to broadcast along `axis` of `x`; a tensor of several axes, or of none, broadcasts as it is."""
    tensor = as_tensor(parameter, x.dtype)
    if tensor.dtype not in FLOATS:
        tensor = cast(tensor, x.dtype)
    if tensor.ndim != 1 or x.ndim == 1:
        return tensor
    dims: list[Any] = [1] * x.ndim
    dims[axis] = -1 if tensor.shape[0] is None else tensor.shape[0]
    return apply("reshape", tensor, dims=dims)


def batch_normalization(
    x: Any, mean: Any, var: Any, beta: Any, gamma: Any, axis: int = -1, epsilon: float = 1e-3
) -> Tensor:
    """(x - mean) / sqrt(var + epsilon) * gamma + beta, with statistics along `axis`; gamma and beta may be None."""
    values = floating(as_tensor(x, partner_of([mean, var, beta, gamma])))
    axis = axis_of(axis, values.ndim, "batch_normalization")
    if values.dtype == "float16":
        wide = batch_normalization(cast(values, "float32"), mean, var, beta, gamma, axis, epsilon)
        return cast(wide, "float16")
    centred = values - _along(values, mean, axis)
    scale = None if gamma is None else _along(values, gamma, axis)
    normed = centred * _factor(_along(values, var, axis), epsilon, scale)
    return normed if beta is None else normed + _along(values, beta, axis)


def _factor(variance: Tensor, epsilon: float, gamma: Tensor | None) -> Tensor:
    """What centred values are multiplied by: small, where each op on the values themselves goes over a whole batch."""
    return binary("divide", 1.0 if gamma is None else gamma, apply("sqrt", variance + epsilon))


def normalize_batch_in_training(
    x: Any, gamma: Any, beta: Any, reduction_axes: Sequence[int], epsilon: float = 1e-3
) -> tuple[Tensor, Tensor, Tensor]:
    """(normalised x, mean, variance) over `reduction_axes`; gamma and beta are vectors along the axis that is left."""
    values = floating(as_tensor(x, partner_of([gamma, beta])))
    axes = axes_of(list(reduction_axes), values.ndim, "normalize_batch_in_training")
    if values.dtype == "float16":
        normed, mean, variance = normalize_batch_in_training(cast(values, "float32"), gamma, beta, axes, epsilon)
        return cast(normed, "float16"), cast(mean, "float16"), cast(variance, "float16")
    left = [i for i in range(values.ndim) if i not in axes]
    mean = reductions.mean(values, axes, keepdims=True)
    off = reductions.centred(values, mean, axes)
    variance = reductions.mean(off * off, axes, keepdims=True)
    scale, shift = (
        None if parameter is None else _parameter(values, as_tensor(parameter, values.dtype), left)
        for parameter in (gamma, beta)
    )
    normed = off * _factor(variance, epsilon, scale)
    if shift is not None:
        normed = normed + shift
    return normed, _dropped(mean, axes), _dropped(variance, axes)


def _parameter(x: Tensor, parameter: Tensor, left: Sequence[int]) -> Tensor:
    return _along(x, parameter, left[0]) if len(left) == 1 else parameter


def _dropped(x: Tensor, axes: Sequence[int]) -> Tensor:
    return apply("sum", x, axes=list(axes), keepdims=False)


def bias_add(x: Any, bias: Any, data_format: Any = None) -> Tensor:
    """`x` plus a bias for each channel, or for each position and channel. Raises ShapeError for another rank.

    Channels are the last axis of a bias of several axes. With channels first, its elements are read in the order of
    `x`'s own axes, as in Keras (a reshape, not a transposition).
    """
    values = floating(as_tensor(x))
    tensor = as_tensor(bias, values.dtype)
    first = normalize_data_format(data_format) == "channels_first"
    if tensor.ndim not in (1, values.ndim - 1):
        raise ShapeError(
            f"bias_add: a bias of shape {tensor.shape} doesn't fit x of shape {values.shape}",
            allowed=f"it needs 1 axis or {values.ndim - 1}" if values.ndim > 2 else "it needs 1 axis",
            next_step="K.flatten(bias)",
        )
    if tensor.ndim == 1:
        return binary("add", values, _along(values, tensor, 1 if first and values.ndim > 2 else values.ndim - 1))
    if first and values.ndim > 2:
        order = [tensor.ndim - 1, *range(tensor.ndim - 1)]
        tensor = apply("reshape", tensor, dims=[[0, i] if tensor.shape[i] is None else tensor.shape[i] for i in order])
    return binary("add", values, tensor)
