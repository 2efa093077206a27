"""First step of every tool that takes a tensor or a K.function: a Keras model, say, is turned into one.

And what a model's layers are to these tools: name scopes, which Keras opens around each layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..graph.nodes import Tensor, walk
from .function import Function


class Adaptor(Protocol):
    """What knows a kind of object that holds a graph; it changes nothing of it."""

    def as_function(self, target: Any) -> Function | None:
        """The K.function that an object of this kind computes, None for any other object. Raises KernelKError."""

    def parts(self, target: Any) -> Mapping[str, Any]:
        """The tensors and functions of an object by what follows its name, as ".output"; none of any other object."""


_ADAPTORS: list[Adaptor] = []


def register(adaptor: Adaptor) -> None:
    """Enters an adaptor, for good."""
    if adaptor not in _ADAPTORS:
        _ADAPTORS.append(adaptor)


def adapted(target: Any) -> Any:
    """The K.function that a target stands for, else the target itself. Raises what its adaptor raises."""
    return next((found for one in _ADAPTORS if (found := one.as_function(target)) is not None), target)


def parts_of(value: Any) -> Mapping[str, Any]:
    """The tensors and functions of a model, by what follows its name; none of what is no model."""
    return next((found for one in _ADAPTORS if (found := one.parts(value))), {})


def layers_of(roots: Sequence[Tensor]) -> frozenset[str]:
    """The names of the Keras layers that these tensors need."""
    # Keras sets it on each layer's outputs: the layer, and at which of its calls.
    marks = (node.__dict__.get("_keras_history") for node in walk(roots, lambda node: node.inputs))
    return frozenset(str(mark[0].name) for mark in marks if mark)


def outer_scope(node: Tensor) -> str:
    """The outermost name scope of a node, which in a model is the layer, the loss or the optimizer; "" for none."""
    return node.scope.partition("/")[0]
