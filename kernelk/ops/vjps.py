"""VJPs of the primitives: the gradient of each input, as graph, given that of the value. `primitives` enters them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..graph.nodes import Tensor, constant_node
from ..graph.rules import Gradients, Vjp, apply
from .dtypes import FLOATS, cast
from .shapes import (
    broadcast_to,
    kept,
    matmul,
    merge_axes,
    renumbered,
    reversed_along,
    scalar,
    scalar_of,
    shaped_as,
    sum_to,
    zeros_shaped,
)


def of_abs(node: Tensor, g: Tensor) -> Gradients:
    return [g * apply("sign", node.inputs[0])]


def of_sqrt(node: Tensor, g: Tensor) -> Gradients:
    return [g * 0.5 / node]


def of_tanh(node: Tensor, g: Tensor) -> Gradients:
    return [g * apply("tanh_slope", node.inputs[0])]


def of_add(node: Tensor, g: Tensor) -> Gradients:
    a, b = node.inputs
    return [sum_to(g, a), sum_to(g, b)]


def of_subtract(node: Tensor, g: Tensor) -> Gradients:
    a, b = node.inputs
    return [sum_to(g, a), sum_to(apply("negative", g), b)]


def of_multiply(node: Tensor, g: Tensor) -> Gradients:
    a, b = node.inputs
    return [sum_to(g * b, a), sum_to(g * a, b)]


def of_divide(node: Tensor, g: Tensor) -> Gradients:
    a, b = node.inputs
    # Not (g / b) * node: of 0 by a number next to 0 that would be inf * 0.
    return [sum_to(g / b, a), sum_to(apply("negative", g * node / b), b)]


def of_power(node: Tensor, g: Tensor) -> Gradients:
    x, exponent = node.inputs
    if x.dtype == "float16":
        # x ** (e - 1) may be too small for it where its product with e isn't.
        wide = apply("power", cast(x, "float32"), cast(exponent, "float32"))
        return [slope if slope is None else cast(slope, "float16") for slope in of_power(wide, cast(g, "float32"))]
    known = scalar_of(exponent)
    if known == 2:
        return [sum_to(g * x * 2.0, x), None]
    if known == 0:
        return [None, None]
    slope = exponent * apply("power", x, exponent - 1.0)
    if known is not None:
        return [sum_to(g * slope, x), None]
    # x ** 0 is 1 everywhere, also where 1 / x is infinite.
    constant = apply("equal", exponent, scalar(0, exponent.dtype))
    to_x = sum_to(g * apply("select", constant, scalar(0, x.dtype), slope), x)
    # x ** e has no slope in e where x is 0 (or negative, where it is defined for whole e only).
    positive = apply("less", scalar(0, x.dtype), x)
    safe = apply("select", positive, x, scalar(1, x.dtype))
    slope = apply("select", positive, node * apply("log", safe), scalar(0, x.dtype))
    return [to_x, sum_to(g * slope, exponent)]


def of_mod(node: Tensor, g: Tensor) -> Gradients:
    a, b = node.inputs
    return [sum_to(g, a), sum_to(apply("negative", g * apply("floor_divide", a, b)), b)]


def of_choice(second_wins: str) -> Vjp:
    """maximum and minimum: the whole gradient goes to the operand that was taken, the first one if they are equal."""

    def vjp(node: Tensor, g: Tensor) -> Gradients:
        a, b = node.inputs
        second = apply("less", a, b) if second_wins == "greater" else apply("less", b, a)
        zero = scalar(0, g.dtype)
        return [sum_to(apply("select", second, zero, g), a), sum_to(apply("select", second, g, zero), b)]

    return vjp


def of_select(node: Tensor, g: Tensor) -> Gradients:
    condition, a, b = node.inputs
    zero = scalar(0, g.dtype)
    return [
        None,
        sum_to(apply("select", condition, g, zero), a),
        sum_to(apply("select", condition, zero, g), b),
    ]


def of_cast(node: Tensor, g: Tensor) -> Gradients:
    source = node.inputs[0].dtype
    return [cast(g, source) if source in FLOATS else None]


def of_sum(node: Tensor, g: Tensor) -> Gradients:
    (x,) = node.inputs
    return [broadcast_to(kept(g, x, node.attrs["axes"]), x)]


def of_extremum(node: Tensor, g: Tensor) -> Gradients:
    """max and min: equal elements share the gradient equally."""
    (x,) = node.inputs
    axes = node.attrs["axes"]
    taken = cast(apply("equal", x, kept(node, x, axes)), g.dtype)
    share = kept(g, x, axes) / apply("sum", taken, axes=axes, keepdims=True)
    return [taken * share]


def of_reshape(node: Tensor, g: Tensor) -> Gradients:
    return [shaped_as(g, node.inputs[0]), *[None] * (len(node.inputs) - 1)]


def of_broadcast_to(node: Tensor, g: Tensor) -> Gradients:
    return [sum_to(g, node.inputs[0]), *[None] * (len(node.inputs) - 1)]


def of_sum_to(node: Tensor, g: Tensor) -> Gradients:
    return [broadcast_to(g, node.inputs[0]), None]


def of_transpose(node: Tensor, g: Tensor) -> Gradients:
    permutation = node.attrs["permutation"]
    inverse = sorted(range(len(permutation)), key=permutation.__getitem__)
    return [apply("transpose", g, permutation=inverse)]


def of_concatenate(node: Tensor, g: Tensor) -> Gradients:
    axis = node.attrs["axis"]
    return [apply("unconcatenate", g, *node.inputs, axis=axis, part=part) for part in range(len(node.inputs))]


def of_unconcatenate(node: Tensor, g: Tensor) -> Gradients:
    parts = node.inputs[1:]
    filled = [g if i == node.attrs["part"] else zeros_shaped(part, g.dtype) for i, part in enumerate(parts)]
    return [apply("concatenate", *filled, axis=node.attrs["axis"]), *[None] * len(parts)]


def of_slice(node: Tensor, g: Tensor) -> Gradients:
    x, *references = node.inputs
    return [apply("unslice", g, x, *references, slices=renumbered(node.attrs["slices"], 1))]


def of_unslice(node: Tensor, g: Tensor) -> Gradients:
    references = node.inputs[2:]
    return [apply("slice", g, *references, slices=renumbered(node.attrs["slices"], -1)), None]


def of_matmul(node: Tensor, g: Tensor) -> Gradients:
    a, b = node.inputs
    ta, tb = node.attrs["transpose_a"], node.attrs["transpose_b"]
    to_a = matmul(b, g, tb, True) if ta else matmul(g, b, False, not tb)
    to_b = matmul(g, a, True, ta) if tb else matmul(a, g, not ta, False)
    return [to_a, to_b]


def of_batch_matmul(node: Tensor, g: Tensor) -> Gradients:
    a, b = node.inputs
    ta, tb = node.attrs["transpose_a"], node.attrs["transpose_b"]

    def product(x: Tensor, y: Tensor, tx: bool, ty: bool) -> Tensor:
        return apply("batch_matmul", x, y, transpose_a=tx, transpose_b=ty)

    to_a = product(b, g, tb, True) if ta else product(g, b, False, not tb)
    to_b = product(g, a, True, ta) if tb else product(a, g, not ta, False)
    return [to_a, to_b]


def of_cumsum(node: Tensor, g: Tensor) -> Gradients:
    axis = node.attrs["axis"]
    return [reversed_along(apply("cumsum", reversed_along(g, [axis]), axis=axis), [axis])]


def of_cumprod(node: Tensor, g: Tensor) -> Gradients:
    """Sums the products that leave one factor out, so that zeros are handled; divides if the length is unknown."""
    (x,) = node.inputs
    axis = node.attrs["axis"]
    n = x.shape[axis]
    if n is None:
        total = apply("cumsum", reversed_along(g * node, [axis]), axis=axis)
        return [reversed_along(total, [axis]) / x]
    # Rows i, columns k along a new axis after `axis`: the product of x[j] over j <= k but j = i.
    dims = [1] * (x.ndim + 1)
    dims[axis], dims[axis + 1] = n, n
    diagonal = constant_node(np.eye(n, dtype=bool).reshape(dims))
    upper = constant_node(np.triu(np.ones((n, n), dtype=bool)).reshape(dims))
    row = _new_axis(x, axis)
    left_out = apply("select", diagonal, scalar(1, x.dtype), row)
    products = apply("cumprod", left_out, axis=axis + 1)
    counted = apply("select", upper, products * _new_axis(g, axis), scalar(0, x.dtype))
    return [apply("sum", counted, axes=[axis + 1], keepdims=False)]


def _new_axis(x: Tensor, axis: int) -> Tensor:
    dims: list[Any] = [[0, i] if n is None else n for i, n in enumerate(x.shape)]
    dims.insert(axis, 1)
    return apply("reshape", x, dims=dims)


def of_prod(node: Tensor, g: Tensor) -> Gradients:
    """The product of all others, from the left times from the right, so that zeros are right.

    In float64: on its way it may leave the numbers that the dtype has.
    """
    (x,) = node.inputs
    axes = node.attrs["axes"]
    others = [i for i in range(x.ndim) if i not in axes]
    order = [*others, *axes]
    moved = apply("transpose", cast(x, "float64"), permutation=order)
    axis = len(others)
    line = merge_axes(moved, axis, x.ndim - 1)
    one = apply("slice", line, slices=[[None, None, None]] * axis + [[0, 1, None]])
    start = broadcast_to(scalar(1, "float64"), one)

    def before(values: Tensor) -> Tensor:
        shifted = apply("slice", values, slices=[[None, None, None]] * axis + [[None, -1, None]])
        return apply("cumprod", apply("concatenate", start, shifted, axis=axis), axis=axis)

    without = before(line) * reversed_along(before(reversed_along(line, [axis])), [axis])
    inverse = sorted(range(x.ndim), key=order.__getitem__)
    back = apply("transpose", shaped_as(without, moved), permutation=inverse)
    return [broadcast_to(kept(g, x, axes), x) * cast(back, x.dtype)]


def of_pad(node: Tensor, g: Tensor) -> Gradients:
    slices = [[before, -after if after else None, None] for before, after in node.attrs["pads"]]
    return [apply("slice", g, slices=slices)]
