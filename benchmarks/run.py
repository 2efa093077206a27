"""`make bench`: measures kernelk against its targets and writes RESULTS.md."""

from __future__ import annotations

import argparse
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np

os.environ.setdefault("KERNELK_QUIET", "1")

import choosing
import clusters
import durable
import keras2
import panel
import side
import timing
from measure import HERE, Native, compare, interval, native_environment, repeated
from models import empty, model

from kernelk import backend as K
from kernelk import config
from kernelk.engines import registry
from kernelk.engines.machine import processor
from kernelk.session.current import current
from kernelk.session.swap import set_backend

ENGINES = ["numpy", "tensorflow", "theano", "cntk", "jax", "torch"]
Row = list[str]


def baseline(engine: str, case: str, folder: str = "") -> Native:
    """A native process for this engine and case; `folder` has kernelk's program, if that is to run there too."""
    descriptor = registry.engine(engine)
    python = sys.executable if descriptor.in_kernel else registry.interpreter(descriptor)
    return Native(python, engine, case, native_environment(engine), folder)


def microseconds(triple: tuple[float, float, float]) -> str:
    """Median and interval in us."""
    return f"{triple[0] * 1e6:.0f} us [{triple[1] * 1e6:.0f}, {triple[2] * 1e6:.0f}]"


def ratio(triple: tuple[float, float, float]) -> str:
    """Median and interval of a ratio."""
    return f"{triple[0]:.2f} [{triple[1]:.2f}, {triple[2]:.2f}]"


# case: (label, calls a round, what kernelk may add in seconds, and as a share of the native call)
CASES = {
    "empty": ("empty call", 200, 100e-6, 0.0),
    "small_step": ("MLP step, 77 kB of state", 60, 150e-6, 0.05),
    "large_step": ("MLP step, 9.7 MB of state", 10, 100e-6, 0.02),
    "huge_step": ("MLP step, 105 MB of state, batch 64", 3, 0.0, 0.02),
    "huge_few": ("MLP step, 105 MB of state, batch 4", 3, 0.0, 0.02),
    "vast_few": ("MLP step, 1.6 GB of state, batch 4", 1, 0.0, 0.02),
    "large_dropout": ("the step of 9.7 MB with dropout", 10, 100e-6, 0.02),
    "lenet32": ("LeNet step, batch 32", 20, 150e-6, 0.05),
    "lenet_dropout": ("LeNet step, batch 32, with dropout", 20, 150e-6, 0.05),
    "lenet128": ("LeNet step, batch 128", 6, 150e-6, 0.05),
    "lstm": ("LSTM step, 50 time steps", 6, 150e-6, 0.05),
}
# Rounds go on, up to so many times as many, until the ratio's interval is narrow.
MOST = 4
HUGE = {"huge_step", "huge_few", "vast_few"}
# Why an engine misses a target, as its profile showed; shown where it does. Times are of one step alone on two cores.
_LARGE_STEP = (
    "the batch of 0.6 MB is copied twice, for the worker and for a repetition, there at first into fresh memory, "
    "which takes most of it; and the kernel's own Python, which a small step finds in the caches, takes longer "
    "after a step that has replaced what they held."
)
_CNTK_LENET = (
    "CNTK has the gradient of a convolution's kernel in its own trainer alone. As an op it is another convolution, "
    "with a kernel as large as the image: the two take 1.4 ms of a step of 32 (6.9 ms, native 3.1 ms). The rest is "
    "elementwise work, which the trainer has in one kernel where the graph has two or three (a relu's gradient), what "
    "guards each pooling against NaN, and turning channels last into channels first and back, 0.05 to 0.1 ms a time."
)
WHY = {
    ("torch", "large_step"): _LARGE_STEP,
    ("jax", "large_step"): _LARGE_STEP,
    ("cntk", "large_step"): (
        "the gradients take 8 ms (native 7 ms): CNTK writes the transposed batch out before it multiplies by it, and "
        "the crossentropy is exact at its edges. The new values take 2.3 ms, by numpy on both cores (as nodes they "
        "took as long), and to hand the weights back 0.5 ms; native, the learner adds in place, in some 0.6 ms."
    ),
    ("cntk", "lenet32"): _CNTK_LENET,
    ("cntk", "lenet_dropout"): _CNTK_LENET,
    ("cntk", "lenet128"): _CNTK_LENET,
    ("jax", "large_dropout"): (
        "the numbers are those that all engines draw: numpy makes the 131,072 of a step in 0.4 ms, on one core and "
        "between two steps, and the step takes 0.5 ms more with them. JAX makes its own in the step, on both cores."
    ),
    ("tensorflow", "lstm"): (
        "the work is the same (CPU time 0.93 to 1.04 times native), but the products for the weights' gradients, 2 ms, "
        "follow the loop in one piece; TensorFlow's tape has one for each step, on the core that the loop leaves idle."
    ),
}
# numpy has no convolution and no autodiff: nobody writes these by hand to compare with.
NOT_IN = {"numpy": {"lenet32", "lenet_dropout", "lenet128", "lstm", "large_dropout", *HUGE}, "cntk": HUGE}


def calls(engine: str, rounds: int) -> tuple[list[Row], list[str]]:
    """Measures kernelk's overhead over the engine's own call: an empty one and several models' training steps; and why.

    The reasons are those of targets that are missed, as far as they are known.
    """
    rows, reasons = [], []
    in_kernel = registry.engine(engine).in_kernel
    for case, (label, number, fixed, share) in CASES.items():
        if case in NOT_IN.get(engine, ()):
            continue
        if engine == "cntk" and case != "empty":
            share = 0.25
        call = empty() if case == "empty" else model(case)
        call()
        ours = repeated(call)
        native = baseline(engine, case)
        try:
            result = compare(ours, native, rounds, number, MOST * rounds)
        finally:
            native.close()
        added = [f"{fixed * 1e6:.0f} us"] * bool(fixed) + [f"{share:.0%}"] * bool(share)
        target = f"at most {' + '.join(added)}"
        met = result.added[1] <= fixed + share * result.baseline
        rows.append(
            [
                engine,
                label,
                f"{result.baseline * 1e6:.0f} us",
                f"{result.ours * 1e6:.0f} us",
                ratio(result.ratio),
                microseconds(result.added),
                "in the kernel, no target" if in_kernel else target,
                "" if in_kernel else "yes" if met else "**no**",
            ]
        )
        if not met and (engine, case) in WHY:
            reasons.append(f"- {engine}, {label}: {WHY[engine, case]}")
        print(" | ".join(rows[-1]), flush=True)
    return rows, reasons


def warm_swap(engine: str, rounds: int) -> Row:
    """A swap of 100 variables of 100 kB that have all changed since the engine had them."""
    variables = [K.variable(np.full(25_000, i)) for i in range(100)]
    seconds = []
    set_backend(engine)
    for i in range(rounds):
        set_backend("numpy")
        K.batch_set_value([(v, np.full(25_000, i, "float32")) for v in variables])
        start = time.perf_counter()
        report = set_backend(engine)
        seconds.append(time.perf_counter() - start)
        assert report.loaded >= 100 or engine == "numpy"
    median, low, high = interval(seconds)
    met = "yes" if median < 0.020 else "**no**"
    row = [engine, f"{median * 1e3:.1f} ms [{low * 1e3:.1f}, {high * 1e3:.1f}]", "under 20 ms", met]
    print(" | ".join(row), flush=True)
    return row


def large_swap(engine: str, rounds: int) -> Row:
    """A swap of 1 GiB against the engine's own load, read back and compare of as much."""
    arrays = [np.random.default_rng(i).standard_normal(1024 * 65536 // 4, dtype="float32") for i in range(16)]
    variables = [K.variable(a) for a in arrays]
    set_backend(engine)
    native = baseline(engine, "load1024")

    def swap(times: int) -> list[float]:
        seconds = []
        for _ in range(times):
            set_backend("numpy")
            K.batch_set_value(list(zip(variables, arrays)))
            start = time.perf_counter()
            set_backend(engine)
            seconds.append(time.perf_counter() - start)
        return seconds

    try:
        result = compare(swap, native, rounds, 1)
    finally:
        native.close()
    met = "yes" if result.ratio[0] <= 1.3 else "**no**"
    row = [engine, f"{result.baseline:.2f} s", f"{result.ours:.2f} s", ratio(result.ratio), "at most 1.3", met]
    print(" | ".join(row), flush=True)
    return row


def recording(rounds: int) -> Row:
    """An op recorded with its source line, in us."""
    work = side.record("numpy")
    triple = interval([next(iter(work(2000).values())) for _ in range(rounds)])
    text = f"{triple[0] * 1e6:.1f} us [{triple[1] * 1e6:.1f}, {triple[2] * 1e6:.1f}]"
    return ["recording `a + b`", text, "under 8 us", "yes" if triple[0] < 8e-6 else "**no**"]


def large_graph(rounds: int) -> list[Row]:
    """A chain of 10,000 nodes: recorded, and made into a program with its key."""
    work = side.graph("numpy")
    made = [work(1) for _ in range(rounds)]
    rows = []
    for what, limit in zip(made[0], (0.12, 0.15)):
        triple = interval([seconds[what] for seconds in made])
        text = f"{triple[0] * 1e3:.0f} ms [{triple[1] * 1e3:.0f}, {triple[2] * 1e3:.0f}]"
        rows.append([what, text, f"under {limit * 1e3:.0f} ms", "yes" if triple[0] < limit else "**no**"])
    return rows


def loading(rounds: int) -> Row:
    """`%load_ext kernelk` in a fresh IPython that has numpy."""
    seconds = []
    for _ in range(rounds):
        seconds.append(side.loading())
    triple = interval(seconds)
    text = f"{triple[0] * 1e3:.0f} ms [{triple[1] * 1e3:.0f}, {triple[2] * 1e3:.0f}]"
    return ["`%load_ext kernelk`", text, "under 100 ms", "yes" if triple[0] < 0.1 else "**no**"]


ECHO = """
import socket, sys
connection = socket.socket(fileno=int(sys.argv[1]))
while data := connection.recv(4096):
    connection.sendall(data)
"""


def round_trip(rounds: int) -> str:
    """100 bytes to another Python process and back: what any call to a worker costs on this machine, now."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, "-c", ECHO, str(theirs.fileno())], pass_fds=[theirs.fileno()])
    theirs.close()

    def call() -> None:
        ours.sendall(bytes(100))
        ours.recv(4096)

    samples = repeated(call)
    samples(200)
    triple = interval([statistics.median(samples(200)) for _ in range(rounds)])
    ours.close()
    process.wait()
    return microseconds(triple)


def table(header: Row, rows: list[Row]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    return "\n".join(lines) + "\n"


def activations(engines: list[str], rounds: int) -> str:
    """The section about activations."""
    rows: list[Row] = []
    reasons: list[str] = []
    for engine in engines:
        set_backend(engine)
        found, why = timing.activations(engine, baseline, 2 * rounds)
        rows += found
        reasons += why
        K.clear_session()
    parts = [
        "\n## Activations beside the engine's own\n",
        "4,000,000 numbers, by kernelk and by the engine's own function, where that holds float32's digits; in one",
        "process, as the ops above.\n",
        table(["engine", "function", "native", "kernelk", "ratio", "target", "met"], rows),
        *(["\nWhy targets are missed:\n", *reasons] if reasons else []),
    ]
    return "\n".join(parts)


def durability(engines: list[str], rounds: int) -> str:
    """The sections about a worker's death and about memory."""
    recoveries, peaks = [], []
    for engine in engines:
        if engine == "numpy":
            continue
        recoveries.append(durable.recovery(engine, max(5, rounds // 3)))
        K.clear_session()
        peaks.append(durable.peaks(engine))
        K.clear_session()
    parts = [
        "\n## Recovery of 400 MB after a kill\n",
        "A step of an MLP whose weights and velocities take 400 MB, after ten such steps and a SIGKILL of the worker:",
        "what it takes beyond the new worker's start, compiling and the steps that are repeated (their number in",
        "parentheses).\n",
        table(["engine", "the call", "start", "compiling", "repeated", "the rest", "target", "met"], recoveries),
        "\n## Memory\n",
        "What the kernel and the worker take together beyond an empty session, in multiples of the 400 MB of that",
        "model's variables; pages that both have count once. A checkpoint copies all newest values to the kernel.",
        "TensorFlow (findings/tf_onednn_keeps_freed_memory.sh) and CNTK keep for later what they no longer need.\n",
        table(
            ["engine", "at rest, no engine has them", "most in a swap", "at rest", "most in a step", "at rest"]
            + ["most in a checkpoint", "at rest"],
            peaks,
        ),
    ]
    return "\n".join(parts)


def old_models(engines: list[str], rounds: int) -> str:
    """The section on Keras 2.3.1."""
    rows: list[Row] = []
    without = [] if keras2.old_keras.python_37() else ["tensorflow"]
    for engine in engines:
        if engine in keras2.SHARES and engine not in without:
            for case in keras2.TITLES:
                rows += keras2.epochs(engine, case, rounds)
            rows.append(keras2.importing(engine, max(3, rounds // 3)))
    swap_rows = [keras2.swaps(engine, 2 * rounds) for engine in engines if engine != "numpy"]
    parts = [
        "\n## Keras 2.3.1\n",
        "Models on kernelk beside the same models and the same Keras on its own backends: TensorFlow 1.15.5 in Python",
        "3.7, Theano 1.0.5 and CNTK 2.7 in Python 3.6. `fit` with Adam, accuracy and batches of 32; the CNN of 4.8 MB,",
        "the network of Keras's `mnist_cnn.py`, has batches of 128.\n",
        *(["There was no Python 3.7 here for TensorFlow 1.15.5 (KERNELK_PYTHON37 names one).\n"] if without else []),
        table(["engine", "what", "Keras's own backend", "kernelk", "ratio", "target", "met"], rows),
        "\nA warm swap between two batches of a model that has, with its momentum, 10 MB, all of them changed.\n",
        table(["to", "time", "target", "met"], swap_rows),
    ]
    return "\n".join(parts)


def elsewhere(rounds: int, names: list[str]) -> str:
    """The section on engines on another machine."""
    found, why = clusters.networks(rounds, names)
    compared = [row for one in found for row in clusters.ratios(one)]
    parts = [
        "\n## Engines on another machine\n",
        "Against ipyparallel's own, in one run: a call of one number against `apply_sync` of a function that does next",
        "to nothing, and 10 MB fed against `push` of the same array. The other machine is a network namespace of this",
        "one. A relay adds to each round trip, half of it each way, and `tbf` limits the bandwidth. The relay takes at",
        "once all that comes; over a long way, TCP takes some round trips more for the first megabytes. Targets are",
        "meant for ways that take no time themselves.\n",
        *([f"There was only this machine: {why}.\n"] if why else []),
        table(["network", "call", "ipyparallel", "kernelk", "ratio", "target", "met"], compared),
        "\nA training step of 9.7 MB of state on PyTorch with one thread, in a worker here and in one there; what the",
        "latter takes beyond 1.05 of the former, in round trips of ipyparallel's own: without a pause, and with one as",
        "long as a step in its midst, which isn't counted. After a pause everything is slower, the engine as well.\n",
        table(
            ["network", "here", "there", "in round trips", "with a pause", "target", "met"],
            [clusters.trips(one) for one in found],
        ),
    ]
    if len(found) > 2:
        fitted, bare, rows = clusters.modelled(found)
        own, theirs, copying, also = (
            clusters.milliseconds(seconds)
            for seconds in (fitted.own, bare.own, fitted.copying * 1e7, bare.copying * 1e7)
        )
        parts += [
            "\nThe time of a call by its parts, with round trip and bandwidth as TCP alone has them:\n",
            f"{own} + {fitted.trips:.2f} round trips + bytes / bandwidth + {copying} for each 10 MB\n",
            f"Of these, ipyparallel's own call takes {theirs} + {bare.trips:.2f} round trips, and {also} for each",
            "10 MB. A step takes as long as here besides. In parentheses is what this says of each.\n",
            table(["network", "TCP alone", "empty call", "10 MB fed", "a step, fed 0.1 MB"], rows),
        ]
    return "\n".join(parts)


def first_answer(rows: list[Row]) -> str:
    """The section on Theano's first answer."""
    header = ["C code", "swap", "first step", "the worker's start in it", "the rest", "target", "met"]
    text = "`%kbackend theano` with one tensor to be evaluated again, and the first step of a LeNet of batch 32, with "
    return f"\n## Theano's first answer\n\n{text}nothing\nin the compile cache.\n\n{table(header, rows)}"


def main() -> None:
    """Measures everything asked for and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--comparisons", type=int, default=20, help="real ones of a body with itself")
    parser.add_argument("--activations", action="store_true", help="measure the activations alone, and print them")
    parser.add_argument("--calls", action="store_true", help="measure the calls alone, and print them")
    parser.add_argument("--durable", action="store_true", help="measure recoveries and memory alone, and print them")
    parser.add_argument("--keras2", action="store_true", help="measure Keras 2.3.1 alone, and print it")
    parser.add_argument("--clusters", nargs="*", metavar="NETWORK", help="measure other machines alone, and print them")
    parser.add_argument("--output", type=Path, default=HERE / "RESULTS.md")
    options = parser.parse_args()
    # What is measured is the C code.
    config.LIMITS.build_beside = False
    if options.calls:
        for engine in options.engines:
            set_backend(engine)
            print(*calls(engine, options.rounds)[1], sep="\n")
            K.clear_session()
        return
    if options.activations:
        print(activations(options.engines, options.rounds))
        return
    if options.durable:
        print(durability(options.engines, options.rounds))
        return
    if options.keras2:
        print(old_models(options.engines, options.rounds))
        return
    if options.clusters is not None:
        print(elsewhere(options.rounds, options.clusters))
        return
    call_rows: list[Row] = []
    reasons: list[str] = []
    swap_rows: list[Row] = []
    large_rows: list[Row] = []
    fidelity_rows: list[Row] = []
    fidelity_reasons: list[str] = []
    op_rows: list[Row] = []
    versions = []
    bare = [round_trip(options.rounds)]
    for engine in options.engines:
        set_backend(engine)
        facts = current().host(engine).facts
        versions.append(
            f"- {engine} {facts['version']}, {facts['interpreter']}, {facts['device']} {facts.get('mode', '')}"
        )
        rows, why = calls(engine, options.rounds)
        call_rows += rows
        reasons += why
        K.clear_session()
        if engine != "numpy":
            swap_rows.append(warm_swap(engine, options.rounds))
            K.clear_session()
            large_rows.append(large_swap(engine, max(5, options.rounds // 3)))
            K.clear_session()
        rows, why = timing.fidelity(engine, baseline, 2 * options.rounds)
        fidelity_rows += rows
        fidelity_reasons += why
        op_rows.append(timing.spent_in_the_op(engine))
        K.clear_session()
    bare.append(round_trip(options.rounds))
    workers = [engine for engine in options.engines if engine != "numpy"]
    itself_rows = timing.against_itself(options.comparisons)
    start_rows = [choosing.cold_start(engine, max(5, options.rounds // 2)) for engine in workers]
    choosing_rows = [choosing.completion(options.rounds), choosing.doctor(3), *choosing.idle(workers)]
    for row in choosing_rows:
        print(" | ".join(row), flush=True)
    session_rows = [recording(options.rounds), *large_graph(options.rounds), loading(max(5, options.rounds // 2))]
    for row in session_rows:
        print(" | ".join(row), flush=True)
    first_rows = choosing.first_answer(max(5, options.rounds // 3)) if "theano" in options.engines else []
    panel_rows = panel.table()
    # Last: it takes the place of any other Keras in this process.
    keras2_section = old_models(options.engines, options.rounds)
    elsewhere_section = elsewhere(options.rounds, [])
    parts = [
        "# Results\n",
        "Made by `make bench`. Both sides of a row are measured in one run, in turns of random order; figures are",
        "medians over rounds, with 95 % bootstrap intervals in brackets. The ratio is kernelk's time to the engine's",
        "own, for the same work written by hand in the same interpreter (`benchmarks/natives/`). kernelk's models have",
        "channels last, the default; those by hand for PyTorch, Theano, CNTK have channels first, which suits them.",
        "A target is met where the interval reaches it. kernelk's workers keep the memory that large arrays leave for",
        "the next call; engines by hand run as they come, and PyTorch and JAX take fresh pages each time.\n",
        f"{date.today()}, {processor()}, {os.cpu_count()} cores, {platform.system()}.\n",
        *versions,
        "\n## What a call through kernelk adds\n",
        f"A bare round trip of 100 bytes to another Python process took {bare[0]} before these measurements and",
        f"{bare[1]} after them: a call to a worker needs one, and its cost is the machine's, not kernelk's.\n",
        table(["engine", "call", "native", "kernelk", "ratio", "added", "target", "met"], call_rows),
        *(["\nWhy targets are missed:\n", *reasons] if reasons else []),
        "\n## Warm swap of 100 variables of 100 kB\n",
        "All variables have changed since the engine had them; each is loaded, read back and compared.\n",
        table(["to", "time", "target", "met"], swap_rows),
        "\n## Swap of 1 GiB of variables\n",
        "The baseline is the engine's own load of 16 arrays of 64 MiB, read back and compared.\n",
        table(["to", "native", "kernelk", "ratio", "target", "met"], large_rows),
        durability(options.engines, options.rounds),
        "\n## Cold start of a worker\n",
        "From nothing to the worker's first answer; the baseline is its interpreter, up to the engine's import.\n",
        table(["engine", "bare import", "worker", "ratio", "target", "met"], start_rows),
        *([first_answer(first_rows)] if first_rows else []),
        "\n## Choosing an engine\n",
        table(["what", "measured", "target", "met"], choosing_rows),
        "\n## Whether the timing tools tell the truth\n",
        "Single ops: what `%ktime` finds to what the engine's own harness finds (`torch.utils.benchmark`, a loop of",
        "calls with a barrier) for the op written by hand, in one process, with the engine set up alike.\n",
        table(["engine", "op", "native", "kernelk", "ratio", "target", "met"], fidelity_rows),
        *(["\nWhy intervals lie outside:\n", *fidelity_reasons] if fidelity_reasons else []),
        activations(options.engines, options.rounds),
        "\n`kernelk.compare` of a body with itself, and with one that does 5 % more, at the default budget; then 2,000",
        "times with the noise of the real ones.\n",
        table(["what", "found", "target", "met"], itself_rows),
        "\nThe share of `%ktime`'s wall time that is spent in the op.\n",
        table(["engine", "one run", "share", "target", "met"], op_rows),
        keras2_section,
        elsewhere_section,
        "\n## The panel\n",
        "In JupyterLab in Chromium: from the request to run a cell until the panel's rows are in the page.\n",
        table(["what", "measured", "target", "met"], panel_rows),
        "\n## In the notebook's kernel\n",
        table(["what", "time", "target", "met"], session_rows),
    ]
    options.output.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
