"""Layers for a graph without cycles: each box below all that it depends on, few crossings, short arrows.

Boxes are layered by their longest path from the input; an arrow over several layers is led through each of them by a
lane of its own. Within the layers the order is improved by sweeps, each box going to the mean of its neighbours, and
then boxes are pulled towards their neighbours as far as those beside them let them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

_SWEEPS = 12


class Slot(NamedTuple):
    """A box, or the lane of an arrow, in a layer: its middle and its width."""

    name: str
    middle: float
    width: float
    is_lane: bool


class Link(NamedTuple):
    """A piece of an arrow, from a slot to one in the next layer. `arrow`: its number."""

    source: str
    target: str
    arrow: int


class Layout(NamedTuple):
    """Layers from top to bottom, each from left to right."""

    layers: tuple[tuple[Slot, ...], ...]
    links: tuple[Link, ...]
    width: float


def layout(sizes: Mapping[str, float], arrows: Sequence[tuple[str, str]], gap: float, lane: float) -> Layout:
    """Place boxes of these widths, given in topological order; `gap` between them, `lane` wide where arrows pass."""
    levels: dict[str, int] = {}
    for name in sizes:
        levels[name] = max((levels[source] + 1 for source, target in arrows if target == name), default=0)
    widths = dict(sizes)
    links: list[Link] = []
    for number, (source, target) in enumerate(arrows):
        chain = [source]
        for level in range(levels[source] + 1, levels[target]):
            through = f"\0{number}/{level}"
            levels[through], widths[through] = level, lane
            chain.append(through)
        links += [Link(first, second, number) for first, second in pairwise([*chain, target])]
    order: list[list[str]] = [[] for _ in range(max(levels.values()) + 1)]
    for name, level in levels.items():
        order[level].append(name)
    beside = _neighbours(links)
    _untangle(order, beside)
    middles = _place(order, widths, beside, gap)
    left = min(middles[name] - widths[name] / 2 for name in middles)
    layers = tuple(
        tuple(Slot(name, middles[name] - left, widths[name], name.startswith("\0")) for name in layer)
        for layer in order
    )
    return Layout(layers, tuple(links), max(slot.middle + slot.width / 2 for layer in layers for slot in layer))


_Neighbours = tuple[dict[str, list[str]], dict[str, list[str]]]


def _neighbours(links: Sequence[Link]) -> _Neighbours:
    above: dict[str, list[str]] = {}
    below: dict[str, list[str]] = {}
    for link in links:
        above.setdefault(link.target, []).append(link.source)
        below.setdefault(link.source, []).append(link.target)
    return above, below


def _untangle(order: list[list[str]], beside: _Neighbours) -> None:
    for sweep in range(_SWEEPS):
        side = beside[sweep % 2]
        for layer in order if sweep % 2 == 0 else reversed(order):
            at = {name: index / max(1, len(each)) for each in order for index, name in enumerate(each)}
            means = {name: _mean([at[other] for other in side.get(name, ())], at[name]) for name in layer}
            layer.sort(key=means.__getitem__)


def _mean(values: Sequence[float], default: float) -> float:
    return sum(values) / len(values) if values else default


def _place(
    order: Sequence[Sequence[str]], widths: Mapping[str, float], beside: _Neighbours, gap: float
) -> dict[str, float]:
    middles: dict[str, float] = {}
    for layer in order:
        right = 0.0
        for name in layer:
            middles[name] = right + widths[name] / 2
            right += widths[name] + gap
    for sweep in range(_SWEEPS):
        side = beside[sweep % 2]
        for layer in order if sweep % 2 == 0 else reversed(order):
            wanted = [_mean([middles[other] for other in side.get(name, ())], middles[name]) for name in layer]
            _settle(layer, wanted, widths, gap, middles)
    return middles


def _settle(
    layer: Sequence[str], wanted: Sequence[float], widths: Mapping[str, float], gap: float, middles: dict[str, float]
) -> None:
    """As near to what is wanted as the order and the widths allow: neighbours that meet move as one block."""
    blocks: list[tuple[float, int, int]] = []  # where its first box wants to be, on average; first; last
    offsets = [0.0]
    for first, second in pairwise(layer):
        offsets.append(offsets[-1] + (widths[first] + widths[second]) / 2 + gap)
    for index in range(len(layer)):
        block = (wanted[index] - offsets[index], index, index)
        while blocks and blocks[-1][0] > block[0]:
            before = blocks.pop()
            size, other = block[2] - block[1] + 1, before[2] - before[1] + 1
            block = ((block[0] * size + before[0] * other) / (size + other), before[1], block[2])
        blocks.append(block)
    for start, begin, end in blocks:
        for index in range(begin, end + 1):
            middles[layer[index]] = start + offsets[index]
