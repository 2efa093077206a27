"""The neutral graph: nodes, the table of op rules, loop closures, and the state of recording. Knows no engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .nodes import Placeholder as Placeholder
    from .nodes import Tensor as Tensor
    from .nodes import Update as Update
    from .nodes import Variable as Variable

__all__ = ["Placeholder", "Tensor", "Update", "Variable"]


def __getattr__(name: str) -> Any:
    # Only when first asked for: nodes need numpy, and `graph.state`, which finds the current session, does not.
    if name in __all__:
        from . import nodes

        return getattr(nodes, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
