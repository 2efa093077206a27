"""kernelk's own gradients against the engines' autodiff of the same programs, first and second order."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from parity import slopes, suite

from kernelk import backend as K
from kernelk.backends.lowering import Program as Lowered
from kernelk.backends.lowering import lower
from kernelk.graph import Tensor
from kernelk.program import Program

Arrays = list[np.ndarray[Any, Any]]
# The gradients of these arrays, which stand first among the inputs, of a program's only output.
Autodiff = Callable[[Lowered, Arrays, Arrays, int, bool], Arrays]

SEED = 1


def jax_gradients(program: Lowered, feeds: Arrays, constants: Arrays, count: int, twice: bool) -> Arrays:
    import jax

    from kernelk.backends.jax_backend import OPS, JaxBackend

    JaxBackend({})

    def loss(*given: Any) -> Any:
        leaves = [*given, *feeds[count:], *constants]
        return lower(program, [jax.numpy.asarray(x) for x in leaves], OPS)[program.outputs[0]]

    places = tuple(range(count))

    def slope(*given: Any) -> Any:
        return sum((x * (i + 1.0)).sum() for i, x in enumerate(jax.grad(loss, places)(*given)))

    with jax.enable_x64(True):
        found = jax.jit(jax.grad(slope if twice else loss, places))(*feeds[:count])
        return [np.asarray(x) for x in found]


def torch_gradients(program: Lowered, feeds: Arrays, constants: Arrays, count: int, twice: bool) -> Arrays:
    import torch

    from kernelk.backends import torch_ops
    from kernelk.backends.torch_backend import TorchBackend

    TorchBackend({})
    with torch.enable_grad():
        given = [torch.tensor(x, requires_grad=i < count) for i, x in enumerate(feeds)]
        values = [*given, *(torch.tensor(x) for x in constants)]
        for instruction in program.instructions:
            call = torch_ops.make(instruction)
            values.append(call(*[values[n] for n in instruction.inputs]))
        loss = values[program.outputs[0]]
        if not loss.requires_grad:
            return [np.zeros_like(x) for x in feeds[:count]]
        found = torch.autograd.grad(loss, given[:count], create_graph=twice, allow_unused=True)
        if twice:
            total = sum((x * (i + 1.0)).sum() for i, x in enumerate(found) if x is not None)
            if not total.requires_grad:
                return [np.zeros_like(x) for x in feeds[:count]]
            found = torch.autograd.grad(total, given[:count], allow_unused=True)
    return [np.zeros_like(feeds[i]) if x is None else x.numpy() for i, x in enumerate(found)]


ENGINES: dict[str, Autodiff] = {"jax": jax_gradients, "torch": torch_gradients}


def programs(ops: frozenset[str], stride: int, twice: bool) -> list[tuple[str, Lowered, Arrays, Arrays, int, Arrays]]:
    """A part of the suite's smooth cases: name, the loss's program, feeds, constants, how many are moved, gradients."""
    made = []
    for slope in list(slopes.slopes(suite.cases(), SEED, "none"))[SEED % stride :: stride]:
        order = [*slope.directions, *(i for i in range(len(slope.one.feeds)) if i not in slope.directions)]
        feeds = [np.asarray(slope.one.feeds[i]) for i in order]
        inputs = [K.placeholder(x.shape, dtype=x.dtype) for x in feeds]
        given = {i: x for i, x in zip(order, inputs)}
        results = slope.one.case.graph(*[given[i] for i in range(len(order))])
        loss: Tensor = K.constant(0.0, dtype="float64")
        for tensor, weight in zip(results if isinstance(results, tuple) else (results,), slope.weights):
            if weight is not None:
                loss = loss + K.sum(tensor * K.constant(weight, dtype="float64"))
        count = len(slope.directions)
        gradients: Sequence[Tensor] = K.gradients(loss, inputs[:count])
        if twice:
            total = sum((K.sum(x * (i + 1.0)) for i, x in enumerate(gradients)), K.constant(0.0, dtype="float64"))
            gradients = K.gradients(total, inputs[:count])
        program = Program(inputs, [loss], (), 0, ops)
        if program.draws or program.slots:
            continue
        encoded, _ = program.encode(program.specialise(tuple(x.shape for x in feeds), "all"))
        wanted = K.function(inputs, list(gradients))(feeds)
        made.append((str(slope.one), Lowered(encoded), feeds, [x.array for x in program.constants], count, wanted))
    return made


@pytest.mark.parametrize("twice", [False, True], ids=["first", "second"])
@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_are_those_of_the_engines_autodiff(engine: str, twice: bool) -> None:
    if importlib.util.find_spec(engine) is None:
        assert engine not in os.environ.get("KERNELK_REQUIRE", ""), f"{engine} is required and not installed"
        pytest.skip(f"{engine} is not installed")
    if engine == "jax":
        from kernelk.backends.jax_backend import OPS as ops
    else:
        from kernelk.backends.torch_ops import KERNELS, MAKERS

        ops = {**KERNELS, **MAKERS}
    wrong = []
    cases = programs(frozenset(ops), 16 if twice else 6, twice)
    assert len(cases) > 20
    for name, program, feeds, constants, count, wanted in cases:
        found = ENGINES[engine](program, feeds, constants, count, twice)
        for ours, theirs in zip(wanted, found):
            both = np.isfinite(ours) & np.isfinite(theirs)
            if not np.allclose(ours[both], theirs[both], rtol=1e-7, atol=1e-9):
                wrong.append(f"{name}: {ours} and {theirs}")
    assert not wrong, "\n".join(wrong)
