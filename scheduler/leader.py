"""Leadership: one more lease, with a term that every write of a plan carries.

Safety does not rest on there being one leader (the scripts refuse a lower term and admit nothing beyond a device's
counters); the leader exists so that plans do not fight. It trusts itself for less time than the pool grants, counted
from when it *sent* the renewal, and acts no more once in doubt. A standby asks often enough to lead within a second
after the old leader's grant ended, and a leader that stops resigns, so that nobody waits for the end of its grant.
"""

from __future__ import annotations

import asyncio
import logging

from contracts.adapters.leases import Leases
from contracts.clock import Clock, SystemClock
from contracts.errors import TransportError
from contracts.lease import TrustWindow
from scheduler import metrics

log = logging.getLogger(__name__)

STANDBY_SECONDS = 0.5
_MARGIN = 1 / 6  # of the ttl: what a call and a write behind it may take


class Leader:
    """This process's claim to lead its pool."""

    def __init__(
        self, leases: Leases, holder: str, *, ttl_seconds: float, renew_seconds: float, clock: Clock | None = None
    ) -> None:
        self._leases = leases
        self._holder = holder
        self._ttl_seconds = ttl_seconds
        self._renew_seconds = renew_seconds
        self._clock = clock or SystemClock()
        self._window = TrustWindow(ttl_seconds, ttl_seconds * _MARGIN)
        self._term: int | None = None

    @property
    def term(self) -> int | None:
        """The term under which to write; None while this process does not lead, or is not sure to."""
        return self._term if self._window.is_trusted(self._clock.monotonic()) else None

    def depose(self) -> None:
        """The pool said that somebody else leads."""
        if self._term is not None:
            log.warning("somebody else leads the pool now; standing by")
        self._window.end()
        self._term = None
        metrics.LEADER.set(0)

    async def lead_loop(self) -> None:
        """Ask for leadership, and keep it; never ends by itself."""
        while True:
            await self.campaign()
            wait = self._renew_seconds if self.term is not None else min(STANDBY_SECONDS, self._renew_seconds)
            await asyncio.sleep(wait)

    async def campaign(self) -> bool:
        """Ask once; True when this process leads."""
        started = self._clock.monotonic()
        try:
            grant = await self._leases.acquire_leader(self._holder, round(self._ttl_seconds * 1000))
        except TransportError as exc:
            if self._term is not None:
                log.warning("leadership could not be renewed: %s", exc)
            return self.term is not None
        if grant is None:
            if self._term is not None:
                self.depose()
            return False
        if grant.term != self._term:
            log.info("leading the pool in term %d", grant.term)
            self._term = grant.term
        self._window.renewed(started)
        metrics.LEADER.set(1)
        return self.term is not None

    async def resign(self) -> None:
        """Let a standby lead at once; harmless when not leading."""
        term, self._term = self._term, None
        self._window.end()
        metrics.LEADER.set(0)
        if term is None:
            return
        try:
            await self._leases.resign_leader(self._holder, term)
            log.info("resigned from leading the pool")
        except TransportError as exc:
            log.warning("could not resign, a standby will lead when the grant has ended: %s", exc)
