"""Parts of a stream: once and in order, whatever runs twice and arrives twice."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import HeadraceError, Overloaded, StreamBroken
from contracts.messages import Response, Status
from contracts.tensors import Tensor
from producer.parts import MAX_BYTES, Parts


def part(index: int, *, run: str = "a", value: int | None = None, final: bool = False, size: int = 1) -> Response:
    data = np.full((1, size), index if value is None else value, np.int64)
    status = Status.OK if final else Status.PARTIAL
    outputs = () if final else (Tensor.from_numpy("n", data),)
    return Response("id", status, "m", 1, outputs, index=index, final=final, run=run)


def parts(limit: int = 1024) -> Parts:
    return Parts(lambda: None, limit)


def taken(stream: Parts) -> list[int]:
    return [found.index for found in iter(stream.take, None)]


@st.composite
def deliveries(draw: st.DrawFn) -> tuple[int, list[Response]]:
    """A stream's length, and the parts of a few equal runs, some cut short, some sent twice, in any interleaving."""
    length = draw(st.integers(0, 8))
    queues = []
    for name in "abc"[: draw(st.integers(1, 3))]:
        reached = length if name == "a" else draw(st.integers(0, length))
        order = list(range(reached))
        if reached and draw(st.booleans()):  # a batch of the log that was sent again
            start = draw(st.integers(0, reached - 1))
            order[start:start] = range(draw(st.integers(0, start)), start)
        queues.append([part(index, run=name) for index in order])
    sent: list[Response] = []
    while any(queues):
        sent.append(draw(st.sampled_from([queue for queue in queues if queue])).pop(0))
    return length, sent


@given(deliveries())
def test_equal_runs_are_one_stream(given_: tuple[int, list[Response]]) -> None:
    length, sent = given_
    stream, found = parts(), []
    for response in sent:
        assert stream.put(response) is None
        found += taken(stream)
    assert found == [*range(length)]
    assert stream.finish(part(length, final=True)) is None


@given(st.integers(0, 5), st.integers(0, 5))
def test_a_run_that_differs_breaks_the_stream_only_where_something_was_handed_out(had: int, at: int) -> None:
    stream = parts()
    for index in range(had):
        assert stream.put(part(index)) is None
    faults = [stream.put(part(index, run="b", value=-1 if index >= at else None)) for index in range(6)]
    first = next((number for number, fault in enumerate(faults) if fault is not None), None)
    assert first == (at if at < had else None)
    assert first is None or isinstance(faults[first], StreamBroken)


def test_a_run_that_ends_earlier_than_another_had_come_breaks_the_stream() -> None:
    stream = parts()
    for response in (part(0), part(1), part(0, run="b")):
        assert stream.put(response) is None
    assert isinstance(stream.finish(part(1, run="b", final=True)), StreamBroken)


def test_a_lost_part_is_noticed_at_the_next_one_and_at_the_end() -> None:
    stream = parts()
    assert stream.put(part(0)) is None
    assert "part 1 of its stream was lost" in str(stream.put(part(2)))
    assert "part 1 of its stream was lost" in str(stream.finish(part(3, final=True)))


def test_an_error_is_the_end_whatever_came_before() -> None:
    stream = parts()
    assert stream.put(part(0)) is None
    assert stream.finish(Response("id", Status.POISON, "m", 1)) is None


def test_what_is_not_read_is_kept_up_to_a_number_of_parts_and_of_bytes() -> None:
    few = parts(limit=3)
    faults = [few.put(part(index)) for index in range(4)]
    assert [type(fault) for fault in faults] == [type(None)] * 3 + [Overloaded]
    assert taken(few) == [0, 1, 2]
    large, quarter = parts(), MAX_BYTES // 8 // 4
    outcome: list[HeadraceError | None] = []
    for index in itertools.count():
        outcome.append(large.put(part(index, size=quarter)))
        if outcome[-1] is not None:
            break
    assert len(outcome) == 5


def test_whoever_waits_is_told_of_new_parts_only() -> None:
    told: list[int] = []
    stream = Parts(lambda: told.append(1))
    for response in (part(0), part(0), part(0, run="b"), part(1)):
        stream.put(response)
    assert len(told) == 2
