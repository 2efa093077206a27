"""Visitors of one marimo app have a session each: the lookup by a stand-in for marimo's context, and marimo itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.jupyter_page import browsing, need_browser
from helpers.processes import PATIENCE, environment, run_script, wait_until

# What kernelk asks of marimo: a context for each thread, whose kernel stands for the visitor.
MARIMO = """
import sys, threading, types
here = threading.local()
class NotInitialized(Exception): pass
def get_context():
    if getattr(here, "context", None) is None:
        raise NotInitialized
    return here.context
class Thread(threading.Thread):
    def __init__(self, target):
        super().__init__(target=target)
        self.context = types.SimpleNamespace(**vars(get_context()))
    def run(self):
        here.context = self.context
        super().run()
marimo, runtime, context = (types.ModuleType(name) for name in ("marimo", "marimo._runtime", "marimo._runtime.context"))
marimo.Thread, marimo.__version__ = Thread, "0"
context.get_context, context.ContextNotInitializedError = get_context, NotInitialized
sys.modules.update({one.__name__: one for one in (marimo, runtime, context)})
class Kernel: pass
def visit(body, mode="run"):
    found = []
    def serve():
        here.context = types.SimpleNamespace(session_mode=mode, parent=None, _kernel=Kernel())
        try:
            found.append(body())
        except Exception as error:
            found.append(f"{type(error).__name__}: {error}")
        here.context = None
    thread = threading.Thread(target=serve)
    thread.start()
    thread.join()
    return found[0]
def inside(kind, body):
    found = []
    def work():
        try:
            found.append(body())
        except Exception as error:
            found.append(str(error))
    thread = kind(target=work)
    thread.start()
    thread.join()
    return found[0]
"""

APART = """
import kernelk
from kernelk import backend as K
from kernelk.engines import Engine
from kernelk.session import current
from helpers.fake_engines import register
class Here:
    def setitem(self, where, name, value): where[name] = value
register(Here(), Engine("spare", "Spare", "numpy", "NumpyBackend", imports="numpy", install="pip install x"))
hosts = []
def first():
    kernelk.set_backend("spare")
    w = K.variable([1.0])
    K.set_floatx("float64")
    hosts.append(current().hosts["spare"])
    own = current()
    return (K.backend(), K.get_uid("a"), inside(threading.Thread, lambda: K.variable([2.0])),
            inside(Thread, lambda: (current() is own, K.eval(w + 1.0).tolist())), hosts[0].started, w)
*said, kept = visit(first)
result = [said, hosts[0].started, visit(lambda: (K.backend(), K.get_uid("a"), K.eval(kept + 1.0)))]
result.append(visit(lambda: (K.backend(), K.get_uid("a"), len(current().live_variables()), K.floatx())))
"""


def test_each_visitor_has_a_session() -> None:
    said, started, mixed, other = run_script(f"{MARIMO}{APART}", KERNELK_BACKEND="numpy")
    backend, uid, plain, own, running = said
    assert (backend, uid, own, running) == ("spare", 1, [True, [2.0]], True)
    assert plain.startswith("this thread belongs to no visitor of the app")
    assert plain.endswith("next: start it as marimo.Thread(target=...)")
    # The visit is over, and its engine with it.
    assert started is False
    assert mixed.startswith("StaleTensorError: ")
    assert "belongs to another session of this process" in mixed
    assert other == ["numpy", 1, 0, "float32"]


def test_a_notebook_that_is_edited_has_the_process_s_session() -> None:
    code = """
from kernelk import backend as K
from kernelk.session import current
from kernelk.session.current import PROCESS
def same():
    return current() is PROCESS.session
result = visit(lambda: (same(), inside(threading.Thread, same)), "edit")
"""
    assert run_script(f"{MARIMO}{code}", KERNELK_BACKEND="numpy") == [True, True]


def test_a_process_that_imported_kernelk_before_marimo_serves_nobody_in_silence() -> None:
    code = (
        "import kernelk.graph.state\n"
        + MARIMO
        + "from kernelk import backend as K\nresult = visit(lambda: K.eval(K.ones(3)))"
    )
    said = run_script(code, KERNELK_BACKEND="numpy")
    assert said.endswith("can't tell the visitors of the app apart; next: import marimo first")


APP = """
import marimo
app = marimo.App()
@app.cell
def _():
    import marimo as mo
    import kernelk
    from kernelk import backend as K
    return mo, kernelk, K
@app.cell
def _(K):
    w = K.variable([1.0, 2.0], name="w0")
    return (w,)
@app.cell
def _(kernelk, w):
    kernelk.panel()
    return
@app.cell
def _(mo):
    button = mo.ui.run_button(label="more")
    button
    return (button,)
@app.cell
def _(K, button, mo, w):
    if button.value:
        K.set_value(w, K.get_value(w) + 100)
        late = K.variable([7.0])
    mo.md(f"w is {K.get_value(w).tolist()}")
    return
"""


@pytest.fixture
def app(tmp_path: Path) -> Iterator[str]:
    """The address of an app that marimo serves."""
    need_browser()
    (tmp_path / "app.py").write_text(APP)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "marimo",
        "--yes",
        "run",
        "app.py",
        "--headless",
        "--no-token",
        "--port",
        str(port),
    ]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(KERNELK_BACKEND="numpy"),
            stdout=log,
            stderr=log,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            assert wait_until(lambda: _answers(f"{address}/health")), (tmp_path / "log").read_text()
            yield address
        finally:
            server.terminate()
            server.wait(PATIENCE)


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(json.loads(answer.read())["status"])
    except OSError:
        return False


@pytest.mark.soak
def test_two_visitors_of_a_real_marimo_app(app: str) -> None:
    with browsing() as browser:
        pages = [browser.new_context().new_page() for _ in range(2)]
        for page in pages:
            page.goto(app)
            page.wait_for_selector(".kernelk-panel .kk-range:text-is('1 … 2')")
            assert page.locator(".kernelk-panel .kk-space .kk-col-name").all_inner_texts() == ["w"]
            assert page.locator(".kernelk-panel .kk-space .kk-col-shape").all_inner_texts() == ["(2,)"]
        one, other = pages
        one.locator("button:has-text('more')").click()
        # The panel follows what its own visitor's cells do.
        one.wait_for_selector(".kernelk-panel .kk-range:text-is('101 … 102')")
        one.wait_for_selector(".kernelk-panel .kk-named:text-is('late')")
        one.locator(".kernelk-panel [data-engine=jax]").click()
        one.wait_for_selector('.kernelk-panel [data-engine=jax][aria-pressed="true"]')
        assert other.locator('.kernelk-panel [data-engine=numpy][aria-pressed="true"]').count() == 1
        assert other.locator(":text('w is [1.0, 2.0]')").count() > 0
        assert other.locator(".kernelk-panel .kk-space .kk-col-name").all_inner_texts() == ["w"]


@pytest.mark.soak
def test_an_exported_page_of_marimo_shows_the_table(tmp_path: Path) -> None:
    need_browser()
    (tmp_path / "app.py").write_text(APP)
    command = [sys.executable, "-m", "marimo", "--yes", "export", "html", "app.py", "--output", "app.html"]
    subprocess.run(command, cwd=tmp_path, env=environment(KERNELK_BACKEND="numpy"), check=True, timeout=PATIENCE)
    page = (tmp_path / "app.html").read_text()
    assert "This is the panel's last state" in page
    assert os.path.getsize(tmp_path / "app.html") < 100_000
