"""Environments and their builds, stub libraries: fakes to make each case, the real engines where it counts."""

from __future__ import annotations

import _ctypes
import contextlib
import ctypes
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.fake_programs import fake_python, this_python
from helpers.messages import one_line
from helpers.processes import PATIENCE, PROJECT, alive, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_client.manager import start_new_kernel

import kernelk
from kernelk import errors
from kernelk.backends import elf_stub
from kernelk.environments import build, install, interpreters, mpi_stub, places, runner
from kernelk.environments.recipes import RECIPES, LockedFile, Recipe
from kernelk.manage import doctor_report
from kernelk.manage import install as manage_install

SERIES = f"{sys.version_info[0]}.{sys.version_info[1]}"

on_elf = pytest.mark.skipif(
    (sys.platform, os.uname().machine) != ("linux", "x86_64"), reason="stubs are ELF64 for x86-64 Linux"
)


# ---------------------------------------------------------------------------- environments


def make_complete(name: str) -> Path:
    place = places.folder(name)
    this_python(place / "bin" / "python")
    recipe = RECIPES[name]
    content = {"recipe": recipe.hash(recipe.pythons[0])}
    (place / places.MARKER).write_text(json.dumps(content))
    return place


def test_the_folder_changes_with_the_pins_and_the_python(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = places.folder("theano")
    assert before.parent == bare / "envs"
    assert places.folder("theano", "3.8") != before == places.folder("theano", "3.6")
    place = make_complete("cntk")
    old = RECIPES["cntk"]
    newer = Recipe("cntk", old.title, old.pythons, old.bootstrap, ("cntk==2.8",), old.check)
    monkeypatch.setitem(RECIPES, "cntk", newer)
    assert places.installed_python("cntk") is None
    assert places.superseded("cntk") == [place]


def test_without_a_marker_it_is_not_installed(bare: Path) -> None:
    place = make_complete("cntk")
    assert places.installed_python("cntk") == places.require_python("cntk") == place / "bin/python"
    (place / places.MARKER).unlink()
    assert places.installed_python("cntk") is None
    assert places.half_built("cntk") == place
    with pytest.raises(errors.BackendNotInstalledError) as caught:
        places.require_python("cntk")
    assert "is only partly installed; next: `kernelk install cntk`" in one_line(caught.value)


@pytest.mark.parametrize("damage", ["marker cut off", "other pins", "python gone"])
def test_a_damaged_environment_is_not_installed(bare: Path, damage: str) -> None:
    place = make_complete("theano")
    assert places.installed_python("theano") is not None
    if damage == "marker cut off":
        (place / places.MARKER).write_text('{"recipe": ')
    elif damage == "other pins":
        (place / places.MARKER).write_text('{"recipe": "0123"}')
    else:
        (place / "bin/python").unlink()
        (place / "bin/python").symlink_to(bare / "removed")
    assert places.installed_python("theano") is None


def test_a_python_that_is_gone_is_told(bare: Path) -> None:
    place = make_complete("theano")
    (place / "bin/python").unlink()
    (place / "bin/python").symlink_to(bare / "removed")
    with pytest.raises(errors.BackendNotInstalledError, match="next: `kernelk install theano`") as caught:
        places.require_python("theano")
    assert f"is installed in {place}, but its Python ({bare / 'removed'}) is gone" in one_line(caught.value)


def test_no_writable_place_is_one_line(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "file").write_text("")
    monkeypatch.setenv("KERNELK_ENVS", str(bare / "file" / "below"))
    monkeypatch.setenv("XDG_DATA_HOME", str(bare / "file" / "data"))
    monkeypatch.setenv("KERNELK_PYTHON36", str(fake_python(bare / "mine", "3.6.1")))
    with pytest.raises(errors.InstallError, match="choose another folder with KERNELK_ENVS") as caught:
        manage_install.install("theano")
    message = one_line(caught.value)
    assert str(bare / "file" / "below") in message
    assert str(bare / "file" / "data") in message


def test_the_order_of_the_folders(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELK_ENVS", os.pathsep.join(["~/first", str(bare / "second"), ""]))
    user = bare / ".local/share/kernelk/envs"
    assert places.roots() == [bare / "first", bare / "second", user]
    assert places.root() == bare / "first"
    (bare / "first").write_text("a file, where no folder can be")
    assert places.root() == bare / "second"
    monkeypatch.delenv("KERNELK_ENVS")
    assert places.roots() == [user]


# ---------------------------------------------------------------------------- shared folders


def test_environments_of_a_shared_folder_are_used(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_complete("theano")
    monkeypatch.setenv("KERNELK_ENVS", os.pathsep.join([str(bare / "mine"), str(place.parent)]))
    assert places.require_python("theano") == place / "bin/python"
    # But one's own folder, if it comes first, isn't filled by it: that is how its owner makes a shared one.
    monkeypatch.setenv("KERNELK_PYTHON_THEANO", str(bare / "nothing"))
    with pytest.raises(errors.BackendNotInstalledError, match="KERNELK_PYTHON_THEANO names"):
        manage_install.install("theano", lambda text: None)


@contextlib.contextmanager
def read_only(*folders: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Folders that can't be written, for root either: no file can be made in them."""
    real_file, real_open, real_access = tempfile.TemporaryFile, open, os.access
    denied = [str(folder) for folder in folders]

    def refuse(path: object) -> None:
        if any(str(path).startswith(folder) for folder in denied):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    def temporary_file(*arguments: Any, **options: Any) -> Any:
        refuse(options.get("dir"))
        return real_file(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "TemporaryFile", temporary_file)
        patch.setattr(
            os,
            "access",
            lambda path, mode: not any(str(path).startswith(f) for f in denied) and real_access(path, mode),
        )
        patch.setattr(
            "builtins.open",
            lambda file, mode="r", *rest, **options: (
                refuse(file) if set("wax") & set(mode) else None,
                real_open(file, mode, *rest, **options),
            )[1],
        )
        yield


def test_a_shared_folder_that_cannot_be_written(bare: Path, monkeypatch: pytest.MonkeyPatch, tiny: Path) -> None:
    shared = bare / "envs"
    place = make_complete("theano")
    said: list[str] = []
    with read_only(shared, monkeypatch=monkeypatch):
        # What it holds is used, and what it lacks comes into the user's own folder.
        assert manage_install.install("theano", said.append) == place / "bin/python"
        assert places.root() == places.user_root()
        tiny_wheel(tiny)
        python = manage_install.install("tiny", said.append)
        assert python.is_relative_to(places.user_root())
        assert any(f"since {shared} (Read-only file system) can't be written" in text for text in said)
        assert places.installed_python("tiny") == python
        # What can't be done is said.
        with pytest.raises(errors.InstallError, match="ask its owner to run") as caught:
            manage_install.install("theano", said.append, rebuild=True)
        one_line(caught.value)
        with pytest.raises(errors.InstallError, match=f"next: `KERNELK_ENVS={shared} kernelk uninstall theano`"):
            manage_install.uninstall("theano", said.append)
    assert places.installed_python("theano") == place / "bin/python"


def test_a_shared_environment_on_a_private_python_is_told(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "closed" / "inner").mkdir(parents=True)
        (folder / "closed" / "inner" / "python").touch()
        assert install.private_part(folder / "closed" / "inner" / "python") is None
        (folder / "closed").chmod(0o700)
        assert install.private_part(folder / "closed" / "inner" / "python") == folder / "closed"
    tiny_wheel(tiny)
    monkeypatch.setattr(install, "private_part", lambda path: Path("/home/me"))
    said: list[str] = []
    manage_install.install("tiny", said.append)
    assert "only you can use it: its Python is inside /home/me, which others can't read" in said[-1]


@pytest.fixture
def locked_out(bare: Path) -> Iterator[Path]:
    """A machine whose home and environments belong to another user, who lets nobody in."""
    make_complete("theano")
    fake_python(bare / ".pyenv/versions/3.6.1/bin/python3.6", "3.6.1")
    bare.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:  # whom no permission stops
        os.seteuid(65534)
    try:
        yield bare
    finally:
        if is_root:
            os.seteuid(0)
        bare.chmod(0o755)


def test_folders_that_may_not_be_entered(locked_out: Path) -> None:
    assert places.installed_python("theano") is None
    assert places.missing("theano") == "is not installed"
    assert places.superseded("theano") == []
    assert interpreters.search(RECIPES["theano"], places.roots()).interpreter is None
    said: list[str] = []
    with pytest.raises(errors.InstallError, match=r"no folder for it can be written: .*Permission denied") as caught:
        manage_install.install("theano", said.append)
    one_line(caught.value)
    assert manage_install.uninstall("theano", said.append) == []
    (theano,) = doctor_report.doctor(["theano"]).engines
    assert theano.state == "not installed"
    assert "none was found" in theano.problem


# ---------------------------------------------------------------------------- builds

# A recipe of our own, on this Python and from a local wheel: quick, and every failure at hand.
TINY_SOURCE = """
import sys
from pathlib import Path
from kernelk.environments.recipes import RECIPES, Recipe
def register(folder, check="import tiny; print(tiny.VERSION)"):
    series = "%d.%d" % sys.version_info[:2]
    RECIPES["tiny"] = Recipe("tiny", "Tiny 1.0", (series,), (), ("tiny==1.0",), check, lock=Path(folder) / "tiny.txt")
"""
DRIVER = (
    TINY_SOURCE
    + """
from kernelk import errors
from kernelk.environments.recipes import RECIPES
from kernelk.manage.install import install
register(*sys.argv[1:])
try:
    install("tiny", report=lambda text: print(text, flush=True))
except errors.InstallError as error:
    sys.exit(str(error))
"""
)


def tiny_wheel(folder: Path, version: str = "1.0", padding: int = 0) -> Path:
    """The wheel that the recipe asks for, and the lock with its hash."""
    path = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny.py", f"VERSION = '{version}'\n{'#' * padding}")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("tiny-1.0.dist-info/WHEEL", tags)
        wheel.writestr("tiny-1.0.dist-info/RECORD", "tiny.py,,\n")
    content = path.read_bytes()
    lock = f"# a lock\n{path.name} {len(content)} {hashlib.sha256(content).hexdigest()}\n"
    (folder / "tiny.txt").write_text(lock)
    return path


@pytest.fixture
def tiny(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the recipe's lock; pip takes wheels from there and has no other index."""
    tiny_wheel(bare).unlink()
    names: dict[str, Any] = {}
    exec(TINY_SOURCE, names)
    monkeypatch.setitem(RECIPES, "tiny", None)  # which is undone after the test
    names["register"](bare)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(bare))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_TARGET", str(bare / "astray"))  # a user's own setting, which must not send packages there
    return bare


def start_install(folder: Path, *check: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", DRIVER, str(folder), *check]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=pipe, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, problems = process.communicate(timeout=PATIENCE)
    return process.returncode, output, problems


def left(folder: Path) -> list[str]:
    """The leftovers of an install, besides its log and its lock."""
    return sorted(path.name for path in folder.iterdir() if path.suffix not in (".log", ".lock"))


@pytest.mark.slow
def test_builds_that_fail_stop_or_meet(tiny: Path) -> None:
    place = places.folder("tiny")

    # pip fails: its own last word, the log, and nothing else.
    status, _, problems = finish(start_install(tiny))
    assert status == 1
    assert "pip failed: ERROR: No matching distribution found for tiny==1.0" in problems
    assert problems.count("\n") == 1
    log = Path(problems.partition("(log: ")[2].partition(")")[0])
    assert "No matching distribution" in log.read_text()
    assert left(place.parent) == []

    # Ctrl-C: nothing left running, and not installed.
    stopped = start_install(tiny)
    assert stopped.stdout is not None
    while "building with" not in stopped.stdout.readline():
        assert stopped.poll() is None
    os.killpg(stopped.pid, signal.SIGINT)
    assert finish(stopped)[0] != 0
    assert left(place.parent) == []

    # Killed: a half-built folder, which isn't installed.
    killed = start_install(tiny)
    assert wait_until(place.is_dir)
    killed.kill()
    finish(killed)
    assert places.half_built("tiny") == place
    assert places.missing("tiny") == "is only partly installed"

    # The check fails: the last line of what it said.
    tiny_wheel(tiny)
    status, output, problems = finish(start_install(tiny, "import tiny; raise ValueError('one is two')"))
    assert status == 1
    assert "left by an earlier install" in output
    assert "check failed: ValueError: one is two (log: " in problems
    assert left(place.parent) == []

    # Two at once: one builds; the second waits and finds it done.
    both = [start_install(tiny), start_install(tiny)]
    results = [finish(process) for process in both]
    assert [status for status, _, _ in results] == [0, 0], results
    built = [output for _, output, _ in results if "ready: tiny 1.0" in output]
    waited = [output for _, output, _ in results if "another process is installing it; waiting" in output]
    assert len(built) == len(waited) == 1
    assert "already installed" in waited[0]
    assert "pip" not in waited[0]

    assert places.installed_python("tiny") == place / "bin" / "python"
    noted = places.marker("tiny")
    assert noted is not None
    assert isinstance(noted["versions"], dict)
    assert (noted["engine"], noted["versions"]["tiny"]) == ("1.0", "1.0")
    assert noted["files"] == {file.name: file.sha256 for file in RECIPES["tiny"].locked()}
    assert not (tiny / "astray").exists()
    assert left(place.parent) == [place.name]


def test_a_wrong_hash_is_one_line_and_installs_nothing(tiny: Path) -> None:
    wheel = tiny_wheel(tiny)
    right = hashlib.sha256(wheel.read_bytes()).hexdigest()
    lock = (tiny / "tiny.txt").read_text()
    wrong = hashlib.sha256(tiny_wheel(tiny, version="6.6.6").read_bytes()).hexdigest()
    (tiny / "tiny.txt").write_text(lock)
    with pytest.raises(errors.InstallError, match="next: `pip cache purge` and `kernelk install tiny`") as caught:
        manage_install.install("tiny", lambda text: None)
    message = one_line(caught.value)
    assert "tiny-1.0-py3-none-any.whl (tiny==1.0) does not match the SHA-256 in kernelk's lock file" in message
    assert f"({wrong[:12]}... instead of {right[:12]}..." in message
    assert places.installed_python("tiny") is None
    assert left(places.root()) == []


def test_no_network_is_one_line(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    said: list[str] = []
    with pytest.raises(errors.InstallError, match="the package index can't be reached") as caught:
        manage_install.install("tiny", said.append)
    assert "with no network: `kernelk install --from BUNDLE`" in one_line(caught.value)
    assert any("no answer from the package index; trying again" in text for text in said)


def test_a_disk_that_is_too_full_is_told_before_anything_is_built(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "tiny", dataclasses.replace(RECIPES["tiny"], bytes=1 << 60))
    with pytest.raises(errors.InstallError, match=r"needs 1\d+\.\d MB on the disk of .*; next: free space") as caught:
        manage_install.install("tiny", lambda text: None)
    one_line(caught.value)
    assert left(places.root()) == []


def test_a_disk_that_fills_up_is_one_line(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tiny / "small"
    small.mkdir()
    if subprocess.run(
        ["/bin/mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(small)], capture_output=True
    ).returncode:
        pytest.skip("a small disk can't be mounted here, which takes root's rights")
    try:
        tiny_wheel(tiny, padding=24 << 20)
        monkeypatch.setenv("KERNELK_ENVS", str(small))
        with pytest.raises(errors.InstallError, match=r"no space left on the disk .*next: free space") as caught:
            manage_install.install("tiny", lambda text: None)
        one_line(caught.value)
        assert left(small) == []
    finally:
        subprocess.run(["/bin/umount", str(small)], check=True)


@pytest.mark.slow
def test_a_rebuild_that_fails_keeps_what_was_there(tiny: Path) -> None:
    wheel = tiny_wheel(tiny)
    python = manage_install.install("tiny", lambda text: None)
    (python.parent / "witness").touch()
    wheel.unlink()
    with pytest.raises(errors.InstallError, match="No matching distribution"):
        manage_install.install("tiny", lambda text: None, rebuild=True)
    assert places.installed_python("tiny") == python
    assert (python.parent / "witness").exists()
    tiny_wheel(tiny)
    # In a folder beside it: whoever runs in the old one, or kills this, has the old one as it was.
    again = manage_install.install("tiny", lambda text: None, rebuild=True)
    assert (
        places.installed_python("tiny")
        == again
        == python.parents[1].with_name(f"{places.folder('tiny').name}-2") / ("bin/python")
    )
    assert left(python.parents[2]) == [again.parents[1].name]
    assert manage_install.install("tiny", lambda text: None, rebuild=True) == python
    assert places.installed_python("tiny") == python
    assert left(python.parents[2]) == [python.parents[1].name]


def test_ctrl_c_ends_what_the_command_has_started(tiny: Path) -> None:
    tiny_wheel(tiny)
    note = tiny / "pid"
    check = f"""
import subprocess
process = subprocess.Popen(["/bin/sleep", "100"])
open({str(note)!r}, "w").write(str(process.pid))
process.wait()
"""
    stopped = start_install(tiny, check)
    assert wait_until(lambda: note.exists() and note.read_text() != "")
    os.kill(stopped.pid, signal.SIGINT)
    assert finish(stopped)[0] != 0
    assert wait_until(lambda: not alive(int(note.read_text())))
    assert places.installed_python("tiny") is None
    assert left(places.root()) == []


def test_a_notebook_shows_progress_and_its_stop_button_cancels(tiny: Path) -> None:
    tiny_wheel(tiny)
    register = f"{TINY_SOURCE}\nregister({str(tiny)!r}, 'import time; time.sleep(100)')"
    manager, client = start_new_kernel(env=os.environ | {"PYTHONPATH": str(PROJECT)})
    try:
        said: list[str] = []
        stopped: list[bool] = []

        def hear(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                said.append(message["content"]["text"])
                if "checking that it works" in message["content"]["text"] and not stopped:
                    stopped.append(True)
                    manager.interrupt_kernel()

        def run(code: str) -> dict[str, Any]:
            reply: dict[str, Any] = client.execute_interactive(code, timeout=PATIENCE, output_hook=hear)["content"]
            return reply

        assert run(register)["status"] == "ok"
        reply = run("import kernelk; kernelk.install('tiny')")
        assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
        assert "installing tiny==1.0: " in "".join(said)
        assert places.installed_python("tiny") is None
        assert left(places.root()) == []
        # The kernel lives, and the same goes through at the next try.
        assert run(register.replace("time.sleep(100)", "print(1.0)"))["status"] == "ok"
        assert run("kernelk.install('tiny')")["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert places.installed_python("tiny") is not None


def test_a_download_is_told_as_it_grows(bare: Path) -> None:
    said: list[str] = []

    class Both:
        def __call__(self, text: str) -> None:
            said.append(text)

        def moving(self, text: str) -> None:
            said.append(f"~ {text}")

    run = runner.Runner("Tiny", "tiny", bare / "log", Both(), "`again`")
    files = [LockedFile("a-1-py3-none-any.whl", 30_000_000, ""), LockedFile("b-2.tar.gz", 10_000_000, "")]
    progress = build.Downloads(files, bare, run)
    progress.line("Collecting a==1\n")
    progress.line("  Downloading http://x/a-1-py3-none-any.whl (30.0 MB)\n")
    (bare / "pip-unpack-1").mkdir()
    (bare / "pip-unpack-1" / files[0].name).write_bytes(bytes(12_000_000))
    progress.tick()
    progress.line("  Using cached b-2.tar.gz (10.0 MB)\n")
    progress.line("  Building wheel for b (setup.py): started\n")
    progress.line("Installing collected packages: a, b\n")
    assert [text.partition("] ")[2] for text in said] == [
        "downloading a-1-py3-none-any.whl (30.0 MB; 0.0 of 40.0 MB done)",
        "downloading a-1-py3-none-any.whl: 12.0 of 30.0 MB, in all 12.0 of 40.0 MB",
        "using cached b-2.tar.gz (10.0 MB; 30.0 of 40.0 MB done)",
        "building a wheel of b",
        "unpacking a, b",
    ]
    assert [text.startswith("~") for text in said] == [False, True, False, False, False]


def test_progress_stays_on_one_line_in_a_terminal_only(capsys: pytest.CaptureFixture[str]) -> None:
    from kernelk.display.progress import Moving, Progress

    # Nobody sees a carriage return in a file.
    moving = Moving(Progress())
    moving("1 of 9")
    assert capsys.readouterr().out == ""
    moving._last -= 60
    moving("2 of 9")
    assert capsys.readouterr().out == "2 of 9\n"
    moves = "p.moving('half'); p.moving('all' * 99); p('done')"
    pty_script = f"from kernelk.display.progress import Progress; p = Progress(); {moves}"
    leader, follower = os.openpty()
    command = [sys.executable, "-c", pty_script]
    subprocess.run(
        command, stdout=follower, check=True, env=os.environ | {"PYTHONPATH": str(PROJECT), "COLUMNS": "120"}
    )
    os.close(follower)
    shown = os.read(leader, 1000).decode()
    os.close(leader)
    width = 119
    assert shown == f"half\r    \r{('all' * 99)[:width]}\r{' ' * width}\rdone\r\n"


# ---------------------------------------------------------------------------- uninstall


def test_uninstall_removes_all_builds_and_says_what_it_freed(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make_complete("theano")
    (place / "big").write_bytes(bytes(3_000_000))
    older = place.with_name("theano-0123456789")
    older.mkdir()
    other = make_complete("cntk")
    said: list[str] = []
    assert sorted(kernelk.uninstall("theano", report=said.append)) == sorted([place, older])
    assert f"theano: removed {place}, 3 MB" in said
    assert places.installed_python("theano") is None
    assert places.installed_python("cntk") is not None
    assert left(place.parent) == [other.name]
    assert kernelk.uninstall("theano", report=said.append) == []
    assert said[-1] == "theano: not installed, nothing to remove"


def test_uninstall_leaves_the_environments_of_other_folders(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KERNELK_ENVS")
    users = make_complete("theano")
    monkeypatch.setenv("KERNELK_ENVS", str(bare / "envs"))
    said: list[str] = []
    with pytest.raises(errors.InstallError, match=f"isn't in {bare / 'envs'}, but in {users.parent}") as caught:
        manage_install.uninstall("theano", said.append)
    one_line(caught.value)
    place = make_complete("theano")
    assert manage_install.uninstall("theano", said.append) == [place]
    assert f"the one in {users.parent} was kept" in said[-1]
    assert places.installed_python("theano") == users / "bin/python"


def test_what_this_notebook_runs_is_not_removed(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kernelk.session.current import current

    class Running:
        started = True
        stopped = False
        engine = kernelk.engines.registry.engine("theano")

        def stop(self) -> None:
            self.stopped = True

    place = make_complete("theano")
    host = Running()
    session = current()
    monkeypatch.setitem(session.hosts, "theano", host)
    session.active = "theano"
    with pytest.raises(errors.InstallError, match=r"next: kernelk\.set_backend\('numpy'\), then") as caught:
        kernelk.uninstall("theano", report=lambda text: None)
    one_line(caught.value)
    assert place.exists()
    session.active = "numpy"
    kernelk.uninstall("theano", report=lambda text: None)
    assert host.stopped
    assert not place.exists()


# ---------------------------------------------------------------------------- recipes and locks


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_lock_has_a_file_for_every_pin_and_nothing_else(name: str) -> None:
    recipe = RECIPES[name]
    files = recipe.locked()
    pins = {pin.lower() for pin in (*recipe.bootstrap, *recipe.requirements)}
    assert {file.pin for file in files} == pins
    assert len({file.name for file in files}) == len(files)
    assert all(len(file.sha256) == 64 and file.size > 1000 for file in files)


@pytest.mark.parametrize(
    ("series", "platform", "numpy"),
    [
        ("3.6", "manylinux2010_x86_64", "numpy-1.19.5-cp36-cp36m-manylinux2010_x86_64.whl"),
        ("3.8", "manylinux2014_aarch64", "numpy-1.19.5-cp38-cp38-manylinux2014_aarch64.whl"),
        ("3.8", "macosx_10_9_x86_64", "numpy-1.19.5-cp38-cp38-macosx_10_9_x86_64.whl"),
        ("3.6", "win_amd64", "numpy-1.19.5-cp36-cp36m-win_amd64.whl"),
    ],
)
def test_the_files_for_a_python_on_a_platform(series: str, platform: str, numpy: str) -> None:
    python = "cp" + series.replace(".", "")
    abi = python + ("m" if series == "3.6" else "")
    tags = [f"{python}-{abi}-{platform}", f"{python}-{abi}-manylinux1_x86_64", "py3-none-any"]
    recipe = RECIPES["theano"]
    chosen = [file.name for file in recipe.choose(recipe.requirements, tags, "here")]
    assert chosen[0] == numpy
    assert chosen[2:] == ["six-1.16.0-py2.py3-none-any.whl", "Theano-1.0.5.tar.gz"]


def test_a_platform_without_files_is_one_line() -> None:
    recipe = RECIPES["cntk"]
    with pytest.raises(errors.InstallError, match=r"numpy==1\.19\.5 has no file for Python 3\.6 on Plan 9") as caught:
        recipe.choose(recipe.requirements, ["cp36-cp36m-plan9", "py3-none-any"], "Python 3.6 on Plan 9")
    one_line(caught.value)


def test_what_an_earlier_version_built_from_the_same_pins_stays_valid() -> None:
    # The folders' names from before there were locks.
    assert places.folder("theano", "3.6").name == "theano-e66d0cd959"
    assert places.folder("cntk").name == "cntk-620e79bae1"


# ---------------------------------------------------------------------------- one at a time


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


# ---------------------------------------------------------------------------- stub libraries

names = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=300)


@on_elf
@settings(deadline=None, max_examples=60)
@given(functions=st.sets(names, max_size=200), objects=st.sets(names, max_size=200), absent=names)
def test_any_names_make_a_library_that_loads(functions: set[str], objects: set[str], absent: str) -> None:
    objects -= functions
    with tempfile.TemporaryDirectory() as folder:
        path = mpi_stub.write(Path(folder) / "libany.so.1", functions, objects)
        library = ctypes.CDLL(str(path))
    try:
        assert all(library[name]() == 16 for name in functions)
        places = {}
        for name in objects:
            data = (ctypes.c_char * 64).in_dll(library, name)
            assert data.raw == bytes(64)
            data.raw = b"\xff" * 64  # writable, and no other object's bytes
            places[name] = ctypes.addressof(data)
        assert len(set(places.values())) == len(objects)
        if absent not in functions | objects and not hasattr(ctypes.CDLL(None), absent):
            with pytest.raises(AttributeError):
                library[absent]
    finally:
        _ctypes.dlclose(library._handle)


@pytest.mark.parametrize("functions", [[""], ["a\0b"], ["a", "a"]])
def test_impossible_names_are_refused(functions: list[str]) -> None:
    with pytest.raises(ValueError, match="name"):
        elf_stub.build("libx.so", functions, [], b"\xc3")


@on_elf
def test_the_mpi_stubs_load_globally_and_leave_the_stack_alone(tmp_path: Path) -> None:
    paths = mpi_stub.write_mpi_stubs(tmp_path)
    assert [path.name for path in paths] == ["libmpi.so.12", "libmpi_cxx.so.1"]
    functions, objects = mpi_stub.mpi_symbols()
    assert (len(functions), len(objects)) == (167, 8)
    script = f"""
import ctypes
for path in {[str(path) for path in paths]!r}:
    ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
everything = ctypes.CDLL(None)
assert all(everything[name]() == 16 for name in {functions!r})
assert all((ctypes.c_char * 64).in_dll(everything, name).raw == bytes(64) for name in {objects!r})
stack = [line for line in open("/proc/self/maps") if "[stack]" in line]
assert stack and "x" not in stack[0].split()[1], stack
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_no_segment_is_both_writable_and_executable() -> None:
    content = elf_stub.build("libx.so.1", ["f"], ["d"], b"\xc3")
    headers = [struct.unpack_from("<II", content, 64 + 56 * index) for index in range(4)]
    assert sorted(kind for kind, _ in headers) == [1, 1, 2, 0x6474E551]
    assert all(flags & 3 != 3 for _, flags in headers)


# ---------------------------------------------------------------------------- the real engines


def need(name: str) -> Path:
    """The engine's Python; without it a failure where KERNELK_REQUIRE names it, and a skip elsewhere."""
    try:
        return places.require_python(name)
    except errors.BackendNotInstalledError as error:
        if name in os.environ.get("KERNELK_REQUIRE", "").replace(",", " ").split():
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=sorted(RECIPES))
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    need(name)
    return name


def test_the_engine_imports_and_computes(engine: str) -> None:
    recipe = RECIPES[engine]
    command = [str(need(engine)), "-I", "-c", recipe.check]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    noted = places.marker(engine)
    assert noted is not None
    assert done.stdout.split() == [noted["engine"]]
    pinned = dict(pin.split("==") for pin in recipe.bootstrap + recipe.requirements)
    assert noted["versions"] == pinned  # nothing but the pins, and nothing missing


def test_a_second_install_starts_no_process(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object, **options: object) -> None:
        raise AssertionError(f"a process was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    said: list[str] = []
    assert manage_install.install(engine, report=said.append) == need(engine)
    assert len(said) == 1
    assert "already installed" in said[0]


def test_cntk_beside_a_foreign_mpi(tmp_path: Path) -> None:
    python = need("cntk")
    for name in ("libmpi.so.12", "libmpi_cxx.so.1"):
        mpi_stub.write(tmp_path / name, ["some_other_symbol"])
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    plain = [str(python), "-I", "-W", "ignore", "-c", "import cntk"]
    assert subprocess.run(plain, env=environment, capture_output=True).returncode != 0
    loaded = [str(python), "-I", "-c", RECIPES["cntk"].check]
    subprocess.run(loaded, env=environment, capture_output=True, check=True)


def test_distributed_training_fails_politely() -> None:
    script = """
import cntk
try:
    cntk.train.distributed.Communicator.num_workers()
except RuntimeError:
    print("refused")
"""
    command = [str(need("cntk")), "-I", "-W", "ignore", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr
