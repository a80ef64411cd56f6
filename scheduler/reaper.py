"""Ends what has expired: leases that were not renewed, nodes that are silent, and what dead nodes held.

A reaped lease frees its partitions at once; its device capacity waits until the node's agent has seen the processes
gone, or, where the agent died with its node, until the lease's holder must have given up by itself.
"""

from __future__ import annotations

import logging

from msgspec import Struct

from contracts.adapters.leases import Leases
from contracts.pool import Refusal
from scheduler.leader import Leader

log = logging.getLogger(__name__)


class Patience(Struct, frozen=True):
    """How long silence is taken for life, in milliseconds."""

    suspect_ms: int
    dead_ms: int
    ttl_ms: int


class Reaper:
    """Run often: each call is three short scripts."""

    def __init__(self, leases: Leases, leader: Leader, patience: Patience) -> None:
        self._leases = leases
        self._leader = leader
        self._patience = patience

    async def reap(self) -> bool:
        """End what is over; True when something was. Raises TransportError."""
        ended = await self._leases.reap()
        for lease in ended:
            log.warning(
                "lease %s expired: its partitions are free, its device share when the processes are gone", lease
            )
        nodes = await self._leases.expire_nodes(suspect_ms=self._patience.suspect_ms, dead_ms=self._patience.dead_ms)
        for node, state in nodes:
            log.warning("node %s is silent: %s", node, state)
        return bool(await self._confirm() or nodes or ended)

    async def _confirm(self) -> list[str]:
        term = self._leader.term
        if term is None:
            return []
        confirmed = await self._leases.confirm_dead(term, self._patience.ttl_ms)
        if isinstance(confirmed, Refusal):
            self._leader.depose()
            return []
        for lease in confirmed:
            log.info("lease %s was on a dead node, and long enough: its device share is free", lease)
        return confirmed
