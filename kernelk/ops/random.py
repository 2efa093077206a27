"""Random tensors: drawn afresh at each run from streams that are the same on every engine."""

from __future__ import annotations

import secrets
from functools import partial
from typing import Any

import numpy as np

from ..errors import DTypeError
from ..graph.nodes import Draw, Spec, Tensor
from ..source import caller
from .dtypes import FLOATS, cast, check_dtype
from .shapes import known_dims
from .shaping import dims_of


def _seed_of(entropy: int, *spawn_key: int) -> int:
    return int(np.random.SeedSequence(entropy, spawn_key=spawn_key).generate_state(1, np.uint64)[0])


class Stream:
    """Seeds for nodes that were given none: the n-th node's follows from n and the stream's entropy.

    The nodes ask for it at each plan, not once: a file that is loaded gives their stream the entropy of the one that
    was saved, and the same cells go on with the same draws.
    """

    def __init__(self, entropy: int | None = None) -> None:
        self.entropy = secrets.randbits(128) if entropy is None else int(entropy)
        self.count = 0

    def next(self) -> int:
        """The number of the next node."""
        self.count += 1
        return self.count - 1

    def seed(self, number: int) -> int:
        """The 64-bit seed of a node."""
        return _seed_of(self.entropy, number)


class _Seeds:
    """The state of randomness: what `set_random_seed` restarts, and `kernelk.save` keeps."""

    def __init__(self) -> None:
        self.restart(None)

    def restart(self, seed: int | None) -> None:
        """Begins anew, from entropy of the system's where there is no seed."""
        self.fixed = 0 if seed is None else _seed_of(seed)
        self.stream = Stream(seed)
        # How many runs have drawn; part of each draw's key, so that it lives on across swaps and restarts.
        self.counter = 0

    def state(self) -> dict[str, int]:
        """What the next draws follow from."""
        return {
            "entropy": self.stream.entropy,
            "count": self.stream.count,
            "fixed": self.fixed,
            "counter": self.counter,
        }

    def restore(self, state: dict[str, int]) -> None:
        """Makes the next draws, of the nodes that the present stream has made too, those that follow from `state`.

        Plans that hold a seed already have to be made anew.
        """
        self.stream.entropy, self.stream.count = state["entropy"], state["count"]
        self.fixed, self.counter = state["fixed"], state["counter"]


SEEDS = _Seeds()


def set_random_seed(seed: int) -> None:
    """Restarts all randomness: the same cells run after it draw the same numbers, on every engine."""
    SEEDS.restart(seed)


def draw(kind: str, dtype: str, dims: list[Any], references: tuple[Tensor, ...], seed: int | None) -> Tensor:
    """A node of standard draws ("uniform" in [0, 1) or "normal"); `dims` refer to `references` from 0."""
    if dtype not in FLOATS:
        raise DTypeError(f"random numbers are floats, not {dtype}: cast them with K.cast(x, dtype)")
    specs = [Spec(tensor.shape, tensor.dtype) for tensor in references]
    shape = tuple(known_dims(dims, specs))
    node = Draw("draw", references, {"kind": kind, "dims": dims}, shape, dtype, caller())
    if seed is None:
        stream = SEEDS.stream
        node.seed = partial(stream.seed, stream.next())
    else:
        node.seed = partial(int, (int(seed) ^ SEEDS.fixed) & (2**64 - 1))
    return node


def random_uniform(
    shape: Any, minval: float = 0.0, maxval: float = 1.0, dtype: Any = None, seed: int | None = None
) -> Tensor:
    """Uniform draws in [minval, maxval), fresh at each run; floatx unless `dtype` says otherwise."""
    dims, references = dims_of(shape, 0, "random_uniform")
    standard = draw("uniform", check_dtype(dtype), dims, references, seed)
    return standard * (maxval - minval) + minval if (minval, maxval) != (0.0, 1.0) else standard


def random_normal(
    shape: Any, mean: float = 0.0, stddev: float = 1.0, dtype: Any = None, seed: int | None = None
) -> Tensor:
    """Normal draws with this mean and deviation, fresh at each run; floatx unless `dtype` says otherwise."""
    dims, references = dims_of(shape, 0, "random_normal")
    standard = draw("normal", check_dtype(dtype), dims, references, seed)
    return standard * stddev + mean if (mean, stddev) != (0.0, 1.0) else standard


def truncated_normal(
    shape: Any, mean: float = 0.0, stddev: float = 1.0, dtype: Any = None, seed: int | None = None
) -> Tensor:
    """Normal draws within two deviations of the mean, fresh at each run."""
    dims, references = dims_of(shape, 0, "truncated_normal")
    standard = draw("truncated_normal", check_dtype(dtype), dims, references, seed)
    return standard * stddev + mean if (mean, stddev) != (0.0, 1.0) else standard


def random_binomial(shape: Any, p: float = 0.0, dtype: Any = None, seed: int | None = None) -> Tensor:
    """1 with probability `p`, else 0, fresh at each run."""
    dims, references = dims_of(shape, 0, "random_binomial")
    chosen = check_dtype(dtype)
    uniform = draw("uniform", chosen if chosen in FLOATS else "float32", dims, references, seed)
    return cast(uniform < p, chosen)
