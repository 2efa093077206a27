"""Exports results: as a data frame, as JSON with all figures, and measurements also as a picture."""

from __future__ import annotations

from typing import Any, TypeVar

from ..display.export import Exported
from ..errors import ArgumentError
from ..session.current import current
from .estimates import Estimate


class Result(Exported):
    """A measurement's result, which can be drawn as well."""

    def bars(self) -> tuple[list[str], list[Estimate]]:
        """Labels, and the seconds with their intervals that `plot` draws."""
        raise NotImplementedError

    def plot(self, ax: Any = None) -> Any:
        """A bar for each row with its interval, on a logarithmic axis where they lie far apart; the Matplotlib Axes.

        Raises ArgumentError where Matplotlib isn't installed.
        """
        labels, estimates = self.bars()
        ax = ax if ax is not None else new_axes(len(labels))
        scale, unit = unit_of([estimate.value for estimate in estimates])
        values = [estimate.value / scale for estimate in estimates]
        errors = [
            [(e.value - e.low) / scale for e in estimates],
            [min(e.high - e.value, e.value) / scale for e in estimates],
        ]
        positions = range(len(labels))
        ax.barh(positions, values, xerr=errors, color="#4c78a8", ecolor="#333333", capsize=4)
        ax.set_yticks(positions, labels)
        ax.invert_yaxis()
        if min(values) > 0 and max(values) > 30 * min(values):
            ax.set_xscale("log")
        for position, value, (_, above) in zip(positions, values, zip(*errors)):
            ax.annotate(f"  {value:.3g} {unit}", (value + above, position), va="center", ha="left", fontsize=14)
        ax.margins(x=0.25)
        ax.set_xlabel(f"time of one run [{unit}]")
        return ax


Measured = TypeVar("Measured", bound=Result)


def noted(kind: str, result: Measured) -> Measured:
    """The same result, which is now the session's last of its kind ("time", "profile", "compare"): the panel has it."""
    session = current()
    session.measurements = {**session.measurements, kind: result}
    return result


def new_axes(rows: int) -> Any:
    """Axes that can be read in a lecture hall. Raises ArgumentError where Matplotlib isn't installed."""
    try:
        from matplotlib import pyplot
    except ImportError:
        raise ArgumentError(
            "plot needs Matplotlib, which isn't installed", next_step="pip install matplotlib"
        ) from None
    with pyplot.rc_context({"font.size": 14}):
        _, ax = pyplot.subplots(figsize=(10, 1.5 + 0.7 * rows), layout="constrained")
    return ax


def unit_of(seconds: list[float]) -> tuple[float, str]:
    """The unit that suits the least of these times: its length in seconds, and its name."""
    least = min(seconds)
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if least >= scale:
            return scale, unit
    return 1e-6, "us"
