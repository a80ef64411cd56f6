"""How fast the embedded log carries records: round trips one at a time, and echoes between two processes.

`python -P -m benchmarks.log_roundtrip` starts a log of its own on a temporary folder; `--bootstrap HOST:PORT` measures
a running broker instead, Apache Kafka for example. It prints its figures and writes them to build/bench/log.json.

- round trip: produce one record, fetch it, produce the next; again after 200,000 batches of one record each.
- echo: one process sends requests and keeps N in flight, another fetches them and sends each back on a reply topic,
  with the clients' settings of the fleet. `log CPU` is the share of one core that the log itself took meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import uvloop
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from benchmarks.plain import VALUE, call, consumer_of, create_topics, plain_worker, producer_of

PIPELINED = 200  # requests on the wire at once, when only their number counts


async def round_trips(bootstrap: str, topic: str, count: int) -> dict[str, float]:
    """Milliseconds from the send of one record to its arrival."""
    producer, consumer = producer_of(bootstrap), await consumer_of(bootstrap, topic)
    await producer.start()
    took: list[float] = []
    for _ in range(count):
        sent = time.perf_counter()
        acknowledged = await producer.send(topic, VALUE, partition=0)
        record = await consumer.getone()
        took.append((time.perf_counter() - sent) * 1000)
        assert (await acknowledged).offset == record.offset
    await producer.stop()
    await consumer.stop()
    took.sort()
    return {"p50_ms": statistics.median(took), "p99_ms": took[int(count * 0.99)]}


async def one_record_batches(bootstrap: str, topic: str, count: int) -> dict[str, float]:
    """Appends batches of one record each, as many clients would, and says how long one took."""
    builder = DefaultRecordBatchBuilder(2, 0, False, -1, -1, -1, 1 << 20)
    builder.append(0, None, None, VALUE, headers=[])
    batch = bytes(builder.build())
    client = AIOKafkaClient(bootstrap_servers=bootstrap)
    await client.bootstrap()
    node = client.cluster.brokers().pop().nodeId
    started = time.perf_counter()
    for done in range(0, count, PIPELINED):
        requests = (
            ProduceRequest(None, -1, 30_000, [(topic, [(0, batch)])]) for _ in range(min(PIPELINED, count - done))
        )
        for answer in await asyncio.gather(*(client.send(node, request) for request in requests)):
            assert answer.topics[0][1][0][1] == 0
    elapsed = time.perf_counter() - started
    await client.close()
    return {"batches": count, "us_each": elapsed / max(count, 1) * 1e6}


async def echo(bootstrap: str, *, in_flight: int, count: int, server: psutil.Process | None) -> dict[str, float]:
    async with plain_worker(bootstrap) as (requests, replies):
        await call(bootstrap, requests, replies, in_flight=in_flight, count=min(count, 2000))  # warm up
        before = cpu_seconds(server)
        figures = await call(bootstrap, requests, replies, in_flight=in_flight, count=count)
        figures["log_cpu"] = (cpu_seconds(server) - before) / figures["s"]
    return figures


def cpu_seconds(server: psutil.Process | None) -> float:
    if server is None:
        return 0.0
    times = server.cpu_times()
    return float(times.user + times.system)


@contextlib.contextmanager
def own_log() -> Iterator[tuple[str, psutil.Process]]:
    """An embedded log on a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="log-bench-") as folder:
        command = [sys.executable, "-P", "-m", "deploy.embedded.log_server", "--data", folder, "--port", "0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1], psutil.Process(process.pid)
            process.terminate()


async def measure(bootstrap: str, server: psutil.Process | None, options: argparse.Namespace) -> dict[str, Any]:
    topic = f"trip-{uuid4().hex[:8]}"
    await create_topics(bootstrap, topic)
    figures: dict[str, Any] = {"round_trip": await round_trips(bootstrap, topic, options.round_trips)}
    figures["one_record_batches"] = await one_record_batches(bootstrap, topic, options.batches)
    figures["round_trip_after"] = await round_trips(bootstrap, topic, options.round_trips)
    for in_flight in options.in_flight:
        count = options.echoes if in_flight > 1 else min(options.echoes, 5000)
        figures[f"echo_{in_flight}"] = await echo(bootstrap, in_flight=in_flight, count=count, server=server)
    if server is not None:
        figures["log_resident_mib"] = server.memory_info().rss / (1 << 20)
    return figures


def show(figures: dict[str, Any]) -> None:
    for name, row in figures.items():
        cells = row.items() if isinstance(row, dict) else [("", row)]
        print(f"{name:16}", "  ".join(f"{key} {value:,.2f}" for key, value in cells))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", help="measure this broker instead of an embedded log of its own")
    parser.add_argument("--round-trips", type=int, default=2000)
    parser.add_argument("--batches", type=int, default=200_000, help="one-record batches between the two round trips")
    parser.add_argument("--echoes", type=int, default=60_000)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 256, 1024])
    parser.add_argument("--out", type=Path, default=Path("build/bench/log.json"))
    return parser.parse_args(argv)


def main() -> None:
    options = parse()
    with contextlib.ExitStack() as stack:
        bootstrap, server = (options.bootstrap, None) if options.bootstrap else stack.enter_context(own_log())
        figures = uvloop.run(measure(bootstrap, server, options))
    show(figures)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
