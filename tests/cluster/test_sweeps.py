"""Comparisons over machines: sweeps that are spread, engines that are chosen, any executor, and what may go wrong.

The machines are one: `KERNELK_MACHINE` has its ipyparallel engines count as several. The engine that most of it is done
on sleeps, so that two processors don't decide anything.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from helpers.clusters import LocalCluster, end_at_welcome, local_cluster, wait_for
from helpers.machines import settings
from helpers.notebooks import run_cells
from helpers.sleeping import conceal, package, settle

import kernelk
from kernelk import backend as K
from kernelk.engines import registry
from kernelk.errors import ArgumentError, BackendNotInstalledError, EngineError, KernelKError, UnknownBackendError
from kernelk.measure.comparison_results import CompareResult, SweepResult, differences
from kernelk.measure.timing import Conditions
from kernelk.remote import clusters, remote_worker
from kernelk.session.current import current

SIDES = ("sleeping", "numpy")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the sleeping engine's package lies, which this process finds."""
    made = tmp_path_factory.mktemp("packages")
    package(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(made))
        yield str(made)
    current().hosts.pop("sleeping", None)
    registry._entries.cache_clear()
    registry._descriptor.cache_clear()


@pytest.fixture(scope="module")
def box(folder: str) -> Iterator[LocalCluster]:
    """Four engines on four machines."""
    with local_cluster("box", 4) as cluster:
        for number in range(4):
            cluster.client[number].apply_sync(settle, [folder], KERNELK_MACHINE=f"m{number}")
        yield cluster


class Body:
    """Code that feeds `n` numbers, draws some, and counts in a variable; `runs` says for which `n`."""

    def __init__(self) -> None:
        self.runs: list[int] = []
        self.count = K.variable(0.0, name="count")
        x, nothing = K.placeholder((None,)), K.placeholder((0, 2))
        noise = K.sum(K.random_uniform((3,)))
        y = K.sum(K.exp(x)) + noise + self.count
        self.call = K.function([x, nothing], [y, nothing, noise], [K.update_add(self.count, 1.0)])

    def __call__(self, n: int) -> Any:
        self.runs.append(n)
        fed = [np.linspace(0, 1, n), np.zeros((0, 2))]
        self.call(fed)
        return self.call(fed)


def swept(
    body: Callable[..., Any], values: list[int], on: Any, sides: tuple[str, ...] = SIDES, budget: float = 0.4
) -> Any:
    found = kernelk.compare(body, *sides, on=on, sweep={"n": values}, budget=budget * len(values))
    assert isinstance(found, SweepResult)
    return found


def workers(box: LocalCluster) -> set[int]:
    """The processes that the cluster's engines have started."""
    engines = [psutil.Process(box.pid(number)) for number in box.client.ids]
    return {child.pid for engine in engines for child in engine.children()}


def test_points_are_spread_and_each_has_its_sides_on_one_machine(box: LocalCluster) -> None:
    kernelk.set_backend("numpy")
    body, values = Body(), list(range(1, 9))
    before = workers(box)
    found = swept(body, values, "box")
    assert [value for value, _ in found.points] == values == body.runs
    assert set(found.machines) == {"m0", "m1", "m2", "m3"}
    for value, point in found.points:
        assert [side.label for side in point.sides] == ["sleeping@box", "numpy@box"]
        assert not [side.failure for side in point.sides if side.failure]
        for side in point.sides:
            assert side.conditions is not None
            assert (side.conditions.machine, side.conditions.engine) == (point.machine, side.label)
            assert len(side.rounds) == len(point.sides[0].rounds) > 0
            assert [call.count for call in side.calls] == [2]
        # It sleeps that long, and draws the same.
        assert point.sides[0].steady.value > 2 * value / 1000 > point.sides[1].steady.value
        assert point.equal
        assert point.sides[1].relative == 0
    # Here it ran once for each point, on the active engine, and nothing else has happened.
    assert K.get_value(body.count) == 16
    assert (current().active, current().recorder) == ("numpy", None)
    assert wait_for(lambda: workers(box) <= before)
    shown = str(found)
    assert "machine" in shown.splitlines()[1]
    assert "rows are from different machines" in shown
    assert "numpy@box" in shown.splitlines()[-1]
    assert " on m0, m" in shown
    assert set(found.to_frame()["machine"]) == set(found.machines)


def test_no_two_sides_run_at_once_on_one_machine(box: LocalCluster, folder: str, tmp_path: Path) -> None:
    """Two machines of two engines each; and two sweeps at once, the other one by threads of a process there."""
    diary = tmp_path / "diary"
    for number in range(4):
        variables = {"KERNELK_MACHINE": f"half{number % 2}", "SLEEPING_DIARY": str(diary)}
        box.client[number].apply_sync(settle, [folder], **variables)
    try:
        found = swept(Body(), [3, 4, 5, 6], box.client)
    finally:
        for number in range(4):
            box.client[number].apply_sync(settle, [folder], KERNELK_MACHINE=f"m{number}", SLEEPING_DIARY=None)
    assert set(found.machines) == {"half0", "half1"}
    assert "4 engines of box are on 2 machines: each takes one point at a time" in str(found)
    assert len(processes_apart(diary)) == 2


def processes_apart(diary: Path) -> dict[str, set[str]]:
    """The processes that have slept on each machine, none of them while another did."""
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    processes: dict[str, set[str]] = defaultdict(set)
    for line in diary.read_text().splitlines():
        machine, pid, begin, end = line.split()
        times[machine].append((float(begin), float(end)))
        processes[machine].add(pid)
    for intervals in times.values():
        intervals.sort()
        assert all(end <= begin for (_, end), (begin, _) in pairwise(intervals))
    return processes


def test_an_executors_points_take_turns_on_one_machine(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    diary = tmp_path / "diary"
    monkeypatch.setenv("SLEEPING_DIARY", str(diary))
    with ProcessPoolExecutor(3, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = swept(Body(), [3, 4, 5], pool, ("sleeping",))
    assert not [side.failure for _, point in found.points for side in point.sides if side.failure]
    assert sum(len(pids) for pids in processes_apart(diary).values()) > 1


def test_an_engine_of_a_cluster_can_be_chosen(box: LocalCluster) -> None:
    for on, name, number in (
        ("box[2]", "numpy@box[2]", 2),
        (box.client[1], "numpy@box[1]", 1),
        (box.client[1:3], "numpy@box[1]", 1),
        ("box[3, 1]", "numpy@box[1]", 1),
        (box.client[:], "numpy@box", 0),
        (box.client.load_balanced_view(), "numpy@box", 0),
        (box.client.load_balanced_view([3]), "numpy@box[3]", 3),
    ):
        assert kernelk.set_backend("numpy", on=on).target == name
        assert float(K.eval(K.constant(1.0) + 1.0)) == 2.0
        assert box.engine_of(name) == number
    assert kernelk.set_backend("numpy@box[2]").target == "numpy@box[2]"
    kernelk.set_backend("numpy")
    w = K.variable(np.ones(3))
    compared = kernelk.compare(lambda: K.eval(w * 2.0), "numpy@box[0]", "numpy@box[3]", budget=0.2)
    assert "machines differ (numpy@box[0] on m0, " in str(compared)
    assert "numpy@box[3] on m3, " in str(compared)


def test_a_sweep_may_be_on_some_engines(box: LocalCluster) -> None:
    for on, machines in (
        ("box[1,3]", {"m1", "m3"}),
        (box.client[2:], {"m2", "m3"}),
        (box.client[0], {"m0"}),
    ):
        found = swept(Body(), [1, 2], on, ("numpy",), 0.1)
        assert set(found.machines) == machines
        assert found.points[0][1].sides[0].label == "numpy@box"
    # The names may say it, too.
    found = kernelk.compare(Body(), "numpy@box[2]", sweep={"n": [1, 2]}, budget=0.2)
    assert isinstance(found, SweepResult)
    assert found.machines == ["m2"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("numpy@box[7]", r"the cluster 'box' has no engine 7: it has 0, 1, 2, 3; next: on='box\[0\]'"),
        ("numpy@box[01]", r"'numpy@box\[01\]' names no cluster.*which of its engines: torch@gpu-box\[2\]"),
        ("numpy@box[1", "names no cluster"),
        ("numpy@[1]", "names no cluster"),
        ("numpy@nox[1]", r"no cluster is named 'nox': did you mean 'box'\?"),
    ],
)
def test_an_engine_that_is_not_there(box: LocalCluster, name: str, words: str) -> None:
    with pytest.raises((EngineError, ArgumentError, UnknownBackendError), match=words) as caught:
        kernelk.set_backend(name)
    assert "\n" not in str(caught.value)
    assert current().active == "numpy"


def test_a_place_that_is_none(box: LocalCluster) -> None:
    for on in ("box[x]", "box[-1]", "box[]", "[1]", "box[1]x"):
        with pytest.raises(ArgumentError, match=r"isn't allowed: .*as in gpu-box\[2\]; next: ipcluster list"):
            kernelk.set_backend("numpy", on=on)
    assert clusters.parsed("lab:a[0,2,0]") == ("lab:a", (0, 2))


def test_one_engine_by_two_names_is_one_side(box: LocalCluster) -> None:
    body = Body()
    for options in ({"on": "box"}, {"on": "box", "sweep": {"n": [1, 2]}}):
        with pytest.raises(ArgumentError, match="compare: numpy@box was named twice"):
            kernelk.compare(body, "numpy", "numpy@box", **options)  # type: ignore[arg-type]
    assert not body.runs


def test_what_a_side_lacks_or_an_engine_raises_is_in_its_rows(box: LocalCluster) -> None:
    kernelk.set_backend("numpy")
    found = swept(Body(), [2, 13], "box", budget=0.2)
    (_, good), (_, bad) = found.points
    assert not good.side("sleeping@box").failure
    failure = bad.side("sleeping@box").failure
    assert "thirteen is refused" in failure
    assert "op exp" in failure
    assert "test_sweeps.py" in failure
    assert not bad.side("numpy@box").failure
    # A dtype that one of them doesn't have is noticed here.
    x = K.variable(np.arange(3), dtype="int16")
    ((_, point),) = swept(lambda n: K.eval(x * n), [1], "box", budget=0.2).points
    assert re.search(r"Sleeping@box can't run this: .*int16.*; next: ", point.side("sleeping@box").failure)
    assert not point.side("numpy@box").failure


def test_an_engine_that_is_not_installed_everywhere(box: LocalCluster) -> None:
    kernelk.set_backend("numpy")
    box.client[0].apply_sync(conceal, True)
    try:
        alone, both = (swept(Body(), [1, 2], on, budget=0.1) for on in ("box[0]", "box[0,1]"))
    finally:
        box.client[0].apply_sync(conceal, False)
    words = f"Sleeping isn't installed on m0, where {sys.executable} runs; next: there: `pip install kernelk-sleeping`"
    assert f"sleeping@box: {words}" in str(alone)
    assert not [point for _, point in alone.points if point.side("numpy@box").failure]
    # Where another machine has it, that one does it all.
    assert both.machines == ["m1"]
    assert f"m0 isn't used: {words}" in str(both)


def test_an_engine_that_kernelk_installs_there(box: LocalCluster, tmp_path: Path) -> None:
    bare = {"KERNELK_ENVS": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path)}
    with settings(box, **bare):
        there, by_executor = (
            str(swept(Body(), [1], on, ("theano", "numpy"), budget=0.1)) for on in ("box[0]", box.client.executor([0]))
        )
    step = "`kernelk install theano --on box` (in a notebook: `%kbackend --install theano --on box`)"
    assert f"theano@box: Theano 1.0.5 is not installed on m0; next: {step}" in there
    assert "theano: Theano 1.0.5 is not installed on m0; next: there: `kernelk install theano`" in by_executor


def test_sides_here_and_there_are_measured_from_here(box: LocalCluster) -> None:
    body = Body()
    found = kernelk.compare(body, "numpy", "numpy@box", sweep={"n": [1, 2]}, budget=0.4)
    assert isinstance(found, SweepResult)
    assert found.machines == []
    assert "machines differ (numpy on this one, " in str(found)


def conditions(engine: str, version: str, machine: str) -> Conditions:
    shared = (engine, engine, version, "Python 3.11", "worker", "cpu:0", "a processor", 2, 4)
    return Conditions(*shared, machine=machine, elsewhere=machine != "")


def test_what_differs_between_machines_is_said() -> None:
    known = [(c.engine, c) for c in (conditions("torch@a", "2.6", "n1"), conditions("torch", "2.9", ""))]
    assert differences(known) == [
        "machines differ (torch@a on n1, a processor; torch on this one, a processor)",
        "versions of torch differ (torch@a 2.6, torch 2.9)",
    ]
    assert differences(known[:1]) == []
    # A cluster's engine on this machine.
    near = replace(known[1][1], engine="torch@b", machine="n0")
    assert differences([("torch@b", near), known[1]]) == []


def interrupt_when(predicate: Callable[[], bool]) -> threading.Thread:
    """Presses Ctrl-C as soon as something is so."""

    def press() -> None:
        if wait_for(predicate):
            os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def diary_of(box: LocalCluster, folder: str, diary: Path | None) -> None:
    for number in box.client.ids:
        box.client[number].apply_sync(settle, [folder], SLEEPING_DIARY=None if diary is None else str(diary))


def test_ctrl_c_ends_a_sweep_everywhere(box: LocalCluster, folder: str, tmp_path: Path) -> None:
    kernelk.set_backend("numpy")
    before, diary = workers(box), tmp_path / "diary"
    diary_of(box, folder, diary)
    body = Body()
    pressing = interrupt_when(lambda: diary.exists() and len(diary.read_text().splitlines()) > 4)
    with pytest.raises(KeyboardInterrupt):
        swept(body, [1, 2, 60_000, 60_001, 60_002, 3], "box", budget=100)
    pressing.join()
    diary_of(box, folder, None)
    # All of it has run here, and nobody runs there any more, not even those that slept for a minute.
    assert K.get_value(body.count) == 12
    assert (current().active, current().recorder) == ("numpy", None)
    assert wait_for(lambda: workers(box) <= before)
    assert set(swept(body, [1, 2, 3, 4], "box", budget=0.1).machines) == {"m0", "m1", "m2", "m3"}


def test_a_machine_that_is_lost_costs_its_rows_only(folder: str, tmp_path: Path) -> None:
    kernelk.set_backend("numpy")
    diary = tmp_path / "diary"
    with local_cluster("frail", 3) as frail:
        for number in range(3):
            variables = {"KERNELK_MACHINE": f"f{number}", "SLEEPING_DIARY": str(diary)}
            frail.client[number].apply_sync(settle, [folder], **variables)
        lost = frail.pid(1)

        def kill() -> None:
            if wait_for(lambda: diary.exists() and "f1 " in diary.read_text()):
                os.kill(lost, signal.SIGKILL)

        killing = threading.Thread(target=kill)
        killing.start()
        found = swept(Body(), [20, 21, 22, 23, 24, 25], "frail", budget=0.8)
        killing.join()
        failed = [value for value, point in found.points if any(side.failure for side in point.sides)]
        assert len(failed) == 1
        assert f"n={failed[0]:g}: the ipyparallel engine frail[1] on f1 ended" in str(found)
        assert all(point.machine != "f1" for value, point in found.points if value not in failed)
        # And where all are lost, what is left is told as well.
        left = [frail.pid(number) for number in frail.client.ids]
        diary.unlink()

        def kill_all() -> None:
            if wait_for(diary.exists):
                for pid in left:
                    os.kill(pid, signal.SIGKILL)

        killing = threading.Thread(target=kill_all)
        killing.start()
        shown = str(swept(Body(), [20, 21, 22, 23, 24, 25], "frail", budget=0.8))
        killing.join()
        assert "n=22, 23, 24, 25: no machine is left; next: run it again" in shown
        with pytest.raises(EngineError, match="the cluster 'frail' has no engines"):
            swept(Body(), [1], "frail")


def test_a_machine_goes_on_by_another_of_its_engines(folder: str, tmp_path: Path) -> None:
    """Whenever the one ends that speaks for it; only what was measured at that moment has failed."""
    kernelk.set_backend("numpy")
    diary = tmp_path / "diary"
    with local_cluster("frail", 5) as frail:
        for number in range(5):
            frail.client[number].apply_sync(settle, [folder], KERNELK_MACHINE="one", SLEEPING_DIARY=str(diary))
        pids = [frail.pid(number) for number in range(5)]
        frail.client[0].apply_sync(end_at_welcome)
        frail.client[2].apply_sync(conceal, True)
        body = Body()

        def mortal(n: int) -> Any:
            if not body.runs:
                frail.kill(1)
            return body(n)

        found = swept(mortal, [1, 2, 3], "frail")
        assert not [side.failure for _, point in found.points for side in point.sides if side.failure]
        assert found.machines == ["one"]
        for note in (
            "the ipyparallel engine frail[0] on one ended; it isn't used",
            "frail[2] has other engines than those before it; it isn't used",
            "the ipyparallel engine frail[1] on one ended; frail[3] goes on there",
        ):
            assert note in str(found)
        frail.client[2].apply_sync(conceal, False)
        diary.unlink()

        def kill() -> None:
            for pid in (pids[2], pids[3]):
                assert wait_for(lambda pid=pid: pid in asleep(diary))
                os.kill(pid, signal.SIGKILL)

        killing = threading.Thread(target=kill)
        killing.start()
        found = swept(Body(), [20, 21, 22, 23], "frail", budget=0.8)
        killing.join()
        assert [value for value, point in found.points if any(side.failure for side in point.sides)] == [20, 21]
        for value, number in ((20, 2), (21, 3)):
            ended = f"the ipyparallel engine frail[{number}] on one ended"
            assert f"n={value}: {ended}" in str(found)
            assert f"{ended}; frail[{number + 1}] goes on there" in str(found)
        # The last one ends between two points.
        left = Body()

        def last(n: int) -> Any:
            if not left.runs:
                frail.kill(4)
            return left(n)

        shown = str(swept(last, [1, 2], "frail"))
        assert "n=1, 2: no machine is left" in shown
        assert "the ipyparallel engine frail[4] on one ended; it isn't used any more" in shown


def asleep(diary: Path) -> set[int]:
    """The ipyparallel engines whose workers have slept."""
    workers = [int(line.split()[1]) for line in diary.read_text().splitlines()] if diary.exists() else []
    found = set()
    for pid in set(workers):
        with contextlib.suppress(psutil.NoSuchProcess):
            found.add(psutil.Process(pid).ppid())
    return found


def test_a_cluster_that_stops_answering_is_given_up(
    box: LocalCluster, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_worker, "_ASK_AFTER", 0.3)
    monkeypatch.setattr(remote_worker, "_SILENT_AFTER", 1.2)
    monkeypatch.setattr(clusters, "_ANSWERS_WITHIN", 0.5)
    kernelk.set_backend("numpy")
    diary, stopped = tmp_path / "diary", box.controllers()
    diary_of(box, folder, diary)
    body = Body()

    def stop() -> None:
        if wait_for(lambda: diary.exists() and len(diary.read_text().splitlines()) > 4):
            for process in stopped:
                process.suspend()

    stopping = threading.Thread(target=stop)
    stopping.start()
    try:
        shown = str(swept(body, [1, 2, 3, 4, 5], "box", ("sleeping",), budget=20))
        assert re.search(r"sleeping@box: m0 has not answered for \d+ s: its machine, the network or", shown)
        assert "sleeping@box: no machine is left" in shown
        # The first, where the connection is kernelk's own and was closed.
        with pytest.raises(EngineError, match=r"cluster 'box' doesn't answer|no engine of the cluster 'box' answers"):
            swept(body, [1], "box")
    finally:
        stopping.join()
        for process in stopped:
            process.resume()
    monkeypatch.undo()
    diary_of(box, folder, None)
    assert not [side.failure for _, point in swept(body, [1, 2], "box").points for side in point.sides if side.failure]


def executors(box: LocalCluster) -> dict[str, Executor]:
    return {
        "threads": ThreadPoolExecutor(2),
        "processes": ProcessPoolExecutor(2),
        "ipyparallel's": box.client.executor(),
    }


@pytest.mark.parametrize("kind", ["threads", "processes", "ipyparallel's"])
def test_any_executor_measures(kind: str, box: LocalCluster) -> None:
    kernelk.set_backend("numpy")
    body = Body()
    with executors(box)[kind] as executor:
        found = swept(body, [1, 2, 3], executor)
        one = kernelk.compare(lambda: body(4), *SIDES, on=executor, budget=0.4)
    for point in (*(point for _, point in found.points), one):
        assert isinstance(point, CompareResult)
        assert [side.label for side in point.sides] == list(SIDES)
        assert not [side.failure for side in point.sides if side.failure]
        assert point.equal
        assert point.machine
    assert "sleeping 0.1 " in str(one)
    assert K.get_value(body.count) == 8


def test_a_pool_that_breaks_is_told_in_the_rows(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernelk.set_backend("numpy")
    diary = tmp_path / "diary"
    monkeypatch.setenv("SLEEPING_DIARY", str(diary))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:

        def kill() -> None:
            if wait_for(diary.exists):
                os.kill(next(iter(pool._processes)), signal.SIGKILL)

        killing = threading.Thread(target=kill)
        killing.start()
        found = swept(Body(), [20, 21, 22], pool, ("sleeping",), budget=2)
        killing.join()
    # All that it had been given is over at once.
    words = [point.side("sleeping").failure for _, point in found.points]
    assert all("the executor takes no work any more (BrokenProcessPool: " in said for said in words)


def test_ctrl_c_ends_what_threads_and_processes_do(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernelk.set_backend("numpy")
    for number, make in enumerate((ThreadPoolExecutor, ProcessPoolExecutor)):
        diary = tmp_path / f"diary{number}"
        monkeypatch.setenv("SLEEPING_DIARY", str(diary))
        with make(2) as executor:
            pressing = interrupt_when(diary.exists)
            with pytest.raises(KeyboardInterrupt):
                swept(Body(), [1, 60_000], executor, ("sleeping",), 100)
            # It comes back, and doesn't sleep for a minute.
            executor.submit(int).result()
        pressing.join()


def hide() -> None:
    """A process that has no kernelk."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "kernelk"]:
        sys.modules[name] = None  # type: ignore[assignment]
    sys.modules["kernelk"] = None  # type: ignore[assignment]


def become_old() -> None:
    from kernelk import _version

    _version.__version__ = "0.0.7"


def test_executors_that_cannot_measure(box: LocalCluster) -> None:
    body = Body()

    def refused(kind: type[KernelKError], words: str, executor: Any, **more: Any) -> None:
        with pytest.raises(kind, match=words) as caught:
            kernelk.compare(lambda: body(2), "numpy", on=executor, budget=0.2, **more)
        assert "\n" not in str(caught.value)
        assert "; next: " in str(caught.value)
        assert body.runs == []

    with ThreadPoolExecutor(1) as executor:
        refused(ArgumentError, "per_op isn't possible on an executor", executor, per_op=True)
        with pytest.raises(ArgumentError, match="on needs engines' names"):
            kernelk.compare(lambda: body(2), on=executor)
        with pytest.raises(ArgumentError, match="an executor takes one body"):
            kernelk.compare(lambda: body(2), lambda: body(3), "numpy", on=executor)
        with pytest.raises(ArgumentError, match="numpy@box can't run on an executor, since it is on box"):
            kernelk.compare(lambda: body(2), "numpy@box", on=executor)
        with pytest.raises(
            ArgumentError, match=r"isn't allowed.*for kernelk\.compare any concurrent\.futures\.Executor"
        ):
            kernelk.set_backend("numpy", on=executor)
        dask = SimpleNamespace(get_executor=lambda: executor)
        with pytest.raises(ArgumentError, match=r"next: kernelk\.compare\(f, 'torch', on=client\.get_executor\(\)\)"):
            kernelk.compare(lambda: body(2), "numpy", on=dask)
    refused(EngineError, "the executor takes no work any more .*cannot schedule new futures after shutdown", executor)
    for prepare, kind, words in (
        (hide, BackendNotInstalledError, r"the executor's processes have no kernelk.*next: `pip install kernelk=="),
        (become_old, EngineError, r"kernelk is 0\.0\.7 in the executor's processes, and .* in this notebook"),
        (sys.exit, EngineError, r"the executor takes no work any more \(Broken"),
    ):
        with ProcessPoolExecutor(1, initializer=prepare) as executor:
            refused(kind, words, executor)
    refused(ArgumentError, r"the executor replies list to one call.*client\.executor\(\)", box.client[:].executor)
    refused(ArgumentError, r"on=3 isn't allowed: allowed are a cluster's name, a Cluster", 3)


def test_the_magic_takes_a_sweep_on_some_engines(box: LocalCluster) -> None:
    compare = "%%kcompare numpy --on box[1,2] --sweep n=1,2 --budget 0.2\nK.eval(w * n)"
    cells = ["%load_ext kernelk", "from kernelk import backend as K\nw = K.variable(1.0)", compare]
    done = run_cells(cells, IPYTHONDIR=os.environ["IPYTHONDIR"])[-1]
    assert done["error"] is None
    assert re.search(r"\n +1 .* m[12]\n", done["value"])
    assert "numpy@box" in done["value"]
