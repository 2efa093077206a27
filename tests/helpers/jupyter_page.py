"""A real JupyterLab and Notebook 7 in Debian's Chromium: one server and one browser, a page for each notebook."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.engines import required
from helpers.processes import PATIENCE, environment, wait_until

CHROMIUM = "/usr/bin/chromium"
# Without what reaches out; and no sandbox, since tests may run as root in a container.
_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
# Notebook 7 has two page errors of its own on load; and a page complains of comms that another page of its kernel made.
_OTHERS = ("reading 'schema'", "filebrowser:open-path", "Comm not found for comm id")


def absent() -> str:
    """Returns why no browser can be used here, with the next command; "" if one can."""
    if not Path(CHROMIUM).exists():
        return f"{CHROMIUM} isn't installed; next: apt-get install --yes chromium"
    missing = [name for name in ("jupyterlab", "notebook", "anywidget", "playwright") if not _importable(name)]
    if missing:
        return f"{', '.join(missing)} isn't installed in {sys.prefix}; next: make setup"
    return ""


def _importable(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


def need_browser() -> None:
    """Ends the test without a browser: failed where KERNELK_REQUIRE names "browser", else skipped with the reason."""
    reason = absent()
    if not reason:
        return
    if "browser" in required():
        pytest.fail(f"{reason} (KERNELK_REQUIRE names browser)", pytrace=False)
    pytest.skip(reason)


def written(cells: Sequence[str]) -> dict[str, Any]:
    """A notebook of these cells, with a kernel chosen, so that no dialog asks for one."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": cell, "outputs": [], "execution_count": None}
        for i, cell in enumerate(cells)
    ]
    return {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


class Server:
    """A Jupyter server with both front ends, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        # Else a question covers the page, and an answer is looked for in the network.
        news = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
        (settings / "notification.jupyterlab-settings").write_text(json.dumps(news))
        self._log = (folder / "server.log").open("wb")
        places = {
            "JUPYTERLAB_SETTINGS_DIR": folder / "settings",
            "JUPYTER_CONFIG_DIR": folder / "config",
            "JUPYTER_DATA_DIR": folder / "data",
            "JUPYTER_RUNTIME_DIR": folder / "runtime",
            "JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces",
            "IPYTHONDIR": folder / "ipython",
        }
        (folder / "notebooks").mkdir()
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={self.port}", "--allow-root"]
        command += ["--IdentityProvider.token=", "--ServerApp.password=", "--ServerApp.port_retries=0"]
        command += ["--expose-app-in-browser", "--JupyterNotebookApp.expose_app_in_browser=True"]
        command += ["--ServerApp.disable_check_xsrf=True"]
        self._process = subprocess.Popen(
            command,
            cwd=folder / "notebooks",
            env=environment(
                KERNELK_BACKEND="numpy",
                KERNELK_QUIET=None,
                JUPYTER_PREFER_ENV_PATH="1",
                **{name: str(path) for name, path in places.items()},
            ),
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.port}"

    def ready(self) -> bool:
        """Whether it answers."""
        assert self._process.poll() is None, (self.folder / "server.log").read_text()[-3000:]
        try:
            with urllib.request.urlopen(f"{self.url}/api", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        """Ends it, and its kernels with it."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()


class Page:
    """One notebook in one front end: "lab" or "notebook"."""

    def __init__(self, page: Any, server: Server, front: str) -> None:
        self.page = page
        self.server = server
        self.front = front
        self.errors: list[str] = []
        page.set_default_timeout(PATIENCE * 1000)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: message.type == "error" and self.errors.append(_told(message)))

    def open(self, name: str, cells: Sequence[str] | None = None) -> Page:
        """Opens a notebook, written from these cells if they are given, and waits for its kernel."""
        path = self.server.folder / "notebooks" / name
        if cells is not None:
            path.write_text(json.dumps(written(cells)))
        place = f"lab/tree/{name}?reset" if self.front == "lab" else f"notebooks/{name}"
        self.page.goto(f"{self.server.url}/{place}")
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.page.wait_for_function(f"() => ({_KERNEL})?.status === 'idle'")
        self.own_errors = list(self.errors)
        return self

    def command(self, name: str, arguments: Any = None) -> None:
        """One of the front end's own commands."""
        self.page.evaluate("([name, given]) => { jupyterapp.commands.execute(name, given ?? {}) }", [name, arguments])

    def run(self, *places: int) -> None:
        """Runs these cells, each when the one before has ended."""
        for place in places:
            self.start(place)
            self.page.wait_for_function(_ENDED, arg=place)
            cell = self.page.locator(".jp-Notebook .jp-Cell").nth(place)
            error = cell.locator('[data-mime-type="application/vnd.jupyter.error"]')
            assert error.count() == 0, error.all_inner_texts()

    def start(self, place: int) -> None:
        """Starts a cell, by the keyboard as a user does."""
        cell = self.page.locator(".jp-Notebook .jp-Cell").nth(place)
        cell.locator(".cm-content").click()
        self.page.keyboard.press("Control+Enter")
        self.page.wait_for_function(_RUN_SINCE, arg=place)

    def output(self, place: int, text: str) -> None:
        """Waits until a cell has printed a text: its output may arrive after the message that it has ended."""
        cell = self.page.locator(".jp-Notebook .jp-Cell").nth(place)
        cell.locator(".jp-OutputArea", has_text=text).wait_for()

    def execute(self, code: str) -> None:
        """Runs code that is in no cell, as another front end would."""
        self.page.evaluate(f"(code) => ({_KERNEL}).requestExecute({{ code }}).done", code)

    def save(self) -> dict[str, Any]:
        """Saves the notebook; what is in the file."""
        self.page.evaluate(f"() => ({_NOTEBOOK}).context.save()")
        path = self.page.evaluate(f"() => ({_NOTEBOOK}).context.path")
        found: dict[str, Any] = json.loads((self.server.folder / "notebooks" / path).read_text())
        return found

    def restart(self) -> None:
        """Restarts the kernel."""
        self.page.evaluate(f"() => ({_NOTEBOOK}).context.sessionContext.restartKernel()")
        self.page.wait_for_function(f"() => ({_KERNEL})?.status === 'idle'")

    def new_errors(self) -> list[str]:
        """The errors in the console and on the page since the notebook was opened."""
        found = self.errors[len(self.own_errors) :]
        return [text for text in found if not any(own in text for own in _OTHERS)]

    def shot(self, locator: Any, name: str) -> None:
        """A picture for the docs, taken where KERNELK_SCREENSHOTS names a folder."""
        folder = os.environ.get("KERNELK_SCREENSHOTS")
        if folder:
            locator.screenshot(path=str(Path(folder) / f"{name}.png"), animations="disabled", caret="hide")


def _told(message: Any) -> str:
    """What the console says; of what couldn't be loaded, its address too."""
    failed = message.text.startswith("Failed to load resource")
    return f"{message.text} {message.location.get('url', '')}" if failed else str(message.text)


_NOTEBOOK = (
    "[...(globalThis.jupyterapp?.shell.widgets('main') ?? [])].find((one) => one.context && one.content?.model?.cells)"
)
_KERNEL = f"{_NOTEBOOK}?.context.sessionContext.session?.kernel"
# A cell that has been run has a number, or a star while it runs.
_ENDED = """(place) => {
  const cell = document.querySelectorAll('.jp-Notebook .jp-Cell')[place];
  return /\\[\\d/.test(cell.querySelector('.jp-InputPrompt').textContent);
}"""
_RUN_SINCE = """(place) => {
  const cell = document.querySelectorAll('.jp-Notebook .jp-Cell')[place];
  return /\\[[\\d*]/.test(cell.querySelector('.jp-InputPrompt').textContent);
}"""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """A server that answers."""
    server = Server(folder)
    try:
        assert wait_until(server.ready), "the Jupyter server doesn't answer"
        yield server
    finally:
        server.stop()


@contextmanager
def browsing() -> Iterator[Any]:
    """Debian's Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        try:
            yield browser
        finally:
            browser.close()
