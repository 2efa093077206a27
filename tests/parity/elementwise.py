"""Cases of elementwise functions: arithmetic, comparison, casts, activations, operators of tensors."""

from __future__ import annotations

import numpy as np
from helpers.arrays import saturated

from kernelk import backend as K

from .case import ALL, FLOATS, INTEGERS, NUMBERS, Case, always, flags, floating, numeric, real


def _one(function, graph, expected, dtypes=NUMBERS, gives=floating, kinds=("real", "edges"), note=""):
    """A function of one tensor: of a matrix that may be empty and of a scalar, in each kind of values."""
    made = [(kind, real("Ab", kind)) for kind in kinds] + [("scalar", real("", kinds[0]))]
    # numpy's own functions give a half for the smallest integers.
    numpys = (lambda x: expected(x.astype("float64"))) if gives is floating else expected
    return [Case(function, note + label, graph, numpys, [operand], dtypes, gives) for label, operand in made]


def _two(function, graph, expected, dtypes=NUMBERS, gives=lambda dtype: dtype, kinds=("real", "edges"), note=""):
    """A function of two tensors: of one shape, broadcast, with a scalar."""
    made = [
        Case(function, note + kind, graph, expected, [real("Ab", kind), real("Ab", kind)], dtypes, gives)
        for kind in kinds
    ]
    first = kinds[0]
    pairs = {"broadcast": ("a1c", "1bc"), "ranks": ("abc", "c"), "scalar": ("", "ab"), "scalars": ("", "")}
    for label, (left, right) in pairs.items():
        operands = [real(left, first), real(right, first)]
        made.append(Case(function, note + label, graph, expected, operands, dtypes, gives))
    return made


def _sigmoid(x):
    return np.where(np.isnan(x), np.nan, np.exp(-np.logaddexp(0, -x)))


def _elu(alpha):
    return lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _relu(alpha, top, threshold):
    def expected(x):
        limited = x if top is None else np.clip(x, 0, top)
        return np.where(x >= threshold, limited, alpha * (x - threshold))

    return expected


def _floor_divide(x, y):
    if x.dtype.kind in "iu":
        safe = np.where(y == 0, np.ones_like(y), y)
        minus_one = safe == (-1 if x.dtype.kind == "i" else 0)
        quotient = np.floor_divide(x, np.where(minus_one, np.ones_like(y), safe))
        return np.where(y == 0, np.zeros_like(x), np.where(minus_one, np.negative(x), quotient))
    return np.where(y == 0, x / y, np.floor(x / y))


def _mod(x, y):
    if x.dtype.kind in "iu":
        safe = np.where((y == 0) | (y == (-1 if x.dtype.kind == "i" else 0)), np.ones_like(y), y)
        return np.mod(x, safe)
    return np.mod(x, y)


ACTIVATIONS = [
    *_one("relu", lambda x: K.relu(x), lambda x: np.maximum(x, 0)),
    *_one("relu", lambda x: K.relu(x, alpha=0.3), _relu(0.3, None, 0), FLOATS, note="alpha=0.3, "),
    *_one(
        "relu", lambda x: K.relu(x, max_value=1.5), lambda x: np.minimum(np.maximum(x, 0), 1.5), note="max_value=1.5, "
    ),
    *_one(
        "relu",
        lambda x: K.relu(x, 0.1, 2.0, 0.5),
        _relu(0.1, 2.0, 0.5),
        FLOATS,
        kinds=("real",),
        note="0.1, 2.0, 0.5, ",
    ),
    *_one("elu", lambda x: K.elu(x), _elu(1)),
    *_one("elu", lambda x: K.elu(x, 0.6), _elu(0.6), FLOATS, kinds=("extreme",), note="0.6, "),
    *_one("sigmoid", lambda x: K.sigmoid(x), _sigmoid, kinds=("real", "edges", "extreme")),
    *_one("hard_sigmoid", lambda x: K.hard_sigmoid(x), lambda x: np.clip(x * 0.2 + 0.5, 0, 1)),
    *_one("tanh", lambda x: K.tanh(x), np.tanh, kinds=("real", "edges", "extreme")),
    *_one("softplus", lambda x: K.softplus(x), lambda x: np.logaddexp(x, 0), kinds=("real", "edges", "extreme")),
    *_one("softsign", lambda x: K.softsign(x), lambda x: x / (np.abs(x) + 1), FLOATS),
    *_one("softsign", lambda x: K.softsign(x), lambda x: x / (np.abs(x) + 1), INTEGERS, kinds=("real",)),
]

UNARY = [
    *_one("abs", lambda x: K.abs(x), lambda x: np.abs(x.astype("int32") if x.dtype == bool else x), ALL, numeric),
    *_one("sqrt", lambda x: K.sqrt(x), lambda x: np.sqrt(np.maximum(x, 0.0))),
    *_one("exp", lambda x: K.exp(x), np.exp, FLOATS),
    *_one("exp", lambda x: K.exp(x), np.exp, INTEGERS, kinds=("real",)),
    *_one("log", lambda x: K.log(x), np.log),
    *_one("square", lambda x: K.square(x), lambda x: x * x, NUMBERS, numeric),
    *_one("square", lambda x: K.square(x), lambda x: x.astype("int32"), ["bool"], numeric),
    *_one(
        "sign",
        lambda x: K.sign(x),
        lambda x: np.sign(x.astype("int32") if x.dtype == bool else x),
        ALL,
        numeric,
    ),
    *_one("round", lambda x: K.round(x), np.rint, FLOATS, kinds=("real", "halves", "edges")),
    *_one("round", lambda x: K.round(x), lambda x: x, INTEGERS, numeric),
    *_one("sin", lambda x: K.sin(x), np.sin, kinds=("real",)),
    *_one("cos", lambda x: K.cos(x), np.cos, kinds=("real",)),
    *_one("sin", lambda x: K.sin(x), np.sin, FLOATS, kinds=("nonfinite",), note="with "),
    *_one("cos", lambda x: K.cos(x), np.cos, FLOATS, kinds=("nonfinite",), note="with "),
    *_one("clip", lambda x: K.clip(x, 1, 3), lambda x: np.clip(x, 1, 3), NUMBERS, numeric, note="1, 3, "),
    *_one("clip", lambda x: K.clip(x, -0.5, 1.25), lambda x: np.clip(x, -0.5, 1.25), FLOATS, note="-0.5, 1.25, "),
    *_one("clip", lambda x: K.clip(x, None, 2), lambda x: np.minimum(x, 2), NUMBERS, numeric, note="None, 2, "),
    *_one("clip", lambda x: K.clip(x, 2, None), lambda x: np.maximum(x, 2), NUMBERS, numeric, note="2, None, "),
    *_one(
        "clip", lambda x: K.clip(x, 3, 1), lambda x: np.full_like(x, 3) + x * 0, FLOATS, kinds=("real",), note="3, 1, "
    ),
    *_one("identity", lambda x: K.identity(x), lambda x: x, ALL, lambda dtype: dtype),
    *_one("stop_gradient", lambda x: K.stop_gradient(x), lambda x: x, ALL, lambda dtype: dtype),
    *_one(
        "print_tensor", lambda x: K.print_tensor(x, "seen: "), lambda x: x, ALL, lambda dtype: dtype, kinds=("real",)
    ),
    *_one("to_dense", lambda x: K.to_dense(x), lambda x: x, ALL, lambda dtype: dtype),
    *_one("pattern_broadcast", lambda x: K.pattern_broadcast(x, (True, False)), lambda x: x, ALL, lambda d: d),
    *_one("cast_to_floatx", lambda x: K.cast_to_floatx(x), lambda x: x, ALL, always("float32")),
]

BINARY = [
    *_two("maximum", lambda x, y: K.maximum(x, y), np.maximum),
    *_two("minimum", lambda x, y: K.minimum(x, y), np.minimum),
    *_two("equal", lambda x, y: K.equal(x, y), np.equal, ALL, always("bool")),
    *_two("not_equal", lambda x, y: K.not_equal(x, y), np.not_equal, ALL, always("bool")),
    *_two("greater", lambda x, y: K.greater(x, y), np.greater, NUMBERS, always("bool")),
    *_two("greater_equal", lambda x, y: K.greater_equal(x, y), np.greater_equal, NUMBERS, always("bool")),
    *_two("less", lambda x, y: K.less(x, y), np.less, NUMBERS, always("bool")),
    *_two("less_equal", lambda x, y: K.less_equal(x, y), np.less_equal, NUMBERS, always("bool")),
    Case("pow", "whole", lambda x, a: K.pow(x, a), np.power, [real("Ab"), real("Ab", "small")], NUMBERS),
    Case("pow", "edges", lambda x, a: K.pow(x, a), np.power, [real("ab", "edges"), real("b", "small")], INTEGERS),
    Case("pow", "positive", lambda x, a: K.pow(x, a), np.power, [real("ab", "positive"), real("ab")], FLOATS, scale=2),
    Case("pow", "of negatives", lambda x, a: K.pow(x, a), np.power, [real("ab", "halves"), real("ab", "halves")]),
    Case("pow", "nonfinite", lambda x, a: K.pow(x, a), np.power, [real("ab", "nonfinite"), real("b", "small")]),
    Case("pow", "number", lambda x: K.pow(x, 2), lambda x: x * x, [real("Ab")], NUMBERS),
    Case("pow", "half", lambda x: K.pow(x, 0.5), np.sqrt, [real("Ab", "positive")]),
    Case("maximum", "number", lambda x: K.maximum(x, 1), lambda x: np.maximum(x, 1), [real("Ab")], NUMBERS),
    Case("equal", "number", lambda x: K.equal(x, 1), lambda x: x == 1, [real("Ab")], NUMBERS, always("bool")),
    Case(
        "maximum",
        "integer with float",
        lambda x, y: K.maximum(x, y),
        np.maximum,
        [real("ab", dtype="int32"), real("ab")],
        FLOATS,
    ),
    Case(
        "less",
        "small with large integers",
        lambda x, y: K.less(x, y),
        np.less,
        [real("ab", "edges", "int8"), real("ab", "edges", "uint32")],
        ["int64"],
        always("bool"),
    ),
]

OPERATORS = [
    *_two("Tensor", lambda x, y: x + y, np.add, note="x + y, "),
    *_two("Tensor", lambda x, y: x - y, np.subtract, note="x - y, "),
    *_two("Tensor", lambda x, y: x * y, np.multiply, note="x * y, "),
    *_two("Tensor", lambda x, y: x / y, np.divide, FLOATS, kinds=("real", "nonfinite", "halves"), note="x / y, "),
    *_two(
        "Tensor",
        lambda x, y: x / y,
        lambda x, y: x.astype("float64") / y,
        INTEGERS,
        always("float32"),
        kinds=("real",),
        note="x / y, ",
    ),
    *_two("Tensor", lambda x, y: x // y, _floor_divide, kinds=("halves",), note="x // y, "),
    *_two("Tensor", lambda x, y: x % y, _mod, kinds=("halves",), note="x % y, "),
    *_two("Tensor", lambda x, y: x // y, _floor_divide, INTEGERS, kinds=("edges",), note="edges, x // y, "),
    *_two("Tensor", lambda x, y: x % y, _mod, INTEGERS, kinds=("edges",), note="edges, x % y, "),
    *_two("Tensor", lambda x, y: x & y, np.logical_and, ["bool"], kinds=("real",), note="x & y, "),
    *_two("Tensor", lambda x, y: x | y, np.logical_or, ["bool"], kinds=("real",), note="x | y, "),
    *_two("Tensor", lambda x, y: x < y, np.less, NUMBERS, always("bool"), note="x < y, "),
    *_two("Tensor", lambda x, y: x >= y, np.greater_equal, NUMBERS, always("bool"), note="x >= y, "),
    *_one("Tensor", lambda x: -x, np.negative, NUMBERS, numeric, note="-x, "),
    *_one("Tensor", lambda x: ~x, np.logical_not, ["bool"], lambda dtype: dtype, kinds=("real",), note="~x, "),
    *_one("Tensor", lambda x: 1 - x, lambda x: 1 - x, [*FLOATS, *INTEGERS], numeric, note="1 - x, "),
    *_one("Tensor", lambda x: x * 2 + 1, lambda x: x * 2 + 1, NUMBERS, numeric, note="x * 2 + 1, "),
    *_one("Tensor", lambda x: x * 0.5, lambda x: x * 0.5, NUMBERS, floating, kinds=("real",), note="x * 0.5, "),
    Case("Tensor", "bool + integer", lambda x, y: x + y, np.add, [flags("ab"), real("ab")], NUMBERS),
    Case("Tensor", "x[1:]", lambda x: x[1:], lambda x: x[1:], [real("Ab")], ALL),
    Case("Tensor", "x[::-1, -1]", lambda x: x[::-1, -1], lambda x: x[::-1, -1], [real("Ab")], ALL),
    Case("Tensor", "x[0]", lambda x: x[0], lambda x: x[0], [real("ab")], ALL),
    Case("Tensor", "x[..., None]", lambda x: x[..., None], lambda x: x[..., None], [real("Ab")], ALL),
    Case("Tensor", "x[:, ::2]", lambda x: x[:, ::2], lambda x: x[:, ::2], [real("aB")], ALL),
    Case("Tensor", "x[-2:, None, :1]", lambda x: x[-2:, None, :1], lambda x: x[-2:, None, :1], [real("aB")], ALL),
    Case("Tensor", "x[7:2:-2]", lambda x: x[7:2:-2], lambda x: x[7:2:-2], [real("9b")], ALL),
]


def _casts():
    for target in ALL:
        for label, dtypes in (("of floats", FLOATS), ("of integers", (*INTEGERS, "bool"))):

            def expected(x, target=target):
                return saturated(x, target) if x.dtype.kind == "f" and target in INTEGERS else x.astype(target)

            yield Case(
                "cast",
                f"{label} to {target}",
                lambda x, target=target: K.cast(x, target),
                expected,
                [real("Ab", "edges")],
                dtypes,
                always(target),
            )
        if target in ("int8", "int32", "int64"):
            yield Case(
                "cast",
                f"truncates to {target}",
                lambda x, target=target: K.cast(x, target),
                lambda x, target=target: np.trunc(x).astype(target),
                [real("Ab")],
                FLOATS,
                always(target),
            )


def _phases():
    for phase in (None, 0, 1):
        train = phase == 1
        for function in ("in_train_phase", "in_test_phase"):
            first = train == (function == "in_train_phase")
            yield Case(
                function,
                f"learning phase {phase}",
                lambda x, y, function=function: getattr(K, function)(x, lambda: y),
                lambda x, y, first=first: x if first else y,
                [real("ab"), real("ab")],
                ALL,
                phase=phase,
            )
    for function in ("in_train_phase", "in_test_phase"):
        for training in (0, 1):
            yield Case(
                function,
                f"training={training}",
                lambda x, y, function=function, training=training: getattr(K, function)(x, y, training=training),
                lambda x, y, first=(training == (function == "in_train_phase")): x if first else y,
                [real("Ab"), real("Ab")],
                ALL,
            )
        yield Case(
            function,
            "training is a tensor",
            lambda x, y, t, function=function: getattr(K, function)(x, y, training=t),
            lambda x, y, t, train=(function == "in_train_phase"): x if bool(t) == train else y,
            [real("Ab"), real("Ab"), flags("")],
            ALL,
        )


CASES = [*ACTIVATIONS, *UNARY, *BINARY, *OPERATORS, *_casts(), *_phases()]
