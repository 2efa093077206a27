"""A sample of Keras 2.3.1's own tests, which `make keras-suite` runs all of, and the list of those that aren't run."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import filelock
import pytest

SUITE = Path(__file__).resolve().parent


def test_some_of_kerass_own_tests() -> None:
    command = [sys.executable, str(SUITE / "run.py"), "numpy", "--files", "layers/cudnn_recurrent_test", "merge_test"]
    done = subprocess.run([*command, "io_utils_test"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    name, collected, passed, failed, excluded, *_ = done.stdout.splitlines()[-1].split()
    assert name == "numpy"
    assert int(failed) == 0
    assert int(collected) == int(passed) + int(excluded)
    assert "excluded: the engine's own objects: times cuDNN on a GPU" in done.stdout


def test_reasons_for_leaving_a_test_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(SUITE))
    import exclusions

    assert "test_relu_tf_ops" in exclusions.of("keras/layers/advanced_activations_test.py", "jax")
    assert exclusions.of("keras/layers/core_test.py", "jax") == {}
    (tmp_path / "excluded.txt").write_text("a_test.py::test_a: it fails: some day\n")
    monkeypatch.setattr(exclusions, "SUITE", tmp_path)
    with pytest.raises(ValueError, match=r"network, downloads, the engine's own objects, not: a_test.py::test_a"):
        exclusions.of("a_test.py", "jax")
    (tmp_path / "excluded.txt").write_text("a_test.py::test_a on theano: network: asks a host\n")
    assert exclusions.of("a_test.py", "theano") == {"test_a": "network: asks a host"}
    assert exclusions.of("a_test.py", "jax") == {}


def test_runs_that_begin_at_the_same_time_fetch_in_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(SUITE))
    import sources

    packages, into, requirements = tmp_path / "packages", tmp_path / "into", tmp_path / "requirements.txt"
    packages.mkdir()
    with tarfile.open(packages / "some-1.0.tar.gz", "w:gz") as archive:
        archive.add(SUITE / "run.py", "some-1.0/run.py")
    digest = hashlib.sha256((packages / "some-1.0.tar.gz").read_bytes()).hexdigest()
    requirements.write_text(f"some==1.0 --hash=sha256:{digest}\n")
    plain, turned_away = tarfile.open, []

    def opened(*args: Any, **options: Any) -> Any:
        try:
            filelock.FileLock(into / "fetching.lock").acquire(timeout=0)
        except filelock.Timeout:
            turned_away.append(args)
        return plain(*args, **options)

    monkeypatch.setattr(sources.tarfile, "open", opened)
    for _ in range(2):
        assert sources.fetched(requirements, packages, into) == [into / "some-1.0"]
        assert (into / "some-1.0" / "run.py").read_bytes() == (SUITE / "run.py").read_bytes()
    assert len(turned_away) == 1
