"""Leases and leadership: who may use which part of a device, until when, under which token.

Each method is one script and one round trip. Business refusals are returned as `Refusal` with a code; only a Redis that
does not answer raises (TransportError). A call whose answer was lost may be made again: the same lease id gets the same
grant, a second release or confirmation is refused with GONE. Times are the server's; a holder counts with
`contracts.lease.TrustWindow` from the moment it *sent* the call.

    reserved --bind--> active --drain--> draining --release, expiry--> quarantine --confirm--> deleted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from contracts.adapters.nodes import Nodes
from contracts.adapters.redis import Argument, refusal_of
from contracts.names import check_name
from contracts.pool import (
    Grant,
    LeaderGrant,
    LeaseState,
    Mode,
    Refusal,
    Renewal,
    Share,
    parse_partitions,
)

_REAPED_AT_ONCE = 100  # a script holds the server while it runs; the next tick takes the next ones


class Leases(Nodes):
    """The pool of one name: its leader, its leases, and what agents keep in it."""

    async def acquire_leader(self, holder: str, ttl_ms: int) -> LeaderGrant | None:
        """Become or stay the leader; None while another one is. `holder` must be unique to the process.

        The same holder keeps its term while it has not lapsed; everybody else, and a holder that lapsed, gets a
        higher one.
        """
        reply = await self._call("leader_acquire", holder, ttl_ms)
        if reply[0] != "OK":
            return None
        return LeaderGrant(term=int(reply[1]), expires_unix_ms=int(reply[2]), epoch=int(reply[3]))

    async def resign_leader(self, holder: str, term: int) -> Refusal | None:
        """Let a standby lead at once. TERM when it was no longer the leader."""
        return refusal_of(await self._call("leader_resign", holder, term))

    async def commit(  # noqa: PLR0913 - the grant's own fields; a struct for one call would only rename them
        self,
        *,
        term: int,
        lease_id: str,
        deployment: str,
        models: Sequence[str],
        mode: Mode,
        node: str,
        shares: Sequence[Share] = (),
        gens: Mapping[str, int] | None = None,
        start_limit_ms: int,
        tenant: str = "",
    ) -> Grant | Refusal:
        """Grant a lease with every share or nothing; it is reserved, and ends unless bound within the start limit.

        `gens` holds the gen of each device as the planner saw it. A lease without shares still names its node. A share
        in mode "whole" takes all of its device. TERM, GONE (the id has ended), UNAVAIL, DEAD, PLACE, STALE, MODE, FULL,
        QUOTA.
        """
        check_name(lease_id, "lease id")
        args: list[Argument] = [term, lease_id, deployment, ",".join(models), tenant, mode, node, start_limit_ms]
        for share in shares:
            gen = (gens or {}).get(share.device, 0)
            args += [share.device, share.memory_mib, share.compute, share.mask, gen]
        reply = await self._call("lease_commit", *args)
        return refusal_of(reply) or Grant(lease_id, token=int(reply[1]), expires_unix_ms=int(float(reply[2])))

    async def bind(
        self, lease_id: str, token: int, ttl_ms: int, bound: Mapping[str, str] | None = None
    ) -> Refusal | None:
        """The worker is loaded and warm: the lease is active and lives `ttl_ms` from now. Again: replaces `bound`.

        GONE, FENCED, EXPIRED, DRAINING.
        """
        packed = msgspec.json.encode(dict(bound or {}))
        return refusal_of(await self._call("lease_bind", lease_id, token, ttl_ms, packed))

    async def renew(self, lease_id: str, token: int, ttl_ms: int) -> Renewal | Refusal:
        """Hold on, and learn in the same call what to drain and what to give back. GONE, FENCED, EXPIRED."""
        reply: list[Any] = cast("list[Any]", await self._call("lease_renew", lease_id, token, ttl_ms))
        return refusal_of(reply) or Renewal(
            state=cast("LeaseState", reply[1]),
            expires_in_ms=int(reply[2]),
            revoke_unix_ms=int(reply[3]) if reply[3] else None,
            now_unix_ms=int(reply[4]),
            wanted=tuple(parse_partitions(reply[5])),
            lost=tuple(parse_partitions(reply[6])),
        )

    async def drain(self, term: int, lease_id: str, revoke_in_ms: int | None = None) -> Refusal | None:
        """The lease takes nothing new, and all its partitions are lost to it; a reserved one ends at once.

        With `revoke_in_ms` it is not renewed beyond that; an earlier revocation stays. TERM, GONE.
        """
        limit = "" if revoke_in_ms is None else revoke_in_ms
        return refusal_of(await self._call("lease_drain", term, lease_id, limit))

    async def release(self, lease_id: str, token: int, reason: str = "released") -> Refusal | None:
        """End a lease: its partitions are free at once, its capacity waits in quarantine. GONE, FENCED."""
        return refusal_of(await self._call("lease_release", lease_id, token, reason))

    async def reap(self, limit: int = _REAPED_AT_ONCE) -> list[str]:
        """End leases that have expired, oldest first; returns their ids. Anybody may call it."""
        return (await self._call("lease_reap", limit))[1:]

    async def confirm(self, lease_id: str, token: int) -> Refusal | None:
        """The processes of an ended lease are gone: its capacity is free again, its record deleted.

        GONE (already confirmed), FENCED, NO (it has not ended).
        """
        return refusal_of(await self._call("lease_confirm", lease_id, token))

    async def confirm_dead(self, term: int, after_ms: int, limit: int = _REAPED_AT_ONCE) -> list[str] | Refusal:
        """Confirm for agents that are dead: leases of dead nodes that ended at least `after_ms` (one ttl) ago. TERM."""
        reply = await self._call("lease_confirm_dead", term, after_ms, limit)
        return refusal_of(reply) or reply[1:]

    async def set_quota(self, tenant: str, compute: int | None) -> None:
        """Limit the compute that a tenant's leases may hold together; None lifts the limit."""
        await self._call("tenant_quota", check_name(tenant, "tenant"), "" if compute is None else compute)
