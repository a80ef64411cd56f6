"""Publishes requests, and sees to it that a failed producer costs nobody an answer.

A send normally fails never: the producer retries by itself for as long as it takes, and the ttl decides how long anyone
waits. An acknowledgement that does come back as an error is one of three things. The record is too large, or its topic
is gone: its waiter is told. Anything else leaves the producer with a gap in its sequence numbers, so it is replaced
once, and what was neither acknowledged nor answered is sent again under the same ids: repeats collapse at the client.
An acknowledgement that is merely unknown fails nobody, because the response may come all the same.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from contracts.adapters.kafka import AckUnknown, Producer, TopicMissing
from contracts.clock import Clock
from contracts.errors import HeadraceError, InvalidRequest, TransportError
from contracts.settings import KafkaSettings
from producer.lanes import Lanes
from producer.pending import Outgoing, Pending, Waiter

log = logging.getLogger(__name__)

_MAX_REBUILDS = 3
_REBUILD_WINDOW_SECONDS = 300.0
_MAX_SENDS = 3  # of one request by one client, the first one counted


class Outbox:
    """Sends the records of the waiters in `pending`."""

    def __init__(self, settings: KafkaSettings, pending: Pending, clock: Clock) -> None:
        self._settings = settings
        self._pending = pending
        self._clock = clock
        self._producer = Producer(settings)
        self._trouble = asyncio.Event()
        self._replacing = asyncio.Lock()
        self._rebuilt_at: deque[float] = deque(maxlen=_MAX_REBUILDS)

    async def open(self) -> None:
        """Connect. Raises TransportError."""
        await self._producer.open()
        self._lanes = Lanes(self._producer, self._trouble.set)

    async def close(self) -> None:
        """Send what is queued, for at most a few seconds, and disconnect."""
        if hasattr(self, "_lanes"):
            await self._lanes.close()
        await self._producer.close()

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has. Raises TopicMissing."""
        return await self._producer.partitions(topic)

    def send(self, waiter: Waiter) -> None:
        """Queue a waiter's record; what becomes of it is the waiter's affair from then on."""
        waiter.ack = self._lanes.put(waiter)

    async def publish(self, record: Outgoing, timeout_seconds: float) -> None:
        """Publish a record that nobody here waits for; returns once it is acknowledged.

        Raises AckUnknown when it may have arrived or may yet: a slow broker is no reason to replace the producer.
        """
        content = record.topic, record.partition, record.value, record.headers
        producer = self._producer
        try:
            await producer.send_and_wait(*content, timeout_seconds=timeout_seconds)
        except (AckUnknown, TopicMissing):
            raise
        except TransportError:
            await self._replace(producer)
            await self._producer.send_and_wait(*content, timeout_seconds=timeout_seconds)

    async def recover_loop(self) -> None:
        """Deal with failed acknowledgements until cancelled."""
        while True:
            await self._trouble.wait()
            self._trouble.clear()
            await self._recover()

    async def _recover(self) -> None:
        failed: list[Waiter] = []
        for waiter in self._pending.waiters():
            error = _ack_error(waiter)
            if isinstance(error, (InvalidRequest, TopicMissing)):
                self._fail([waiter], error)
            elif error is not None:
                failed.append(waiter)
        if not failed:
            return
        try:
            await self._replace(self._producer)
        except TransportError as exc:
            log.warning("%d requests failed: %s", len(failed), exc)
            self._fail(failed, exc)
            return
        self._send_again()

    async def _replace(self, failed: Producer) -> None:
        """Put a new producer in the place of a failed one, unless somebody did so in the meantime."""
        async with self._replacing:
            if self._producer is not failed:
                return
            now = self._clock.monotonic()
            if len(self._rebuilt_at) == _MAX_REBUILDS and now - self._rebuilt_at[0] < _REBUILD_WINDOW_SECONDS:
                span = f"{_REBUILD_WINDOW_SECONDS:.0f} s"
                msg = f"Kafka refused {_MAX_REBUILDS} producers within {span}: see the broker's log"
                raise TransportError(msg)
            successor = Producer(self._settings)
            await successor.open()
            log.warning("the producer failed and was replaced; what was not acknowledged is sent again")
            self._producer, lanes = successor, self._lanes
            self._lanes = Lanes(successor, self._trouble.set)
            self._rebuilt_at.append(now)
            self._pending.counts.rebuilds += 1
            # What the old one still gets through need not be sent again.
            await asyncio.gather(lanes.close(), failed.close())

    def _send_again(self) -> None:
        for waiter in self._pending.waiters():
            if waiter.ack.done() and _ack_error(waiter) is None:
                continue  # it is in the log, or nobody waits for it
            if waiter.sends >= _MAX_SENDS:
                self._fail([waiter], TransportError(f"request {waiter.id} could not be published {_MAX_SENDS} times"))
                continue
            waiter.sends += 1
            self.send(waiter)

    def _fail(self, waiters: list[Waiter], error: HeadraceError) -> None:
        for waiter in waiters:
            self._pending.fail(waiter.id, type(error)(*error.args))


def _ack_error(waiter: Waiter) -> HeadraceError | None:
    """Why a waiter's record was refused; None while it is under way, once it is in the log, and if it was dropped."""
    ack = waiter.ack
    if ack is None or not ack.done() or ack.cancelled():
        return None
    error: HeadraceError | None = ack.exception()
    return error
