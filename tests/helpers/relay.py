"""A way between two addresses that takes its time: it hands on what comes at one to the other. Needs no pytest.

Threads sleep to within 0.1 ms, which asyncio's timers, of whole milliseconds, don't.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import subprocess
import sys
import threading
import time

_CHUNK = 1 << 18


class _Relay:
    """See `Relay`; in the process that does the work."""

    def __init__(self, here: str, there: str, ports: list[int], seconds: float = 0.0) -> None:
        self._there = there
        self._delay = seconds / 2
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._taking = threading.Event()
        self._taking.set()
        for listener in [socket.create_server((here, port)) for port in ports]:
            _thread(self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        port = listener.getsockname()[1]
        while True:
            near, _ = listener.accept()
            self._taking.wait()
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
        """Breaks all connections off; new ones wait until `go_on`."""
        self._taking.clear()
        self._close(set(self._open))

    def go_on(self) -> None:
        """Takes those that wait, and more."""
        self._taking.set()


def _thread(target: object, *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()  # type: ignore[arg-type]


class Relay:
    """Listens at the ports of `here`, and connects each to the same port of `there`, in a process of its own.

    `seconds` are added to a round trip, one half of them each way.
    """

    def __init__(self, here: str, there: str, ports: list[int], seconds: float = 0.0) -> None:
        command = [sys.executable, __file__, here, there, str(seconds), *(str(port) for port in ports)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._hear()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "done\n"

    def reset(self) -> None:
        """Breaks all connections off, with what is on its way; new ones wait until `go_on`."""
        self._tell("reset")

    def go_on(self) -> None:
        """Takes new connections again."""
        self._tell("go_on")

    def _tell(self, what: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{what}\n")
        self._process.stdin.flush()
        self._hear()

    def close(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


if __name__ == "__main__":
    relay = _Relay(sys.argv[1], sys.argv[2], [int(port) for port in sys.argv[4:]], float(sys.argv[3]))
    print("done", flush=True)
    # It ends with the process that has started it.
    for line in sys.stdin:
        getattr(relay, line.strip())()
        print("done", flush=True)
