"""Last step of a picture: writes the placed boxes as one static SVG with no script and no style sheet."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from .boxes import Box, Graph, clean

SANS = "system-ui, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
MONO = "ui-monospace, 'SF Mono', Menlo, Consolas, 'DejaVu Sans Mono', monospace"

LINE, PADDING, CORNER = 18.0, 11.0, 6.0
TITLE_SIZE, TEXT_SIZE, LABEL_SIZE = 14.0, 12.0, 11.0
LONGEST = 34

# Fill and border of each kind: text on them has a contrast of 7:1, and borders and words distinguish them too.
COLOURS = {
    "variable": ("#e3efdc", "#4c7a34"),
    "placeholder": ("#dcebf9", "#2b6aa6"),
    "constant": ("#f1f1f1", "#767676"),
    "op": ("#ffffff", "#55606e"),
    "loop": ("#efe6f8", "#75479f"),
    "update": ("#fbe9d9", "#a85b17"),
    "group": ("#fff8dc", "#86701a"),
}
WORDS = {
    "variable": "variable",
    "placeholder": "placeholder (fed)",
    "constant": "constant",
    "op": "op",
    "loop": "loop",
    "update": "update of a variable",
    "group": "several ops",
}
TEXT, QUIET, BACKGROUND, ARROW = "#1c2430", "#4a5563", "#fcfcfd", "#7a8696"


def width_of(text: str, size: float, mono: bool = False) -> float:
    """About how wide a text is, on the safe side; fonts differ from page to page."""
    if mono:
        return sum(1.0 if ord(c) > 0x2E7F else 0.62 for c in text) * size
    narrow, wide = "iljtfr.,:;'|!()[]/ ", "mwMW@%"
    parts = (
        1.05 if ord(c) > 0x2E7F else 0.36 if c in narrow else 0.95 if c in wide else 0.7 if c.isupper() else 0.6
        for c in text
    )
    return sum(parts) * size


def cut(text: str, longest: int = LONGEST) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def measure(box: Box) -> None:
    """Sets a box's lines and its size. The first line is the title, one that begins with a tab is in type for code."""
    lines = []
    if box.kind in ("variable", "placeholder"):
        lines = [cut(box.called), *([cut(box.detail)] if box.detail else [])]
    elif box.kind == "constant":
        named = box.notebook or box.name
        lines = [cut(f"{named} = {box.detail}" if named and box.detail else box.detail or named or "constant")]
    elif box.kind == "group":
        lines = [cut(box.name), cut(box.detail), cut(box.op, 40)]
    elif box.kind == "update":
        lines = [cut(f"{box.op} {box.detail}")]
    else:
        lines = [cut(box.op)]
        if box.notebook or box.name:
            lines.append(cut(box.called))
        if box.detail:
            lines.append(cut(box.detail, 40))
    if box.part == "gradient":
        lines.append("gradient")
    if box.type and not (box.kind == "constant" and box.shape == ()):
        lines.append("\t" + cut(box.type, 40))
    if box.time is not None:
        lines.append(str(box.time))
    box.lines = lines
    widths = [width_of(lines[0], TITLE_SIZE) * 1.06]
    widths += [width_of(text.lstrip("\t"), TEXT_SIZE, text.startswith("\t")) for text in lines[1:]]
    box.width = round(max(widths) + 2 * PADDING, 1)
    box.height = round(len(lines) * LINE + 2 * PADDING - 5, 1)


def make_room(graph: Graph) -> None:
    """Measures all boxes; those whose arrows say something are as wide as these words."""
    words: dict[str, list[str]] = {}
    for (_, end), label in graph.arrows.items():
        words.setdefault(end, []).append(cut(label))
    for box in graph.boxes.values():
        measure(box)
        labels = words.get(box.key, [])
        if any(labels):
            widest = max(width_of(label, LABEL_SIZE) for label in labels)
            box.width = max(box.width, (widest + 10.0) * len(labels) + 24.0)


def tooltip(box: Box) -> str:
    """The text on a box's tooltip: everything known of it, a line for each fact."""
    lines = [f"{box.name}: {box.op}" if box.kind == "group" else f"{box.called}: {box.op}"]
    if box.kind not in ("op", "group"):
        lines[0] = f"{box.called}: {WORDS[box.kind]}"
    if box.name and box.name != box.called:
        lines.append(f"named {box.name}")
    lines += [text for text in (box.detail, box.type) if text]
    if box.part == "gradient":
        lines.append("made by K.gradients")
    if box.scope:
        lines.append(f"scope {box.scope}")
    if box.time is not None:
        what = "all its ops" if box.kind == "group" else "this op"
        lines.append(f"{what} alone: {box.time} of all ops' time")
    if box.source is not None:
        lines.append(f"{box.where}: {clean(box.source.text)}".rstrip(": "))
    return "\n".join(lines)


def picture(
    graph: Graph,
    points: Mapping[tuple[str, str], Sequence[tuple[float, float]]],
    width: float,
    height: float,
    title: str,
    note: str,
) -> Picture:
    """The whole SVG, readable in light and dark pages, with a tooltip for each box and a legend."""
    kinds = [kind for kind in WORDS if any(box.kind == kind for box in graph.boxes.values())]
    dashed = any(box.part == "gradient" for box in graph.boxes.values())
    legend, wide = _legend(kinds, dashed, note, height)
    whole, tall = max(width, wide), height + 30
    shift = (whole - width) / 2
    label = f"{title}: {len(graph.boxes)} boxes and {len(points)} arrows" + (f"; {note}" if note else "")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}" '
        f'width="{whole:.0f}" height="{tall:.0f}" viewBox="0 0 {whole:.0f} {tall:.0f}" font-family="{SANS}">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{whole:.0f}" height="{tall:.0f}" rx="8" fill="{BACKGROUND}" stroke="#d5dae1"/>',
        f'<g transform="translate({shift:.1f} 0)">',
    ]
    for (start, end), path in points.items():
        parts.append(_arrow(path, graph.arrows[start, end]))
    parts += [_drawn(box, box.key in graph.outputs) for box in graph.boxes.values()]
    return Picture("".join([*parts, "</g>", legend, "</svg>"]), label, shift)


class Picture(NamedTuple):
    """SVG text, what it shows in words, and by how much its boxes stand further to the right."""

    text: str
    label: str
    shift: float


def embedded(drawn: Picture, graph: Graph) -> str:
    """The picture as an HTML image, with a tooltip for each box.

    Pages that show notebooks of others (JupyterLab before they are trusted, GitHub) take `<svg>` out of HTML, and leave
    an image in whose address the picture stands itself; so tooltips are areas over it.
    """
    data = base64.b64encode(drawn.text.encode()).decode("ascii")
    name = f"kernelk-{hashlib.sha256(data.encode()).hexdigest()[:12]}"
    areas = []
    for box in graph.boxes.values():
        x, y = box.x + drawn.shift, box.y
        corners = f"{x:.0f},{y:.0f},{x + box.width:.0f},{y + box.height:.0f}"
        words = escape(tooltip(box)).replace("\n", "&#10;")
        areas.append(f'<area shape="rect" coords="{corners}" title="{words}" alt="{words}">')
    return (
        f'<div style="overflow:auto"><img src="data:image/svg+xml;base64,{data}" alt="{escape(drawn.label)}" '
        f'usemap="#{name}" style="max-width:none"><map name="{name}">{"".join(areas)}</map></div>'
    )


def _arrow(path: Sequence[tuple[float, float]], label: str) -> str:
    (x, y), curve = path[0], f"M{path[0][0]:.1f} {path[0][1]:.1f}"
    down = path[-1][1] >= path[0][1]
    for to_x, to_y in path[1:]:
        if abs(to_x - x) < 0.5:
            curve += f"L{to_x:.1f} {to_y:.1f}"
        else:
            middle = (y + to_y) / 2
            curve += f"C{x:.1f} {middle:.1f} {to_x:.1f} {middle:.1f} {to_x:.1f} {to_y:.1f}"
        x, y = to_x, to_y
    # Each arrow has its own head: a marker's name would clash on pages with several pictures.
    head = -6.5 if down else 6.5
    drawn = f'<path d="{curve}" fill="none" stroke="{ARROW}" stroke-width="1.4"/>'
    drawn += f'<path d="M{x:.1f} {y:.1f}l-4 {head}h8z" fill="{ARROW}"/>'
    if label:
        # With a background rectangle, since not all programs support `paint-order`.
        at = f'x="{x:.1f}" y="{y - 11:.1f}" font-size="{LABEL_SIZE:.0f}" text-anchor="middle"'
        text = escape(cut(label))
        drawn += f'<text {at} stroke="{BACKGROUND}" stroke-width="4">{text}</text>'
        drawn += f'<text {at} fill="{QUIET}">{text}</text>'
    return drawn


def _drawn(box: Box, output: bool) -> str:
    fill, border = COLOURS[box.kind]
    if box.time is not None:
        # From white to amber by the square root, so that a few large values don't leave all others white.
        strength = min(1.0, box.time.share) ** 0.5
        fill = "#" + "".join(f"{round(255 + (c - 255) * strength):02x}" for c in (0xFF, 0xA6, 0x4D))
    x, y, w, h = box.x, box.y, box.width, box.height
    style = f'fill="{fill}" stroke="{border}" stroke-width="{2.6 if output else 1.3}"'
    if box.part == "gradient":
        style += ' stroke-dasharray="6 3"'
    elif box.kind == "constant":
        style += ' stroke-dasharray="2 2"'
    corner = h / 2 if box.kind == "placeholder" else CORNER
    parts = [f"<g><title>{escape(tooltip(box))}</title>"]
    if box.kind == "group":
        parts += [
            f'<rect x="{x + d:.1f}" y="{y + d:.1f}" width="{w}" height="{h}" rx="{CORNER}" {style}/>' for d in (6, 3)
        ]
    parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{w}" height="{h}" rx="{min(corner, 18):.1f}" {style}/>')
    if box.kind == "variable":
        parts.append(f'<rect x="{x:.1f}" y="{y + 5:.1f}" width="5" height="{h - 10:.1f}" fill="{border}"/>')
    if box.kind == "loop":
        parts.append(
            f'<rect x="{x + 3:.1f}" y="{y + 3:.1f}" width="{w - 6:.1f}" height="{h - 6:.1f}" rx="4" fill="none" '
            f'stroke="{border}"/>'
        )
    for i, text in enumerate(box.lines):
        at = f'x="{x + w / 2:.1f}" y="{y + PADDING + 11 + i * LINE - 2:.1f}" text-anchor="middle"'
        if not i:
            parts.append(
                f'<text {at} font-size="{TITLE_SIZE:.0f}" font-weight="600" fill="{TEXT}">{escape(text)}</text>'
            )
        elif text.startswith("\t"):
            parts.append(
                f'<text {at} font-size="{TEXT_SIZE:.0f}" font-family="{MONO}" fill="{TEXT}">{escape(text[1:])}</text>'
            )
        else:
            parts.append(f'<text {at} font-size="{TEXT_SIZE:.0f}" fill="{QUIET}">{escape(text)}</text>')
    return "".join([*parts, "</g>"])


def _legend(kinds: Sequence[str], dashed: bool, note: str, y: float) -> tuple[str, float]:
    """The legend of the kinds, in one line under the picture, and its width."""
    parts, x = [], 16.0
    entries = [(*COLOURS[kind], WORDS[kind], "2 2" if kind == "constant" else "") for kind in kinds]
    if dashed:
        entries.append(("#ffffff", COLOURS["op"][1], "made by K.gradients", "4 2"))
    for fill, border, words, dashes in entries:
        dash = f' stroke-dasharray="{dashes}"' if dashes else ""
        parts.append(
            f'<rect x="{x:.1f}" y="{y + 2:.1f}" width="16" height="12" rx="3" fill="{fill}" stroke="{border}"{dash}/>'
        )
        parts.append(f'<text x="{x + 22:.1f}" y="{y + 12:.1f}" font-size="12" fill="{QUIET}">{escape(words)}</text>')
        x += 22 + width_of(words, 12) + 16
    if note:
        parts.append(f'<text x="{x:.1f}" y="{y + 12:.1f}" font-size="12" fill="{QUIET}">{escape(note)}</text>')
        x += width_of(note, 12) + 16
    return "".join(parts), x
