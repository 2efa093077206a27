"""Convolutions of every kind: the K functions, which check their arguments; `convolution_rules` has their ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..graph.nodes import Shape, Tensor
from ..graph.rules import apply
from .convolution_rules import apply_conv, size_of
from .dtypes import as_tensor, cast, promote
from .indexing import index
from .shapes import image_axes, own_dims
from .shaping import concatenate, dims_of
from .windows import WindowArguments, Windows, floats, lengths_of, output_length, per_axis, positions, window_arguments


def conv1d(
    x: Any, kernel: Any, strides: Any = 1, padding: str = "valid", data_format: Any = None, dilation_rate: Any = 1
) -> Tensor:
    """Convolves (batch, steps, channels) with a kernel (size, channels, filters) to (batch, new steps, filters).

    `padding`: "valid", "same" or "causal" (no output depends on later steps). Raises ShapeError, DTypeError for
    anything but floats, ArgumentError.
    """
    paddings = ("valid", "same", "causal")
    arguments = window_arguments("conv1d", 1, strides, padding, data_format, dilation_rate, paddings)
    return _along_steps(arguments, x, kernel)


def separable_conv1d(
    x: Any,
    depthwise_kernel: Any,
    pointwise_kernel: Any,
    strides: Any = 1,
    padding: str = "valid",
    data_format: Any = None,
    dilation_rate: Any = 1,
) -> Tensor:
    """Convolves each channel separately (size, channels, multiplier), then across (1, channels * multiplier, filters).

    Raises ShapeError, DTypeError for anything but floats, ArgumentError.
    """
    arguments = window_arguments("separable_conv1d", 1, strides, padding, data_format, dilation_rate)
    return _along_steps(arguments, x, depthwise_kernel, pointwise_kernel)


def conv2d(
    x: Any,
    kernel: Any,
    strides: Any = (1, 1),
    padding: str = "valid",
    data_format: Any = None,
    dilation_rate: Any = (1, 1),
) -> Tensor:
    """Convolves images with a kernel (rows, columns, channels, filters). `padding`: "valid" or "same".

    Raises ShapeError, DTypeError for anything but floats, ArgumentError.
    """
    return _convolved(window_arguments("conv2d", 2, strides, padding, data_format, dilation_rate), x, kernel)


def depthwise_conv2d(
    x: Any,
    depthwise_kernel: Any,
    strides: Any = (1, 1),
    padding: str = "valid",
    data_format: Any = None,
    dilation_rate: Any = (1, 1),
) -> Tensor:
    """Convolves each channel separately with (rows, columns, channels, multiplier) to channels * multiplier channels.

    Raises ShapeError, DTypeError for anything but floats, ArgumentError.
    """
    arguments = window_arguments("depthwise_conv2d", 2, strides, padding, data_format, dilation_rate)
    return _convolved(arguments, x, depthwise_kernel, depthwise=True)


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

    Raises ShapeError, DTypeError for anything but floats, ArgumentError.
    """
    arguments = window_arguments("separable_conv2d", 2, strides, padding, data_format, dilation_rate)
    inner = _convolved(arguments, x, depthwise_kernel, depthwise=True)
    _check_pointwise(arguments, pointwise_kernel, as_tensor(depthwise_kernel))
    return _convolved(window_arguments("separable_conv2d", 2, 1, data_format=data_format), inner, pointwise_kernel)


def conv3d(
    x: Any,
    kernel: Any,
    strides: Any = (1, 1, 1),
    padding: str = "valid",
    data_format: Any = None,
    dilation_rate: Any = (1, 1, 1),
) -> Tensor:
    """Convolves volumes with a kernel (three lengths, channels, filters). `padding`: "valid" or "same".

    Raises ShapeError, DTypeError for anything but floats, ArgumentError.
    """
    return _convolved(window_arguments("conv3d", 3, strides, padding, data_format, dilation_rate), x, kernel)


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
    doesn't give the shape of `x`, DTypeError for anything but floats, ArgumentError.
    """
    arguments = window_arguments("conv2d_transpose", 2, strides, padding, data_format, dilation_rate)
    return _transposed(arguments, x, kernel, output_shape)


def conv3d_transpose(
    x: Any,
    kernel: Any,
    output_shape: Any,
    strides: Any = (1, 1, 1),
    padding: str = "valid",
    data_format: Any = None,
) -> Tensor:
    """The gradient of `conv3d` with respect to its volumes; as `conv2d_transpose`."""
    return _transposed(window_arguments("conv3d_transpose", 3, strides, padding, data_format), x, kernel, output_shape)


def local_conv1d(inputs: Any, kernel: Any, kernel_size: Any, strides: Any, data_format: Any = None) -> Tensor:
    """`conv1d` with another kernel for each output step: (steps, size * channels, filters).

    Raises ShapeError, DTypeError for anything but floats, ArgumentError.
    """
    arguments = window_arguments("local_conv1d", 1, strides, data_format=data_format)
    return _local(arguments, inputs, kernel, kernel_size, None)


def local_conv2d(
    inputs: Any, kernel: Any, kernel_size: Any, strides: Any, output_shape: Any, data_format: Any = None
) -> Tensor:
    """`conv2d` with another kernel for each output position: (positions, rows * columns * channels, filters).

    `output_shape`: the two output lengths. With channels first, a position's kernel has them first, too. Raises
    ShapeError, DTypeError for anything but floats, ArgumentError.
    """
    arguments = window_arguments("local_conv2d", 2, strides, data_format=data_format)
    return _local(arguments, inputs, kernel, kernel_size, output_shape)


def _same_dtype(op: str, *values: Any) -> list[Tensor]:
    tensors = floats(op, *values)
    common = tensors[0].dtype
    for x in tensors[1:]:
        common = promote(common, x.dtype)
    return [cast(x, common) for x in tensors]


def _check_kernel(op: str, kernel: Tensor, spatial: int) -> None:
    if kernel.ndim != spatial + 2:
        last = "filters, channels" if op.endswith("_transpose") else "channels, filters or multiplier"
        raise ShapeError(
            f"{op}: the kernel has shape {kernel.shape}",
            allowed=f"it needs {spatial + 2} axes ({', '.join(image_axes(spatial)[1:-1])}, {last})",
        )
    if None in kernel.shape or 0 in kernel.shape:
        raise ShapeError(
            f"{op}: the kernel has shape {kernel.shape}", allowed="every length of it must be known and 1 or more"
        )


def _check_channels(arguments: WindowArguments, x: Tensor, kernel: Tensor, takes: int) -> None:
    """Raises ShapeError unless `x` has as many channels as axis `takes` of its kernel is long."""
    given, swapped = (x.shape[1], x.shape[-1]) if arguments.first else (x.shape[-1], x.shape[1])
    wanted = kernel.shape[takes]
    if given == wanted or given is None:
        return
    order = (0, x.ndim - 1, *range(1, x.ndim - 1)) if arguments.first else (0, *range(2, x.ndim), 1)
    shape = list(kernel.shape)
    shape[takes] = given
    raise ShapeError(
        f"{arguments.op}: x of shape {x.shape} has {given} channels, but the kernel of shape {kernel.shape} takes "
        f"{wanted}",
        allowed="they must be equal",
        next_step=f"K.permute_dimensions(x, {order})" if swapped == wanted else f"a kernel of shape {tuple(shape)}",
    )


def _with_channels(x: Tensor, channels: int | None) -> Tensor:
    """`x`, channels last, with their number known: that which the kernel takes."""
    if x.shape[-1] is not None:
        return x
    return apply("reshape", x, dims=[*own_dims(x)[:-1], channels])


def _operands(arguments: WindowArguments, x: Any, kernel: Any, takes: int = -2) -> tuple[Tensor, Tensor, Tensor]:
    """`x` as it is and with channels last, and its kernel, whose axis `takes` is as long as `x` has channels."""
    op = arguments.op
    x, kernel = _same_dtype(op, x, kernel)
    moved = arguments.to_last(x)
    _check_kernel(op, kernel, arguments.spatial)
    _check_channels(arguments, x, kernel, takes)
    return x, _with_channels(moved, kernel.shape[takes]), kernel


def _windows_over(arguments: WindowArguments, x: Tensor, kernel: Tensor) -> Windows:
    """The windows of a kernel in `x`, channels last. Raises ShapeError where not one fits in."""
    windows = arguments.windows(lengths_of(x), size_of(kernel), 2)
    for axis, n in enumerate(x.shape[1:-1]):
        output_length(n, windows, axis, arguments.op)
    return windows


def _convolved(arguments: WindowArguments, x: Any, kernel: Any, depthwise: bool = False) -> Tensor:
    _, x, kernel = _operands(arguments, x, kernel)
    windows = _windows_over(arguments, x, kernel)
    return arguments.from_last(apply_conv("conv", windows, depthwise, x, kernel, *windows.references))


def _along_steps(arguments: WindowArguments, x: Any, kernel: Any, pointwise: Any = None) -> Tensor:
    """A convolution along steps, as one of images of one row."""
    depthwise = pointwise is not None
    _, x, kernel = _operands(arguments, x, kernel)
    windows = _windows_over(arguments, x, kernel)
    windows = Windows(
        [1, *windows.size], [1, *windows.strides], [[0, 0], *windows.pads], [1, *windows.dilation], windows.references
    )
    y = apply_conv("conv", windows, depthwise, _row(x), _one_row(kernel), *windows.references)
    if depthwise:
        _check_pointwise(arguments, pointwise, kernel)
        (y, pointwise) = _same_dtype(arguments.op, y, pointwise)
        across = window_arguments(arguments.op, 2, 1, data_format="channels_last")
        y = _convolved(across, y, _one_row(pointwise))
    return arguments.from_last(_no_row(y))


def _check_pointwise(arguments: WindowArguments, pointwise: Any, depthwise: Tensor) -> None:
    op = arguments.op
    (kernel,) = floats(op, pointwise)
    _check_kernel(op, kernel, arguments.spatial)
    made = int(depthwise.shape[-2] or 0) * int(depthwise.shape[-1] or 0)
    fitting = f"a pointwise kernel of shape {(*[1] * arguments.spatial, made, kernel.shape[-1])}"
    if size_of(kernel) != [1] * arguments.spatial:
        raise ShapeError(
            f"{op}: the pointwise kernel has shape {kernel.shape}",
            allowed="all its lengths but the last two must be 1",
            next_step=fitting,
        )
    if kernel.shape[-2] != made:
        raise ShapeError(
            f"{op}: a depthwise kernel of shape {depthwise.shape} gives {made} channels, the pointwise kernel of "
            f"shape {kernel.shape} takes {kernel.shape[-2]}",
            allowed="they must be equal",
            next_step=fitting,
        )


def _row(x: Tensor) -> Tensor:
    dims = own_dims(x)
    return apply("reshape", x, dims=[dims[0], 1, *dims[1:]])


def _one_row(kernel: Tensor) -> Tensor:
    return apply("reshape", kernel, dims=[1, *kernel.shape])


def _no_row(y: Tensor) -> Tensor:
    dims = own_dims(y)
    return apply("reshape", y, dims=[dims[0], *dims[2:]])


def _transposed(arguments: WindowArguments, x: Any, kernel: Any, output_shape: Any) -> Tensor:
    op, spatial = arguments.op, arguments.spatial
    x, moved, kernel = _operands(arguments, x, kernel, takes=-1)
    if isinstance(output_shape, (tuple, list)) and output_shape and output_shape[0] is None:
        output_shape = [-1, *output_shape[1:]]
    dims, references = dims_of(output_shape, 2, op)
    axes: list[Any] = list(image_axes(spatial, arguments.first))
    axes[0], axes[axes.index("channels")] = None, kernel.shape[-2]
    fitting = f"output_shape=({', '.join(map(str, axes))})"
    if len(dims) != spatial + 2:
        raise ShapeError(
            f"{op}: output_shape {output_shape} has {len(dims)} entries",
            allowed=f"x of shape {x.shape} needs {spatial + 2} entries",
            next_step=fitting,
        )
    batch, *rest = dims
    if arguments.first:
        rest = [*rest[1:], rest[0]]
    *lengths, channels = rest
    if any(isinstance(n, int) and n < 1 for n in lengths):
        raise ShapeError(f"{op}: output_shape has spatial lengths {tuple(lengths)}", allowed="they must be 1 or more")
    if isinstance(channels, int) and channels != kernel.shape[-2]:
        raise ShapeError(
            f"{op}: output_shape {tuple(dims)} has {channels} channels, the kernel of shape {kernel.shape} gives "
            f"{kernel.shape[-2]}",
            allowed="they must be equal",
            next_step=fitting,
        )
    if isinstance(batch, int) and batch not in (-1, x.shape[0]) and x.shape[0] is not None:
        raise ShapeError(
            f"{op}: output_shape {tuple(dims)} has another batch size than x of shape {x.shape}",
            allowed="they must be equal, or that of output_shape None",
            next_step=fitting,
        )
    known = [n if isinstance(n, int) else _length(n, references, 2) for n in lengths]
    windows = arguments.windows(known, size_of(kernel), 2 + len(references))
    _check_lengths(arguments, x, moved.shape[1:-1], known, windows)
    inputs = (moved, kernel, *references, *windows.references)
    return arguments.from_last(apply_conv("conv_input", windows, False, *inputs, dims=lengths))


def _check_lengths(
    arguments: WindowArguments, x: Tensor, given: Shape, lengths: Sequence[Any], windows: Windows
) -> None:
    """Raises ShapeError unless windows in output `lengths`, where these are known, give the lengths of `x`."""
    op, known = arguments.op, [n if isinstance(n, int) else None for n in lengths]
    made = tuple(output_length(n, windows, axis, op) for axis, n in enumerate(known))
    if not any(m != n and None not in (m, n) for m, n in zip(given, made)):
        return
    same = arguments.padding == "same"
    fitting = ", ".join(
        "None" if n is None else str(n * stride if same else (n - 1) * stride + windows.reach(axis))
        for axis, (n, stride) in enumerate(zip(given, windows.strides))
    )
    raise ShapeError(
        f"{op}: spatial lengths {tuple(known)} in output_shape give {made}, but x of shape {x.shape} has {given}",
        allowed="they must be equal",
        next_step=f"give output_shape the spatial lengths ({fitting})" if None not in given else "",
    )


def _length(dim: Any, references: Sequence[Tensor], first: int) -> Tensor:
    """A `dims` entry that isn't an int as a 0-d tensor."""
    if dim[0] == "value":
        vector = references[dim[1] - first]
        return index(vector, dim[2]) if vector.ndim else vector
    return index(apply("shape", references[dim[0] - first]), dim[1])


def _local(arguments: WindowArguments, x: Any, kernel: Any, kernel_size: Any, output_shape: Any) -> Tensor:
    op, spatial = arguments.op, arguments.spatial
    x, kernel = _same_dtype(op, x, kernel)
    moved = arguments.to_last(x)
    size = per_axis(kernel_size, spatial, "kernel_size", op)
    if kernel.ndim != 3 or None in kernel.shape or 0 in kernel.shape:
        raise ShapeError(
            f"{op}: the kernel has shape {kernel.shape}",
            allowed="it needs 3 known axes, each 1 or longer (output positions, elements of a patch, filters)",
        )
    count, features, filters = [int(n or 0) for n in kernel.shape]
    lengths = [count] if output_shape is None else per_axis(output_shape, spatial, "output_shape", op)
    channels, rest = divmod(features, int(np.prod(size)))
    wanted = int(np.prod(lengths))
    if rest or moved.shape[-1] not in (None, channels) or wanted != count:
        raise ShapeError(
            f"{op}: x of shape {x.shape} and a kernel of shape {kernel.shape} don't fit",
            allowed=f"it needs {wanted} positions of {tuple(size)} elements times the channels of x",
            next_step=""
            if moved.shape[-1] is None
            else f"a kernel of shape {(wanted, int(np.prod(size)) * moved.shape[-1], filters)}",
        )
    windows = arguments.windows(lengths, size, 1)
    for axis, n in enumerate(moved.shape[1:-1]):
        made = output_length(n, windows, axis, op)
        if made is not None and made < lengths[axis]:
            raise ShapeError(
                f"{op}: x of shape {x.shape} has {made} positions along spatial axis {axis}, the output shape "
                f"{tuple(lengths)} needs {lengths[axis]}",
                allowed=f"at most {made} are allowed",
            )
    pieces = []
    for slices in positions(windows):
        for entry, n, stride in zip(slices[1:-1], lengths, windows.strides):
            entry[1] = (entry[0] or 0) + (n - 1) * stride + 1
        piece = apply("slice", moved, slices=slices)
        if piece.shape[-1] is None or None in piece.shape[1:-1]:
            dims = [own_dims(piece)[0], *lengths, channels]
            piece = apply("reshape", piece, dims=dims)
        pieces.append(piece)
    batch = own_dims(x, 1)[0]
    patches = concatenate(pieces, -1)
    if arguments.first:
        own = [own_dims(patches)[0], *lengths, len(pieces), channels]
        swapped = apply("transpose", apply("reshape", patches, dims=own), permutation=_swapped(spatial))
        patches = apply("reshape", swapped, dims=[own_dims(swapped)[0], *lengths, features])
    rows = apply("reshape", patches, dims=[own_dims(patches)[0], count, features])
    rows = apply("transpose", rows, permutation=[1, 0, 2])
    product = apply("batch_matmul", rows, kernel, transpose_a=False, transpose_b=False)
    product = apply("transpose", product, permutation=[1, 0, 2])
    references = (x,) if isinstance(batch, list) else ()
    return arguments.from_last(apply("reshape", product, *references, dims=[batch, *lengths, filters]))


def _swapped(spatial: int) -> list[int]:
    return [*range(spatial + 1), spatial + 2, spatial + 1]
