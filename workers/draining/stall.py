"""Partitions that stand still while they are read: pure, over positions and a `now`.

A reader can get stuck for good: its position stays where it is although the log has more, and no error is ever raised
(seen with several versions of aiokafka after brokers came and went). Time counts only while a partition is asked for:
neither a full queue nor a stop of this process is a fault of the reader. Whether the log has more is for the caller to
find out of those that stood long; most of them are simply idle.
"""

from __future__ import annotations

from collections.abc import Mapping

from contracts.adapters.kafka import Partition

_MOST_PER_LOOK = 1.0  # seconds that one look may add


class StallWatch:
    """How long each partition has stood still."""

    __slots__ = ("_ages", "_limit", "_looked", "_positions")

    def __init__(self, seconds: float) -> None:
        self._limit = seconds
        self._positions: dict[Partition, int] = {}
        self._ages: dict[Partition, float] = {}
        self._looked = 0.0

    def look(self, now: float, positions: Mapping[Partition, int]) -> list[Partition]:
        """Note where the partitions that are read stand; returns those that stood for too long, counted anew."""
        passed, self._looked = min(now - self._looked, _MOST_PER_LOOK), now
        before, self._positions = self._positions, dict(positions)
        self._ages = {
            partition: self._ages[partition] + passed if before.get(partition) == position else 0.0
            for partition, position in positions.items()
        }
        still = [partition for partition, age in self._ages.items() if age >= self._limit]
        for partition in still:
            self._ages[partition] = 0.0
        return still
