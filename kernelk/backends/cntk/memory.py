"""Holds CNTK's values: in arrays, in buffers that CNTK fills, or in CNTK's own memory until the next call."""

import sys

import numpy as np


class Held(object):
    """A native value: an array or a Lent, and a token that stands for its contents (one token, one content)."""

    __slots__ = ("_array", "lent", "token")

    def __init__(self, array, lent=None, token=None):
        self._array = array
        self.lent = lent
        self.token = object() if token is None else token

    @property
    def array(self):
        return self.lent.array if self._array is None else self._array

    def again(self):
        """Another value with the same contents."""
        return Held(self._array, self.lent, self.token)

    def write(self, core, destination):
        """Copies the contents to an array, which is the value's memory from here on."""
        if self._array is None and self.lent.view is not None and destination.flags.c_contiguous:
            core.borrow(destination).copy_from(self.lent.view)
        else:
            destination[...] = self.array
        self._array = destination
        # What CNTK wrote into may be used again.
        self.lent = None


class Storage(object):
    """Memory that CNTK writes a result into; whoever holds its array keeps it from being written again."""

    __slots__ = ("array", "value", "view")

    def __init__(self, core, dtype, shape):
        self.array = np.empty(shape, dtype)
        self.view = core.borrow(self.array)
        self.value = core.layer.Value(self.view)

    @classmethod
    def of(cls, core, pool, dtype, shape):
        """One from the pool whose array nobody holds any more, or a new one, which is entered there."""
        for storage in pool:
            # The storage's own reference and the call's.
            if sys.getrefcount(storage.array) == 2:
                return storage
        storage = cls(core, dtype, shape)
        pool.append(storage)
        return storage


class Lent(object):
    """A result in memory of CNTK's own (`home`: a stage or an entry), which says before it overwrites it.

    A step of a large model so copies each new value once, not three times: most are gone, or in their slots,
    before CNTK needs its memory.
    """

    __slots__ = ("__weakref__", "_array", "core", "dtype", "home", "pool", "shape", "view")

    def __init__(self, core, view, home, leaving):
        self.core = core
        self.view = view
        self.home = home
        self.pool = leaving.pool
        self.dtype = leaving.dtype
        self.shape = leaving.shape
        self._array = None

    @property
    def array(self):
        self.settle()
        return self._array

    def move(self, view, home):
        """Tells where else the same elements are."""
        self.view = view
        self.home = home

    def settle(self):
        """Copies the elements to memory that CNTK doesn't use."""
        if self._array is None:
            storage = Storage.of(self.core, self.pool, self.dtype, self.shape)
            storage.view.copy_from(self.view)
            self._array = storage.array
            self.move(None, None)


def array_of(value):
    """The ndarray of a feed, a Held or a Lent."""
    return value if isinstance(value, np.ndarray) else value.array
