"""Sends retries back when they are due.

The retry topic of a model version belongs to whoever owns partition 0 of its request topic: that claim is held by one
worker at a time, fenced and handed over like any other, so the forwarder needs no lease, no process and no planning of
its own; a model without workers keeps its retries, as it keeps its requests. Forwarding is at least once: a copy is
committed only when it is acknowledged in its request topic, and repeats collapse at the client. Retries of a partition
that takes nothing wait, and let those of others pass, as long as they are no more than are held in memory.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from contracts import retries, topics
from contracts.adapters.kafka import Outgoing, Partition, Producer, Reader, Record, TopicMissing
from contracts.errors import TransportError
from workers.draining.broker_time import BrokerTime
from workers.ingest import metrics

log = logging.getLogger(__name__)

_POLL_MS = 200
_RETRY_SECONDS = 1.0
_COMMIT_SECONDS = 1.0
_SEND_SECONDS = 5.0  # a partition that is handed over does not wait longer for this
_REST_SECONDS = 30.0  # for a partition that takes none: what is tried in vain may yet arrive, each time
_HELD = 200  # records of a partition kept in memory while they wait


class _Lane:
    """One partition: one delay."""

    def __init__(self, partition: Partition, delay_ms: int, start: int) -> None:
        self.partition = partition
        self.delay_ms = delay_ms
        self.waiting: deque[Record] = deque()
        self.committed = self._end = start

    @property
    def done(self) -> int:
        """Everything below was sent."""
        return self.waiting[0].offset if self.waiting else self._end

    def read(self, records: Sequence[Record]) -> None:
        """Keep records until they are due."""
        self.waiting.extend(records)
        self._end = self.waiting[-1].offset + 1

    def put_back(self, records: Iterable[Record]) -> None:
        """What was due and could not be sent still is, in its order."""
        self.waiting.extendleft(sorted(records, key=lambda record: record.offset, reverse=True))

    def due(self, now_ms: int) -> list[Record]:
        """Take out what is due; the head always is first."""
        ready = itertools.takewhile(lambda record: record.timestamp + self.delay_ms <= now_ms, self.waiting)
        found = list(ready)
        for _ in found:
            self.waiting.popleft()
        return found


class Desk(NamedTuple):
    """What a forwarder works with."""

    topic: str
    requests: str
    delays_seconds: Sequence[float]
    open_reader: Callable[[], Reader]
    producer: Producer
    broker_time: BrokerTime
    is_trusted: Callable[[], bool]


class Forwarder:
    """Forwards the retries of one model version while its partition 0 is ours."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._wanted = asyncio.Event()
        self._resting: dict[retries.Home, float] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    def take(self) -> None:
        """Begin; the retry topic is ours now."""
        self._wanted.set()

    async def give(self) -> None:
        """End: what is due now is sent and committed, and nothing after that."""
        self._wanted.clear()
        await self._idle.wait()

    async def loop(self) -> None:
        """Forward whenever the topic is ours; never ends by itself."""
        while True:
            await self._wanted.wait()
            self._idle.clear()
            reader = self._desk.open_reader()
            try:
                await reader.open()
                await self._forward(reader)
            except TransportError as exc:
                log.warning("%s: retries wait: %s", self._desk.topic, exc)
                if self._wanted.is_set():
                    self._idle.set()
                    await asyncio.sleep(_RETRY_SECONDS)
            finally:
                self._idle.set()
                await reader.close()

    async def _forward(self, reader: Reader) -> None:
        lanes = await self._begin(reader)
        committed = asyncio.get_running_loop().time()
        while self._wanted.is_set():
            self._fetch(reader, lanes.values())
            for partition, records in (await reader.poll(timeout_ms=_POLL_MS)).items():
                lanes[partition].read(records)
            if self._desk.is_trusted():
                await asyncio.gather(*map(self._send, lanes.values()))
            if asyncio.get_running_loop().time() - committed > _COMMIT_SECONDS:
                committed = asyncio.get_running_loop().time()
                await self._commit(reader, lanes.values())
        await self._commit(reader, lanes.values())

    async def _begin(self, reader: Reader) -> dict[Partition, _Lane]:
        desk = self._desk
        count = await desk.producer.partitions(desk.topic)
        partitions = [Partition(desk.topic, number) for number in range(min(count, len(desk.delays_seconds)))]
        reader.assign(partitions)
        committed, bounds = await reader.committed(partitions), await reader.bounds(partitions)
        lanes = {}
        for partition in partitions:
            (first, end), at = bounds[partition], committed[partition]
            start = at if at is not None and first <= at <= end else first
            lanes[partition] = _Lane(partition, int(desk.delays_seconds[partition.partition] * 1000), start)
            reader.begin(partition, start)
        return lanes

    @staticmethod
    def _fetch(reader: Reader, lanes: Iterable[_Lane]) -> None:
        """Fetch no more of a partition than can be kept; it is read on when that has gone."""
        for lane in lanes:
            if len(lane.waiting) >= _HELD:
                reader.pause(lane.partition)
            else:
                reader.resume(lane.partition)

    async def _send(self, lane: _Lane) -> None:
        """Send what is due of one partition, and wait until it is acknowledged; what is not stays due."""
        desk, now = self._desk, self._desk.broker_time.now_ms()
        due = lane.due(now)
        if not due:
            return
        by_home: dict[retries.Home, list[Record]] = defaultdict(list)
        for record in due:
            home = retries.home_of(record.headers)
            # What does not say where it came from cannot go anywhere.
            if home is None or topics.without_lane(home.topic) != desk.requests:
                log.error("%s/%d: the record at %d is no retry", *lane.partition, record.offset)
                continue
            by_home[home].append(record)
        are_sent = await asyncio.gather(*(self._is_sent(home, records, now) for home, records in by_home.items()))
        homes = zip(by_home.values(), are_sent, strict=True)
        left = [record for records, is_sent in homes if not is_sent for record in records]
        metrics.FORWARDED.inc(len(due) - len(left))
        lane.put_back(left)

    async def _is_sent(self, home: retries.Home, records: Sequence[Record], now: int) -> bool:
        """Send retries back to where they came from, unless that has failed a moment ago."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._resting.get(home, 0.0):
            return False
        copies = [
            (record.value, retries.forward_headers(record.headers, now - record.timestamp), record.key or b"")
            for record in records
        ]
        try:
            await self._send_home(home, copies)
        except TransportError as exc:
            log.warning("%s/%d: %d retries wait: %s", *home, len(records), exc)
            self._resting[home] = loop.time() + _REST_SECONDS
            return False
        self._resting.pop(home, None)
        return True

    async def _send_home(self, home: retries.Home, records: Sequence[Outgoing]) -> None:
        producer, requests = self._desk.producer, self._desk.requests
        try:
            await producer.publish_many(home.topic, home.partition, records, timeout_seconds=_SEND_SECONDS)
        except TopicMissing:
            if home.topic == requests:
                raise
            # A lane that was deleted: all that wait behind would wait for ever.
            await producer.publish_many(requests, home.partition, records, timeout_seconds=_SEND_SECONDS)

    async def _commit(self, reader: Reader, lanes: Iterable[_Lane]) -> None:
        moved = {lane.partition: lane for lane in lanes if lane.done > lane.committed}
        if moved:
            offsets = {partition: lane.done for partition, lane in moved.items()}
            await reader.commit(offsets)
            for lane in moved.values():
                lane.committed = offsets[lane.partition]
