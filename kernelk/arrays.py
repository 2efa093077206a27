"""The type of an array, for annotations in every package, and whether its values fit into a dtype."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_CHUNK = 1 << 16


def fits(array: Array, dtype: str) -> bool:
    """Whether each value is the same in `dtype`. In chunks: a cast of the whole would take its memory once more."""
    if array.dtype.name == dtype:
        return True
    with np.errstate(all="ignore"):
        chunks: Any = np.nditer(array, ["external_loop", "buffered", "zerosize_ok"], buffersize=_CHUNK)
        return all(np.array_equal(chunk.astype(dtype), chunk) for chunk in chunks)
