"""The geometry of windows along an axis: padding, output lengths and strided pieces."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

from ..errors import ArgumentError, DTypeError, ShapeError
from ..graph.nodes import Tensor
from ..graph.rules import apply
from .arranging import normalize_data_format
from .dtypes import FLOATS, as_tensor, as_tensors, cast
from .operators import binary
from .shapes import image_axes, rank_refused

# Beyond the end of every axis: as a slice's stop, it takes all that there is.
_END = 2**31 - 1


class Windows(NamedTuple):
    """The geometry of windows: one entry for each spatial axis, which follow the batch axis; channels come last.

    `pads` are [before, after]; where a length isn't known until the call, both are ["value", operand, 0]: the value of
    a 0-d integer operand of the op, given by `references`.
    """

    size: list[int]
    strides: list[int]
    pads: list[Any]
    dilation: list[int]
    references: tuple[Tensor, ...] = ()

    def reach(self, axis: int) -> int:
        """The length that a window covers along spatial axis `axis`."""
        return (self.size[axis] - 1) * self.dilation[axis] + 1


def output_length(n: int | None, windows: Windows, axis: int, op: str) -> int | None:
    """The number of windows along an axis of length `n`. Raises ShapeError where not one fits in."""
    before, after = windows.pads[axis]
    made: int
    if n is None or isinstance(before, list) or isinstance(after, list):
        return None
    reach = windows.reach(axis)
    if n + before + after < reach:
        raise ShapeError(
            f"{op}: spatial axis {axis} has length {n} and {before} + {after} of padding, but a window covers "
            f"{reach}: the output's length would be negative or 0",
            next_step="use a smaller window or padding='same'",
        )
    made = (n + before + after - reach) // windows.strides[axis] + 1
    return made


def same_pads(n: int, reach: int, stride: int) -> list[int]:
    """The padding before and after that gives ceil(n / stride) windows: the larger half after."""
    total = max((-(-n // stride) - 1) * stride + reach - n, 0)
    return [total // 2, total - total // 2]


def windows_of(
    lengths: Sequence[Any],
    size: list[int],
    strides: list[int],
    dilation: list[int],
    padding: str,
    first: int,
) -> Windows:
    """The windows over axes of these lengths: ints, 0-d integer tensors, or None where they don't matter.

    Operands that pads refer to are numbered from `first`.
    """
    pads: list[Any] = []
    references: list[Tensor] = []
    for n, k, stride, apart in zip(lengths, size, strides, dilation):
        reach = (k - 1) * apart + 1
        if padding == "valid":
            pads.append([0, 0])
        elif padding == "causal":
            pads.append([reach - 1, 0])
        elif stride == 1:
            pads.append([(reach - 1) // 2, reach // 2])
        elif isinstance(n, int):
            pads.append(same_pads(n, reach, stride))
        else:
            n = cast(n, "int32")
            starts = binary("floor_divide", n + (stride - 1), stride) - 1
            total = binary("maximum", starts * stride + reach - n, 0)
            before = binary("floor_divide", total, 2)
            pads.append([["value", first + len(references), 0], ["value", first + len(references) + 1, 0]])
            references += [before, total - before]
    return Windows(size, strides, pads, dilation, tuple(references))


def padded(x: Tensor, windows: Windows, first: int) -> Tensor:
    """`x` with zeros around; `first` is the number of the first operand that the pads refer to."""
    if all(pair == [0, 0] for pair in windows.pads):
        return x
    pads: list[Any] = [[0, 0]]
    references: list[Tensor] = []
    for pair in windows.pads:
        if isinstance(pair[0], list):
            references += [windows.references[entry[1] - first] for entry in pair]
            pair = [["value", len(references) - 1, 0], ["value", len(references), 0]]
        pads.append(pair)
    return apply("pad", x, *references, pads=[*pads, [0, 0]])


def cropped(x: Tensor, windows: Windows, first: int) -> Tensor:
    """`x` without what `padded` puts around."""
    slices: list[Any] = [[None, None, None]]
    references: list[Tensor] = []
    for before, after in windows.pads:
        if not isinstance(before, list):
            slices.append([before or None, -after or None, None])
            continue
        start, stop = (windows.references[entry[1] - first] for entry in (before, after))
        stop = apply("select", binary("equal", stop, 0), as_tensor(_END), -stop)
        slices.append([["value", 1 + len(references), 0], ["value", 2 + len(references), 0], None])
        references += [start, stop]
    slices.append([None, None, None])
    if all(entry == [None, None, None] for entry in slices):
        return x
    return apply("slice", x, *references, slices=slices)


def positions(windows: Windows) -> list[list[Any]]:
    """For each place in a window, the slices of the padded operand that hold that place's element of every window.

    They end as far before the axis's end as the window reaches beyond the offset, so no length needs to be known.
    """
    slices = []
    for offset in product(*[range(n) for n in windows.size]):
        entry: list[Any] = [[None, None, None]]
        for axis, i in enumerate(offset):
            start = i * windows.dilation[axis]
            left = windows.reach(axis) - 1 - start
            entry.append([start or None, -left or None, windows.strides[axis]])
        slices.append([*entry, [None, None, None]])
    return slices


# --- arguments of the K functions -------------------------------------------------------------------------------


def floats(op: str, *values: Any) -> list[Tensor]:
    """The operands as tensors. Raises DTypeError unless each is a float."""
    tensors = as_tensors(values)
    for x in tensors:
        if x.dtype not in FLOATS:
            raise DTypeError(f"{op} takes floats, not {x.dtype}", next_step="cast with K.cast(x, 'float32')")
    return tensors


def per_axis(value: Any, axes: int, what: str, op: str) -> list[int]:
    """An int, or one for each of `axes` axes, as a list. Raises ArgumentError unless they are 1 or more."""
    entries = list(value) if isinstance(value, (tuple, list)) else [value] * axes
    if len(entries) != axes or not all(isinstance(n, int) or hasattr(n, "__index__") for n in entries):
        raise ArgumentError(f"{op}: {what} {value!r} isn't allowed", allowed=f"it must be an int or {axes} ints")
    whole = [int(n) for n in entries]
    if any(n < 1 for n in whole):
        raise ArgumentError(f"{op}: {what} {value!r} isn't allowed", allowed="it must be 1 or more")
    return whole


class WindowArguments(NamedTuple):
    """The checked arguments of the K functions of windows, besides their tensors: see `window_arguments`."""

    op: str
    spatial: int
    strides: list[int]
    padding: str
    first: bool  # whether channels come before the spatial axes
    dilation: list[int]

    def to_last(self, x: Tensor) -> Tensor:
        """`x` with its channels last. Raises ShapeError unless it has a batch axis, the spatial axes and channels."""
        if x.ndim != self.spatial + 2:
            raise rank_refused(self.op, "x", x.shape, image_axes(self.spatial, self.first))
        return apply("transpose", x, permutation=[0, *range(2, x.ndim), 1]) if self.first else x

    def from_last(self, y: Tensor) -> Tensor:
        """The result, which has channels last, as the user has them."""
        return apply("transpose", y, permutation=[0, y.ndim - 1, *range(1, y.ndim - 1)]) if self.first else y

    def windows(self, lengths: Sequence[Any], size: list[int], first: int) -> Windows:
        """The windows of this size over axes of these lengths: see `windows_of`."""
        return windows_of(lengths, size, self.strides, self.dilation, self.padding, first)


def window_arguments(
    op: str,
    spatial: int,
    strides: Any,
    padding: Any = "valid",
    data_format: Any = None,
    dilation_rate: Any = 1,
    paddings: Sequence[str] = ("valid", "same"),
) -> WindowArguments:
    """A K function's arguments for windows along `spatial` axes, brought to one form. Raises ArgumentError."""
    first = normalize_data_format(data_format) == "channels_first"
    chosen = padding.lower() if isinstance(padding, str) else padding
    if chosen not in paddings:
        raise ArgumentError(f"{op}: padding {padding!r} isn't allowed", allowed=f"allowed are {', '.join(paddings)}")
    return WindowArguments(
        op,
        spatial,
        per_axis(strides, spatial, "strides", op),
        chosen,
        first,
        per_axis(dilation_rate, spatial, "dilation_rate", op),
    )


def lengths_of(x: Tensor) -> list[Any]:
    """The lengths of the spatial axes of `x`, channels last: ints, or the value at the call as a 0-d tensor."""
    return [axis_length(x, axis) for axis in range(1, x.ndim - 1)]


def axis_length(x: Tensor, axis: int) -> Any:
    """The length of an axis as an int, or where it isn't known as `K.shape(x)[axis]`."""
    known = x.shape[axis]
    return apply("shape", x)[axis] if known is None else known
