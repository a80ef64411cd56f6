"""A pipeline as SVG: no script, no font to load, legible on light and dark pages."""

from __future__ import annotations

from xml.sax.saxutils import escape, quoteattr

from deploy.graph.layout import layout
from deploy.graph.picture import Arrow, Box, Picture

_CHARACTER, _LINE, _PADDING, _GAP, _LANE, _BETWEEN, _MARGIN, _TITLE = 7.3, 17.0, 14.0, 28.0, 18.0, 54.0, 20.0, 34.0
_COLOURS = {
    "input": ("#e8eef7", "#5b7aa9"),
    "output": ("#e8eef7", "#5b7aa9"),
    "model": ("#e6f4ea", "#3c8a55"),
    "reduce": ("#fdf0dc", "#c07f1d"),
    "map": ("#f1e9f8", "#8457ab"),
    "gather": ("#f1e9f8", "#8457ab"),
}
_Point = tuple[float, float]


def draw(picture: Picture) -> str:
    """The picture as an SVG document."""
    boxes = {box.name: box for box in picture.boxes}
    arrows = [(arrow.source, arrow.target) for arrow in picture.arrows]
    placed = layout({name: _width(box) for name, box in boxes.items()}, arrows, _GAP, _LANE)
    tops: dict[str, _Point] = {}
    bottoms: dict[str, _Point] = {}
    shapes: list[str] = []
    y = _MARGIN + _TITLE
    for layer in placed.layers:
        height = max(_height(boxes[slot.name]) for slot in layer if not slot.is_lane)
        for slot in layer:
            x = _MARGIN + slot.middle
            own = height if slot.is_lane else _height(boxes[slot.name])
            above = y + (height - own) / 2
            tops[slot.name], bottoms[slot.name] = (x, above), (x, above + own)
            if not slot.is_lane:
                shapes.append(_box(boxes[slot.name], x, above))
        y += height + _BETWEEN
    chains: dict[int, list[str]] = {}
    for link in placed.links:
        chains.setdefault(link.arrow, [link.source]).append(link.target)
    lines = [_arrow(picture.arrows[number], chain, tops, bottoms) for number, chain in sorted(chains.items())]
    width, height = placed.width + 2 * _MARGIN, y - _BETWEEN + _MARGIN
    return "\n".join(
        [
            (
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
                f'height="{height:.0f}" font-family="ui-monospace, Menlo, Consolas, monospace" font-size="12">'
            ),
            (
                '<defs><marker id="end" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
                'orient="auto"><path d="M0 0.5 L8 4 L0 7.5 z" fill="#667"/></marker></defs>'
            ),
            f'<rect width="{width:.0f}" height="{height:.0f}" rx="8" fill="#ffffff"/>',
            (
                f'<text x="{_MARGIN}" y="{_MARGIN + 10}" font-size="15" font-weight="bold" fill="#223">'
                f"{escape(picture.title)}</text>"
            ),
            *lines,
            *shapes,
            "</svg>\n",
        ]
    )


def _width(box: Box) -> float:
    return max(map(len, box.lines)) * _CHARACTER + 2 * _PADDING


def _height(box: Box) -> float:
    return len(box.lines) * _LINE + 16


def _box(box: Box, x: float, y: float) -> str:
    fill, edge = _COLOURS[box.kind]
    width, height = _width(box), _height(box)
    dash = ' stroke-dasharray="5 3"' if box.scope else ""
    thick = 2.6 if box.is_join else 1.2
    parts = [
        (
            f'<g><rect x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="6" '
            f'fill="{fill}" stroke="{edge}" stroke-width="{thick}"{dash}/>'
        )
    ]
    for index, line in enumerate(box.lines):
        style = 'font-weight="bold" fill="#223"' if index == 0 else 'fill="#556"'
        at = y + 20 + index * _LINE
        parts.append(f'<text x="{x:.1f}" y="{at:.1f}" text-anchor="middle" {style}>{escape(line)}</text>')
    return "".join([*parts, "</g>"])


def _arrow(arrow: Arrow, chain: list[str], tops: dict[str, _Point], bottoms: dict[str, _Point]) -> str:
    x, y = bottoms[chain[0]]
    path = [f"M{x:.1f} {y:.1f}"]
    for name in chain[1:]:
        to_x, to_y = tops[name]
        half = (y + to_y) / 2
        path.append(f"C{x:.1f} {half:.1f} {to_x:.1f} {half:.1f} {to_x:.1f} {to_y:.1f}")
        x, y = bottoms[name]
        if name != chain[-1]:
            path.append(f"L{x:.1f} {y:.1f}")
    dash = ' stroke-dasharray="4 4"' if arrow.is_condition else ""
    title = f"{arrow.source}: {', '.join(arrow.tensors)} → {arrow.target}"
    return (
        f'<path d={quoteattr(" ".join(path))} fill="none" stroke="#667" stroke-width="1.3"{dash} '
        f'marker-end="url(#end)"><title>{escape(title)}</title></path>'
    )
