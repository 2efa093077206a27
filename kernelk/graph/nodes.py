"""First stage of a call: every K function records a node here, with its shape, dtype and the user's own line."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from ..arrays import Array
from ..errors import ArgumentError, KernelKError, StaleTensorError
from ..source import Source, caller
from .seeds import Count
from .state import Generation, State, current_state

if TYPE_CHECKING:
    from ..engines.storage import Slots

Shape: TypeAlias = "tuple[int | None, ...]"

_EMPTY: dict[str, Any] = {}


class Spec(NamedTuple):
    """Shape and dtype alone: what inference needs to know of an operand."""

    shape: Shape
    dtype: str


Inference: TypeAlias = Callable[..., tuple[Shape, str]]


class Dimension(int):
    """A length that is known: an int with a `value`, as TensorFlow 1's lengths have it."""

    __slots__ = ()

    @property
    def value(self) -> int:
        """The length as a plain int."""
        return int(self)


class UnknownDimension:
    """A length of `get_shape()` that isn't known: equal to None, which is its `value`."""

    value = None

    def __eq__(self, other: object) -> bool:
        return other is None or isinstance(other, UnknownDimension)

    def __hash__(self) -> int:
        return hash(None)

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "None"


class StaticShape(tuple["int | None", ...]):
    """A tensor's static shape: a tuple of ints and None that has what TensorFlow 1's has, too.

    `as_list()`, `ndims`, and the `value` of a length.
    """

    __slots__ = ()

    def __new__(cls, lengths: Iterable[Any]) -> StaticShape:
        return super().__new__(cls, [n if type(n) is not int else Dimension(n) for n in lengths])

    def as_list(self) -> list[int | None]:
        """The lengths as plain ints, None where they aren't known."""
        return [int(n) if isinstance(n, int) else None for n in self]

    @property
    def ndims(self) -> int:
        """The number of axes."""
        return len(self)


class TensorShape(StaticShape):
    """What `get_shape()` gives: a part of it is one as well, and lengths that aren't known have a `value`, too."""

    __slots__ = ()

    def __new__(cls, lengths: Iterable[Any]) -> TensorShape:
        return super().__new__(cls, [UnknownDimension() if n is None else n for n in lengths])  # type: ignore[return-value]

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index)
        return TensorShape(part) if isinstance(index, slice) else part


# Of the shapes last met, so that ops in a row share one.
_SHAPES: dict[Shape, StaticShape] = {}
_MOST_SHAPES = 4096


def _static(shape: Shape) -> StaticShape:
    known = _SHAPES.get(shape)
    if known is None:
        if len(_SHAPES) >= _MOST_SHAPES:
            _SHAPES.clear()
        known = _SHAPES[shape] = StaticShape(shape)
    return known


class _KerasShape:
    """A tensor's `_keras_shape` until Keras sets another: its static shape, in plain ints, since it goes to files."""

    def __get__(self, tensor: Tensor, owner: type) -> Shape:
        return tuple(tensor.shape.as_list())


class _UsesLearningPhase:
    """A tensor's `_uses_learning_phase` until Keras sets it: True where a value depends on the phase.

    Else it is False on placeholders and variables, as Keras's backend for TensorFlow sets it, and absent elsewhere.
    """

    def __get__(self, tensor: Tensor | None, owner: type) -> Any:
        if tensor is None:
            return self
        if depends_on_phase(tensor):
            return True
        if isinstance(tensor, (Placeholder, Variable)):
            return False
        # Keras asks with `hasattr`, too.
        raise AttributeError("_uses_learning_phase: this tensor's value doesn't depend on the learning phase")


class Tensor:
    """The value of one recorded op: `op`, `inputs`, `attrs`, `shape` (None: unknown), `dtype`, `name`, `source`.

    Takes any further attribute, because Keras sets its own. `==` and `hash` are identity; compare with `K.equal`.
    Arithmetic, `<`, `>` and indexing record elementwise ops; `eval()` computes the value.
    """

    __slots__ = (
        "__dict__",
        "__weakref__",
        "_name",
        "attrs",
        "dtype",
        "expansion",
        "generation",
        "inputs",
        "op",
        "phased",
        "scope",
        "shape",
        "source",
        "uid",
    )
    # Whether it was given as a sparse matrix, as Keras asks; every value is computed densely.
    sparse = False
    # Keras reads it on any tensor, and sets its own.
    _uses_learning_phase = _UsesLearningPhase()
    # The updates that are performed whenever the value is computed: see K.control_dependencies.
    dependencies: tuple[Update, ...] = ()

    def __init__(
        self,
        op: str,
        inputs: tuple[Tensor, ...],
        attrs: dict[str, Any],
        shape: Shape,
        dtype: str,
        source: Source,
        name: str | None = None,
    ) -> None:
        self.op = op
        self.inputs = inputs
        self.attrs = attrs
        self.shape = shape if type(shape) is StaticShape else _static(shape)
        self.dtype = dtype
        self.source = source
        state = current_state()
        self.uid = next(state.numbers)
        self.generation = state.generation
        contexts = state.contexts
        self.scope = contexts.scope
        self.expansion: Tensor | None = None
        self.phased: bool | None = None  # once asked for: see `depends_on_phase`
        if contexts.dependencies:
            self.dependencies = contexts.dependencies
        self._name = f"{self.scope}/{name}" if name and self.scope else name

    @property
    def name(self) -> str:
        """The given name, or one made of the op and a running number; after those of the name scopes around it."""
        if self._name:
            return self._name
        made = f"{self.op}_{self.uid}"
        return f"{self.scope}/{made}" if self.scope else made

    @name.setter
    def name(self, value: str) -> None:
        self._name = value

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def get_shape(self) -> TensorShape:
        """The static shape, as code for TensorFlow 1 asks for it."""
        return TensorShape(self.shape)

    if TYPE_CHECKING:
        # Keras sets it; placeholders and variables have it from the start.
        _keras_shape: Any

        # Entered by function.
        def eval(self, feeds: dict[Tensor, Any] | None = None, **options: Any) -> Array: ...

        # Entered by ops.operators.
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __floordiv__(self, other: Any) -> Tensor: ...
        def __rfloordiv__(self, other: Any) -> Tensor: ...
        def __mod__(self, other: Any) -> Tensor: ...
        def __rmod__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __rpow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __rmatmul__(self, other: Any) -> Tensor: ...
        def __and__(self, other: Any) -> Tensor: ...
        def __rand__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __ror__(self, other: Any) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __abs__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __getitem__(self, key: Any) -> Tensor: ...

    def _no_value(self, what: str) -> KernelKError:
        return ArgumentError(
            f"{what} of the symbolic tensor '{self.name}' isn't known while the graph is being built",
            next_step="use K.eval(tensor) for its value, K.equal, K.switch or K.in_train_phase in the graph",
        )

    def __bool__(self) -> bool:
        raise self._no_value("the truth value")

    def __len__(self) -> int:
        if not self.shape or self.shape[0] is None:
            raise self._no_value("the length")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __float__(self) -> float:
        raise self._no_value("the value")

    def __int__(self) -> int:
        raise self._no_value("the value")

    def __index__(self) -> int:
        raise self._no_value("the value")

    def __round__(self, digits: Any = None) -> Any:
        raise self._no_value("the value")

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other

    def __copy__(self) -> Tensor:
        # A recorded node never changes: the tensor still stands for the same op of the same variables.
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        return self

    def __repr__(self) -> str:
        # A given name doesn't show the op.
        op = f" op={self.op}" if self._name and type(self) is Tensor else ""
        return f"<{type(self).__name__} {self.name!r}{op} shape={self.shape} dtype={self.dtype}>"


class Placeholder(Tensor):
    """A value fed at each call; `fed` is what `function` keeps of the last one, `fed_shape` its shape."""

    _keras_shape = _KerasShape()
    fed: Any = None
    fed_shape: tuple[int, ...] | None = None

    @cached_property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype that feeds are brought to."""
        return np.dtype(self.dtype)


class LearningPhase(Placeholder):
    """0 (test, the default) or 1 (train): decided at each call, before the graph is linearised."""


class StepInput(Placeholder):
    """An argument of a loop's step function; it has a value inside the loop only."""


class Body:
    """The step of a loop as a graph: from its leaves to new states and results.

    The leaves are one element of each of `sequences`, `states` from the step before, and `captures`, which don't vary.
    A leaf may be any tensor: inside the body it is given, however it is computed elsewhere.
    """

    __slots__ = ("captures", "new_states", "per_step", "phased", "results", "reverse", "sequences", "states")

    def __init__(self, sequences: Sequence[Tensor], states: Sequence[Tensor], reverse: bool) -> None:
        self.sequences = list(sequences)
        self.states = list(states)
        self.captures: list[Tensor] = []
        self.new_states: list[Tensor] = []
        # Stacked along a first axis; a gradient adds to them what it needs of each step.
        self.results: list[Tensor] = []
        self.reverse = reverse  # whether the last elements come first; results are stacked where their elements were
        self.per_step = False  # whether anything is drawn or printed at each step
        self.phased = False  # whether anything depends on the learning phase

    @property
    def leaves(self) -> list[Tensor]:
        """The inputs of each step, in the order of the loop's inputs."""
        return [*self.sequences, *self.states, *self.captures]


class Scan(Tensor):
    """A loop along the first axis of sequences: its inputs are what the leaves of `body` stand for.

    It has many values: `item` nodes pick final states, then stacked results, by number.
    """

    body: Body
    items: dict[int, Tensor]


class Crossentropy(Tensor):
    """One of probabilities that are the sigmoid or the softmax of logits: its value is its input, computed from those.

    `direct` is the same from the probabilities: gradients with respect to these go through it.
    """

    direct: Tensor


class Constant(Tensor):
    """A value written into the graph; `array` is read-only."""

    array: Array


class Draw(Tensor):
    """Random numbers, fresh at each run: attrs are `kind` and `dims`.

    `seed()` (64 bits) picks the stream, and `count` says how far it has got.
    """

    seed: Callable[[], int]
    count: Count


class Variable(Tensor):
    """State that lives between calls; its committed value is in `slots`."""

    _keras_shape = _KerasShape()
    slots: Slots
    constraint: Any
    trainable = True  # for Keras and its users, who read and set it

    @property
    def initialized(self) -> bool:
        """Always true: a variable has its value from the start (Keras asks for this)."""
        return True

    def value(self) -> Tensor:
        """The variable itself, which stands for its value wherever a tensor is expected."""
        return self


class Update(Tensor):
    """The new value of `variable`: kind "assign" (inputs: the value) or "add" (inputs: the increment)."""

    variable: Variable
    kind: str
    begin: Tensor | None = None  # what an increment is added to, if that isn't the variable before the call


def mark() -> int:
    """A number between the uids of all tensors made before and after this call."""
    return next(current_state().numbers)


def check_generation(tensor: Tensor, state: State | None = None) -> None:
    """Raises StaleTensorError unless the tensor is of this state's generation; the current session's by default."""
    if tensor.generation is not (state or current_state()).generation:
        raise stale(tensor.name, tensor.source, tensor.generation)


def check_generations(tensors: Sequence[Tensor]) -> None:
    """`check_generation` of many tensors at once."""
    firsts = {tensor.generation: tensor for tensor in reversed(tensors)}
    for tensor in reversed(firsts.values()):
        check_generation(tensor)


def stale(name: str, source: Source, generation: Generation) -> StaleTensorError:
    """The error for a tensor or function that isn't of the current session's generation."""
    made = f"'{name}' (made in {source}) belongs to"
    if generation.ended:
        return StaleTensorError(
            f"{made} a session that K.clear_session() ended", next_step="run the cells that make it again"
        )
    return StaleTensorError(
        f"{made} another session of this process, and can be used only there",
        next_step="make it again in this session, or use it inside `with entered(...)` of its own",
    )


def record(
    op: str, inputs: tuple[Tensor, ...], attrs: dict[str, Any], infer: Inference, name: str | None = None
) -> Tensor:
    """Adds a node: its shape and dtype come from `infer`, which raises what can't work in the user's own line."""
    state = current_state()
    generation = state.generation
    for tensor in inputs:
        if tensor.generation is not generation:
            check_generation(tensor)
    renewed = state.contexts.renewed
    if renewed:
        inputs = tuple([renewed.get(x, x) if type(x) is Variable else x for x in inputs])
    shape, dtype = infer(*inputs, **attrs)
    return Tensor(op, inputs, attrs, shape, dtype, caller(), name)


def located(error: KernelKError, source: Source) -> KernelKError:
    """The same error with the cell or file and line that wrote the op, for errors found after that."""
    error.remark(str(source))
    error.locations.append(source.location)
    return error


def constant_node(array: Array, name: str | None = None) -> Constant:
    """A Constant that holds its own read-only copy of `array`."""
    array = np.array(array, order="C")
    array.setflags(write=False)
    node = Constant("constant", (), _EMPTY, array.shape, array.dtype.name, caller(), name)
    node.array = array
    return node


def dependencies_of(tensors: Sequence[Tensor]) -> list[Update]:
    """The updates that are performed whenever one of these is computed, in order: see `K.control_dependencies`."""
    if not current_state().ordered:
        return []

    def before(node: Tensor) -> Sequence[Tensor]:
        # Those that a loop's step comes after are performed once.
        return (*node.inputs, *node.body.new_states, *node.body.results) if isinstance(node, Scan) else node.inputs

    return list(dict.fromkeys(update for node in walk(tensors, before) for update in node.dependencies))


def depends_on_phase(tensor: Tensor) -> bool:
    """Whether a tensor's value depends on the learning phase. What has been found out once is kept."""
    if tensor.phased is None:
        for node in walk([tensor], lambda x: x.inputs if x.phased is None else ()):
            if node.phased is None:
                node.phased = (
                    node.op == "phase_select"
                    or isinstance(node, LearningPhase)
                    or (isinstance(node, Scan) and node.body.phased)
                    or any([x.phased for x in node.inputs])
                )
    return bool(tensor.phased)


def walk(roots: Sequence[Tensor], inputs_of: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
    """All nodes that `roots` need, each after its inputs; without recursion, for graphs of any depth."""
    order: list[Tensor] = []
    seen: set[int] = set()
    # None marks the tensor below it on the stack, whose inputs are done by then.
    stack: list[Tensor | None] = list(reversed(roots))
    while stack:
        tensor = stack.pop()
        if tensor is None:
            order.append(stack.pop())  # type: ignore[arg-type]
            continue
        number = id(tensor)
        if number in seen:
            continue
        seen.add(number)
        inputs = inputs_of(tensor)
        if inputs:
            stack += (tensor, None, *reversed(inputs))
        else:
            order.append(tensor)
    return order
