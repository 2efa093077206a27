"""Converts other libraries' arrays to numpy where a value enters K: on a CPU as a view, by DLPack.

A feed may stay on its device: an engine there takes it as it is, and any other one makes it an array when it needs it.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import numpy as np

from ..arrays import Array
from ..backends.base import DTYPES
from ..errors import ArgumentError, FeedError, KernelKError, one_line

# DLPack's numbers of devices whose memory is the host's: kDLCPU and kDLCUDAHost.
HOSTS = (1, 3)


def _dtype_name(value: Any) -> str:
    dtype = getattr(value, "dtype", None)
    # torch.float32; TensorFlow's and JAX's have a name.
    return str(getattr(dtype, "name", None) or str(dtype).rpartition(".")[2])


def is_foreign(value: Any) -> bool:
    """Whether `value` is another library's array or tensor, on whatever device, one without values included."""
    kind = type(value)
    if issubclass(kind, (np.ndarray, np.generic)):
        return False
    # TensorFlow's variables, and what it passes while it traces, don't speak DLPack.
    return hasattr(kind, "__dlpack__") or kind.__module__.startswith("tensorflow.")


class OnDevice:
    """Another library's dense `tensor`, of one of K's dtypes, on a device: its values stay there until asked for.

    It has of an array what a feed needs. `what` begins the message of the error if they can't be read.
    """

    __slots__ = ("dtype", "nbytes", "shape", "tensor", "what")

    def __init__(self, tensor: Any, what: str) -> None:
        self.tensor = tensor
        self.what = what
        self.shape = tuple(int(n) for n in tensor.shape)
        self.dtype = np.dtype(_dtype_name(tensor))
        self.nbytes = math.prod(self.shape) * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(as_numpy(self.tensor, self.what, FeedError), dtype, order="C")

    def copy(self) -> Array:
        """Its values in an ndarray."""
        return self.__array__()


def on_device(value: Any, what: str) -> OnDevice | None:
    """The value as a feed that stays where it is; None where it lies in the host's memory, or is no plain tensor."""
    if not is_foreign(value) or _dtype_name(value) not in DTYPES:
        return None
    try:
        if value.__dlpack_device__()[0] in HOSTS:
            return None
        if hasattr(value, "detach"):
            # PyTorch's, as its plain values in their order.
            value = value.detach().resolve_conj().resolve_neg().contiguous()
        return OnDevice(value, what)
    except Exception:
        # A sparse one, one on several devices, or one without values: whoever reads it says what it is.
        return None


def as_numpy(value: Any, what: str, error: type[KernelKError] = ArgumentError) -> Any:
    """Another library's tensor as an ndarray of its dtype (bfloat16 and narrower floats as float32); else `value`.

    The array shares the tensor's memory where that is numpy's to read, and is only to be read; from another device it
    is copied. `what` begins the message of the `error` for a tensor without values that can be read.
    """
    if not is_foreign(value):
        return value
    name = _dtype_name(value)
    try:
        if hasattr(value, "detach"):
            # PyTorch's
            value = value.detach().cpu()
            if hasattr(value, "resolve_neg"):
                # A view that is negated or conjugated only when it is read: DLPack hands its memory on as it lies.
                value = value.resolve_conj().resolve_neg()
            value = value.float() if name not in DTYPES and "float" in name else value
        if name in DTYPES:
            # Not where DLPack can't describe what is a view, or another device's.
            with contextlib.suppress(AttributeError, BufferError, RuntimeError, TypeError, ValueError):
                return np.from_dlpack(value)
        array = np.asarray(value)
        # The narrow floats of ml_dtypes, which JAX and TensorFlow have, aren't among numpy's kinds.
        return array.astype(np.float32) if array.dtype.kind == "V" and "float" in array.dtype.name else array
    except Exception as cause:
        reason = one_line(cause)
        raise error(
            f"{what}: {type(value).__name__} of dtype {name} has no values that can be read here "
            f"({type(cause).__name__}: {reason[:200]})",
            next_step="give a dense tensor of numbers, and call K outside code the library traces or compiles",
        ) from None
