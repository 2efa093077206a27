"""Cases of what slides over images: convolutions, transposed, separable and local ones, and pooling."""

from __future__ import annotations

from itertools import product

import numpy as np

from kernelk import backend as K

from .case import Case, real

# Lengths of an image's axes are unknown now and then, those of its channels never.
FIRST, LAST = "channels_first", "channels_last"


def _to_last(x, layout):
    return np.moveaxis(x, 1, -1) if layout == FIRST else x


def _from_last(x, layout):
    return np.moveaxis(x, -1, 1) if layout == FIRST else x


def _windows(x, sizes, strides, padding, dilation, fill=0.0):
    """(batch, *places, *offsets, channels): what each place of the result sees of `x`, channels last."""
    for number, (size, stride, step) in enumerate(zip(sizes, strides, dilation)):
        axis = 1 + number * 2
        length, reach = x.shape[axis], (size - 1) * step + 1
        before = after = 0
        if padding == "same":
            missing = max((-(-length // stride) - 1) * stride + reach - length, 0)
            before, after = missing // 2, missing - missing // 2
        elif padding == "causal":
            before = reach - 1
        pads = [(0, 0)] * x.ndim
        pads[axis] = before, after
        x = np.pad(x, pads, constant_values=fill)
        places = np.arange(0, x.shape[axis] - reach + 1, stride)
        x = np.take(x, places[:, None] + np.arange(size) * step, axis)
    n = len(sizes)
    order = [0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1]
    return x.transpose(order)


def convolution(x, kernel, strides, padding, dilation):
    """A kernel (*sizes, inputs, outputs) over `x`, channels last."""
    n = x.ndim - 2
    seen = _windows(x, kernel.shape[:n], strides, padding, dilation)
    return np.tensordot(seen, kernel, axes=(list(range(n + 1, 2 * n + 2)), list(range(n + 1))))


def transposed(x, kernel, lengths, strides, padding, dilation):
    """What a convolution of `lengths` to the shape of `x` passes back; the kernel is (*sizes, outputs, inputs)."""
    n = x.ndim - 2
    numbers = np.arange(np.prod(lengths), dtype=float).reshape(1, *lengths, 1)
    targets = _windows(numbers, kernel.shape[:n], strides, padding, dilation, fill=-1)
    made = np.zeros((len(x), int(np.prod(lengths)), kernel.shape[-2]), np.result_type(x, kernel))
    for place in product(*map(range, x.shape[1:-1])):
        for offset in product(*map(range, kernel.shape[:n])):
            target = int(targets[(0, *place, *offset, 0)])
            if target >= 0:
                made[:, target] += x[(slice(None), *place)] @ kernel[offset].T
    return made.reshape(len(x), *lengths, kernel.shape[-2])


def depthwise(x, kernel, strides, padding, dilation):
    """Each channel by itself, with a kernel (*sizes, inputs, multiplier)."""
    n = x.ndim - 2
    seen = _windows(x, kernel.shape[:n], strides, padding, dilation)
    letters = "xyz"[:n]
    made = np.einsum(f"bpqr{letters}c,{letters}cm->bpqrcm".replace("pqr", "pqr"[:n]), seen, kernel)
    return made.reshape(*made.shape[:-2], made.shape[-2] * made.shape[-1])


def _pool(x, sizes, strides, padding, mode):
    n = x.ndim - 2
    seen = _windows(x, sizes, strides, padding, (1,) * n, np.nan)
    axes = tuple(range(n + 1, 2 * n + 1))
    # What is padded counts neither as an element nor for the mean; an element that isn't a number does.
    inside = _windows(np.ones_like(x), sizes, strides, padding, (1,) * n)
    made = np.nanmax(seen, axes) if mode == "max" else np.nanmean(seen, axes)
    return np.where(((seen != seen) & (inside != 0)).any(axes), np.nan, made)


def _laid_out(expected, layout):
    """A definition for channels last, for the other layout too."""
    return lambda x, *kernels: _from_last(expected(_to_last(x, layout), *kernels), layout)


def _image(spatial, channels, layout):
    return real(f"A{channels}{spatial}" if layout == FIRST else f"A{spatial}{channels}")


# strides, padding, dilation
WAYS = {
    1: [(1, "valid", 1), (2, "same", 1), (1, "causal", 2), (1, "same", 2), (2, "valid", 1)],
    2: [((1, 1), "valid", (1, 1)), ((2, 1), "same", (1, 1)), ((1, 1), "same", (2, 1)), ((2, 2), "valid", (1, 1))],
    3: [((1, 1, 1), "valid", (1, 1, 1)), ((2, 1, 2), "same", (1, 1, 1)), ((1, 1, 1), "same", (1, 2, 1))],
}
SPATIAL = {1: "p", 2: "pq", 3: "pqr"}
# Even ones and odd ones.
SIZES = {1: ["3", "2"], 2: ["33", "22", "13"], 3: ["222", "132"]}


def _tuple(value):
    return (value,) if isinstance(value, int) else tuple(value)


def _convolutions():
    for n, layout in product((1, 2, 3), (FIRST, LAST)):
        for (strides, padding, dilation), sizes in product(WAYS[n], SIZES[n]):
            if padding == "causal" and layout == FIRST:
                continue
            note = f"{layout}, kernel {sizes}, strides {strides}, {padding}, dilation {dilation}"
            yield Case(
                f"conv{n}d",
                note,
                lambda x, k, n=n, s=strides, p=padding, f=layout, d=dilation: getattr(K, f"conv{n}d")(x, k, s, p, f, d),
                _laid_out(
                    lambda x, k, s=strides, p=padding, d=dilation: convolution(x, k, _tuple(s), p, _tuple(d)), layout
                ),
                [_image(SPATIAL[n], 2, layout), real(sizes + "23")],
                scale=16,
            )
    for layout in (FIRST, LAST):
        yield Case(
            "conv2d",
            f"{layout}, defaults",
            lambda x, k, f=layout: K.conv2d(x, k, data_format=f),
            _laid_out(lambda x, k: convolution(x, k, (1, 1), "valid", (1, 1)), layout),
            [_image("pq", 1, layout), real("2214")],
            scale=16,
        )


def _transposed():
    for layout in (FIRST, LAST):
        for sizes, strides, padding, dilation, before, after in (
            ("33", (1, 1), "valid", (1, 1), "34", (5, 6)),
            ("22", (2, 2), "valid", (1, 1), "23", (4, 6)),
            ("33", (2, 2), "same", (1, 1), "23", (4, 5)),
            ("23", (2, 1), "same", (1, 1), "33", (6, 3)),
            ("33", (1, 1), "same", (2, 2), "44", (4, 4)),
        ):
            outer = (lambda n, a=after: (n, 2, *a)) if layout == FIRST else (lambda n, a=after: (n, *a, 2))
            yield Case(
                "conv2d_transpose",
                f"{layout}, kernel {sizes}, strides {strides}, {padding}, dilation {dilation}",
                lambda x, k, o=outer, s=strides, p=padding, f=layout, d=dilation: K.conv2d_transpose(
                    x, k, o(K.shape(x)[0]), s, p, f, d
                ),
                _laid_out(lambda x, k, a=after, s=strides, p=padding, d=dilation: transposed(x, k, a, s, p, d), layout),
                [_image(before, 3, layout), real(sizes + "23")],
                scale=16,
            )
        for sizes, strides, padding, before, after in (
            ("222", (1, 1, 1), "valid", "232", (3, 4, 3)),
            ("232", (2, 1, 2), "same", "222", (4, 2, 3)),
        ):
            outer = (lambda n, a=after: (n, 2, *a)) if layout == FIRST else (lambda n, a=after: (n, *a, 2))
            yield Case(
                "conv3d_transpose",
                f"{layout}, kernel {sizes}, strides {strides}, {padding}",
                lambda x, k, o=outer, s=strides, p=padding, f=layout: K.conv3d_transpose(
                    x, k, o(K.shape(x)[0]), s, p, f
                ),
                _laid_out(lambda x, k, a=after, s=strides, p=padding: transposed(x, k, a, s, p, (1, 1, 1)), layout),
                [_image(before, 3, layout), real(sizes + "23")],
                scale=16,
            )


def _separable():
    for layout, sizes in product((FIRST, LAST), ("33", "21")):
        for strides, padding, dilation in (
            ((1, 1), "valid", (1, 1)),
            ((2, 2), "same", (1, 1)),
            ((1, 1), "same", (2, 2)),
        ):
            note = f"{layout}, kernel {sizes}, strides {strides}, {padding}, dilation {dilation}"
            yield Case(
                "depthwise_conv2d",
                note,
                lambda x, k, s=strides, p=padding, f=layout, d=dilation: K.depthwise_conv2d(x, k, s, p, f, d),
                _laid_out(lambda x, k, s=strides, p=padding, d=dilation: depthwise(x, k, s, p, d), layout),
                [_image("pq", 2, layout), real(sizes + "22")],
                scale=16,
            )
            yield Case(
                "separable_conv2d",
                note,
                lambda x, k, m, s=strides, p=padding, f=layout, d=dilation: K.separable_conv2d(x, k, m, s, p, f, d),
                _laid_out(lambda x, k, m, s=strides, p=padding, d=dilation: depthwise(x, k, s, p, d) @ m[0, 0], layout),
                [_image("pq", 2, layout), real(sizes + "22"), real("1143")],
                scale=32,
            )
        for stride, padding, dilation in ((1, "valid", 1), (2, "same", 1), (1, "same", 2)):
            size = sizes[0]
            yield Case(
                "separable_conv1d",
                f"{layout}, kernel {size}, strides {stride}, {padding}, dilation {dilation}",
                lambda x, k, m, s=stride, p=padding, f=layout, d=dilation: K.separable_conv1d(x, k, m, s, p, f, d),
                _laid_out(
                    lambda x, k, m, s=stride, p=padding, d=dilation: depthwise(x, k, (s,), p, (d,)) @ m[0], layout
                ),
                [_image("p", 2, layout), real(size + "22"), real("143")],
                scale=32,
            )


def _pooling():
    for n, layout, mode in product((2, 3), (FIRST, LAST), ("max", "avg")):
        ways = [((2,) * n, (1,) * n, "valid"), ((3, 2, 2)[:n], (2, 2, 1)[:n], "same"), ((2,) * n, (2,) * n, "same")]
        for sizes, strides, padding in ways:
            yield Case(
                f"pool{n}d",
                f"{layout}, {mode} of {sizes}, strides {strides}, {padding}",
                lambda x, n=n, z=sizes, s=strides, p=padding, f=layout, m=mode: getattr(K, f"pool{n}d")(
                    x, z, s, p, f, m
                ),
                _laid_out(lambda x, z=sizes, s=strides, p=padding, m=mode: _pool(x, z, s, p, m), layout),
                [_image(SPATIAL[n], 2, layout)],
                scale=4,
            )


def _locally(x, kernel, sizes, strides, layout):
    """Unshared weights: kernel (places, what each sees, outputs); what it sees is in the order of its layout."""
    n = x.ndim - 2
    seen = _windows(_to_last(x, layout), sizes, strides, "valid", (1,) * n)
    lengths = seen.shape[1 : n + 1]
    seen = np.moveaxis(seen, -1, n + 1) if layout == FIRST else seen
    seen = seen.reshape(
        len(x), int(np.prod(lengths)), int(np.prod(sizes)) * seen.shape[n + 1 if layout == FIRST else -1]
    )
    return _from_last(np.einsum("bpk,pkf->bpf", seen, kernel).reshape(len(x), *lengths, kernel.shape[-1]), layout)


def _local():
    for stride, places in ((1, "4"), (2, "2")):
        yield Case(
            "local_conv1d",
            f"strides {stride}",
            lambda x, k, s=stride: K.local_conv1d(x, k, (2,), (s,)),
            lambda x, k, s=stride: _locally(x, k, (2,), (s,), LAST),
            [real("a53"), real(places + "62")],
            scale=16,
        )
    for layout, (strides, lengths) in product((FIRST, LAST), (((1, 1), (3, 2)), ((2, 1), (2, 2)))):
        yield Case(
            "local_conv2d",
            f"{layout}, strides {strides}",
            lambda x, k, s=strides, o=lengths, f=layout: K.local_conv2d(x, k, (2, 3), s, o, f),
            lambda x, k, s=strides, f=layout: _locally(x, k, (2, 3), s, f),
            [real("a144" if layout == FIRST else "a441"), real(f"{lengths[0] * lengths[1]}63")],
            scale=16,
        )


CASES = [*_convolutions(), *_transposed(), *_separable(), *_pooling(), *_local()]
