"""The table of ops: for each, how shape and dtype are inferred, its VJP, and a composite's decomposition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from .nodes import Inference, Shape, Tensor, record
from .state import unordered

# What inference tells of a value: shape and dtype.
Result: TypeAlias = tuple[Shape, str]
# Of each input, None where there is none.
Gradients: TypeAlias = Sequence[Tensor | None]
# (node, gradient of its value) -> gradient of each input
Vjp: TypeAlias = Callable[[Tensor, Tensor], Gradients]


class Rule:
    """The rule of one op. An op with `decompose` is a composite: backends may leave it out."""

    __slots__ = ("checks", "decompose", "infer", "vjp")

    def __init__(
        self,
        infer: Inference,
        vjp: Vjp | None = None,
        decompose: Callable[..., Tensor] | None = None,
        checks: bool = False,
    ) -> None:
        """`checks`: `infer` refuses lengths that the ops of the decomposition take."""
        self.infer = infer
        self.vjp = vjp
        self.decompose = decompose
        self.checks = checks


RULES: dict[str, Rule] = {}


def apply(op: str, *inputs: Tensor, **attrs: Any) -> Tensor:
    """Records one op of the table."""
    return record(op, inputs, attrs, RULES[op].infer)


def expand(node: Tensor) -> Tensor:
    """A composite node written in other ops; made once for each node."""
    if node.expansion is None:
        decompose = RULES[node.op].decompose
        assert decompose is not None
        with unordered():
            node.expansion = decompose(*node.inputs, **node.attrs)
    return node.expansion
