"""Requests waiting for a batch.

One queue per batch key (rows of one batch share shapes and parameters); across keys the one whose head has waited
longest is served first. Suspects (requests that were in a batch that failed or killed the engine) wait in front and are
handed out in the groups that they were put in, never together with others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable

from workers.ingest.delivery import Delivery


class BatchQueue:
    """Holds deliveries; counts rows, not requests."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, deque[Delivery]] = {}
        self._rows: dict[Hashable, int] = {}
        self._groups: deque[list[Delivery]] = deque()
        self.rows = 0
        """All waiting rows, suspects included."""

    def __bool__(self) -> bool:
        return bool(self._groups or self._queues)

    def put(self, delivery: Delivery) -> None:
        """Append a delivery to the queue of its key."""
        key = delivery.batch_key
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = deque()
            self._rows[key] = 0
        queue.append(delivery)
        self._rows[key] += delivery.rows
        self.rows += delivery.rows

    def put_groups(self, groups: Iterable[list[Delivery]]) -> None:
        """Put groups to be run next, each as a batch of its own, in the order given."""
        for group in reversed([group for group in groups if group]):
            self._groups.appendleft(group)
            self.rows += sum(delivery.rows for delivery in group)

    def next_group(self) -> list[Delivery] | None:
        """Take the next group that must run by itself, None when there is none."""
        if not self._groups:
            return None
        group = self._groups.popleft()
        self.rows -= sum(delivery.rows for delivery in group)
        return group

    @property
    def next_suspect(self) -> Delivery | None:
        """The suspect that is next and must have the engine to itself; None when something else is next."""
        if self._groups and self._groups[0][0].is_suspect:
            return self._groups[0][0]
        return None

    def oldest_key(self) -> Hashable:
        """The key whose head has waited longest; the queue must not be empty of ordinary deliveries."""
        if len(self._queues) == 1:
            return next(iter(self._queues))
        return min(self._queues, key=lambda key: self._queues[key][0].taken)

    @property
    def has_keys(self) -> bool:
        """Whether ordinary deliveries wait."""
        return bool(self._queues)

    def head(self, key: Hashable) -> tuple[int, float]:
        """Rows waiting under a key, and when its oldest was taken."""
        return self._rows[key], self._queues[key][0].taken

    def take(self, key: Hashable, max_rows: int, now: float) -> tuple[list[Delivery], list[Delivery]]:
        """Take up to `max_rows` rows, oldest first: those to run and those whose deadline has passed."""
        queue, ready, expired, room = self._queues[key], [], [], max_rows
        while queue and queue[0].rows <= room:
            delivery = queue.popleft()
            self._rows[key] -= delivery.rows
            self.rows -= delivery.rows
            if delivery.deadline <= now:
                expired.append(delivery)
            else:
                ready.append(delivery)
                room -= delivery.rows
        if not queue:
            del self._queues[key], self._rows[key]
        return ready, expired

    def remove(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Take out every delivery for which `unwanted` is true."""
        kept_groups = [[d for d in group if not unwanted(d)] for group in self._groups]
        kept = [d for queue in self._queues.values() for d in queue if not unwanted(d)]
        removed = [d for group in self._groups for d in group if unwanted(d)]
        removed += [d for queue in self._queues.values() for d in queue if unwanted(d)]
        self._queues.clear()
        self._rows.clear()
        self._groups.clear()
        self.rows = 0
        self.put_groups(kept_groups)
        for delivery in kept:
            self.put(delivery)
        return removed
