"""Copies between the host and a GPU: many are under way together, and one wait ends them."""

import functools
import itertools

import numpy as np

from ..base import unlike
from ..bits import same_bits
from ..page_locks import PageLocks

# Imported when the first TorchBackend is made.
torch = None

# What is read back only to be compared comes in pieces of so many bytes: one is compared while the next is copied.
PIECE_BYTES = 1 << 25

# cudaHostRegisterPortable
_PORTABLE = 1


class Gpu(object):
    """One GPU's copies. `tensor(array)` makes a tensor of an array's own memory, which is only read."""

    def __init__(self, device, tensor):
        self.device = device
        self.locks = PageLocks(self._lock, self._unlock)
        self._tensor = tensor

    def wait(self):
        """Returns when all that the GPU was told to do is done."""
        torch.cuda.synchronize(self.device)

    def locked(self, nbytes):
        """A tensor of so many bytes of the host's memory, whose pages are locked."""
        return torch.empty(nbytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def mark(self):
        """An object whose `synchronize` returns when all that the GPU was told to do until now is done."""
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.device))
        return event

    def put(self, array):
        """A tensor of the GPU's with an array's value; the array may be read until the next `wait`."""
        source = self._tensor(array)
        return torch.empty(source.shape, dtype=source.dtype, device=self.device).copy_(source, non_blocking=True)

    def load(self, arrays):
        """Tensors of the GPU's with these arrays' values; afterwards nothing reads the arrays any more."""
        try:
            return [self.put(array) for array in arrays]
        finally:
            self.wait()

    def read(self, values, destinations):
        """Writes tensors' values into ndarrays. Raises RuntimeError where dtypes or shapes differ."""
        try:
            for value, destination in zip(values, destinations):
                written = torch.from_numpy(destination)
                if written.dtype != value.dtype or written.shape != value.shape:
                    raise unlike(str(value.dtype).rpartition(".")[2], value.shape, destination)
                written.copy_(value, non_blocking=True)
        finally:
            self.wait()

    def differing(self, values, arrays):
        """The positions of the tensors that aren't read back as these arrays, bit for bit."""
        different, compare = set(), None
        # One is compared while the other is written to.
        buffers = itertools.cycle([self.locked(min(PIECE_BYTES, sum(array.nbytes for array in arrays))) for _ in "ab"])
        for group in self._groups(values, arrays, different):
            buffer, place, compared = next(buffers), 0, []
            for position, source, wanted in group:
                end = place + wanted.size
                buffer[place:end].copy_(source, non_blocking=True)
                compared.append((position, buffer[place:end].numpy(), wanted))
                place = end
            mark = self.mark()
            if compare is not None:
                different.update(compare())
            compare = functools.partial(_compared, mark, compared)
        if compare is not None:
            different.update(compare())
        return sorted(different)

    def _groups(self, values, arrays, different):
        """Lists of (position, bytes of the tensor, bytes of the array), each of PIECE_BYTES at most.

        Tensors of another dtype or shape are entered in `different`.
        """
        group, room = [], PIECE_BYTES
        for position, (value, array) in enumerate(zip(values, arrays)):
            like = self._tensor(array)
            if value.dtype != like.dtype or value.shape != like.shape:
                different.add(position)
                continue
            source = value.reshape(-1).view(torch.uint8)
            wanted = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            start = 0
            while start < wanted.size:
                stop = min(wanted.size, start + room)
                group.append((position, source[start:stop], wanted[start:stop]))
                room -= stop - start
                start = stop
                if not room:
                    yield group
                    group, room = [], PIECE_BYTES
        if group:
            yield group

    def _lock(self, address, size):
        with torch.cuda.device(self.device):
            if int(torch.cuda.cudart().cudaHostRegister(address, size, _PORTABLE)):
                # CUDA reports its last error once more, to whatever comes next: this takes it.
                torch.zeros(1, device=self.device)
                raise RuntimeError("the pages can't be locked")

    def _unlock(self, address):
        with torch.cuda.device(self.device):
            return int(torch.cuda.cudart().cudaHostUnregister(address)) == 0


def _compared(mark, compared):
    """The positions whose bytes differ, once these have been copied."""
    mark.synchronize()
    return [position for position, copy, wanted in compared if not same_bits(copy, wanted)]
