"""Builds of environments: what stops them, what they leave, what is said meanwhile, and folders that others share."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.environments import left, make_complete
from helpers.messages import one_line
from helpers.processes import PATIENCE, PROJECT, alive, wait_until
from jupyter_client.manager import start_new_kernel

from kernelk import errors
from kernelk.environments import build, install, places, runner
from kernelk.environments.recipes import RECIPES, LockedFile
from kernelk.manage import install as manage_install

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


# ---------------------------------------------------------------------------- shared folders


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
