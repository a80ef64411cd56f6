"""Responses on their way to Kafka: published, acknowledged, and only then settled.

Each destination (a partition of a reply or dead-letter topic) sends one batch at a time; what arrives meanwhile forms
the next. That costs one future per batch instead of one per response, and the batches grow with the load. No record is
given up: after a transport error the producer is rebuilt and everything unacknowledged is sent again, since repeated
responses collapse at the client. Only a destination that does not exist ends a record's way.

Every record comes with two continuations, each a function and its argument: `settle` is called when the record is
acknowledged and never before, `lost` when its destination does not exist or does not take a record of its size.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
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
_RETRY_SECONDS = (0.05, 0.2, 0.5, 1.0, 2.0)

Continuation = tuple[Callable[[Any], None], Any]
_Continuations = tuple[Continuation, Continuation]


class _Destination:
    """One partition: what waits for it, and the task that sends it while something does."""

    __slots__ = ("continuations", "partition", "records", "task", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic, self.partition = topic, partition
        self.records: list[Outgoing] = []
        self.continuations: list[_Continuations] = []
        self.task: asyncio.Task[None] | None = None


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
        self._rebuilding = asyncio.Lock()
        self._generation = 0
        self._acked_at = clock.monotonic()
        self.waiting_bytes = 0
        """Bytes that are not acknowledged yet."""

    @property
    def has_room(self) -> bool:
        """Whether further results may be produced."""
        return self.waiting_bytes < BUFFER_BYTES

    def publish(self, topic: str, partition: int, record: Outgoing, settle: Continuation, lost: Continuation) -> None:
        """Queue a record; exactly one of the continuations follows, unless the publisher is stopped first."""
        destination = self._destinations.get((topic, partition))
        if destination is None:
            destination = self._destinations[topic, partition] = _Destination(topic, partition)
        destination.records.append(record)
        destination.continuations.append((settle, lost))
        self.waiting_bytes += len(record[0] or b"")
        if destination.task is None:
            destination.task = asyncio.get_running_loop().create_task(
                self._send_all(destination), name=f"publish {topic}/{partition}"
            )

    async def _send_all(self, destination: _Destination) -> None:
        try:
            while destination.records:
                records, continuations = destination.records, destination.continuations
                destination.records, destination.continuations = [], []
                is_acknowledged = await self._send(destination, records)
                self.waiting_bytes -= sum(len(record[0] or b"") for record in records)
                if is_acknowledged is None:
                    await self._send_singly(destination, records, continuations)
                else:
                    _continue(continuations, is_acknowledged=is_acknowledged)
                self._progress()
        finally:
            destination.task = None
            self._destinations.pop((destination.topic, destination.partition), None)

    async def _send_singly(
        self, destination: _Destination, records: Sequence[Outgoing], continuations: Sequence[_Continuations]
    ) -> None:
        """One of these is too large for the broker; the others must not suffer for it."""
        for record, following in zip(records, continuations, strict=True):
            is_acknowledged = len(records) > 1 and await self._send(destination, [record])
            _continue([following], is_acknowledged=bool(is_acknowledged))

    async def _send(self, destination: _Destination, records: Sequence[Outgoing]) -> bool | None:
        """Return whether the records are acknowledged: False when their destination does not exist, None when one of
        them is too large.
        """
        for attempt in itertools.count():
            generation, sent_ms = self._generation, self._clock.unix_ms()
            try:
                ack = await self._producer.publish_many(
                    destination.topic, destination.partition, records, timeout_seconds=ACK_SECONDS
                )
            except TopicMissing as exc:
                log.warning("%d records have nowhere to go: %s", len(records), exc)
                return False
            except InvalidRequest as exc:
                log.warning("%d records are refused: %s", len(records), exc)
                await self._rebuild(generation)  # the refused batch took sequence numbers
                return None
            except AckUnknown as exc:
                log.warning("publishing %d records again: %s", len(records), exc)
                if self._clock.monotonic() - self._acked_at > ACK_SECONDS:  # nobody gets through: it is the producer
                    await self._rebuild(generation)
            except Exception as exc:  # noqa: BLE001 - whatever it was, these records must not vanish with this task
                metrics.PUBLISH_RETRIES.inc()
                log.warning("publishing %d records again: %r", len(records), exc)
                await asyncio.sleep(_RETRY_SECONDS[min(attempt, len(_RETRY_SECONDS) - 1)])
                await self._rebuild(generation)
            else:
                if ack is not None:
                    self._acked_at = self._clock.monotonic()
                    self._acked(ack, sent_ms)
                return True
        return False

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
        tasks = [d.task for d in self._destinations.values() if d.task is not None]
        if not tasks:
            return True
        _, late = await asyncio.wait(tasks, timeout=seconds)
        return not late

    async def stop(self) -> None:
        """Give up what is not acknowledged; its records stay uncommitted and are done again by the next owner."""
        tasks = [d.task for d in self._destinations.values() if d.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _continue(continuations: Sequence[_Continuations], *, is_acknowledged: bool) -> None:
    for settle, lost in continuations:
        function, argument = settle if is_acknowledged else lost
        function(argument)
