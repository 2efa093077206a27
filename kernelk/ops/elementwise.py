"""Elementwise K functions: arithmetic, comparison, rounding of ranges, casts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph.nodes import Tensor
from ..graph.rules import apply
from .dtypes import as_tensor, check_dtype, floating
from .dtypes import cast as cast_to
from .operators import binary, numeric


def abs(x: Any) -> Tensor:
    """Absolute value, elementwise; same shape and dtype."""
    return apply("abs", numeric(as_tensor(x)))


def sqrt(x: Any) -> Tensor:
    """Square root, elementwise. Negative values count as 0, as in Keras; integers become floatx."""
    x = floating(as_tensor(x))
    return apply("sqrt", binary("maximum", x, 0.0))


def exp(x: Any) -> Tensor:
    """e to the power of each element; integers become floatx."""
    return apply("exp", floating(as_tensor(x)))


def log(x: Any) -> Tensor:
    """Natural logarithm: -inf for 0 and NaN below; integers become floatx."""
    return apply("log", floating(as_tensor(x)))


def square(x: Any) -> Tensor:
    """Each element times itself."""
    x = numeric(as_tensor(x))
    return apply("multiply", x, x)


def pow(x: Any, a: Any) -> Tensor:
    """`x` to the power `a`, elementwise with broadcasting."""
    return binary("power", x, a)


def sign(x: Any) -> Tensor:
    """-1, 0 or 1 by each element's sign; NaN stays."""
    return apply("sign", numeric(as_tensor(x)))


def clip(x: Any, min_value: Any, max_value: Any) -> Tensor:
    """Elements limited to [min_value, max_value]; where max_value lies below min_value it counts as min_value."""
    if isinstance(min_value, (int, float)) and isinstance(max_value, (int, float)):
        max_value = max(max_value, min_value)
    result = as_tensor(x)
    low = -np.inf if min_value is None else min_value
    high = np.inf if max_value is None else max_value
    if not (isinstance(low, float) and low == -np.inf):
        result = binary("maximum", result, low)
    if not (isinstance(high, float) and high == np.inf):
        result = binary("minimum", result, high)
    return result


def equal(x: Any, y: Any) -> Tensor:
    """Elementwise x == y as a bool tensor, with broadcasting."""
    return binary("equal", x, y)


def not_equal(x: Any, y: Any) -> Tensor:
    """Elementwise x != y as a bool tensor, with broadcasting."""
    return binary("not_equal", x, y)


def greater(x: Any, y: Any) -> Tensor:
    """Elementwise x > y as a bool tensor, with broadcasting."""
    return binary("less", y, x)


def greater_equal(x: Any, y: Any) -> Tensor:
    """Elementwise x >= y as a bool tensor, with broadcasting."""
    return binary("less_equal", y, x)


def less(x: Any, y: Any) -> Tensor:
    """Elementwise x < y as a bool tensor, with broadcasting."""
    return binary("less", x, y)


def less_equal(x: Any, y: Any) -> Tensor:
    """Elementwise x <= y as a bool tensor, with broadcasting."""
    return binary("less_equal", x, y)


def maximum(x: Any, y: Any) -> Tensor:
    """The larger of each pair of elements; NaN wins."""
    return binary("maximum", x, y)


def minimum(x: Any, y: Any) -> Tensor:
    """The smaller of each pair of elements; NaN wins."""
    return binary("minimum", x, y)


def cast(x: Any, dtype: Any) -> Tensor:
    """`x` in another dtype: integers take floats truncated towards 0, any number but 0 is True. Raises DTypeError."""
    return cast_to(as_tensor(x), check_dtype(dtype))


def round(x: Any) -> Tensor:
    """The nearest whole number, halves to the even one; integers stay."""
    return apply("round", numeric(as_tensor(x)))


def sin(x: Any) -> Tensor:
    """Sine of radians; integers become floatx."""
    return apply("sin", floating(as_tensor(x)))


def cos(x: Any) -> Tensor:
    """Cosine of radians; integers become floatx."""
    return apply("cos", floating(as_tensor(x)))
