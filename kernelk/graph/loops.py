"""Records loops as nodes: the step becomes a closed body, and everything it uses from outside an explicit input."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from ..errors import UpdateError
from ..source import caller
from .nodes import Body, Constant, Draw, LearningPhase, Scan, Shape, Tensor, Update, walk


def merge_shapes(a: Shape, b: Shape) -> Shape:
    """The shape that two tensors of equal shape have, as far as either of them knows it."""
    return tuple(n if m is None else m for m, n in zip(a, b))


def per_step(node: Tensor) -> bool:
    """Whether a node is computed at each step, even where all that it takes is the same: it draws or prints."""
    return isinstance(node, Draw) or node.op == "print" or (isinstance(node, Scan) and node.body.per_step)


class Closure:
    """Finds what `roots` take from outside a body whose leaves are given.

    `captures`: tensors that are the same at each step, as large as possible, so that nothing is recomputed at each
    step that doesn't vary. `residuals`: tensors that the loop over another body has at each step. What was made
    before `start` is outside; `varies` tells which of those tensors belong to the other body's steps.
    Raises UpdateError for an update made in the step.
    """

    def __init__(
        self, roots: Sequence[Tensor], leaves: Collection[Tensor], start: int, varies: Callable[[Tensor], bool]
    ) -> None:
        self.captures: list[Tensor] = []
        self.residuals: list[Tensor] = []
        self.per_step = False
        self.phased = False
        given = {id(leaf) for leaf in leaves}

        def inputs_of(node: Tensor) -> Sequence[Tensor]:
            return () if id(node) in given or node.uid < start or varies(node) else node.inputs

        order = walk(roots, inputs_of)
        varying = set(given)
        for node in order:
            if id(node) in given:
                continue
            if varies(node):
                self.residuals.append(node)
                varying.add(id(node))
            elif node.uid >= start:
                if isinstance(node, Update):
                    raise UpdateError(
                        f"an update of variable '{node.variable.name}' ({node.source}) can't be made inside a "
                        "loop's step",
                        next_step="return the value as a state, and update the variable with the final state",
                    )
                again = per_step(node)
                if again or any(id(x) in varying for x in node.inputs):
                    varying.add(id(node))
                    self.per_step |= again
                    self.phased |= node.op == "phase_select" or (isinstance(node, Scan) and node.body.phased)
        captured: dict[int, Tensor] = {}
        users = [node for node in order if id(node) in varying]
        for tensor in [*roots, *(x for node in users for x in inputs_of(node))]:
            if id(tensor) not in varying and not isinstance(tensor, (Constant, LearningPhase)):
                captured.setdefault(id(tensor), tensor)
        self.captures = list(captured.values())


def close_loop(
    sequences: Sequence[Tensor], initial: Sequence[Tensor], body: Body, closure: Closure
) -> tuple[list[Tensor], list[Tensor]]:
    """The same for a body whose closure is known and has no residuals but among its sequences."""
    body.captures = closure.captures
    body.per_step, body.phased = closure.per_step, closure.phased
    first = [*body.new_states, *body.results][0]
    node = Scan("scan", (*sequences, *initial, *body.captures), {}, (), first.dtype, caller())
    node.body = body
    node.items = {}
    states = len(body.states)
    return (
        [item(node, i) for i in range(states)],
        [item(node, states + i) for i in range(len(body.results))],
    )


def item(node: Scan, index: int) -> Tensor:
    """One of a loop's values: final states come first, then stacked results."""
    known = node.items.get(index)
    if known is None:
        body, states = node.body, len(node.body.states)
        if index < states:
            value = body.new_states[index]
            shape = merge_shapes(node.inputs[len(body.sequences) + index].shape, value.shape)
        else:
            value = body.results[index - states]
            lengths = [x.shape[0] for x in node.inputs[: len(body.sequences)] if x.shape[0] is not None]
            shape = (lengths[0] if lengths else None, *value.shape)
        known = node.items[index] = Tensor("item", (node,), {"index": index}, shape, value.dtype, node.source)
    return known


def stacked(node: Scan, value: Tensor) -> Tensor:
    """`value`, a tensor of the loop's body, of all steps: one of its results, made one if it isn't yet."""
    results = node.body.results
    for number, known in enumerate(results):
        if known is value:
            return item(node, len(node.body.states) + number)
    results.append(value)
    return item(node, len(node.body.states) + len(results) - 1)
