"""All functions with their dtypes, prepared once for all engines: the whole of them, or a sample for `make test`."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from parity import suite as parity_suite
from parity.case import FLOATS

from kernelk import backend as K

from . import formulas, reductions
from .arrays import ArrayFunction
from .formulas import Function
from .measure import Prepared, prepared

# Of a whole run: points of each elementwise function and dtype, and rounds of each function of arrays.
POINTS, ROUNDS = 20_000, 12
# Of a sample.
SAMPLE_POINTS, SAMPLE_ROUNDS = 150, 1


def elementwise() -> list[str]:
    """The titles of elementwise functions."""
    return [one.title for one in formulas.functions()]


def functions(only: str = "") -> list[Function | ArrayFunction]:
    """All of them, or those whose title has `only` in it."""
    return [one for one in [*formulas.functions(), *reductions.functions()] if only in one.title]


def whole(seed: int, only: str = "", dtypes: tuple[str, ...] = FLOATS) -> Iterator[Prepared]:
    """All that a whole run measures."""
    for one in functions(only):
        linear = isinstance(one, ArrayFunction) and one.name in reductions.LINEAR
        for dtype in dtypes:
            count = 0 if isinstance(one, Function) and one.points == "numbers" and dtype == "float16" else POINTS
            yield prepared(one, dtype, count, 1 if linear else ROUNDS, seed)


def sample(seed: int) -> Iterator[Prepared]:
    """Each elementwise function in each dtype and each function of arrays in one; of each linear function, one case."""
    random = np.random.default_rng(seed)
    chosen = {one.name: one for one in random.permutation(np.array(reductions.linear(), object))}
    for one in [*formulas.functions(), *reductions.FUNCTIONS, *chosen.values()]:
        if one.there:
            dtypes = FLOATS if isinstance(one, Function) else [str(random.choice(FLOATS))]
            for dtype in dtypes:
                yield prepared(one, dtype, SAMPLE_POINTS, SAMPLE_ROUNDS, seed)


def _each(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


_MOVES = "only moves, repeats or chooses elements, or counts them: exact, and compared by `make parity`"
_SUM_OF = "is made of functions in the table, recorded one by one"
_STEPS = "records the user's own function for each step"
_RANDOM = "draws random numbers"
_INTEGERS = "gives integers or bools: exact, and compared by `make parity`"
_ADDS = "adds or multiplies once, as the operators do"
# K's functions that have no row, and why.
WITHOUT = {
    **_each(
        _MOVES,
        """arange batch_flatten cast cast_to_floatx concatenate constant ctc_label_dense_to_sparse expand_dims eye
        flatten gather identity in_test_phase in_train_phase is_sparse max min one_hot ones ones_like pattern_broadcast
        permute_dimensions placeholder print_tensor repeat repeat_elements reshape resize_volumes reverse shape size
        slice spatial_2d_padding spatial_3d_padding squeeze stack stop_gradient switch temporal_padding tile to_dense
        transpose update variable zeros zeros_like""",
    ),
    **_each(_INTEGERS, "all any argmax argmin equal greater greater_equal in_top_k less less_equal not_equal"),
    **_each(_ADDS, "bias_add moving_average_update update_add update_sub"),
    **_each(
        _RANDOM,
        """dropout random_binomial random_normal random_normal_variable random_uniform random_uniform_variable
        truncated_normal""",
    ),
    **_each(_STEPS, "foldl foldr map_fn rnn"),
    "gradients": "is measured with each function",
    "ctc_decode": _SUM_OF,
    "resize_images": _SUM_OF,
}


def unaccounted() -> set[str]:
    """K's functions with neither a row nor a reason to have none, here or in the parity suite."""
    rows = {one.name for one in functions()}
    return set(K.__all__) - rows - set(WITHOUT) - set(parity_suite.WITHOUT)
