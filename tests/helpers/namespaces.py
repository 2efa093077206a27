"""Machines on this one: namespaces with an address, a host name, processes and mounts of their own. Needs no pytest.

Nothing of them outlives this process: each hangs on a pipe from it, at whose end the first process of the namespace
ends, and with that one all others, the network and its link.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil

from helpers.processes import wait_until

# The addresses that are set aside for measurements between networks; each machine has a net of its own.
_NET = "198.18.{number}.{host}"
_MOST = 250

_SPACES = ["--ipc", "--pid", "--mount"]
_UP = "mount -t tmpfs kernelk /dev/shm && echo up && exec cat"
# What makes it a machine.
_APART = ["--net", "--uts"]
_UP_APART = f'hostname "$0" && ip link set lo up && {_UP}'


def problem() -> str:
    """Why there can't be another machine here, in words; empty if there can."""
    for program in ("ip", "unshare", "nsenter"):
        if shutil.which(program) is None:
            package = "iproute2" if program == "ip" else "util-linux"
            return f"there is no program `{program}`; next: apt-get install {package}"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    try:
        Machine("probe").kill()
    except (OSError, subprocess.CalledProcessError) as error:
        words = " ".join((getattr(error, "stderr", "") or str(error)).split())
        return f"this system allows no network namespaces ({words})"
    return ""


class Machine:
    """A machine named `name`, at `address`; this one is reached from there at `gateway`, and at `detour`, too."""

    def __init__(self, name: str, apart: bool = True) -> None:
        """Raises OSError, or CalledProcessError with what the system says.

        Where it isn't `apart`, it is no more than processes of this machine, which end together.
        """
        self.name = name
        self._spaces = [*_SPACES, *(_APART if apart else [])]
        self.gateway = self.address = "127.0.0.1"
        self.detour = "127.0.0.2"
        self._first = subprocess.Popen(
            ["unshare", *self._spaces, "--fork", "--mount-proc", "--kill-child"]
            + ["sh", "-c", _UP_APART if apart else _UP, name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._commands: list[subprocess.Popen[bytes]] = []
        self.link = ""
        try:
            assert self._first.stdout is not None
            assert self._first.stderr is not None
            if self._first.stdout.readline() != "up\n":
                raise OSError(self._first.stderr.read())
            (first,) = psutil.Process(self._first.pid).children()
            self.pid = first.pid
            if apart:
                self._connect()
        except BaseException:
            self.kill()
            raise

    def _connect(self) -> None:
        """Links both machines, by the first number that nobody has, be it in another run of the tests."""
        for number in range(1, _MOST):
            link = f"kernelk{number}"
            made = ["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(self.pid)]
            done = subprocess.run(made, capture_output=True, text=True)
            if done.returncode and "File exists" in done.stderr:
                continue
            done.check_returncode()
            self.link = link
            self.gateway, self.address, self.detour = (_NET.format(number=number, host=host) for host in (1, 2, 3))
            _run("ip", "address", "add", f"{self.gateway}/24", "dev", link)
            _run("ip", "address", "add", f"{self.detour}/24", "dev", link)
            _run("ip", "link", "set", link, "up")
            _run(*self._there("ip", "address", "add", f"{self.address}/24", "dev", "eth0"))
            _run(*self._there("ip", "link", "set", "eth0", "up"))
            return
        raise OSError(f"{_MOST} links are in use")

    def _there(self, *command: str) -> list[str]:
        return ["nsenter", "--target", str(self.pid), *self._spaces, "--", *command]

    def start(self, command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Starts a program there."""
        quiet = subprocess.DEVNULL
        made = subprocess.Popen(self._there(*command), env=environment, stdin=quiet, stdout=quiet, stderr=quiet)
        self._commands.append(made)
        return made

    def cut(self) -> None:
        """Takes the link down."""
        _run("ip", "link", "set", self.link, "down")

    def join(self) -> None:
        """Takes it up again, and waits until that machine answers, if only that it has no such port."""
        _run("ip", "link", "set", self.link, "up")
        assert wait_until(self._answers)

    def _answers(self) -> bool:
        try:
            socket.create_connection((self.address, 9), timeout=0.2).close()
        except OSError as error:
            return isinstance(error, ConnectionRefusedError)
        return True

    def limit(self, rate: str) -> None:
        """Lets no more through, each way, than e.g. "100mbit" a second; "" lifts the limit."""
        shape = ["tbf", "rate", rate, "burst", "64kb", "latency", "50ms"] if rate else ["noqueue"]
        for where, device in ((self._there(), "eth0"), ([], self.link)):
            _run(*where, "tc", "qdisc", "replace", "dev", device, "root", *shape)

    def process(self, number: int) -> int:
        """What a process has for a number here, given the one that it has there. Raises ProcessLookupError."""
        space = os.stat(f"/proc/{self.pid}/ns/pid").st_ino
        for pid in psutil.pids():
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                if os.stat(f"/proc/{pid}/ns/pid").st_ino == space and f"\nNSpid:\t{pid}\t{number}\n" in status:
                    return pid
        raise ProcessLookupError(f"{self.name} has no process {number}")

    def kill(self) -> None:
        """Ends the machine, as a power cut does: all of its processes at once, and its network."""
        self._first.kill()
        for stream in (self._first.stdin, self._first.stdout, self._first.stderr):
            assert stream is not None
            stream.close()
        self._first.wait()
        for command in self._commands:
            command.wait()
        # The system takes its time to do so, and did it already where this fails.
        if self.link:
            subprocess.run(["ip", "link", "delete", self.link], capture_output=True)


@contextlib.contextmanager
def machine(name: str, apart: bool = True) -> Iterator[Machine]:
    """A machine that is gone afterwards."""
    made = Machine(name, apart)
    try:
        yield made
    finally:
        made.kill()


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
