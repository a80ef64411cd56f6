"""One claim on one partition: from `assign_claim` to `assign_release`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from contracts.adapters.journal import Tries
from contracts.adapters.kafka import Partition
from workers.draining.offsets import OffsetTracker


class Claim:
    """What this worker has taken of a partition and not answered yet.

    `open` counts the records in its hands: queued, launched or awaiting the acknowledgement of their response. A claim
    that is `giving` takes no further ones. Records that are `suspects`, and all below `careful_until`, are taken with
    care; `claims` is how often the partition was begun since somebody last got on with it. `lane` is that of its topic,
    None where each record says its own.
    """

    __slots__ = (
        "_awaited",
        "_settled",
        "careful_until",
        "claims",
        "giving",
        "is_over",
        "lane",
        "name",
        "open",
        "partition",
        "suspects",
        "tracker",
    )

    def __init__(
        self,
        partition: Partition,
        start: int,
        *,
        suspects: Mapping[int, Tries] | None = None,
        careful_until: int = 0,
        claims: int = 0,
        lane: int | None = None,
    ) -> None:
        self.partition = partition
        self.name = f"{partition.topic}/{partition.partition}"
        self.tracker = OffsetTracker(start)
        self.open = 0
        self.giving = False
        self.is_over = False
        """The partition was given away: a result may still be published, an error may not."""
        self.suspects = dict(suspects or {})
        self.careful_until = careful_until
        self.claims = claims
        self.lane = lane
        self._settled: asyncio.Event | None = None
        self._awaited: tuple[int, asyncio.Event] | None = None

    @property
    def is_wary(self) -> bool:
        """Whether records have to be looked at before they are taken."""
        return bool(self.suspects) or self.tracker.expected < self.careful_until

    def is_suspect(self, offset: int) -> bool:
        """Whether a record must be taken with care."""
        return offset < self.careful_until or offset in self.suspects

    def answered(self, offset: int) -> None:
        """A record's outcome is acknowledged."""
        self.tracker.done(offset)
        if self._awaited is not None and offset == self._awaited[0]:
            self._awaited[1].set()
        self.dropped()

    def dropped(self) -> None:
        """A record leaves this worker's hands without an outcome; the next owner reads it again."""
        self.open -= 1
        if self._awaited is not None and self.giving:
            self._awaited[1].set()
        if self._settled is not None and self.open <= 0:
            self._settled.set()

    async def settle(self) -> None:
        """Return when nothing of this claim is in hand any more."""
        if self.open > 0:
            self._settled = asyncio.Event()
            await self._settled.wait()

    async def outcome(self, offset: int) -> None:
        """Return when this record is answered, or the claim is being given away; one record at a time."""
        if self.tracker.is_done(offset) or self.giving:
            return
        event = asyncio.Event()
        self._awaited = offset, event
        try:
            await event.wait()
        finally:
            self._awaited = None
