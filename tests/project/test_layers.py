"""Each package imports only packages below it, and there is no circle of modules."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.processes import PATIENCE

PROJECT = Path(__file__).resolve().parents[2]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """import-linter with the contracts of pyproject.toml, on the kernelk of a folder."""
    code = "import sys; sys.path.insert(0, ''); from importlinter.cli import lint_imports_command as run; run()"
    command = [sys.executable, "-c", code, "--no-logo", "--no-cache"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE)


def test_the_contracts_are_kept() -> None:
    done = lint_imports(PROJECT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 kept, 0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("graph/rules.py", "from ..ops import dtypes", "A package imports only packages below it"),
        ("backends/base.py", "from .. import arrays", "A package imports only packages below it"),
        ("session/session.py", "def late():\n    from . import swap", "No circle of modules"),
        ("session/session.py", "import kernelk", "Nothing below the entry points imports kernelk itself"),
    ],
)
def test_an_import_that_runs_up_is_found(module: str, line: str, broken: str, tmp_path: Path) -> None:
    shutil.copytree(PROJECT / "kernelk", tmp_path / "kernelk", ignore=shutil.ignore_patterns("__pycache__", "front"))
    shutil.copy(PROJECT / "pyproject.toml", tmp_path)
    path = tmp_path / "kernelk" / module
    path.write_text(path.read_text(encoding="utf-8") + f"\n{line}\n", encoding="utf-8")
    done = lint_imports(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert any(text.startswith(broken) and text.endswith("BROKEN") for text in done.stdout.splitlines()), done.stdout
