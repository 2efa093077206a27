"""What a function of whole arrays is to the suite, and how the slopes of its truth are found.

A truth gets `held` and arrays of mpmath's numbers; it returns the values and the sums of the magnitudes of the terms
that each of them is made of: the result's own ulps mean nothing where the terms cancel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from parity.case import FLOATS

from kernelk import backend as K

from .formulas import Held
from .ulps import MP, Array, mpf

# Values, and the sums of their terms' magnitudes.
Both = tuple[Any, Any]
# So far operands are moved for a slope: what is lost by it is the square of that.
STEP = MP.ldexp(mpf(1), -70)
# Of so many elements of each operand of a linear function.
MOST_SLOPES = 5


@dataclass(frozen=True)
class ArrayFunction:
    """A function of arrays. `operands` makes them; those from `fixed` on have no slope to measure.

    `slopes` gets `held`, the weights of the results in the loss and the operands, and returns `Both` for each operand
    that has one. Without it, gradients aren't measured.
    """

    name: str
    label: str
    graph: Callable[..., Any]
    operands: Callable[[np.random.Generator, str], Sequence[Array]]
    truth: Callable[..., Both]
    slopes: Callable[..., list[Both]] | None = None
    fixed: int = 99
    dtypes: Sequence[str] = FLOATS

    @property
    def title(self) -> str:
        """How it is shown."""
        return f"`K.{self.name}`" + (f", {self.label}" if self.label else "")

    @property
    def there(self) -> bool:
        """Whether K has it."""
        return hasattr(K, self.name)


def exact(array: Array) -> Any:
    """An array of floats as mpmath's numbers; integers stay."""
    array = np.asarray(array)
    if array.dtype.kind != "f":
        return array
    made = np.empty(array.shape, object)
    made.ravel()[...] = [mpf(float(value)) for value in array.ravel()]
    return made


exp, log, sqrt, log1p = (np.frompyfunc(f, 1, 1) for f in (MP.exp, MP.log, MP.sqrt, MP.log1p))


def total(x: Any, axis: int | None = None, keepdims: bool = False) -> Any:
    """The sum, rounded once."""
    if axis is None:
        return np.array(MP.fsum(x.ravel()), object)
    return np.expand_dims(_along(MP.fsum, x, axis), axis) if keepdims else _along(MP.fsum, x, axis)


def _along(function: Callable[..., Any], x: Any, axis: int) -> Any:
    lines = np.moveaxis(x, axis, -1)
    made = np.empty(lines.shape[:-1], object)
    for index in np.ndindex(made.shape):
        made[index] = function(lines[index])
    return made


# Slopes ---------------------------------------------------------------------------------------------------


def by_steps(fixed: int = 99) -> Callable[..., Callable[..., list[Both]]]:
    """Slopes of a truth that is smooth at its operands, from small steps of each number in each of them.

    The slopes of a row are results of the same sums, so the largest of them is the unit for all.
    """

    def of(truth: Callable[..., Both]) -> Callable[..., list[Both]]:
        def slopes(held: Held, weights: Any, *operands: Any) -> list[Both]:
            found = []
            for number in range(min(fixed, len(operands))):
                values, magnitudes = (np.empty(operands[number].shape, object) for _ in range(2))
                for index in np.ndindex(values.shape):
                    sides = []
                    step = STEP * max(1, abs(operands[number][index]))
                    for sign in (1, -1):
                        near = [np.array(operand, copy=True) for operand in operands]
                        near[number][index] = near[number][index] + sign * step
                        sides.append(truth(held, *near)[0])
                    parts = np.ravel(weights * (sides[0] - sides[1])) / (2 * step)
                    values[index], magnitudes[index] = MP.fsum(parts), MP.fsum(abs(part) for part in parts)
                rows = magnitudes if magnitudes.ndim else magnitudes[None]
                found.append((values, np.broadcast_to(rows.max(-1, keepdims=True), rows.shape).reshape(values.shape)))
            return found

        return slopes

    return of


def linear_in_each(function: Callable[..., Any]) -> tuple[Callable[..., Both], Callable[..., list[Both]]]:
    """The truth and the slopes of a function that is linear in each of its operands, itself given in plain numpy.

    The slopes are those of some elements, None for the others.
    """

    def truth(held: Held, *operands: Any) -> Both:
        return function(*operands), function(*[abs(operand) for operand in operands])

    def slopes(held: Held, weights: Any, *operands: Any) -> list[Both]:
        found = []
        for number, operand in enumerate(operands):
            values, magnitudes = (np.empty(operand.shape, object) for _ in range(2))
            # Always the same ones, and none where there are many: each takes a call of the function.
            for place in np.random.default_rng(0).permutation(operand.size)[:MOST_SLOPES]:
                index = np.unravel_index(place, operand.shape)
                one = np.full(operand.shape, mpf(0), object)
                one[index] = mpf(1)
                others = [*operands[:number], one, *operands[number + 1 :]]
                sizes = [abs(other) for other in others]
                values[index] = MP.fsum(np.ravel(weights * function(*others)))
                magnitudes[index] = MP.fsum(np.ravel(abs(weights) * function(*sizes)))
            found.append((values, magnitudes))
        return found

    return truth, slopes
