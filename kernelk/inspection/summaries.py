"""Summarises tensors' values in numbers, for `%ktensors` and the panel; has no side effects, starts no engine.

`Summary.as_dict` is what the panel's front end reads, strict JSON. Numbers that JSON or JavaScript can't hold are
strings: "NaN", "Infinity", "-Infinity", integers beyond 2**53.

    key        int            the row's: see inventory
    origin     str            "committed": a variable's value; "fed": a placeholder's last; "shown": as it was evaluated
                              before, and nothing has changed since; "evaluated": just now; "": there is no value
    engine     str            that computed it; "" for a variable's and a fed value
    note       str            one line: why there is no value and the next command, or what is special; often ""
    shape      [int] | null   of the value; null, and so all below, without one
    dtype      str | null
    size       int | null     elements
    bytes      int | null
    looked_at  int | null     elements that the figures are made of: all, or evenly spaced ones of a large array
    min, max, mean, std       float | int | null    of the finite elements among these; null where there is none
    nan, inf   int | null     how many of these are NaN, and infinite
    histogram  {"counts": [int], "edges": [float]} | null    of the finite ones; one edge more than counts, at most 32
    preview    {"values": [[number]], "rows": int, "columns": int, "cut": str} | null
                              a corner of the value, at most 32 x 32; bools are 0 and 1; `cut` is "" if that is all of
                              it, else which part: "[0, :32, :32] of (8, 100, 100)"
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import Array
from ..backends.figures import SIDE, figures
from ..errors import KernelKError, WorkerDiedError, joined, one_line
from ..graph.nodes import LearningPhase, Placeholder, StepInput, Tensor, Update, Variable
from ..ops.updates import update_value
from ..session.default_feeds import needed_placeholders
from ..session.feeds import as_feed, as_phase, last_feed
from ..session.function import SHOWN_BYTES, Function
from ..session.linearise import linearised
from ..session.session import Session, Shown
from ..twins import as_usable
from .inventory import is_stale, number

# Larger arrays are looked at in places.
MOST_ELEMENTS = 1 << 24
# A value that takes more isn't evaluated just to be shown.
MOST_BYTES = 1 << 28
# Those that a `Summary` has by the same names.
_FIGURES = ("looked_at", "minimum", "maximum", "mean", "std", "nans", "infinities")

BARS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Histogram:
    """The counts of elements between neighbouring edges; the last one is included."""

    counts: tuple[int, ...]
    edges: tuple[float, ...]

    @property
    def bars(self) -> str:
        """The histogram as a line of block characters; an empty bin is an underscore, since HTML collapses spaces."""
        most = max(self.counts, default=0)
        return "".join("_" if not n else BARS[min(7, 8 * n // (most + 1))] for n in self.counts)


@dataclass(frozen=True)
class Preview:
    """A two-dimensional corner of a value; `cut` says of what, if not all."""

    values: Array
    cut: str


@dataclass(frozen=True)
class Summary:
    """A value in numbers, or in `note` why there is none; see the module's docstring."""

    key: int
    origin: str = ""
    engine: str = ""
    note: str = ""
    shape: tuple[int, ...] | None = None
    dtype: str = ""
    size: int | None = None
    bytes: int | None = None
    looked_at: int | None = None
    minimum: float | int | None = None
    maximum: float | int | None = None
    mean: float | None = None
    std: float | None = None
    nans: int | None = None
    infinities: int | None = None
    histogram: Histogram | None = None
    preview: Preview | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Strict JSON, as the module's docstring describes it."""
        histogram = preview = None
        if self.histogram is not None:
            edges = [number(edge) for edge in self.histogram.edges]
            histogram = {"counts": list(self.histogram.counts), "edges": edges}
        if self.preview is not None:
            values = self.preview.values
            rows, columns = values.shape
            shown = [[number(one) for one in row] for row in (values * 1 if values.dtype == bool else values).tolist()]
            preview = {"values": shown, "rows": rows, "columns": columns, "cut": self.preview.cut}
        return {
            "key": self.key,
            "origin": self.origin,
            "engine": self.engine,
            "note": self.note,
            "shape": None if self.shape is None else list(self.shape),
            "dtype": self.dtype or None,
            "size": self.size,
            "bytes": self.bytes,
            "looked_at": self.looked_at,
            "min": number(self.minimum),
            "max": number(self.maximum),
            "mean": number(self.mean),
            "std": number(self.std),
            "nan": self.nans,
            "inf": self.infinities,
            "histogram": histogram,
            "preview": preview,
        }


def summary(
    session: Session, tensor: Any, names: Mapping[int, Sequence[str]] | None = None, most: int = MOST_ELEMENTS
) -> Summary:
    """Summarises the value of a tensor, variable or placeholder: committed, fed, shown, or else evaluated now.

    It is evaluated on the active engine, if that runs, with what its placeholders were fed last; nothing is committed,
    printed or counted as a draw. `names` (of `inventory.names_of`) are used in notes; arrays of more than `most`
    elements are sampled at even distances, and the note says so. Errors are reported in the note.
    """
    with session.lock:
        try:
            return _summary(session, tensor, _Names(names or {}), most)
        except WorkerDiedError as error:
            return Summary(tensor.uid, note=f"the engine died while this was evaluated: {one_line(error)}")
        except (KernelKError, MemoryError) as error:
            return Summary(tensor.uid, note=one_line(error) or "there isn't enough memory to read it")


def summaries(
    session: Session, tensors: Sequence[Any], names: Mapping[int, Sequence[str]] | None, seconds: float
) -> list[Summary]:
    """The summaries of several; those left when these seconds have passed are skipped, with a note."""
    results = []
    end = time.perf_counter() + seconds
    for tensor in tensors:
        if time.perf_counter() > end:
            name = _Names(names or {})(tensor)
            command = as_usable(f"%ktensors --values {name}", f"kernelk.tensors({name!r}, values=True)")
            results.append(Summary(tensor.uid, note=joined(f"not evaluated within {seconds:g} s", next_step=command)))
        else:
            results.append(summary(session, tensor, names))
    return results


def summarised(
    key: int, value: Array, origin: str, engine: str = "", note: str = "", most: int = MOST_ELEMENTS
) -> Summary:
    """The summary of an array; see `summary`."""
    return _of_figures(key, figures(value, most), value.shape, value.dtype.name, origin, engine, note)


def _of_figures(
    key: int, found: dict[str, Any], shape: tuple[int, ...], dtype: str, origin: str, engine: str = "", note: str = ""
) -> Summary:
    size, rows, bins = math.prod(shape), found["corner"], found["histogram"]
    if found["looked_at"] < size:
        sampled = f"from {found['looked_at']:,} of {size:,} elements, evenly spaced"
        note = f"{note}; {sampled}" if note else sampled
    corner = np.array(rows, dtype).reshape(len(rows), len(rows[0]) if rows else 0)
    return Summary(
        key,
        origin,
        engine,
        note,
        shape=shape,
        dtype=dtype,
        size=size,
        bytes=size * np.dtype(dtype).itemsize,
        histogram=None if bins is None else Histogram(tuple(bins["counts"]), tuple(bins["edges"])),
        preview=Preview(corner, _cut(shape)),
        **{name: found[name] for name in _FIGURES},
    )


class _Names:
    """The user's names of tensors: a tensor's first notebook name, else its own."""

    def __init__(self, names: Mapping[int, Sequence[str]]) -> None:
        self._names = names

    def __call__(self, tensor: Any) -> str:
        names = self._names.get(tensor.uid)
        return names[0] if names else str(tensor.name)


def _summary(session: Session, tensor: Any, names: _Names, most: int) -> Summary:
    if is_stale(tensor):
        return Summary(tensor.uid, note="it is from before K.clear_session(); run its cells again")
    if isinstance(tensor, Function):
        return Summary(tensor.uid, note=joined("a K.function has no value", next_step=f"{names(tensor)}([array, ...])"))
    known = _known(session, tensor, most)
    if known is not None:
        return known
    if isinstance(tensor, Placeholder):
        command = f"y.eval({{{names(tensor)}: array}}), where y depends on it"
        return Summary(tensor.uid, note=joined(_unfed(tensor, names), next_step=command))
    return _evaluated(session, tensor, session.shown.get(tensor), names, most)


def known(session: Session, tensor: Tensor, most: int = MOST_ELEMENTS) -> Summary | None:
    """The summary of a value that is already known: committed, fed, or shown and unchanged since. Asks no engine."""
    with session.lock:
        return None if is_stale(tensor) else _known(session, tensor, most)


def _known(session: Session, tensor: Tensor, most: int) -> Summary | None:
    if isinstance(tensor, Variable):
        # Looked at in place, beside its engine or here: no copy of what may be large. The lock keeps it from being
        # committed to.
        slots = tensor.slots
        found = session.calls.figures(slots, most)
        if found is None:
            found = figures(slots.view(), most)
        return _of_figures(tensor.uid, found, slots.shape, slots.dtype, "committed")
    if isinstance(tensor, Placeholder):
        value = last_feed(tensor)
        if isinstance(value, int):
            value = np.asarray(value, dtype=tensor.dtype)
        return None if value is None else summarised(tensor.uid, value, "fed", most=most)
    shown = session.shown.get(tensor)
    if shown is None or not _up_to_date(session, shown):
        return None
    return summarised(tensor.uid, shown.value, "shown", shown.engine, most=most)


def _unfed(placeholder: Placeholder, names: _Names) -> str:
    if isinstance(placeholder, StepInput):
        return f"'{names(placeholder)}' has a value only inside the step of a loop"
    if placeholder.fed_shape is None:
        return f"'{names(placeholder)}' hasn't been fed yet"
    return f"the array of shape {placeholder.fed_shape} that '{names(placeholder)}' was last fed wasn't kept"


def _up_to_date(session: Session, shown: Shown) -> bool:
    """Whether a value is what evaluating it now, with what was fed last, would give (but for fresh draws)."""
    if shown.engine != session.active:
        return False
    variables = session.variables
    for slots, version in shown.versions.items():
        variable = variables[slots]() if slots in variables else None
        if variable is None or variable.slots.version != version:
            return False
    for placeholder, feed in shown.feeds.items():
        if isinstance(placeholder, LearningPhase):
            continue
        now = last_feed(placeholder)  # type: ignore[arg-type]
        if now is None:
            continue
        now, then = as_feed(placeholder, now), as_feed(placeholder, feed)  # type: ignore[arg-type]
        if not np.array_equal(now, then, equal_nan=True):
            return False
    return True


def _evaluated(session: Session, tensor: Tensor, shown: Shown | None, names: _Names, most: int) -> Summary:
    phase = session.state.fixed_phase or 0
    switches: dict[Tensor, Any] = {}
    if shown is not None:
        switches = {x: value for x, value in shown.feeds.items() if isinstance(x, LearningPhase)}
    for value in switches.values():
        phase = as_phase(value)
    target = update_value(tensor) if isinstance(tensor, Update) else tensor
    needed = needed_placeholders([target], phase)
    feeds = {x: last_feed(x) for x in needed}
    missing = [x for x, feed in feeds.items() if feed is None]
    arrays = ", ".join(f"{names(x)}: array" for x in needed)
    command = f"{names(tensor)}.eval({{{arrays}}})" if needed else f"{names(tensor)}.eval()"
    if missing:
        reasons = "; ".join(_unfed(x, names) for x in missing)
        return Summary(tensor.uid, note=joined(reasons, next_step=command))
    host = session.host()
    if not host.started:
        if not host.engine.in_kernel or host.placement == "worker":
            return Summary(
                tensor.uid, note=joined(f"{host.engine.title} isn't running", next_step=f"{command} starts it")
            )
        host.start()
    fed = [as_feed(x, feeds[x]) for x in needed]
    with session.state.seeds.kept():
        program, _ = linearised(session, needed, [target], (), phase, host.ops, fed)
        bytes_, _, shape = program.specialise(tuple(x.shape for x in fed), host.specialises).output_arrays(program)[0]
        if bytes_ > MOST_BYTES:
            return Summary(
                tensor.uid, note=joined(f"its value of shape {shape} takes {bytes_ >> 20} MiB", next_step=command)
            )
        value = np.asarray(session.calls.execute(host, program, fed, commit=False)[0])
    note = "drawn again at each call" if program.draws else ""
    if isinstance(tensor, Update):
        note = f"what '{names(tensor.variable)}' would become"
    elif value.nbytes <= SHOWN_BYTES:
        # A user who sees it in a row has been shown it, and a swap evaluates it again.
        given: dict[Tensor, Any] = {**switches, **dict(zip(needed, fed))}
        session.show(tensor, given, value, program.slots)
    return summarised(tensor.uid, value, "evaluated", session.active, note, most)


def _cut(shape: tuple[int, ...]) -> str:
    """Which part of an array of this shape a corner of it is, "" if all."""
    lead = len(shape) - 2
    if 0 in shape or math.prod(shape) == math.prod([1 if i < lead else min(n, SIDE) for i, n in enumerate(shape)]):
        return ""
    if lead < 0:
        return f"[:{SIDE}] of {shape}"
    parts = ["0"] * lead + [f":{SIDE}" if n > SIDE else ":" for n in shape[-2:]]
    return f"[{', '.join(parts)}] of {shape}"
