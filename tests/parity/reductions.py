"""Cases of reductions over axes: sums and extremes, what is accumulated, where the largest is."""

from __future__ import annotations

import numpy as np

from kernelk import backend as K

from .case import ALL, FLOATS, INTEGERS, Case, always, floating, numeric, real

# How a reduction may be asked for: label, axes of the operand, axis, keepdims.
WAYS = [
    ("everything", "abc", None, False),
    ("everything, kept", "ab", None, True),
    ("first", "ab", 0, False),
    ("last", "abc", -1, False),
    ("negative, kept", "abc", -2, True),
    ("several", "abcd", (0, 2), False),
    ("several, out of order, kept", "abc", [2, -3], True),
    ("of a vector", "a", 0, False),
]
# Where other axes hold nothing.
OTHERS_EMPTY = [("beside an empty axis", "Aba", 1, False)]
# Where what is reduced holds nothing.
EMPTY = [("over an empty axis", "a0b", 1, False), ("all of nothing", "0", None, True)]


def _int32(x):
    return x.astype("int32") if x.dtype == bool else x


def _reduction(function, expected, dtypes, gives, kinds=("real",), empty=True, scale=1.0):
    def call(axis, keepdims):
        return lambda x: getattr(K, function)(x, axis=axis, keepdims=keepdims)

    def numpys(axis, keepdims):
        axis = tuple(axis) if isinstance(axis, list) else axis
        return lambda x: expected(_int32(x), axis=axis, keepdims=keepdims)

    for kind in kinds:
        for label, axes, axis, keepdims in [*WAYS, *OTHERS_EMPTY, *(EMPTY if empty else [])]:
            yield Case(
                function,
                f"{kind}, {label}",
                call(axis, keepdims),
                numpys(axis, keepdims),
                [real(axes, kind)],
                dtypes,
                gives,
                scale=scale,
            )
    label = f"{kinds[0]}, a scalar"
    yield Case(function, label, call(None, False), numpys(None, False), [real("", kinds[0])], dtypes, gives)


def _wide(function):
    return lambda x, axis, keepdims: function(x.astype("float64"), axis=axis, keepdims=keepdims)


def _logsumexp(x, axis, keepdims):
    x = x.astype("float64")
    axes = range(x.ndim) if axis is None else [axis] if isinstance(axis, int) else axis
    for one in axes:
        x = np.logaddexp.reduce(x, axis=one, keepdims=True)
    return x if keepdims else np.squeeze(x, tuple(axes))


def _truth(function):
    return lambda x, axis, keepdims: function(x != 0, axis=axis, keepdims=keepdims)


def _along(function, expected, dtypes, gives, axes, kinds=("real", "edges"), scale=1.0):
    """A function that takes one axis."""
    for kind in kinds:
        for label, letters, axis in axes:
            yield Case(
                function,
                f"{kind}, {label}",
                lambda x, axis=axis: getattr(K, function)(x, axis=axis),
                lambda x, axis=axis: expected(_int32(x), axis=axis),
                [real(letters, kind)],
                dtypes,
                gives,
                scale=scale,
            )


AXES = [("first", "ab", 0), ("last", "abc", -1), ("middle", "abcd", -3), ("vector", "a", 0), ("of no rows", "Ab", 1)]
LENGTHS = [*AXES, ("of nothing", "a0", 1)]

CASES = [
    *_reduction("sum", np.sum, ALL, numeric, scale=4),
    *_reduction("sum", np.sum, INTEGERS, numeric, ("edges",)),
    *_reduction("sum", np.sum, FLOATS, floating, ("nonfinite",), scale=4),
    *_reduction("prod", np.prod, ALL, numeric, ("small",)),
    *_reduction("prod", np.prod, INTEGERS, numeric, ("edges",)),
    *_reduction("prod", np.prod, FLOATS, floating, ("unit", "nonfinite"), scale=30),
    *_reduction("max", np.max, ALL, numeric, ("real", "edges"), empty=False),
    *_reduction("min", np.min, ALL, numeric, ("real", "edges"), empty=False),
    *_reduction("mean", _wide(np.mean), ALL, floating, scale=4),
    *_reduction("mean", _wide(np.mean), FLOATS, floating, ("nonfinite",), scale=4),
    *_reduction("var", _wide(np.var), ALL, floating, scale=12),
    *_reduction("std", _wide(np.std), FLOATS, floating, ("positive",), scale=12),
    *_reduction("std", _wide(np.std), INTEGERS, floating, empty=False),
    *_reduction("any", _truth(np.any), ALL, always("bool"), ("small", "edges")),
    *_reduction("all", _truth(np.all), ALL, always("bool"), ("small", "edges")),
    *_reduction("logsumexp", _logsumexp, FLOATS, floating, ("real", "extreme", "nonfinite"), empty=False, scale=4),
    *_reduction("logsumexp", _logsumexp, INTEGERS, floating, empty=False),
    *_along("argmax", np.argmax, ALL, always("int64"), AXES),
    *_along("argmin", np.argmin, ALL, always("int64"), AXES),
    *_along("cumsum", np.cumsum, ALL, numeric, LENGTHS, ("real",), scale=4),
    *_along("cumsum", np.cumsum, INTEGERS, numeric, LENGTHS, ("edges",)),
    *_along("cumsum", np.cumsum, FLOATS, floating, AXES, ("nonfinite",), scale=4),
    *_along("cumprod", np.cumprod, ALL, numeric, LENGTHS, ("small",)),
    *_along("cumprod", np.cumprod, INTEGERS, numeric, LENGTHS, ("edges",)),
    *_along("cumprod", np.cumprod, FLOATS, floating, AXES, ("unit", "nonfinite"), scale=30),
    Case("cumsum", "default axis", lambda x: K.cumsum(x), lambda x: np.cumsum(x, 0), [real("ab")], scale=4),
    Case("cumprod", "default axis", lambda x: K.cumprod(x), lambda x: np.cumprod(x, 0), [real("ab")], scale=8),
    Case(
        "argmax", "default axis", lambda x: K.argmax(x), lambda x: x.argmax(-1), [real("abc")], FLOATS, always("int64")
    ),
    Case("sum", "many float16", lambda x: K.sum(x), np.sum, [real("99999", "positive")], ["float16"], scale=4),
]
