"""What SECURITY.md promises: nothing listens, nothing is unpickled, nothing private is open, all markup is text."""

from __future__ import annotations

import ast
import base64
import os
import re
import stat
import tempfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from helpers.engines import activate
from helpers.fake_engines import register
from helpers.processes import PROJECT, run_script

import kernelk
from kernelk import backend as K
from kernelk import files
from kernelk.engines.descriptors import Engine
from kernelk.engines.worker_log import WorkerLog, last_words
from kernelk.environments.recipes import RECIPES
from kernelk.errors import ArgumentError
from kernelk.inspection.inventory import rows
from kernelk.manage.logs import LogReport
from kernelk.session.current import current
from kernelk.widgets import facts, static

SOURCES = {str(path.relative_to(PROJECT)): path for path in sorted((PROJECT / "kernelk").rglob("*.py"))}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}

# What turns bytes into code, or opens a door.
MODULES = {
    "pickle", "cPickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "code", "codeop",
    "multiprocessing", "xmlrpc", "socketserver", "http", "ftplib", "telnetlib", "urllib", "requests", "asyncore",
}  # fmt: skip
# Keras 2 reads the function of a `Lambda` layer by it, which is handed on: SECURITY.md says so.
HANDED_ON = {"kernelk/keras2/old_modules.py": {"marshal"}}
LISTENING = {"listen", "bind", "accept", "create_server", "create_connection", "connect", "AF_INET", "AF_INET6"}
# Text that is run, and where it comes from.
RUNS_TEXT = {
    "kernelk/notebook/cell_body.py": "the user's own cell, in the user's own kernel",
    "kernelk/backends/torch/backend.py": "v1 = k1(v0) ..., written from numbers in the process that runs it",
    "kernelk/cli/scripts.py": "the script that the user names",
}


def named(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield named(node.func), node


@pytest.mark.parametrize("name", SOURCES)
def test_no_bytes_become_code_and_nothing_listens(name: str) -> None:
    tree = TREES[name]
    imported: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            imported.add((node.module or "").partition(".")[0])
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is False
    assert not imported & MODULES - HANDED_ON.get(name, set())
    for node in ast.walk(tree) if "socket" in imported else ():
        # A host's `listen` reads what its worker says.
        if isinstance(node, ast.Attribute) and node.attr in LISTENING:
            assert (named(node.value), node.attr) == ("self", "listen"), f"line {node.lineno}"
    for function, call in calls(tree):
        where = f"line {call.lineno}"
        owner = named(call.func.value) if isinstance(call.func, ast.Attribute) else ""
        # Keras 2's modules are run with another `__import__`, which hands on what it is given.
        assert function != "__import__" or name == "kernelk/keras2/importing.py", where
        assert (owner, function) not in (("os", "system"), ("os", "popen"), ("tempfile", "mktemp")), where
        # Of files, `session.archive` reads what is asked for and knows what it may be.
        assert (owner, function) not in (("np", "load"), ("numpy", "load")), where


def runs_text(tree: ast.AST) -> bool:
    builtins = {"eval", "exec"}
    return any(
        (function in builtins and isinstance(call.func, ast.Name)) or function in ("run_path", "run_module", "run_code")
        for function, call in calls(tree)
    )


def test_text_is_run_in_three_places_alone() -> None:
    assert {name for name, tree in TREES.items() if runs_text(tree)} == set(RUNS_TEXT)


@pytest.mark.soak  # PyTorch in a process of its own
def test_a_program_for_pytorch_is_numbers() -> None:
    pytest.importorskip("torch", reason="PyTorch isn't here")
    texts = run_script(
        "import builtins, numpy as np, kernelk\nfrom kernelk import backend as K\n"
        "from kernelk.backends.torch import backend\nresult = []\n"
        "backend.compile = lambda text, *rest: (result.append(text), compile(text, *rest))[1]\n"
        "kernelk.set_backend('torch', in_kernel=True)\n"
        "x, w = K.placeholder((None, 2), name='os.abort()'), K.variable(np.ones((2, 2)), name='); x(')\n"
        "K.function([x], [K.softmax(K.dot(x, w))], [K.update_add(w, w)])([np.ones((1, 2))])"
    )
    assert texts
    words = {word for text in texts for word in re.findall(r"[^\W\d]+", text)}
    known = {"def", "program", "feeds", "state", "draws", "destinations", "begin", "own"}
    assert words <= known | {"v", "k", "del", "return", "out"}


def test_no_front_end_code_takes_markup() -> None:
    front = PROJECT / "kernelk" / "widgets" / "front"
    sources = sorted(front.rglob("*.js"))
    assert sources
    for path in sources:
        text = path.read_text(encoding="utf-8")
        found = re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc", text)
        assert not found, f"{path.name}: {found}"


# ---------------------------------------------------------------------------- processes and files


def test_a_worker_and_its_kernel_listen_nowhere_and_share_nothing_by_name(spare: str) -> None:
    activate(spare)
    v = K.variable(np.ones(10))
    K.eval(v + 1.0)
    host = current().hosts[spare]
    assert host.pid is not None
    for process in (psutil.Process(), psutil.Process(host.pid)):
        connections = (
            process.net_connections("all") if hasattr(process, "net_connections") else process.connections("all")
        )
        if process.pid == host.pid:
            assert not [c for c in connections if c.status == psutil.CONN_LISTEN or c.family.name != "AF_UNIX"]
        assert not [c for c in connections if c.family.name == "AF_UNIX" and "kernelk" in str(c.laddr)]
    assert not [name for name in os.listdir("/dev/shm") if "kernelk" in name]
    # Its folder, and what is in it.
    folder = Path(host._scratch)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.stat().st_uid == os.geteuid()
    # What is passed to another process: the descriptors named, and no environment of Python's own.
    assert "PYTHONPATH" not in " ".join(psutil.Process(host.pid).cmdline()[:3])


def test_what_is_written_is_private_until_it_is_there(tmp_path: Path) -> None:
    place = tmp_path / "x.npz"
    with files.replacing(place) as file:
        file.write(b"half")
        (partial,) = tmp_path.iterdir()
        assert stat.S_IMODE(partial.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["x.npz"]
    place.chmod(0o600)
    K.variable([1.0], name="secret")
    kernelk.save(place)
    assert stat.S_IMODE(place.stat().st_mode) == 0o600


def test_temporary_folders_are_made_by_what_makes_them_private() -> None:
    found = [
        (name, call.lineno, function)
        for name, tree in TREES.items()
        for function, call in calls(tree)
        if function in ("mkdtemp", "mkstemp", "TemporaryDirectory", "NamedTemporaryFile", "TemporaryFile")
    ]
    assert found
    with tempfile.TemporaryDirectory() as folder:
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    # No path in the temporary folder is put together by hand: its name is only told.
    told = {name for name, tree in TREES.items() for function, _ in calls(tree) if function == "gettempdir"}
    assert told == {f"kernelk/{name}.py" for name in ("manage/machine_facts", "environments/bundles", "engines/memory")}


def test_every_file_of_an_engine_is_named_by_its_hash() -> None:
    for recipe in RECIPES.values():
        for file in recipe.locked():
            assert re.fullmatch("[0-9a-f]{64}", file.sha256)
    build = (PROJECT / "kernelk" / "environments" / "build.py").read_text(encoding="utf-8")
    assert '"--no-deps", "--require-hashes"' in build


# ---------------------------------------------------------------------------- markup


EVIL = "<img src=x onerror=alert(1)>'\"&<b>\x1b[31m"


class Tags(HTMLParser):
    """What a browser takes for tags and their attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.attributes: set[str] = set()
        self.sources: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes |= {name for name, _ in attrs}
        self.sources |= {str(value)[:5] for name, value in attrs if name == "src"}
        assert tag != "script"


def assert_text(page: str, commands: bool = False) -> None:
    """No tag of a name's, wherever it stands, the pictures in a page included; no `commands` of a terminal's either."""
    pictures = [base64.b64decode(data).decode() for data in re.findall(r"svg\+xml;base64,([^\"']+)", page)]
    for markup in (page, *pictures):
        tags = Tags(markup)
        assert "onerror" not in tags.attributes
        assert tags.sources <= {"data:"}
        assert commands or "\x1b" not in markup


@pytest.fixture
def evil(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An engine whose title, version and device are markup: numpy in a worker."""
    register(monkeypatch, Engine("evil", EVIL, "numpy", "NumpyBackend", imports="numpy", install=f"pip install {EVIL}"))
    yield "evil"
    host = current().hosts.pop("evil", None)
    if host is not None:
        host.stop()
    current().logs.pop("evil", None)


def test_names_are_text_in_every_page(evil: str, tmp_path: Path) -> None:
    x = K.placeholder((None, 2), name=EVIL)
    w = K.variable(np.ones((2, 2)), name=EVIL)
    with K.name_scope(EVIL):
        y = K.tanh(K.dot(x, w))
    f = K.function([x], [y], [K.update_add(w, w)])
    feeds = {x: np.ones((3, 2))}
    names: dict[str, Any] = {EVIL: y, "y": y, "w": w, "d": {EVIL: x}}
    shown: list[Any] = [x, w, y, f, kernelk.tensors(namespace=names), kernelk.tensors(values=True, namespace=names)]
    shown += [kernelk.show(y, "numpy")]
    shown += [kernelk.time(y, feeds=feeds, budget=0.02), kernelk.profile(y, feeds=feeds, budget=0.02)]
    shown += [kernelk.set_backend(evil)]
    f([np.ones((3, 2))])
    shown += [kernelk.compare(y, "numpy", evil, feeds=feeds, budget=0.05), kernelk.diff(y, "numpy", evil, feeds=feeds)]
    shown += [kernelk.list_backends(), kernelk.doctor([evil]), kernelk.show(y, evil)]
    saved = kernelk.save(tmp_path / "<img src=x onerror=alert(1)>.npz")
    shown += [saved, kernelk.load(saved.path)]
    kernelk.set_backend("numpy")
    shown += [kernelk.stop_backend(evil)]
    for thing in shown:
        assert_text(thing._repr_html_())
    assert_text(kernelk.log(evil)._repr_html_(), commands=True)  # what an engine prints is shown as it is
    assert sum("&lt;img" in thing._repr_html_() for thing in shown) >= len(shown) // 2
    train = names[f"{EVIL} train"] = K.function([x], [K.sum(y)], [K.update_add(w, w)])
    train([np.ones((3, 2))])
    losses = facts.losses(current())["functions"]
    assert [one["key"] for one in losses] == [train.uid]
    losses[0]["runs"][0]["title"] = EVIL
    engine = dict.fromkeys(("title", "state", "version", "interpreter", "process", "memory", "device"), EVIL)
    panel = static.forms({"engines": [engine | {"active": True}]}, losses, rows(current(), names), EVIL, "mark")[0]
    assert_text(panel)


def test_names_are_text_in_a_drawing() -> None:
    pytest.importorskip("igraph", reason="igraph isn't here")
    x = K.placeholder((None, 2), name=EVIL)
    with K.name_scope(EVIL):
        y = K.tanh(x)
    drawing = kernelk.draw(y)
    assert_text(drawing._repr_html_())
    assert_text(drawing.svg())


def test_what_a_worker_says_is_text() -> None:
    log = WorkerLog()
    log._add(EVIL.encode() + b"\xff\n</pre><script>alert(1)</script>\n")
    page = LogReport(EVIL, *log.since(0))._repr_html_()
    assert "<img" not in page
    assert "<script" not in page
    assert page.count("</pre>") == 1
    assert "\n" not in last_words("a\nFatal Python error: " + "x" * 9999)


def test_an_error_is_one_line_whatever_a_name_holds() -> None:
    bad = "two\nlines\x1b[31m\u202e\ud800"
    error = ArgumentError(f"{bad} isn't one", allowed=bad, next_step=bad)
    error.remark(bad)
    assert str(error).isprintable()
    assert r"two\nlines\x1b[31m\u202e\ud800 isn't one" in str(error)
    assert str(error).encode()
    (line,) = error._render_traceback_()
    assert line.isprintable()
    assert error.problem == f"{bad} isn't one"
