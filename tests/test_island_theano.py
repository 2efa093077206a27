"""The Theano backend in its own interpreter: what its optimizer, its aliasing and its destinations may not change."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from kernelk.environments import require_python

HERE = Path(__file__).resolve().parent
ISLAND = HERE.parent / "kernelk" / "backends"


def run_script(tmp_path: Path, *arguments: str) -> str:
    work = tmp_path / "work"
    work.mkdir()
    script = [str(require_python("theano")), str(HERE / "island_theano.py")]
    done = subprocess.run(
        [*script, str(ISLAND), str(tmp_path), *arguments], cwd=work, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    return done.stdout


def test_without_a_compiler(tmp_path: Path) -> None:
    assert ", 0 failed" in run_script(tmp_path)


@pytest.mark.compiled_theano
def test_compiled(tmp_path: Path) -> None:
    assert ", 0 failed" in run_script(tmp_path, "compiled")
