"""Random arrays made for each run from (seed, counter): every engine is fed the same draws.

Philox's raw bits are the same in every numpy; the transforms are written out here because numpy's own have changed
between versions. Uniform draws are bit-identical everywhere; normal ones go through log, sin and cos, whose last bit
may differ between two numpy builds.
"""

import numpy as np

_KEY = 0x6B65726E656C6B  # "kernelk": keeps these streams apart from a user's own Philox(seed)


def _raw(count, seed, counter):
    bits = np.random.Philox(key=[seed, _KEY], counter=[0, 0, 0, counter])
    return bits.random_raw(count) if count else np.zeros(0, np.uint64)


def _uniform(count, dtype, seed, counter):
    if dtype == "float64":
        return (_raw(count, seed, counter) >> np.uint64(11)) * 2.0**-53
    words = _raw((count + 1) // 2, seed, counter).astype("<u8").view("<u4")[:count]
    if dtype == "float16":
        return (words >> np.uint32(21)).astype(np.float16) * np.float16(2.0**-11)
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


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
