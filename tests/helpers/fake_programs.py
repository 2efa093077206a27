"""Shell scripts in the places of programs: a Python of any version, an installer, whatever a machine may have."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path


def program(path: Path, script: str) -> Path:
    """A shell script as a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def this_python(path: Path) -> Path:
    """A program that is the Python of the tests."""
    return program(path, f'exec {shlex.quote(sys.executable)} "$@"')


def fake_python(path: Path, version: str) -> Path:
    """A program that answers kernelk's question for the version, and does nothing else."""
    answer = {"version": version, "executable": str(path), "fit": True, "shared": True, "base": "/", "prefix": "/"}
    return program(path, f"echo {shlex.quote(json.dumps(answer))}")
