"""What a program's leaves are asked for: a constant's digest, and the error for a placeholder that isn't fed."""

from __future__ import annotations

import hashlib

from ..errors import FeedError
from ..graph.nodes import Constant, Placeholder, StepInput


def not_fed(node: Placeholder) -> FeedError:
    """The error for a placeholder that is needed and not among a program's inputs."""
    if isinstance(node, StepInput):
        return FeedError(
            f"'{node.name}' {node.shape} is known only inside the step of a loop ({node.source})",
            allowed="no tensor outside, and no length of an axis, can depend on it",
            next_step="let the step return what you need of it",
        )
    return FeedError(
        f"placeholder '{node.name}' {node.shape} ({node.source}) is needed but not fed",
        next_step="add it to the inputs of K.function, or use tensor.eval({placeholder: value})",
    )


def constant_digest(node: Constant) -> str:
    """A hash of the constant's dtype, shape and bytes, made once."""
    digest: str | None = node.__dict__.get("_digest")
    if digest is None:
        array = node.array
        content = array.tobytes()
        if len(content) > 32:
            content = hashlib.sha256(content).digest()
        digest = f"{node.dtype}{array.shape}{content.hex()}"
        node.__dict__["_digest"] = digest
    return digest
