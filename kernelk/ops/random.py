"""Random tensors: drawn afresh at each run from streams that are the same on every engine."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..errors import ArgumentError, DTypeError
from ..graph.nodes import Draw, Spec, Tensor
from ..graph.state import current_state
from ..source import caller
from .dtypes import FLOATS, cast, check_dtype
from .shapes import known_dims, whole_number
from .shaping import dims_of


def set_random_seed(seed: int) -> None:
    """Restarts all randomness: the same cells run after it draw the same numbers, on every engine.

    Raises ArgumentError unless `seed` is an int of at least 0.
    """
    number = whole_number(seed, "seed", "set_random_seed")
    if number < 0:
        raise ArgumentError(f"set_random_seed: seed {number} isn't allowed", allowed="it must be at least 0")
    current_state().seeds.restart(number)


def draw(kind: str, dtype: str, dims: list[Any], references: tuple[Tensor, ...], seed: int | None) -> Tensor:
    """A node of standard draws ("uniform" in [0, 1) or "normal"); `dims` refer to `references` from 0."""
    if dtype not in FLOATS:
        raise DTypeError(f"random numbers are floats, not {dtype}", next_step="cast them with K.cast(x, dtype)")
    negative = [n for n in dims if isinstance(n, int) and n < 0]
    if negative:
        raise ArgumentError(
            f"random numbers: {negative[0]} can't be a length",
            allowed="lengths are at least 0",
            next_step="K.shape(x)[axis] for an unknown length",
        )
    given = None if seed is None else whole_number(seed, "seed", "random numbers")
    specs = [Spec(tensor.shape, tensor.dtype) for tensor in references]
    shape = tuple(known_dims(dims, specs))
    node = Draw("draw", references, {"kind": kind, "dims": dims}, shape, dtype, caller())
    count = node.count = current_state().seeds.new(given is not None)
    node.seed = count.seed if given is None else partial(count.given_seed, given)
    return node


def _scaled(standard: Tensor, factor: Any, offset: Any) -> Tensor:
    """Standard draws, scaled and moved by numbers, arrays or tensors."""
    if isinstance(factor, (int, float)) and isinstance(offset, (int, float)) and (factor, offset) == (1.0, 0.0):
        return standard
    scaled: Tensor = standard * factor + offset
    return scaled


def random_uniform(
    shape: Any, minval: Any = 0.0, maxval: Any = 1.0, dtype: Any = None, seed: int | None = None
) -> Tensor:
    """Uniform draws in [minval, maxval), fresh at each run; floatx unless `dtype` says otherwise."""
    dims, references = dims_of(shape, 0, "random_uniform")
    standard = draw("uniform", check_dtype(dtype), dims, references, seed)
    return _scaled(standard, maxval - minval, minval)


def random_normal(shape: Any, mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = None, seed: int | None = None) -> Tensor:
    """Normal draws with this mean and deviation, fresh at each run; floatx unless `dtype` says otherwise."""
    dims, references = dims_of(shape, 0, "random_normal")
    standard = draw("normal", check_dtype(dtype), dims, references, seed)
    return _scaled(standard, stddev, mean)


def truncated_normal(
    shape: Any, mean: Any = 0.0, stddev: Any = 1.0, dtype: Any = None, seed: int | None = None
) -> Tensor:
    """Normal draws within two deviations of the mean, fresh at each run."""
    dims, references = dims_of(shape, 0, "truncated_normal")
    standard = draw("truncated_normal", check_dtype(dtype), dims, references, seed)
    return _scaled(standard, stddev, mean)


def random_binomial(shape: Any, p: Any = 0.0, dtype: Any = None, seed: int | None = None) -> Tensor:
    """1 with probability `p`, else 0, fresh at each run."""
    dims, references = dims_of(shape, 0, "random_binomial")
    chosen = check_dtype(dtype)
    uniform = draw("uniform", chosen if chosen in FLOATS else "float32", dims, references, seed)
    return cast(uniform < p, chosen)
