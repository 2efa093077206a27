"""`x[...]` on tensors: slices, indices and masks, also such as only a call knows; entered into Tensor here."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np

from ..errors import ArgumentError, ShapeError
from ..graph.nodes import Constant, Tensor, constant_node
from ..graph.rules import RULES, Rule, apply
from .dtypes import INTEGERS, as_tensor, cast, operands
from .operators import binary
from .shapes import index_refused, merge_axes
from .shaping import known_integer

_ALL = builtins.slice(None)


class Bounds:
    """The bounds of slices, with the integer tensors among them as operands from the second one on."""

    def __init__(self) -> None:
        self.references: list[Tensor] = []

    def entry(self, value: Any) -> Any:
        """A bound in the attribute `slices`: an int, None, or a reference to a tensor's value. Raises ArgumentError."""
        if value is None:
            return None
        if not isinstance(value, Tensor):
            return int(value)
        if value.ndim or value.dtype not in INTEGERS:
            raise ArgumentError(
                f"a slice's bound is a tensor of dtype {value.dtype} and shape {value.shape}",
                allowed="allowed are ints and integer tensors of no axes",
                next_step="K.cast(bound, 'int32')" if not value.ndim else "x[begin[0]:end[0]]",
            )
        known = known_integer(value)
        if known is not None:
            return known
        if not any(reference is value for reference in self.references):
            self.references.append(value)
        number = next(i for i, reference in enumerate(self.references) if reference is value)
        return ["value", 1 + number, 0]

    def entries(self, given: builtins.slice) -> list[Any]:
        """A slice as [start, stop, step]. Raises ArgumentError."""
        if isinstance(given.step, Tensor):
            raise ArgumentError("a slice's step is a tensor", allowed="it must be a Python int")
        if given.step is not None and int(given.step) == 0:
            raise ArgumentError("slice step can't be 0", allowed="it must be positive or negative")
        return [self.entry(given.start), self.entry(given.stop), self.entry(given.step)]


def _array(entry: Any) -> Any:
    """A list or array of indices or truths as an array or a tensor; anything else as it is. Raises ArgumentError."""
    if isinstance(entry, Constant) and (entry.ndim or entry.dtype == "bool"):
        return entry.array
    if not isinstance(entry, (list, np.ndarray)):
        return entry
    if isinstance(entry, list) and any(isinstance(part, Tensor) for part in entry):
        return as_tensor(entry)
    array = np.asarray(entry)
    if array.size == 0 and array.dtype.kind == "f":
        array = array.astype("int32")
    if array.dtype.kind not in "biu":
        raise ArgumentError(f"an index is an array of {array.dtype}", allowed="it must hold integers or truths")
    return array


def _is_mask(entry: Any) -> bool:
    return isinstance(entry, (np.ndarray, Tensor)) and entry.dtype == "bool" and bool(entry.ndim)


def _is_several(entry: Any) -> bool:
    return isinstance(entry, (np.ndarray, Tensor)) and entry.dtype != "bool" and bool(entry.ndim)


def _is_one(entry: Any) -> bool:
    return isinstance(entry, (int, np.integer, np.ndarray, Tensor)) and not isinstance(entry, builtins.bool)


def index(x: Tensor, key: Any) -> Tensor:
    """`x[key]`: ints, slices (any step), `...`, None, an array of indices or a mask, as in numpy.

    Raises ShapeError for an index out of range, ArgumentError for another key. Bounds of slices, indices and masks may
    be tensors: their values are known at each call. There an index out of range gives NaN (0 for integers), as
    `K.gather` does.
    """
    x = as_tensor(x)
    entries = [_array(entry) for entry in (key if isinstance(key, tuple) else [key])]
    if sum(entry is Ellipsis for entry in entries) > 1:
        raise ArgumentError("an index holds '...' more than once", allowed="only one is allowed")
    arrays = [entry for entry in entries if _is_mask(entry) or _is_several(entry)]
    if arrays and (len(arrays) > 1 or any(_is_one(entry) and entry is not arrays[0] for entry in entries)):
        raise ArgumentError(
            "an index holds an array beside another array or an index",
            allowed="one array, or one mask, may stand beside slices",
            next_step="index twice, as in x[:, 0][rows]",
        )
    if arrays and _is_mask(arrays[0]):
        if entries[0] is not arrays[0]:
            raise ArgumentError("a mask isn't the first index", allowed="it must come first", next_step="x[mask]")
        return _masked(x, arrays[0], tuple(entries[1:]))
    used = sum(entry is not None and entry is not Ellipsis for entry in entries)
    if used > x.ndim:
        raise ShapeError(
            f"{used} indices for a tensor of {x.ndim} axes (shape {x.shape})",
            allowed=f"at most {x.ndim} are allowed" if x.ndim else "a scalar takes none",
        )
    if not any(entry is Ellipsis for entry in entries):
        entries.append(Ellipsis)
    bounds = Bounds()
    slices: list[list[Any]] = []
    dims: list[Any] = []  # of the result; an int names an axis of the sliced tensor, None a new axis
    chosen: list[tuple[int, Tensor]] = []  # axes of the result that an index in the graph takes elements of
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
            slices.append(bounds.entries(entry))
        elif isinstance(entry, np.ndarray) or (isinstance(entry, Tensor) and entry.dtype in INTEGERS):
            chosen.append((len(dims), _inside(entry, axis, x.shape)))
            dims.append(axis)
            slices.append([None, None, None])
        elif isinstance(entry, (int, np.integer)) and not isinstance(entry, builtins.bool):
            n = x.shape[axis]
            if n is not None and not -n <= entry < n:
                raise index_refused(int(entry), axis, x.shape)
            slices.append([int(entry), None if entry == -1 else int(entry) + 1, None])
        else:
            what = f"a tensor of {entry.dtype}" if isinstance(entry, Tensor) else type(entry).__name__
            raise ArgumentError(
                f"a tensor can't be indexed by {what}",
                allowed="allowed are ints, integer tensors, slices, '...', None, an array of indices or a mask",
                next_step="K.cast(index, 'int32')" if isinstance(entry, Tensor) else "",
            )
    whole = all(entry == [None, None, None] for entry in slices)
    sliced = x if whole else apply("slice", x, *bounds.references, slices=slices)
    if dims != list(range(x.ndim)):
        shape = [1 if d is None else [0, d] if sliced.shape[d] is None else sliced.shape[d] for d in dims]
        sliced = apply("reshape", sliced, dims=shape)
    for axis, tensor in reversed(chosen):
        sliced = _taken(sliced, axis, tensor)
    return sliced


def _inside(entry: Any, axis: int, shape: Any) -> Tensor:
    """Indices as a tensor. Raises ShapeError where it is known already that one is out of range."""
    n = shape[axis]
    if isinstance(entry, np.ndarray):
        if n is not None and entry.size:
            wrong = next((int(i) for i in (entry.min(), entry.max()) if not -n <= i < n), None)
            if wrong is not None:
                raise index_refused(wrong, axis, shape)
            entry = np.where(entry < 0, entry + n, entry)
        return constant_node(entry if entry.dtype.name == "int64" else entry.astype("int64"))
    return entry  # type: ignore[no-any-return]


def _taken(x: Tensor, axis: int, entry: Tensor) -> Tensor:
    """The elements of `x` along an axis at an index that is a tensor, whose axes stand there; -1 is the last one."""
    if entry.dtype in ("int8", "int16"):
        entry = cast(entry, "int32")  # which holds any length
    if not entry.dtype.startswith("u"):
        length = index(apply("shape", x), axis) if x.shape[axis] is None else x.shape[axis]
        entry = apply("select", binary("less", entry, 0), *operands(binary("add", entry, length), entry))
    others = [i for i in range(x.ndim) if i != axis]
    taken = apply("gather", apply("transpose", x, permutation=[axis, *others]) if axis else x, entry)
    if not axis or not entry.ndim:
        return taken
    rest = [entry.ndim + i for i in range(x.ndim - 1)]
    return apply("transpose", taken, permutation=[*rest[:axis], *range(entry.ndim), *rest[axis:]])


def _masked(x: Tensor, mask: Any, rest: tuple[Any, ...]) -> Tensor:
    """The parts of `x` where a mask of its first axes holds, one after the other; `rest` indexes what follows them."""
    rank = mask.ndim
    differ = any(n != m and None not in (n, m) for n, m in zip(x.shape, mask.shape))
    if rank > x.ndim or differ:
        raise _misfit(mask.shape, x.shape)
    positions: Tensor
    if isinstance(mask, np.ndarray):
        flat = merge_axes(apply("fitting", x, lengths=list(mask.shape)), 0, rank - 1)
        positions = constant_node(np.flatnonzero(mask))
    else:
        mask = apply("fitting", mask, x, lengths=None)
        flat = merge_axes(x, 0, rank - 1)
        truths = cast(apply("reshape", mask, dims=[-1]), "int32")
        places = apply("select", apply("reshape", mask, dims=[-1]), *operands(apply("cumsum", truths, axis=0) - 1, -1))
        count = apply("sum", truths, axes=[0], keepdims=False)
        ones = apply("broadcast_to", constant_node(np.ones((), "int32")), truths, dims=[[1, 0]])
        numbers = apply("cumsum", ones, axis=0) - 1
        like = apply("broadcast_to", constant_node(np.zeros((), "int32")), count, dims=[["value", 1, 0]])
        positions = apply("scatter_add", numbers, places, like)
    found = apply("gather", flat, positions)
    return index(found, (_ALL, *rest)) if rest else found


def _infer_fitting(x: Any, *others: Any, lengths: Any) -> Any:
    """The shape of `x`, whose first axes have these lengths, or those of the first axes of another one."""
    mask, masked = (x.shape, others[0].shape) if others else (tuple(lengths), x.shape)
    if any(n != m and None not in (n, m) for n, m in zip(mask, masked)):
        raise _misfit(mask, masked)
    return x.shape, x.dtype


def _misfit(mask: Any, masked: Any) -> ShapeError:
    return ShapeError(
        f"a mask of shape {mask} doesn't fit a tensor of shape {masked}",
        allowed="it needs the lengths of its first axes",
    )


# Its first operand as it is: only lengths are checked, once they are known.
RULES["fitting"] = Rule(_infer_fitting, None, lambda x, *others, lengths: x, checks=True)


Tensor.__getitem__ = index  # type: ignore[method-assign]
