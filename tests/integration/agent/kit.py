"""An agent on a real Redis with stand-ins for its workers, and what tests ask about both."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from contracts.adapters.leases import Leases
from contracts.pool import Grant, LeaderGrant, Lease, Mode, Share, cpu_device_id
from contracts.service import Deadline
from contracts.settings import LeaseSettings, RedisSettings
from tests.helpers import unique_name, wait_until
from workers.agent.agent import NodeAgent
from workers.agent.processes import start_time
from workers.agent.settings import AgentGroup, AgentSettings
from workers.devices.nvml import Nvml

MODULES = (
    "tests.integration.agent.stand_in_ingest",
    "tests.integration.agent.stand_in_engine",
    "tests.integration.agent.stand_in_joiner",
)
ROOT = Path(__file__).parents[3]


class Fleet:
    """One pool, and a machine in it."""

    def __init__(self, leases: Leases, redis: RedisSettings, folder: Path) -> None:
        self.leases, self.redis, self.folder = leases, redis, folder
        self.node = unique_name("n")
        self._numbers = itertools.count(1)
        self._term = 0

    def settings(self, *, lease: LeaseSettings | None = None, **agent: Any) -> AgentSettings:
        defaults: dict[str, Any] = {
            "node": self.node,
            "run_dir": self.folder,
            "lock_dir": self.folder / "locks",
            "cores": 4,
            "memory_mib": 4000,
            "heartbeat_seconds": 0.3,
            "quarantine_seconds": 0.3,
            "engine_grace_seconds": 0.2,
        }
        group = AgentGroup(**defaults | agent)
        return AgentSettings(redis=self.redis, agent=group, lease=lease or LeaseSettings())

    @contextlib.asynccontextmanager
    async def agent(self, settings: AgentSettings | None = None, nvml: Nvml | None = None) -> AsyncIterator[NodeAgent]:
        """A running agent, which is stopped in the end."""
        agent = NodeAgent(settings or self.settings(), self.leases, nvml=nvml, modules=MODULES)
        await agent.start()
        try:
            yield agent
        finally:
            await agent.stop(Deadline(5.0))

    async def commit(
        self,
        stem: str = "lease",
        *,
        device: str | None = None,
        mode: Mode = "cpu",
        models: Sequence[str] = ("digits@2",),
    ) -> Grant:
        """Grant a lease on this machine."""
        if not self._term:
            leader = await self.leases.acquire_leader("test", 60_000)
            assert isinstance(leader, LeaderGrant)
            self._term = leader.term
        devices = (await self.leases.state()).devices
        name = device or cpu_device_id(self.node)
        grant = await self.leases.commit(
            term=self._term,
            lease_id=f"{stem}-{next(self._numbers)}-{self.node}",
            deployment="digits@2",
            models=models,
            mode=mode,
            node=self.node,
            shares=[] if mode == "none" else [Share(name, 100, 25)],
            gens={name: devices[name].gen},
            start_limit_ms=60_000,
        )
        assert isinstance(grant, Grant), grant
        return grant

    async def worker(self, stem: str = "lease", **where: Any) -> Grant:
        """Grant a lease, and wait until its worker runs and its lease is active."""
        grant = await self.commit(stem, **where)
        await wait_until(lambda: self.pid(grant, "ingest") and self.pid(grant, "engine"), "the worker does not run")
        assert await self.leases.bind(grant.lease, grant.token, 60_000) is None
        return grant

    def seen(self, grant: Grant, role: str) -> dict[str, Any]:
        """What a stand-in wrote down."""
        found: dict[str, Any] = json.loads((self.folder / f"{grant.lease}.{role}.seen").read_text())
        return found

    def pid(self, grant: Grant, role: str) -> int | None:
        """The living process of a worker that has come up."""
        try:
            pid = int(self.seen(grant, role)["pid"])
        except FileNotFoundError:
            return None
        return pid if is_alive(pid) else None

    def kill(self, grant: Grant, role: str) -> float:
        """SIGKILL one process of a worker; the moment at which that was."""
        pid = self.pid(grant, role)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        return time.monotonic()

    async def lease(self, grant: Grant) -> Lease | None:
        return (await self.leases.state()).leases.get(grant.lease)

    async def is_over(self, grant: Grant) -> bool:
        return await self.lease(grant) is None

    async def used(self) -> tuple[int, int]:
        """Memory and lease slots that are taken of the machine's cores."""
        device = (await self.leases.state()).devices[cpu_device_id(self.node)]
        return device.memory_used_mib, device.lease_count


def is_alive(pid: int) -> bool:
    return start_time(pid) is not None
