"""What becomes of the requests of a failed batch: no engine, no log, all rules."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.messages import Status
from contracts.specs import ModelSpec
from tests.deliveries import delivery
from workers.ingest.batch_queue import BatchQueue
from workers.ingest.delivery import Delivery
from workers.ingest.failures import Failures
from workers.ingest.flight import Flight, Stream
from workers.ingest.policy import Policy
from workers.ingest.split import Answers, split
from workers.ingest.suspects import Suspects
from workers.link import Failed, InvalidRow

SIDE = [{"name": "x", "datatype": "FP32", "shape": [-1, 2]}]
SPEC = ModelSpec.model_validate(
    {
        "name": "m",
        "version": 1,
        "backend": "python",
        "inputs": SIDE,
        "outputs": [SIDE[0] | {"name": "y"}],
        "batching": {"max_batch_size": 8},
    }
)


class World:
    """A queue, and what is answered."""

    device = "cpu"

    def __init__(self) -> None:
        self.queue = BatchQueue()
        self.told: list[tuple[Delivery, str, str]] = []
        self.settled: list[Delivery] = []
        self.failures = Failures(
            SPEC,
            queue=self.queue,
            policy=Policy(SPEC.batching),
            answers=Answers(cast("Any", self)),
            suspects=cast("Suspects", None),
            settle=self.settled.append,
        )

    def batch_answered(self) -> None:
        pass

    def fail(self, request: Delivery, status: Status, message: str, *, retryable: bool = False) -> None:
        assert not retryable
        self.told.append((request, status.value, message))

    def poison(self, request: Delivery, message: str) -> None:
        self.told.append((request, "POISON", message))

    def retry(self, request: Delivery, reason: str, _message: str) -> None:
        self.told.append((request, "retry", reason))

    def fails(
        self, deliveries: list[Delivery], kind: str, *rows: tuple[int, str], stream: Stream | None = None
    ) -> None:
        named = tuple(InvalidRow(row, why) for row, why in rows)
        flight = Flight(deliveries, sum(d.rows for d in deliveries), "full", stream)
        self.failures.failed(flight, Failed(0, 1, cast("Any", kind), "" if rows else "not so", named))

    def groups(self) -> list[list[Delivery]]:
        found = []
        while (group := self.queue.next_group()) is not None:
            found.append(group)
        return found


@pytest.fixture
def world() -> World:
    return World()


def requests(*rows: int) -> list[Delivery]:
    return [delivery(count) for count in rows]


def test_the_requests_of_named_rows_end_as_invalid_and_the_others_run_again_together(world: World) -> None:
    a, b, c, d = batch = requests(1, 1, 1, 1)
    world.fails(batch, "invalid", (1, "no date"), (3, "no name"))
    assert world.told == [(b, "INVALID", "no date"), (d, "INVALID", "no name")]
    assert world.settled == [b, d]
    assert world.groups() == [[a, c]]


def test_a_request_of_several_rows_is_told_which_as_it_has_sent_them(world: World) -> None:
    a, b, c = batch = requests(2, 3, 1)
    world.fails(batch, "invalid", (2, "no date"), (4, "no name"), (5, "no place"))
    assert world.told == [(b, "INVALID", "row 0: no date; row 2: no name"), (c, "INVALID", "no place")]
    assert world.groups() == [[a]]


def test_a_part_of_a_request_that_was_split_ends_the_whole_and_counts_its_rows(world: World) -> None:
    whole = delivery(19)
    parts = split(whole, 8)
    world.fails([parts[1]], "invalid", (1, "no date"))
    world.fails([parts[2]], "invalid", (2, "too late to count"))
    assert world.told == [(whole, "INVALID", "row 9: no date")]
    assert world.settled == [parts[1], parts[2]]
    other = delivery(19)
    world.fails([split(other, 8)[2]], "invalid", (2, "no name"))
    assert world.told[1:] == [(other, "INVALID", "row 18: no name")]
    assert world.groups() == []


def test_what_is_said_of_many_rows_is_cut(world: World) -> None:
    batch = requests(8)
    world.fails(batch, "invalid", *((row, "x" * 500) for row in range(8)))
    ((_, _, message),) = world.told
    assert message.startswith(f"row 0: {'x' * 500}; row 1: x")
    assert len(message) == 1000


def test_when_every_row_is_named_nothing_runs_again(world: World) -> None:
    batch = requests(1, 2, 1)
    world.fails(batch, "invalid", *((row, "no") for row in range(4)))
    assert [status for _, status, _ in world.told] == ["INVALID"] * 3
    assert world.settled == batch
    assert not world.queue


def test_a_batch_that_is_refused_as_a_whole_is_halved_until_one_is_refused_alone(world: World) -> None:
    a, b, c = batch = requests(1, 1, 1)
    world.fails(batch, "invalid")
    assert world.groups() == [[a], [b, c]]
    assert not world.told
    world.fails([a], "invalid")
    assert world.told == [(a, "INVALID", "not so")]
    assert world.settled == [a]


def test_rows_that_fill_a_batch_are_nobodys_fault(world: World) -> None:
    a, b = batch = requests(1, 1)
    world.fails(batch, "invalid", (0, "no date"), (2, "empty"), (3, "empty"))
    assert world.told == [(a, "INVALID", "no date")]
    assert world.groups() == [[b]]


def test_a_model_that_refuses_only_what_its_batches_are_filled_with_is_to_blame_itself(world: World) -> None:
    a, b = batch = requests(1, 1)
    world.fails(batch, "invalid", (2, "empty"))
    assert world.groups() == [[a], [b]]
    world.fails([a], "invalid", (1, "empty"))
    assert world.told == [(a, "INTERNAL", "the model refuses what its batches are filled up with: empty")]


@pytest.mark.parametrize(("kind", "status"), [("error", "POISON"), ("output", "INTERNAL"), ("invalid", "INVALID")])
def test_a_request_that_failed_beside_streams_that_have_ended_is_run_alone_before_it_is_blamed(
    kind: str, status: str, world: World
) -> None:
    a, b = batch = requests(1, 1)
    stream = Stream(batch, "w.1", 2)
    stream.lines[0].is_open = False
    world.fails(batch, kind, stream=stream)
    assert world.groups() == [[b]]
    assert not world.told
    world.fails([b], kind, stream=Stream([b], "w.2", 1))
    assert [(request, how) for request, how, _ in world.told] == [(b, status)]
    assert a not in world.settled


def test_a_stream_that_has_ended_is_not_ended_again_by_its_row(world: World) -> None:
    a, b, c = batch = requests(1, 1, 1)
    stream = Stream(batch, "w.1", 3)
    stream.lines[0].is_open = False
    world.fails(batch, "invalid", (0, "too long"), (2, "too loud"), stream=stream)
    assert world.told == [(c, "INVALID", "too loud")]
    assert world.groups() == [[b]]
    assert a not in world.settled


@given(
    st.lists(st.integers(1, 3), min_size=1, max_size=12),
    st.sets(st.integers(0, 35)),
    st.sampled_from(["all", "first", "none"]),
)
def test_however_a_model_says_it_bad_requests_end_as_invalid_and_good_ones_are_answered(
    counts: list[int], bad: set[int], naming: str
) -> None:
    world, batch = World(), requests(*counts)
    rows = [(number, row) for number, d in enumerate(batch) for row in range(d.rows)]
    faulty = {rows[row] for row in bad if row < len(rows)}
    at = {id(d): number for number, d in enumerate(batch)}
    pending, answered, runs = [batch], list[Delivery](), 0
    while pending:
        group, runs = pending.pop(0), runs + 1
        here = [(at[id(d)], row) for d in group for row in range(d.rows)]
        found = [(index, "no") for index, row in enumerate(here) if row in faulty]
        if not found:
            answered += group
            continue
        world.fails(group, "invalid", *{"all": found, "first": found[:1], "none": []}[naming])
        pending = world.groups() + pending
    guilty = sorted({number for number, _ in faulty})
    assert sorted(at[id(request)] for request, _, _ in world.told) == guilty
    assert {status for _, status, _ in world.told} <= {"INVALID"}
    assert sorted(at[id(d)] for d in answered) == [n for n in range(len(batch)) if n not in guilty]
    assert runs <= {"all": 2, "first": len(guilty) + 1, "none": 2 * len(batch)}[naming]
