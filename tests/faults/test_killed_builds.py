"""Builds of environments that are killed: at each step, with what they have started left running, and in use.

The Python and its pip are scripts, so that a build takes a moment and stops where it is told to; the process that is
killed, its lock and its folders are real.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.environments import left
from helpers.fake_programs import program
from helpers.messages import one_line
from helpers.processes import PATIENCE, PROJECT, alive, wait_until

from kernelk.cli import main
from kernelk.environments import install, places
from kernelk.environments.recipes import RECIPES, Recipe
from kernelk.errors import InstallError
from kernelk.manage.install import uninstall

NAME = "theano"  # which `kernelk list` knows, too

DRIVER = """
import shutil, sys, time
from pathlib import Path
from kernelk.environments import install
from kernelk.environments.recipes import Recipe
flags, lock = Path(sys.argv[1]), Path(sys.argv[2])
def step(name):
    (flags / f"reached-{name}").touch()
    while (flags / f"hold-{name}").exists():
        time.sleep(0.02)
remove, rmtree = install._remove, shutil.rmtree
def slow_remove(*arguments):
    step("marker")
    remove(*arguments)
def slow_rmtree(path, **options):
    if not Path(path).name.startswith("."):
        step("removal")
    rmtree(path, **options)
install._remove, install.shutil.rmtree = slow_remove, slow_rmtree
recipe = Recipe("theano", "Tiny 1.0", ("3.6",), (), ("tiny==1.0",), "check", lock=lock)
from kernelk.environments.recipes import RECIPES
RECIPES["theano"] = recipe
install.install_recipe(recipe, lambda text: print(text, flush=True), rebuild=True)
"""

STEP = """
step() {
    : > FLAGS/reached-$1
    while [ -e FLAGS/hold-$1 ]; do /bin/sleep 0.05; done
}
"""
ENVIRONMENTS_PYTHON = """
case "$*" in
    *packaging.tags*) echo '[["py3-none-any"], "here"]' ;;
    *" list "*) echo '[{"name": "tiny", "version": "1.0"}]' ;;
    *" install "*) step pip; : > "${0%/bin/python}/package" ;;
    *) step check; echo 1.0 ;;
esac
"""
PYTHON = """
case "$*" in
    *" venv "*)
        for folder; do :; done
        /bin/mkdir -p "$folder/bin"
        step venv
        /bin/cp TEMPLATE "$folder/bin/python" ;;
    *) echo ANSWER ;;
esac
"""


@pytest.fixture
def flags(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with such a Python, a recipe for it, and the folder of the steps that are held."""
    folder = bare / "flags"
    folder.mkdir()
    step = STEP.replace("FLAGS", shlex.quote(str(folder)))
    template = program(bare / "template", step + ENVIRONMENTS_PYTHON)
    python = bare / "mine" / "python"
    answer = {"version": "3.6.1", "executable": str(python), "fit": True, "shared": True, "base": "/", "prefix": "/"}
    script = step + PYTHON.replace("TEMPLATE", shlex.quote(str(template)))
    program(python, script.replace("ANSWER", shlex.quote(json.dumps(answer))))
    monkeypatch.setenv("KERNELK_PYTHON_THEANO", str(python))
    lock = bare / "lock.txt"
    lock.write_text(f"tiny-1.0-py3-none-any.whl 1 {'0' * 64}\n")
    recipe = Recipe(NAME, "Tiny 1.0", ("3.6",), (), ("tiny==1.0",), "check", lock=lock)
    monkeypatch.setitem(RECIPES, NAME, recipe)
    return folder


def built(said: list[str] | None = None, rebuild: bool = False) -> Path:
    return install.install_recipe(RECIPES[NAME], (said if said is not None else []).append, rebuild)


def start(flags: Path) -> subprocess.Popen[str]:
    """Another process that builds it again."""
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    command = [sys.executable, "-c", DRIVER, str(flags), str(flags.parent / "lock.txt")]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, start_new_session=True)


def killed_at(step: str, flags: Path) -> None:
    """A rebuild in another process that is killed in this step; what it has started is left running."""
    (flags / f"hold-{step}").touch()
    reached = flags / f"reached-{step}"
    reached.unlink(missing_ok=True)  # by an earlier build
    process = start(flags)
    assert wait_until(lambda: reached.exists() or process.poll() is not None)
    assert process.poll() is None
    process.kill()
    process.communicate(timeout=PATIENCE)


def whole(python: Path | None) -> bool:
    return python is not None and (python.parents[1] / "package").exists()


@pytest.mark.parametrize("step", ["venv", "pip", "check", "marker", "removal"])
def test_a_rebuild_that_is_killed_leaves_a_whole_environment(
    step: str, flags: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = built()
    killed_at(step, flags)
    # At the next look, from any process; before the marker it is the old one, as it was.
    found = places.installed_python(NAME)
    assert whole(found)
    assert (found == first) == (step in ("venv", "pip", "check"))
    assert places.half_built(NAME) is None
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert "theano: installed, " in out
    (line,) = [line for line in out.splitlines() if "was left by an earlier install" in line]
    assert "next: `kernelk install theano` removes it" in line
    # The next install tells and clears what is left, what runs in it included.
    said: list[str] = []
    orphans = [pid for place in places.unfinished(NAME) for pid in places.users(place)]
    assert bool(orphans) == (step in ("venv", "pip", "check"))
    assert built(said) == found
    assert any("left by an earlier install" in text for text in said)
    assert left(flags.parent / "envs") == [found.parents[1].name]
    assert wait_until(lambda: not any(alive(pid) for pid in orphans))
    (flags / f"hold-{step}").unlink()
    assert built([]) == found
    again = built([], rebuild=True)
    assert whole(again)
    assert left(flags.parent / "envs") == [again.parents[1].name]


def test_a_first_build_that_is_killed_is_not_installed(flags: Path) -> None:
    killed_at("pip", flags)
    assert places.installed_python(NAME) is None
    assert places.missing(NAME) == "is only partly installed"
    (flags / "hold-pip").unlink()
    said: list[str] = []
    assert whole(built(said))
    assert any("left by an earlier install" in text for text in said)
    assert len(left(flags.parent / "envs")) == 1


def test_a_rebuild_leaves_an_environment_that_is_in_use(flags: Path) -> None:
    first = built()
    # A program by the name of the environment's Python, as a worker is.
    worker = subprocess.Popen([str(first), "600"], executable="/bin/sleep")
    try:
        assert wait_until(lambda: places.users(first.parents[1]) == [worker.pid])
        said: list[str] = []
        second = built(said, rebuild=True)
        assert second != first
        assert places.installed_python(NAME) == second
        assert whole(first)
        assert any(f"is in use by process {worker.pid}; a later install removes it" in text for text in said)
        assert built([]) == second
        assert whole(first)
        with pytest.raises(InstallError, match=f"is in use by process {worker.pid}") as caught:
            uninstall(NAME, said.append)
        one_line(caught.value)
        assert whole(first)
        assert whole(second)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert built([]) == second
    assert left(flags.parent / "envs") == [second.parents[1].name]
    killed_at("pip", flags)
    assert len(uninstall(NAME, said.append)) == 2
    assert left(flags.parent / "envs") == []


def test_what_kernelk_put_aside_before_is_found(flags: Path) -> None:
    """An earlier layout moved an environment away while it was built again, and a kill left it there."""
    first = built()
    place = first.parents[1]
    place.rename(place.with_name(f".{place.name}.previous"))
    (place / "bin").mkdir(parents=True)
    found = places.installed_python(NAME)
    assert found is not None
    assert found.parents[1].name == f".{place.name}.previous"
    again = built([], rebuild=True)
    assert left(flags.parent / "envs") == [again.parents[1].name]


def test_what_stands_in_the_place_of_a_log_or_a_lock(flags: Path) -> None:
    place = flags.parent / "envs"
    place.mkdir()
    other = flags.parent / "other"
    other.write_text("not a log")
    (place / "theano.log").symlink_to(other)
    os.mkfifo(place / "theano.lock")
    assert whole(built())
    assert other.read_text() == "not a log"
    (place / "theano.log").unlink()
    os.mkfifo(place / "theano.log")
    assert whole(built(rebuild=True))
    assert "--- venv" in (place / "theano.log").read_text()
    for name in ("theano.log", "theano.lock"):
        (place / name).unlink()
        (place / name).mkdir()
        with pytest.raises(InstallError, match=r"could not be installed in .*: Is a directory; next: ") as caught:
            built(rebuild=True)
        one_line(caught.value)
        (place / name).rmdir()
    assert places.installed_python(NAME) is not None
