"""The rest of Keras's backend API, besides computation: names, kinds of tensors, calls without meaning here."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import numpy as np

from .. import config
from ..errors import ArgumentError
from ..graph.nodes import Tensor, Update, dependencies_of
from ..graph.rules import apply
from ..graph.state import current_state, unordered
from .dtypes import as_tensor, no_tensor
from .updates import compose, update_value

F = TypeVar("F", bound=Callable[..., Any])


def get_uid(prefix: str = "") -> int:
    """The next number for a prefix: 1, 2, 3 ..."""
    uids = current_state().uids
    uids[prefix] += 1
    return uids[prefix]


def reset_uids() -> None:
    """Restarts the numbers of all prefixes at 1."""
    current_state().uids.clear()


@contextlib.contextmanager
def name_scope(name: str | None) -> Iterator[str]:
    """Puts this name and a slash before the names of tensors made inside, and groups them in drawings.

    Inside another scope it comes after that one's name. A name that ends with a slash, as the one that `with` gives, is
    taken as it is, and an empty one, or None, leaves all scopes. Raises ArgumentError for what is no string.
    """
    if not isinstance(name, str | None):
        raise ArgumentError(f"name_scope: {name!r} can't be a name", allowed="it must be a string")
    contexts = current_state().contexts
    before = contexts.scope
    contexts.scope = name[:-1] if name and name.endswith("/") else f"{before}/{name}" if before and name else name or ""
    try:
        yield contexts.scope + "/" if contexts.scope else ""
    finally:
        contexts.scope = before


def cast_to_floatx(x: Any) -> Any:
    """An array in floatx; a tensor is cast in the graph."""
    from .elementwise import cast

    if isinstance(x, Tensor):
        return cast(x, config.floatx())
    return np.asarray(x, dtype=config.floatx())


def is_sparse(tensor: Any) -> bool:
    """Whether `tensor` is marked as sparse; its values are computed densely all the same.

    `placeholder(sparse=True)`, a variable of a scipy.sparse matrix, and such tensors joined by `concatenate` are.
    Raises ArgumentError for anything but a tensor.
    """
    if not isinstance(tensor, Tensor):
        raise no_tensor("is_sparse", tensor)
    return tensor.sparse


def to_dense(tensor: Any) -> Tensor:
    """The same values, no longer marked as sparse; a dense tensor is returned unchanged."""
    tensor = as_tensor(tensor)
    return apply("identity", tensor) if tensor.sparse else tensor


def is_symbolic(x: Any) -> bool:
    """Whether `x` stands for a value that a call computes."""
    return isinstance(x, Tensor)


def size(x: Any, name: str | None = None) -> Tensor:
    """The number of elements as a 0-d int32 tensor, known at each call."""
    tensor = as_tensor(x)
    return apply("size", tensor, axes=list(range(tensor.ndim)), result="int32")


def symbolic(func: F) -> F:
    """Returns the function unchanged: everything here is symbolic."""
    return func


def eager(func: F) -> F:
    """Returns the function unchanged: everything here is symbolic."""
    return func


@contextlib.contextmanager
def control_dependencies(control_inputs: Any) -> Iterator[None]:
    """What is made inside comes after these tensors: it reads variables as the updates among them have set them.

    A call that computes it performs those updates. None: what is made inside comes after nothing.
    Raises ArgumentError for what isn't a tensor.
    """
    state = current_state()
    contexts = state.contexts
    kept = contexts.dependencies, contexts.renewed
    found = [] if control_inputs is None else [*contexts.dependencies, *_updates_among(control_inputs)]
    with unordered():
        last = {x.variable: x for x in found}
        # One update that says it all stands for the variable, which a gradient then takes it for.
        renewed = {v: last[v] if value is update_value(last[v]) else value for v, value in compose(found)}
    contexts.dependencies, contexts.renewed = tuple(dict.fromkeys(found)), renewed
    state.ordered = state.ordered or bool(found)
    try:
        yield
    finally:
        contexts.dependencies, contexts.renewed = kept


def _updates_among(given: Any) -> list[Update]:
    found: list[Update] = []
    for x in given if isinstance(given, (list, tuple)) else [given]:
        if isinstance(x, (list, tuple)):
            found += _updates_among(x)
        elif isinstance(x, Tensor):
            found += dependencies_of([x])
            found += [x] if isinstance(x, Update) else []
        elif x is not None:
            raise no_tensor("control_dependencies", x)
    return found


def manual_variable_initialization(value: bool) -> None:
    """Does nothing: a variable has its value from the start."""


def pattern_broadcast(x: Any, broadcastable: Any) -> Tensor:
    """Returns the tensor unchanged: each call knows from the lengths which axes broadcast."""
    return as_tensor(x)
