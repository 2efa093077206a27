"""Installs of one engine, one at a time: with flock and without, and when the one that holds the lock is gone."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.environments import left
from helpers.processes import PATIENCE, PROJECT, wait_until

from kernelk.environments import install

# A process that holds the lock until it is killed; `without_flock` as below.
HOLDER = """
import fcntl, sys, time
from pathlib import Path
from kernelk.environments import install
install._LEASE_SECONDS = float(sys.argv[2])
if sys.argv[3]:
    def refuse(*arguments):
        raise OSError(int(sys.argv[3]), "refused")
    fcntl.flock = refuse
with install.one_at_a_time(Path(sys.argv[1]), lambda: None):
    print("held", flush=True)
    time.sleep(100)
"""

NO_FLOCK = [None, errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP]


@contextlib.contextmanager
def held_elsewhere(path: Path, refusal: int | None) -> Iterator[subprocess.Popen[str]]:
    """A lock that another process holds."""
    command = [sys.executable, "-c", HOLDER, str(path), str(install._LEASE_SECONDS), str(refusal or "")]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    with subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            yield holder
        finally:
            holder.kill()


def without_flock(monkeypatch: pytest.MonkeyPatch, refusal: int | None) -> None:
    """A file system that refuses flock with this error; None: it doesn't."""

    def refuse(*arguments: object) -> None:
        raise OSError(refusal, "refused")

    if refusal is not None:
        monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("refusal", NO_FLOCK)
def test_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int | None) -> None:
    without_flock(monkeypatch, refusal)
    events: list[str] = []
    path = tmp_path / "x.lock"

    def second() -> None:
        with install.one_at_a_time(path, lambda: events.append("waits")):
            events.append("second")

    with install.one_at_a_time(path, lambda: events.append("never")):
        thread = threading.Thread(target=second)
        thread.start()
        assert wait_until(lambda: bool(events))
        events.append("first done")
    thread.join(timeout=PATIENCE)
    assert events == ["waits", "first done", "second"]
    assert left(tmp_path) == []


@pytest.mark.parametrize("refusal", NO_FLOCK)
def test_a_killed_owner_blocks_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: int | None) -> None:
    without_flock(monkeypatch, refusal)
    path = tmp_path / "x.lock"
    waited: list[str] = []
    with held_elsewhere(path, refusal) as holder:
        holder.kill()
        holder.wait()
        with install.one_at_a_time(path, lambda: waited.append("waited")):
            pass
    assert waited == []


def test_without_flock_an_owner_that_stands_still_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one on another machine that is gone: whether its process lives can't be seen from here."""
    monkeypatch.setattr(install, "_LEASE_SECONDS", 1.5)
    without_flock(monkeypatch, errno.ENOLCK)
    path = tmp_path / "x.lock"
    taken = threading.Event()
    waited: list[str] = []

    def take() -> None:
        with install.one_at_a_time(path, lambda: waited.append("waited")):
            taken.set()

    with held_elsewhere(path, errno.ENOLCK) as holder:
        thread = threading.Thread(target=take)
        thread.start()
        # As long as it lives, it keeps the lock: longer than it would without a sign of life.
        assert not taken.wait(4)
        holder.send_signal(signal.SIGSTOP)
        assert taken.wait(60)
        thread.join(timeout=PATIENCE)
        holder.send_signal(signal.SIGCONT)
    assert waited == ["waited"]


def test_what_isnt_flocks_refusal_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_flock(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="refused"), install.one_at_a_time(tmp_path / "x.lock", lambda: None):
        pass
