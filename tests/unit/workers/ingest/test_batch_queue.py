"""The queue: conservation, urgency, lanes, and the order of record keys."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.deliveries import delivery
from workers.ingest.batch_queue import HORIZON_SECONDS, PROMOTED_ROWS, SHARES, BatchQueue
from workers.ingest.delivery import LANES, Delivery

HIGH, NORMAL, LOW = LANES["high"], LANES["normal"], LANES["low"]


def test_a_batch_is_cut_at_whole_requests() -> None:
    queue = BatchQueue()
    for rows in (3, 3, 3):
        queue.put(delivery(rows))
    ready, dropped = queue.take(None, 8, 0.0)
    assert [d.rows for d in ready] == [3, 3]
    assert dropped == []
    assert queue.rows == 3


def test_a_request_larger_than_the_batch_is_taken_alone() -> None:
    queue = BatchQueue()
    queue.put(delivery(8))
    queue.put(delivery(1))
    ready, _ = queue.take(None, 2, 0.0)
    assert [d.rows for d in ready] == [8]


def test_expired_and_hopeless_requests_leave_when_they_would_be_taken_and_make_room() -> None:
    queue = BatchQueue()
    for deadline in (1.0, 9.0, 5.4, 9.0):
        queue.put(delivery(4, deadline=deadline))
    ready, dropped = queue.take(None, 8, 5.0, lambda _: 5.5)
    assert [d.deadline for d in ready] == [9.0, 9.0]
    assert [d.deadline for d in dropped] == [1.0, 5.4]
    assert not queue


def test_each_that_is_refused_may_save_the_next() -> None:
    queue = BatchQueue()
    for deadline in (10.2, 10.2, 10.25, 10.3):
        queue.put(delivery(1, deadline=deadline))
    # Four rows would be answered at 10.4, two at 10.2: the first two go, and the others are in time.
    ready, dropped = queue.take(None, 8, 10.0, lambda rows: 10.0 + rows / 10)
    assert [d.deadline for d in dropped] == [10.2, 10.2]
    assert [d.deadline for d in ready] == [10.25, 10.3]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.floats(0, 20), st.sampled_from((HIGH, NORMAL, LOW))), max_size=30),
    st.integers(4, 12),
    st.floats(0.01, 2.0),
)
def test_whoever_is_taken_is_in_time_and_nobody_is_refused_who_was_in_time_with_all_others(
    wanted: list[tuple[int, float, int]], room: int, per_row: float
) -> None:
    queue = BatchQueue()
    for rows, deadline, lane in wanted:
        queue.put(delivery(rows, deadline=deadline, lane=lane))
    waiting = queue.rows

    def hopeless(rows: int) -> float:
        return 1.0 + per_row * rows

    ready, dropped = queue.take(None, room, 1.0, hopeless) if wanted else ([], [])
    taken = sum(one.rows for one in ready)
    assert all(one.deadline > hopeless(taken) for one in ready)
    assert all(one.deadline <= hopeless(min(room, waiting)) for one in dropped)
    assert queue.rows == waiting - taken - sum(one.rows for one in dropped)


def test_the_most_urgent_key_is_served_first() -> None:
    queue = BatchQueue()
    queue.put(delivery(key="relaxed", taken=1.0, deadline=60.0))
    queue.put(delivery(key="urgent", taken=2.0, deadline=3.0))
    queue.put(delivery(key="later", taken=2.5, deadline=60.0))
    assert queue.next_keys(2.5) == ["urgent", "relaxed", "later"]


def test_requests_in_no_hurry_are_served_in_turn() -> None:
    queue = BatchQueue()
    patient, others = delivery(taken=0.0, deadline=3600.0), [delivery(taken=t, deadline=t + 30) for t in (1.0, 2.0)]
    for one in (*others, patient):
        queue.put(one)
    assert queue.take(None, 1, 2.0)[0] == [patient]
    assert patient.urgency == HORIZON_SECONDS


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


def test_lanes_are_drawn_by_their_shares_and_the_low_one_does_not_starve() -> None:
    queue = BatchQueue()
    drawn: Counter[int] = Counter()
    for _ in range(400):
        for lane in (HIGH, NORMAL, LOW):
            while queue._lanes[lane].get(None) is None or queue._lanes[lane][None].rows < 21:
                queue.put(delivery(lane=lane, deadline=1e9))
        drawn.update(d.lane for d in queue.take(None, 7, 0.0)[0])
    total = sum(drawn.values())
    for lane, share in enumerate(SHARES):
        assert abs(drawn[lane] / total - share / sum(SHARES)) < 0.01


def test_lower_lanes_fill_what_a_batch_has_left() -> None:
    queue = BatchQueue()
    queue.put(delivery(4, lane=HIGH))
    queue.put(delivery(6, lane=NORMAL))
    queue.put(delivery(2, lane=LOW))
    ready, _ = queue.take(None, 8, 0.0)
    assert sorted(d.lane for d in ready) == [HIGH, LOW]


def test_a_request_older_than_half_its_time_to_live_goes_ahead() -> None:
    queue = BatchQueue()
    first, old = (delivery(lane=LOW, taken=0.0, deadline=10.0) for _ in range(2))
    for one in (first, old):
        queue.put(one)
    for _ in range(50):
        queue.put(delivery(lane=HIGH, taken=0.0, deadline=100.0))
    assert first in queue.take(None, 2, 1.0)[0]
    assert old not in queue.take(None, 8, 1.0)[0]  # its lane has had its share for a while
    assert queue.take(None, 1, 5.1)[0] == [old]


def test_the_draw_of_a_key_crosses_lanes_by_urgency() -> None:
    queue = BatchQueue()
    queue.put(delivery(key="a", lane=LOW, taken=0.0))
    queue.put(delivery(key="b", lane=HIGH, taken=1.0))
    assert queue.next_keys(1.0)[0] == "b"


def test_requests_of_a_record_key_run_one_after_the_other() -> None:
    queue = BatchQueue(per_key=True)
    first, second, other, plain = (delivery(record_key=key) for key in (b"k", b"k", b"o", None))
    for one in (first, second, other, plain):
        queue.put(one)
    assert queue.rows == 4
    assert queue.take(None, 8, 0.0)[0] == [first, other, plain]
    assert not queue
    assert queue.rows == 1
    queue.settled(other)
    queue.settled(plain)
    assert not queue
    queue.settled(first)
    assert queue.take(None, 8, 0.0)[0] == [second]
    queue.settled(second)
    assert queue.rows == 0


def test_removing_a_request_lets_the_next_of_its_key_go_on() -> None:
    queue = BatchQueue(per_key=True)
    first, second, third = (delivery(rows, record_key=b"k") for rows in (1, 2, 3))
    for one in (first, second, third):
        queue.put(one)
    assert queue.remove(lambda one: one in (first, second)) == [first, second]
    assert queue.rows == 3
    assert queue.take(None, 8, 0.0)[0] == [third]


requests = st.lists(
    st.tuples(
        st.integers(1, 8),
        st.sampled_from("abc"),
        st.sampled_from((HIGH, NORMAL, LOW)),
        st.floats(0, 20),
        st.sampled_from((b"x", b"y", None)),
    ),
    max_size=40,
)


@given(requests, st.integers(0, 5), st.tuples(st.booleans(), st.integers(1, 12), st.floats(0, 10)))
def test_every_delivery_leaves_exactly_once(
    wanted: list[tuple[int, str, int, float, bytes | None]], groups: int, modes: tuple[bool, int, float]
) -> None:
    per_key, room, now = modes
    queue = BatchQueue(per_key=per_key)
    everything = [delivery(r, key=k, lane=lane, deadline=d, record_key=rk) for r, k, lane, d, rk in wanted]
    for one in everything:
        queue.put(one)
    suspects = [delivery(2) for _ in range(groups)]
    queue.put_groups([[one] for one in suspects])
    gone = queue.remove(lambda one: one.batch_key == "a")
    while (group := queue.next_group()) is not None:
        gone += group
    while queue.has_keys:
        key = queue.next_keys(now)[0]
        ready, dropped = queue.take(key, room, now)
        assert ready or dropped
        assert sum(one.rows for one in ready) <= room or len(ready) == 1
        assert all(one.deadline > now for one in ready)
        assert all(one.deadline <= now for one in dropped)
        assert {one.batch_key for one in ready} <= {key}
        for one in (*ready, *dropped):
            queue.settled(one)
        gone += ready + dropped
    assert Counter(map(id, gone)) == Counter(map(id, (*everything, *suspects)))
    assert queue.rows == 0
    assert not queue


@given(st.lists(st.tuples(st.floats(0, 30), st.floats(0, 30)), max_size=60), st.integers(1, 9))
def test_within_a_key_and_lane_the_most_urgent_goes_first(times: list[tuple[float, float]], room: int) -> None:
    queue = BatchQueue()
    for taken, ttl in times:
        queue.put(delivery(taken=taken, deadline=taken + ttl + 1))
    order: list[Delivery] = []
    while queue:
        order += queue.take(None, room, -1.0)[0]
    assert [one.urgency for one in order] == sorted(one.urgency for one in order)


@given(st.lists(st.tuples(st.sampled_from(b"xyz"), st.sampled_from("ab"), st.floats(1, 20)), max_size=40), st.data())
def test_requests_of_a_record_key_never_overtake_or_overlap(
    wanted: list[tuple[int, str, float]], data: st.DataObject
) -> None:
    queue = BatchQueue(per_key=True)
    sent = [delivery(key=k, deadline=d, record_key=bytes([rk])) for rk, k, d in wanted]
    order = {id(one): place for place, one in enumerate(sent)}
    for one in sent:
        queue.put(one)
    running: list[Delivery] = []
    last: dict[bytes | None, int] = {}
    while queue or running:
        if queue and (not running or data.draw(st.booleans())):
            taken, dropped = queue.take(queue.next_keys(0.0)[0], 3, data.draw(st.sampled_from((0.0, 5.0))))
            for one in (*taken, *dropped):
                key = one.origin.record.key
                assert key not in {other.origin.record.key for other in running}
                assert order[id(one)] > last.get(key, -1)
                last[key] = order[id(one)]
            for one in dropped:
                queue.settled(one)
            running += taken
        else:
            queue.settled(running.pop(data.draw(st.integers(0, len(running) - 1))))
    assert queue.rows == 0


def test_old_requests_of_a_lane_go_ahead_of_its_share_only_so_far() -> None:
    queue = BatchQueue()
    for _ in range(100):
        queue.put(delivery(lane=LOW, taken=0.0, deadline=10.0))
        queue.put(delivery(lane=HIGH, taken=9.0, deadline=1000.0))
    ready, _ = queue.take(None, 64, 9.0)
    assert [d.lane for d in ready[:PROMOTED_ROWS]] == [LOW] * PROMOTED_ROWS
    assert Counter(d.lane for d in ready[PROMOTED_ROWS:]) == {HIGH: 45, LOW: 3}


def test_whatever_has_expired_can_be_taken_out_wherever_it_waits() -> None:
    queue = BatchQueue(per_key=True)
    patient = delivery(deadline=30.0, taken=0.0)
    late = delivery(deadline=10.0, taken=9.0)  # not the head of its line: the other has waited longer
    suspects = [delivery(deadline=9.0), delivery(deadline=40.0)]
    first, second = delivery(deadline=8.0, record_key=b"k"), delivery(deadline=50.0, record_key=b"k")
    for each in (patient, late, first, second):
        queue.put(each)
    queue.put_groups([suspects])
    assert queue.expired(7.9) == []
    gone = queue.expired(10.0)
    assert {id(d) for d in gone} == {id(late), id(suspects[0]), id(first)}
    assert queue.next_group() == [suspects[1]]
    queue.settled(first)  # only now, when it has been answered, does the next of its key go on
    assert queue.rows == 2
    assert {id(d) for d in queue.take(None, 9, 10.0)[0]} == {id(patient), id(second)}
