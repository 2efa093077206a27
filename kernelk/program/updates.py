"""A tensor as it is after a call's updates, before it is linearised."""

from __future__ import annotations

from collections.abc import Sequence

from ..graph.nodes import Tensor, Variable, walk


def after(tensor: Tensor, updates: Sequence[tuple[Variable, Tensor]]) -> Tensor:
    """`tensor` as it is after these updates: rewritten in terms of the variables' new values."""
    renewed: dict[int, Tensor] = {id(variable): value for variable, value in updates}
    for node in walk([tensor], lambda node: node.inputs):
        inputs = tuple(renewed.get(id(x), x) for x in node.inputs)
        if type(node) is Tensor and inputs != node.inputs:
            renewed[id(node)] = Tensor(node.op, inputs, node.attrs, node.shape, node.dtype, node.source)
    return renewed.get(id(tensor), tensor)
