"""Measures the cost of choosing an engine: a worker's cold start, the Tab key, `kernelk doctor`, idle processes."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from IPython.core.completer import provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from measure import interval

from kernelk.engines import registry
from kernelk.session.current import current
from kernelk.session.swap import set_backend

Row = list[str]

FOUR = ["tensorflow", "theano", "cntk", "torch"]
IDLE_SECONDS = 10.0
LINES = ["%kbackend ", "%kbackend t", "%kbackend torch --de", "%kbackend torch --device ", "%kdiff y tensorflow c"]


def bare_import(engine: str) -> float:
    """Seconds from the start of the engine's interpreter until it has imported the engine, and nothing of kernelk."""
    descriptor = registry.engine(engine)
    script = f"import {descriptor.imports or descriptor.name}; print('ready', flush=True)"
    start = time.perf_counter()
    with subprocess.Popen(
        [str(registry.interpreter(descriptor)), "-W", "ignore", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        # Whatever else it prints.
        ready = any(line.strip() == "ready" for line in iter(process.stdout.readline, ""))
        seconds = time.perf_counter() - start
        process.kill()
    if not ready:
        raise RuntimeError(f"{engine} can't be imported by its own interpreter")
    return seconds


def cold_start(engine: str, rounds: int) -> Row:
    """A worker from nothing to its first answer, against an interpreter that imports the engine."""

    def ours() -> float:
        host = current().make_host(engine, {})
        start = time.perf_counter()
        host.start()
        seconds = time.perf_counter() - start
        host.stop()
        return seconds

    sides = [ours, lambda: bare_import(engine)]
    for side in sides:
        side()  # files come from the disk once
    pairs = []
    for _ in range(rounds):
        order = random.sample([0, 1], 2)
        seconds = {i: sides[i]() for i in order}
        pairs.append((seconds[0], seconds[1]))
    median, low, high = interval([a / b for a, b in pairs])
    worker, bare = (interval([pair[i] for pair in pairs])[0] for i in (0, 1))
    met = "yes" if median <= 1.2 else "**no**"
    row = [engine, f"{bare:.2f} s", f"{worker:.2f} s", f"{median:.2f} [{low:.2f}, {high:.2f}]", "at most 1.2", met]
    print(" | ".join(row), flush=True)
    return row


FIRST = """
import json, sys, time
sys.path.insert(0, sys.argv[1])
from models import model
import kernelk
from kernelk import backend as K, config
config.LIMITS.build_beside = sys.argv[2] == "beside"
kernelk.set_backend("numpy")
step = model("lenet32")
K.eval(K.softmax(K.variable([[1.0, 2.0]]) * 3.0))
begin = time.perf_counter()
report = kernelk.set_backend("theano")
swap = time.perf_counter() - begin
step()
print(json.dumps([swap, time.perf_counter() - begin - swap, report.seconds["start"]]))
"""


def first_answer(rounds: int) -> list[Row]:
    """`%kbackend theano` with one tensor shown, and a LeNet's first step, with nothing in the compile cache."""

    def run(how: str) -> list[float]:
        with tempfile.TemporaryDirectory() as cache:
            environment = {**os.environ, "XDG_CACHE_HOME": cache, "KERNELK_QUIET": "1"}
            command = [sys.executable, "-c", FIRST, str(Path(__file__).parent), how]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        return [float(number) for number in json.loads(done.stdout.splitlines()[-1])]

    rows = []
    for how, target in (("beside", 2.0), ("waited for", None)):
        found = [run(how) for _ in range(rounds if how == "beside" else 1)]
        parts = [interval([seconds[i] for seconds in found]) for i in range(3)]
        beyond = interval([swap + first - start for swap, first, start in found])
        what = f"C code {'built beside the calls' if how == 'beside' else how}"
        texts = [f"{median:.1f} s [{low:.1f}, {high:.1f}]" for median, low, high in (*parts, beyond)]
        met = "" if target is None else "yes" if beyond[2] <= target else "**no**"
        rows.append([what, *texts, "" if target is None else f"at most {target:.0f} s", met])
        print(" | ".join(rows[-1]), flush=True)
    return rows


def completion(rounds: int) -> Row:
    """The slowest of several lines at the Tab key, in a shell with the extension."""
    shell = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "kernelk")
    slowest = []
    with provisionalcompleter():
        for _ in range(rounds):
            seconds = []
            for line in LINES:
                start = time.perf_counter()
                found = list(shell.Completer.completions(line, len(line)))
                seconds.append(time.perf_counter() - start)
                assert found, line
            slowest.append(max(seconds))
    shell.run_line_magic("unload_ext", "kernelk")
    triple = interval(slowest)
    text = f"{triple[0] * 1e3:.1f} ms [{triple[1] * 1e3:.1f}, {triple[2] * 1e3:.1f}]"
    return ["the Tab key, slowest of 5 lines", text, "under 50 ms", "yes" if triple[0] < 0.05 else "**no**"]


def doctor(rounds: int) -> Row:
    """`kernelk doctor` on four engines, as a command."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "kernelk", "doctor", *FOUR], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    triple = interval(seconds)
    text = f"{triple[0]:.1f} s [{triple[1]:.1f}, {triple[2]:.1f}]"
    return ["`kernelk doctor` on four engines", text, "under 15 s", "yes" if triple[0] < 15 else "**no**"]


def idle(engines: list[str]) -> list[Row]:
    """The processor time that this process and each worker take while nothing is asked of them."""
    for engine in engines:
        set_backend(engine)
    hosts = {name: host for name, host in current().hosts.items() if host.started and host.placement == "worker"}
    processes = {"this process": psutil.Process()}
    processes.update({f"{name}'s worker": psutil.Process(host.pid) for name, host in hosts.items()})
    time.sleep(1.0)  # what a start leaves to do
    before = {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}
    time.sleep(IDLE_SECONDS)
    rows = []
    for name, process in processes.items():
        used = sum(process.cpu_times()[:2]) - before[name]
        # The clock behind it has ticks of 10 ms.
        met = "yes" if used <= 0.011 else "**no**"
        rows.append([f"{name}, idle for {IDLE_SECONDS:.0f} s", f"{used * 1e3:.0f} ms of CPU", "no CPU", met])
    return rows
