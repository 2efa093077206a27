"""Convolutions of every kind: the K functions, and the composites that they and their gradients are written in.

Inside, channels come last. Three ops are closed under differentiation: `conv`, `conv_input` (its adjoint with respect
to x, the transposed convolution) and `conv_kernel` (that with respect to the kernel). Each also exists as `dilated_...`
and `depthwise_...`, so that a backend can leave out what its engine can't do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..graph.nodes import Tensor, constant_node
from ..graph.rules import RULES, Rule, apply
from .dtypes import cast, promote
from .operators import index
from .primitives import Gradients, Result
from .shapes import known_dims, matmul, own_dims
from .shaping import concatenate, dims_of
from .windows import (
    Windows,
    channels_first,
    check_padding,
    check_rank,
    cropped,
    floats,
    from_last,
    in_float32,
    lengths_of,
    output_length,
    padded,
    per_axis,
    positions,
    renumbered,
    to_last,
    windows_of,
)

# --- the K functions --------------------------------------------------------------------------------------------


def conv1d(
    x: Any, kernel: Any, strides: Any = 1, padding: str = "valid", data_format: Any = None, dilation_rate: Any = 1
) -> Tensor:
    """(batch, steps, channels) with a kernel (size, channels, filters) along the steps: (batch, new steps, filters).

    `padding`: "valid", "same" or "causal" (no output depends on later steps). Raises ShapeError, DTypeError for what
    isn't a float, ArgumentError.
    """
    return _along_steps("conv1d", x, kernel, None, strides, padding, data_format, dilation_rate)


def separable_conv1d(
    x: Any,
    depthwise_kernel: Any,
    pointwise_kernel: Any,
    strides: Any = 1,
    padding: str = "valid",
    data_format: Any = None,
    dilation_rate: Any = 1,
) -> Tensor:
    """Each channel by itself with (size, channels, multiplier), then (1, channels * multiplier, filters) across them.

    Raises ShapeError, DTypeError for what isn't a float, ArgumentError.
    """
    op = "separable_conv1d"
    return _along_steps(op, x, depthwise_kernel, pointwise_kernel, strides, padding, data_format, dilation_rate)


def conv2d(
    x: Any,
    kernel: Any,
    strides: Any = (1, 1),
    padding: str = "valid",
    data_format: Any = None,
    dilation_rate: Any = (1, 1),
) -> Tensor:
    """Images with a kernel (rows, columns, channels, filters). `padding`: "valid" or "same".

    Raises ShapeError, DTypeError for what isn't a float, ArgumentError.
    """
    return _conv_nd("conv2d", x, kernel, 2, strides, padding, data_format, dilation_rate)


def depthwise_conv2d(
    x: Any,
    depthwise_kernel: Any,
    strides: Any = (1, 1),
    padding: str = "valid",
    data_format: Any = None,
    dilation_rate: Any = (1, 1),
) -> Tensor:
    """Each channel by itself with (rows, columns, channels, multiplier): channels * multiplier channels.

    Raises ShapeError, DTypeError for what isn't a float, ArgumentError.
    """
    op = "depthwise_conv2d"
    return _conv_nd(op, x, depthwise_kernel, 2, strides, padding, data_format, dilation_rate, depthwise=True)


def separable_conv2d(
    x: Any,
    depthwise_kernel: Any,
    pointwise_kernel: Any,
    strides: Any = (1, 1),
    padding: str = "valid",
    data_format: Any = None,
    dilation_rate: Any = (1, 1),
) -> Tensor:
    """`depthwise_conv2d`, then a kernel (1, 1, channels * multiplier, filters) across the channels.

    Raises ShapeError, DTypeError for what isn't a float, ArgumentError.
    """
    op = "separable_conv2d"
    inner = _conv_nd(op, x, depthwise_kernel, 2, strides, padding, data_format, dilation_rate, depthwise=True)
    _check_pointwise(op, inner, pointwise_kernel, 2)
    return _conv_nd(op, inner, pointwise_kernel, 2, 1, "valid", data_format, 1)


def conv3d(
    x: Any,
    kernel: Any,
    strides: Any = (1, 1, 1),
    padding: str = "valid",
    data_format: Any = None,
    dilation_rate: Any = (1, 1, 1),
) -> Tensor:
    """Volumes with a kernel of three lengths, channels, filters. `padding`: "valid" or "same".

    Raises ShapeError, DTypeError for what isn't a float, ArgumentError.
    """
    return _conv_nd("conv3d", x, kernel, 3, strides, padding, data_format, dilation_rate)


def conv2d_transpose(
    x: Any,
    kernel: Any,
    output_shape: Any,
    strides: Any = (1, 1),
    padding: str = "valid",
    data_format: Any = None,
    dilation_rate: Any = (1, 1),
) -> Tensor:
    """The gradient of `conv2d` with respect to its images: `x` spread out to `output_shape`.

    The kernel is (rows, columns, filters out, channels in). `output_shape` is a tuple of ints and integer tensors, or
    one tensor, in the order of `data_format`; its batch may be None. Raises ShapeError where `conv2d` of that shape
    doesn't give the shape of `x`, DTypeError for what isn't a float, ArgumentError.
    """
    return _transposed("conv2d_transpose", x, kernel, 2, output_shape, strides, padding, data_format, dilation_rate)


def conv3d_transpose(
    x: Any,
    kernel: Any,
    output_shape: Any,
    strides: Any = (1, 1, 1),
    padding: str = "valid",
    data_format: Any = None,
) -> Tensor:
    """The gradient of `conv3d` with respect to its volumes; as `conv2d_transpose`."""
    return _transposed("conv3d_transpose", x, kernel, 3, output_shape, strides, padding, data_format, 1)


def local_conv1d(inputs: Any, kernel: Any, kernel_size: Any, strides: Any, data_format: Any = None) -> Tensor:
    """`conv1d` with another kernel for each output step: (steps, size * channels, filters).

    Raises ShapeError, DTypeError for what isn't a float, ArgumentError.
    """
    return _local("local_conv1d", inputs, kernel, kernel_size, strides, None, 1, data_format)


def local_conv2d(
    inputs: Any, kernel: Any, kernel_size: Any, strides: Any, output_shape: Any, data_format: Any = None
) -> Tensor:
    """`conv2d` with another kernel for each output position: (positions, rows * columns * channels, filters).

    `output_shape`: the two output lengths. With channels first, a position's kernel has them first, too. Raises
    ShapeError, DTypeError for what isn't a float, ArgumentError.
    """
    return _local("local_conv2d", inputs, kernel, kernel_size, strides, output_shape, 2, data_format)


def _same_dtype(op: str, *values: Any) -> list[Tensor]:
    tensors = floats(op, *values)
    common = tensors[0].dtype
    for x in tensors[1:]:
        common = promote(common, x.dtype)
    return [cast(x, common) for x in tensors]


def _check_kernel(op: str, kernel: Tensor, spatial: int) -> None:
    if kernel.ndim != spatial + 2:
        raise ShapeError(
            f"{op}: a kernel of shape {kernel.shape} needs {spatial + 2} axes: {spatial} lengths, then the input "
            f"channels and the output (filters, or a multiplier)"
        )
    if None in kernel.shape or 0 in kernel.shape:
        raise ShapeError(f"{op}: every length of a kernel must be known and 1 or more, not {kernel.shape}")


def _check_channels(op: str, x: Tensor, kernel: Tensor, given: int | None, wanted: int | None) -> None:
    if given != wanted and given is not None:
        raise ShapeError(
            f"{op}: x of shape {x.shape} has {given} channels, but the kernel of shape {kernel.shape} takes {wanted}"
        )


def _with_channels(x: Tensor, channels: int | None) -> Tensor:
    """`x`, channels last, with their number known: that which the kernel takes."""
    if x.shape[-1] is not None:
        return x
    return apply("reshape", x, dims=[*own_dims(x)[:-1], channels])


def _apply(part: str, windows: Windows, depthwise: bool, *inputs: Tensor, **attrs: Any) -> Tensor:
    """Records `conv`, `conv_input` or `conv_kernel` of the kind that these windows need."""
    name = ("dilated_" if max(windows.dilation) > 1 else "") + ("depthwise_" if depthwise else "") + part
    attrs.update(strides=windows.strides, pads=windows.pads, dilation=windows.dilation)
    return apply(name, *inputs, **attrs)


def _conv_nd(
    op: str,
    x: Any,
    kernel: Any,
    spatial: int,
    strides: Any,
    padding: str,
    data_format: Any,
    dilation: Any,
    depthwise: bool = False,
) -> Tensor:
    x, kernel = _same_dtype(op, x, kernel)
    first = channels_first(data_format)
    padding = check_padding(padding, op)
    check_rank(x, spatial, op)
    _check_kernel(op, kernel, spatial)
    _check_channels(op, x, kernel, x.shape[1 if first else -1], kernel.shape[-2])
    moved = _with_channels(to_last(x, first), kernel.shape[-2])
    strides = per_axis(strides, spatial, "strides", op)
    dilation = per_axis(dilation, spatial, "dilation_rate", op)
    windows = windows_of(lengths_of(moved), _size(kernel), strides, dilation, padding, 2)
    _check_lengths(op, moved, windows)
    return from_last(_apply("conv", windows, depthwise, moved, kernel, *windows.references), first)


def _size(kernel: Tensor) -> list[int]:
    return [int(n or 0) for n in kernel.shape[:-2]]


def _check_lengths(op: str, x: Tensor, windows: Windows) -> list[int | None]:
    return [output_length(n, windows, axis, op) for axis, n in enumerate(x.shape[1:-1])]


def _along_steps(
    op: str,
    x: Any,
    kernel: Any,
    pointwise: Any,
    strides: Any,
    padding: str,
    data_format: Any,
    dilation: Any,
) -> Tensor:
    """A convolution along steps, as one of images of one row."""
    x, kernel = _same_dtype(op, x, kernel)
    depthwise = pointwise is not None
    first = channels_first(data_format)
    padding = check_padding(padding, op, ("valid", "same") if depthwise else ("valid", "same", "causal"))
    check_rank(x, 1, op)
    _check_kernel(op, kernel, 1)
    _check_channels(op, x, kernel, x.shape[1 if first else -1], kernel.shape[-2])
    strides = per_axis(strides, 1, "strides", op)
    dilation = per_axis(dilation, 1, "dilation_rate", op)
    moved = _with_channels(to_last(x, first), kernel.shape[-2])
    windows = windows_of(lengths_of(moved), _size(kernel), strides, dilation, padding, 2)
    _check_lengths(op, moved, windows)
    windows = Windows(
        [1, *windows.size], [1, *windows.strides], [[0, 0], *windows.pads], [1, *dilation], windows.references
    )
    y = _apply("conv", windows, depthwise, _row(moved), _one_row(kernel), *windows.references)
    if depthwise:
        _check_pointwise(op, moved, pointwise, 1, kernel)
        (y, pointwise) = _same_dtype(op, y, pointwise)
        y = _conv_nd(op, y, _one_row(pointwise), 2, 1, "valid", "channels_last", 1)
    return from_last(_no_row(y), first)


def _check_pointwise(op: str, x: Tensor, pointwise: Any, spatial: int, depthwise: Tensor | None = None) -> None:
    (kernel,) = floats(op, pointwise)
    _check_kernel(op, kernel, spatial)
    if _size(kernel) != [1] * spatial:
        raise ShapeError(f"{op}: the pointwise kernel's lengths must be 1, not {kernel.shape}")
    if depthwise is not None:
        made = int(depthwise.shape[-2] or 0) * int(depthwise.shape[-1] or 0)
        if kernel.shape[-2] != made:
            raise ShapeError(
                f"{op}: a depthwise kernel of shape {depthwise.shape} gives {made} channels, the pointwise kernel of "
                f"shape {kernel.shape} takes {kernel.shape[-2]}"
            )


def _row(x: Tensor) -> Tensor:
    dims = own_dims(x)
    return apply("reshape", x, dims=[dims[0], 1, *dims[1:]])


def _one_row(kernel: Tensor) -> Tensor:
    return apply("reshape", kernel, dims=[1, *kernel.shape])


def _no_row(y: Tensor) -> Tensor:
    dims = own_dims(y)
    return apply("reshape", y, dims=[dims[0], *dims[2:]])


def _transposed(
    op: str,
    x: Any,
    kernel: Any,
    spatial: int,
    output_shape: Any,
    strides: Any,
    padding: str,
    data_format: Any,
    dilation: Any,
) -> Tensor:
    x, kernel = _same_dtype(op, x, kernel)
    first = channels_first(data_format)
    padding = check_padding(padding, op)
    check_rank(x, spatial, op)
    _check_kernel(op, kernel, spatial)
    _check_channels(op, x, kernel, x.shape[1 if first else -1], kernel.shape[-1])
    if isinstance(output_shape, (tuple, list)) and output_shape and output_shape[0] is None:
        output_shape = [-1, *output_shape[1:]]
    dims, references = dims_of(output_shape, 2, op)
    if len(dims) != spatial + 2:
        raise ShapeError(f"{op}: output_shape {output_shape} needs {spatial + 2} entries, as x of shape {x.shape}")
    batch, *rest = dims
    if first:
        rest = [*rest[1:], rest[0]]
    *lengths, channels = rest
    if any(isinstance(n, int) and n < 1 for n in lengths):
        raise ShapeError(f"{op}: spatial lengths in output_shape must be 1 or more, not {tuple(lengths)}")
    if isinstance(channels, int) and channels != kernel.shape[-2]:
        raise ShapeError(
            f"{op}: output_shape {tuple(dims)} has {channels} channels, the kernel of shape {kernel.shape} gives "
            f"{kernel.shape[-2]}"
        )
    if isinstance(batch, int) and batch not in (-1, x.shape[0]) and x.shape[0] is not None:
        raise ShapeError(f"{op}: output_shape {tuple(dims)} has another batch size than x of shape {x.shape}")
    moved = _with_channels(to_last(x, first), kernel.shape[-1])
    strides = per_axis(strides, spatial, "strides", op)
    dilation = per_axis(dilation, spatial, "dilation_rate", op)
    known = [n if isinstance(n, int) else _length(n, references, 2) for n in lengths]
    windows = windows_of(known, _size(kernel), strides, dilation, padding, 2 + len(references))
    inputs = (moved, kernel, *references, *windows.references)
    return from_last(_apply("conv_input", windows, False, *inputs, dims=lengths), first)


def _length(dim: Any, references: Sequence[Tensor], first: int) -> Tensor:
    """A `dims` entry that isn't an int as a 0-d tensor."""
    if dim[0] == "value":
        vector = references[dim[1] - first]
        return index(vector, dim[2]) if vector.ndim else vector
    return index(apply("shape", references[dim[0] - first]), dim[1])


def _local(
    op: str,
    x: Any,
    kernel: Any,
    kernel_size: Any,
    strides: Any,
    output_shape: Any,
    spatial: int,
    data_format: Any,
) -> Tensor:
    x, kernel = _same_dtype(op, x, kernel)
    first = channels_first(data_format)
    check_rank(x, spatial, op)
    size = per_axis(kernel_size, spatial, "kernel_size", op)
    strides = per_axis(strides, spatial, "strides", op)
    if kernel.ndim != 3 or None in kernel.shape or 0 in kernel.shape:
        raise ShapeError(
            f"{op}: a kernel of shape {kernel.shape} needs 3 known axes: output positions, elements of a patch, filters"
        )
    count, features, filters = [int(n or 0) for n in kernel.shape]
    lengths = [count] if output_shape is None else per_axis(output_shape, spatial, "output_shape", op)
    moved = to_last(x, first)
    channels, rest = divmod(features, int(np.prod(size)))
    if rest or moved.shape[-1] not in (None, channels) or int(np.prod(lengths)) != count:
        raise ShapeError(
            f"{op}: x of shape {x.shape} and a kernel of shape {kernel.shape} don't fit: it needs "
            f"{int(np.prod(lengths))} positions of {tuple(size)} elements times the channels of x"
        )
    windows = windows_of(lengths, size, strides, [1] * spatial, "valid", 1)
    for axis, n in enumerate(moved.shape[1:-1]):
        made = output_length(n, windows, axis, op)
        if made is not None and made < lengths[axis]:
            raise ShapeError(
                f"{op}: x of shape {x.shape} has {made} positions along spatial axis {axis}, the output shape "
                f"{tuple(lengths)} needs {lengths[axis]}"
            )
    pieces = []
    for slices in positions(windows):
        for entry, n, stride in zip(slices[1:-1], lengths, strides):
            entry[1] = (entry[0] or 0) + (n - 1) * stride + 1
        piece = apply("slice", moved, slices=slices)
        if piece.shape[-1] is None or None in piece.shape[1:-1]:
            dims = [own_dims(piece)[0], *lengths, channels]
            piece = apply("reshape", piece, dims=dims)
        pieces.append(piece)
    batch = own_dims(x, 1)[0]
    patches = concatenate(pieces, -1)
    if first:
        own = [own_dims(patches)[0], *lengths, len(pieces), channels]
        swapped = apply("transpose", apply("reshape", patches, dims=own), permutation=_swapped(spatial))
        patches = apply("reshape", swapped, dims=[own_dims(swapped)[0], *lengths, features])
    rows = apply("reshape", patches, dims=[own_dims(patches)[0], count, features])
    rows = apply("transpose", rows, permutation=[1, 0, 2])
    product = apply("batch_matmul", rows, kernel, transpose_a=False, transpose_b=False)
    product = apply("transpose", product, permutation=[1, 0, 2])
    references = (x,) if isinstance(batch, list) else ()
    return from_last(apply("reshape", product, *references, dims=[batch, *lengths, filters]), first)


def _swapped(spatial: int) -> list[int]:
    return [*range(spatial + 1), spatial + 2, spatial + 1]


# --- the composites ---------------------------------------------------------------------------------------------


def _windows(size: Sequence[int | None], strides: Any, pads: Any, dilation: Any, references: Any = ()) -> Windows:
    return Windows([int(n or 0) for n in size], strides, pads, dilation, tuple(references))


def _infer_conv(x: Any, kernel: Any, *references: Any, depthwise: bool, **lie: Any) -> Result:
    windows = _windows(kernel.shape[:-2], **lie)
    lengths = [output_length(n, windows, axis, "convolution") for axis, n in enumerate(x.shape[1:-1])]
    channels, made = kernel.shape[-2:]
    if x.shape[-1] not in (None, channels):
        raise ShapeError(f"convolution: x of shape {x.shape} and a kernel of shape {kernel.shape} differ in channels")
    return (x.shape[0], *lengths, channels * made if depthwise else made), x.dtype


def _infer_conv_input(g: Any, kernel: Any, *references: Any, dims: Any, depthwise: bool, **lie: Any) -> Result:
    windows = _windows(kernel.shape[:-2], **lie)
    lengths = known_dims(dims, (g, kernel, *references))
    given = g.shape[1:-1]
    wanted = tuple(output_length(n, windows, axis, "transposed convolution") for axis, n in enumerate(lengths))
    if any(m != n and m is not None and n is not None for m, n in zip(given, wanted)):
        raise ShapeError(
            f"transposed convolution: spatial lengths {given} of x of shape {g.shape} don't come from an output of "
            f"lengths {tuple(lengths)}, which gives {wanted}"
        )
    return (g.shape[0], *lengths, kernel.shape[-2]), g.dtype


def _infer_conv_kernel(x: Any, g: Any, *references: Any, size: Any, depthwise: bool, **lie: Any) -> Result:
    made: int = g.shape[-1]
    return (*size, x.shape[-1], made // x.shape[-1] if depthwise else made), x.dtype


def _pieces(x: Tensor, windows: Windows, first: int) -> list[Tensor]:
    """The elements of every window, one tensor (batch, *output, channels) for each place in it."""
    wide = padded(x, windows, first)
    return [apply("slice", wide, slices=slices) for slices in positions(windows)]


def _columns(x: Tensor, windows: Windows, first: int, channels: int) -> tuple[Tensor, Tensor]:
    """All windows as rows of a matrix, and the tensor (batch, *output, ...) that they came from."""
    whole = concatenate(_pieces(x, windows, first), -1)
    return apply("reshape", whole, dims=[-1, int(np.prod(windows.size)) * channels]), whole


def _split(x: Tensor, channels: int, multiplier: int) -> Tensor:
    """The last axis of `x` as two."""
    return apply("reshape", x, dims=[*own_dims(x)[:-1], channels, multiplier])


def _places(kernel: Tensor) -> list[Tensor]:
    """A depthwise kernel's (channels, multiplier) for each place in a window."""
    flat = apply("reshape", kernel, dims=[-1, *kernel.shape[-2:]])
    count = int(np.prod(_size(kernel)))
    none = [None, None, None]
    return [
        apply("reshape", apply("slice", flat, slices=[[i, i + 1, None], none, none]), dims=list(kernel.shape[-2:]))
        for i in range(count)
    ]


def _total(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = apply("add", total, part)
    return total


def _conv(x: Tensor, kernel: Tensor, *references: Tensor, depthwise: bool, **lie: Any) -> Tensor:
    windows = _windows(kernel.shape[:-2], **lie, references=references)
    channels, made = [int(n or 0) for n in kernel.shape[-2:]]
    if depthwise:
        pieces = [_split(piece, channels, 1) for piece in _pieces(x, windows, 2)]
        total = _total([apply("multiply", piece, place) for piece, place in zip(pieces, _places(kernel))])
        return apply("reshape", total, dims=[*own_dims(total)[:-2], channels * made])
    columns, whole = _columns(x, windows, 2, channels)
    y = matmul(columns, apply("reshape", kernel, dims=[-1, made]))
    return apply("reshape", y, whole, dims=[*own_dims(whole, 1)[:-1], made])


def _conv_input(g: Tensor, kernel: Tensor, *references: Tensor, dims: Any, depthwise: bool, **lie: Any) -> Tensor:
    # The operands that pads refer to come after those of dims.
    first = 2 + len(references) - _valued(lie["pads"])
    windows = _windows(kernel.shape[:-2], **lie, references=references[first - 2 :])
    channels, made = [int(n or 0) for n in kernel.shape[-2:]]
    zero = constant_node(np.zeros((), dtype=g.dtype))
    # Like those of the op itself, the operands that dims refer to are numbered from 2.
    lengths = [own_dims(g, 1)[0], *dims, channels]
    whole = padded(apply("broadcast_to", zero, g, *references[: first - 2], dims=lengths), windows, first)
    if depthwise:
        split = _split(g, channels, made)
        parts = [
            apply("sum", apply("multiply", split, place), axes=[split.ndim - 1], keepdims=False)
            for place in _places(kernel)
        ]
    else:
        flat = apply("reshape", g, dims=[-1, made])
        columns = matmul(flat, apply("reshape", kernel, dims=[-1, made]), transpose_b=True)
        columns = apply("reshape", columns, g, dims=[*own_dims(g, 1)[:-1], columns.shape[-1]])
        none = [[None, None, None]] * (g.ndim - 1)
        parts = [
            apply("slice", columns, slices=[*none, [i * channels, (i + 1) * channels, None]])
            for i in range(int(np.prod(windows.size)))
        ]
    spread = [apply("unslice", part, whole, slices=slices) for part, slices in zip(parts, positions(windows))]
    return cropped(_total(spread), windows, first)


def _valued(pads: Any) -> int:
    """How many operands pads refer to."""
    return sum(isinstance(entry, list) for pair in pads for entry in pair)


def _conv_kernel(x: Tensor, g: Tensor, *references: Tensor, size: Any, depthwise: bool, **lie: Any) -> Tensor:
    windows = _windows(size, **lie, references=references)
    channels, made = int(x.shape[-1] or 0), int(g.shape[-1] or 0)
    if depthwise:
        multiplier = made // channels
        split = _split(g, channels, multiplier)
        axes = list(range(split.ndim - 2))
        parts = [
            apply("sum", apply("multiply", _split(piece, channels, 1), split), axes=axes, keepdims=False)
            for piece in _pieces(x, windows, 2)
        ]
        return apply("reshape", concatenate(parts, 0), dims=[*size, channels, multiplier])
    columns, _ = _columns(x, windows, 2, channels)
    y = matmul(columns, apply("reshape", g, dims=[-1, made]), transpose_a=True)
    return apply("reshape", y, dims=[*size, channels, made])


def _lie(node: Tensor, references: Sequence[Tensor]) -> Windows:
    """How a node's windows lie, its pads' operands now numbered from 2."""
    pads = node.attrs["pads"]
    values = _valued(pads)
    kept = tuple(references[len(references) - values :])
    moved = renumbered(pads, -(len(references) - values))
    return Windows([], node.attrs["strides"], moved, node.attrs["dilation"], kept)


def _to_input(windows: Windows, depthwise: bool, g: Tensor, kernel: Tensor, x: Tensor) -> Tensor:
    """`conv_input` to the lengths of `x`."""
    dims = own_dims(x, 2)[1:-1]
    references = (x,) if None in x.shape[1:-1] else ()
    moved = windows._replace(pads=renumbered(windows.pads, len(references)))
    return _apply("conv_input", moved, depthwise, g, kernel, *references, *windows.references, dims=dims)


def _to_kernel(windows: Windows, depthwise: bool, x: Tensor, g: Tensor, size: list[int]) -> Tensor:
    return _apply("conv_kernel", windows, depthwise, x, g, *windows.references, size=size)


def _vjp_conv(node: Tensor, g: Tensor, depthwise: bool) -> Gradients:
    x, kernel, *references = node.inputs
    windows = _lie(node, references)
    to_x = _to_input(windows, depthwise, g, kernel, x)
    return [to_x, _to_kernel(windows, depthwise, x, g, _size(kernel)), *[None] * len(references)]


def _vjp_conv_input(node: Tensor, h: Tensor, depthwise: bool) -> Gradients:
    g, kernel, *references = node.inputs
    windows = _lie(node, references)
    to_g = _apply("conv", windows, depthwise, h, kernel, *windows.references)
    return [to_g, _to_kernel(windows, depthwise, h, g, _size(kernel)), *[None] * len(references)]


def _vjp_conv_kernel(node: Tensor, h: Tensor, depthwise: bool) -> Gradients:
    x, g, *references = node.inputs
    windows = _lie(node, references)
    to_g = _apply("conv", windows, depthwise, x, h, *windows.references)
    return [_to_input(windows, depthwise, g, h, x), to_g, *[None] * len(references)]


def _define() -> None:
    parts: dict[str, Any] = {
        "conv": (_infer_conv, _vjp_conv, _conv),
        "conv_input": (_infer_conv_input, _vjp_conv_input, _conv_input),
        "conv_kernel": (_infer_conv_kernel, _vjp_conv_kernel, _conv_kernel),
    }
    for part, (infer, vjp, decompose) in parts.items():
        for depthwise, prefix in ((False, ""), (True, "depthwise_")):
            rule = Rule(
                partial(infer, depthwise=depthwise),
                partial(vjp, depthwise=depthwise),
                in_float32(partial(decompose, depthwise=depthwise)),
            )
            RULES[prefix + part] = RULES["dilated_" + prefix + part] = rule


_define()
