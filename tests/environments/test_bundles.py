"""Bundles: what they hold, what they refuse, and one of a real engine that is installed with no network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.engines import absent
from helpers.messages import one_line
from helpers.processes import PATIENCE, PROJECT

from kernelk import errors
from kernelk.environments import bundles, places
from kernelk.environments.recipes import RECIPES, LockedFile


def written(path: Path, contents: object, files: dict[str, bytes]) -> Path:
    """A bundle file with these contents, right or wrong."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("bundle.json", contents if isinstance(contents, str) else json.dumps(contents))
        for name, content in files.items():
            archive.writestr(f"files/{name}", content)
    return path


def contents(name: str = "theano", python: str = "3.6", files: tuple[str, ...] = ()) -> dict[str, object]:
    """The content of `bundle.json`."""
    return {"format": 1, "kernelk": "0.1.0", "engines": {name: {"python": python, "files": list(files)}}}


LOCKED: LockedFile = RECIPES["theano"].locked()[0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path / "nothing", "can't be read: No such file or directory; next: check the path"),
        (lambda path: path, "can't be read: Is a directory"),
        (lambda path: written(path / "b", "{", {}), "isn't a bundle, or wasn't copied completely"),
        (lambda path: written(path / "b", [], {}), "isn't a bundle, or wasn't copied completely"),
        (lambda path: written(path / "b", {"format": 7, "kernelk": "9.0"}, {}), "was made by kernelk 9.0 in a form"),
        (lambda path: written(path / "b", contents(files=("x.whl",)), {"x.whl": b""}), "isn't in the lock of this"),
        (
            lambda path: written(path / "b", contents(python="2.7"), {}),
            "is for Python 2.7, but Theano 1.0.5 needs 3.6 or",
        ),
        (lambda path: written(path / "b", contents(files=(LOCKED.name,)), {}), f"is damaged: {LOCKED.name} in it"),
        (
            lambda path: written(path / "b", contents(files=(LOCKED.name,)), {LOCKED.name: b"other"}),
            f"is damaged: {LOCKED.name} in it does not match the SHA-256 in kernelk's lock file",
        ),
        (lambda path: written(path / "b", contents(name="mxnet"), {}), "no environment to install for 'mxnet'"),
    ],
)
def test_what_is_no_good_bundle_is_one_line(bare: Path, make: Callable[[Path], Path], said: str) -> None:
    with pytest.raises((errors.InstallError, errors.BackendNotInstalledError)) as caught:
        bundles.install(make(bare), report=lambda text: None)
    assert said in one_line(caught.value)
    assert not (bare / "envs").exists()


def test_a_bundle_cut_short_is_one_line(bare: Path) -> None:
    path = written(bare / "b", contents(), {"x": bytes(100_000)})
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(errors.InstallError, match="wasn't copied completely; next: copy it again") as caught:
        bundles.install(path, report=lambda text: None)
    one_line(caught.value)


def test_an_engine_that_the_bundle_lacks(bare: Path) -> None:
    path = written(bare / "b", contents(), {})
    with pytest.raises(errors.InstallError, match="contains no 'cntk', only theano; next: ") as caught:
        bundles.install(path, ["cntk"], report=lambda text: None)
    one_line(caught.value)


def test_a_machine_without_the_bundles_python(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # What could create one needs the network: it isn't tried.
    monkeypatch.setattr("kernelk.environments.interpreters.makers", lambda recipe: pytest.fail("no network, no conda"))
    path = written(bare / "b", contents(), {})
    with pytest.raises(errors.BackendNotInstalledError, match=r"needs Python 3\.6, and none was found") as caught:
        bundles.install(path, report=lambda text: None)
    one_line(caught.value)


def test_a_bundle_cannot_be_written(bare: Path) -> None:
    for output in (bare / "no" / "such" / "folder.bundle", bare):
        with pytest.raises(errors.InstallError, match="its folder must exist") as caught:
            bundles.bundle(["theano"], output, report=lambda text: None)
        one_line(caught.value)


# ---------------------------------------------------------------------------- a real engine


def kernelk(*arguments: str, **settings: str) -> str:
    """Runs the program, which has to succeed; what it printed."""
    command = [sys.executable, "-m", "kernelk", *arguments]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)} | settings
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


def bundled_and_installed(name: str, folder: Path) -> None:
    """Makes a bundle from the installed engine, and installs it where no index can be reached."""
    if places.installed_python(name) is None:
        absent(name, places.missing(name))
    path = folder / f"{name}.bundle"
    said = kernelk("bundle", name, "--output", str(path))
    assert f"ready: {path}, " in said
    assert bundles.contents(path) == {name: "3.6"}
    with zipfile.ZipFile(path) as archive:
        inside = {entry.filename.removeprefix("files/"): entry.file_size for entry in archive.infolist()}
    inside.pop("bundle.json")
    locked = {file.name: file.size for file in RECIPES[name].locked()}
    assert inside.items() <= locked.items()
    assert len(inside) == len(RECIPES[name].bootstrap) + len(RECIPES[name].requirements)

    offline = {
        "KERNELK_ENVS": str(folder / "envs"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_FIND_LINKS": "",
        "PIP_INDEX_URL": "http://127.0.0.1:1/simple",
        "PIP_NO_CACHE_DIR": "1",
    }
    said = kernelk("install", "--from", str(path), **offline)
    assert f"ready: {name} " in said
    assert str(folder / "envs") in kernelk("list", **offline)
    checked = kernelk("doctor", name, **offline)
    assert "1 of 1 engines passed" in checked
    assert kernelk("install", "--from", str(path), **offline).endswith(f"already installed in {built(name, folder)}\n")
    noted = json.loads((built(name, folder) / "kernelk.json").read_text())
    assert set(noted["files"]) == set(inside)


def built(name: str, folder: Path) -> Path:
    """The environment's folder."""
    return folder / "envs" / places.folder(name).name


@pytest.mark.slow
def test_theano_is_bundled_and_installed_without_network(tmp_path: Path) -> None:
    bundled_and_installed("theano", tmp_path)


@pytest.mark.soak
def test_cntk_is_bundled_and_installed_without_network(tmp_path: Path) -> None:
    bundled_and_installed("cntk", tmp_path)


# `make setup` does it too, and the sizes change with the pins alone.
@pytest.mark.soak
@pytest.mark.parametrize("name", ["theano", "cntk"])
def test_an_engine_is_installed_from_the_index_with_hashes(name: str, tmp_path: Path) -> None:
    said = kernelk("install", name, KERNELK_ENVS=str(tmp_path / "envs"))
    noted = json.loads((built(name, tmp_path) / "kernelk.json").read_text())
    locked = {file.name: file.sha256 for file in RECIPES[name].locked()}
    assert noted["files"].items() <= locked.items()
    total = sum(file.size for file in RECIPES[name].locked() if file.name in noted["files"]) / 1e6
    told = [float(line.rpartition(": ")[2].split()[0]) for line in said.splitlines() if "] installing " in line]
    assert sum(told) == pytest.approx(total, abs=0.2)
    # What the lists of sizes promise: room enough, and not much more.
    assert 0.9 < float(noted["bytes"]) / RECIPES[name].bytes < 1.1
