"""Responses on their way to Kafka: published, acknowledged, and only then settled.

Each destination (a partition of a reply or dead-letter topic) sends one batch at a time; what arrives meanwhile forms
the next. That costs one future per batch instead of one per response, and the batches grow with the load. No record is
given up: after a transport error the producer is rebuilt and everything unacknowledged is sent again, since repeated
responses collapse at the client. Only a destination that does not exist ends a record's way.

One destination that takes nothing must not stop the others, though all share the buffer. What it has beyond a quarter
is diverted as soon as it has stalled for two seconds, and everything when it was silent for thirty while others were
not; from then on it gets one record at a time, to find out when it is back.

Every record comes with continuations, each a function and its argument: `settle` is called when the record is
acknowledged and never before, `lost` when its destination does not exist or does not take a record of its size,
`diverted` when its destination takes nothing; a record without that waits for as long as it takes.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from contracts.adapters.kafka import Ack, AckUnknown, Outgoing, Producer, TopicMissing
from contracts.clock import Clock
from contracts.errors import HeadraceError, InvalidRequest
from workers.draining import metrics

log = logging.getLogger(__name__)

BUFFER_BYTES = 64 * 1024 * 1024
"""Unacknowledged response bytes above which no further batch is launched."""
ACK_SECONDS = 30.0
"""Without an acknowledgement for so long a batch is sent again; one partition's silence replaces no producer."""
_DELAY_WEIGHT, _MOST_DELAY_SECONDS = 0.05, 0.1  # of one send in the average; one that hangs says nothing about others
DESTINATION_BYTES = BUFFER_BYTES // 4
"""What one destination may have of that once it has stalled."""
STALLED_SECONDS = 2.0
_RETRY_SECONDS = (0.05, 0.2, 0.5, 1.0, 2.0)

_Posted = asyncio.Future[Any]
"""The acknowledgement of what was sent at once."""
Continuation = tuple[Callable[[Any], None], Any]
_Continuations = tuple[Continuation, Continuation, Continuation | None]


class _End(enum.Enum):
    ACKNOWLEDGED = enum.auto()
    MISSING = enum.auto()
    """Its destination does not exist."""
    TOO_LARGE = enum.auto()
    SILENT = enum.auto()
    """Its destination takes nothing, while others do."""


class _Destination:
    """One partition: what waits for it, and the task that sends it while something does."""

    __slots__ = ("continuations", "moved_at", "partition", "records", "relief", "size", "task", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic, self.partition = topic, partition
        self.size = 0  # bytes that wait or are being sent
        self.moved_at = math.inf  # until it begins
        self.relief: asyncio.TimerHandle | None = None
        self.records: list[Outgoing] = []
        self.continuations: list[_Continuations] = []
        self.task: asyncio.Task[None] | None = None

    def take(self) -> tuple[list[Outgoing], list[_Continuations]]:
        """What is to be sent next: all that waits, up to the share of the buffer that cannot be diverted any more."""
        records, continuations = self.records, self.continuations
        if self.size <= DESTINATION_BYTES:
            self.records, self.continuations = [], []
            return records, continuations
        ends = itertools.accumulate(len(record[0] or b"") for record in records)
        count = max(1, sum(1 for _ in itertools.takewhile(lambda end: end <= DESTINATION_BYTES, ends)))
        self.records, self.continuations = records[count:], continuations[count:]
        return records[:count], continuations[:count]


class Publisher:
    """Publishes on behalf of one worker."""

    def __init__(
        self, producer: Producer, clock: Clock, acked: Callable[[Ack, int], None], progress: Callable[[], None]
    ) -> None:
        """`acked` gets each acknowledgement with the time of its send; `progress` is called when room was made."""
        self._producer = producer
        self._clock = clock
        self._acked = acked
        self._progress = progress
        self._destinations: dict[tuple[str, int], _Destination] = {}
        self._due: list[_Destination] = []  # whose sending is to begin
        self._rebuilding = asyncio.Lock()
        self._generation = 0
        self._acked_at = clock.monotonic()
        self.delay_seconds = 0.0
        """From a send to its acknowledgement, lately: about what a response travels to its reader."""
        self._silent: dict[tuple[str, int], float] = {}
        """When destinations that take nothing are tried again."""
        self.waiting_bytes = 0
        """Bytes that are not acknowledged yet."""

    @property
    def has_room(self) -> bool:
        """Whether further results may be produced."""
        return self.waiting_bytes < BUFFER_BYTES

    def hold(self, size: int) -> None:
        """Count bytes that are yet to become a record."""
        self.waiting_bytes += size

    def release(self, size: int) -> None:
        """They are one, or never will be."""
        self.waiting_bytes -= size
        self._progress()

    def publish(
        self,
        topic: str,
        partition: int,
        record: Outgoing,
        settle: Continuation,
        lost: Continuation,
        diverted: Continuation | None = None,
    ) -> None:
        """Queue a record; exactly one of the continuations follows, unless the publisher is stopped first.

        It is sent with what else is published in this turn of the loop, or at once by `flush`.
        """
        destination = self._destinations.get((topic, partition))
        if destination is None:
            destination = self._destinations[topic, partition] = _Destination(topic, partition)
        size = len(record[0] or b"")
        if (
            diverted is not None
            and (self._silent or destination.size > DESTINATION_BYTES)
            and self._takes_nothing(destination)
        ):
            if destination.task is None and not destination.records:
                del self._destinations[topic, partition]
            function, argument = diverted
            function(argument)
            return
        if destination.task is None and not destination.records:
            if not self._due:
                asyncio.get_running_loop().call_soon(self.flush)
            self._due.append(destination)
        destination.records.append(record)
        destination.continuations.append((settle, lost, diverted))
        destination.size += size
        self.waiting_bytes += size
        if destination.size > DESTINATION_BYTES and destination.relief is None:
            destination.relief = asyncio.get_running_loop().call_later(STALLED_SECONDS, self._relieve, destination)

    def flush(self) -> None:
        """Send now what waits for the end of this turn: nothing else is to be sent with it."""
        due, self._due = self._due, []
        for destination in due:
            topic, partition = destination.topic, destination.partition
            records, continuations = destination.take()
            try:
                posted = self._producer.post(topic, partition, records, is_lone=len(self._destinations) == 1)
            except Exception as exc:  # noqa: BLE001 - whatever it was, the task meets it again
                log.debug("%s/%d: %r", topic, partition, exc)
                posted = None
            destination.moved_at = self._clock.monotonic()
            destination.task = asyncio.get_running_loop().create_task(
                self._send_all(destination, records, continuations, posted), name=f"publish {topic}/{partition}"
            )

    # --- destinations that take nothing -------------------------------------------------------------------------------

    def _takes_nothing(self, destination: _Destination) -> bool:
        """Whether a record for it is to be diverted; a silent one gets one now and then, to be heard of again."""
        now, key = self._clock.monotonic(), (destination.topic, destination.partition)
        again_at = self._silent.get(key)
        if again_at is None:
            return destination.size > DESTINATION_BYTES and now - destination.moved_at >= STALLED_SECONDS
        if now < again_at or destination.task is not None:
            return True
        self._silent[key] = now + ACK_SECONDS
        return False

    def _relieve(self, destination: _Destination) -> None:
        """Divert what waits for a destination that has stalled, or look again later."""
        destination.relief = None
        if self._clock.monotonic() - destination.moved_at >= STALLED_SECONDS:
            self._divert(destination)
        elif destination.size > DESTINATION_BYTES:
            destination.relief = asyncio.get_running_loop().call_later(STALLED_SECONDS, self._relieve, destination)

    def _divert(self, destination: _Destination) -> None:
        """Divert what waits and may be diverted; what is being sent is left to its end."""
        waiting = list(zip(destination.records, destination.continuations, strict=True))
        destination.records, destination.continuations = [], []
        for record, following in waiting:
            if following[2] is None:
                destination.records.append(record)
                destination.continuations.append(following)
                continue
            self._forget(destination, [record])
            _continue([following], _End.SILENT)
        self._progress()

    def _forget(self, destination: _Destination, records: Sequence[Outgoing]) -> None:
        size = sum(len(record[0] or b"") for record in records)
        destination.size -= size
        self.waiting_bytes -= size

    # --- sending ------------------------------------------------------------------------------------------------------

    async def _send_all(
        self,
        destination: _Destination,
        records: list[Outgoing],
        continuations: list[_Continuations],
        posted: _Posted | None,
    ) -> None:
        key = destination.topic, destination.partition
        try:
            while records:
                end = await self._send(destination, records, posted)
                posted = None
                destination.moved_at = self._clock.monotonic()
                if end is _End.SILENT:
                    log.warning("%s/%d takes nothing: its records are diverted", *key)
                    self._silent[key] = destination.moved_at + ACK_SECONDS
                    destination.records = [*records, *destination.records]
                    destination.continuations = [*continuations, *destination.continuations]
                    self._divert(destination)
                else:
                    self._silent.pop(key, None)
                    self._forget(destination, records)
                    if end is _End.TOO_LARGE:
                        await self._send_singly(destination, records, continuations)
                    else:
                        _continue(continuations, end)
                    self._progress()
                records, continuations = destination.take()
        finally:
            destination.task = None
            if destination.relief is not None:
                destination.relief.cancel()
            self._destinations.pop(key, None)

    async def _send_singly(
        self, destination: _Destination, records: Sequence[Outgoing], continuations: Sequence[_Continuations]
    ) -> None:
        """One of these is too large for the broker; the others must not suffer for it."""
        for record, following in zip(records, continuations, strict=True):
            end = await self._send(destination, [record]) if len(records) > 1 else _End.TOO_LARGE
            _continue([following], end)

    async def _send(
        self, destination: _Destination, records: Sequence[Outgoing], posted: _Posted | None = None
    ) -> _End:
        """Return what became of the records; TOO_LARGE when one of them is. They may be `posted` already."""
        for attempt in itertools.count():
            generation, sent_ms, sent = self._generation, self._clock.unix_ms(), self._clock.monotonic()
            try:
                ack = await self._attempt(destination, records, None if attempt else posted)
            except TopicMissing as exc:
                log.warning("%d records have nowhere to go: %s", len(records), exc)
                return _End.MISSING
            except InvalidRequest as exc:
                log.warning("%d records are refused: %s", len(records), exc)
                await self._rebuild(generation)  # the refused batch took sequence numbers
                return _End.TOO_LARGE
            except AckUnknown as exc:
                log.warning("%d records are not acknowledged: %s", len(records), exc)
                if self._clock.monotonic() - self._acked_at <= ACK_SECONDS:
                    return _End.SILENT
                await self._rebuild(generation)  # nobody gets through: it is the producer
            except Exception as exc:  # noqa: BLE001 - whatever it was, these records must not vanish with this task
                metrics.PUBLISH_RETRIES.inc()
                log.warning("publishing %d records again: %r", len(records), exc)
                await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                await self._rebuild(generation)
            else:
                if ack is not None:
                    self._acked_at = self._clock.monotonic()
                    seconds = min(self._acked_at - sent, _MOST_DELAY_SECONDS)
                    self.delay_seconds += _DELAY_WEIGHT * (seconds - self.delay_seconds)
                    self._acked(ack, sent_ms)
                return _End.ACKNOWLEDGED
        raise AssertionError("unreachable: attempts do not end")

    async def _attempt(
        self, destination: _Destination, records: Sequence[Outgoing], posted: _Posted | None
    ) -> Ack | None:
        topic, partition = destination.topic, destination.partition
        if posted is not None:
            return await self._producer.settle(posted, topic, timeout_seconds=ACK_SECONDS)
        is_lone = len(self._destinations) == 1
        return await self._producer.publish_many(
            topic, partition, records, timeout_seconds=ACK_SECONDS, is_lone=is_lone
        )

    async def _rebuild(self, generation: int) -> None:
        """Replace the producer, once for all destinations that failed with it."""
        async with self._rebuilding:
            if generation != self._generation:
                return
            try:
                await self._producer.rebuild()
            except HeadraceError as exc:
                log.warning("Kafka cannot be reached: %s", exc)
            else:
                self._generation += 1

    async def drain(self, seconds: float) -> bool:
        """Wait until everything is acknowledged; False when that took longer."""
        self.flush()
        tasks = [d.task for d in self._destinations.values() if d.task is not None]
        if not tasks:
            return True
        _, late = await asyncio.wait(tasks, timeout=seconds)
        return not late

    async def stop(self) -> None:
        """Give up what is not acknowledged; its records stay uncommitted and are done again by the next owner."""
        self._due.clear()
        tasks = [d.task for d in self._destinations.values() if d.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _continue(continuations: Sequence[_Continuations], end: _End) -> None:
    for settle, lost, diverted in continuations:
        function, argument = settle if end is _End.ACKNOWLEDGED else lost
        if end is _End.SILENT and diverted is not None:
            function, argument = diverted
        try:
            function(argument)
        except Exception:  # let through, all records beside it and behind it would have no outcome for ever
            log.exception("what follows a record failed")
