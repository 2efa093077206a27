"""Converts fed values to arrays of a placeholder's shape and dtype, and keeps the last one."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any

import numpy as np

from ..arrays import Array, fits
from ..engines import memory
from ..errors import DTypeError, FeedError, KernelKError
from ..graph.nodes import Placeholder, Shape, Tensor
from ..ops.dtypes import ARRAYS, FLOATS, densified, is_sparse_matrix
from ..ops.foreign import as_numpy, on_device

# The last value that a placeholder was fed is kept for `divergence` up to this size: a copy costs some 10 us.
FED_BYTES = 1 << 18


def as_feed(placeholder: Placeholder, value: Any, stays: bool = False) -> Array:
    """`value` as an array for this placeholder. Raises FeedError for a wrong shape, DTypeError for a lossy dtype.

    Floats are fed to any float placeholder (float64 data to a float32 one, as everywhere in Keras); integers to any
    placeholder that holds them; scipy.sparse matrices to sparse ones, as dense arrays; a tensor as its value; another
    library's tensors as arrays, on a CPU without a copy. `stays`: a tensor on a device that fits as it is becomes an
    `OnDevice`, whose values the call's host takes there or asks for.
    """
    shape = placeholder.shape
    if type(value) is np.ndarray and value.dtype == placeholder.numpy_dtype and _takes(shape, value.shape):
        return value
    if isinstance(value, Tensor):
        # Keras on TensorFlow takes a tensor for its value: `model.fit(K.zeros((10, 3)), ...)`.
        value = value.eval()
    if stays:
        there: Any = on_device(value, f"placeholder '{placeholder.name}'")
        if there is not None and there.dtype == placeholder.numpy_dtype and _takes(shape, there.shape):
            return there  # type: ignore[no-any-return]
    if is_sparse_matrix(value):
        if not placeholder.sparse:
            raise FeedError(
                f"placeholder '{placeholder.name}' ({placeholder.source}) was fed a sparse matrix",
                next_step="make it with K.placeholder(..., sparse=True), or feed matrix.toarray()",
            )
        value = densified(value, f"placeholder '{placeholder.name}'")
    value = as_numpy(value, f"placeholder '{placeholder.name}'", FeedError)
    try:
        array = np.asarray(value)
    except KernelKError:
        raise FeedError(
            f"placeholder '{placeholder.name}' was fed a {type(value).__name__} that holds a tensor",
            next_step="feed K.get_value(tensor) or an array",
        ) from None
    except ValueError as error:
        # Nested lists of different lengths.
        raise FeedError(
            f"placeholder '{placeholder.name}' was fed a value that could not be converted to an array: {error}",
            allowed=ARRAYS,
        ) from None
    if array.dtype.kind not in "biuf":
        raise FeedError(
            f"placeholder '{placeholder.name}' takes numbers, not {type(value).__name__} of dtype {array.dtype}",
            next_step=f"convert it first, e.g. np.asarray(x, '{placeholder.dtype}')",
        )
    if not _takes(shape, array.shape):
        raise FeedError(
            f"placeholder '{placeholder.name}' ({placeholder.source}) has shape {shape}, but was fed {array.shape}",
            allowed="its number of axes and its known lengths must be equal",
            next_step=_fitting(shape, array.shape),
        )
    if array.dtype != placeholder.numpy_dtype:
        if placeholder.dtype not in FLOATS and not fits(array, placeholder.dtype):
            raise DTypeError(
                f"placeholder '{placeholder.name}' is {placeholder.dtype}, but the fed {array.dtype} values don't "
                "fit into it",
                next_step=_narrowed(array, placeholder.dtype),
            )
        memory.require(array.size * placeholder.numpy_dtype.itemsize, f"the feed of placeholder '{placeholder.name}'")
        with np.errstate(all="ignore"):
            array = array.astype(placeholder.numpy_dtype)
    return array


def _narrowed(array: Array, dtype: str) -> str:
    """How to feed values that `dtype` doesn't hold, with what that makes of them."""
    if dtype == "bool":
        return "feed x != 0"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return "feed finite values, e.g. np.nan_to_num(x)"
    limits = np.iinfo(dtype)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        return f"feed values from {limits.min} to {limits.max}, or give the placeholder a wider dtype"
    return f"feed np.rint(x).astype('{dtype}'), which rounds them"


def _takes(shape: Shape, fed: tuple[int, ...]) -> bool:
    """Whether a placeholder of this shape takes an array of that one. A loop, since each call of a function asks."""
    if shape == fed:
        return True
    if len(shape) != len(fed):
        return False
    for length, given in zip(shape, fed):  # noqa: SIM110
        if length is not None and length != given:
            return False
    return True


def _fitting(shape: Shape, fed: tuple[int, ...]) -> str:
    """What to feed instead of an array `x` of shape `fed`, where that is plain; else ""."""
    if len(fed) == 2 and _takes(shape, fed[::-1]):
        return "feed x.T"
    if _takes(shape, (1, *fed)):
        return "feed x[None], a batch of one"
    if _takes(shape, (*fed, 1)):
        return "feed x[..., None]"
    if fed[:1] == (1,) and _takes(shape, fed[1:]):
        return "feed x[0]"
    if fed[-1:] == (1,) and _takes(shape, fed[:-1]):
        return "feed x[..., 0]"
    return ""


def keep_feed(placeholder: Placeholder, feed: Array, source: Any) -> None:
    """Notes what a placeholder was fed: a copy of small data; of a large array, the `source`, only which it was.

    Likewise of a tensor that has stayed on its device.
    """
    placeholder.fed_shape = feed.shape
    if type(feed) is not np.ndarray:
        with contextlib.suppress(TypeError):
            # Not every library's tensors can be referred to like this.
            placeholder.fed = None
            placeholder.fed = weakref.ref(source)
        return
    if feed.nbytes > FED_BYTES:
        placeholder.fed = weakref.ref(source) if type(source) is np.ndarray else None
        return
    kept = placeholder.fed
    if type(kept) is np.ndarray and kept.shape == feed.shape:
        # Into the same memory: fresh pages cost more than the copy.
        kept[...] = feed
    else:
        placeholder.fed = feed.copy()


def last_feed(placeholder: Placeholder) -> Any:
    """The last feed of a placeholder (a large array as it is now), None where it isn't known any more."""
    kept = placeholder.fed
    return kept() if isinstance(kept, weakref.ref) else kept.copy() if isinstance(kept, np.ndarray) else kept


def as_phase(value: Any) -> int:
    """A fed learning phase as 0 or 1. Raises FeedError."""
    array = np.asarray(value)
    if array.size != 1 or array.reshape(()).item() not in (0, 1):
        raise FeedError(f"the learning phase can't be {value!r}", allowed="it is 0 (test) or 1 (train)")
    return int(array.reshape(()).item())
