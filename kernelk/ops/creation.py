"""Leaves of a graph that hold no state: placeholders and constants, and the functions that tell tensors apart."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ..arrays import fits
from ..errors import ArgumentError, DTypeError, KernelKError
from ..graph.nodes import Placeholder, Shape, Tensor, Variable, constant_node
from ..graph.rules import RULES, Rule, apply
from ..source import caller
from .dtypes import ARRAYS, FLOATS, as_tensor, check_dtype, is_sparse_matrix, no_tensor
from .foreign import as_numpy
from .shapes import whole_number


def placeholder(
    shape: Any = None, ndim: int | None = None, dtype: Any = None, sparse: bool = False, name: str | None = None
) -> Placeholder:
    """A tensor that each call feeds: `shape` may hold None for lengths known at the call; `ndim` stands for all None.

    `sparse`: it may be fed a scipy.sparse matrix, which is made dense at the feed (an array is taken as well).
    dtype: floatx unless given. Raises ArgumentError.
    """
    if shape is None:
        if ndim is None:
            raise ArgumentError("placeholder: give `shape` or `ndim`", next_step="K.placeholder((None, 64))")
        shape = (None,) * whole_number(ndim, "ndim", "placeholder")
    elif isinstance(shape, (int, np.integer)):
        shape = (shape,)
    try:
        lengths: Shape = tuple(None if n in (None, -1) else operator.index(n) for n in shape)
    except TypeError:
        raise ArgumentError(
            f"placeholder: a shape is a tuple of ints, with None for an unknown length, not {shape!r}",
            next_step="K.placeholder((None, 64))",
        ) from None
    if ndim is not None and ndim != len(lengths):
        raise ArgumentError(
            f"placeholder: ndim={ndim} contradicts shape={lengths}", next_step=f"K.placeholder({lengths})"
        )
    if any(n is not None and n < 0 for n in lengths):
        raise ArgumentError(
            f"placeholder: shape {lengths} holds a negative length", next_step="use None for an unknown one"
        )
    node = Placeholder("placeholder", (), {}, lengths, check_dtype(dtype), caller(), name)
    node.sparse = bool(sparse)
    return node


def constant(value: Any, dtype: Any = None, shape: Any = None, name: str | None = None) -> Tensor:
    """A tensor with the given `value`, which fills `shape` if that is given; floatx unless `dtype` says otherwise."""
    if isinstance(value, Tensor):
        raise ArgumentError(
            "constant: the value is a tensor", allowed="it must be an array or a number", next_step="K.identity(tensor)"
        )
    chosen = check_dtype(dtype)
    value = as_numpy(value, "constant")
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError
    except KernelKError:
        raise  # such as that of a tensor in a list: it is more precise
    except (TypeError, ValueError):
        raise ArgumentError(
            f"constant: {type(value).__name__} isn't an array of numbers",
            allowed=ARRAYS,
            next_step="use K.variable(matrix), or matrix.toarray()" if is_sparse_matrix(value) else "",
        ) from None
    if chosen not in FLOATS and chosen != "bool" and not fits(array, chosen):
        raise DTypeError(
            f"constant: the value doesn't fit into {chosen}",
            next_step="choose a dtype that holds it, e.g. dtype='int64'",
        )
    with np.errstate(all="ignore"):
        array = array.astype(chosen)
    if shape is not None:
        lengths = (shape,) if isinstance(shape, int) else tuple(shape)
        if array.size == 1:
            array = np.full(lengths, array.reshape(()))
        elif array.size == np.prod(lengths, dtype=int):
            array = array.reshape(lengths)
        else:
            raise ArgumentError(
                f"constant: a value of shape {array.shape} doesn't fit shape {lengths}",
                allowed=f"it must have one element or {np.prod(lengths, dtype=int)}",
            )
    return constant_node(array, name)


def identity(x: Any, name: str | None = None) -> Tensor:
    """A new tensor with the same value as `x`."""
    node = apply("identity", as_tensor(x))
    if name:
        node.name = f"{node.scope}/{name}" if node.scope else name
    return node


def print_tensor(x: Any, message: str = "") -> Tensor:
    """`x`; each call that uses it prints `message` and the value once, in its cell, after the call is done.

    In the step of a loop (`rnn`, `map_fn`, `foldl`, `foldr`) it is printed once a step, in the order of the steps; the
    values of all steps are kept until the call is done.
    Large values are summarised as numpy prints them. A call that fails prints nothing. Gradients flow through.
    """
    x = as_tensor(x)
    node = apply("print", x, message=str(message))
    node.sparse = x.sparse
    return node


def is_tensor(x: Any) -> bool:
    """Whether `x` is a tensor of kernelk."""
    return isinstance(x, Tensor)


def is_variable(x: Any) -> bool:
    """Whether `x` is a variable."""
    return isinstance(x, Variable)


def is_placeholder(x: Any) -> bool:
    """Whether `x` is a placeholder."""
    return isinstance(x, Placeholder)


def is_keras_tensor(x: Any) -> bool:
    """Whether a Keras layer or `Input` made `x`. Raises ArgumentError for anything but a tensor."""
    if not isinstance(x, Tensor):
        raise no_tensor("is_keras_tensor", x)
    return hasattr(x, "_keras_history")


def _same(x: Any, message: str = "") -> Any:
    return x.shape, x.dtype


# None of them is lowered: they are other names for their operand.
RULES["identity"] = Rule(_same, lambda node, g: [g])
RULES["stop_gradient"] = Rule(_same)
RULES["print"] = Rule(_same, lambda node, g: [g])
