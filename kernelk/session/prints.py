"""`K.print_tensor`: shows a program's prints in the cell, after its run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..arrays import Array
from ..graph.nodes import Scan, Tensor
from ..ops.foreign import as_numpy
from ..program.program import Print


def show_prints(prints: Sequence[tuple[Print, Array]]) -> None:
    """Prints the tensors of `K.print_tensor`, each once, in the order in which the lines were written.

    What stands in a loop's step is shown step by step, in the order of the steps.
    """
    _show([(one.node, one.loops, as_numpy(value, one.node.name)) for one, value in dict(prints).items()])


def _show(entries: Sequence[tuple[Tensor, tuple[Scan, ...], Array]]) -> None:
    groups: dict[Tensor, list[tuple[Tensor, tuple[Scan, ...], Array]]] = {}
    for entry in sorted(entries, key=lambda entry: entry[0].uid):
        groups.setdefault(entry[1][0] if entry[1] else entry[0], []).append(entry)
    for whole, group in groups.items():
        if isinstance(whole, Scan):
            steps = range(len(group[0][2]))
            for t in reversed(steps) if whole.body.reverse else steps:
                _show([(node, loops[1:], values[t, ...]) for node, loops, values in group])
            continue
        message = whole.attrs["message"]
        prefix = message if not message or message[-1].isspace() else f"{message} "
        print(prefix + np.array2string(group[0][2], prefix=prefix.rpartition("\n")[2]))
