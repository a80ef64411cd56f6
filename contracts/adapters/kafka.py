"""The only door to aiokafka: settings in, our errors out, and the library's traps kept behind it.

What a reader of this file needs to know about aiokafka 0.14:

* A second `assign()` throws away positions, pauses, buffers and running fetches of *all* partitions. So a reader
  assigns whole topics once, paused, and a claim is `seek` + `resume`.
* `getmany` moves the position when it returns: what its caller then drops is never seen again. So a poll is never
  cancelled and never wrapped in a timeout.
* One fetch per broker is under way at a time: a resumed partition waits for the running long poll, hence the short
  `fetch_max_wait_ms`.
* Idempotent sends never expire by themselves, and `stop()` waits for them: every wait here has a bound of its own.
* A batch that fails after it took its sequence number leaves the producer unusable: it must be rebuilt.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic

from contracts.errors import InvalidRequest, TransportError
from contracts.settings import KafkaSettings

PRODUCER_BATCH_BYTES = 256 * 1024  # 16 KiB, the library's default, costs a third of the throughput
MAX_REQUEST_BYTES = 1024 * 1024
FETCH_WAIT_MS = 50
FETCH_BYTES = 16 * 1024 * 1024
STOP_SECONDS = 5.0

if TYPE_CHECKING:

    class Partition(NamedTuple):
        """A partition of a topic; the library's own class, which has no types."""

        topic: str
        partition: int

else:
    Partition = TopicPartition

LOG_APPEND_TIME = 1
"""`Record.timestamp_type` of a stamp that the broker set."""


class Record(Protocol):
    """A record as it was read; `timestamp` is in Unix milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


Outgoing = tuple[bytes | None, Sequence[tuple[str, bytes]]]
"""A record's value and headers, on their way out."""


class Ack(NamedTuple):
    """Where an acknowledged record stands."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int


class OffsetOutOfRange(TransportError):
    """A fetch position lies outside its partition's log."""

    def __init__(self, partitions: Iterable[Partition]) -> None:
        self.partitions = tuple(partitions)
        super().__init__(
            f"fetch position outside the log of {', '.join(f'{p.topic}/{p.partition}' for p in partitions)}"
        )


class GroupHasMembers(TransportError):
    """A commit was refused because somebody joined the commit group."""


class TopicMissing(TransportError):
    """A topic does not exist, or may not be used by us."""


def connection_options(settings: KafkaSettings) -> dict[str, Any]:
    """What every aiokafka client needs to connect."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap,
        "security_protocol": settings.security_protocol,
        "request_timeout_ms": int(settings.request_timeout_seconds * 1000),
        "metadata_max_age_ms": 30_000,
    }
    if settings.security_protocol.endswith("SSL"):
        options["ssl_context"] = ssl.create_default_context(cafile=settings.ca_file or None)
    if settings.security_protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.username,
            "sasl_plain_password": settings.password.get_secret_value(),
        }
    return options


def translate(exc: BaseException, doing: str) -> TransportError | InvalidRequest:
    """Our error for one of Kafka's; the most specific first."""
    if isinstance(exc, (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordTooLargeError)):
        return InvalidRequest(f"{doing}: the record is larger than the broker accepts ({exc})")
    if isinstance(exc, (kafka_errors.UnknownTopicOrPartitionError, kafka_errors.TopicAuthorizationFailedError)):
        return TopicMissing(f"{doing}: topic unknown or forbidden ({exc})")
    if isinstance(exc, (kafka_errors.CommitFailedError, kafka_errors.UnknownMemberIdError)):
        return GroupHasMembers(f"{doing}: the commit group has members")
    return TransportError(f"{doing}: {type(exc).__name__}: {exc}")


_failures = (kafka_errors.KafkaError, OSError, asyncio.TimeoutError)


class Producer:
    """Publishes records with `acks=all`, idempotently; sends that pile up go out together."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._topics: set[str] = set()

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
        except _failures as exc:
            with contextlib.suppress(*_failures):
                await producer.stop()
            raise translate(exc, f"connecting to Kafka at {self._settings.bootstrap}") from exc
        self._producer = producer

    async def close(self) -> None:
        """Send what is pending, for at most a few seconds, and disconnect; idempotent."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(*_failures):
                await asyncio.wait_for(producer.stop(), STOP_SECONDS)

    async def rebuild(self) -> None:
        """Start over with a new producer identity; records not acknowledged so far must be sent again."""
        await self.close()
        await self.open()

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has. Raises TopicMissing."""
        try:
            found = await asyncio.wait_for(self._live.partitions_for(topic), self._settings.request_timeout_seconds)
        except _failures as exc:
            missing = isinstance(exc, TimeoutError)
            raise (TopicMissing(f"topic {topic} does not exist") if missing else translate(exc, topic)) from exc
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
        headers: Sequence[tuple[str, bytes]],
        key: bytes | None = None,
    ) -> asyncio.Future[Any]:
        """Queue a record and return the future of its acknowledgement; suspends only while the queue is full.

        The future ends with a library error that `translate` understands. Raises InvalidRequest for a record that is
        too large, TopicMissing and TransportError.
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
        except AssertionError as exc:  # how the library says "unrecognised partition"
            msg = f"{topic} has no partition {partition}"
            raise TopicMissing(msg) from exc
        except _failures as exc:
            raise translate(exc, f"publishing to {topic}") from exc
        return future

    async def publish_many(
        self, topic: str, partition: int, records: Sequence[Outgoing], *, timeout_seconds: float = 30.0
    ) -> Ack | None:
        """Publish records to one partition in as few batches as fit, and wait until all are acknowledged.

        Costs about half of as many `send` calls: one future and one pass for a whole batch. Returns the last batch's
        acknowledgement, None for no records. Errors as in `send`; after one, any number of them may have arrived.
        """
        acks: list[asyncio.Future[Any]] = []
        position = 0
        try:
            while position < len(records):
                builder = self._live.create_batch()
                taken = position
                for value, headers in records[position:] if position else records:
                    if builder.append(timestamp=None, key=None, value=value, headers=headers) is None:
                        break
                    taken += 1
                position = taken  # at least one further: a batch takes its first record whatever its size
                acks.append(await self._live.send_batch(builder, topic, partition=partition))
            done = await asyncio.wait_for(asyncio.gather(*acks), timeout_seconds)
        except _failures as exc:
            raise translate(exc, f"publishing to {topic}") from exc
        if not done:
            return None
        return Ack(topic, partition, done[-1].offset, done[-1].timestamp or 0)

    async def send_and_wait(
        self,
        topic: str,
        partition: int,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]],
        key: bytes | None = None,
        *,
        timeout_seconds: float = 30.0,
    ) -> Ack:
        """Publish one record and wait for its acknowledgement. Errors as in `send`."""
        future = await self.send(topic, partition, value, headers, key)
        try:
            done = await asyncio.wait_for(asyncio.shield(future), timeout_seconds)
        except _failures as exc:
            raise translate(exc, f"publishing to {topic}") from exc
        return Ack(done.topic, done.partition, done.offset, done.timestamp or 0)


class Reader:
    """Reads partitions that somebody else assigned; commits under a group id that nobody joins."""

    def __init__(self, settings: KafkaSettings, group: str | None = None) -> None:
        self._settings = settings
        self._group = group
        self._consumer: AIOKafkaConsumer | None = None

    async def open(self) -> None:
        """Connect. Raises TransportError when no broker answers."""
        consumer = AIOKafkaConsumer(
            **connection_options(self._settings),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="none",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=2 * MAX_REQUEST_BYTES,
        )
        try:
            await consumer.start()
        except _failures as exc:
            with contextlib.suppress(*_failures):
                await consumer.stop()
            raise translate(exc, f"connecting to Kafka at {self._settings.bootstrap}") from exc
        self._consumer = consumer

    async def close(self) -> None:
        """Disconnect, within a few seconds; idempotent. Commits nothing."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            with contextlib.suppress(*_failures):
                await asyncio.wait_for(consumer.stop(), STOP_SECONDS)

    @property
    def _live(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            msg = "the reader is not open"
            raise TransportError(msg)
        return self._consumer

    def assign(self, partitions: Sequence[Partition]) -> None:
        """Make exactly these partitions readable, all paused; ends every earlier claim of this reader.

        No await may come between the three steps, or a fetch would start at a position that nobody chose.
        """
        consumer = self._live
        consumer.assign(partitions)
        consumer.pause(*partitions)
        for partition in partitions:
            consumer.seek(partition, 0)

    def begin(self, partition: Partition, offset: int) -> None:
        """Read a partition from `offset` on."""
        self._live.seek(partition, offset)
        self._live.resume(partition)

    def seek(self, partition: Partition, offset: int) -> None:
        """Move a partition's position."""
        self._live.seek(partition, offset)

    def pause(self, *partitions: Partition) -> None:
        """Stop fetching; what was fetched but not taken is thrown away and fetched again on resume."""
        self._live.pause(*partitions)

    def resume(self, *partitions: Partition) -> None:
        """Go on fetching."""
        self._live.resume(*partitions)

    async def poll(
        self, *partitions: Partition, max_records: int | None = None, timeout_ms: int = 100
    ) -> dict[Partition, list[Record]]:
        """Take what was fetched, of these partitions or of all. Never cancel it: what it took would be lost.

        Raises OffsetOutOfRange and TransportError.
        """
        try:
            found: dict[Partition, list[Record]] = await self._live.getmany(
                *partitions, timeout_ms=timeout_ms, max_records=max_records
            )
        except kafka_errors.OffsetOutOfRangeError as exc:
            raise OffsetOutOfRange(exc.args[0] if exc.args else ()) from exc
        except _failures as exc:
            raise translate(exc, "fetching") from exc
        return found

    async def bounds(self, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
        """For each partition the first offset of its log and the one after its last."""
        try:
            first = await self._live.beginning_offsets(partitions)
            end = await self._live.end_offsets(partitions)
        except _failures as exc:
            raise translate(exc, "reading the bounds of partitions") from exc
        return {partition: (first[partition], end[partition]) for partition in partitions}

    async def committed(self, partitions: Sequence[Partition]) -> dict[Partition, int | None]:
        """For each partition the committed offset, None when there is none."""
        reads = asyncio.gather(*(self._live.committed(partition) for partition in partitions))
        try:
            found = await asyncio.wait_for(reads, self._settings.request_timeout_seconds)
        except _failures as exc:
            raise translate(exc, "reading committed offsets") from exc
        return {p: None if offset is None else int(offset) for p, offset in zip(partitions, found, strict=True)}

    async def commit(self, offsets: Mapping[Partition, int], *, timeout_seconds: float = 5.0) -> None:
        """Commit; an error leaves the outcome unknown. Raises GroupHasMembers and TransportError."""
        try:
            await asyncio.wait_for(self._live.commit(dict(offsets)), timeout_seconds)
        except _failures as exc:
            raise translate(exc, "committing") from exc


class Admin:
    """Creates, describes and grows topics."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client: AIOKafkaAdminClient | None = None

    async def open(self) -> None:
        """Connect. Raises TransportError when no broker answers."""
        client = AIOKafkaAdminClient(**connection_options(self._settings))
        try:
            await client.start()
        except _failures as exc:
            with contextlib.suppress(*_failures):
                await client.close()
            raise translate(exc, f"connecting to Kafka at {self._settings.bootstrap}") from exc
        self._client = client

    async def close(self) -> None:
        """Disconnect; idempotent."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(*_failures):
                await asyncio.wait_for(client.close(), STOP_SECONDS)

    @property
    def _live(self) -> AIOKafkaAdminClient:
        if self._client is None:
            msg = "the admin client is not open"
            raise TransportError(msg)
        return self._client

    async def partition_counts(self) -> dict[str, int]:
        """Every topic with its number of partitions."""
        try:
            described = await self._live.describe_topics()
        except _failures as exc:
            raise translate(exc, "listing topics") from exc
        return {topic["topic"]: len(topic["partitions"]) for topic in described if not topic["error_code"]}

    async def ensure_topic(self, topic: str, partitions: int, configs: Mapping[str, str] | None = None) -> None:
        """Create a topic, or grow it to `partitions`; it never shrinks. Stamps records on append.

        Raises TransportError with the broker's reason when it refuses.
        """
        existing = (await self.partition_counts()).get(topic)
        if existing is None:
            await self._create(topic, partitions, configs or {})
        elif existing < partitions:
            await self._grow(topic, partitions)

    async def _create(self, topic: str, partitions: int, configs: Mapping[str, str]) -> None:
        settings = self._settings
        values = {
            "message.timestamp.type": "LogAppendTime",
            "cleanup.policy": "delete",
            "min.insync.replicas": str(settings.min_insync),
            **configs,
        }
        new = NewTopic(topic, partitions, settings.replication, topic_configs=values)
        try:
            response = await self._live.create_topics([new])
        except _failures as exc:
            raise translate(exc, f"creating topic {topic}") from exc
        self._check(response.topic_errors, f"creating topic {topic}", kafka_errors.TopicAlreadyExistsError)

    async def _grow(self, topic: str, partitions: int) -> None:
        try:
            response = await self._live.create_partitions({topic: NewPartitions(partitions)})
        except _failures as exc:
            raise translate(exc, f"growing topic {topic}") from exc
        self._check(response.topic_errors, f"growing topic {topic}", kafka_errors.InvalidPartitionsError)

    @staticmethod
    def _check(results: Iterable[Sequence[Any]], doing: str, ignored: type[Exception]) -> None:
        for _, code, *message in results:
            error = kafka_errors.for_code(code)
            if code and not issubclass(error, ignored):
                raise translate(error(*message), doing)
