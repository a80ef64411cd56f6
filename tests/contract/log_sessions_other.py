"""The same script for the clients of other houses: librdkafka (confluent-kafka) and kafkajs."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # they are re-exported without saying so
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
)

from tests.contract.log_raw import RawClient
from tests.helpers import finished, unique_name, wait_until_sync

KAFKAJS_SCRIPT = Path(__file__).with_name("log_session.mjs")


def code_of(error: Exception) -> str:
    assert isinstance(error, KafkaException), repr(error)
    return str(error.args[0].name())


def outcome(future: Any) -> str:
    try:
        future.result(10)
    except KafkaException as error:
        return code_of(error)
    return "done"


async def librdkafka(bootstrap: str) -> dict[str, Any]:
    """confluent-kafka's producer, consumer and administration."""
    return await asyncio.to_thread(_librdkafka, bootstrap)


def _librdkafka(bootstrap: str) -> dict[str, Any]:
    admin, topic, group = AdminClient({"bootstrap.servers": bootstrap}), unique_name("topic"), unique_name("group")
    settings = {"message.timestamp.type": "LogAppendTime"}
    created = [outcome(admin.create_topics([NewTopic(topic, 1, 1, config=settings)])[topic]) for _ in range(2)]
    with RawClient(bootstrap) as raw:
        wait_until_sync(lambda: raw.has_leaders(topic, 1))
    delivered = _deliver(bootstrap, topic, "zstd")
    observations = {
        "created": created,
        "delivered": delivered,
        **_consume(bootstrap, topic, group),
        **_administer(admin, topic, group),
    }
    observations["deleted"] = [outcome(admin.delete_topics([topic])[topic]), outcome(admin.delete_topics(["no"])["no"])]
    return observations


def _deliver(bootstrap: str, topic: str, compression: str) -> list[tuple[Any, int, int]]:
    producer = Producer(
        {"bootstrap.servers": bootstrap, "enable.idempotence": True, "linger.ms": 0, "compression.type": compression}
    )
    delivered: list[tuple[Any, int, int]] = []

    def on_delivery(error: Any, message: Any) -> None:
        delivered.append((error, message.offset(), message.timestamp()[0]))

    for number in range(3):
        producer.produce(
            topic, b"%d" % number * 100, key=b"k", headers=[("h", b"x")], partition=0, on_delivery=on_delivery
        )
        producer.flush(10)
    return delivered


def _consume(bootstrap: str, topic: str, group: str) -> dict[str, Any]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group, "enable.auto.commit": False})
    consumer.assign([TopicPartition(topic, 0, 1)])
    messages: list[Any] = []

    def has_two() -> bool:
        messages.extend(consumer.consume(10, timeout=0.2))
        return len(messages) >= 2

    wait_until_sync(has_two)
    consumer.commit(offsets=[TopicPartition(topic, 0, 3, "note")], asynchronous=False)
    (committed,) = consumer.committed([TopicPartition(topic, 0)], timeout=10)
    (by_time,) = consumer.offsets_for_times([TopicPartition(topic, 0, 1)], timeout=10)
    marks = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=10)
    consumer.close()
    return {
        "consumed": [(m.offset(), m.key(), m.value()[:1], m.headers(), m.timestamp()[0]) for m in messages],
        "committed": (committed.offset, committed.metadata),
        "by time": by_time.offset,
        "marks": marks,
    }


def _administer(admin: AdminClient, topic: str, group: str) -> dict[str, Any]:
    retention = ConfigEntry("retention.ms", "60000", incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    changes = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[retention])
    altered = outcome(admin.incremental_alter_configs([changes])[changes])

    def described() -> tuple[str, str]:
        entries = admin.describe_configs([resource])[resource].result(10)
        return entries["retention.ms"].value, entries["message.timestamp.type"].value

    wait_until_sync(lambda: described()[0] == "60000")
    partition = TopicPartition(topic, 0)
    latest = admin.list_offsets({partition: OffsetSpec.latest()})[partition].result(10).offset  # type: ignore[no-untyped-call]
    earliest = admin.list_offsets({partition: OffsetSpec.earliest()})[partition].result(10).offset  # type: ignore[no-untyped-call]
    deleted = admin.delete_records([TopicPartition(topic, 0, 2)])
    low = next(iter(deleted.values())).result(10).low_watermark
    wishes = ConsumerGroupTopicPartitions(group, [TopicPartition(topic, 0, 1, "moved")])
    moved = outcome(admin.alter_consumer_group_offsets([wishes])[group])
    (offset,) = (
        admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group)])[group].result(10).topic_partitions
    )
    groups = [found for found in admin.list_consumer_groups().result(10).valid if found.group_id == group]
    state = admin.describe_consumer_groups([group])[group].result(10).state.name
    grown = outcome(admin.create_partitions([NewPartitions(topic, 3)])[topic])
    gone = [outcome(admin.delete_consumer_groups([group])[group]) for _ in range(2)]
    return {
        "altered": altered,
        "described": described(),
        "offsets": (earliest, latest),
        "low water": low,
        "moved": (moved, offset.offset, offset.metadata),
        "groups": [(found.is_simple_consumer_group, found.state.name) for found in groups],
        "state": state,
        "grown": grown,
        "gone": gone,
    }


async def kafkajs(bootstrap: str, packages: Path) -> dict[str, Any]:
    """kafkajs's producer and administration; its consumer knows groups only."""
    command = ("node", str(KAFKAJS_SCRIPT), str(packages), bootstrap, unique_name("topic"))
    status, printed, errors = await finished(*command)
    assert status == 0, errors
    observations: dict[str, Any] = json.loads(printed)
    return observations
