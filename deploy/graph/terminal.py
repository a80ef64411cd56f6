"""A pipeline in characters: boxes in layers, arrows as lines between them that meet in corners and crossings."""

from __future__ import annotations

from deploy.graph.layout import Layout, layout
from deploy.graph.picture import Box, Picture

_UP, _DOWN, _LEFT, _RIGHT = 1, 2, 4, 8
_LINES = " ╵╷│╴┘┐┤╶└┌├─┴┬┼"
_GAP, _LANE = 3, 1


class _Grid:
    def __init__(self) -> None:
        self._lines: dict[tuple[int, int], int] = {}
        self._texts: dict[tuple[int, int], str] = {}

    def text(self, row: int, column: int, text: str) -> None:
        for index, character in enumerate(text):
            self._texts[row, column + index] = character

    def down(self, column: int, first: int, last: int) -> None:
        """A line from above the row `first` to the row `last`."""
        for row in range(first, last + 1):
            self._add(row, column, _UP | (_DOWN if row < last else 0))

    def onwards(self, row: int, column: int) -> None:
        """Go on below."""
        self._add(row, column, _DOWN)

    def across(self, row: int, first: int, last: int) -> None:
        first, last = min(first, last), max(first, last)
        for column in range(first, last + 1):
            self._add(row, column, (_LEFT if column > first else 0) | (_RIGHT if column < last else 0))

    def _add(self, row: int, column: int, directions: int) -> None:
        self._lines[row, column] = self._lines.get((row, column), 0) | directions

    def __str__(self) -> str:
        places = {**{place: _LINES[directions] for place, directions in self._lines.items()}, **self._texts}
        height = max(row for row, _ in places) + 1
        rows = [[" "] * (max((column for at, column in places if at == row), default=0) + 1) for row in range(height)]
        for (row, column), character in places.items():
            rows[row][column] = character
        return "\n".join("".join(row).rstrip() for row in rows)


def draw(picture: Picture) -> str:
    """The picture as text."""
    boxes = {box.name: box for box in picture.boxes}
    arrows = [(arrow.source, arrow.target) for arrow in picture.arrows]
    placed = layout({name: _width(box) for name, box in boxes.items()}, arrows, _GAP, _LANE)
    columns = {slot.name: round(slot.middle) for layer in placed.layers for slot in layer}
    grid, top = _Grid(), 0
    for index, layer in enumerate(placed.layers):
        height = max((len(boxes[slot.name].lines) + 2 for slot in layer if not slot.is_lane), default=1)
        tracks = _tracks(placed, index, columns)
        below, depth = top + height, len(set(tracks.values()))
        for slot in layer:
            here = boxes.get(slot.name)
            bottom = top + (len(here.lines) + 1 if here else 0)
            if here is not None:
                _box(grid, here, columns[slot.name], top)
            for link in placed.links:
                if link.source == slot.name:
                    track = below + tracks[link.source]
                    grid.down(columns[link.source], bottom + 1 if here else top, track)
                    grid.across(track, columns[link.source], columns[link.target])
                    grid.down(columns[link.target], track + 1, below + depth + 1)
                    grid.onwards(track, columns[link.target])
                    if link.target not in boxes:
                        grid.onwards(below + depth + 1, columns[link.target])
        for slot in placed.layers[index + 1] if index + 1 < len(placed.layers) else ():
            if not slot.is_lane:
                grid.text(below + depth + 1, columns[slot.name], "▼")
        top = below + depth + 2
    return str(grid)


def _tracks(placed: Layout, index: int, columns: dict[str, int]) -> dict[str, int]:
    """A row between two layers for each slot whose arrows turn; straight ones need none of their own."""
    sources = [slot.name for slot in placed.layers[index]]
    spans: dict[str, tuple[int, int]] = {}
    for link in placed.links:
        if link.source in sources:
            first, last = spans.get(link.source, (columns[link.source], columns[link.source]))
            spans[link.source] = (min(first, columns[link.target]), max(last, columns[link.target]))
    found: dict[str, int] = {}
    taken: list[list[tuple[int, int]]] = []
    for name, (first, last) in sorted(spans.items(), key=lambda entry: entry[1]):
        row = next(
            (row for row, used in enumerate(taken) if all(last < begin or first > end for begin, end in used)),
            len(taken),
        )
        if row == len(taken):
            taken.append([])
        taken[row].append((first, last))
        found[name] = row
    return found


def _width(box: Box) -> int:
    return max(map(len, box.lines)) + 4


def _box(grid: _Grid, box: Box, middle: int, top: int) -> None:
    width = _width(box)
    left = middle - width // 2
    edge = "═" if box.is_join else "─"
    corners = "╔╗╚╝" if box.is_join else "╭╮╰╯"
    side = "║" if box.is_join else "│"
    grid.text(top, left, corners[0] + edge * (width - 2) + corners[1])
    for index, line in enumerate(box.lines, 1):
        grid.text(top + index, left, f"{side} {line.center(width - 4)} {side}")
    grid.text(top + len(box.lines) + 1, left, corners[2] + edge * (width - 2) + corners[3])
