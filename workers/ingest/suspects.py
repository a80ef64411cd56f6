"""Suspects: records that were in an engine or a worker when it ended.

Each is journaled for certain before it is launched again, and launched alone. That it is decoded only then, too, keeps
a record that kills the decoder from doing so without a trace. A partition that was begun three times without anybody
getting on is taken with care: one record at a time, each journaled before it is decoded, until the records that an
earlier worker can have had are behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from contracts.adapters.journal import Journal, Row, Tries
from contracts.adapters.kafka import Record
from contracts.errors import TransportError
from workers.draining.claim import Claim
from workers.ingest import isolate, metrics
from workers.ingest.delivery import Delivery
from workers.ingest.intake import Moment

log = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5
_KEEP_SECONDS = 1.0


class Taking(Protocol):
    """The intake, as far as suspects need it."""

    def moment(self) -> Moment:
        """Now, by both clocks."""

    def take(self, claim: Claim, record: Record, moment: Moment) -> Delivery | None:
        """A delivery, or None when the record was answered."""

    def bury(self, claim: Claim, record: Record, message: str, attempts: int) -> None:
        """Put a record aside unread."""


class Suspects:
    """Stands between the batches of one model and the worker's journal."""

    def __init__(self, journal: Journal, is_trusted: Callable[[], bool]) -> None:
        """`is_trusted` is asked before anything is journaled: a worker in doubt blames nobody."""
        self.journal = journal
        self._is_trusted = is_trusted
        self._clearing: list[Delivery] = []
        self._careful: asyncio.Queue[tuple[Claim, Record]] = asyncio.Queue()
        self._to_clear = asyncio.Event()

    # --- what the batcher says ----------------------------------------------------------------------------------------

    def launched(self, slot: int, deliveries: Sequence[Delivery]) -> None:
        """A batch was sent in this turn of the loop."""
        runs: list[tuple[str, int, int]] = []
        if not deliveries[0].is_suspect:  # those are journaled already
            claim, first, last = deliveries[0].origin.claim, -1, -2
            for delivery in deliveries:  # most come as they lie in the log: a few runs of offsets say it all
                origin = delivery.origin
                offset = origin.record.offset
                if origin.claim is claim and offset == last + 1:
                    last = offset
                    continue
                if first >= 0:
                    runs.append((claim.name, first, last))
                claim, first, last = origin.claim, offset, offset
            runs.append((claim.name, first, last))
        self.journal.launched(slot, runs)

    def lost(self, deliveries: Sequence[Delivery], *, is_alone: bool) -> None:
        """The engine ended under a batch."""
        if not (is_alone and deliveries[0].request.is_journaled):  # what was journaled beforehand is counted already
            self.journal.lost((_row(delivery) for delivery in deliveries), is_alone=is_alone)
        for delivery in deliveries:
            delivery.lost += 1
            delivery.lost_alone += is_alone
            delivery.request.is_journaled = False

    def dropped(self, delivery: Delivery) -> None:
        """A request is left to the next owner of its partition, and what was written about its launch is taken back."""
        request = delivery.request
        if request.is_journaled:
            request.is_journaled = False
            self.journal.refund(_row(request))

    def settled(self, delivery: Delivery) -> None:
        """A request, or a part of one, has an outcome; the parts of a request are journaled as one."""
        if delivery.is_suspect and (delivery.whole is None or delivery.whole.is_over):
            self.journal.settled(_row(delivery))

    def may_launch(self, delivery: Delivery) -> bool:
        """Whether a suspect is journaled; if not, it will be, and the batcher is pumped then."""
        request = delivery.request
        if not request.is_journaled and request not in self._clearing:
            self._clearing.append(request)
            self._to_clear.set()
        return request.is_journaled

    # --- what the drain says ------------------------------------------------------------------------------------------

    def put(self, claim: Claim, record: Record) -> None:
        """A record that must be taken with care."""
        claim.open += 1
        self._careful.put_nowait((claim, record))

    # --- loops --------------------------------------------------------------------------------------------------------

    async def clear_loop(self, pump: Callable[[], None]) -> None:
        """Journal suspects that are to be launched."""
        while True:
            await self._to_clear.wait()
            self._to_clear.clear()
            while self._clearing:
                delivery = self._clearing[0]
                claim = delivery.origin.claim
                delivery.is_journaled = await self._write(_row(delivery), claim)
                if claim.giving:  # it was dropped meanwhile
                    self.dropped(delivery)
                self._clearing.remove(delivery)
                pump()

    async def careful_loop(self, taking: Taking, run: Callable[[Delivery], None]) -> None:
        """Take records with care, one at a time."""
        while True:
            claim, record = await self._careful.get()
            row = (record.topic, record.partition, record.offset)
            known = claim.suspects.pop(record.offset, Tries(0, 0))
            if isolate.is_poison(known.lost, known.alone) and not claim.giving:
                claim.open -= 1  # the intake counts it again
                text = f"{known.lost} workers ended while they had this request, {known.alone} times alone"
                taking.bury(claim, record, text, known.lost)
            elif await self._write(row, claim):
                claim.open -= 1
                self._take(taking, run, claim, record, known)
                await claim.outcome(record.offset)
            else:
                claim.dropped()

    def _take(
        self, taking: Taking, run: Callable[[Delivery], None], claim: Claim, record: Record, known: Tries
    ) -> None:
        metrics.SUSPECTS.inc()
        delivery = taking.take(claim, record, taking.moment())
        if delivery is None:
            self.journal.settled((record.topic, record.partition, record.offset))
            return
        delivery.lost, delivery.lost_alone, delivery.is_journaled = known.lost, known.alone, True
        delivery.is_watched = True
        run(delivery)

    async def _write(self, row: Row, claim: Claim) -> bool:
        """Journal a launch for certain; False when the partition has been given away meanwhile."""
        while not claim.giving:
            if not self._is_trusted():
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            try:
                await self.journal.suspect(row)
            except TransportError as exc:
                log.warning("a suspect waits for the journal: %s", exc)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return True
        return False

    def stop(self, in_flight: Sequence[Delivery]) -> None:
        """This worker ends in peace: take back what was written about launches that never ended."""
        for delivery in in_flight:
            self.dropped(delivery)


async def keep_loop(journal: Journal) -> None:
    """See to it that the journal can be written."""
    while True:
        await asyncio.sleep(_KEEP_SECONDS)
        try:
            await journal.keep()
        except TransportError as exc:
            metrics.JOURNAL_GAPS.inc()
            log.warning("launches are not journaled: %s", exc)


async def close_in_peace(journal: Journal) -> None:
    """Nothing that this worker held is to blame for its end."""
    try:
        await journal.forget()
    except TransportError as exc:
        log.warning("the journal keeps launches that are nobody's fault: %s", exc)
    await journal.close()


def _row(delivery: Delivery) -> Row:
    origin = delivery.origin
    return origin.claim.partition.topic, origin.claim.partition.partition, origin.record.offset
