"""Higher-order functions: rnn, map_fn, foldl and foldr, written as loops whose step is the given function."""

from __future__ import annotations

import builtins
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, DTypeError, ShapeError
from ..graph.loops import Closure, close_loop, per_step
from ..graph.nodes import Body, StepInput, Tensor, mark, walk
from ..graph.rules import apply
from ..source import caller
from .arranging import stack
from .dtypes import FLOATS, as_tensor, cast, check_dtype, partner_of, promote
from .shapes import reversed_along, scalar, scalar_refused

Step = Callable[[list[Tensor], list[Tensor]], tuple[list[Any], list[Any]]]


# --- nested lists and tuples of tensors ---------------------------------------------------------------------------


def flat(structure: Any) -> list[Any]:
    """The leaves of nested lists and tuples, in order."""
    if isinstance(structure, (list, tuple)):
        return [leaf for part in structure for leaf in flat(part)]
    return [structure]


def packed(structure: Any, leaves: Sequence[Any]) -> Any:
    """`leaves` in the nested lists and tuples of `structure`."""
    rest = iter(leaves)

    def pack(part: Any) -> Any:
        if isinstance(part, (list, tuple)):
            parts = [pack(entry) for entry in part]
            return type(part)(*parts) if hasattr(part, "_fields") else type(part)(parts)
        return next(rest)

    return pack(structure)


def _nested(value: Any) -> bool:
    """Whether a list or tuple holds tensors; of numbers alone it is one tensor itself."""
    return isinstance(value, (list, tuple)) and builtins.any(isinstance(x, (Tensor, np.ndarray)) for x in flat(value))


# --- a loop of tensors ------------------------------------------------------------------------------------------


def loop(
    op: str, step: Step, sequences: Sequence[Tensor], initial: Sequence[Any], reverse: bool = False
) -> tuple[list[Tensor], list[Tensor]]:
    """Calls `step(elements, states) -> (results, new states)` once, to learn what a step along the first axis does.

    Returns the final states and the results of all steps, stacked. An initial state that isn't a tensor takes the dtype
    that the step makes of it. Raises ShapeError or DTypeError for a state that a step changes in shape or dtype.
    """
    first = _begun(sequences, initial)
    while True:
        start = mark()
        elements = [_leaf(x.shape[1:], x.dtype, "element") for x in sequences]
        states = [_leaf(x.shape, x.dtype, "state") for x in first]
        results, new_states = step(list(elements), list(states))
        if len(new_states) != len(states):
            raise ArgumentError(
                f"{op}: the step returned {len(new_states)} states, but was given {len(states)}",
                next_step="return as many",
            )
        made = [as_tensor(new, state.dtype) for new, state in zip(new_states, states)]
        wider = _wider(op, initial, first, made)
        if wider is None:
            break
        first = wider
    body = Body(elements, states, reverse)
    body.new_states = [cast(new, state.dtype) for new, state in zip(made, states)]
    body.results = [as_tensor(result) for result in results]
    for number, (state, new) in enumerate(zip(states, body.new_states)):
        fits = state.ndim == new.ndim and builtins.all(
            m in (n, None) or n is None for m, n in zip(state.shape, new.shape)
        )
        if not fits:
            raise ShapeError(
                f"{op}: state {number} has shape {state.shape}, but the step returned {new.shape}",
                allowed="they must be equal",
                next_step="give an initial state of that shape",
            )
    return record_loop(sequences, first, body, start)


def _leaf(shape: Any, dtype: str, name: str) -> StepInput:
    return StepInput("placeholder", (), {}, tuple(shape), dtype, caller(), name)


def _begun(sequences: Sequence[Tensor], initial: Sequence[Any]) -> list[Tensor]:
    """The initial states as tensors: floats that are none begin in the dtype of the tensors beside them."""
    partner = partner_of([*sequences, *initial])
    states = [as_tensor(x) for x in initial]
    return [as_tensor(x, partner) if state.dtype in FLOATS else state for x, state in zip(initial, states)]


def _wider(op: str, initial: Sequence[Any], states: Sequence[Tensor], made: Sequence[Tensor]) -> list[Tensor] | None:
    """The states in the dtypes that they must begin with so that the step keeps them; None if they have them."""
    wider = []
    for number, (given, state, new) in enumerate(zip(initial, states, made)):
        dtype = promote(state.dtype, new.dtype)
        if dtype != state.dtype:
            if isinstance(given, Tensor):
                raise DTypeError(
                    f"{op}: state {number} is {state.dtype}, but the step returned {new.dtype}",
                    next_step="give it an initial value of that dtype, or let the step return "
                    f"K.cast(state, '{state.dtype}')",
                )
            # From what was given, which may have more digits than the state so far.
            state = cast(as_tensor(given, dtype), dtype)
        wider.append(state)
    return None if builtins.all(new is old for new, old in zip(wider, states)) else wider


# --- rnn ----------------------------------------------------------------------------------------------------------


def _swapped(x: Tensor) -> Tensor:
    """Batch first as time first, and the other way round."""
    return apply("transpose", x, permutation=[1, 0, *range(2, x.ndim)])


def _at(x: Tensor, index: int) -> Tensor:
    """Row `index` (-1: the last) of a tensor."""
    stop = None if index == -1 else index + 1
    row = apply("slice", x, slices=[[index, stop, None], *[[None, None, None]] * (x.ndim - 1)])
    dims = [[0, i] if n is None else n for i, n in enumerate(row.shape)][1:]
    return apply("reshape", row, dims=dims)


def _last(x: Tensor) -> Tensor:
    """The last row; zeros, if there is none."""
    if x.shape[0]:
        return _at(x, -1)
    # A sum of nothing is 0, of one row that row.
    row = apply("slice", x, slices=[[-1, None, None], *[[None, None, None]] * (x.ndim - 1)])
    total = apply("sum", row if x.dtype != "bool" else cast(row, "int32"), axes=[0], keepdims=False)
    return cast(total, x.dtype)


def _spread_mask(mask: Tensor, x: Tensor) -> Tensor:
    """A mask of samples, with axes of length 1 for the further axes of `x`."""
    dims: list[Any] = [[0, 0] if mask.shape[0] is None else mask.shape[0]]
    return apply("reshape", mask, dims=dims + [1] * (x.ndim - 1)) if x.ndim > 1 else mask


def _masked(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    return apply("select", _spread_mask(mask, new), new, old) if new.ndim else new


def _steps_of(sequences: Sequence[Tensor], op: str) -> int | None:
    lengths = {x.shape[0] for x in sequences if x.shape[0] is not None}
    if len(lengths) > 1:
        raise ShapeError(
            f"{op}: sequences of {', '.join(map(str, sorted(lengths)))} elements", allowed="they must be equally long"
        )
    return lengths.pop() if lengths else None


def rnn(
    step_function: Callable[..., Any],
    inputs: Any,
    initial_states: Any,
    go_backwards: bool = False,
    mask: Any = None,
    constants: Any = None,
    unroll: bool = False,
    input_length: int | None = None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Runs a recurrent step along the second axis of `inputs`, of shape (samples, time, ...), or of several such.

    `step_function(input, states + constants)` gets the elements of all samples at one time and returns the output, of
    shape (samples, ...), and a list of new states, of the shapes and dtypes of `initial_states`; it is called once
    (with `unroll`: once a step, and then the number of steps must be known, if need be as `input_length`).
    `go_backwards` begins at the last time. `mask`, of shape (samples, time) or (samples, time, 1): where it is false,
    a sample's output is that of the step before (zeros before the first), and its states stay.
    Returns (last output, outputs of shape (samples, time, ...), final states). Of zero steps the last output is zeros.
    Raises ShapeError, DTypeError or ArgumentError.
    """
    _check_callable(step_function, "step_function", "rnn")
    partner = partner_of([*flat(inputs), *initial_states, *(constants or [])])
    given = [as_tensor(x, partner) for x in flat(inputs)]
    if not given:
        raise ArgumentError("rnn: there are no inputs", allowed="it needs at least one")
    for x in given:
        if x.ndim < 2:
            raise ShapeError(
                f"rnn: an input has shape {x.shape}",
                allowed="inputs need the axes (samples, time, ...)",
                next_step="K.expand_dims(x, 0) adds samples" if x.ndim else "",
            )
    sequences = [_swapped(x) for x in given]
    constants = list(constants or [])
    initial = [as_tensor(x) if isinstance(x, Tensor) else x for x in initial_states]
    masks: list[Tensor] = []
    if mask is not None:
        mask = as_tensor(mask)
        if mask.ndim == 3 and mask.shape[2] in (1, None):
            mask = apply("reshape", mask, dims=[[0, i] if n is None else n for i, n in enumerate(mask.shape[:2])])
        if mask.ndim != 2:
            raise ShapeError(
                f"rnn: the mask has shape {mask.shape}",
                allowed="it must be (samples, time) or (samples, time, 1)",
                next_step="K.any(mask, axis=-1)" if mask.ndim == 3 else "",
            )
        masks = [cast(_swapped(mask), "bool")]
    if go_backwards:
        sequences = [reversed_along(x, [0]) for x in sequences]
        masks = [reversed_along(x, [0]) for x in masks]
    length = _steps_of([*sequences, *masks], "rnn")
    if input_length is not None and length is not None and int(input_length) != length:
        raise ArgumentError(
            f"rnn: input_length is {input_length}, the inputs have {length} steps", next_step="leave it out"
        )

    def step(element: list[Tensor], states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        made = step_function(packed(inputs, element), [*states, *constants])
        if not isinstance(made, (list, tuple)) or len(made) != 2:
            returned = f"{len(made)} values" if isinstance(made, (list, tuple)) else f"a {type(made).__name__}"
            raise ArgumentError(
                f"rnn: the step returned {returned}",
                allowed="it must return an output and a list of new states",
                next_step=f"return output, [{', '.join(f'state{i}' for i in range(len(states)))}]",
            )
        output, new_states = made
        new_states = [as_tensor(new, old.dtype) for new, old in zip(_states(new_states, states), states)]
        return as_tensor(output, partner_of([*new_states, *element])), new_states

    if unroll:
        steps = length if length is not None else input_length
        return _unrolled(step, sequences, masks, initial, steps)

    def masked_step(elements: list[Tensor], states: list[Tensor]) -> tuple[list[Any], list[Any]]:
        output, new_states = step(elements[: len(sequences)], states)
        if masks:
            new_states = [_masked(elements[-1], new, old) for new, old in zip(_alike(new_states, states), states)]
        of_state[:] = [
            number
            for number, (new, old) in enumerate(zip(new_states, states))
            if new is output and (new.dtype, new.shape) == (old.dtype, old.shape)
        ]
        return [output], new_states

    of_state: list[int] = []
    finals, (outputs,) = loop("rnn", masked_step, [*sequences, *masks], initial)
    if masks:
        outputs = _held(outputs, masks[0])
    # As a final state it needs no stack of all steps' outputs, and its gradient none of theirs.
    last = finals[of_state[0]] if of_state and length else _last(outputs)
    return last, _swapped_outputs(outputs), finals


def _states(new_states: Any, states: Sequence[Tensor]) -> list[Any]:
    listed = list(new_states) if isinstance(new_states, (list, tuple)) else [new_states]
    if len(listed) != len(states):
        raise ArgumentError(
            f"rnn: the step returned {len(listed)} states, but was given {len(states)}", next_step="return as many"
        )
    return listed


def _alike(new_states: Sequence[Tensor], states: Sequence[Tensor]) -> list[Tensor]:
    """New states in the dtypes of the old ones, where those hold them."""
    return [
        cast(new, old.dtype) if promote(new.dtype, old.dtype) == old.dtype else new
        for new, old in zip(new_states, states)
    ]


def _swapped_outputs(outputs: Tensor) -> Tensor:
    if outputs.ndim < 2:
        raise ShapeError("rnn: the step's output is a scalar", allowed="its first axis must be that of samples")
    return _swapped(outputs)


def _held(outputs: Tensor, mask: Tensor) -> Tensor:
    """Outputs of all steps with those of the step before where `mask` is false, zeros before the first."""
    dims = [[1, i] if n is None else n for i, n in enumerate(outputs.shape)][1:]
    start = apply("broadcast_to", scalar(0, outputs.dtype), outputs, dims=dims)

    def hold(elements: list[Tensor], states: list[Tensor]) -> tuple[list[Any], list[Any]]:
        kept = _masked(elements[1], elements[0], states[0])
        return [kept], [kept]

    return loop("rnn", hold, [outputs, mask], [start])[1][0]


def _unrolled(
    step: Callable[..., Any],
    sequences: Sequence[Tensor],
    masks: Sequence[Tensor],
    initial: list[Any],
    steps: int | None,
) -> tuple[Tensor, Tensor, list[Tensor]]:
    if not steps:
        raise ArgumentError(
            "rnn: unroll needs a known number of steps, at least 1",
            next_step="give the inputs a time axis of known length, or input_length",
        )
    outputs: list[Tensor] = []
    states = _begun(sequences, initial)
    for t in range(int(steps)):
        elements = [_at(x, t) for x in sequences]
        output, new_states = step(elements, list(states))
        while t == 0 and (wider := _wider("rnn", initial, states, new_states)) is not None:
            states = wider
            output, new_states = step(elements, list(states))
        new_states = _alike(new_states, states)
        for number, (old, new) in enumerate(zip(states, new_states)):
            if old.dtype != new.dtype:
                raise DTypeError(
                    f"rnn: state {number} is {old.dtype}, but the step returned {new.dtype}",
                    next_step="cast it with K.cast",
                )
        if masks:
            mask = _at(masks[0], t)
            zero = scalar(0, output.dtype)
            output = _masked(mask, output, outputs[-1] if outputs else zero)
            new_states = [_masked(mask, new, old) for new, old in zip(new_states, states)]
        outputs.append(output)
        states = new_states
    return outputs[-1], stack(outputs, axis=1), states


# --- map_fn, foldl, foldr --------------------------------------------------------------------------------------------


def _check_callable(function: Any, name: str, op: str) -> None:
    if not callable(function):
        raise ArgumentError(
            f"{op}: {name} is {type(function).__name__}, which can't be called", allowed="it must be a function"
        )


def _elements(elems: Any, op: str, partner: str | None = None) -> list[Tensor]:
    given = [as_tensor(x, partner) for x in flat(elems)]
    if not given:
        raise ArgumentError(f"{op}: there are no elements to go along", allowed="it needs at least one tensor")
    for x in given:
        if x.ndim == 0:
            raise scalar_refused(op)
    _steps_of(given, op)
    return given


def map_fn(fn: Callable[..., Any], elems: Any, name: str | None = None, dtype: Any = None) -> Any:
    """Applies `fn` to each element along the first axis of `elems`, and stacks the results.

    `elems` may be nested lists or tuples of tensors; `fn` gets one element of each, so nested, and may return nested
    tensors. Results are cast to `dtype` (nested likewise). Raises ShapeError for lengths that differ.
    """
    _check_callable(fn, "fn", "map_fn")
    partner = partner_of(flat(elems))
    elems = elems if _nested(elems) else as_tensor(elems, partner)
    given = _elements(elems, "map_fn", partner)
    shape: list[Any] = []

    def step(elements: list[Tensor], states: list[Tensor]) -> tuple[list[Any], list[Any]]:
        value = fn(packed(elems, elements))
        shape[:] = [value]
        return [as_tensor(x, partner_of(elements)) for x in flat(value)], []

    _, results = loop("map_fn", step, given, [])
    if dtype is not None:
        wanted = flat(dtype)
        wanted = wanted * len(results) if len(wanted) == 1 else wanted
        if len(wanted) != len(results):
            raise ArgumentError(
                f"map_fn: {len(wanted)} dtypes for {len(results)} results",
                allowed="it takes one for all or one for each",
            )
        results = [cast(x, check_dtype(kind)) for x, kind in zip(results, wanted)]
    return packed(shape[0], results)


def _fold(op: str, fn: Callable[..., Any], elems: Any, initializer: Any, reverse: bool) -> Any:
    _check_callable(fn, "fn", op)
    partner = partner_of([*flat(elems), *flat(initializer)])
    elems = elems if _nested(elems) else as_tensor(elems, partner)
    given = _elements(elems, op, partner)
    structure = elems if initializer is None else initializer
    if initializer is None:
        if _steps_of(given, op) == 0:
            raise ShapeError(f"{op}: there is no first element to begin with", next_step="give an initializer")
        index = -1 if reverse else 0
        first: list[Any] = [_at(x, index) for x in given]
        part = [None, -1, None] if reverse else [1, None, None]
        given = [apply("slice", x, slices=[part, *[[None, None, None]] * (x.ndim - 1)]) for x in given]
    elif _nested(initializer) or (isinstance(initializer, (list, tuple)) and isinstance(elems, (list, tuple))):
        first = flat(initializer)
    else:
        # One value, be it a list of numbers.
        structure, first = 0, [initializer]

    def step(elements: list[Tensor], states: list[Tensor]) -> tuple[list[Any], list[Any]]:
        return [], flat(fn(packed(structure, states), packed(elems, elements)))

    finals, _ = loop(op, step, given, first, reverse)
    return packed(structure, finals)


def foldl(fn: Callable[..., Any], elems: Any, initializer: Any = None, name: str | None = None) -> Any:
    """Folds `elems` along its first axis with `fn(accumulated, element)`, from the first element to the last.

    It begins with `initializer`, or, without one, with the first element. `elems` and `initializer` may be nested
    lists or tuples of tensors. Raises ShapeError or DTypeError where `fn` changes the accumulated value's.
    """
    return _fold("foldl", fn, elems, initializer, reverse=False)


def foldr(fn: Callable[..., Any], elems: Any, initializer: Any = None, name: str | None = None) -> Any:
    """Folds `elems` with `fn(accumulated, element)` like `foldl`, but from the last element to the first."""
    return _fold("foldr", fn, elems, initializer, reverse=True)


def _outside(node: Tensor) -> bool:
    return False


def record_loop(
    sequences: Sequence[Tensor], initial: Sequence[Tensor], body: Body, start: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Records the loop of a body whose leaves, new states and results are set: (final states, stacked results).

    `sequences` and `initial` are what the body's sequences and states stand for; what was made before `start` is
    captured.
    """
    sequences = [*sequences, *_multiplied_ahead(sequences, body, start)]
    closure = Closure([*body.new_states, *body.results], body.leaves, start, _outside)
    return close_loop(sequences, initial, body, closure)


# A product may be so many times as large as the sequence that it comes of: all steps have it at once.
MOST_WIDENED = 16


def _multiplied_ahead(sequences: Sequence[Tensor], body: Body, start: int) -> list[Tensor]:
    """Products of an element's rows with a matrix that is the same at each step, as further sequences of the body.

    One product of all steps' rows is faster by far than one for each step.
    """
    from ..graph.rules import apply
    from .shapes import matmul

    outer = {id(leaf): x for leaf, x in zip(body.sequences, sequences)}
    varying = {id(leaf) for leaf in body.leaves}
    products = []
    for node in walk([*body.new_states, *body.results], lambda x: () if x.uid < start else x.inputs):
        if id(node) in varying or node.uid < start:
            continue
        if per_step(node) or any(id(x) in varying for x in node.inputs):
            varying.add(id(node))
        if node.op != "matmul" or node.attrs["transpose_a"]:
            continue
        element, matrix = node.inputs
        rows, (_, columns) = element.shape, node.shape
        if id(element) not in outer or id(matrix) in varying or rows[1] is None or columns is None:
            continue
        if 0 < columns <= MOST_WIDENED * rows[1]:
            sequence = outer[id(element)]
            product = matmul(apply("reshape", sequence, dims=[-1, rows[1]]), matrix, False, node.attrs["transpose_b"])
            dims = [[1, i] if n is None else n for i, n in enumerate(sequence.shape[:2])]
            references = (sequence,) if None in sequence.shape[:2] else ()
            products.append(apply("reshape", product, *references, dims=[*dims, columns]))
            body.sequences.append(node)
    return products
