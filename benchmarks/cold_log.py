"""What the embedded log's own code takes between a producer's bytes and the answer to a waiting fetch, warm and cold.

    python -P -m benchmarks.cold_log [--rounds N]

A lone request finds the caches cold: while its model ran, this machine's neighbours and other processes used them. Here
both are shown beside each other, in turn: requests right after one another, and requests after 48 MiB of memory were
touched. Sockets and the kernel are left out, so the figures are those of the code alone. Writes
build/bench/cold_log.json.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.harness import print_table, write_results
from contracts.clock import SystemClock
from contracts.service import settle_heap
from deploy.embedded.log_handlers import Handlers
from deploy.embedded.log_server import Connection, LogServer
from deploy.embedded.log_store import Store
from tests.contract.log_raw import make_batch

TOPIC = "cold"
_MEMORY = np.zeros(48 << 20, np.uint8)
_VALUE = bytes(300)
_CLIENT = b"\0\5bench"
_BLOCK = 20  # requests of a kind in a row


class _Wire(asyncio.Transport):
    """Notes when something is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written_at = 0

    def write(self, data: Any) -> None:
        self.written_at = time.perf_counter_ns()


def _framed(body: bytes) -> bytes:
    return struct.pack(">i", len(body)) + body


def _named(name: bytes) -> bytes:
    return struct.pack(">h", len(name)) + name


def produce(number: int) -> bytes:
    """A Produce of version 3 with one record."""
    batch = make_batch([_VALUE], producer=(7, 0, number))
    wish = struct.pack(">hhi", -1, -1, 10_000) + struct.pack(">i", 1) + _named(TOPIC.encode())
    return _framed(struct.pack(">hhi", 0, 3, number) + _CLIENT + wish + struct.pack(">iii", 1, 0, len(batch)) + batch)


def fetch(offset: int) -> bytes:
    """A Fetch of version 4 that waits."""
    wish = struct.pack(">iiiib", -1, 60_000, 1, 1 << 20, 0) + struct.pack(">i", 1) + _named(TOPIC.encode())
    return _framed(struct.pack(">hhi", 1, 4, offset) + _CLIENT + wish + struct.pack(">iiqi", 1, 0, offset, 1 << 20))


async def measure(rounds: int, folder: Path) -> dict[str, float]:
    """Medians in microseconds."""
    server = LogServer(folder, "127.0.0.1", 0)
    server.store = Store(folder, SystemClock())
    server.handlers = Handlers(server.store, server.faults, "127.0.0.1", 0)
    server.store.create_topic(TOPIC, 1, {"message.timestamp.type": "LogAppendTime"}, dry_run=False)
    wires = _Wire(), _Wire()
    producer, consumer = Connection(server), Connection(server)
    for connection, wire in zip((producer, consumer), wires, strict=True):
        connection.connection_made(wire)
    settle_heap()
    took: dict[str, list[float]] = {"warm_us": [], "cold_us": []}
    for number in range(2 * rounds):
        request = produce(number)
        consumer.data_received(fetch(number))
        await asyncio.sleep(0)
        is_cold = number // _BLOCK % 2
        if is_cold:
            _MEMORY[::64] += 1
        begun = time.perf_counter_ns()
        producer.data_received(request)
        if number % _BLOCK >= _BLOCK // 2:  # what came before has made it warm, or cold
            took["cold_us" if is_cold else "warm_us"].append((wires[1].written_at - begun) / 1000)
    server.store.close()
    return {name: round(statistics.median(values), 1) for name, values in took.items()}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="benchmarks.cold_log", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=300)
    with tempfile.TemporaryDirectory() as folder:
        figures = uvloop.run(measure(parser.parse_args().rounds, Path(folder)))
    print_table([figures])
    write_results("cold_log", figures)


if __name__ == "__main__":
    main()
