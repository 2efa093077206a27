"""The one promotion table: which dtype a result has, for every engine; operands are cast to it in the graph."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable
from functools import cache, reduce
from typing import Any

import numpy as np

from .. import config
from ..backends.base import DTYPES
from ..backends.lowering import Instruction as Lowered
from ..errors import ArgumentError, DTypeError, KernelKError
from ..graph.nodes import Constant, Tensor, Variable, constant_node
from ..graph.rules import apply
from ..graph.state import current_state
from .foreign import as_numpy

FLOATS = frozenset({"float16", "float32", "float64"})
INTEGERS = frozenset(name for name in DTYPES if "int" in name)

# Of which arrays are made.
ARRAYS = "allowed are numbers, arrays of numbers, and nested lists of numbers whose rows are equally long"


def no_tensor(op: str, x: Any) -> ArgumentError:
    """The refusal of what isn't a tensor, where an array won't do."""
    return ArgumentError(f"{op}: {type(x).__name__} isn't a tensor", next_step="check K.is_tensor(x) first")


def check_dtype(dtype: Any) -> str:
    """The canonical name of a dtype (a name, numpy's, TensorFlow's or PyTorch's); None: floatx. Raises DTypeError."""
    if dtype is None:
        return config.floatx()
    if isinstance(dtype, str) and dtype in DTYPES:
        return dtype
    try:
        # TensorFlow's know numpy's.
        name = str(np.dtype(getattr(dtype, "as_numpy_dtype", dtype)).name)
    except TypeError:
        # PyTorch's are written "torch.float32".
        name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise DTypeError(f"dtype {dtype!r} isn't supported", allowed=f"allowed are {', '.join(DTYPES)}")
    return name


def is_sparse_matrix(value: Any) -> bool:
    """Whether `value` is a matrix of scipy.sparse (known by what it can do: scipy isn't needed for that)."""
    return hasattr(value, "tocoo") and hasattr(value, "toarray")


def densified(value: Any, what: str) -> Any:
    """A sparse matrix as an ndarray, anything else as it is. Raises ArgumentError where memory doesn't hold it."""
    if not is_sparse_matrix(value):
        return value
    try:
        return value.toarray()
    except MemoryError:
        raise ArgumentError(
            f"{what}: a sparse matrix of shape {value.shape} is too large as a dense array, which K makes of it",
            next_step="feed fewer rows at a time, or keep fewer columns",
        ) from None


@cache
def promote(a: str, b: str) -> str:
    """The dtype of two tensors' common result.

    The same dtype stays; bool gives way; an integer with a float gives that float; two floats give the wider; two
    integers give the smallest integer that holds both. Raises DTypeError for uint64 with a signed integer, which no
    integer holds.
    """
    if a == b:
        return a
    if a == "bool" or (a in INTEGERS and b in FLOATS):
        return b
    if b == "bool" or (b in INTEGERS and a in FLOATS):
        return a
    result = np.promote_types(a, b).name
    if a in INTEGERS and result not in INTEGERS:
        raise DTypeError(
            f"{a} and {b} have no common integer dtype", next_step="cast one of them with K.cast(x, dtype)"
        )
    return result


def _scalar_dtype(value: Any, partner: str | None) -> str:
    """The dtype of a Python scalar, which is weak: it takes the partner's wherever that can hold its kind."""
    if isinstance(value, (builtins.bool, np.bool_)):
        return partner or "bool"
    if isinstance(value, (int, np.integer)):
        if partner is None:
            return "int32" if -(2**31) <= value < 2**31 else "int64"
        return "int32" if partner == "bool" else partner
    if partner in FLOATS:
        return str(partner)
    return config.floatx()


def as_tensor(value: Any, partner: str | None = None) -> Tensor:
    """`value` as a tensor: a tensor itself, a weak Python scalar (cast to `partner`, a dtype), an array or a list.

    Arrays keep their dtype, but for float64, which numpy makes of everything: with a `partner` it takes the dtype of
    that, floatx if that is no float, as in Keras. Nested lists become floatx, or int32 (int64 where needed) if they
    hold integers only. A list that holds tensors is stacked, as Keras has it in `K.prod([K.shape(x)[0], 3])`.
    Raises DTypeError or ArgumentError for what no tensor can hold.
    """
    if isinstance(value, Tensor):
        # What returns its operand as it is returns what that is after `K.control_dependencies`.
        return current_state().contexts.renewed.get(value, value) if type(value) is Variable else value
    if isinstance(value, (builtins.bool, int, float, np.generic)) and np.ndim(value) == 0:
        dtype = _scalar_dtype(value, partner)
        if dtype in INTEGERS:
            limits = np.iinfo(dtype)
            if not limits.min <= int(value) <= limits.max:
                raise ArgumentError(
                    f"{value} doesn't fit into {dtype} ({limits.min} to {limits.max})",
                    next_step="cast the tensor to a wider dtype with K.cast(x, dtype)",
                )
        return constant_node(np.asarray(value, dtype=dtype))
    if isinstance(value, (list, tuple)):
        held = next((part for part in value if isinstance(part, Tensor)), None)
        if held is not None:
            return _stacked([as_tensor(part, held.dtype) for part in value])
    value = as_numpy(value, "an operand")
    try:
        array = np.asarray(value)
    except KernelKError:
        raise  # as of a tensor in a nested list: it knows better
    except ValueError as error:
        raise ArgumentError(f"{type(value).__name__} can't be a tensor: {error}", allowed=ARRAYS) from None
    if not isinstance(value, np.ndarray) and array.dtype.kind in "biuf":
        if array.dtype.kind in "iu":
            small = not array.size or (array.min() >= -(2**31) and array.max() < 2**31)
            array = array.astype("int32") if small else array
        elif array.dtype.kind == "f":
            array = array.astype(config.floatx())
    elif partner is not None and array.dtype == np.float64:
        with np.errstate(all="ignore"):
            array = array.astype(_scalar_dtype(1.0, partner))
    if array.dtype.name not in DTYPES:
        raise DTypeError(
            f"{type(value).__name__} of dtype {array.dtype} can't be a tensor",
            allowed=f"allowed are {', '.join(DTYPES)}",
        )
    return constant_node(array)


def partner_of(values: Iterable[Any]) -> str | None:
    """The dtype that arrays of float64 take among these values: the first float tensor's, or tensor's; None without."""
    dtypes = [value.dtype for value in values if isinstance(value, Tensor)]
    return next((dtype for dtype in dtypes if dtype in FLOATS), dtypes[0] if dtypes else None)


def as_tensors(values: Iterable[Any]) -> list[Tensor]:
    """Several values as tensors: what isn't one takes its dtype from the first float tensor, or tensor, among them."""
    values = list(values)
    partner = partner_of(values)
    return [as_tensor(value, partner) for value in values]


def _stacked(parts: list[Tensor]) -> Tensor:
    common = reduce(promote, (part.dtype for part in parts))
    rows = [
        apply("reshape", cast(part, common), dims=[1, *([0, i] if n is None else n for i, n in enumerate(part.shape))])
        for part in parts
    ]
    return apply("concatenate", *rows, axis=0)


def operands(a: Any, b: Any, partner: str | None = None) -> tuple[Tensor, Tensor]:
    """Two operands as tensors of their common dtype; `partner` is that of a third tensor, which they aren't cast to."""
    if not isinstance(a, Tensor):
        if isinstance(b, Tensor):
            a = as_tensor(a, b.dtype)
        else:
            a = as_tensor(a, partner)
    if not isinstance(b, Tensor):
        b = as_tensor(b, a.dtype)
    if a.dtype != b.dtype:
        dtype = promote(a.dtype, b.dtype)
        a, b = cast(a, dtype), cast(b, dtype)
    return a, b


def cast(x: Tensor, dtype: str) -> Tensor:
    """`x` in another dtype; the same tensor if it has it already, a new constant for a constant."""
    if x.dtype == dtype:
        return x
    op = "saturating_cast" if x.dtype in FLOATS and dtype in INTEGERS else "cast"
    if isinstance(x, Constant):
        # Writing a graph imports no backend, unless it computes.
        from ..backends.numpy.elementwise import OPS as NUMPY

        call = Lowered(0, op, (), {}, dtype, x.shape)
        with np.errstate(all="ignore"):
            return constant_node(NUMPY[op](call, x.array, dtype=dtype))
    return apply(op, x, dtype=dtype)


def floating(x: Tensor) -> Tensor:
    """`x` as it is if it is a float, else cast to floatx: for functions that are defined on reals only."""
    return x if x.dtype in FLOATS else cast(x, config.floatx())


def in_float32(decompose: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The decomposition with float16 computed in float32, and rounded once."""

    def call(*inputs: Tensor, **attrs: Any) -> Tensor:
        if inputs[0].dtype != "float16":
            return decompose(*inputs, **attrs)
        wide = [cast(x, "float32") if x.dtype == "float16" else x for x in inputs]
        return cast(decompose(*wide, **attrs), "float16")

    return call
