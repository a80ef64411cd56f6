"""Fetching partitions: what the library's own fetcher does, on the library's connections, in a quarter of the steps.

One fetch per broker is under way at a time, for all partitions that are read and of which nothing is left to be taken:
a partition that were asked for later would wait until the broker has something of the others. The next fetch leaves
after what the last one brought has been acted upon, since somebody waits for that and nobody yet for the next.

A fetch waits at the broker, which answers as soon as there is a record. That it waits for a short time only is for what
is asked behind it on the same connection, and for partitions that are read from now on: where nothing has come for a
second it waits longer, so that an idle worker costs a few fetches per second and not twenty.

Records are decoded as they are taken. What cannot be decoded raises then, and is fetched again by the next poll.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.record.memory_records import MemoryRecords

from contracts.adapters.kafka import wire
from contracts.adapters.kafka.connection import MAX_REQUEST_BYTES, Partition, Record
from contracts.adapters.kafka.framing import hear_at_once

log = logging.getLogger(__name__)

FETCH_WAIT_MS = 50
IDLE_WAIT_MS = 250
_IDLE_AFTER = 20  # fetches that brought nothing
FETCH_BYTES = 16 * 1024 * 1024
_RETRY_SECONDS = 0.1
_TURNS_FIRST = 2  # the answer that the last records caused, or its reader's next request, leaves before a fetch
_NOBODY = -1  # the library's number of the leader of a partition that has none
_fatal = (kafka_errors.OffsetOutOfRangeError, kafka_errors.TopicAuthorizationFailedError)


class _Place:
    """Where the reading of a partition stands, and what was fetched of it but not taken."""

    __slots__ = ("error", "is_paused", "offset", "records")

    def __init__(self) -> None:
        self.offset = 0
        self.is_paused = True
        self.forget()

    def forget(self) -> None:
        self.records: Iterator[Record] | None = None
        self.error: Exception | None = None

    @property
    def has_more(self) -> bool:
        return self.records is not None or self.error is not None

    def take(self, limit: int | None) -> list[Record]:
        """Up to `limit` records, or what went wrong."""
        records, error = self.records, self.error
        if error is not None:
            self.forget()
            raise error
        if records is None:
            return []
        try:
            taken = list(records if limit is None else islice(records, limit))
        except BaseException:
            self.forget()
            raise
        if limit is None or len(taken) < limit:
            self.forget()
        return taken

    def decode(self, partition: Partition, data: bytes) -> Iterator[Record]:
        """The records from the offset on, which moves along; markers of transactions are left out."""
        topic, number = partition
        batches = MemoryRecords(data)
        while batches.has_next():
            batch = batches.next_batch()
            if not batch.validate_crc():
                raise kafka_errors.CorruptRecordException(f"wrong checksum in {topic}/{number}")
            if not batch.is_control_batch:
                for record in batch:
                    offset = record.offset
                    if offset < self.offset:  # a batch is stored, and sent, as a whole
                        continue
                    self.offset = offset + 1
                    yield Record(
                        topic,
                        number,
                        offset,
                        record.timestamp,
                        record.timestamp_type,
                        record.key,
                        record.value,
                        record.headers,
                    )
            self.offset = max(self.offset, batch.next_offset)  # its last records may have been compacted away


class Fetcher:
    """Reads partitions through one of the library's clients."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._places: dict[Partition, _Place] = {}
        self._fetches: dict[int, asyncio.Task[None]] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._wanted: Collection[Partition] = ()
        self._in_vain = 0  # fetches, since the last that brought something or the last change of what is read
        self._is_beginning = self._is_closed = False

    async def close(self) -> None:
        """End what is under way; polls find nothing more."""
        self._is_closed = True
        self._wake()
        fetches = list(self._fetches.values())
        for fetch in fetches:
            fetch.cancel()
        await asyncio.gather(*fetches, return_exceptions=True)

    # --- what is read -------------------------------------------------------------------------------------------------

    def assign(self, partitions: Sequence[Partition]) -> None:
        """Read these partitions and no others; all are paused."""
        self._places = {partition: _Place() for partition in partitions}
        self._in_vain = 0

    def seek(self, partition: Partition, offset: int) -> None:
        """Move a partition's position and drop what was fetched of it."""
        place = self._places[partition]
        place.forget()
        place.offset = offset

    def pause(self, partitions: Collection[Partition]) -> None:
        """Stop fetching partitions and drop what was fetched of them."""
        for partition in partitions:
            place = self._places[partition]
            place.is_paused = True
            place.forget()

    def resume(self, partitions: Collection[Partition]) -> None:
        """Go on fetching partitions."""
        for partition in partitions:
            if self._places[partition].is_paused:
                self._places[partition].is_paused = False
                self._in_vain = 0
        self._begin_soon()

    # --- taking -------------------------------------------------------------------------------------------------------

    async def poll(
        self, partitions: Collection[Partition], limit: int | None, timeout_ms: int
    ) -> dict[Partition, list[Record]]:
        """Take what was fetched, of these partitions or of all, waiting for the first record if there is none."""
        self._wanted = wanted = partitions or self._places
        found = self._take(wanted, limit)
        self._begin_soon()
        if found or timeout_ms <= 0 or self._is_closed:
            return found
        self._waiter = waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout_ms / 1000, self._wake)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None
        found = self._take(wanted, limit)
        if found:
            self._begin_soon()
        return found

    def _take(self, wanted: Collection[Partition], limit: int | None) -> dict[Partition, list[Record]]:
        found = {}
        for partition in wanted:
            place = self._places.get(partition)
            if place is not None and place.has_more:
                taken = place.take(limit)
                if taken:
                    found[partition] = taken
                if limit is not None:
                    limit -= len(taken)
                    if limit <= 0:
                        break
        return found

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- fetching -----------------------------------------------------------------------------------------------------

    def _begin_soon(self) -> None:
        """Fetch when the loop has done what it has to do already."""
        if not self._is_beginning:
            self._is_beginning = True
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._is_beginning = False
        if self._is_closed:
            return
        wishes: dict[int, list[tuple[Partition, int]]] = {}
        leader_of, places = self._client.cluster.leader_for_partition, self._places
        for partition, place in places.items():
            if place.has_more:
                if partition in self._wanted:
                    return  # it is taken first
                self._in_vain = 0  # it is asked for soon, and is not to wait for long
            elif not place.is_paused:
                leader = leader_of(partition)
                wishes.setdefault(_NOBODY if leader is None else leader, []).append((partition, place.offset))
        for leader, wished in wishes.items():
            if leader not in self._fetches:
                fetch = self._fetch(leader, wished)
                self._fetches[leader] = self._loop.create_task(fetch, name=f"kafka.fetch {leader}")

    async def _fetch(self, leader: int, wished: list[tuple[Partition, int]]) -> None:
        try:
            for _ in range(_TURNS_FIRST):
                await asyncio.sleep(0)
            if leader == _NOBODY:
                await self._look_for_leaders()
                return
            lost: list[Partition] = []
            request = wire.fetch(
                wished,
                wait_ms=FETCH_WAIT_MS if self._in_vain < _IDLE_AFTER else IDLE_WAIT_MS,
                most_bytes=FETCH_BYTES,
                most_of_each=2 * MAX_REQUEST_BYTES,
                hear=partial(self._accept, dict(wished), lost),
            )
            hear_at_once(self._client, leader)
            await self._client.send(leader, request)
            if lost:
                await self._look_for_leaders()
        except kafka_errors.KafkaError as exc:
            log.warning("fetching from broker %d: %r", leader, exc)
            await asyncio.sleep(_RETRY_SECONDS)
        finally:
            del self._fetches[leader]
            if self._waiter is not None:
                self._begin_soon()

    async def _look_for_leaders(self) -> None:
        self._client.force_metadata_update()
        await asyncio.sleep(_RETRY_SECONDS)

    def _accept(self, wished: dict[Partition, int], lost: list[Partition], answer: wire.FetchAnswer) -> None:
        """Keep what came, wake who waits for it, note which partitions are to be looked for elsewhere."""
        self._in_vain += 1
        for part in answer.parts:
            partition = Partition(part.topic, part.partition)
            place = self._places.get(partition)
            if place is None or place.is_paused or place.has_more or place.offset != wished.get(partition):
                continue  # moved or stopped in the meantime
            if part.error:
                error = kafka_errors.for_code(part.error)
                if not issubclass(error, _fatal):
                    lost.append(partition)
                self._fail(place, partition, error)
            elif part.records:
                place.records = place.decode(partition, part.records)
            else:
                continue
            self._in_vain = 0
            if partition in self._wanted:
                self._wake()

    @staticmethod
    def _fail(place: _Place, partition: Partition, error: type[Exception]) -> None:
        """Tell the next poll what it has to decide about; the rest passes when the leader is found."""
        if issubclass(error, kafka_errors.OffsetOutOfRangeError):
            place.error = error({partition: place.offset})
        elif issubclass(error, _fatal):
            place.error = error(partition.topic)
        else:
            log.warning("fetching %s/%d: %s", *partition, error.__name__)
