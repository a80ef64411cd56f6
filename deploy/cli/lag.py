"""How many requests wait in each topic: its end minus what its workers have committed."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from contracts.adapters.kafka import Partition, Reader
from contracts.errors import TransportError
from contracts.names import ModelVersion
from contracts.settings import KafkaSettings
from contracts.topics import commit_group, requests

_PATIENCE_SECONDS = 5.0


class Lags:
    """Reads lags again and again over one connection for each deployment."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._readers: dict[ModelVersion, Reader] = {}

    async def read(self, partitions: Mapping[ModelVersion, int]) -> dict[ModelVersion, int | None]:
        """The lag of each deployment, given the partitions of its topic; None where Kafka cannot tell."""
        found = await asyncio.gather(*(self._lag(key, count) for key, count in partitions.items()))
        return dict(zip(partitions, found, strict=True))

    async def _lag(self, key: ModelVersion, count: int) -> int | None:
        if not count:
            return None
        topic = requests(self._settings.prefix, key.model, key.version)
        numbers = [Partition(topic, number) for number in range(count)]
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                reader = await self._reader(key)
                bounds, committed = await reader.bounds(numbers), await reader.committed(numbers)
        except (TransportError, TimeoutError):
            return None
        return sum(end - max(first, committed[number] or 0) for number, (first, end) in bounds.items())

    async def _reader(self, key: ModelVersion) -> Reader:
        reader = self._readers.get(key)
        if reader is None:
            reader = Reader(self._settings, commit_group(self._settings.prefix, key.model, key.version))
            await reader.open()
            self._readers[key] = reader
        return reader

    async def close(self) -> None:
        """Disconnect."""
        await asyncio.gather(*(reader.close() for reader in self._readers.values()))
