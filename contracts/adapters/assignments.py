"""Partition assignments: the scheduler wants, the worker claims and releases.

`want` says which lease should drain a partition; only the leader writes it, and only for active leases. `own` says
which lease drains it; a worker takes it when it is wanted and the partition is free, and gives it back when it has
finished and committed. A lease that ends loses what it owns in the same script. So a handover is: want changes, the old
owner releases, the new one claims and only then reads where to start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from contracts import keys
from contracts.adapters.redis import Argument, RedisDoor, pairs, refusal_of, script
from contracts.names import check_name
from contracts.pool import Claimed, Code, Refusal


class Assignments:
    """Who drains which partitions in one pool. Refusals are returned, never raised."""

    def __init__(self, redis: RedisDoor, pool: str = "default") -> None:
        self._redis = redis
        self._root = keys.pool(redis.prefix, check_name(pool, "pool name"))

    async def want(self, term: int, topic: str, wanted: Mapping[int, str | None]) -> Refusal | None:
        """Say who should drain these partitions (None: nobody); the others stay as they are.

        Nothing is written unless every lease named is active. TERM, UNAVAIL with the lease.
        """
        args: list[Argument] = [term, topic]
        for partition, lease in wanted.items():
            args += [partition, lease or ""]
        return refusal_of(await self._call("assign_want", *args))

    async def claim(self, lease_id: str, token: int, topic: str, partitions: Sequence[int]) -> Claimed:
        """Take partitions that are wanted of this lease and free (or its own already: claiming again is harmless).

        Refused per partition: NOT_WANTED, OWNED; for all alike when the lease is no good: GONE, FENCED, EXPIRED,
        DRAINING, NO (not active yet).
        """
        reply = await self._call("assign_claim", lease_id, token, topic, *partitions)
        refusal = refusal_of(reply)
        if refusal is not None:
            return Claimed(refused=dict.fromkeys(partitions, refusal.code))
        refused = {int(partition): cast("Code", code) for partition, code in pairs(reply[2]).items()}
        return Claimed(granted=tuple(int(partition) for partition in reply[1]), refused=refused)

    async def release(self, lease_id: str, token: int, topic: str, partitions: Sequence[int]) -> tuple[int, ...]:
        """Give partitions back; returns those that were this lease's until now."""
        reply = await self._call("assign_release", lease_id, token, topic, *partitions)
        return tuple(int(partition) for partition in reply[1:])

    async def evict(self, term: int, topic: str, partition: int, limit_ms: int) -> Refusal | None:
        """Free a partition whose owner has been unwanted for longer than `limit_ms`. TERM, NO."""
        return refusal_of(await self._call("assign_evict", term, topic, partition, limit_ms))

    async def _call(self, operation: str, *args: Argument) -> list[Any]:
        return await self._redis.call(script(operation), [self._root], args)
