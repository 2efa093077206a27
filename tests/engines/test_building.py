"""Theano's C code, built beside the calls: what answers meanwhile, when it takes over, and who waits for it."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.engines import activate, require_installed
from helpers.processes import alive

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.engines.worker_host import WorkerHost
from kernelk.session.current import current

BUILDING = "Theano computes by numpy code until C code is built (%config KernelK.build_beside = False waits for it)"
BUILT = "Theano's C code is built and runs from here on; the last digits of results may differ"

# The real compiler, once it may: what only asks for its version or flags is answered at once.
COMPILER = """#!/bin/sh
case " $* " in *" -shared "*) ;; *) exec {real} "$@";; esac
echo run >> {folder}/runs
while [ -e {folder}/held ]; do sleep 0.02; done
[ -e {folder}/broken ] && {{ echo "g++: no space left on device" >&2; exit 1; }}
exec {real} "$@"
"""


class Compiler:
    """g++, which can be held up and broken."""

    def __init__(self, folder: Path) -> None:
        real = shutil.which("g++")
        if real is None:
            pytest.fail("g++ isn't installed")
        self.folder = folder
        self.path = folder / "g++"
        self.path.write_text(COMPILER.format(real=real, folder=folder), encoding="utf-8")
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)

    def hold(self) -> None:
        (self.folder / "held").touch()

    def release(self) -> None:
        (self.folder / "held").unlink(missing_ok=True)

    def break_down(self) -> None:
        (self.folder / "broken").touch()

    @property
    def runs(self) -> int:
        runs = self.folder / "runs"
        return len(runs.read_text(encoding="utf-8").splitlines()) if runs.exists() else 0


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache that no other test fills."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("caches")))
        yield Path(os.environ["XDG_CACHE_HOME"])


@pytest.fixture
def compiler(caches: Path, tmp_path: Path, said: list[str]) -> Iterator[Compiler]:
    """Theano is active, with a compiler that is held up from its next run on."""
    require_installed("theano")
    made = Compiler(tmp_path)
    current().engine_options["theano"] = {"compiler": str(made.path)}
    host = current().hosts.pop("theano", None)
    if host is not None:
        host.stop()
    activate("theano")
    assert current().host().facts["mode"].startswith("C, g++")
    made.hold()
    said.clear()
    yield made
    made.release()


def until(done: Callable[[], object], call: Callable[[], object]) -> None:
    """Makes calls until something has come of them."""
    end = time.monotonic() + 120
    while not done():
        assert time.monotonic() < end, "nothing has come of it"
        call()
        time.sleep(0.02)


def builders() -> list[int]:
    """The processes that the worker has forked."""
    pid = current().host().pid
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_numpy_code_answers_at_once_and_c_code_takes_over_between_two_calls(
    compiler: Compiler, said: list[str]
) -> None:
    """State goes on through it."""
    host = current().host()
    w = K.variable(np.linspace(-1, 1, 6).reshape(2, 3), name="w")
    speed = K.zeros((2, 3))
    x = K.placeholder((None, 2))
    loss = K.sum(K.square(K.tanh(K.dot(x, w)) * 1.25))
    new = speed * 0.5 - 0.01 * K.gradients(loss, [w])[0]
    step = K.function([x], [loss], [K.update(speed, new), K.update(w, w + new)])
    feed = np.ones((4, 2), "float32")
    steps = 2
    losses = [step([feed])[0], step([feed])[0]]
    assert said == [BUILDING]
    assert len(host.building) == 1
    assert "; new programs run as numpy code until they are built" in repr(kernelk.list_backends())

    compiler.release()

    def one() -> None:
        nonlocal steps
        losses.append(step([feed])[0])
        steps += 1

    until(lambda: BUILT in said, one)
    one()
    assert said == [BUILDING, BUILT]
    assert not host.building
    assert builders() == []
    got = K.get_value(w)

    kernelk.set_backend("numpy")
    K.set_value(w, np.linspace(-1, 1, 6).reshape(2, 3))
    K.set_value(speed, np.zeros((2, 3)))
    wanted = [step([feed])[0] for _ in range(steps)]
    np.testing.assert_allclose(losses, wanted, rtol=1e-5)
    np.testing.assert_allclose(got, K.get_value(w), rtol=1e-5)


def test_what_is_in_the_cache_runs_as_c_code_at_once(compiler: Compiler, said: list[str]) -> None:
    """Another worker needs no compiler for it."""
    x = K.placeholder((3,))
    f = K.function([x], [K.exp(x) * 1.5 + K.tanh(x)])
    compiler.release()
    f([np.ones(3)])
    until(lambda: BUILT in said, lambda: f([np.ones(3)]))
    runs = compiler.runs
    kernelk.stop_backend("theano")
    compiler.hold()
    said.clear()
    f([np.ones(3)])
    assert (said, compiler.runs) == ([], runs)
    assert not current().host().building


@pytest.mark.parametrize("who", ["seeded before", "seeded after", "time", "diff", "setting"])
def test_it_is_waited_for_where_a_result_would_depend_on_it(
    compiler: Compiler, said: list[str], who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a seed, by the timing tools, and by who has set it so."""
    host = current().host()
    number = 2.0 + ["seeded before", "seeded after", "time", "diff", "setting"].index(who) / 16
    x = K.placeholder((3,))
    y = K.exp(x) * number
    f = K.function([x], [y])
    feed = np.ones(3, "float32")
    if who == "seeded before":
        K.set_random_seed(3)
    elif who == "setting":
        monkeypatch.setattr(config.LIMITS, "build_beside", False)
    else:
        f([feed])
        assert said == [BUILDING]
        if who == "seeded after":
            K.set_random_seed(3)
    released: list[float] = []

    def release() -> None:
        released.append(time.monotonic())
        compiler.release()

    timer = threading.Timer(0.5, release)
    timer.start()
    if who == "time":
        assert kernelk.time(f, feeds={x: feed}, budget=0.1).conditions.mode.startswith("C, g++")
    elif who == "diff":
        assert kernelk.diff(y, "numpy", "theano", feeds={x: feed}).agrees
    else:
        np.testing.assert_allclose(f([feed])[0], np.exp(feed) * number, rtol=1e-6)
    timer.join()
    assert released
    assert said == ([BUILDING, BUILT] if who in ("seeded after", "time", "diff") else [])
    assert not host.building


def test_a_swap_does_not_wait_for_the_compiler_to_evaluate_tensors_again(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiling counts as part of the time that this may take; the next call finds the engine at work, and waits."""
    monkeypatch.setattr(config.LIMITS, "reevaluation_seconds", 0.5)
    kernelk.set_backend("numpy")
    K.set_random_seed(3)
    v = K.variable([0.5, 1.0])
    tensors = [K.exp(v) * 5.5, K.exp(v) * 5.625]
    value, _ = (K.eval(tensor) for tensor in tensors)
    report = kernelk.set_backend("theano")
    assert (report.not_reevaluated, report.reevaluated) == (2, [])
    assert "2 displayed tensors (time limit)" in repr(report)
    host = current().host()
    pid, compiled = host.pid, dict(host.compiled)
    threading.Timer(0.5, compiler.release).start()
    np.testing.assert_allclose(K.eval(tensors[0]), value, rtol=1e-6)
    assert (host.pid, len(host.compiled)) == (pid, len(compiled) + 1)
    kernelk.set_backend("numpy")
    report = kernelk.set_backend("theano")
    assert report.not_reevaluated < 2
    # What is left to the engine is let go of with it.
    compiler.hold()
    kernelk.set_backend("numpy")
    tensors = [K.tanh(v) * 5.75]
    K.eval(tensors[0])
    assert kernelk.set_backend("theano").not_reevaluated == 1
    kernelk.stop_backend("theano")
    assert not alive(pid or 0)


def test_a_loop_takes_over_too(compiler: Compiler, said: list[str]) -> None:
    """A program in stages: each part runs as C code when it is built."""
    x = K.placeholder((2, 4, 3))

    def step(element: K.Tensor, states: list[K.Tensor]) -> tuple[K.Tensor, list[K.Tensor]]:
        new = K.tanh(element * 1.125 + states[0])
        return new, [new]

    _, outputs, _ = K.rnn(step, x, [K.zeros((2, 3))])
    f = K.function([x], [K.sum(outputs * 0.625)])
    feed = np.linspace(-1, 1, 24).reshape(2, 4, 3).astype("float32")
    first = f([feed])[0]
    assert said == [BUILDING]
    compiler.release()
    until(lambda: BUILT in said, lambda: f([feed]))
    np.testing.assert_allclose(f([feed])[0], first, rtol=1e-5)
    kernelk.set_backend("numpy")
    np.testing.assert_allclose(f([feed])[0], first, rtol=1e-5)


def test_numpy_code_goes_on_where_the_compiler_fails(compiler: Compiler, said: list[str]) -> None:
    """One line says so, with the compiler's reason, and the results are right."""
    x = K.placeholder((3,))
    f = K.function([x], [K.exp(x) * 3.25])
    compiler.break_down()
    compiler.release()
    wanted = np.exp(np.ones(3)) * 3.25
    np.testing.assert_allclose(f([np.ones(3)])[0], wanted, rtol=1e-6)
    until(lambda: len(said) > 1, lambda: f([np.ones(3)]))
    assert said[0] == BUILDING
    assert len(said) == 2
    assert said[1].startswith("Theano goes on computing by numpy code, since C code can't be built: Compilation failed")
    assert said[1].endswith(
        "next: %config KernelK.build_beside = False, and run it again for all that the compiler says"
    )
    assert "Traceback" not in kernelk.log("theano").text
    assert "\n" not in said[1]
    np.testing.assert_allclose(f([np.ones(3)])[0], wanted, rtol=1e-6)
    assert len(said) == 2
    assert not current().host().building


def test_a_killed_build_costs_nothing_but_the_c_code(compiler: Compiler, said: list[str]) -> None:
    """The process is reported by its signal; what it held doesn't keep the next one waiting."""
    x = K.placeholder((3,))
    f = K.function([x], [K.exp(x) * 3.5])
    f([np.ones(3)])
    for pid in builders():
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(said) > 1, lambda: f([np.ones(3)]))
    assert "its process was ended by signal 9" in said[1]
    np.testing.assert_allclose(f([np.ones(3)])[0], np.exp(np.ones(3)) * 3.5, rtol=1e-6)
    compiler.release()
    other = K.function([x], [K.exp(x) * 3.625])
    other([np.ones(3)])
    until(lambda: BUILT in said, lambda: other([np.ones(3)]))


def gone(children: list[int]) -> None:
    """Waits until these processes have ended."""
    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_is_built_is_told_even_if_the_last_build_fails(compiler: Compiler, said: list[str]) -> None:
    x = K.placeholder((3,))
    first, second = K.function([x], [K.exp(x) * 7.25]), K.function([x], [K.tanh(x) * K.exp(x) - 7.5])
    first([np.ones(3)])
    second([np.ones(3)])
    (lasting,) = [pid for pid in builders() if pid == max(builders())]
    os.kill(lasting, signal.SIGSTOP)
    compiler.release()
    until(lambda: len(builders()) == 1, lambda: first([np.ones(3)]))
    os.kill(lasting, signal.SIGKILL)
    until(lambda: len(said) > 2, lambda: first([np.ones(3)]))
    assert "signal 9" in said[1]
    assert said[2] == BUILT
    assert not current().host().building


def test_a_worker_that_ends_takes_its_builds_along(compiler: Compiler, said: list[str]) -> None:
    """The next worker begins anew, and nothing is lost; stopped, it leaves no process behind either."""
    host = current().host()
    w = K.variable(1.0)
    x = K.placeholder((3,))
    f = K.function([x], [K.sum(K.exp(x) * 3.75)], [K.update_add(w, 1.0)])
    f([np.ones(3)])
    children = builders()
    assert children
    assert host.pid is not None
    os.kill(host.pid, signal.SIGKILL)
    f([np.ones(3)])
    assert isinstance(host, WorkerHost)
    assert said.count(BUILDING) == 1  # once is enough
    gone(children)
    assert K.get_value(w) == 3.0
    children = builders()
    assert children
    kernelk.stop_backend("theano")
    gone(children)


def test_what_has_the_same_source_waits_for_no_build(compiler: Compiler, said: list[str]) -> None:
    """Theano notes a new constant of code that it has, and would wait for the lock that a builder holds."""
    x = K.placeholder((3,))
    f = K.function([x], [K.exp(x) * 6.25])
    compiler.release()
    f([np.ones(3)])
    until(lambda: BUILT in said, lambda: f([np.ones(3)]))
    compiler.hold()
    runs = compiler.runs
    other = K.function([x], [K.tanh(x) * K.sin(x)])
    other([np.ones(3)])
    until(lambda: compiler.runs > runs, lambda: None)
    # The builder has the lock, and keeps it until the compiler is released.
    same = K.function([x], [K.exp(x) * 6.5])
    np.testing.assert_allclose(same([np.ones(3)])[0], np.exp(np.ones(3)) * 6.5, rtol=1e-6)
    assert len(current().host().building) == 1
    assert list((Path(os.environ["XDG_CACHE_HOME"]) / "kernelk").glob("theano/*/*/lock_dir/lock"))


def test_many_programs_are_built_one_after_the_other(compiler: Compiler, said: list[str]) -> None:
    """There are few builders at a time, and a program that nobody needs any more is no reason to compile."""
    x = K.placeholder((3,))
    functions = [K.function([x], [K.exp(x) * (4 + n / 16)]) for n in range(6)]
    for f in functions:
        f([np.ones(3)])
    assert len(builders()) == 3
    assert len(current().host().building) == 6
    compiler.release()

    def call() -> None:
        for n, f in enumerate(functions):
            np.testing.assert_allclose(f([np.ones(3)])[0], np.exp(np.ones(3)) * (4 + n / 16), rtol=1e-6)

    until(lambda: BUILT in said, call)
    assert said == [BUILDING, BUILT]
