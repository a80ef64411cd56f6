"""The embedded log as a process: faults on command, kill -9 in mid-append, clients that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import aiokafka.errors
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from deploy.embedded.processes import Server
from deploy.embedded.servers import start_embedded_log
from tests.contract.log_raw import (
    FETCH,
    FETCH_VERSION,
    METADATA,
    PRODUCE,
    PRODUCE_VERSION,
    RawClient,
    fetch_fields,
    make_batch,
    split_batches,
)
from tests.contract.log_sessions import Clients, read
from tests.helpers import unique_name, wait_until
from tests.log_faults import log_faults
from tests.servers import ServerPool

pytestmark = pytest.mark.kafka


@pytest.fixture
def log(servers: ServerPool) -> Server:
    """The log that all tests share; faults name a test's own topic."""
    return servers.kafka("embedded")


def folder_of(log: Server) -> Path:
    arguments = log.children[0].argv
    return Path(arguments[arguments.index("--data") + 1])


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("drop_answer", {"times": 2}),
        ("not_leader", {"times": 3}),
        ("delay", {"ms": 300, "times": 1}),
        ("disk_full", {"times": 2}),
        ("refuse", {"code": "not_enough_replicas", "times": 2}),
    ],
)
async def test_an_idempotent_producer_rides_over_faults_without_loss_or_double(
    log: Server, kind: str, options: dict[str, int | str]
) -> None:
    async with Clients(log.address) as clients:
        topic = await clients.topic()
        producer, consumer = await clients.producer(), await clients.consumer(topic)
        with log_faults(folder_of(log)) as faults:
            faults.set(kind, api="produce", topic=topic, **options)  # type: ignore[arg-type]
            sent = [await producer.send(topic, b"%d" % number, partition=0) for number in range(5)]
            offsets = [(await future).offset for future in sent]
            assert faults.faults() == []
        consumer.seek(TopicPartition(topic, 0), 0)
        records = await read(consumer, 5)
        assert [(record.offset, record.value) for record in records] == [(n, b"%d" % n) for n in range(5)]
        assert offsets == list(range(5))


async def test_faults_meet_fetches_and_commits_too(log: Server) -> None:
    async with Clients(log.address) as clients:
        topic, group = await clients.topic(), unique_name("group")
        producer, consumer = await clients.producer(), await clients.consumer(topic, group_id=group)
        partition = TopicPartition(topic, 0)
        await producer.send_and_wait(topic, b"v", partition=0)
        consumer.seek(partition, 0)
        with log_faults(folder_of(log)) as faults:
            faults.set("not_leader", api="fetch", topic=topic, times=2)
            assert [record.value for record in await read(consumer, 1)] == [b"v"]
            faults.set("refuse", api="offset_commit", topic=topic, code="invalid_commit_offset_size")
            with pytest.raises(aiokafka.errors.KafkaError):
                await consumer.commit({partition: 1})
            faults.clear()
            assert await consumer.committed(partition) is None
            await consumer.commit({partition: 1})
            assert await consumer.committed(partition) == 1


async def test_the_fault_door_refuses_what_it_does_not_know(log: Server) -> None:
    with log_faults(folder_of(log)) as faults, pytest.raises(ValueError, match="a fault is one of"):
        faults.set("explode")  # type: ignore[arg-type]


def append_until_killed(bootstrap: str, topic: str, acknowledged: list[int]) -> None:
    try:
        with RawClient(bootstrap) as raw:
            for number in range(1_000_000):
                answer = raw.produce(topic, make_batch([b"%d" % number * 50] * (1 + number % 7)))[0]
                assert answer.error_code == 0
                acknowledged.append(answer.base_offset)
    except OSError:
        return


async def test_kill_9_in_mid_append_loses_nothing_that_was_acknowledged(own_log: Server) -> None:
    async with Clients(own_log.address) as clients:
        topic = await clients.topic()
    acknowledged: list[int] = []
    for _ in range(3):
        before = len(acknowledged)
        writer = threading.Thread(target=append_until_killed, args=(own_log.address, topic, acknowledged))
        writer.start()
        await wait_until(lambda before=before: len(acknowledged) > before + 200)  # type: ignore[misc]
        own_log.kill()
        writer.join()
        own_log.start()
    stored, offset = [], 0
    with RawClient(own_log.address) as raw:
        while some := split_batches(raw.fetch(topic, offset)[0].records):
            stored += some
            offset = some[-1].base_offset + some[-1].last_offset_delta + 1
    bases = [batch.base_offset for batch in stored]
    assert set(acknowledged) <= set(bases)
    assert all(batch.is_intact for batch in stored)
    assert len(bases) - len(acknowledged) <= 3  # at most the one in flight at each kill


async def test_a_waiting_fetch_is_answered_with_all_that_one_request_appended(log: Server) -> None:
    async with Clients(log.address) as clients:
        topic = await clients.topic(partitions=2)
    with RawClient(log.address) as consumer, RawClient(log.address) as producer:
        consumer.send(FETCH, FETCH_VERSION, fetch_fields(topic, 0, 0, max_wait_ms=10_000))
        producer.produce(topic, make_batch([b"a"]), make_batch([b"b"]))
        parts = consumer.receive(FETCH, FETCH_VERSION).responses[0].partitions
    assert [len(split_batches(part.records)) for part in parts] == [1, 1]


async def test_what_a_refused_request_did_append_reaches_who_waits(log: Server) -> None:
    """Without acknowledgements the only way to refuse a part is to hang up."""
    async with Clients(log.address) as clients:
        topic = await clients.topic()
    with RawClient(log.address) as consumer, RawClient(log.address) as producer:
        consumer.send(FETCH, FETCH_VERSION, fetch_fields(topic, 0, max_wait_ms=60_000))
        parts = [{"index": index, "records": make_batch([b"a"])} for index in (0, 7)]  # there is no partition 7
        wanted = {"acks": 0, "topic_data": [{"name": topic, "partition_data": parts}]}
        producer.send(PRODUCE, PRODUCE_VERSION, wanted)
        part = consumer.receive(FETCH, FETCH_VERSION).responses[0].partitions[0]
    assert len(split_batches(part.records)) == 1


async def test_answers_that_set_off_further_requests_reach_the_last_who_waits(log: Server) -> None:
    """Each client waits for a record and has sent the record of the next one already, right behind its fetch."""
    length = 250
    async with Clients(log.address) as clients:
        topic = await clients.topic(partitions=length + 1)
    with contextlib.ExitStack() as stack:
        chain = [stack.enter_context(RawClient(log.address)) for _ in range(length)]
        for number, client in enumerate(chain):
            part = {"partition": number, "fetch_offset": 0, "partition_max_bytes": 1 << 20}
            fields = fetch_fields(topic, 0, max_wait_ms=20_000)
            client.send(FETCH, FETCH_VERSION, {**fields, "topics": [{"topic": topic, "partitions": [part]}]})
            record = {"index": number + 1, "records": make_batch([b"%d" % number])}
            wanted = {"acks": -1, "topic_data": [{"name": topic, "partition_data": [record]}]}
            client.send(PRODUCE, PRODUCE_VERSION, wanted)
        stack.enter_context(RawClient(log.address)).produce(topic, make_batch([b"first"]))
        for client in chain:
            for correlation, api, version in ((1, FETCH, FETCH_VERSION), (2, PRODUCE, PRODUCE_VERSION)):
                client.correlation = correlation
                client.receive(api, version)
        assert len(split_batches(chain[0].fetch(topic, *[0] * (length + 1))[length].records)) == 1


def test_another_address_than_loopback_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "deploy.embedded.log_server", "--data", str(tmp_path), "--host", "0.0.0.0"]  # noqa: S104
    ended = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert ended.returncode == 1
    assert "loopback only" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_it_says_where_it_listens_and_stops_cleanly(own_log: Server) -> None:
    port = own_log.address.rsplit(":", maxsplit=1)[1]
    assert (folder_of(own_log) / "port").read_text("utf-8") == f"{port}\n"
    child = psutil.Process(own_log.pids[0])
    child.terminate()
    assert child.wait(10) == 0


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack(">i", 8) + struct.pack(">hhi", 999, 0, 1),
        struct.pack(">i", 10) + struct.pack(">hhih", 0, 8, 1, -1),
        struct.pack(">i", -5),
        b"GET / HTTP/1.1\r\n\r\n" * 20,
    ],
)
def test_garbage_ends_its_connection_and_no_other(log: Server, garbage: bytes) -> None:
    with RawClient(log.address) as other:
        with RawClient(log.address) as raw:
            raw.send_bytes(garbage)
            with pytest.raises(ConnectionError):
                raw.receive(METADATA, 1)
        assert len(other.ask(METADATA, 1, {"topics": None}).brokers) == 1


async def test_requests_behind_a_waiting_fetch_are_answered_in_order(log: Server) -> None:
    async with Clients(log.address) as clients:
        topic = await clients.topic()
    with RawClient(log.address) as raw, RawClient(log.address) as other:
        raw.send(FETCH, FETCH_VERSION, fetch_fields(topic, 0, max_wait_ms=5000))
        raw.send(METADATA, 1, {"topics": None})
        raw.correlation -= 1
        began = time.monotonic()
        other.produce(topic, make_batch([b"v"]))
        assert len(split_batches(raw.receive(FETCH, FETCH_VERSION).responses[0].partitions[0].records)) == 1
        raw.correlation += 1
        assert len(raw.receive(METADATA, 1).brokers) == 1
        assert time.monotonic() - began < 4


async def test_a_waiting_fetch_learns_that_its_topic_was_deleted(log: Server) -> None:
    async with Clients(log.address) as clients:
        topic, admin = await clients.topic(), await clients.admin()
        with RawClient(log.address) as raw:
            raw.send(FETCH, FETCH_VERSION, fetch_fields(topic, 0, max_wait_ms=20_000))
            await admin.delete_topics([topic])
            answer = await asyncio.to_thread(raw.receive, FETCH, FETCH_VERSION)
        assert answer.responses[0].partitions[0].error_code.name == "unknown_topic_or_partition"


async def test_consumer_groups_with_members_are_refused_by_name(log: Server) -> None:
    async with Clients(log.address) as clients:
        topic = await clients.topic()
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=log.address, group_id=unique_name("group"))
        with pytest.raises(aiokafka.errors.GroupAuthorizationFailedError):
            await consumer.start()
        await consumer.stop()
    assert "use assign()" in log.children[0].log.read_text("utf-8")


async def test_memory_does_not_grow_with_what_is_stored(own_log: Server) -> None:
    async with Clients(own_log.address) as clients:
        topic = await clients.topic()
    process, batch = psutil.Process(own_log.pids[0]), make_batch([bytes(900_000)])
    with RawClient(own_log.address) as raw:
        raw.produce(topic, batch)
        raw.fetch(topic, 0)
        before = process.memory_info().rss
        for number in range(1, 100):
            raw.produce(topic, batch)
            assert len(raw.fetch(topic, number)[0].records) == len(batch)
    assert process.memory_info().rss - before < 32 << 20


def test_faults_reach_a_log_in_a_deep_folder(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20) / ("down" * 20)  # a socket's address has 108 bytes
    deep = start_embedded_log(folder)
    try:
        with log_faults(folder) as faults:
            faults.set("delay", ms=1)
            assert [fault["kind"] for fault in faults.faults()] == ["delay"]
    finally:
        deep.stop()
