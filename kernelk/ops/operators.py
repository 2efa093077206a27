"""Python's operators and `[...]` on tensors: the same ops as the K functions, entered into Tensor here."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ArgumentError, ShapeError
from ..graph.nodes import Tensor
from ..graph.rules import apply
from .dtypes import FLOATS, INTEGERS, cast, floating, operands
from .shapes import index_refused


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


def _slice_entry(entry: builtins.slice) -> list[int | None]:
    def bound(value: Any) -> int | None:
        if value is None:
            return None
        if isinstance(value, Tensor):
            raise ArgumentError(
                "a slice's bounds must be Python ints", next_step="use K.slice or K.gather for values in the graph"
            )
        return int(value)

    if entry.step is not None and int(entry.step) == 0:
        raise ArgumentError("slice step can't be 0", allowed="it must be positive or negative")
    return [bound(entry.start), bound(entry.stop), bound(entry.step)]


def index(x: Tensor, key: Any) -> Tensor:
    """`x[key]`: ints, slices (any step), `...` and None, as in numpy. Raises ShapeError for an index out of range.

    An integer tensor of no axes is an index too: its value is known at each call, and out of range it gives NaN (0 for
    integers), as `K.gather` does.
    """
    entries = list(key) if isinstance(key, tuple) else [key]
    if sum(entry is Ellipsis for entry in entries) > 1:
        raise ArgumentError("an index holds '...' more than once", allowed="only one is allowed")
    used = sum(entry is not None and entry is not Ellipsis for entry in entries)
    if used > x.ndim:
        raise ShapeError(
            f"{used} indices for a tensor of {x.ndim} axes (shape {x.shape})",
            allowed=f"at most {x.ndim} are allowed" if x.ndim else "a scalar takes none",
        )
    if not any(entry is Ellipsis for entry in entries):
        entries.append(Ellipsis)
    slices: list[list[int | None]] = []
    dims: list[Any] = []  # of the result; an int names an axis of the sliced tensor, None a new axis
    chosen: list[tuple[int, Tensor]] = []  # axes of the result that an index in the graph takes an element of
    for entry in entries:
        axis = len(slices)
        if entry is None:
            dims.append(None)
        elif entry is Ellipsis:
            for extra in range(x.ndim - used):
                dims.append(axis + extra)
                slices.append([None, None, None])
        elif isinstance(entry, builtins.slice):
            dims.append(axis)
            slices.append(_slice_entry(entry))
        elif isinstance(entry, Tensor) and entry.ndim == 0 and entry.dtype in INTEGERS:
            chosen.append((len(dims), entry))
            dims.append(axis)
            slices.append([None, None, None])
        elif isinstance(entry, (int, np.integer)) and not isinstance(entry, builtins.bool):
            n = x.shape[axis]
            if n is not None and not -n <= entry < n:
                raise index_refused(int(entry), axis, x.shape)
            slices.append([int(entry), None if entry == -1 else int(entry) + 1, None])
        else:
            raise ArgumentError(
                f"a tensor is indexed by ints, 0-d integer tensors, slices, '...' and None, not {type(entry).__name__}",
                next_step="use K.gather for several indices",
            )
    sliced = x if all(entry == [None, None, None] for entry in slices) else apply("slice", x, slices=slices)
    if dims != list(range(x.ndim)):
        shape = [1 if d is None else [0, d] if sliced.shape[d] is None else sliced.shape[d] for d in dims]
        sliced = apply("reshape", sliced, dims=shape)
    for axis, entry in reversed(chosen):
        sliced = _element(sliced, axis, entry)
    return sliced


def _element(x: Tensor, axis: int, entry: Tensor) -> Tensor:
    """The part of `x` at an index that is a tensor; a negative one counts from the end."""
    if not entry.dtype.startswith("u"):
        length = index(apply("shape", x), axis) if x.shape[axis] is None else x.shape[axis]
        entry = apply("select", binary("less", entry, 0), *operands(binary("add", entry, length), entry))
    order = [axis, *(i for i in range(x.ndim) if i != axis)]
    return apply("gather", apply("transpose", x, permutation=order), entry)


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
        "__pos__": lambda self: self,
        "__abs__": lambda self: apply("abs", numeric(self)),
        "__invert__": lambda self: apply("logical_not", self),
        "__getitem__": index,
    }
    for name, method in methods.items():
        setattr(Tensor, name, method)


_install()
