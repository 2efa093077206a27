"""Shows one tensor or function at the end of a cell, as text and as HTML, without computing anything."""

from __future__ import annotations

from typing import Any

from ..display.tables import Table, html, plain, size, text
from ..graph.nodes import Placeholder, Tensor, Update, Variable
from ..session.current import current
from ..session.function import Function
from .inventory import is_stale, stale_reason
from .summaries import Summary, known

# Larger values are sampled: this is shown at the end of many cells.
_MOST = 1 << 20
_INPUTS = 6


def page(thing: Tensor | Function) -> str:
    """The object as static HTML."""
    return html(_table(thing))


def pretty(thing: Tensor | Function, printer: Any) -> None:
    """The object as text, by IPython's printer: everything known if it stands alone, one line in a list or dict."""
    # The printer's stack holds what is being printed, this one last.
    printer.text(text(_table(thing)) if len(printer.stack) < 2 else repr(thing))


def _table(thing: Tensor | Function) -> Table:
    if is_stale(thing):
        rows = [["stale", stale_reason(thing)]]
    elif isinstance(thing, Function):
        rows = _function(thing)
    else:
        rows = _tensor(thing)
    return Table([*rows, ["made in", plain(str(thing.source), 120)]], title=repr(thing))


def _function(function: Function) -> list[list[str]]:
    rows = [
        ["inputs", ", ".join(plain(x.name) for x in function.inputs) or "none"],
        ["outputs", ", ".join(plain(x.name) for x in function.outputs) or "none"],
    ]
    if function.updates:
        rows.append(["updates", ", ".join(plain(variable.name) for variable, _ in function.updates)])
    session = current()
    host = session.hosts.get(session.active)
    forms = function.specialisations(host) if host is not None else 0
    compiled = f"{forms} form{'' if forms == 1 else 's'} on {session.active}" if forms else "at its next call"
    return [*rows, ["compiled", compiled]]


def _tensor(tensor: Tensor) -> list[list[str]]:
    rows = []
    if isinstance(tensor, Update):
        rows.append(["updates", plain(tensor.variable.name)])
    elif tensor.inputs:
        names = [plain(x.name) for x in tensor.inputs[:_INPUTS]]
        more = len(tensor.inputs) - _INPUTS
        rows.append(["computed by", f"{tensor.op} of {', '.join(names)}" + (f" and {more} more" if more > 0 else "")])
    summary = known(current(), tensor, _MOST)
    if summary is None:
        if isinstance(tensor, Placeholder):
            fed = "nothing yet" if tensor.fed_shape is None else f"{tensor.fed_shape}, not kept"
            rows.append(["last fed", fed])
        return rows
    if isinstance(tensor, Variable):
        rows.append(["bytes", size(summary.bytes or 0)])
    elif isinstance(tensor, Placeholder):
        rows.append(["last fed", str(summary.shape)])
    elif None in tensor.shape:
        rows.append(["last shape", str(summary.shape)])
    return [*rows, ["value" if summary.size == 1 else "values", _in_words(summary)]]


def _in_words(summary: Summary) -> str:
    preview = summary.preview
    if summary.size == 0:
        return "none"
    if summary.size == 1 and preview is not None:
        words = str(preview.values.flat[0])
    else:
        parts = [f"{count:,} {what}" for count, what in ((summary.nans, "NaN"), (summary.infinities, "inf")) if count]
        if summary.minimum is not None and summary.maximum is not None and summary.histogram is not None:
            extent = f"{summary.minimum:.4g} to {summary.maximum:.4g}, mean {summary.mean:.4g}, std {summary.std:.4g}"
            parts = [extent, *parts, summary.histogram.bars]
        words = "  ".join(parts)
    note, engine = summary.note, summary.engine
    parts = [words, *([f"({note})"] if note else []), *([f"by {engine}"] if engine else [])]
    return "  ".join(parts)


def _printed(thing: Tensor | Function, printer: Any, cycle: bool) -> None:
    pretty(thing, printer)


# Entered from here, as `ops.operators` enters the operators: what a tensor is knows nothing of how it looks.
for _shown in (Tensor, Function):
    _shown._repr_html_ = page  # type: ignore[union-attr]
    _shown._repr_pretty_ = _printed  # type: ignore[union-attr]
