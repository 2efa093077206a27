"""The kernel's end of the wire to one worker: the only code that sends requests and takes replies.

Between the first byte of a request and the last one of its reply anything may interrupt: Ctrl-C, a signal handler that
raises, a lack of memory. `under_way` is set until the whole reply is there, and whoever finds it set ends that worker.
"""

from __future__ import annotations

from typing import Any, Protocol

from ..backends.serving.wire import Malformed
from .interrupts import is_inside
from .replies import check_reply

# After a run of less than so many seconds, the next one's reply is looked for again and again before the kernel sleeps.
QUICK = 0.0002


class AnyWire(Protocol):
    """The kernel's end of a way to a worker: `backends.serving.wire.Wire`, or what takes its place."""

    def encode(self, message: dict[str, Any], number: int) -> Any:
        """A message as `send_frame` takes it. Raises TooLong."""

    def send_frame(self, frame: Any, files: list[int | None] | tuple[()] = ()) -> None:
        """Sends what `encode` has made. Raises WireClosed."""

    def send_at_once(self, frame: Any) -> bool:
        """Sends it if it can be sent without waiting; whether it was. Raises WireClosed."""

    def arrived(self) -> bool:
        """Whether there is something to receive, be it the end."""

    def receive(self, number: int, patience: float = 0.0) -> dict[str, Any]:
        """Waits for the message of this number. Raises WireClosed or Malformed."""

    def finish(self) -> None:
        """Announces that no more requests come."""

    def close(self) -> None:
        """Closes this end."""


class Exchange:
    """Requests and replies in turn, each pair with its own number; the worker's first message has number 0.

    A request whose reply isn't needed now is posted: its reply is `owed`, and is taken before the next request.
    All methods raise WireClosed, Malformed, or the exception that interrupted them; the exchange is then unusable.
    """

    def __init__(self, wire: AnyWire) -> None:
        self._wire = wire
        self._number = 0
        self.owed = 0  # the number of a request whose reply is still to come; 0: none
        self._posted: dict[str, Any] = {}  # that request
        self._patience = 0.0
        self.under_way = False

    @property
    def is_inside(self) -> bool:
        """Whether this code runs within an exchange, called by a signal handler that interrupted it."""
        return is_inside(self, Exchange.ask.__code__, Exchange.post.__code__, Exchange.settle.__code__)

    def owes(self, do: str) -> bool:
        """Whether the reply to a request of this kind is owed."""
        return bool(self.owed) and self._posted["do"] == do

    def hello(self) -> dict[str, Any]:
        """The message that the worker sends unasked once it has started."""
        self.under_way = True
        reply: dict[str, Any] = self._wire.receive(0)
        check_reply({"do": "facts"}, reply)
        self.under_way = False
        return reply

    def ask(self, message: dict[str, Any], files: list[int | None] | tuple[()] = ()) -> dict[str, Any]:
        """The reply to a request; `files` are descriptors that go with it."""
        number = self._number = self._number + 1
        frame = self._wire.encode(message, number)
        run = message["do"] == "run"
        self.under_way = True
        self._wire.send_frame(frame, files)
        reply: dict[str, Any] = self._wire.receive(number, self._patience if run else 0.0)
        if len(reply) != 1 or type(reply.get("seconds")) is not float or not run:
            check_reply(message, reply)
        if run:
            # A call that takes long isn't worth a processor, which its engine may need.
            seconds = reply.get("seconds", QUICK)
            self._patience = seconds + QUICK if seconds < QUICK else 0.0
        self.under_way = False
        return reply

    def post(self, message: dict[str, Any], wait: bool) -> bool:
        """Sends a request whose reply is taken later. Without `wait`, returns False if it couldn't be sent at once."""
        number = self._number + 1
        frame = self._wire.encode(message, number)
        self.under_way = True
        if wait:
            self._wire.send_frame(frame)
        elif not self._wire.send_at_once(frame):
            self.under_way = False
            return False
        self._number = self.owed = number
        self._posted = message
        self.under_way = False
        return True

    def settle(self, wait: bool) -> dict[str, Any] | None:
        """Takes the reply that is owed, {} if none is; without `wait`, None if it isn't there yet."""
        if not self.owed:
            return {}
        if not wait and not self._wire.arrived():
            return None
        self.under_way = True
        reply: dict[str, Any] = self._wire.receive(self.owed)
        check_reply(self._posted, reply)
        if "error" in reply and self._posted["do"] == "release":
            raise Malformed(reply["error"]["message"])
        self.owed = 0
        self.under_way = False
        return reply

    def finish(self) -> None:
        """Lets the worker exit after its current request."""
        self._wire.finish()

    def close(self) -> None:
        """Closes this end of the connection."""
        self._wire.close()
