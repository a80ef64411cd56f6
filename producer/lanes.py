"""Requests on their way to Kafka: what comes together for one partition travels as one batch.

Each partition sends one batch at a time; what arrives meanwhile forms the next, so batches grow with the load and a
lone request waits for nothing. All requests of a batch share the future of its acknowledgement. Sending them one by one
costs the library a future, its callback and three coroutines each, which was a fifth of the client's processor time.

Nothing expires here: the broker may be away for as long as it takes, and the ttl decides how long anyone waits. What
nobody waits for any more is dropped, whenever much has gathered and before each batch: kept, it would fill the memory
while the broker is away, and be computed for nobody when it is back.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from contracts.adapters.kafka import Outgoing, Producer
from contracts.adapters.kafka.batches import PRODUCER_BATCH_BYTES
from contracts.errors import HeadraceError, TransportError
from producer.pending import Waiter

_DRAIN_SECONDS = 2.0
_HEAD_BYTES = 256  # what a record's headers take, about


_Load = tuple[list[Waiter], asyncio.Future[None]]
"""Waiters that travel together, and their acknowledgement."""


class _Lane:
    """One partition: what waits for it, and the task that sends it while something does."""

    __slots__ = ("_limit", "_size", "ack", "partition", "task", "topic", "waiters")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic, self.partition = topic, partition
        self.task: asyncio.Task[None] | None = None
        self.waiters: list[Waiter] = []
        self.ack: asyncio.Future[None] | None = None
        """The acknowledgement of what is queued, if anything is."""
        self._size, self._limit = 0, PRODUCER_BATCH_BYTES

    def add(self, waiter: Waiter) -> None:
        """Queue a waiter. Each time that the queue has doubled, those that wait no more leave it."""
        self.waiters.append(waiter)
        self._size += len(waiter.record.value) + _HEAD_BYTES
        if self._size > self._limit:
            self.waiters = [waiter for waiter in self.waiters if not _is_over(waiter)]
            self._size = sum(len(waiter.record.value) + _HEAD_BYTES for waiter in self.waiters)
            self._limit = max(PRODUCER_BATCH_BYTES, 2 * self._size)

    def take(self) -> _Load | None:
        """All that is queued and its acknowledgement, if anything is; what comes from now on has another."""
        if self.ack is None:
            return None
        taken = self.waiters, self.ack
        self.waiters, self.ack = [], None
        self._size, self._limit = 0, PRODUCER_BATCH_BYTES
        return taken


class Lanes:
    """Sends through one producer; when that one has failed, its successor gets new lanes."""

    def __init__(self, producer: Producer, failed: Callable[[], None]) -> None:
        """`failed` is called after a batch was refused and its future knows why."""
        self._producer = producer
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[tuple[str, int], _Lane] = {}

    def put(self, waiter: Waiter) -> asyncio.Future[None]:
        """Queue a waiter's record; the future ends with its acknowledgement, or with the HeadraceError that it met.

        It is shared with what was queued beside it, and cancelled when nobody waited for any of that.
        """
        record = waiter.record
        key = record.topic, record.partition
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = _Lane(*key)
            self._loop.call_soon(self._begin, lane)
        if lane.ack is None:
            lane.ack = self._loop.create_future()
        lane.add(waiter)
        return lane.ack

    def _begin(self, lane: _Lane) -> None:
        """Begin to send, after the turn of the loop in which the first waiter came: more may have come with it.

        The first batch leaves before there is a task, which has only to wait for its acknowledgement.
        """
        if lane.task is not None:
            return  # the closing was quicker, and the task takes what has come since
        load = lane.take()
        if load is None:
            return  # the closing was quicker, and nothing has come since
        records, sent = _next_batch(load[0]), None
        try:
            if records:
                sent = self._producer.post(lane.topic, lane.partition, records, is_lone=len(self._lanes) == 1)
        except Exception as exc:  # noqa: BLE001 - as in `_send`, where it is raised
            sent = self._loop.create_future()
            sent.set_exception(exc)
        lane.task = self._loop.create_task(self._send_all(lane, load, records, sent), name="headrace.client.lane")

    async def _send_all(
        self, lane: _Lane, load: _Load | None, records: list[Outgoing], sent: asyncio.Future[Any] | None
    ) -> None:
        """Send until nothing is queued. `records` are the first batch, `sent` its acknowledgement if it was posted."""
        try:
            while load is not None:
                await self._send(lane, load, records, sent)
                load, sent = lane.take(), None
                records = _next_batch(load[0]) if load is not None else []
        finally:
            del self._lanes[lane.topic, lane.partition]

    async def _send(self, lane: _Lane, load: _Load, records: list[Outgoing], sent: asyncio.Future[Any] | None) -> None:
        waiters, ack = load
        is_sent = bool(records)
        try:
            if sent is not None:
                await self._producer.settle(sent, lane.topic, timeout_seconds=None)
                records = _next_batch(waiters)
            while records:
                await self._producer.publish_many(
                    lane.topic, lane.partition, records, timeout_seconds=None, is_lone=len(self._lanes) == 1
                )
                records = _next_batch(waiters)
        except Exception as exc:  # noqa: BLE001 - whatever it was, those who wait must hear of it
            ack.set_exception(exc if isinstance(exc, HeadraceError) else TransportError(f"publishing failed: {exc!r}"))
            ack.exception()  # nobody may ask, and that is no reason for asyncio to complain
            self._failed()
        else:
            if is_sent:
                ack.set_result(None)
            else:
                ack.cancel()

    async def close(self) -> None:
        """Send what is queued and awaited, for at most a few seconds, then give up.

        The futures of what was given up never end.
        """
        for lane in list(self._lanes.values()):
            if lane.task is None:
                self._begin(lane)
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_DRAIN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)


def _next_batch(waiters: list[Waiter]) -> list[Outgoing]:
    """Take what fits into about one batch from those that still wait; nothing once there are none."""
    records: list[Outgoing] = []
    taken = size = 0
    for waiter in waiters:
        record = waiter.record
        if not (waiter.is_over or waiter.future.done()):
            size += len(record.value) + _HEAD_BYTES
            if records and size > PRODUCER_BATCH_BYTES:
                break
            records.append((record.value, record.headers))
        taken += 1
    del waiters[:taken]
    return records


def _is_over(waiter: Waiter) -> bool:
    return waiter.is_over or waiter.future.done()
