"""Draws made on a GPU: the numbers of `random_draws`, from the same Philox stream, in PyTorch's own integers."""

import numpy as np

from ..random_draws import KEY, MULTIPLIERS, ROUNDS, WEYL, truncated

# Imported when the first TorchBackend is made.
torch = None

# From this many elements on, the device is quicker than numpy and a copy: each step of a round is a kernel of its own.
WORTH = 1 << 18


def _signed(number):
    """The int64 with the bits of a number below 2**64: PyTorch has no arithmetic of uint64."""
    number &= 2**64 - 1
    return number - 2**64 if number >> 63 else number


def _shifted(words, bits):
    """The words as if unsigned, without their last bits."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _high(words, factor):
    """The upper 64 bits of the product of int64 words and a number below 2**64, both taken as unsigned."""
    mask = 0xFFFFFFFF
    low, high = words & mask, _shifted(words, 32)
    low_factor, high_factor = factor & mask, factor >> 32
    middle, other = low * high_factor, high * low_factor
    carry = (_shifted(low * low_factor, 32) + (middle & mask) + (other & mask)) >> 32
    return high * high_factor + _shifted(middle, 32) + _shifted(other, 32) + carry


def raw(count, seed, counter, device):
    """The bits of the first `count` uint64 of `numpy.random.Philox(key=[seed, KEY], counter=[0, 0, 0, counter])`."""
    first = torch.arange(1, (count + 3) // 4 + 1, dtype=torch.int64, device=device)
    zero = torch.zeros_like(first)
    words = [first, zero, zero, zero + _signed(counter)]
    for step in range(ROUNDS):
        keys = [seed + step * WEYL[0], KEY + step * WEYL[1]]
        low = [words[0] * _signed(MULTIPLIERS[0]), words[2] * _signed(MULTIPLIERS[1])]
        high = [_high(words[0], MULTIPLIERS[0]), _high(words[2], MULTIPLIERS[1])]
        words = [high[1] ^ words[1] ^ _signed(keys[0]), low[1], high[0] ^ words[3] ^ _signed(keys[1]), low[0]]
    return torch.stack(words, 1).reshape(-1)[:count]


def uniform(count, dtype, seed, counter, device):
    """As `random_draws` has it, bit for bit."""
    if dtype == "float64":
        return _shifted(raw(count, seed, counter, device), 11).to(torch.float64) * 2.0**-53
    words = raw((count + 1) // 2, seed, counter, device)
    words = torch.stack([words & 0xFFFFFFFF, _shifted(words, 32)], 1).reshape(-1)[:count]
    bits = 11 if dtype == "float16" else 24
    return (words >> (32 - bits)).to(getattr(torch, dtype)) * 2.0**-bits


def normal(count, dtype, seed, counter, device):
    """As `random_draws` has it, up to the last bit of log, sin and cos."""
    half = (count + 1) // 2
    values = uniform(2 * half, "float64", seed, counter, device)
    radius = torch.sqrt(-2.0 * torch.log(1.0 - values[:half]))
    angle = 2.0 * np.pi * values[half:]
    both = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])
    return both[:count].to(getattr(torch, dtype))


def truncated_normal(count, dtype, seed, counter, device):
    """As `random_draws` has it, up to the last bits of log and of products."""
    return truncated(uniform(count, "float64", seed, counter, device), torch).to(getattr(torch, dtype))


KINDS = {"uniform": uniform, "normal": normal, "truncated_normal": truncated_normal}
