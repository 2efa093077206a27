"""Puts an array into figures, for the lists and the panel: where the array lies, in the kernel or beside an engine."""

import math

import numpy as np

_BINS = 20
# Of a larger array than is wanted, so many evenly spaced elements are looked at.
_SPACED = 1 << 20
# Elements that are worked on at a time.
_CHUNK = 1 << 20
# A corner has so many rows and columns at most.
SIDE = 32


def figures(value, most):
    """What is JSON of an array's figures; one of more than `most` elements is looked at in places.

    looked_at (elements), nans, infinities; minimum, maximum, mean, std and histogram (counts, edges) of the finite
    ones, None without one; corner: rows of the last two axes' beginning.
    """
    sample = value
    if value.size > most:
        step = -(-value.size // min(_SPACED, most))
        while math.gcd(step, value.shape[-1]) > 1:
            # It would meet a few columns only.
            step += 1
        sample = value.reshape(-1)[::step]
    found = {"looked_at": int(sample.size), "corner": _corner(value).tolist()}
    found.update(dict.fromkeys(("minimum", "maximum", "mean", "std", "histogram")))
    found.update(_statistics(sample))
    return found


def _chunks(values):
    """The finite elements as float64, some at a time."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float64)
        yield part[np.isfinite(part)] if values.dtype.kind == "f" else part


def _statistics(values):
    count, nans, low, high = 0, 0, math.inf, -math.inf
    if values.dtype.kind == "f":
        flat = values.reshape(-1)
        nans = sum(int(np.isnan(flat[i : i + _CHUNK]).sum()) for i in range(0, flat.size, _CHUNK))
    for part in _chunks(values):
        count += part.size
        if part.size:
            low, high = min(low, float(part.min())), max(high, float(part.max()))
    found = {"nans": nans, "infinities": int(values.size) - nans - count}
    if not count:
        return found
    # In units of the largest element: squares and differences of the largest floats have no float of their own.
    unit = max(abs(low), abs(high))
    unit = unit if unit > 1e100 else 1.0
    mean = math.fsum(float((part / unit).sum()) for part in _chunks(values)) / count
    square = math.fsum(float(np.square(part / unit - mean).sum()) for part in _chunks(values)) / count
    exact = values.dtype.kind != "f"
    found.update(
        # Of 64-bit integers float64 doesn't hold every one.
        minimum=int(values.min()) if exact else low,
        maximum=int(values.max()) if exact else high,
        mean=min(max(mean * unit, low), high),
        std=math.sqrt(square) * unit,
        histogram=_histogram(values, low, high, unit, exact),
    )
    return found


def _histogram(values, low, high, unit, exact):
    if exact and high - low < _BINS and max(abs(low), abs(high)) < 2**52:
        # A bin for each integer.
        first, bins = low - 0.5, int(high - low) + 1
        last = first + bins
    elif high == low:
        return {"counts": [sum(int(part.size) for part in _chunks(values))], "edges": [low, high]}
    else:
        first, last, bins = low, high, _BINS
    width = last / unit - first / unit
    counts = np.zeros(bins, dtype=np.int64)
    for part in _chunks(values):
        indices = ((part / unit - first / unit) / width * bins).astype(np.int64)
        counts += np.bincount(np.clip(indices, 0, bins - 1), minlength=bins)
    edges = [(first / unit + width * i / bins) * unit for i in range(bins)] + [last]
    return {"counts": counts.tolist(), "edges": edges}


def _corner(value):
    if 0 in value.shape:
        return np.zeros((0, 0), value.dtype)
    if value.ndim < 2:
        return value.reshape(1, -1)[:, :SIDE]
    return value[(0,) * (value.ndim - 2)][:SIDE, :SIDE]
