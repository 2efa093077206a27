"""The island gate: `kernelk/backends` compiles and imports under a real Python 3.6, on numpy and nothing else."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import PATIENCE, PROJECT

from kernelk.environments.places import require_python
from kernelk.errors import BackendNotInstalledError

ISLAND = PROJECT / "kernelk" / "backends"
FILES = sorted(ISLAND.rglob("*.py"))
ENGINES = {"tensorflow", "theano", "cntk", "jax", "torch"}

# Files that import their engine when they are imported themselves, which their backend alone does, once it has started.
_PICKLED = "Theano pickles ops into its compile cache by module and name, so they need a module's level"
AFTER_START = {"theano/op_classes.py": _PICKLED, "theano/window_classes.py": _PICKLED}

# Run by Python 3.6 itself: compiles every file, then imports what may be imported without an engine.
_UNDER_36 = """
import importlib, importlib.util, json, os, sys
folder, names, skipped = json.loads(sys.argv[1])
assert sys.version_info[:2] == (3, 6), sys.version
for name in names:
    with open(os.path.join(folder, name), encoding="utf-8") as file:
        compile(file.read(), name, "exec", dont_inherit=True)
before = set(sys.modules)
spec = importlib.util.spec_from_file_location(
    "island", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder])
package = importlib.util.module_from_spec(spec)
sys.modules["island"] = package
spec.loader.exec_module(package)
for name in names:
    if name not in skipped:
        importlib.import_module(".".join(["island", *name[:-3].split("/")]).replace(".__init__", ""))
loaded = {}
for name in set(sys.modules) - before:
    top = name.split(".")[0]
    loaded[top] = str(getattr(sys.modules.get(top), "__file__", None) or "")
print(json.dumps({"version": sys.version.split()[0], "loaded": loaded, "prefix": sys.prefix}))
"""


def place(file: Path) -> str:
    """A file's path in the island: "torch/ops.py"."""
    return file.relative_to(ISLAND).as_posix()


@pytest.fixture(scope="module")
def under_36() -> Any:
    """What Python 3.6 says after it has compiled and imported the island."""
    try:
        python = require_python("theano")
    except BackendNotInstalledError as error:
        required = {name.strip() for name in os.environ.get("KERNELK_REQUIRE", "").split(",")}
        if required & {"theano", "cntk"}:
            pytest.fail(f"the island can't be checked without a Python 3.6: {error}", pytrace=False)
        pytest.skip(f"no Python 3.6 here: {error}")
    names = [place(file) for file in FILES]
    done = subprocess.run(
        [str(python), "-I", "-B", "-W", "error", "-c", _UNDER_36, json.dumps([str(ISLAND), names, list(AFTER_START)])],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        cwd=os.sep,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_python_36_compiles_and_imports_every_file(under_36: Any) -> None:
    assert under_36["version"].startswith("3.6.")
    assert "island" in under_36["loaded"]


def test_only_the_standard_library_and_numpy_are_loaded(under_36: Any) -> None:
    loaded = under_36["loaded"]
    assert not ENGINES & set(loaded)
    assert "kernelk" not in loaded
    installed = {name for name, file in loaded.items() if "site-packages" in file}
    assert installed == {"numpy"}


def imports(file: Path) -> Iterator[tuple[str, int, bool]]:
    """(module, level, whether at module level) of each import statement of a file."""

    def visit(node: ast.AST, top: bool) -> Iterator[tuple[str, int, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield alias.name.split(".")[0], 0, top
            elif isinstance(child, ast.ImportFrom):
                if child.level:
                    # `from . import ops` names the module last.
                    named = [child.module] if child.module else [alias.name for alias in child.names]
                    yield from ((name, child.level, top) for name in named)
                else:
                    yield (child.module or "").split(".")[0], 0, top
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from visit(child, top and not inside)

    return visit(ast.parse(file.read_text(encoding="utf-8"), feature_version=(3, 6)), True)


@pytest.mark.parametrize("file", FILES, ids=place)
def test_a_file_imports_only_its_neighbours_numpy_and_its_own_engine(file: Path) -> None:
    inside = place(file)
    own = inside.partition("/")[0]
    for module, level, top in imports(file):
        if level:
            folder = file.parents[level - 1]
            assert folder == ISLAND or ISLAND in folder.parents, f"{inside} imports {'.' * level}{module}"
            neighbour = folder.joinpath(*module.split("."))
            found = neighbour.with_suffix(".py") if not neighbour.is_dir() else neighbour / "__init__.py"
            assert found.exists(), f"{inside} imports {'.' * level}{module}, which isn't in the island"
            target = place(found)
            if target.partition("/")[0] in ENGINES:
                assert target.partition("/")[0] == own, f"{inside} imports {target}, another engine's"
            if target in AFTER_START:
                assert not top or inside in AFTER_START, f"{inside} may import {target} only once the engine is up"
        elif module in ENGINES:
            assert module == own, f"{inside} imports {module}, another backend's engine"
            assert not top or inside in AFTER_START, f"{inside} imports {module} before anybody has started it"
        else:
            assert module == "numpy" or module in sys.stdlib_module_names, f"{inside} imports {module}"


@pytest.mark.parametrize("name", AFTER_START)
def test_the_exceptions_still_exist(name: str) -> None:
    assert (ISLAND / name).exists()
