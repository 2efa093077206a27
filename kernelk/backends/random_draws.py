"""Random arrays made for each run from (seed, counter): every engine is fed the same draws.

On a GPU, JAX and PyTorch make the same themselves: see `draws.py` in their folders.

Philox's raw bits are the same in every numpy; the transforms are written out here because numpy's own have changed
between versions. Uniform draws are bit-identical everywhere; normal ones, truncated or not, go through log, sin and
cos, whose last bit may differ between two numpy builds. Each value takes a fixed number of the stream's.
"""

import numpy as np

KEY = 0x6B65726E656C6B  # "kernelk": keeps these streams apart from a user's own Philox(seed)

# Philox of four 64-bit words, as numpy has it, for who makes the same bits otherwise. J. Salmon et al., "Parallel
# random numbers: as easy as 1, 2, 3", 2011.
MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
ROUNDS = 10

# The probability that a normal draw lies between -2 and 2.
INSIDE = 0.9544997361036416

# The coefficients of the normal distribution's quantiles, near the middle and further out. M. Wichura, "Algorithm AS
# 241: the percentage points of the normal distribution", Applied Statistics 37, 1988.
CENTRAL = (
    (
        2509.0809287301226727,
        33430.575583588128105,
        67265.770927008700853,
        45921.953931549871457,
        13731.693765509461125,
        1971.5909503065514427,
        133.14166789178437745,
        3.387132872796366608,
    ),
    (
        5226.495278852545925,
        28729.085735721942674,
        39307.89580009271061,
        21213.794301586595867,
        5394.1960214247511077,
        687.1870074920579083,
        42.313330701600911252,
        1.0,
    ),
)
TAIL = (
    (
        7.7454501427834140764e-4,
        0.0227238449892691845833,
        0.24178072517745061177,
        1.27045825245236838258,
        3.64784832476320460504,
        5.7694972214606914055,
        4.6303378461565452959,
        1.42343711074968357734,
    ),
    (
        1.05075007164441684324e-9,
        5.475938084995344946e-4,
        0.0151986665636164571966,
        0.14810397642748007459,
        0.68976733498510000455,
        1.6763848301838038494,
        2.05319162663775882187,
        1.0,
    ),
)


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


def normal_quantile(q, module):
    """The x below which a normal draw lies with the probability 1/2 + q, for |x| < 7, to 5 units in the last place.

    `q`: an array of float64 of `module`, which has numpy's functions.
    """
    central = _ratio(0.180625 - q * q, CENTRAL) * q
    tail = module.sqrt(-module.log(0.5 - module.abs(q))) - 1.6
    return module.where(module.abs(q) <= 0.425, central, module.sign(q) * _ratio(tail, TAIL))


def _ratio(x, polynomials):
    """The quotient of two polynomials of x, whose coefficients begin with the highest power."""
    values = []
    for coefficients in polynomials:
        value = coefficients[0]
        for coefficient in coefficients[1:]:
            value = value * x + coefficient
        values.append(value)
    return values[0] / values[1]


def truncated(uniform, module):
    """Draws of a normal distribution between -2 and 2, one from each of the uniform ones in [0, 1)."""
    # In the middle of the part of [0, 1) that a draw stands for: neither end is ever reached.
    return normal_quantile((uniform - (0.5 - 2.0**-54)) * INSIDE, module)


def _truncated_normal(count, dtype, seed, counter):
    return truncated(_uniform(count, "float64", seed, counter), np).astype(dtype)


_KINDS = {"uniform": _uniform, "normal": _normal, "truncated_normal": _truncated_normal}


def draw(kind, dtype, shape, seed, counter):
    """An ndarray of standard draws: "uniform" in [0, 1), "normal" with mean 0 and deviation 1, or

    "truncated_normal", the same between -2 and 2.

    `dtype` is a float dtype; `seed` and `counter` are ints in [0, 2**64). The same arguments give the same array.
    """
    count = 1
    for length in shape:
        count *= length
    values = _KINDS[kind](count, dtype, seed, counter)
    return np.ascontiguousarray(values, dtype=dtype).reshape(shape)
