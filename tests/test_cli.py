"""The `kernelk` program, run as its users run it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernelk import __version__, cli, environments

PROJECT = Path(environments.__file__).parent.parent


def kernelk(home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the program on a machine that has no other Python and no environment."""
    environment = {
        "PYTHONPATH": str(PROJECT),
        "HOME": str(home),
        "PATH": "",
        "KERNELK_ENVS": str(home / "envs"),
    }
    command = [sys.executable, "-m", "kernelk", *arguments]
    return subprocess.run(command, env=environment | settings, capture_output=True, text=True, timeout=60)


def problem(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a run that failed."""
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("kernelk: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_version(tmp_path: Path) -> None:
    assert kernelk(tmp_path, "--version").stdout == f"kernelk {__version__}\n"


def test_list_without_any_environment(tmp_path: Path) -> None:
    done = kernelk(tmp_path, "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == list(environments.RECIPES)
    assert "cntk: not installed; next: `kernelk install cntk` (Python 3.6)" in done.stdout
    assert not (tmp_path / "envs").exists()


def test_list_shows_a_half_built_folder(tmp_path: Path) -> None:
    folder = tmp_path / "envs" / environments.folder("theano").name
    folder.mkdir(parents=True)
    assert f"theano: not installed to the end ({folder})" in kernelk(tmp_path, "list").stdout


def test_list_shows_what_is_installed() -> None:
    installed = {name: environments.marker(name) for name in environments.RECIPES}
    command = [sys.executable, "-m", "kernelk", "list"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if "other pins" not in line)
    for name, noted in installed.items():
        if noted is None:
            assert lines[name].startswith("not installed")
        else:
            assert lines[name].startswith("installed, ")
            assert f"Python {noted['python']}, numpy 1.19.5" in lines[name]
            assert str(noted["folder"]) in lines[name]


def test_no_interpreter_is_one_line(tmp_path: Path) -> None:
    line = problem(kernelk(tmp_path, "install", "cntk"))
    assert "CNTK 2.7 needs Python 3.6, and none was found" in line
    assert "`pyenv install 3.6.15` or `conda create -n py36 python=3.6`, then `kernelk install cntk`" in line


def test_a_setting_of_the_wrong_version_is_one_line(tmp_path: Path) -> None:
    line = problem(kernelk(tmp_path, "install", "cntk", KERNELK_PYTHON_CNTK=sys.executable))
    version = ".".join(map(str, sys.version_info[:3]))
    assert f"KERNELK_PYTHON_CNTK names {sys.executable}, but it is Python {version}" in line


def test_a_name_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    done = kernelk(tmp_path, "install", "cntk", "nonsense", "numpy", "theano")
    assert done.returncode == 1
    assert done.stdout == "numpy: already installed; it needs no environment of its own\n"
    first, second, third = done.stderr.splitlines()
    assert "CNTK 2.7 needs" in first
    assert "unknown engine 'nonsense': It is one of cntk, numpy" in second
    assert "Theano 1.0.5 needs" in third


@pytest.mark.parametrize("typed", ["ctnk", "CNTK", "cntk2"])
def test_a_near_name_is_suggested(tmp_path: Path, typed: str) -> None:
    assert "did you mean `kernelk install cntk`?" in problem(kernelk(tmp_path, "install", typed))


@pytest.mark.parametrize("arguments", [[], ["install"], ["instal", "cntk"], ["list", "--nonsense"]])
def test_wrong_usage_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    assert problem(kernelk(tmp_path, *arguments)).endswith("next: `kernelk --help`\n")


def test_an_engine_without_an_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["install", "tensorflow"]) == 1
    assert 'next: `pip install "kernelk[tensorflow]"`' in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert cli.main(["install", "tensorflow"]) == 0
    assert "already installed" in capsys.readouterr().out


def test_the_reader_may_leave(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "KERNELK_ENVS": str(tmp_path)}
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "kernelk", "list"]
    done = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(write)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
