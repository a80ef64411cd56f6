"""Draining request topics: records become deliveries, those with a past are taken with care.

How a topic is drained is said in `workers.draining.topic`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from contracts.adapters.kafka import Partition, Reader, Record
from workers.draining.claim import Claim
from workers.draining.offsets import Arrival
from workers.draining.topic import Bounds, TopicDrain
from workers.ingest.delivery import Delivery
from workers.ingest.forwarder import Forwarder
from workers.ingest.intake import Intake
from workers.ingest.settings import WorkerGroup
from workers.ingest.suspects import Suspects

log = logging.getLogger(__name__)

CAREFUL_CLAIMS = 3
"""A partition that was begun so often without getting on has something in it that ends workers."""


class Batches(Protocol):
    """What takes deliveries: the batcher of a model, or the jobs of a fused pipeline."""

    @property
    def has_room(self) -> bool:
        """Whether more can be taken."""
        ...

    @property
    def waiting_rows(self) -> int:
        """Rows that wait for a batch."""
        ...

    @property
    def room_rows(self) -> int:
        """How many more rows are to be taken, at least one."""
        ...

    async def wait_for_room(self) -> None:
        """Return when more can be taken."""

    def put(self, delivery: Delivery) -> None:
        """Take a delivery."""

    def pump(self) -> None:
        """The last of several was put."""

    def drop(self, unwanted: Callable[[Delivery], bool], *, begun: bool = False) -> None:
        """Forget what was not begun, or, of what takes several steps, even what was."""


class Serving(Batches, Protocol):
    """What takes deliveries, suspects too."""

    def run_alone(self, delivery: Delivery) -> None:
        """Run a suspect before anything else."""


class Drain(TopicDrain):
    """The partitions of one request topic that this worker owns."""

    def __init__(
        self,
        topic: str,
        reader: Reader,
        *,
        intake: Intake,
        batcher: Batches,
        settings: WorkerGroup,
        may_take: Callable[[], bool],
        suspects: Suspects,
        forwarder: Forwarder | None = None,
    ) -> None:
        """`forwarder` works while partition 0 is ours."""
        super().__init__(topic, reader, settings=settings, may_take=may_take)
        self._intake = intake
        self._batcher = batcher
        self._forwarder = forwarder
        self.lane: int | None = None
        """That of the topic, None where each record says its own."""
        self._journal = suspects.journal
        self._suspects = suspects

    async def _opened(self, starts: Mapping[Partition, Bounds]) -> list[Claim]:
        waits = {p.partition: (start, start < end) for p, (start, end) in starts.items()}
        pasts = await self._journal.claim(self.topic, waits)
        claims = []
        for partition, (start, _) in starts.items():
            past = pasts[partition.partition]
            careful = start + self._settings.poll_records if past.claims >= CAREFUL_CLAIMS else 0
            if careful or past.suspects:
                log.warning("%s/%d: %d suspects, begun %d times", *partition, len(past.suspects), past.claims)
            claims.append(
                Claim(
                    partition,
                    start,
                    suspects=past.suspects,
                    careful_until=careful,
                    claims=past.claims,
                    lane=self.lane,
                )
            )
        if self._forwarder is not None and any(partition.partition == 0 for partition in starts):
            self._forwarder.take()
        return claims

    async def _closing(self, partitions: Sequence[Partition]) -> None:
        if self._forwarder is not None and any(partition.partition == 0 for partition in partitions):
            await self._forwarder.give()

    def _silence(self, claims: Iterable[Claim]) -> None:
        self._batcher.drop(lambda delivery: delivery.origin.claim in claims)

    def _abandon(self, claims: Iterable[Claim]) -> None:
        self._batcher.drop(lambda delivery: delivery.origin.claim in claims, begun=True)

    async def _room(self) -> bool:
        if self._batcher.has_room:
            return True
        try:
            async with asyncio.timeout(1.0):
                await self._batcher.wait_for_room()
        except TimeoutError:
            return False
        return True

    def _most(self) -> int:
        return min(super()._most(), self._batcher.room_rows)

    async def _take_records(self, claim: Claim, records: Sequence[Record]) -> None:
        tracker, take, put = claim.tracker, self._intake.take, self._batcher.put
        is_wary, moment = claim.is_wary, self._intake.moment()
        for record in records:
            arrival = tracker.receive(record.offset)
            if arrival is Arrival.NEXT:
                if is_wary and claim.is_suspect(record.offset):
                    self._suspects.put(claim, record)
                    continue
                delivery = take(claim, record, moment)
                if delivery is not None:
                    put(delivery)
            elif arrival is Arrival.GAP:
                self._gap(claim, record)
                return

    async def _took(self) -> None:
        self._batcher.pump()

    def _progressed(self, claim: Claim) -> None:
        if claim.claims:
            claim.claims = 0
            self._journal.progressed(self.topic, claim.partition.partition)
