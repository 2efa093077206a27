"""Arrays of other libraries as numpy's, where a value enters K: on a CPU a view of the same memory, by DLPack."""

from __future__ import annotations

from typing import Any

import numpy as np

from .backends.base import DTYPES
from .errors import ArgumentError, KernelKError


def _dtype_name(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    # torch.float32; TensorFlow's and JAX's have a name.
    return str(getattr(dtype, "name", None) or str(dtype).rpartition(".")[2])


def is_foreign(value: Any) -> bool:
    """Whether `value` is another library's array or tensor, on whatever device."""
    kind = type(value)
    return hasattr(kind, "__dlpack__") and not issubclass(kind, (np.ndarray, np.generic))


def as_numpy(value: Any, what: str, error: type[KernelKError] = ArgumentError) -> Any:
    """Another library's tensor as an ndarray of its dtype (bfloat16 and narrower floats as float32); else `value`.

    The array shares the tensor's memory where that is numpy's to read, and is only to be read; from another device it
    is copied. `what` begins the message of the `error` for a tensor without values that can be read.
    """
    if not is_foreign(value):
        return value
    name = _dtype_name(value)
    if hasattr(value, "detach"):
        value = value.detach()
    try:
        if name in DTYPES:
            try:
                return np.from_dlpack(value)
            except (BufferError, RuntimeError, TypeError, ValueError):
                # Another device, or a view that DLPack can't describe.
                pass
        if hasattr(value, "cpu"):
            value = value.cpu()
        if name not in DTYPES and "float" in name and hasattr(value, "float"):
            value = value.float()
        array = np.asarray(value)
        # The narrow floats of ml_dtypes, which JAX and TensorFlow have, are no kind of numpy's.
        return array.astype(np.float32) if array.dtype.kind == "V" and "float" in array.dtype.name else array
    except Exception as cause:
        reason = " ".join(str(cause).split())
        raise error(
            f"{what}: {type(value).__name__} of dtype {name} has no values that can be read here "
            f"({type(cause).__name__}: {reason[:200]}); give a strided tensor of numbers, outside the library's own "
            f"tracing"
        ) from None
