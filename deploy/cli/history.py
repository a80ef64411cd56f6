"""What the log still knows: records of many topics, read by time and picked by their headers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contracts.adapters.kafka import Record
    from contracts.settings import KafkaSettings

MAX_RECORDS = 500_000
"""Read by one command; a few seconds' worth."""
_POLL_MS = 100
_PATIENCE_POLLS = 50

Pick = Callable[["Record", dict[str, bytes]], bool]


@dataclass
class Scan:
    """The records that were picked, oldest first, and how many were looked at."""

    records: list[Record] = field(default_factory=list)
    seen: int = 0
    is_cut: bool = False
    """There was more to look at."""


async def scan(
    settings: KafkaSettings, wanted: Callable[[str], bool], pick: Pick, *, since_ms: int, limit: int = MAX_RECORDS
) -> Scan:
    """Read the topics whose names are `wanted`, from a moment to their present end. Raises TransportError."""
    from contracts.adapters.kafka import Admin, Partition, Reader

    admin, reader = Admin(settings), Reader(settings)
    await admin.open()
    try:
        await reader.open()
        counts = await admin.partition_counts()
        topics = [topic for topic in sorted(counts) if wanted(topic)]
        partitions = [Partition(topic, number) for topic in topics for number in range(counts[topic])]
        return await _read(reader, partitions, pick, since_ms, limit) if partitions else Scan()
    finally:
        await asyncio.gather(reader.close(), admin.close())


async def _read(reader: Reader, partitions: list[Partition], pick: Pick, since_ms: int, limit: int) -> Scan:
    reader.assign(partitions)
    bounds = await reader.bounds(partitions)
    filled = [partition for partition, (first, end) in bounds.items() if first < end]
    starts = await asyncio.gather(*(reader.offset_at(partition, since_ms) for partition in filled))
    left = {p: bounds[p][1] for p, start in zip(filled, starts, strict=True) if start < bounds[p][1]}
    for partition, start in zip(filled, starts, strict=True):
        if partition in left:
            reader.begin(partition, start)
    found, idle = Scan(), 0
    while left and idle < _PATIENCE_POLLS and not found.is_cut:
        batches = await reader.poll(timeout_ms=_POLL_MS)
        idle = 0 if batches else idle + 1
        for partition, records in batches.items():
            _take(found, records, pick)
            if records[-1].offset + 1 >= left.get(partition, 0):
                left.pop(partition, None)
                reader.pause(partition)
        found.is_cut = found.seen >= limit
    found.is_cut = bool(left)
    found.records.sort(key=lambda record: (record.timestamp, record.topic, record.partition, record.offset))
    return found


def _take(found: Scan, records: Iterable[Record], pick: Pick) -> None:
    for record in records:
        found.seen += 1
        if pick(record, {name: value or b"" for name, value in record.headers}):
            found.records.append(record)


if TYPE_CHECKING:
    from contracts.adapters.kafka import Partition, Reader
