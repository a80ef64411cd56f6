"""Requests that come when they come, whatever the service does: the other half of `benchmarks.overload`.

    python -P -m benchmarks.open_loop --bootstrap B --topic T --partitions N --reply R --rate R --seconds S --ttl-ms T

A process of its own, which puts records with one body into the log at a steady rate and reads what is answered, without
the client: no futures, no window, no timers that could answer in the worker's place. Prints its counts as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import time
from array import array
from collections import Counter

import numpy as np
import uvloop

from benchmarks.harness import percentile
from contracts.adapters.kafka import Outgoing, Partition, Producer, Reader, Record
from contracts.codec import decode_response, encode_headers, encode_request
from contracts.messages import ReplyAddress, RequestHeaders, Status
from contracts.settings import KafkaSettings
from contracts.tensors import Tensor

LATE_MS = 50  # that a row may be launched after its time to live: one batch is ahead of it
_TICK_SECONDS = 0.005
_LAST_WORD_SECONDS = 10.0  # after the last request


class OpenLoop:
    """Sends, reads, counts."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        kafka = KafkaSettings(bootstrap=arguments.bootstrap)
        self._producer, self._reader = Producer(kafka), Reader(kafka)
        self._inbox = Partition(arguments.reply, 0)
        self._token = secrets.token_hex(8)
        row = np.zeros((1, 16), np.float32)
        self._body = encode_request((Tensor.from_numpy("row", row),))
        self._sent_at = array("d")
        self._answered = bytearray()
        self.statuses: Counter[str] = Counter()
        self.in_time = self.launched_late = self.repeated = 0
        self.latencies = array("d")
        self.cuts: Counter[str] = Counter()
        self.batches = 0.0

    async def run(self) -> dict[str, object]:
        """The counts of one run."""
        await self._producer.open()
        await self._reader.open()
        self._reader.assign([self._inbox])
        _, end = (await self._reader.bounds([self._inbox]))[self._inbox]
        self._reader.begin(self._inbox, end)
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self._read())
            seconds = await self._send()
            await asyncio.wait([reading], timeout=_LAST_WORD_SECONDS)
            self._is_over = True
        await self._reader.close()
        await self._producer.close()
        return self._counts(seconds)

    _is_over = False
    _is_sent = False

    async def _send(self) -> float:
        """Send evenly; returns how long it took."""
        rate, length = self._arguments.rate, self._arguments.seconds
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while (elapsed := time.perf_counter() - started) < length:
                due = int(elapsed * rate) - len(self._sent_at)
                if due > 0:
                    partition = len(self._sent_at) % self._arguments.partitions
                    group.create_task(self._producer.publish_many(self._arguments.topic, partition, self._some(due)))
                await asyncio.sleep(_TICK_SECONDS)
        self._is_sent = True
        return elapsed

    def _some(self, count: int) -> list[Outgoing]:
        reply, now = ReplyAddress(*self._inbox, self._token), time.perf_counter()
        records: list[Outgoing] = []
        for _ in range(count):
            headers = RequestHeaders(f"{self._token}-{len(self._sent_at)}", reply, self._arguments.ttl_ms)
            records.append((self._body, encode_headers(headers)))
            self._sent_at.append(now)
        self._answered.extend(bytes(count))
        return records

    async def _read(self) -> None:
        while not (self._is_over or (self._is_sent and sum(self.statuses.values()) == len(self._sent_at))):
            found = await self._reader.poll(timeout_ms=50)
            now = time.perf_counter()
            for record in found.get(self._inbox, ()):
                self._count(record, now)

    def _count(self, record: Record, now: float) -> None:
        response, token = decode_response(record.headers, record.value)
        if token != self._token:
            return
        number = int(response.id.rpartition("-")[2])
        if self._answered[number]:
            self.repeated += 1
            return
        self._answered[number] = 1
        self.statuses[response.status.value] += 1
        receipt, ttl = response.receipt, self._arguments.ttl_ms
        if receipt.batch_rows:
            self.launched_late += receipt.queued_us + receipt.batched_us > (ttl + LATE_MS) * 1000
            self.batches += 1 / receipt.batch_rows
            self.cuts[receipt.cut] += 1
        if response.status is Status.OK:
            seconds = now - self._sent_at[number]
            self.latencies.append(seconds)
            self.in_time += seconds <= ttl / 1000

    def _counts(self, seconds: float) -> dict[str, object]:
        return {
            "seconds": seconds,
            "sent": len(self._sent_at),
            "statuses": dict(self.statuses),
            "repeated": self.repeated,
            "in_time": self.in_time,
            "launched_late": self.launched_late,
            "rows_per_batch": round(self.cuts.total() / max(self.batches, 1), 1),
            "cuts": dict(self.cuts),
            "ok_p50_ms": round(percentile(self.latencies, 50) * 1000, 1),
            "ok_p99_ms": round(percentile(self.latencies, 99) * 1000, 1),
        }


def main() -> None:
    """Run, and print the counts."""
    parser = argparse.ArgumentParser(prog="benchmarks.open_loop")
    for name, kind in (("bootstrap", str), ("topic", str), ("reply", str), ("rate", float), ("seconds", float)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--partitions", type=int, required=True)
    parser.add_argument("--ttl-ms", type=int, required=True)
    arguments = parser.parse_args()

    async def run() -> dict[str, object]:
        return await OpenLoop(arguments).run()

    sys.stdout.write(json.dumps(uvloop.run(run())) + "\n")


if __name__ == "__main__":
    main()
