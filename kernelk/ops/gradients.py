"""Gradients as a transform of the graph: VJP rules chained backwards, so that the result is graph like any other."""

from __future__ import annotations

import bisect
import contextlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from ..errors import ArgumentError
from ..graph.loops import Closure, close_loop, per_step, stacked
from ..graph.nodes import (
    Body,
    Constant,
    Crossentropy,
    Scan,
    Shape,
    StepInput,
    Tensor,
    Update,
    check_generation,
    mark,
    walk,
)
from ..graph.rules import RULES, apply, expand
from ..graph.state import current_state, unordered
from ..source import caller
from .dtypes import FLOATS, as_tensor
from .shapes import matmul, sum_to, zeros_shaped


class _Way(NamedTuple):
    """Which of the ways through a graph gradients take: the learning phase's, and whether past sigmoids and softmaxes.

    A crossentropy computed from logits depends on their probabilities only as far as somebody asks for them.
    """

    phase: int
    by_probabilities: bool = False


def _inputs_of(node: Tensor, way: _Way, leaves: Collection[int] = ()) -> Sequence[Tensor]:
    """A node's inputs on this way; none, if it is one of a body's leaves, by their ids."""
    if id(node) in leaves:
        return ()
    if node.op == "phase_select":
        return (node.inputs[0 if way.phase else 1],)
    if isinstance(node, Crossentropy):
        return (node.direct,) if way.by_probabilities else node.inputs
    if isinstance(node, Update):
        # It stands for the variable after it; how the new value came about is no part of that.
        return (node.variable,)
    return (expand(node),) if _by_expansion(node) else node.inputs


def _needs(
    roots: Sequence[Tensor], targets: Sequence[Tensor], way: _Way, leaves: Collection[int]
) -> tuple[list[Tensor], set[int]]:
    """The roots' nodes in order, and the ids of those through which a target is reached."""
    ids = {id(target) for target in targets}
    order = walk(roots, lambda node: _inputs_of(node, way, leaves))
    reached: set[int] = set()
    for node in order:
        if id(node) in ids or any(id(x) in reached for x in _inputs_of(node, way, leaves)):
            reached.add(id(node))
    return order, reached


def _by_expansion(node: Tensor) -> bool:
    rule = RULES.get(node.op)
    return rule is not None and rule.decompose is not None and rule.vjp is None


def gradients(loss: Any, variables: Any) -> list[Tensor]:
    """The gradient of `loss` (its sum, if it isn't a scalar) with respect to each of `variables`, any tensors.

    Returns a list of tensors in the shapes and dtypes of `variables`, also for one tensor, as Keras on TensorFlow does;
    a variable that `loss` doesn't depend on gets zeros. Gradients can be used in further ops and differentiated again.
    Raises ArgumentError if `loss` isn't a float.
    """
    loss, targets = _checked(loss, variables)
    with unordered(), _recording():
        return [_or_zeros(gradient, target) for gradient, target in zip(_found(loss, targets), targets)]


def gradients_or_none(loss: Any, variables: Any) -> list[Tensor | None]:
    """As `gradients`, but None for a variable that no gradient of `loss` reaches."""
    loss, targets = _checked(loss, variables)
    with unordered(), _recording():
        return _found(loss, targets)


def _checked(loss: Any, variables: Any) -> tuple[Tensor, list[Tensor]]:
    if not isinstance(variables, Iterable):
        raise ArgumentError(
            f"gradients: expected tensors to differentiate by, not {type(variables).__name__}",
            next_step="K.gradients(loss, [w])",
        )
    targets = [variables] if isinstance(variables, Tensor) else list(variables)
    loss = as_tensor(loss)
    if loss.dtype not in FLOATS:
        raise ArgumentError(f"gradients: the loss is {loss.dtype}", allowed="it must be a float tensor")
    for target in targets:
        if not isinstance(target, Tensor):
            raise ArgumentError(
                f"gradients: expected tensors to differentiate by, not {type(target).__name__}",
                next_step="K.gradients(loss, [w])",
            )
    for tensor in (loss, *targets):
        check_generation(tensor)
    return loss, targets


@contextlib.contextmanager
def _recording() -> Iterator[None]:
    """What is made meanwhile is known to be a gradient's."""
    begin = mark()
    yield
    current_state().gradient_spans.append((begin, mark()))


def _found(loss: Tensor, targets: list[Tensor]) -> list[Tensor | None]:
    ends = [target for target in targets if target.op in ("sigmoid", "softmax")]
    if not ends or not any(isinstance(node, Crossentropy) for node in walk([loss], lambda node: node.inputs)):
        return _through(loss, targets, by_probabilities=False)
    of_ends = dict(zip(map(id, ends), _through(loss, ends, by_probabilities=True)))
    others = [target for target in targets if id(target) not in of_ends]
    found = of_ends | dict(zip(map(id, others), _through(loss, others, by_probabilities=False)))
    return [found[id(target)] for target in targets]


def _through(loss: Tensor, targets: list[Tensor], by_probabilities: bool) -> list[Tensor | None]:
    seeds = [(loss, apply_ones(loss))]
    test, by_phase = _backwards(seeds, targets, _Way(0, by_probabilities))
    if not by_phase:
        return test
    # One transform for each phase, so that nothing of the dead branch is computed: not even NaN times 0.
    train, _ = _backwards(seeds, targets, _Way(1, by_probabilities))
    return [
        a if a is b else apply("phase_select", _or_zeros(a, target), _or_zeros(b, target))
        for a, b, target in zip(train, test, targets)
    ]


def of_a_gradient(node: Tensor) -> bool:
    """Whether `gradients` has made this node."""
    spans = current_state().gradient_spans
    index = bisect.bisect_right(spans, (node.uid, sys.maxsize)) - 1
    return index >= 0 and spans[index][0] < node.uid < spans[index][1]


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return zeros_shaped(like) if gradient is None else gradient


def _backwards(
    seeds: Sequence[tuple[Tensor, Tensor]],
    targets: Sequence[Tensor],
    way: _Way,
    leaves: Collection[int] = (),
    early: _Early | None = None,
) -> tuple[list[Tensor | None], bool]:
    """The gradients on one way, and whether they may be others in the other phase.

    `seeds` are tensors with the gradients of their values; a target that they don't depend on gets None. `leaves`, by
    their ids, are given, however they are computed: those of a loop's body, of which `early` tells what the first loop
    can compute.
    """
    order, reached = _needs([root for root, _ in seeds], targets, way, leaves)
    pending: dict[int, list[Tensor]] = {}
    for root, seed in seeds:
        pending.setdefault(id(root), []).append(seed)
    of_loops: dict[int, dict[int, Tensor]] = {}  # id of a loop's node -> its value's number -> gradient
    totals: dict[int, Tensor] = {}
    for node in reversed(order):
        if isinstance(node, Scan):
            if id(node) in of_loops:
                for x, part in zip(node.inputs, _through_loop(node, of_loops.pop(id(node)), reached, way)):
                    if part is not None and id(x) in reached:
                        pending.setdefault(id(x), []).append(part)
            continue
        pending_parts = pending.pop(id(node), None)
        if pending_parts is None or id(node) not in reached:
            continue
        with _scope_of(node):
            total = totals[id(node)] = _total(pending_parts)
        if id(node) in leaves:
            continue
        if node.op == "item":
            of_loops.setdefault(id(node.inputs[0]), {})[node.attrs["index"]] = total
            continue
        if node.op == "phase_select" or isinstance(node, (Update, Crossentropy)) or _by_expansion(node):
            pending.setdefault(id(_inputs_of(node, way)[0]), []).append(total)
            continue
        rule = RULES.get(node.op)
        if not node.inputs or rule is None or rule.vjp is None:
            continue
        if not any(id(x) in reached for x in node.inputs):
            continue
        with _scope_of(node):
            parts = rule.vjp(node, total)
            if early is not None:
                parts = [part if part is None else early.grouped(part, total) for part in parts]
        for x, part in zip(node.inputs, parts):
            if part is not None and id(x) in reached:
                pending.setdefault(id(x), []).append(part)
    inner = [node for node in order if id(node) not in leaves]
    phased = any(node.op == "phase_select" or (isinstance(node, Scan) and node.body.phased) for node in inner)
    return [totals.get(id(target)) for target in targets], phased


@contextlib.contextmanager
def _scope_of(node: Tensor) -> Iterator[None]:
    """A gradient's nodes stand in the scope of the node that it goes through."""
    contexts = current_state().contexts
    before, contexts.scope = contexts.scope, node.scope
    try:
        yield
    finally:
        contexts.scope = before


def _total(parts: Sequence[Tensor]) -> Tensor:
    """The sum of gradients; pieces that make up a whole along one axis are joined, not each put among zeros."""
    joined = _joined([part for part in parts if part.op == "unslice"])
    if joined is not None:
        parts = [*(part for part in parts if part.op != "unslice"), joined]
    total = parts[0]
    for more in parts[1:]:
        total = total + more
    return total


def _joined(parts: Sequence[Tensor]) -> Tensor | None:
    """The sum of gradients of slices, if these are one tensor cut along one axis."""
    if len(parts) < 2 or any(part.inputs[1] is not parts[0].inputs[1] for part in parts):
        return None
    like = parts[0].inputs[1]
    cuts = [[i for i, cut in enumerate(part.attrs["slices"]) if cut != [None, None, None]] for part in parts]
    if len(cuts[0]) != 1 or any(cut != cuts[0] for cut in cuts):
        return None
    (axis,) = cuts[0]
    length = like.shape[axis]
    if length is None:
        return None
    ranges = [range(*slice(*part.attrs["slices"][axis]).indices(length)) for part in parts]
    order = sorted(range(len(parts)), key=lambda i: ranges[i].start)
    if [n for i in order for n in ranges[i]] != list(range(length)):
        return None
    whole = apply("concatenate", *(parts[i].inputs[0] for i in order), axis=axis)
    return whole if whole.shape == like.shape else None


def _through_loop(node: Scan, given: dict[int, Tensor], reached: set[int], way: _Way) -> list[Tensor | None]:
    """The gradient of each input of a loop, given those of some of its values: a loop the other way round.

    Its states are the gradients of the states, and sums for captures. What its body needs of the steps is stacked by
    the first loop, which so gets further results.
    """
    body = node.body
    n, m = len(body.sequences), len(body.states)
    leaves = {id(leaf) for leaf in body.leaves}
    roots = [*body.new_states, *(body.results[i - m] for i in given if i >= m)]
    varying = _varying(roots, body, way)

    def of_step(x: Tensor) -> bool:
        return id(x) in varying or (x.op == "item" and id(x.inputs[0]) in varying)

    def of_all_steps(x: Tensor) -> Tensor:
        """A value of the first loop at each step, stacked."""
        return inputs_of_leaves[id(x)] if id(x) in inputs_of_leaves else stacked(node, x)

    start = mark()
    carried = [i for i, state in enumerate(body.states) if state.dtype in FLOATS]
    entering = [_step_input(body.states[i], body.new_states[i].shape) for i in carried]
    seeds: list[tuple[Tensor, Tensor]] = [(body.new_states[i], g) for i, g in zip(carried, entering)]
    along: list[tuple[Tensor, Tensor]] = []  # what is given at each step -> what the body is given for it
    for i, gradient in given.items():
        if i >= m:
            step: Tensor = _step_input(gradient, gradient.shape[1:])
            along.append((gradient, step))
            seeds.append((body.results[i - m], step))
    targets = [
        leaf
        for i, (leaf, x) in enumerate(zip(body.leaves, node.inputs))
        if leaf.dtype in FLOATS and (n <= i < n + m or id(x) in reached)
    ]
    early = _Early(body, start, of_step)
    by_target, _ = _backwards(seeds, targets, way, leaves, early)
    gradients_of = {id(leaf): gradient for leaf, gradient in zip(targets, by_target) if gradient is not None}
    products: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for leaf in body.captures:
        if id(leaf) in gradients_of:
            products[id(leaf)], rest = _outer_products(gradients_of.pop(id(leaf)), start)
            if rest is not None:
                gradients_of[id(leaf)] = rest
    # The products need the values of all steps, so these are summed there as well.
    factors = [x for pairs in products.values() for pair in pairs for x in pair]
    factors += [gradients_of[id(leaf)] for leaf in body.sequences if id(leaf) in gradients_of]
    reduced: dict[int, Tensor] = {}
    for leaf in body.captures:
        wide = _summed_over(gradients_of[id(leaf)], leaf, factors) if id(leaf) in gradients_of else None
        if wide is not None:
            reduced[id(leaf)] = wide
            del gradients_of[id(leaf)]
    summed = [leaf for leaf in body.captures if id(leaf) in gradients_of]
    sums = [_step_input(leaf, leaf.shape) for leaf in summed]
    stepped = [leaf for leaf in body.sequences if id(leaf) in gradients_of]
    backward = Body([], [*entering, *sums], not body.reverse)
    backward.new_states = [_or_zeros(gradients_of.get(id(body.states[i])), g) for i, g in zip(carried, entering)]
    backward.new_states += [total + gradients_of[id(leaf)] for leaf, total in zip(summed, sums)]
    backward.results = [gradients_of[id(leaf)] for leaf in stepped]
    inputs_of_leaves = {id(leaf): x for leaf, x in zip(body.sequences, node.inputs)}
    for x in dict.fromkeys(x for pairs in products.values() for pair in pairs for x in pair):
        if not of_step(x) and not any(x is known for known in backward.results):
            backward.results.append(x)
    if not backward.new_states and not backward.results:
        return [None] * len(node.inputs)

    # The first sequence tells the length, whether it is needed or not.
    own = [body.sequences[0], *(leaf for _, leaf in along), *backward.states]
    roots = [*backward.new_states, *backward.results]
    for x in walk(roots, lambda x: x.inputs if x.uid >= start and not of_step(x) else ()):
        early(x)
    closure = Closure(roots, own, start, early)
    sequences = [node.inputs[0], *(gradient for gradient, _ in along)]
    sequences += [of_all_steps(x) for x in closure.residuals]
    backward.sequences = [body.sequences[0], *(leaf for _, leaf in along), *closure.residuals]
    starts = [given[i] if i in given else zeros_shaped(node.inputs[n + i]) for i in carried]
    starts += [zeros_shaped(leaf) for leaf in summed]
    finals, steps = close_loop(sequences, starts, backward, closure)
    of_states = dict(zip(carried, finals))
    of_captures = {id(leaf): total for leaf, total in zip(summed, finals[len(carried) :])}
    of_sequences = {id(leaf): gradient for leaf, gradient in zip(stepped, steps)}
    made = {id(x): whole for x, whole in zip(backward.results, steps)}

    def of_all(x: Tensor) -> Tensor:
        return made[id(x)] if id(x) in made else of_all_steps(x)

    for leaf in body.captures:
        if id(leaf) in reduced:
            of_captures[id(leaf)] = sum_to(of_all(reduced[id(leaf)]), leaf)
        for pair in products.get(id(leaf), ()):
            a, b = map(of_all, pair)
            product = matmul(_rows(a), _rows(b), True, False)
            before = of_captures.get(id(leaf))
            of_captures[id(leaf)] = product if before is None else before + product
    return [
        *(of_sequences.get(id(leaf)) for leaf in body.sequences),
        *(of_states.get(i) for i in range(m)),
        *(of_captures.get(id(leaf)) for leaf in body.captures),
    ]


# What the first loop computes, so that it needs to keep the result alone.
_ELEMENTWISE = frozenset(
    ("negative", "abs", "sign", "sqrt", "exp", "log", "log1p", "expm1", "sin", "cos", "tanh", "tanh_slope")
    + (
        "sigmoid",
        "sigmoid_slope",
        "softplus",
        "softplus_grad",
        "elu",
        "softsign",
        "cast",
        "add",
        "subtract",
        "multiply",
        "divide",
        "power",
    )
    + ("maximum", "minimum", "equal", "not_equal", "less", "less_equal", "logical_and", "logical_or", "logical_not")
    + ("select",)
)


# No result of theirs is larger than 1 in size.
_BOUNDED = frozenset(("sigmoid", "sigmoid_slope", "tanh", "tanh_slope", "softsign", "sin", "cos", "sign"))


class _Early:
    """Tells which values of a backward loop's steps the first loop can compute, and groups products by that.

    These are what the first loop has at its steps anyway, and new nodes, from `start` on, that are elementwise and take
    nothing else.
    """

    def __init__(self, body: Body, start: int, of_step: Callable[[Tensor], bool]) -> None:
        self.start = start
        self.of_step = of_step
        self.captures = {id(x) for x in body.captures}
        # By their ids; kept, so that nobody else gets the id of one that isn't needed after all.
        self.found: dict[int, Tensor] = {}

    def __call__(self, x: Tensor) -> bool:
        """Whether it is such a value. The inputs of a new node must have been asked before."""
        if self.of_step(x) or id(x) in self.found:
            return True
        if x.uid < self.start or x.op not in _ELEMENTWISE:
            return False
        varying = [y for y in x.inputs if self.of_step(y) or id(y) in self.found]
        same = all(
            isinstance(y, Constant) or id(y) in self.captures for y in x.inputs if not any(y is z for z in varying)
        )
        # What is no larger than what it is made of.
        if same and any(y.shape == x.shape for y in varying):
            self.found[id(x)] = x
            return True
        return False

    def grouped(self, part: Tensor, total: Tensor) -> Tensor:
        """`part`; but if that is total * b, and total is g * a, then g * (a * b), if a * b can be computed early."""
        if part.op == "sum_to" and part.shape == part.inputs[0].shape:
            # Over an axis whose length isn't known yet: where it was 1, b is the same along it.
            return sum_to(self.grouped(part.inputs[0], total), part.inputs[1])
        whole = _unreduced(total)
        # In float16, a * b might be too small where g makes up for that.
        if part.op != "multiply" or whole.op != "multiply" or part.inputs[0] is not total or part.dtype == "float16":
            return part
        (g, a), (_, b) = whole.inputs, part.inputs
        # Nor may it be too large where g is small, or 0.
        if a.op not in _BOUNDED and b.op not in _BOUNDED:
            return part
        if self(g) or not self(a) or not self(b) or not part.shape == a.shape == b.shape == g.shape:
            return part
        product = a * b
        self(product)
        made = g * product
        return made if whole is total else sum_to(made, total.inputs[1])


def _outer_products(gradient: Tensor, start: int) -> tuple[list[tuple[Tensor, Tensor]], Tensor | None]:
    """The terms of a step's gradient that are transposed(a) @ b, as pairs; and the sum of the others.

    The sum of such products over all steps is one product of all steps' rows, faster by far than one for each step.
    Nodes made before `start` aren't looked into.
    """
    products: list[tuple[Tensor, Tensor]] = []
    rest: Tensor | None = None
    pending = [gradient]
    while pending:
        x = pending.pop()
        if x.uid > start and x.op == "add" and x.inputs[0].shape == x.inputs[1].shape:
            pending += x.inputs
        elif (
            x.uid > start
            and x.op == "matmul"
            and x.attrs == {"transpose_a": True, "transpose_b": False}
            and (None not in (x.inputs[0].shape[1], x.inputs[1].shape[1]))
        ):
            products.append((x.inputs[0], x.inputs[1]))
        else:
            rest = x if rest is None else rest + x
    return products, rest


def _summed_over(gradient: Tensor, leaf: Tensor, among: Sequence[Tensor]) -> Tensor | None:
    """The tensor of `among` whose sum over the axes that `leaf` was broadcast along is `gradient`; None if none is.

    Where unknown lengths were 1, one of `among` may be a sum itself; over one of those axes that changes nothing.
    """
    total = gradient.inputs[0] if gradient.op == "reshape" else gradient
    if total.op != "sum" or not total.attrs["keepdims"]:
        return None
    wide, axes = total.inputs[0], set(total.attrs["axes"])
    extra = wide.ndim - leaf.ndim
    if total.shape[extra:] != leaf.shape or not set(range(extra)) <= axes:
        return None
    if any(n is None for i, n in enumerate(wide.shape) if i not in axes):
        return next((x for x in among if x is wide), None)
    return next((x for x in among if _unreduced(x) is _unreduced(wide)), None)


def _unreduced(x: Tensor) -> Tensor:
    """`x` without the sums over axes of unknown length."""
    while x.op == "sum_to" and x.shape == x.inputs[0].shape:
        x = x.inputs[0]
    return x


def _rows(x: Tensor) -> Tensor:
    """The rows of a stack of matrices, whose number of columns is known, as one matrix."""
    return apply("reshape", x, dims=[-1, x.shape[-1]])


def _step_input(like: Tensor, shape: Shape) -> StepInput:
    return StepInput("placeholder", (), {}, shape, like.dtype, caller(), "gradient")


def _varying(roots: Sequence[Tensor], body: Body, way: _Way) -> set[int]:
    """The ids of those tensors of a body that may be others at each step."""
    leaves = {id(leaf) for leaf in body.leaves}
    varying = {id(leaf) for leaf in (*body.sequences, *body.states)}
    for x in walk(roots, lambda node: _inputs_of(node, way, leaves)):
        if id(x) not in leaves and (per_step(x) or any(id(y) in varying for y in _inputs_of(x, way))):
            varying.add(id(x))
    return varying


def apply_ones(like: Tensor) -> Tensor:
    """Ones in the shape of `like`: the gradient of a sum."""
    from .shaping import ones_like

    return ones_like(like)


def stop_gradient(variables: Any) -> Any:
    """The same values, through which no gradient flows; a list for a list."""
    if isinstance(variables, (list, tuple)):
        return [apply("stop_gradient", as_tensor(x)) for x in variables]
    return apply("stop_gradient", as_tensor(variables))
