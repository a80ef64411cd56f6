"""Publishing.

Idempotent sends of aiokafka never expire by themselves, and its `stop()` waits for them: every wait here has a bound of
its own. A batch that fails after it took its sequence number leaves the producer unusable: it must be rebuilt. A batch
that is merely late does not, which is why that is an error of its own, AckUnknown.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.cluster import ClusterMetadata

from contracts.adapters.kafka.batches import PRODUCER_BATCH_BYTES, Records
from contracts.adapters.kafka.connection import (
    FAILURES,
    MAX_REQUEST_BYTES,
    STOP_SECONDS,
    Ack,
    AckUnknown,
    Header,
    Outgoing,
    Partition,
    TopicMissing,
    connection_options,
    translate,
)
from contracts.adapters.kafka.direct import Direct
from contracts.errors import InvalidRequest, TransportError
from contracts.settings import KafkaSettings


class Producer:
    """Publishes records with `acks=all`, idempotently; sends that pile up go out together."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._direct: Direct | None = None
        self._topics: set[str] = set()
        self._partitions: dict[str, list[Partition]] = {}

    async def open(self) -> None:
        """Connect. Raises TransportError when no broker answers."""
        producer = AIOKafkaProducer(
            **connection_options(self._settings),
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=PRODUCER_BATCH_BYTES,
            max_request_size=MAX_REQUEST_BYTES,
        )
        try:
            await producer.start()
        except FAILURES as exc:
            with contextlib.suppress(*FAILURES):
                await producer.stop()
            raise translate(exc, f"connecting to Kafka at {self._settings.bootstrap}") from exc
        # A new client hears of no topic that it was not asked for.
        self._topics.clear()
        self._partitions.clear()
        self._producer = producer
        self._direct = Direct(producer)

    async def close(self) -> None:
        """Send what is pending, for at most a few seconds, and disconnect; idempotent."""
        producer, self._producer = self._producer, None
        direct, self._direct = self._direct, None
        is_stopped = False
        if producer is not None:
            with contextlib.suppress(*FAILURES):
                async with asyncio.timeout(STOP_SECONDS):
                    await producer.stop()
                    is_stopped = True
        if direct is not None:
            await direct.close()
            if not is_stopped:
                await direct.abandon(STOP_SECONDS)

    async def rebuild(self) -> None:
        """Start over with a new producer identity; records not acknowledged so far must be sent again."""
        await self.close()
        await self.open()

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has. Raises TopicMissing when a broker says that there is none such, and
        TransportError when none says anything.
        """
        live = self._live
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                count = len(await live.partitions_for(topic))
        except FAILURES as exc:
            # The library would ask for it in every later refresh, and requests may name as many as they like.
            live.client._topics.discard(topic)  # noqa: SLF001 - there is no other way to forget one
            if not isinstance(exc, (TimeoutError, kafka_errors.UnknownTopicOrPartitionError)):
                raise translate(exc, topic) from exc
            count = await self._ask_for(topic, live)
        # Known from a refresh of everything it would be forgotten as soon as another topic is asked for by its name.
        live.client._topics.add(topic)  # noqa: SLF001 - `add_topic` would ask for it at once, and it is known
        return count

    async def _ask_for(self, topic: str, live: AIOKafkaProducer) -> int:
        """A topic was not heard of in time, which may be because nothing was heard at all."""
        client, heard, is_answered = live.client, ClusterMetadata(), False
        if live is self._producer:
            with contextlib.suppress(*FAILURES):
                async with asyncio.timeout(self._settings.request_timeout_seconds):
                    is_answered = await client._metadata_update(heard, [topic])  # noqa: SLF001 - this one, once
        if not is_answered:
            raise TransportError(f"no broker says whether topic {topic} exists")
        found = heard.partitions_for_topic(topic)
        if found is None:
            raise TopicMissing(f"topic {topic} does not exist")
        return len(found)

    @property
    def _live(self) -> AIOKafkaProducer:
        if self._producer is None:
            msg = "the producer is not open"
            raise TransportError(msg)
        return self._producer

    async def send(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        headers: Sequence[Header],
        key: bytes | None = None,
    ) -> asyncio.Future[Any]:
        """Queue a record and return the future of its acknowledgement; suspends only while the queue is full.

        The future ends with a library error that `translate` understands. Raises InvalidRequest for a record that is
        too large, TopicMissing, AckUnknown when the queue stays full and TransportError.
        """
        if topic not in self._topics:
            # A send to a topic without metadata would wait, and ask, for as long as the request timeout.
            count = await self.partitions(topic)
            if not count:
                msg = f"topic {topic} does not exist"
                raise TopicMissing(msg)
            self._topics.add(topic)
        try:
            future: asyncio.Future[Any] = await self._live.send(topic, value, key, partition, headers=headers)
        except AssertionError as exc:  # how the library says "unrecognised partition", or that there is nothing to send
            msg = f"{topic} has no partition {partition}, or the record has neither value nor key"
            raise TopicMissing(msg) from exc
        except FAILURES as exc:
            raise _translate_send(exc, topic) from exc
        return future

    def post(
        self, topic: str, partition: int, records: Sequence[Outgoing], *, is_lone: bool = False
    ) -> asyncio.Future[Any] | None:
        """Send records to one partition at once, as one batch: the future of its acknowledgement, for `settle`.

        None when that cannot be, and then nothing is sent: `publish_many` sees to it. `is_lone` is explained there.
        """
        known = self._partitions.get(topic)
        if known is None or partition >= len(known) or self._direct is None:
            return None
        batches = Records.fill(records)
        return self._direct.send(batches[0], known[partition], is_lone=is_lone) if len(batches) == 1 else None

    async def settle(self, ack: asyncio.Future[Any], topic: str, *, timeout_seconds: float | None = 30.0) -> Ack:
        """Wait for what was posted to a topic. Errors as in `publish_many`."""
        try:
            async with asyncio.timeout(timeout_seconds):
                done = await asyncio.shield(ack)
        except FAILURES as exc:
            raise _translate_send(exc, topic) from exc
        return Ack(done.topic, done.partition, done.offset, done.timestamp or 0)

    async def publish_many(
        self,
        topic: str,
        partition: int,
        records: Sequence[Outgoing],
        *,
        timeout_seconds: float | None = 30.0,
        is_lone: bool = False,
    ) -> Ack | None:
        """Publish records to one partition in as few batches as fit, and wait until all are acknowledged.

        Costs about half of as many `send` calls: one future and one pass for a whole batch. Returns the last batch's
        acknowledgement, None for no records. Errors as in `send`, and AckUnknown when the time is over, of which there
        is no end without a timeout; after an error, any number of the records may have arrived. `is_lone` says that
        nothing for other partitions is published in this turn of the event loop: what is leaves at once then, and what
        is nevertheless waits for its acknowledgement.
        """
        known = self._partitions.get(topic)
        if known is None or partition >= len(known):
            known = await self._check_partition(topic, partition)
        direct = self._direct
        unsent: list[Records] = []
        acks: list[asyncio.Future[Any]] = []
        try:
            for batch in Records.fill(records):
                ack = None if unsent or direct is None else direct.send(batch, known[partition], is_lone=is_lone)
                if ack is None:
                    unsent.append(batch)  # in order: nothing overtakes what has to be queued
                else:
                    acks.append(asyncio.shield(ack))
            async with asyncio.timeout(timeout_seconds):
                for batch in unsent:
                    acks.append(await self._queue(batch, topic, partition))  # noqa: PERF401 - it waits for its turn
                done = [await ack for ack in acks] if len(acks) == 1 else await asyncio.gather(*acks)
        except AssertionError as exc:  # how the library says "unrecognised partition"
            msg = f"{topic} has no partition {partition}"
            raise TopicMissing(msg) from exc
        except FAILURES as exc:
            raise _translate_send(exc, topic) from exc
        if not done:
            return None
        return Ack(topic, partition, done[-1].offset, done[-1].timestamp or 0)

    async def _queue(self, batch: Any, topic: str, partition: int) -> asyncio.Future[Any]:
        """Queue a batch behind the one before it, for as long as that takes: the library gives up sooner."""
        while True:
            try:
                future: asyncio.Future[Any] = await self._live.send_batch(batch, topic, partition=partition)
            except kafka_errors.KafkaTimeoutError:
                continue  # it was not queued
            return future

    async def _check_partition(self, topic: str, partition: int) -> list[Partition]:
        """All partitions of a topic. Raises TopicMissing for one that is not there: its batch would wait for a leader,
        and fail all others that wait with it when the producer is rebuilt for its sake.
        """
        live = self._live
        count = await self.partitions(topic)
        if partition >= count:  # or what we know of the topic is older than its last partition
            try:
                async with asyncio.timeout(self._settings.request_timeout_seconds):
                    await self._live.client.force_metadata_update()
            except FAILURES as exc:
                raise translate(exc, topic) from exc
            count = await self.partitions(topic)
        known = [Partition(topic, number) for number in range(count)]
        if live is self._producer:
            self._partitions[topic] = known
        if partition >= count:
            msg = f"{topic} has no partition {partition}"
            raise TopicMissing(msg)
        return known

    async def send_and_wait(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        headers: Sequence[Header],
        key: bytes | None = None,
        *,
        timeout_seconds: float = 30.0,
    ) -> Ack:
        """Publish one record and wait for its acknowledgement.

        Errors as in `send`, and AckUnknown when none has come in time.
        """
        future = await self.send(topic, partition, value, headers, key)
        return await self.settle(future, topic, timeout_seconds=timeout_seconds)


def _translate_send(exc: BaseException, topic: str) -> TransportError | InvalidRequest:
    """Our error for one that a send met; one that is about time says nothing about the producer."""
    if isinstance(exc, (TimeoutError, kafka_errors.KafkaTimeoutError)):
        return AckUnknown(f"publishing to {topic}: no acknowledgement in time; it may have arrived")
    return translate(exc, f"publishing to {topic}")
