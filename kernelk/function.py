"""`K.function` and `K.eval`: feeds are checked, the program is linearised once per phase, the session runs it."""

from __future__ import annotations

import itertools
import time
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from . import config
from .bounds import drop_oldest
from .errors import ArgumentError, DTypeError, FeedError, UpdateError
from .graph import LearningPhase, Placeholder, Scan, Tensor, Update, Variable, check_generation, walk
from .host import Host
from .interchange import as_numpy
from .ops.dtypes import FLOATS, as_tensor, densified, is_sparse_matrix
from .ops.nn import PHASE
from .ops.rules import apply
from .ops.updates import update
from .program import KEY_LENGTH, Print, Program
from .reader import NeedsValuesError, update_value
from .session import Session, current
from .source import Source, caller

Array = np.ndarray[Any, Any]

# An evaluated tensor's value and a placeholder's last feed are kept for the check after a swap up to this size.
SHOWN_BYTES = 1 << 20
# Programs of a function that are kept, where lengths in them follow from the feeds' shapes.
SHAPES_KEPT = 256

# The last value that a placeholder was fed is kept for `divergence` up to this size: a copy costs some 10 us.
FED_BYTES = 1 << 18

# A function that is compiled for this many different shapes, call after call, is told of once.
MANY_SHAPES = 8

# So many programs of one function are known, where it needs another for each value of some length.
MANY_KEYS = 1024

# Functions are numbered downwards from -1: tensors' numbers, which make up their names, are left to them.
_numbers = itertools.count(-1, -1)


def compose(updates: Sequence[Any]) -> list[tuple[Variable, Tensor]]:
    """Updates, or (variable, value) pairs, as one new value for each variable, computed from the old ones.

    Several increments of a variable add up in list order; an increment follows a plain update. Raises UpdateError
    for two plain updates of one variable.
    """
    order: list[Variable] = []
    values: dict[int, Tensor] = {}
    assigned: set[int] = set()
    for entry in updates:
        if isinstance(entry, tuple) and len(entry) == 2:
            entry = update(*entry)
        if not isinstance(entry, Update):
            raise UpdateError(
                f"updates must be made by K.update, K.update_add, ... or be (variable, value) pairs, not {entry!r}"
            )
        check_generation(entry)
        variable = entry.inputs[0]
        assert isinstance(variable, Variable)
        if id(variable) not in values:
            order.append(variable)
            values[id(variable)] = update_value(entry)
        elif entry.kind == "assign":
            raise UpdateError(
                f"variable '{variable.name}' is set twice in one call ({entry.source}): "
                f"keep one K.update, or use K.update_add for increments"
            )
        else:
            values[id(variable)] = apply("add", values[id(variable)], entry.inputs[1])
        if entry.kind == "assign":
            assigned.add(id(variable))
    return [(variable, values[id(variable)]) for variable in order]


def after(tensor: Tensor, updates: Sequence[tuple[Variable, Tensor]]) -> Tensor:
    """`tensor` as it is once these updates are done: written anew on the variables' new values."""
    renewed: dict[int, Tensor] = {id(variable): value for variable, value in updates}
    for node in walk([tensor], lambda node: node.inputs):
        inputs = tuple(renewed.get(id(x), x) for x in node.inputs)
        if type(node) is Tensor and inputs != node.inputs:
            renewed[id(node)] = Tensor(node.op, inputs, node.attrs, node.shape, node.dtype, node.source)
    return renewed.get(id(tensor), tensor)


def as_feed(placeholder: Placeholder, value: Any) -> Array:
    """`value` as an array for this placeholder. Raises FeedError for a wrong shape, DTypeError for a lossy dtype.

    Floats are fed to any float placeholder (float64 data to a float32 one, as everywhere in Keras); integers to any
    placeholder that holds them; scipy.sparse matrices to sparse ones, as dense arrays; another library's tensors as
    arrays, on a CPU without a copy.
    """
    shape = placeholder.shape
    if type(value) is np.ndarray and value.dtype == placeholder.numpy_dtype and value.shape == shape:
        return value
    if isinstance(value, Tensor):
        raise FeedError(f"placeholder '{placeholder.name}' was fed a tensor; feed K.get_value(tensor) or an array")
    if is_sparse_matrix(value):
        if not placeholder.sparse:
            raise FeedError(
                f"placeholder '{placeholder.name}' ({placeholder.source}) was fed a sparse matrix: make it with "
                f"K.placeholder(..., sparse=True), or feed matrix.toarray()"
            )
        value = densified(value, f"placeholder '{placeholder.name}'")
    value = as_numpy(value, f"placeholder '{placeholder.name}'", FeedError)
    try:
        array = np.asarray(value)
    except ValueError as error:
        # Nested lists of different lengths.
        raise FeedError(f"placeholder '{placeholder.name}' was fed what is no array: {error}") from None
    if array.dtype.kind not in "biuf":
        raise FeedError(
            f"placeholder '{placeholder.name}' takes numbers, not {type(value).__name__} of dtype {array.dtype}"
        )
    if array.ndim != len(shape) or any(n is not None and n != m for n, m in zip(shape, array.shape)):
        raise FeedError(
            f"placeholder '{placeholder.name}' ({placeholder.source}) has shape {shape}, the fed array {array.shape}"
        )
    if array.dtype != placeholder.numpy_dtype:
        with np.errstate(all="ignore"):
            cast = array.astype(placeholder.numpy_dtype)
        if placeholder.dtype not in FLOATS and not np.array_equal(cast, array):
            raise DTypeError(
                f"placeholder '{placeholder.name}' is {placeholder.dtype}, the fed {array.dtype} values don't fit "
                f"into it: convert them first, e.g. x.astype('{placeholder.dtype}')"
            )
        array = cast
    return array


class Function:
    """A compiled function of placeholders; call it with a list of arrays. Works on whichever engine is active."""

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
                raise ArgumentError(f"K.function: inputs must be placeholders, not {tensor!r}")
        self.placeholders = [x for x in self.inputs if not isinstance(x, LearningPhase)]
        if len({id(x) for x in self.inputs}) != len(self.inputs):
            raise ArgumentError("K.function: a placeholder stands twice among the inputs")
        self.outputs = [as_tensor(x) for x in listed]
        self.updates = compose(updates or ())
        # Keras's mark of a metric: what its state gives with the call's own batch in it.
        self.outputs = [after(x, self.updates) if getattr(x, "_is_metric", False) else x for x in self.outputs]
        self._programs: dict[Any, Program] = {}
        self._keys: dict[str, None] = {}  # of all programs made, those of passing lengths too
        self._row: list[tuple[str, list[tuple[int, ...]]]] = []  # program and shapes of calls that had to be compiled
        self._told = False
        for tensor in (*self.inputs, *self.outputs):
            check_generation(tensor)
        if live:
            # A swap checks live functions against its target; an evaluation's passing one isn't among them.
            current().functions.add(self)

    def __call__(self, inputs: Any = ()) -> Any:
        """Feeds `inputs` (one array for each placeholder, in order) and returns the outputs as a list of ndarrays.

        Outputs show the variables as they were before the call's updates. Raises FeedError, DTypeError, ShapeError,
        EngineError or WorkerDiedError; then no variable has changed.
        """
        start = time.perf_counter()
        given = list(inputs) if isinstance(inputs, (list, tuple)) else [inputs]
        if len(given) != len(self.inputs):
            names = ", ".join(f"'{x.name}'" for x in self.inputs) or "none"
            raise FeedError(f"{self.name} takes {len(self.inputs)} inputs ({names}), {len(given)} were given")
        phase = PHASE.fixed or 0
        feeds, sources = [], []
        for placeholder, value in zip(self.inputs, given):
            if isinstance(placeholder, LearningPhase):
                phase = placeholder.fed = as_phase(value)
                placeholder.fed_shape = ()
            else:
                feeds.append(as_feed(placeholder, value))
                sources.append(value)
        session = current()
        with session.lock:
            host = session.ready_host()
            program = self.program_for(session, host.ops, phase, feeds)
            before = host.compile_count
            if session.recorder is not None:
                session.recorder.begin(self, program, phase, feeds)
            values = session.execute(host, program, feeds)
            if session.recorder is not None:
                session.recorder.end(time.perf_counter() - start)
            if host.compile_count != before:
                self._count(host, program, feeds)
            elif self._row:
                self._row.clear()
            for placeholder, feed, source in zip(self.placeholders, feeds, sources):
                keep_feed(placeholder, feed, source)
        if program.prints or program.printed:
            show_prints([*program.printed, *zip(program.prints, values[len(self.outputs) :])])
            del values[len(self.outputs) :]
        return values[0] if self.single else values

    def program_for(self, session: Session, ops: frozenset[str], phase: int, feeds: list[Array] | None) -> Program:
        """The program for a backend that defines `ops`."""
        key: Any = (phase, ops)
        found = self._programs.get(key)
        if found is not None:
            return found
        if feeds is not None:
            shapes = tuple([feed.shape for feed in feeds])
            found = self._programs.get((phase, ops, shapes))
            if found is not None:
                return found
        program, needs = linearised(session, self.placeholders, self.outputs, self.updates, phase, ops, feeds)
        self._keys[program.key] = None
        drop_oldest(self._keys, MANY_KEYS)
        if needs == "nothing":
            self._programs[key] = program
        elif needs == "shapes":
            drop_oldest(self._programs, SHAPES_KEPT)
            self._programs[phase, ops, shapes] = program
        # Else it isn't kept, since the values may be others at the next call.
        return program

    def _count(self, host: Host, program: Program, feeds: list[Array]) -> None:
        """Notes a call that had to be compiled, and says so once if they follow one another."""
        call = (program.key, [feed.shape for feed in feeds])
        if self._told or call in self._row:
            return
        self._row.append(call)
        if len(self._row) < MANY_SHAPES:
            return
        self._told = True
        shapes = [shapes for _, shapes in self._row]
        varied = [x for i, x in enumerate(self.placeholders) if any(s[i] != shapes[0][i] for s in shapes)]
        names = " and ".join(f"'{x.name}'" for x in varied)
        reason = f"for another shape of {names}" if names else "for other lengths, which its inputs' values give"
        config.say(
            f"kernelk: {host.engine.title} has compiled '{self.name}' ({self.source}) {len(self._row)} times in a row, "
            f"each {reason}: feed batches of one size, or pad them to a few sizes"
        )
        self._row.clear()

    def specialisations(self, host: Host) -> int:
        """How many compiled forms of this function, for different shapes and learning phases, an engine holds."""
        return sum(key[:KEY_LENGTH] in self._keys for key in host.compiled)

    def phases(self) -> tuple[int, ...]:
        """The learning phases that a call of this function may run in."""
        return (0, 1) if len(self.placeholders) != len(self.inputs) else (PHASE.fixed or 0,)

    def slots(self) -> list[Variable]:
        """The variables that the programs made so far read or update."""
        return list({id(x): x for program in self._programs.values() for x in program.slots}.values())

    @property
    def keys(self) -> Iterable[str]:
        """The keys of the programs made of it so far."""
        return self._keys.keys()

    @property
    def signature(self) -> str:
        """What it takes and gives: "(x(None, 2)) -> (float32()), 0 updates"."""
        takes = ", ".join(f"{x.name}{x.shape}" for x in self.inputs)
        gives = ", ".join(f"{x.dtype}{x.shape}" for x in self.outputs)
        return f"({takes}) -> ({gives}), {len(self.updates)} update{'' if len(self.updates) == 1 else 's'}"

    def __repr__(self) -> str:
        name = "" if self.name == "function" else f"{self.name!r} "
        return f"<Function {name}{self.signature}>"

    def _repr_html_(self) -> str:
        from .looks import page

        return page(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        from .looks import pretty

        pretty(self, printer)


def linearised(
    session: Session,
    inputs: Sequence[Placeholder],
    outputs: Sequence[Tensor],
    updates: Sequence[tuple[Variable, Tensor]],
    phase: int,
    ops: frozenset[str],
    feeds: list[Array] | None,
) -> tuple[Program, str]:
    """The program, and what it depends on besides its key: "nothing", the feeds' "shapes" or their "values".

    Lengths that depend on values are small integer graphs, evaluated in the kernel, which may need others first.
    Raises FeedError where there are such and no feeds.
    """
    values: dict[int, Array] = {}
    printed: list[tuple[Print, Array]] = []
    needs = "nothing"
    while True:
        try:
            made = Program(inputs, outputs, updates, phase, ops, values)
            made.printed = printed
            return made, needs
        except NeedsValuesError as needed:
            if feeds is None:
                raise FeedError("these tensors' shapes depend on values that are fed") from None
            host = session.host("numpy")
            host.start()
            program, inner = linearised(session, inputs, needed.tensors, (), phase, host.ops, feeds)
            found = program.from_shapes([feed.shape for feed in feeds])
            needs = "values" if found is None or program.prints or "values" in (needs, inner) else "shapes"
            if found is None:
                found = session.execute(host, program, feeds)
            values.update({id(tensor): value for tensor, value in zip(needed.tensors, found)})
            # What is printed on the way stands behind the outputs that were asked for.
            printed += [*program.printed, *zip(program.prints, found[len(needed.tensors) :])]


def show_prints(prints: Sequence[tuple[Print, Array]]) -> None:
    """Shows what `K.print_tensor` asked for, once for each, in the order in which the lines were written.

    What stands in a loop's step is shown step by step, in the order of the steps.
    """
    _show([(one.node, one.loops, as_numpy(value, one.node.name)) for one, value in dict(prints).items()])


def _show(entries: Sequence[tuple[Tensor, tuple[Scan, ...], Array]]) -> None:
    groups: dict[Tensor, list[tuple[Tensor, tuple[Scan, ...], Array]]] = {}
    for entry in sorted(entries, key=lambda entry: entry[0].uid):
        groups.setdefault(entry[1][0] if entry[1] else entry[0], []).append(entry)
    for whole, group in groups.items():
        if isinstance(whole, Scan):
            steps = range(len(group[0][2]))
            for t in reversed(steps) if whole.body.reverse else steps:
                _show([(node, loops[1:], values[t, ...]) for node, loops, values in group])
            continue
        message = whole.attrs["message"]
        prefix = message if not message or message[-1].isspace() else f"{message} "
        print(prefix + np.array2string(group[0][2], prefix=prefix.rpartition("\n")[2]))


def keep_feed(placeholder: Placeholder, feed: Array, source: Any) -> None:
    """Notes what a placeholder was fed: a copy of small data; of a large array, the `source`, only which it was."""
    placeholder.fed_shape = feed.shape
    if feed.nbytes > FED_BYTES:
        placeholder.fed = weakref.ref(source) if type(source) is np.ndarray else None
        return
    kept = placeholder.fed
    if type(kept) is np.ndarray and kept.shape == feed.shape:
        # Into the same memory: fresh pages cost more than the copy.
        kept[...] = feed
    else:
        placeholder.fed = feed.copy()


def last_feed(placeholder: Placeholder) -> Any:
    """What a placeholder was fed last (a large array as it is now), None where that isn't known any more."""
    kept = placeholder.fed
    return kept() if isinstance(kept, weakref.ref) else kept.copy() if isinstance(kept, np.ndarray) else kept


def as_phase(value: Any) -> int:
    """A fed learning phase as 0 or 1. Raises FeedError."""
    array = np.asarray(value)
    if array.size != 1 or array.reshape(()).item() not in (0, 1):
        raise FeedError(f"the learning phase is 0 (test) or 1 (train), not {value!r}")
    return int(array.reshape(()).item())


def function(inputs: Any, outputs: Any, updates: Any = None, **kwargs: Any) -> Function:
    """A callable that takes a list of arrays for `inputs` and returns `outputs` as arrays, then performs `updates`.

    `outputs`: a list of tensors (a list is returned), or one tensor. `updates`: made by `K.update...`, or (variable,
    value) pairs. Keyword arguments: `name`. Raises ArgumentError for others, since no engine but TensorFlow 1 had them.
    """
    name = kwargs.pop("name", None)
    if kwargs:
        raise ArgumentError(
            f"K.function: {', '.join(sorted(kwargs))} belongs to TensorFlow 1 sessions and has no meaning here; "
            f"leave it out"
        )
    return Function(inputs, outputs, updates, name)


def evaluate(x: Any, feeds: dict[Tensor, Any] | None = None) -> Array:
    """The value of a tensor as an ndarray; `feeds` maps placeholders to arrays. An update is performed.

    Raises FeedError for a placeholder that isn't fed.
    """
    tensor = as_tensor(x)
    session = current()
    if isinstance(tensor, Variable):
        return session.read(tensor)
    # Converted once, and looked at twice.
    feeds = {x: as_numpy(value, f"placeholder '{x.name}'", FeedError) for x, value in (feeds or {}).items()}
    updates = [tensor] if isinstance(tensor, Update) else []
    call = Function(list(feeds), [tensor], updates, live=False)
    value: Array = call(list(feeds.values()))[0]
    if value.nbytes <= SHOWN_BYTES and not updates:
        session.show(tensor, feeds, value, call.slots())
    return value


def _eval(self: Tensor, feeds: dict[Tensor, Any] | None = None) -> Array:
    """The tensor's value as an ndarray; `feeds` maps placeholders to their values."""
    return evaluate(self, feeds)


Tensor.eval = _eval  # type: ignore[method-assign]
