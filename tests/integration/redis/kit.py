"""A pool on a real server with a leader and helpers that say what a test means."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from contracts import keys
from contracts.adapters.assignments import Assignments
from contracts.adapters.leases import Leases
from contracts.adapters.redis import RedisDoor
from contracts.pool import (
    DeviceReport,
    Grant,
    LeaderGrant,
    Mode,
    NodeReport,
    Refusal,
    Registration,
    Share,
    cpu_device_id,
    cpu_report,
)

TTL_MS = 60_000


class Pool:
    """One pool under a prefix of its own. Open it with `open_pool`."""

    def __init__(self, redis: RedisDoor, term: int) -> None:
        self.redis = redis
        self.leases = Leases(redis)
        self.assignments = Assignments(redis)
        self.root = keys.pool(redis.prefix, "default")
        self.term = term
        self._numbers = itertools.count(1)

    async def node(self, name: str, *devices: DeviceReport, cores: int = 2) -> Registration:
        report = NodeReport(id=name, host=f"{name}.local", boot_id="b", cores=cores, memory_mib=8000)
        reply = await self.leases.register_node(report, devices or [cpu_report(name, cores, 8000)])
        assert isinstance(reply, Registration), reply
        return reply

    async def try_commit(
        self,
        node: str,
        *shares: Share,
        lease_id: str | None = None,
        mode: Mode = "cpu",
        term: int | None = None,
        gens: dict[str, int] | None = None,
        start_limit_ms: int = TTL_MS,
        tenant: str = "",
    ) -> Grant | Refusal:
        if gens is None:
            devices = (await self.leases.state()).devices
            gens = {name: device.gen for name, device in devices.items()}
        return await self.leases.commit(
            term=self.term if term is None else term,
            lease_id=lease_id or f"lease-{next(self._numbers)}",
            deployment="digits@2",
            models=["digits@2"],
            mode=mode,
            node=node,
            shares=shares,
            gens=gens,
            start_limit_ms=start_limit_ms,
            tenant=tenant,
        )

    async def reserved(self, node: str, *shares: Share, mode: Mode = "cpu", tenant: str = "") -> Grant:
        grant = await self.try_commit(node, *shares or [cpu(node)], mode=mode, tenant=tenant)
        assert isinstance(grant, Grant), grant
        return grant

    async def active(self, node: str, *shares: Share, mode: Mode = "cpu") -> Grant:
        grant = await self.reserved(node, *shares, mode=mode)
        assert await self.leases.bind(grant.lease, grant.token, TTL_MS) is None
        return grant

    async def owner(self, node: str, topic: str, partitions: Sequence[int]) -> Grant:
        grant = await self.active(node)
        await self.want(topic, dict.fromkeys(partitions, grant.lease))
        claimed = await self.assignments.claim(grant.lease, grant.token, topic, partitions)
        assert claimed.granted == tuple(partitions), claimed
        return grant

    async def want(self, topic: str, wanted: Mapping[int, str | None]) -> None:
        assert await self.assignments.want(self.term, topic, wanted) is None

    async def let_expire(self, lease_id: str) -> None:
        """Put a lease's expiry into the past: what waiting would do."""
        await self.redis.command("ZADD", f"{self.root}:lexp", "XX", 1, lease_id)

    async def fall_silent(self, node: str, ms: int) -> None:
        """Put a node's last heartbeat `ms` into the past."""
        await self.redis.command("ZADD", f"{self.root}:nodes", "XX", await self.redis.server_unix_ms() - ms, node)


def cpu(node: str, memory_mib: int = 100, compute: int = 25) -> Share:
    return Share(cpu_device_id(node), memory_mib, compute)


def gpu_report(name: str, memory_mib: int = 1000, lease_slots: int = 4) -> DeviceReport:
    return DeviceReport(
        id=name, kind="gpu", name="H200", memory_mib=memory_mib, compute_cap=100, lease_slots=lease_slots
    )


async def open_pool(redis: RedisDoor) -> Pool:
    """Lead the pool under this door's prefix."""
    grant = await Leases(redis).acquire_leader("leader", TTL_MS)
    assert isinstance(grant, LeaderGrant)
    return Pool(redis, grant.term)


async def keys_without_ttl(redis: RedisDoor) -> list[str]:
    """Keys that would stay for ever though nobody may leave them."""
    found = await redis.command("KEYS", f"{redis.prefix}:*")
    return [key for key in found if not keys.may_lack_ttl(key) and await redis.command("PTTL", key) == -1]
