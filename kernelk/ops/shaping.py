"""Arrangement of elements: reshape and its kin, concatenation, one-hot, and a tensor's static and dynamic shape."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import config
from ..backends.lowering import Instruction as Lowered
from ..errors import ArgumentError, DTypeError, ShapeError
from ..graph.nodes import Constant, Shape, Tensor, constant_node
from ..graph.rules import apply
from .dtypes import INTEGERS, as_tensor, as_tensors, check_dtype, promote
from .dtypes import cast as cast_to
from .shapes import axis_of, broadcast_to, count, listed, merge_axes, scalar_refused, whole_number


def shape(x: Any) -> Tensor:
    """The shape as an int32 vector, known at each call; usable as the `shape` argument of other functions."""
    return apply("shape", as_tensor(x))


def int_shape(x: Any) -> Shape | None:
    """The static shape as a tuple, None where unknown; honours `_keras_shape` where Keras has set it."""
    known = getattr(x, "_keras_shape", None)
    if known is not None:
        return tuple(known)
    return tuple(as_tensor(x).shape.as_list())


def ndim(x: Any) -> int:
    """The number of axes."""
    return as_tensor(x).ndim


def dtype(x: Any) -> str:
    """The dtype's name."""
    return as_tensor(x).dtype


def count_params(x: Any) -> int:
    """The static number of elements. Raises ShapeError if an axis is unknown."""
    total = count(as_tensor(x).shape)
    if total is None:
        raise ShapeError(
            f"count_params: shape {as_tensor(x).shape} has unknown axes", next_step="K.size(x) counts at each call"
        )
    return total


def _length_reference(entry: Tensor) -> tuple[Tensor, int] | None:
    """(tensor, axis) if `entry` is `K.shape(tensor)[axis]`."""
    if entry.op == "reshape" and entry.ndim == 0 and entry.inputs[0].op == "slice":
        sliced = entry.inputs[0]
        if sliced.inputs[0].op == "shape":
            start = sliced.attrs["slices"][0][0]
            of = sliced.inputs[0].inputs[0]
            return of, start % of.ndim
    return None


# What lengths are computed with.
_ARITHMETIC = ("add", "subtract", "multiply", "floor_divide", "maximum", "minimum")


def known_integer(x: Tensor) -> int | None:
    """The value of a 0-d integer tensor, if it follows from constants and known lengths; None if not."""
    if isinstance(x, Constant):
        return int(x.array.item())
    length = _length_reference(x)
    if length is not None:
        return length[0].shape[length[1]]
    if x.op not in (*_ARITHMETIC, "negative", "cast", "identity") or x.dtype not in INTEGERS:
        return None
    operands = [known_integer(operand) if operand.ndim == 0 else None for operand in x.inputs]
    if None in operands or x.inputs[0].dtype not in INTEGERS:
        return None
    if x.op in ("cast", "identity"):
        return operands[0]
    # Writing a graph imports no backend, unless it computes with lengths.
    from ..backends.numpy.ops import OPS as NUMPY

    call = Lowered(0, x.op, (), {}, x.dtype, ())
    return int(NUMPY[x.op](call, *[np.asarray(n, dtype=x.dtype) for n in operands]))


def unstacked(vector: Tensor) -> list[Tensor] | None:
    """The 0-d tensors that `K.stack` made this integer vector of; None if it was made in another way."""
    while vector.op == "cast" and {vector.dtype, vector.inputs[0].dtype} <= INTEGERS:
        vector = vector.inputs[0]
    if vector.op != "concatenate" or not all(x.op == "reshape" and x.inputs[0].ndim == 0 for x in vector.inputs):
        return None
    return [x.inputs[0] for x in vector.inputs]


# Of which a shape is made.
_LENGTHS = "a length must be an int or a 0-d integer tensor"


def dims_of(shape: Any, first: int, op: str) -> tuple[list[Any], tuple[Tensor, ...]]:
    """A `shape` argument as `dims` and the tensors that they refer to, numbered from `first`.

    `shape` is an int, a tuple or list of ints and 0-d integer tensors, or an integer vector tensor. A length taken by
    `K.shape(x)[i]` stays a reference to that axis; any other integer tensor is evaluated before each call.
    """
    references: list[Tensor] = []

    def reference(tensor: Tensor) -> int:
        for number, known in enumerate(references):
            if known is tensor:
                return first + number
        references.append(tensor)
        return first + len(references) - 1

    def entry(value: Any) -> Any:
        if isinstance(value, Constant):
            return int(value.array.item())
        if isinstance(value, Tensor):
            if value.dtype not in INTEGERS or value.ndim:
                raise ArgumentError(f"{op}: {value!r} can't be a length", allowed=_LENGTHS)
            known = known_integer(value)
            if known is not None:
                return known
            length = _length_reference(value)
            if length is None:
                return ["value", reference(value), 0]
            tensor, axis = length
            return [reference(tensor), axis]
        if value is None:
            raise ArgumentError(
                f"{op}: a shape can't hold None here",
                next_step=f"use {'-1 or ' if op == 'reshape' else ''}K.shape(x)[axis] for an unknown length",
            )
        try:
            # A whole float is taken: old code divides lengths.
            return whole_number(value, "a length", op)
        except ArgumentError:
            raise ArgumentError(f"{op}: {value!r} can't be a length", allowed=_LENGTHS) from None

    if isinstance(shape, Tensor) and shape.ndim == 1:
        if isinstance(shape, Constant):
            return [int(n) for n in shape.array], ()
        if shape.op == "shape":
            of = shape.inputs[0]
            return [[first, i] if n is None else n for i, n in enumerate(of.shape)], (of,)
        parts = unstacked(shape)
        if parts is not None:
            return dims_of(parts, first, op)
        if shape.dtype not in INTEGERS or shape.shape[0] is None:
            raise ArgumentError(
                f"{op}: {shape!r} can't be a shape",
                allowed="a shape tensor must be an integer vector of known length",
                next_step="" if shape.shape[0] is None else "K.cast(shape, 'int32')",
            )
        return [["value", first, i] for i in range(shape.shape[0])], (shape,)
    entries = shape if isinstance(shape, (tuple, list, np.ndarray)) else [shape]
    return [entry(value) for value in entries], tuple(references)


def reshape(x: Any, shape: Any) -> Tensor:
    """The same elements in another shape; one length may be -1. Raises ShapeError where the counts differ."""
    x = as_tensor(x)
    dims, references = dims_of(shape, 1, "reshape")
    bad = [n for n in dims if isinstance(n, int) and n < -1]
    if bad:
        raise ShapeError(f"reshape: {bad[0]} can't be a length", allowed="allowed are 0, 1, 2, ... and one -1")
    return apply("reshape", x, *references, dims=dims)


def flatten(x: Any) -> Tensor:
    """`x` as a vector of all its elements."""
    return apply("reshape", as_tensor(x), dims=[-1])


def batch_flatten(x: Any) -> Tensor:
    """`x` with all axes but the first merged into one."""
    x = as_tensor(x)
    if x.ndim == 0:
        raise scalar_refused("batch_flatten")
    return merge_axes(x, 1, x.ndim - 1)


def expand_dims(x: Any, axis: int = -1) -> Tensor:
    """`x` with a new axis of length 1 at `axis`."""
    x = as_tensor(x)
    index = axis_of(axis, x.ndim + 1, "expand_dims")
    dims: list[Any] = [[0, i] if n is None else n for i, n in enumerate(x.shape)]
    dims.insert(index, 1)
    return apply("reshape", x, dims=dims)


def squeeze(x: Any, axis: int) -> Tensor:
    """`x` without `axis`, whose length must be 1. Raises ShapeError."""
    x = as_tensor(x)
    index = axis_of(axis, x.ndim, "squeeze")
    if x.shape[index] not in (1, None):
        raise ShapeError(
            f"squeeze: axis {axis} of shape {x.shape} has length {x.shape[index]}, not 1",
            allowed="only an axis of length 1 can go",
            next_step=f"K.squeeze(x, {x.shape.index(1)})" if 1 in x.shape else "",
        )
    dims = [[0, i] if n is None else n for i, n in enumerate(x.shape) if i != index]
    return apply("reshape", x, dims=dims)


def concatenate(tensors: Any, axis: int = -1) -> Tensor:
    """Tensors joined along `axis`, brought to their common dtype; sparse if all of them are (see `is_sparse`).

    Raises ShapeError where other axes differ.
    """
    parts = as_tensors(listed(tensors, "concatenate"))
    if not parts:
        raise ArgumentError("concatenate: the list is empty", allowed="it needs at least one tensor")
    common = parts[0].dtype
    for part in parts[1:]:
        common = promote(common, part.dtype)
    if parts[0].ndim == 0:
        raise ShapeError("concatenate: scalars have no axis", next_step="use K.stack")
    index = axis_of(axis, parts[0].ndim, "concatenate")
    joined = apply("concatenate", *[cast_to(part, common) for part in parts], axis=index)
    joined.sparse = all(part.sparse for part in parts)
    return joined


def one_hot(indices: Any, num_classes: int) -> Tensor:
    """Integer indices of shape s as rows of floatx 0 and 1, shape s + (num_classes,); out of range gives zeros."""
    return one_hot_as(as_tensor(indices), whole_number(num_classes, "num_classes", "one_hot"), config.floatx())


def one_hot_as(indices: Tensor, depth: int | None, dtype: str) -> Tensor:
    """`one_hot` in another dtype. Raises DTypeError for indices that aren't integers, ShapeError for unknown depth."""
    if indices.dtype not in INTEGERS:
        raise DTypeError(f"one_hot: indices must be integers, not {indices.dtype}", next_step="use K.cast(x, 'int32')")
    if depth is None:
        raise ShapeError(
            "one_hot: the number of classes isn't known", next_step="give the predictions' last axis a length"
        )
    return apply("one_hot", indices, depth=depth, result=dtype)


def zeros_like(x: Any, dtype: Any = None, name: str | None = None) -> Tensor:
    """Zeros in the shape of `x` (as it is at each call)."""
    return _filled(x, 0, dtype)


def ones_like(x: Any, dtype: Any = None, name: str | None = None) -> Tensor:
    """Ones in the shape of `x` (as it is at each call)."""
    return _filled(x, 1, dtype)


def _filled(x: Any, value: int, dtype: Any) -> Tensor:
    x = as_tensor(x)
    chosen = x.dtype if dtype is None else check_dtype(dtype)
    return broadcast_to(constant_node(np.asarray(value, dtype=chosen)), x)
