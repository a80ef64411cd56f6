"""The order in which a job's records are shown: parents before children, then time, then rows of a map by number. Pure.

Time alone does not say it. A millisecond holds several records, each has the time of its own partition's broker, whose
clocks differ, and the branches of a fan are asked at once. What led to a record is said by the record: the step that
ended with it, its attempt, the join that it is for.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from deploy.cli.timeline import Line

_RANKS: Final = ("submitted", "part", "asked", "retry", "dead", "partial", "response", "marker")
"""Of one millisecond: parts before what their join asks, and a join's marker, written when all else is, last."""


def in_order(lines: Sequence[Line]) -> list[Line]:
    """The same lines, each behind those that led to it as far as they are there."""
    parents = _parents(lines)
    missing = [len(known) for known in parents]
    children: list[list[int]] = [[] for _ in lines]
    for child, known in enumerate(parents):
        for parent in known:
            children[parent].append(child)
    keys = [_key(line, number) for number, line in enumerate(lines)]
    ready = [key for key, count in zip(keys, missing, strict=True) if not count]
    heapify(ready)
    left = set(range(len(lines)))
    found: list[Line] = []
    while left:
        number = heappop(ready)[-1] if ready else min(keys[one] for one in left)[-1]  # headers that go in circles
        if number not in left:
            continue
        left.remove(number)
        found.append(lines[number])
        for child in children[number]:
            missing[child] -= 1
            if not missing[child]:
                heappush(ready, keys[child])
    return found


def _key(line: Line, number: int) -> tuple[int, int, tuple[int, ...], str, int]:
    rank = _RANKS.index(line.kind) if line.kind in _RANKS else len(_RANKS)
    return line.at_ms, rank, line.branch, line.step, number


def _parents(lines: Sequence[Line]) -> list[set[int]]:
    """The numbers of the lines that each came of."""
    first: dict[Hashable, int] = {}
    for number, line in enumerate(lines):
        for name in _names(line):
            first.setdefault(name, number)
    parents = []
    for number, line in enumerate(lines):
        known = next((first[name] for name in _origins(line) if name in first), number)
        parents.append({known} - {number})
    return parents


def _names(line: Line) -> Iterable[Hashable]:
    """What others may call a line, or one of several like it, when they came of it."""
    if line.kind in {"asked", "retry"}:
        yield line.kind, line.step, line.branch, _attempt(line)
    if line.kind in {"asked", "part", "submitted"}:
        yield line.kind, line.step, line.branch
        yield line.kind


def _origins(line: Line) -> Iterable[Hashable]:
    """What a line came of, the likeliest first."""
    if line.kind in {"retry", "dead"}:
        yield "asked", line.step, line.branch, _attempt(line) - (line.kind == "retry")
        yield "asked", line.step, line.branch
    elif line.kind == "marker":
        yield "part", line.step, line.branch
    elif line.kind == "asked" and _attempt(line) > 1:
        yield "retry", line.step, line.branch, _attempt(line)
    if line.ran is not None:
        yield "asked", line.ran.step, line.ran.branch, line.ran.receipt.attempt
        yield "asked", line.ran.step, line.ran.branch
    elif line.receipt is not None:
        yield "asked", "", (), line.receipt.attempt
    if line.kind != "submitted":
        yield "submitted"
    if line.kind in {"partial", "response"}:
        yield "asked"


def _attempt(line: Line) -> int:
    return 1 if line.headers is None else line.headers.attempt
