"""Shows each engine's compiled form of the same graph for `%kshow`, in the engine's own words and side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from ..arrays import Array
from ..display.tables import MONOSPACE
from ..engines import registry
from ..engines.host import Host
from ..errors import ArgumentError, KernelKError, WorkerDiedError, one_line, printable
from ..graph.nodes import Constant, Draw, Placeholder, Tensor, check_generation
from ..program.program import Program
from ..session.current import current
from ..session.default_feeds import known_feeds, roots_of
from ..session.function import Function
from ..session.linearise import linearised
from ..session.session import Session
from ..session.targets import adapted
from ..session.untouched import untouched
from ..twins import typed_name
from .boxes import clean, counted, graph_of_tensors, notebook_names, shown_names, shown_shape

# The result shows at most so many lines of a listing; `text` has all.
SHOWN_LINES = 40
# The value of an unknown length if nothing was fed.
BATCH = 32


@dataclass(frozen=True)
class View:
    """One engine's graph: what `kind` of thing it is, how many `ops` it has, its `text`; or why not, in one line."""

    engine: str
    title: str
    version: str
    kind: str = ""
    ops: int = 0
    text: str = ""
    failure: str = ""


class Views:
    """Several engines' compiled forms of a graph: `views`, one for each; `text(engine)` has the whole of a listing."""

    def __init__(self, name: str, nodes: int, views: list[View], notes: list[str]) -> None:
        self.name = name
        self.nodes = nodes
        self.views = views
        self.notes = notes

    def text(self, engine: str) -> str:
        """Returns an engine's whole listing. Raises ArgumentError for an engine that isn't in the result."""
        for view in self.views:
            if view.engine == engine:
                return view.failure or view.text
        names = ", ".join(view.engine for view in self.views)
        raise ArgumentError(
            f"{engine!r} isn't shown here", allowed=f"allowed are {names}", next_step=f"kernelk.show(y, {engine!r})"
        )

    @property
    def summary(self) -> str:
        """The number of ops in each of them."""
        parts = [f"{view.title} {view.ops}" for view in self.views if not view.failure]
        parts += [f"{view.title} can't" for view in self.views if view.failure]
        return printable(f"{self.name}: kernelk {counted(self.nodes, 'op')} -> {', '.join(parts)}")

    def _head(self, view: View) -> str:
        ops = "" if view.failure else f": {counted(view.ops, 'op')}"
        return printable(f"{view.title} {view.version}{ops}")

    def _shown(self, view: View) -> tuple[list[str], str]:
        """The lines that are shown, and a line that says how to see the others."""
        lines = [line.rstrip() for line in view.text.splitlines()]
        if len(lines) <= SHOWN_LINES + 5:
            return lines, ""
        more = len(lines) - SHOWN_LINES
        return lines[:SHOWN_LINES], f'... {more:,} more lines; all: print(kernelk.show(...).text("{view.engine}"))'

    def __repr__(self) -> str:
        parts = [self.summary, *self.notes]
        for view in self.views:
            lines, more = self._shown(view)
            parts.append(f"\n=== {self._head(view)}")
            if view.failure:
                parts.append(f"  {view.failure}")
                continue
            parts += [f"  ({view.kind})", *(f"  {line}" for line in lines)]
            if more:
                parts.append(f"  {more}")
        return "\n".join(part.rstrip() for part in parts)

    def _repr_html_(self) -> str:
        columns = []
        for view in self.views:
            lines, more = self._shown(view)
            inside = f"<div>{escape(view.failure)}</div>"
            if not view.failure:
                inside = f'<div style="opacity:0.85">{escape(view.kind)}</div>'
                inside += (
                    f'<pre style="max-height:32em;overflow:auto;text-align:left;line-height:1.35;{MONOSPACE}" '
                    'tabindex="0">'
                    f"{escape(chr(10).join(lines))}</pre>"
                )
            inside += f"<div>{escape(more)}</div>" if more else ""
            columns.append(
                '<details open style="flex:1 1 22em;min-width:0;border:1px solid #8884;border-radius:6px;'
                'padding:0.4em 0.8em;margin:0.2em">'
                f'<summary style="cursor:pointer"><b>{escape(self._head(view))}</b></summary>{inside}</details>'
            )
        notes = "".join(f"<div>{escape(note)}</div>" for note in self.notes)
        return (
            f"<div><div><b>{escape(self.summary)}</b></div>{notes}"
            f'<div style="display:flex;flex-wrap:wrap;align-items:flex-start">{"".join(columns)}</div></div>'
        )


def show(target: Any, *engines: str, feeds: Any = None, names: Mapping[str, Any] | None = None) -> Views:
    """Shows what each engine makes of a tensor, several, or a K.function with its updates. The twin of `%kshow`.

    `engines`: their names, started where they don't run; none: those that run, and the active one. `feeds` maps
    placeholders to arrays, of which only the shapes matter; one that isn't given takes what it was fed last, or zeros
    with 32 for each unknown length. `names`: a namespace with the notebook's names (in a notebook, its own). An engine
    that can't do it says why in its place. Nothing is run and nothing of the session changes; engines that were
    started stay warm. Raises UnknownBackendError, ArgumentError, FeedError, ShapeError.
    """
    target = adapted(target)
    roots = roots_of(target, typed_name("show"))
    for root in roots:
        check_generation(root)
    for name in engines:
        registry.engine(name)
    called = notebook_names(shown_names(names, "show", "kernelk.show(y, names=globals())"))
    session = current()
    with session.lock:
        wanted = list(dict.fromkeys(engines)) or _running(session)
        made: list[str] = []

        def zeros(x: Placeholder) -> Array:
            shape = tuple(BATCH if n is None else n for n in x.shape)
            if shape != x.shape:
                made.append(f"'{called.get(x.uid) or clean(x.name)}' as {shown_shape(shape)}")
            return np.zeros(shape, x.dtype)

        phase, fed = known_feeds(target, roots, feeds or {}, typed_name("show"), "%kshow y --feed x=array", zeros)
        views = []
        for name in wanted:
            engine = registry.engine(name)
            host = session.host(name)
            try:
                # One engine after the other: Ctrl-C ends the current one.
                if not host.started:
                    host.start()
                with untouched(session, [host]):
                    described = _described(session, host, target, roots, phase, fed, called)
                version = str(host.facts.get("version", ""))
                views.append(View(name, engine.title, version, described["kind"], described["ops"], described["text"]))
            except (KernelKError, WorkerDiedError) as error:
                version = str(host.facts.get("version", "")) if host.facts else ""
                views.append(View(name, engine.title, version, failure=one_line(error)))
    graph = graph_of_tensors(target, roots, called)
    nodes = sum(box.kind in ("op", "loop") for box in graph.boxes.values())
    notes = [f"shown for {', '.join(made)}: nothing was fed yet (--feed NAME=ARRAY sets it)"] if made else []
    return Views(_name(target, roots, called), nodes, views, notes)


def _running(session: Session) -> list[str]:
    known = [*registry.names(), *session.hosts]  # of another machine's, only those that were asked for have a name
    started = [name for name in known if name in session.hosts and session.hosts[name].started]
    return list(dict.fromkeys([session.active, *started]))


def _name(target: Any, roots: Sequence[Tensor], called: Mapping[int, str]) -> str:
    if isinstance(target, Function):
        return f"{target.what} '{clean(target.name)}'"
    shown = [called.get(root.uid) or clean(root.name) for root in roots[:3]]
    return ", ".join(shown) + (f" and {len(roots) - 3} more" if len(roots) > 3 else "")


def _described(
    session: Session,
    host: Host,
    target: Any,
    roots: list[Tensor],
    phase: int,
    fed: dict[Placeholder, Array],
    called: Mapping[int, str],
) -> dict[str, Any]:
    outputs = target.outputs if isinstance(target, Function) else roots
    updates = target.updates if isinstance(target, Function) else []
    feeds = list(fed.values())
    program, _ = linearised(session, list(fed), outputs, updates, phase, host.ops, feeds)
    return session.calls.describe(host, program, feeds, _leaves(program, called))


def _leaves(program: Program, called: Mapping[int, str]) -> list[str]:
    """The names of the program's inputs, variables, draws and constants."""
    leaves: list[Tensor] = [*program.inputs, *program.slots, *program.draws, *program.constants]
    names = []
    for x in leaves:
        if isinstance(x, Constant):
            value = x.array
            names.append(
                f"{value.reshape(()).item():.6g}" if value.size == 1 else f"constant{shown_shape(value.shape)}"
            )
        elif isinstance(x, Draw):
            names.append(f"random_{x.attrs['kind']}")
        else:
            names.append(called.get(x.uid) or clean(x.name))
    return names
