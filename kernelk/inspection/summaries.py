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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import KernelKError, WorkerDiedError, joined, one_line
from ..graph.nodes import LearningPhase, Placeholder, StepInput, Tensor, Update, Variable
from ..program.resolve import update_value
from ..session.default_feeds import needed_placeholders
from ..session.feeds import as_feed, as_phase, last_feed
from ..session.function import SHOWN_BYTES, Function
from ..session.linearise import linearised
from ..session.session import Session, Shown
from .inventory import is_stale, number

BINS = 20
# Larger arrays are sampled at so many evenly spaced positions.
MOST_ELEMENTS = 1 << 24
_SPACED = 1 << 20
# Elements that are worked on at a time.
_CHUNK = 1 << 20
# A value that takes more isn't evaluated just to be shown.
MOST_BYTES = 1 << 28
_SIDE = 32

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
            command = f"%ktensors --values {_Names(names or {})(tensor)}"
            results.append(Summary(tensor.uid, note=joined(f"not evaluated within {seconds:g} s", next_step=command)))
        else:
            results.append(summary(session, tensor, names))
    return results


def summarised(
    key: int, value: Array, origin: str, engine: str = "", note: str = "", most: int = MOST_ELEMENTS
) -> Summary:
    """The summary of an array; see `summary`."""
    sample = value
    if value.size > most:
        step = -(-value.size // min(_SPACED, most))
        while math.gcd(step, value.shape[-1]) > 1:
            # It would meet a few columns only.
            step += 1
        sample = value.reshape(-1)[::step]
        sampled = f"from {sample.size:,} of {value.size:,} elements, evenly spaced"
        note = f"{note}; {sampled}" if note else sampled
    figures = _figures(sample)
    return Summary(
        key,
        origin,
        engine,
        note,
        shape=value.shape,
        dtype=value.dtype.name,
        size=value.size,
        bytes=value.nbytes,
        looked_at=sample.size,
        preview=_preview(value),
        **figures,
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
        # Looked at in place: no copy of what may be large. The lock keeps it from being committed to.
        session.calls.fetch([tensor.slots])
        return summarised(tensor.uid, tensor.slots.view(), "committed", most=most)
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
    with session.state.seeds.counter_kept():
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


def _chunks(values: Array) -> Iterator[Array]:
    """The finite elements as float64, some at a time."""
    flat = values.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK].astype(np.float64)
        yield part[np.isfinite(part)] if values.dtype.kind == "f" else part


def _figures(values: Array) -> dict[str, Any]:
    """The figures of a `Summary`: extremes, mean, deviation, counts, histogram."""
    count, nans, low, high = 0, 0, math.inf, -math.inf
    if values.dtype.kind == "f":
        flat = values.reshape(-1)
        nans = sum(int(np.isnan(flat[i : i + _CHUNK]).sum()) for i in range(0, flat.size, _CHUNK))
    for part in _chunks(values):
        count += part.size
        if part.size:
            low, high = min(low, float(part.min())), max(high, float(part.max()))
    figures: dict[str, Any] = {"nans": nans, "infinities": values.size - nans - count}
    if not count:
        return figures
    # In units of the largest element: squares and differences of the largest floats have no float of their own.
    unit = max(abs(low), abs(high))
    unit = unit if unit > 1e100 else 1.0
    mean = math.fsum(float((part / unit).sum()) for part in _chunks(values)) / count
    square = math.fsum(float(np.square(part / unit - mean).sum()) for part in _chunks(values)) / count
    exact = values.dtype.kind != "f"
    figures.update(
        # Of 64-bit integers float64 doesn't hold every one.
        minimum=int(values.min()) if exact else low,
        maximum=int(values.max()) if exact else high,
        mean=min(max(mean * unit, low), high),
        std=math.sqrt(square) * unit,
        histogram=_histogram(values, low, high, unit, exact),
    )
    return figures


def _histogram(values: Array, low: float, high: float, unit: float, exact: bool) -> Histogram:
    if exact and high - low < BINS and max(abs(low), abs(high)) < 2**52:
        # A bin for each integer.
        first, bins = low - 0.5, int(high - low) + 1
        last = first + bins
    elif high == low:
        return Histogram((sum(part.size for part in _chunks(values)),), (low, high))
    else:
        first, last, bins = low, high, BINS
    width = last / unit - first / unit
    counts = np.zeros(bins, dtype=np.int64)
    for part in _chunks(values):
        indices = ((part / unit - first / unit) / width * bins).astype(np.int64)
        counts += np.bincount(np.clip(indices, 0, bins - 1), minlength=bins)
    edges = [*((first / unit + width * i / bins) * unit for i in range(bins)), last]
    return Histogram(tuple(counts.tolist()), tuple(edges))


def _preview(value: Array) -> Preview:
    lead = value.ndim - 2
    if 0 in value.shape:
        return Preview(np.zeros((0, 0), value.dtype), "")
    if lead < 0:
        corner = value.reshape(1, -1)[:, :_SIDE]
        return Preview(corner.copy(), f"[:{_SIDE}] of {value.shape}" if value.size > _SIDE else "")
    corner = value[(0,) * lead][:_SIDE, :_SIDE]
    whole = corner.size == value.size
    parts = ["0"] * lead + [f":{_SIDE}" if n > _SIDE else ":" for n in value.shape[-2:]]
    return Preview(corner.copy(), "" if whole else f"[{', '.join(parts)}] of {value.shape}")
