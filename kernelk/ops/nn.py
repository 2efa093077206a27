"""Activations, losses, dropout, and the learning phase that decides which branch runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..errors import ArgumentError
from ..graph.nodes import LearningPhase, Tensor
from ..graph.rules import RULES, Rule, apply
from ..graph.state import current_state
from ..source import caller
from . import elementwise, random
from .dtypes import as_tensor, floating, in_float32, operands
from .dtypes import cast as cast_to
from .operators import binary
from .shapes import axis_of, broadcast, scalar
from .shaping import dims_of, shape


def learning_phase() -> int | LearningPhase:
    """0 or 1 if it was set; else the placeholder that is 0 unless a call feeds 1."""
    state = current_state()
    if state.fixed_phase is not None:
        return state.fixed_phase
    if state.phase_placeholder is None:
        state.phase_placeholder = LearningPhase("placeholder", (), {}, (), "bool", caller(), "keras_learning_phase")
    return state.phase_placeholder


def set_learning_phase(value: int) -> None:
    """Fixes the learning phase to 0 (test) or 1 (train) for graphs written from now on. Raises ArgumentError."""
    if value not in (0, 1):
        raise ArgumentError(
            f"set_learning_phase: {value!r} isn't allowed", allowed="the learning phase is 0 (test) or 1 (train)"
        )
    current_state().fixed_phase = int(value)


def in_train_phase(x: Any, alt: Any, training: Any = None) -> Any:
    """`x` in the train phase, else `alt`; either may be a function without arguments. Only the chosen one is computed.

    `training` is None (the learning phase), 0, 1 or a bool tensor of no axes.
    """
    if training is None:
        training = learning_phase()
    if not isinstance(training, Tensor):
        chosen = x if training else alt
        chosen = chosen() if callable(chosen) else chosen
        return as_tensor(chosen) if isinstance(chosen, Tensor) else chosen
    first, second = (value() if callable(value) else value for value in (x, alt))
    first, second = operands(first, second, partner="bool")
    if isinstance(training, LearningPhase):
        return apply("phase_select", first, second)
    return apply("select", cast_to(training, "bool"), first, second)


def in_test_phase(x: Any, alt: Any, training: Any = None) -> Any:
    """`x` in the test phase, `alt` otherwise."""
    return in_train_phase(alt, x, training)


def _infer_phase_select(x: Any, alt: Any) -> Any:
    if x.shape == alt.shape:
        return x.shape, x.dtype
    if len(x.shape) != len(alt.shape):
        return broadcast(x.shape, alt.shape, "in_train_phase"), x.dtype
    return tuple(m if m == n else None for m, n in zip(x.shape, alt.shape)), x.dtype


def softmax(x: Any, axis: int = -1) -> Tensor:
    """exp(x) normalised to a sum of 1 along `axis`."""
    x = floating(as_tensor(x))
    return apply("softmax", x, axis=axis_of(axis, x.ndim, "softmax"))


def relu(x: Any, alpha: float = 0.0, max_value: float | None = None, threshold: float = 0.0) -> Tensor:
    """`x` from `threshold` up, at most `max_value` if that is given; alpha * (x - threshold) below it."""
    x = floating(as_tensor(x))
    alpha, max_value, threshold = map(_own_number, (alpha, max_value, threshold))
    plain = isinstance(alpha, (int, float)) and alpha == 0 and threshold == 0
    if plain:
        y = apply("relu", x)
        return elementwise.minimum(y, max_value) if max_value is not None else y
    if x.dtype == "float16" and all(isinstance(n, (int, float, type(None))) for n in (alpha, max_value, threshold)):
        return _rounded_once(relu, x, alpha, max_value, threshold)
    above = binary("less_equal", threshold, x)
    top = x if max_value is None else elementwise.minimum(elementwise.maximum(x, 0.0), max_value)
    below = binary("multiply", binary("subtract", x, threshold), alpha)
    return apply("select", above, *operands(top, below))


def _own_number(value: Any) -> Any:
    """One of numpy's numbers, or an array of one without axes, as Python's own; anything else as it is.

    Keras's layers keep their numbers as `K.cast_to_floatx` gives them.
    """
    return value.item() if isinstance(value, (np.number, np.ndarray)) and value.ndim == 0 else value


def _rounded_once(function: Callable[..., Tensor], x: Tensor, *numbers: Any) -> Tensor:
    """The function of float16, and of numbers as float16 has them, in float64: each step in float16 would round."""
    with np.errstate(over="ignore"):
        held = [number if number is None else float(np.float16(number)) for number in numbers]
    return cast_to(function(cast_to(x, "float64"), *held), "float16")


def sigmoid(x: Any) -> Tensor:
    """1 / (1 + exp(-x)), elementwise."""
    return apply("sigmoid", floating(as_tensor(x)))


def tanh(x: Any) -> Tensor:
    """Hyperbolic tangent, elementwise."""
    return apply("tanh", floating(as_tensor(x)))


def elu(x: Any, alpha: float = 1.0) -> Tensor:
    """x above 0, alpha * (exp(x) - 1) below."""
    values, alpha = floating(as_tensor(x)), _own_number(alpha)
    if values.dtype == "float16" and isinstance(alpha, (int, float)) and alpha != 1:
        return _rounded_once(elu, values, alpha)
    y = apply("elu", values)
    if isinstance(alpha, (int, float)) and alpha == 1:
        return y
    return apply("select", apply("less", scalar(0, values.dtype), values), values, y * alpha)


def softplus(x: Any) -> Tensor:
    """log(exp(x) + 1), without overflow, and to the last digits where it is small."""
    return apply("softplus", floating(as_tensor(x)))


def softsign(x: Any) -> Tensor:
    """x / (abs(x) + 1)."""
    return apply("softsign", floating(as_tensor(x)))


def hard_sigmoid(x: Any) -> Tensor:
    """0.2 x + 0.5, kept between 0 and 1."""
    values = floating(as_tensor(x))
    if values.dtype == "float16":
        return _rounded_once(_hard_sigmoid, values, 0.2)
    return _hard_sigmoid(values, 0.2)


def _hard_sigmoid(x: Tensor, slope: float) -> Tensor:
    return elementwise.clip(x * slope + 0.5, 0.0, 1.0)


def switch(condition: Any, then_expression: Any, else_expression: Any) -> Tensor:
    """`then_expression` where `condition` holds, `else_expression` elsewhere; either may be a function of no argument.

    A condition of fewer axes stands for whole blocks of the last ones. Both branches are computed.
    """
    first, second = (value() if callable(value) else value for value in (then_expression, else_expression))
    first, second = operands(first, second, partner="bool")
    chosen = cast_to(as_tensor(condition), "bool")
    rank = max(first.ndim, second.ndim)
    if chosen.ndim and chosen.ndim < rank:
        dims = [[0, i] if n is None else n for i, n in enumerate(chosen.shape)] + [1] * (rank - chosen.ndim)
        chosen = apply("reshape", chosen, dims=dims)
    return apply("select", chosen, first, second)


def dropout(x: Any, level: float, noise_shape: Any = None, seed: int | None = None) -> Tensor:
    """Sets a share `level` of the elements of `x` (of the mask's, if `noise_shape` is given) to 0, scales up the rest.

    The mask is drawn once a call. A length of `noise_shape` is an int, None for `x`'s own, or an integer tensor.
    Raises ArgumentError unless 0 <= level < 1.
    """
    x, level = floating(as_tensor(x)), _own_number(level)
    if isinstance(level, (int, float)) and not 0 <= level < 1:
        raise ArgumentError(f"dropout: level {level} isn't allowed", allowed="it must be in [0, 1)")
    if noise_shape is None:
        noise_shape = shape(x)
    elif isinstance(noise_shape, (tuple, list)):
        noise_shape = [shape(x)[i] if n is None else n for i, n in enumerate(noise_shape)]
    dims, references = dims_of(noise_shape, 0, "dropout")
    uniform = random.draw("uniform", x.dtype, dims, references, seed)
    kept = cast_to(binary("less_equal", level, uniform), x.dtype)
    return binary("multiply", x, kept) / (1.0 - level)


def _softmax(x: Tensor, axis: int) -> Tensor:
    shifted = x - apply("max", x, axes=[axis], keepdims=True)
    powers = apply("exp", shifted)
    return powers / apply("sum", powers, axes=[axis], keepdims=True)


def _log_softmax(x: Tensor, axis: int) -> Tensor:
    shifted = x - apply("max", x, axes=[axis], keepdims=True)
    # One of the largest, whose power is 1, is left out of the sum: where it is nearly all, the others decide.
    zero, one = scalar(0, x.dtype), scalar(1, x.dtype)
    largest = apply("equal", shifted, zero)
    powers = apply("select", largest, zero, apply("exp", shifted))
    count = apply("sum", apply("select", largest, one, zero), axes=[axis], keepdims=True)
    return shifted - apply("log1p", apply("sum", powers, axes=[axis], keepdims=True) + (count - 1.0))


def _vjp_softmax(node: Tensor, g: Tensor) -> list[Tensor]:
    weighted = g * node
    return [weighted - node * apply("sum", weighted, axes=[node.attrs["axis"]], keepdims=True)]


def _vjp_log_softmax(node: Tensor, g: Tensor) -> list[Tensor]:
    total = apply("sum", g, axes=[node.attrs["axis"]], keepdims=True)
    # The power of a nearly certain class has lost the digits of what it is less than 1; g - total there is exact.
    sure = apply("less", scalar(-0.7, node.dtype), node)
    return [apply("select", sure, (g - total) - apply("expm1", node) * total, g - apply("exp", node) * total)]


def _towards_zero(x: Tensor) -> Tensor:
    """exp(-abs(x)), which can't overflow."""
    return apply("exp", -apply("abs", x))


def _sigmoid(x: Tensor) -> Tensor:
    small = _towards_zero(x)
    above = apply("select", apply("less", x, scalar(0, x.dtype)), small, scalar(1, x.dtype))
    return above / (small + 1.0)


def _softplus(x: Tensor) -> Tensor:
    return apply("maximum", x, scalar(0, x.dtype)) + apply("log1p", _towards_zero(x))


def _log1p(x: Tensor) -> Tensor:
    # log of the rounded sum, times what the rounding took: both errors are the same share (Kahan, HP-15C handbook).
    total = x + 1.0
    one, infinite = scalar(1, x.dtype), scalar(np.inf, x.dtype)
    lost = apply("equal", total, one)
    whole = apply("log", total)
    exact = whole * (x / apply("select", lost, one, total - 1.0))
    return apply("select", lost, x, apply("select", apply("less", total, infinite), exact, whole))


def _expm1(x: Tensor) -> Tensor:
    # By way of tanh(x / 2), whose digits all hold near 0; far above, exp(x) - 1 itself holds them.
    far = apply("less", scalar(1, x.dtype), x)
    half = apply("tanh", apply("select", far, scalar(0, x.dtype), x) * 0.5)
    near = (half + half) / (1.0 - half)
    # Where x / 2 might be subnormal, which some processors are told to take for 0, the result is x.
    tiny = apply("less", apply("abs", x), scalar(1e-20, x.dtype))
    return apply("select", far, apply("exp", x) - 1.0, apply("select", tiny, x, near))


def _elu(x: Tensor) -> Tensor:
    zero = scalar(0, x.dtype)
    return apply("select", apply("less_equal", zero, x), x, apply("expm1", apply("minimum", x, zero)))


def _vjp_elu(node: Tensor, g: Tensor) -> list[Tensor]:
    x = node.inputs[0]
    return [g * apply("exp", apply("minimum", x, scalar(0, x.dtype)))]


def _softsign(x: Tensor) -> Tensor:
    return x / (apply("abs", x) + 1.0)


def _vjp_softsign(node: Tensor, g: Tensor) -> list[Tensor]:
    # The quotient's rule would cancel far out.
    total = apply("abs", node.inputs[0]) + 1.0
    return [g / total / total]


def _same(x: Any, axis: int | None = None) -> Any:
    return x.shape, x.dtype


def _vjp_sigmoid(node: Tensor, g: Tensor) -> list[Tensor]:
    # Of x, since y * (1 - y) has no digits left where y is next to 1.
    return [g * apply("sigmoid_slope", node.inputs[0], node)]


def _sigmoid_slope(x: Tensor, y: Tensor | None = None) -> Tensor:
    small = _towards_zero(x)
    total = small + 1.0
    return small / (total * total)


def _vjp_softplus(node: Tensor, g: Tensor) -> list[Tensor]:
    return [apply("softplus_grad", g, node.inputs[0])]


def _softplus_grad(g: Tensor, x: Tensor) -> Tensor:
    return g * apply("sigmoid", x)


def _vjp_softplus_grad(node: Tensor, h: Tensor) -> list[Tensor]:
    g, x = node.inputs
    return [apply("softplus_grad", h, x), h * g * apply("sigmoid_slope", x, apply("sigmoid", x))]


def _tanh_slope(x: Tensor) -> Tensor:
    return _sigmoid_slope(x * 2.0) * 4.0


def _vjp_sigmoid_slope(node: Tensor, g: Tensor) -> list[Tensor | None]:
    x, _ = node.inputs
    # y is no variable of its own. 1 - 2 y is -tanh(x / 2), without the cancellation near 0.
    return [-g * node * apply("tanh", x * 0.5), None]


def _vjp_tanh_slope(node: Tensor, g: Tensor) -> list[Tensor]:
    return [g * node * (apply("tanh", node.inputs[0]) * -2.0)]


def _first(x: Any, *others: Any) -> Any:
    return x.shape, x.dtype


def _relu(x: Tensor) -> Tensor:
    return apply("maximum", x, scalar(0, x.dtype))


def _vjp_relu(node: Tensor, g: Tensor) -> list[Tensor]:
    # Of the result, so that an engine may fuse what comes before with it and keep nothing of it.
    return [apply("relu_grad", node, g)]


def _relu_grad(y: Tensor, g: Tensor) -> Tensor:
    return apply("select", apply("less", scalar(0, y.dtype), y), g, scalar(0, g.dtype))


def _vjp_relu_grad(node: Tensor, h: Tensor) -> list[Tensor | None]:
    return [None, apply("relu_grad", node.inputs[0], h)]


RULES["softmax"] = Rule(_same, _vjp_softmax, in_float32(_softmax))
RULES["log_softmax"] = Rule(_same, _vjp_log_softmax, in_float32(_log_softmax))
RULES["sigmoid"] = Rule(_same, _vjp_sigmoid, in_float32(_sigmoid))
RULES["softplus"] = Rule(_same, _vjp_softplus, in_float32(_softplus))
RULES["softplus_grad"] = Rule(_first, _vjp_softplus_grad, in_float32(_softplus_grad))
RULES["elu"] = Rule(_same, _vjp_elu, in_float32(_elu))
RULES["softsign"] = Rule(_same, _vjp_softsign, in_float32(_softsign))
RULES["log1p"] = Rule(_same, lambda node, g: [g / (node.inputs[0] + 1.0)], in_float32(_log1p))
RULES["expm1"] = Rule(_same, lambda node, g: [g * apply("exp", node.inputs[0])], in_float32(_expm1))
RULES["sigmoid_slope"] = Rule(_first, _vjp_sigmoid_slope, in_float32(_sigmoid_slope))
RULES["tanh_slope"] = Rule(_first, _vjp_tanh_slope, in_float32(_tanh_slope))
RULES["relu"] = Rule(_same, _vjp_relu, _relu)
RULES["relu_grad"] = Rule(_first, _vjp_relu_grad, _relu_grad)
# Not lowered: linearisation and gradients follow the branch of the call's phase.
RULES["phase_select"] = Rule(_infer_phase_select)
