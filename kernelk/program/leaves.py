"""A constant's content, and the error for a placeholder that isn't fed."""

from __future__ import annotations

import hashlib
from typing import TypeAlias

import numpy as np

from ..errors import FeedError
from ..graph.nodes import Constant, LearningPhase, Placeholder, Shape, StepInput, constant_node

# A constant's dtype, shape, and bytes or their hash.
Content: TypeAlias = "tuple[str, Shape, bytes]"


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


def phase_constant(node: LearningPhase, phase: int) -> Constant:
    """The constant that stands for the learning phase in this phase, made once."""
    made: dict[int, Constant] = node.__dict__.setdefault("_values", {})
    if phase not in made:
        made[phase] = constant_node(np.asarray(bool(phase)))
    return made[phase]


def content_of(node: Constant) -> Content:
    """The content that tells a constant from others. A long run of bytes is hashed, once for each constant."""
    content: bytes | None = node.__dict__.get("_hash")
    if content is None:
        content = node.array.tobytes()
        if len(content) > 32:
            content = node.__dict__["_hash"] = hashlib.sha256(content).digest()
    return node.dtype, node.array.shape, content
