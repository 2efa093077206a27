"""The functions of whole arrays: sums, products, softmax, losses and normalisation, with their truths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from parity import networks, windows
from parity.case import FLOATS, Case, trial

from kernelk import backend as K
from kernelk import config

from . import points
from .arrays import ArrayFunction, Both, by_steps, exact, exp, linear_in_each, log, log1p, sqrt, total
from .formulas import Held
from .ulps import MP, Array, mpf

# Values ---------------------------------------------------------------------------------------------------


def wide(*shapes: tuple[int, ...]) -> Callable[[np.random.Generator, str], list[Array]]:
    """Operands of either sign, with exponents from -6 to 6."""

    def made(random: np.random.Generator, dtype: str) -> list[Array]:
        found = [points.spread(dtype, int(np.prod(shape)), random, -6, 5).reshape(shape) for shape in shapes]
        return found

    return made


def uniform(low: float, high: float, *shapes: tuple[int, ...]) -> Callable[[np.random.Generator, str], list[Array]]:
    """Operands between two numbers."""
    return lambda random, dtype: [random.uniform(low, high, shape).astype(dtype) for shape in shapes]


def _batch(random: np.random.Generator, dtype: str) -> list[Array]:
    # A batch around a number far from 0, as far as the dtype can tell its elements apart.
    centre = 8.0 if dtype == "float16" else 1e4
    x = random.normal(centre, 1, (64, 3)).astype(dtype)
    return [x, random.uniform(0.5, 2, 3).astype(dtype), random.uniform(-1, 1, 3).astype(dtype)]


def _one_hot(random: np.random.Generator, dtype: str, rows: int, classes: int) -> Array:
    return np.eye(classes, dtype=dtype)[random.integers(0, classes, rows)]


def _classified(low: float, high: float, sure: float = 0.0) -> Callable[[np.random.Generator, str], list[Array]]:
    """Outputs, and one-hot targets; `sure`: by how much the target's output is above the others."""

    def made(random: np.random.Generator, dtype: str) -> list[Array]:
        targets = _one_hot(random, dtype, 4, 5)
        outputs = random.uniform(low, high, (4, 5)) + sure * targets.astype("float64")
        return [outputs.astype(dtype), targets]

    return made


def _labelled(low: float, high: float, sure: float = 0.0) -> Callable[[np.random.Generator, str], list[Array]]:
    def made(random: np.random.Generator, dtype: str) -> list[Array]:
        outputs, targets = _classified(low, high, sure)(random, dtype)
        return [outputs, targets.argmax(-1).astype("int32")]

    return made


# Truths ---------------------------------------------------------------------------------------------------


def _sum(axis: int | None) -> Callable[..., Both]:
    return lambda held, x: (total(x, axis), total(abs(x), axis))


def _mean(axis: int | None) -> Callable[..., Both]:
    def truth(held: Held, x: Any) -> Both:
        count = x.size if axis is None else x.shape[axis]
        return total(x, axis) / count, total(abs(x), axis) / count

    return truth


def _even(axis: int | None, mean: bool = False) -> Callable[..., list[Both]]:
    """The slopes of a sum or a mean."""

    def slopes(held: Held, weights: Any, x: Any) -> list[Both]:
        each = weights if axis is None else np.expand_dims(weights, axis)
        values = np.broadcast_to(each / (x.size if axis is None else x.shape[axis]) if mean else each, x.shape)
        return [(values, abs(values))]

    return slopes


def _cumsum(held: Held, x: Any) -> Both:
    return np.cumsum(x, 0), np.cumsum(abs(x), 0)


def _cumsum_slopes(held: Held, weights: Any, x: Any) -> list[Both]:
    return [tuple(np.cumsum(w[::-1], 0)[::-1] for w in (weights, abs(weights)))]  # type: ignore[list-item]


def _cumprod(held: Held, x: Any) -> Both:
    values = np.cumprod(x, 0)
    return values, abs(values)


def _prod(held: Held, x: Any) -> Both:
    values = np.prod(x, -1)
    return values, abs(values)


def _var(held: Held, x: Any) -> Both:
    off = x - total(x, -1, True) / x.shape[-1]
    values = total(off * off, -1) / x.shape[-1]
    return values, values


def _std(held: Held, x: Any) -> Both:
    values = sqrt(_var(held, x)[0])
    return values, values


def _logsumexp(held: Held, x: Any) -> Both:
    values, top = log(total(exp(x), -1)), x.max(-1)
    return values, abs(top) + abs(values - top)


def softmax(x: Any) -> Any:
    powers = exp(x)
    return powers / total(powers, -1, True)


def _softmax(held: Held, x: Any) -> Both:
    values = softmax(x)
    return values, values


def _wide_softmax(held: Held, x: Any) -> Both:
    # The exponents are rounded differences.
    values = softmax(x)
    return values, values * (1 + abs(x - x.max(-1, keepdims=True)))


def _softmax_slopes(held: Held, weights: Any, x: Any) -> list[Both]:
    y = softmax(x)
    weighted, sizes = weights * y, abs(weights) * y * (1 + abs(x - x.max(-1, keepdims=True)))
    return [(weighted - y * total(weighted, -1, True), sizes + y * total(sizes, -1, True))]


def _l2_normalize(held: Held, x: Any) -> Both:
    values = x / sqrt(total(x * x, -1, True))
    return values, abs(values)


def _batch_normalization(held: Held, x: Any, mean: Any, var: Any, beta: Any, gamma: Any) -> Both:
    length = sqrt(var + held(1e-3))
    values = (x - mean) / length * gamma + beta
    return values, abs((x - mean) / length * gamma) + abs(beta)


def _normalized(held: Held, x: Any, gamma: Any, beta: Any) -> Both:
    mean = total(x, 0) / len(x)
    length = sqrt(total((x - mean) ** 2, 0) / len(x) + held(1e-3))
    # The mean is rounded before it is taken away.
    return (x - mean) / length * gamma + beta, (abs(x) + abs(mean)) / length * abs(gamma) + abs(beta)


def _batch_var(held: Held, x: Any, gamma: Any, beta: Any) -> Both:
    values = total((x - total(x, 0) / len(x)) ** 2, 0) / len(x)
    return values, values


def _inside(held: Held, p: Any) -> Any:
    low, high = held.bounds
    return np.minimum(np.maximum(p, low), high)


def _crossentropy(held: Held, outputs: Any, targets: Any) -> Both:
    logs = log(_inside(held, outputs / total(outputs, -1, True)))
    # What the quotient was rounded by is the same in its logarithm.
    return -total(targets * logs, -1), total(targets * (1 + abs(logs)), -1)


def _of_logits(held: Held, logits: Any, targets: Any) -> Both:
    off = logits - logits.max(-1, keepdims=True)
    best = np.argmax(logits, -1)
    rest = exp(off)
    np.put_along_axis(rest, best[..., None], mpf(0), -1)
    whole = log1p(total(rest, -1, True))
    return total(targets * (whole - off), -1), total(targets * (whole + abs(off)), -1)


def _of_logits_slopes(held: Held, weights: Any, logits: Any, targets: Any) -> list[Both]:
    y, w = softmax(logits), weights[..., None]
    # The exponents are rounded differences.
    sizes = y * (1 + abs(logits - logits.max(-1, keepdims=True)))
    return [(w * (y - targets), abs(w) * (sizes + targets))]


def _hot(labels: Any, classes: int) -> Any:
    return exact(np.eye(classes)[labels])


def _sparse(truth: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *given: truth(*given[:-1], _hot(given[-1], given[-2].shape[-1]))


def _sparse_crossentropy(held: Held, outputs: Any, targets: Any) -> Both:
    values, magnitudes = _of_logits(held, log(_inside(held, outputs)), targets)
    return values, magnitudes + 1 + total(targets * abs(log(outputs)), -1)


def _ctc(held: Held, outputs: Any, labels: Any, steps: Any, counts: Any) -> Both:
    """The sum over all paths, in probabilities, which mpmath can't underflow."""
    # float16 is computed in float32.
    epsilon = Held("float32" if held.dtype == "float16" else held.dtype)(config.epsilon())
    costs = []
    for y, row in zip(outputs + epsilon, labels):
        y = y / total(y, -1, True)
        blank = y.shape[-1] - 1
        states = [blank, *[state for label in row for state in (int(label), blank)]]
        paths = [y[0][states[0]], y[0][states[1]], *[mpf(0)] * (len(states) - 2)]
        for now in y[1:]:
            paths = [
                now[state]
                * (
                    paths[i]
                    + (paths[i - 1] if i else 0)
                    + (paths[i - 2] if i > 1 and state not in (blank, states[i - 2]) else 0)
                )
                for i, state in enumerate(states)
            ]
        costs.append([-MP.log(paths[-1] + paths[-2])])
    values = np.array(costs, object)
    # Each step adds a logarithm to logarithms.
    return values, values + outputs.shape[1]


def _spelled(random: np.random.Generator, dtype: str) -> list[Array]:
    rows, steps, longest, classes = 2, 6, 2, 4
    outputs = random.dirichlet(np.ones(classes), (rows, steps)).astype(dtype)
    labels = random.integers(0, classes - 1, (rows, longest)).astype("int32")
    return [outputs, labels, np.full((rows, 1), steps, "int32"), np.full((rows, 1), longest, "int32")]


def _made(
    name: str, label: str, graph: Any, operands: Any, truth: Any, slopes: Any = "steps", **more: Any
) -> ArrayFunction:
    slopes = by_steps(more.get("fixed", 99))(truth) if slopes == "steps" else slopes
    return ArrayFunction(name, label, graph, operands, truth, slopes, **more)


LONG = uniform(0, 0.9, (70_000,))
ROWS = uniform(0, 0.2, (20_000, 3))
COLUMN = uniform(0, 0.2, (20_000, 1))

FUNCTIONS = [
    _made("sum", "5 terms", lambda x: K.sum(x, -1), wide((4, 5)), _sum(-1), _even(-1)),
    _made("sum", "70,000 terms", lambda x: K.sum(x), LONG, _sum(None), None),
    _made("sum", "20,000 rows", lambda x: K.sum(x, 0), ROWS, _sum(0), None),
    _made("mean", "5 terms", lambda x: K.mean(x, -1), wide((4, 5)), _mean(-1), _even(-1, True)),
    _made("mean", "70,000 terms", lambda x: K.mean(x), LONG, _mean(None), None),
    _made("cumsum", "7 terms", lambda x: K.cumsum(x), wide((7, 3)), _cumsum, _cumsum_slopes),
    _made("cumsum", "20,000 terms", lambda x: K.cumsum(x), COLUMN, _cumsum, _cumsum_slopes),
    _made("prod", "6 factors", lambda x: K.prod(x, -1), uniform(0.5, 2, (4, 6)), _prod),
    _made("prod", "200 factors", lambda x: K.prod(x, -1), uniform(0.9, 1.1, (4, 200)), _prod, None),
    _made("cumprod", "6 factors", lambda x: K.cumprod(x), uniform(0.5, 2, (6, 4)), _cumprod),
    _made("cumprod", "200 factors", lambda x: K.cumprod(x), uniform(0.9, 1.1, (200, 4)), _cumprod, None),
    _made("var", "", lambda x: K.var(x, -1), wide((3, 6)), _var),
    _made("std", "", lambda x: K.std(x, -1), wide((3, 6)), _std),
    _made("logsumexp", "", lambda x: K.logsumexp(x, -1), uniform(-9, 9, (4, 5)), _logsumexp),
    _made("softmax", "", lambda x: K.softmax(x), uniform(-3, 3, (4, 5)), _softmax, _softmax_slopes),
    _made("softmax", "far apart", lambda x: K.softmax(x), uniform(-60, 60, (4, 5)), _wide_softmax, None),
    _made("l2_normalize", "", lambda x: K.l2_normalize(x, -1), wide((3, 4)), _l2_normalize),
    _made(
        "batch_normalization",
        "",
        lambda x, m, v, b, g: K.batch_normalization(x, m, v, b, g),
        uniform(0.25, 2, (4, 3), (3,), (3,), (3,), (3,)),
        _batch_normalization,
    ),
    _made(
        "normalize_batch_in_training",
        "",
        lambda x, g, b: K.normalize_batch_in_training(x, g, b, [0])[0],
        _batch,
        _normalized,
        None,
    ),
    _made(
        "normalize_batch_in_training",
        "variance",
        lambda x, g, b: K.normalize_batch_in_training(x, g, b, [0])[2],
        _batch,
        _batch_var,
        None,
    ),
    _made(
        "categorical_crossentropy",
        "",
        lambda o, t: K.categorical_crossentropy(t, o),
        _classified(0.05, 0.95),
        _crossentropy,
        fixed=1,
    ),
    _made(
        "categorical_crossentropy",
        "logits",
        lambda x, t: K.categorical_crossentropy(t, x, from_logits=True),
        _classified(-6, 6),
        _of_logits,
        _of_logits_slopes,
        fixed=1,
    ),
    _made(
        "categorical_crossentropy",
        "sure logits",
        lambda x, t: K.categorical_crossentropy(t, x, from_logits=True),
        _classified(-2, 2, 9),
        _of_logits,
        _of_logits_slopes,
        fixed=1,
    ),
    _made(
        "sparse_categorical_crossentropy",
        "",
        lambda o, t: K.sparse_categorical_crossentropy(t, o),
        _labelled(0.05, 0.95),
        _sparse(_sparse_crossentropy),
        fixed=1,
    ),
    _made(
        "sparse_categorical_crossentropy",
        "logits",
        lambda x, t: K.sparse_categorical_crossentropy(t, x, from_logits=True),
        _labelled(-6, 6),
        _sparse(_of_logits),
        _sparse(_of_logits_slopes),
        fixed=1,
    ),
    _made(
        "ctc_batch_cost",
        "",
        lambda o, t, s, c: K.ctc_batch_cost(t, o, s, c),
        _spelled,
        _ctc,
        fixed=1,
    ),
    _made("dot", "2,000 terms", lambda x, y: K.dot(x, y), wide((3, 2000), (2000, 4)), linear_in_each(np.dot)[0], None),
]

# Of the parity suite's cases, those of functions that are linear in each operand.
LINEAR = (
    "dot",
    "batch_dot",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv2d_transpose",
    "conv3d_transpose",
    "depthwise_conv2d",
    "separable_conv1d",
    "separable_conv2d",
    "local_conv1d",
    "local_conv2d",
    "pool2d",
    "pool3d",
)


def _linear_case(case: Case) -> ArrayFunction:
    # Their shapes are drawn once, so that every trial is another feed of the same function.
    drawn = (trial(case, "float32", np.random.default_rng(seed), "none").feeds for seed in range(100))
    shapes = next([feed.shape for feed in feeds] for feeds in drawn if all(feed.size for feed in feeds))
    truth, slopes = linear_in_each(case.expected)
    return ArrayFunction(case.function, case.label, case.graph, wide(*shapes), truth, slopes)


def linear() -> list[ArrayFunction]:
    """The parity suite's cases of linear functions, with operands of this suite's."""
    return [
        _linear_case(case)
        for case in [*networks.CASES, *windows.CASES]
        if case.function in LINEAR
        and all(operand.values == "real" and not operand.sparse for operand in case.operands)
        and set(FLOATS) <= set(case.dtypes)
        and not (case.function.startswith("pool") and "max" in case.label)
    ]


def functions() -> list[ArrayFunction]:
    """All that K has."""
    return [one for one in [*FUNCTIONS, *linear()] if one.there]
