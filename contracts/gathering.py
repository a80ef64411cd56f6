"""Gathers: what the rows of a map make together again.

A gather waits for the map's own part, which says how many rows there are (or that the map was skipped or failed), and
for one part of each row. Skipped rows are left out; failed ones are the gather's failure, unless its `require` does
without them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from contracts import rows
from contracts.environment import failure_of, missing_of
from contracts.evaluate import Result, attempt, own_failure, too_few
from contracts.messages import Status
from contracts.plans import Failure, Node, Outcome, Part, Skip, Value
from contracts.tensors import Tensor

MAX_NAMED_ROWS = 16
"""Missing rows that are named one by one; the others are counted."""

Parts = Mapping[str | int, Part]


class Rows(NamedTuple):
    """The rows of a gather by what became of them, each in the order of arrival."""

    values: list[int]
    failures: list[tuple[int, Failure]]
    absent: list[int]


def width_part(node: Node, parts: Parts) -> Part | None:
    """The map's own part."""
    return parts.get(node.branches[0])


def is_complete(node: Node, parts: Parts) -> bool:
    """Whether the map and all of its rows are accounted for."""
    head = width_part(node, parts)
    return head is not None and len(parts) > head.width


def decisive(node: Node, parts: Parts) -> int | None:
    """How many of the parts, by arrival, decide the gather; None when these do not yet."""
    head = width_part(node, parts)
    if head is None:
        return None
    if head.kind != "width":
        return len(parts)
    if not node.quorum and not node.is_fail_fast:
        return len(parts) if is_complete(node, parts) else None
    is_whole = is_complete(node, parts)
    if node.quorum > len(parts) and not is_whole:
        return None
    head_at, decided_at, values = 0, 0, 0
    for position, (source, part) in enumerate(parts.items(), 1):
        if source == node.branches[0]:
            head_at = position
        values += part.kind == "value"
        if not decided_at and (values == node.quorum if node.quorum else part.kind == "error"):
            decided_at = position
        if head_at and decided_at:
            return max(head_at, decided_at)
    return len(parts) if is_whole else None


def gathered(node: Node, parts: Parts, *, is_late: bool) -> Result:
    """What the gather is, from the parts that decide it (or all that came in time)."""
    head = parts[node.branches[0]]
    if head.kind != "width":
        return Result(_without_rows(node, head))
    if not head.width:
        return Result(Value({declared.name: rows.empty(declared, node.axis) for declared in node.declared}))
    found = _sort(node, parts, head.width, is_late=is_late)
    missing = [*(index for index, _ in found.failures), *found.absent]
    values = found.values
    if node.quorum:
        missing += values[node.quorum :]
        values = values[: node.quorum]
    if found.failures and node.require == "all":
        return Result(own_failure(node, found.failures[0][1]))
    if len(values) < max(1, node.quorum):
        if not found.failures:
            return Result(Skip())
        return Result(own_failure(node, too_few(node, len(values), found.failures[0][1])))
    return Result(attempt(node, lambda: _together(node, parts, sorted(values))), _named(node, parts, missing))


def _without_rows(node: Node, head: Part) -> Outcome:
    """What a gather is when its map was skipped or failed."""
    if head.kind == "skip":
        return Skip()
    failure = head.failure or Failure(Status.INTERNAL, "a failed map did not say why", node.name)
    return own_failure(node, failure) if failure.step == node.branches[0] else failure


def _sort(node: Node, parts: Parts, width: int, *, is_late: bool) -> Rows:
    found = Rows([], [], [])
    for source, part in parts.items():
        if not isinstance(source, int):
            continue
        if part.kind == "error":
            failure = part.failure or failure_of(part.env, node.branches[1])
            found.failures.append((source, failure or Failure(Status.INTERNAL, "a failed row", node.name)))
        elif part.kind == "value":
            found.values.append(source)
    absent = [index for index in range(width) if index not in parts] if len(parts) <= width else []
    if not is_late:
        return found._replace(absent=absent)
    late = Failure(Status.DEADLINE_EXCEEDED, "a row did not end in time", node.name, retryable=True)
    return found._replace(failures=[*found.failures, *((index, late) for index in absent)])


def _together(node: Node, parts: Parts, values: list[int]) -> Value | Failure:
    tensors: dict[str, Tensor] = {}
    for declared in node.declared:
        key = f"{node.branches[1]}.{declared.name}"
        found = [parts[index].env[key] for index in values if key in parts[index].env]
        if found:
            tensors[declared.name] = rows.join(declared.name, found, node.axis)
    return Value(tensors)


def _named(node: Node, parts: Parts, missing: list[int]) -> tuple[str, ...]:
    """The rows that were done without, and what the rows themselves did without."""
    names = [f"{node.name}[{index}]" for index in sorted(missing)[:MAX_NAMED_ROWS]]
    if len(missing) > MAX_NAMED_ROWS:
        names.append(f"{node.name}[+{len(missing) - MAX_NAMED_ROWS}]")
    inner = {name for part in parts.values() for name in missing_of(part.env)}
    return (*names, *sorted(inner))
