"""The library's batches, made and filled with fewer steps.

Between a record and the batch that holds it the library has five calls and looks for the running loop twice: half of
what a lone request spends on its way into the socket. Everything else about a batch is left as the library has it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, Self

from aiokafka.producer.message_accumulator import BatchBuilder, MessageBatch

from contracts.adapters.kafka.connection import Outgoing, Partition

PRODUCER_BATCH_BYTES = 256 * 1024  # 16 KiB, the library's default, costs a third of the throughput
_UNCOMPRESSED = 0


class Records(BatchBuilder):  # type: ignore[misc]  # the library has no types
    """Records on their way into a batch."""

    @classmethod
    def fill(cls, records: Sequence[Outgoing]) -> list[Self]:
        """As few as the records fit into, in their order."""
        filled: list[Self] = []
        position = 0
        while position < len(records):
            batch = cls(PRODUCER_BATCH_BYTES, _UNCOMPRESSED)
            append, count = batch._builder.append, 0
            for record in records[position:] if position else records:
                key = record[2] if len(record) > 2 else None  # noqa: PLR2004 - most have none
                if append(count, None, key, record[0], record[1]) is None:
                    break
                count += 1
            batch._relative_offset = count
            position += count  # at least one further: a batch takes its first record whatever its size
            filled.append(batch)
        return filled


class Batch(MessageBatch):  # type: ignore[misc]  # the library has no types
    """Records that are sent, and the future of their acknowledgement."""

    def __init__(self, partition: Partition, records: Records, seconds: float, loop: asyncio.AbstractEventLoop) -> None:
        # All that the library's own has.
        self._tp, self._builder, self._ttl, self._linger_time = partition, records, seconds, 0
        self._ctime = time.monotonic()
        self.future: asyncio.Future[Any] = loop.create_future()
        self._msg_futures: list[Any] = []
        self._drain_waiter: asyncio.Future[None] = loop.create_future()
        self._retry_count = 0

    def begin(self, identity: tuple[int, int], sequence: int) -> None:
        """It is about to be sent for the first time, as that producer's from that number on."""
        self._builder._set_producer_state(*identity, sequence)  # noqa: SLF001 - the batch's own way to its records
        self._drain_waiter.set_result(None)
        self._retry_count = 1
