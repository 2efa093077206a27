"""Files and paths that are no good, case by case: one line each, nothing lost, nothing read that wasn't asked for."""

from __future__ import annotations

import io
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.messages import one_line
from helpers.notebooks import run_cells
from helpers.processes import run_script
from helpers.readers import npy, npz

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.engines import memory
from kernelk.environments import bundles, places
from kernelk.environments.recipes import RECIPES
from kernelk.errors import ArgumentError, FileError, InstallError, KernelKError
from kernelk.graph.state import current_state
from kernelk.session import archive

DEEP = "[" * 100_000


def changed(content: bytes, record: bytes, at: int, value: bytes) -> bytes:
    """A zip file with other bytes in each of its local or central records."""
    data, begin = bytearray(content), content.find(record)
    while begin >= 0:
        data[begin + at : begin + at + len(value)] = value
        begin = content.find(record, begin + 1)
    return bytes(data)


def about(path: Path, **changes: Any) -> bytes:
    """The file with other words of its own."""
    with np.load(path) as file:
        told = json.loads(str(file["kernelk"])) | changes
        return npz(kernelk=npy(json.dumps(told)), **{key: npy(file[key]) for key in file.files if key != "kernelk"})


def head(shape: str, dtype: str = "'<f4'") -> bytes:
    """An array's first bytes, and 8 more."""
    words = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    words += b" " * (-(len(words) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(words).to_bytes(2, "little") + words + bytes(8)


def random(**changes: Any) -> dict[str, Any]:
    return {"entropy": 1, "count": 0, "fixed": 0, "counter": 0, "counts": {}, "taken": {}} | changes


def packed_otherwise() -> bytes:
    """An array packed by a method that numpy doesn't use."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_BZIP2) as packed:
        packed.writestr("v.npy", npy(np.ones(2, "float32")))
    return file.getvalue()


def twice() -> bytes:
    """Two arrays of one name."""
    return npz(v=npy(np.ones(2, "float32")), u=npy(np.ones(2, "float32"))).replace(b"u.npy", b"v.npy")


CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
FILES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "deep JSON": (lambda good: npz(kernelk=npy(DEEP), v=npy(np.ones(2, "float32"))), "nested too deeply"),
    "JSON of another type": (lambda good: npz(kernelk=npy("[1]"), v=npy(np.ones(2, "float32"))), "can't be read"),
    "no text": (lambda good: npz(kernelk=npy(np.ones(3)), v=npy(np.ones(2, "float32"))), "list of variables"),
    "encrypted": (lambda good: changed(good.read_bytes(), CENTRAL, 8, b"\x01"), "is encrypted"),
    "unknown compression": (lambda good: changed(good.read_bytes(), CENTRAL, 10, b"\x63"), "is compressed in a way"),
    "another compression": (lambda good: packed_otherwise(), "is compressed in a way"),
    "twice": (lambda good: twice(), "contains 'v' twice"),
    "terabytes": (lambda good: npz(v=head("(1099511627776,)")), "isn't as long as its shape"),
    "exabytes": (lambda good: npz(v=head(str((2,) * 63))), "isn't as long as its shape"),
    "negative": (lambda good: npz(v=head("(-1, -2)")), "isn't as long as its shape"),
    "deep head": (lambda good: npz(v=head("(" * 3000)), "can't be read"),
    "objects": (lambda good: npz(v=head("(1,)", "'|O'")), "it contains Python objects"),
    "structures of objects": (lambda good: npz(v=head("(1,)", "[('a', '|O')]")), "it contains Python objects"),
    "counter": (lambda good: about(good, random=random(counter=2**64 - 1)), "random state is damaged"),
    "count": (lambda good: about(good, random=random(count=2**64 - 1)), "random state is damaged"),
    "counts of another type": (lambda good: about(good, random=random(counts=[1])), "random state is damaged"),
    "a count beyond its end": (lambda good: about(good, random=random(counts={"0": 2**62})), "random state is damaged"),
    "a count of nothing": (lambda good: about(good, random=random(counts={"-1": 1})), "random state is damaged"),
    "state of another type": (lambda good: about(good, random=random() | {"fixed": 1.5}), "random state is damaged"),
    "no format": (lambda good: about(good, format="1"), "no format"),
    "keys of another type": (lambda good: about(good, variables=[["v", ["name"], "v"]]), "variables is damaged"),
    "a newer one": (lambda good: about(good, format=99, kernelk="x\n" * 500), "was written by kernelk x"),
}


@pytest.fixture
def v() -> Any:
    return K.variable([1.0, 2.0], name="v")


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_good_is_one_line_and_changes_nothing(case: str, v: Any, tmp_path: Path) -> None:
    good = kernelk.save(tmp_path / "good", [v]).path
    make, words = FILES[case]
    bad = tmp_path / "bad.npz"
    bad.write_bytes(make(good))
    K.set_value(v, [5.0, 6.0])
    before = current_state().seeds.state()
    for variables in (None, [v], {v: "v"}):
        with pytest.raises(FileError, match=words) as caught:
            kernelk.load(bad, variables)
        assert one_line(caught.value).isprintable()
        assert caught.value.next_step
        assert K.get_value(v).tolist() == [5.0, 6.0]
        assert current_state().seeds.state() == before
    assert K.eval(v * 2.0).tolist() == [10.0, 12.0]


def test_a_counter_near_its_end_goes_on(v: Any, tmp_path: Path) -> None:
    good = kernelk.save(tmp_path / "good", [v]).path
    (tmp_path / "late.npz").write_bytes(about(good, random=random(counter=2**62 - 9, count=2**62 - 9, fixed=2**64 - 1)))
    kernelk.load(tmp_path / "late.npz")
    for _ in range(3):
        assert np.isfinite(K.eval(K.random_normal((2,)))).all()
    assert kernelk.load(kernelk.save(tmp_path / "later").path).random


def test_a_part_is_read_and_nothing_else(v: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = K.variable(np.ones((1000, 1000)), name="other")
    file = kernelk.save(tmp_path / "x").path
    opened: list[str] = []
    real = zipfile.ZipFile.open
    with monkeypatch.context() as patch:
        patch.setattr(
            zipfile.ZipFile,
            "open",
            lambda self, name, *rest: opened.append(getattr(name, "filename", name)) or real(self, name, *rest),
        )
        loaded = kernelk.load(file, variables=[v])
    assert set(opened) == {"kernelk.npy", "v.npy"}
    assert (loaded.restored, list(loaded)) == (["v"], ["v"])
    # Damage elsewhere is no matter, and what doesn't fit isn't read at all.
    data = file.read_bytes()
    at = data.index(np.ones(100, "float32").tobytes())
    file.write_bytes(data[:at] + bytes(400) + data[at + 400 :])
    assert kernelk.load(file, variables=["v"]).restored == ["v"]
    with pytest.raises(FileError, match="Bad CRC-32"):
        kernelk.load(file)
    K.clear_session()
    other = K.variable(np.ones(3), name="other")
    monkeypatch.setattr(archive.Archive, "read", lambda *_: pytest.fail("it doesn't fit"))
    with pytest.raises(kernelk.errors.LoadRefusedError, match="'other' is float32"):
        kernelk.load(file, {other: "other"})


def test_variables_that_are_none(v: Any, tmp_path: Path) -> None:
    file = kernelk.save(tmp_path / "x").path
    calls: list[Callable[[Any], object]] = [
        lambda given: kernelk.save(file, given),
        lambda given: kernelk.load(file, given),
    ]
    for call in calls:
        for given in (5, [None], [b"v"], ["two\nlines"], {None: "v"}):
            with pytest.raises(ArgumentError) as caught:
                call(given)
            one_line(caught.value)


def test_what_fits_into_no_memory_is_not_read(v: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = kernelk.save(tmp_path / "x").path
    monkeypatch.setattr(memory, "room", lambda: (7, "a test"))
    with pytest.raises(
        FileError, match=r"its arrays take 8 B, and a test leaves 7 B; next: load some of them"
    ) as caught:
        kernelk.load(file)
    one_line(caught.value)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(path))


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "FIFO": (os.mkfifo, "it is a FIFO"),
    "folder": (Path.mkdir, r"Is a directory|it is a folder"),
    "socket": (unix_socket, "it is a socket"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a device"),
    "loop": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_regular_file_is_not_waited_for(
    kind: str, v: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, words = KINDS[kind]
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    place = Path("x.npz")
    make(place)
    mode = os.lstat(place).st_mode
    calls: list[Callable[[], object]] = [lambda: kernelk.load(place), lambda: bundles.contents(place)]
    if kind != "loop":  # which a new file may replace
        calls.append(lambda: kernelk.save(place))
    for call in calls:
        with pytest.raises((FileError, InstallError), match=words) as caught:
            call()
        one_line(caught.value)
    assert os.lstat(place).st_mode == mode
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("KERAS_HOME", "home")
    monkeypatch.chdir(tmp_path / "home")
    make(Path("keras.json"))
    monkeypatch.chdir(tmp_path)
    settings = config.Config().read()
    assert settings.values == config.DEFAULTS
    (problem,) = settings.problems
    assert "the defaults are used; fix or delete the file" in problem
    assert "can't be written" in config.save_backend("numpy") or kind == "loop"
    marker = tmp_path / "home" / places.MARKER
    os.rename("home/keras.json", marker)
    assert places.read_marker(tmp_path / "home", "0123") is None


NO_PATHS = ["", "/", ".", "nul\0", "half \ud800", "x" * 70_000, "no/such/folder", "~nosuchuser/x", b"x"]


@pytest.mark.parametrize("name", NO_PATHS, ids=lambda name: ascii(name)[:20])
def test_a_path_that_is_none_is_one_line(name: Any, v: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (lambda: kernelk.save(name), lambda: kernelk.load(name)):
        with pytest.raises(KernelKError) as caught:
            call()
        assert isinstance(caught.value, ArgumentError if isinstance(name, bytes) else FileError)
        line = one_line(caught.value)
        assert line.isprintable()
        assert len(line) < 800
        assert "next: " in line
    if isinstance(name, str):
        with pytest.raises(InstallError) as refused:
            bundles.contents(Path(name))
        assert one_line(refused.value).isprintable()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "name", ["half \ud800", "x" * 70_000, "line\nbreak", "<b>&", "\u202eright"], ids=lambda name: ascii(name)[:20]
)
def test_a_variable_of_any_name_is_saved_and_found(name: str, tmp_path: Path) -> None:
    a, b = K.variable([1.0], name=name), K.variable([2.0], name=name[:-1] + "_")
    saved = kernelk.save(tmp_path / "x")
    assert repr(saved).count("\n") == 1
    for variable in (a, b):
        K.set_value(variable, [0.0])
    loaded = kernelk.load(saved.path)
    assert repr(loaded).count("\n") == 2
    assert [K.get_value(x).item() for x in (a, b)] == [1.0, 2.0]
    K.clear_session()
    c = K.variable([1, 2], name=name)
    with pytest.raises(KernelKError) as caught:
        kernelk.load(saved.path)
    assert one_line(caught.value).isprintable()
    del c


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder that can be read and not written, for a user that permissions hold."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to others
        folder = Path(name)
        kernelk.save(folder / "x")
        folder.chmod(0o555)
        if is_root := os.geteuid() == 0:
            os.seteuid(65534)
        yield folder
        if is_root:
            os.seteuid(0)
        folder.chmod(0o700)


def test_a_folder_that_may_not_be_written(v: Any, closed: Path) -> None:
    before = (closed / "x.npz").read_bytes()
    with pytest.raises(FileError, match="Permission denied; nothing was saved, and an existing file is unchanged"):
        kernelk.save(closed / "x")
    assert (closed / "x.npz").read_bytes() == before
    assert os.listdir(closed) == ["x.npz"]


@pytest.mark.parametrize("limit", [0, 100, 4000, 400_000, 799_000])
def test_a_disk_that_is_full_leaves_the_old_file_whole(limit: int, tmp_path: Path) -> None:
    a, b = (K.variable(np.full((100, 1000), n), name=name) for n, name in ((1.0, "a"), (2.0, "b")))
    file = kernelk.save(tmp_path / "x").path
    before = file.read_bytes()
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, old[1]))
    try:
        with pytest.raises(FileError, match="can't be written: File too large; nothing was saved") as caught:
            kernelk.save(file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    one_line(caught.value)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.npz"]
    kernelk.load(file)
    assert [K.get_value(x)[0, 0] for x in (a, b)] == [1.0, 2.0]


# ---------------------------------------------------------------------------- keras.json


KERAS: dict[str, tuple[bytes, str]] = {
    "deep": (b'{"floatx": ' + b"[" * 100_000, "isn't valid JSON (it is nested too deeply)"),
    "deep objects": (b'{"a":' * 50_000, "isn't valid JSON (it is nested too deeply)"),
    "large": (b" " * (100 << 20), "can't be read (it has more than 1048576 bytes)"),
    "not UTF-8": (b'{"floatx": "\xff"}', "can't be read (it isn't UTF-8)"),
    "UTF-16": ('{"floatx": "float64"}'.encode("utf-16"), "can't be read (it isn't UTF-8)"),
    "NaN": (b'{"epsilon": NaN}', '"epsilon" is NaN, allowed is a number between 0 and 1'),
    "Infinity": (b'{"epsilon": 1e999}', '"epsilon" is Infinity, allowed is a number'),
    "digits": (b'{"epsilon": ' + b"9" * 5000 + b"}", "isn't valid JSON"),
    "twice": (b'{"floatx": "float64", "floatx": "float16"}', '"floatx" comes more than once; "float32" is used'),
    "list": (b'{"floatx": ' + b"[" * 500 + b"]" * 500 + b"}", '"floatx" is [[[['),
    "long": (b'{"floatx": "' + b"x" * 100_000 + b'"}', "..."),
    "backend": (b'{"backend": "a\\nb"}', "allowed is the name of a backend"),
    "half": (b'{"backend": "\\ud800"}', "allowed is the name of a backend"),
    "object": (b'{"backend": {"a": 1}}', "allowed is the name of a backend"),
}


@pytest.mark.parametrize("case", KERAS)
def test_a_keras_json_that_is_no_good_is_one_line_and_the_defaults(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    content, words = KERAS[case]
    (tmp_path / "keras.json").write_bytes(content)
    settings = config.Config().read()
    assert settings.values == config.DEFAULTS
    (problem,) = settings.problems
    assert words in problem
    assert problem.isprintable()
    assert len(problem) < 600
    said = config.save_backend("numpy")
    assert one_line(said).isprintable()
    if said.startswith("not saved"):
        assert (tmp_path / "keras.json").read_bytes() == content


def test_load_ext_goes_on_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_bytes(KERAS["deep"][0])
    cells = ["%load_ext kernelk", "from kernelk import backend as K\nprint(K.floatx(), K.eval(K.constant(2.0)))"]
    for _ in range(2):
        done = run_cells(cells, KERAS_HOME=str(tmp_path), KERNELK_BACKEND="numpy", KERNELK_QUIET=None)
        assert [cell["error"] for cell in done] == [None, None]
        assert done[0]["err"].count("\n") == 1
        assert "the defaults are used; fix or delete the file" in done[0]["err"]
        assert done[1]["out"] == "float32 2.0\n"
        (tmp_path / "keras.json").unlink(missing_ok=True)
        os.mkfifo(tmp_path / "keras.json")


def test_a_user_without_a_home(tmp_path: Path) -> None:
    code = f"import os\nos.chdir({str(tmp_path)!r})\nos.path.expanduser = lambda path: path\n"
    code += "from kernelk import config\nresult = [config.settings().values['floatx'], config.settings().problems]"
    assert run_script(code, KERAS_HOME=None) == ["float32", []]
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------- KERNELK_ENVS, markers, logs


def test_envs_that_can_be_no_folder(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (bare / "file").write_text("")
    parts = [str(bare / "file"), "relative", f"{bare}/line\nbreak", f"{bare}/\udcff", "~nosuchuser/x", "\x1b[31m"]
    monkeypatch.setenv("KERNELK_ENVS", os.pathsep.join(parts))
    monkeypatch.chdir(bare)
    assert places.roots()[:3] == [bare / "file", bare / "relative", bare / "~nosuchuser" / "x"]
    assert len(places.roots()) == 4
    assert [words.isprintable() for words in places.chosen_roots()[1]] == [True] * 3
    assert places.installed_python("theano") is None
    done = subprocess.run(
        [sys.executable, "-m", "kernelk", "list"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(kernelk.__file__).parents[1]), "LC_ALL": "C"},
    )
    assert done.returncode == 0, done.stderr
    assert "theano: not installed; next: " in done.stdout
    gone = bare / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert places.roots()[0] == bare / "file"
    assert any("relative to a folder that is gone" in words for words in places.chosen_roots()[1])


def test_a_marker_with_anything_in_it_is_listed(bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from kernelk.cli import main

    recipe = RECIPES["theano"]
    place = places.folder("theano")
    (place / "bin").mkdir(parents=True)
    (place / "bin/python").touch()
    for content in ({}, {"versions": [1], "bytes": "7", "engine": None}, {"versions": {"numpy": 1}, "build": "x"}):
        (place / places.MARKER).write_text(json.dumps({"recipe": recipe.hash("3.6"), **content}))
        assert main(["list"]) == 0
        assert "theano: installed, Theano" in capsys.readouterr().out
    for text in (DEEP, "[]", "7", '{"recipe": {}}', "\0"):
        (place / places.MARKER).write_text(text)
        assert main(["list"]) == 0
        assert "theano: only partly installed" in capsys.readouterr().out


def test_results_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    result = kernelk.time(lambda: K.eval(K.constant(1.0)), budget=0.01)
    file = tmp_path / "x.json"
    result.to_json(file)
    before = file.read_bytes()
    for bad in (tmp_path, tmp_path / "no" / "x.json", "nul\0", "x" * 5000):
        with pytest.raises(FileError, match="next: use to_json with another path") as caught:
            result.to_json(bad)
        one_line(caught.value)
    assert file.read_bytes() == before
    assert os.listdir(tmp_path) == ["x.json"]
