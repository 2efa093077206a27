"""Draws made on a GPU: the numbers of `random_draws`, from the same Philox stream, in XLA's own integers."""

import numpy as np

from ..random_draws import KEY, MULTIPLIERS, ROUNDS, WEYL, truncated

# Imported when the first JaxBackend is made.
jax = None

# How many elements a kind, dtype and shape are compiled for at most; the oldest are forgotten.
MOST_COMPILED = 1000


def _high(a, b):
    """The upper 64 bits of the product of two uint64."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    low_a, high_a, low_b, high_b = a & mask, a >> half, b & mask, b >> half
    middle, other = low_a * high_b, high_a * low_b
    carry = ((low_a * low_b >> half) + (middle & mask) + (other & mask)) >> half
    return high_a * high_b + (middle >> half) + (other >> half) + carry


def raw(count, seed, counter):
    """The first `count` uint64 of `numpy.random.Philox(key=[seed, KEY], counter=[0, 0, 0, counter])`."""
    numpy = jax.numpy
    first = numpy.arange(1, (count + 3) // 4 + 1, dtype=np.uint64)
    zero = numpy.zeros_like(first)
    words = [first, zero, zero, zero + counter]
    for step in range(ROUNDS):
        keys = [seed + np.uint64(step * WEYL[0] % 2**64), np.uint64((KEY + step * WEYL[1]) % 2**64)]
        low = [words[0] * np.uint64(MULTIPLIERS[0]), words[2] * np.uint64(MULTIPLIERS[1])]
        high = [_high(words[0], np.uint64(MULTIPLIERS[0])), _high(words[2], np.uint64(MULTIPLIERS[1]))]
        words = [high[1] ^ words[1] ^ keys[0], low[1], high[0] ^ words[3] ^ keys[1], low[0]]
    return numpy.stack(words, axis=1).reshape(-1)[:count]


def uniform(count, dtype, seed, counter):
    """As `random_draws` has it, bit for bit."""
    numpy = jax.numpy
    if dtype == "float64":
        return (raw(count, seed, counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    words = raw((count + 1) // 2, seed, counter)
    words = numpy.stack([words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)], axis=1).reshape(-1)[:count]
    bits = 11 if dtype == "float16" else 24
    return (words >> np.uint64(32 - bits)).astype(dtype) * np.dtype(dtype).type(2.0**-bits)


def normal(count, dtype, seed, counter):
    """As `random_draws` has it, up to the last bit of log, sin and cos."""
    numpy = jax.numpy
    half = (count + 1) // 2
    values = uniform(2 * half, "float64", seed, counter)
    radius = numpy.sqrt(-2.0 * numpy.log(1.0 - values[:half]))
    angle = 2.0 * np.pi * values[half:]
    both = numpy.concatenate([radius * numpy.cos(angle), radius * numpy.sin(angle)])
    return both[:count].astype(dtype)


def truncated_normal(count, dtype, seed, counter):
    """As `random_draws` has it, up to the last bits of log and of products."""
    return truncated(uniform(count, "float64", seed, counter), jax.numpy).astype(dtype)


KINDS = {"uniform": uniform, "normal": normal, "truncated_normal": truncated_normal}


class DeviceDraws(object):
    """Makes draws by programs that `executable(body, leaves)` compiles, one for each kind, dtype and shape."""

    def __init__(self, executable, make):
        self._executable = executable
        self._make = make
        self._compiled = {}

    def draw(self, kind, dtype, shape, seed, counter):
        """The draws as an array of the device's."""
        known = kind, dtype, tuple(shape)
        compiled = self._compiled.get(known)
        if compiled is None:
            while len(self._compiled) >= MOST_COMPILED:
                del self._compiled[next(iter(self._compiled))]
            compiled = self._compiled[known] = self._executable(*_program(*known))
        seed, counter = (self._make(np.asarray(number, np.uint64)) for number in (seed, counter))
        return compiled(seed, counter)[0]


def _program(kind, dtype, shape):
    count = int(np.prod(shape, dtype=np.int64))

    def body(seed, counter):
        return [KINDS[kind](count, dtype, seed, counter).reshape(shape)]

    return body, [("uint64", ()), ("uint64", ())]
