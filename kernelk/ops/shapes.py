"""Shapes that ops have in common: broadcasting, axes, and graph written to bring a tensor to a shape."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, ShapeError
from ..graph.nodes import Constant, Shape, Tensor, constant_node
from ..graph.rules import apply

# The names of spatial axes, by their number.
_SPATIAL = {1: ("steps",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def image_axes(spatial: int, first: bool = False) -> tuple[str, ...]:
    """The names of a batch's axes, with so many spatial ones; `first`: channels come before these."""
    return ("batch", "channels", *_SPATIAL[spatial]) if first else ("batch", *_SPATIAL[spatial], "channels")


def rank_refused(op: str, name: str, shape: Shape, axes: Sequence[str]) -> ShapeError:
    """The refusal of an argument that hasn't as many axes as these, with the call that gives it as many."""
    near = f"K.reshape({name}, ({', '.join(axes)}))"
    if len(shape) == len(axes) - 1:
        inner = axes.index("channels") if "channels" in axes else len(axes) - 1
        near = f"K.expand_dims({name}, 0) adds {axes[0]}, K.expand_dims({name}, {inner}) adds {axes[inner]}"
    elif len(shape) == len(axes) + 1 and 1 in shape:
        near = f"K.squeeze({name}, {shape.index(1)})"
    return ShapeError(
        f"{op}: {name} has shape {shape}",
        allowed=f"it needs {len(axes)} axes ({', '.join(axes)})",
        next_step=near,
    )


def scalar_refused(op: str, name: str = "x") -> ShapeError:
    """The refusal of a scalar by an op that goes along an axis."""
    return ShapeError(
        f"{op}: {name} is a scalar", allowed="it needs at least one axis", next_step=f"K.expand_dims({name}, 0)"
    )


def inner_refused(a: str, b: str, k: int, j: int, next_step: str = "") -> ShapeError:
    """The refusal of a product, its operands' shapes in words, whose inner dimensions are `k` and `j`."""
    return ShapeError(
        f"dot: shapes {a} and {b} don't fit: inner dimensions {k} and {j} differ",
        allowed="they must be equal",
        next_step=next_step,
    )


def index_refused(index: int, axis: int, shape: Shape) -> ShapeError:
    """The refusal of an index that an axis of known length doesn't have."""
    n = shape[axis] or 0
    return ShapeError(
        f"index {index} is out of range for axis {axis} of length {n} (shape {shape})",
        allowed=f"allowed are {-n} to {n - 1}" if n else "an empty axis has no element",
    )


def broadcast(a: Shape, b: Shape, op: str = "broadcast") -> Shape:
    """numpy's broadcasting where None is unknown: None with 1 or None stays unknown, with n it must turn out n or 1."""
    if a == b or not b:
        return a
    if not a:
        return b
    given = a, b
    if len(a) < len(b):
        a = (1,) * (len(b) - len(a)) + a
    elif len(b) < len(a):
        b = (1,) * (len(a) - len(b)) + b
    result = []
    for m, n in zip(a, b):
        if m == n or n == 1:
            result.append(m)
        elif m == 1 or m is None:
            result.append(n)
        elif n is None:
            result.append(m)
        else:
            raise ShapeError(
                f"{op}: shapes {given[0]} and {given[1]} don't broadcast",
                allowed="each axis must be equal, or 1 in one of them",
            )
    return tuple(result)


def reduced(shape: Shape, axes: Sequence[int], keepdims: bool) -> Shape:
    """`shape` without `axes`, or with 1 in their place."""
    if keepdims:
        return tuple(1 if i in axes else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def count(shape: Shape) -> int | None:
    """The number of elements, None if unknown; an axis of length 0 decides whatever the others are."""
    if 0 in shape:
        return 0
    total = 1
    for n in shape:
        if n is None:
            return None
        total *= n
    return total


def own_dims(x: Tensor, operand: int = 0) -> list[Any]:
    """`dims` that name the shape of operand number `operand`, which is `x`: ints where known, references elsewhere."""
    return [[operand, axis] if n is None else n for axis, n in enumerate(x.shape)]


def shaped_as(x: Tensor, like: Tensor) -> Tensor:
    """`x` reshaped to the shape of `like`, which holds as many elements."""
    if x.shape == like.shape and None not in like.shape:
        return x
    # Beside an empty axis, -1 couldn't be worked out.
    if like.shape.count(None) <= (0 not in like.shape):
        return apply("reshape", x, dims=[-1 if n is None else n for n in like.shape])
    return apply("reshape", x, like, dims=own_dims(like, 1))


def merge_axes(x: Tensor, first: int, last: int) -> Tensor:
    """`x` with its axes `first` to `last` as one (a new one of length 1 where `last` is before `first`)."""
    if first == last:
        return x
    inside = range(first, last + 1)
    length: Any = count(x.shape[first : last + 1])
    dims = [n for i, n in enumerate(own_dims(x)) if i not in inside]
    references: tuple[Tensor, ...] = ()
    if length is None:
        length = -1
        if builtins.any(not isinstance(n, int) or n == 0 for n in dims):
            # Beside an axis that may be empty, -1 couldn't be worked out: it is where all others are brought to 1.
            ones = [[None, None, None] if i in inside else [0, 1, None] for i in range(x.ndim)]
            pads = [[0, 0] if i in inside else [1, 0] for i in range(x.ndim)]
            filled = apply("pad", apply("slice", x, slices=ones), pads=pads)
            references = (apply("reshape", apply("slice", filled, slices=ones), dims=[-1]),)
            length = [1, 0]
    return apply("reshape", x, *references, dims=[*dims[:first], length, *dims[first:]])


def broadcast_to(x: Tensor, like: Tensor) -> Tensor:
    """`x` broadcast to the shape of `like`."""
    if None not in like.shape:
        return x if x.shape == like.shape else apply("broadcast_to", x, dims=list(like.shape))
    return apply("broadcast_to", x, like, dims=own_dims(like, 1))


def sum_to(x: Tensor, like: Tensor) -> Tensor:
    """`x` summed over the axes along which `like` was broadcast to its shape."""
    if x.shape == like.shape and None not in x.shape:
        return x
    extra = x.ndim - like.ndim
    certain = [i for i in range(x.ndim) if i < extra or (like.shape[i - extra] == 1 and x.shape[i] != 1)]
    doubtful = any(like.shape[i - extra] is None and x.shape[i] != 1 for i in range(extra, x.ndim) if i not in certain)
    if doubtful:
        # Whether an unknown axis was 1 is known only when shapes are: program.encode writes this op out.
        return apply("sum_to", x, like)
    if not certain:
        return x
    total = apply("sum", x, axes=certain, keepdims=True)
    return shaped_as(total, like) if extra else total


def zeros_shaped(like: Tensor, dtype: str | None = None) -> Tensor:
    """A tensor of zeros in the shape of `like`."""
    return broadcast_to(scalar(0, dtype or like.dtype), like)


def scalar(value: float, dtype: str) -> Constant:
    """A 0-d constant."""
    return constant_node(np.asarray(value, dtype=dtype))


def scalar_of(node: Tensor) -> float | None:
    """The value of a 0-d constant, None for any other tensor."""
    if isinstance(node, Constant) and node.array.size == 1:
        return node.array.item()  # type: ignore[no-any-return]
    return None


def known_dims(dims: Sequence[Any], inputs: Sequence[Any]) -> list[int | None]:
    """`dims` with references resolved as far as shapes are known; -1 stays."""
    return [
        (None if dim[0] == "value" else inputs[dim[0]].shape[dim[1]]) if isinstance(dim, (list, tuple)) else dim
        for dim in dims
    ]


def kept(x: Tensor, reduced_from: Tensor, axes: Sequence[int]) -> Tensor:
    """A reduction's result with axes of length 1 put back where `axes` were reduced away."""
    if x.ndim == reduced_from.ndim:
        return x
    dims: list[Any] = [1 if i in axes else n for i, n in enumerate(reduced_from.shape)]
    if dims.count(None) <= (0 not in dims):
        return apply("reshape", x, dims=[-1 if n is None else n for n in dims])
    dims = [[1, i] if n is None else n for i, n in enumerate(dims)]
    return apply("reshape", x, reduced_from, dims=dims)


def reversed_along(x: Tensor, axes: Sequence[int]) -> Tensor:
    """`x` with the order of elements turned round along `axes`."""
    return apply("slice", x, slices=[[None, None, -1 if i in axes else None] for i in range(x.ndim)])


def renumbered(entries: Any, by: int) -> Any:
    """Pads, dims or slices with the operands that they refer to moved by `by` places."""
    if not isinstance(entries, list):
        return entries
    if len(entries) == 3 and entries[0] == "value":
        return ["value", entries[1] + by, entries[2]]
    return [renumbered(entry, by) for entry in entries]


def matmul(a: Tensor, b: Tensor, transpose_a: bool = False, transpose_b: bool = False) -> Tensor:
    """The product of two matrices, each transposed first if so asked."""
    return apply("matmul", a, b, transpose_a=transpose_a, transpose_b=transpose_b)


def whole_number(value: Any, name: str, op: str) -> int:
    """An argument as an int. Raises ArgumentError where it isn't one; a float is taken if it is whole."""
    try:
        number = int(value)
        if number == value:
            return number
    except (TypeError, ValueError, OverflowError):
        pass
    raise ArgumentError(f"{op}: {name} {value!r} isn't allowed", allowed="it must be an int")


def listed(value: Any, op: str) -> list[Any]:
    """An argument that is a list of tensors. Raises ArgumentError where it is none."""
    if not hasattr(value, "__iter__"):
        raise ArgumentError(
            f"{op}: {type(value).__name__} isn't a list of tensors",
            allowed="it must be one",
            next_step=f"K.{op}([x, y])",
        )
    return list(value)


def axis_of(axis: Any, ndim: int, op: str) -> int:
    """`axis` as a non-negative int. Raises ShapeError where the tensor has no such axis."""
    index = whole_number(axis, "axis", op)
    if not -ndim <= index < ndim:
        raise ShapeError(
            f"{op}: axis {axis} is out of range for a tensor of {ndim} axes",
            allowed=f"allowed are {-ndim} to {ndim - 1}" if ndim else "a scalar has none",
        )
    return index % ndim


def axes_of(axis: Any, ndim: int, op: str) -> list[int]:
    """`axis` (None: all, an int, or a list, tuple or vector of several) as a sorted list of non-negative ints."""
    if axis is None:
        return list(range(ndim))
    several = isinstance(axis, (list, tuple)) or (isinstance(axis, np.ndarray) and axis.ndim == 1)
    axes = axis if several else [axis]
    resolved = sorted(axis_of(a, ndim, op) for a in axes)
    if len(builtins.set(resolved)) != len(resolved):
        raise ArgumentError(
            f"{op}: axis {axis} names one axis twice",
            allowed="each may be named once",
            next_step=f"axis={sorted(builtins.set(resolved))}",
        )
    return resolved
