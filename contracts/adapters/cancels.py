"""Cancelled requests, as one stream that every worker follows.

A worker keeps the ids in memory until they expire and looks them up when it cuts a batch, which costs nothing per
request; it starts with `recent`, so a cancel sent before it came up counts as well. Best effort: a request that is
already running is answered with its result.
"""

from __future__ import annotations

from collections.abc import Iterable

from msgspec import Struct

from contracts import keys
from contracts.adapters.redis import Argument, RedisDoor, StreamEntry, script


class Cancel(Struct, frozen=True):
    """A request that nobody waits for any more; forget it once it has expired."""

    request_id: str
    expires_unix_ms: int


class Cancels:
    """The stream of cancelled requests."""

    def __init__(self, redis: RedisDoor) -> None:
        self._redis = redis
        self._stream = keys.cancels(redis.prefix)

    async def cancel(self, request_id: str, ttl_ms: int) -> None:
        """Tell the workers that a request is not wanted; `ttl_ms` is how long it could still be answered."""
        await self.cancel_all([request_id], ttl_ms)

    async def cancel_all(self, request_ids: Iterable[str], ttl_ms: int) -> None:
        """The same for many requests in one call."""
        args: list[Argument] = [max(1, ttl_ms), keys.CANCELS_KEPT, *request_ids]
        await self._redis.call(script("cancel_add"), [self._stream], args)

    async def follow(self, last_id: str, block_ms: int) -> tuple[str, list[Cancel]]:
        """Cancels after `last_id` (from `recent` or an earlier call), waiting up to `block_ms` for the first."""
        entries = await self._redis.read_stream(self._stream, last_id, block_ms=block_ms)
        return (entries[-1].id if entries else last_id), [_cancel(entry) for entry in entries]

    async def recent(self, since_ms: int) -> tuple[str, list[Cancel]]:
        """Cancels of the last `since_ms` milliseconds that have not expired, and the id to follow from."""
        now = await self._redis.server_unix_ms()
        entries = await self._redis.read_range(self._stream, str(max(0, now - since_ms)))
        last_id = entries[-1].id if entries else await self._redis.last_id(self._stream)
        found = (_cancel(entry) for entry in entries)
        return last_id, [cancel for cancel in found if cancel.expires_unix_ms > now]


def _cancel(entry: StreamEntry) -> Cancel:
    return Cancel(entry.fields["id"], int(entry.fields["exp"]))
