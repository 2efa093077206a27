"""Ctrl-C during a call: deferred to the end of a commit; a worker that computes on is ended after a grace period."""

from __future__ import annotations

import _signal as _signal_module  # type: ignore[import-not-found]
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

# `signal.signal` wraps numbers in enums, which costs more than the rest of a held block, and one stands around every
# call of a worker; the C functions under it take plain numbers.
_signal: Any = _signal_module.signal
_getsignal: Any = _signal_module.getsignal
_SIGINT = int(signal.SIGINT)


def _main_thread() -> int | None:
    return threading.main_thread().ident


class DeferInterrupt:
    """Defers Ctrl-C inside the block and raises KeyboardInterrupt at its end, so that a commit is never cut in two.

    At the first Ctrl-C a timer of `grace` seconds starts that calls `give_up` (the call may still end well before it);
    a second Ctrl-C calls it at once. Outside the main thread, where no signal arrives, it does nothing.
    """

    def __init__(self, give_up: Callable[[], None], grace: float) -> None:
        self._give_up = give_up
        self._grace = grace
        self._timer: threading.Timer | None = None
        self._previous: Any = None
        self._holding = False
        self.interrupted = False

    def __enter__(self) -> DeferInterrupt:
        if threading.get_ident() == _main_thread():
            previous = _getsignal(_SIGINT)
            # A process that ignores Ctrl-C goes on ignoring it; a block inside another leaves it to the outer one.
            if callable(previous) and getattr(previous, "__func__", None) is not DeferInterrupt._on_signal:
                self._previous = previous
                _signal(_SIGINT, self._on_signal)
                self._holding = True
        return self

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.interrupted or self._grace <= 0:
            self.interrupted = True
            self._give_up()
            return
        self.interrupted = True
        self._timer = threading.Timer(self._grace, self._give_up)
        self._timer.daemon = True
        self._timer.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._holding:
            return
        _signal(_SIGINT, self._previous)
        if self._timer is not None:
            self._timer.cancel()
        if self.interrupted:
            raise KeyboardInterrupt from error


def shield() -> DeferInterrupt:
    """A block that must not be cut in two: it goes on to its end, and Ctrl-C counts after it."""
    return DeferInterrupt(_give_nothing_up, 0.0)


def _give_nothing_up() -> None:
    """Ctrl-C ends nothing early."""
