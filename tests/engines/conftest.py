"""What the tests on values that stay with a worker share."""

from __future__ import annotations

import pytest
from helpers.engines import require_installed

import kernelk
from kernelk import config


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call's new values stay with its worker, and nothing is fetched before it is needed."""
    monkeypatch.setattr(config.LIMITS, "commit_bytes", 0)
    monkeypatch.setattr(config.LIMITS, "repeat_seconds", 1e6)


@pytest.fixture
def light(spare: str) -> str:
    kernelk.set_backend(spare)
    return spare


@pytest.fixture(params=["jax", "tensorflow", "torch", "theano", "cntk"])
def real(request: pytest.FixtureRequest) -> str:
    require_installed(request.param)
    kernelk.set_backend(request.param)
    return str(request.param)
