"""All primitives in one place, each with its shape and dtype rule and its VJP; composites are in the family modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DTypeError, ShapeError
from ..graph.nodes import Shape, Spec, Tensor, constant_node
from ..graph.rules import RULES, Rule, Vjp, apply
from .dtypes import FLOATS, INTEGERS, cast
from .shapes import (
    broadcast,
    count,
    kept,
    known_dims,
    matmul,
    merged,
    reduced,
    reversed_along,
    scalar,
    scalar_of,
    shaped_as,
    spread,
    sum_to,
    zeros_shaped,
)

Result = tuple[Shape, str]
Gradients = Sequence[Tensor | None]


# --- shapes -----------------------------------------------------------------------------------------------------


# --- inference --------------------------------------------------------------------------------------------------


def _refuse(op: str, dtype: str, allowed: str) -> DTypeError:
    return DTypeError(
        f"{op} isn't defined for {dtype}", allowed=f"it takes {allowed}", next_step="cast with K.cast(x, dtype)"
    )


def _unary(op: str, allowed: frozenset[str] | None) -> Any:
    def infer(x: Any) -> Result:
        if x.dtype == "bool" or (allowed and x.dtype not in allowed):
            raise _refuse(op, x.dtype, "floats" if allowed else "numbers")
        return x.shape, x.dtype

    return infer


def _binary(op: str, result: str | None = None, floats: bool = False, bools: bool = False) -> Any:
    def infer(a: Any, b: Any) -> Result:
        dtype = a.dtype
        if (dtype == "bool" and not bools) or (floats and dtype not in FLOATS):
            raise _refuse(op, dtype, "floats" if floats else "numbers")
        return (a.shape if a.shape == b.shape else broadcast(a.shape, b.shape, op)), result or dtype

    return infer


def _logical(op: str) -> Any:
    def infer(*inputs: Any) -> Result:
        for x in inputs:
            if x.dtype != "bool":
                raise _refuse(op, x.dtype, "bool")
        return (inputs[0].shape if len(inputs) == 1 else broadcast(inputs[0].shape, inputs[1].shape, op)), "bool"

    return infer


def _infer_select(condition: Any, a: Any, b: Any) -> Result:
    if condition.dtype != "bool":
        raise _refuse("select", condition.dtype, "a bool condition")
    return broadcast(condition.shape, broadcast(a.shape, b.shape, "select"), "select"), a.dtype


def _infer_cast(x: Any, dtype: str) -> Result:
    return x.shape, dtype


def _reduction(op: str, nonempty: bool) -> Any:
    def infer(x: Any, axes: Sequence[int], keepdims: bool) -> Result:
        if x.dtype == "bool":
            raise _refuse(op, "bool", "numbers")
        if nonempty and 0 in [x.shape[i] for i in axes]:
            raise ShapeError(f"{op}: can't reduce along axes {tuple(axes)} of shape {x.shape}: one of them is empty")
        return reduced(x.shape, axes, keepdims), x.dtype

    return infer


def _infer_argmax(x: Any, axis: int) -> Result:
    if x.dtype == "bool":
        raise _refuse("argmax", "bool", "numbers")
    if x.shape[axis] == 0:
        raise ShapeError(f"argmax: axis {axis} of shape {x.shape} is empty")
    return reduced(x.shape, [axis], False), "int64"


def _infer_size(x: Any, axes: Sequence[int], result: str) -> Result:
    return (), result


def _infer_shape(x: Any) -> Result:
    return (len(x.shape),), "int32"


def _infer_reshape(x: Any, *references: Any, dims: Sequence[Any]) -> Result:
    shape = known_dims(dims, (x, *references))
    if shape.count(-1) > 1:
        raise ShapeError(f"reshape: only one axis of {tuple(shape)} can be -1")
    total = count(x.shape)
    if -1 in shape:
        rest = count(tuple(n for n in shape if n != -1))
        place = shape.index(-1)
        if rest == 0:
            raise ShapeError(f"reshape: -1 in {tuple(shape)} can't be inferred beside an axis of length 0")
        if total is None or rest is None:
            shape[place] = None
        elif total % rest:
            raise ShapeError(f"reshape: shape {x.shape} ({total} elements) doesn't divide into {tuple(shape)}")
        else:
            shape[place] = total // rest
    elif total is not None:
        wanted = count(tuple(shape))
        if wanted is not None and wanted != total:
            raise ShapeError(f"reshape: shape {x.shape} ({total} elements) can't be {tuple(shape)} ({wanted} elements)")
        unknown = [i for i, n in enumerate(shape) if n is None]
        if wanted is None and len(unknown) == 1:
            rest = count(tuple(n for n in shape if n is not None))
            if rest and total % rest == 0:
                shape[unknown[0]] = total // rest
    return tuple(shape), x.dtype


def _infer_broadcast_to(x: Any, *references: Any, dims: Sequence[Any]) -> Result:
    shape = tuple(known_dims(dims, (x, *references)))
    if min((n for n in shape if n is not None), default=0) < 0:
        raise ShapeError(f"broadcast_to: shape {shape} holds a negative length", allowed="allowed are 0, 1, 2, ...")
    known = None not in x.shape + shape
    if len(x.shape) > len(shape) or (broadcast(x.shape, shape, "broadcast_to") != shape and known):
        raise ShapeError(f"broadcast_to: shape {x.shape} doesn't broadcast to {shape}")
    return shape, x.dtype


def _infer_transpose(x: Any, permutation: Sequence[int]) -> Result:
    return tuple(x.shape[i] for i in permutation), x.dtype


def _infer_concatenate(*parts: Any, axis: int) -> Result:
    shape = list(parts[0].shape)
    total: int | None = shape[axis]
    for part in parts[1:]:
        if len(part.shape) != len(shape):
            raise ShapeError(f"concatenate: shapes {parts[0].shape} and {part.shape} have different numbers of axes")
        for i, n in enumerate(part.shape):
            if i == axis:
                total = None if total is None or n is None else total + n
            elif shape[i] is None:
                shape[i] = n
            elif n is not None and n != shape[i]:
                raise ShapeError(
                    f"concatenate: shapes {parts[0].shape} and {part.shape} differ in axis {i}",
                    allowed=f"only axis {axis} may",
                )
    shape[axis] = total
    return tuple(shape), parts[0].dtype


def _infer_unconcatenate(whole: Any, *parts: Any, axis: int, part: int) -> Result:
    return parts[part].shape, whole.dtype


def _slice_length(n: int | None, entry: Sequence[Any]) -> int | None:
    if n is None or any(isinstance(bound, list) for bound in entry):
        return None
    return len(range(*slice(*entry).indices(n)))


def _infer_slice(x: Any, *references: Any, slices: Sequence[Sequence[Any]]) -> Result:
    return tuple(_slice_length(n, entry) for n, entry in zip(x.shape, slices)), x.dtype


def _infer_unslice(piece: Any, like: Any, slices: Any) -> Result:
    return like.shape, piece.dtype


def _infer_one_hot(indices: Any, depth: int, result: str) -> Result:
    return (*indices.shape, depth), result


def _infer_matmul(a: Any, b: Any, transpose_a: bool, transpose_b: bool) -> Result:
    m, k = a.shape[::-1] if transpose_a else a.shape
    j, n = b.shape[::-1] if transpose_b else b.shape
    if k != j and k is not None and j is not None:
        raise ShapeError(
            f"dot: shapes {a.shape}{' transposed' if transpose_a else ''} and {b.shape}"
            f"{' transposed' if transpose_b else ''} don't fit: inner dimensions {k} and {j} differ"
        )
    if a.dtype == "bool":
        raise _refuse("dot", "bool", "numbers")
    return (m, n), a.dtype


def _infer_scan(x: Any, axis: int) -> Result:
    if x.dtype == "bool":
        raise _refuse("cumsum and cumprod", "bool", "numbers")
    return x.shape, x.dtype


def _infer_pad(x: Any, *references: Any, pads: Sequence[Sequence[Any]]) -> Result:
    lengths = [
        None if n is None or isinstance(before, list) or isinstance(after, list) else n + before + after
        for n, (before, after) in zip(x.shape, pads)
    ]
    return tuple(lengths), x.dtype


def _infer_gather(x: Any, indices: Any) -> Result:
    if not x.shape:
        raise ShapeError("gather: a scalar has no rows to take")
    if indices.dtype not in INTEGERS:
        raise _refuse("gather", indices.dtype, "integer indices")
    return indices.shape + x.shape[1:], x.dtype


def _infer_scatter_add(values: Any, indices: Any, like: Any) -> Result:
    return like.shape, values.dtype


def _infer_batch_matmul(a: Any, b: Any, transpose_a: bool, transpose_b: bool) -> Result:
    lead = tuple(m if n is None else n for m, n in zip(a.shape[:-2], b.shape[:-2]))
    if any(m != n and m is not None and n is not None for m, n in zip(a.shape[:-2], b.shape[:-2])):
        raise ShapeError(f"batch_dot: shapes {a.shape} and {b.shape} differ in their leading axes")
    (m, n), dtype = _infer_matmul(Spec(a.shape[-2:], a.dtype), Spec(b.shape[-2:], b.dtype), transpose_a, transpose_b)
    return (*lead, m, n), dtype


def _infer_sum_to(x: Any, like: Any) -> Result:
    return like.shape, x.dtype


# --- VJPs -------------------------------------------------------------------------------------------------------


def _vjp_abs(node: Tensor, g: Tensor) -> Gradients:
    return [g * apply("sign", node.inputs[0])]


def _vjp_sqrt(node: Tensor, g: Tensor) -> Gradients:
    return [g * 0.5 / node]


def _vjp_tanh(node: Tensor, g: Tensor) -> Gradients:
    return [apply("tanh_grad", node, g)]


def _vjp_add(node: Tensor, g: Tensor) -> Gradients:
    a, b = node.inputs
    return [sum_to(g, a), sum_to(g, b)]


def _vjp_subtract(node: Tensor, g: Tensor) -> Gradients:
    a, b = node.inputs
    return [sum_to(g, a), sum_to(apply("negative", g), b)]


def _vjp_multiply(node: Tensor, g: Tensor) -> Gradients:
    a, b = node.inputs
    return [sum_to(g * b, a), sum_to(g * a, b)]


def _vjp_divide(node: Tensor, g: Tensor) -> Gradients:
    a, b = node.inputs
    quotient = g / b
    return [sum_to(quotient, a), sum_to(apply("negative", quotient * node), b)]


def _vjp_power(node: Tensor, g: Tensor) -> Gradients:
    x, exponent = node.inputs
    known = scalar_of(exponent)
    if known == 2:
        return [sum_to(g * x * 2.0, x), None]
    if known == 0:
        return [None, None]
    to_x = sum_to(g * exponent * apply("power", x, exponent - 1.0), x)
    if known is not None:
        return [to_x, None]
    # x ** e has no slope in e where x is 0 (or negative, where it is defined for whole e only).
    positive = apply("less", scalar(0, x.dtype), x)
    safe = apply("select", positive, x, scalar(1, x.dtype))
    slope = apply("select", positive, node * apply("log", safe), scalar(0, x.dtype))
    return [to_x, sum_to(g * slope, exponent)]


def _vjp_mod(node: Tensor, g: Tensor) -> Gradients:
    a, b = node.inputs
    return [sum_to(g, a), sum_to(apply("negative", g * apply("floor_divide", a, b)), b)]


def _vjp_choice(second_wins: str) -> Vjp:
    """maximum and minimum: the whole gradient goes to the operand that was taken, the first one if they are equal."""

    def vjp(node: Tensor, g: Tensor) -> Gradients:
        a, b = node.inputs
        second = apply("less", a, b) if second_wins == "greater" else apply("less", b, a)
        zero = scalar(0, g.dtype)
        return [sum_to(apply("select", second, zero, g), a), sum_to(apply("select", second, g, zero), b)]

    return vjp


def _vjp_select(node: Tensor, g: Tensor) -> Gradients:
    condition, a, b = node.inputs
    zero = scalar(0, g.dtype)
    return [
        None,
        sum_to(apply("select", condition, g, zero), a),
        sum_to(apply("select", condition, zero, g), b),
    ]


def _vjp_cast(node: Tensor, g: Tensor) -> Gradients:
    source = node.inputs[0].dtype
    return [cast(g, source) if source in FLOATS else None]


def _vjp_sum(node: Tensor, g: Tensor) -> Gradients:
    (x,) = node.inputs
    return [spread(kept(g, x, node.attrs["axes"]), x)]


def _vjp_extremum(node: Tensor, g: Tensor) -> Gradients:
    """max and min: equal elements share the gradient equally."""
    (x,) = node.inputs
    axes = node.attrs["axes"]
    taken = cast(apply("equal", x, kept(node, x, axes)), g.dtype)
    share = kept(g, x, axes) / apply("sum", taken, axes=axes, keepdims=True)
    return [taken * share]


def _vjp_reshape(node: Tensor, g: Tensor) -> Gradients:
    return [shaped_as(g, node.inputs[0]), *[None] * (len(node.inputs) - 1)]


def _vjp_broadcast_to(node: Tensor, g: Tensor) -> Gradients:
    return [sum_to(g, node.inputs[0]), *[None] * (len(node.inputs) - 1)]


def _vjp_sum_to(node: Tensor, g: Tensor) -> Gradients:
    return [spread(g, node.inputs[0]), None]


def _vjp_transpose(node: Tensor, g: Tensor) -> Gradients:
    permutation = node.attrs["permutation"]
    inverse = sorted(range(len(permutation)), key=permutation.__getitem__)
    return [apply("transpose", g, permutation=inverse)]


def _vjp_concatenate(node: Tensor, g: Tensor) -> Gradients:
    axis = node.attrs["axis"]
    return [apply("unconcatenate", g, *node.inputs, axis=axis, part=part) for part in range(len(node.inputs))]


def _vjp_unconcatenate(node: Tensor, g: Tensor) -> Gradients:
    parts = node.inputs[1:]
    filled = [g if i == node.attrs["part"] else zeros_shaped(part, g.dtype) for i, part in enumerate(parts)]
    return [apply("concatenate", *filled, axis=node.attrs["axis"]), *[None] * len(parts)]


def _vjp_slice(node: Tensor, g: Tensor) -> Gradients:
    return [apply("unslice", g, node.inputs[0], slices=node.attrs["slices"])]


def _vjp_unslice(node: Tensor, g: Tensor) -> Gradients:
    return [apply("slice", g, slices=node.attrs["slices"]), None]


def _vjp_matmul(node: Tensor, g: Tensor) -> Gradients:
    a, b = node.inputs
    ta, tb = node.attrs["transpose_a"], node.attrs["transpose_b"]
    to_a = matmul(b, g, tb, True) if ta else matmul(g, b, False, not tb)
    to_b = matmul(g, a, True, ta) if tb else matmul(a, g, not ta, False)
    return [to_a, to_b]


def _vjp_batch_matmul(node: Tensor, g: Tensor) -> Gradients:
    a, b = node.inputs
    ta, tb = node.attrs["transpose_a"], node.attrs["transpose_b"]

    def product(x: Tensor, y: Tensor, tx: bool, ty: bool) -> Tensor:
        return apply("batch_matmul", x, y, transpose_a=tx, transpose_b=ty)

    to_a = product(b, g, tb, True) if ta else product(g, b, False, not tb)
    to_b = product(g, a, True, ta) if tb else product(a, g, not ta, False)
    return [to_a, to_b]


def _vjp_cumsum(node: Tensor, g: Tensor) -> Gradients:
    axis = node.attrs["axis"]
    return [reversed_along(apply("cumsum", reversed_along(g, [axis]), axis=axis), [axis])]


def _vjp_cumprod(node: Tensor, g: Tensor) -> Gradients:
    """By all products that leave one factor out, so that zeros are right; of unknown length, by division."""
    (x,) = node.inputs
    axis = node.attrs["axis"]
    n = x.shape[axis]
    if n is None:
        total = apply("cumsum", reversed_along(g * node, [axis]), axis=axis)
        return [reversed_along(total, [axis]) / x]
    # Rows i, columns k along a new axis after `axis`: the product of x[j] over j <= k but j = i.
    place = [1] * (x.ndim + 1)
    place[axis], place[axis + 1] = n, n
    diagonal = constant_node(np.eye(n, dtype=bool).reshape(place))
    upper = constant_node(np.triu(np.ones((n, n), dtype=bool)).reshape(place))
    row = _new_axis(x, axis)
    left_out = apply("select", diagonal, scalar(1, x.dtype), row)
    products = apply("cumprod", left_out, axis=axis + 1)
    counted = apply("select", upper, products * _new_axis(g, axis), scalar(0, x.dtype))
    return [apply("sum", counted, axes=[axis + 1], keepdims=False)]


def _new_axis(x: Tensor, place: int) -> Tensor:
    dims: list[Any] = [[0, i] if n is None else n for i, n in enumerate(x.shape)]
    dims.insert(place, 1)
    return apply("reshape", x, dims=dims)


def _vjp_prod(node: Tensor, g: Tensor) -> Gradients:
    """The product of all others, from the left times from the right, so that zeros are right."""
    (x,) = node.inputs
    axes = node.attrs["axes"]
    others = [i for i in range(x.ndim) if i not in axes]
    order = [*others, *axes]
    moved = apply("transpose", x, permutation=order)
    axis = len(others)
    line = merged(moved, axis, x.ndim - 1)
    one = apply("slice", line, slices=[[None, None, None]] * axis + [[0, 1, None]])
    start = spread(scalar(1, x.dtype), one)

    def before(values: Tensor) -> Tensor:
        shifted = apply("slice", values, slices=[[None, None, None]] * axis + [[None, -1, None]])
        return apply("cumprod", apply("concatenate", start, shifted, axis=axis), axis=axis)

    without = before(line) * reversed_along(before(reversed_along(line, [axis])), [axis])
    inverse = sorted(range(x.ndim), key=order.__getitem__)
    back = apply("transpose", shaped_as(without, moved), permutation=inverse)
    return [spread(kept(g, x, axes), x) * back]


def _vjp_pad(node: Tensor, g: Tensor) -> Gradients:
    slices = [[before, -after if after else None, None] for before, after in node.attrs["pads"]]
    return [apply("slice", g, slices=slices)]


RULES.update(
    {
        "negative": Rule(_unary("negative", None), lambda node, g: [apply("negative", g)]),
        "abs": Rule(_unary("abs", None), _vjp_abs),
        "sign": Rule(_unary("sign", None)),
        "sqrt": Rule(_unary("sqrt", FLOATS), _vjp_sqrt),
        "exp": Rule(_unary("exp", FLOATS), lambda node, g: [g * node]),
        "log": Rule(_unary("log", FLOATS), lambda node, g: [g / node.inputs[0]]),
        "tanh": Rule(_unary("tanh", FLOATS), _vjp_tanh),
        "logical_not": Rule(_logical("logical_not")),
        "add": Rule(_binary("add"), _vjp_add),
        "subtract": Rule(_binary("subtract"), _vjp_subtract),
        "multiply": Rule(_binary("multiply"), _vjp_multiply),
        "divide": Rule(_binary("divide", floats=True), _vjp_divide),
        "floor_divide": Rule(_binary("floor_divide")),
        "mod": Rule(_binary("mod"), _vjp_mod),
        "power": Rule(_binary("power"), _vjp_power),
        "maximum": Rule(_binary("maximum"), _vjp_choice("greater")),
        "minimum": Rule(_binary("minimum"), _vjp_choice("less")),
        "logical_and": Rule(_logical("logical_and")),
        "logical_or": Rule(_logical("logical_or")),
        "equal": Rule(_binary("equal", "bool", bools=True)),
        "not_equal": Rule(_binary("not_equal", "bool", bools=True)),
        "less": Rule(_binary("less", "bool")),
        "less_equal": Rule(_binary("less_equal", "bool")),
        "select": Rule(_infer_select, _vjp_select),
        "cast": Rule(_infer_cast, _vjp_cast),
        "sum": Rule(_reduction("sum", nonempty=False), _vjp_sum),
        "max": Rule(_reduction("max", nonempty=True), _vjp_extremum),
        "min": Rule(_reduction("min", nonempty=True), _vjp_extremum),
        "sin": Rule(_unary("sin", FLOATS), lambda node, g: [g * apply("cos", node.inputs[0])]),
        "cos": Rule(_unary("cos", FLOATS), lambda node, g: [apply("negative", g * apply("sin", node.inputs[0]))]),
        "floor": Rule(_unary("floor", None)),
        "round": Rule(_unary("round", None)),
        "prod": Rule(_reduction("prod", nonempty=False), _vjp_prod),
        "cumsum": Rule(_infer_scan, _vjp_cumsum),
        "cumprod": Rule(_infer_scan, _vjp_cumprod),
        "pad": Rule(_infer_pad, _vjp_pad),
        "gather": Rule(_infer_gather, lambda node, g: [apply("scatter_add", g, node.inputs[1], node.inputs[0]), None]),
        "scatter_add": Rule(_infer_scatter_add, lambda node, g: [apply("gather", g, node.inputs[1]), None, None]),
        "batch_matmul": Rule(_infer_batch_matmul, _vjp_batch_matmul),
        "argmax": Rule(_infer_argmax),
        "argmin": Rule(_infer_argmax),
        "size": Rule(_infer_size),
        "shape": Rule(_infer_shape),
        "reshape": Rule(_infer_reshape, _vjp_reshape),
        "broadcast_to": Rule(_infer_broadcast_to, _vjp_broadcast_to),
        "transpose": Rule(_infer_transpose, _vjp_transpose),
        "concatenate": Rule(_infer_concatenate, _vjp_concatenate),
        "unconcatenate": Rule(_infer_unconcatenate, _vjp_unconcatenate),
        "slice": Rule(_infer_slice, _vjp_slice),
        "unslice": Rule(_infer_unslice, _vjp_unslice),
        "one_hot": Rule(_infer_one_hot),
        "matmul": Rule(_infer_matmul, _vjp_matmul),
        # Never lowered: a program whose shapes are known has a sum and a reshape, or nothing, in its place.
        "sum_to": Rule(_infer_sum_to, _vjp_sum_to),
    }
)
