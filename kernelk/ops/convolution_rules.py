"""The ops that convolutions and their gradients are written in, each a composite; `convolution` has the K functions.

Channels come last. Three ops are closed under differentiation: `conv`, `conv_input` (its adjoint with respect to x, the
transposed convolution) and `conv_kernel` (that with respect to the kernel). Each also exists as `dilated_...` and
`depthwise_...`, so that a backend can leave out what its engine can't do.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..graph.nodes import Tensor, constant_node
from ..graph.rules import RULES, Gradients, Result, Rule, apply
from .dtypes import in_float32
from .shapes import known_dims, matmul, own_dims, renumbered
from .shaping import concatenate
from .windows import Windows, cropped, output_length, padded, positions


def apply_conv(part: str, windows: Windows, depthwise: bool, *inputs: Tensor, **attrs: Any) -> Tensor:
    """Records `conv`, `conv_input` or `conv_kernel` of the kind that these windows need."""
    name = ("dilated_" if max(windows.dilation) > 1 else "") + ("depthwise_" if depthwise else "") + part
    attrs.update(strides=windows.strides, pads=windows.pads, dilation=windows.dilation)
    return apply(name, *inputs, **attrs)


def size_of(kernel: Tensor) -> list[int]:
    """The lengths of a kernel's windows."""
    return [int(n or 0) for n in kernel.shape[:-2]]


def _windows(size: Sequence[int | None], strides: Any, pads: Any, dilation: Any, references: Any = ()) -> Windows:
    return Windows([int(n or 0) for n in size], strides, pads, dilation, tuple(references))


def _infer_conv(x: Any, kernel: Any, *references: Any, depthwise: bool, **lie: Any) -> Result:
    windows = _windows(kernel.shape[:-2], **lie)
    lengths = [output_length(n, windows, axis, "convolution") for axis, n in enumerate(x.shape[1:-1])]
    channels, made = kernel.shape[-2:]
    if x.shape[-1] not in (None, channels):
        raise ShapeError(
            f"convolution: x of shape {x.shape} and a kernel of shape {kernel.shape} differ in channels",
            allowed="they must be equal",
        )
    return (x.shape[0], *lengths, channels * made if depthwise else made), x.dtype


def _infer_conv_input(g: Any, kernel: Any, *references: Any, dims: Any, depthwise: bool, **lie: Any) -> Result:
    windows = _windows(kernel.shape[:-2], **lie)
    lengths = known_dims(dims, (g, kernel, *references))
    given = g.shape[1:-1]
    wanted = tuple(output_length(n, windows, axis, "transposed convolution") for axis, n in enumerate(lengths))
    if any(m != n and m is not None and n is not None for m, n in zip(given, wanted)):
        raise ShapeError(
            f"transposed convolution: spatial lengths {given} of x of shape {g.shape} don't come from an output of "
            f"lengths {tuple(lengths)}, which gives {wanted}",
            allowed="they must be equal",
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


def _kernel_slices(kernel: Tensor) -> list[Tensor]:
    """A depthwise kernel's (channels, multiplier) for each place in a window."""
    flat = apply("reshape", kernel, dims=[-1, *kernel.shape[-2:]])
    count = int(np.prod(size_of(kernel)))
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
        total = _total([apply("multiply", piece, weights) for piece, weights in zip(pieces, _kernel_slices(kernel))])
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
            apply("sum", apply("multiply", split, weights), axes=[split.ndim - 1], keepdims=False)
            for weights in _kernel_slices(kernel)
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
    placed = [apply("unslice", part, whole, slices=slices) for part, slices in zip(parts, positions(windows))]
    return cropped(_total(placed), windows, first)


def _valued(pads: Any) -> int:
    """The number of operands that pads refer to."""
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
    """The geometry of a node's windows, its pads' operands now numbered from 2."""
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
    return apply_conv("conv_input", moved, depthwise, g, kernel, *references, *windows.references, dims=dims)


def _to_kernel(windows: Windows, depthwise: bool, x: Tensor, g: Tensor, size: list[int]) -> Tensor:
    return apply_conv("conv_kernel", windows, depthwise, x, g, *windows.references, size=size)


def _vjp_conv(node: Tensor, g: Tensor, depthwise: bool) -> Gradients:
    x, kernel, *references = node.inputs
    windows = _lie(node, references)
    to_x = _to_input(windows, depthwise, g, kernel, x)
    return [to_x, _to_kernel(windows, depthwise, x, g, size_of(kernel)), *[None] * len(references)]


def _vjp_conv_input(node: Tensor, h: Tensor, depthwise: bool) -> Gradients:
    g, kernel, *references = node.inputs
    windows = _lie(node, references)
    to_g = apply_conv("conv", windows, depthwise, h, kernel, *windows.references)
    return [to_g, _to_kernel(windows, depthwise, h, g, size_of(kernel)), *[None] * len(references)]


def _vjp_conv_kernel(node: Tensor, h: Tensor, depthwise: bool) -> Gradients:
    x, g, *references = node.inputs
    windows = _lie(node, references)
    to_g = apply_conv("conv", windows, depthwise, x, h, *windows.references)
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
                checks=True,
            )
            RULES[prefix + part] = RULES["dilated_" + prefix + part] = rule


_define()
