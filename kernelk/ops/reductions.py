"""Reductions over axes; each keeps its operand's dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph.nodes import Tensor
from ..graph.rules import RULES, Rule, apply
from .dtypes import as_tensor, cast, floating
from .operators import binary, numeric
from .shapes import axes_of, axis_of, broadcast_to, kept, reduced, scalar


def sum(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Sum over `axis` (None: all; an int or several); keeps the dtype, so integers wrap. bool counts as int32."""
    x = numeric(as_tensor(x))
    axes = axes_of(axis, x.ndim, "sum")
    return apply("sum", x, axes=axes, keepdims=bool(keepdims)) if axes else x


def mean(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Mean over `axis`; integers and bools become floatx. The mean of an empty tensor is NaN."""
    x = floating(as_tensor(x))
    axes = axes_of(axis, x.ndim, "mean")
    return apply("mean", x, axes=axes, keepdims=bool(keepdims)) if axes else x


def max(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Largest element over `axis`; NaN wins. Raises ShapeError for an empty axis."""
    x = numeric(as_tensor(x))
    axes = axes_of(axis, x.ndim, "max")
    return apply("max", x, axes=axes, keepdims=bool(keepdims)) if axes else x


def min(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Smallest element over `axis`; NaN wins. Raises ShapeError for an empty axis."""
    x = numeric(as_tensor(x))
    axes = axes_of(axis, x.ndim, "min")
    return apply("min", x, axes=axes, keepdims=bool(keepdims)) if axes else x


def argmax(x: Any, axis: int = -1) -> Tensor:
    """Index of the first largest element along `axis`, int64."""
    x = numeric(as_tensor(x))
    return apply("argmax", x, axis=axis_of(axis, x.ndim, "argmax"))


def argmin(x: Any, axis: int = -1) -> Tensor:
    """Index of the first smallest element along `axis`, int64."""
    x = numeric(as_tensor(x))
    return apply("argmin", x, axis=axis_of(axis, x.ndim, "argmin"))


def prod(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Product over `axis`; keeps the dtype, so integers wrap. bool counts as int32."""
    x = numeric(as_tensor(x))
    axes = axes_of(axis, x.ndim, "prod")
    return apply("prod", x, axes=axes, keepdims=bool(keepdims)) if axes else x


def cumsum(x: Any, axis: int = 0) -> Tensor:
    """Running sum along `axis`."""
    x = numeric(as_tensor(x))
    return apply("cumsum", x, axis=axis_of(axis, x.ndim, "cumsum"))


def cumprod(x: Any, axis: int = 0) -> Tensor:
    """Running product along `axis`."""
    x = numeric(as_tensor(x))
    return apply("cumprod", x, axis=axis_of(axis, x.ndim, "cumprod"))


def var(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Variance over `axis` (of the population: divided by n); integers become floatx."""
    x = floating(as_tensor(x))
    if x.dtype == "float16":
        return cast(var(cast(x, "float32"), axis, keepdims), "float16")
    off = centred(x, mean(x, axis, keepdims=True), axis)
    return mean(off * off, axis, keepdims)


def centred(x: Tensor, middle: Tensor, axis: Any) -> Tensor:
    """`x` less its mean over `axis`, with the digits that its rounded mean, `middle`, has lost."""
    near = x - apply("stop_gradient", middle)
    return near - mean(near, axis, keepdims=True)


def std(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Standard deviation over `axis`: the square root of `var`."""
    x = floating(as_tensor(x))
    if x.dtype == "float16":
        return cast(std(cast(x, "float32"), axis, keepdims), "float16")
    return apply("sqrt", var(x, axis, keepdims))


def logsumexp(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over `axis`, without overflow."""
    values = floating(as_tensor(x))
    axes = axes_of(axis, values.ndim, "logsumexp")
    if not axes:
        return values
    zero, one = scalar(0, values.dtype), scalar(1, values.dtype)
    top = apply("stop_gradient", apply("max", values, axes=axes, keepdims=True))
    # An infinite maximum would give inf - inf.
    finite = apply("less", apply("abs", top), scalar(np.inf, values.dtype))
    top = apply("select", finite, top, zero)
    powers = apply("exp", values - top)
    above = apply("sum", powers, axes=axes, keepdims=True) - 1.0
    # One of the largest, whose power is 1, is left out of the sum: where it is nearly all, the others decide.
    largest = apply("equal", values, top)
    others = apply("sum", apply("select", largest, zero, powers), axes=axes, keepdims=True)
    count = apply("sum", apply("select", largest, one, zero), axes=axes, keepdims=True)
    lost = apply("select", finite, others + (count - 1.0) - above, zero)
    total = apply("log1p", above + apply("stop_gradient", lost)) + top
    return total if keepdims else apply("sum", total, axes=axes, keepdims=False)


def any(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Whether any element over `axis` is nonzero (or True), as bool."""
    return binary("not_equal", _how_many(x, axis, keepdims, True), 0)


def all(x: Any, axis: Any = None, keepdims: bool = False) -> Tensor:
    """Whether all elements over `axis` are nonzero (or True), as bool."""
    return binary("equal", _how_many(x, axis, keepdims, False), 0)


def _how_many(x: Any, axis: Any, keepdims: bool, nonzero: bool) -> Tensor:
    truth = cast(as_tensor(x), "bool")
    counted = truth if nonzero else apply("logical_not", truth)
    return sum(cast(counted, "int32"), axis, keepdims)


def _mean(x: Tensor, axes: list[int], keepdims: bool) -> Tensor:
    if x.dtype == "float16":
        # Its sum may lie beyond the largest float16, and the number of elements too.
        return cast(_mean(cast(x, "float32"), axes, keepdims), "float16")
    total = apply("sum", x, axes=axes, keepdims=keepdims)
    return total / apply("size", x, axes=axes, result=x.dtype)


def _vjp_mean(node: Tensor, g: Tensor) -> list[Tensor | None]:
    (x,) = node.inputs
    axes = node.attrs["axes"]
    return [broadcast_to(kept(g / apply("size", x, axes=axes, result=x.dtype), x, axes), x)]


RULES["mean"] = Rule(
    lambda x, axes, keepdims: (reduced(x.shape, axes, keepdims), x.dtype), vjp=_vjp_mean, decompose=_mean
)
