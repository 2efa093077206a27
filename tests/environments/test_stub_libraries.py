"""Stub libraries: any names make one that loads, and the MPI stubs that CNTK loads."""

from __future__ import annotations

import _ctypes
import ctypes
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelk.backends import elf_stub
from kernelk.environments import mpi_stub

on_elf = pytest.mark.skipif(
    (sys.platform, os.uname().machine) != ("linux", "x86_64"), reason="stubs are ELF64 for x86-64 Linux"
)

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=300)


@on_elf
@settings(deadline=None, max_examples=60)
@given(functions=st.sets(names, max_size=200), objects=st.sets(names, max_size=200), absent=names)
def test_any_names_make_a_library_that_loads(functions: set[str], objects: set[str], absent: str) -> None:
    objects -= functions
    with tempfile.TemporaryDirectory() as folder:
        path = mpi_stub.write(Path(folder) / "libany.so.1", functions, objects)
        library = ctypes.CDLL(str(path))
    try:
        assert all(library[name]() == 16 for name in functions)
        places = {}
        for name in objects:
            data = (ctypes.c_char * 64).in_dll(library, name)
            assert data.raw == bytes(64)
            data.raw = b"\xff" * 64  # writable, and no other object's bytes
            places[name] = ctypes.addressof(data)
        assert len(set(places.values())) == len(objects)
        if absent not in functions | objects and not hasattr(ctypes.CDLL(None), absent):
            with pytest.raises(AttributeError):
                library[absent]
    finally:
        _ctypes.dlclose(library._handle)


@pytest.mark.parametrize("functions", [[""], ["a\0b"], ["a", "a"]])
def test_impossible_names_are_refused(functions: list[str]) -> None:
    with pytest.raises(ValueError, match="name"):
        elf_stub.build("libx.so", functions, [], b"\xc3")


@on_elf
def test_the_mpi_stubs_load_globally_and_leave_the_stack_alone(tmp_path: Path) -> None:
    paths = mpi_stub.write_mpi_stubs(tmp_path)
    assert [path.name for path in paths] == ["libmpi.so.12", "libmpi_cxx.so.1"]
    functions, objects = mpi_stub.mpi_symbols()
    assert (len(functions), len(objects)) == (167, 8)
    script = f"""
import ctypes
for path in {[str(path) for path in paths]!r}:
    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
everything = ctypes.CDLL(None)
assert all(everything[name]() == 16 for name in {functions!r})
assert all((ctypes.c_char * 64).in_dll(everything, name).raw == bytes(64) for name in {objects!r})
stack = [line for line in open("/proc/self/maps") if "[stack]" in line]
assert stack and "x" not in stack[0].split()[1], stack
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_no_segment_is_both_writable_and_executable() -> None:
    content = elf_stub.build("libx.so.1", ["f"], ["d"], b"\xc3")
    headers = [struct.unpack_from("<II", content, 64 + 56 * index) for index in range(4)]
    assert sorted(kind for kind, _ in headers) == [1, 1, 2, 0x6474E551]
    assert all(flags & 3 != 3 for _, flags in headers)
