"""Draws a graph for `%kgraph` and the panel, step by step, and holds the result: text, a picture, plain data."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from html import escape
from pathlib import Path
from typing import Any

from ..display.export import write_text
from ..display.tables import MONOSPACE
from ..errors import ArgumentError
from ..graph.nodes import Update, check_generation
from ..session.current import current
from ..session.default_feeds import known_feeds, roots_of
from ..session.function import Function
from ..session.targets import adapted, layers_of
from ..twins import typed_name
from .boxes import Box, Graph, clean, counted, graph_of_tensors, notebook_names, shown_names, with_times
from .grouping import collapsed
from .layout import Point, lay_out
from .svg import WORDS, Picture, embedded, make_room, picture, tooltip
from .text import listing

# At most so many of a group's nodes are listed in `as_dict`; `holds` counts all.
MOST_MEMBERS = 200


class Drawing:
    """A graph to look at: text in a terminal, a static picture in a notebook or a page, `save`, `as_dict`.

    Only the picture and `as_dict` need igraph, which is imported at their first use.
    """

    def __init__(self, graph: Graph, title: str, total: int, note: str) -> None:
        self.graph = graph
        self.title = title
        self.total = total
        self.note = note
        self._laid_out: tuple[dict[tuple[str, str], list[Point]], float, float] | None = None

    def _layout(self) -> tuple[dict[tuple[str, str], list[Point]], float, float]:
        if self._laid_out is None:
            make_room(self.graph)
            self._laid_out = lay_out(self.graph)
        return self._laid_out

    def as_dict(self) -> dict[str, Any]:
        """The drawing as JSON-able data; lengths are CSS pixels, y grows downwards.

        `title`: a line for people. `width`, `height`: of the whole. `total`: how many nodes the graph has.
        `note`: what was collapsed, "" if nothing was. `outputs`: keys of the nodes that were asked for.
        `nodes`: a list, each after those that it is computed from:

        - `key`: a string: the tensor's `uid`, or "update-UID" for a function's new value of a variable, or a group's:
          "scope:PATH", "scope:PATH:gradient", "row:UID", "stretch:UID"; given back in `opened`, it opens the group.
        - `kind`: "variable", "placeholder", "constant", "op", "loop", "update" or "group".
        - `op`: the op's name (of a group which ops it holds); `name`: the tensor's own name, "" if it was given none;
          `notebook`: its name in the notebook, "" if it has none; `label`: the best of these.
        - `shape`: a list of ints and nulls, or null for what has none; `dtype`: "" then.
        - `part`: "forward", "gradient" (made by K.gradients) or "update".
        - `scope`: the name scopes that it was made in, joined by "/".
        - `source`: {"cell": number or 0 outside a notebook, "file", "line", "text"}, or null.
        - `detail`: a constant's value, a loop's length, how much a group holds; or "".
        - `holds`: how many ops it stands for: 1, those of a loop's step, those of a group; 0 for what isn't computed.
        - `members`: keys of the nodes in a group, the first 200; else [].
        - `time`: {"seconds", "share", "text"} from a profile (share: of all ops' time, 0 to 1), or null.
        - `lines`: what stands in the box, the first line as its title; one that starts with a tab is set as code.
        - `tooltip`: all that is known, on several lines.
        - `x`, `y` (the upper left corner), `width`, `height`.

        `edges`: a list of {"from": key, "to": key, "label": "" or what the operand is for, "points": [[x, y], ...]};
        the points go from the edge of one box to that of the other, and a curve or straight lines may join them.
        Raises ArgumentError without igraph.
        """
        points, width, height = self._layout()
        return {
            "title": self.title,
            "width": round(width, 1),
            "height": round(height, 1),
            "total": self.total,
            "note": self.note,
            "outputs": list(self.graph.outputs),
            "nodes": [_node(box) for box in self.graph.boxes.values()],
            "edges": [
                {
                    "from": start,
                    "to": end,
                    "label": self.graph.arrows[start, end],
                    "points": [[round(x, 1), round(y, 1)] for x, y in path],
                }
                for (start, end), path in points.items()
            ],
        }

    def _picture(self) -> Picture:
        points, width, height = self._layout()
        return picture(self.graph, points, width, height, self.title, self.note)

    def svg(self) -> str:
        """The picture as SVG text. Raises ArgumentError without igraph."""
        return self._picture().text

    def save(self, path: str | Path) -> None:
        """Writes it to a file NAME.svg. Raises FileError; ArgumentError for another ending or without igraph."""
        path = Path(path)
        if path.suffix != ".svg":
            raise ArgumentError(
                f"a drawing is saved as SVG: {str(path)!r} should end in .svg", next_step=".save('graph.svg')"
            )
        write_text(path, self.svg() + "\n", ".save")

    def __repr__(self) -> str:
        head = f"{self.title} ({self.note})" if self.note else self.title
        return f"{head}\n{listing(self.graph)}" if self.graph.boxes else head

    def _repr_html_(self) -> str:
        try:
            return embedded(self._picture(), self.graph)
        except ArgumentError as error:
            return f'<pre style="{MONOSPACE}">{escape(repr(self))}</pre><div>{escape(str(error))}</div>'


def _node(box: Box) -> dict[str, Any]:
    source = box.source
    return {
        "key": box.key,
        "kind": box.kind,
        "op": box.op,
        "name": box.name,
        "notebook": box.notebook,
        "label": box.name if box.kind == "group" else box.called,
        "shape": None if box.shape is None else list(box.shape),
        "dtype": box.dtype,
        "part": box.part,
        "scope": box.scope,
        "source": source
        and {
            "cell": source.cell,
            "file": "" if source.cell else Path(source.code.co_filename).name,
            "line": source.line,
            "text": clean(source.text),
        },
        "detail": box.detail,
        "holds": box.holds,
        "members": [inner.key for inner in box.members[:MOST_MEMBERS]],
        "time": box.time and {"seconds": box.time.seconds, "share": box.time.share, "text": str(box.time)},
        "lines": list(box.lines),
        "tooltip": tooltip(box),
        "x": round(box.x, 1),
        "y": round(box.y, 1),
        "width": box.width,
        "height": box.height,
    }


def graph_of(
    target: Any,
    names: Mapping[str, Any] | None = None,
    depth: int | str | None = None,
    opened: Collection[str] = (),
    times: Any = None,
) -> Drawing:
    """The drawing of a tensor, several, or a K.function with its updates.

    `names`: a notebook's namespace, whose names for tensors are shown. `depth`: how many levels of name scopes are
    opened, from 0; "all": everything up to 1,000 nodes; None: as many as keep it readable. `opened`: keys of groups to
    show as what they hold. `times`: a `kernelk.profile` result of the same target. Raises ArgumentError for anything
    else, StaleTensorError for what `K.clear_session` ended.
    """
    if depth is not None and depth != "all" and (type(depth) is not int or depth < 0):
        raise ArgumentError(
            f"a drawing's depth is 0 or more, or 'all', not {depth!r}", next_step="kernelk.draw(y, depth=1)"
        )
    target = adapted(target)
    roots = roots_of(target, typed_name("draw"))
    for root in roots:
        check_generation(root)
    called = notebook_names(names or {})
    graph = graph_of_tensors(target, roots, called)
    if times is not None:
        with_times(graph, times.ops, times.alone)
    kinds = {kind: sum(box.kind == kind for box in graph.boxes.values()) for kind in WORDS}
    ops = len(graph.boxes) - sum(kinds[kind] for kind in ("variable", "placeholder", "constant", "update"))
    parts = [
        counted(ops, "op"),
        *(counted(kinds[kind], kind) for kind in ("variable", "placeholder", "update") if kinds[kind]),
    ]
    title = f"{_title(target, called, roots)}: {', '.join(parts)}"
    total = len(graph.boxes)
    small, note = collapsed(graph, depth, opened, layers_of(roots))
    return Drawing(small, title, total, note)


def _title(target: Any, called: Mapping[int, str], roots: list[Any]) -> str:
    if isinstance(target, Function):
        return f"graph of {target.what} '{clean(target.name)}'"
    shown = [called.get(root.uid) or clean(root.name) for root in roots[:3]]
    return f"graph of {', '.join(shown)}" + (f" and {len(roots) - 3} more" if len(roots) > 3 else "")


def draw(
    target: Any,
    *,
    depth: int | str | None = None,
    opened: Collection[str] = (),
    times: Any = None,
    feeds: Any = None,
    names: Mapping[str, Any] | None = None,
) -> Drawing:
    """Draws the graph of a tensor, several, a K.function or a Keras model. The Python twin of `%kgraph`.

    `depth`, `opened`: as in `graph_of`. `times`: a `kernelk.profile` result of the same target, or True to profile it
    now (with `feeds`, or what its placeholders were fed last); boxes then show their seconds. `names`: a namespace
    with the notebook's names (in a notebook, its own). Nothing of the session changes. Raises ArgumentError, and with
    `times=True` what `kernelk.profile` raises.
    """
    names = shown_names(names, "draw", "kernelk.draw(y, names=globals())")
    if times is not None and not isinstance(times, bool) and not hasattr(times, "ops"):
        raise ArgumentError(
            f"draw: times is True or what kernelk.profile gives, not {type(times).__name__}",
            next_step="kernelk.draw(y, times=True)",
        )
    if times is True:
        times = _profiled(target, feeds)
    return graph_of(target, names, depth, opened, times or None)


def _profiled(target: Any, feeds: Any) -> Any:
    """A profile of the target, whose one run leaves no trace in the session."""
    from ..measure.profiling import profile

    target = adapted(target)
    roots = roots_of(target, typed_name("draw"))
    updated = [variable for variable, _ in target.updates] if isinstance(target, Function) else []
    updated += [x.inputs[0] for x in roots if isinstance(x, Update)]  # type: ignore[misc]
    session = current()
    with session.lock:
        # Checked here, since the profile's error would name another command.
        known_feeds(target, roots, feeds or {}, typed_name("draw"), "%kgraph y --times --feed x=array")
        before = [(variable, session.read(variable)) for variable in updated]
        with session.state.seeds.kept():
            try:
                return profile(target, feeds, budget=2.0)
            finally:
                session.write(before)
