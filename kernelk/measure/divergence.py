"""Finds for `%kdiff` the first op where two engines diverge: computes every node that a tensor needs on both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from ..arrays import Array
from ..display.tables import Rendered, Table
from ..engines import registry
from ..engines.host import Host
from ..errors import ArgumentError, EngineError, WorkerDiedError
from ..graph.nodes import Placeholder, Tensor
from ..ops.dtypes import FLOATS
from ..session.current import current
from ..session.default_feeds import known_feeds, roots_of
from ..session.session import Session
from ..session.targets import adapted, layers_of, outer_scope
from ..session.untouched import untouched
from ..twins import option, typed_name
from .single_ops import Nodes
from .truth import Truth, truth_of, ulps

# By how much two engines' floats may differ without being called different; integers and bools may not at all.
TOLERANCES = {"float16": 1e-2, "float32": 1e-4, "float64": 1e-8}

# In these, large operands may cancel: what counts as rounding is measured against the operands then.
_CANCELLING = ("add", "subtract", "sum", "mean", "matmul", "batch_matmul", "cumsum", "sum_to", "scatter_add", "conv")

# Rows that a table shows; the report has them all.
SHOWN_ROWS = 40


class Range(NamedTuple):
    """The least and greatest finite element, and how many are none."""

    low: float
    high: float
    nans: int
    infinities: int

    def __str__(self) -> str:
        parts = [] if self.low > self.high else [f"{self.low:.6g} to {self.high:.6g}"]
        parts += [f"{count} {what}" for count, what in ((self.nans, "NaN"), (self.infinities, "inf")) if count]
        return ", ".join(parts) or "empty"


@dataclass(frozen=True)
class Gap:
    """The distance of two values of one node: the largest absolute and relative differences of an element.

    `scaled` is the one that the tolerance is about: relative to the element and its tensor's mean size together;
    `beyond` elements of `size` exceed it, most of all the one at `worst`, with its two `values`. `ulps`: the largest
    distance of an element in units of the last place that its dtype has; 0 for integers.
    """

    absolute: float
    relative: float
    scaled: float
    beyond: int
    size: int
    worst: tuple[int, ...] = ()
    values: tuple[Any, Any] = (None, None)
    ulps: float = 0.0

    def __str__(self) -> str:
        # numpy's own text: as many digits as the dtype has.
        both = " and ".join(str(value) for value in self.values)
        if not self.worst:
            return both
        return f"{self.beyond} of {self.size} elements exceed the tolerance, the worst is {both} at {list(self.worst)}"


@dataclass(frozen=True)
class NodeDiff:
    """One node on both engines. `own`: the gap that remains when the op gets the reference's inputs (None: unknown).

    `source`: your line, at `location`. `ranges`: the values' range on each engine. `inputs`: the operands' rows in the
    report. `layer`: the Keras layer that it belongs to, "" for none.
    """

    op: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    source: str
    location: str
    gap: Gap
    own: Gap | None
    ranges: tuple[Range, Range]
    inputs: tuple[int, ...] = ()
    layer: str = ""

    @property
    def label(self) -> str:
        """The op, the tensor's name, its layer and the user's line."""
        layer = f" of layer '{self.layer}'" if self.layer else ""
        return f"{self.op} '{self.name}'{layer} ({self.source})"

    def flags(self, engines: tuple[str, str]) -> str:
        """Its remarkable properties, for the table."""
        flags = [f"{self.gap.beyond} of {self.gap.size} differ"] if self.gap.beyond else []
        if self.own is not None and self.own.beyond:
            flags.append("own error")
        for what, counts in (("NaN", [r.nans for r in self.ranges]), ("inf", [r.infinities for r in self.ranges])):
            named = [engine for engine, count in zip(engines, counts) if count]
            if named:
                flags.append(what if len(named) == 2 else f"{what} on {named[0]}")
        return ", ".join(flags)


@dataclass(frozen=True)
class Origin:
    """The first node with a "NaN" or "inf" although no operand has one: on these engines, with these operands."""

    kind: str
    row: NodeDiff
    engines: tuple[str, ...]
    inputs: tuple[tuple[str, Range], ...]

    def __str__(self) -> str:
        where = " and ".join(self.engines)
        if self.row.op in ("placeholder", "variable"):
            return f"the first {self.kind} is in the value of {self.row.label}: {self.row.ranges[0]}"
        text = f"the first {self.kind} on {where} is produced by {self.row.label}"
        operands = "; ".join(f"'{name}' {span}" for name, span in self.inputs)
        return text + (f", whose operands are {operands}" if operands else "")


@dataclass(repr=False)
class DiffReport(Rendered):
    """A comparison of two engines on the same nodes, feeds, variables and draws; `rows` are in the graph's order.

    `roots`: the rows of what was asked for. `first`: the first node beyond the tolerance whose difference reaches one
    of them. `culprit`: the node with the largest difference of its own beyond it. `origins`: where NaN and infinities
    begin. `truth`: what `first` is in float64, where that tells which engine is nearer to it. `precisions`: the
    engines'. `results`: the gaps of what was asked for, compiled as usual, that is without every node as an output.
    `chunk_bytes`: how many bytes each engine's values took that were held at once, some nodes after the other.
    """

    engines: tuple[str, str]
    phase: int
    tolerance: float | None
    rows: list[NodeDiff] = field(default_factory=list)
    roots: list[int] = field(default_factory=list)
    origins: list[Origin] = field(default_factory=list)
    results: list[Gap] = field(default_factory=list)
    chunk_bytes: list[int] = field(default_factory=list)
    own_failure: str = ""
    truth: Truth | None = None
    precisions: tuple[str, str] = ("", "")

    @property
    def first(self) -> NodeDiff | None:
        """The first node, in the graph's order, that differs beyond the tolerance and makes what was asked for differ.

        A difference that is absorbed on the way, such as the rounding of a sum of nearly 0 that is added to something
        large, is none: see `absorbed`.
        """
        return next((row for i, row in enumerate(self.rows) if i in self._reaching()), None)

    @property
    def absorbed(self) -> list[NodeDiff]:
        """The nodes beyond the tolerance whose difference doesn't reach what was asked for."""
        reaching = self._reaching()
        return [row for i, row in enumerate(self.rows) if row.gap.beyond and i not in reaching]

    def _reaching(self) -> set[int]:
        """The rows beyond the tolerance from which others beyond it lead to what was asked for."""
        reaching = {i for i in self.roots if self.rows[i].gap.beyond}
        for i in reversed(range(len(self.rows))):
            if i in reaching:
                reaching.update(j for j in self.rows[i].inputs if self.rows[j].gap.beyond)
        return reaching

    @property
    def culprit(self) -> NodeDiff | None:
        """The node that differs most though it is fed the same inputs, if any does beyond the tolerance."""
        wrong = [row for row in self.rows if row.own is not None and row.own.beyond]
        return max(wrong, key=lambda row: row.own.scaled if row.own is not None else 0.0, default=None)

    @property
    def agrees(self) -> bool:
        """Whether nothing asked for differs beyond the tolerance, neither node by node nor compiled as usual."""
        return self.first is None and not any(gap.beyond for gap in self.results)

    def findings(self) -> list[str]:
        """The verdict, the most telling sentence first."""
        a, b = self.engines
        first, culprit = self.first, self.culprit
        if first is not None:
            findings = [f"{a} and {b} differ first at {first.label}: {first.gap}"]
            if first.gap.ulps:
                findings.append(f"they are up to {first.gap.ulps:.3g} ulps apart there")
            if self.truth is not None:
                findings.append(f"given {a}'s inputs, {self.truth.words(self.engines)}")
            if first.own is not None and not first.own.beyond:
                findings.append(
                    f"given {a}'s inputs, {b} agrees there: smaller differences in earlier ops were amplified"
                )
        else:
            findings = [f"{a} and {b} agree within the tolerance"]
            absorbed = self.absorbed
            if absorbed:
                findings.append(
                    f"{len(absorbed)} intermediate nodes exceed the tolerance without affecting the result, "
                    f"first at {absorbed[0].label}: {absorbed[0].gap}"
                )
        if culprit is not None:
            assert culprit.own is not None
            findings.append(f"given {a}'s inputs, {b}'s own results differ most at {culprit.label}: {culprit.own}")
        elif first is not None and not self.own_failure:
            findings.append(f"given {a}'s inputs, no single op of {b} differs beyond the tolerance")
        if first is not None and all(self.precisions) and len(set(self.precisions)) == 2:
            findings.append(
                f"they compute in different precision: {a} in {self.precisions[0]}, {b} in {self.precisions[1]}"
            )
        findings += [str(origin) for origin in self.origins]
        if any(gap.beyond for gap in self.results) != (first is not None):
            worst = max(self.results, key=lambda gap: gap.relative)
            findings.append(f"compiled as usual, without every node as an output, the result differs: {worst}")
        if self.own_failure:
            findings.append(f"the ops could not be compared one by one: {self.own_failure}")
        return findings

    def table(self) -> Table:
        """The nodes in the graph's order, about the first remarkable one, and the findings."""
        remarkable = [self.first, *(origin.row for origin in self.origins), *self.absorbed[:1]]
        shown = [row for row in self.rows if row.op not in ("placeholder", "variable") or row in remarkable]
        positions = [shown.index(row) for row in remarkable if row is not None]
        start = max(0, min(min(positions, default=0) - SHOWN_ROWS // 4, len(shown) - SHOWN_ROWS))
        window = shown[start : start + SHOWN_ROWS]
        header = ["op", "name", "written in", "shape", "dtype", "abs", "rel", "ulps", "own rel", "note"]
        rows = [
            [
                row.op,
                row.name,
                row.location,
                str(row.shape),
                row.dtype,
                f"{row.gap.absolute:.3g}",
                f"{row.gap.relative:.3g}",
                f"{row.gap.ulps:.3g}",
                "" if row.own is None else f"{row.own.relative:.3g}",
                row.flags(self.engines),
            ]
            for row in window
        ]
        title, *others = self.findings()
        allowed = "by dtype" if self.tolerance is None else f"{self.tolerance:g}"
        others.append(
            f"{len(shown)} nodes, {len(window)} shown (.rows has all); tolerance {allowed}; learning phase {self.phase}"
        )
        strong = positions[0] - start if positions and 0 <= positions[0] - start < len(window) else None
        return Table(rows, header, title=title, below="\n".join(others), strong=strong)


def diff(
    y: Any,
    reference: str,
    other: str,
    feeds: Mapping[Any, Any] | None = None,
    tolerance: float | str | None = None,
) -> DiffReport:
    """Computes every node that `y` needs on two engines, and finds the first that differs. The twin of `%kdiff`.

    `y`: a tensor, several, a K.function (its outputs and new values), or a Keras model. `feeds` maps placeholders, or
    their names, to arrays; those left out take their last feed. `tolerance`: relative, to an element and to its
    tensor's mean size; 1e-2, 1e-4 and 1e-8 for the three floats unless given, while integers and bools must be equal.
    Both engines get the same feeds, variables and random draws. Nothing is committed and the active engine stays.
    Raises ArgumentError, FeedError, UnknownBackendError, BackendNotInstalledError or EngineError.
    """
    engines = [registry.engine(name) for name in (reference, other)]
    if reference == other:
        raise ArgumentError(
            f"{typed_name('diff')}: {reference} was named twice",
            next_step="name two engines, e.g. tensorflow and numpy",
        )
    allowed = None if tolerance is None else _checked(tolerance)
    y = adapted(y)
    roots = roots_of(y, typed_name("diff"))
    phase, fed = known_feeds(y, roots, feeds or {}, typed_name("diff"), "%kdiff ... --feed NAME=ARRAY")
    for engine in engines:
        registry.require(engine)
    session = current()
    with session.lock:
        hosts = [session.host(name) for name in (reference, other)]
        for host in hosts:
            if not host.started:
                host.start()
        with untouched(session, hosts):
            return _Comparison(session, hosts, roots, phase, fed).report(allowed)


def _checked(tolerance: Any) -> float:
    try:
        number = float(tolerance)
    except (TypeError, ValueError):
        number = -1.0
    if not 0 <= number < float("inf"):
        raise ArgumentError(
            f"{typed_name('diff')}: {option('tolerance', tolerance)} isn't allowed",
            allowed="it is a number such as 1e-4",
        )
    return number


class _Comparison(Nodes):
    """Compares all nodes of some tensors on two started hosts.

    Values are computed for some nodes at a time, compared and released; only sizes and ranges are kept.
    """

    def __init__(
        self, session: Session, hosts: list[Host], roots: list[Tensor], phase: int, feeds: dict[Placeholder, Array]
    ) -> None:
        super().__init__(session, roots, phase, feeds, typed_name("diff"))
        self._hosts = hosts
        self._layers = layers_of(roots)
        self._sizes: dict[int, float] = {}
        self._ranges: dict[int, tuple[Range, Range]] = {}

    def _alone(self, numbers: Sequence[int], known: Mapping[int, Array]) -> dict[int, Array]:
        """The second engine's values of these ops, each fed the first one's operands, `known`."""
        alone, fed = self.alone(numbers)
        if not alone:
            return {}
        feeds = [known[n] if n in known else self.feeds[n] for n in fed]
        return dict(zip(alone, self.run(self._hosts[1], list(fed.values()), list(alone.values()), feeds)))

    def report(self, tolerance: float | None) -> DiffReport:
        """Compares value by value."""
        program = self.program
        engines = (self._hosts[0].engine.name, self._hosts[1].engine.name)
        result = DiffReport(engines, self._phase, tolerance)
        one, other = (str(host.facts.get("precision") or "") for host in self._hosts)
        result.precisions = one, other
        rows: dict[int, int] = {}
        for number in range(program.first):
            given = self.given(number)
            if given is None:
                continue
            if number < len(program.inputs) + len(program.slots):
                self._compare(result, rows, number, given, given, None)
            else:
                # Constants were written down, infinities too, and are the same everywhere.
                self._sizes[number] = _size(given)
                self._ranges[number] = (_range(given),) * 2
        for numbers, more in self.chunks():
            result.chunk_bytes.append(self.bytes([*numbers, *more]))
            self._compare_chunk(result, rows, numbers, more)
        result.roots = [rows[n] for n in program.outputs[: len(self._roots)] if n in rows]
        for n, x, y in self._results():
            result.results.append(
                gap_of(x, y, TOLERANCES.get(x.dtype.name, 0.0) if tolerance is None else tolerance, n)
            )
        first = result.first
        if first is not None and not result.own_failure:
            (number,) = [n for n, i in rows.items() if result.rows[i] is first]
            result.truth = truth_of(self, self._hosts, self._exact(), number)
        return result

    def _exact(self) -> Host:
        host = self._session.host("numpy")
        if not host.started:
            host.start()
        return host

    def _compare_chunk(self, result: DiffReport, rows: dict[int, int], numbers: list[int], more: list[int]) -> None:
        # In their order: a loop's draw is its steps' only if it is asked for before the loop.
        known, others = (self.values(host, sorted([*more, *numbers])) for host in self._hosts)
        alone: dict[int, Array] = {}
        if not result.own_failure:
            try:
                alone = self._alone(numbers, known)
            except WorkerDiedError:
                raise
            except EngineError as error:
                result.own_failure = str(error)
        for number in numbers:
            self._compare(result, rows, number, known[number], others[number], alone.get(number))

    def _compare(
        self, result: DiffReport, rows: dict[int, int], number: int, a: Array, b: Array, alone: Array | None
    ) -> None:
        """Adds the row of a node, which has the values `a` and `b`."""
        node, inputs = self.nodes[number], self.operands[number]
        self._sizes[number] = near = _size(a)
        self._ranges[number] = (_range(a), _range(b))
        if node.op.startswith(_CANCELLING):
            near = max(near, *(self._sizes[n] for n in inputs))
        allowed = TOLERANCES.get(node.dtype, 0.0) if result.tolerance is None else result.tolerance
        row = NodeDiff(
            node.op,
            node.name,
            a.shape,
            node.dtype,
            str(node.source),
            node.source.location,
            gap_of(a, b, allowed, near),
            None if alone is None else gap_of(a, alone, allowed, near),
            self._ranges[number],
            tuple(rows[n] for n in inputs if n in rows),
            outer_scope(node) if outer_scope(node) in self._layers else "",
        )
        rows[number] = len(result.rows)
        result.rows.append(row)
        self._origin(result, row, number)

    def _origin(self, result: DiffReport, row: NodeDiff, number: int) -> None:
        """Notes the row if it is the first where a NaN or an infinity appears, on either engine."""
        for kind in ("NaN", "inf"):
            if any(origin.kind == kind for origin in result.origins):
                continue
            begins = []
            for side in (0, 1):
                here = self._ranges[number][side]
                behind = [self._ranges[n][side] for n in self.operands[number]]
                if kind == "NaN":
                    begins.append(here.nans and not any(span.nans for span in behind))
                else:
                    begins.append(here.infinities and not any(span.nans or span.infinities for span in behind))
            if any(begins):
                side = 0 if begins[0] else 1
                named = tuple(engine for engine, here in zip(result.engines, begins) if here)
                inputs = tuple((self.nodes[n].name, self._ranges[n][side]) for n in self.operands[number])
                result.origins.append(Origin(kind, row, named, inputs))

    def _results(self) -> list[tuple[float, Array, Array]]:
        """The results as each engine computes them ordinarily, with the size against which they are measured."""
        made = [self.run(host, self.placeholders, self._roots, self.feeds) for host in self._hosts]
        sizes = []
        for n, value in zip(self.program.outputs, made[0]):
            near = _size(value)
            if self.nodes[n].op.startswith(_CANCELLING) and self.operands[n]:
                near = max(near, *(self._sizes[m] for m in self.operands[n]))
            sizes.append(near)
        return list(zip(sizes, *made))


def _size(value: Array) -> float:
    """The mean size of a float value's finite elements; 0 for others."""
    if value.dtype.name not in FLOATS:
        return 0.0
    finite = np.abs(value[np.isfinite(value)].astype(np.float64))
    return float(finite.mean()) if finite.size else 0.0


def _range(value: Array) -> Range:
    if value.dtype.name not in FLOATS:
        low, high = (float(value.min()), float(value.max())) if value.size else (np.inf, -np.inf)
        return Range(low, high, 0, 0)
    nans, finite = int(np.isnan(value).sum()), value[np.isfinite(value)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (np.inf, -np.inf)
    return Range(low, high, nans, value.size - nans - finite.size)


def gap_of(a: Array, b: Array, tolerance: float, size: float) -> Gap:
    """The gap of two values of one shape and dtype; equal NaNs and infinities don't differ."""
    if not a.size:
        return Gap(0.0, 0.0, 0.0, 0, 0)
    wide_a, wide_b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(all="ignore"):
        same = (a == b) | (np.isnan(wide_a) & np.isnan(wide_b))
        absolute = np.where(same, 0.0, np.abs(wide_a - wide_b))
        absolute = np.where(np.isnan(absolute), np.inf, absolute)
        magnitude = np.maximum(np.abs(wide_a), np.abs(wide_b))
        finite = np.isfinite(absolute) & ~same
        relative = np.where(finite, absolute / magnitude, absolute)
        # A small element next to large ones carries their rounding error.
        scaled = np.where(finite, absolute / (magnitude + size), absolute)
    beyond = scaled > tolerance if a.dtype.name in FLOATS else ~same
    worst = tuple(int(i) for i in np.unravel_index(int(np.argmax(scaled)), a.shape))
    largest, share, error = (float(x.max()) for x in (absolute, relative, scaled))
    places = float(ulps(a, b, a.dtype.name).max()) if a.dtype.name in FLOATS else 0.0
    return Gap(largest, share, error, int(beyond.sum()), a.size, worst, (a[worst], b[worst]), places)
