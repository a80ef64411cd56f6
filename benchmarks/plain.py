"""The plainest worker there can be: aiokafka's consumer, the bare model one record at a time, aiokafka's producer.

It decodes nothing, checks nothing, commits nothing and survives nothing. What it takes longer than the bare call is
what the log and the client library cost on this machine in this minute, so the path is measured beside it: at one in
flight with the model, and at 256 without one, as a bare echo.

    python -P -m benchmarks.plain BOOTSTRAP REQUESTS REPLIES [MODEL]
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from benchmarks.bare import environment, load
from benchmarks.engine_models import BenchModel, prepare

VALUE = bytes(256)


def producer_of(bootstrap: str) -> AIOKafkaProducer:
    return AIOKafkaProducer(
        bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, linger_ms=0, max_batch_size=256 * 1024
    )


async def consumer_of(bootstrap: str, topic: str) -> AIOKafkaConsumer:
    """A consumer of the topic's only partition, from its end on."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, fetch_max_wait_ms=50, auto_offset_reset="latest")
    await consumer.start()
    partition = TopicPartition(topic, 0)
    consumer.assign([partition])
    consumer.seek(partition, (await consumer.end_offsets([partition]))[partition])
    return consumer


async def create_topics(bootstrap: str, *names: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    stamped = {"message.timestamp.type": "LogAppendTime"}
    await admin.create_topics([NewTopic(name, 1, 1, topic_configs=stamped) for name in names])
    await admin.close()


@asynccontextmanager
async def plain_worker(bootstrap: str, model: BenchModel | None = None) -> AsyncIterator[tuple[str, str]]:
    """A worker process between two topics of its own, whose names are returned; without a model it is an echo."""
    requests, replies = f"plain-req-{uuid4().hex[:8]}", f"plain-rep-{uuid4().hex[:8]}"
    await create_topics(bootstrap, requests, replies)
    async with _worker_between(bootstrap, requests, replies, model):
        yield requests, replies


@asynccontextmanager
async def plain_chain(bootstrap: str, workers: int) -> AsyncIterator[tuple[str, str]]:
    """Echoing workers in a row, each reading what the one before it wrote; the first and the last topic."""
    name = uuid4().hex[:8]
    topics = [f"plain-hop-{name}-{number}" for number in range(workers + 1)]
    await create_topics(bootstrap, *topics)
    async with AsyncExitStack() as stack:
        for requests, replies in itertools.pairwise(topics):
            await stack.enter_async_context(_worker_between(bootstrap, requests, replies))
        yield topics[0], topics[-1]


@asynccontextmanager
async def _worker_between(
    bootstrap: str, requests: str, replies: str, model: BenchModel | None = None
) -> AsyncIterator[None]:
    command = [sys.executable, "-P", "-m", "benchmarks.plain", bootstrap, requests, replies]
    worker = await asyncio.create_subprocess_exec(
        *command,
        *([] if model is None else [model.spec.name]),
        stdout=asyncio.subprocess.PIPE,
        env=dict(os.environ) if model is None else environment(model),
    )
    try:
        assert worker.stdout is not None
        assert await worker.stdout.readline() == b"ready\n"
        yield
    finally:
        worker.kill()
        await worker.wait()


async def call(bootstrap: str, requests: str, replies: str, *, in_flight: int, count: int) -> dict[str, float]:
    """Send `count` requests with so many in flight; each must come back once."""
    producer, consumer = producer_of(bootstrap), await consumer_of(bootstrap, replies)
    await producer.start()
    sent_at: dict[bytes, float] = {}
    took: list[float] = []
    started, number = time.perf_counter(), 0
    while len(took) < count:
        while len(sent_at) < in_flight and number < count:
            key = b"%d" % number
            sent_at[key] = time.perf_counter()
            await producer.send(requests, VALUE, key=key, partition=0)
            number += 1
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            now = time.perf_counter()
            took.extend((now - sent_at.pop(record.key)) * 1000 for record in records)
    elapsed = time.perf_counter() - started
    await producer.stop()
    await consumer.stop()
    took.sort()
    return {"per_s": count / elapsed, "p50_ms": took[count // 2], "p99_ms": took[int(count * 0.99)], "s": elapsed}


async def serve(bootstrap: str, requests: str, replies: str, infer: Callable[[], object]) -> None:
    """Send every request back once the model has run, until killed."""
    producer, consumer = producer_of(bootstrap), await consumer_of(bootstrap, requests)
    await producer.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        for records in (await consumer.getmany(timeout_ms=1000)).values():
            for record in records:
                infer()
                await producer.send(replies, record.value, key=record.key, partition=0)


def _nothing() -> None:
    pass


def main() -> None:
    """Serve as the arguments say."""
    bootstrap, requests, replies, *models = sys.argv[1:]
    infer: Callable[[], object] = _nothing
    if models:
        model = prepare(models[0])
        backend, inputs = load(model), model.sample(1)

        def infer() -> object:
            return backend.infer(inputs, 1, {})

    uvloop.run(serve(bootstrap, requests, replies, infer))


if __name__ == "__main__":
    main()
