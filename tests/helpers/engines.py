"""The engines of the box: which there are, which of them must be there, and how a test gets one."""

from __future__ import annotations

import os

import pytest

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.engines import registry
from kernelk.errors import BackendNotInstalledError
from kernelk.session.current import current
from kernelk.source import CELL

ENGINES = ("numpy", "tensorflow", "theano", "cntk", "jax", "torch")
WORKERS = ("tensorflow", "theano", "cntk", "jax", "torch")


def required() -> set[str]:
    """The engines whose absence fails the suite."""
    return {name.strip() for name in os.environ.get("KERNELK_REQUIRE", "").split(",") if name.strip()}


def absent(name: str, reason: object) -> None:
    """Ends the test of an engine that isn't there: failed where it is required, else skipped with the reason."""
    line = " ".join(f"{name} isn't available here: {reason}".split())
    if name in required():
        pytest.fail(f"{line} (KERNELK_REQUIRE names it)", pytrace=False)
    pytest.skip(line)


def require_installed(name: str) -> None:
    """Ends the test as `absent` says, unless the engine is there."""
    engine = registry.engine(name)
    if not engine.in_kernel:
        try:
            registry.interpreter(engine)
        except BackendNotInstalledError as error:
            absent(name, error)


def activate(name: str) -> None:
    """Makes the engine active, or ends the test as `absent` says."""
    require_installed(name)
    # An engine that is there and doesn't start is a failure, not an absence.
    kernelk.set_backend(name)


def reset() -> None:
    """Resets what a test may have changed to the state of a new session; workers keep running."""
    K.clear_session()
    config.reload()
    CELL.number = 0
    session = current()
    session.state.seeds.restart(None)
    session.swaps.clear()
    session.active, session.chosen_by = "numpy", "the tests"
