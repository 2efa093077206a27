"""Blocks of memory that the kernel owns and every worker maps: variables, feeds and results travel in them."""

import contextlib
import mmap
import os
import tempfile

import numpy as np

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Slots start on cache-line bounds, which engines also ask for before they take an array without a copy.
ALIGNMENT = 64


def aligned(size):
    """`size` in bytes rounded up to the alignment; never 0, so that empty arrays have a place too."""
    return max(ALIGNMENT, (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT)


def _seal(fileno):
    """Fixes a block's size, where the system can: to touch what another process has cut off would end this one."""
    if hasattr(fcntl, "F_ADD_SEALS"):
        # A file that is no memfd takes none, nor does a system that only half knows them.
        with contextlib.suppress(OSError):
            fcntl.fcntl(fileno, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)


class Segment(object):
    """One mapped block; `fileno` can be handed to another process, which maps the same memory."""

    def __init__(self, fileno, size):
        """`fileno` None: memory of this process alone."""
        self.fileno = fileno
        self.size = size
        self.memory = mmap.mmap(-1 if fileno is None else fileno, size)

    @classmethod
    def create(cls, size):
        """A new zeroed block with no name in any file system, so that nothing is left behind."""
        if hasattr(os, "memfd_create"):
            fileno = os.memfd_create("kernelk", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        elif os.name == "nt":
            # On Windows an open file can't be unlinked, and there are no workers that need one.
            return cls(None, size)
        else:
            # An unlinked temporary file: the portable stand-in for memfd.
            handle, path = tempfile.mkstemp(prefix="kernelk-")
            os.unlink(path)
            fileno = handle
        try:
            os.ftruncate(fileno, size)
            _seal(fileno)
            return cls(fileno, size)
        except BaseException:
            os.close(fileno)
            raise

    @classmethod
    def attach(cls, fileno, size):
        """Maps a block that another process created; the descriptor isn't needed after that."""
        try:
            segment = cls(fileno, size)
        finally:
            os.close(fileno)
        segment.fileno = None
        return segment

    def array(self, offset, dtype, shape):
        """The ndarray of this dtype and shape at `offset` bytes; it shares the block's memory."""
        return np.ndarray(shape, dtype, self.memory, offset)

    def close(self):
        """Gives the block back; the mapping itself goes once no array refers to it."""
        # In this order: closed twice, it could be another file by then.
        fileno, self.fileno, self.memory = self.fileno, None, None
        if fileno is not None:
            os.close(fileno)
