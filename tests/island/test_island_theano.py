"""The Theano backend in its own interpreter: what its optimizer, its aliasing and its destinations may not change."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from helpers.processes import PATIENCE, PROJECT, TESTS

from kernelk.environments.places import require_python

ISLAND = PROJECT / "kernelk" / "backends"


def run_script(tmp_path: Path, *arguments: str) -> str:
    work = tmp_path / "work"
    work.mkdir()
    script = [str(require_python("theano")), str(TESTS / "island" / "island_theano.py")]
    done = subprocess.run(
        [*script, str(ISLAND), str(tmp_path), *arguments], cwd=work, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_without_a_compiler(tmp_path: Path) -> None:
    assert ", 0 failed" in run_script(tmp_path)


@pytest.mark.slow
@pytest.mark.compiled_theano
def test_compiled(tmp_path: Path) -> None:
    assert ", 0 failed" in run_script(tmp_path, "compiled")


@pytest.mark.slow
@pytest.mark.compiled_theano
def test_windows_in_c_agree_with_the_definition(tmp_path: Path) -> None:
    """A third of the cases of convolutions and pooling, which otherwise run without a compiler, as numpy's."""
    settings = {
        "ISLAND_OPS": "conv,conv_input,conv_kernel,max_pool,max_pool_grad,avg_pool,avg_pool_grad,dilated_conv",
        "ISLAND_SAMPLE": "3",
        "ISLAND_OPTIONS": json.dumps({"cache": str(tmp_path)}),
    }
    script = [str(require_python("theano")), str(TESTS / "island" / "island_conformance.py")]
    done = subprocess.run(
        [*script, str(ISLAND), "theano", "TheanoBackend"],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ", 0 failed" in done.stdout, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(done.stdout.rpartition("\n")[0].rpartition("\n")[2].split()[0]) > 100
