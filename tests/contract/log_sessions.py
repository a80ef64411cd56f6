"""What clients see: one script of sessions, run against the embedded log and against Apache Kafka.

A session takes a broker's address, works on topics of its own, and returns plain values with everything left out that
two runs may differ in (ids, the time of day). What Apache Kafka 4.1 returned stands in `log_observations.py`.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Self

import aiokafka.errors
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, OffsetAndMetadata, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from tests.contract.log_raw import (
    DESCRIBE_CONFIGS,
    DESCRIBE_GROUPS,
    FETCH,
    FETCH_VERSION,
    METADATA,
    OFFSET_COMMIT,
    OFFSET_FETCH,
    RawClient,
    fetch_fields,
    make_batch,
    split_batches,
)
from tests.helpers import unique_name, wait_until

Observations = dict[str, Any]
Session = Callable[[str], Awaitable[Observations]]
STAMPED = {"message.timestamp.type": "LogAppendTime"}


class Clients:
    """aiokafka's clients for one session, closed at its end."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def admin(self) -> AIOKafkaAdminClient:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.bootstrap)
        self._stack.push_async_callback(admin.close)
        await admin.start()
        return admin

    async def topic(self, partitions: int = 1, settings: Mapping[str, str] | None = None) -> str:
        """A new topic that clients can use."""
        name, admin = unique_name("topic"), await self.admin()
        kept = {"retention.ms": "-1", **(settings or {})}  # records here are of 1970: the next sweep would remove them
        answer = await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=kept)])
        assert answer.topic_errors[0][1] == 0, answer

        with RawClient(self.bootstrap) as raw:  # clients would wait for leaders; what is sent raw needs them now
            await wait_until(lambda: raw.has_leaders(name, partitions), "the topic did not come up")
        return name

    async def producer(self, **options: Any) -> AIOKafkaProducer:
        options = {"acks": "all", "enable_idempotence": True, "linger_ms": 0, **options}
        producer = AIOKafkaProducer(bootstrap_servers=self.bootstrap, **options)
        self._stack.push_async_callback(producer.stop)
        await producer.start()
        return producer

    async def consumer(self, topic: str, partitions: int = 1, **options: Any) -> AIOKafkaConsumer:
        options = {"enable_auto_commit": False, "auto_offset_reset": "none", "fetch_max_wait_ms": 50, **options}
        consumer = AIOKafkaConsumer(bootstrap_servers=self.bootstrap, **options)
        self._stack.push_async_callback(consumer.stop)
        await consumer.start()
        consumer.assign([TopicPartition(topic, index) for index in range(partitions)])
        return consumer


async def read(consumer: AIOKafkaConsumer, count: int) -> list[Any]:
    records: list[Any] = []

    async def has_all() -> bool:
        for part in (await consumer.getmany(timeout_ms=100)).values():
            records.extend(part)
        return len(records) >= count

    await wait_until(has_all, f"{count} records did not come")
    return records


async def produce_and_fetch(bootstrap: str) -> Observations:
    """Keys, headers, nulls and order; fetching from the start and from the middle."""
    async with Clients(bootstrap) as clients:
        topic = await clients.topic(partitions=2)
        producer, consumer = await clients.producer(), await clients.consumer(topic, partitions=2)
        first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
        sent = [
            await producer.send_and_wait(topic, b"one", key=b"k", headers=[("h", b"1"), ("h", b"")], partition=0),
            await producer.send_and_wait(topic, None, key=b"k", partition=0),
            await producer.send_and_wait(topic, b"three", partition=0, timestamp_ms=1234),
            await producer.send_and_wait(topic, b"", partition=1),
        ]
        consumer.seek(first, 0)
        consumer.seek(second, 0)
        all_records = await read(consumer, 4)
        consumer.seek(first, 1)
        again = await read(consumer, 2)
        ends = await consumer.end_offsets([first, second])
        beginnings = await consumer.beginning_offsets([first, second])
        return {
            "acknowledged": [(ack.partition, ack.offset, ack.timestamp_type) for ack in sent],
            "records": sorted((r.partition, r.offset, r.key, r.value, list(r.headers)) for r in all_records),
            "create time": [r.timestamp for r in all_records if r.value == b"three"],
            "from the middle": [(r.offset, r.value) for r in again],
            "ends": [ends[first], ends[second], beginnings[first], beginnings[second]],
            "high water": consumer.highwater(first),
        }


async def append_time(bootstrap: str) -> Observations:
    """The broker's stamp, in the acknowledgement and in every record, whatever the producer says."""
    async with Clients(bootstrap) as clients:
        topic = await clients.topic(settings=STAMPED)
        producer, consumer = await clients.producer(), await clients.consumer(topic)
        before = time.time() * 1000  # noqa: TID251 - compared with the broker's wall clock
        acks = [await producer.send_and_wait(topic, b"v", timestamp_ms=1, partition=0) for _ in range(3)]
        consumer.seek(TopicPartition(topic, 0), 0)
        records = await read(consumer, 3)
        stamps = [record.timestamp for record in records]
        return {
            "types": [record.timestamp_type for record in records],
            "as acknowledged": stamps == [ack.timestamp for ack in acks],
            "acknowledged type": {ack.timestamp_type for ack in acks},
            "is now": all(before - 2 <= stamp <= before + 10_000 for stamp in stamps),
            "rises": stamps == sorted(stamps),
        }


async def out_of_range(bootstrap: str) -> Observations:
    """Fetching beyond the end and below the start is an error, never silence."""
    async with Clients(bootstrap) as clients:
        topic = await clients.topic()
        producer, consumer, admin = await clients.producer(), await clients.consumer(topic), await clients.admin()
        partition = TopicPartition(topic, 0)
        for _ in range(3):
            await producer.send_and_wait(topic, b"v", partition=0)

        async def fetch_from(offset: int) -> str:
            consumer.seek(partition, offset)
            try:
                return f"{len(await consumer.getmany(partition, timeout_ms=1000))} records"
            except aiokafka.errors.KafkaError as error:
                return type(error).__name__

        beyond, end = await fetch_from(9), await fetch_from(3)
        low = await admin.delete_records({partition: RecordsToDelete(before_offset=2)})
        below = await fetch_from(1)
        consumer.seek(partition, 2)
        left = [record.offset for record in await read(consumer, 1)]
        return {"beyond": beyond, "end": end, "low water": list(low.values()), "below": below, "left": left}


async def offsets_by_time(bootstrap: str) -> Observations:
    """The first record at or after a time, within a batch too; none when all are older."""
    async with Clients(bootstrap) as clients:
        topic, stamped = await clients.topic(), await clients.topic(settings=STAMPED)
        with RawClient(bootstrap) as raw:
            for times in ([1000, 1010, 1005], [900], [2000, 3000]):
                raw.produce(topic, make_batch([b"v"] * len(times), timestamps=times))
            stamp = raw.produce(stamped, make_batch([b"v"] * 3))[0].log_append_time

            def at(name: str, moment: int) -> tuple[int, int]:
                (part,) = raw.offsets(name, 1, moment)
                return part.offset, part.timestamp

            stamp_ms = int(stamp.timestamp() * 1000)
            return {
                "exact": [at(topic, moment) for moment in (0, 1000, 1001, 1006, 1010, 1011, 2000, 2500, 3000, 3001)],
                "ends": [at(topic, -1), at(topic, -2)],
                "stamped": [at(stamped, moment)[0] for moment in (0, stamp_ms - 5, stamp_ms, stamp_ms + 60_000)],
            }


async def commits(bootstrap: str) -> Observations:
    """Commits under a group id that has no members: kept with their metadata, also when they fall."""
    async with Clients(bootstrap) as clients:
        topic, group = await clients.topic(partitions=2), unique_name("group")
        consumer, admin = await clients.consumer(topic, 2, group_id=group), await clients.admin()
        first, second = TopicPartition(topic, 0), TopicPartition(topic, 1)
        nothing = await consumer.committed(first)
        await consumer.commit({first: OffsetAndMetadata(7, "done: é"), second: 0})
        read_back = [await consumer.committed(first), await consumer.committed(second)]
        by_admin = await admin.list_consumer_group_offsets(group)
        some = await admin.list_consumer_group_offsets(group, partitions=[second])
        await consumer.commit({first: OffsetAndMetadata(3, "")})
        lower = await consumer.committed(first)
        groups = {name: protocol for name, protocol in await admin.list_consumer_groups() if name == group}
        described = (await admin.describe_consumer_groups([group]))[0].groups[0]
        try:
            await consumer.commit({first: OffsetAndMetadata(3, "x" * 5000)})
            too_long = "accepted"
        except aiokafka.errors.KafkaError as error:
            too_long = type(error).__name__
        other = await clients.consumer(topic, group_id=unique_name("group"))
        return {
            "nothing": nothing,
            "read back": read_back,
            "by admin": sorted((tp.partition, value.offset, value.metadata) for tp, value in by_admin.items()),
            "some": sorted((tp.partition, value.offset, value.metadata) for tp, value in some.items()),
            "lower": lower,
            "groups": list(groups.values()),
            "described": (described[0], described[2], described[3], described[5]),
            "too long": too_long,
            "other group": await other.committed(first),
        }


async def refused_records(bootstrap: str) -> Observations:
    """Too large, unknown topic, no such partition, damaged: each with its own error."""
    async with Clients(bootstrap) as clients:
        topic = await clients.topic(settings={"max.message.bytes": "1000"})
        producer = await clients.producer()
        try:
            await producer.send_and_wait(topic, bytes(2000), partition=0)
            large = "accepted"
        except aiokafka.errors.KafkaError as error:
            large = type(error).__name__
        with RawClient(bootstrap) as raw:
            damaged = bytearray(make_batch([b"v"]))
            damaged[-2] ^= 1
            one, absent = make_batch([b"v"]), unique_name("absent")
            unknown = raw.ask(METADATA, 5, {"topics": [{"name": absent}], "allow_auto_topic_creation": True}).topics[0]
            return {
                "large": large,
                "large, raw": raw.produce(topic, make_batch([bytes(2000)]))[0].error_code.name,
                "largest": raw.produce(topic, make_batch([bytes(1000 - 61 - 9)]))[0].error_code.name,
                "damaged": raw.produce(topic, bytes(damaged))[0].error_code.name,
                "two batches": raw.produce(topic, one + one)[0].error_code.name,
                "unknown topic": raw.produce(absent, one)[0].error_code.name,
                "unknown partition": [part.error_code.name for part in raw.produce(topic, one, one)],
                "fetch of an unknown topic": raw.fetch(absent, 0)[0].error_code.name,
                "metadata of an unknown topic": (unknown.error_code.name, unknown.partitions),
                "end": raw.fetch(topic, 2)[0].high_watermark,
            }


async def idempotent_retry(bootstrap: str) -> Observations:
    """A repeated batch is acknowledged as the first time and stored once; gaps and old epochs are refused."""
    async with Clients(bootstrap) as clients:
        topic = await clients.topic(settings=STAMPED)
        with RawClient(bootstrap) as raw:
            number = raw.producer_id()
            stamps: list[Any] = []

            def send(count: int, sequence: int, epoch: int = 0, producer: int = number) -> tuple[str, int]:
                part = raw.produce(topic, make_batch([b"v"] * count, producer=(producer, epoch, sequence)))[0]
                stamps.append(part.log_append_time)
                return part.error_code.name, part.base_offset

            answers = [
                send(3, 0),
                send(3, 0),
                send(2, 3),
                send(2, 6),  # a gap
                send(2, 3),
                send(1, 3),  # neither the next nor any before
                send(1, 5, epoch=1),  # a new epoch begins at 0
                send(1, 0, epoch=1),
                send(1, 5),  # the old epoch is over
                send(1, 9, producer=number + 1_000_000),  # never seen here: any number begins
            ]
            for sequence in range(1, 7):
                send(1, sequence, epoch=1)
            answers += [send(1, 2, epoch=1), send(1, 1, epoch=1), send(1, 0, epoch=1)]  # five are remembered
            wrapped = [send(2, 2**31 - 1, producer=number + 2_000_000), send(1, 1, producer=number + 2_000_000)]
            return {
                "answers": answers,
                "same stamp": stamps[0] == stamps[1],
                "wrapped": wrapped,
                "end": raw.fetch(topic, 0)[0].high_watermark,
            }


async def raw_fetch(bootstrap: str) -> Observations:
    """Bytes as they are stored, limits, the long poll, fetch sessions."""
    async with Clients(bootstrap) as clients:
        topic = await clients.topic(partitions=3)
        batches = [make_batch([bytes(100)]), make_batch([bytes(300)] * 2), make_batch([bytes(50)])]
        with RawClient(bootstrap) as raw, RawClient(bootstrap) as waiting:
            for batch in batches:
                raw.produce(topic, batch, batch)

            def lengths(*offsets: int, **options: int) -> list[list[int]]:
                parts = raw.fetch(topic, *offsets, **options)
                return [[batch.length for batch in split_batches(part.records or b"")] for part in parts]

            stored = split_batches(raw.fetch(topic, 0)[0].records)
            waiting.send(FETCH, FETCH_VERSION, fetch_fields(topic, 4, 4, 0, max_wait_ms=5000))
            began = time.monotonic()
            raw.produce(topic, make_batch([b"v"]))
            woken = waiting.receive(FETCH, FETCH_VERSION).responses[0].partitions[0]
            took = time.monotonic() - began
            began = time.monotonic()
            empty = raw.fetch(topic, 5, 4, 0, max_wait_ms=300)
            waited = time.monotonic() - began
            session = raw.ask(FETCH, FETCH_VERSION, {**fetch_fields(topic, 0), "session_id": 77, "session_epoch": 1})
            return {
                "unchanged": [batch.records in sent for batch, sent in zip(stored, batches, strict=True)],
                "intact": [batch.is_intact for batch in stored],
                "offsets": [(batch.base_offset, batch.leader_epoch, batch.attributes) for batch in stored],
                "in mid-batch": lengths(2),
                "two partitions": lengths(0, 3),
                "at least one batch": lengths(1, partition_max_bytes=10),
                "whole batches": lengths(0, partition_max_bytes=400),
                "one for all": lengths(0, 0, max_bytes=100),
                "none asked for": lengths(5, 4, 0),
                "woken": (woken.high_watermark, len(split_batches(woken.records)), took < 2),
                "waited": (0.29 < waited < 2, [part.error_code.name for part in empty]),
                "session": (session.error_code.name, session.session_id),
            }


async def topic_life(bootstrap: str) -> Observations:
    """Create, refuse to create, grow, refuse to shrink, delete, create again empty."""
    async with Clients(bootstrap) as clients:
        admin, producer = await clients.admin(), await clients.producer()
        topic = await clients.topic(partitions=2)

        async def create(name: str, partitions: int, replicas: int = 1, **settings: str) -> int:
            configs = {key.replace("_", "."): value for key, value in settings.items()}
            answer = await admin.create_topics([NewTopic(name, partitions, replicas, topic_configs=configs)])
            return int(answer.topic_errors[0][1])

        async def grow(name: str, partitions: int) -> int:
            try:
                await admin.create_partitions({name: NewPartitions(partitions)})
            except aiokafka.errors.KafkaError as error:
                return int(error.errno)
            return 0

        async def delete(name: str) -> int:
            return int((await admin.delete_topics([name])).topic_error_codes[0][1])

        async def count() -> int:
            return len((await admin.describe_topics([topic]))[0]["partitions"])

        refused = {
            "exists": await create(topic, 1),
            "bad name": await create("no spaces", 1),
            "dots": await create("..", 1),
            "no partitions": await create(unique_name(), 0),
            "three replicas": await create(unique_name(), 1, 3),
            "unknown setting": await create(unique_name(), 1, no_such_setting="1"),
            "bad value": await create(unique_name(), 1, retention_ms="soon"),
            "bad word": await create(unique_name(), 1, message_timestamp_type="Yesterday"),
            "shrink": await grow(topic, 1),
            "same size": await grow(topic, 2),
            "grow unknown": await grow(unique_name(), 3),
            "delete unknown": await delete(unique_name()),
        }
        await producer.send_and_wait(topic, b"v", partition=0)
        grown = await grow(topic, 4)

        async def has_four() -> bool:
            return await count() == 4

        await wait_until(has_four)
        deleted = await delete(topic)

        async def is_created() -> bool:
            return await create(topic, 1) == 0

        await wait_until(is_created, "the name of a deleted topic cannot be used again")
        consumer = await clients.consumer(topic)
        partition = TopicPartition(topic, 0)
        ends = await consumer.end_offsets([partition])
        return {
            "refused": refused,
            "grown": grown,
            "deleted": deleted,
            "again": ends[partition],
            "listed": await count(),
        }


async def settings(bootstrap: str) -> Observations:
    """Topic settings: described, altered, back to their defaults."""
    async with Clients(bootstrap) as clients:
        admin = await clients.admin()
        topic = await clients.topic(settings={"retention.ms": "3600000", **STAMPED})
        names = ["retention.ms", "retention.bytes", "max.message.bytes", "message.timestamp.type", "cleanup.policy"]
        names += ["min.insync.replicas", "compression.type"]

        async def describe() -> dict[str, tuple[str, bool]]:
            (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
            entries = answer.resources[0][4]
            return {entry[0]: (entry[1], entry[3] == 1) for entry in entries if entry[0] in names}

        async def alter(**values: str) -> int:
            new = {name.replace("_", "."): value for name, value in values.items()}
            (answer,) = await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, new)])
            return int(answer.resources[0][0])

        before = await describe()
        codes = [await alter(retention_bytes="1000000"), await alter(no_such="1"), await alter(retention_ms="-2")]

        async def is_altered() -> bool:
            return (await describe())["retention.bytes"] == ("1000000", True)

        await wait_until(is_altered)
        unknown = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, unique_name())])
        return {
            "before": before,
            "codes": codes,
            "after": await describe(),
            "unknown": unknown[0].resources[0][0],
        }


async def delete_records(bootstrap: str) -> Observations:
    """The start moves up and never beyond the end."""
    async with Clients(bootstrap) as clients:
        topic = await clients.topic()
        admin, consumer, producer = await clients.admin(), await clients.consumer(topic), await clients.producer()
        partition = TopicPartition(topic, 0)
        for _ in range(5):
            await producer.send_and_wait(topic, b"v", partition=0)

        async def delete(before: int) -> int | str:
            try:
                answer = await admin.delete_records({partition: RecordsToDelete(before_offset=before)})
            except aiokafka.errors.KafkaError as error:
                return type(error).__name__
            return int(answer[partition])

        answers = [await delete(2), await delete(1), await delete(9), await delete(-1)]
        starts = await consumer.beginning_offsets([partition])
        await producer.send_and_wait(topic, b"v", partition=0)
        return {
            "answers": answers,
            "start": starts[partition],
            "end": (await consumer.end_offsets([partition]))[partition],
        }


async def odd_requests(bootstrap: str) -> Observations:
    """What no client of ours sends, but somebody's may: null and empty lists, stale members, unknown groups."""
    async with Clients(bootstrap) as clients:
        topic, group = await clients.topic(), unique_name("group")
        await (await clients.consumer(topic, group_id=group)).committed(
            TopicPartition(topic, 0)
        )  # finds the coordinator
        with RawClient(bootstrap) as raw:

            def commit(generation: int, member: str, name: str, index: int) -> str:
                part = {"partition_index": index, "committed_offset": 1, "committed_metadata": None}
                who = {"group_id": group, "generation_id_or_member_epoch": generation, "member_id": member}
                answer = raw.ask(OFFSET_COMMIT, 3, {**who, "topics": [{"name": name, "partitions": [part]}]})
                return str(answer.topics[0].partitions[0].error_code.name)

            def committed(name: str) -> list[tuple[str, int, str]]:
                topics = raw.ask(OFFSET_FETCH, 5, {"group_id": name, "topics": None}).topics
                return [
                    (part.error_code.name, part.committed_offset, part.metadata)
                    for t in topics
                    for part in t.partitions
                ]

            def settings(keys: list[str] | None) -> int:
                wish = {"resource_type": 2, "resource_name": topic, "configuration_keys": keys}
                return len(raw.ask(DESCRIBE_CONFIGS, 1, {"resources": [wish]}).results[0].configs)

            unknown = raw.ask(DESCRIBE_GROUPS, 5, {"groups": [unique_name()]}).groups[0]
            absent = unique_name()
            wish = {"name": absent, "partition_indexes": [0]}
            return {
                "commits": [commit(-1, "", topic, 0), commit(-1, "m", topic, 0), commit(3, "m", topic, 0)],
                "commits to what is not there": [commit(-1, "", topic, 9), commit(-1, "", absent, 0)],
                "committed": [committed(group), committed(unique_name())],
                "one setting": settings(["retention.ms"]),
                "as many settings": settings([]) == settings(None),
                "unknown group": (unknown.error_code.name, unknown.group_state, unknown.members),
                "no topics": len(raw.ask(METADATA, 5, {"topics": []}).topics),
                "offset of an unknown topic": [
                    (part.error_code.name, part.committed_offset, part.metadata)
                    for part in raw.ask(OFFSET_FETCH, 5, {"group_id": group, "topics": [wish]}).topics[0].partitions
                ],
            }


async def compressed(bootstrap: str) -> Observations:
    """Compressed batches come back as they were sent, acks 0 and 1 work as well."""
    async with Clients(bootstrap) as clients:
        topic = await clients.topic(settings=STAMPED)
        consumer = await clients.consumer(topic)
        for acks in (0, 1, "all"):
            producer = await clients.producer(acks=acks, enable_idempotence=False, compression_type="gzip")
            await producer.send_and_wait(topic, bytes(1000), partition=0)
        consumer.seek(TopicPartition(topic, 0), 0)
        records = await read(consumer, 3)
        return {"records": [(record.offset, record.value == bytes(1000), record.timestamp_type) for record in records]}


SESSIONS: Mapping[str, Session] = {
    session.__name__: session
    for session in (
        produce_and_fetch,
        append_time,
        out_of_range,
        offsets_by_time,
        commits,
        refused_records,
        idempotent_retry,
        raw_fetch,
        topic_life,
        settings,
        delete_records,
        odd_requests,
        compressed,
    )
}
