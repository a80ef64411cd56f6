"""Parts that no worker would send: whoever may write to a joins topic must not stop those who read it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from contracts.adapters.kafka import Record
from contracts.messages import Hop, RequestHeaders
from contracts.parts import MarkerBody, PartBody, PartHeaders, PartKind, encode_part
from contracts.plans import Answer, Plan
from contracts.tensors import Tensor
from tests.pipeline_kit import compiled
from workers.joiner.join import Arrival, Fire, Mark, Patience
from workers.joiner.records import arrival_of, emissions_of, is_ready
from workers.joiner.table import JoinTable

NOW = 1_000_000
INPUTS = [{"name": "a", "datatype": "FP32", "shape": [-1, 2]}]
ROWS = compiled(
    {
        "name": "rows", "version": 1, "inputs": INPUTS, "outputs": {"y": "each.y"},
        "steps": {
            "each": {
                "map": {"over": {"r": "input.a"}, "max_rows": 100}, "require": {"quorum": 4},
                "steps": {"one": {"model": "m@1", "inputs": {"x": "row.r"}}}, "outputs": {"y": "one.y"},
            }
        },
    }
)  # fmt: skip
ANY = compiled(
    {
        "name": "any", "version": 1, "inputs": INPUTS, "outputs": {"y": "first.y"},
        "steps": {
            "a": {"model": "m@1", "inputs": {"x": "input.a"}},
            "b": {"model": "n@1", "inputs": {"x": "input.a"}},
            "first": {"reduce": "first_of", "inputs": {"y": ["a.y", "b.y"]}, "require": "first_of"},
        },
    }
)  # fmt: skip
GATHER = next(node for node in ROWS.nodes if node.kind == "gather")
ROW = (Tensor.from_numpy(f"{GATHER.branches[1]}.y", np.zeros((1, 2), np.float32)),)


def part(
    plan: Plan,
    join: str,
    source: str,
    *,
    kind: PartKind = PartKind.VALUE,
    body: PartBody | None = None,
    branch: tuple[int, ...] = (),
    offset: int = 0,
) -> Arrival | None:
    hop = Hop("job", plan.digest, str(plan.pipeline), join, branch)
    headers = PartHeaders(RequestHeaders(f"{source}>{join}", None, 10_000, hop=hop), hop, kind, source)
    value = encode_part(body or PartBody(ROW))
    return arrival_of(headers, Record("headrace.joins.any.1", 0, offset, NOW, 1, None, value, ()), plan)


def width(count: Any) -> Arrival | None:
    return part(ROWS, GATHER.name, GATHER.branches[0], kind=PartKind.WIDTH, body=PartBody(width=count))


def table() -> JoinTable:
    return JoinTable(0, 0, max_bytes=1 << 20, is_ready=is_ready)


@pytest.mark.parametrize("count", [-1, 101, 10**15])
def test_a_width_that_the_map_cannot_have_is_of_no_use(count: int) -> None:
    assert width(100) is not None
    assert width(count) is None


def test_a_row_that_the_map_cannot_have_is_of_no_use() -> None:
    assert part(ROWS, GATHER.name, "99") is not None
    assert part(ROWS, GATHER.name, "100") is None


def test_only_the_map_says_how_many_rows_there_are() -> None:
    assert part(ROWS, GATHER.name, "3", kind=PartKind.WIDTH) is None
    assert part(ROWS, GATHER.name, GATHER.branches[0]) is None
    assert part(ANY, "first", "a", kind=PartKind.WIDTH) is None


def test_a_part_for_rows_of_a_map_that_the_join_is_not_inside_of_is_of_no_use() -> None:
    assert part(ANY, "first", "a", branch=(3,)) is None


@pytest.mark.parametrize("name", ["*missing", "a!", "b!"])
def test_values_that_cannot_be_read_end_the_job_and_not_the_joiner(name: str) -> None:
    body = PartBody((Tensor(name, "BYTES", (7,), memoryview(b"\xff\xff")),))
    arrival = part(ANY, "first", "a", body=body)
    assert arrival is not None
    joins = table()
    joins.offer(arrival, ANY, NOW)
    (fire,) = joins.due(NOW)
    assert isinstance(fire, Fire)
    (answer,) = emissions_of(fire)
    assert isinstance(answer, Answer)
    assert answer.failure is not None


def test_a_marker_cannot_hold_an_offset_for_longer_than_a_job_may_live() -> None:
    hop = Hop("job", ANY.digest, "any@1", "first")
    headers = PartHeaders(RequestHeaders("m", None, 10_000, hop=hop), hop, PartKind.MARKER)
    joins = table()
    joins.mark(0, headers, MarkerBody(until_unix_ms=2**62), NOW)
    assert joins.due(NOW) == []
    latest = NOW + 10_000 + Patience().close_ms
    (mark,) = joins.due(latest)
    assert isinstance(mark, Mark)
    assert mark.body.is_closing


def test_rows_that_make_a_quorum_are_gathered_at_once_however_many_never_come() -> None:
    joins, offset = table(), 0
    for source in [GATHER.branches[0], *"012345"]:
        is_head = source == GATHER.branches[0]
        body = PartBody(width=50) if is_head else PartBody(ROW)
        kind = PartKind.WIDTH if is_head else PartKind.VALUE
        arrival = part(ROWS, GATHER.name, source, kind=kind, body=body, offset=offset)
        assert arrival is not None
        joins.offer(arrival, ROWS, NOW)
        decisions = joins.due(NOW)
        offset += 1
        if source in (GATHER.branches[0], "0", "1", "2"):
            assert decisions == []
        if decisions:
            break
    assert offset == 5, "four values and the width decide it"
