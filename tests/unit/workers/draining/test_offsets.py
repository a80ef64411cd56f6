"""The offset tracker: commits tell the truth whatever the order of arrivals and answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.draining.offsets import Arrival, OffsetTracker


def test_the_commit_point_is_the_first_unanswered_offset() -> None:
    tracker = OffsetTracker(10)
    for offset in range(10, 15):
        assert tracker.receive(offset) is Arrival.NEXT
    for offset in (11, 12, 14):
        tracker.done(offset)
    assert tracker.commit_point == 10
    assert tracker.to_commit() is None
    tracker.done(10)
    assert tracker.commit_point == 13
    assert tracker.to_commit() == 13
    assert tracker.unanswered == 2


def test_a_gap_is_believed_only_when_it_is_read_twice() -> None:
    tracker = OffsetTracker(0)
    assert tracker.receive(0) is Arrival.NEXT
    assert tracker.receive(3) is Arrival.GAP
    assert tracker.expected == 1
    assert tracker.receive(3) is Arrival.NEXT
    assert tracker.gaps == 2
    tracker.done(0)
    assert tracker.commit_point == 3
    tracker.done(3)
    assert tracker.commit_point == 4


def test_a_gap_that_closes_when_read_again_loses_nothing() -> None:
    tracker = OffsetTracker(0)
    assert tracker.receive(2) is Arrival.GAP
    assert [tracker.receive(offset) for offset in (0, 1, 2)] == [Arrival.NEXT] * 3
    assert tracker.gaps == 0


def test_what_was_never_received_cannot_be_answered() -> None:
    tracker = OffsetTracker(0)
    tracker.receive(0)
    tracker.done(2)
    tracker.done(0)
    for offset in (1, 2):
        tracker.receive(offset)
        assert not tracker.is_done(offset)
    tracker.done(1)
    assert tracker.commit_point == 2


def test_what_was_received_already_is_ignored() -> None:
    tracker = OffsetTracker(5)
    assert tracker.receive(4) is Arrival.OLD
    tracker.receive(5)
    assert tracker.receive(5) is Arrival.OLD


def test_a_commit_never_goes_down_within_a_claim() -> None:
    tracker = OffsetTracker(0)
    for offset in range(4):
        tracker.receive(offset)
        tracker.done(offset)
    tracker.commit_succeeded(4)
    tracker.commit_succeeded(2)
    assert tracker.committed == 4
    assert tracker.to_commit() is None


@given(st.data())
def test_no_commit_passes_an_unanswered_record(data: st.DataObject) -> None:
    """Arrivals with gaps and repeats, answers in any order: below the commit point everything is answered."""
    start = data.draw(st.integers(0, 50))
    exists = data.draw(st.lists(st.booleans(), min_size=1, max_size=40))
    records = [start + index for index, there in enumerate(exists) if there]
    tracker = OffsetTracker(start)
    received: set[int] = set()
    answered: set[int] = set()
    position = start
    for _ in range(data.draw(st.integers(0, 150))):
        waiting = sorted(received - answered)
        answers_now: bool = data.draw(st.booleans())
        if waiting and answers_now:
            offset = data.draw(st.sampled_from(waiting))
            tracker.done(offset)
            answered.add(offset)
        else:
            upcoming = [offset for offset in records if offset >= position]
            if not upcoming:
                continue
            skipped = data.draw(st.integers(0, min(2, len(upcoming) - 1)))  # the client library lost some
            offset = upcoming[skipped]
            arrival = tracker.receive(offset)
            if arrival is Arrival.NEXT:
                received.add(offset)
            position = tracker.expected
        below = {offset for offset in records if offset < tracker.commit_point}
        assert below - answered <= _never_delivered(records, received, tracker)


def _never_delivered(records: list[int], received: set[int], tracker: OffsetTracker) -> set[int]:
    """Offsets that the log gave us twice as missing; the tracker may take those for holes, and nothing else."""
    if not tracker.gaps:
        return set()
    return {offset for offset in records if offset not in received and offset < tracker.expected}


def test_a_late_commit_of_somebody_else_is_repaired_once_it_is_seen() -> None:
    tracker = OffsetTracker(5)
    for offset in (5, 6):
        tracker.receive(offset)
        tracker.done(offset)
    tracker.commit_succeeded(7)
    assert tracker.to_commit() is None
    tracker.read_back(6)
    assert tracker.to_commit() == 7
    tracker.read_back(7)
    assert tracker.to_commit() is None
    tracker.read_back(None)
    assert tracker.to_commit() == 7
