"""The elementwise functions: what K computes, and the documented formula of it and of its slope in mpmath.

A formula gets `held`, which gives a constant as the dtype holds it, and one number of mpmath for each operand. It
returns the value; (value, sum of its terms' magnitudes) where that sum is the unit; or None for what isn't measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kernelk import backend as K
from kernelk import config

from .ulps import FORMATS, INFINITY, MP, NAN, mpf

ONE, ZERO = mpf(1), mpf(0)


@dataclass(frozen=True)
class Held:
    """Constants as a dtype holds them."""

    dtype: str

    def __call__(self, number: float) -> Any:
        return mpf(float(np.dtype(self.dtype).type(number)))

    @property
    def bounds(self) -> tuple[Any, Any]:
        """The least and the largest probability: epsilon, and what the dtype can tell from 1."""
        kind = np.dtype(self.dtype).type
        epsilon = kind(config.epsilon())
        return mpf(float(epsilon)), mpf(float(min(kind(1) - epsilon, np.nextafter(kind(1), kind(0)))))

    @property
    def step(self) -> Any:
        """The distance from 1 to the next number."""
        return MP.ldexp(ONE, 1 - FORMATS[self.dtype].digits)


@dataclass(frozen=True)
class Function:
    """An elementwise function of K. `slopes`: its derivatives, None for an operand that has none to measure.

    `points`: which inputs it is tried on; "numbers" for one operand, "pairs", "powers", "targets" or "chances" for two.
    `kinks`: numbers whose neighbours, and those of their negatives, are tried. `infinities`: whether these are tried.
    """

    name: str
    label: str
    graph: Callable[..., Any]
    value: Callable[..., Any]
    slopes: Sequence[Callable[..., Any] | None] = ()
    points: str = "numbers"
    kinks: Sequence[float] = ()
    infinities: bool = True

    @property
    def title(self) -> str:
        """How it is shown."""
        if self.name == "Tensor":
            return f"`{self.label}`"
        return f"`K.{self.name}`" + (f", {self.label}" if self.label else "")

    @property
    def there(self) -> bool:
        """Whether K has it."""
        return self.name == "Tensor" or hasattr(K, self.name)


def _expm1(x: Any) -> Any:
    return MP.expm1(x) if abs(x) < 1 else MP.exp(x) - 1


def _log1p(x: Any) -> Any:
    if x <= -1:
        return -INFINITY if x == -1 else NAN
    return x if MP.isinf(x) else MP.log1p(x)


def _log(x: Any) -> Any:
    if x <= 0:
        return -INFINITY if x == 0 else NAN
    return MP.log(x)


def _small(x: Any) -> Any:
    return MP.exp(-abs(x))


def sigmoid(x: Any) -> Any:
    return 1 / (1 + MP.exp(-x))


def softplus(x: Any) -> Any:
    return max(x, ZERO) + _log1p(_small(x))


def _between(low: Any, high: Any, x: Any) -> Any:
    return min(max(x, low), high)


def _inside(low: Any, high: Any, x: Any) -> Any:
    return ONE if low <= x <= high else ZERO


def _hard_sigmoid(held: Held, x: Any) -> Any:
    slope = held(0.2) * x
    value = slope + held(0.5)
    # Beyond a bound the sum is cut off, and what was rounded in it with it.
    return _between(ZERO, ONE, value), abs(slope) + held(0.5) if -1 < value < 2 else ONE


def _hard_slope(held: Held, x: Any) -> Any:
    value = held(0.2) * x + held(0.5)
    if min(abs(value), abs(value - 1)) < 2 * held.step:
        return None  # which side of the kink it is on is a matter of rounding
    return held(0.2) * _inside(ZERO, ONE, value)


def _relu(alpha: float, top: float, threshold: float) -> Callable[..., Any]:
    def value(held: Held, x: Any) -> Any:
        return min(x, held(top)) if x >= threshold else held(alpha) * (x - held(threshold))

    return value


def _relu_slope(alpha: float, top: float, threshold: float) -> Callable[..., Any]:
    def slope(held: Held, x: Any) -> Any:
        return _inside(-INFINITY, held(top), x) if x >= threshold else held(alpha)

    return slope


def _elu(alpha: float) -> Callable[..., Any]:
    return lambda held, x: x if x > 0 else held(alpha) * _expm1(x)


def _elu_slope(alpha: float) -> Callable[..., Any]:
    return lambda held, x: ONE if x > 0 else held(alpha) * MP.exp(x)


def _round(held: Held, x: Any) -> Any:
    return x if MP.isinf(x) else MP.nint(x)


def _sign(x: Any) -> Any:
    return mpf((x > 0) - (x < 0))


def _power(held: Held, x: Any, a: Any) -> Any:
    if a == 0 or x == 1:
        return ONE
    if x == 0:
        return None  # the sign of the zero counts
    if x < 0 and not MP.isint(a):
        return NAN
    return MP.exp(a * MP.log(abs(x))) * (-1 if x < 0 and int(a) % 2 else 1)


def _power_by_base(held: Held, x: Any, a: Any) -> Any:
    if x == 0 or (x < 0 and not MP.isint(a)):
        return None
    return a * MP.exp((a - 1) * MP.log(abs(x))) * (-1 if x < 0 and int(a - 1) % 2 else 1)


def _power_by_exponent(held: Held, x: Any, a: Any) -> Any:
    if x == 0 or (x < 0 and not MP.isint(a)):
        return None
    return MP.exp(a * MP.log(x)) * MP.log(x) if x > 0 else ZERO


def _quotient(held: Held, x: Any, y: Any) -> Any:
    # x / 0 hangs on the sign of the zero.
    return x / y if y else None


def _modulus(held: Held, x: Any, y: Any) -> Any:
    # Of a larger quotient mpmath's digits wouldn't tell which whole number it is below.
    if not y or (x and MP.mag(x) - MP.mag(y) > 150):
        return None
    return x - y * MP.floor(x / y), abs(y)


def _crossentropy(held: Held, t: Any, o: Any) -> Any:
    p = _between(*held.bounds, o)
    return _signed_sum(-t * _log(p), -(1 - t) * _log1p(-p))


def _crossentropy_slope(held: Held, t: Any, o: Any) -> Any:
    p = _between(*held.bounds, o)
    return _signed_sum(-t / p, (1 - t) / (1 - p)) if p == o else ZERO


def _crossentropy_target(held: Held, t: Any, o: Any) -> Any:
    p = _between(*held.bounds, o)
    return _signed_sum(-_log(p), _log1p(-p))


def _logits(held: Held, t: Any, x: Any) -> Any:
    value = t * softplus(-x) + (1 - t) * softplus(x)
    return value if t in (0, 1) else (value, max(x, ZERO) + abs(t * x) + _log1p(_small(x)))


def _logits_slope(held: Held, t: Any, x: Any) -> Any:
    if t in (0, 1):
        return sigmoid(x) if t == 0 else -sigmoid(-x)
    return _signed_sum(sigmoid(x), -t)


def _signed_sum(*terms: Any) -> Any:
    return sum(terms), sum(abs(term) for term in terms)


def _logaddexp(held: Held, x: Any, y: Any) -> Any:
    return _signed_sum(max(x, y), _log1p(_small(x - y)))


def _of(formula: Callable[..., Any]) -> Callable[..., Any]:
    """A formula without constants."""
    return lambda held, *operands: formula(*operands)


SQUARE = 0.5**0.5
# Where exp overflows or becomes subnormal, in one of the dtypes; and where 1 is lost beside it.
POWERS = (9.7, 11.09, 16.6, 17.3, 36.7, 87.33, 88.72, 103.9, 708.4, 709.78, 745.1)
ANGLES = (0.785398, 1.570796, 3.141593, 4.712389, 6.283185, 1e5)

FUNCTIONS = [
    Function("abs", "", lambda x: K.abs(x), _of(abs), [_of(_sign)]),
    Function(
        "sqrt",
        "",
        lambda x: K.sqrt(x),
        _of(lambda x: MP.sqrt(x) if x > 0 else ZERO),
        [_of(lambda x: None if x == 0 else 1 / (2 * MP.sqrt(x)) if x > 0 else ZERO)],
    ),
    Function("exp", "", lambda x: K.exp(x), _of(MP.exp), [_of(MP.exp)], kinks=POWERS),
    Function("log", "", lambda x: K.log(x), _of(_log), [_of(lambda x: 1 / x if x > 0 else None)], kinks=(1, SQUARE, 2)),
    Function("log1p", "", lambda x: K.log1p(x), _of(_log1p), [_of(lambda x: 1 / (1 + x) if x > -1 else None)]),
    Function("expm1", "", lambda x: K.expm1(x), _of(_expm1), [_of(MP.exp)], kinks=POWERS),
    Function("square", "", lambda x: K.square(x), _of(lambda x: x * x), [_of(lambda x: 2 * x)]),
    Function("sign", "", lambda x: K.sign(x), _of(_sign)),
    Function("round", "", lambda x: K.round(x), _round, kinks=(0.5, 1.5, 2.5)),
    Function("sin", "", lambda x: K.sin(x), _of(MP.sin), [_of(MP.cos)], kinks=ANGLES),
    Function("cos", "", lambda x: K.cos(x), _of(MP.cos), [_of(lambda x: -MP.sin(x))], kinks=ANGLES),
    Function(
        "clip",
        "-0.5, 1.25",
        lambda x: K.clip(x, -0.5, 1.25),
        _of(lambda x: _between(mpf(-0.5), mpf(1.25), x)),
        [_of(lambda x: _inside(-0.5, 1.25, x))],
        kinks=(0.5, 1.25),
    ),
    Function("relu", "", lambda x: K.relu(x), _of(lambda x: max(x, ZERO)), [_of(lambda x: mpf(x > 0))]),
    Function(
        "relu",
        "0.1, 2.0, 0.5",
        lambda x: K.relu(x, 0.1, 2.0, 0.5),
        _relu(0.1, 2.0, 0.5),
        [_relu_slope(0.1, 2.0, 0.5)],
        kinks=(0.5, 2),
    ),
    Function("elu", "", lambda x: K.elu(x), _elu(1), [_elu_slope(1)], kinks=(17.3, 36.7, 88)),
    Function("elu", "0.6", lambda x: K.elu(x, 0.6), _elu(0.6), [_elu_slope(0.6)], kinks=(17.3, 36.7, 88)),
    Function(
        "sigmoid",
        "",
        lambda x: K.sigmoid(x),
        _of(sigmoid),
        [_of(lambda x: _small(x) / (1 + _small(x)) ** 2)],
        kinks=POWERS,
    ),
    Function("hard_sigmoid", "", lambda x: K.hard_sigmoid(x), _hard_sigmoid, [_hard_slope], kinks=(2.5,)),
    Function(
        "tanh",
        "",
        lambda x: K.tanh(x),
        _of(MP.tanh),
        [_of(lambda x: 4 * _small(2 * x) / (1 + _small(2 * x)) ** 2)],
        kinks=(0.55, 0.625, 9, 19, 22),
    ),
    Function("softplus", "", lambda x: K.softplus(x), _of(softplus), [_of(sigmoid)], kinks=POWERS),
    Function("log_sigmoid", "", lambda x: K.log_sigmoid(x), _of(lambda x: -softplus(-x)), [_of(lambda x: sigmoid(-x))]),
    Function(
        "softsign",
        "",
        lambda x: K.softsign(x),
        _of(lambda x: x / (1 + abs(x))),
        [_of(lambda x: 1 / (1 + abs(x)) ** 2)],
        infinities=False,
    ),
    Function("Tensor", "-x", lambda x: -x, _of(lambda x: -x), [_of(lambda x: -ONE)]),
    Function("Tensor", "1 - x", lambda x: 1 - x, _of(lambda x: 1 - x), [_of(lambda x: -ONE)]),
    Function(
        "Tensor",
        "1 / x",
        lambda x: 1 / x,
        _of(lambda x: 1 / x if x else None),
        [_of(lambda x: -1 / (x * x) if x else None)],
    ),
    Function(
        "Tensor", "x + y", lambda x, y: x + y, _of(lambda x, y: x + y), [_of(lambda x, y: ONE)] * 2, points="pairs"
    ),
    Function(
        "Tensor",
        "x - y",
        lambda x, y: x - y,
        _of(lambda x, y: x - y),
        [_of(lambda x, y: ONE), _of(lambda x, y: -ONE)],
        points="pairs",
    ),
    Function(
        "Tensor",
        "x * y",
        lambda x, y: x * y,
        _of(lambda x, y: x * y),
        [_of(lambda x, y: y), _of(lambda x, y: x)],
        points="pairs",
    ),
    Function(
        "Tensor",
        "x / y",
        lambda x, y: x / y,
        _quotient,
        [_of(lambda x, y: 1 / y if y else None), _of(lambda x, y: -x / (y * y) if y else None)],
        points="pairs",
    ),
    Function("Tensor", "x % y", lambda x, y: x % y, _modulus, points="pairs"),
    Function(
        "maximum",
        "",
        lambda x, y: K.maximum(x, y),
        _of(max),
        [_of(lambda x, y: mpf(x >= y)), _of(lambda x, y: mpf(y > x))],
        points="pairs",
    ),
    Function(
        "minimum",
        "",
        lambda x, y: K.minimum(x, y),
        _of(min),
        [_of(lambda x, y: mpf(x <= y)), _of(lambda x, y: mpf(y < x))],
        points="pairs",
    ),
    Function(
        "logaddexp",
        "",
        lambda x, y: K.logaddexp(x, y),
        _logaddexp,
        [_of(lambda x, y: sigmoid(x - y)), _of(lambda x, y: sigmoid(y - x))],
        points="pairs",
    ),
    Function("pow", "", lambda x, a: K.pow(x, a), _power, [_power_by_base, _power_by_exponent], points="powers"),
    Function("pow", "2", lambda x: K.pow(x, 2), _of(lambda x: x * x), [_of(lambda x: 2 * x)]),
    Function(
        "pow",
        "0.5",
        lambda x: K.pow(x, 0.5),
        _of(lambda x: MP.sqrt(x) if x >= 0 else None),
        [_of(lambda x: 1 / (2 * MP.sqrt(x)) if x > 0 else None)],
    ),
    Function(
        "binary_crossentropy",
        "",
        lambda t, o: K.binary_crossentropy(t, o),
        _crossentropy,
        [_crossentropy_target, _crossentropy_slope],
        points="chances",
        kinks=(1e-7, 1, 0.5),
    ),
    Function(
        "binary_crossentropy",
        "logits",
        lambda t, x: K.binary_crossentropy(t, x, from_logits=True),
        _logits,
        [_of(lambda t, x: -x), _logits_slope],
        points="targets",
        kinks=POWERS,
    ),
]


def functions() -> list[Function]:
    """Those that K has."""
    return [one for one in FUNCTIONS if one.there]
