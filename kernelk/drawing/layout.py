"""Third step of a drawing: places the boxes in layers from inputs to outputs, by igraph's layout."""

from __future__ import annotations

from typing import Any

from ..errors import ArgumentError
from .boxes import Graph

# Between boxes of a layer, between layers, and around it all, in pixels.
GAP, LAYER_GAP, MARGIN = 22.0, 38.0, 16.0
# The width of an arrow that passes a layer.
PASSING = 12.0
# The number of passes that improve positions, each downwards and upwards.
SWEEPS = 8

Point = tuple[float, float]


def igraph() -> Any:
    """The library. Raises ArgumentError where it isn't installed."""
    try:
        import igraph as module  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise ArgumentError(
            "a drawing needs igraph, which isn't installed (the text needs nothing)", next_step="pip install igraph"
        ) from None
    return module


class _Spot:
    """A box's place in a layer, or that of an arrow that passes the layer."""

    __slots__ = ("down", "height", "key", "layer", "up", "width", "x")

    def __init__(self, key: str, layer: int, width: float, height: float) -> None:
        self.key = key  # "" where arrows pass
        self.layer = layer
        self.width = width
        self.height = height
        self.x = 0.0
        self.up: list[_Spot] = []
        self.down: list[_Spot] = []


def lay_out(graph: Graph) -> tuple[dict[tuple[str, str], list[Point]], float, float]:
    """Sets x and y of boxes whose width and height are known; the arrows' points, and the whole's width and height.

    An arrow's points go from the lower edge of a box to the upper edge of another, or the other way round where a
    group gives back to an earlier one. Raises ArgumentError without igraph.
    """
    library = igraph()
    if not graph.boxes:
        return {}, 2 * MARGIN, 2 * MARGIN
    layers = _layers(graph)
    spots = {key: _Spot(key, layers[key], box.width, box.height) for key, box in graph.boxes.items()}
    everything = list(spots.values())
    rails: dict[tuple[str, int], _Spot] = {}
    paths: dict[tuple[str, str], list[_Spot]] = {}
    for start, end in graph.arrows:
        back = layers[start] >= layers[end]
        first, last = (end, start) if back else (start, end)
        at = spots[first]
        path = [at]
        # All arrows of one box pass a layer together: whatever the graph's size, these stay few.
        for layer in range(layers[first] + 1, layers[last]):
            rail = rails.get((first, layer))
            if rail is None:
                rail = rails[first, layer] = _Spot("", layer, PASSING, 0.0)
                everything.append(rail)
                _join(at, rail)
            path.append(rail)
            at = rail
        if layers[last] > layers[first]:
            _join(at, spots[last])
        path.append(spots[last])
        paths[start, end] = path[::-1] if back else path
    numbers = {id(spot): i for i, spot in enumerate(everything)}
    joined = [(numbers[id(spot)], numbers[id(x)]) for spot in everything for x in spot.down]
    drawn = library.Graph(len(everything), joined, directed=True)
    positions = drawn.layout_sugiyama(layers=[spot.layer for spot in everything], hgap=1, vgap=1, maxiter=100)
    rows: list[list[_Spot]] = [[] for _ in range(1 + max(spot.layer for spot in everything))]
    for spot, (x, _) in zip(everything, list(positions)[: len(everything)]):
        spot.x = x * 120.0
        rows[spot.layer].append(spot)
    for row in rows:
        row.sort(key=lambda spot: spot.x)
    _spread(rows)
    _straighten(rails)
    left = min(spot.x - spot.width / 2 for spot in everything) - MARGIN
    right = max(spot.x + spot.width / 2 for spot in everything) + MARGIN
    tops, y = [], MARGIN
    heights = [max((spot.height for spot in row), default=0.0) for row in rows]
    for row, height in zip(rows, heights):
        tops.append(y)
        for spot in row:
            spot.x -= left
            if spot.key:
                box = graph.boxes[spot.key]
                # In the middle of their layer, regardless of their heights.
                box.x, box.y = spot.x - box.width / 2, y + (height - box.height) / 2
        y += height + LAYER_GAP
    ports = _ports(graph, paths)
    points = {arrow: _points(graph, arrow, path, tops, heights, ports[arrow]) for arrow, path in paths.items()}
    return points, right - left, y - LAYER_GAP + MARGIN


def _ports(graph: Graph, paths: dict[tuple[str, str], list[_Spot]]) -> dict[tuple[str, str], float]:
    """The points at which arrows meet the boxes that they lead to: side by side, in the order in which they come."""
    arriving: dict[str, list[tuple[str, str]]] = {}
    for arrow in paths:
        arriving.setdefault(arrow[1], []).append(arrow)
    ports: dict[tuple[str, str], float] = {}
    for key, arrows in arriving.items():
        box = graph.boxes[key]
        room = (box.width - 24.0) / len(arrows)
        if not any(graph.arrows[arrow] for arrow in arrows):
            room = min(26.0, room)
        arrows.sort(key=lambda arrow: paths[arrow][-2].x)
        for i, arrow in enumerate(arrows):
            ports[arrow] = box.x + box.width / 2 + (i - (len(arrows) - 1) / 2) * room
    return ports


def _join(upper: _Spot, lower: _Spot) -> None:
    if not any(spot is lower for spot in upper.down[-1:]):
        upper.down.append(lower)
        lower.up.append(upper)


def _layers(graph: Graph) -> dict[str, int]:
    """Assigns layers: each box is below all its inputs and, if possible, right above its first user."""
    rank = {key: i for i, key in enumerate(graph.boxes)}
    forward: dict[str, list[str]] = {key: [] for key in graph.boxes}
    users: dict[str, list[str]] = {key: [] for key in graph.boxes}
    for start, end in graph.arrows:
        if rank[start] < rank[end]:
            forward[end].append(start)
            users[start].append(end)
    layers: dict[str, int] = {}
    for key in graph.boxes:
        layers[key] = 1 + max((layers[x] for x in forward[key]), default=-1)
    for key in reversed(graph.boxes):
        # Only if that doesn't make the arrows longer in total.
        if users[key] and len(forward[key]) <= len(users[key]):
            layers[key] = min(layers[x] for x in users[key]) - 1
    lowest = min(layers.values())
    from_zero = {key: layer - lowest for key, layer in layers.items()}
    used = {layer: i for i, layer in enumerate(sorted(set(from_zero.values())))}
    return {key: used[layer] for key, layer in from_zero.items()}


def _spread(rows: list[list[_Spot]]) -> None:
    """Keeps igraph's order in each layer, makes room for the boxes' widths, and straightens the arrows."""
    for row in rows:
        _fit(row, [spot.x for spot in row], [1.0] * len(row))
    # The last pass goes downwards, so that a box with one operand is right below it.
    for sweep in range(2 * SWEEPS + 1):
        downwards = sweep % 2 == 0
        for row in rows if downwards else reversed(rows):
            wanted, weights = [], []
            for spot in row:
                near = (spot.up if downwards else spot.down) or spot.up + spot.down
                # Inputs and passing arrows are placed next to the main line, and don't shift it.
                pulls = [4.0 if x.key and x.up and x.down else 0.5 for x in near]
                whole = sum(pulls)
                wanted.append(sum(x.x * pull for x, pull in zip(near, pulls)) / whole if near else spot.x)
                # A passing arrow should be straight, especially between layers that it passes.
                weights.append(1.0 if spot.key else 4.0 + 8.0 * sum(not x.key for x in spot.up + spot.down))
            _fit(row, wanted, weights)


def _straighten(rails: dict[tuple[str, int], _Spot]) -> None:
    """Lets arrows of one box that pass a layer at nearly the same place pass it at the same one."""
    passing: dict[str, list[_Spot]] = {}
    for (start, _), spot in sorted(rails.items(), key=lambda entry: entry[0][1]):
        passing.setdefault(start, []).append(spot)
    for spots in passing.values():
        run: list[_Spot] = []
        for spot in spots:
            if not _near([*run, spot]):
                _align(run)
                run = []
            run.append(spot)
        _align(run)


def _near(run: list[_Spot]) -> bool:
    # Nothing else is nearer than GAP.
    return max(spot.x for spot in run) - min(spot.x for spot in run) < GAP


def _align(run: list[_Spot]) -> None:
    middle = (min(spot.x for spot in run) + max(spot.x for spot in run)) / 2
    for spot in run:
        spot.x = middle


def _fit(row: list[_Spot], wanted: list[float], weights: list[float]) -> None:
    """Puts the spots of a layer as near as can be to where they are wanted, in order and apart.

    Least squares under these conditions: what would overlap moves as one block to its members' weighted mean.
    """
    offsets, at = [], 0.0
    for i, spot in enumerate(row):
        at += (row[i - 1].width + spot.width) / 2 + GAP if i else 0.0
        offsets.append(at)
    blocks: list[tuple[float, float, int]] = []  # mean, weight, count
    for target, weight, offset in zip(wanted, weights, offsets):
        mean, total, count = target - offset, weight, 1
        while blocks and blocks[-1][0] >= mean:
            other, more, before = blocks.pop()
            mean = (mean * total + other * more) / (total + more)
            total, count = total + more, count + before
        blocks.append((mean, total, count))
    i = 0
    for mean, _, count in blocks:
        for _ in range(count):
            row[i].x = mean + offsets[i]
            i += 1


def _points(
    graph: Graph,
    arrow: tuple[str, str],
    path: list[_Spot],
    tops: list[float],
    heights: list[float],
    port: float,
) -> list[Point]:
    start, end = (graph.boxes[key] for key in arrow)
    down = path[0].layer < path[-1].layer
    points = [(start.x + start.width / 2, start.y + (start.height if down else 0.0))]
    for spot in path[1:-1]:
        # Straight through the layer, past its boxes.
        through = [(spot.x, tops[spot.layer]), (spot.x, tops[spot.layer] + heights[spot.layer])]
        through = through if down else through[::-1]
        if len(points) > 1 and abs(points[-1][0] - spot.x) < 0.5:
            # Straight on.
            points[-1] = through[1]
        else:
            points += through
    return [*points, (port, end.y + (0.0 if down else end.height))]
