"""Python's operators on tensors: the same ops as the K functions, entered into Tensor here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..graph.nodes import Tensor
from ..graph.rules import apply
from .dtypes import FLOATS, as_tensor, cast, floating, operands


def binary(op: str, a: Any, b: Any) -> Tensor:
    """One elementwise op of two operands, brought to a common dtype first."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype):
        a, b = operands(a, b)
    return apply(op, a, b)


def divide(a: Any, b: Any) -> Tensor:
    """True division: integers are divided as floatx."""
    a, b = operands(a, b)
    if a.dtype not in FLOATS:
        a, b = floating(a), floating(b)
    return apply("divide", a, b)


def numeric(x: Tensor) -> Tensor:
    """Bool as int32, anything else as it is."""
    return cast(x, "int32") if x.dtype == "bool" else x


def _left(op: str) -> Callable[[Tensor, Any], Tensor]:
    return lambda self, other: binary(op, self, other)


def _right(op: str) -> Callable[[Tensor, Any], Tensor]:
    return lambda self, other: binary(op, other, self)


def _install() -> None:
    for name, op in {
        "add": "add",
        "sub": "subtract",
        "mul": "multiply",
        "floordiv": "floor_divide",
        "mod": "mod",
        "pow": "power",
        "and": "logical_and",
        "or": "logical_or",
    }.items():
        setattr(Tensor, f"__{name}__", _left(op))
        setattr(Tensor, f"__r{name}__", _right(op))
    methods: dict[str, Any] = {
        "__truediv__": divide,
        "__rtruediv__": lambda self, other: divide(other, self),
        "__lt__": _left("less"),
        "__le__": _left("less_equal"),
        "__gt__": _right("less"),
        "__ge__": _right("less_equal"),
        "__neg__": lambda self: apply("negative", self),
        "__pos__": as_tensor,
        "__abs__": lambda self: apply("abs", numeric(self)),
        "__invert__": lambda self: apply("logical_not", self),
    }
    for name, method in methods.items():
        setattr(Tensor, name, method)


_install()
