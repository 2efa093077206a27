"""A forked child has the values of the moment of the fork; neither it nor its parent touches what is the other's."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.engines import WORKERS, require_installed
from helpers.forking import written_after_a_fork
from helpers.processes import PATIENCE, alive, environment, run_script, wait_until

import kernelk
from kernelk import backend as K
from kernelk.engines import forks
from kernelk.session.current import current
from kernelk.session.session import MOST_READ_ONLY

PLACES = ["numpy", "spare"]

BEGIN = """
import json, os, sys, threading
from helpers.forking import Child, c_fork, said, spare
import numpy as np
import kernelk
from kernelk import backend as K
from kernelk.session.current import current
spare()
kernelk.set_backend({engine!r})
w = K.variable(np.zeros(4), name="w")
step = K.function([], [], updates=[K.update_add(w, K.ones((4,)))])
value = lambda: float(K.get_value(w).sum()) / 4
for _ in range(3): step([])
"""


def script(code: str, engine: str = "numpy") -> Any:
    return run_script(BEGIN.format(engine=engine) + textwrap.dedent(code))


# ---------------------------------------------------------------------------- values


@pytest.mark.parametrize("engine", [*PLACES, *(pytest.param(name, marks=pytest.mark.soak) for name in WORKERS)])
def test_a_child_reads_the_values_of_the_fork_and_each_side_trains_its_own(engine: str) -> None:
    if engine in WORKERS:
        require_installed(engine)
    code = """
    def job(wait):
        seen = [value()]
        wait()
        seen += [value(), float(K.eval(K.sum(w)))]
        step([]); step([])
        seen.append(value())
        K.set_value(w, np.full(4, 50.0))
        step([])
        seen.append(value())
        return seen
    child = Child(job)
    for _ in range(5): step([])
    K.set_value(w, K.get_value(w) * 2)
    step([])
    child.go()
    theirs = child.result
    step([])
    result = [theirs, value()]
    """
    assert script(code, engine) == [[3.0, 3.0, 12.0, 5.0, 51.0], 18.0]


def test_a_grandchild_has_its_parents_values() -> None:
    code = """
    def job(wait):
        step([])
        below = Child(lambda wait: [step([]), value()][1])
        step([])
        return [below.result, value()]
    child = Child(job)
    step([])
    result = [child.result, value()]
    """
    assert script(code) == [[5.0, 5.0], 4.0]


@pytest.mark.parametrize("engine", PLACES)
def test_parent_and_children_compute_at_the_same_time(engine: str) -> None:
    code = """
    x = K.placeholder((1000,))
    f = K.function([x], [x * 2.0])
    f([np.ones(1000)])
    def wrong(number):
        return sum(not (f([np.full(1000, number)])[0] == 2 * number).all() for _ in range(500))
    children = [Child(lambda wait, n=n: wrong(n)) for n in (10, 20)]
    result = [wrong(3), *(child.result for child in children)]
    """
    assert script(code, engine) == [0, 0, 0]


def test_no_engine_writes_to_what_a_child_may_read(backend: str) -> None:
    assert written_after_a_fork() == []


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["torch", "jax", "tensorflow"])
def test_no_engine_in_the_kernels_process_writes_to_what_a_child_may_read(engine: str) -> None:
    require_installed(engine)
    code = f"""
    from helpers.forking import written_after_a_fork
    kernelk.set_backend({engine!r}, in_kernel=True)
    result = written_after_a_fork()
    """
    assert script(code) == []


def test_old_memory_comes_back_and_few_segments_stay(spare: str) -> None:
    kernelk.set_backend(spare)
    v = K.variable(np.zeros(1 << 18))
    step = K.function([], [], updates=[K.update_add(v, K.ones_like(v))])
    step([])
    kept = []
    session = current()

    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = files()
    for i in range(3 * MOST_READ_ONLY):
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        step([])
        kept.append(K.variable([float(i)]))
        assert K.get_value(v)[0] == i + 2
    step([])
    assert len(session.storage.segments) <= MOST_READ_ONLY + 4
    assert files() <= before + 2 * (MOST_READ_ONLY + 4)
    assert [K.get_value(x)[0] for x in kept] == list(range(len(kept)))
    del kept
    gc.collect()
    step([])
    assert len(session.storage.segments) <= 4


# ---------------------------------------------------------------------------- the parent's worker, folder and log


def test_a_childs_end_leaves_the_parents_worker_alone() -> None:
    code = """
    host = current().host()
    worker, folder = host.pid, host._scratch
    def ended(leave):
        child = os.fork()
        if not child:
            step([])
            assert host.pid != worker and host._scratch != folder
            leave()
            sys.exit(0)
        return os.waitpid(child, 0)[1]
    ways = [lambda: None, lambda: os._exit(0), lambda: os.execv("/bin/true", ["true"]), lambda: globals().pop("w")]
    status = [ended(leave) for leave in ways]
    step([])
    result = [status, value(), host.pid == worker, os.path.isdir(folder)]
    """
    assert script(code, "spare") == [[0, 0, 0, 0], 4.0, True, True]


def test_a_child_that_lives_on_keeps_no_worker_alive() -> None:
    code = """
    child = os.fork()
    if not child:
        os.close(1)
        import time
        time.sleep(1000)
    print(current().host().pid, child, flush=True)
    import time
    time.sleep(1000)
    """
    whole = BEGIN.format(engine="spare") + textwrap.dedent(code)
    kernel = subprocess.Popen([sys.executable, "-c", whole], env=environment(), stdout=subprocess.PIPE, text=True)
    assert kernel.stdout is not None
    worker, child = map(int, kernel.stdout.readline().split())
    try:
        kernel.kill()
        kernel.wait()
        assert wait_until(lambda: not alive(worker))
        assert alive(child)
    finally:
        os.kill(child, signal.SIGKILL)
        kernel.stdout.close()


def test_a_childs_session_is_watched_by_nobody() -> None:
    code = """
    told = []
    from kernelk.widgets.hub import hub
    panels = hub()
    panels._listen()
    current().observe(lambda change: told.append(change.new), "active")
    job = lambda wait: [kernelk.set_backend("spare").target, told, current().hub is panels, panels._listening]
    child = Child(job)
    theirs = child.result
    kernelk.set_backend("spare")
    result = [theirs, told, current().hub is panels, panels._listening]
    """
    assert script(code) == [["spare", [], False, False], ["spare"], True, True]


# ---------------------------------------------------------------------------- what people fork with


def test_what_only_starts_a_program_copies_nothing() -> None:
    code = """
    import subprocess
    place = lambda: [w.slots._committed(), w.slots.version, current().storage.bytes]
    before = place()
    subprocess.run(["true"], check=True)
    os.waitpid(os.posix_spawn("/bin/true", ["true"], os.environ), 0)
    same_blocks = list(w.slots._blocks)
    subprocess.run(["true"], check=True, preexec_fn=lambda: None)
    os.system("true")
    result = [place() == before, same_blocks == list(w.slots._blocks)]
    step([])
    result.append(value())
    """
    assert script(code) == [True, True, 4.0]


POOLS = """
import concurrent.futures, multiprocessing, sys
import numpy as np
import helpers.own_settings
import kernelk
from kernelk import backend as K

def train(n):
    kernelk.set_backend("numpy")
    w = K.variable(np.zeros(4))
    step = K.function([], [w], updates=[K.update_add(w, K.ones((4,)))])
    for _ in range(n):
        step([])
    return float(K.get_value(w).sum())

if __name__ == "__main__":
    kernelk.set_backend("numpy")
    w = K.variable(np.zeros(4))
    step = K.function([], [], updates=[K.update_add(w, K.ones((4,)))])
    step([])

    def mine(n):
        for _ in range(n):
            step([])
        return float(K.get_value(w).sum())

    if sys.argv[1] == "joblib":
        import joblib
        call = joblib.delayed(train)
        print(joblib.Parallel(2)(call(n) for n in (1, 2, 3)))
        print(joblib.Parallel(2, backend="multiprocessing")(joblib.delayed(train)(n) for n in (1, 2, 3)))
    elif sys.argv[1] == "loader":
        import torch
        x = K.placeholder((8,))
        twice = K.function([x], [x * 2.0 + K.concatenate([w, w])])

        class Samples(torch.utils.data.Dataset):
            def __len__(self):
                return 400

            def __getitem__(self, i):
                mine(1)
                return twice([np.full(8, float(i))])[0] - np.tile(K.get_value(w), 2)

        loader = torch.utils.data.DataLoader(Samples(), batch_size=10, num_workers=2, multiprocessing_context="fork")
        wrong = count = 0
        for batch in loader:
            mine(1)
            for row in batch:
                wrong += not bool((row == 2 * count).all())
                count += 1
        print([wrong, count, float(K.get_value(w).sum()) / 4])
    else:
        context = multiprocessing.get_context(sys.argv[1])
        with context.Pool(2) as pool:
            print(pool.map(train, (1, 2, 3)))
        with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
            print(list(pool.map(train, (1, 2, 3))))
        if sys.argv[1] == "fork":
            process = context.Process(target=mine, args=(5,))
            process.start()
            process.join()
            print([process.exitcode])
    print([float(K.get_value(w).sum())])
"""


@pytest.mark.parametrize(
    ("how", "printed"),
    [
        ("fork", ["[4.0, 8.0, 12.0]", "[4.0, 8.0, 12.0]", "[0]", "[4.0]"]),
        pytest.param("forkserver", ["[4.0, 8.0, 12.0]", "[4.0, 8.0, 12.0]", "[4.0]"], marks=pytest.mark.soak),
        pytest.param("spawn", ["[4.0, 8.0, 12.0]", "[4.0, 8.0, 12.0]", "[4.0]"], marks=pytest.mark.soak),
        pytest.param("joblib", ["[4.0, 8.0, 12.0]", "[4.0, 8.0, 12.0]", "[4.0]"], marks=pytest.mark.soak),
        ("loader", ["[0, 400, 41.0]", "[164.0]"]),
    ],
)
def test_pools_of_processes(how: str, printed: list[str], tmp_path: Path) -> None:
    if how == "loader":
        require_installed("torch")
    file = tmp_path / "pools.py"
    file.write_text(POOLS)
    # Not within `tmp_path`: multiprocessing's sockets lie in it, and their paths have at most 108 bytes.
    with tempfile.TemporaryDirectory(prefix="kernelk-tests-") as passing:
        settings = environment(TMPDIR=passing)
        done = subprocess.run(
            [sys.executable, str(file), how], env=settings, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        assert [line for line in done.stdout.splitlines() if line.startswith("[")] == printed
        assert list(Path(passing).glob("kernelk-numpy-*")) == []


def test_threads_and_tasks_lose_no_step() -> None:
    code = """
    import asyncio
    def many():
        for _ in range(100): step([])
    threads = [threading.Thread(target=many) for _ in range(4)]
    for one in threads: one.start()
    for one in threads: one.join()
    async def task():
        for _ in range(20):
            step([])
            await asyncio.sleep(0)
            await asyncio.to_thread(step, [])
    async def all_of_them():
        await asyncio.gather(*(task() for _ in range(5)))
    asyncio.run(all_of_them())
    result = value()
    """
    assert script(code, "spare") == 3 + 400 + 200


def test_two_kernels_at_once() -> None:
    code = BEGIN.format(engine="spare") + "for _ in range(300): step([])\nprint(value(), current().host().pid)"
    kernels = [
        subprocess.Popen([sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [kernel.communicate(timeout=PATIENCE)[0].split() for kernel in kernels]
    assert [words[0] for words in said] == ["303.0", "303.0"]
    assert said[0][1] != said[1][1]


# ---------------------------------------------------------------------------- what is refused


def test_a_fork_in_the_middle_of_another_threads_call_is_refused_in_the_child_alone() -> None:
    code = """
    inside, over = threading.Event(), threading.Event()
    def call():
        with current().lock:
            inside.set()
            over.wait()
            step([])
    thread = threading.Thread(target=call)
    thread.start()
    inside.wait()
    child = Child(lambda wait: [said(value), said(lambda: step([])), said(lambda: kernelk.set_backend("numpy"))])
    over.set()
    thread.join()
    result = [child.result, value()]
    """
    theirs, own = script(code, "spare")
    assert own == 4.0
    for line in theirs:
        assert line.startswith("ForkedError: process ")
        assert "in the middle of a call" in line
        assert "next: fork while no other thread is in a call, or start processes by multiprocessing's 'spawn'" in line


@pytest.mark.parametrize("engine", PLACES)
def test_a_fork_by_c_code_is_refused(engine: str) -> None:
    code = """
    def job(wait):
        wait()
        held = current.__globals__["current_state"]().session
        calls = [value, lambda: step([]), lambda: K.set_value(w, np.zeros(4)), lambda: K.variable(1.0), K.clear_session]
        calls += [lambda: held.read(w), lambda: held.write([(w, np.zeros(4, "float32"))]), held.stop_engines]
        below = Child(lambda wait: said(value))
        return [said(call) for call in calls] + [below.result]
    child = Child(job, c_fork)
    step([])
    child.go()
    theirs = child.result
    step([])
    result = [theirs, value(), current().host().pid > 0]
    """
    theirs, *own = script(code, engine)
    assert own == [5.0, True]
    assert len(theirs) == 9
    for line in theirs:
        assert line.startswith("ForkedError: ")
        assert "next: fork" in line
        assert "\n" not in line


def test_an_engine_in_the_kernels_process_is_refused_and_others_go_on() -> None:
    code = """
    kernelk.set_backend("spare", in_kernel=True)
    step([])
    def job(wait):
        seen = [value(), said(lambda: step([]))]
        kernelk.set_backend("numpy")
        step([])
        seen.append(value())
        seen.append(said(lambda: kernelk.set_backend("spare")))
        kernelk.set_backend("spare", in_kernel=False)
        step([])
        return [*seen, value()]
    child = Child(job)
    step([])
    result = [child.result, value(), current().host().placement]
    """
    (seen, refused, numpy, again, worker), *own = script(code)
    assert own == [5.0, "kernel"]
    assert (seen, numpy, worker) == (4.0, 5.0, 6.0)
    for line in (refused, again):
        assert line.startswith("ForkedError: Spare ran in this process's parent and can't continue in a forked child")
        assert "next: kernelk.set_backend('spare', in_kernel=False)" in line


def test_the_hooks_count_on_both_sides() -> None:
    before = forks.COUNT
    child = os.fork()
    if not child:
        os._exit(forks.COUNT - before if forks.in_own_process() else 9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert before + 1 == forks.COUNT
