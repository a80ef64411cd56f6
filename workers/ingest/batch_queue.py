"""Requests waiting for a batch.

Rows of one batch share shapes and parameters: their batch key. Within a key the most urgent request goes first, where a
request is urgent at its deadline, or `HORIZON_SECONDS` after it was taken if its deadline is further away: requests in
no hurry are served in turn instead of waiting until they are in one. As most requests of a model have the same time to
live they arrive in this order already, so a line is a deque, and only the few that come out of order enter a heap.

Requests have a lane, high, normal or low. While several lanes wait, rows are drawn 16 : 4 : 1, so that no lane starves;
a request older than half its time to live goes ahead of the draw, up to `PROMOTED_ROWS` of its lane: behind a backlog
every request is old, and one lane of them must not keep the others waiting. Rows of other lanes fill what a batch has
left.

Suspects (requests that were in a batch that failed or killed the engine) wait in front and are handed out in the groups
that they were put in, never together with others.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from heapq import heappop, heappush

from workers.ingest.delivery import NORMAL, Delivery
from workers.ingest.key_order import KeyOrder
from workers.ingest.policy import Waiting

HORIZON_SECONDS = 5.0
SHARES = (16, 4, 1)
"""Rows drawn from the lanes high, normal, low while all of them wait."""
PROMOTED_ROWS = 16
"""How far the old requests of a lane may get ahead of its share."""
_FAR = float("inf")


def _nobody(_rows: int) -> float:
    """The deadline before which requests are hopeless when none is."""
    return 0.0


class _Line:
    """Requests of one key and lane, the most urgent first."""

    __slots__ = ("_heap", "_run", "rows")
    _arrivals = itertools.count()

    def __init__(self) -> None:
        self._run: deque[Delivery] = deque()
        self._heap: list[tuple[float, int, Delivery]] = []
        self.rows = 0

    def put(self, delivery: Delivery) -> None:
        run = self._run
        if not run or delivery.urgency >= run[-1].urgency:
            run.append(delivery)
        else:
            heappush(self._heap, (delivery.urgency, next(self._arrivals), delivery))
        self.rows += delivery.rows

    def head(self) -> Delivery:
        if self._heap and (not self._run or self._heap[0][0] < self._run[0].urgency):
            return self._heap[0][2]
        return self._run[0]

    def pop(self) -> Delivery:
        if self._heap and (not self._run or self._heap[0][0] < self._run[0].urgency):
            delivery = heappop(self._heap)[2]
        else:
            delivery = self._run.popleft()
        self.rows -= delivery.rows
        return delivery

    def everything(self) -> list[Delivery]:
        return [*self._run, *(entry[2] for entry in sorted(self._heap, key=lambda entry: entry[:2]))]


class _Taking:
    """A batch while it is put together from `waiting` rows; up to the deadline `limit` a request has no place in it."""

    __slots__ = ("_hopeless", "_max_rows", "_now", "_waiting", "dropped", "limit", "ready", "room")

    def __init__(self, max_rows: int, waiting: int, now: float, hopeless: Callable[[int], float]) -> None:
        self._max_rows, self._waiting, self._now, self._hopeless = max_rows, waiting, now, hopeless
        self.ready: list[Delivery] = []
        self.dropped: list[Delivery] = []
        self.room = max_rows
        self.limit = max(now, hopeless(min(max_rows, waiting)))

    def drop(self, delivery: Delivery) -> None:
        self.dropped.append(delivery)
        self._waiting -= delivery.rows
        if self._waiting < self._max_rows:
            self.limit = max(self._now, self._hopeless(max(1, self._waiting)))


class BatchQueue:
    """Holds deliveries; counts rows, not requests. `per_key` keeps requests of one record key in order."""

    def __init__(self, *, per_key: bool = False) -> None:
        self._lanes: tuple[dict[Hashable, _Line], ...] = ({}, {}, {})
        self._drawn = [0.0, 0.0, 0.0]
        self._level = 0.0
        self._groups: deque[list[Delivery]] = deque()
        self._order = KeyOrder() if per_key else None
        self.rows = 0
        """All waiting rows, suspects included."""
        self.lane_rows: list[int] | None = None
        """The same by the lane whose topic they came from; None as long as all come from one."""

    def __bool__(self) -> bool:
        high, normal, low = self._lanes
        return bool(normal or high or low or self._groups)

    @property
    def has_keys(self) -> bool:
        """Whether ordinary deliveries wait that may be taken."""
        high, normal, low = self._lanes
        return bool(normal or high or low)

    # --- putting ------------------------------------------------------------------------------------------------------

    def count_lanes(self) -> list[int]:
        """Begin to count by lane."""
        lines = (line for lane in self._lanes for line in lane.values())
        waiting = [*(d for line in lines for d in line.everything()), *itertools.chain(*self._groups)]
        self.lane_rows = [0] * len(self._lanes)
        self._count(waiting, 1)
        return self.lane_rows

    def _count(self, deliveries: Iterable[Delivery], sign: int) -> None:
        rows = self.lane_rows
        if rows is not None:
            for delivery in deliveries:
                lane = delivery.origin.claim.lane
                rows[NORMAL if lane is None else lane] += sign * delivery.rows

    def put(self, delivery: Delivery) -> None:
        """Queue a delivery."""
        self.rows += delivery.rows
        if self.lane_rows is not None:
            self._count((delivery,), 1)
        if self._order is None or self._order.admit(delivery):
            self._admit(delivery)

    def _admit(self, delivery: Delivery) -> None:
        deadline, horizon = delivery.deadline, delivery.taken + HORIZON_SECONDS
        delivery.urgency = min(horizon, deadline)
        lane = self._lanes[delivery.lane]
        line = lane.get(delivery.batch_key)
        if line is None:
            if not lane:  # a lane that was empty has saved up nothing
                self._drawn[delivery.lane] = max(self._drawn[delivery.lane], self._level)
            line = lane[delivery.batch_key] = _Line()
        line.put(delivery)

    def put_groups(self, groups: Iterable[list[Delivery]]) -> None:
        """Put groups to be run next, each as a batch of its own, in the order given."""
        for group in reversed([group for group in groups if group]):
            self._groups.appendleft(group)
            self.rows += sum(delivery.rows for delivery in group)
            if self.lane_rows is not None:
                self._count(group, 1)

    def settled(self, delivery: Delivery) -> None:
        """A delivery that was taken has its outcome: the next of its record key may run."""
        if self._order is not None:
            following = self._order.settle(delivery)
            if following is not None:
                self._admit(following)

    # --- looking ------------------------------------------------------------------------------------------------------

    def next_keys(self, now: float, most: int = 16) -> list[Hashable]:
        """Up to `most` batch keys in the order in which they should be served; the most urgent first."""
        high, normal, low = self._lanes
        if len(normal) == 1 and not high and not low:
            return list(normal)
        first = self._first_lane(now)
        heads: dict[Hashable, tuple[bool, float]] = {}
        for number, lane in enumerate(self._lanes):
            for key, line in lane.items():
                head = (number != first, line.head().urgency)
                heads[key] = min(head, heads.get(key, head))
        return sorted(heads, key=heads.__getitem__)[:most]

    @property
    def earliest_deadline(self) -> float:
        """The earliest deadline of what may be taken, as far as the heads of the lines know; infinite without any."""
        suspects = (group[0].deadline for group in self._groups)
        heads = (line.head().deadline for lane in self._lanes for line in lane.values())
        return min(itertools.chain(suspects, heads), default=_FAR)

    def _first_lane(self, now: float) -> int:
        waiting = [number for number, lane in enumerate(self._lanes) if lane]
        if len(waiting) == 1:
            return waiting[0]
        first = min(waiting, key=self._drawn.__getitem__)
        for number in (2, 1):
            is_old = any(_is_old(line.head(), now) for line in self._lanes[number].values())
            if is_old and self._may_go_ahead(number, first):
                return number
        return first

    def _may_go_ahead(self, number: int, first: int) -> bool:
        """Whether old requests of a lane may go before the lane whose turn it is."""
        return (self._drawn[number] - self._drawn[first]) * SHARES[number] < PROMOTED_ROWS

    def waiting(self, key: Hashable) -> Waiting:
        """What waits under a key; the oldest and the earliest deadline as far as the heads of its lines know."""
        rows, oldest, deadline = 0, _FAR, _FAR
        for lane in self._lanes:
            line = lane.get(key)
            if line is not None:
                head = line.head()
                rows += line.rows
                oldest = min(oldest, head.taken)
                deadline = min(deadline, head.deadline)
        return Waiting(rows, oldest, deadline)

    # --- taking -------------------------------------------------------------------------------------------------------

    def next_group(self) -> list[Delivery] | None:
        """Take the next group that must run by itself, None when there is none."""
        if not self._groups:
            return None
        group = self._groups.popleft()
        self.rows -= sum(delivery.rows for delivery in group)
        self._count(group, -1)
        return group

    @property
    def next_suspect(self) -> Delivery | None:
        """The suspect that is next and must have the engine to itself; None when something else is next."""
        if self._groups and self._groups[0][0].is_suspect:
            return self._groups[0][0]
        return None

    def take(
        self, key: Hashable, max_rows: int, now: float, hopeless: Callable[[int], float] = _nobody
    ) -> tuple[list[Delivery], list[Delivery]]:
        """Take up to `max_rows` rows, and at least one request: those to run, and those to refuse.

        Refused are requests whose deadline has passed or is before `hopeless` of the rows that the batch will have;
        they take up no room. Each that is refused may make the batch smaller and quicker, and save the next.
        """
        lanes, waiting = [], 0
        for number, lane in enumerate(self._lanes):
            if key in lane:
                lanes.append(number)
                waiting += lane[key].rows
        taking = _Taking(max_rows, waiting, now, hopeless)
        while len(lanes) > 1:  # one at a time, so that the draw decides about each
            number = self._drawn_lane(lanes, key, now)
            left = taking.room
            self._take_from(number, key, taking, once=True)
            if taking.room == left:
                lanes.remove(number)  # its head does not fit; others may
            elif key not in self._lanes[number]:
                lanes.remove(number)
        if lanes:
            self._take_from(lanes[0], key, taking)
        if self.lane_rows is not None:
            self._count(itertools.chain(taking.ready, taking.dropped), -1)
        return taking.ready, taking.dropped

    def refuse(self, key: Hashable, limit: float) -> list[Delivery]:
        """Take out what is most urgent and has its deadline before `limit`."""
        dropped: list[Delivery] = []
        for number, lane in enumerate(self._lanes):
            line = lane.get(key)
            while line is not None and line.rows and line.head().deadline < limit:
                head = line.pop()
                dropped.append(head)
                self.rows -= head.rows
                self._drawn[number] += head.rows / SHARES[number]
            if line is not None and not line.rows:
                del lane[key]
        self._count(dropped, -1)
        return dropped

    def _drawn_lane(self, lanes: list[int], key: Hashable, now: float) -> int:
        first = min(lanes, key=self._drawn.__getitem__)
        for number in reversed(lanes):
            if number and _is_old(self._lanes[number][key].head(), now) and self._may_go_ahead(number, first):
                return number
        return first

    def _take_from(self, number: int, key: Hashable, taking: _Taking, *, once: bool = False) -> None:
        """Take from one line what fits, at least a first request."""
        lane = self._lanes[number]
        line, before = lane[key], lane[key].rows
        while line.rows:
            head = line.head()
            if head.deadline <= taking.limit:
                taking.drop(line.pop())
                continue
            if head.rows > taking.room and taking.ready:
                break
            taking.ready.append(line.pop())
            taking.room -= head.rows
            if once:
                break
        taken = before - line.rows
        self.rows -= taken
        drawn = self._drawn
        if drawn[number] > self._level:
            high, normal, low = self._lanes
            is_alone = lane is normal and not high and not low
            self._level = drawn[number] if is_alone else max(self._level, self._least_drawn())
        drawn[number] += taken / SHARES[number]
        if not line.rows:
            del lane[key]

    def _least_drawn(self) -> float:
        return min(drawn for drawn, lane in zip(self._drawn, self._lanes, strict=True) if lane)

    def remove(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take out every delivery for which `unwanted` is true."""
        removed = [] if self._order is None else self._order.remove(unwanted)
        leaving = self._take_out(unwanted)
        for delivery in leaving:
            self.settled(delivery)
        return leaving + removed

    def expired(self, now: float) -> list[Delivery]:
        """Take out every delivery whose deadline has passed; those behind one of its key wait until it is settled."""
        return self._take_out(lambda delivery: delivery.deadline <= now)

    def _take_out(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        groups, self._groups = list(self._groups), deque()
        queued = [d for lane in self._lanes for line in lane.values() for d in line.everything()]
        for lane in self._lanes:
            lane.clear()
        self.rows = 0 if self._order is None else self._order.rows
        if self.lane_rows is not None:
            self.lane_rows[:] = [0] * len(self.lane_rows)
        self.put_groups([d for d in group if not unwanted(d)] for group in groups)
        leaving = [d for group in groups for d in group if unwanted(d)]
        for delivery in queued:
            if unwanted(delivery):
                leaving.append(delivery)
            else:
                self.rows += delivery.rows
                self._count((delivery,), 1)
                self._admit(delivery)
        return leaving


def _is_old(delivery: Delivery, now: float) -> bool:
    """Whether more than half of a request's time to live has gone, its wait in the log included."""
    return 2 * (delivery.deadline - now) < delivery.deadline - delivery.taken + delivery.queued_us / 1e6
