"""A way between two addresses that takes its time: it hands on what comes at one to the other. Needs no pytest.

Threads sleep to within 0.1 ms, which asyncio's timers, of whole milliseconds, don't.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import sys
import threading
import time

_CHUNK = 1 << 18


class Relay:
    """Listens at the ports of `here`, and connects each to the same port of `there`.

    `seconds` are added to a round trip, one half of them each way.
    """

    def __init__(self, here: str, there: str, ports: list[int], seconds: float = 0.0) -> None:
        self._there = there
        self._delay = seconds / 2
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listeners = [socket.create_server((here, port)) for port in sorted({*ports})]
        for listener in self._listeners:
            _thread(self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        port = listener.getsockname()[1]
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection((self._there, port))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._carry(near, far)
            self._carry(far, near)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        under_way: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()

        def take() -> None:
            data = b"-"
            while data:
                try:
                    data = source.recv(_CHUNK)
                except OSError:
                    data = b""
                under_way.put((time.perf_counter() + self._delay, data))

        def give() -> None:
            while True:
                due, data = under_way.get()
                if (left := due - time.perf_counter()) > 0:
                    time.sleep(left)
                try:
                    target.sendall(data)
                except OSError:
                    data = b""
                if not data:
                    self._close({source, target})
                    return

        _thread(take)
        _thread(give)

    def _close(self, ends: set[socket.socket]) -> None:
        with self._lock:
            self._open -= ends
        for end in ends:
            # Whoever waits in `recv` is woken by this, and not by closing it.
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def reset(self) -> None:
        """Breaks all connections off, with what is on its way; new ones are taken."""
        self._close(set(self._open))

    def close(self) -> None:
        """Ends it."""
        for listener in self._listeners:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.reset()


def _thread(target: object, *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()  # type: ignore[arg-type]


if __name__ == "__main__":
    relay = Relay(sys.argv[1], sys.argv[2], [int(port) for port in sys.argv[4:]], float(sys.argv[3]))
    print("up", flush=True)
    # It ends with the process that has started it.
    sys.stdin.read()
