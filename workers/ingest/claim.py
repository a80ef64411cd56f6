"""One claim on one partition: from `assign_claim` to `assign_release`."""

from __future__ import annotations

import asyncio

from contracts.adapters.kafka import Partition
from workers.ingest.offsets import OffsetTracker


class Claim:
    """What this worker has taken of a partition and not answered yet.

    `open` counts the records in its hands: queued, launched or awaiting the acknowledgement of their response. A claim
    that is `giving` takes no further ones.
    """

    __slots__ = ("_settled", "giving", "is_over", "open", "partition", "tracker")

    def __init__(self, partition: Partition, start: int) -> None:
        self.partition = partition
        self.tracker = OffsetTracker(start)
        self.open = 0
        self.giving = False
        self.is_over = False
        """The partition was given away: a result may still be published, an error may not."""
        self._settled: asyncio.Event | None = None

    def answered(self, offset: int) -> None:
        """A record's outcome is acknowledged."""
        self.tracker.done(offset)
        self.dropped()

    def dropped(self) -> None:
        """A record leaves this worker's hands without an outcome; the next owner reads it again."""
        self.open -= 1
        if self._settled is not None and self.open <= 0:
            self._settled.set()

    async def settle(self) -> None:
        """Return when nothing of this claim is in hand any more."""
        if self.open > 0:
            self._settled = asyncio.Event()
            await self._settled.wait()
