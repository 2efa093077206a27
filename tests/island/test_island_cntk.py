"""The CNTK backend, under the interpreter that its workers have: op by op, then as whole programs."""

import subprocess

import pytest
from helpers.processes import PATIENCE, PROJECT, TESTS

from kernelk.backends.cntk.backend import is_taken_for_old
from kernelk.environments import places

ISLAND = PROJECT / "kernelk" / "backends"

if places.installed_python("cntk") is None:
    pytest.skip("CNTK's environment is not installed (kernelk install cntk)", allow_module_level=True)


def under_cntk(script: str, *arguments: str) -> str:
    command = [str(places.require_python("cntk")), str(TESTS / "island" / script), str(ISLAND), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize(
    ("vendor", "flags", "lacks"),
    [
        ("AuthenticAMD", "sse2 fma avx avx2", True),
        ("HygonGenuine", "avx2 fma", True),
        ("AuthenticAMD", "sse2 avx fma4", False),
        ("GenuineIntel", "fma avx2", False),
    ],
)
def test_mkl_is_told_of_avx2_on_amd_alone(vendor: str, flags: str, lacks: bool) -> None:
    one = f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: a: b\nflags\t\t: {flags}\npower management:\n\n"
    assert is_taken_for_old(one * 2) is lacks
    assert not is_taken_for_old("")


def test_each_op_agrees_with_the_definition():
    assert ", 0 failed" in under_cntk("island_conformance.py", "cntk", "CNTKBackend")


def test_programs_agree_with_the_definition():
    assert ", 0 failed" in under_cntk("island_cntk.py")
