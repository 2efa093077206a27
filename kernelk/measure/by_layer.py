"""Adds up the times of a call's ops by the layers of a model, or by name scopes, for `%kprofile` and `%%kcompare`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ..display.tables import Rendered, Table, duration, filled, plain
from ..graph.nodes import Tensor
from ..session.targets import layers_of
from .estimates import Estimate
from .results import Result

if TYPE_CHECKING:
    from .profiling import OpTime

_PARTS = ("forward", "gradient", "update")


@dataclass
class LayerTime:
    """The ops of one layer (or, where `is_layer` isn't set, of one name scope), `count` of them, each on its own.

    `seconds`: by engine, the sum of their times in each part: "forward", "gradient" and "update".
    """

    name: str
    is_layer: bool
    count: int = 0
    seconds: list[dict[str, float]] = field(default_factory=list)

    def total(self, engine: int = 0) -> float:
        """The seconds of all parts."""
        return sum(self.seconds[engine].values())


@dataclass(repr=False)
class LayerTimes(Result, Rendered):
    """Time by layer on each of the engines `labels`: `layers`, in the order in which a call passes them.

    `below`: what is shown below it.
    """

    labels: list[str]
    layers: list[LayerTime]
    below: Rendered | None = None

    def also(self) -> Rendered | None:
        """What is shown below it."""
        return self.below

    def table(self) -> Table:
        """A row for each layer."""
        what = "layer" if any(layer.is_layer for layer in self.layers) else "name scope"
        sums = [sum(layer.total(i) for layer in self.layers) for i in range(len(self.labels))]
        rows = []
        for layer in self.layers:
            cells = [
                f"{duration(layer.total(i))}, {layer.total(i) / sums[i]:.0%}" if sums[i] else ""
                for i in range(len(self.labels))
            ]
            if len(self.labels) == 1:
                cells += [duration(seconds) if (seconds := layer.seconds[0][part]) else "" for part in _PARTS]
            rows.append([plain(layer.name) or f"outside of {what}s", str(layer.count), *cells])
        header = [what, "ops", *(["time", *_PARTS] if len(self.labels) == 1 else self.labels)]
        header, rows = filled(header, rows)
        note = "each op on its own, summed: not their part of the call as compiled"
        if what == "layer" and not all(layer.is_layer for layer in self.layers):
            note += "; what isn't a layer is a name scope of Keras's: the loss, the metrics, the optimizer"
        return Table(rows, header, title=f"time by {what}", below=note)

    def records(self) -> list[dict[str, Any]]:
        """One dict for each layer and engine."""
        return [
            {"engine": label, "layer": layer.name, "count": layer.count, **layer.seconds[i], "total": layer.total(i)}
            for layer in self.layers
            for i, label in enumerate(self.labels)
        ]

    def raw(self) -> dict[str, Any]:
        """All sums."""
        return {"labels": self.labels, "layers": [asdict(layer) for layer in self.layers]}

    def bars(self) -> tuple[list[str], list[Estimate]]:
        """The bars of `plot`: each layer on each engine."""
        bars = [
            (f"{layer.name} {label}" if len(self.labels) > 1 else layer.name, Estimate(*[layer.total(i)] * 3))
            for layer in self.layers
            for i, label in enumerate(self.labels)
        ]
        return [label for label, _ in bars], [estimate for _, estimate in bars]


def by_layer(labels: list[str], ops: Sequence[Sequence[OpTime]], roots: Sequence[Tensor]) -> LayerTimes | None:
    """The times of these ops, each on every engine, by layer; None for a call whose ops stand in no scope.

    Of one engine they are those that count, the device's where it tells them; of several, the calls', as all have them.
    """
    known = layers_of(roots)
    found: dict[str, LayerTime] = {}
    order: dict[str, int] = {}
    for row in ops:
        for name, (count, first) in row[0].scopes.items():
            layer = found.setdefault(
                name, LayerTime(name, name in known, seconds=[dict.fromkeys(_PARTS, 0.0) for _ in labels])
            )
            layer.count += count
            order[name] = min(order.get(name, first), first)
            for i, op in enumerate(row):
                if not op.failure:
                    layer.seconds[i][op.part] += count * (op.seconds if len(labels) == 1 else op.steady.value)
    if not any(found):
        return None
    return LayerTimes(labels, sorted(found.values(), key=lambda layer: order[layer.name]))
