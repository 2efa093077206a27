"""The CNTK backend, under the interpreter that its workers have: op by op, then as whole programs."""

import subprocess

import pytest
from helpers.processes import PATIENCE, PROJECT, TESTS

from kernelk.environments import places

ISLAND = PROJECT / "kernelk" / "backends"

if places.installed_python("cntk") is None:
    pytest.skip("CNTK's environment is not installed (kernelk install cntk)", allow_module_level=True)


def under_cntk(script: str, *arguments: str) -> str:
    command = [str(places.require_python("cntk")), str(TESTS / "island" / script), str(ISLAND), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


def test_each_op_agrees_with_the_definition():
    assert ", 0 failed" in under_cntk("island_conformance.py", "cntk", "CNTKBackend")


def test_programs_agree_with_the_definition():
    assert ", 0 failed" in under_cntk("island_cntk.py")
