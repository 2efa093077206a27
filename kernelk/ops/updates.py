"""Updates of variables as nodes, which a call performs when it is done, and what they come to together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, DTypeError, ShapeError, UpdateError
from ..graph.nodes import Tensor, Update, Variable, check_generation, walk
from ..graph.rules import apply
from ..graph.state import current_state, unordered
from ..source import caller
from .dtypes import FLOATS, as_tensor, cast, promote
from .operators import binary


def as_variable(x: Any, op: str) -> Variable:
    """`x` itself if it is a live variable. Raises UpdateError."""
    if not isinstance(x, Variable):
        raise UpdateError(f"{op}: {x!r} can't be set", allowed="expected a variable made by K.variable")
    check_generation(x)
    return x


def _as_value(variable: Variable, value: Any) -> Tensor:
    """`value` as a tensor; an array's floats in the variable's own dtype, as where they are fed or set."""
    tensor = as_tensor(value, variable.dtype)
    weak = not isinstance(value, Tensor) and {tensor.dtype, variable.dtype} <= FLOATS
    return cast(tensor, variable.dtype) if weak else tensor


def update_node(variable: Any, value: Any, kind: str, op: str) -> Update:
    """The node that sets `variable` to a value (kind "assign") or adds to it ("add"). Raises on other shapes."""
    variable = as_variable(variable, op)
    value = _as_value(variable, value)
    check_generation(value)
    if value.dtype != variable.dtype:
        if promote(value.dtype, variable.dtype) != variable.dtype:
            raise DTypeError(
                f"{op}: variable '{variable.name}' is {variable.dtype}, but the value is {value.dtype}: precision "
                "would be lost",
                next_step=f"write K.cast(value, '{variable.dtype}') if you mean that",
            )
        value = cast(value, variable.dtype)
    fits = value.ndim <= variable.ndim and all(
        m in (n, None) or (kind == "add" and m == 1) for m, n in zip(value.shape[::-1], variable.shape[::-1])
    )
    if not fits or (kind == "assign" and value.ndim != variable.ndim):
        raise ShapeError(
            f"{op}: variable '{variable.name}' has shape {variable.shape}, but the value has {value.shape}",
            allowed="they must be equal",
        )
    node = Update("update", (variable, value), {}, variable.shape, variable.dtype, caller())
    node.begin = current_state().contexts.renewed.get(variable)
    node.variable = variable
    node.kind = kind
    return node


def update(x: Any, new_x: Any) -> Update:
    """Sets variable `x` to `new_x`, once the call that holds this node is done."""
    return update_node(x, new_x, "assign", "update")


def update_add(x: Any, increment: Any) -> Update:
    """Adds `increment` to variable `x`."""
    return update_node(x, increment, "add", "update_add")


def update_sub(x: Any, decrement: Any) -> Update:
    """Subtracts `decrement` from variable `x`."""
    return update_node(x, -_as_value(as_variable(x, "update_sub"), decrement), "add", "update_sub")


def moving_average_update(x: Any, value: Any, momentum: Any) -> Update:
    """Sets `x` to `x * momentum + value * (1 - momentum)`."""
    variable = as_variable(x, "moving_average_update")
    if not isinstance(momentum, (int, float, np.number, Tensor)):
        raise ArgumentError(
            f"moving_average_update: momentum {momentum!r} isn't allowed", allowed="it must be a number or a tensor"
        )
    step = binary("multiply", binary("subtract", _as_value(variable, value), variable), 1.0 - momentum)
    return update_node(x, step, "add", "moving_average_update")


def update_value(node: Update) -> Tensor:
    """The new value that an update stands for."""
    if node.expansion is None:
        variable, value = node.inputs
        if node.kind == "assign":
            node.expansion = value
        else:
            with unordered():
                node.expansion = apply("add", variable if node.begin is None else node.begin, value)
    return node.expansion


def compose(updates: Sequence[Any]) -> list[tuple[Variable, Tensor]]:
    """Updates, or (variable, value) pairs, as one new value for each variable, computed from the old ones.

    Several increments of a variable add up; an increment follows a plain update, and a plain one those that it comes
    after by `K.control_dependencies`. One that is listed twice counts once. Raises UpdateError for two plain updates.
    """
    values: dict[Variable, Tensor] = {}
    made: dict[Variable, list[Update]] = {}
    for entry in dict.fromkeys(update(*entry) if _is_pair(entry) else entry for entry in updates):
        if not isinstance(entry, Update):
            raise UpdateError(
                f"{entry!r} is no update",
                allowed="updates must be made by K.update, K.update_add, ... or be (variable, value) pairs",
            )
        check_generation(entry)
        variable = entry.variable
        earlier = made.setdefault(variable, [])
        if not earlier or (entry.kind == "assign" and all(one in entry.dependencies for one in earlier)):
            values[variable] = update_value(entry)
        elif entry.kind == "assign":
            raise UpdateError(
                f"variable '{variable.name}' is set twice in one call ({entry.source})",
                next_step="keep one K.update, or use K.update_add for increments",
            )
        else:
            with unordered():
                values[variable] = apply("add", values[variable], entry.inputs[1])
        earlier.append(entry)
    return list(values.items())


def after(tensor: Tensor, updates: Sequence[tuple[Variable, Tensor]]) -> Tensor:
    """`tensor` as it is after these updates: rewritten in terms of the variables' new values."""
    renewed: dict[int, Tensor] = {id(variable): value for variable, value in updates}
    for node in walk([tensor], lambda node: node.inputs):
        inputs = tuple(renewed.get(id(x), x) for x in node.inputs)
        if type(node) is Tensor and inputs != node.inputs:
            renewed[id(node)] = Tensor(node.op, inputs, node.attrs, node.shape, node.dtype, node.source)
    return renewed.get(id(tensor), tensor)


def _is_pair(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 2
