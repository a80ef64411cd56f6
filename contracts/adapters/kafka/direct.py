"""Sending batches without the library's detours.

The library's queue wakes a task, which starts another that sends: half a dozen turns of the event loop for a lone
request. Here the queue is emptied in the loop's next turn, so that what comes in one turn leaves in one request, or at
once for a lone batch, and written to the connection there and then. The batches are numbered from the library's count,
and broker and partitions are marked as busy, so what comes meanwhile gathers in its queue. Whatever is out of the
ordinary is left to the library: a leader that is not known or not connected, and the next attempt after one that
failed, under the same number.
"""

from __future__ import annotations

import asyncio
import contextlib
from itertools import chain
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka_errors
from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason
from aiokafka.producer.message_accumulator import MessageBatch
from aiokafka.producer.sender import SendProduceReqHandler

from contracts.adapters.kafka import wire
from contracts.adapters.kafka.batches import Batch, Records
from contracts.adapters.kafka.connection import Partition
from contracts.adapters.kafka.framing import ask, hear_at_once

_Batches = dict[Partition, MessageBatch]


class Direct:
    """First attempts of one producer; all of this is beneath the library's surface."""

    # ruff: noqa: SLF001

    def __init__(self, producer: AIOKafkaProducer) -> None:
        self._client = producer.client
        self._sender = producer._sender
        self._queue = producer._message_accumulator
        self._loop = asyncio.get_running_loop()
        self._attempts: set[asyncio.Task[None]] = set()
        self._heard: dict[int, Any] = {}
        self._is_flushing = self._is_closed = False

    async def close(self) -> None:
        """Give up what is not acknowledged."""
        self._is_closed = True  # or the end of an attempt would begin the next
        attempts = list(self._attempts)
        for attempt in attempts:
            attempt.cancel()
        await asyncio.gather(*attempts, return_exceptions=True)

    async def abandon(self, seconds: float) -> None:
        """End what a `stop` of the library that was cut off has left, each part in at most so long.

        While something is pending it gets neither to its task nor to its connections: they would stay for good, and
        send what is pending once the broker is back.
        """
        queue = self._queue
        pending = [*queue._pending_batches, *chain.from_iterable(queue._batches.values())]
        queue.fail_all(kafka_errors.KafkaConnectionError("the producer is closed"))
        for future in chain.from_iterable((batch.future, batch._drain_waiter) for batch in pending):
            if not future.cancelled():
                future.exception()  # who waits for it hears of it; that nobody may be left to is no reason to complain
        for connection in list(self._client._conns.values()):
            if connection.connected():
                connection._writer.transport.abort()  # what is still to be written would be waited for
        for end in (self._sender.close, self._client.close):
            with contextlib.suppress(kafka_errors.KafkaError, OSError, TimeoutError):
                async with asyncio.timeout(seconds):
                    await end()

    def send(self, records: Records, partition: Partition, *, is_lone: bool) -> asyncio.Future[Any] | None:
        """Send a batch and return the future of its acknowledgement: at once when nothing else is to be sent in this
        turn of the loop, otherwise in the next, in one request with the others.

        None when it must be queued the library's way. Whoever waits for the future must shield it: it is not theirs.
        """
        queue = self._queue
        if queue._closed or queue._exception is not None or partition in queue._batches:
            return None
        batch = Batch(partition, records, queue._batch_ttl, self._loop)
        queue._batches[partition].append(batch)
        if is_lone and not self._is_flushing:
            self._flush()
        elif not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)
        return batch.future

    def _flush(self) -> None:
        """Send what waits for a broker that is not busy."""
        self._is_flushing = False
        queue, sender = self._queue, self._sender
        leader_of = self._client.cluster.leader_for_partition
        chosen: dict[int, tuple[Any, _Batches]] = {}
        for partition in list(queue._batches):
            leader = leader_of(partition)
            if partition in sender._muted_partitions or leader in sender._in_flight:
                continue  # the end of that attempt brings us back
            connection = self._connection(leader)
            if connection is None:
                if not queue._waiter_future.done():
                    queue._waiter_future.set_result(None)
                continue
            chosen.setdefault(leader, (connection, {}))[1][partition] = self._take(partition)
        for leader, (connection, batches) in chosen.items():
            self._begin(leader, connection, batches)

    def _take(self, partition: Partition) -> MessageBatch:
        """The next batch for a partition, with the producer's identity and its place in the sequence."""
        queue, manager = self._queue, self._sender._txn_manager
        waiting = queue._batches[partition]
        batch = waiting[0]
        if type(batch) is not Batch or batch.retry_count:
            return queue._pop_batch(partition)
        # The same in one step for what is sent for the first time.
        waiting.popleft()
        if not waiting:
            del queue._batches[partition]
        batch.begin(manager._pid_and_epoch, manager._sequence_numbers[partition])
        manager.increment_sequence_number(partition, batch.record_count)
        pending = queue._pending_batches
        pending.add(batch)
        batch.future.add_done_callback(lambda _: pending.remove(batch))
        return batch

    def _connection(self, leader: int) -> Any:
        """What leads to a leader, None when the library has to see to it first, or to the producer's identity."""
        connection = self._heard.get(leader)
        if connection is not None and connection.connected():
            return connection
        connection = self._client._conns.get((leader, ConnectionGroup.DEFAULT))
        if connection is None or not connection.connected() or not self._sender._txn_manager.has_pid():
            return None
        self._heard[leader] = hear_at_once(self._client, leader)
        return connection

    def _begin(self, leader: int, connection: Any, batches: _Batches) -> None:
        sender = self._sender
        sender._in_flight.add(leader)
        sender._muted_partitions.update(batches)
        data = {partition: batch.get_data_buffer() for partition, batch in batches.items()}
        request = wire.produce(data, timeout_ms=sender._request_timeout_ms)
        try:
            answer = ask(connection, request)
        except kafka_errors.KafkaError as exc:
            answer = self._loop.create_future()
            answer.set_exception(exc)
        attempt = self._loop.create_task(self._finish(leader, batches, connection, answer), name="kafka.produce")
        self._attempts.add(attempt)
        attempt.add_done_callback(self._attempts.discard)

    async def _finish(
        self, leader: int, batches: _Batches, connection: Any, answer: asyncio.Future[wire.ProduceAnswer]
    ) -> None:
        try:
            await _Attempt(self._sender, batches).finish(connection, answer)
        finally:
            self._sender._in_flight.discard(leader)
            self._sender._muted_partitions.difference_update(batches)
            if self._queue._batches and not self._is_closed:
                self._flush()


class _Attempt(SendProduceReqHandler):  # type: ignore[misc]  # the library has no types
    """What the library makes of an answer; only that the request is sent already."""

    async def finish(self, connection: Any, answer: asyncio.Future[wire.ProduceAnswer]) -> None:
        """Wait for the answer and tell the batches; those for which the next attempt may succeed are queued again."""
        try:
            async with asyncio.timeout(connection._request_timeout):
                found = await answer
            self.handle_response(found)
        except TimeoutError:
            connection.close(reason=CloseReason.CONNECTION_TIMEOUT)  # as the library does, so that it is made anew
            self._fail(kafka_errors.RequestTimedOutError())
        except kafka_errors.KafkaError as exc:
            self._fail(exc)
        if self._to_reenqueue:
            await asyncio.sleep(self._default_backoff)
            for batch in self._to_reenqueue:
                self._sender._message_accumulator.reenqueue(batch)
            await self._client._maybe_wait_metadata()

    def _fail(self, error: Exception) -> None:
        if getattr(error, "invalid_metadata", False):
            self._client.force_metadata_update()
        for batch in self._batches.values():
            if self._can_retry(error, batch):
                self._to_reenqueue.append(batch)
            else:
                batch.failure(exception=error)
