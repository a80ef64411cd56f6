"""How many rows may wait in a worker, and of which lane. Pure but for the events that tell who waits for room.

A queue takes `limit` rows. Where priorities have topics of their own, each of these topics besides has a reserve: below
that it is read on however full the queue is. So a backlog of one priority never keeps the worker from taking another,
and none starves, since what is drawn for batches is drawn from every lane that waits. What waits altogether stays below
the limit and the reserves of the two lanes that did not fill it.

A topic that has no room is read again when half of its reserve, or of the queue, is free: taking rows one by one as
they leave would cost more than it brings.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from workers.ingest.delivery import LANES, NORMAL

RESERVED_BATCHES = 2
"""Of each lane: what is being cut, and what is cut next."""


def reserve_of(limit: int, max_batch_size: int) -> int:
    """The rows that each lane may always have waiting."""
    return min(limit, RESERVED_BATCHES * max_batch_size)


def room_for(lane: int, rows: Sequence[int], limit: int, reserve: int) -> int:
    """How many more rows of a lane may wait, given those of each that do; none when it is not above zero."""
    return max(limit - sum(rows), reserve - rows[lane])


class Room:
    """The room in one queue. Lanes are numbered as in `LANES`; without lanes all rows are those of `NORMAL`."""

    def __init__(self) -> None:
        self._limit = self._reserve = 1
        self._rows: list[int] | None = None
        self._events = [asyncio.Event() for _ in LANES]
        for event in self._events:
            event.set()
        self.looks_from = 0.0
        """Below so many waiting rows there is nothing to `look` at."""
        self.rejects = False
        """Whether what finds no room is refused; if not, it is left in the log."""

    def configure(self, limit: int, max_batch_size: int, *, rejects: bool) -> None:
        """Take new limits."""
        self._limit, self._reserve, self.rejects = limit, reserve_of(limit, max_batch_size), rejects
        self.looks_from = 0.0

    def open_lanes(self, count: Callable[[], list[int]]) -> None:
        """From now on lanes have topics of their own; `count` tells what waits of each and is kept up to date."""
        if self._rows is None:
            self._rows = count()
            self.looks_from = 0.0

    def is_open(self, lane: int = NORMAL) -> bool:
        """Whether a lane is read."""
        return self._events[lane].is_set()

    async def wait(self, lane: int = NORMAL) -> None:
        """Return when it is."""
        await self._events[lane].wait()

    def rows(self, lane: int = NORMAL) -> int:
        """How many rows of a lane wait, once lanes were opened."""
        return 0 if self._rows is None else self._rows[lane]

    def left(self, total: int, lane: int = NORMAL) -> int:
        """How many more rows are to be taken of a lane while `total` rows wait, at least one."""
        if self.rejects:
            return self._limit
        return max(1, self._room(total, lane))

    def refuses(self, total: int, more: int, lane: int | None) -> bool:
        """Whether a request of so many rows finds no room."""
        return self.rejects and total > 0 and more > self._room(total, NORMAL if lane is None else lane)

    def _room(self, total: int, lane: int) -> int:
        if self._rows is None:
            return self._limit - total
        return room_for(lane, self._rows, self._limit, self._reserve)

    def look(self, total: int, *, is_stale: bool) -> None:
        """Say who is read on. Of a queue that grows stale half may not be worth a batch; the log has fresher ones."""
        if self.rejects:
            for event in self._events:
                event.set()
            self.looks_from = math.inf
            return
        if self._rows is None:
            self._look(self._events[NORMAL], total < self._limit, is_stale or total <= self._limit // 2)
        else:
            is_half_empty = is_stale or total <= self._limit // 2
            for event, rows in zip(self._events, self._rows, strict=True):
                has_room = total < self._limit or rows < self._reserve
                self._look(event, has_room, is_half_empty or rows <= self._reserve // 2)
        # While all are read nothing changes before the queue is full.
        self.looks_from = self._limit if all(event.is_set() for event in self._events) else 0.0

    @staticmethod
    def _look(event: asyncio.Event, has_room: bool, has_much: bool) -> None:  # noqa: FBT001 - both are of the event
        if not has_room:
            event.clear()
        elif has_much:
            event.set()
