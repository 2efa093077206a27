"""The table of primitives, each with its shape and dtype rule and its VJP; composites are in the family modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import DTypeError, ShapeError
from ..graph.nodes import Spec, Tensor
from ..graph.rules import RULES, Result, Rule, apply
from . import vjps
from .dtypes import FLOATS, INTEGERS, cast
from .shapes import broadcast, count, inner_refused, known_dims, reduced, scalar, scalar_refused

# For an extremum.
_FULL = "an axis needs 1 element or more to take one"


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


def _saturating_cast(x: Tensor, dtype: str) -> Tensor:
    # Writing a graph imports no backend, unless it computes.
    from ..backends.numpy.elementwise import integer_bounds

    if x.dtype == "float16":
        # It doesn't reach the ends of most integers.
        x = cast(x, "float32")
    low, high, end = integer_bounds(x.dtype, dtype)
    number = apply("select", apply("equal", x, x), x, scalar(0, x.dtype))
    inside = apply("minimum", apply("maximum", number, scalar(low, x.dtype)), scalar(high, x.dtype))
    result = apply("cast", inside, dtype=dtype)
    if int(high) == int(end):
        return result
    # The float nearest to the end from below isn't the end.
    return apply("select", apply("less", scalar(high, x.dtype), x), scalar(end, dtype), result)


def _reduction(op: str, nonempty: bool) -> Any:
    def infer(x: Any, axes: Sequence[int], keepdims: bool) -> Result:
        if x.dtype == "bool":
            raise _refuse(op, "bool", "numbers")
        if nonempty and 0 in [x.shape[i] for i in axes]:
            raise ShapeError(
                f"{op}: can't reduce along axes {tuple(axes)} of shape {x.shape}: one of them is empty",
                allowed=_FULL,
            )
        return reduced(x.shape, axes, keepdims), x.dtype

    return infer


def _position(op: str) -> Any:
    def infer(x: Any, axis: int) -> Result:
        if x.dtype == "bool":
            raise _refuse(op, "bool", "numbers")
        if x.shape[axis] == 0:
            raise ShapeError(f"{op}: axis {axis} of shape {x.shape} is empty", allowed=_FULL)
        return reduced(x.shape, [axis], False), "int64"

    return infer


def _infer_size(x: Any, axes: Sequence[int], result: str) -> Result:
    return (), result


def _infer_shape(x: Any) -> Result:
    return (len(x.shape),), "int32"


def _inferred(total: int, shape: Sequence[int | None]) -> str:
    """The call that brings so many elements to this shape but for one length; "" where there is none."""
    for axis in range(len(shape)):
        rest = count((*shape[:axis], *shape[axis + 1 :]))
        if rest and total % rest == 0:
            return f"K.reshape(x, {(*shape[:axis], -1, *shape[axis + 1 :])})"
    return ""


def _infer_reshape(x: Any, *references: Any, dims: Sequence[Any]) -> Result:
    shape = known_dims(dims, (x, *references))
    if shape.count(-1) > 1:
        raise ShapeError(
            f"reshape: {tuple(shape)} holds -1 {shape.count(-1)} times",
            allowed="only one axis can be -1",
            next_step="use K.shape(x)[axis] for another",
        )
    total = count(x.shape)
    if -1 in shape:
        rest = count(tuple(n for n in shape if n != -1))
        index = shape.index(-1)
        if rest == 0:
            raise ShapeError(
                f"reshape: -1 in {tuple(shape)} can't be inferred beside an axis of length 0",
                allowed="there every length must be given",
            )
        if total is None or rest is None:
            shape[index] = None
        elif total % rest:
            raise ShapeError(
                f"reshape: shape {x.shape} ({total} elements) doesn't divide into {tuple(shape)}",
                allowed=f"the lengths beside -1 must divide {total}",
            )
        else:
            shape[index] = total // rest
    elif total is not None:
        wanted = count(tuple(shape))
        if wanted is not None and wanted != total:
            raise ShapeError(
                f"reshape: shape {x.shape} ({total} elements) can't be {tuple(shape)} ({wanted} elements)",
                allowed="they must have as many elements",
                next_step=_inferred(total, shape),
            )
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
        raise ShapeError(
            f"broadcast_to: shape {x.shape} doesn't broadcast to {shape}",
            allowed="only axes of length 1 can get longer, and new ones can only come first",
        )
    return shape, x.dtype


def _infer_transpose(x: Any, permutation: Sequence[int]) -> Result:
    return tuple(x.shape[i] for i in permutation), x.dtype


def _infer_concatenate(*parts: Any, axis: int) -> Result:
    shape = list(parts[0].shape)
    total: int | None = shape[axis]
    for part in parts[1:]:
        if len(part.shape) != len(shape):
            raise ShapeError(
                f"concatenate: shapes {parts[0].shape} and {part.shape} have different numbers of axes",
                allowed="they must be equal",
                next_step=f"K.expand_dims(x, {axis})" if abs(len(part.shape) - len(shape)) == 1 else "",
            )
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


def _infer_unslice(piece: Any, like: Any, *references: Any, slices: Any) -> Result:
    return like.shape, piece.dtype


def _infer_one_hot(indices: Any, depth: int, result: str) -> Result:
    return (*indices.shape, depth), result


def _infer_matmul(a: Any, b: Any, transpose_a: bool, transpose_b: bool) -> Result:
    m, k = a.shape[::-1] if transpose_a else a.shape
    j, n = b.shape[::-1] if transpose_b else b.shape
    if k != j and k is not None and j is not None:
        first, second = (f"{x.shape}{' transposed' if t else ''}" for x, t in ((a, transpose_a), (b, transpose_b)))
        raise inner_refused(first, second, k, j)
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
        raise scalar_refused("gather", "reference")
    if indices.dtype not in INTEGERS:
        raise _refuse("gather", indices.dtype, "integer indices")
    return indices.shape + x.shape[1:], x.dtype


def _infer_scatter_add(values: Any, indices: Any, like: Any) -> Result:
    return like.shape, values.dtype


def _infer_batch_matmul(a: Any, b: Any, transpose_a: bool, transpose_b: bool) -> Result:
    lead = tuple(m if n is None else n for m, n in zip(a.shape[:-2], b.shape[:-2]))
    if any(m != n and m is not None and n is not None for m, n in zip(a.shape[:-2], b.shape[:-2])):
        raise ShapeError(
            f"batch_dot: shapes {a.shape} and {b.shape} differ in their leading axes", allowed="they must be equal"
        )
    (m, n), dtype = _infer_matmul(Spec(a.shape[-2:], a.dtype), Spec(b.shape[-2:], b.dtype), transpose_a, transpose_b)
    return (*lead, m, n), dtype


def _infer_sum_to(x: Any, like: Any) -> Result:
    return like.shape, x.dtype


RULES.update(
    {
        "negative": Rule(_unary("negative", None), lambda node, g: [apply("negative", g)]),
        "abs": Rule(_unary("abs", None), vjps.of_abs),
        "sign": Rule(_unary("sign", None)),
        "sqrt": Rule(_unary("sqrt", FLOATS), vjps.of_sqrt),
        "exp": Rule(_unary("exp", FLOATS), lambda node, g: [g * node]),
        "log": Rule(_unary("log", FLOATS), lambda node, g: [g / node.inputs[0]]),
        "tanh": Rule(_unary("tanh", FLOATS), vjps.of_tanh),
        "logical_not": Rule(_logical("logical_not")),
        "add": Rule(_binary("add"), vjps.of_add),
        "subtract": Rule(_binary("subtract"), vjps.of_subtract),
        "multiply": Rule(_binary("multiply"), vjps.of_multiply),
        "divide": Rule(_binary("divide", floats=True), vjps.of_divide),
        "floor_divide": Rule(_binary("floor_divide")),
        "mod": Rule(_binary("mod"), vjps.of_mod),
        "power": Rule(_binary("power"), vjps.of_power),
        "maximum": Rule(_binary("maximum"), vjps.of_choice("greater")),
        "minimum": Rule(_binary("minimum"), vjps.of_choice("less")),
        "logical_and": Rule(_logical("logical_and")),
        "logical_or": Rule(_logical("logical_or")),
        "equal": Rule(_binary("equal", "bool", bools=True)),
        "not_equal": Rule(_binary("not_equal", "bool", bools=True)),
        "less": Rule(_binary("less", "bool")),
        "less_equal": Rule(_binary("less_equal", "bool")),
        "select": Rule(_infer_select, vjps.of_select),
        "cast": Rule(_infer_cast, vjps.of_cast),
        "saturating_cast": Rule(_infer_cast, lambda node, g: [None], _saturating_cast),
        "sum": Rule(_reduction("sum", nonempty=False), vjps.of_sum),
        "max": Rule(_reduction("max", nonempty=True), vjps.of_extremum),
        "min": Rule(_reduction("min", nonempty=True), vjps.of_extremum),
        "sin": Rule(_unary("sin", FLOATS), lambda node, g: [g * apply("cos", node.inputs[0])]),
        "cos": Rule(_unary("cos", FLOATS), lambda node, g: [apply("negative", g * apply("sin", node.inputs[0]))]),
        "floor": Rule(_unary("floor", None)),
        "round": Rule(_unary("round", None)),
        "prod": Rule(_reduction("prod", nonempty=False), vjps.of_prod),
        "cumsum": Rule(_infer_scan, vjps.of_cumsum),
        "cumprod": Rule(_infer_scan, vjps.of_cumprod),
        "pad": Rule(_infer_pad, vjps.of_pad),
        "gather": Rule(_infer_gather, lambda node, g: [apply("scatter_add", g, node.inputs[1], node.inputs[0]), None]),
        "scatter_add": Rule(_infer_scatter_add, lambda node, g: [apply("gather", g, node.inputs[1]), None, None]),
        "batch_matmul": Rule(_infer_batch_matmul, vjps.of_batch_matmul),
        "argmax": Rule(_position("argmax")),
        "argmin": Rule(_position("argmin")),
        "size": Rule(_infer_size),
        "shape": Rule(_infer_shape),
        "reshape": Rule(_infer_reshape, vjps.of_reshape),
        "broadcast_to": Rule(_infer_broadcast_to, vjps.of_broadcast_to),
        "transpose": Rule(_infer_transpose, vjps.of_transpose),
        "concatenate": Rule(_infer_concatenate, vjps.of_concatenate),
        "unconcatenate": Rule(_infer_unconcatenate, vjps.of_unconcatenate),
        "slice": Rule(_infer_slice, vjps.of_slice),
        "unslice": Rule(_infer_unslice, vjps.of_unslice),
        "one_hot": Rule(_infer_one_hot),
        "matmul": Rule(_infer_matmul, vjps.of_matmul),
        # Never lowered: a program whose shapes are known has a sum and a reshape, or nothing, in its place.
        "sum_to": Rule(_infer_sum_to, vjps.of_sum_to),
    }
)
