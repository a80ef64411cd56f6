"""Requests whose callers have gone: a set that is looked into when a batch is cut.

Cancels arrive on a Redis stream that every worker follows, so a look-up costs nothing on the hot path. Cancelling is
best effort: one that arrives after the launch changes nothing, and one that is lost costs device time only.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from contracts.adapters.cancels import Cancel, Cancels
from contracts.clock import Clock
from contracts.errors import TransportError
from contracts.messages import MAX_TTL_MS

log = logging.getLogger(__name__)

_BLOCK_MS = 5000
_RETRY_SECONDS = 1.0
_LOOK_BACK_MS = min(MAX_TTL_MS, 600_000)


class Tombstones:
    """The ids of cancelled requests that could still be in the log. A Container of ids."""

    def __init__(self, cancels: Cancels, clock: Clock) -> None:
        self._cancels = cancels
        self._clock = clock
        self._expiries: dict[str, int] = {}

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._expiries

    def __len__(self) -> int:
        return len(self._expiries)

    async def follow_loop(self) -> None:
        """Learn of cancels as they happen."""
        last_id = ""
        while True:
            try:
                if not last_id:
                    last_id, found = await self._cancels.recent(_LOOK_BACK_MS)
                else:
                    last_id, found = await self._cancels.follow(last_id, _BLOCK_MS)
            except TransportError:
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            self._learn(found)

    def _learn(self, found: Iterable[Cancel]) -> None:
        now = self._clock.unix_ms()
        self._expiries = {name: expiry for name, expiry in self._expiries.items() if expiry > now}
        for cancel in found:
            self._expiries[cancel.request_id] = cancel.expires_unix_ms
