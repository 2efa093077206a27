"""The panel in real JupyterLab 4 and Notebook 7, by mouse and by keyboard; its pictures are the docs' own.

KERNELK_SCREENSHOTS=docs/images makes these anew (`make screenshots`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.engines import absent
from helpers.jupyter_page import Page, Server, browsing, need_browser, serving, written
from helpers.processes import PATIENCE, environment

from kernelk.engines import registry
from kernelk.errors import BackendNotInstalledError

pytestmark = pytest.mark.timeout(240)

SETUP = """
%load_ext kernelk
import numpy as np
from kernelk import backend as K
rng = np.random.default_rng(1)
K.set_random_seed(1)
"""

NETWORK = """
x = K.placeholder((None, 8), name="features")
labels = K.placeholder((None, 3), name="labels")
w1, b1 = K.variable(rng.normal(0, 0.4, (8, 16)), name="dense_1/kernel"), K.zeros((16,), name="dense_1/bias")
w2, b2 = K.variable(rng.normal(0, 0.3, (16, 3)), name="dense_2/kernel"), K.zeros((3,), name="dense_2/bias")
hidden = K.relu(K.bias_add(K.dot(x, w1), b1))
y = K.softmax(K.bias_add(K.dot(hidden, w2), b2))
loss = K.mean(K.categorical_crossentropy(labels, y))
weights = [w1, b1, w2, b2]
steps = [K.update_sub(w, 0.5 * g) for w, g in zip(weights, K.gradients(loss, weights))]
train = K.function([x, labels], [loss], steps)
features, targets = rng.normal(size=(64, 8)), np.eye(3)[rng.integers(0, 3, 64)]
history = [train([features, targets])[0] for _ in range(20)]
shown = loss.eval({x: features, labels: targets}), y.eval({x: features})
"""

# What is asked of a front end before a line that counts seconds is shown in its place.
REPLACES = "from kernelk.display import messages\nprint('replaced:', messages.replaces_outputs())"

# An element of the panel, by what it is for.
PANEL = ".kernelk-panel"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    need_browser()
    with serving(tmp_path_factory.mktemp("jupyter")) as found:
        yield found


@pytest.fixture(scope="module")
def browser(server: Server) -> Iterator[Any]:
    with browsing() as found:
        yield found


@pytest.fixture
def lab(server: Server, browser: Any) -> Iterator[Page]:
    """JupyterLab, as wide as in the docs; there may be no complaint in its console at the end."""
    page = Page(browser.new_page(viewport={"width": 1240, "height": 1250}), server, "lab")
    yield page
    errors = page.new_errors()
    page.page.close()
    assert errors == []


def need(*engines: str) -> None:
    """Ends the test, as `absent` says, where one of these engines isn't installed."""
    for name in engines:
        try:
            registry.interpreter(registry.engine(name))
        except BackendNotInstalledError as error:
            absent(name, error)


def pick(page: Page, engine: str) -> Any:
    """The engine's tile."""
    return page.page.locator(f'{PANEL} [data-engine="{engine}"]')


def active(page: Page, engine: str) -> None:
    """Waits until the engine is the active one."""
    page.page.wait_for_selector(f'{PANEL} [data-engine="{engine}"][aria-pressed="true"]')


def opened(page: Page) -> None:
    """Waits until the panel has heard from the kernel."""
    page.page.wait_for_selector(f"{PANEL} [data-engine]")


def names(page: Page) -> list[str]:
    """The names in the grid's rows, from above."""
    found: list[str] = page.page.locator(f"{PANEL} .kk-space .kk-col-name").all_inner_texts()
    return found


def violations(page: Page) -> list[str]:
    """What axe finds serious or worse in the panel."""
    from axe_core_python.sync_playwright import Axe

    found = Axe().run(page.page, context=PANEL)
    return [
        f"{one['impact']}: {one['id']}: {node['html'][:200]} {node.get('failureSummary', '')[:300]}"
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]


@pytest.mark.slow
def test_swaps_in_lab_by_mouse_and_by_keyboard(lab: Page) -> None:
    need("tensorflow", "theano", "cntk")
    lab.open("swaps.ipynb", [SETUP + NETWORK, "%kpanel", "print(K.backend(), float(train([features, targets])[0]))"])
    lab.run(0, 1)
    opened(lab)
    page = lab.page
    # By mouse; the kernel is free while an engine starts, and progress is told.
    pick(lab, "tensorflow").click()
    page.wait_for_selector(f"{PANEL} .kk-progress-text:has-text('TensorFlow is starting')")
    lab.run(2)
    lab.output(2, "numpy")
    active(lab, "tensorflow")
    page.wait_for_selector(f"{PANEL} .kk-done:has-text('numpy → tensorflow')")
    # By keyboard: Tab leads to one tile, arrows to the others, Enter swaps.
    pick(lab, "tensorflow").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.engine") == "theano"
    page.keyboard.press("Enter")
    active(lab, "theano")
    assert page.evaluate("document.activeElement.dataset.engine") == "theano"
    page.keyboard.press("ArrowRight")
    page.keyboard.press(" ")
    active(lab, "cntk")
    lab.run(2)
    lab.output(2, "cntk")
    # Each row that had been shown says what became of it.
    loss = page.locator(f"{PANEL} .kk-row", has=page.locator(".kk-col-name", has_text=re.compile("^loss$")))
    assert re.match("[=≠]", loss.locator(".kk-col-after").inner_text())
    assert violations(lab) == []
    lab.shot(page.locator(PANEL), "panel-engines")
    # The swaps and their phases.
    page.locator(f"{PANEL} [data-tab=timings]").click()
    page.wait_for_selector(f"{PANEL} .kk-swap:has-text('theano → cntk')")
    assert page.locator(f"{PANEL} .kk-swap").count() == 3


def test_a_refusal_and_a_queue(lab: Page, tmp_path: Path) -> None:
    go = tmp_path / "go"
    held = f"import os, time\nwhile not os.path.exists({str(go)!r}): time.sleep(0.05)\nprint(K.backend())"
    code = """
from kernelk.engines import Engine
from helpers.fake_engines import lacking_engine
class Here:
    def setitem(self, where, name, value): where[name] = value
module = lacking_engine(Here(), "lacking", dtypes={"float64"})
wide = K.variable(np.ones(3), dtype="float64", name="<img src=x onerror=alert(1)>")
"""
    lab.open("refusal.ipynb", [SETUP + code, "%kpanel", held])
    page = lab.page
    page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
    lab.run(0, 1)
    opened(lab)
    pick(lab, "lacking").click()
    reasons = page.locator(f"{PANEL} .kk-error li")
    reasons.first.wait_for()
    assert "float64" in reasons.first.inner_text()
    assert "<img src=x" in reasons.first.inner_text()
    assert page.locator(f"{PANEL} img").count() == 0
    assert "cannot run this session" in page.locator(f"{PANEL} .kk-notice .kk-words").inner_text()
    assert "float64" in page.locator(f"{PANEL} [role=alert]:not(.kk-gone)").inner_text()
    active(lab, "numpy")
    lab.shot(page.locator(PANEL), "panel-refused")
    lab.execute("wide = None")
    lab.execute("K.clear_session()")
    page.locator(f"{PANEL} [aria-label=Dismiss]").click()
    assert reasons.count() == 0
    # Asked for while a cell runs.
    lab.start(2)
    pick(lab, "lacking").click()
    page.wait_for_selector(f"{PANEL} .kk-queued:has-text('Swap to Lacking: queued until the running cell ends')")
    go.touch()
    active(lab, "lacking")
    assert page.locator(f"{PANEL} .kk-queued").count() == 0
    lab.output(2, "numpy")


def test_tensors_in_lab(lab: Page) -> None:
    bad = 'bad = K.variable(np.array([[1.0, np.nan], [np.inf, 2.0]]), name="bad")\n'
    lab.open("tensors.ipynb", [SETUP + NETWORK + bad, "%kpanel", "K.set_value(w1, 100 * np.ones((8, 16)))", REPLACES])
    lab.run(0, 1, 3)
    lab.output(3, "replaced: True")
    opened(lab)
    page = lab.page
    row = page.locator(f"{PANEL} .kk-space .kk-row", has=page.locator(".kk-col-name", has_text=re.compile("^bad$")))
    row.locator(".kk-bad:has-text('1 NaN, 1 Inf')").wait_for()
    # Filter and sort.
    page.locator(f"{PANEL} input[type=search]").fill("dense kernel")
    assert names(lab) == ["w1 (+1)", "w2 (+1)"]
    page.locator(f"{PANEL} input[type=search]").fill("")
    page.locator(f"{PANEL} .kk-tensors select").select_option("variable")
    page.locator(f"{PANEL} [data-focus=sort-bytes]").click()
    page.locator(f"{PANEL} [data-focus=sort-bytes]").click()
    assert names(lab)[0].startswith("w1")
    assert page.locator(f"{PANEL} .kk-col-bytes[aria-sort=descending]").count() == 1
    # Open a value by keyboard: a heat map, its figures and its line.
    page.locator(f"{PANEL} .kk-grid").focus()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{PANEL} .kk-details .kk-heatmap")
    details = page.locator(f"{PANEL} .kk-details")
    assert "dense_1/kernel" in details.inner_text()
    assert re.search(r"cell 1, line \d+", details.inner_text())
    assert details.locator(".kk-histogram rect").count() > 4
    assert violations(lab) == []
    lab.shot(page.locator(PANEL), "panel-tensors")
    page.locator(f"{PANEL} [data-focus=mode-text]").click()
    assert details.locator("td").count() == 8 * 16
    page.keyboard.press("Escape")
    assert details.is_hidden()
    assert page.evaluate("document.activeElement.className") == "kk-grid"
    # A variable that a cell changes is shown anew, without being asked for.
    lab.run(2)
    page.wait_for_selector(f"{PANEL} .kk-space .kk-row .kk-range:text-is('100')")


@pytest.mark.slow
def test_the_graph_the_native_view_and_timings_in_lab(lab: Page) -> None:
    cells = [
        SETUP + NETWORK,
        "%kpanel",
        "r = %kprofile --budget 0.3 train([features, targets])",
        "%%kcompare numpy torch --budget 0.5\ntrain([features, targets])",
    ]
    need("torch")
    lab.open("graph.ipynb", cells)
    lab.run(0, 1)
    opened(lab)
    page = lab.page
    page.locator(f"{PANEL} .kk-space .kk-row", has=page.locator(".kk-col-name", has_text=re.compile("^y$"))).click()
    page.locator(f"{PANEL} [data-focus=to-graph]").click()
    page.wait_for_selector(f"{PANEL} .kk-drawing .kk-node")
    boxes = page.locator(f"{PANEL} .kk-node")
    assert boxes.count() > 6
    softmax = page.locator(f"{PANEL} .kk-node[aria-label*=softmax]").first
    softmax.focus()
    page.wait_for_selector(f"{PANEL} .kk-hover code:has-text('cell 1, line')")
    assert violations(lab) == []
    lab.shot(page.locator(PANEL), "panel-graph")
    page.keyboard.press("Enter")
    page.wait_for_selector(f"{PANEL} .kk-details h3:has-text('y')")
    page.locator(f"{PANEL} [data-focus=to-native]").click()
    page.wait_for_selector(f"{PANEL} .kk-column pre")
    assert "numpy" in page.locator(f"{PANEL} .kk-column").first.inner_text()
    lab.run(2, 3)
    page.locator(f"{PANEL} [data-tab=timings]").click()
    page.wait_for_selector(f"{PANEL} .kk-bar-label:text-is('torch')")
    assert page.locator(f"{PANEL} .kk-bars").count() == 2
    assert violations(lab) == []
    lab.shot(page.locator(PANEL), "panel-timings")
    page.locator(f"{PANEL} [data-tab=native]").click()
    page.locator(f"{PANEL} .kk-native button:text-is('Again')").click()
    page.wait_for_selector(f"{PANEL} .kk-column:has-text('PyTorch')")
    assert violations(lab) == []
    lab.shot(page.locator(PANEL), "panel-native")


def test_the_loss_as_it_falls_in_lab(lab: Page, tmp_path: Path) -> None:
    need("torch")
    go = tmp_path / "go"
    held = f"while not os.path.exists({str(go)!r}): time.sleep(0.05)"
    held = f"import os, time\ntime.sleep(1)\nr = train([features, targets])\n{held}"
    more = "train([features, targets])\n%kbackend torch\nr = [train([features, targets]) for _ in range(12)]"
    lab.open("training.ipynb", [SETUP + NETWORK, "%kpanel", more, held])
    lab.run(0, 1)
    opened(lab)
    page = lab.page
    tab = page.locator(f"{PANEL} [data-tab=training]")
    tab.click()
    page.wait_for_selector(f"{PANEL} .kk-training h3:has-text('Loss of train, 20 calls')")
    lab.run(2)
    page.wait_for_selector(f"{PANEL} .kk-training h3:has-text('33 calls')")
    # Each engine's part in its own colour and dashes, and in words.
    lines = page.locator(f"{PANEL} .kk-curve .kk-loss")
    assert lines.count() == 2
    assert lines.nth(0).get_attribute("stroke") != lines.nth(1).get_attribute("stroke")
    assert lines.nth(0).get_attribute("stroke-dasharray") != lines.nth(1).get_attribute("stroke-dasharray")
    runs = page.locator(f"{PANEL} .kk-runs li").all_inner_texts()
    assert [run.split(":")[0] for run in runs] == ["numpy calls 1 to 21", "PyTorch calls 22 to 33"]
    words = page.locator(f"{PANEL} .kk-curve").get_attribute("aria-label") or ""
    assert "calls 22 to 33, on PyTorch" in words
    assert violations(lab) == []
    lab.shot(page.locator(PANEL), "panel-training")
    # It falls while the cell still runs.
    lab.start(3)
    page.wait_for_selector(f"{PANEL} .kk-training h3:has-text('34 calls')")
    go.touch()


def test_dark_narrow_and_still_in_lab(lab: Page) -> None:
    page = lab.page
    page.emulate_media(reduced_motion="reduce")
    lab.open("dark.ipynb", [SETUP + NETWORK, "%kpanel"])
    lab.run(0, 1)
    opened(lab)
    light = page.evaluate(f"getComputedStyle(document.querySelector('{PANEL}')).backgroundColor")
    lab.command("apputils:change-theme", {"theme": "JupyterLab Dark"})
    page.wait_for_function(
        f"(light) => getComputedStyle(document.querySelector('{PANEL}')).backgroundColor !== light", arg=light
    )
    page.locator(f"{PANEL} .kk-space .kk-row").nth(2).click()
    page.wait_for_selector(f"{PANEL} .kk-details .kk-histogram")
    assert violations(lab) == []
    lab.shot(page.locator(PANEL), "panel-dark")
    page.evaluate("document.querySelector('.kernelk-panel').style.width = '320px'")
    page.wait_for_timeout(100)
    over = """() => { const panel = document.querySelector('.kernelk-panel');
        const edge = panel.getBoundingClientRect().right;
        return [...panel.querySelectorAll('.kk-engines *, .kk-settings *, .kk-tabs *, .kk-page:not([hidden]) > *, '
          + '.kk-tools *, .kk-grid, .kk-details, .kk-training *')]
          .filter((one) => one.getBoundingClientRect().right > edge + 1).map((one) => one.className) }"""
    assert page.evaluate(over) == []
    assert violations(lab) == []
    page.locator(f"{PANEL} [aria-label='Close details']").click()
    lab.shot(page.locator(PANEL), "panel-narrow")
    page.locator(f"{PANEL} [data-tab=training]").click()
    page.wait_for_selector(f"{PANEL} .kk-curve")
    assert page.evaluate(over) == []
    assert violations(lab) == []
    page.locator(f"{PANEL} [data-tab=timings]").click()
    lab.command("apputils:change-theme", {"theme": "JupyterLab Light"})
    page.wait_for_function(
        f"(light) => getComputedStyle(document.querySelector('{PANEL}')).backgroundColor === light", arg=light
    )


@pytest.mark.slow
def test_a_restart_two_views_and_a_reopened_notebook_in_lab(lab: Page, server: Server, browser: Any) -> None:
    need("torch")
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)"
    lab.open("restart.ipynb", [SETUP + NETWORK, "%kpanel", "%kpanel", "%unload_ext kernelk", kill])
    lab.run(0, 1, 2)
    page = lab.page
    page.wait_for_function("() => document.querySelectorAll('.kernelk-panel [data-engine=numpy]').length === 2")
    # Two panels in step.
    page.locator(PANEL).nth(0).locator("[data-engine=torch]").click()
    page.locator(PANEL).nth(1).locator("[data-engine=torch][aria-pressed=true]").wait_for()
    saved = lab.save()
    (kept,) = saved["metadata"]["widgets"].values()
    assert len(kept["state"]) == 2
    tables = [out["data"] for cell in saved["cells"] for out in cell["outputs"] if "text/plain" in out.get("data", {})]
    assert ["active: torch" in "".join(data["text/html"]) for data in tables] == [True, True]
    # The page is closed and opened again while the kernel lives: the panel is live again.
    again = Page(browser.new_page(viewport={"width": 1240, "height": 1250}), server, "lab").open("restart.ipynb")
    again.page.locator(PANEL).nth(0).locator("[data-engine=torch][aria-pressed=true]").wait_for()
    again.page.close()
    # The kernel is restarted under it.
    lab.restart()
    page.locator(f"{PANEL} .kk-gone:visible").nth(1).wait_for()
    assert "The kernel was restarted" in page.locator(f"{PANEL} .kk-gone").first.inner_text()
    assert page.locator(PANEL).nth(0).locator("[data-engine=numpy]").is_disabled()
    lab.save()
    # And opened again when its kernel is long gone: its last state, and how to have it back.
    late = Page(browser.new_page(viewport={"width": 1240, "height": 1250}), server, "lab").open("restart.ipynb")
    text = late.page.locator(".jp-Cell").nth(1).locator(".jp-OutputArea")
    late.page.wait_for_selector(".jp-OutputArea :text('run %kpanel')")
    assert "active: torch" in text.inner_text()
    assert "model not found" not in late.page.locator(".jp-Notebook").inner_text()
    assert late.new_errors() == []
    late.run(0, 1)
    late.page.wait_for_selector(f"{PANEL} [data-engine=numpy][aria-pressed=true]")
    late.run(3)
    late.page.wait_for_selector(PANEL, state="detached")
    # And one that dies by itself.
    late.run(0, 1)
    opened(late)
    late.start(4)
    late.page.wait_for_selector(f"{PANEL} .kk-gone:visible")
    late.page.close()


def test_ten_thousand_tensors_stay_smooth(lab: Page) -> None:
    many = "many = {f't{i}': K.variable([float(i)]) if i % 2 else K.tanh(x) for i in range(10_000)}"
    lab.open("many.ipynb", [SETUP + 'x = K.placeholder((None,), name="x")\n' + many, "%kpanel"])
    lab.run(0, 1)
    page = lab.page
    page.wait_for_selector(f"{PANEL} .kk-note:text-is('10001')")
    assert page.locator(f"{PANEL} .kk-space .kk-row").count() < 60
    grid = page.locator(f"{PANEL} .kk-grid")
    # Sixty turns of the wheel are sixty frames, or nearly.
    frames = page.evaluate(
        """async () => {
          const grid = document.querySelector('.kernelk-panel .kk-grid');
          const longest = [];
          for (let i = 0; i < 60; i++) {
            const begin = performance.now();
            grid.scrollTop += 997;
            await new Promise(requestAnimationFrame);
            longest.push(performance.now() - begin);
          }
          return longest.sort((a, b) => a - b);
        }"""
    )
    assert len(frames) == 60
    grid.focus()
    page.keyboard.press("End")
    page.wait_for_selector(f"{PANEL} .kk-current :text(\"many['t9999']\")")
    page.wait_for_selector(f"{PANEL} .kk-current .kk-range:text-is('9999')")
    page.locator(f"{PANEL} input[type=search]").fill("t77")
    page.wait_for_selector(f"{PANEL} .kk-note:text-is('111 of 10001')")
    assert names(lab)[0] == "many['t77']"


def test_notebook_7(server: Server, browser: Any) -> None:
    need("torch")
    page = Page(browser.new_page(viewport={"width": 1100, "height": 1100}), server, "notebook")
    page.open("seven.ipynb", [SETUP + NETWORK, "%kpanel", REPLACES])
    page.run(0, 1, 2)
    page.output(2, "replaced: True")
    opened(page)
    pick(page, "torch").click()
    active(page, "torch")
    page.page.locator(f"{PANEL} input[type=search]").fill("w2")
    page.page.locator(f"{PANEL} .kk-space .kk-row").first.click()
    page.page.wait_for_selector(f"{PANEL} .kk-details .kk-histogram")
    assert violations(page) == []
    page.shot(page.page.locator(PANEL), "panel-notebook")
    page.save()
    page.restart()
    page.page.wait_for_selector(f"{PANEL} .kk-gone:visible")
    page.page.close()
    late = Page(browser.new_page(), server, "notebook").open("seven.ipynb")
    late.page.wait_for_selector(".jp-OutputArea :text('run %kpanel')")
    assert "model not found" not in late.page.locator(".jp-Notebook").inner_text()
    assert late.new_errors() == []
    late.page.close()
    assert page.new_errors() == []


def test_a_notebook_that_was_executed_elsewhere_shows_its_table_alone(lab: Page, server: Server) -> None:
    """As nbconvert leaves it, with the widget's state, opened as trusted and without its kernel."""
    import nbformat
    from nbformat.sign import NotebookNotary

    path = server.folder / "notebooks" / "executed.ipynb"
    path.write_text(json.dumps(written([SETUP + NETWORK, "%kpanel"])))
    command = [sys.executable, "-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", str(path)]
    settings = environment(KERNELK_BACKEND="numpy", JUPYTER_PREFER_ENV_PATH="1")
    subprocess.run(command, env=settings, check=True, capture_output=True, timeout=PATIENCE)
    notebook = nbformat.read(path, as_version=4)
    (state,) = notebook.metadata.widgets.values()
    assert [entry["model_name"] for entry in state["state"].values()] == ["AnyModel"]
    NotebookNotary(data_dir=str(server.folder / "data")).sign(notebook)
    lab.open("executed.ipynb")
    area = lab.page.locator(".jp-Cell").nth(1).locator(".jp-OutputArea")
    area.locator(":text('run %kpanel')").wait_for()
    # The widget itself is there, and has drawn nothing.
    area.locator(".jp-OutputArea-child").first.locator(".jupyter-widgets-disconnected").wait_for(state="attached")
    assert area.locator("table").first.is_visible()
    lab.page.wait_for_timeout(1000)
    assert lab.page.locator(PANEL).count() == 0
    assert area.locator(".jp-OutputArea-child").first.inner_text().strip() == ""
    # To the left, whatever the page's own style says of cells.
    assert area.locator("td").last.evaluate("(cell) => getComputedStyle(cell).textAlign") == "left"


@pytest.mark.skipif("KERNELK_SCREENSHOTS" not in os.environ, reason="asks for no pictures")
def test_the_pictures_are_small() -> None:
    for path in Path(os.environ["KERNELK_SCREENSHOTS"]).glob("panel-*.png"):
        assert path.stat().st_size < 200_000, path
