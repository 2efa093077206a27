"""Compares arrays bit for bit: what an engine was given with what it gives back."""

import zlib

import numpy as np

_CHUNK = 1 << 18


def same_bits(a, b):
    """Whether two ndarrays hold the same bytes; NaN payloads and signs of zero count."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    a, b = np.ascontiguousarray(a).reshape(-1).view(np.uint8), np.ascontiguousarray(b).reshape(-1).view(np.uint8)
    whole = a.size // 8 * 8
    if not np.array_equal(a[whole:], b[whole:]):
        return False
    wide_a, wide_b = a[:whole].view(np.uint64), b[:whole].view(np.uint64)
    # In chunks that stay in the cache: one boolean array for a gigabyte would cost more than the comparison.
    return all(np.array_equal(wide_a[i : i + _CHUNK], wide_b[i : i + _CHUNK]) for i in range(0, wide_a.size, _CHUNK))


def checksum(array):
    """A number that tells values apart: of 4,000,000,000 pairs of different ones, one has the same."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
