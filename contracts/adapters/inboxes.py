"""Leases of reply inbox partitions: each client instance reads one partition that no other one reads.

Two readers of one partition would only drop each other's responses, so this lease needs no quarantine and no fencing
in Kafka. The token is also the address: a response echoes it, and an error counts only with the reader's own token.
"""

from __future__ import annotations

import secrets

from msgspec import Struct

from contracts import keys
from contracts.adapters.redis import Argument, RedisDoor, refusal_of, script
from contracts.names import check_name


class InboxLease(Struct, frozen=True):
    """The right to read one partition of an inbox."""

    inbox: str
    partition: int
    token: str


class Inboxes:
    """Who reads which partition of which inbox."""

    def __init__(self, redis: RedisDoor) -> None:
        self._redis = redis

    async def acquire(self, inbox: str, partitions: int, ttl_ms: int) -> InboxLease | None:
        """Lease a random free partition; None when all are taken."""
        token = secrets.token_hex(8)
        root = keys.inbox(self._redis.prefix, check_name(inbox, "inbox name"))
        args: list[Argument] = [token, ttl_ms, partitions, secrets.randbelow(partitions)]
        reply = await self._redis.call(script("inbox_acquire"), [root], args)
        return None if refusal_of(reply) else InboxLease(inbox, int(reply[1]), token)

    async def renew(self, lease: InboxLease, ttl_ms: int) -> bool:
        """Hold on. One that lapsed is taken again unless somebody else has it: then False, and it is lost."""
        root = keys.inbox(self._redis.prefix, lease.inbox)
        reply = await self._redis.call(script("inbox_renew"), [root], [lease.partition, lease.token, ttl_ms])
        return refusal_of(reply) is None

    async def release(self, lease: InboxLease) -> bool:
        """Give the partition back; False when it was lost before."""
        root = keys.inbox(self._redis.prefix, lease.inbox)
        reply = await self._redis.call(script("inbox_release"), [root], [lease.partition, lease.token])
        return refusal_of(reply) is None
