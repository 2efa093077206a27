"""One `backend` fixture over every engine of the box; the workers stay warm, everything else is reset after a test."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

# Before kernelk is imported by anything: its settings are the tests' own, never the user's.
_HOME = tempfile.mkdtemp(prefix="kernelk-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)
os.environ["KERAS_HOME"] = _HOME
os.environ["KERNELK_QUIET"] = "1"
for _name in ("KERAS_BACKEND", "KERNELK_BACKEND"):
    os.environ.pop(_name, None)
# A shell starts what runs in the background with Ctrl-C ignored, and this is inherited by all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, Phase, settings  # noqa: E402

ENGINES = ("numpy", "tensorflow", "theano", "cntk", "jax", "torch")
WORKERS = ("tensorflow", "theano", "cntk", "jax", "torch")

# A compilation in an engine takes as long as it takes; the fixture's engine is meant to be shared by all examples.
settings.register_profile(
    "kernelk",
    deadline=None,
    print_blob=True,
    # To explain a failure runs it hundreds of times: too many for an engine.
    phases=[phase for phase in Phase if phase is not Phase.explain],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
settings.load_profile("kernelk")


def required() -> set[str]:
    """The engines whose absence fails the suite."""
    return {name.strip() for name in os.environ.get("KERNELK_REQUIRE", "").split(",") if name.strip()}


def absent(name: str, reason: object) -> None:
    """Ends the test of an engine that isn't there: failed where it is required, else skipped with the reason."""
    line = " ".join(f"{name} can't be had here: {reason}".split())
    if name in required():
        pytest.fail(f"{line} (KERNELK_REQUIRE names it)", pytrace=False)
    pytest.skip(line)


def activate(name: str) -> None:
    """Makes the engine active, or ends the test as `absent` says."""
    import kernelk
    from kernelk.engines import registry
    from kernelk.errors import BackendNotInstalledError

    engine = registry.engine(name)
    if not engine.in_kernel:
        try:
            registry.interpreter(engine)
        except BackendNotInstalledError as error:
            absent(name, error)
    # An engine that is there and doesn't start is a failure, not an absence.
    kernelk.set_backend(name)


def reset() -> None:
    """What a test may have changed, back to how a new session has it; workers go on running."""
    from kernelk import backend as K
    from kernelk import config
    from kernelk.session.current import current
    from kernelk.source import CELL

    K.clear_session()
    config.reload()
    CELL.number = 0
    session = current()
    session.state.seeds.restart(None)
    session.swaps.clear()
    session.active, session.chosen_by = "numpy", "the tests"


@pytest.fixture(scope="session", autouse=True)
def one_session() -> Iterator[None]:
    """The process's session, with Theano as it runs without a C compiler: seconds less for each function."""
    from kernelk.session.current import current

    session = current()
    session.engine_options["theano"] = {"compiler": ""}
    reset()
    yield
    for host in session.hosts.values():
        host.stop()


@pytest.fixture(autouse=True)
def clean(one_session: None) -> Iterator[None]:
    """Each test starts on numpy with nothing in the session, and leaves it so."""
    yield
    reset()


@pytest.fixture(params=ENGINES)
def backend(request: pytest.FixtureRequest) -> str:
    """The name of the active engine: the test runs once on each."""
    activate(request.param)
    return str(request.param)


@pytest.fixture(params=WORKERS)
def worker(request: pytest.FixtureRequest) -> str:
    """The same, for engines that run in a worker."""
    activate(request.param)
    return str(request.param)


@pytest.fixture
def every_engine() -> list[str]:
    """The names of all engines, each of them started; missing ones end the test."""
    for name in ENGINES:
        activate(name)
    activate("numpy")
    return list(ENGINES)


@pytest.fixture
def spare(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An engine "spare": numpy in a worker of its own, quick to start, for what concerns workers and not engines."""
    from support import register

    from kernelk.engines.descriptors import Engine
    from kernelk.session.current import current

    register(
        monkeypatch,
        Engine("spare", "Spare", "numpy", "NumpyBackend", imports="numpy", install="pip install numpy"),
    )
    yield "spare"
    host = current().hosts.pop("spare", None)
    if host is not None:
        host.stop()
    current()._logs.pop("spare", None)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing: no PATH, an empty home, no settings; environments go to its folder `envs`."""
    for name in list(os.environ):
        if name.startswith(("KERNELK_", "CONDA", "MAMBA", "PYENV", "UV_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KERNELK_ENVS", str(tmp_path / "envs"))
    return tmp_path


def pytest_report_header() -> str:
    """Which kernelk is under test."""
    import kernelk

    return f"kernelk {kernelk.__version__}, Python {sys.version.split()[0]}, numpy {np.__version__}"


_SLOW = """
import time
held_up = importlib.import_module("kernelk.backends.numpy.backend")
def wait(what):
    flag = os.environ["KERNELK_TEST_FLAG"]
    if os.path.exists(flag + what):
        open(flag + what + ".seen", "w").close()
    while os.path.exists(flag + what):
        time.sleep(0.01)
wait("start")
compute, load = held_up.OPS["exp"], held_up.NumpyBackend.load
def slow(instruction, x):
    os.write(1, b"chatter on 1\\n" * 50)
    os.write(2, b"chatter on 2\\n" * 50)
    print("printed")
    wait("exp")
    return compute(instruction, x)
def slow_load(self, array):
    wait("load")
    return load(self, array)
held_up.OPS["exp"], held_up.NumpyBackend.load = slow, slow_load
"""


@pytest.fixture
def brake(spare: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Brake:
    """The engine "spare" with a brake: its start, its loads and its `exp` can be held up for as long as a test needs.

    Its `exp` also writes to standard output and error, past every buffer of Python's.
    """
    from kernelk.engines import worker_host as host

    flag = tmp_path_factory.mktemp("brake") / "hold-"
    monkeypatch.setenv("KERNELK_TEST_FLAG", str(flag))
    last = 'importlib.import_module("kernelk.backends.serving.worker").main('
    assert last in host._BOOT
    monkeypatch.setattr(host, "_BOOT", host._BOOT.replace(last, _SLOW + last))
    return Brake(str(flag))


class Brake:
    """Holds the worker at a place ("start", "load", "exp") between `hold` and `free`."""

    def __init__(self, flag: str) -> None:
        self._flag = flag

    def hold(self, place: str) -> None:
        Path(self._flag + place).touch()

    def free(self, place: str) -> None:
        Path(self._flag + place).unlink(missing_ok=True)
        Path(self._flag + place + ".seen").unlink(missing_ok=True)

    def reached(self, place: str) -> bool:
        """Whether the worker waits there."""
        return Path(self._flag + place + ".seen").exists()

    def when_reached(self, place: str, do: Callable[[], object]) -> threading.Thread:
        """Does something, from a thread, once the worker waits there."""
        from support import wait_until

        def run() -> None:
            if wait_until(lambda: self.reached(place)):
                do()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread
