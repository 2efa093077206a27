"""The `kernelk` program, run as its users run it."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.fake_programs import program
from helpers.processes import PATIENCE, PROJECT, wait_until

from kernelk import __version__
from kernelk.cli import main
from kernelk.engines import registry
from kernelk.environments import places
from kernelk.environments.recipes import RECIPES


def kernelk(home: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run the program on a machine that has no other Python and no environment."""
    environment = {
        "PYTHONPATH": str(PROJECT),
        "HOME": str(home),
        "PATH": "",
        "KERNELK_ENVS": str(home / "envs"),
    }
    command = [sys.executable, "-m", "kernelk", *arguments]
    return subprocess.run(command, env=environment | settings, capture_output=True, text=True, timeout=PATIENCE)


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
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == registry.names()
    assert "cntk: not installed; next: `kernelk install cntk` (Python 3.6)" in done.stdout
    assert not (tmp_path / "envs").exists()


def test_list_shows_a_half_built_folder(tmp_path: Path) -> None:
    folder = tmp_path / "envs" / places.folder("theano").name
    folder.mkdir(parents=True)
    assert f"theano: only partly installed ({folder})" in kernelk(tmp_path, "list").stdout


def test_list_shows_what_is_installed() -> None:
    installed = {name: places.marker(name) for name in RECIPES}
    command = [sys.executable, "-m", "kernelk", "list"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines() if "other pins" not in line)
    for name, noted in installed.items():
        if noted is None:
            assert lines[name].startswith("not installed")
        else:
            assert lines[name].startswith("installed, ")
            assert f"Python {noted['python']}, numpy 1.19.5" in lines[name]
            assert str(noted["folder"]) in lines[name]
    for name in set(registry.names()) - set(RECIPES):
        engine = registry.engine(name)
        if registry.installed(name):
            version = registry.version(engine)
            assert version
            assert lines[name].startswith(f"installed, {engine.title} {version}, Python {sys.version.split()[0]}, in ")
            assert lines[name].endswith(sys.prefix)
        else:
            assert lines[name] == f"not installed; next: `{engine.install}`"


def test_no_interpreter_is_one_line(tmp_path: Path) -> None:
    line = problem(kernelk(tmp_path, "install", "cntk"))
    assert "CNTK 2.7 needs Python 3.6, and none was found" in line
    get = "`pyenv install 3.6.15` or `conda create -n py36 -c conda-forge python=3.6`"
    assert f"nor conda, mamba or uv, which could create one; next: {get}, then `kernelk install cntk`" in line


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
    assert "unknown engine 'nonsense': available are cntk, jax, keras2, numpy" in second
    assert "Theano 1.0.5 needs" in third


@pytest.mark.parametrize("typed", ["ctnk", "CNTK", "cntk2"])
def test_a_near_name_is_suggested(tmp_path: Path, typed: str) -> None:
    assert "did you mean `kernelk install cntk`?" in problem(kernelk(tmp_path, "install", typed))


@pytest.mark.parametrize(
    "arguments", [[], ["instal", "cntk"], ["list", "--nonsense"], ["bundle", "cntk"], ["uninstall"]]
)
def test_wrong_usage_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    assert problem(kernelk(tmp_path, *arguments)).endswith("next: `kernelk --help`\n")


def test_an_install_of_nothing_is_one_line(tmp_path: Path) -> None:
    assert problem(kernelk(tmp_path, "install")).endswith(
        "name an engine, or a bundle with --from; next: `kernelk list`\n"
    )


# A package that can be imported, under the name of one of its builds.
def with_package(folder: Path, module: str, distribution: str) -> str:
    (folder / module).mkdir(parents=True)
    (folder / module / "__init__.py").write_text("raise AssertionError('it need not be imported')")
    about = folder / f"{distribution.replace('-', '_')}-9.8.7.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 9.8.7\n")
    return os.pathsep.join([str(folder), str(PROJECT)])


@pytest.mark.parametrize("build", ["tensorflow", "tensorflow-cpu"])
def test_an_engine_of_the_kernels_own_environment_is_used_from_there(tmp_path: Path, build: str) -> None:
    path = with_package(tmp_path / "packages", "tensorflow", build)
    done = kernelk(tmp_path, "install", build, PYTHONPATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{build}: already installed; it needs no environment of its own\n"
    script = (
        "import sys, kernelk.engines.registry as r; e = r.engine('tensorflow');"
        "print(str(r.interpreter(e)) == sys.executable, r.version(e))"
    )
    environment = os.environ | {"PYTHONPATH": path}
    asked = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert asked.stdout == "True 9.8.7\n", asked.stderr
    listed = kernelk(tmp_path, "list", PYTHONPATH=path).stdout
    assert "tensorflow: installed, TensorFlow 9.8.7, Python " in listed
    line = problem(kernelk(tmp_path, "uninstall", build, PYTHONPATH=path))
    assert line.endswith(f"next: `{sys.executable} -m pip uninstall {build}`\n")


@pytest.mark.parametrize("build", ["tensorflow", "tensorflow-cpu"])
def test_an_engine_that_only_pip_installs(
    build: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["install", build]) == 1
    assert f'next: `pip install "kernelk[{build}]"`' in capsys.readouterr().err
    assert main(["uninstall", build]) == 0
    assert capsys.readouterr().out == f"{build}: not installed, nothing to remove\n"


def test_uninstall(tmp_path: Path) -> None:
    place = tmp_path / "envs" / places.folder("theano").name
    for folder in (place, place.with_name("theano-0123456789")):
        folder.mkdir(parents=True)
        (folder / "file").write_bytes(bytes(2_000_000))
    assert f"theano: {place.with_name('theano-0123456789')} was built with other pins, 2 MB" in (
        kernelk(tmp_path, "list").stdout
    )
    done = kernelk(tmp_path, "uninstall", "theano", "nonsense", "cntk")
    assert done.returncode == 1
    assert done.stdout.count("theano: removed ") == 2
    assert done.stdout.endswith("cntk: not installed, nothing to remove\n")
    assert done.stderr.startswith("kernelk: unknown engine 'nonsense'")
    assert not place.exists()


def test_the_reader_may_leave(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "KERNELK_ENVS": str(tmp_path)}
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "kernelk", "list"]
    done = subprocess.run(command, env=environment, stdout=write, stderr=subprocess.PIPE, text=True, timeout=PATIENCE)
    os.close(write)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr


def test_ctrl_c_is_one_line_and_leaves_nothing_installed(tmp_path: Path) -> None:
    slow = program(tmp_path / "bin" / "conda", f"echo solving > {tmp_path / 'begun'}; /bin/sleep 100")
    settings = {"PYTHONPATH": str(PROJECT), "HOME": str(tmp_path), "PATH": str(slow.parent)}
    command = [sys.executable, "-m", "kernelk", "install", "cntk"]
    process = subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert wait_until((tmp_path / "begun").exists)
    process.send_signal(signal.SIGINT)
    _, problems = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert problems == "kernelk: stopped; the installation was not completed; next: run the same command again\n"
    assert "cntk: not installed; next: `kernelk install cntk`" in kernelk(tmp_path, "list").stdout
