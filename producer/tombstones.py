"""Tells the workers which requests nobody waits for any more.

A caller that goes away must not wait for Redis, so its tombstone is left here and written in the background, many in
one call. Best effort: what cannot be written is computed in vain.
"""

from __future__ import annotations

import asyncio
import logging

from contracts.adapters.cancels import Cancels
from contracts.errors import TransportError

log = logging.getLogger(__name__)

_MAX_QUEUED = 10_000  # beyond it, computing in vain is the lesser evil
_PER_CALL = 500


class Tombstones:
    """Cancels on their way to the stream that all workers follow."""

    def __init__(self, cancels: Cancels) -> None:
        self._cancels = cancels
        self._queued: dict[str, int] = {}
        self._filled = asyncio.Event()

    def leave(self, request_id: str, ttl_ms: int) -> None:
        """Have a tombstone written soon; `ttl_ms` is how long the request could still be answered."""
        if ttl_ms > 0 and len(self._queued) < _MAX_QUEUED:
            self._queued[request_id] = ttl_ms
            self._filled.set()

    async def write(self, request_id: str, ttl_ms: int) -> None:
        """Write one now. Raises TransportError."""
        await self._cancels.cancel(request_id, ttl_ms)

    async def write_loop(self) -> None:
        """Write what is left until cancelled."""
        while True:
            await self._filled.wait()
            self._filled.clear()
            await self.flush()

    async def flush(self) -> None:
        """Write everything that is queued; what fails is logged and forgotten."""
        while self._queued:
            queued = [self._queued.popitem() for _ in range(min(_PER_CALL, len(self._queued)))]
            longest = max(ttl for _, ttl in queued)  # workers may remember an id for too long, never too shortly
            try:
                await self._cancels.cancel_all([request_id for request_id, _ in queued], longest)
            except TransportError as exc:
                log.warning("%d requests could not be cancelled: %s", len(queued), exc)
                return
