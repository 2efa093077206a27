"""A call's updates, composed to one new value for each variable, before they are linearised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UpdateError
from ..graph.nodes import Tensor, Update, Variable, check_generation, walk
from ..graph.rules import apply
from ..ops.updates import update
from .resolve import update_value


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
                f"{entry!r} is no update",
                allowed="updates must be made by K.update, K.update_add, ... or be (variable, value) pairs",
            )
        check_generation(entry)
        variable = entry.inputs[0]
        assert isinstance(variable, Variable)
        if id(variable) not in values:
            order.append(variable)
            values[id(variable)] = update_value(entry)
        elif entry.kind == "assign":
            raise UpdateError(
                f"variable '{variable.name}' is set twice in one call ({entry.source})",
                next_step="keep one K.update, or use K.update_add for increments",
            )
        else:
            values[id(variable)] = apply("add", values[id(variable)], entry.inputs[1])
        if entry.kind == "assign":
            assigned.add(id(variable))
    return [(variable, values[id(variable)]) for variable in order]


def after(tensor: Tensor, updates: Sequence[tuple[Variable, Tensor]]) -> Tensor:
    """`tensor` as it is after these updates: rewritten in terms of the variables' new values."""
    renewed: dict[int, Tensor] = {id(variable): value for variable, value in updates}
    for node in walk([tensor], lambda node: node.inputs):
        inputs = tuple(renewed.get(id(x), x) for x in node.inputs)
        if type(node) is Tensor and inputs != node.inputs:
            renewed[id(node)] = Tensor(node.op, inputs, node.attrs, node.shape, node.dtype, node.source)
    return renewed.get(id(tensor), tensor)
