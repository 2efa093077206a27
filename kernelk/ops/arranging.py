"""Copies, pads, slices and lookups: elements put elsewhere, or more than once."""

from __future__ import annotations

import builtins
from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import config
from ..errors import ArgumentError, ShapeError
from ..graph.nodes import Constant, Tensor, constant_node
from ..graph.rules import RULES, Rule, apply
from .dtypes import INTEGERS, as_tensor, as_tensors, cast, check_dtype, operands, partner_of
from .indexing import Bounds
from .linear import permute_dimensions
from .operators import binary
from .shapes import (
    axes_of,
    axis_of,
    image_axes,
    listed,
    matmul,
    merge_axes,
    rank_refused,
    reversed_along,
    whole_number,
)
from .shaping import concatenate, dims_of, expand_dims, known_integer, shape, unstacked

# Beyond the end of any axis.
_END = 2**31 - 1


def gather(reference: Any, indices: Any) -> Tensor:
    """Rows of `reference` by integer `indices`: shape(indices) + shape(reference)[1:].

    An index outside [0, rows) gives NaN (0 for integers): it is not counted from the end. Raises DTypeError for
    indices that aren't integers.
    """
    table = as_tensor(reference, partner_of([indices]))
    return apply("gather", table, as_tensor(indices))


def stack(x: Sequence[Any], axis: int = 0) -> Tensor:
    """Tensors of one shape along a new axis."""
    parts = as_tensors(listed(x, "stack"))
    if not parts:
        raise ArgumentError("stack: the list is empty", allowed="it needs at least one tensor")
    first = parts[0].shape
    for part in parts[1:]:
        if len(part.shape) != len(first) or any(n != m and None not in (n, m) for n, m in zip(first, part.shape)):
            raise ShapeError(f"stack: shapes {first} and {part.shape} differ", allowed="they must be equal")
    index = axis_of(axis, parts[0].ndim + 1, "stack")
    return concatenate([expand_dims(part, index) for part in parts], index)


def reverse(x: Any, axes: Any) -> Tensor:
    """`x` with its elements reversed along `axes` (an int or several)."""
    x = as_tensor(x)
    return reversed_along(x, axes_of(axes, x.ndim, "reverse"))


def slice(x: Any, start: Any, size: Any) -> Tensor:
    """The block of `x` that begins at `start` and has `size` elements along each axis (-1: all that follow).

    `start` and `size` are lists of ints and 0-d integer tensors, or integer vectors; tensors are evaluated before each
    call. Raises ShapeError for a block that isn't inside, then or now.
    """
    x = as_tensor(x)
    begin, length = _block("start", start), _block("size", size)
    if not len(begin) == len(length) == x.ndim:
        starts, sizes = (begin + [0] * x.ndim)[: x.ndim], (length + [-1] * x.ndim)[: x.ndim]
        raise ShapeError(
            f"slice: start {begin} and size {length} don't fit shape {x.shape}",
            allowed="each needs one entry for each axis",
            next_step=f"K.slice(x, {starts}, {sizes})",
        )
    for axis, (first, n) in enumerate(zip(begin, length)):
        whole = x.shape[axis]
        if isinstance(first, Tensor) or isinstance(n, Tensor):
            continue
        if first < 0 or n < -1 or (whole is not None and first + builtins.max(n, 0) > whole):
            raise ShapeError(
                f"slice: start {first} and size {n} don't fit axis {axis} of shape {x.shape}",
                allowed="allowed are starts from 0, and sizes that end inside, or -1 for all that follow",
            )
    if _any_tensor(begin, length):
        return _slice_of_values(x, begin, length)
    slices = [[first, None if n == -1 else first + n, None] for first, n in zip(begin, length)]
    return apply("slice", x, slices=slices)


def _any_tensor(*entries: Sequence[Any]) -> bool:
    """Whether some entry is a tensor."""
    return builtins.any(isinstance(entry, Tensor) for part in entries for entry in part)


def _block(what: str, given: Any) -> list[Any]:
    """A start or size of `slice`: for each axis an int where it is known, else a 0-d integer tensor."""
    if isinstance(given, Constant) and given.ndim == 1 and given.dtype in INTEGERS:
        given = given.array.tolist()
    if isinstance(given, Tensor):
        if given.ndim != 1 or given.dtype not in INTEGERS or given.shape[0] is None:
            raise ArgumentError(
                f"slice: the {what} is a tensor of dtype {given.dtype} and shape {given.shape}",
                allowed="it must be an integer vector of known length",
                next_step="K.cast(x, 'int32')" if given.ndim == 1 and given.dtype not in INTEGERS else "",
            )
        given = unstacked(given) or list(given)
    elif not hasattr(given, "__iter__"):
        raise ArgumentError(
            f"slice: the {what} is {given!r}",
            allowed="it needs one entry for each axis",
            next_step="K.slice(x, [0, 0], [2, -1])",
        )
    entries: list[Any] = []
    for n in given:
        if not isinstance(n, Tensor):
            entries.append(whole_number(n, f"a {what}", "slice"))
            continue
        if n.ndim or n.dtype not in INTEGERS:
            raise ArgumentError(f"slice: {n!r} can't be a {what}", allowed="it must be an int or a 0-d integer tensor")
        known = known_integer(n)
        entries.append(cast(n, "int64") if known is None else known)
    return entries


def _slice_of_values(x: Tensor, begin: list[Any], length: list[Any]) -> Tensor:
    """The block whose begin or size only a call knows."""
    bounds, wanted = Bounds(), Bounds()
    slices: list[list[Any]] = []
    dims: list[Any] = []
    for axis, (first, n) in enumerate(zip(begin, length)):
        whole = x.shape[axis] if x.shape[axis] is not None else shape(x)[axis]
        all_that_follow = isinstance(n, int) and n == -1
        rest = binary("subtract", as_tensor(whole, "int64"), first)
        if isinstance(n, Tensor):
            n = apply("select", binary("equal", n, -1), *operands(rest, n))
        dims.append(wanted.entry(rest if all_that_follow else n))
        stop = None if all_that_follow else n + first
        if isinstance(first, Tensor):
            # A negative one would count from the end.
            first = apply("select", binary("less", first, 0), *operands(_END, first))
        slices.append([bounds.entry(first), bounds.entry(stop), None])
    sliced = apply("slice", x, *bounds.references, slices=slices)
    return apply("block", sliced, *wanted.references, dims=dims)


def _infer_block(sliced: Any, *references: Any, dims: Sequence[Any]) -> Any:
    lengths = [n if isinstance(n, int) else None for n in dims]
    if builtins.any(n is not None and m is not None and n != m for n, m in zip(lengths, sliced.shape)):
        shown = tuple("?" if n is None else n for n in lengths)
        raise ShapeError(
            f"slice: a block of shape {shown} was asked for, and {sliced.shape} of it lies inside x",
            allowed="allowed are starts from 0, and sizes that end inside, or -1 for all that follow",
        )
    return tuple(m if n is None else n for n, m in zip(lengths, sliced.shape)), sliced.dtype


# A slice that is whole: only its lengths are checked, once they are known.
RULES["block"] = Rule(_infer_block, None, lambda sliced, *references, dims: sliced, checks=True)


def tile(x: Any, n: Any) -> Tensor:
    """`x` repeated `n` times along each axis: a number for the last one, or one for each; integer tensors count too."""
    tiled = as_tensor(x)
    if isinstance(n, (int, np.integer)) or (isinstance(n, Tensor) and n.ndim == 0):
        n = [n]
    if not hasattr(n, "__iter__"):
        n = [whole_number(n, "n", "tile")]
    counts = list((isinstance(n, Tensor) and unstacked(n)) or n)
    known = [
        known_integer(count) if isinstance(count, Tensor) else whole_number(count, "n", "tile") for count in counts
    ]
    times: list[Any] = [count if m is None else m for count, m in zip(counts, known)]
    times = [1] * (tiled.ndim - len(times)) + times
    if len(times) > tiled.ndim:
        own = [[0, i] if m is None else m for i, m in enumerate(tiled.shape)]
        tiled = apply("reshape", tiled, dims=[1] * (len(times) - tiled.ndim) + own)
    for axis, count in enumerate(times):
        if isinstance(count, Tensor):
            tiled = _tiled(tiled, axis, count)
        elif count < 0:
            raise ArgumentError(f"tile: can't repeat {count} times", allowed="it must be 0 or more")
        elif count == 0:
            tiled = apply("slice", tiled, slices=[[0, 0, None] if i == axis else [None] * 3 for i in range(tiled.ndim)])
        elif count > 1:
            tiled = concatenate([tiled] * count, axis)
    return tiled


def _tiled(x: Tensor, axis: int, count: Tensor) -> Tensor:
    """`x` repeated along one axis as often as an integer tensor says."""
    lengths: list[Any] = [shape(x)[i] if n is None else n for i, n in enumerate(x.shape)]
    dims, references = dims_of([*lengths[:axis], count, *lengths[axis:]], 1, "tile")
    copies = apply("broadcast_to", expand_dims(x, axis), *references, dims=dims)
    lengths[axis] = count * lengths[axis]
    dims, references = dims_of(lengths, 1, "tile")
    return apply("reshape", copies, *references, dims=dims)


def repeat_elements(x: Any, rep: int, axis: int) -> Tensor:
    """Each element `rep` times in a row along `axis`."""
    source = as_tensor(x)
    index = axis_of(axis, source.ndim, "repeat_elements")
    times = whole_number(rep, "rep", "repeat_elements")
    if times < 1:
        raise ArgumentError(f"repeat_elements: rep {rep} isn't allowed", allowed="it must be 1 or more")
    if times == 1:
        return source
    repeated = merge_axes(concatenate([expand_dims(source, index + 1)] * times, index + 1), index, index + 1)
    if source.shape[index] is None:
        repeated._keras_shape = repeated.shape  # as Keras's backend for TensorFlow has it
    return repeated


def any_list(dims: Sequence[Any]) -> bool:
    """Whether some length is a reference to another tensor's axis."""
    return builtins.any(isinstance(n, list) for n in dims)


def repeat(x: Any, n: int) -> Tensor:
    """A matrix (samples, dim) as (samples, n, dim). Raises ShapeError unless `x` has two axes."""
    x = as_tensor(x)
    if x.ndim != 2:
        raise rank_refused("repeat", "x", x.shape, ("samples", "dim"))
    dims: list[Any] = [[0, 0] if x.shape[0] is None else x.shape[0], whole_number(n, "n", "repeat")]
    dims.append([0, 2] if x.shape[1] is None else x.shape[1])
    return apply("broadcast_to", expand_dims(x, 1), dims=dims)


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = "int32") -> Tensor:
    """A vector of numbers from `start` up to `stop`, without it, in steps of `step`; `arange(n)` starts at 0.

    Where a bound or the step is a float, "int32", the default, stands for floatx, as in Keras on TensorFlow. Bounds
    that are integer tensors are evaluated before each call.
    """
    if stop is None:
        start, stop = 0, start
    chosen = check_dtype(dtype)
    if not builtins.any(isinstance(bound, Tensor) for bound in (start, stop, step)):
        if not builtins.all(isinstance(bound, (int, float, np.number)) for bound in (start, stop, step)):
            raise ArgumentError(
                f"arange: {start!r}, {stop!r}, {step!r} can't be bounds and a step",
                allowed="allowed are numbers and 0-d integer tensors",
                next_step="K.arange(10)",
            )
        if step == 0:
            raise ArgumentError("arange: step 0 isn't allowed", allowed="it must be positive or negative")
        if chosen == "int32" and builtins.any(isinstance(bound, (float, np.floating)) for bound in (start, stop, step)):
            chosen = check_dtype(None)
        return cast(as_tensor(np.arange(start, stop, step)), chosen)
    for bound in (start, stop, step):
        if isinstance(bound, Tensor) and (bound.ndim or bound.dtype not in INTEGERS):
            raise ArgumentError(
                f"arange: {bound!r} can't be a bound", allowed="allowed are numbers and 0-d integer tensors"
            )
    span = cast(as_tensor(binary("subtract", stop, start)), "int64")
    # Rounded up: -((start - stop) // step)
    count = -binary("floor_divide", -span, cast(as_tensor(step), "int64"))
    count = binary("maximum", count, 0)
    one = constant_node(np.asarray(1, dtype="int64"))
    dims, references = dims_of((count,), 1, "arange")
    steps = apply("cumsum", apply("broadcast_to", one, *references, dims=dims), axis=0) - 1
    return cast(as_tensor(steps * cast(as_tensor(step), "int64") + cast(as_tensor(start), "int64")), chosen)


def _padded(op: str, spatial: int, x: Any, pairs: Sequence[Sequence[int]], data_format: Any) -> Tensor:
    x = as_tensor(x)
    first = normalize_data_format(data_format) == "channels_first"
    if x.ndim != spatial + 2:
        raise rank_refused(op, "x", x.shape, image_axes(spatial, first))
    if (
        not hasattr(pairs, "__len__")
        or len(pairs) != spatial
        or not builtins.all(hasattr(pair, "__len__") and len(pair) == 2 for pair in pairs)
    ):
        example = ((1, 1),) * spatial if spatial > 1 else (1, 1)
        raise ArgumentError(
            f"{op}: padding {pairs if spatial > 1 else pairs[0]!r} isn't allowed",
            allowed="it needs the numbers before and after, for each spatial axis",
            next_step=f"K.{op}(x, {example})",
        )
    none = [0, 0]
    inner = [[whole_number(n, "a padding", op) for n in pair] for pair in pairs]
    return apply("pad", x, pads=[none, none, *inner] if first else [none, *inner, none])


def temporal_padding(x: Any, padding: Sequence[int] = (1, 1)) -> Tensor:
    """Pads (batch, steps, features) with zero steps before and after."""
    return _padded("temporal_padding", 1, x, [padding], "channels_last")


def spatial_2d_padding(x: Any, padding: Sequence[Sequence[int]] = ((1, 1), (1, 1)), data_format: Any = None) -> Tensor:
    """Pads images with zeros: ((top, bottom), (left, right))."""
    return _padded("spatial_2d_padding", 2, x, padding, data_format)


def spatial_3d_padding(
    x: Any, padding: Sequence[Sequence[int]] = ((1, 1), (1, 1), (1, 1)), data_format: Any = None
) -> Tensor:
    """Pads volumes with zeros, a pair of lengths for each axis."""
    return _padded("spatial_3d_padding", 3, x, padding, data_format)


def normalize_data_format(value: Any) -> str:
    """`value` (None: the default) as channels_last or channels_first. Raises ArgumentError."""
    chosen = config.image_data_format() if value is None else str(value).lower()
    if chosen not in config.DATA_FORMATS:
        raise ArgumentError(
            f"data_format {value!r} isn't allowed", allowed=f"allowed are {', '.join(config.DATA_FORMATS)}"
        )
    return chosen


def resize_images(
    x: Any, height_factor: int, width_factor: int, data_format: Any, interpolation: str = "nearest"
) -> Tensor:
    """Images enlarged by whole factors in height and width, by repetition or bilinear interpolation.

    `interpolation`: "nearest" or "bilinear"; the latter needs a known height and width. As in Keras 2.3.1 on
    TensorFlow, pixel `i` of the result lies at `i / factor` in `x`, and what lies beyond the last pixel equals it.
    """
    x = as_tensor(x)
    first = normalize_data_format(data_format) == "channels_first"
    if x.ndim != 4:
        raise rank_refused("resize_images", "x", x.shape, image_axes(2, first))
    rows = 2 if first else 1
    if interpolation == "nearest":
        return repeat_elements(repeat_elements(x, height_factor, rows), width_factor, rows + 1)
    if interpolation != "bilinear":
        raise ArgumentError(
            f"resize_images: interpolation {interpolation!r} isn't allowed", allowed="allowed are nearest and bilinear"
        )
    return _interpolated(_interpolated(x, height_factor, rows), width_factor, rows + 1)


def _interpolated(x: Tensor, factor: int, axis: int) -> Tensor:
    """`x` resized along `axis` by a matrix of weights, of at most two in a row."""
    length = x.shape[axis]
    if length is None:
        raise ShapeError(
            f"resize_images: x has shape {x.shape}",
            allowed="bilinear needs a known height and width",
            next_step="give the placeholder both, or use interpolation='nearest'",
        )
    factor = whole_number(factor, "a factor", "resize_images")
    wanted = length * factor
    low, beyond = np.divmod(np.arange(wanted), factor)
    weights = np.zeros((length, wanted))
    weights[low, np.arange(wanted)] += 1 - beyond / factor
    weights[np.minimum(low + 1, length - 1), np.arange(wanted)] += beyond / factor
    order = [i for i in range(x.ndim) if i != axis] + [axis]
    moved = permute_dimensions(x, order)
    flat = apply("reshape", moved, dims=[-1, length])
    product = matmul(flat, constant_node(weights.astype(x.dtype)))
    dims = [[1, i] if n is None else n for i, n in enumerate(moved.shape[:-1])]
    references = (moved,) if any_list(dims) else ()
    back = sorted(range(x.ndim), key=order.__getitem__)
    return permute_dimensions(apply("reshape", product, *references, dims=[*dims, wanted]), back)


def resize_volumes(x: Any, depth_factor: int, height_factor: int, width_factor: int, data_format: Any) -> Tensor:
    """Volumes enlarged by a whole factor along each axis, by repetition."""
    volumes = as_tensor(x)
    first = normalize_data_format(data_format) == "channels_first"
    if volumes.ndim != 5:
        raise rank_refused("resize_volumes", "x", volumes.shape, image_axes(3, first))
    for axis, factor in enumerate((depth_factor, height_factor, width_factor), 2 if first else 1):
        volumes = repeat_elements(volumes, factor, axis)
    return volumes
