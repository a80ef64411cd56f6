"""Compiled pipelines by digest, where whoever works on a job can read them.

A plan is stored under the digest of its own bytes, so writing it twice is the same as once, and nobody can be given
another plan than the one that a record names: what was read is hashed again. A plan lives as long as it is used:
submitters keep it, and jobs in flight end long before it. Redis may lose one all the same (evicted, restored from an
older copy): every few seconds whoever uses a plan sees to it that it is there.
"""

from __future__ import annotations

import hashlib

from contracts import keys
from contracts.adapters.redis import RedisDoor
from contracts.errors import InvalidRequest

PLAN_SECONDS = 86_400
"""How long a plan outlives its last refresh: four times the longest time to live of a request."""
KEEP_SECONDS = 5.0
"""How often whoever submits with a plan looks whether it is still there."""


def digest_of(raw: bytes) -> str:
    """The name of a plan with these bytes."""
    return hashlib.blake2b(raw, digest_size=16).hexdigest()


class PlanStore:
    """The plans of one installation."""

    def __init__(self, redis: RedisDoor, *, keep_seconds: float = PLAN_SECONDS) -> None:
        self._redis = redis
        self._keep_ms = round(keep_seconds * 1000)

    @property
    def keep_seconds(self) -> float:
        """How often somebody who submits with a plan should `keep` it."""
        return min(KEEP_SECONDS, self._keep_ms / 4000)

    async def put(self, digest: str, raw: bytes) -> None:
        """Store a plan or make it live longer. Raises TransportError."""
        await self._redis.command("SET", keys.plan(self._redis.prefix, digest), raw, "PX", self._keep_ms)

    async def keep(self, digest: str, raw: bytes) -> None:
        """Make a plan live longer, and store it again if it is gone. Raises TransportError."""
        if not await self._redis.command("PEXPIRE", keys.plan(self._redis.prefix, digest), self._keep_ms):
            await self.put(digest, raw)

    async def restore(self, digest: str, raw: bytes) -> bool:
        """Store a plan again if it is gone, and leave its time alone if not; whether it was. Raises TransportError."""
        key = keys.plan(self._redis.prefix, digest)
        if await self._redis.command("EXISTS", key):
            return False
        return await self._redis.command("SET", key, raw, "PX", self._keep_ms, "NX") is not None

    async def get(self, digest: str) -> bytes | None:
        """Read a plan; None when it is not there (any more). Raises InvalidRequest for another one, TransportError."""
        raw = await self._redis.get_bytes(keys.plan(self._redis.prefix, digest))
        if raw is not None and digest_of(raw) != digest:
            message = f"what is stored as plan {digest} is another one"
            raise InvalidRequest(message)
        return raw
