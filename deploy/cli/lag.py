"""How many requests wait in each topic: its end minus what its workers have committed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TypeVar

from contracts.adapters.kafka import Partition, Reader
from contracts.errors import TransportError
from contracts.names import ModelVersion
from contracts.settings import KafkaSettings
from contracts.topics import commit_group, joins, joins_group, lane, requests

_PATIENCE_SECONDS = 5.0
Lane = tuple[ModelVersion, str]
"""A model version and a priority."""
_K = TypeVar("_K")


class Lags:
    """Reads lags again and again over one connection for each deployment."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._readers: dict[str, Reader] = {}
        self._opening = asyncio.Lock()

    async def read(self, partitions: Mapping[ModelVersion, int]) -> dict[ModelVersion, int | None]:
        """The lag of each deployment, given the partitions of its topic; None where Kafka cannot tell."""
        prefix = self._settings.prefix
        return await self._read(
            {key: (requests(prefix, *key), commit_group(prefix, *key), count) for key, count in partitions.items()}
        )

    async def read_lanes(self, partitions: Mapping[Lane, int]) -> dict[Lane, int | None]:
        """The same for lanes."""
        prefix = self._settings.prefix
        return await self._read(
            {
                (key, priority): (lane(requests(prefix, *key), priority), commit_group(prefix, *key), count)
                for (key, priority), count in partitions.items()
            }
        )

    async def read_joins(self, partitions: Mapping[ModelVersion, int]) -> dict[ModelVersion, int | None]:
        """The same for the joins topics of pipelines: parts that are not settled."""
        prefix = self._settings.prefix
        return await self._read(
            {key: (joins(prefix, *key), joins_group(prefix, *key), count) for key, count in partitions.items()}
        )

    async def _read(self, wanted: Mapping[_K, tuple[str, str, int]]) -> dict[_K, int | None]:
        found = await asyncio.gather(*(self._lag(*one) for one in wanted.values()))
        return dict(zip(wanted, found, strict=True))

    async def _lag(self, topic: str, group: str, count: int) -> int | None:
        if not count:
            return None
        numbers = [Partition(topic, number) for number in range(count)]
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                reader = await self._reader(group)
                bounds, committed = await reader.bounds(numbers), await reader.committed(numbers)
        except (TransportError, TimeoutError):
            return None
        return sum(end - max(first, committed[number] or 0) for number, (first, end) in bounds.items())

    async def _reader(self, group: str) -> Reader:
        async with self._opening:  # a model's lanes have its group
            reader = self._readers.get(group)
            if reader is None:
                reader = Reader(self._settings, group)
                await reader.open()
                self._readers[group] = reader
        return reader

    async def close(self) -> None:
        """Disconnect."""
        await asyncio.gather(*(reader.close() for reader in self._readers.values()))
