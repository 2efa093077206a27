"""Shared memory whose pages are locked for a device, which then copies from and to them without the driver's help."""

import numpy as np


class PageLocks(object):
    """What a device's library has locked. `lock(address, size)` may raise; `unlock(address)` tells whether it could.

    That memory can't be locked costs speed alone. What is locked is held here, so that it is never unmapped before.
    """

    def __init__(self, lock, unlock):
        self._lock = lock
        self._unlock = unlock
        self._held = {}  # address -> mmap

    def add(self, memory):
        address, size = _place(memory)
        if address in self._held:
            return
        try:
            self._lock(address, size)
        except Exception:
            return
        self._held[address] = memory

    def remove(self, memory):
        address, _ = _place(memory)
        if self._held.get(address) is memory and self._unlocked(address):
            del self._held[address]

    def clear(self):
        """Unlocks all of it, as far as it can be."""
        for address in list(self._held):
            if self._unlocked(address):
                del self._held[address]

    def _unlocked(self, address):
        try:
            return self._unlock(address)
        except Exception:
            return False


def _place(memory):
    """The address and the size of an `mmap`."""
    array = np.frombuffer(memory, np.uint8)
    return array.__array_interface__["data"][0], array.size
