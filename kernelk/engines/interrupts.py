"""Handles Ctrl-C during a call: defers it to the end of a commit, and ends a busy worker after a grace period.

Also detects calls made by the user's own signal handlers in the middle of another call.
"""

from __future__ import annotations

import _signal as _signal_module  # type: ignore[import-not-found]
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable
from types import CodeType, FrameType, TracebackType
from typing import Any

from ..errors import end_at_users_line

# `signal.signal` wraps numbers in enums, which costs more than the rest of a held block, and one stands around every
# call of a worker; the C functions under it take plain numbers.
_signal: Any = _signal_module.signal
_getsignal: Any = _signal_module.getsignal
_SIGINT = int(signal.SIGINT)

# The outermost block that is open, and the handler from before it. An exception that comes in while a block is entered
# or left keeps it from being closed: then the block is gone, or only that exception's traceback holds it, and the code
# that entered it isn't running any more.
_open: weakref.ref[DeferInterrupt] | None = None
_previous: Any = None


_main_thread: int | None = None


def _find_main_thread() -> None:
    global _main_thread
    _main_thread = threading.main_thread().ident


# Every call asks, and a forked process has another one.
_find_main_thread()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_find_main_thread)


def _current_block(frame: FrameType | None) -> DeferInterrupt | None:
    """The outermost block if it is still open: if the code that entered it is running, in this frame or further out."""
    block = None if _open is None else _open()
    while block is not None and frame is not None:
        if frame.f_code is block._code and id(frame) == block._frame:
            return block
        frame = frame.f_back
    return None


def _on_signal(number: int, frame: FrameType | None) -> None:
    block = _current_block(frame)
    if block is not None:
        block.interrupt()
    else:
        _signal(_SIGINT, _previous)
        _previous(number, frame)


def is_deferred() -> bool:
    """Whether Ctrl-C waits for the end of a block that is open."""
    return _getsignal(_SIGINT) is _on_signal


class DeferInterrupt:
    """Defers Ctrl-C inside the block and raises KeyboardInterrupt at its end, so that a commit is never cut in two.

    At the first Ctrl-C a timer of `grace` seconds starts that calls `give_up` (the call may still end well before it);
    a second Ctrl-C calls it at once. Outside the main thread, where no signal arrives, it does nothing.
    """

    __slots__ = (
        "__weakref__",
        "_code",
        "_frame",
        "_give_up",
        "_grace",
        "_holding",
        "_previous",
        "_timer",
        "interrupted",
    )

    def __init__(self, give_up: Callable[[], None], grace: float) -> None:
        self._give_up = give_up
        self._grace = grace
        self._code: CodeType | None = None
        self._frame = 0
        self._timer: threading.Timer | None = None
        self._holding = False
        self._previous: Any = None
        self.interrupted = False

    def __enter__(self) -> DeferInterrupt:
        global _open, _previous
        if threading.get_ident() == _main_thread:
            previous = _getsignal(_SIGINT)
            frame = sys._getframe(1)
            if previous is _on_signal:
                # A block inside another leaves it to the outer one.
                if _current_block(frame) is None:
                    self._note(frame)
                    _open = weakref.ref(self)
                    self._previous = _previous
                    self._holding = True
            # A process that ignores Ctrl-C keeps ignoring it.
            elif callable(previous):
                self._note(frame)
                self._previous = _previous = previous
                _open = weakref.ref(self)
                self._holding = True
                _signal(_SIGINT, _on_signal)
        return self

    def _note(self, frame: FrameType) -> None:
        # By number: a frame that is held would hold its variables, and this block among them.
        self._code, self._frame = frame.f_code, id(frame)

    def interrupt(self) -> None:
        """Handles Ctrl-C while the block is open."""
        if self.interrupted or self._grace <= 0:
            self.interrupted = True
            self._give_up()
            return
        self.interrupted = True
        self._timer = threading.Timer(self._grace, _give_up_on, [weakref.ref(self)])
        self._timer.daemon = True
        self._timer.start()

    def give_up(self) -> None:
        """Ends what the block waits for."""
        self._give_up()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._holding:
            return
        _signal(_SIGINT, self._previous)
        if self._timer is not None:
            self._timer.cancel()
        if self.interrupted:
            # What came of ending the worker, or of the call that was still waited for, tells the user nothing.
            raise end_at_users_line(KeyboardInterrupt()) from None


def _give_up_on(block: weakref.ref[DeferInterrupt]) -> None:
    waiting = block()
    # Called by a timer's thread.
    if waiting is not None and _current_block(sys._current_frames().get(_main_thread or 0)) is waiting:
        waiting.give_up()


def shield() -> DeferInterrupt:
    """A block that runs to its end: Ctrl-C inside takes effect after it."""
    return DeferInterrupt(_give_nothing_up, 0.0)


def _give_nothing_up() -> None:
    """Ctrl-C ends nothing early."""


def is_inside(owner: object, *codes: CodeType) -> bool:
    """Whether one of these methods of `owner` is running further out: then this is a signal handler or a finalizer.

    For a check that is called where such a method begins: that one itself isn't meant.
    """
    frame: FrameType | None = sys._getframe(3)
    while frame is not None:
        if frame.f_code in codes and frame.f_locals.get("self") is owner:
            return True
        frame = frame.f_back
    return False
