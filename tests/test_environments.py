"""Interpreters, environments, stub libraries: fakes to make each case, the real engines where it counts."""

from __future__ import annotations

import _ctypes
import ctypes
import json
import os
import shlex
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernelk import environments, errors, mpi_stub
from kernelk.backends import elf_stub

PROJECT = Path(environments.__file__).parent.parent
SERIES = f"{sys.version_info[0]}.{sys.version_info[1]}"
TINY = environments.Recipe("tiny", "Tiny 1.0", (SERIES,), (), ("tiny==1.0",), "import tiny; print(tiny.VERSION)")

on_elf = pytest.mark.skipif(
    (sys.platform, os.uname().machine) != ("linux", "x86_64"), reason="stubs are ELF64 for x86-64 Linux"
)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing: no PATH, an empty home, no settings."""
    for name in list(os.environ):
        if name.startswith(("KERNELK_", "CONDA", "MAMBA", "PYENV")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KERNELK_ENVS", str(tmp_path / "envs"))
    monkeypatch.setitem(environments.RECIPES, "tiny", TINY)
    return tmp_path


def program(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def this_python(path: Path) -> Path:
    return program(path, f'exec {shlex.quote(sys.executable)} "$@"')


def fake_python(path: Path, version: str) -> Path:
    answer = {
        "version": version,
        "executable": str(path),
        "fit": True,
        "shared": True,
        "base": "/",
        "prefix": "/",
    }
    return program(path, f"echo {shlex.quote(json.dumps(answer))}")


def one_line(error: BaseException) -> str:
    assert "\n" not in str(error)
    return str(error)


# ---------------------------------------------------------------------------- interpreters


@pytest.mark.parametrize("place", ["PATH", "pyenv", "conda"])
def test_an_interpreter_is_found_in_each_place(bare: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    folder = bare / {"PATH": "bin", "pyenv": ".pyenv/versions/x/bin", "conda": "somewhere/bin"}[place]
    this_python(folder / f"python{SERIES}")
    if place == "PATH":
        monkeypatch.setenv("PATH", str(folder))
    if place == "conda":
        (bare / ".conda").mkdir()
        (bare / ".conda" / "environments.txt").write_text(f"/gone\n{folder.parent}\n")
    found = environments.find_interpreter(TINY)
    assert (found.source, found.series) == (place, SERIES)


def test_the_base_of_a_virtual_environment_is_taken(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELK_PYTHON_TINY", sys.executable)
    found = environments.find_interpreter(TINY)
    assert found.path.exists()
    assert sys.prefix == sys.base_prefix or not found.path.is_relative_to(sys.prefix)


def test_a_broken_interpreter_is_passed_over(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(bare / "bin" / f"python{SERIES}", "echo no such version >&2; exit 127")
    monkeypatch.setenv("PATH", str(bare / "bin"))
    this_python(bare / ".pyenv/versions/x/bin" / f"python{SERIES}")
    assert environments.find_interpreter(TINY).source == "pyenv"


def test_the_first_version_of_a_recipe_is_preferred_wherever_it_is(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bare / "bin"))
    fake_python(bare / "bin/python3.8", "3.8.18")
    theano = environments.RECIPES["theano"]
    assert environments.find_interpreter(theano).version == "3.8.18"
    for version in ("3.6.9", "3.6.15", "3.7.1"):
        name = f"python{version.rpartition('.')[0]}"
        fake_python(bare / ".pyenv/versions" / version / "bin" / name, version)
    assert environments.find_interpreter(theano).version == "3.6.15"


@pytest.mark.parametrize("variable", ["KERNELK_PYTHON_CNTK", "KERNELK_PYTHON36"])
def test_a_setting_comes_first(bare: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    fake_python(bare / ".pyenv/versions/3.6.15/bin/python3.6", "3.6.15")
    monkeypatch.setenv(variable, str(fake_python(bare / "mine", "3.6.1")))
    found = environments.find_interpreter(environments.RECIPES["cntk"])
    assert (found.version, found.source) == ("3.6.1", variable)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo Python 3.5.2", "doesn't answer as a Python (Python 3.5.2)"),
        ("exit 3", "it said nothing"),
        ("exec /bin/sleep 60", "gave no answer"),
        (None, "no such program"),
    ],
)
def test_a_broken_setting_is_an_error_that_names_it(
    bare: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, said: str
) -> None:
    monkeypatch.setattr(environments, "_PROBE_SECONDS", 1)
    if script:
        program(bare / "mine", script)
    fake_python(bare / ".pyenv/versions/3.6.15/bin/python3.6", "3.6.15")
    monkeypatch.setenv("KERNELK_PYTHON36", str(bare / "mine"))
    with pytest.raises(errors.BackendNotInstalledError) as caught:
        environments.find_interpreter(environments.RECIPES["cntk"])
    message = one_line(caught.value)
    assert said in message
    assert "KERNELK_PYTHON36" in message
    assert "must name a Python 3.6" in message


def test_a_setting_of_the_wrong_version_is_an_error(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELK_PYTHON_THEANO", str(fake_python(bare / "mine", "3.7.2")))
    with pytest.raises(errors.BackendNotInstalledError, match=r"is Python 3\.7\.2; .* a Python 3\.6 or 3\.8"):
        environments.find_interpreter(environments.RECIPES["theano"])


def test_a_python_that_cannot_build_environments_is_refused(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fake_python(bare / "mine", "3.6.1")
    path.write_text(path.read_text().replace('"fit": true', '"fit": false'))
    monkeypatch.setenv("KERNELK_PYTHON36", str(path))
    with pytest.raises(errors.BackendNotInstalledError, match=r"3\.6\.1 without venv and ensurepip"):
        environments.find_interpreter(environments.RECIPES["cntk"])


def test_no_interpreter_says_where_it_looked_and_what_to_do(bare: Path) -> None:
    broken = program(bare / ".pyenv/versions/3.6.15/bin/python3.6", "exit 1")
    with pytest.raises(errors.BackendNotInstalledError) as caught:
        environments.find_interpreter(environments.RECIPES["cntk"])
    message = one_line(caught.value)
    for part in ("CNTK 2.7 needs Python 3.6", "PATH", str(bare / ".pyenv"), "conda", f"passed over {broken}"):
        assert part in message
    assert message.endswith("next: `pyenv install 3.6.15`, then `kernelk install cntk`")


# ---------------------------------------------------------------------------- environments


def make_complete(name: str) -> Path:
    place = environments.folder(name)
    this_python(place / "bin" / "python")
    recipe = environments.RECIPES[name]
    content = {"recipe": environments._recipe_hash(recipe, recipe.pythons[0])}
    (place / environments.MARKER).write_text(json.dumps(content))
    return place


def test_the_folder_changes_with_the_pins_and_the_python(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = environments.folder("theano")
    assert before.parent == bare / "envs"
    assert environments.folder("theano", "3.8") != before == environments.folder("theano", "3.6")
    place = make_complete("cntk")
    old = environments.RECIPES["cntk"]
    newer = environments.Recipe("cntk", old.title, old.pythons, old.bootstrap, ("cntk==2.8",), old.check)
    monkeypatch.setitem(environments.RECIPES, "cntk", newer)
    assert environments.installed_python("cntk") is None
    assert environments.superseded("cntk") == [place]


def test_without_a_marker_it_is_not_installed(bare: Path) -> None:
    place = make_complete("cntk")
    assert environments.installed_python("cntk") == environments.require_python("cntk") == place / "bin/python"
    (place / environments.MARKER).unlink()
    assert environments.installed_python("cntk") is None
    assert environments.half_built("cntk") == place
    with pytest.raises(errors.BackendNotInstalledError) as caught:
        environments.require_python("cntk")
    assert "not installed to the end; next: `kernelk install cntk`" in one_line(caught.value)


@pytest.mark.parametrize("damage", ["marker cut off", "other pins", "python gone"])
def test_a_damaged_environment_is_not_installed(bare: Path, damage: str) -> None:
    place = make_complete("theano")
    assert environments.installed_python("theano") is not None
    if damage == "marker cut off":
        (place / environments.MARKER).write_text('{"recipe": ')
    elif damage == "other pins":
        (place / environments.MARKER).write_text('{"recipe": "0123"}')
    else:
        (place / "bin/python").unlink()
        (place / "bin/python").symlink_to(bare / "removed")
    assert environments.installed_python("theano") is None


def test_an_unwritable_place_is_one_line(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "file").write_text("")
    monkeypatch.setenv("KERNELK_ENVS", str(bare / "file" / "below"))
    monkeypatch.setenv("KERNELK_PYTHON36", str(fake_python(bare / "mine", "3.6.1")))
    with pytest.raises(errors.InstallError, match="choose another folder with KERNELK_ENVS") as caught:
        environments.install("theano")
    one_line(caught.value)


# A build with a recipe of our own, on this Python and from a local wheel: quick, and every failure at hand.
DRIVER = """
import sys
from kernelk import environments as e, errors
check = sys.argv[2] if len(sys.argv) > 2 else "import tiny; print(tiny.VERSION)"
e.RECIPES["tiny"] = e.Recipe("tiny", "Tiny 1.0", (sys.argv[1],), (), ("tiny==1.0",), check)
try:
    e.install("tiny", report=lambda text: print(text, flush=True))
except errors.InstallError as error:
    sys.exit(str(error))
"""


def start_install(bare: Path, *check: str) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": str(PROJECT),
        "KERNELK_PYTHON_TINY": sys.executable,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(bare),
        "PIP_TARGET": str(bare / "astray"),  # a user's own setting, which must not send packages elsewhere
    }
    command = [sys.executable, "-c", DRIVER, SERIES, *check]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=pipe, start_new_session=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, problems = process.communicate(timeout=100)
    return process.returncode, output, problems


def test_builds_that_fail_stop_or_meet(bare: Path) -> None:
    place = environments.folder("tiny")

    # pip fails: its own last word, the log, no marker.
    status, _, problems = finish(start_install(bare))
    assert status == 1
    assert "pip failed: ERROR: No matching distribution found for tiny==1.0" in problems
    assert problems.count("\n") == 1
    log = Path(problems.partition("(log: ")[2].partition(")")[0])
    assert "No matching distribution" in log.read_text()
    assert environments.half_built("tiny") == place

    # Ctrl-C: a half-built folder, and nothing left running that holds our pipes.
    stopped = start_install(bare)
    assert stopped.stdout is not None
    while "building with" not in stopped.stdout.readline():
        assert stopped.poll() is None
    os.killpg(stopped.pid, signal.SIGINT)
    assert finish(stopped)[0] != 0
    assert environments.installed_python("tiny") is None

    # The check fails: the last line of what it said.
    with zipfile.ZipFile(bare / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "VERSION = '1.0'\n")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr("tiny-1.0.dist-info/WHEEL", tags)
        wheel.writestr("tiny-1.0.dist-info/RECORD", "tiny.py,,\n")
    status, _, problems = finish(start_install(bare, "import tiny; raise ValueError('one is two')"))
    assert status == 1
    assert "check failed: ValueError: one is two (log: " in problems
    assert environments.installed_python("tiny") is None

    # Two at once: one builds, in the folder that the others left; the second waits and finds it done.
    both = [start_install(bare), start_install(bare)]
    results = [finish(process) for process in both]
    assert [status for status, _, _ in results] == [0, 0], results
    built = [output for _, output, _ in results if "ready: tiny 1.0" in output]
    waited = [output for _, output, _ in results if "another process is installing it; waiting" in output]
    assert len(built) == len(waited) == 1
    assert "which an earlier install left" in built[0]
    assert "already installed" in waited[0]
    assert "pip" not in waited[0]

    assert environments.installed_python("tiny") == place / "bin" / "python"
    noted = environments.marker("tiny")
    assert noted is not None
    assert isinstance(noted["versions"], dict)
    assert (noted["engine"], noted["versions"]["tiny"]) == ("1.0", "1.0")
    assert not (bare / "astray").exists()


def test_the_lock_without_fcntl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environments, "fcntl", None)
    events: list[str] = []
    path = tmp_path / "x.lock"

    def second() -> None:
        with environments._lock(path, lambda: events.append("waits")):
            events.append("second")

    with environments._lock(path, lambda: events.append("never")):
        thread = threading.Thread(target=second)
        thread.start()
        deadline = time.monotonic() + 10
        while not events and time.monotonic() < deadline:
            time.sleep(0.01)
        events.append("first done")
    thread.join(timeout=10)
    assert events == ["waits", "first done", "second"]

    abandoned = tmp_path / "x.held"
    abandoned.touch()
    os.utime(abandoned, (0, 0))
    with environments._lock(path, lambda: events.append("never")):
        assert abandoned.stat().st_mtime > 0
    assert "never" not in events
    assert not abandoned.exists()


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
        return environments.require_python(name)
    except errors.BackendNotInstalledError as error:
        if name in os.environ.get("KERNELK_REQUIRE", "").replace(",", " ").split():
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session", params=sorted(environments.RECIPES))
def engine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    need(name)
    return name


def test_the_engine_imports_and_computes(engine: str) -> None:
    recipe = environments.RECIPES[engine]
    command = [str(need(engine)), "-I", "-c", recipe.check]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    noted = environments.marker(engine)
    assert noted is not None
    assert done.stdout.split() == [noted["engine"]]
    pinned = dict(pin.split("==") for pin in recipe.bootstrap + recipe.requirements)
    assert noted["versions"] == pinned  # nothing but the pins, and nothing missing


def test_a_second_install_starts_no_process(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object, **options: object) -> None:
        raise AssertionError(f"a process was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", forbidden)
    said: list[str] = []
    started = time.perf_counter()
    assert environments.install(engine, report=said.append) == need(engine)
    assert time.perf_counter() - started < 1
    assert len(said) == 1
    assert "already installed" in said[0]


def test_cntk_beside_a_foreign_mpi(tmp_path: Path) -> None:
    python = need("cntk")
    for name in ("libmpi.so.12", "libmpi_cxx.so.1"):
        mpi_stub.write(tmp_path / name, ["some_other_symbol"])
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    plain = [str(python), "-I", "-W", "ignore", "-c", "import cntk"]
    assert subprocess.run(plain, env=environment, capture_output=True).returncode != 0
    loaded = [str(python), "-I", "-c", environments.RECIPES["cntk"].check]
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
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr
