"""Creating, describing and growing topics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete

from contracts.adapters.kafka.connection import FAILURES, STOP_SECONDS, Partition, connection_options, translate
from contracts.errors import TransportError
from contracts.settings import KafkaSettings


class Admin:
    """Creates, describes and grows topics."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client: AIOKafkaAdminClient | None = None

    async def open(self) -> None:
        """Connect. Raises TransportError when no broker answers."""
        client = AIOKafkaAdminClient(**connection_options(self._settings))
        try:
            await client.start()
        except FAILURES as exc:
            with contextlib.suppress(*FAILURES):
                await client.close()
            raise translate(exc, f"connecting to Kafka at {self._settings.bootstrap}") from exc
        self._client = client

    async def close(self) -> None:
        """Disconnect; idempotent."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(*FAILURES):
                async with asyncio.timeout(STOP_SECONDS):
                    await client.close()

    @property
    def _live(self) -> AIOKafkaAdminClient:
        if self._client is None:
            msg = "the admin client is not open"
            raise TransportError(msg)
        return self._client

    async def partition_counts(self) -> dict[str, int]:
        """Every topic with its number of partitions."""
        try:
            described = await self._live.describe_topics()
        except FAILURES as exc:
            raise translate(exc, "listing topics") from exc
        return {topic["topic"]: len(topic["partitions"]) for topic in described if not topic["error_code"]}

    async def ensure_topic(self, topic: str, partitions: int, configs: Mapping[str, str] | None = None) -> None:
        """Create a topic, or grow it to `partitions`; it never shrinks. Stamps records on append.

        Raises TransportError with the broker's reason when it refuses.
        """
        existing = (await self.partition_counts()).get(topic)
        if existing is None:
            await self._create(topic, partitions, configs or {})
        elif existing < partitions:
            await self._grow(topic, partitions)

    async def _create(self, topic: str, partitions: int, configs: Mapping[str, str]) -> None:
        settings = self._settings
        values = {
            "message.timestamp.type": "LogAppendTime",
            "cleanup.policy": "delete",
            # The broker unpacks what producers compressed: a worker neither needs the codec nor inflates a bomb.
            "compression.type": "uncompressed",
            "min.insync.replicas": str(settings.min_insync),
            **configs,
        }
        new = NewTopic(topic, partitions, settings.replication, topic_configs=values)
        try:
            response = await self._live.create_topics([new])
        except FAILURES as exc:
            raise translate(exc, f"creating topic {topic}") from exc
        self._check(response.topic_errors, f"creating topic {topic}", kafka_errors.TopicAlreadyExistsError)

    async def _grow(self, topic: str, partitions: int) -> None:
        try:
            response = await self._live.create_partitions({topic: NewPartitions(partitions)})
        except FAILURES as exc:
            raise translate(exc, f"growing topic {topic}") from exc
        self._check(response.topic_errors, f"growing topic {topic}", kafka_errors.InvalidPartitionsError)

    async def delete_records(self, topic: str, before: Mapping[int, int]) -> None:
        """Delete the records below an offset of each partition. Raises TransportError."""
        wanted = {Partition(topic, number): RecordsToDelete(before_offset=offset) for number, offset in before.items()}
        try:
            await self._live.delete_records(wanted, timeout_ms=int(self._settings.request_timeout_seconds * 1000))
        except FAILURES as exc:
            raise translate(exc, f"deleting records of {topic}") from exc

    @staticmethod
    def _check(results: Iterable[Sequence[Any]], doing: str, ignored: type[Exception]) -> None:
        for _, code, *message in results:
            error = kafka_errors.for_code(code)
            if code and not issubclass(error, ignored):
                raise translate(error(*message), doing)
