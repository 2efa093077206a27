"""Evaluates one op in float64 on numpy for `divergence`, to tell which of two engines is nearer to the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array
from ..engines.host import Host
from ..graph.nodes import Tensor
from ..ops.creation import placeholder
from .single_ops import Nodes

# Of these a value in float64 is as good as exact.
_NARROW = ("float16", "float32")


@dataclass(frozen=True)
class Truth:
    """An op's value in float64, for the first engine's inputs, at the element where two engines differ by most ulps.

    `place`: that element's index. `errors`: how far each engine's value is from it, in ulps of the op's dtype.
    """

    value: float
    errors: tuple[float, float]
    place: tuple[int, ...] = ()

    def words(self, engines: tuple[str, str]) -> str:
        """The truth and the verdict in one sentence."""
        (a, b), (one, other) = engines, self.errors
        if one == other:
            verdict = "neither is nearer"
        else:
            verdict = f"{a if one < other else b} is nearer"
        place = f" at {list(self.place)}, where they are the most ulps apart" if self.place else ""
        return f"float64 gives {self.value:.17g}{place}; {a} is {one:.3g} ulps from it and {b} {other:.3g}: {verdict}"


def ulps(a: Array, b: Array, dtype: str) -> Array:
    """The distance of each pair of elements, in units of the last place that the larger one has in this dtype."""
    with np.errstate(all="ignore"):
        wide_a, wide_b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        larger = np.maximum(np.abs(wide_a), np.abs(wide_b))
        unit = np.spacing(larger.astype(dtype)).astype(np.float64)
        same = (wide_a == wide_b) | (np.isnan(wide_a) & np.isnan(wide_b))
        distance = np.where(same, 0.0, np.abs(wide_a - wide_b) / unit)
    return np.where(np.isnan(distance), np.inf, distance)


def truth_of(nodes: Nodes, hosts: Sequence[Host], exact: Host, number: int) -> Truth | None:
    """The truth of a node's op, computed on `exact`, which is numpy's host.

    None for an op that can't stand alone, for one that isn't of a narrow float, and where both engines agree.
    """
    dtype = nodes.nodes[number].dtype
    alone, fed = nodes.alone([number])
    if not alone or dtype not in _NARROW:
        return None
    computed = [n for n in fed if n in nodes.computed]
    known = nodes.values(hosts[0], computed) if computed else {}
    feeds = [known[n] if n in known else nodes.feeds[n] for n in fed]
    values = [nodes.run(host, list(fed.values()), list(alone.values()), feeds)[0] for host in hosts]
    apart = ulps(values[0], values[1], dtype)
    if not apart.any():
        return None
    worst = np.unravel_index(int(np.argmax(apart)), apart.shape)
    value = _in_float64(nodes, exact, number, dict(zip(fed, feeds)))
    errors = [float(ulps(one, value, dtype)[worst]) for one in values]
    return Truth(float(value[worst]), (errors[0], errors[1]), tuple(int(i) for i in worst))


def _in_float64(nodes: Nodes, exact: Host, number: int, known: dict[int, Array]) -> Array:
    node, inputs, attrs, _ = nodes.program.instructions[number - nodes.program.first]
    operands: dict[int, Any] = {}
    feeds = {}
    for n in inputs:
        array = known[n] if n in known else nodes.given(n)
        assert array is not None
        feeds[n] = array.astype(np.float64) if array.dtype.name in _NARROW else array
        operands[n] = placeholder(array.shape, dtype=feeds[n].dtype.name)
    # The dtype that a cast leads to.
    wide = {name: "float64" if value == node.dtype else value for name, value in attrs.items()}
    tensor = Tensor(node.op, tuple(operands[n] for n in inputs), wide, nodes.shapes[number], "float64", node.source)
    return nodes.run(exact, list(operands.values()), [tensor], list(feeds.values()))[0]
