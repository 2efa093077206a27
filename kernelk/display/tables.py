"""Renders every result object as static text and HTML, for a terminal and for a page with no kernel behind it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from html import escape

from ..errors import printable

# The style of a <pre>: in JupyterLab's outputs it has the font of prose, in which columns don't line up.
MONOSPACE = "font-family:var(--jp-code-font-family,monospace)"


def size(count: float) -> str:
    """A number of bytes for reading: 512 B, 84.2 kB, 1.1 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """Seconds for reading: 84 us, 1.23 ms, 2.10 s."""
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


@dataclass(frozen=True)
class Table:
    """The table of a result: a title, columns with a header (none for pairs of name and value), a line below."""

    rows: list[list[str]]
    header: list[str] = field(default_factory=list)
    title: str = ""
    below: str = ""
    strong: int | None = None  # the row to set in bold


def filled(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Both without the columns, after the first, that are empty in every row."""
    kept = [i for i in range(len(header)) if i == 0 or any(row[i] for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def plain(content: str, most: int = 60) -> str:
    """A name or a line of the user's on one line, of so many characters at most: what doesn't print is written out."""
    line = printable(content[: most + 1])
    return line if len(line) <= most else f"{line[: most - 3]}..."


class Rendered:
    """A result that shows itself: `table()` says what, as text in a terminal and as HTML in a page."""

    def table(self) -> Table:
        """The content."""
        raise NotImplementedError

    def also(self) -> Rendered | None:
        """A second result that is shown below this one; None where there is none."""
        return None

    def __repr__(self) -> str:
        below = self.also()
        return text(self.table()) + ("" if below is None else f"\n\n{below!r}")

    def _repr_html_(self) -> str:
        below = self.also()
        return html(self.table()) + ("" if below is None else below._repr_html_())


def _printable(table: Table) -> Table:
    """The table with unprintable characters escaped, such as a terminal's control codes in a name."""
    return replace(
        table,
        rows=[[printable(cell) for cell in row] for row in table.rows],
        title=printable(table.title),
        below="\n".join(printable(line) for line in table.below.splitlines()),
    )


def text(table: Table) -> str:
    """A table padded to its widest entries."""
    table = _printable(table)
    rows = [table.header, *table.rows] if table.header else table.rows
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))] if rows else []
    indent = "  " if table.title else ""
    lines = [indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    if table.header:
        lines.insert(1, indent + "  ".join("-" * width for width in widths))
    return "\n".join(part for part in [table.title, *lines, table.below] if part)


def html(table: Table) -> str:
    """A plain table that needs no style sheet; everything is escaped."""
    table = _printable(table)
    # marimo's cells have no room of their own between them.
    left = ' style="text-align:left;padding-right:1em"'
    caption = f"<caption{left}><b>{escape(table.title)}</b></caption>" if table.title else ""
    head = "".join(f"<th{left}>{escape(cell)}</th>" for cell in table.header)
    body = ""
    for i, row in enumerate(table.rows):
        cells = [f"<b>{escape(cell)}</b>" if i == table.strong else escape(cell) for cell in row]
        tags = ["td" if table.header or n else "th" for n in range(len(cells))]
        body += "<tr>" + "".join(f"<{tag}{left}>{cell}</{tag}>" for tag, cell in zip(tags, cells)) + "</tr>"
    header = f"<thead><tr>{head}</tr></thead>" if head else ""
    lines = "<br>".join(escape(line) for line in table.below.splitlines())
    below = f"<div>{lines}</div>" if table.below else ""
    if not header and not body:
        # A caption is no wider than its table.
        return (f"<div><b>{escape(table.title)}</b></div>" if table.title else "") + below
    return f"<table>{caption}{header}<tbody>{body}</tbody></table>{below}"
