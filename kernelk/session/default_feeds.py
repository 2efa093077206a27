"""Chooses the feeds for a tensor that is evaluated on its own: given values, or its placeholders' last feeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..arrays import Array
from ..errors import ArgumentError, FeedError
from ..graph.nodes import LearningPhase, Placeholder, Tensor, Update, walk
from ..graph.state import current_state
from ..ops.updates import update_value
from ..twins import as_typed
from .feeds import as_feed, as_phase, last_feed
from .function import Function

_FEEDS = "feeds={placeholder: array}"


def roots_of(y: Any, asker: str) -> list[Tensor]:
    """The tensors of a target: a tensor, several, or a K.function's outputs and new values. Raises ArgumentError."""
    if isinstance(y, Function):
        roots = y.roots
    else:
        roots = list(y) if isinstance(y, (list, tuple)) else [y]
    allowed = "allowed are a tensor, a list of tensors, a K.function and a Keras model"
    if isinstance(y, (list, tuple)) and not roots:
        raise ArgumentError(f"{asker}: the list is empty", allowed=allowed)
    for root in roots:
        if isinstance(root, Function):
            raise ArgumentError(f"{asker}: a K.function stands alone, not in a list", allowed=allowed)
        if not isinstance(root, Tensor):
            raise ArgumentError(f"{asker}: {type(root).__name__} is neither a tensor nor a K.function", allowed=allowed)
    return roots


def needed_placeholders(roots: Sequence[Tensor], phase: int) -> list[Placeholder]:
    """The placeholders that these tensors' values depend on in a learning phase."""

    def inputs_of(node: Tensor) -> Sequence[Tensor]:
        if node.op == "phase_select":
            return (node.inputs[0 if phase else 1],)
        return (update_value(node),) if isinstance(node, Update) else node.inputs

    order = walk(roots, inputs_of)
    return [x for x in order if isinstance(x, Placeholder) and not isinstance(x, LearningPhase)]


def known_feeds(
    y: Any,
    roots: list[Tensor],
    given: Mapping[Any, Any],
    asker: str,
    magic: str,
    otherwise: Callable[[Placeholder], Array] | None = None,
) -> tuple[int, dict[Placeholder, Array]]:
    """The learning phase, and an array for each placeholder that is needed: given, or its last feed.

    `asker` and `magic` say in errors who asks, and how feeds are given to it; `otherwise` makes what isn't known.
    Raises FeedError.
    """
    if not isinstance(given, Mapping):
        raise ArgumentError(
            f"{asker}: feeds map placeholders to arrays, not {type(given).__name__}", next_step=f"give {_FEEDS}"
        )
    phase = current_state().fixed_phase or 0
    switches: list[Any] = [x for x in given if isinstance(x, LearningPhase)]
    if switches:
        phase = as_phase(given[switches[0]])
    elif isinstance(y, Function):
        phase = next((x.fed for x in y.inputs if isinstance(x, LearningPhase) and x.fed is not None), phase)
    needed = needed_placeholders(roots, phase)
    known: dict[int, Any] = {}
    for key, value in given.items():
        if isinstance(key, LearningPhase):
            continue
        if isinstance(y, Function) and any(key is x for x in y.inputs) and not any(key is x for x in needed):
            # The call takes a value for it, and doesn't use it.
            continue
        matching = [x for x in needed if x is key or (isinstance(key, str) and x.name == key)]
        if len(matching) != 1:
            names = ", ".join(f"'{x.name}'" for x in needed) or "none"
            what = f"'{key.name}'" if isinstance(key, Tensor) else repr(key)
            why = "several placeholders are named" if matching else "it needs no placeholder named"
            raise FeedError(f"{asker}: {why} {what}", allowed=f"it needs {names}")
        known[id(matching[0])] = value
    missing = []
    for x in needed:
        if id(x) not in known:
            known[id(x)] = last_feed(x)
            if known[id(x)] is None and otherwise is not None:
                known[id(x)] = otherwise(x)
            if known[id(x)] is None:
                missing.append(f"'{x.name}' {x.shape} ({x.source})")
    if missing:
        otherwise_fed = f"{y.feeding}, or " if isinstance(y, Function) and y.feeding else ""
        raise FeedError(
            f"{asker}: feeds are missing for {'; '.join(missing)}",
            next_step=otherwise_fed + as_typed(f"give {_FEEDS} ({magic})", f"give {_FEEDS}"),
        )
    return phase, {x: as_feed(x, known[id(x)]) for x in needed}
