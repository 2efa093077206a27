"""Variables: made, read and written here; their values live in the session, not in the graph."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..arrays import Array, fits
from ..engines import memory
from ..errors import ArgumentError, CopyRefusedError, DTypeError, KernelKError, ShapeError
from ..graph.nodes import Tensor, Variable, constant_node
from ..graph.rules import apply
from ..ops import random
from ..ops.dtypes import ARRAYS, FLOATS, as_tensor, check_dtype, densified, is_sparse_matrix
from ..ops.foreign import as_numpy
from ..ops.shaping import dims_of
from ..ops.updates import as_variable
from ..source import caller
from .current import current
from .function import Function, evaluate


def variable(value: Any, dtype: Any = None, name: str | None = None, constraint: Any = None) -> Variable:
    """State with the initial `value` (array, number, list or tensor, which is evaluated now), kept across swaps.

    A scipy.sparse matrix makes a variable that `is_sparse` and is held densely.
    dtype: floatx unless given, as in Keras. Raises DTypeError or ArgumentError for what isn't numeric.
    """
    chosen = check_dtype(dtype)
    if isinstance(value, Tensor):
        value = evaluate(value)
    sparse = is_sparse_matrix(value)
    with memory.translated("variable"):
        value = as_numpy(densified(value, "variable"), "variable")
        try:
            array = np.asarray(value)
            if array.dtype == object or array.dtype.kind not in "biuf":
                raise TypeError
        except KernelKError:
            raise  # such as that of a tensor in a list: it is more precise
        except (TypeError, ValueError):
            raise ArgumentError(f"variable: {type(value).__name__} isn't an array of numbers", allowed=ARRAYS) from None
        if chosen not in FLOATS and chosen != "bool" and not fits(array, chosen):
            raise DTypeError(
                f"variable: the value doesn't fit into {chosen}",
                next_step="choose a dtype that holds it, e.g. dtype='int64'",
            )
    node = _enter(array, chosen, name, constraint)
    node.sparse = sparse
    return node


def _enter(array: Array, dtype: str, name: str | None, constraint: Any = None) -> Variable:
    node = Variable("variable", (), {}, array.shape, dtype, caller(), name)
    node.constraint = constraint
    with np.errstate(all="ignore"):
        current().adopt(node, array)
    return node


def _static(shape: Any, op: str) -> tuple[int, ...]:
    lengths = tuple(shape) if hasattr(shape, "__iter__") and not isinstance(shape, Tensor) else (shape,)
    if not all(isinstance(n, (int, float, np.number)) and float(n).is_integer() and n >= 0 for n in lengths):
        raise ArgumentError(
            f"{op}: {lengths} can't be a variable's shape",
            allowed="it needs known lengths of 0 or more",
            next_step=f"K.{op}_like(x) has the shape of x at each call" if op in ("zeros", "ones") else "",
        )
    return tuple(int(n) for n in lengths)


def _full(shape: Any, value: int, dtype: Any, name: str | None, op: str) -> Tensor:
    chosen = check_dtype(dtype)
    if isinstance(shape, Tensor) or (isinstance(shape, (tuple, list)) and any(isinstance(n, Tensor) for n in shape)):
        scalar = constant_node(np.asarray(value, dtype=chosen))
        dims, references = dims_of(shape, 1, op)
        return apply("broadcast_to", scalar, *references, dims=dims)
    lengths = _static(shape, op)
    memory.require(np.dtype(chosen).itemsize * math.prod(lengths), op)
    return _enter(np.broadcast_to(np.asarray(value, dtype=chosen), lengths), chosen, name)


def zeros(shape: Any, dtype: Any = None, name: str | None = None) -> Tensor:
    """A variable of zeros; a plain tensor where the shape itself is a tensor."""
    return _full(shape, 0, dtype, name, "zeros")


def ones(shape: Any, dtype: Any = None, name: str | None = None) -> Tensor:
    """A variable of ones; a plain tensor where the shape itself is a tensor."""
    return _full(shape, 1, dtype, name, "ones")


def eye(size: Any, dtype: Any = None, name: str | None = None) -> Variable:
    """A variable with the identity matrix of `size` rows (or (rows, columns))."""
    rows, columns = size if isinstance(size, (tuple, list)) else (size, size)
    chosen = check_dtype(dtype)
    rows, columns = _static((rows, columns), "eye")
    memory.require(2 * np.dtype(chosen).itemsize * rows * columns, "eye")
    return _enter(np.eye(rows, columns, dtype=chosen), chosen, name)


def random_uniform_variable(
    shape: Any, low: float, high: float, dtype: Any = None, name: str | None = None, seed: int | None = None
) -> Variable:
    """A variable initialised once with uniform draws in [low, high)."""
    value = random.random_uniform(_static(shape, "random_uniform_variable"), low, high, dtype, seed)
    return variable(value, value.dtype, name)


def random_normal_variable(
    shape: Any, mean: float, scale: float, dtype: Any = None, name: str | None = None, seed: int | None = None
) -> Variable:
    """A variable initialised once with normal draws of this mean and deviation."""
    value = random.random_normal(_static(shape, "random_normal_variable"), mean, scale, dtype, seed)
    return variable(value, value.dtype, name)


def get_value(x: Any) -> Array:
    """The variable's committed value as a new ndarray (a tensor is evaluated).

    An engine is asked only where it alone has the value.
    """
    if isinstance(x, Variable):
        return current().read(x)

    return evaluate(as_tensor(x))


def batch_get_value(ops: Sequence[Any]) -> list[Array]:
    """The values of several variables, all from the same moment."""

    session, ops = current(), list(ops)
    with session.lock:
        session.calls.fetch([x.slots for x in ops if isinstance(x, Variable)])
        return [get_value(x) for x in ops]


def set_value(x: Any, value: Any) -> None:
    """Sets a variable from an array or a sparse matrix. Raises ShapeError or DTypeError, and then changes nothing."""
    batch_set_value([(x, value)])


def batch_set_value(tuples: Sequence[tuple[Any, Any]]) -> None:
    """Sets several variables at once: all of them, or none if one value doesn't fit."""

    with memory.translated("set_value"), np.errstate(all="ignore"):
        tuples = list(tuples) if hasattr(tuples, "__iter__") else None  # type: ignore[assignment]
        if tuples is None or not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in tuples):
            raise ArgumentError(
                "batch_set_value: this isn't a list of pairs",
                allowed="it must be one",
                next_step="K.batch_set_value([(variable, value)])",
            )
        checked = [(as_variable(x, "set_value"), _fitted(x, value)) for x, value in tuples]
        current().write(checked)


def _fitted(x: Variable, value: Any) -> Array:
    if isinstance(value, Tensor):
        raise ArgumentError(
            f"set_value: the value for variable '{x.name}' is a tensor", next_step="K.set_value(x, K.eval(tensor))"
        )
    value = as_numpy(densified(value, "set_value"), f"set_value: variable '{x.name}'")
    try:
        array = np.asarray(value)
    except KernelKError:
        raise
    except ValueError as error:
        raise ShapeError(
            f"set_value: the value for variable '{x.name}' isn't an array: {error}", allowed=ARRAYS
        ) from None
    if array.dtype.kind not in "biuf":
        raise DTypeError(
            f"set_value: {type(value).__name__} isn't an array of numbers (variable '{x.name}')", allowed=ARRAYS
        )
    if array.shape != x.shape:
        raise ShapeError(
            f"set_value: variable '{x.name}' has shape {x.shape}, but the value has {array.shape}",
            allowed="they must be equal",
        )
    if x.dtype[0] in "iu" and not fits(array, x.dtype):
        limits = np.iinfo(x.dtype)
        raise DTypeError(
            f"set_value: the value doesn't fit into {x.dtype} (variable '{x.name}')",
            allowed=f"allowed are whole numbers from {limits.min} to {limits.max}",
            next_step=f"convert it first, e.g. value.astype('{x.dtype}')",
        )
    return array


def _copied(self: Variable, memo: dict[int, Any] | None = None) -> Variable:
    """A new variable with this one's value, dtype, name, constraint and attributes."""
    made = _enter(current().read(self), self.dtype, None, self.constraint)
    others = {name: value for name, value in vars(self).items() if name not in vars(made)}
    if memo is not None:
        # Before the attributes, which may refer back to it.
        memo[id(self)] = made
        others = copy.deepcopy(others, memo)
    vars(made).update(others)
    made.sparse, made.scope, made._name = self.sparse, self.scope, self._name
    return made


def _unsent(self: Any, protocol: Any) -> Any:
    """Refuses to pickle: a copy by value would no longer be the variable or tensor that graphs and functions share."""
    kind = "a variable" if isinstance(self, Variable) else "a tensor" if isinstance(self, Tensor) else "a function"
    raise CopyRefusedError(
        f"{kind} ('{self.name}') can't be pickled or sent to another process, since it belongs to its session",
        next_step="send the array K.get_value(w), or write kernelk.save and read kernelk.load there"
        if isinstance(self, Variable)
        else "send its value, the array K.eval(y)"
        if isinstance(self, Tensor)
        else "send arrays, and make the function in the process that calls it",
    )


Variable.__copy__ = Variable.__deepcopy__ = _copied  # type: ignore[method-assign,assignment]
Tensor.__reduce_ex__ = Function.__reduce_ex__ = _unsent  # type: ignore[method-assign]
