"""Messages between the kernel and a worker: JSON over a socket pair, file descriptors beside it, never pickle.

A frame is a length of 4 bytes (little endian), a kind of one byte, then that many bytes less one. Arrays never travel
here: they are in shared memory, whose file descriptors are passed once, with the message that first names the
segment. The two messages of an ordinary call, a run of a known plan and its reply, have a short binary form: JSON
alone would take a fifth of the time that an empty call may take.
"""

import array
import json
import os
import socket
import struct
import time

_HEADER = struct.Struct("<IB")
_JSON, _RUN, _DONE = 0, 1, 2
_RUN_BODY = struct.Struct("<QQ")  # plan, counter; then one byte for each side
_DONE_BODY = struct.Struct("<d")  # seconds
_CAN_LOOK = hasattr(socket, "MSG_DONTWAIT") and hasattr(os, "sched_yield")
_MOST_FILES = 64
# Windows hands no descriptors over sockets: there is no wire there, and the kernel goes on with what needs none.
CAN_PASS_FILES = hasattr(socket, "CMSG_SPACE") and hasattr(socket, "AF_UNIX")
_ANCILLARY = socket.CMSG_SPACE(_MOST_FILES * array.array("i").itemsize) if CAN_PASS_FILES else 0


class WireClosed(Exception):
    """The other side is gone; `unread` if it is certain that it never read the last message."""

    def __init__(self, message, unread=False):
        Exception.__init__(self, message)
        self.unread = unread


def encode(message):
    """A message (a JSON-able dict) as a frame."""
    if message.get("do") == "run" and message["define"] is None and not message["load"]:
        kind = _RUN
        body = _RUN_BODY.pack(message["plan"], message["counter"]) + bytes(message["sides"])
    elif len(message) == 1 and "seconds" in message:
        kind, body = _DONE, _DONE_BODY.pack(message["seconds"])
    else:
        kind, body = _JSON, json.dumps(message, separators=(",", ":")).encode("utf-8")
    return _HEADER.pack(len(body) + 1, kind) + body


def decode(kind, body):
    """The message of a frame."""
    if kind == _RUN:
        plan, counter = _RUN_BODY.unpack_from(body)
        sides = list(body[_RUN_BODY.size :])
        return {"do": "run", "plan": plan, "define": None, "load": (), "sides": sides, "counter": counter}
    if kind == _DONE:
        return {"seconds": _DONE_BODY.unpack(body)[0]}
    return json.loads(bytes(body).decode("utf-8"))


class Wire(object):
    """One end of the connection, around a connected stream socket; both ends take turns."""

    def __init__(self, connection):
        self.connection = connection
        self._buffer = bytearray(1 << 16)
        self._view = memoryview(self._buffer)

    def send(self, message, files=()):
        """Sends one message, with up to 64 file descriptors. Raises WireClosed."""
        frame = encode(message)
        try:
            if files:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
                sent = self.connection.sendmsg([frame], rights)
                if sent < len(frame):
                    self.connection.sendall(frame[sent:])
            else:
                self.connection.sendall(frame)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WireClosed(str(error), unread=True) from error

    def receive(self):
        """Waits for one message that brings no file descriptors. Raises WireClosed."""
        try:
            return self._message(self.connection.recv_into(self._buffer))
        except ConnectionResetError as error:
            # A local socket is reset, not ended, when it closes with something unread in it.
            raise WireClosed(str(error), unread=True) from error

    def receive_with_files(self, patience=0.0):
        """Waits for one message; returns it and the file descriptors that came with it. Raises WireClosed.

        For the first `patience` seconds it looks again and again instead of sleeping, and lets others run in between:
        on an idle machine, to wake a sleeping process takes longer than all the rest of an empty call.
        """
        files = []
        try:
            received = self._look(patience) if patience and _CAN_LOOK else None
            count, ancillary, _, _ = received or self.connection.recvmsg_into([self._buffer], _ANCILLARY)
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    numbers = array.array("i")
                    numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
                    files.extend(numbers)
            return self._message(count), files
        except ConnectionResetError as error:
            raise WireClosed(str(error)) from error

    def _look(self, patience):
        """What recvmsg_into gives, if that is within `patience` seconds; else None."""
        end = time.perf_counter() + patience
        while time.perf_counter() < end:
            try:
                return self.connection.recvmsg_into([self._buffer], _ANCILLARY, socket.MSG_DONTWAIT)
            except BlockingIOError:
                os.sched_yield()
        return None

    def _message(self, filled):
        """The message whose first `filled` bytes are in the buffer; receives the rest."""
        view = self._view
        if not filled:
            raise WireClosed("end of stream")
        while filled < _HEADER.size:
            filled = self._more(view, filled, _HEADER.size)
        length, kind = _HEADER.unpack_from(view)
        end = _HEADER.size - 1 + length
        if end > len(view):
            view = memoryview(bytearray(end))
            view[:filled] = self._view[:filled]
        while filled < end:
            filled = self._more(view, filled, end)
        return decode(kind, view[_HEADER.size : end])

    def _more(self, view, filled, end):
        count = self.connection.recv_into(view[filled:end])
        if not count:
            raise WireClosed("end of stream")
        return filled + count

    def close(self):
        """Closes this end; the other one finds the end of the stream."""
        self.connection.close()
