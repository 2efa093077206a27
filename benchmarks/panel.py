"""Measures the panel: the time to open it and to show a cell's changes, and its cost while none is open."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from helpers.jupyter_page import Page, absent, browsing, serving

Row = list[str]

ROUNDS = 7

_MADE = """
%load_ext kernelk
from kernelk import backend as K
count = {count}
v = [K.variable([float(i)]) for i in range(count)]
K.eval(v[0])
"""

# From the request to run a cell until the panel's rows are in the page, in milliseconds.
_OPENING = """async () => {
  const before = document.querySelectorAll('.kernelk-panel').length;
  const shown = () => {
    const panels = document.querySelectorAll('.kernelk-panel');
    return panels.length > before && panels[panels.length - 1].querySelector('.kk-space .kk-row');
  };
  const found = new Promise((resolve) => {
    const watcher = new MutationObserver(() => shown() && (watcher.disconnect(), resolve(performance.now())));
    watcher.observe(document.body, { childList: true, subtree: true });
  });
  const begin = performance.now();
  await jupyterapp.commands.execute('notebook:run-cell');
  return (await found) - begin;
}"""

# From the end of a cell until the panel has drawn its rows anew, in milliseconds.
_UPDATE = """async (code) => {
  const notebook = [...jupyterapp.shell.widgets('main')].find((one) => one.context && one.content?.model?.cells);
  const kernel = notebook.context.sessionContext.session.kernel;
  let drawn = 0;
  const watcher = new MutationObserver(() => { drawn ||= performance.now(); });
  watcher.observe(document.querySelector('.kernelk-panel .kk-space'), { childList: true });
  const reply = kernel.requestExecute({ code }).done.then(() => performance.now());
  const ended = await reply;
  while (!drawn) await new Promise((resolve) => setTimeout(resolve, 1));
  watcher.disconnect();
  return Math.max(0, drawn - ended);
}"""


def _row(what: str, milliseconds: list[float], target: float) -> Row:
    median = statistics.median(milliseconds)
    met = "yes" if median < target else "**no**"
    shown = f"{median:.0f} ms ({min(milliseconds):.0f} to {max(milliseconds):.0f})"
    row = [what, shown, f"under {target:.0f} ms", met]
    print(" | ".join(row), flush=True)
    return row


def in_the_page(rounds: int = ROUNDS) -> list[Row]:
    """JupyterLab in Chromium, on this machine: from the cell that opens the panel to its rows in the page."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)) as server, browsing() as browser:
        for count, target in ((100, 300.0), (10_000, 1000.0)):
            page = Page(browser.new_page(viewport={"width": 1240, "height": 1250}), server, "lab")
            page.open(f"panel{count}.ipynb", [_MADE.format(count=count), *["%kpanel"] * (rounds + 1)])
            page.run(0)
            found = []
            for place in range(1, rounds + 2):
                cell = page.page.locator(".jp-Notebook .jp-Cell").nth(place)
                cell.locator(".cm-content").click()
                found.append(float(page.page.evaluate(_OPENING)))
                page.page.wait_for_timeout(300)
                page.page.evaluate("() => jupyterapp.commands.execute('notebook:clear-cell-output')")
                page.page.wait_for_timeout(200)
            # The first one also imports the widgets.
            rows.append(_row(f"opening with {count:,} tensors, the first time", found[:1], target))
            rows.append(_row(f"opening with {count:,} tensors", found[1:], target))
            if count == 100:
                rows.append(_update(page, rounds))
            page.page.close()
    return rows


def _update(page: Page, rounds: int) -> Row:
    cell = page.page.locator(".jp-Notebook .jp-Cell").nth(1)
    cell.locator(".cm-content").click()
    page.run(1)
    page.page.wait_for_selector(".kernelk-panel .kk-space .kk-row")
    page.page.wait_for_timeout(1000)
    found = []
    for i in range(rounds):
        found.append(float(page.page.evaluate(_UPDATE, f"for one in v: K.set_value(one, [{i}.5])")))
        page.page.wait_for_timeout(500)
    return _row("an update after a cell that changed 100 tensors", found, 50.0)


def hooks(cells: int = 300) -> Row:
    """The share of the shortest cell's time that kernelk's callbacks take while no panel is open."""
    from IPython.core.interactiveshell import InteractiveShell

    shell: Any = InteractiveShell.instance()
    shell.run_line_magic("load_ext", "kernelk")
    if not absent():
        shell.run_cell("import kernelk\nkernelk.panel().close()")
    ours = [
        call
        for event in ("pre_run_cell", "post_run_cell")
        for call in shell.events.callbacks[event]
        if call.__module__.startswith("kernelk")
    ]
    spent, whole = [], []
    for _ in range(cells):
        begin = time.perf_counter()
        for call in ours:
            call(None)
        spent.append(time.perf_counter() - begin)
        begin = time.perf_counter()
        shell.run_cell("pass", store_history=True)
        whole.append(time.perf_counter() - begin)
    share = statistics.median(spent) / statistics.median(whole)
    text = f"{share:.2%} ({statistics.median(spent) * 1e6:.1f} us of {statistics.median(whole) * 1e6:.0f} us)"
    row = ["hooks in a cell of `pass`, no panel open", text, "under 1%", "yes" if share < 0.01 else "**no**"]
    print(" | ".join(row), flush=True)
    return row


def table(rounds: int = ROUNDS) -> list[Row]:
    """Runs all measurements; without a browser, those that need none."""
    reason = absent()
    if reason:
        print(reason)
    return [hooks(), *([] if reason else in_the_page(rounds))]


if __name__ == "__main__":
    table()
