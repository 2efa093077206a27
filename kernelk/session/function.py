"""`K.function` and `K.eval`: feeds are checked, the program is linearised once per phase, the session runs it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..arrays import Array
from ..display import messages
from ..engines import memory
from ..engines.host import Host
from ..errors import ArgumentError, FeedError
from ..eviction import drop_oldest
from ..graph.nodes import (
    LearningPhase,
    Placeholder,
    Tensor,
    Update,
    Variable,
    check_generation,
    dependencies_of,
    stale,
)
from ..graph.state import current_state, unordered
from ..ops.dtypes import FLOATS, as_tensor
from ..ops.foreign import as_numpy
from ..ops.updates import after, compose
from ..program.program import KEY_LENGTH, Program
from ..source import Source, caller
from .current import current
from .feeds import as_feed, as_phase, keep_feed
from .linearise import linearised
from .loss_history import LossHistory
from .prints import show_prints
from .session import Session

# An evaluated tensor's value and a placeholder's last feed are kept for the check after a swap up to this size.
SHOWN_BYTES = 1 << 20
# Programs of a function that are kept, where lengths in them follow from the feeds' shapes.
SHAPES_KEPT = 256


# After so many calls in a row that had to be compiled for different shapes, a message is shown once.
MANY_SHAPES = 8

# At most so many programs of one function are kept, if each value of some length needs another.
MANY_KEYS = 1024

# Functions are numbered downwards from -1, so that they take no numbers from tensors, whose names contain them.
_numbers = itertools.count(-1, -1)


class Function:
    """A compiled function of placeholders; call it with a list of arrays. Works on whichever engine is active."""

    # What its user knows it as, and how its placeholders come to be fed, for messages.
    what = "K.function"
    feeding = ""

    def __init__(
        self,
        inputs: Sequence[Any],
        outputs: Any,
        updates: Sequence[Any] | None = None,
        name: str | None = None,
        live: bool = True,
    ) -> None:
        self.source: Source = caller()
        self.uid = next(_numbers)
        self.name = name or "function"
        self.single = isinstance(outputs, Tensor)
        listed = [outputs] if self.single else list(outputs)
        self.inputs = list(inputs)
        for tensor in self.inputs:
            if not isinstance(tensor, Placeholder):
                raise ArgumentError(f"K.function: {tensor!r} is no input", allowed="inputs must be placeholders")
        self.placeholders = [x for x in self.inputs if not isinstance(x, LearningPhase)]
        if len({id(x) for x in self.inputs}) != len(self.inputs):
            raise ArgumentError(
                "K.function: a placeholder appears twice in the inputs", allowed="each may be there once"
            )
        self.outputs = [as_tensor(x) for x in listed]
        if any(isinstance(x, (list, tuple)) and any(isinstance(part, Tensor) for part in x) for x in listed):
            raise ArgumentError(
                "K.function: one of the outputs is a list of tensors",
                allowed="each is a tensor",
                next_step="K.function([x], [y, *K.gradients(y, [w])])",
            )
        with unordered():
            self.updates = compose(self._with_dependencies(updates or ()))
            # Keras marks a metric's result like this: it is computed from the state after the call's own batch.
            self.outputs = [after(x, self.updates) if getattr(x, "_is_metric", False) else x for x in self.outputs]
        self._programs: dict[Any, Program] = {}
        self._keys: dict[str, None] = {}  # of all programs made, those of passing lengths too
        self._row: list[tuple[str, list[tuple[int, ...]]]] = []  # program and shapes of calls that had to be compiled
        self._hint_shown = False
        self.scalars = False  # whether numbers are returned as numpy's scalars, not as arrays without axes
        first = self.outputs[0] if self.outputs else None
        trains = live and bool(self.updates) and first is not None and first.shape == () and first.dtype in FLOATS
        self.losses = LossHistory() if trains else None
        for tensor in (*self.inputs, *self.outputs):
            check_generation(tensor)
        session = current()
        self.generation = session.state.generation
        if live:
            # A swap checks live functions against its target, but not the temporary one of an evaluation.
            session.functions.add(self)

    def _with_dependencies(self, updates: Sequence[Any]) -> Sequence[Any]:
        """The updates, and those that come before an output or another update by `K.control_dependencies`."""
        roots = [*self.outputs, *(x for x in updates if isinstance(x, Tensor))]
        roots += [x[1] for x in updates if isinstance(x, tuple) and len(x) == 2 and isinstance(x[1], Tensor)]
        return [*dependencies_of(roots), *updates]

    def __call__(self, inputs: Any = ()) -> Any:
        """Feeds `inputs` (one array for each placeholder, in order) and returns the outputs as a list of ndarrays.

        Outputs show the variables as they were before the call's updates. Raises FeedError, DTypeError, ShapeError,
        EngineError or WorkerDiedError; then no variable has changed.
        """
        start = time.perf_counter()
        given = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        if len(given) != len(self.inputs):
            names = ", ".join(f"'{x.name}'" for x in self.inputs) or "none"
            takes = f"{len(self.inputs)} input{'' if len(self.inputs) == 1 else 's'} ({names})"
            were = "was" if len(given) == 1 else "were"
            raise FeedError(
                f"{self.name} takes {takes}, but {len(given)} {were} given",
                next_step=f"call it with a list of them, f([{', '.join(x.name for x in self.inputs)}])",
            )
        session = current()
        if self.generation is not session.state.generation and not self.generation.ended:
            raise stale(self.name, self.source, self.generation)
        phase = session.state.fixed_phase or 0
        feeds, sources = [], []
        try:
            for placeholder, value in zip(self.inputs, given):
                if isinstance(placeholder, LearningPhase):
                    phase = placeholder.fed = as_phase(value)
                    placeholder.fed_shape = ()
                else:
                    feeds.append(as_feed(placeholder, value, stays=True))
                    sources.append(value)
            with session.lock:
                host = session.ready_host()
                program = self.program_for(session, host.ops, phase, feeds)
                before = host.compile_count
                if session.recorder is not None:
                    session.recorder.begin(self, program, phase, feeds)
                values = session.calls.execute(host, program, feeds)
                if session.recorder is not None:
                    session.recorder.end(time.perf_counter() - start)
                if self.losses is not None:
                    self.losses.add(host.engine.name, values[0])
                if host.compile_count != before:
                    self._count(host, program, feeds)
                elif self._row:
                    self._row.clear()
                for placeholder, feed, source in zip(self.placeholders, feeds, sources):
                    keep_feed(placeholder, feed, source)
        except MemoryError as error:
            raise memory.shown(self.name, error) from None
        if self.losses is not None and session.loss_listener is not None:
            session.loss_listener()
        if program.prints or program.printed:
            show_prints([*program.printed, *zip(program.prints, values[len(self.outputs) :])])
            del values[len(self.outputs) :]
        if self.scalars:
            values = [value if value.ndim else value[()] for value in values]
        return values[0] if self.single else values

    def program_for(self, session: Session, ops: frozenset[str], phase: int, feeds: list[Array] | None) -> Program:
        """The program for a backend that defines `ops`."""
        key: Any = (phase, ops)
        known = self._programs.get(key)
        if known is not None:
            return known
        if feeds is not None:
            shapes = tuple([feed.shape for feed in feeds])
            known = self._programs.get((phase, ops, shapes))
            if known is not None:
                return known
        with unordered():
            program, needs = linearised(session, self.placeholders, self.outputs, self.updates, phase, ops, feeds)
        self._keys[program.key] = None
        drop_oldest(self._keys, MANY_KEYS)
        if needs == "nothing":
            self._programs[key] = program
        elif needs == "shapes":
            drop_oldest(self._programs, SHAPES_KEPT)
            self._programs[phase, ops, shapes] = program
        # Otherwise it isn't kept, since the values may differ at the next call.
        return program

    def _count(self, host: Host, program: Program, feeds: list[Array]) -> None:
        """Counts calls in a row that had to be compiled, and shows a message once if there are many."""
        call = (program.key, [feed.shape for feed in feeds])
        if self._hint_shown or call in self._row:
            return
        self._row.append(call)
        if len(self._row) < MANY_SHAPES:
            return
        self._hint_shown = True
        shapes = [shapes for _, shapes in self._row]
        varied = [x for i, x in enumerate(self.placeholders) if any(s[i] != shapes[0][i] for s in shapes)]
        names = " and ".join(f"'{x.name}'" for x in varied)
        reason = f"for another shape of {names}" if names else "for other lengths, which depend on its inputs' values"
        messages.say(
            f"kernelk: {host.engine.title} has compiled '{self.name}' ({self.source}) {len(self._row)} times in a row, "
            f"each {reason}: feed batches of one size, or pad them to a few sizes"
        )
        self._row.clear()

    def specialisations(self, host: Host) -> int:
        """The number of compiled forms of this function, for different shapes and learning phases, on an engine."""
        return sum(key[:KEY_LENGTH] in self._keys for key in host.compiled)

    def phases(self) -> tuple[int, ...]:
        """The learning phases that a call of this function may run in."""
        return (0, 1) if len(self.placeholders) != len(self.inputs) else (current_state().fixed_phase or 0,)

    def slots(self) -> list[Variable]:
        """The variables that the programs made so far read or update."""
        return list({id(x): x for program in self._programs.values() for x in program.slots}.values())

    @property
    def keys(self) -> Iterable[str]:
        """The keys of the programs made of it so far."""
        return self._keys.keys()

    def __copy__(self) -> Function:
        # Its only state is its compiled programs.
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Function:
        return self

    @property
    def roots(self) -> list[Tensor]:
        """Its outputs and its updates' values."""
        return [*self.outputs, *(value for _, value in self.updates)]

    @property
    def signature(self) -> str:
        """Its inputs and outputs: "(x(None, 2)) -> (float32()), 0 updates"."""
        takes = ", ".join(f"{x.name}{x.shape}" for x in self.inputs)
        gives = ", ".join(f"{x.dtype}{x.shape}" for x in self.outputs)
        return f"({takes}) -> ({gives}), {len(self.updates)} update{'' if len(self.updates) == 1 else 's'}"

    def __repr__(self) -> str:
        name = "" if self.name == "function" else f"{self.name!r} "
        return f"<Function {name}{self.signature}>"


def function(inputs: Any, outputs: Any, updates: Any = None, **kwargs: Any) -> Function:
    """A callable that takes a list of arrays for `inputs` and returns `outputs` as arrays, then performs `updates`.

    `outputs`: a list of tensors (a list is returned), or one tensor. `updates`: made by `K.update...`, or (variable,
    value) pairs. Keyword arguments: `name`. Raises ArgumentError for others, since no engine but TensorFlow 1 had them.
    """
    name = kwargs.pop("name", None)
    if kwargs:
        raise ArgumentError(
            f"K.function: {', '.join(sorted(kwargs))} belongs to TensorFlow 1 sessions and has no meaning here",
            next_step="leave it out",
        )
    inputs = _as_list(inputs, "the inputs are a list of placeholders", "K.function([x], [y])")
    if not isinstance(outputs, Tensor):
        outputs = _as_list(outputs, "the outputs are a tensor or a list of tensors", "K.function([x], [y])")
    if updates is not None:
        updates = _as_list(updates, "the updates are a list", "K.function([x], [y], [K.update(v, value)])")
    return Function(inputs, outputs, updates, name)


def _as_list(value: Any, what: str, example: str) -> list[Any]:
    # A tensor is also a sequence of its rows.
    if isinstance(value, (Tensor, str)) or not isinstance(value, Iterable):
        given = "a tensor" if isinstance(value, Tensor) else type(value).__name__
        raise ArgumentError(f"K.function: {what}, not {given}", next_step=example)
    return list(value)


def checked_keys(feeds: Any) -> None:
    """Raises ArgumentError for feeds that don't map placeholders to arrays."""
    given = type(feeds).__name__
    if isinstance(feeds, Mapping):
        given = next((f"{type(key).__name__} {key!r}" for key in feeds if not isinstance(key, Placeholder)), "")
    if given:
        raise ArgumentError(f"eval: feeds map placeholders to arrays, not {given}", next_step="y.eval({x: array})")


def evaluate(x: Any, feeds: dict[Tensor, Any] | None = None) -> Array:
    """The value of a tensor as an ndarray; `feeds` maps placeholders to arrays. Evaluating an update performs it.

    Raises FeedError for a placeholder that isn't fed.
    """
    tensor = as_tensor(x)
    session = current()
    if feeds:
        checked_keys(feeds)
    if isinstance(tensor, Variable):
        return session.read(tensor)
    # Converted once, since it is used twice.
    feeds = {x: as_numpy(value, f"placeholder '{x.name}'", FeedError) for x, value in (feeds or {}).items()}
    updates = [tensor] if isinstance(tensor, Update) else []
    call = Function(list(feeds), [tensor], updates, live=False)
    value: Array = call(list(feeds.values()))[0]
    if value.nbytes <= SHOWN_BYTES and not call.updates:
        session.show(tensor, feeds, value, call.slots())
    return value


def _eval(self: Tensor, feeds: dict[Tensor, Any] | None = None, *, feed_dict: Any = None, session: Any = None) -> Array:
    """The tensor's value as an ndarray; `feeds`, or TensorFlow 1's `feed_dict`, maps placeholders to their values."""
    if session is not None:
        raise ArgumentError("eval: there are no TensorFlow sessions here", next_step="y.eval({x: array})")
    if feeds is not None and feed_dict is not None:
        raise ArgumentError("eval: feeds and feed_dict are both given", next_step="y.eval({x: array})")
    return evaluate(self, feed_dict if feeds is None else feeds)


Tensor.eval = _eval  # type: ignore[method-assign,assignment]
