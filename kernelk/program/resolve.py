"""Resolves a graph for an engine, through aliases, branches and decompositions, before `program` linearises it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from ..arrays import Array
from ..graph.nodes import Tensor, Update
from ..graph.rules import RULES, expand
from ..ops.updates import update_value

_ALIASES = frozenset({"identity", "stop_gradient", "print", "crossentropy"})
_LEAVES = frozenset({"placeholder", "variable", "constant", "draw", "scan", "item"})
# The attributes that may hold values of integer tensors.
_VALUED = ("dims", "pads", "slices")


class NeedsValuesError(Exception):
    """Signals that linearisation needs the values of these integer tensors first, since they decide shapes."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__(tensors)
        self.tensors = tensors


def _find_values(entry: Any, numbers: set[int]) -> None:
    """Adds the numbers of the operands whose values an attribute asks for."""
    if isinstance(entry, list):
        if entry[:1] == ["value"]:
            numbers.add(entry[1])
        else:
            for inner in entry:
                _find_values(inner, numbers)


@cache
def _direct(ops: frozenset[str]) -> frozenset[str]:
    """Names of ops that compute their own value on an engine that defines `ops`, or are leaves."""
    return (ops | _LEAVES) - _ALIASES - {"phase_select", "update"}


class Resolver:
    """Resolves nodes in a phase for a set of ops: through aliases, branches and decompositions, up to leaves.

    `values` are the known ones of integer tensors that decide shapes, by id; `prints` the `print` nodes passed so far.
    """

    def __init__(self, leaves: Sequence[Tensor], phase: int, ops: frozenset[str], values: dict[int, Array]) -> None:
        self.leaves = {id(leaf) for leaf in leaves}
        self.phase = phase
        self.ops = ops
        self.values = values
        self.prints: dict[int, Tensor] = {}
        self.checked: dict[int, Tensor] = {}  # composites that are written out, and check more than what they become
        self._direct = _direct(ops)
        self._operands: dict[int, Sequence[Tensor]] = {}
        self._attrs: dict[int, dict[str, Any]] = {}

    def inside(self, leaves: Sequence[Tensor]) -> Resolver:
        """The same for a body with these leaves."""
        return Resolver(leaves, self.phase, self.ops, self.values)

    def resolve(self, node: Tensor) -> Tensor:
        """The node that really computes the value."""
        while node.op not in self._direct and id(node) not in self.leaves:
            op = node.op
            if op in _ALIASES:
                if op == "print":
                    self.prints[id(node)] = node
                node = node.inputs[0]
            elif op == "phase_select":
                node = node.inputs[0 if self.phase else 1]
            elif isinstance(node, Update):
                node = update_value(node)
            elif op in RULES and RULES[op].decompose is not None:
                if RULES[op].checks:
                    self.checked[id(node)] = node
                node = expand(node)
            else:
                break
        return node

    def inputs_of(self, node: Tensor) -> Sequence[Tensor]:
        """The inputs of a resolved node, resolved."""
        if not node.inputs or id(node) in self.leaves:
            return ()
        return self.operands(node)

    def operands(self, node: Tensor) -> Sequence[Tensor]:
        """`inputs_of`, of a leaf too."""
        operands = self._operands.get(id(node))
        if operands is None:
            operands = node.inputs
            if node.attrs:
                operands, self._attrs[id(node)] = self._with_values(node)
            for x in operands:
                if x.op not in self._direct:
                    operands = [self.resolve(x) for x in operands]
                    break
            self._operands[id(node)] = operands
        return operands

    def attrs(self, node: Tensor) -> dict[str, Any]:
        """The attributes of a node whose operands are known, with the values of integer tensors entered."""
        return self._attrs.get(id(node), node.attrs)

    def _with_values(self, node: Tensor) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Operands and attributes, with ["value", operand, i] in an attribute replaced by that integer tensor's value.

        Operands that only served for that are left out, and references to the others ([operand, axis]) renumbered.
        """
        attrs = node.attrs
        valued: set[int] = set()
        for name in _VALUED:
            if name in attrs:
                _find_values(attrs[name], valued)
        if not valued:
            return node.inputs, attrs
        missing = [node.inputs[k] for k in sorted(valued) if id(node.inputs[k]) not in self.values]
        if missing:
            raise NeedsValuesError(missing)
        dims = attrs.get("dims", ())
        lengths = {d[0] for d in dims if isinstance(d, list) and d[0] != "value"}
        kept = [k for k in range(len(node.inputs)) if k not in valued or k in lengths]
        fixed = {name: self._entered(node, attrs[name]) for name in _VALUED if name in attrs}
        if dims:
            fixed["dims"] = [[kept.index(d[0]), d[1]] if isinstance(d, list) else d for d in fixed["dims"]]
        return tuple(node.inputs[k] for k in kept), {**attrs, **fixed}

    def _entered(self, node: Tensor, entry: Any) -> Any:
        """An attribute's entry with the values that it asks for."""
        if not isinstance(entry, list):
            return entry
        if entry[:1] == ["value"]:
            return int(self.values[id(node.inputs[entry[1]])].reshape(-1)[entry[2]])
        return [self._entered(node, inner) for inner in entry]
