"""What starts engines elsewhere, for real and on this machine alone: an ssh server, a Slurm queue, a JupyterHub."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

from helpers.engines import absent
from helpers.fake_programs import program
from helpers.namespaces import Machine
from helpers.processes import PATIENCE, environment, wait_until

_TOKEN = "0" * 32


def require_programs(place: str, packages: str, *programs: str) -> None:
    """Ends the test as `absent` says, unless these programs are there."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        absent(place, f"there is no program {', '.join(missing)}; next: {packages}")


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        taken = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in taken:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in taken]


@contextlib.contextmanager
def started(*command: str, log: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs meanwhile, in a process group that is ended afterwards; what it prints goes to a file."""
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **settings},
            start_new_session=True,
            cwd=log.parent,
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


@contextlib.contextmanager
def ssh_server(box: Machine, folder: Path, there: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """An ssh server on `box`, which `ssh` and `scp` know by its name; its users' folder of IPython's is `there`.

    As the documentation advises, the connection that was made first is shared by all others.
    """
    require_programs("sshd", "apt-get install openssh-server", "ssh", "scp", "ssh-keygen", "sshd")
    Path("/run/sshd").mkdir(exist_ok=True)
    for name in ("host", "user"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    settings = f"PYTHONPATH={environment()['PYTHONPATH']} IPYTHONDIR={there} PATH={path}"
    server = {
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "user.pub",
        "PidFile": "none",
        "StrictModes": "no",
        "PasswordAuthentication": "no",
        "Subsystem": "sftp internal-sftp",
        "SetEnv": settings,
    }
    client = {
        "Host": box.name,
        "HostName": box.address,
        "User": "root",
        "IdentityFile": folder / "user",
        "UserKnownHostsFile": folder / "known",
        "StrictHostKeyChecking": "accept-new",
        "ControlMaster": "auto",
        "ControlPath": folder / "%C",
        "ControlPersist": "yes",
    }
    for name, lines in (("server", server), ("client", client)):
        (folder / name).write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
    for name in ("ssh", "scp"):
        program(folder / "bin" / name, f'exec {shutil.which(name)} -F {folder / "client"} "$@"')
    patch.setenv("PATH", f"{folder / 'bin'}:{path}")
    box.start([str(shutil.which("sshd")), "-D", "-f", str(folder / "server")], dict(os.environ))
    try:
        assert wait_until(lambda: not subprocess.run(["ssh", box.name, "true"], capture_output=True).returncode)
        yield
    finally:
        subprocess.run(["ssh", "-O", "exit", box.name], capture_output=True)


@contextlib.contextmanager
def slurm(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A queue of Slurm's whose one node is this machine."""
    packages = "apt-get install slurmctld slurmd slurm-client munge"
    require_programs("slurm", packages, "munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel")
    folder.chmod(0o755)  # munge's clients go through it
    key = folder / "munge.key"
    key.write_bytes(os.urandom(64))
    key.chmod(0o600)
    controller, node = _free_ports(2)
    host = socket.gethostname()
    settings = {
        "ClusterName": "test",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmUser": "root",
        "SlurmctldPort": controller,
        "SlurmdPort": node,
        "AuthInfo": f"socket={folder / 'munge.socket'}",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "MpiDefault": "none",
        "NodeName": f"{host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN",
        "PartitionName": "debug Nodes=ALL Default=YES State=UP OverSubscribe=FORCE:4",
    }
    (folder / "slurm.conf").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
    for name in ("state", "spool"):
        (folder / name).mkdir()
    patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    files = {"key-file": key, "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
    options = [f"--{name}={folder / file}" for name, file in {**files, "seed-file": "munge.seed"}.items()]
    with (
        started("munged", "--foreground", "--force", *options, log=folder / "munged.log"),
        started("slurmctld", "-D", "-i", log=folder / "slurmctld.log"),
        started("slurmd", "-D", log=folder / "slurmd.log"),
    ):
        assert wait_until(lambda: not subprocess.run(["srun", "true"], capture_output=True, timeout=60).returncode)
        try:
            yield
        finally:
            _run("scancel", "--user=root")


class Hub:
    """A JupyterHub with one user, and a kernel of that user's own server."""

    def __init__(self, address: str) -> None:
        import websocket

        self._address = address
        self.ask("hub/api/users/ada", {})
        self._token = self.ask("hub/api/users/ada/tokens", {"note": "tests"})["token"]
        self.ask("hub/api/users/ada/server", {})
        assert wait_until(lambda: bool(self.ask("hub/api/users/ada")["servers"].get("", {}).get("ready")))
        kernel = self.ask("user/ada/api/kernels", {"name": "python3"}, self._token)["id"]
        self._channels = websocket.create_connection(
            f"ws://{address}/user/ada/api/kernels/{kernel}/channels",
            header=[f"Authorization: token {self._token}"],
            timeout=PATIENCE,
        )

    def ask(self, path: str, content: dict[str, Any] | None = None, token: str = _TOKEN) -> Any:
        """An answer of the hub's or the server's; with content, something is made."""
        headers = {"Authorization": f"token {token}", "Content-Type": "application/json"}
        body = None if content is None else json.dumps(content).encode()
        with urlopen(Request(f"http://{self._address}/{path}", body, headers), timeout=60) as reply:
            return json.loads(reply.read() or b"null")

    def run(self, cell: str) -> str:
        """What a cell prints and returns. Raises AssertionError with a cell's own error."""
        number = uuid.uuid4().hex
        content = {"code": cell, "silent": False, "store_history": True, "allow_stdin": False}
        header = {"msg_id": number, "msg_type": "execute_request", "session": number, "username": "", "version": "5.3"}
        asked = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
        self._channels.send(json.dumps({**asked, "buffers": []}))
        said = ""
        while True:
            message = json.loads(self._channels.recv())
            if message["parent_header"].get("msg_id") != number:
                continue
            found = message["content"]
            said += found.get("text", "") + found.get("data", {}).get("text/plain", "")
            assert message["msg_type"] != "error", "\n".join(found["traceback"])
            if message["msg_type"] == "status" and found["execution_state"] == "idle":
                return said


@contextlib.contextmanager
def jupyterhub(folder: Path) -> Iterator[Hub]:
    """A JupyterHub, whose users' kernels have this Python and this kernelk."""
    require_programs("jupyterhub", "make launchers", "jupyterhub", "configurable-http-proxy")
    public, own, proxy = _free_ports(3)
    spec = folder / "jupyter" / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    kernel = {"argv": command, "display_name": "Python", "language": "python"}
    spec.write_text(json.dumps({**kernel, "env": {"PYTHONPATH": environment()["PYTHONPATH"]}}))
    home = folder / "home"
    home.mkdir()
    places = {"JUPYTER_PATH": str(folder / "jupyter"), "HOME": str(home), "IPYTHONDIR": str(home / ".ipython")}
    scopes = ["admin:users", "admin:servers", "access:servers", "tokens"]
    settings = {
        "JupyterHub.bind_url": f"http://127.0.0.1:{public}",
        "JupyterHub.hub_bind_url": f"http://127.0.0.1:{own}",
        "ConfigurableHTTPProxy.api_url": f"http://127.0.0.1:{proxy}",
        "JupyterHub.authenticator_class": "dummy",
        "Authenticator.allow_all": True,
        "JupyterHub.spawner_class": "simple",
        "SimpleLocalProcessSpawner.home_dir_template": str(home),
        "Spawner.environment": places,
        "Spawner.args": ["--allow-root"],
        "JupyterHub.services": [{"name": "tests", "api_token": _TOKEN}],
        "JupyterHub.load_roles": [{"name": "tests", "services": ["tests"], "scopes": scopes}],
    }
    file = folder / "jupyterhub_config.py"
    file.write_text("".join(f"c.{name} = {value!r}\n" for name, value in settings.items()))

    def answers() -> bool:
        with contextlib.suppress(URLError, ConnectionError):
            return urlopen(f"http://127.0.0.1:{public}/hub/api/", timeout=5).status == 200
        return False

    with started("jupyterhub", "-f", str(file), log=folder / "hub.log"):
        assert wait_until(answers), (folder / "hub.log").read_text()
        yield Hub(f"127.0.0.1:{public}")


def ipcluster(folder: Path, *options: str, does: str = "start") -> contextlib.AbstractContextManager[object]:
    """`ipcluster start` with these options, as a terminal has it, or another command of it."""
    log = folder / f"ipcluster-{does}.log"
    return started(sys.executable, "-m", "ipyparallel.cluster", does, *options, log=log)
