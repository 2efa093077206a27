"""Environments: which count as installed, where they are looked for, and what removes them; then the real ones."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.environments import left, make_complete
from helpers.fake_programs import fake_python
from helpers.messages import one_line
from helpers.processes import PATIENCE

import kernelk
from kernelk import errors
from kernelk.environments import interpreters, mpi_stub, places
from kernelk.environments.recipes import RECIPES, Recipe
from kernelk.manage import doctor_report
from kernelk.manage import install as manage_install

# ---------------------------------------------------------------------------- environments


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
