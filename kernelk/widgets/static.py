"""The panel without a kernel: plain text, and HTML that any page can show, above all in a saved notebook."""

from __future__ import annotations

from html import escape
from typing import Any

from ..display.tables import Table, plain, text
from ..errors import printable

# What a notebook may hold of both forms, in bytes; the lists are cut to fit. With the rest it is 5 kB for a panel.
MOST_BYTES = 2200
BELOW = "This is the panel's last state; run %kpanel or kernelk.panel() in a notebook to open it."
# Characters of a name.
MOST_NAME = 32


def forms(
    engines: dict[str, Any], losses: list[dict[str, Any]], rows: list[Any], words: str, mark: str
) -> tuple[str, str]:
    """The last state as HTML and as text. `mark` is a class by which a live panel hides the HTML."""
    most = 16
    while True:
        tables = _tables(engines, losses, rows, words, most)
        html, written = _html(tables, mark), "\n\n".join(text(table) for table in tables)
        if most == 0 or len(html.encode()) + len(written.encode()) <= MOST_BYTES:
            return html, written
        most -= 1


def _tables(
    engines: dict[str, Any], losses: list[dict[str, Any]], rows: list[Any], words: str, most: int
) -> list[Table]:
    """The engines that run, and the first `most` lines of training and of tensors, which have half of them at least."""
    header = ["", "engine", "state", "version", "runs in", "memory", "device"]
    cells = []
    others: dict[str, list[str]] = {}
    for engine in engines["engines"]:
        if not engine["active"] and not engine["running"]:
            others.setdefault(engine["state"], []).append(f"{engine['title']} {engine['version']}".strip())
            continue
        python = engine["interpreter"].replace("Python ", "py")
        cells.append(
            [
                "*" if engine["active"] else "",
                engine["title"],
                engine["state"],
                " ".join(part for part in (engine["version"], python) if part),
                engine["process"],
                engine["memory"],
                engine["device"],
            ]
        )
    strong = next((i for i, cell in enumerate(cells) if cell[0]), None)
    below = "\n".join([words, *(f"{state}: {', '.join(names)}" for state, names in others.items())])
    tables = [Table(cells, header, title="kernelk panel", below=below, strong=strong)]
    if losses:
        labels = {row.key: row.label for row in rows}
        header = ["function", "engine", "calls", "loss"]
        cells = [
            [plain(labels.get(one["key"], one["name"]), MOST_NAME), run["title"], run["calls"], run["loss"]]
            for one in losses
            for run in one["runs"]
        ]
        shown = min(len(cells), most - min(len(rows), most // 2))
        tables.append(_cut(cells, header, shown, "training"))
        most -= shown
    if rows:
        header = ["name", "kind", "op", "shape", "dtype", "device"]
        cells = [
            [
                plain(row.label, MOST_NAME),
                row.kind,
                "" if row.op == row.kind else plain(row.op, MOST_NAME),
                "" if row.shape is None else plain(str(row.shape), MOST_NAME),
                row.dtype,
                row.device,
            ]
            for row in rows[: max(1, most)]
        ]
        tables.append(_cut(cells, header, most, "tensors", len(rows)))
    return tables


def _cut(cells: list[list[str]], header: list[str], most: int, title: str, count: int | None = None) -> Table:
    more = (len(cells) if count is None else count) - most
    return Table(cells[:most], header, title=title, below=f"and {more} more" if more > 0 else "")


def _text(content: str) -> str:
    return escape(printable(content))


def _html(tables: list[Table], mark: str) -> str:
    """Tables as short as HTML allows, with one rule against pages that align cells to the right."""
    mark = _text(mark)
    parts = [f"<style>.{mark} *{{text-align:left!important;padding-right:1em}}</style>"]
    for table in tables:
        parts.append(f"<table><caption><b>{_text(table.title)}</b></caption><tr>")
        parts += [f"<th>{_text(cell)}" for cell in table.header]
        for i, row in enumerate(table.rows):
            parts.append("<tr>")
            parts += [f"<td><b>{_text(cell)}</b>" if i == table.strong else f"<td>{_text(cell)}" for cell in row]
        parts.append(f"</table>{'<br>'.join(_text(line) for line in table.below.splitlines())}")
    return f'<div class="{mark}">{"".join(parts)}<p>{BELOW}</p></div>'
