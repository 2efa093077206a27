"""The kernel's end of the way to a worker on another machine: frames go as ipyparallel's calls, with memory's bytes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array
from ..backends.serving.wire import Malformed, encode, opened
from ..engines.storage import Storage
from . import serving
from .remote_worker import RemoteWorker, limits
from .traffic import Range, Traffic


def address(array: Array) -> int:
    """Where an array's memory begins."""
    return int(array.__array_interface__["data"][0])


class Parcel(NamedTuple):
    """A request on its way: its frame, what it reads, and where its reply's bytes belong."""

    frame: bytes
    reads: list[Range]
    writes: list[Range]
    direct: dict[int, Array]  # see RemoteWire


class RemoteWire:
    """Takes the place of `Wire`; requests and replies take turns there, too."""

    def __init__(self, worker: RemoteWorker, storage: Storage, started: Any) -> None:
        """`started`: what brings the worker's first message."""
        self._worker = worker
        self._storage = storage
        self._traffic = Traffic()
        self._sent = started
        self._writes: list[Range] = []
        # Of the next run: feeds that are sent from where they lie, by the address of their place in the segments.
        self.direct: dict[int, Array] = {}

    def encode(self, message: dict[str, Any], number: int) -> Parcel:
        """A request with its memory's ranges. Raises TooLong."""
        direct: dict[int, Array] = {}
        if message["do"] == "run":
            # That memory may be another request's next.
            direct, self.direct = self.direct, direct
        return Parcel(encode(message, number), *self._traffic.of(message), direct)

    def send_frame(self, parcel: Parcel, files: list[int | None] | tuple[()] = ()) -> None:
        """Sends a request with the bytes that it reads; descriptors of this machine mean nothing there."""
        head = [self._worker.token, parcel.reads, parcel.writes, limits()]
        self._writes = parcel.writes
        parts = [self._bytes(one) for one in parcel.reads]
        if parcel.direct:
            parts = [parcel.direct.get(address(part), part) for part in parts]
        self._sent = self._worker.ask(serving.request, serving.joined(head, parcel.frame), *parts)

    def send_at_once(self, parcel: Parcel) -> bool:
        """Sends it: ipyparallel never waits."""
        self.send_frame(parcel)
        return True

    def _bytes(self, place: Range) -> Array:
        segment, offset, size = place
        found: Array = self._storage.segments[segment].array(offset, "uint8", (size,))
        return found

    def arrived(self) -> bool:
        """Whether the reply is there, or none will come."""
        return bool(self._worker.poll() is not None or self._sent.wait(0))

    def receive(self, number: int, patience: float = 0.0) -> dict[str, Any]:
        """Waits for the reply of this number, and puts what came with it into the kernel's memory."""
        frame, *parts = self._worker.answer(self._sent)
        found, message = opened(frame)
        if found != number:
            raise Malformed(f"it has number {found}, and {number} is due")
        # A request that has failed has written nothing that counts.
        if "error" not in message:
            if [np.size(part) for part in parts] != [size for _, _, size in self._writes]:
                raise Malformed("it brings other memory than was asked for")
            for place, part in zip(self._writes, parts):
                self._bytes(place)[...] = part
        return message  # type: ignore[no-any-return]

    def finish(self) -> None:
        """Ends the worker, once it has nothing to do."""
        self._worker.finish()

    def close(self) -> None:
        """Lets go of what it waits for; the worker isn't ended by it."""
        self._sent = None
