"""Arrays compared: to the bit, or at the precision of their dtype; and the dtypes there are."""

from __future__ import annotations

from typing import Any

import numpy as np

from kernelk.graph.nodes import Tensor

FLOATS = ("float16", "float32", "float64")
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES = (*FLOATS, *INTEGERS, "bool")
RTOL = {"float16": 8e-3, "float32": 3e-5, "float64": 1e-9}
ATOL = {"float16": 4e-3, "float32": 2e-6, "float64": 1e-11}


def same_bits(a: Any, b: Any) -> bool:
    """Same dtype, shape and bytes: NaN payloads and signs of zero count."""
    return a.dtype == b.dtype and a.shape == b.shape and np.asarray(a).tobytes() == np.asarray(b).tobytes()


def fits(tensor: Tensor, value: Any) -> bool:
    """Whether a value has the dtype and, as far as it was known, the shape that the graph promised."""
    return (
        isinstance(value, np.ndarray)
        and value.dtype.name == tensor.dtype
        and value.ndim == len(tensor.shape)
        and all(n in (None, m) for n, m in zip(tensor.shape, value.shape))
    )


def saturated(x: Any, dtype: str) -> Any:
    """Floats as integers of `dtype`, one by one in whole numbers: NaN is 0, what is out of range the nearest end."""
    limits = np.iinfo(dtype)
    ends = {float("-inf"): limits.min, float("inf"): limits.max}

    def integer(value: float) -> int:
        if value != value:
            return 0
        return ends[value] if value in ends else min(max(int(value), limits.min), limits.max)

    x = np.asarray(x)
    return np.array([integer(value) for value in x.reshape(-1).tolist()], dtype).reshape(x.shape)


def assert_close(got: Any, wanted: Any, dtype: str | None = None, label: object = "", scale: float = 1.0) -> None:
    """Equal shapes and nearly equal values, at the precision of `dtype` (the wanted one's); exact for integers."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    assert got.shape == wanted.shape, f"{label}: shape {got.shape}, not {wanted.shape}"
    dtype = dtype or wanted.dtype.name
    if dtype in RTOL:
        np.testing.assert_allclose(
            got.astype(np.float64),
            wanted.astype(np.float64),
            rtol=RTOL[dtype] * scale,
            atol=ATOL[dtype] * scale,
            err_msg=str(label),
        )
    else:
        np.testing.assert_array_equal(got, wanted, err_msg=str(label))
