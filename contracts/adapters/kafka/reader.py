"""Reading partitions that somebody else assigned.

The library's consumer knows the brokers and commits; the records are fetched by `Fetcher`, so to the consumer all
partitions are paused for good. A reader assigns whole topics once, and a claim is `seek` + `resume`. A poll moves the
position when it returns: what its caller then drops is never seen again, so it is never cancelled and never wrapped in
a timeout. One fetch per broker is under way at a time, and a resumed partition waits for the running long poll: hence
its short wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence

from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka_errors

from contracts.adapters.kafka import wire
from contracts.adapters.kafka.connection import (
    FAILURES,
    MAX_REQUEST_BYTES,
    STOP_SECONDS,
    OffsetOutOfRange,
    Partition,
    Record,
    UnreadableRecord,
    connection_options,
    translate,
)
from contracts.adapters.kafka.fetching import FETCH_BYTES, FETCH_WAIT_MS, Deliver, Fetcher
from contracts.adapters.kafka.salvage import Salvage, salvage
from contracts.errors import TransportError
from contracts.settings import KafkaSettings

_unreadable = (
    kafka_errors.CorruptRecordException,
    kafka_errors.RecordTooLargeError,
    kafka_errors.UnsupportedCodecError,
    gzip.BadGzipFile,  # an OSError, as if the connection had failed
)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    """Our errors for what fetching and decoding may raise."""
    try:
        yield
    except kafka_errors.OffsetOutOfRangeError as exc:
        raise OffsetOutOfRange(exc.args[0] if exc.args else ()) from exc
    except _unreadable as exc:
        msg = f"a record cannot be read: {type(exc).__name__}"
        raise UnreadableRecord(msg) from exc
    except FAILURES as exc:
        raise translate(exc, "fetching") from exc
    except TransportError:
        raise
    except Exception as exc:  # the library decodes records here, and whatever stands in them may make it stumble
        msg = f"a record cannot be read: {type(exc).__name__}"
        raise UnreadableRecord(msg) from exc


async def _stop(fetcher: Fetcher | None, consumer: AIOKafkaConsumer | None) -> None:
    if fetcher is not None:
        await fetcher.close()
    if consumer is not None:
        with contextlib.suppress(*FAILURES):
            async with asyncio.timeout(STOP_SECONDS):
                await consumer.stop()


class Reader:
    """Reads partitions that somebody else assigned; commits under a group id that nobody joins."""

    def __init__(self, settings: KafkaSettings, group: str | None = None) -> None:
        self._settings = settings
        self._group = group
        self._consumer: AIOKafkaConsumer | None = None
        self._fetcher: Fetcher | None = None

    async def open(self) -> None:
        """Connect. Raises TransportError when no broker answers."""
        self._use(await self._connect())

    async def reopen(self, assign: Callable[[], None]) -> None:
        """Connect anew, for a connection that is stuck; `assign` makes the partitions readable again.

        The old connection serves until the new one is there. Raises TransportError.
        """
        fresh = await self._connect()
        fetcher, consumer = self._fetcher, self._consumer
        self._use(fresh)
        if consumer is None:  # closed meanwhile
            await self.close()
            return
        try:
            assign()
        finally:
            await _stop(fetcher, consumer)

    def _use(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self._fetcher = Fetcher(consumer._client)  # noqa: SLF001 - nothing else leads to its connections

    async def _connect(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **connection_options(self._settings),
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="none",
        )
        try:
            await consumer.start()
        except FAILURES as exc:
            with contextlib.suppress(*FAILURES):
                await consumer.stop()
            raise translate(exc, f"connecting to Kafka at {self._settings.bootstrap}") from exc
        return consumer

    async def close(self) -> None:
        """Disconnect, within a few seconds; idempotent. Commits nothing."""
        consumer, self._consumer = self._consumer, None
        fetcher, self._fetcher = self._fetcher, None
        await _stop(fetcher, consumer)

    @property
    def _live(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            msg = "the reader is not open"
            raise TransportError(msg)
        return self._consumer

    @property
    def _reading(self) -> Fetcher:
        if self._fetcher is None:
            msg = "the reader is not open"
            raise TransportError(msg)
        return self._fetcher

    def assign(self, partitions: Sequence[Partition]) -> None:
        """Make exactly these partitions readable, all paused; ends every earlier claim of this reader.

        No await may come between the library's three steps, or it would fetch too.
        """
        consumer = self._live
        consumer.assign(partitions)
        consumer.pause(*partitions)
        for partition in partitions:
            consumer.seek(partition, 0)
        self._reading.assign(partitions)

    def begin(self, partition: Partition, offset: int) -> None:
        """Read a partition from `offset` on."""
        self._reading.seek(partition, offset)
        self._reading.resume([partition])

    def seek(self, partition: Partition, offset: int) -> None:
        """Move a partition's position."""
        self._reading.seek(partition, offset)

    def pause(self, *partitions: Partition) -> None:
        """Stop fetching; what was fetched but not taken is thrown away and fetched again on resume."""
        self._reading.pause(partitions)

    def resume(self, *partitions: Partition) -> None:
        """Go on fetching."""
        self._reading.resume(partitions)

    async def poll(
        self, *partitions: Partition, max_records: int | None = None, timeout_ms: int = 100
    ) -> dict[Partition, list[Record]]:
        """Take what was fetched, of these partitions or of all. Never cancel it: what it took would be lost.

        Raises OffsetOutOfRange, UnreadableRecord and TransportError.
        """
        with _translated():
            return await self._reading.poll(partitions, max_records, timeout_ms)

    async def follow(self, deliver: Deliver, *, timeout_ms: int) -> None:
        """Hand over whatever is fetched of all partitions for some time, at once when it comes.

        Never cancel it: what was taken would be lost. `deliver` must not raise. Raises as `poll`.
        """
        with _translated():
            await self._reading.follow(deliver, timeout_ms)

    async def salvage(self, partition: Partition, offset: int) -> Salvage | None:
        """Read around what `poll` cannot get past: the batch that holds `offset`, fetched by itself.

        None when there is no such batch. Raises TransportError.
        """
        client = self._live._client  # noqa: SLF001 - as above
        leader = client.cluster.leader_for_partition(partition)
        wish = wire.fetch(
            [(partition, offset)],
            wait_ms=FETCH_WAIT_MS,
            most_bytes=FETCH_BYTES,
            most_of_each=2 * MAX_REQUEST_BYTES,
        )
        try:
            answer = await client.send(leader, wish)
            ((_, _, code, records),) = answer
            if code:
                raise kafka_errors.for_code(code)
        except FAILURES as exc:
            raise translate(exc, f"fetching offset {offset} of {partition.topic}") from exc
        return salvage(records, partition, offset)

    async def bounds(self, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
        """For each partition the first offset of its log and the one after its last."""
        try:
            first = await self._live.beginning_offsets(partitions)
            end = await self._live.end_offsets(partitions)
        except FAILURES as exc:
            raise translate(exc, "reading the bounds of partitions") from exc
        return {partition: (first[partition], end[partition]) for partition in partitions}

    async def offset_at(self, partition: Partition, unix_ms: int) -> int:
        """The first offset of a partition that was written at this time or later; its end when there is none."""
        try:
            found = await self._live.offsets_for_times({partition: unix_ms})
        except FAILURES as exc:
            raise translate(exc, f"looking for a time in {partition.topic}") from exc
        at = found[partition]
        return (await self.bounds([partition]))[partition][1] if at is None else int(at.offset)

    async def committed(self, partitions: Sequence[Partition]) -> dict[Partition, int | None]:
        """For each partition the committed offset, None when there is none."""
        reads = asyncio.gather(*(self._live.committed(partition) for partition in partitions))
        try:
            async with asyncio.timeout(self._settings.request_timeout_seconds):
                found = await reads
        except FAILURES as exc:
            raise translate(exc, "reading committed offsets") from exc
        return {p: None if offset is None else int(offset) for p, offset in zip(partitions, found, strict=True)}

    async def commit(self, offsets: Mapping[Partition, int], *, timeout_seconds: float = 5.0) -> None:
        """Commit; an error leaves the outcome unknown. Raises GroupHasMembers and TransportError."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._live.commit(dict(offsets))
        except FAILURES as exc:
            raise translate(exc, "committing") from exc
