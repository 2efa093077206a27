"""Writes the stub libraries that let CNTK load; `build` calls it after pip and before the check.

CNTK 2.7 links to Open MPI 1.10 (`libmpi.so.12`, `libmpi_cxx.so.1`), which distributions no longer carry, but
calls it in distributed training only. A library that has the symbols and fails politely is enough.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from importlib import resources
from pathlib import Path

from ..backends.elf_stub import build

MPI_ERR_OTHER = 16
LIBMPI = "libmpi.so.12"
LIBMPI_CXX = "libmpi_cxx.so.1"

_CODE = b"\xb8" + struct.pack("<I", MPI_ERR_OTHER) + b"\xc3"  # mov eax, 16; ret


def write(path: Path, functions: Iterable[str] = (), objects: Iterable[str] = ()) -> Path:
    """Write a stub whose SONAME is the file's name; a process that has the old file loaded keeps it."""
    content = build(path.name, functions, objects, _CODE)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_bytes(content)
    partial.chmod(0o755)
    os.replace(partial, path)
    return path


def mpi_symbols() -> tuple[list[str], list[str]]:
    """The functions and the data objects that CNTK 2.7 takes from MPI."""
    text = resources.files("kernelk.environments").joinpath("cntk_mpi_symbols.txt").read_text(encoding="ascii")
    pairs = [line.split() for line in text.splitlines() if line.strip()]
    return [name for kind, name in pairs if kind == "F"], [name for kind, name in pairs if kind == "O"]


def write_mpi_stubs(libs: Path) -> list[Path]:
    """Write both MPI stubs into CNTK's `libs` folder, each with the symbols that the real library has."""
    functions, objects = mpi_symbols()
    cxx = [name for name in functions if name.startswith(("_ZN3MPI", "ompi_mpi_cxx_"))]
    plain = [name for name in functions if name not in cxx]
    return [write(libs / LIBMPI, plain, objects), write(libs / LIBMPI_CXX, cxx)]
