"""Copies between the host and a GPU: many are under way together, and one wait ends them."""

from collections import deque

import numpy as np

from ..base import unlike
from ..bits import same_bits
from ..page_locks import PageLocks

# Imported when the first JaxBackend is made.
jax = None

# Of the values that are read, so many bytes are on their way ahead of the one that is wanted.
AHEAD_BYTES = 1 << 28


class Gpu(object):
    """One GPU's copies. `make(array)` begins an array of JAX's, `block(arrays)` waits until all of them are there."""

    def __init__(self, device, make, block):
        # None of JAX's documented functions locks memory that it hasn't allocated; the client of a GPU has these.
        client = getattr(device, "client", None)
        self.locks = PageLocks(getattr(client, "dma_map", _cannot), _unlocking(client))
        self._device = device
        self._make = make
        self._block = block

    def load(self, arrays):
        """JAX's arrays with these values; afterwards nothing reads the given ones any more."""
        values = [self._make(np.asarray(array)) for array in arrays]
        self._block(values)
        return values

    def arrays(self, values):
        """Yields the values as ndarrays in turn, while the next ones are being copied."""
        coming, nbytes = deque(), 0
        for value in values:
            # An object of its own: a value would keep the host's copy for its next reader, as long as it lives.
            value = value.addressable_data(0)
            value.copy_to_host_async()
            coming.append(value)
            nbytes += value.nbytes
            while nbytes > AHEAD_BYTES:
                nbytes -= coming[0].nbytes
                yield np.asarray(coming.popleft())
        while coming:
            yield np.asarray(coming.popleft())

    def read(self, values, destinations):
        """Writes values into ndarrays. Raises RuntimeError where dtypes or shapes differ."""
        for array, destination in zip(self.arrays(values), destinations):
            if array.dtype != destination.dtype or array.shape != destination.shape:
                raise unlike(array.dtype, array.shape, destination)
            destination[...] = array

    def differing(self, values, arrays):
        """The positions of the values that aren't read back as these arrays, bit for bit."""
        return [i for i, (back, array) in enumerate(zip(self.arrays(values), arrays)) if not same_bits(back, array)]

    def copy(self, value):
        """A copy of a value on the GPU."""
        with jax.enable_x64(True):
            copy = jax.device_put(value, self._device, may_alias=False)
        self._block([copy])
        return copy


def _cannot(address, size):
    raise RuntimeError("this version of JAX can't lock pages")


def _unlocking(client):
    def unlock(address):
        client.dma_unmap(address)
        return True

    return unlock
