"""Random arrays made for each run from (seed, counter): every engine is fed the same draws.

On a GPU, JAX and PyTorch make the same themselves: see `draws.py` in their folders.

Philox's raw bits are the same in every numpy; the transforms are written out here because numpy's own have changed
between versions. Uniform draws are bit-identical everywhere; normal ones go through log, sin and cos, whose last bit
may differ between two numpy builds.
"""

import numpy as np

KEY = 0x6B65726E656C6B  # "kernelk": keeps these streams apart from a user's own Philox(seed)

# Philox of four 64-bit words, as numpy has it, for who makes the same bits otherwise. J. Salmon et al., "Parallel
# random numbers: as easy as 1, 2, 3", 2011.
MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
ROUNDS = 10


def _raw(count, seed, counter):
    # Of lists, numpy makes float64 on the way where some of the numbers are above 2**63: the last bits would be lost.
    key, start = np.array([seed, KEY], np.uint64), np.array([0, 0, 0, counter], np.uint64)
    bits = np.random.Philox(key=key, counter=start)
    return bits.random_raw(count) if count else np.zeros(0, np.uint64)


def _uniform(count, dtype, seed, counter):
    # In place where that can be: to write to fresh memory takes longer than to compute.
    if dtype == "float64":
        words, bits = _raw(count, seed, counter), 53
        words >>= np.uint64(64 - bits)
    else:
        words = _raw((count + 1) // 2, seed, counter).astype("<u8", copy=False).view("<u4")[:count]
        bits = 11 if dtype == "float16" else 24
        words >>= np.uint32(32 - bits)
    values = words.astype(dtype)
    values *= np.dtype(dtype).type(2.0**-bits)
    return values


def _normal(count, dtype, seed, counter):
    half = (count + 1) // 2
    uniform = _uniform(2 * half, "float64", seed, counter)
    # 1 - u lies in (0, 1], where the logarithm is finite.
    radius = np.sqrt(-2.0 * np.log(1.0 - uniform[:half]))
    angle = 2.0 * np.pi * uniform[half:]
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].astype(dtype)


def _truncated_normal(count, dtype, seed, counter):
    drawn = count
    while True:
        # 4.6 % lie outside; draws are a function of how many are asked for, so the first enough are taken.
        drawn = drawn + drawn // 10 + 64
        values = _normal(drawn, "float64", seed, counter)
        values = values[np.abs(values) < 2]
        if values.size >= count:
            return values[:count].astype(dtype)


_KINDS = {"uniform": _uniform, "normal": _normal, "truncated_normal": _truncated_normal}


def draw(kind, dtype, shape, seed, counter):
    """An ndarray of standard draws: "uniform" in [0, 1), "normal" with mean 0 and deviation 1, or

    "truncated_normal", the same without what lies 2 or more from 0.

    `dtype` is a float dtype; `seed` and `counter` are ints in [0, 2**64). The same arguments give the same array.
    """
    count = 1
    for length in shape:
        count *= length
    values = _KINDS[kind](count, dtype, seed, counter)
    return np.ascontiguousarray(values, dtype=dtype).reshape(shape)
