"""What was launched and by whom, so that a record that kills its worker is known to the next one.

Kafka keeps no count of deliveries. So each worker leaves in `flights` which records its engine holds, one field for
each of its slots, written over by the slot's next batch: one small write for a batch, sent before the batch is and not
waited for. When a worker is gone, whoever claims its partitions counts those launches into `tries` of the partition;
records that have a count are *suspects*. A suspect is journaled for certain before it is launched again.

Why not wait for each write: a write that was handed to the kernel arrives even if the process dies the next moment, so
one can only be missing when Redis itself was out of reach. Then a killer is taken for an ordinary record once more, and
its next launch is journaled. Nobody is ever blamed for a launch that is missing.

A count is launches lost, plus a thousand for each of them in which the record was alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from contracts import keys
from contracts.adapters.redis import Argument, Channel, RedisDoor, script
from contracts.clock import Clock
from contracts.names import ModelVersion, check_name

ALONE = 1000
TTL_MS = 86_400_000  # at least the retention of a request topic that matters: older records are not read again
_DEADLINE_SECONDS = 1.0


class Tries(NamedTuple):
    """Launches of a record that ended with its worker or engine."""

    lost: int
    alone: int

    @classmethod
    def of(cls, count: int) -> Tries:
        """From a count as it is stored."""
        return cls(count % ALONE, count // ALONE)


class Past(NamedTuple):
    """What is known of a partition when it is claimed.

    `claims`: how often it was claimed, this time included, since somebody last got on with it; 0 when nothing waits.
    """

    claims: int
    suspects: Mapping[int, Tries]


Row = tuple[str, int, int]
"""Topic, partition, offset."""


class Journal:
    """One worker's launches."""

    def __init__(self, redis: RedisDoor, pool: str, lease: str, clock: Clock) -> None:
        self._redis = redis
        self._root = keys.pool(redis.prefix, check_name(pool, "pool name"))
        self._flights = keys.flights(redis.prefix, pool)
        self._lease = lease
        self._clock = clock
        self._channel: Channel | None = None
        self._slots: set[int] = set()
        self._ceilings: set[str] = set()
        self._pool = pool

    async def open(self) -> None:
        """Open a connection for writes that nobody waits for. Raises TransportError."""
        self._channel = await self._redis.open_channel()

    async def close(self) -> None:
        """Close it; idempotent."""
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def keep(self) -> None:
        """Open the connection again if it has been lost. Raises TransportError."""
        if self._channel is None or self._channel.is_lost:
            await self.close()
            await self.open()

    # --- not waited for -----------------------------------------------------------------------------------------------

    def launched(self, slot: int, runs: Iterable[tuple[str, int, int]]) -> None:
        """A batch is in a slot: `topic/partition` with first and last offset, each. Call it when it is sent."""
        if self._channel is not None:
            self._slots.add(slot)
            held = ";".join([f"{name}:{first}-{last}" for name, first, last in runs])
            self._channel.write("HSET", self._flights, f"{self._lease}/{slot}", f"{self._clock.unix_ms()}|{held}")

    def ceiling(self, model: ModelVersion, rows: int) -> None:
        """This worker's device has memory for batches of so many rows only."""
        if self._channel is not None:
            key = keys.ceilings(self._redis.prefix, self._pool, model)
            self._ceilings.add(key)
            self._channel.write("HSET", key, self._lease, str(rows))
            self._channel.write("PEXPIRE", key, str(TTL_MS))

    def lost(self, rows: Iterable[Row], *, is_alone: bool) -> None:
        """The engine ended under these records, or this one alone."""
        for row in rows:
            self._count(row, ALONE + 1 if is_alone else 1)

    def refund(self, row: Row) -> None:
        """A launch that was journaled by `suspect` never happened, or ended for a reason of its own."""
        self._count(row, -ALONE - 1)

    def _count(self, row: Row, much: int) -> None:
        topic, partition, offset = row
        if self._channel is not None:
            tries = f"{self._root}:tries:{topic}/{partition}"
            self._channel.write("HINCRBY", tries, str(offset), str(much))
            self._channel.write("PEXPIRE", tries, str(TTL_MS))

    def settled(self, row: Row) -> None:
        """A suspect has an outcome."""
        topic, partition, offset = row
        if self._channel is not None:
            self._channel.write("HDEL", f"{self._root}:tries:{topic}/{partition}", str(offset))

    def progressed(self, topic: str, partition: int) -> None:
        """Records of a partition were answered and committed: whoever began it got on."""
        if self._channel is not None:
            self._channel.write("HDEL", f"{self._root}:tries:{topic}/{partition}", "claims")

    # --- waited for ---------------------------------------------------------------------------------------------------

    async def claim(self, topic: str, starts: Mapping[int, tuple[int, bool]]) -> dict[int, Past]:
        """What is known of partitions that are begun at these offsets; whether records wait there. TransportError."""
        args: list[Argument] = [self._lease, topic, TTL_MS]
        for partition, (start, has_records) in starts.items():
            args += [partition, start, "1" if has_records else "0"]
        reply = await self._redis.call(script("journal_claim"), [self._root], args)
        return {int(partition): Past(int(claims), _suspects(found)) for partition, claims, found in reply}

    async def suspect(self, row: Row) -> None:
        """A suspect is about to run alone: count that launch as lost, until it has an outcome. TransportError."""
        topic, partition, offset = row
        tries = f"{self._root}:tries:{topic}/{partition}"
        await self._redis.command("HINCRBY", tries, offset, ALONE + 1)
        await self._redis.command("PEXPIRE", tries, TTL_MS)

    async def forget(self) -> None:
        """This worker ends in peace: nothing that it held is to blame. TransportError."""
        if self._slots:
            await self._redis.command("HDEL", self._flights, *(f"{self._lease}/{slot}" for slot in self._slots))
            self._slots.clear()
        for key in self._ceilings:
            await self._redis.command("HDEL", key, self._lease)


def _suspects(flat: list[Any]) -> dict[int, Tries]:
    counts = zip(flat[::2], flat[1::2], strict=True)
    return {int(offset): Tries.of(int(count)) for offset, count in counts if int(count) > 0}
