"""Checks the timing tools against each engine's own loop, and against themselves."""

from __future__ import annotations

import json
import math
import random
import statistics
import tempfile
import time as clock
from pathlib import Path
from typing import Any

import numpy as np
from measure import Native, interval
from native import ACTIVATIONS, OPS, operands

import kernelk
from kernelk import backend as K
from kernelk.measure.estimates import paired_ratio, verdict
from kernelk.measure.recording import record
from kernelk.session.current import current

Row = list[str]

# A sample's length, in seconds, where a run is shorter.
SAMPLE = 0.05

# Nobody writes these by hand to compare with: numpy has no convolution, Theano's and CNTK's have other layouts.
WITHOUT_CONV = {"numpy", "theano", "cntk"}
# Engines whose own functions hold a float32's digits (see docs/accuracy.md).
ACCURATE = {
    "sigmoid": {"tensorflow", "cntk", "jax", "torch"},
    "softplus": {"tensorflow", "theano", "cntk", "jax", "torch"},
}
# Why kernelk's program isn't the one written by hand, shown where an interval lies outside.
WHY = {
    ("jax", "chain"): (
        "kernelk keeps XLA from computing a product and a sum in one instruction, which rounds once where numpy "
        "rounds twice; what is timed is that program."
    ),
    ("cntk", "sigmoid"): "kernelk runs the same op: what it takes more is the call's, not the function's.",
    "tensorflow": (
        "kernelk calls TensorFlow's function by an inner entry; by the public one, as written by hand, a call takes "
        "0.1 to 0.3 ms more."
    ),
}


def tensor(case: str) -> Any:
    """The op in K, of variables."""
    held = [K.variable(array) for array in operands(case)]
    if case == "gemm":
        return K.dot(*held)
    if case == "conv":
        return K.conv2d(*held, data_format="channels_last")
    if case in ACTIVATIONS:
        return getattr(K, case)(*held)
    y = held[0]
    for _ in range(4):
        y = K.tanh(y * 0.5 + 0.1)
    return y


def handed_over(y: Any, folder: Path) -> None:
    """Writes the program of a tensor of variables, as the active engine is given it, with its arrays."""
    session = current()
    host = session.ready_host()
    (call,) = record(session, y, None, "time", "").calls
    program = call.program(session, host.ops)
    encoded = program.specialise((), host.specialises).encode(program)
    (folder / "program.json").write_text(json.dumps(encoded))
    for i, constant in enumerate(program.constants):
        np.save(folder / f"constant{i:03}.npy", constant.array)
    for i, variable in enumerate(program.slots):
        np.save(folder / f"variable{i:03}.npy", session.read(variable))


def paired(engine: str, case: str, native: Any, rounds: int) -> tuple[list[str], tuple[float, float, float]]:
    """An op by hand and by kernelk, in pairs of random order: both times and their ratio as shown, and the ratio.

    `native(engine, case, folder)` starts the process in which both run. The engine is to be active.
    """
    with tempfile.TemporaryDirectory() as folder:
        handed_over(tensor(case), Path(folder))
        process: Native = native(engine, case, folder)
        loops = 1
        while (one := process.mean(loops, "kernelk")) * loops < SAMPLE:
            loops = max(loops + 1, math.ceil(1.1 * SAMPLE / one))
        pairs = []
        for _ in range(rounds):
            found = {name: process.mean(loops, name) for name in random.sample(["kernelk", "native"], 2)}
            pairs.append((found["kernelk"], found["native"]))
        process.close()
    ours, theirs = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    ratio = interval([a / b for a, b in pairs])
    shown = [f"{seconds * 1e3:.3f} ms" for seconds in (theirs, ours)]
    return [*shown, f"{ratio[0]:.3f} [{ratio[1]:.3f}, {ratio[2]:.3f}]"], ratio


def fidelity(engine: str, native: Any, rounds: int) -> tuple[list[Row], list[str]]:
    """Compares kernelk's times for single ops with those of the engine's own harness; see `paired`."""
    rows, reasons = [], []
    for case in OPS:
        if case == "conv" and engine in WITHOUT_CONV:
            continue
        shown, ratio = paired(engine, case, native, rounds)
        met = "yes" if ratio[1] >= 0.97 and ratio[2] <= 1.03 else "**no**"
        rows.append([engine, case, *shown, "inside 0.97-1.03", met])
        reason = WHY.get((engine, case)) or WHY.get(engine)
        if met != "yes" and reason:
            reasons.append(f"- {engine}, {case}: {reason}")
        print(" | ".join(rows[-1]), flush=True)
    return rows, reasons


def activations(engine: str, native: Any, rounds: int) -> tuple[list[Row], list[str]]:
    """Compares activations with the engine's own functions, where these are right; see `paired`."""
    rows, reasons = [], []
    for case in ACTIVATIONS:
        if engine not in ACCURATE[case]:
            continue
        shown, ratio = paired(engine, case, native, rounds)
        met = ratio[1] <= 1.03
        rows.append([engine, case, *shown, "at most 1.03", "yes" if met else "**no**"])
        if not met and (engine, case) in WHY:
            reasons.append(f"- {engine}, {case}: {WHY[engine, case]}")
        print(" | ".join(rows[-1]), flush=True)
    return rows, reasons


def against_itself(comparisons: int) -> list[Row]:
    """Real comparisons at the default budget: of equal bodies, and of one that is made 5 % slower; then simulated ones.

    The noise that is simulated is that of the real ones: their rounds in other pairs.
    """
    kernelk.set_backend("torch")
    size = 20
    a = K.variable(operands("gemm")[0])
    calls = [K.function([], [K.sum(K.dot(a, a))]) for _ in range(2)]

    def body(call: Any) -> Any:
        return lambda: [call([]) for _ in range(size)]

    equal, recorded = 0, []
    for _ in range(comparisons):
        result: Any = kernelk.compare(*(body(call) for call in calls))
        one, two = (side.rounds for side in result.sides)
        recorded.append((one, two))
        equal += verdict(paired_ratio(two, one)) == "no difference"

    def slower() -> None:
        for _ in range(size + 1):
            calls[0]([])

    found = 0
    for _ in range(comparisons):
        result = kernelk.compare(body(calls[1]), slower)
        found += verdict(result.sides[1].ratio) == "slower"
    simulated = [(random.choice(recorded), random.randrange(1 << 30)) for _ in range(2000)]
    same = missed = 0
    for (one, two), seed in simulated:
        generator = random.Random(seed)
        pairs = [pair if generator.random() < 0.5 else pair[::-1] for pair in zip(one, two)]
        first, second = [x for x, _ in pairs], [y for _, y in pairs]
        same += verdict(paired_ratio(second, first)) == "no difference"
        missed += verdict(paired_ratio([1.05 * y for y in second], first)) != "slower"
    rows = [
        ["equal bodies, real", f"{equal} of {comparisons} no difference", "18 of 20", equal >= 0.9 * comparisons],
        ["5% slower, real", f"{found} of {comparisons} found", "16 of 20", found >= 0.8 * comparisons],
        ["equal, 2000 simulated", f"{same / 20:.1f}% no difference", "95%", same >= 1900],
        ["5% slower, 2000 simulated", f"{100 - missed / 20:.1f}% found", "90%", missed <= 200],
    ]
    return [[what, measured, f"at least {target}", "yes" if met else "**no**"] for what, measured, target, met in rows]


def spent_in_the_op(engine: str) -> Row:
    """The share of `%ktime`'s wall time that is spent in an op of about 1 ms."""
    a = K.variable(operands("gemm")[0][:256, :256])
    chain = a
    for _ in range(4):
        chain = K.dot(chain, a)
    kernelk.time(chain, budget=0.2)
    start = clock.perf_counter()
    (call,) = kernelk.time(chain).calls
    wall = clock.perf_counter() - start
    share = sum(call.samples) * call.loops / wall
    return [
        engine,
        f"{call.steady.value * 1e3:.2f} ms",
        f"{share:.0%}",
        "at least 80%",
        "yes" if share >= 0.8 else "**no**",
    ]
