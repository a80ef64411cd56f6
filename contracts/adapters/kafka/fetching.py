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
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

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
_NOBODY = -1  # the library's number of the leader of a partition that has none
_fatal = (kafka_errors.OffsetOutOfRangeError, kafka_errors.TopicAuthorizationFailedError)


class _Place:
    """Where the reading of a partition stands, and what was fetched of it but not taken."""

    __slots__ = ("fetched", "is_paused", "offset")

    def __init__(self) -> None:
        self.offset = 0
        self.is_paused = True
        self.fetched: Iterator[Record] | Exception | None = None

    def take(self, limit: int | None) -> list[Record]:
        """Up to `limit` records of what was fetched. Raises what went wrong."""
        fetched, self.fetched = self.fetched, None
        if fetched is None:
            return []
        if isinstance(fetched, Exception):
            raise fetched
        if limit is None:
            return list(fetched)
        taken = list(islice(fetched, limit))
        if len(taken) == limit:
            self.fetched = fetched
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


class _Wish(NamedTuple):
    """What is asked of a partition."""

    partition: Partition
    place: _Place
    offset: int


Deliver = Callable[[dict[Partition, list[Record]]], None]
"""Takes what was fetched."""


class Fetcher:
    """Reads partitions through one of the library's clients."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._places: dict[Partition, _Place] = {}
        self._fetches: dict[int, asyncio.Task[None]] = {}
        self._waiter: asyncio.Future[None] | None = None
        self._deliver: Deliver | None = None
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
        self.pause(self._places)  # what is still fetched for them is dropped
        self._places = {partition: _Place() for partition in partitions}
        self._in_vain = 0

    def seek(self, partition: Partition, offset: int) -> None:
        """Move a partition's position and drop what was fetched of it."""
        place = self._places[partition]
        place.fetched = None
        place.offset = offset

    def pause(self, partitions: Collection[Partition]) -> None:
        """Stop fetching partitions and drop what was fetched of them."""
        for partition in partitions:
            place = self._places[partition]
            place.is_paused = True
            place.fetched = None

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
        await self._wait(timeout_ms)
        found = self._take(wanted, limit)
        if found:
            self._begin_soon()
        return found

    async def follow(self, deliver: Deliver, timeout_ms: int) -> None:
        """Hand over whatever is fetched for some time: at once, in the turn of the loop in which it comes.

        Whoever waits for it is spared a turn, and the waking of a task that would only pass it on.
        """
        self._wanted = self._places
        if found := self._take(self._places, None):
            deliver(found)
        self._begin_soon()
        if not self._is_closed:
            self._deliver = deliver
            try:
                await self._wait(timeout_ms)
            finally:
                self._deliver = None

    async def _wait(self, timeout_ms: int) -> None:
        """Until woken, or for so long."""
        self._waiter = waiter = self._loop.create_future()
        timer = self._loop.call_later(timeout_ms / 1000, self._wake)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _take(self, wanted: Collection[Partition], limit: int | None) -> dict[Partition, list[Record]]:
        found = {}
        for partition in wanted:
            place = self._places.get(partition)
            if place is not None and place.fetched is not None:
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

    def _hand_over(self) -> None:
        """Give what came to whoever waits for it."""
        waiter = self._waiter
        if waiter is None or waiter.done():
            return  # the next poll takes it
        if self._deliver is None:
            waiter.set_result(None)
            return
        try:
            if found := self._take(self._wanted, None):
                self._deliver(found)
        except Exception as exc:  # noqa: BLE001 - it is raised where it is waited
            waiter.set_exception(exc)

    # --- fetching -----------------------------------------------------------------------------------------------------

    def _begin_soon(self) -> None:
        """Fetch when the loop has done what it has to do already, and what that leads to."""
        if not self._is_beginning:
            self._is_beginning = True
            soon = self._loop.call_soon
            soon(soon, soon, self._begin)  # the answer that the last records caused leaves before a fetch

    def _begin(self) -> None:
        self._is_beginning = False
        if self._is_closed:
            return
        wishes: dict[int, dict[tuple[str, int], _Wish]] = {}
        leader_of, places = self._client.cluster.leader_for_partition, self._places
        for partition, place in places.items():
            if place.fetched is not None:
                if partition in self._wanted:
                    return  # it is taken first
                self._in_vain = 0  # it is asked for soon, and is not to wait for long
            elif not place.is_paused:
                leader = leader_of(partition)
                wished = wishes.setdefault(_NOBODY if leader is None else leader, {})
                wished[partition] = _Wish(partition, place, place.offset)
        for leader, wished in wishes.items():
            if leader not in self._fetches:
                fetch = self._fetch(leader, wished)
                self._fetches[leader] = self._loop.create_task(fetch, name=f"kafka.fetch {leader}")

    async def _fetch(self, leader: int, wished: dict[tuple[str, int], _Wish]) -> None:
        try:
            if leader == _NOBODY:
                await self._look_for_leaders()
                return
            lost: list[Partition] = []
            request = wire.fetch(
                [(wish.partition, wish.offset) for wish in wished.values()],
                wait_ms=FETCH_WAIT_MS if self._in_vain < _IDLE_AFTER else IDLE_WAIT_MS,
                most_bytes=FETCH_BYTES,
                most_of_each=2 * MAX_REQUEST_BYTES,
                hear=partial(self._accept, wished, lost),
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
                self._begin()

    async def _look_for_leaders(self) -> None:
        self._client.force_metadata_update()
        await asyncio.sleep(_RETRY_SECONDS)

    def _accept(
        self, wished: dict[tuple[str, int], _Wish], lost: list[Partition], parts: list[wire.FetchedPart]
    ) -> None:
        """Keep what came, give it to who waits for it, note which partitions are to be looked for elsewhere."""
        self._in_vain += 1
        is_awaited = False
        for topic, number, code, records in parts:
            wish = wished.get((topic, number))
            if wish is None:
                continue
            partition, place, offset = wish
            if place.is_paused or place.fetched is not None or place.offset != offset:
                continue  # moved or stopped in the meantime
            if code:
                error = kafka_errors.for_code(code)
                if not issubclass(error, _fatal):
                    lost.append(partition)
                self._fail(place, partition, error)
            elif records:
                place.fetched = place.decode(partition, records)
            else:
                continue
            self._in_vain = 0
            is_awaited = is_awaited or partition in self._wanted
        if is_awaited:
            self._hand_over()

    @staticmethod
    def _fail(place: _Place, partition: Partition, error: type[Exception]) -> None:
        """Tell the next poll what it has to decide about; the rest passes when the leader is found."""
        if issubclass(error, kafka_errors.OffsetOutOfRangeError):
            place.fetched = error({partition: place.offset})
        elif issubclass(error, _fatal):
            place.fetched = error(partition.topic)
        else:
            log.warning("fetching %s/%d: %s", *partition, error.__name__)
