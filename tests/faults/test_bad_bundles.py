"""Bundles that are no good: one line each, and nothing of them is unpacked."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from pathlib import Path

import pytest
from helpers.messages import one_line

from kernelk.environments import bundles
from kernelk.environments.recipes import RECIPES, LockedFile, Recipe
from kernelk.errors import InstallError

DEEP = "[" * 100_000
LOCKED = min(RECIPES["theano"].locked(), key=lambda file: file.size)


def bundle(path: Path, told: object, files: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as packed:
        packed.writestr("bundle.json", told if isinstance(told, str) else json.dumps(told))
        for name, content in files.items():
            packed.writestr(f"files/{name}", content)
    return path


def told(files: object, **changes: object) -> dict[str, object]:
    engines = {"theano": {"python": "3.6", "files": files}}
    return {"format": 1, "kernelk": "0.1.0", "engines": engines} | changes


@pytest.mark.parametrize(
    ("said", "files", "words"),
    [
        (DEEP, {}, "isn't a bundle"),
        (told([LOCKED.name]) | {"engines": DEEP}, {}, "isn't a bundle"),
        (told("abc"), {}, "isn't a bundle"),
        (told({"a": 1}), {}, "isn't a bundle"),
        (told(7), {}, "isn't a bundle"),
        (told([["a"]]), {}, "which isn't in the lock"),
        (told(["../evil"]), {"../evil": b"x"}, "which isn't in the lock"),
        (told(["/tmp/evil"]), {"/tmp/evil": b"x"}, "which isn't in the lock"),
        (told([f"../files/{LOCKED.name}"]), {}, "which isn't in the lock"),
        (told(["line\nbreak"]), {}, "which isn't in the lock"),
        (told([], format=[1]), {}, "in a format this kernelk"),
        (told([], format=2, kernelk="x\n" * 500), {}, "in a format this kernelk"),
        (told([], engines=[]), {}, "isn't a bundle"),
        (told([], engines={"theano": None}), {}, "isn't a bundle"),
        (told([], engines={"theano": {"python": 3.6, "files": []}}), {}, "isn't a bundle"),
        (" " * (2 << 20), {}, "isn't a bundle"),
        (told([LOCKED.name]), {LOCKED.name: bytes(LOCKED.size)}, "does not match the SHA-256"),
        (told([LOCKED.name]), {LOCKED.name: bytes(LOCKED.size + 1)}, "is damaged"),
    ],
)
def test_a_bundle_that_is_no_good_is_one_line_and_unpacks_nothing(
    bare: Path, monkeypatch: pytest.MonkeyPatch, said: object, files: dict[str, bytes], words: str
) -> None:
    path = bundle(bare / "b", said, files, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(bundles, "install_recipe", lambda *_: pytest.fail("it is no good"))
    monkeypatch.setattr(os, "rename", lambda *_: pytest.fail("nothing is unpacked"))
    with pytest.raises(InstallError, match=words) as caught:
        bundles.install(path, report=lambda text: None)
    assert one_line(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_all_files_of_a_bundle_are_compared_before_the_first_is_written(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundles, "open", lambda *_: pytest.fail("nothing is written"), raising=False)
    content = b"content"
    right = LockedFile("a-1-py3-none-any.whl", len(content), hashlib.sha256(content).hexdigest())
    wrong = LockedFile("b-1-py3-none-any.whl", len(content), hashlib.sha256(b"another").hexdigest())
    monkeypatch.setattr(Recipe, "locked", lambda self: [right, wrong])
    path = bundle(bare / "b", told([right.name, wrong.name]), {right.name: content, wrong.name: content})
    with pytest.raises(InstallError, match=f"is damaged: {wrong.name}"):
        bundles.install(path, report=lambda text: None)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_bundle_is_packed_as_kernelk_packs_it(bare: Path, method: int) -> None:
    path = bundle(bare / "b", told([]), {}, method)
    with pytest.raises(InstallError, match="isn't a bundle"):
        bundles.contents(path)


def test_no_name_of_a_lock_leads_out_of_a_folder() -> None:
    for recipe in RECIPES.values():
        assert all(Path(file.name).name == file.name and file.name.isprintable() for file in recipe.locked())
