"""The order in which a graph is walked."""

from __future__ import annotations

import random
import sys

import pytest

from kernelk import backend as K
from kernelk.errors import StaleTensorError
from kernelk.graph.nodes import Tensor, check_generations, walk


def by_recursion(roots: list[Tensor]) -> list[Tensor]:
    order: list[Tensor] = []
    seen: set[Tensor] = set()

    def visit(node: Tensor) -> None:
        if node not in seen:
            seen.add(node)
            for x in node.inputs:
                visit(x)
            order.append(node)

    for root in roots:
        visit(root)
    return order


@pytest.mark.parametrize("seed", range(5))
def test_each_node_comes_once_after_its_inputs_in_their_order(seed: int) -> None:
    pick = random.Random(seed)
    nodes = [K.placeholder((2,)) for _ in range(3)]
    for _ in range(60):
        nodes.append(pick.choice(nodes) + pick.choice(nodes))
    roots = pick.sample(nodes, 4)
    assert walk(roots, lambda node: node.inputs) == by_recursion(roots)


def test_depth_does_not_matter() -> None:
    y = x = K.placeholder((2,))
    for _ in range(2 * sys.getrecursionlimit()):
        y = K.abs(y)
    order = walk([y], lambda node: node.inputs)
    assert order[0] is x
    assert order[-1] is y


def test_of_many_stale_tensors_the_first_is_named() -> None:
    old = [K.placeholder((2,), name=name) for name in ("first", "second")]
    K.clear_session()
    fresh = K.placeholder((2,), name="fresh")
    check_generations([fresh])
    with pytest.raises(StaleTensorError, match="'first'"):
        check_generations([fresh, *old])
