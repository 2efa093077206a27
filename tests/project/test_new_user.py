"""What somebody meets who has kernelk and none of the engines: each message is one line, and its command works."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.engines import activate
from helpers.notebooks import run_cells

from kernelk.environments import places

# No engine in the kernel's own environment, and none installed.
NONE_THERE = """
import importlib.util
find = importlib.util.find_spec
hidden = ("tensorflow", "jax", "torch")
importlib.util.find_spec = lambda name, *rest: None if name in hidden else find(name, *rest)
%load_ext kernelk
import kernelk
from kernelk import backend as K
"""


def pip(extra: str) -> str:
    return f'`pip install "kernelk[{extra}]"` (in a notebook: `%pip install "kernelk[{extra}]"`)'


def install(name: str) -> str:
    return f"`kernelk install {name}` (in a notebook: `%kbackend --install {name}`)"


@pytest.fixture
def nothing(tmp_path: Path) -> dict[str, str | None]:
    """The environment of a user with an empty home."""
    home = {
        name: str(tmp_path / name) for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "KERAS_HOME", "KERNELK_ENVS")
    }
    return {**home, "KERNELK_QUIET": None}


def test_every_message_of_the_first_minutes(nothing: dict[str, str | None]) -> None:
    tensorflow = (
        f"BackendNotInstalledError: TensorFlow isn't installed in this notebook's environment ({sys.prefix}); next: "
        f"{pip('tensorflow')}, or kernelk.set_backend('numpy'), which is always available"
    )
    theano = f"BackendNotInstalledError: Theano 1.0.5 is not installed; next: {install('theano')}"
    wanted = {
        "K.eval(K.ones((2,)) + 1.0)": f"{tensorflow} ('tensorflow' is chosen by the default) (cell 2, line 1: ",
        "%kbackend tensorflow": f"{tensorflow} (cell 3, line 1)",
        "%kbackend theano": f"{theano} (cell 4, line 1)",
        "%kbackend theano --no-compiler": f"{theano} (cell 5, line 1)",
        "kernelk.set_backend('theano')": f"{theano} (cell 6, line 1: kernelk.set_backend('theano'))",
        "with kernelk.using('theano'): pass": f"{theano} (cell 7, line 1: with kernelk.using('theano'): pass)",
        "%kbackend --install jax": f"jax needs no environment of its own and is not installed; next: {pip('jax')}",
        "%kbackend tenserflow": "unknown backend 'tenserflow': did you mean 'tensorflow'? available are tens",
        "%kbackend --stop": "(--stop: expected at least one argument); next: %kbackend --stop NAME; %kbackend? shows",
        "%kbackend --install": "next: %kbackend --install NAME; %kbackend? shows examples",
    }
    found = run_cells([NONE_THERE, *wanted], **nothing)
    assert found[0]["error"] is None, found[0]
    for (cell, words), got in zip(wanted.items(), found[1:]):
        assert got["error"] is not None, cell
        assert len(got["out"].strip().splitlines()) == 1, (cell, got)
        assert words in got["out"], (cell, got)


def test_the_table_the_doctor_and_what_works_at_once(nothing: dict[str, str | None]) -> None:
    cells = [
        "%kbackend",
        "%kbackend --doctor tensorflow theano",
        "kernelk.set_backend('numpy')",
        "K.eval(K.ones((2,)) + 1.0).tolist()",
    ]
    found = run_cells([NONE_THERE, *cells], **nothing)
    assert [cell["error"] for cell in found] == [None] * 5, found
    table, doctor = found[1]["value"], found[2]["value"]
    for line in (
        f"tensorflow: next: {pip('tensorflow')}",
        f"theano: next: {install('theano')}",
        "chosen by the default",
    ):
        assert line in table
    assert f"; next: {pip('tensorflow')}" in doctor
    assert "theano: Theano 1.0.5 is not installed" in doctor
    assert found[4]["value"] == "[2.0, 2.0]"


def test_the_active_engine_says_what_it_is_left_without(nothing: dict[str, str | None], tmp_path: Path) -> None:
    """--compiler where there is none: nothing else would show that it has no effect."""
    activate("theano")
    settings = {**nothing, "KERNELK_ENVS": str(places.require_python("theano").parents[2]), "PATH": str(tmp_path)}
    found = run_cells([NONE_THERE, "%kbackend theano", "%kbackend theano --compiler"], **settings)
    assert found[2]["value"] == "theano is already active\nno compiler: g++ isn't found"
