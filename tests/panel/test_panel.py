"""The panel's half in the kernel, asked as a front end asks: by messages to a real Jupyter kernel."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from helpers.notebooks import run_cells
from helpers.processes import PATIENCE, alive, environment, wait_until

VIEW = "application/vnd.jupyter.widget-view+json"

# Engines that need nothing but numpy: one in a worker, one in the kernel that lacks a dtype, one that can't start.
ENGINES = """
import numpy as np
import kernelk
from kernelk import backend as K
from kernelk.engines import Engine
from kernelk.session import current
from helpers.fake_engines import lacking_engine, register
class Here:
    def setitem(self, where, name, value):
        where[name] = value
register(Here(), Engine("spare", "Spare", "numpy", "NumpyBackend", imports="numpy", install="pip install x"))
register(Here(), Engine("broken", "Broken", "no_backend", "NoBackend", imports="numpy", install="pip install y"))
lacking = lacking_engine(Here(), "lacking", dtypes={"float64"})
"""


class Front:
    """A front end without a page: it opens panels, asks, and hears."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.count = 0

    def run(self, code: str) -> list[dict[str, Any]]:
        """Runs a cell; all its messages, those of comms among them."""
        return self._until_idle(self.client.execute(code))

    def text(self, code: str) -> str:
        """A cell's output."""
        found = self.run(code)
        errors = [one["content"]["traceback"] for one in found if one["msg_type"] == "error"]
        assert not errors, errors
        return "".join(one["content"]["text"] for one in found if one["msg_type"] == "stream")

    def open(self) -> str:
        """Opens a panel; its number."""
        found = self.run("%kpanel")
        opened = [one["content"] for one in found if one["msg_type"] == "comm_open"]
        (panel,) = [one["comm_id"] for one in opened if "_esm" in one["data"]["state"]]
        return str(panel)

    def ask(self, panel: str, **message: Any) -> str:
        """Sends a request; its number."""
        self.count += 1
        name = f"q{self.count}"
        data = {"method": "custom", "content": {"request": name, "view": "v", **message}}
        self.client.shell_channel.send(self.client.session.msg("comm_msg", {"comm_id": panel, "data": data}))
        return name

    def hear(self, until: Callable[[dict[str, Any]], bool], panel: str | None = None) -> list[dict[str, Any]]:
        """The panels' messages, up to the one that is waited for."""
        found = []
        while True:
            message = self.client.get_iopub_msg(timeout=PATIENCE)
            if message["msg_type"] != "comm_msg" or message["content"]["data"].get("method") != "custom":
                continue
            if panel is not None and message["content"]["comm_id"] != panel:
                continue
            told = {**message["content"]["data"]["content"], "panel": message["content"]["comm_id"]}
            found.append(told)
            if until(told):
                return found

    def get(self, panel: str, kind: str, **message: Any) -> dict[str, Any]:
        """Asks, and waits for an answer of this kind."""
        self.ask(panel, **message)
        return self.hear(lambda told: told["kind"] == kind, panel)[-1]

    def _until_idle(self, request: str) -> list[dict[str, Any]]:
        found = []
        while True:
            message = self.client.get_iopub_msg(timeout=PATIENCE)
            if message["parent_header"].get("msg_id") == request:
                if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                    return found
                found.append(message)


@pytest.fixture(scope="module")
def kernel() -> Iterator[Front]:
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(env=environment(KERNELK_BACKEND="numpy", JUPYTER_PREFER_ENV_PATH="1"))
    front = Front(client)
    front.text(ENGINES)
    try:
        yield front
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.fixture
def front(kernel: Front) -> Iterator[Front]:
    """The kernel, with the extension loaded and nothing in the session; unloaded afterwards."""
    kernel.text(
        "%load_ext kernelk\nK.clear_session()\ncurrent().measurements = {}\n"
        "current().swaps.clear()\nr = kernelk.set_backend('numpy')\n"
        "for name in [n for n in globals() if n in 'xywvf']: del globals()[name]"
    )
    yield kernel
    kernel.text("%unload_ext kernelk")


def states(facts: dict[str, Any]) -> dict[str, str]:
    return {engine["name"]: engine["state"] for engine in facts["engines"]}


def test_what_a_cell_gets_and_a_saved_notebook_keeps(front: Front) -> None:
    front.text("v = K.variable([1.0], name='<script>alert(1)</script>')\nd = {'<img src=x>': v}\ndel v")
    shown = [one["content"] for one in front.run("%kpanel") if one["msg_type"] == "display_data"]
    live, static = [one["data"] for one in shown]
    assert set(live) == {VIEW, "text/html"}
    assert live["text/html"] == ""
    html = static["text/html"]
    assert live[VIEW]["model_id"] in html  # by which the live one hides it
    assert "numpy" in html
    assert "&lt;img src=x&gt;" in html
    tags: set[str] = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.add(tag)  # type: ignore[method-assign]
    parser.feed(html)
    assert not tags & {"script", "img"}
    assert "active: numpy" in static["text/plain"]
    # What happens later reaches the saved form, too.
    front.client.execute("r = kernelk.set_backend('lacking')")
    updated = ""
    while "active: lacking" not in updated:
        message = front.client.get_iopub_msg(timeout=PATIENCE)
        if message["msg_type"] == "update_display_data":
            updated = message["content"]["data"]["text/html"]


def test_a_page_of_nbconvert_shows_the_last_state(front: Front) -> None:
    import nbformat
    from nbconvert import HTMLExporter

    front.text("w = K.variable([[1.0, 2.0]])")
    outputs = [
        nbformat.v4.new_output("display_data", one["content"]["data"])
        for one in front.run("%kpanel")
        if one["msg_type"] == "display_data"
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("%kpanel", outputs=outputs)])
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert "model not found" not in page
    assert "This is the panel" in page
    assert "(1, 2)" in page


def test_hello_tells_everything(front: Front) -> None:
    front.text(
        "x = K.placeholder((None, 2))\nw = K.variable([[1.0], [2.0]])\ny = K.dot(x, w)\nf = K.function([x], [y])"
    )
    front.text("r = kernelk.time(lambda: f([[[1.0, 2.0]]]), budget=0.01)")
    panel = front.open()
    name = front.ask(panel, do="hello")
    told = {one["kind"]: one for one in front.hear(lambda one: one["kind"] == "timings", panel)}
    assert told["ack"]["request"] == name
    assert told["engines"]["active"] == "numpy"
    assert states(told["engines"])["numpy"] == "active"
    assert states(told["engines"])["spare"] == "installed"
    (engine,) = [one for one in told["engines"]["engines"] if one["name"] == "numpy"]
    assert (engine["precision"], engine["precisions"]) == ("float32", ["float32"])
    rows = {row["names"][0]: row for row in told["rows"]["rows"]}
    assert {"x", "w", "y", "f"} <= set(rows)
    assert rows["y"]["shape"] == [None, 1]
    assert rows["w"]["version"] == 0
    assert told["timings"]["time"]["bars"][0]["seconds"] > 0
    assert told["timings"]["compare"] is None
    json.dumps(told, allow_nan=False)


def test_a_swap_starts_an_engine_beside_the_kernel(front: Front) -> None:
    front.text("v = K.variable([1.0, 2.0])\ny = K.exp(v)\nr = K.eval(y)")
    panel = front.open()
    front.ask(panel, do="hello")
    front.ask(panel, do="swap", engine="spare")
    told = front.hear(lambda one: one["kind"] == "timings" and one["swaps"], panel)
    jobs = [one["job"] for one in told if one["kind"] == "job" and one["job"]]
    assert jobs[0]["engine"] == "spare"
    assert jobs[0]["cancel"] is True
    (done,) = [one for one in told if one["kind"] == "notice"]
    assert done["level"] == "done"
    assert "numpy → spare" in done["text"]
    assert "1 shown value evaluated again, largest difference 0" in done["text"]
    assert [one for one in told if one["kind"] == "engines"][-1]["active"] == "spare"
    (row,) = [row for one in told if one["kind"] == "changes" for row in one["changed"] if row["names"] == ["y"]][-1:]
    assert row["reevaluated"] == {"from": "numpy", "to": "spare", "difference": 0}
    assert told[-1]["swaps"][0]["seconds"]["start"] > 0
    assert front.text("print(K.backend(), K.eval(v * 2.0).tolist())") == "spare [2.0, 4.0]\n"
    front.ask(panel, do="stop", engine="spare")
    assert front.hear(lambda one: one["kind"] == "engines" and states(one)["spare"] == "not started", panel)


def test_cells_run_while_an_engine_starts_and_a_start_can_be_cancelled(front: Front, tmp_path: Path) -> None:
    (tmp_path / "stuck").mkdir()
    (tmp_path / "stuck" / "__init__.py").touch()
    (tmp_path / "stuck" / "backend.py").write_text("import time\ntime.sleep(600)\n")
    front.text(
        f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n"
        "register(Here(), Engine('stuck', 'Stuck', 'stuck.backend', 'Backend', imports='numpy', install='pip z'))"
    )
    panel = front.open()
    front.ask(panel, do="hello")
    front.ask(panel, do="swap", engine="stuck")
    front.hear(lambda one: one["kind"] == "job" and bool(one["job"]), panel)
    assert front.text("print(K.eval(K.variable([1.0]) * 2.0).tolist(), K.backend())") == "[2.0] numpy\n"
    told = front.get(panel, "notice", do="swap", engine="spare")
    assert "Stuck is starting; one thing at a time" in told["text"]
    told = front.get(panel, "notice", do="cancel")
    assert told["text"] == "Stuck's start was cancelled"
    assert front.text("print(K.backend(), current().hosts.get('stuck'))") == "numpy None\n"


def test_installing_what_is_there_and_what_pip_has_to(front: Front) -> None:
    panel = front.open()
    front.ask(panel, do="hello")
    front.ask(panel, do="install", engine="spare")
    assert front.hear(lambda one: one["kind"] == "notice", panel)[-1]["text"] == "Spare is installed"
    front.text(
        "register(Here(), Engine('lost', 'Lost', 'numpy', 'NumpyBackend', imports='no_such', install='pip install q'))"
    )
    told = front.get(panel, "notice", do="install", engine="lost")
    assert told["level"] == "error"
    assert "pip install q" in told["text"]


def test_a_refused_swap_lists_the_reasons(front: Front) -> None:
    front.text("v = K.variable([1.0], dtype='float64', name='wide')\nw = K.variable([1.0], dtype='float64')")
    panel = front.open()
    front.ask(panel, do="hello")
    told = front.get(panel, "notice", do="swap", engine="lacking")
    assert told["level"] == "error"
    assert told["text"] == "Lacking cannot run this session, 'numpy' stays active"
    assert len(told["reasons"]) == 2
    assert "variable 'wide'" in told["reasons"][0]
    assert "float64" in told["reasons"][0]
    assert front.text("print(K.backend())") == "numpy\n"


def test_an_engine_that_cannot_start_is_broken_and_says_why(front: Front) -> None:
    panel = front.open()
    front.ask(panel, do="hello")
    front.ask(panel, do="swap", engine="broken")
    told = front.hear(lambda one: one["kind"] == "engines" and "broken" in states(one).values(), panel)
    (error,) = [one for one in told if one["kind"] == "notice"]
    assert error["level"] == "error"
    assert "'numpy' stays active" in error["text"]
    (engine,) = [one for one in told[-1]["engines"] if one["name"] == "broken"]
    assert "no_backend" in engine["note"]
    assert front.text("print(K.backend())") == "numpy\n"


def test_what_isnt_known_is_answered(front: Front) -> None:
    panel = front.open()
    front.ask(panel, do="hello")
    told = front.get(panel, "notice", do="swap", engine="<b>teano</b>")
    assert "unknown backend" in told["text"]
    told = front.get(panel, "notice", do="swap", engine="numpy", threads="many")
    assert "threads='many' isn't allowed" in told["text"]
    told = front.get(panel, "notice", do="swap", engine="numpy", precision="tf32")
    assert "numpy has no tf32: allowed is float32" in told["text"]
    name = front.ask(panel, do="dance")
    assert front.hear(lambda one: one["kind"] == "ack" and one["request"] == name, panel)


def test_only_what_changed_is_told_after_a_cell(front: Front) -> None:
    front.text("v = K.variable([1.0])\nw = K.variable([2.0])\nf = K.function([], [v], [K.update_add(v, [1.0])])")
    panel = front.open()
    front.ask(panel, do="hello")
    front.hear(lambda one: one["kind"] == "timings", panel)
    front.text("pass")
    assert front.hear(lambda one: one["kind"] == "changes", panel)[-1]["changed"] == []
    front.text("r = f([])\nz = w * 2.0")
    told = front.hear(lambda one: one["kind"] == "changes" and bool(one["changed"]), panel)[-1]
    assert {tuple(row["names"]) for row in told["changed"]} >= {("v",), ("z",)}
    assert ("w",) not in {tuple(row["names"]) for row in told["changed"]}
    front.text("del z")
    assert len(front.hear(lambda one: one["kind"] == "changes" and bool(one["gone"]), panel)[-1]["gone"]) == 1


def test_values_are_told_when_asked_for(front: Front) -> None:
    front.text("v = K.variable([1.0, float('nan'), 3.0])\nx = K.placeholder((2,))\ny = x * 2.0")
    panel = front.open()
    front.ask(panel, do="hello")
    rows = front.hear(lambda one: one["kind"] == "rows", panel)[-1]["rows"]
    keys = {row["names"][0]: row["key"] for row in rows}
    told = front.get(panel, "summaries", do="summaries", keys=[keys["v"], keys["y"], 10**6, "no"])
    found = {summary["key"]: summary for summary in told["found"]}
    assert found[keys["v"]]["nan"] == 1
    assert found[keys["v"]]["preview"]["values"] == [[1.0, "NaN", 3.0]]
    assert "hasn't been fed" in found[keys["y"]]["note"]


def test_an_engine_that_dies_while_it_is_shown(front: Front) -> None:
    front.text("v = K.variable([1.0, 2.0])\ny = K.exp(v)\nr = kernelk.set_backend('spare')\nr = K.eval(y)")
    panel = front.open()
    front.ask(panel, do="hello")
    rows = front.hear(lambda one: one["kind"] == "rows", panel)[-1]["rows"]
    (key,) = [row["key"] for row in rows if row["names"] == ["y"]]
    pid = int(front.text("K.set_value(v, [3.0, 4.0])\nprint(current().host().pid)"))
    os.kill(pid, signal.SIGKILL)
    assert wait_until(lambda: not alive(pid))
    (found,) = front.get(panel, "summaries", do="summaries", keys=[key])["found"]
    assert found["size"] == 2 or found["note"]
    assert front.text("print(K.eval(v * 1.0).tolist())").endswith("[3.0, 4.0]\n")


def test_two_panels_stay_in_step(front: Front) -> None:
    first, second = front.open(), front.open()
    for panel in (first, second):
        front.ask(panel, do="hello")
        front.hear(lambda one: one["kind"] == "timings", panel)
    front.ask(first, do="swap", engine="lacking")
    told = front.hear(lambda one: one["kind"] == "timings" and one["panel"] == second)
    for panel in (first, second):
        assert [one for one in told if one["kind"] == "engines" and one["panel"] == panel][-1]["active"] == "lacking"


def test_what_a_cell_measures_is_told(front: Front) -> None:
    front.text("v = K.variable([1.0])\nf = K.function([], [K.exp(v)])")
    panel = front.open()
    front.ask(panel, do="hello")
    front.hear(lambda one: one["kind"] == "timings", panel)
    front.text("r = kernelk.compare(lambda: f([]), 'numpy', 'lacking', budget=0.1, per_op=True)")
    told = front.hear(lambda one: one["kind"] == "timings" and bool(one["compare"]), panel)[-1]
    assert [bar["label"] for bar in told["compare"]["bars"]] == ["numpy", "lacking"]
    assert [bar["label"] for bar in told["per_op"]["bars"]] == ["exp: numpy", "exp: lacking"]
    front.text("r = kernelk.profile(lambda: f([]), budget=0.1)")
    told = front.hear(lambda one: one["kind"] == "timings" and bool(one["profile"]), panel)[-1]
    assert told["profile"]["bars"][0]["label"] == "exp"


TRAINS = """
w = K.variable([4.0], name="w")
y = K.sum(K.square(w))
f = K.function([], [y], [K.update_sub(w, 0.1 * K.gradients(y, [w])[0])])
"""


def losses_within(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The losses that were told while a cell ran."""
    comms = [one["content"]["data"] for one in messages if one["msg_type"] == "comm_msg"]
    return [one["content"] for one in comms if one.get("content", {}).get("kind") == "losses"]


def test_losses_are_told_call_by_call_with_their_engine(front: Front) -> None:
    front.text(TRAINS + "first = [float(f([])[0]) for _ in range(3)]")
    front.text("r = kernelk.set_backend('lacking')\nsecond = [float(f([])[0]) for _ in range(2)]")
    panel = front.open()
    front.ask(panel, do="hello")
    (curve,) = front.hear(lambda one: one["kind"] == "losses", panel)[-1]["functions"]
    (row,) = [row for row in front.get(panel, "rows", do="hello")["rows"] if row["names"] == ["f"]]
    assert (curve["key"], curve["calls"], curve["every"], curve["dropped"]) == (row["key"], 5, 1, 0)
    losses = json.loads(front.text("print(first + second)"))
    assert [mean for _, _, mean, _ in curve["points"]] == losses
    assert [engine for _, _, _, engine in curve["points"]] == ["numpy"] * 3 + ["lacking"] * 2
    assert [(run["title"], run["calls"]) for run in curve["runs"]] == [
        ("numpy", "calls 1 to 3"),
        ("Lacking", "calls 4 to 5"),
    ]
    assert curve["runs"][0]["loss"] == f"{losses[0]:.4g} → {losses[2]:.4g}"
    # A cell without a call of it says nothing of it.
    front.text("pass")
    assert not [one for one in front.hear(lambda one: one["kind"] == "changes", panel) if one["kind"] == "losses"]
    (told,) = losses_within(front.run("K.set_value(w, [float('nan')])\nr = f([])"))
    assert told["functions"][0]["points"][-1] == [6, 1, "NaN", "lacking"]
    # What is saved with the notebook has them in words.
    shown = [one["content"]["data"] for one in front.run("%kpanel") if one["msg_type"] == "display_data"]
    assert "calls 1 to 3" in shown[1]["text/html"]
    assert re.search(r"f +Lacking +calls 4 to 6", shown[1]["text/plain"])
    front.text("del f")
    assert front.hear(lambda one: one["kind"] == "losses", panel)[-1]["functions"] == []


def test_losses_are_told_while_the_cell_runs_but_not_at_each_call(front: Front) -> None:
    front.text(TRAINS)
    panel = front.open()
    front.ask(panel, do="hello")
    front.hear(lambda one: one["kind"] == "timings", panel)
    several = "for _ in range(5): r = f([])"
    told = losses_within(front.run(f"from kernelk.widgets import hub\nhub.LOSSES_EVERY = 3600\n{several}"))
    assert [one["functions"][0]["calls"] for one in told] == [1]
    front.hear(lambda one: one["kind"] == "losses" and one["functions"][0]["calls"] == 5, panel)
    told = losses_within(front.run(f"hub.hub()._losses_due = hub.LOSSES_EVERY = 0.0\n{several}"))
    assert [one["functions"][0]["calls"] for one in told] == [6, 7, 8, 9, 10]
    front.text("hub.LOSSES_EVERY = 0.5")


@pytest.mark.parametrize("wait", ["time.sleep(0.05)", "await asyncio.sleep(0.05)"])
def test_a_request_while_a_cell_runs_waits_for_its_end(front: Front, wait: str) -> None:
    """Sent as JupyterLab does, to a subshell, where the kernel has them; some take it in while a cell awaits."""
    client = front.client
    panel = front.open()
    front.ask(panel, do="hello")
    front.hear(lambda one: one["kind"] == "timings", panel)
    client.control_channel.send(client.session.msg("create_subshell_request", {}))
    subshell = client.control_channel.get_msg(timeout=PATIENCE)["content"].get("subshell_id")
    code = "import asyncio, time\nprint('begun', flush=True)\nfor _ in range(20):\n    "
    client.execute(f"{code}{wait}\nat_its_end = K.backend()")
    while client.get_iopub_msg(timeout=PATIENCE)["content"].get("text", "").strip() != "begun":
        pass
    data = {"method": "custom", "content": {"request": "past", "view": "v", "do": "swap", "engine": "lacking"}}
    message = client.session.msg("comm_msg", {"comm_id": panel, "data": data})
    if subshell is not None:
        message["header"]["subshell_id"] = subshell
    client.shell_channel.send(message)
    seen: list[str] = []
    while "swapped" not in seen:
        message = client.get_iopub_msg(timeout=PATIENCE)
        content = message["content"]
        if message["msg_type"] == "comm_msg" and content["data"].get("method") == "custom":
            told = content["data"]["content"]
            if told["kind"] in ("queued", "ack"):
                seen.append(told["kind"])
            elif told["kind"] == "notice":
                assert "numpy → lacking" in told["text"]
                seen.append("swapped")
    if subshell is not None:
        client.control_channel.send(client.session.msg("delete_subshell_request", {"subshell_id": subshell}))
    assert [word for word in seen if word != "queued"] == ["ack", "swapped"]
    assert front.text("print(at_its_end, K.backend())") == "numpy lacking\n"


def test_nothing_listens_without_a_panel_in_view(front: Front) -> None:
    count = (
        "print(sum(map(len, get_ipython().events.callbacks.values())), "
        "*(len(current()._trait_notifiers.get(name, {}).get('change', [])) for name in ('active', 'measurements')), "
        "int(current().loss_listener is not None))"
    )
    before = front.text(count)
    panel = front.open()
    front.ask(panel, do="hello")
    front.hear(lambda one: one["kind"] == "timings", panel)
    open_ = front.text(count)
    assert open_ != before
    name = front.ask(panel, do="bye")
    front.hear(lambda one: one["kind"] == "ack" and one["request"] == name, panel)
    assert front.text(count) == before
    front.get(panel, "timings", do="hello")
    assert front.text(count) == open_
    front.text("%unload_ext kernelk\n%load_ext kernelk")
    assert front.text(count) == before


def test_unload_closes_the_panel(front: Front) -> None:
    panel = front.open()
    front.ask(panel, do="hello")
    front.hear(lambda one: one["kind"] == "timings", panel)
    found = front.run("%unload_ext kernelk")
    told = [one["content"]["data"].get("content") for one in found if one["msg_type"] == "comm_msg"]
    assert {"kind": "closed"} in told
    assert panel in [one["content"]["comm_id"] for one in found if one["msg_type"] == "comm_close"]
    assert front.text("print(len(get_ipython().kernel.comm_manager.comms))") == "0\n"
    assert "'kpanel'" not in front.text("print(list(get_ipython().magics_manager.magics['line']))")


def test_in_a_terminal_it_is_text() -> None:
    cells = run_cells(
        ["%load_ext kernelk", "%kpanel", "%kpanel now", "import kernelk\np = kernelk.panel()\np.close()"],
        KERNELK_BACKEND="numpy",
    )
    assert "active: numpy" in cells[1]["out"]
    assert cells[2]["error"] == "ArgumentError"
    assert "%kpanel takes no arguments" in cells[2]["out"]
    assert cells[3]["error"] is None


def test_without_anywidget_one_line_says_how_to_get_it() -> None:
    cells = run_cells(
        ["import sys\nsys.modules['anywidget'] = None", "%load_ext kernelk", "%kpanel"], KERNELK_BACKEND="numpy"
    )
    assert cells[2]["error"] == "ArgumentError"
    (line,) = cells[2]["out"].strip().splitlines()
    assert 'pip install "kernelk[panel]"' in line
    assert '%pip install "kernelk[panel]"' in line
    assert sys.prefix in line


def test_the_front_end_is_one_module_of_plain_ones() -> None:
    from kernelk.widgets import model

    text = model.joined()
    assert "import " not in "".join(line for line in text.splitlines(True) if not line.lstrip().startswith("//"))
    assert text.count("export ") == 1
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "http://", "https://"):
        assert word not in text.replace("http://www.w3.org/2000/svg", "")
    names = [
        line.split()[1].split("(")[0]
        for line in text.splitlines()
        if line.startswith(("function ", "const ", "class ")) and "{" not in line.split()[1]
    ]
    assert len(names) == len(set(names))


LONG = """
many = {f"number {i}, which has a rather long name, <b>, äöü": K.variable(np.ones((7, 11, i))) for i in range(200)}
more = [K.function([], [y], [K.update_sub(w, 0.1 * w)], name=f"function {i}") for i in range(9)]
r = [f([]) for f in more for name in ("numpy", "lacking") for r in [kernelk.set_backend(name)]]
"""


def test_a_panel_adds_less_than_5_kb_to_a_saved_notebook() -> None:
    """What nbclient leaves, and so nbconvert, papermill and `jupyter execute`: outputs and the widgets' state."""
    import nbformat
    from nbclient import NotebookClient

    cells = [ENGINES, "%load_ext kernelk", TRAINS, LONG, "%kpanel"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_name="python3").execute(
        env=environment(KERNELK_BACKEND="numpy", JUPYTER_PREFER_ENV_PATH="1")
    )
    whole = len(nbformat.writes(notebook).encode())
    assert re.search(r"and 2\d\d more", notebook.cells[-1].outputs[1]["data"]["text/plain"])
    notebook.cells[-1].outputs = []
    del notebook.metadata["widgets"]
    assert whole - len(nbformat.writes(notebook).encode()) < 5000
