"""Makes the list of `%ktensors` from the inventory, with summaries of the values if requested."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from ..display.export import Exported
from ..display.tables import Rendered, Table, filled, plain, size
from ..errors import ArgumentError, did_you_mean, joined
from ..session.current import current
from ..twins import as_usable
from .columns import COLUMNS, KINDS, VALUE_COLUMNS
from .inventory import Row, checked_namespace, names_of, notebook_namespace, rows, stale_names
from .summaries import Summary, summaries

# Rows that a table shows; the result has them all.
SHOWN_ROWS = 40
# Notes and stale names that are listed below it.
SHOWN_NOTES = 10
# Seconds after which no further value is read.
VALUE_SECONDS = 5.0

_TEXTS = ("name", "kind", "op", "dtype", "device")


@dataclass(frozen=True, repr=False)
class TensorList(Exported, Rendered):
    """The tensors of the session, or some of them; holds no tensor (`rows[i].ref()` is one, while it lives).

    `summaries`: one for each row, where values were asked for (None for a function), else empty. `total`: how many rows
    there are without filter and kind; `criteria`: those in words; `stale`: names of tensors of a session that was
    cleared.
    """

    rows: list[Row]
    active: str
    total: int
    criteria: str = ""
    summaries: list[Summary | None] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def table(self) -> Table:
        """One row each, up to SHOWN_ROWS."""
        shown = self.rows[:SHOWN_ROWS]
        if self.summaries:
            header = ["", "kind", "shape", "dtype", "min", "max", "mean", "std", "not finite", "histogram"]
            cells = [self._value_cells(row, summary) for row, summary in zip(shown, self.summaries)]
        else:
            header = ["", "kind", "named", "shape", "dtype", "device", "bytes", "last fed", "after the swap", "made in"]
            cells = [self._cells(row) for row in shown]
        header, cells = filled(header, cells)
        return Table(cells, header if cells else [], title=self._title(), below="\n".join(self._below()))

    def _title(self) -> str:
        if not self.rows and self.total:
            return joined(f"none of the session's {self.total} objects matches {self.criteria}", next_step="%ktensors")
        if not self.rows:
            make = "x = K.placeholder((None, 3)) or w = K.variable(array)"
            return joined("this session has no tensors yet", next_step=make)
        kinds = Counter(row.kind for row in self.rows)
        held = sum(row.bytes or 0 for row in self.rows if row.kind == "variable")
        counted = []
        for kind in KINDS:
            if kinds[kind]:
                ours = f" ({size(held)})" if kind == "variable" else ""
                counted.append(f"{kinds[kind]:,} {kind}{'s' if kinds[kind] > 1 else ''}{ours}")
        fitting = f" of {self.total:,} in all, {self.criteria}" if self.criteria else ""
        return f"{', '.join(counted)}{fitting}; active: {self.active}"

    def _cells(self, row: Row) -> list[str]:
        own = "" if row.name in (*row.names, f"{row.op}_{row.key}", "function") or not row.names else plain(row.name)
        after = ""
        if row.difference is not None:
            after = f"differs by {row.difference:.2g}" if row.difference else "no difference"
        return [
            label(row),
            _kind(row),
            own,
            plain(row.signature) or str(row.shape),
            row.dtype,
            row.device,
            "" if row.bytes is None else size(row.bytes),
            "" if row.fed is None else str(row.fed),
            after,
            f"{row.place}, line {row.line}",
        ]

    def _value_cells(self, row: Row, summary: Summary | None) -> list[str]:
        cells = [label(row), _kind(row), plain(row.signature) or str(row.shape), row.dtype]
        if summary is None or summary.size is None:
            return [*cells, *[""] * 6]
        numbers = [summary.minimum, summary.maximum, summary.mean, summary.std]
        parts = [f"{count:,} {what}" for count, what in ((summary.nans, "NaN"), (summary.infinities, "inf")) if count]
        cells += ["" if value is None else f"{value:.4g}" for value in numbers]
        return [*cells, ", ".join(parts), "" if summary.histogram is None else summary.histogram.bars]

    def _below(self) -> list[str]:
        lines = []
        notes = [
            f"{label(row)}: {plain(summary.note, 300)}"
            for row, summary in zip(self.rows[:SHOWN_ROWS], self.summaries)
            if summary is not None and summary.note
        ]
        lines += notes[:SHOWN_NOTES]
        if len(notes) > SHOWN_NOTES:
            lines.append(f"{len(notes) - SHOWN_NOTES} more notes: see .summaries of the result")
        more = len(self.rows) - SHOWN_ROWS
        if more > 0:
            fewer = as_usable("%ktensors w* or --kind lists fewer", "kernelk.tensors('w*') or kind= lists fewer")
            lines.append(f"and {more:,} more: {fewer}, kernelk.tensors().to_frame() has all")
        if self.stale:
            names = ", ".join(plain(name) for name in self.stale[:SHOWN_NOTES])
            names += ", ..." if len(self.stale) > SHOWN_NOTES else ""
            old = f"from before K.clear_session(): {names}"
            lines.append(joined(old, next_step="run the cells that create them"))
        return lines

    def records(self) -> list[dict[str, Any]]:
        """Shapes as tuples, sizes in bytes; with values, their figures, and `note` where there is none."""
        records = []
        for i, row in enumerate(self.rows):
            record = {
                "name": row.label,
                "names": row.names,
                "own name": row.name,
                "kind": row.kind,
                "op": row.op,
                "shape": row.shape,
                "dtype": row.dtype,
                "device": row.device,
                "bytes": row.bytes,
                "fed": row.fed,
                "difference": row.difference,
                "source": f"{row.place}, line {row.line}",
            }
            if self.summaries:
                one = self.summaries[i] or Summary(row.key)
                record.update({name: _figure(one, name) for name in VALUE_COLUMNS}, origin=one.origin, note=one.note)
            records.append(record)
        return records

    def raw(self) -> dict[str, Any]:
        """`rows` and `summaries` as `inventory` and `summaries` describe them."""
        summaries = [None if one is None else one.as_dict() for one in self.summaries]
        return {"active": self.active, "rows": [row.as_dict() for row in self.rows], "summaries": summaries}


def tensors(
    filter: str = "",
    *,
    values: bool = False,
    kind: str | None = None,
    sort: str | None = None,
    namespace: Mapping[str, Any] | None = None,
) -> TensorList:
    """Lists the session's variables, placeholders, tensors and functions, by the notebook's names for them.

    `filter`: a name; a part of one, or of an op; or a pattern such as "w*". `values`: with extremes, mean, deviation,
    NaNs, infinities and a histogram. `kind`: one alone. `sort`: a column; numbers come largest first. `namespace`:
    where names are looked up, the notebook's or the caller's module unless given. The Python twin of `%ktensors`.
    Starts no engine. Raises ArgumentError for a kind or column that there isn't.
    """
    if kind is not None:
        _check("kind", kind, KINDS)
    if sort is not None:
        _check("column", sort, COLUMNS)
    if not isinstance(filter, str):
        raise ArgumentError(
            f"tensors: the filter is a name or a part of one, not {type(filter).__name__}",
            next_step="kernelk.tensors('w*')",
        )
    session = current()
    if namespace is None:
        names = notebook_namespace()
    else:
        names = checked_namespace(namespace, "tensors", "kernelk.tensors(namespace=globals())")
    living = rows(session, names)
    matching = _fitting(living, filter)
    if kind is not None:
        matching = [row for row in matching if row.kind == kind]
    criteria = " and ".join([*([f"'{plain(filter)}'"] if filter else []), *([f"kind {kind}"] if kind else [])])
    values = values or sort in VALUE_COLUMNS
    figures: list[Summary | None] = _summaries_of(matching, names) if values else []
    if sort is not None:
        order = sorted(
            range(len(matching)), key=lambda i: _sort_key(matching[i], figures[i] if figures else None, sort)
        )
        matching = [matching[i] for i in order]
        figures = [figures[i] for i in order] if figures else []
    return TensorList(matching, session.active, len(living), criteria, figures, stale_names(names))


def label(row: Row) -> str:
    """All notebook names of a row, else its own in quotes, on one line."""
    return plain(", ".join(row.names)) if row.names else f"'{plain(row.name)}'"


def _kind(row: Row) -> str:
    return f"{row.kind} ({row.op})" if row.kind == "tensor" else row.kind


def _check(what: str, given: Any, allowed: Sequence[str]) -> None:
    if given not in allowed:
        raise ArgumentError(
            f"tensors: there is no {what} {plain(str(given))!r}",
            allowed=f"{did_you_mean(str(given), allowed, '{}')}allowed are {', '.join(allowed)}",
        )


def _fitting(living: list[Row], filter: str) -> list[Row]:
    """The rows of exactly this name, else all with a name or op that it is a part of or fits as a pattern."""
    if not filter:
        return living
    # A shell's rules take the quotes out of %ktensors d['w'].
    wanted = _bare(filter)
    exact = [row for row in living if any(_bare(name) == wanted for name in row.names)]
    if exact:
        return exact

    def fits(text: str) -> bool:
        return wanted in text or fnmatchcase(text, wanted)

    return [row for row in living if any(fits(_bare(text)) for text in (*row.names, row.name, row.op))]


def _bare(name: str) -> str:
    return name.replace("'", "").replace('"', "").casefold()


def _summaries_of(rows: list[Row], names: Mapping[str, Any]) -> list[Summary | None]:
    # What is gone since, by another thread, has no value any more.
    alive = [(i, tensor) for i, row in enumerate(rows) if row.kind != "function" and (tensor := row.ref()) is not None]
    figures = summaries(current(), [tensor for _, tensor in alive], names_of(names), VALUE_SECONDS)
    result: list[Summary | None] = [None] * len(rows)
    for (i, _), one in zip(alive, figures):
        result[i] = one
    return result


def _figure(summary: Summary | None, column: str) -> Any:
    names = {"min": "minimum", "max": "maximum", "nan": "nans", "inf": "infinities"}
    return None if summary is None else getattr(summary, names.get(column, column))


def _sort_key(row: Row, summary: Summary | None, column: str) -> Any:
    """A row's key for sorting: texts and ages ascending, numbers descending, rows without one last."""
    if column == "made":
        return 0  # as they are
    if column in _TEXTS:
        text = row.label if column == "name" else getattr(row, column)
        return (not text, text.casefold())
    value = _figure(summary, column) if column in VALUE_COLUMNS else getattr(row, column)
    return (value is None, -value if value is not None else 0)
