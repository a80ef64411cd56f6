"""The simulator's outcomes as bars, in SVG written by hand: nothing to install, and a picture that diffs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

_colours = ("#0b7285", "#ced4da", "#adb5bd", "#868e96", "#495057")
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 860, 360, 70, 56, 50
_BAR, _GAP = 40, 6


class Bar(Protocol):
    """An outcome as far as the picture shows it."""

    @property
    def load(self) -> str: ...

    @property
    def policy(self) -> str: ...

    @property
    def goodput(self) -> float: ...


def draw(outcomes: Sequence[Bar], peak: float) -> str:
    """Goodput by load and policy, with a line at the engine's peak."""
    floor = _HEIGHT - _BOTTOM
    scale = (floor - _TOP) / peak
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        f'<line x1="{_LEFT}" y1="{_TOP}" x2="{_WIDTH - 10}" y2="{_TOP}" stroke="#e03131" stroke-dasharray="4 4"/>',
        _text(_LEFT - 6, _TOP + 4, f"{peak:,.0f}", "end"),
        _text(_LEFT - 6, floor + 4, "0", "end"),
        _text(_WIDTH - 10, _TOP - 6, "the engine's peak", "end"),
        f'<line x1="{_LEFT}" y1="{floor}" x2="{_WIDTH - 10}" y2="{floor}" stroke="#343a40"/>',
    ]
    left = _LEFT + 20
    for load, bars in groupby(outcomes, key=lambda outcome: outcome.load):
        group = list(bars)
        width = len(group) * (_BAR + _GAP) - _GAP
        for place, (bar, colour) in enumerate(zip(group, _colours, strict=False)):
            x, height = left + place * (_BAR + _GAP), bar.goodput * scale
            parts.append(
                f'<rect x="{x}" y="{floor - height:.1f}" width="{_BAR}" height="{height:.1f}" fill="{colour}"/>'
            )
            parts.append(_text(x + _BAR / 2, floor - height - 4, f"{bar.goodput:,.0f}", "middle", size=10))
        parts.append(_text(left + width / 2, floor + 20, load, "middle"))
        left += width + 32
    names = list(dict.fromkeys(outcome.policy for outcome in outcomes))
    for place, (name, colour) in enumerate(zip(names, _colours, strict=False)):
        x = _LEFT + 20 + place * 110
        parts.append(f'<rect x="{x}" y="12" width="12" height="12" fill="{colour}"/>')
        parts.append(_text(x + 18, 22, name, "start"))
    parts += [_text(_LEFT + 20, _HEIGHT - 8, "answers in time per second, by arrivals", "start"), "</svg>"]
    return "\n".join(parts) + "\n"


def _text(x: float, y: float, text: str, anchor: str, *, size: int = 12) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:g}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="#343a40">{escaped}</text>'
