"""What a worker takes of each lane while all of them wait in the log."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from contracts.adapters.kafka import Partition
from tests.deliveries import delivery
from workers.draining.claim import Claim
from workers.ingest.batch_queue import PROMOTED_ROWS, BatchQueue
from workers.ingest.delivery import LANES, NORMAL, Delivery
from workers.ingest.room import Room, reserve_of, room_for

HIGH, LOW = LANES["high"], LANES["low"]
CLAIMS = [Claim(Partition(f"t.{lane}", 0), 0, lane=None if lane == NORMAL else lane) for lane in range(3)]


def from_lane(lane: int, rows: int = 1, *, taken: float = 0.0, deadline: float = 1e9) -> Delivery:
    found = delivery(rows, taken=taken, deadline=deadline, lane=lane)
    found.origin = structs.replace(found.origin, claim=CLAIMS[lane])
    return found


class World:
    """Logs without end, a queue with room, and batches of it."""

    def __init__(self, limit: int, batch: int) -> None:
        self.queue, self.room, self.batch = BatchQueue(), Room(), batch
        self.room.configure(limit, batch, rejects=False)
        self.room.open_lanes(self.queue.count_lanes)
        self.logs = Counter[int]()
        self.ran: list[list[Delivery]] = []

    def take(self, *, age: float = 0.0, order: tuple[int, ...] = (LOW, NORMAL, HIGH)) -> None:
        """Each lane is read as far as there is room for it; the low one first, which must not help it."""
        for lane in order:
            self.room.look(self.queue.rows, is_stale=False)
            if self.room.is_open(lane):
                for _ in range(min(self.logs[lane], self.room.left(self.queue.rows, lane))):
                    self.logs[lane] -= 1
                    self.queue.put(from_lane(lane, taken=-age, deadline=age / 2 if age else 1e9))
        self.room.look(self.queue.rows, is_stale=False)

    def run(self) -> Counter[int]:
        ready, _ = self.queue.take(None, self.batch, 0.0) if self.queue else ([], [])
        self.ran.append(ready)
        return Counter(one.lane for one in ready)


rows = st.lists(st.integers(0, 3000), min_size=3, max_size=3)


@given(rows, st.integers(1, 2000), st.integers(1, 128))
def test_a_lane_below_its_reserve_has_room_whatever_the_others_have(waiting: list[int], limit: int, batch: int) -> None:
    reserve = reserve_of(limit, batch)
    for lane in range(3):
        room = room_for(lane, waiting, limit, reserve)
        if waiting[lane] < reserve or sum(waiting) < limit:
            assert room > 0
        else:
            assert room <= 0


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 400), st.integers(0, 64)), max_size=60),
    st.integers(1, 300),
    st.integers(1, 64),
)
def test_what_waits_stays_below_the_limit_and_two_reserves_and_is_counted_by_lane(
    steps: list[tuple[int, int, int]], limit: int, batch: int
) -> None:
    world = World(limit, batch)
    for lane, arriving, running in steps:
        world.logs[lane] += arriving
        world.take(order=(lane,))
        assert world.queue.rows <= limit + 2 * reserve_of(limit, batch)
        world.queue.take(None, max(1, running), 0.0) if world.queue else None
        if running % 7 == 0:
            world.queue.remove(lambda one: one.lane == running % 3)  # noqa: B023 - called before the next turn
        everything = world.queue.remove(lambda _: False)
        assert everything == []
        assert world.queue.lane_rows == [world.room.rows(number) for number in range(3)]
        assert sum(world.queue.lane_rows) == world.queue.rows


@settings(max_examples=15)
@given(st.integers(64, 2000), st.sampled_from([0.0, 1000.0]))
def test_backlogs_of_all_lanes_are_drawn_16_to_4_to_1_however_old_they_are(limit: int, age: float) -> None:
    world = World(limit, 64)
    world.logs.update(dict.fromkeys(range(3), 10**6))
    total = Counter[int]()
    for _ in range(60):
        world.take(age=age)
        total += world.run()
    share = sum(total.values()) / 21
    assert abs(total[HIGH] - 16 * share) < 64 + PROMOTED_ROWS * 16
    assert abs(total[LOW] - share) < PROMOTED_ROWS + 21
    assert total[NORMAL] > 3 * share - PROMOTED_ROWS * 4


@settings(max_examples=30)
@given(st.integers(2, 20), st.integers(1, 64), st.integers(1, 200), st.sampled_from([0.0, 1000.0]))
def test_high_requests_behind_any_backlog_run_in_the_next_batches(
    times: int, batch: int, count: int, age: float
) -> None:
    limit = times * batch
    world = World(limit, batch)
    world.logs.update({NORMAL: 10**5, LOW: 10**5})
    for _ in range(20):
        world.take(age=age)
        world.run()
    world.logs[HIGH] = count
    left, batches = count, 0
    while left:
        world.take(age=age)
        left -= world.run()[HIGH]
        batches += 1
    # 16 of 21 rows are high ones, but for what goes ahead because it is old.
    assert batches <= 2 + (count * 21 / 16 + 2 * PROMOTED_ROWS) / batch


def test_a_full_queue_of_low_rows_refuses_low_ones_and_no_others() -> None:
    room, queue = Room(), BatchQueue()
    room.configure(100, 10, rejects=True)
    room.open_lanes(queue.count_lanes)
    for _ in range(100):
        queue.put(from_lane(LOW))
    assert room.refuses(queue.rows, 1, LOW)
    assert not room.refuses(queue.rows, 20, None)
    assert room.refuses(queue.rows, 21, None)
    assert not room.refuses(queue.rows, 20, HIGH)


def test_lanes_that_are_opened_late_find_what_waits_already_counted() -> None:
    queue = BatchQueue()
    for lane in (HIGH, NORMAL, LOW):
        queue.put(delivery(2, lane=lane))
    queue.put_groups([[delivery(3)]])
    assert queue.count_lanes() == [0, 9, 0]  # all came through the request topic
    queue.next_group()
    queue.take(None, 64, 0.0)
    assert queue.lane_rows == [0, 0, 0]


def test_a_lane_that_was_full_is_read_again_when_half_of_its_reserve_is_free() -> None:
    room, counts = Room(), [0, 0, 0]
    room.configure(40, 10, rejects=False)
    room.open_lanes(lambda: counts)
    counts[LOW] = 40
    for high, is_open in ((19, True), (20, False), (11, False), (10, True), (19, True)):
        counts[HIGH] = high
        room.look(sum(counts), is_stale=False)
        assert (room.is_open(HIGH), room.is_open(LOW)) == (is_open, False)


counts_of_lanes = st.lists(st.integers(0, 60), min_size=3, max_size=3)


@given(
    st.lists(st.tuples(counts_of_lanes, st.booleans()), max_size=40),
    st.integers(1, 80),
    st.integers(1, 20),
    st.booleans(),
    st.booleans(),
)
def test_a_room_that_is_looked_at_only_where_it_says_so_is_the_same_as_one_that_is_always_looked_at(
    steps: list[tuple[list[int], bool]],
    limit: int,
    batch: int,
    has_lanes: bool,  # noqa: FBT001 - drawn
    rejects: bool,  # noqa: FBT001 - drawn
) -> None:
    always, seldom, counts = Room(), Room(), [0, 0, 0]
    for room in (always, seldom):
        room.configure(limit, batch, rejects=rejects)
        if has_lanes:
            room.open_lanes(lambda: counts)
    for waiting, is_stale in steps:
        counts[:] = waiting if has_lanes else [0, sum(waiting), 0]
        total = sum(counts)
        always.look(total, is_stale=is_stale)
        if total >= seldom.looks_from:
            seldom.look(total, is_stale=is_stale)
        assert [seldom.is_open(lane) for lane in range(3)] == [always.is_open(lane) for lane in range(3)]
