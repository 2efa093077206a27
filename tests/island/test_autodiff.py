"""kernelk's own gradients against each engine's autodiff of the same programs, first and second order."""

from __future__ import annotations

import functools
import importlib
import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from helpers.engines import WORKERS, absent
from helpers.processes import PATIENCE
from parity import slopes, suite

import kernelk.backends
from kernelk import backend as K
from kernelk.engines import registry
from kernelk.errors import BackendNotInstalledError
from kernelk.graph.nodes import Tensor
from kernelk.graph.rules import RULES
from kernelk.program.program import Program

Arrays = list[np.ndarray[Any, Any]]

HERE = Path(__file__).parent
SEED = 1
# How many cases of each function are tried, by order.
CASES = {1: 2, 2: 1}
# CNTK's Function.grad gives arrays, not a Function: there is nothing to differentiate again.
PAIRS = [(engine, order) for engine in WORKERS for order in CASES if (engine, order) != ("cntk", 2)]
# What an engine can't differentiate, by a pattern of its refusal, and why; each must occur.
APART: dict[tuple[str, int], dict[str, str]] = {
    ("cntk", 1): {
        "cumsum no exact counterpart": "CNTK has no cumulative sum",
        "cumprod no exact counterpart": "CNTK has no cumulative product",
        "takes u?int": "CNTK has no integers: what is not exact in floats is numpy's, and splits the program",
    },
    ("tensorflow", 2): {"EXPLICIT.*MaxPoolGradGrad": "max pooling with explicit padding has no second one"},
    ("theano", 2): {r"2nd derivatives of `product\(a\)` is not currently supported": "Theano's own words"},
}


class Wanted(NamedTuple):
    """One of the suite's cases as a loss, and what kernelk's rules give: gradients of the first feeds."""

    slope: slopes.Slope
    order: list[int]
    feeds: Arrays
    gradients: Arrays

    @property
    def moved(self) -> int:
        """By how many of the feeds it is differentiated."""
        return len(self.slope.directions)

    def loss(self) -> tuple[list[Tensor], Tensor]:
        """Placeholders in the order of the feeds, and the loss."""
        inputs = [K.placeholder(x.shape, dtype=x.dtype) for x in self.feeds]
        given = dict(zip(self.order, inputs))
        made = self.slope.one.case.graph(*[given[i] for i in range(len(inputs))])
        loss: Tensor = K.constant(0.0, dtype="float64")
        for tensor, weight in zip(made if isinstance(made, tuple) else (made,), self.slope.weights):
            if weight is not None:
                loss = loss + K.sum(tensor * K.constant(weight, dtype="float64"))
        return inputs, loss


def chosen(order: int, functions: Sequence[str] = ()) -> list[Wanted]:
    """Some smooth cases, with elements, of each function (of these), and kernelk's gradients as numpy computes them."""
    by_function: dict[str, list[slopes.Slope]] = {}
    for slope in slopes.slopes(suite.cases(), SEED, "none"):
        if functions and slope.one.case.function not in functions:
            continue
        if all(feed.size for feed in slope.one.feeds):
            by_function.setdefault(slope.one.case.function, []).append(slope)
    found = []
    for function, mine in by_function.items():
        # Each function's own draw: a case added to another one changes nothing here.
        random = np.random.default_rng([SEED, order, *function.encode()])
        for number in random.permutation(len(mine))[: CASES[order]]:
            slope = mine[number]
            places = [*slope.directions, *(i for i in range(len(slope.one.feeds)) if i not in slope.directions)]
            case = Wanted(slope, places, [np.asarray(slope.one.feeds[i]) for i in places], [])
            inputs, loss = case.loss()
            for _ in range(order):
                gradients: Sequence[Tensor] = K.gradients(loss, inputs[: case.moved])
                loss = sum((K.sum(x * (i + 1.0)) for i, x in enumerate(gradients)), K.constant(0.0, dtype="float64"))
            found.append(case._replace(gradients=K.function(inputs, list(gradients))(case.feeds)))
    return found


wanted = functools.cache(chosen)


def unrolled(encoded: dict[str, Any]) -> dict[str, Any]:
    """A program of known shapes with its loops written out, step by step, for an engine that leaves them to us."""
    leaves = [leaf for kind in ("inputs", "slots", "draws", "constants") for leaf in encoded[kind]]
    values: list[Any] = list(leaves)  # dtype and shape of each
    instructions: list[Any] = []

    def emit(op: str, inputs: Sequence[int], attrs: dict[str, Any], dtype: str, shape: Sequence[int]) -> int:
        instructions.append([op, list(inputs), attrs, dtype, list(shape)])
        values.append([dtype, list(shape)])
        return len(values) - 1

    def write(body: dict[str, Any], numbers: list[Any]) -> list[Any]:
        """The numbers of a program's outputs, whose leaves have these; a loop's number is the list of its values'."""
        numbers = list(numbers)
        for op, inputs, attrs, dtype, shape in body["instructions"]:
            operands = [numbers[n] for n in inputs]
            if op == "item":
                numbers.append(operands[0][attrs["index"]])
            elif op == "scan":
                numbers.append(loop(operands, attrs))
            else:
                numbers.append(emit(op, operands, attrs, dtype, shape))
        return [numbers[n] for n in body["outputs"]]

    def loop(operands: list[int], attrs: dict[str, Any]) -> list[int]:
        body, first, count = attrs["body"], attrs["sequences"], attrs["states"]
        drawn = range(len(body["inputs"]), len(body["inputs"]) + len(body["draws"]))
        states, stacks = operands[first : first + count], {}
        times = range(values[operands[0]][1][0])
        for t in reversed(times) if attrs["reverse"] else times:
            given = [*operands[:first], *states, *operands[first + count :]]
            for place in (*range(first), *drawn):
                dtype, shape = values[given[place]]
                part = [[t, t + 1, None], *[[None, None, None]] * (len(shape) - 1)]
                row = emit("slice", [given[place]], {"slices": part}, dtype, [1, *shape[1:]])
                given[place] = emit("reshape", [row], {"dims": shape[1:]}, dtype, shape[1:])
            results = write(body, given)
            states, stacks[t] = results[:count], results[count:]
        whole = []
        for rows in zip(*(stacks[t] for t in times)):
            dtype, shape = values[rows[0]]
            flat = [emit("reshape", [row], {"dims": [1, *shape]}, dtype, [1, *shape]) for row in rows]
            whole.append(emit("concatenate", flat, {"axis": 0}, dtype, [len(rows), *shape]))
        return states + whole

    outputs = write(encoded, list(range(len(leaves))))
    return {**encoded, "instructions": instructions, "outputs": outputs}


def programs(engine: str, cases: Sequence[Wanted]) -> list[tuple[Wanted, dict[str, Any], Arrays]]:
    """Each case's program for an engine, with its constants; without those that draw or hold variables."""
    descriptor = registry.engine(engine)
    backend = getattr(importlib.import_module(descriptor.path), descriptor.backend)
    made = []
    for case in cases:
        inputs, loss = case.loss()
        program = Program(inputs, [loss], (), 0, frozenset(backend.ops))
        if not program.draws and not program.slots:
            encoded = program.specialise(tuple(x.shape for x in case.feeds), "all").encode(program)
            if "scan" not in backend.ops:
                encoded = unrolled(encoded)
            made.append((case, encoded, [x.array for x in program.constants]))
    return made


def autodiff(engine: str, order: int, cases: list[tuple[Wanted, dict[str, Any], Arrays]], folder: Path) -> Any:
    """What the engine makes of the programs, under its interpreter: an array for each key, and "failed"."""
    given: dict[str, Any] = {}
    described = []
    for number, (case, encoded, constants) in enumerate(cases):
        described.append({"program": encoded, "count": case.moved, "order": order})
        given.update({f"{number}.feed.{i}": x for i, x in enumerate(case.feeds)})
        given.update({f"{number}.constant.{i}": x for i, x in enumerate(constants)})
    np.savez(folder / "cases.npz", cases=json.dumps(described), **given)
    try:
        python = registry.interpreter(registry.engine(engine))
    except BackendNotInstalledError as error:
        absent(engine, error)
    island = Path(kernelk.backends.__file__).parent
    script = [python, HERE / "island_autodiff.py", island, engine, folder / "cases.npz", folder / "results.npz"]
    done = subprocess.run(list(map(str, script)), cwd=folder, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    with np.load(folder / "results.npz") as results:
        return {name: results[name] for name in results.files}


def differences(engine: str, order: int, cases: Sequence[Wanted], folder: Path) -> tuple[list[str], int, set[str]]:
    """What is wrong, how many cases were compared, and why the others weren't."""
    if engine == "cntk":
        # What CNTK's guards put in place of NaN is a constant, or has numpy compute all.
        cases = [case for case in cases if np.isfinite(case.slope.loss(case.slope.one.feeds))]
    encoded = programs(engine, cases)
    found = autodiff(engine, order, encoded, folder)
    failed = json.loads(str(found["failed"]))
    wrong, compared, reasons = [], 0, set()
    for number, (case, *_) in enumerate(encoded):
        if str(number) in failed:
            known = [words for words in APART.get((engine, order), ()) if re.search(words, failed[str(number)])]
            reasons.update(known)
            if not known:
                wrong.append(f"{case.slope.one}: {failed[str(number)]}")
            continue
        elements = 0
        for i, ours in enumerate(case.gradients):
            theirs = found[f"{number}.gradient.{i}"]
            if (theirs.dtype, theirs.shape) != (ours.dtype, ours.shape):
                wrong.append(f"{case.slope.one}: {ours.dtype}{ours.shape} and {theirs.dtype}{theirs.shape}")
                continue
            # Outside of what has a slope, some have 0 times infinity, some the one or the other.
            both = np.isfinite(ours) & np.isfinite(theirs)
            elements += int(both.sum())
            if not np.allclose(ours[both], theirs[both], rtol=1e-7, atol=1e-9):
                wrong.append(f"{case.slope.one}: {ours} and {theirs}")
        compared += elements > 0
    return wrong, compared, reasons


@pytest.mark.parametrize(("engine", "order"), PAIRS)
def test_gradients_are_those_of_the_engines_autodiff(engine: str, order: int, tmp_path: Path) -> None:
    cases = wanted(order)
    wrong, compared, reasons = differences(engine, order, cases, tmp_path)
    assert not wrong, "\n".join(wrong)
    assert compared > 0.9 * len(cases) > 70
    assert reasons == set(APART.get((engine, order), ())), "what can be compared after all is no exception"


def test_every_function_with_a_slope_is_among_them() -> None:
    functions = {slope.one.case.function for slope in slopes.slopes(suite.cases(), SEED, "none")}
    assert {case.slope.one.case.function for order in CASES for case in wanted(order)} == functions
    assert len(functions) > 70


@pytest.mark.parametrize("engine", WORKERS)
def test_a_wrong_rule_is_found(engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = RULES["tanh"]
    assert rule.vjp is not None
    right = rule.vjp
    monkeypatch.setattr(rule, "vjp", lambda node, g: [right(node, g)[0] * 1.001])
    wrong, compared, _ = differences(engine, 1, chosen(1, ("tanh", "exp")), tmp_path)
    assert compared == 2 * CASES[1]
    assert len(wrong) == CASES[1]
    assert all(line.startswith("tanh ") for line in wrong)
