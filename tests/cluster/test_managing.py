"""Engines are installed, removed, listed and examined on the machines of a cluster, as on this one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.clusters import LocalCluster, hide, local_cluster, wait_for
from helpers.engines import require_installed
from helpers.fake_programs import program
from helpers.machines import Lines, another_machine, gpus, settings
from helpers.processes import PATIENCE, alive, environment

import kernelk
from kernelk import __version__, magics
from kernelk import backend as K
from kernelk.cli.main import main
from kernelk.display.commands import in_shell_and_notebook
from kernelk.engines import registry
from kernelk.environments import places
from kernelk.environments.recipes import RECIPES
from kernelk.errors import ArgumentError, BackendNotInstalledError, EngineError, InstallError
from kernelk.manage import doctor_report, elsewhere
from kernelk.remote import clusters
from kernelk.session.current import current

HERE = socket.gethostname()


@pytest.fixture(scope="module")
def lab() -> Iterator[LocalCluster]:
    with local_cluster("lab", 2) as cluster:
        yield cluster


@pytest.fixture
def empty(lab: LocalCluster, tmp_path: Path) -> Iterator[Path]:
    """Machines with no environment and no other Python; the folder that environments go to."""
    folder = tmp_path / "envs"
    bare = {"KERNELK_ENVS": str(folder), "XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": ""}
    kept = [name for name in os.environ if name.startswith(("KERNELK_PYTHON", "CONDA", "MAMBA", "PYENV", "UV_"))]
    with settings(lab, **dict.fromkeys(kept), **bare):
        yield folder


def installed_by_hand(folder: Path, name: str) -> Path:
    """An environment that looks complete."""
    recipe = RECIPES[name]
    place = folder / places.folder_name(recipe, recipe.pythons[0])
    python = place / "bin" / "python"
    program(python, "exit 0")
    marker = {"recipe": recipe.hash(recipe.pythons[0]), "build": 1, "python": "3.6.15", "engine": "1.0.5"}
    marker |= {"versions": {"numpy": "1.19.5"}, "files": {}, "bytes": 12, "kernelk": __version__}
    (place / places.MARKER).write_text(json.dumps(marker))
    return place


def test_an_install_there_is_reported_here(lab: LocalCluster, empty: Path) -> None:
    place = installed_by_hand(empty, "theano")
    said = Lines()
    assert kernelk.install("theano", said, on="lab") == place / "bin" / "python"
    assert kernelk.install("theano@lab", said) == place / "bin" / "python"
    assert said == [f"theano@lab: already installed in {place}"] * 2
    assert kernelk.install("numpy", said, on=lab.cluster) == Path(sys.executable)
    assert said[-1] == "numpy@lab: already installed; it needs no environment of its own"
    del said[:]
    assert kernelk.uninstall("theano", said, on="lab") == [place]
    assert said == [f"theano@lab: removed {place}, 0 MB"]
    assert not place.exists()


def test_an_engine_that_is_not_there_yet_has_the_command(lab: LocalCluster, empty: Path) -> None:
    w = K.variable([1.0, 2.0])
    with pytest.raises(BackendNotInstalledError) as caught:
        kernelk.set_backend("theano", on="lab")
    step = "`kernelk install theano --on lab` (in a notebook: `%kbackend --install theano --on lab`)"
    assert str(caught.value) == f"Theano 1.0.5 is not installed on {HERE}; next: {step}"
    assert current().active == "numpy"
    assert K.get_value(w).tolist() == [1.0, 2.0]


def test_what_stands_in_its_way_is_said_of_that_machine(lab: LocalCluster, empty: Path) -> None:
    with pytest.raises(BackendNotInstalledError) as caught:
        kernelk.install("theano", Lines(), on="lab")
    words = str(caught.value)
    assert words.startswith(f"on {HERE}: Theano 1.0.5 needs Python 3.6 or 3.8, and none was found")
    assert f"; next: on {HERE}: " in words
    assert "\n" not in words
    with pytest.raises(InstallError, match=f"on {HERE}: numpy is in the environment that kernelk itself runs in"):
        kernelk.uninstall("numpy", Lines(), on="lab")


class Endless:
    """A Python 3.6 whose `venv` takes for ever, in the process `pid`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "bin" / "python3.6"
        self._pid = folder / "pid"
        answer = {"version": "3.6.15", "fit": True, "shared": True, "base": "/", "prefix": "/"}
        answer["executable"] = str(self.path)
        forever = f"exec {sys.executable} -c 'import time; time.sleep(1e6)'"
        venv = f"*'-m venv'*) echo $$ > {self._pid}; {forever};;"
        program(self.path, f"case \"$*\" in {venv} *) echo '{json.dumps(answer)}';; esac")

    @property
    def pid(self) -> int:
        return int(self._pid.read_text().strip() or 0) if self._pid.exists() else 0


@pytest.fixture
def endless(lab: LocalCluster, empty: Path, tmp_path: Path) -> Iterator[Endless]:
    python = Endless(tmp_path)
    with settings(lab, KERNELK_PYTHON_THEANO=str(python.path)):
        yield python


def meanwhile(endless: Endless, said: Lines, act: Callable[[], object]) -> None:
    """Acts in a thread, once an install runs and has said so."""

    def run() -> None:
        assert wait_for(lambda: endless.pid > 0 and len(said) > 0)
        act()

    threading.Thread(target=run, daemon=True).start()


def test_progress_comes_while_it_runs_and_ctrl_c_ends_it_there(
    lab: LocalCluster, empty: Path, endless: Endless
) -> None:
    said = Lines()
    main = threading.main_thread().ident
    assert main is not None
    meanwhile(endless, said, lambda: signal.pthread_kill(main, signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        kernelk.install("theano", said, on="lab")
    assert "building with Python 3.6.15" in said[0]
    assert said[0].startswith("theano@lab: [")
    # It was waited for until it had cleared up.
    assert not alive(endless.pid)
    assert sorted(path.name for path in empty.iterdir()) == ["theano.lock", "theano.log"]
    assert elsewhere.machines("lab")[0].carry_out("list", {"on": "lab"}, said.append) is None


def test_an_error_there_names_commands_of_that_machine(lab: LocalCluster, tmp_path: Path) -> None:
    machine = elsewhere.machines("lab")[0]
    get = in_shell_and_notebook('pip install "kernelk[jax]"')
    error = BackendNotInstalledError("jax is not installed", allowed="it is a package", next_step=get)
    error.remark("as pip says")
    raised = machine._raised(error.as_dict())
    assert type(raised) is BackendNotInstalledError
    words = f'on {HERE}: jax is not installed; it is a package; next: on {HERE}: `pip install "kernelk[jax]"` '
    assert str(raised) == f"{words}(as pip says)"
    # The process that was to do it can't even start Python.
    with settings(lab, PYTHONHOME=str(tmp_path)), pytest.raises(InstallError) as caught:
        kernelk.install("theano", Lines(), on="lab")
    assert re.match(f"on {HERE}: the process that was to install ended: .*; next: on {HERE}: ", str(caught.value))
    assert "\n" not in str(caught.value)


def test_each_machine_of_a_cluster_is_asked_once(lab: LocalCluster, empty: Path) -> None:
    place = installed_by_hand(empty, "theano")
    assert [machine.engines for machine in elsewhere.machines("lab")] == [2]
    with another_machine(lab, 1, "attic"):
        said = Lines()
        kernelk.install("theano", said, on="lab")
        assert said == [f"theano@lab on {name}: already installed in {place}" for name in (HERE, "attic")]
        # Where it fails, the other one isn't kept from it.
        removed = Lines()
        kernelk.uninstall("theano", removed, on="lab")
        assert removed[1] == "theano@lab on attic: not installed, nothing to remove"
        failed = Lines()
        with pytest.raises(BackendNotInstalledError, match=f"on {HERE}: Theano 1.0.5 needs"):
            kernelk.install("theano", failed, on="lab")
        assert [line.partition(": Theano")[0] for line in failed] == ["on attic"]
        report = kernelk.doctor("numpy", on="lab")
        facts = dict(report.machine)
        assert facts["lab"] == f"2 engines of ipyparallel on 2 machines; kernelk's workers run with engine 0, on {HERE}"
        assert facts["also attic"].startswith(f"kernelk {__version__}, Python {sys.version.split()[0]}")


def test_another_version_there(lab: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "__version__", "0.0.7")
    monkeypatch.setattr(doctor_report, "__version__", "0.0.7")
    monkeypatch.setattr(doctor_report, "_ipyparallel", lambda: "7.1.0")
    with pytest.raises(
        EngineError, match=rf"kernelk is {__version__} on {HERE}, and 0\.0\.7 here; next: on {HERE}: `pip"
    ):
        kernelk.install("theano", Lines(), on="lab")
    report = kernelk.doctor(["numpy", "torch"], on="lab")
    assert [engine.state for engine in report.engines] == ["not tried"] * 2
    assert not report.passed
    kernel, parallel = report.problems
    assert f"kernelk is {__version__} on {HERE}, and 0.0.7 here: no engine can run there; next: on {HERE}" in kernel
    assert re.search(rf"ipyparallel is \d.* on {HERE}, and 7\.1\.0 here.*; next: on {HERE}: .*==7\.1\.0`", parallel)


def test_the_doctor_tells_of_that_machine(lab: LocalCluster, empty: Path) -> None:
    lab.client[:].apply_sync(hide, "jax")
    with gpus(lab, ["NVIDIA H200", "NVIDIA H200"]):
        report = kernelk.doctor(["numpy", "jax", "theano"], on="lab")
    facts = dict(report.machine)
    assert facts[f"kernelk on {HERE}"].startswith(f"{__version__}, Python")
    assert facts[f"GPUs on {HERE}"] == "2 x NVIDIA H200"
    assert any(name == f"environments on {HERE}" and str(empty) in words for name, words in report.machine)
    assert "kernelk" not in facts, "nothing is said of this machine"
    states = {engine.name: engine.state for engine in report.engines}
    assert states == {"numpy@lab": "works", "jax@lab": "not installed", "theano@lab": "not installed"}
    advice = {engine.name: engine.advice() for engine in report.engines}
    assert f"Theano 1.0.5 is not installed on {HERE}" in advice["theano@lab"]
    assert advice["jax@lab"].endswith('next: on lab: `pip install "kernelk[jax]"`')
    assert "next: `kernelk install theano --on lab`" in advice["theano@lab"]
    with pytest.raises(ArgumentError, match="no cluster is named 'lob': did you mean 'lab'"):
        kernelk.doctor("numpy", on="lob")


def test_the_trials_share_one_connection(lab: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """They run in threads, which would make one each, and import ipyparallel at the same time."""
    import ipyparallel

    lab.client[:].apply_sync(hide, "jax")
    clusters.connected("lab").close()
    made, client = [], ipyparallel.Client

    def counted(*arguments: Any, **more: Any) -> Any:
        made.append(arguments)
        return client(*arguments, **more)

    monkeypatch.setattr(ipyparallel, "Client", counted)
    report = kernelk.doctor(["numpy", "jax"], on="lab")
    assert [engine.state for engine in report.engines] == ["works", "not installed"]
    assert len(made) == 1


def test_a_gpu_that_an_engine_does_not_find(monkeypatch: pytest.MonkeyPatch) -> None:
    hint = doctor_report._no_gpu(registry.engine("torch@lab"), ["cpu:0"], 1)
    assert hint["problem"] == "it works, but doesn't find the machine's GPU"
    assert hint["next"] == "on lab: `pip install --force-reinstall torch`"
    assert doctor_report._no_gpu(registry.engine("torch"), ["cpu:0", "cuda:0"], 1) == {}
    assert doctor_report._no_gpu(registry.engine("numpy@lab"), ["cpu:0"], 2) == {}
    assert doctor_report._no_gpu(registry.engine("jax@lab"), ["cpu:0"], 0) == {}


def test_this_session_lets_go_of_an_engine_there(lab: LocalCluster) -> None:
    """As on this machine: the active engine isn't taken away, and another one is stopped before it is removed."""
    require_installed("theano")
    kernelk.set_backend("theano", on="lab")
    with pytest.raises(InstallError, match=r"Theano 1\.0\.5 on lab is this notebook's active engine.*--on lab`"):
        kernelk.uninstall("theano", Lines(), on="lab")
    kernelk.set_backend("numpy")
    host = current().hosts["theano@lab"]
    # Not that of this machine, which is another one.
    from kernelk.manage.install import _stop_workers

    _stop_workers("theano", "Theano", "kernelk uninstall theano")
    assert host.started
    _stop_workers("theano", "Theano", "kernelk uninstall theano --on lab", "lab")
    assert not host.started


def test_the_magic_and_its_options(lab: LocalCluster, capsys: pytest.CaptureFixture[str]) -> None:
    kernel = magics.KernelKMagics(None)
    assert kernel.kbackend("--install numpy --on lab") is None
    assert "numpy@lab: already installed" in capsys.readouterr().out
    assert [engine.name for engine in kernel.kbackend("--doctor numpy --on lab").engines] == ["numpy@lab"]
    kernel.kbackend("numpy --on lab")
    assert kernel.kbackend("--log --on lab").engine == "numpy@lab"
    assert kernel.kbackend("--stop numpy --on lab").machine == HERE
    for line, step in (
        ("--list --on lab", "%kbackend --doctor --on lab"),
        ("--keras3-back --on lab", "%kbackend --keras3-back"),
        ("--install theano --on lab --threads 2", "%kbackend --install theano --on lab"),
        ("--log numpy --on lab --threads 2", "%kbackend --log numpy --on lab"),
    ):
        with pytest.raises(ArgumentError, match=f"next: {step}"):
            kernel.kbackend(line)
    with pytest.raises(ArgumentError, match="theano@lab is on lab, not on attic"):
        kernelk.install("theano@lab", on="attic")


def test_the_program(lab: LocalCluster, empty: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "kernelk", *words],
            env=environment(IPYTHONDIR=os.environ["IPYTHONDIR"]),
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )

    place = installed_by_hand(empty, "theano")
    done = run("install", "numpy", "theano", "cntk", "--on", "lab")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "numpy@lab: already installed; it needs no environment of its own",
        f"theano@lab: already installed in {place}",
    ]
    assert re.match(rf"kernelk: on {HERE}: CNTK 2\.7 [^\n]*next: on {HERE}: [^\n]*\n$", done.stderr), done.stderr
    listed = run("list", "--on", "lab")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert listed.stdout.startswith(f"on {HERE}, Python {sys.version.split()[0]} ({sys.executable}):\n")
    assert f"theano: installed, Theano 1.0.5, Python 3.6.15, numpy 1.19.5, 0 MB in {place}" in listed.stdout
    assert "cntk: not installed; next: `kernelk install cntk --on lab` (Python 3.6)" in listed.stdout
    both = run("install", "--from", "x.tar", "--on", "lab")
    assert (both.returncode, both.stderr.count("\n")) == (1, 1)
    assert "copy it to lab, and there: `kernelk install --from x.tar`" in both.stderr


def test_a_machine_without_kernelk_is_a_line_of_the_list(
    lab: LocalCluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    machine = elsewhere.machines("lab")[0]
    bare = elsewhere.Machine(machine.connection, 1, {}, BackendNotInstalledError("engine 1 has no kernelk"))
    monkeypatch.setattr(elsewhere, "machines", lambda on: [bare, machine])
    assert main(["list", "--on", "lab"]) == 1
    said, complained = capsys.readouterr()
    assert complained == "kernelk: engine 1 has no kernelk\n"
    assert "numpy: installed" in said


def test_an_install_ends_with_its_ipyparallel_engine(lab: LocalCluster, empty: Path, endless: Endless) -> None:
    """As the last test here: the cluster loses an engine."""
    said = Lines()
    pid = lab.pid(0)
    meanwhile(endless, said, lambda: os.kill(pid, signal.SIGKILL))
    with pytest.raises(EngineError) as caught:
        kernelk.install("theano", said, on="lab")
    assert str(caught.value).startswith("the task on lab is gone with its ipyparallel engine, which ended; next: ")
    assert wait_for(lambda: not alive(endless.pid))
    assert wait_for(lambda: sorted(path.name for path in empty.iterdir()) == ["theano.lock", "theano.log"])
    # The next engine does what is asked now.
    place = installed_by_hand(empty, "theano")
    assert kernelk.install("theano", Lines(), on="lab") == place / "bin" / "python"
