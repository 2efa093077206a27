"""The suite's own rule: an engine that is missing is never passed over in silence."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from helpers.processes import PATIENCE, TESTS, environment


def probe(tmp_path: Path, **settings: str | None) -> subprocess.CompletedProcess[str]:
    """Runs a one-line test on Theano, where no environment for it exists."""
    # A file of its own beside a copy of the fixture: the suite's real conftest decides.
    (tmp_path / "conftest.py").write_text((TESTS / "conftest.py").read_text())
    (tmp_path / "test_probe.py").write_text("def test_it(backend):\n    assert backend == 'theano'\n")
    command = [sys.executable, "-m", "pytest", "-rsf", "-p", "no:cacheprovider", "-k", "theano", "test_probe.py"]
    return subprocess.run(
        command,
        cwd=tmp_path,
        env=environment(KERNELK_ENVS=str(tmp_path / "none"), XDG_DATA_HOME=str(tmp_path), **settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def test_a_missing_engine_is_skipped_with_its_reason(tmp_path: Path) -> None:
    done = probe(tmp_path, KERNELK_REQUIRE=None)
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout
    reasons = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
    assert len(reasons) == 1
    assert re.search(r"theano isn't available here: .*kernelk install theano", reasons[0])


def test_a_missing_engine_fails_where_it_is_required(tmp_path: Path) -> None:
    done = probe(tmp_path, KERNELK_REQUIRE="tensorflow, theano,cntk")
    assert done.returncode == 1, done.stdout
    assert "1 error" in done.stdout
    assert "theano isn't available here" in done.stdout
    assert "KERNELK_REQUIRE names it" in done.stdout


def test_another_required_engine_changes_nothing(tmp_path: Path) -> None:
    assert "1 skipped" in probe(tmp_path, KERNELK_REQUIRE="numpy").stdout


def test_the_settings_are_not_the_users() -> None:
    from kernelk import config

    assert str(config.path()).startswith(os.environ["KERAS_HOME"])
    assert config.path().parent != Path.home() / ".keras"
