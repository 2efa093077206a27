"""The part of a session that recording needs: generation, numbers, scope, seeds, phase. Imports nothing heavy."""

from __future__ import annotations

import contextlib
import itertools
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from ..visitors import PerVisitor
from .seeds import Seeds

if TYPE_CHECKING:
    from .nodes import LearningPhase, Tensor, Update, Variable


class Generation:
    """A session's time from one `K.clear_session()` to the next. A tensor keeps the one that it was made in.

    Compared by identity, so that no two sessions of a process ever share one.
    """

    __slots__ = ("ended",)

    def __init__(self) -> None:
        self.ended = False


class Contexts(threading.local):
    """The contexts that a thread has opened: what two threads record at once stands each in its own."""

    scope = ""  # the name scopes, joined by slashes
    # The updates that tensors made now come after, and what these set variables to: see K.control_dependencies.
    dependencies: tuple[Update, ...] = ()
    renewed: Mapping[Variable, Tensor] = MappingProxyType({})


class State:
    """Everything that recording an op reads or changes besides the graph itself. Each session has one."""

    __slots__ = (
        "__weakref__",
        "contexts",
        "fixed_phase",
        "generation",
        "gradient_spans",
        "numbers",
        "ordered",
        "phase_placeholder",
        "seeds",
        "session",
        "uids",
    )

    def __init__(self) -> None:
        self.generation = Generation()
        self.numbers = itertools.count()  # of tensors, in the order in which they are made
        self.contexts = Contexts()
        self.uids: defaultdict[str, int] = defaultdict(int)  # see K.get_uid
        self.seeds = Seeds()
        # Between which numbers the nodes lie that `K.gradients` has made, one pair for each of its calls, in order.
        self.gradient_spans: list[tuple[int, int]] = []
        self.ordered = False  # whether any tensor has dependencies
        self.fixed_phase: int | None = None  # by K.set_learning_phase
        self.phase_placeholder: LearningPhase | None = None  # made when it is first asked for
        self.session: Any = None  # the Session that it belongs to, once there is one; nothing here looks into it

    def clear(self) -> None:
        """Makes all tensors stale, and forgets the learning phase."""
        self.generation.ended = True
        self.generation = Generation()
        self.uids.clear()
        self.gradient_spans.clear()
        self.ordered = False
        self.fixed_phase = None
        self.phase_placeholder = None


# A thread that a user's cell starts has a context of its own: in a process with one session it must find that one.
PROCESS_STATE = State()
_STATE: ContextVar[State] = ContextVar("kernelk_state", default=PROCESS_STATE)


def _left(state: State) -> None:
    if state.session is not None:
        with entered(state):
            state.session.end()


_VISITORS = PerVisitor("state", State, _left)


def visitors_state() -> State:
    """The state that this thread or task has entered, else its visitor's, else the process's. Raises KernelKError."""
    here = _STATE.get()
    return here if here is not PROCESS_STATE else _VISITORS.get() or here


# The state of the session that runs here. Each recorded op asks: the bound method costs half of what a function would.
# Only marimo has visitors, and it is there before the notebooks that it runs.
current_state: Callable[[], State] = visitors_state if "marimo" in sys.modules else _STATE.get


class _Entered:
    # A class, since a generator takes twice as long, and one stands around every swap.
    __slots__ = ("_state", "_token")

    def __init__(self, state: State) -> None:
        self._state = state

    def __enter__(self) -> None:
        self._token = _STATE.set(self._state)

    def __exit__(self, *_: object) -> None:
        _STATE.reset(self._token)


@contextlib.contextmanager
def unordered() -> Iterator[None]:
    """What is recorded inside is no part of the user's `K.control_dependencies`: it writes out what they have made."""
    contexts = current_state().contexts
    kept = contexts.dependencies, contexts.renewed
    contexts.dependencies, contexts.renewed = (), {}
    try:
        yield
    finally:
        contexts.dependencies, contexts.renewed = kept


def entered(state: State) -> AbstractContextManager[None]:
    """Records ops inside the block, in this thread or asyncio task, for the session that the state belongs to."""
    return _Entered(state)
