"""Requests on their way to Kafka: what comes together for one partition travels as one batch.

Each partition sends one batch at a time; what arrives meanwhile forms the next, so batches grow with the load and a
lone request waits for nothing. All requests of a batch share the future of its acknowledgement. Sending them one by one
costs the library a future, its callback and three coroutines each, which was a fifth of the client's processor time.

Nothing expires here: the broker may be away for as long as it takes, and the ttl decides how long anyone waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from contracts.adapters.kafka import Outgoing, Producer
from contracts.errors import HeadraceError, TransportError

_DRAIN_SECONDS = 2.0


class _Lane:
    """One partition: what waits for it, and the task that sends it while something does."""

    __slots__ = ("ack", "partition", "records", "task", "topic")

    def __init__(self, topic: str, partition: int, ack: asyncio.Future[None]) -> None:
        self.topic, self.partition = topic, partition
        self.records: list[Outgoing] = []
        self.ack = ack
        self.task: asyncio.Task[None] | None = None


class Lanes:
    """Sends through one producer; when that one has failed, its successor gets new lanes."""

    def __init__(self, producer: Producer, failed: Callable[[], None]) -> None:
        """`failed` is called after a batch was refused and its future knows why."""
        self._producer = producer
        self._failed = failed
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[tuple[str, int], _Lane] = {}

    def put(
        self, topic: str, partition: int, value: bytes, headers: Sequence[tuple[str, bytes]]
    ) -> asyncio.Future[None]:
        """Queue a record; the future ends with its batch's acknowledgement, or with the HeadraceError that it met."""
        lane = self._lanes.get((topic, partition))
        if lane is None:
            lane = self._lanes[topic, partition] = _Lane(topic, partition, self._loop.create_future())
            lane.task = self._loop.create_task(self._send_all(lane), name="headrace.client.lane")
        lane.records.append((value, headers))
        return lane.ack

    async def _send_all(self, lane: _Lane) -> None:
        """Begins after the current turn of the loop, which may add to the first batch."""
        try:
            while lane.records:
                records, ack = lane.records, lane.ack
                lane.records, lane.ack = [], self._loop.create_future()
                await self._send(lane, records, ack)
        finally:
            del self._lanes[lane.topic, lane.partition]

    async def _send(self, lane: _Lane, records: Sequence[Outgoing], ack: asyncio.Future[None]) -> None:
        try:
            await self._producer.publish_many(lane.topic, lane.partition, records, timeout_seconds=None)
        except Exception as exc:  # noqa: BLE001 - whatever it was, those who wait must hear of it
            ack.set_exception(exc if isinstance(exc, HeadraceError) else TransportError(f"publishing failed: {exc!r}"))
            ack.exception()  # nobody may ask, and that is no reason for asyncio to complain
            self._failed()
        else:
            ack.set_result(None)

    async def close(self) -> None:
        """Send what is queued, for at most a few seconds, then give up; futures of what was given up never end."""
        tasks = [lane.task for lane in self._lanes.values() if lane.task is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=_DRAIN_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
