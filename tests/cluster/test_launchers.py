"""Engines where people have them: behind ssh, in a queue of Slurm's, in JupyterHub. `make launchers` runs these."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.clusters import disconnected, wait_for
from helpers.engines import absent, require_installed
from helpers.launchers import ipcluster, jupyterhub, slurm, ssh_server, started
from helpers.namespaces import Machine, machine, problem
from helpers.processes import alive, environment
from helpers.training import Training, equal, train, wanted

import kernelk
from kernelk import backend as K
from kernelk.errors import KernelKError
from kernelk.remote.clusters import connected
from kernelk.session.current import current

pytestmark = [pytest.mark.soak, pytest.mark.slow]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for what a test starts, with IPython's of this machine in it. Its name is short: sockets lie there."""
    with tempfile.TemporaryDirectory(prefix="kernelk-") as name, disconnected():
        monkeypatch.setenv("IPYTHONDIR", str(Path(name) / "here"))
        monkeypatch.setenv("PYTHONPATH", environment()["PYTHONPATH"])
        yield Path(name)


@pytest.fixture
def box(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A machine "gpu-box", whose name ssh alone knows."""
    if why := problem():
        absent("netns", why)
    with machine("gpu-box") as made, ssh_server(made, folder, folder / "there", monkeypatch):
        yield made


def go_there_and_back(*engines: str) -> None:
    """A training that begins here, is handed to each of these engines, numpy's at last, and ends here: bit for bit."""
    losses, state = wanted(8, "numpy")
    model = Training()
    found = train(model, 0, 2)
    for engine in engines:
        before = model.state()
        assert kernelk.set_backend(engine).variables == 4
        assert equal(model.state(), before)
    found += train(model, 2, 3)
    kernelk.set_backend("numpy")
    found += train(model, 5, 3)
    assert found == losses
    assert equal(model.state(), state)


@pytest.mark.parametrize("way", ["open ports", "tunnel"])
def test_a_machine_that_is_reached_by_ssh(way: str, box: Machine, folder: Path) -> None:
    """The commands of the documentation, in a terminal of that machine and one of this."""
    require_installed("theano")
    command = "ipcluster start --profile=gpu-box -n 1"
    if way == "open ports":
        command += f" --ip='*' --location={box.address} -- --nodb --IPController.enable_curve=True"
    else:
        command += " -- --nodb"
    security = "profile_gpu-box/security"
    with started("ssh", "-tt", "gpu-box", command, log=folder / "ipcluster.log"):
        assert wait_for(lambda: (folder / "there" / security / "ipcontroller-client.json").is_file())
        copy = folder / "here" / security / "ipcontroller-client.json"
        copy.parent.mkdir(parents=True)
        subprocess.run(["scp", f"gpu-box:{folder}/there/{security}/{copy.name}", str(copy.parent)], check=True)
        if way == "tunnel":
            copy.write_text(json.dumps({**json.loads(copy.read_text()), "ssh": "root@gpu-box"}))
        go_there_and_back("theano@gpu-box", "numpy@gpu-box")
        assert current().hosts["numpy@gpu-box"].facts["machine"] == "gpu-box"
        assert "kernelk on gpu-box" in str(kernelk.doctor(on="gpu-box"))


def test_engines_that_are_started_by_ssh(box: Machine, folder: Path) -> None:
    """The controller is here."""
    launcher = (
        "--SSHEngineSetLauncher.engines={'gpu-box': 1}",
        f"--SSHEngineSetLauncher.remote_python={sys.executable}",
    )
    options = ("--engines=ssh", *launcher, "--", "--nodb", f"--ip={box.gateway}")
    with ipcluster(folder, "--profile=lab", *options):
        assert wait_for(lambda: any((folder / "here").glob("profile_lab/security/*-client.json")))
        go_there_and_back("numpy@lab")
        assert current().hosts["numpy@lab"].facts["machine"] == "gpu-box"


def test_engines_of_a_queue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job ends in the midst of a training, as at its time limit: nothing is lost, and the next job goes on."""
    with slurm(folder, monkeypatch), ipcluster(folder, "--profile=hpc", "--engines=slurm", "-n", "2", "--", "--nodb"):
        assert wait_for(lambda: any((folder / "here").glob("profile_hpc/security/*-client.json")))
        go_there_and_back("numpy@hpc")
        losses, state = wanted(4, "numpy")
        kernelk.set_backend("numpy@hpc")
        model = Training()
        found = train(model, 0, 2)
        worker = current().host().pid
        assert worker is not None
        subprocess.run(["scancel", "--user=root"], check=True)
        assert wait_for(lambda: not alive(worker))
        with pytest.raises(KernelKError, match=r"; next: "):
            train(model, 2, 1)
        assert K.get_value(model.count) == 2
        known = set(connected("hpc").client.ids)
        with ipcluster(folder, "--profile=hpc", "--engines=slurm", "-n", "1", does="engines"):
            assert wait_for(lambda: bool(set(connected("hpc").client.ids) - known))
            kernelk.set_backend("numpy")
            kernelk.set_backend("numpy@hpc")
            found += train(model, 2, 2)
        assert found == losses
        assert equal(model.state(), state)


def test_a_notebook_of_jupyterhub(folder: Path) -> None:
    """The cells of the documentation, in a server that the hub has started."""
    require_installed("torch")
    with jupyterhub(folder) as hub:
        hub.run("%load_ext kernelk\nimport kernelk, numpy as np\nfrom kernelk import backend as K\n%kbackend numpy")
        hub.run(
            "import ipyparallel as ipp\n"
            'cluster = ipp.Cluster(n=1, cluster_id="hub", controller_args=["--nodb"], log_level=40)\n'
            "cluster.start_cluster_sync()"
        )
        hub.run("w = K.variable(np.arange(5.0)); double = K.function([], [K.sum(w)], [K.update(w, w * 2.0)])")
        assert "bit for bit" in hub.run('kernelk.set_backend("torch", on=cluster)')
        assert "array(10." in hub.run("double([])")
        assert "torch@hub" in hub.run("%kbackend")
        assert "[0.0, 2.0, 4.0, 6.0, 8.0]" in hub.run("%kbackend numpy\nK.get_value(w).tolist()")
        hub.run("cluster.stop_cluster_sync()")
