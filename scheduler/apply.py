"""Actions → scripts. Everything here may be repeated: a lease id is granted once, a wish is a state, not a step.

Each write carries the leader's term. The pool's refusals are part of life (something changed since the snapshot) and
are left to the next plan; only TERM ends the application, because then somebody else leads.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from msgspec import Struct

from contracts.adapters.assignments import Assignments
from contracts.adapters.leases import Leases
from contracts.pool import Refusal
from scheduler import metrics
from scheduler.actions import Action, Commit, Drain, Evict, Hold, Wait, Want
from scheduler.leader import Leader

log = logging.getLogger(__name__)


class Timing(Struct, frozen=True):
    """Limits that go with the writes, in milliseconds."""

    start_ms: int
    handover_ms: int
    drain_ms: int


class Refused(Struct, frozen=True):
    """An action that the pool did not carry out."""

    action: Action
    refusal: Refusal


class Applier:
    """Carries out plans in the name of the leader."""

    def __init__(self, leases: Leases, assignments: Assignments, leader: Leader, timing: Timing) -> None:
        self._leases = leases
        self._assignments = assignments
        self._leader = leader
        self._timing = timing

    async def apply(self, actions: Sequence[Action]) -> list[Refused]:
        """Carry out what can be, in order; stops when this process no longer leads. Raises TransportError."""
        refused = []
        for action in actions:
            if isinstance(action, Wait):
                continue
            term = self._leader.term
            if term is None:
                break
            refusal = await self._carry_out(action, term)
            metrics.ACTIONS.labels(type(action).__name__.lower()).inc()
            if refusal is None:
                continue
            metrics.REFUSALS.labels(refusal.code).inc()
            if refusal.code == "TERM":
                self._leader.depose()
                break
            log.info("the pool refused to %s (%s); planning again", action, refusal)
            refused.append(Refused(action, refusal))
        return refused

    async def _carry_out(self, action: Action, term: int) -> Refusal | None:
        match action:
            case Commit():
                return await self._commit(action, term)
            case Want():
                log.info("%s", action)
                return await self._assignments.want(term, action.topic, action.wants)
            case Evict():
                return await self._evict(action, term)
            case Drain():
                log.info("%s", action)
                return _unless_gone(await self._leases.drain(term, action.lease, self._timing.drain_ms))
            case Hold():
                log.info("%s", action)
                return await self._leases.set_node_state(action.node, action.state)
            case _:
                return None

    async def _commit(self, action: Commit, term: int) -> Refusal | None:
        log.info("%s", action)
        answer = await self._leases.commit(
            term=term,
            lease_id=action.lease,
            deployment=action.deployment,
            models=action.models,
            mode=action.mode,
            node=action.node,
            shares=action.shares,
            gens=action.gens,
            start_limit_ms=self._timing.start_ms,
            tenant=action.tenant,
        )
        return answer if isinstance(answer, Refusal) else None

    async def _evict(self, action: Evict, term: int) -> Refusal | None:
        log.warning("%s", action)
        for partition in action.partitions:
            refusal = await self._assignments.evict(term, action.topic, partition, self._timing.handover_ms)
            if refusal is not None and refusal.code == "TERM":
                return refusal
        return None  # the others gave way by themselves in the meantime


def _unless_gone(refusal: Refusal | None) -> Refusal | None:
    return None if refusal is not None and refusal.code == "GONE" else refusal
