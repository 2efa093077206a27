"""Gradients as a transform of the graph: VJP rules chained backwards, so that the result is graph like any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import ArgumentError
from .graph import Tensor, check_generation, walk
from .ops.dtypes import FLOATS, as_tensor
from .ops.primitives import zeros_shaped
from .ops.rules import RULES, apply, expand


def _inputs_of(node: Tensor, phase: int) -> Sequence[Tensor]:
    """What a node is computed from in this learning phase."""
    if node.op == "phase_select":
        return (node.inputs[0 if phase else 1],)
    return (expand(node),) if _by_expansion(node) else node.inputs


def _needs(loss: Tensor, targets: Sequence[Tensor], phase: int) -> tuple[list[Tensor], set[int]]:
    """The loss's nodes in order, and the ids of those through which a target is reached."""
    ids = {id(target) for target in targets}
    order = walk([loss], lambda node: _inputs_of(node, phase))
    reached: set[int] = set()
    for node in order:
        if id(node) in ids or any(id(x) in reached for x in _inputs_of(node, phase)):
            reached.add(id(node))
    return order, reached


def _by_expansion(node: Tensor) -> bool:
    rule = RULES.get(node.op)
    return rule is not None and rule.decompose is not None and rule.vjp is None


def gradients(loss: Any, variables: Any) -> Any:
    """The gradient of `loss` (its sum, if it isn't a scalar) with respect to each of `variables`, any tensors.

    Returns a list of tensors in the shapes and dtypes of `variables` (one tensor for one variable); a variable
    that `loss` doesn't depend on gets zeros. Gradients can be used in further ops and differentiated again.
    Raises ArgumentError if `loss` isn't a float.
    """
    single = isinstance(variables, Tensor)
    targets = [variables] if single else list(variables)
    loss = as_tensor(loss)
    if loss.dtype not in FLOATS:
        raise ArgumentError(f"gradients: the loss must be a float tensor, not {loss.dtype}")
    for target in targets:
        if not isinstance(target, Tensor):
            raise ArgumentError(f"gradients: expected tensors to differentiate by, not {type(target).__name__}")
    for tensor in (loss, *targets):
        check_generation(tensor)
    results, by_phase = _backwards(loss, targets, 0)
    if by_phase:
        # One transform for each phase, so that nothing of the dead branch is computed: not even NaN times 0.
        train, _ = _backwards(loss, targets, 1)
        results = [a if a is b else apply("phase_select", a, b) for a, b in zip(train, results)]
    return results[0] if single else results


def _backwards(loss: Tensor, targets: Sequence[Tensor], phase: int) -> tuple[list[Tensor], bool]:
    """The gradients in one learning phase, and whether they may be others in the other phase."""
    order, reached = _needs(loss, targets, phase)
    pending: dict[int, list[Tensor]] = {id(loss): [apply_ones(loss)]}
    totals: dict[int, Tensor] = {}
    for node in reversed(order):
        part: Tensor | None
        parts = pending.pop(id(node), None)
        if parts is None or id(node) not in reached:
            continue
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        totals[id(node)] = total
        if node.op == "phase_select" or _by_expansion(node):
            pending.setdefault(id(_inputs_of(node, phase)[0]), []).append(total)
            continue
        rule = RULES.get(node.op)
        if not node.inputs or rule is None or rule.vjp is None:
            continue
        if not any(id(x) in reached for x in node.inputs):
            continue
        for x, part in zip(node.inputs, rule.vjp(node, total)):
            if part is not None and id(x) in reached:
                pending.setdefault(id(x), []).append(part)
    results = [totals[id(target)] if id(target) in totals else zeros_shaped(target) for target in targets]
    return results, any(node.op == "phase_select" for node in order)


def apply_ones(like: Tensor) -> Tensor:
    """Ones in the shape of `like`: the gradient of a sum."""
    from .ops.shaping import ones_like

    return ones_like(like)


def stop_gradient(variables: Any) -> Any:
    """The same values, through which no gradient flows; a list for a list."""
    if isinstance(variables, (list, tuple)):
        return [apply("stop_gradient", as_tensor(x)) for x in variables]
    return apply("stop_gradient", as_tensor(variables))
