"""What a model of Keras 2 is to kernelk's tools: the function from its inputs to its outputs, and named tensors."""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError
from ..graph.nodes import Placeholder, Tensor
from ..session.function import Function

# By name, since Keras may have been put back to another version meanwhile.
_CLASS = ("keras.engine.network", "Network")
_FUNCTIONS = ("train_function", "test_function", "predict_function")


def _is_model(target: Any) -> bool:
    return any((one.__module__, one.__name__) == _CLASS for one in type(target).__mro__)


def as_function(target: Any) -> Function | None:
    """The function that a model computes, in the session's learning phase; None for what is no model of Keras 2.

    Raises ArgumentError for a model that has no graph yet, StaleTensorError for one that K.clear_session ended.
    """
    if not _is_model(target):
        return None
    outputs = getattr(target, "outputs", None)
    if not outputs:
        raise ArgumentError(
            f"model '{target.name}' has no graph yet, since the shape of its input isn't known",
            next_step="call its fit or predict first, or its build with a shape",
        )
    if not all(isinstance(x, Tensor) for x in outputs):
        return None
    # An input that was made of a tensor isn't fed.
    inputs = [x for x in target.inputs if isinstance(x, Placeholder)]
    function = Function(inputs, outputs, name=target.name, live=False)
    function.what, function.feeding = "model", "call the model's predict or fit first"
    return function


def parts(target: Any) -> dict[str, Any]:
    """A model's inputs, outputs and functions, as they are written after its name."""
    if not _is_model(target):
        return {}
    found: dict[str, Any] = {}
    held = vars(target)
    for name in ("input", "output"):
        tensors = held.get(f"{name}s") or []
        found.update({f".{name}s[{i}]" if len(tensors) > 1 else f".{name}": x for i, x in enumerate(tensors)})
    found.update({f".{name}": held.get(name) for name in _FUNCTIONS})
    return {name: value for name, value in found.items() if isinstance(value, (Tensor, Function))}
