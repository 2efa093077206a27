"""Every engine keeps the promises about memory that island_ownership.py lists."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import helpers.island  # noqa: F401
import pytest
from helpers.engines import absent
from helpers.processes import PATIENCE, PROJECT, TESTS
from island_ownership import CHECKS, Engine

from kernelk.backends import lowering
from kernelk.environments.places import require_python
from kernelk.errors import BackendNotInstalledError

HERE = {
    "numpy": "NumpyBackend",
    "tensorflow": "TensorFlowBackend",
    "jax": "JaxBackend",
    "torch": "TorchBackend",
}
# These have an interpreter of their own, in which one process goes through all checks.
APART = {"theano": ("TheanoBackend", {"compiler": ""}), "cntk": ("CNTKBackend", {})}
# As they are under a version that lacks the inner entries which they take for speed
PUBLIC = {"tensorflow, public": "tensorflow", "jax, public": "jax"}


@functools.cache
def engine_here(name: str) -> Engine:
    base = PUBLIC.get(name, name)
    if importlib.util.find_spec(base) is None:
        absent(base, "it is not installed")
    made: Any = getattr(importlib.import_module(f"kernelk.backends.{base}.backend"), HERE[base])({"device": "cpu:0"})
    if name == "tensorflow, public":
        made._prepare, made._make = None, made._make_publicly
    if name == "jax, public":
        made._make, made._block = made._make_publicly, importlib.import_module("jax").block_until_ready
    return Engine(made, lowering)


@functools.cache
def found_apart(name: str, scratch: Path) -> dict[str, str]:
    """What each check says in the interpreter of an engine's workers: "" or how it failed."""
    try:
        python = require_python(name)
    except BackendNotInstalledError as error:
        absent(name, error)
    kind, options = APART[name]
    options = {"scratch": str(scratch), "cache": str(scratch), **options}
    script = TESTS / "island" / "island_ownership.py"
    done = subprocess.run(
        [str(python), str(script), str(PROJECT / "kernelk" / "backends"), name, kind, json.dumps(options)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("apart")


@pytest.mark.parametrize("name", [*HERE, *PUBLIC])
@pytest.mark.parametrize("check", CHECKS)
def test_an_engine_in_this_process(name: str, check: str) -> None:
    if (name, check) == ("tensorflow, public", "a_slot_is_shared_also_where_it_is_read_only"):
        pytest.skip("TensorFlow's public functions copy what they are given")
    CHECKS[check](engine_here(name))


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("check", CHECKS)
def test_an_engine_in_an_interpreter_of_its_own(name: str, check: str, scratch: Path) -> None:
    failure = found_apart(name, scratch)[check]
    assert not failure, failure
