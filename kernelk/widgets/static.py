"""The panel without a kernel: plain text, and HTML that any page can show, above all in a saved notebook."""

from __future__ import annotations

from html import escape
from typing import Any

from ..display.tables import Table, html, text

# Rows of the list that a page without a kernel gets.
MOST_ROWS = 20


def _tables(engines: dict[str, Any], losses: list[dict[str, Any]], rows: list[Any], words: str) -> list[Table]:
    header = ["", "engine", "state", "version", "runs in", "memory", "device"]
    cells = []
    for engine in engines["engines"]:
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
    tables = [Table(cells, header, title="kernelk panel", below=words, strong=strong)]
    if losses:
        labels = {row.key: row.label for row in rows}
        header = ["function", "engine", "calls", "loss"]
        cells = [
            [labels.get(one["key"], one["name"]), run["title"], run["calls"], run["loss"]]
            for one in losses
            for run in one["runs"]
        ]
        below = f"and {len(cells) - MOST_ROWS} more" if len(cells) > MOST_ROWS else ""
        tables.append(Table(cells[:MOST_ROWS], header, title="training", below=below))
    if rows:
        header = ["name", "kind", "op", "shape", "dtype", "device"]
        cells = [
            [row.label, row.kind, row.op, "" if row.shape is None else str(row.shape), row.dtype, row.device]
            for row in rows[:MOST_ROWS]
        ]
        more = f"and {len(rows) - MOST_ROWS} more" if len(rows) > MOST_ROWS else ""
        tables.append(Table(cells, header, title="tensors", below=more))
    return tables


def as_html(engines: dict[str, Any], losses: list[dict[str, Any]], rows: list[Any], words: str, mark: str) -> str:
    """The last state; `mark` is a class by which a live panel hides it."""
    tables = "".join(html(table) for table in _tables(engines, losses, rows, words))
    below = "This is the panel's last state; run %kpanel in a notebook with a kernel to open it."
    return f'<div class="{escape(mark)}" style="line-height:1.4">{tables}<div>{escape(below)}</div></div>'


def as_text(engines: dict[str, Any], losses: list[dict[str, Any]], rows: list[Any], words: str) -> str:
    """The same for a terminal."""
    return "\n\n".join(text(table) for table in _tables(engines, losses, rows, words))
