"""The simulator's outcomes as bars, in SVG written by hand: nothing to install, and a picture that diffs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

_colours = ("#0b7285", "#dee2e6", "#ced4da", "#adb5bd", "#868e96")
_WIDTH, _LEFT, _LEGEND, _PANEL, _BARS = 1000, 56, 40, 230, 150
_BAR, _GAP = 26, 2


class Panel(NamedTuple):
    """Bars of one quantity by load and policy: `top` is where a line is drawn, `form` how a value is written."""

    title: str
    bars: Sequence[tuple[str, str, float]]
    top: float
    form: str


def draw(panels: Sequence[Panel]) -> str:
    """The panels one below the other, with one legend."""
    height = _LEGEND + _PANEL * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
    ]
    names = list(dict.fromkeys(policy for panel in panels for _, policy, _ in panel.bars))
    for place, (name, colour) in enumerate(zip(names, _colours, strict=False)):
        x = _LEFT + place * 120
        parts.append(f'<rect x="{x}" y="12" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 18, 22, name, "start"))
    for number, panel in enumerate(panels):
        parts += _panel(panel, _LEGEND + number * _PANEL)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _panel(panel: Panel, above: int) -> list[str]:
    top = above + 44
    floor = top + _BARS
    parts = [
        _text(_LEFT, above + 16, panel.title, "start"),
        f'<line x1="{_LEFT}" y1="{top}" x2="{_WIDTH - 10}" y2="{top}" stroke="#e03131" stroke-dasharray="4 4"/>',
        _text(_LEFT - 6, top + 4, panel.form.format(panel.top), "end"),
        _text(_LEFT - 6, floor + 4, "0", "end"),
        f'<line x1="{_LEFT}" y1="{floor}" x2="{_WIDTH - 10}" y2="{floor}" stroke="#343a40"/>',
    ]
    left = _LEFT + 8
    for load, group in groupby(panel.bars, key=lambda bar: bar[0]):
        bars = list(group)
        width = len(bars) * (_BAR + _GAP) - _GAP
        for place, ((_, _, value), colour) in enumerate(zip(bars, _colours, strict=False)):
            x, tall = left + place * (_BAR + _GAP), value * _BARS / panel.top
            parts.append(f'<rect x="{x}" y="{floor - tall:.1f}" width="{_BAR}" height="{tall:.1f}" fill="{colour}"/>')
            parts.append(_text(x + _BAR / 2, floor - tall - 4, panel.form.format(value), "middle", size=9))
        parts.append(_text(left + width / 2, floor + 18, load, "middle"))
        left += width + 18
    return parts


def _text(x: float, y: float, text: str, anchor: str, *, size: int = 12) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:g}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#343a40">{escaped}</text>'
