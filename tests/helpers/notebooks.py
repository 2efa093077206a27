"""Notebook cells, in a real IPython shell or a real Jupyter kernel of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from helpers.processes import PATIENCE, environment

_CELLS = """
import json, sys
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
shell = InteractiveShell.instance(colors="nocolor")
shell.ast_node_interactivity = "last_expr"
# Lines that count seconds come where the machine is slow: no part of what a cell prints.
from kernelk.display import progress
progress.DELAY = 1e6
result = []
for cell in json.loads(sys.stdin.read()):
    with capture_output() as captured:
        done = shell.run_cell(cell, store_history=True)
    error = done.error_before_exec or done.error_in_exec
    result.append({
        "out": captured.stdout,
        "err": captured.stderr,
        "shown": [o.data.get("text/plain", "") for o in captured.outputs],
        "html": [o.data.get("text/html", "") for o in captured.outputs],
        "error": type(error).__name__ if error else None,
        "value": repr(done.result),
    })
sys.stdout.flush()
print("\\n" + json.dumps(result))
"""


def run_cells(cells: Sequence[str], **settings: str | None) -> list[dict[str, Any]]:
    """Runs notebook cells in a real IPython shell in a new process; what each printed, showed and raised."""
    done = subprocess.run(
        [sys.executable, "-c", _CELLS],
        input=json.dumps(list(cells)),
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


class Notebook:
    """A Jupyter kernel with a client, as JupyterLab has one."""

    def __init__(self, client: Any, manager: Any) -> None:
        self.client, self.manager = client, manager

    def start(self, code: str) -> str:
        return str(self.client.execute(code))

    def outputs(self, request: str) -> list[dict[str, Any]]:
        """All outputs of a cell, until the kernel is idle again."""
        found = []
        while True:
            message = self.client.get_iopub_msg(timeout=PATIENCE)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                return found
            if message["msg_type"] in ("stream", "error", "execute_result", "display_data"):
                found.append({"type": message["msg_type"], **message["content"]})

    def run(self, code: str) -> list[dict[str, Any]]:
        return self.outputs(self.start(code))

    def text(self, code: str) -> str:
        return "".join(output.get("text", "") for output in self.run(code))
