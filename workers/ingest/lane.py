"""The topic of one priority, beside a model's request topic.

Whether a model version has lanes is the scheduler's business: a worker begins to drain a lane when the pool wants one
of its partitions of it, be that at its start or in the middle of its life, and connects only then. What a lane brings
goes into the same queue as everything else; how much of it, `Room` says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial

from contracts import topics
from contracts.adapters.kafka import Reader
from workers.ingest import metrics
from workers.ingest.delivery import LANES, Delivery
from workers.ingest.drain import Batches, Drain
from workers.ingest.room import Room


def show_waiting(topic: str, batches: Batches, room: Room | None = None) -> None:
    """Have the metric tell what waits of a request topic, and of each of its lanes: every row once, whenever asked."""
    shown = metrics.QUEUE_ROWS
    if room is None:
        shown.labels(topic).set_function(lambda: batches.waiting_rows)
        return
    of_lanes = {topics.lane(topic, priority): LANES[priority] for priority in topics.LANES}
    for lane, number in of_lanes.items():
        shown.labels(lane).set_function(partial(room.rows, number))
    shown.labels(topic).set_function(lambda: batches.waiting_rows - sum(map(room.rows, of_lanes.values())))


class LaneBatches:
    """What takes a lane's deliveries: the same as all others, but for the room."""

    def __init__(self, batches: Batches, room: Room, lane: int) -> None:
        self._batches = batches
        self._room = room
        self._lane = lane
        self.put = batches.put
        self.pump = batches.pump

    @property
    def has_room(self) -> bool:
        """Whether more can be taken."""
        return self._room.is_open(self._lane)

    @property
    def waiting_rows(self) -> int:
        """Rows of this lane that wait for a batch."""
        return self._room.rows(self._lane)

    @property
    def room_rows(self) -> int:
        """How many more rows are to be taken, at least one."""
        return self._room.left(self._batches.waiting_rows, self._lane)

    async def wait_for_room(self) -> None:
        """Return when more can be taken."""
        await self._room.wait(self._lane)

    def drop(self, unwanted: Callable[[Delivery], bool], *, begun: bool = False) -> None:
        """Forget what was not begun."""
        self._batches.drop(unwanted, begun=begun)


class Lane:
    """Drains a lane, from when that is first asked for."""

    def __init__(
        self, drain: Drain, reader: Reader, *, partitions: Callable[[str], Awaitable[int]], opened: Callable[[], None]
    ) -> None:
        """`partitions` tells how many a topic has; `opened` is called before the first record is taken."""
        self.drain = drain
        self._reader = reader
        self._partitions = partitions
        self._opened = opened
        self._opening = asyncio.Lock()
        self._is_open = False

    @property
    def partitions(self) -> frozenset[int]:
        """The partitions drained now."""
        return self.drain.partitions

    async def take(self, numbers: Iterable[int]) -> None:
        """Begin to drain partitions that were just claimed. Raises TransportError."""
        async with self._opening:
            if not self._is_open:
                await self._reader.open()
                self._opened()
                self._is_open = True
            await self.assign()
        await self.drain.take(numbers)

    async def give(self, numbers: Iterable[int]) -> frozenset[int]:
        """Finish what runs of these partitions and commit it; returns those that may be released."""
        return await self.drain.give(numbers)

    async def assign(self) -> None:
        """Make the topic's partitions claimable, those too that were added. Raises TransportError."""
        if self._is_open:
            self.drain.assign(await self._partitions(self.drain.topic))

    async def close(self) -> None:
        """Disconnect."""
        await self._reader.close()
