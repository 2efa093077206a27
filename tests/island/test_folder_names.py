"""A folder an engine, with the same files in each; and `import numpy` finds numpy, never the folder of that name."""

from __future__ import annotations

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import PATIENCE, PROJECT

from kernelk.backends.base import Backend
from kernelk.engines import worker_host
from kernelk.environments.places import require_python

ISLAND = PROJECT / "kernelk" / "backends"
FILES = sorted(ISLAND.rglob("*.py"))
ENGINES = {
    "numpy": "NumpyBackend",
    "tensorflow": "TensorFlowBackend",
    "theano": "TheanoBackend",
    "cntk": "CNTKBackend",
    "jax": "JaxBackend",
    "torch": "TorchBackend",
}
# In every engine's folder
COMMON = {"__init__.py", "backend.py", "ops.py", "elementwise.py", "windows.py", "profiler.py"}
MISSING = {"numpy": {"profiler.py": "numpy has no profiler that tells of single ops"}}
# What one engine alone needs; each file's first sentence says what for.
OWN = {
    "tensorflow": {"denormals.py"},
    "theano": {
        "building.py",
        "op_classes.py",
        "rewrites.py",
        "starting.py",
        "window_classes.py",
        "windows.cpp",
    },
    "cntk": {"known.py", "limits.py", "memory.py", "nodes.py", "stages.py", "updating.py"},
    "jax": {"denormals.py", "draws.py", "gpu.py", "tracing.py"},
    "torch": {"draws.py", "gpu.py", "precision.py"},
}
# Not imported before their engine: see test_island_gate.py.
AFTER_START = {"theano.op_classes", "theano.window_classes"}

# Where `import NAME` finds each engine once the whole island is imported: null where it is not installed.
_FOUND = """
import importlib, importlib.util
for name in {modules!r}:
    importlib.import_module("kernelk.backends." + name)
found = {{}}
for name in {engines!r}:
    spec = importlib.util.find_spec(name)
    found[name] = spec and (spec.origin or str(list(spec.submodule_search_locations)))
import numpy
found["numpy itself"] = numpy.__file__
print(json.dumps(found))
"""


def dotted(file: Path) -> str:
    return ".".join(file.relative_to(ISLAND).with_suffix("").parts).replace(".__init__", "")


def found(python: str | Path, *flags: str, boot: str, arguments: list[Any]) -> dict[str, str | None]:
    names = [dotted(file) for file in FILES if file != ISLAND / "__init__.py"]
    code = boot + _FOUND.format(modules=[name for name in names if name not in AFTER_START], engines=list(ENGINES))
    done = subprocess.run(
        [str(python), *flags, "-c", code, json.dumps(arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    places: dict[str, str | None] = json.loads(done.stdout)
    return places


def as_a_worker(python: str | Path) -> dict[str, str | None]:
    """In a process that has begun as a worker does, up to where its loop would start."""
    boot, last, _ = worker_host._BOOT.partition('importlib.import_module("kernelk.backends.serving.worker")')
    assert last
    return found(python, "-I", boot=boot, arguments=[os.getpid(), str(ISLAND), 0, "", "", {"scratch": ""}, []])


def outside(places: dict[str, str | None], *there: str) -> None:
    assert {name for name, place in places.items() if place} >= {"numpy", "numpy itself", *there}
    for name, place in places.items():
        assert place is None or str(PROJECT / "kernelk") not in place, f"import {name} finds {place}"


def test_an_engine_is_found_in_the_notebooks_process() -> None:
    outside(found(sys.executable, boot=f"import json, sys; sys.path.append({str(PROJECT)!r})\n", arguments=[]))


def test_an_engine_is_found_in_a_worker() -> None:
    outside(as_a_worker(sys.executable))


def test_an_engine_is_found_under_python_36() -> None:
    python = require_python("theano")
    places = as_a_worker(python)
    outside(places, "theano")
    assert places["torch"] is None


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_has_the_same_files(name: str) -> None:
    files = {file.name for file in (ISLAND / name).iterdir() if file.is_file()}
    assert files == (COMMON - set(MISSING.get(name, ()))) | OWN.get(name, set())


def test_every_folder_is_an_engines_or_the_serving_side() -> None:
    folders = {folder.name for folder in ISLAND.iterdir() if folder.is_dir() and folder.name != "__pycache__"}
    assert folders == {*ENGINES, "serving"}


@pytest.mark.parametrize("name", ENGINES)
def test_the_class_and_the_table_lie_apart(name: str) -> None:
    parts = {part: importlib.import_module(f"kernelk.backends.{name}.{part}") for part in ("elementwise", "windows")}
    table = importlib.import_module(f"kernelk.backends.{name}.ops").OPS
    for part, module in parts.items():
        own = getattr(module, "OPS", None) or module.MAKERS
        assert own, part
        assert set(own) <= set(table), part
    kind = getattr(importlib.import_module(f"kernelk.backends.{name}.backend"), ENGINES[name])
    assert issubclass(kind, Backend)
    assert set(table) <= set(kind.ops)
    tree = ast.parse((ISLAND / name / "backend.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert not imported & {"registrar", "window_ops", "op", "maker", "promising"}, "an op belongs in ops.py"


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_no_absolute_import_means_a_neighbour(file: Path) -> None:
    """Where a folder were ever on the path, `import profiler` or `import windows` would find the neighbour."""
    neighbours = {other.stem for other in file.parent.glob("*.py")}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names.append(str(node.module))
        for name in names:
            assert name.partition(".")[0] not in neighbours, f"{dotted(file)} imports {name}"


@pytest.mark.parametrize("file", FILES, ids=dotted)
def test_every_file_says_what_it_is(file: Path) -> None:
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    assert doc, dotted(file)
