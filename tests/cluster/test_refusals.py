"""What stands in the way of an engine on another machine is one line with the next command; the session stays."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.clusters import LocalCluster, hide, local_cluster
from helpers.fake_programs import program
from helpers.processes import PATIENCE

import kernelk
from kernelk import backend as K
from kernelk import magics
from kernelk.errors import ArgumentError, BackendNotInstalledError, EngineError, UnknownBackendError
from kernelk.remote import clusters, connection_files, remote_worker
from kernelk.session.current import current


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """IPython's folder, with no profile in it."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    return tmp_path


def connection_file(folder: Path, profile: str, port: int, identity: str = "") -> Path:
    security = folder / f"profile_{profile}" / "security"
    security.mkdir(parents=True, exist_ok=True)
    file = security / f"ipcontroller{identity and '-' + identity}-client.json"
    names = ("registration", "control", "mux", "task", "iopub", "notification", "broadcast")
    info = {
        **dict.fromkeys(names, port),
        "interface": "tcp://127.0.0.1",
        "location": socket.gethostname(),
        "ssh": "",
        "task_scheme": "leastload",
        "key": "0123",
        "pack": "json",
        "unpack": "json",
        "signature_scheme": "hmac-sha256",
    }
    file.write_text(json.dumps(info))
    return file


@pytest.fixture
def port() -> Iterator[int]:
    """One that nobody listens at."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


def refused(kind: type[Exception], words: str, name: str = "numpy@box", on: Any = None) -> None:
    """The swap is refused in one line, and the session is as before."""
    w = K.variable(np.arange(3.0), name="w")
    with pytest.raises(kind, match=words) as caught:
        kernelk.set_backend(name, on=on)
    assert "\n" not in str(caught.value)
    assert "; next: " in str(caught.value)
    assert current().active == "numpy"
    assert K.get_value(w).tolist() == [0, 1, 2]


def test_no_cluster_of_that_name(profiles: Path, port: int) -> None:
    refused(ArgumentError, r"no cluster is named 'box': there is none; next: ipcluster start --profile=box")
    connection_file(profiles, "boxes", port)
    connection_file(profiles, "lab", port, "7")
    refused(ArgumentError, r"did you mean 'boxes'\? allowed are 7, boxes, lab, lab:7")


def test_a_name_that_is_none(profiles: Path) -> None:
    for name in ("numpy@", "numpy@a b", "numpy@a@b", "numpy@../x"):
        refused(UnknownBackendError, "names no cluster", name)
    refused(UnknownBackendError, "unknown backend 'nmpy'.*did you mean 'numpy'", "nmpy@box")


def test_clusters_are_known_by_profile_and_id(profiles: Path, port: int) -> None:
    one = connection_file(profiles, "default", port)
    other = connection_file(profiles, "lab", port, "a")
    third = connection_file(profiles, "lab", port, "b")
    twice = connection_file(profiles, "attic", port, "b")
    assert connection_files.files() == {
        "default": one,
        "lab:a": other,
        "a": other,
        "lab:b": third,
        "attic:b": twice,
        "attic": twice,
    }
    refused(ArgumentError, "2 clusters have the id 'b': allowed are attic:b, lab:b; next: on='attic:b'", "numpy@b")
    assert [connection_files.cluster_options(name) for name in ("default", "a", "lab:b", "attic")] == [
        "--profile=default",
        "--profile=lab --cluster-id=a",
        "--profile=lab --cluster-id=b",
        "--profile=attic --cluster-id=b",
    ]
    refused(
        ArgumentError, "no cluster .*: ipcluster start --profile=lab --cluster-id=c, or copy .*-c-client", "numpy@lab:c"
    )


def test_a_cluster_that_was_not_started(profiles: Path) -> None:
    import ipyparallel

    cluster = ipyparallel.Cluster(profile="box", cluster_id="")
    refused(EngineError, r"the cluster 'box' isn't running; next: cluster\.start_cluster_sync\(\)", "numpy", cluster)


def test_a_controller_that_is_gone(profiles: Path, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "_ANSWERS_WITHIN", 0.3)
    connection_file(profiles, "box", port)
    refused(EngineError, r"cluster 'box' doesn't answer: its controller isn't running.*next: ipcluster start --profile")


def rewrite(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_controller_whose_machine_has_no_address_here(
    profiles: Path, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by an alias of ssh's: the controller writes down what its machine calls itself."""
    monkeypatch.setattr(clusters, "_ANSWERS_WITHIN", 0.3)
    file = connection_file(profiles, "box", port)
    rewrite(file, interface="tcp://*", location="gpu-box.invalid")
    with pytest.warns(RuntimeWarning, match="could not determine IPs"):
        refused(EngineError, r"its controller is on 'gpu-box.invalid'.*no address here; next: start it with --location")


@pytest.mark.parametrize("does", ["exit 255", 'echo "you@gpu-box\'s password:"; sleep 60', "sleep 60"])
def test_a_server_that_ssh_cant_reach_or_that_asks(
    does: str, profiles: Path, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clusters, "_ANSWERS_WITHIN", 0.3)
    program(tmp_path / "bin" / "ssh", f'case "$*" in *"-O check"*) exit 255;; esac; {does}')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    rewrite(connection_file(profiles, "box", port), location="198.18.250.2", ssh="you@gpu-box")
    refused(EngineError, r"doesn't answer through ssh to you@gpu-box \(.*next: set ControlMaster.*ssh you@gpu-box true")


def test_ssh_and_curve(profiles: Path, port: int) -> None:
    """ipyparallel would wait for answers without end."""
    rewrite(connection_file(profiles, "box", port), location="gpu-box", ssh="you@gpu-box", curve_serverkey="x" * 40)
    refused(EngineError, r'has "ssh" as well as CURVE.*next: start it without enable_curve')


def test_a_file_that_is_none(profiles: Path, port: int) -> None:
    connection_file(profiles, "box", port).write_text("[1")
    refused(EngineError, "the cluster 'box' can't be reached: JSONDecodeError")


def test_without_ipyparallel(profiles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ipyparallel", None)
    refused(BackendNotInstalledError, r'isn\'t installed here; next: `pip install "kernelk\[cluster\]"`')


@pytest.fixture(scope="module")
def box() -> Iterator[LocalCluster]:
    with local_cluster("box", 1) as cluster:
        yield cluster


def test_a_wrong_key(box: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "_ANSWERS_WITHIN", 0.5)
    right = box.file.read_text()
    box.file.write_text(json.dumps({**json.loads(right), "key": "another"}))
    try:
        refused(EngineError, "doesn't answer: .*or has another key than")
    finally:
        box.file.write_text(right)


def test_an_engine_that_is_not_installed_there(box: LocalCluster) -> None:
    box.client[0].apply_sync(hide, "jax")
    refused(BackendNotInstalledError, r'JAX.*next: on box: `pip install "kernelk\[jax\]"`', "jax@box")


def test_another_version_there(box: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_worker, "__version__", "0.0.7")
    refused(EngineError, r"kernelk is .* on .*, and 0\.0\.7 here; next: .* `pip install kernelk==0\.0\.7`, and restart")


def test_a_module_that_is_not_there(box: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    # A function goes by its name, and its module's is of a later version here.
    tomorrow = types.ModuleType("kernelk.of_tomorrow")
    tomorrow.start = remote_worker.serving.start  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, tomorrow.__name__, tomorrow)
    monkeypatch.setattr(remote_worker.serving.start, "__module__", tomorrow.__name__)
    refused(BackendNotInstalledError, r"no kernelk of this version.*next: on box: `pip install kernelk==")


def test_a_function_that_is_not_there(box: LocalCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_tomorrow() -> None:
        raise AssertionError("it is called by its name, in that process")

    serving = remote_worker.serving
    of_tomorrow.__module__, of_tomorrow.__qualname__ = serving.__name__, "of_tomorrow"
    monkeypatch.setattr(serving, "of_tomorrow", of_tomorrow, raising=False)
    monkeypatch.setattr(serving, "start", of_tomorrow)
    refused(BackendNotInstalledError, r"no kernelk of this version \(Can't get attribute 'of_tomorrow'.*, and restart")


def test_the_magic_takes_a_cluster(box: LocalCluster) -> None:
    kernel = magics.KernelKMagics(None)
    assert kernel.kbackend("numpy --on box").target == "numpy@box"
    assert kernel.kbackend("--on box").target == "numpy@box"
    with pytest.raises(ArgumentError, match="numpy@box is on box, not on attic; next: %kbackend numpy --on attic"):
        kernel.kbackend("--on attic")
    assert kernel.kbackend("--stop numpy@box").machine == socket.gethostname()


def test_a_client_of_the_user_that_nobody_answers_is_given_up(
    box: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where its cluster was started again: such a client stays that of the controller that has ended."""

    def broken() -> clusters.Connection:
        assert clusters.place_of(box.client).cluster == "box"
        connection = clusters.connected("box")
        assert connection.client is box.client
        connection.close()
        return connection

    broken()
    assert clusters.connected("box").client is not box.client
    assert not box.client._closed
    # Without a file of that name there is no other way.
    connection = broken()
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    assert clusters.connected("box") is connection


def test_what_keeps_other_engines_out_is_told_by_the_controller(
    box: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the last test here: the cluster loses its engine, and then its controller."""
    kernelk.set_backend("numpy@box")
    w = K.variable(np.arange(2000.0))
    K.function([], [], [K.update_add(w, 1.0)])([])
    box.kill(0)
    assert K.get_value(w)[0] == 1.0
    kernelk.set_backend("numpy")
    refused(EngineError, "the cluster 'box' has no engines; next: ipcluster engines --profile=box")
    # As if it had never had one, and was just started: Ctrl-C ends the wait for it.
    monkeypatch.setattr(clusters, "_STARTS_WITHIN", 2 * PATIENCE)
    clusters._connections["box"]._begun = False
    press = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    press.start()
    with pytest.raises(KeyboardInterrupt):
        kernelk.set_backend("numpy@box")
    assert current().active == "numpy"
