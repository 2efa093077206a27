"""kernelk's readers of files, each as a function of bytes that raises AssertionError where it breaks its promise.

The promise: a valid result, or a KernelKError in one line; nothing else, and nothing changed by a file that is refused.
`tools/fuzz.py` and `tests/faults/test_fuzzed_files.py` feed them.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import kernelk
from kernelk import backend as K
from kernelk import config
from kernelk.display.tables import MONOSPACE
from kernelk.engines.worker_log import WorkerLog, last_words
from kernelk.environments import bundles, places
from kernelk.environments.recipes import Recipe
from kernelk.errors import KernelKError
from kernelk.graph.state import current_state
from kernelk.manage.logs import LogReport


class Reader(NamedTuple):
    """A reader of bytes, with valid inputs to start from."""

    read: Callable[[bytes], None]
    seeds: list[bytes]


def refused(call: Callable[[], Any]) -> bool:
    """Whether it was refused as it should be: by an error of kernelk's own, in one line with a problem."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as numpy's, of how an array's head is written
        try:
            call()
            return False
        except KernelKError as error:
            caught = error
    line = str(caught)
    assert caught.problem
    assert line.isprintable(), repr(line)
    assert len(line) < 5000, len(line)
    return True


def npz(**members: bytes) -> bytes:
    """A zip file of these members, with right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return file.getvalue()


def npy(array: Any) -> bytes:
    """An array as numpy writes it."""
    file = io.BytesIO()
    np.lib.format.write_array(file, np.asarray(array))
    return file.getvalue()


def readers(folder: Path) -> dict[str, Reader]:
    """All readers, working in this folder. Makes two variables in the current session, which has to be on numpy."""
    w, b = K.variable(np.arange(6.0).reshape(2, 3), name="w"), K.variable([1.0, 2.0], "float64")
    place = folder / "file.npz"
    good = kernelk.save(place).path.read_bytes()
    with np.load(place) as file:
        about = str(file["kernelk"])
        others = {key: npy(file[key]) for key in file.files if key != "kernelk"}
    compressed = io.BytesIO()
    np.savez_compressed(compressed, w=np.ones((2, 3), "float32"), other=np.arange(9))

    def load(content: bytes, only: bool = False) -> None:
        place.write_bytes(content)
        before = [K.get_value(x).tobytes() for x in (w, b)], current_state().seeds.state()
        if refused(lambda: kernelk.load(place, [w] if only else None)):
            assert ([K.get_value(x).tobytes() for x in (w, b)], current_state().seeds.state()) == before
        K.eval(K.random_normal((1,)))  # whatever the random state is now

    # Past the checksums, which hide what is inside of them from a fuzzer.
    def load_array(content: bytes) -> None:
        load(npz(w=content), only=True)

    def load_about(content: bytes) -> None:
        load(npz(kernelk=npy(content.decode("utf-8", "replace")), **others))

    wheel = b"wheel" * 20
    lock = folder / "lock.txt"
    lock.write_text(f"tiny-1.0-py3-none-any.whl {len(wheel)} {hashlib.sha256(wheel).hexdigest()}\n")
    recipe = Recipe("tiny", "Tiny 1.0", ("3.6",), (), ("tiny==1.0",), "", lock=lock)
    bundle = folder / "file.bundle"

    def contents(**changes: Any) -> str:
        entry = {"python": "3.6", "files": ["tiny-1.0-py3-none-any.whl"]}
        return json.dumps({"format": 1, "kernelk": "0.1", "platform": "linux", "engines": {"tiny": entry}, **changes})

    def bundled(text: str, method: int = zipfile.ZIP_STORED) -> bytes:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as archive:
            archive.writestr("bundle.json", text)
            archive.writestr("files/tiny-1.0-py3-none-any.whl", wheel)
        return file.getvalue()

    def unpack(content: bytes) -> None:
        bundle.write_bytes(content)
        target = folder / "unpacked"
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()

        def whole() -> None:
            with bundles._opened(bundle) as archive:
                engines = bundles._engines(bundle, archive)
            for engine in engines.values():
                bundles._extract(bundle, recipe, engine, target, "`again`")

        if refused(lambda: bundles.contents(bundle)):
            assert refused(whole)
        elif refused(whole):
            assert os.listdir(target) == []
        else:
            assert all((target / name).read_bytes() == wheel for name in os.listdir(target))

    def bundle_contents(content: bytes) -> None:
        unpack(bundled(content.decode("utf-8", "replace")))

    def keras_json(content: bytes) -> None:
        (folder / "keras.json").write_bytes(content)
        old = os.environ.get("KERAS_HOME")
        os.environ["KERAS_HOME"] = str(folder)
        try:
            settings = config.Config().read()
        finally:
            if old is None:
                del os.environ["KERAS_HOME"]
            else:
                os.environ["KERAS_HOME"] = old
        assert all(config._check(field, value) is None for field, value in settings.values.items())
        assert all(problem.isprintable() and len(problem) < 1000 for problem in settings.problems)
        assert len(settings.problems) <= 4

    def marker(content: bytes) -> None:
        (folder / places.MARKER).write_bytes(content)
        found = places.read_marker(folder, "0123")
        assert found is None or (isinstance(found["versions"], dict) and isinstance(found["bytes"], int))

    def log(content: bytes) -> None:
        worker_log = WorkerLog()
        worker_log._add(content)
        report = LogReport("spare", *worker_log.since(0))
        assert "\n" not in last_words(report.text)
        page = report._repr_html_()
        for tag in ("<div>", "</div>", f'<pre style="{MONOSPACE}">', "</pre>"):
            page = page.replace(tag, "", 1)
        assert "<" not in page

    def load_path(content: bytes) -> None:
        # As a path that leads nowhere but into the folder, and as the name of a variable.
        text = content.decode("utf-8", "surrogateescape").replace("/", "_")  # half characters included
        refused(lambda: kernelk.load(folder / "names" / text))
        named = K.variable([4.0], name=text or None)
        file = folder / "named.npz"
        (key,) = kernelk.save(file, [named]).names
        K.set_value(named, [0.0])
        if refused(lambda: kernelk.load(file, [named])):  # of one name with another one
            kernelk.load(file, {named: key})
        assert K.get_value(named).tolist() == [4.0]
        names = folder / "names"
        names.mkdir(exist_ok=True)
        if text not in ("", ".", ".."):
            refused(lambda: kernelk.save(names / text, [w]))
        shutil.rmtree(names)

    return {
        "npz": Reader(load, [good, compressed.getvalue()]),
        "npz_part": Reader(lambda content: load(content, only=True), [good, compressed.getvalue()]),
        "npy": Reader(load_array, [npy(np.ones((2, 3), "float32")), npy(np.ones((2, 3), ">f4")), npy(np.ones(0))]),
        "about": Reader(load_about, [about.encode()]),
        "bundle": Reader(unpack, [bundled(contents()), bundled(contents(), zipfile.ZIP_DEFLATED)]),
        "bundle_json": Reader(bundle_contents, [contents().encode(), contents(engines={}).encode()]),
        "keras_json": Reader(keras_json, [json.dumps(config.DEFAULTS).encode(), b'{"floatx": "float64", "x": [1]}']),
        "marker": Reader(marker, [json.dumps({"recipe": "0123", "versions": {"a": "1"}, "bytes": 7}).encode()]),
        "log": Reader(log, [b"Fatal Python error: <b>Segmentation fault</b>\n\x1b[31mred\x1b[0m\n", "é\n".encode()]),
        "name": Reader(load_path, [b"w", "layer/ü:0".encode(), b"a\0b", b"x.npz", b"~nobody"]),
    }


_TOKENS = [
    b"[" * 5000, b'{"a":' * 3000, b"(" * 90, b"-1", b"1e999", b"NaN", b"null", b"true", b'""', b"\0", b"\n",
    b"\xff\xfe", b"18446744073709551615", b"9" * 5000, b"..", b"../../x", b"/etc/passwd", b"PK\x01\x02",
    b"PK\x03\x04", b"PK\x05\x06", b"|O", b"<U9", b"<f8", b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\\ud800",
    b"\xed\xa0\x80", b"\x93NUMPY\x03\x00",
]  # fmt: skip


def mutated(content: bytes, generator: random.Random) -> bytes:
    """The bytes after some changes, small and large."""
    data = bytearray(content)
    for _ in range(generator.choice((1, 1, 1, 2, 4, 8))):
        at = generator.randrange(len(data) + 1)
        kind = generator.randrange(7)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << generator.randrange(8)
        elif kind == 1 and data:
            data[at % len(data)] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)))
        elif kind == 2:
            data[at:at] = generator.choice(_TOKENS)
        elif kind == 3:
            token = generator.choice(_TOKENS)
            data[at : at + len(token)] = token
        elif kind == 4:
            del data[at : at + generator.randrange(1, 40)]
        elif kind == 5:
            begin = generator.randrange(len(data) + 1)
            data[at:at] = data[begin : begin + generator.randrange(1, 80)]
        else:
            del data[at:]
    return bytes(data)


def scratch() -> Path:
    """A folder for `readers`."""
    return Path(tempfile.mkdtemp(prefix="kernelk-readers-"))
