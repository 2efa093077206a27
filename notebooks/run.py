"""Executes a notebook in a real kernel, prints its final table and writes it as HTML, for `make demo` and the tests.

Cells tagged with an engine's name are left out if that engine isn't available, and one line says what is missing.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from html import escape
from pathlib import Path
from typing import Any

# A kernel of the environment that runs this file, not one that the user has registered under the same name.
os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from traitlets.config import Config

from kernelk.engines import registry
from kernelk.errors import BackendNotInstalledError

SECONDS_PER_CELL = 600


def missing() -> dict[str, str]:
    """The engines that aren't available here, each with the line that says why and what to do."""
    lines = {}
    for name in registry.names():
        engine = registry.engine(name)
        if not engine.in_kernel:
            try:
                registry.interpreter(engine)
            except BackendNotInstalledError as error:
                lines[name] = " ".join(str(error).split())
    return lines


def leave_out(notebook: Any, absent: dict[str, str]) -> None:
    """Replaces the cells of unavailable engines by a line that says so."""
    for i, cell in enumerate(notebook.cells):
        for name in set(cell.metadata.get("tags", [])) & set(absent):
            notebook.cells[i] = nbformat.v4.new_markdown_cell(f"*Left out here: {absent[name]}*", id=cell.id)


def execute(path: Path, absent: dict[str, str] | None = None, env: dict[str, str] | None = None) -> Any:
    """The notebook, executed. Raises CellExecutionError if a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    leave_out(notebook, absent or {})
    with tempfile.TemporaryDirectory(prefix="kernelk-") as folder:
        # Sockets in a folder of this user's own, instead of TCP ports that anyone on the machine can connect to.
        client = NotebookClient(
            notebook,
            kernel_name="python3",
            timeout=SECONDS_PER_CELL,
            startup_timeout=SECONDS_PER_CELL,
            resources={"metadata": {"path": str(path.parent)}},
            config=Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}}),
        )
        client.execute(env=dict(os.environ if env is None else env))
    for cell in notebook.cells:
        # When a cell ran is nobody's business, and would change the file at each run.
        cell.metadata.pop("execution", None)
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def final_table(notebook: Any) -> str:
    """The table that the cell tagged "table" shows, for a terminal."""
    for cell in notebook.cells:
        if "table" in cell.metadata.get("tags", []):
            for output in cell.outputs:
                if "text/markdown" in output.get("data", {}):
                    return str(output.data["text/markdown"])
    return ""


def html(notebook: Any) -> str:
    """The notebook as one HTML page that needs no other file and no network; images say what a cell's `alt` says."""
    page, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook, {"metadata": {"name": title(notebook)}})
    # The template's scripts, all fetched from elsewhere, serve formulas, diagrams and widgets, and there are none.
    page = re.sub(r"<script\b.*?</script>", "", page, flags=re.DOTALL)
    descriptions = iter(
        cell.metadata.get("alt", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    )
    return re.sub('alt="No description[^"]*"', lambda _: f'alt="{escape(next(descriptions))}"', page)


def title(notebook: Any) -> str:
    """The notebook's first heading."""
    return str(notebook.cells[0].source.splitlines()[0].lstrip("# "))


def main() -> int:
    """Runs the command line; 1 if a cell failed, and the page then shows where."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("--html", type=Path, help="write the executed notebook here, as HTML")
    parser.add_argument("--save", action="store_true", help="write the outputs into the notebook itself")
    arguments = parser.parse_args()
    absent = missing()
    for line in absent.values():
        print(f"left out: {line}", flush=True)
    if not set(registry.names()) - set(absent) - {"numpy"}:
        print("numpy alone can be had here: there is nothing to swap to", file=sys.stderr)
        return 1
    print(f"running {arguments.notebook} ...", flush=True)
    begin = time.perf_counter()
    try:
        notebook = execute(arguments.notebook, absent)
    except CellExecutionError as error:
        print(f"{arguments.notebook}: a cell failed\n{error}", file=sys.stderr)
        return 1
    print(f"done in {time.perf_counter() - begin:.0f} s\n\n{final_table(notebook)}\n")
    if arguments.save:
        nbformat.write(notebook, arguments.notebook)
    if arguments.html:
        arguments.html.parent.mkdir(parents=True, exist_ok=True)
        arguments.html.write_text(html(notebook), encoding="utf-8")
        print(f"the executed notebook: {arguments.html}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
