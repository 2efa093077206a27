"""First step of a drawing: turns recorded nodes into boxes and arrows, with the names that their user knows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..display.tables import duration
from ..graph.nodes import Constant, Draw, LearningPhase, Placeholder, Scan, Shape, Tensor, Update, Variable, walk
from ..inspection.inventory import checked_namespace, names_of, notebook_namespace
from ..ops.gradients import of_a_gradient
from ..session.function import Function
from ..source import Source

# Labels of an op's operands that have different roles.
_OPERANDS = {"phase_select": ("in training", "in testing"), "select": ("condition", "if true", "if false")}


@dataclass(frozen=True)
class Time:
    """A box's time in a profile: seconds of one run of the box's ops on their own, and their share of all ops' time."""

    seconds: float
    share: float

    def __str__(self) -> str:
        return f"{duration(self.seconds)}, {self.share:.0%}"


@dataclass(eq=False)
class Box:
    """One node, or several drawn as one. `kind`: variable, placeholder, constant, op, loop, update or group.

    `holds`: how many ops it stands for; `members`: the boxes in a group. `part`: "forward", "gradient" or "update".
    `lines` and the place (x, y: the upper left corner) belong to the layout.
    """

    key: str
    kind: str
    op: str
    order: int
    name: str = ""
    notebook: str = ""
    shape: Shape | None = None
    dtype: str = ""
    part: str = "forward"
    scope: str = ""
    source: Source | None = None
    detail: str = ""
    holds: int = 1
    members: list[Box] = field(default_factory=list)
    time: Time | None = None
    lines: list[str] = field(default_factory=list)
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0

    @property
    def is_leaf(self) -> bool:
        """Whether nothing is computed there."""
        return self.kind in ("variable", "placeholder", "constant")

    @property
    def called(self) -> str:
        """Its name for the reader: the notebook's name, its own within its scope, or its op with a number."""
        inside = f"{self.scope}/" if self.scope and "/" not in self.name and self.kind != "group" else ""
        return self.notebook or (self.name and f"{inside}{self.name}") or f"{self.op}_{self.key}"

    @property
    def type(self) -> str:
        """dtype and shape, as "float32 (None, 64)"."""
        return "" if self.shape is None else f"{self.dtype} {shown_shape(self.shape)}"

    @property
    def where(self) -> str:
        """The cell (or file) and line."""
        return "" if self.source is None else self.source.location


@dataclass
class Graph:
    """Boxes by key, in an order in which each follows what it is computed from, and arrows with what they say."""

    boxes: dict[str, Box]
    arrows: dict[tuple[str, str], str]
    outputs: list[str]

    def sources(self) -> dict[str, list[str]]:
        """Maps each box to its inputs, in the order of its operands."""
        sources: dict[str, list[str]] = {key: [] for key in self.boxes}
        for start, end in self.arrows:
            sources[end].append(start)
        return sources

    def targets(self) -> dict[str, list[str]]:
        """Maps each box to those that are computed from it."""
        targets: dict[str, list[str]] = {key: [] for key in self.boxes}
        for start, end in self.arrows:
            targets[start].append(end)
        return targets


def shown_shape(shape: Shape) -> str:
    """A shape for reading: (), (3,), (None, 64)."""
    return str(tuple(shape))


def counted(count: int, what: str) -> str:
    """ "1 op", "1,200 ops"."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def clean(text: object) -> str:
    """A name or a source line on one line, without what a terminal would take for a command."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]+", " ", str(text)).strip()


def shown_names(names: Mapping[str, Any] | None, asker: str, next_step: str) -> Mapping[str, Any]:
    """The namespace that was given, else the user's. Raises ArgumentError for no namespace."""
    return notebook_namespace() if names is None else checked_namespace(names, asker, next_step)


def notebook_names(namespace: Mapping[str, Any]) -> dict[int, str]:
    """The notebook's names of tensors, by their `uid`: a plain name where there is one, else as `w[0]`."""
    names_by_uid = names_of(namespace)
    return {key: clean(next((x for x in names if x.isidentifier()), names[0])) for key, names in names_by_uid.items()}


def graph_of_tensors(target: Any, roots: Sequence[Tensor], names: Mapping[int, str]) -> Graph:
    """Returns one box for each node that `roots` need; for a K.function, its updates too."""
    order = walk(roots, lambda node: node.inputs)
    forward = None
    if isinstance(target, Function):
        forward = {id(node) for node in walk(target.outputs, lambda node: node.inputs)}
    boxes: dict[str, Box] = {}
    arrows: dict[tuple[str, str], str] = {}
    for node in order:
        box = _box(node, names.get(node.uid, ""))
        if not box.is_leaf:
            given = forward is None or id(node) in forward
            box.part = "gradient" if of_a_gradient(node) else "forward" if given else "update"
        boxes[box.key] = box
        # An update is named after its variable.
        operands = list(enumerate(node.inputs))[1 if isinstance(node, Update) else 0 :]
        for index, x in operands:
            arrow = (str(x.uid), box.key)
            label = _label(node, index)
            if arrow in arrows:
                label = f"{arrows[arrow]}, {label}" if label else "twice"
            arrows[arrow] = label
    outputs = [str(root.uid) for root in roots]
    if isinstance(target, Function):
        outputs = [str(x.uid) for x in target.outputs]
        for variable, value in target.updates:
            box = _update_box(variable, names.get(variable.uid, ""), value)
            boxes[box.key] = box
            arrows[str(value.uid), box.key] = ""
            outputs.append(box.key)
    needed = {key for arrow in arrows for key in arrow}.union(outputs)
    # The variable of an update that nothing else reads.
    boxes = {key: box for key, box in boxes.items() if key in needed}
    return Graph(boxes, arrows, list(dict.fromkeys(outputs)))


def _label(node: Tensor, index: int) -> str:
    if isinstance(node, Scan):
        sequences, states = len(node.body.sequences), len(node.body.states)
        return "one per step" if index < sequences else "initial state" if index < sequences + states else ""
    labels = _OPERANDS.get(node.op, ())
    return labels[index] if index < len(labels) else ""


def _box(node: Tensor, notebook: str) -> Box:
    kind, op, detail, holds = "op", node.op, "", 1
    name = clean(node._name or "")
    if isinstance(node, Variable):
        kind = "variable"
    elif isinstance(node, LearningPhase):
        kind, detail = "placeholder", "0 in testing, 1 in training"
    elif isinstance(node, Placeholder):
        kind = "placeholder"
    elif isinstance(node, Constant):
        kind = "constant"
        if node.array.size == 1:
            detail = f"{node.array.reshape(()).item():.6g}" if node.dtype != "bool" else str(bool(node.array))
    elif isinstance(node, Scan):
        kind, op = "loop", "loop"
        body = node.body
        leaves = {id(leaf) for leaf in body.leaves}
        steps = walk([*body.new_states, *body.results], lambda x: () if id(x) in leaves else x.inputs)
        holds = sum(id(x) not in leaves and bool(x.inputs) for x in steps)
        length = next((x.shape[0] for x in node.inputs[: len(body.sequences)] if x.shape[0] is not None), None)
        steps_counted = "its steps" if length is None else counted(length, "step")
        detail = f"{counted(holds, 'op')} at each of {steps_counted}"
        if body.reverse:
            detail += ", backwards"
    elif isinstance(node, Draw):
        op = f"random {node.attrs['kind']}"
    elif isinstance(node, Update):
        kind, op = "update", "update" if node.kind == "assign" else "add to"
        detail = clean(node.variable.name)
    elif node.op == "item":
        loop = node.inputs[0]
        states = len(loop.body.states) if isinstance(loop, Scan) else 0
        index = node.attrs["index"]
        op = f"final state {index}" if index < states else f"result {index - states} of all steps"
    scope = node.scope or (name.rpartition("/")[0] if name else "")
    if kind == "loop":
        shape, dtype = None, ""
    else:
        shape, dtype = node.shape, node.dtype
    return Box(
        str(node.uid), kind, op, node.uid, name, clean(notebook), shape, dtype, "forward", clean(scope), node.source,
        detail, 0 if kind in ("variable", "placeholder", "constant") else holds,
    )  # fmt: skip


def _update_box(variable: Variable, notebook: str, value: Tensor) -> Box:
    called = clean(notebook or variable.name)
    # After everything else, regardless of when it was made.
    order = value.uid + (1 << 60)
    return Box(
        f"update-{variable.uid}", "update", "update", order, "", "", variable.shape, variable.dtype, "update",
        clean(variable.scope), value.source, called, 0,
    )  # fmt: skip


def with_times(graph: Graph, ops: Iterable[Any], alone: float) -> None:
    """Enters a profile's times: `ops` are its rows, `alone` is the time of all of them."""
    for op in ops:
        if op.failure or not alone:
            continue
        for uid in op.uids:
            box = graph.boxes.get(str(uid))
            if box is not None:
                box.time = Time(op.steady.value, op.steady.value / alone)


def ops_summary(boxes: Iterable[Box], most: int = 4) -> str:
    """Lists the ops in some boxes, the most frequent first: "12 tanh, 12 add, ..."."""
    counts: dict[str, int] = {}
    for box in boxes:
        if not box.is_leaf:
            counts[box.op] = counts.get(box.op, 0) + 1
    listed = sorted(counts, key=lambda op: -counts[op])
    parts = [f"{counts[op]:,} {op}" for op in listed[:most]] if max(counts.values(), default=0) > 1 else listed[:most]
    return ", ".join(parts) + (", …" if len(listed) > most else "")
