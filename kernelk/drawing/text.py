"""Last step in a terminal: writes the boxes as text, from the outputs down to the inputs."""

from __future__ import annotations

from collections import deque

from .boxes import Box, Graph

# Deeper nodes are listed further below, under their names.
DEEPEST = 12
# Longer lines push their columns to the right.
WIDEST = 60


def listing(graph: Graph) -> str:
    """The lines. What is used more than once, or written out further below, has a name, and is written out once."""
    sources = graph.sources()
    lines: list[tuple[str, str, str]] = []  # indentation and label, the box's key, where else it is written out
    done: set[str] = set()
    begun = dict.fromkeys(graph.outputs)
    pending = deque(graph.outputs)
    while pending:
        root = pending.popleft()
        if root in done:
            continue
        stack: list[tuple[str, int, str]] = [(root, 0, "")]
        while stack:
            key, depth, label = stack.pop()
            before = "  " * depth + (f"{label}: " if label else "")
            if key in done:
                # Numbers are repeated.
                elsewhere = "" if graph.boxes[key].kind == "constant" else "above"
                lines.append((before, key, elsewhere))
            elif depth and (key in begun or (depth >= DEEPEST and sources[key])):
                lines.append((before, key, "below"))
                if key not in begun:
                    begun[key] = None
                    pending.append(key)
            else:
                done.add(key)
                lines.append((before, key, ""))
                stack.extend((x, depth + 1, graph.arrows[x, key]) for x in reversed(sources[key]))
    named = {key for _, key, elsewhere in lines if elsewhere}
    rows = []
    for before, key, elsewhere in lines:
        box = graph.boxes[key]
        if elsewhere:
            rows.append((f"{before}{box.called} (see {elsewhere})", "", "", ""))
        else:
            rows.append((before + _head(box, key in named), box.type, box.where, str(box.time or "")))
    widths = [min(WIDEST, max(len(row[i]) for row in rows)) for i in range(4)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def _head(box: Box, named: bool) -> str:
    """The part of a line that describes the box itself; `named`: it needs a name, since other lines speak of it."""
    name = box.called if named else box.notebook or box.name
    if box.kind in ("variable", "placeholder"):
        return f"{box.called} ({box.kind})"
    if box.kind == "group":
        outputs = f"{box.notebook} = " if box.notebook else ""
        return f"{outputs}[{box.name}] {box.detail}: {box.op}"
    if box.kind == "update":
        return f"{box.op} {box.detail}"
    what = box.detail or "constant" if box.kind == "constant" else f"{box.op} {box.detail}".strip()
    return (f"{name} = {what}" if name else what) + (" (gradient)" if box.part == "gradient" else "")
