"""Second step of a drawing: joins boxes into groups, by name scopes, straight rows of ops and stretches of code."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable

from .boxes import Box, Graph, Time, counted, ops_summary

# A graph with more boxes is collapsed unless the user asks for all.
READABLE = 200
# At most so many are ever drawn or listed.
MOST_DRAWN = 1000
# The ops of shorter rows are drawn one by one.
SHORTEST_ROW = 4
# So many of a row's variables and placeholders stay outside its box.
MOST_LEAVES = 8
# A graph that neither scopes nor rows make small is cut into so many parts.
STRETCHES = 40


def collapsed(
    graph: Graph, depth: int | str | None, opened: Collection[str], layers: Collection[str] = ()
) -> tuple[Graph, str]:
    """The graph with groups in place of boxes, and a line that says what was done ("" if nothing was).

    `depth`: so many levels of name scopes are opened; "all": every one; None: as many as stay readable, and rows and
    stretches where that isn't enough. Groups whose keys are in `opened` are shown as what they hold. `layers`: the
    scopes that are a Keras model's layers: unless `depth` says otherwise each of them is a group, however small.
    """
    if depth == "all":
        if len(graph.boxes) <= MOST_DRAWN:
            return graph, ""
        small, note = collapsed(graph, None, opened, layers)
        return small, f"{note}; at most {MOST_DRAWN:,} boxes are drawn"
    if layers and depth is None:
        depth = 0
    if isinstance(depth, int):
        by_scope = _with_groups(graph, lambda box: _scope_group(box, depth, opened), layers)
        if len(by_scope.boxes) <= MOST_DRAWN:
            return by_scope, _note(graph, by_scope)
    elif len(graph.boxes) <= READABLE:
        return graph, ""
    small = _by_scope(graph, opened)
    for step in (_by_rows, _by_stretches):
        if len(small.boxes) > READABLE:
            small = step(small, opened)
    if len(small.boxes) > MOST_DRAWN:
        # The opened groups are more than can be drawn.
        small = _by_stretches(small, ())
    return small, _note(graph, small)


def _note(graph: Graph, small: Graph) -> str:
    groups = sum(box.kind == "group" for box in small.boxes.values())
    if not groups:
        return ""
    what = "a group" if groups == 1 else "groups"
    return f"{len(graph.boxes):,} nodes as {len(small.boxes):,} boxes, {groups} of them {what}"


def _by_scope(graph: Graph, opened: Collection[str]) -> Graph:
    """Opens as many levels of scopes as stay readable."""
    deepest = max((box.scope.count("/") + 1 for box in graph.boxes.values() if box.scope), default=0)
    small = _with_groups(graph, lambda box: _update_group(box, opened))
    if len(small.boxes) <= READABLE:
        return small
    for depth in reversed(range(deepest)):
        small = _with_groups(graph, lambda box, depth=depth: _scope_group(box, depth, opened))  # type: ignore[misc]
        if len(small.boxes) <= READABLE:
            break
    return small


def _scope_group(box: Box, depth: int, opened: Collection[str]) -> tuple[str, str] | None:
    """(key, title) of the group that a box belongs to by its scope; gradients stand apart from what they are of."""
    if not box.scope or box.kind == "update":
        return _update_group(box, opened)
    parts = box.scope.split("/")
    suffix = "" if box.part == "forward" else f":{box.part}"
    for count in range(min(depth + 1, len(parts) + 1), len(parts) + 1):
        path = "/".join(parts[:count])
        key = f"scope:{path}{suffix}"
        if key not in opened:
            return key, path if box.part == "forward" else f"{box.part} of {path}"
    return None


def _update_group(box: Box, opened: Collection[str]) -> tuple[str, str] | None:
    """The nodes of a function's updates that are in no scope: the optimiser's part."""
    if (box.kind == "update" or (box.part == "update" and not box.scope)) and "updates" not in opened:
        return "updates", "updates"
    return None


def _by_rows(graph: Graph, opened: Collection[str]) -> Graph:
    """Straight rows of ops, each of which takes only the one before and leaves, as one box each."""
    sources, targets = graph.sources(), graph.targets()
    outputs = set(graph.outputs)

    def before(box: Box) -> str | None:
        """The only input of this box that isn't a leaf, if it serves nothing else."""
        inner = [key for key in sources[box.key] if not graph.boxes[key].is_leaf]
        if len(inner) != 1 or len(targets[inner[0]]) != 1 or inner[0] not in row_of:
            return None
        source = graph.boxes[inner[0]]
        return source.key if source.kind == "op" and source.part == box.part and source.scope == box.scope else None

    row_of: dict[str, list[str]] = {}
    for box in graph.boxes.values():
        if box.kind != "op" or box.key in outputs:
            continue
        earlier = before(box)
        row = row_of[earlier] if earlier is not None else []
        row.append(box.key)
        row_of[box.key] = row
    groups: dict[str, tuple[str, str]] = {}
    for row in {id(row): row for row in row_of.values()}.values():
        key = f"row:{row[0]}"
        if len(row) < SHORTEST_ROW or key in opened:
            continue
        members = set(row)
        leaves = {x for member in row for x in sources[member] if graph.boxes[x].is_leaf}
        if len(leaves) <= MOST_LEAVES:
            # A few inputs help the reader.
            leaves = {x for x in leaves if graph.boxes[x].kind == "constant"}
        members.update(x for x in leaves if all(user in members for user in targets[x]) and x not in outputs)
        groups.update(dict.fromkeys(members, (key, f"{len(row):,} ops in a row")))
    return _with_groups(graph, lambda box: groups.get(box.key))


def _by_stretches(graph: Graph, opened: Collection[str]) -> Graph:
    """Joins boxes that stand together in the code: the boxes in the order in which they were made, cut evenly.

    Nothing goes back from one stretch to an earlier one.
    """
    kept = {key for key in graph.outputs}
    inner = sorted((box for box in graph.boxes.values() if box.key not in kept), key=lambda box: box.order)
    # One or two inputs of everything help the reader.
    leaves = [box for box in inner if box.is_leaf]
    if len(leaves) <= READABLE // 4:
        inner = [box for box in inner if not box.is_leaf]
    size = max(2, -(-len(inner) // STRETCHES))
    groups: dict[str, tuple[str, str]] = {}
    for start in range(0, len(inner), size):
        stretch = inner[start : start + size]
        key = f"stretch:{stretch[0].key}"
        if key not in opened:
            groups.update(dict.fromkeys((box.key for box in stretch), (key, _lines_of(stretch))))
    small = _with_groups(graph, lambda box: groups.get(box.key))
    if len(small.boxes) <= MOST_DRAWN:
        return small
    # With so many outputs, they are drawn as one too.
    return _with_groups(small, lambda box: ("outputs", "outputs") if box.key in kept else None)


def _lines_of(boxes: list[Box]) -> str:
    """The range in the code: "cell 3, line 2 to cell 4, line 1"."""
    ends = [box.where for box in (boxes[0], boxes[-1])]
    known = list(dict.fromkeys(end for end in ends if end))
    return " to ".join(known) or "one stretch"


def _with_groups(
    graph: Graph, group_of: Callable[[Box], tuple[str, str] | None], layers: Collection[str] = ()
) -> Graph:
    """The graph with a box in place of all that have the same group, (key, title).

    One alone stays what it is, unless it is all of a layer.
    """
    members: dict[str, list[Box]] = {}
    titles: dict[str, str] = {}
    groups = {box.key: group_of(box) for box in graph.boxes.values()}
    # A model in a model has the weights of layers that were made elsewhere.
    joining = ("constant", "variable") if layers else ("constant",)
    for key, users in graph.targets().items():
        if graph.boxes[key].kind in joining and len({groups[user] for user in users}) == 1:
            # It is used there only.
            groups[key] = groups[users[0]]
    for box in graph.boxes.values():
        group = groups[box.key]
        if group is not None:
            members.setdefault(group[0], []).append(box)
            titles[group[0]] = group[1]
    new: dict[str, str] = {key: key for key in graph.boxes}
    made: dict[str, Box] = {}
    for key, boxes in members.items():
        if len(boxes) > 1 or (boxes[0].scope in layers and not boxes[0].is_leaf and key.startswith("scope:")):
            made[key] = _group(key, titles[key], boxes, graph.outputs)
            new.update((box.key, key) for box in boxes)
    by_key = {new[box.key]: made.get(new[box.key], box) for box in graph.boxes.values()}
    arrows: dict[tuple[str, str], str] = {}
    for (start, end), label in graph.arrows.items():
        arrow = new[start], new[end]
        if arrow[0] != arrow[1]:
            arrows[arrow] = label if arrow == (start, end) else ""
    return Graph(_ordered(by_key, arrows), arrows, list(dict.fromkeys(new[key] for key in graph.outputs)))


def _ordered(boxes: dict[str, Box], arrows: Iterable[tuple[str, str]]) -> dict[str, Box]:
    """Orders the boxes, each after its inputs; groups that depend on one another are ordered by their first node."""
    missing = dict.fromkeys(boxes, 0)
    users: dict[str, list[str]] = {key: [] for key in boxes}
    for start, end in arrows:
        missing[end] += 1
        users[start].append(end)
    ready = [(box.order, key) for key, box in boxes.items() if not missing[key]]
    heapq.heapify(ready)
    waiting = sorted((box.order, key) for key, box in boxes.items())[::-1]
    ordered: dict[str, Box] = {}
    while waiting or ready:
        key = heapq.heappop(ready)[1] if ready else waiting.pop()[1]
        if key in ordered:
            continue
        ordered[key] = boxes[key]
        for user in users[key]:
            missing[user] -= 1
            if not missing[user] and user not in ordered:
                heapq.heappush(ready, (boxes[user].order, user))
    return ordered


def _group(key: str, title: str, boxes: list[Box], outputs: Iterable[str]) -> Box:
    flat = [inner for box in boxes for inner in (box.members or [box])]
    held = sum(box.holds for box in boxes)
    detail = counted(held, "op")
    for kind in ("variable", "update"):
        count = sum(box.kind == kind for box in flat)
        if count:
            detail += f", {counted(count, kind)}"
    parts = {box.part for box in flat if not box.is_leaf}
    last = next((box for box in reversed(boxes) if not box.is_leaf), boxes[-1])
    group = Box(
        key, "group", ops_summary(flat), max(box.order for box in boxes), title, "", last.shape, last.dtype,
        parts.pop() if len(parts) == 1 else "forward", boxes[0].scope, last.source, detail, held, flat,
    )  # fmt: skip
    wanted = [box for box in flat if box.key in set(outputs)]
    group.notebook = next((box.notebook for box in wanted if box.notebook), "")
    times = [box.time for box in boxes if box.time is not None]
    if times:
        group.time = Time(sum(time.seconds for time in times), sum(time.share for time in times))
    return group
