"""Queue, policy and isolation: decisions over values, with a clock in the test's hand."""

from __future__ import annotations

from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.adapters.kafka import Partition
from contracts.specs import BatchingSpec
from workers.ingest import isolate
from workers.ingest.batch_queue import BatchQueue
from workers.ingest.claim import Claim
from workers.ingest.delivery import Delivery, Origin
from workers.ingest.policy import DEPTH, Cut, Hold, Wait, decide

CLAIM = Claim(Partition("t", 0), 0)


def delivery(rows: int = 1, *, key: str | None = None, taken: float = 0.0, deadline: float = 100.0) -> Delivery:
    origin = Origin(CLAIM, cast("object", None), "id", None)  # type: ignore[arg-type]  # no decision looks at the record
    return Delivery(
        origin, inputs=(), parameters={}, rows=rows, batch_key=key, taken=taken, deadline=deadline, queued_us=0
    )


KNOBS = BatchingSpec(max_batch_size=8)
PATIENT = BatchingSpec(max_batch_size=8, max_batch_delay_ms=10)


def test_an_idle_engine_is_never_kept_waiting() -> None:
    assert decide(5.0, 1, 5.0, 0, KNOBS) == Cut(8, "engine_free")


def test_a_full_batch_does_not_wait_for_its_delay() -> None:
    assert decide(5.0, 8, 5.0, 1, PATIENT) == Cut(8, "full")


def test_with_one_running_and_one_ready_the_queue_grows() -> None:
    assert decide(5.0, 80, 1.0, DEPTH, KNOBS) == Hold()


def test_an_allowed_delay_is_counted_from_the_oldest_request() -> None:
    assert decide(5.0, 3, 5.0, 0, PATIENT) == Wait(5.01)
    assert decide(5.006, 3, 4.995, 0, PATIENT) == Cut(8, "delay")


def test_a_batch_is_cut_at_whole_requests() -> None:
    queue = BatchQueue()
    for rows in (3, 3, 3):
        queue.put(delivery(rows))
    ready, expired = queue.take(None, 8, 0.0)
    assert [d.rows for d in ready] == [3, 3]
    assert expired == []
    assert queue.rows == 3


def test_expired_requests_leave_when_they_would_be_taken_and_make_room() -> None:
    queue = BatchQueue()
    for deadline in (1.0, 9.0, 1.0, 9.0):
        queue.put(delivery(4, deadline=deadline))
    ready, expired = queue.take(None, 8, 5.0)
    assert len(ready) == 2
    assert len(expired) == 2
    assert not queue


def test_the_key_whose_head_waited_longest_is_served_first() -> None:
    queue = BatchQueue()
    queue.put(delivery(key="b", taken=2.0))
    queue.put(delivery(key="a", taken=1.0))
    assert queue.oldest_key() == "a"


def test_suspects_run_before_others_and_in_their_own_groups() -> None:
    queue = BatchQueue()
    queue.put(delivery())
    first, second = delivery(), delivery()
    queue.put_groups([[first], [second]])
    assert queue.rows == 3
    assert queue.next_group() == [first]
    assert queue.next_group() == [second]
    assert queue.next_group() is None
    assert queue.rows == 1


@given(st.lists(st.tuples(st.integers(1, 8), st.sampled_from("abc")), max_size=30), st.integers(0, 5))
def test_rows_are_conserved(requests: list[tuple[int, str]], groups: int) -> None:
    queue = BatchQueue()
    everything = [delivery(rows, key=key) for rows, key in requests]
    for one in everything:
        queue.put(one)
    suspects = [delivery(2) for _ in range(groups)]
    queue.put_groups([[one] for one in suspects])
    dropped = queue.remove(lambda one: one.batch_key == "a")
    taken: list[Delivery] = []
    while (group := queue.next_group()) is not None:
        taken += group
    while queue.has_keys:
        ready, _ = queue.take(queue.oldest_key(), 8, 0.0)
        assert 0 < sum(one.rows for one in ready) <= 8
        taken += ready
    assert {id(one) for one in (*taken, *dropped)} == {id(one) for one in (*everything, *suspects)}
    assert queue.rows == 0


@given(st.integers(1, 64), st.sets(st.integers(0, 63)))
def test_halving_finds_every_bad_row_and_only_those(size: int, bad: set[int]) -> None:
    """Runs batches as the batcher does, a batch with a bad row raising; counts the further runs."""
    bad = {row for row in bad if row < size}
    pending, runs = [list(range(size))], 0
    poisoned: set[int] = set()
    answered: set[int] = set()
    while pending:
        batch = pending.pop(0)
        runs += 1
        if not bad & set(batch):
            answered |= set(batch)
        elif len(batch) == 1:
            poisoned |= set(batch)
        else:
            pending = [*isolate.halves(batch), *pending]
    assert poisoned == bad
    assert answered == set(range(size)) - bad
    if size == 32 and len(bad) == 1:
        assert runs - 1 <= 10


@pytest.mark.parametrize(
    ("lost", "alone", "poison"),
    [(1, 1, False), (2, 2, False), (3, 1, False), (3, 2, True), (3, 3, True), (9, 1, False)],
)
def test_only_a_request_that_was_alone_when_the_engine_died_is_to_blame(lost: int, alone: int, poison: bool) -> None:  # noqa: FBT001
    assert isolate.is_poison(lost, alone) is poison


@given(st.integers(1, 40), st.sets(st.integers(0, 39), max_size=3))
def test_killers_are_found_within_three_launches_and_nobody_else_is_blamed(size: int, killers: set[int]) -> None:
    """Two batches are in the engine when it dies; suspects run alone, as the batcher has it."""
    killers = {killer for killer in killers if killer < size}
    launches, lost, alone = [0] * size, [0] * size, [0] * size
    pending: list[list[int]] = [list(range(size // 2)), list(range(size // 2, size))]
    blamed, answered = set[int](), set[int]()
    while pending := [batch for batch in pending if batch]:
        is_alone = any(lost[row] for row in pending[0])
        engine, pending = (pending[:1], pending[1:]) if is_alone else (pending[:2], pending[2:])
        held = [row for batch in engine for row in batch]
        for row in held:
            launches[row] += 1
        if not killers & set(held):
            answered |= set(held)
            continue
        for row in held:
            lost[row] += 1
            alone[row] += len(held) == 1
        blamed |= {row for row in held if isolate.is_poison(lost[row], alone[row])}
        pending = [[row] for row in held if row not in blamed] + pending
    assert blamed == killers
    assert answered == set(range(size)) - killers
    assert max(launches) <= 3
