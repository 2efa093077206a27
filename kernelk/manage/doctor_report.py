"""Examines the engines for `doctor`: tries each in a worker, and reports what is missing with the next command.

Nothing of the user's session is touched: each trial has a session, storage and worker of its own, which go with it.
"""

from __future__ import annotations

import contextvars
import platform
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

import numpy as np

from .._version import __version__
from ..display.commands import in_shell_and_notebook
from ..display.tables import Rendered, Table, duration
from ..engines import registry
from ..engines.descriptors import Engine
from ..engines.host import Host
from ..engines.machine import gpus
from ..engines.start_failures import RUN_AGAIN
from ..engines.worker_host import WorkerHost
from ..environments import interpreters, places
from ..environments.recipes import RECIPES
from ..errors import ArgumentError, BackendNotInstalledError, KernelKError, joined, one_line
from ..graph.nodes import Variable
from ..ops import creation, dtypes, elementwise, linear, reductions, updates
from ..ops.gradients import gradients
from ..remote.clusters import placed
from ..session.current import entered, existing
from ..session.function import Function
from ..session.session import Session
from ..source import caller
from .elsewhere import Machine, machines
from .machine_facts import machine_facts, session_facts

# The packages whose builds use NVIDIA's GPUs, where another one may be installed.
_GPU_BUILDS = {
    "tensorflow": 'pip install "tensorflow[and-cuda]"',
    "jax": 'pip install "jax[cuda12]"',
    "torch": "pip install --force-reinstall torch",
}

# A test that takes longer is ended, and reported as failed.
TRIAL_SECONDS = 120.0


@dataclass(frozen=True)
class EngineHealth:
    """One engine: `state` is "works", "failed", "not installed" or "not tried"; `problem` and `next` say what to do.

    `start_seconds`: until its worker was up; `test_seconds`: the trial itself. An engine that works may have a hint in
    `problem` and `next` too, such as a compiler that is missing.
    """

    name: str
    state: str
    version: str = ""
    interpreter: str = ""
    device: str = ""
    mode: str = ""
    start_seconds: float = 0.0
    test_seconds: float = 0.0
    problem: str = ""
    next: str = ""

    def cells(self) -> list[str]:
        """The row of the table."""
        tried = f"passed (start {duration(self.start_seconds)}, test {duration(self.test_seconds)})"
        test = tried if self.state == "works" else ""
        return [self.name, self.state, self.version, self.interpreter, self.device, self.mode, test]

    def advice(self) -> str:
        """The problem and the next command, in one line; "" without a problem."""
        return joined(f"{self.name}: {self.problem}", next_step=self.next) if self.problem else ""


@dataclass(frozen=True, repr=False)
class HealthReport(Rendered):
    """The doctor's report: the engines, facts of the machine as (name, words), and the machine's own problems."""

    engines: list[EngineHealth]
    machine: list[tuple[str, str]]
    problems: list[str]
    seconds: float

    @property
    def passed(self) -> bool:
        """Whether every examined engine works."""
        return all(engine.state == "works" for engine in self.engines)

    def table(self) -> Table:
        """One row per engine; below them the advice, the problems and the machine."""
        header = ["engine", "state", "version", "interpreter", "device", "mode", "self-test"]
        advice = [line for engine in self.engines if (line := engine.advice())]
        below = [*advice, *self.problems]
        below += [f"{name}: {words}" for name, words in self.machine]
        count = sum(engine.state == "works" for engine in self.engines)
        below.append(f"{count} of {len(self.engines)} engines passed (checked in {duration(self.seconds)})")
        return Table([engine.cells() for engine in self.engines], header, below="\n".join(below))


def doctor(names: str | Sequence[str] | None = None, on: Any = None) -> HealthReport:
    """Checks the engines with these names (or this one), all of them by default. The twin of `kernelk doctor NAME...`.

    `on`: on the machine of a cluster, as in `set_backend`; "torch@gpu-box" is an engine's name there.

    Raises UnknownBackendError for a name that no engine has, and what `set_backend` raises for a cluster that there
    isn't or that can't be reached; problems of an engine are in the report.
    """
    begin = time.perf_counter()
    names = [names] if isinstance(names, str) else names
    if names is not None and not isinstance(names, Iterable):
        raise ArgumentError(
            f"doctor: engines are given by name, not {type(names).__name__}", next_step="kernelk.doctor()"
        )
    chosen = list(dict.fromkeys(placed(name, on) for name in names or registry.names()))
    clusters = dict.fromkeys(place for name in chosen if (place := name.partition("@")[2]))
    facts: list[tuple[str, str]] = []
    problems: list[str] = []
    shut: set[str] = set()  # clusters where no worker can start
    seen = {"": len(gpus())}  # GPUs, by cluster
    if on is None and len(clusters) < len({name.partition("@")[2] for name in chosen}):
        for more, wrong in (machine_facts(), session_facts()):
            facts += more
            problems += wrong
    for place in clusters:
        every = machines(place)
        more, wrong = _of_cluster(place, every)
        facts += more
        problems += wrong
        seen[place] = len(every[0].facts["gpus"])
        if every[0].facts["kernelk"] != __version__:
            shut.add(place)
    health: dict[str, EngineHealth] = {}
    ready: list[Engine] = []
    for name in chosen:
        if name.partition("@")[2] in shut:
            health[name] = EngineHealth(name, "not tried")
            continue
        try:
            engine = registry.engine(name)
        except BackendNotInstalledError as error:  # an entry point that leads nowhere
            health[name] = _ill(name, "not installed", error)
            continue
        absent = _absent(engine)
        if absent is not None:
            health[name] = absent
        else:
            ready.append(engine)
    health.update(_trials(ready, seen))
    return HealthReport([health[name] for name in chosen], facts, problems, time.perf_counter() - begin)


def _of_cluster(place: str, every: list[Machine]) -> tuple[list[tuple[str, str]], list[str]]:
    """Facts of a cluster's machines, and their problems, versions that don't fit the kernel's among them."""
    used = every[0]
    count = sum(machine.engines for machine in every)
    words = "1 engine" if count == 1 else f"{count} engines"
    words += f" of ipyparallel on {used.name}" if len(every) == 1 else f" of ipyparallel on {len(every)} machines"
    if count > 1:
        words += f"; kernelk's workers run with engine {used.number}, on {used.name}"
    facts = [(place, words)]
    problems = [problem for machine in every if machine.facts for problem in _misfits(machine)]
    for name, told in used.facts["facts"]:
        facts.append((f"{name} on {used.name}", told))
    told, ours = used.facts["ipyparallel"], _ipyparallel()
    facts.append((f"ipyparallel on {used.name}", told if told == ours else f"{told}; here it is {ours}"))
    told, ours = used.facts["python"], platform.python_version()
    if told != ours:
        facts.append((f"Python on {used.name}", f"{told}; here it is {ours}, and kernelk needs no two of a kind"))
    problems += [f"on {used.name}: {problem}" for problem in used.facts["problems"]]
    for machine in every[1:]:
        if machine.error is not None:
            problems.append(str(machine.error))
            continue
        about = machine.facts
        told = f"kernelk {about['kernelk']}, Python {about['python']} ({about['executable']})"
        facts.append((f"also {machine.name}", f"{told}, GPUs: {dict(about['facts'])['GPUs']}"))
        problems += [f"on {machine.name}: {problem}" for problem in about["problems"]]
    return facts, problems


def _ipyparallel() -> str:
    return metadata.version("ipyparallel")


def _misfits(machine: Machine) -> list[str]:
    """The versions on a machine that don't fit this kernel's, one line each."""
    name, facts, found = machine.name, machine.facts, []
    if facts["kernelk"] != __version__:
        found.append(
            joined(
                f"kernelk is {facts['kernelk']} on {name}, and {__version__} here: no engine can run there",
                next_step=f"on {name}: `{facts['executable']} -m pip install kernelk=={__version__}`, "
                "and restart its ipyparallel engines",
            )
        )
    ours, theirs = _ipyparallel(), str(facts["ipyparallel"])
    if ours.split(".")[0] != theirs.split(".")[0]:
        found.append(
            joined(
                f"ipyparallel is {theirs} on {name}, and {ours} here, whose messages differ",
                next_step=f"on {name}: `{facts['executable']} -m pip install ipyparallel=={ours}`, "
                "and restart its engines",
            )
        )
    return found


def _ill(name: str, state: str, error: Exception, repair: str = "", **facts: Any) -> EngineHealth:
    """The health of an engine with this error: its message, and its own next command unless there is a better one."""
    if isinstance(error, KernelKError):
        words, next_step = joined(error.problem, error.allowed), error.next_step
    else:
        words, next_step = f"{type(error).__name__}: {error}", ""
    return EngineHealth(name, state, problem=one_line(words), next=repair or one_line(next_step), **facts)


def _absent(engine: Engine) -> EngineHealth | None:
    """The report on an engine that can't be started; None for one that can. Starts no worker."""
    try:
        registry.require(engine)
        return None
    except BackendNotInstalledError:
        if engine.recipe is None:
            words = registry.outdated(engine) or f"{engine.title} isn't installed in {sys.prefix}"
            return EngineHealth(engine.name, "not installed", problem=words, next=engine.get)
        recipe = RECIPES[engine.recipe]
        refusal = recipe.refusal()
        if refusal is not None:
            return _ill(engine.name, "not installed", refusal)
        problem = f"{recipe.title} {places.missing(engine.recipe)}"
        command = engine.get
        try:
            found = interpreters.search(recipe, places.roots())
        except BackendNotInstalledError as error:  # a setting that names none that fits
            return _ill(engine.name, "not installed", error)
        makers = interpreters.makers(recipe)
        if found.interpreter is not None:
            python = found.interpreter
            problem += f"; a suitable Python {python.version} was found ({python.source}: {python.path})"
        elif makers:
            problem += f"; {makers[0].program.name} can create the Python {makers[0].series} that it needs"
        else:
            nothing = _ill(engine.name, "not installed", interpreters.nothing_found(recipe, found.broken))
            # A partial install, or one whose Python is gone, is the better explanation.
            partly = places.without_python(engine.recipe) or places.half_built(engine.recipe)
            before = f"{problem}; " if partly else ""
            return replace(nothing, problem=before + nothing.problem)
        return EngineHealth(engine.name, "not installed", problem=problem, next=command)


def _trials(engines: Iterable[Engine], seen: dict[str, int]) -> dict[str, EngineHealth]:
    """Tests the engines in parallel; those in the kernel's own process first, since they take no time.

    `seen`: the number of GPUs, by cluster.
    """
    engines = list(engines)
    health_of = {engine.name: _trial(engine, [], 0) for engine in engines if engine.in_kernel}
    outside = [engine for engine in engines if not engine.in_kernel]
    if not outside:
        return health_of
    hosts: list[Host] = []
    with ThreadPoolExecutor(len(outside), "kernelk-doctor") as pool:
        futures: dict[str, Future[EngineHealth]] = {
            # A thread with a new context would find another session's options.
            e.name: pool.submit(contextvars.copy_context().run, _trial, e, hosts, seen[e.on])
            for e in outside
        }
        try:
            late = wait(futures.values(), TRIAL_SECONDS).not_done
        finally:  # Ctrl-C ends them all too
            _end(hosts)
    for engine in outside:
        health = futures[engine.name].result()
        if futures[engine.name] in late:
            words = f"{engine.title} didn't answer within {TRIAL_SECONDS:.0f} s"
            health = EngineHealth(engine.name, "failed", problem=words, next=engine.repair(""))
        health_of[engine.name] = health
    return health_of


def _end(hosts: Iterable[Host]) -> None:
    """Ends the workers that are still up; the threads that wait for them see it at once."""
    for host in hosts:
        if isinstance(host, WorkerHost) and host.started:
            host.cancel()


def _trial(engine: Engine, hosts: list[Host], gpus: int) -> EngineHealth:
    """Starts the engine and lets it take one step of gradient descent, whose result is known exactly."""
    users = existing()
    options = {} if users is None else dict(users.engine_options.get(engine.name, {}))
    options.pop("in_kernel", None)
    session = Session()
    log = None if users is None else users.log_of(engine.name)
    host = session.make_host(engine.name, options, log)
    hosts.append(host)
    try:
        begin = time.perf_counter()
        host.start()
        started = time.perf_counter()
        with entered(session):
            wrong = _step(session, host)
        ended = time.perf_counter()
        facts: dict[str, Any] = {
            "version": str(host.facts.get("version", "")),
            "interpreter": str(host.facts.get("interpreter", "")),
            "device": str(host.facts.get("device", "")),
            "mode": str(host.facts.get("mode", "")),
        }
        if wrong:
            return EngineHealth(engine.name, "failed", problem=wrong, next=engine.repair(""), **facts)
        return EngineHealth(
            engine.name,
            "works",
            start_seconds=started - begin,
            test_seconds=ended - started,
            **facts,
            **(_no_compiler(facts["mode"], engine.on) or _no_gpu(engine, host.facts.get("devices", ()), gpus)),
        )
    except BackendNotInstalledError as error:  # as another machine says it
        return _ill(engine.name, "not installed", error)
    except KernelKError as error:
        repair = "" if error.next_step == RUN_AGAIN else engine.repair(error.problem)
        return _ill(engine.name, "failed", error, repair)
    except Exception as error:
        return _ill(engine.name, "failed", error, engine.repair(f"{type(error).__name__}: {error}"))
    finally:
        host.stop()
        for number in list(session.storage.segments):
            session.storage.drop_segment(number)


def _no_gpu(engine: Engine, devices: Sequence[str], gpus: int) -> dict[str, Any]:
    """A hint for an engine that finds none of the machine's GPUs, as `problem` and `next`; empty for any other."""
    command = _GPU_BUILDS.get(engine.base)
    if not gpus or command is None or not all(str(name).startswith("cpu") for name in devices):
        return {}
    missed = "the machine's GPU" if gpus == 1 else f"any of the machine's {gpus} GPUs"
    words = in_shell_and_notebook(command) if not engine.on else f"on {engine.on}: `{command}`"
    return {"problem": f"it works, but doesn't find {missed}", "next": words}


def _no_compiler(mode: str, on: str) -> dict[str, Any]:
    """As `_no_gpu`, for Theano without a compiler."""
    if "g++ isn't found" not in mode:
        return {}
    makers = {
        "apt": "apt install g++",
        "dnf": "dnf install gcc-c++",
        "conda": "conda install -c conda-forge cxx-compiler",
    }
    known = next((f"`{command}`" for program, command in makers.items() if shutil.which(program)), None)
    if on:
        known = f"on {on}: install g++ with its system's package manager"
    get = known or "install g++ with your system's package manager"
    return {"problem": "without a C++ compiler it works, but about 2 to 3 times slower", "next": get}


def _step(session: Session, host: Host) -> str:
    """Checks a forward pass, a gradient and an update. Returns the first wrong value in words, "" if all are right."""
    start = np.array([[1, 2], [3, 4], [5, 6]], "float32")
    x_value = np.array([[1, 0, 2], [0, 1, 1]], "float32")
    w = Variable("variable", (), {}, start.shape, "float32", caller(), "w")
    session.adopt(w, start)
    x = creation.placeholder((None, 3), dtype="float32", name="x")
    y = linear.dot(x, w)
    loss = reductions.sum(elementwise.square(y))
    slope = gradients(loss, [w])[0]
    half = dtypes.as_tensor(0.5, "float32")
    step = updates.update_sub(w, half * slope)
    call = Function([x], [y, loss], [step], name="doctor", live=False)
    program = call.program_for(session, host.ops, 0, [x_value])
    with session.calls.patient():
        values = session.calls.execute(host, program, [x_value])
    # Small integers: every engine has them exactly, whatever order it adds them in.
    product = x_value @ start
    wanted = [product, np.square(product).sum(), start - x_value.T @ product]
    for what, got, right in zip(("forward pass", "loss", "updated variable"), [*values, session.read(w)], wanted):
        if not np.array_equal(got, right):
            return f"it computes a wrong {what}: {np.asarray(got).tolist()} instead of {right.tolist()}"
    return ""
