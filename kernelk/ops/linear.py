"""Products of matrices and tensors."""

from __future__ import annotations

from typing import Any

from ..errors import ShapeError
from ..graph.nodes import Tensor
from ..graph.rules import apply
from .dtypes import as_tensor, operands
from .shapes import axis_of, inner_refused, matmul, merge_axes, whole_number


def dot(x: Any, y: Any) -> Tensor:
    """Matrix product: the last axis of `x` with the last but one of `y` (its only one if `y` is a vector).

    Shapes (..., k) and (k, n) give (..., n); (..., k) and (a, ..., k, n) give (..., a, ..., n), as Keras does.
    A sparse operand (see `is_sparse`) is multiplied densely; the product is dense.
    Raises ShapeError where the two axes differ or an operand is a scalar.
    """
    x, y = operands(x, y)
    if x.ndim == 0 or y.ndim == 0:
        raise ShapeError(
            f"dot: shapes {x.shape} and {y.shape}: a scalar has no axis to multiply along", next_step="use x * y"
        )
    k = x.shape[-1]
    meets = y.shape[-2] if y.ndim > 1 else y.shape[0]
    if k != meets and k is not None and meets is not None:
        raise inner_refused(f"{x.shape}", f"{y.shape}", k, meets, _transposed(x, y))
    if x.ndim == 2 and y.ndim == 2:
        return matmul(x, y)
    rows = [[0, i] if n is None else n for i, n in enumerate(x.shape[:-1])]
    left = merge_axes(x, 0, x.ndim - 2)
    if y.ndim > 2:
        order = [y.ndim - 2, *range(y.ndim - 2), y.ndim - 1]
        y = apply("transpose", y, permutation=order)
    others = y.shape[1:]
    right = merge_axes(y, 1, y.ndim - 1)
    product = matmul(left, right)
    dims = [[1, i] if isinstance(n, list) else n for i, n in enumerate(rows)]
    dims += [[2, i + 1] if n is None else n for i, n in enumerate(others)]
    references = (x, y) if any(isinstance(n, list) for n in dims) else ()
    return apply("reshape", product, *references, dims=dims)


def matrix_product(a: Any, b: Any) -> Tensor:
    """`a @ b`: of matrices, of a stack of matrices with one matrix, or of two equal stacks. Raises ShapeError."""
    a, b = operands(a, b)
    if a.ndim < 2 or b.ndim not in (2, a.ndim):
        raise ShapeError(
            f"@: shapes {a.shape} and {b.shape} don't fit",
            allowed="matrices, a stack of them and one matrix, or two equal stacks can be multiplied",
            next_step="K.dot(a, b)",
        )
    if b.ndim == 2:
        return dot(a, b)
    k, meets = a.shape[-1], b.shape[-2]
    if any(n != m and None not in (n, m) for n, m in zip((*a.shape[:-2], k), (*b.shape[:-2], meets))):
        raise ShapeError(
            f"@: shapes {a.shape} and {b.shape} don't fit", allowed="the stacks and the inner lengths must be equal"
        )
    return apply("batch_matmul", a, b, transpose_a=False, transpose_b=False)


Tensor.__matmul__ = matrix_product  # type: ignore[method-assign]
Tensor.__rmatmul__ = lambda self, other: matrix_product(other, self)  # type: ignore[method-assign]


def _transposed(x: Tensor, y: Tensor) -> str:
    """The product of operands that don't fit with that one transposed which then does; "" where neither does."""
    if y.ndim == 2 and y.shape[1] == x.shape[-1]:
        return "K.dot(x, K.transpose(y))"
    if x.ndim == 2 and x.shape[0] == y.shape[-2 if y.ndim > 1 else 0]:
        return "K.dot(K.transpose(x), y)"
    return ""


def batch_dot(x: Any, y: Any, axes: Any = None) -> Tensor:
    """Products of two batches, sample by sample: axis `axes[0]` of `x` with axis `axes[1]` of `y`, neither of them 0.

    Shapes (b, ..., k, ...) and (b, ..., k, ...) give (b, the rest of x, the rest of y), or (b, 1) where nothing is
    left. `axes` may be one int for both; by default it is the last axis of `x` and the last but one of `y` (the last
    if `y` has two axes). Raises ShapeError.
    """
    x, y = operands(x, y)
    if x.ndim < 2 or y.ndim < 2:
        raise ShapeError(
            f"batch_dot: shapes {x.shape} and {y.shape}",
            allowed="each needs a batch axis and one more",
            next_step="K.expand_dims(x, 1)" if x.ndim and y.ndim else "x * y",
        )
    if axes is None:
        axes = (x.ndim - 1, y.ndim - 1 if y.ndim == 2 else y.ndim - 2)
    elif isinstance(axes, int):
        axes = (axes, axes)
    first, second = axis_of(axes[0], x.ndim, "batch_dot"), axis_of(axes[1], y.ndim, "batch_dot")
    if 0 in (first, second):
        raise ShapeError("batch_dot: axis 0 is the batch and can't be multiplied along", next_step="use K.dot for that")
    if x.shape[first] != y.shape[second] and None not in (x.shape[first], y.shape[second]):
        pairs = [(i, j) for i in range(1, x.ndim) for j in range(1, y.ndim) if x.shape[i] == y.shape[j] is not None]
        raise ShapeError(
            f"batch_dot: axis {first} of shape {x.shape} and axis {second} of shape {y.shape} differ in length",
            allowed="they must be equal",
            next_step=f"K.batch_dot(x, y, axes={pairs[0]})" if pairs else "",
        )
    left = apply("transpose", x, permutation=[i for i in range(x.ndim) if i != first] + [first])
    right = apply("transpose", y, permutation=[0, second] + [i for i in range(1, y.ndim) if i != second])
    product = apply(
        "batch_matmul",
        merge_axes(left, 1, left.ndim - 2),
        merge_axes(right, 2, right.ndim - 1),
        transpose_a=False,
        transpose_b=False,
    )
    dims: list[Any] = [[1, i] if n is None else n for i, n in enumerate(left.shape[:-1])]
    dims += [[2, i + 2] if n is None else n for i, n in enumerate(right.shape[2:])]
    if len(dims) == 1:
        dims.append(1)
    references = (left, right) if any(isinstance(n, list) for n in dims) else ()
    return apply("reshape", product, *references, dims=dims)


def transpose(x: Any) -> Tensor:
    """`x` with its axes in reverse order."""
    x = as_tensor(x)
    return apply("transpose", x, permutation=list(range(x.ndim))[::-1])


def permute_dimensions(x: Any, pattern: Any) -> Tensor:
    """`x` with its axes in the order of `pattern`. Raises ShapeError unless it names each axis once."""
    x = as_tensor(x)
    pattern = pattern if hasattr(pattern, "__iter__") else [pattern]
    order = [whole_number(i, "axis", "permute_dimensions") for i in pattern]
    if sorted(order) != list(range(x.ndim)):
        raise ShapeError(
            f"permute_dimensions: {tuple(order)} isn't an order of the {x.ndim} axes of shape {x.shape}",
            allowed=f"each of {', '.join(map(str, range(x.ndim)))} must be there once"
            if x.ndim
            else "a scalar has none",
        )
    return apply("transpose", x, permutation=order)
