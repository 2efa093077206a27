"""Messages between the kernel and a worker: JSON over a socket pair, with file descriptors, never pickle.

A frame is the length of its body in 4 bytes (little endian), a kind of one byte, a number of 8 bytes, and the body.
Both ends take turns: the kernel numbers its requests, and a reply carries the number of its request, so that no reply
is ever taken for another one's. Arrays never travel here: they are in shared memory, whose file descriptors are passed
once, with the message that first names the segment. The two messages of an ordinary call, a run of a known plan and
its reply, have a short binary form: JSON alone would take a fifth of the time that an empty call may take.
"""

import array
import json
import os
import select
import socket
import struct
import time

_HEADER = struct.Struct("<IBQ")
_JSON, _RUN, _DONE, _KEEP = 0, 1, 2, 3
_RUN_BODY = struct.Struct("<QI")  # plan, how many sides; then one byte for each, and the counts
_KEEP_BODY = struct.Struct("<QQQ")  # plan, the call's number, that of the last one that counts; then the counts
_COUNT = 8  # bytes of the count of each draw
_DONE_BODY = struct.Struct("<d")  # seconds
# Header and body at once: two would slow an ordinary call.
_RUN_FRAME = struct.Struct("<IBQQI")
_KEEP_FRAME = struct.Struct("<IBQQQQ")
_DONE_FRAME = struct.Struct("<IBQd")
_CAN_LOOK = hasattr(socket, "MSG_DONTWAIT") and hasattr(os, "sched_yield")
# Where so many seconds pass between two looks, something else had the processor. It is let run for so many times as
# long, up to some seconds: a moment's interrupt costs little then, and the work of others isn't disturbed again.
_DISTURBED, _TIMES_AS_LONG, _LONGEST_REST = 5e-5, 50, 0.05
_MOST_FILES = 64
# Windows passes no descriptors over sockets: there are no workers there, only engines in the kernel.
CAN_PASS_FILES = hasattr(socket, "CMSG_SPACE") and hasattr(socket, "AF_UNIX")
_ANCILLARY = socket.CMSG_SPACE(_MOST_FILES * array.array("i").itemsize) if CAN_PASS_FILES else 0

# The longest message in bytes: the largest programs take some megabytes.
MOST_BYTES = 256 << 20


class WireClosed(Exception):
    """The other side is gone; `unread` if it is certain that it never read the last message."""

    def __init__(self, message, unread=False):
        Exception.__init__(self, message)
        self.unread = unread


class TooLong(ValueError):
    """A message longer than the limit; none of it was sent."""


class Malformed(Exception):
    """The other side sent an invalid message, or not the expected one: the connection can't be used any more."""


def encode(message, number=0):
    """A message (a JSON-able dict) as a frame. Raises TooLong."""
    if message.get("do") == "run" and message["define"] is None and not message["load"] and "apart" not in message:
        plan, counts = message["plan"], message["counts"]
        rest = struct.pack("<%dQ" % len(counts), *counts) if counts else b""
        if "confirmed" not in message:
            rest = bytes(message["sides"]) + rest
            return _RUN_FRAME.pack(_RUN_BODY.size + len(rest), _RUN, number, plan, len(message["sides"])) + rest
        if "keep" in message:
            size = _KEEP_BODY.size + len(rest)
            return _KEEP_FRAME.pack(size, _KEEP, number, plan, message["keep"], message["confirmed"]) + rest
    if len(message) == 1 and "seconds" in message:
        return _DONE_FRAME.pack(_DONE_BODY.size, _DONE, number, message["seconds"])
    body = json.dumps(message, separators=(",", ":")).encode("utf-8")
    if len(body) > MOST_BYTES:
        raise TooLong("a message of %d MiB is too long: allowed are %d" % (len(body) >> 20, MOST_BYTES >> 20))
    return _HEADER.pack(len(body), _JSON, number) + body


def decode(kind, body):
    """The message of a frame. Raises Malformed."""
    try:
        if kind == _RUN:
            plan, sides = _RUN_BODY.unpack_from(body)
            end = _RUN_BODY.size + sides
            return dict(_run(plan, body[end:]), sides=list(body[_RUN_BODY.size : end]))
        if kind == _KEEP:
            plan, keep, confirmed = _KEEP_BODY.unpack_from(body)
            return dict(_run(plan, body[_KEEP_BODY.size :]), sides=(), keep=keep, confirmed=confirmed)
        if kind == _DONE:
            return {"seconds": _DONE_BODY.unpack(body)[0]}
        message = json.loads(bytes(body).decode("utf-8")) if kind == _JSON else None
    except (ValueError, RecursionError, struct.error) as error:
        raise Malformed("it can't be read: %s" % error) from error
    if type(message) is not dict:
        raise Malformed("kind %d is unknown" % kind if kind != _JSON else "it is a %s" % type(message).__name__)
    return message


def opened(frame):
    """The (number, message) of a whole frame. Raises Malformed."""
    frame = memoryview(frame)
    if len(frame) < _HEADER.size:
        raise Malformed("it is too short")
    length, kind, number = _HEADER.unpack_from(frame)
    if len(frame) != _HEADER.size + length:
        raise Malformed("it is %d bytes long, and not %d" % (len(frame), _HEADER.size + length))
    return number, decode(kind, frame[_HEADER.size :])


def _run(plan, counts):
    counts = struct.unpack("<%dQ" % (len(counts) // _COUNT), counts) if len(counts) else ()
    return {"do": "run", "plan": plan, "define": None, "load": (), "counts": counts}


class Wire(object):
    """One end of the connection, around a connected stream socket; both ends take turns."""

    def __init__(self, connection):
        self.connection = connection
        self._buffer = bytearray(1 << 16)
        self._view = memoryview(self._buffer)
        # For a socket with a timeout: makes the function that is called at each timeout of one wait.
        self.waiting = None
        self._looks_from = 0.0  # until then it sleeps at once

    encode = staticmethod(encode)

    def send(self, message, number=0, files=()):
        """Sends one message, with up to 64 file descriptors. Raises WireClosed."""
        self.send_frame(encode(message, number), files)

    def send_frame(self, frame, files=()):
        """Sends what `encode` has made. Raises WireClosed."""
        try:
            if files:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))]
                sent = self._go_on(self.connection.sendmsg, [frame], rights)
            else:
                try:
                    sent = self.connection.send(frame)
                except BlockingIOError:
                    sent = self._wait(self.connection.send, frame)
            while sent < len(frame):
                sent += self._go_on(self.connection.send, memoryview(frame)[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WireClosed(str(error), unread=True) from error

    def send_at_once(self, frame):
        """Sends what `encode` has made if it can be sent without waiting; whether it was. Raises WireClosed.

        A short one is taken whole or not at all.
        """
        try:
            sent = self.connection.send(frame, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except (BrokenPipeError, ConnectionResetError) as error:
            raise WireClosed(str(error), unread=True) from error
        if sent < len(frame):
            self.send_frame(frame[sent:])
        return True

    def arrived(self):
        """Whether there is something to receive: a message, its beginning, or the end of the stream."""
        try:
            self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            pass  # the receiver will find out
        return True

    def receive(self, number, patience=0.0):
        """Waits for the message of this number, which brings no file descriptors. Raises WireClosed or Malformed.

        `patience`: as in `receive_with_files`.
        """
        try:
            filled = self._look(patience, self.connection.recv_into, self._buffer, 0) if patience else None
            if filled is None:
                try:
                    filled = self.connection.recv_into(self._buffer)
                except BlockingIOError:
                    filled = self._wait(self.connection.recv_into, self._buffer)
            if filled == _DONE_FRAME.size:
                length, kind, found, seconds = _DONE_FRAME.unpack_from(self._buffer)
                if found == number and kind == _DONE and length == _DONE_BODY.size:
                    return {"seconds": seconds}
            found, message = self._message(filled)
        except ConnectionResetError as error:
            # A local socket is reset, not ended, when it closes with something unread in it.
            raise WireClosed(str(error), unread=True) from error
        if found != number:
            raise Malformed("it has number %d, and %d is due" % (found, number))
        return message

    def receive_with_files(self, patience=0.0, resting=None):
        """Waits for one message; returns it, its number and the file descriptors that came with it.

        For the first `patience` seconds it looks again and again instead of sleeping, and lets others run in between:
        on an idle machine, to wake a sleeping process takes longer than all the rest of an empty call.
        `resting`, a pair of seconds and a function: what is called once if nothing has come in that time.
        Raises WireClosed or Malformed, and then the descriptors are closed.
        """
        files = []
        try:
            received = None
            if patience:
                received = self._look(patience, self.connection.recvmsg_into, [self._buffer], _ANCILLARY)
            if received is None and resting is not None:
                seconds, rest = resting
                if not select.select([self.connection], [], [], seconds)[0]:
                    rest()
            count, ancillary, _, _ = received or self.connection.recvmsg_into([self._buffer], _ANCILLARY)
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    numbers = array.array("i")
                    numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
                    files.extend(numbers)
            number, message = self._message(count)
        except BaseException as error:
            for file in files:
                os.close(file)
            if isinstance(error, ConnectionResetError):
                raise WireClosed(str(error)) from error
            raise
        return message, number, files

    def _look(self, patience, receive, *arguments):
        """The result of `receive`, which takes flags last, if there is one within `patience` seconds; else None."""
        if not _CAN_LOOK:
            return None
        now = time.perf_counter()
        end = now + patience
        while self._looks_from <= now < end:
            try:
                return receive(*arguments, socket.MSG_DONTWAIT)
            except BlockingIOError:
                os.sched_yield()
            before, now = now, time.perf_counter()
            if now - before > _DISTURBED:
                self._looks_from = now + min(_TIMES_AS_LONG * (now - before), _LONGEST_REST)
        return None

    def _message(self, filled):
        """(number, message) whose first `filled` bytes are in the buffer; receives the rest."""
        view = self._view
        if not filled:
            raise WireClosed("end of stream")
        while filled < _HEADER.size:
            filled = self._more(view, filled, _HEADER.size)
        length, kind, number = _HEADER.unpack_from(view)
        end = _HEADER.size + length
        if filled != end:
            view = self._whole(filled, length, end)
        return number, decode(kind, view[_HEADER.size : end])

    def _whole(self, filled, length, end):
        """The buffer, or a larger one, with the whole message in it. It grows as bytes arrive, not before."""
        if filled > end:
            raise Malformed("%d unexpected bytes follow it" % (filled - end))
        if length > MOST_BYTES:
            raise Malformed("it claims to be %d MiB long" % (length >> 20))
        view = self._view
        while filled < end:
            if filled == len(view):
                larger = memoryview(bytearray(min(2 * filled, end)))
                larger[:filled] = view
                view = larger
            filled = self._more(view, filled, min(len(view), end))
        return view

    def _more(self, view, filled, end):
        count = self._go_on(self.connection.recv_into, view[filled:end])
        if not count:
            raise WireClosed("end of stream")
        return filled + count

    def _go_on(self, transfer, *arguments):
        try:
            return transfer(*arguments)
        except BlockingIOError:
            return self._wait(transfer, *arguments)

    def _wait(self, transfer, *arguments):
        """Repeats a transfer that timed out, and lets `waiting` check the other side in between."""
        if self.waiting is None:
            raise
        look = self.waiting()
        while True:
            look()
            try:
                return transfer(*arguments)
            except BlockingIOError:
                pass

    def finish(self):
        """Announces that no more requests come: a worker exits after its current one."""
        self.connection.shutdown(socket.SHUT_WR)

    def close(self):
        """Closes this end; the other side then reads the end of the stream."""
        self.connection.close()
