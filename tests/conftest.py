"""The fixtures: `backend` runs a test on every engine; workers stay warm, everything else is reset after a test."""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("helpers")

# Before kernelk is imported by anything.
import helpers.own_settings  # noqa: E402, F401, I001

import numpy as np  # noqa: E402

from helpers.brake import Brake, braked  # noqa: E402
from helpers.engines import ENGINES, WORKERS, activate, reset  # noqa: E402
from helpers.fake_engines import register  # noqa: E402
from helpers.marks import mark  # noqa: E402

import kernelk  # noqa: E402
from kernelk.display import messages, progress  # noqa: E402
from kernelk.engines import worker_host  # noqa: E402
from kernelk.engines.descriptors import Engine  # noqa: E402
from kernelk.session.current import current  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def one_session() -> Iterator[None]:
    """The process's session, with Theano as it runs without a C compiler: seconds less for each function.

    Lines that count seconds come where the machine is slow, and so never here: test_waiting has processes of its own.
    """
    progress.DELAY = 1e6
    session = current()
    session.engine_options["theano"] = {"compiler": ""}
    reset()
    yield
    for host in session.hosts.values():
        host.stop()


@pytest.fixture(scope="module", autouse=True)
def settled() -> None:
    """Leaves what the suite has loaded out of garbage collections: a session that is cleared makes one, at each reset.

    They would go through thousands of tests and, once an engine has been imported here, through that: a quarter of a
    second for each test.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def clean(one_session: None) -> Iterator[None]:
    """Starts each test on numpy with an empty session, and restores that after it, the engines' options included."""
    session = current()
    before = {name: dict(options) for name, options in session.engine_options.items()}
    yield
    for name in {*before, *session.engine_options}:
        if session.engine_options.get(name, {}) != before.get(name, {}):
            host = session.hosts.pop(name, None)
            if host is not None:
                host.stop()
            session.engine_options.pop(name, None)
    session.engine_options.update(before)
    reset()
    held, session.lock = session.lock, threading.RLock()
    # A thread of a later test would wait for it without end.
    assert not held._is_owned(), "the test has left the session's lock held"  # type: ignore[attr-defined]


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
    register(
        monkeypatch,
        Engine("spare", "Spare", "numpy", "NumpyBackend", imports="numpy", install="pip install numpy"),
    )
    yield "spare"
    host = current().hosts.pop("spare", None)
    if host is not None:
        host.stop()
    current().logs.pop("spare", None)
    current().engine_options.pop("spare", None)


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the user is told, also by engines that are started meanwhile."""
    lines: list[str] = []

    def hear(text: str, *_: Any, **__: Any) -> None:
        lines.append(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(messages, "say", hear)
        for host in current().hosts.values():
            if hasattr(host, "_notify"):
                patch.setattr(host, "_notify", hear)
        yield lines
    for host in current().hosts.values():
        if getattr(host, "_notify", None) is hear:
            host._notify = messages.say  # type: ignore[attr-defined]


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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks each test by what it costs; first come the files of few and long tests, so that none of them runs alone."""
    items.sort(key=lambda item: "island" not in item.path.parts)
    for item in items:
        if isinstance(item, pytest.Function):
            mark(item)


def pytest_report_header() -> str:
    """Returns the header line that says which kernelk is under test."""
    return f"kernelk {kernelk.__version__}, Python {sys.version.split()[0]}, numpy {np.__version__}"


@pytest.fixture
def brake(spare: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Brake:
    """The engine "spare" with a brake: its start, its loads and its `exp` can be held up for as long as a test needs.

    Its `exp` also writes to standard output and error, past every buffer of Python's.
    """
    flag = tmp_path_factory.mktemp("brake") / "hold-"
    monkeypatch.setenv("KERNELK_TEST_FLAG", str(flag))
    monkeypatch.setattr(worker_host, "_BOOT", braked(worker_host._BOOT))
    return Brake(str(flag))
