"""A node whose workers only pretend: they follow the pool's rules in Redis and touch no model and no record."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from contracts.adapters.assignments import Assignments
from contracts.adapters.leases import Leases
from contracts.adapters.redis import RedisDoor
from contracts.adapters.registry import RegisteredModel, Registry
from contracts.errors import TransportError
from contracts.pool import Lease, NodeReport, Refusal, cpu_report
from contracts.settings import KafkaSettings, LeaseSettings, RedisSettings
from contracts.specs import DeploymentSpec, ModelSpec
from scheduler.settings import PlanningSettings, SchedulerSettings

LEASE = LeaseSettings(ttl_seconds=1.5, renew_seconds=0.3, margin_seconds=0.3, handover_seconds=1.0, start_seconds=5.0)
PLANNING = PlanningSettings(
    tick_seconds=0.05, floor_seconds=0.01, calm_seconds=0.2, leader_ttl_seconds=1.5, leader_renew_seconds=0.4,
    suspect_seconds=0.7, dead_seconds=2.1,
)  # fmt: skip
TTL_MS = round(LEASE.ttl_seconds * 1000)
TURN_SECONDS = 0.03


def scheduler_settings(redis: RedisSettings, kafka: KafkaSettings) -> SchedulerSettings:
    return SchedulerSettings(redis=redis, kafka=kafka, lease=LEASE, scheduler=PLANNING)


def environment(settings: SchedulerSettings) -> dict[str, str]:
    """The variables that give a process these settings."""
    variables = {
        "HEADRACE_REDIS__URL": settings.redis.url.get_secret_value(),
        "HEADRACE_REDIS__PREFIX": settings.redis.prefix,
        "HEADRACE_REDIS__POOL": settings.redis.pool,
        "HEADRACE_KAFKA__BOOTSTRAP": settings.kafka.bootstrap,
        "HEADRACE_KAFKA__PREFIX": settings.kafka.prefix,
    }
    for name, group in (("LEASE", settings.lease), ("SCHEDULER", settings.scheduler)):
        for key, value in group.model_dump(exclude_none=True).items():
            variables[f"HEADRACE_{name}__{key.upper()}"] = str(value)
    return variables


async def deploy(registry: Registry, name: str = "digits", *, least: int = 1, most: int = 4) -> DeploymentSpec:
    """Register a model version and deploy it."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 4]}
    model = ModelSpec.model_validate(
        {"name": name, "version": 1, "backend": "onnx", "inputs": [tensor], "outputs": [tensor]}
    )
    spec = DeploymentSpec.model_validate(
        {"model": name, "version": 1, "workers": {"min": least, "max": most}, "device": {"kind": "cpu"}}
    )
    await registry.put_models([RegisteredModel(spec=model, uri="nowhere")])
    await registry.put_deployment(spec)
    return spec


class FakeNode:
    """One machine: heartbeats, starts, serves, hands over and ends workers as a real agent and its workers do."""

    def __init__(self, redis: RedisDoor, pool: str, name: str = "n1", *, cores: int = 4) -> None:
        self.name = name
        self.leases = Leases(redis, pool)
        self.frozen: set[str] = set()
        """Leases whose worker does nothing any more, not even renew."""
        self.breaks_models = False
        self.started = 0
        self._assignments = Assignments(redis, pool)
        self._report = NodeReport(id=name, host=name, cores=cores, memory_mib=8_000)
        self._devices = [cpu_report(name, cores, 8_000)]
        self._incarnation = 0
        self._seen: set[str] = set()

    async def register(self) -> None:
        registration = await self.leases.register_node(self._report, self._devices)
        assert not isinstance(registration, Refusal)
        self._incarnation = registration.incarnation

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeNode]:
        """The node lives inside the block and is cut off at its end."""
        await self.register()
        async with asyncio.TaskGroup() as group:
            turns = group.create_task(self._turn_loop(), name=f"fake node {self.name}")
            try:
                yield self
            finally:
                turns.cancel()

    async def _turn_loop(self) -> None:
        while True:
            with contextlib.suppress(TransportError):  # like a real agent, it tries again
                held = await self.leases.heartbeat(self.name, self._incarnation)
                if isinstance(held, Refusal):
                    await self.register()
                    continue
                for lease in held:
                    if lease.id not in self.frozen:
                        await self._turn(lease)
            await asyncio.sleep(TURN_SECONDS)

    async def _turn(self, lease: Lease) -> None:
        if lease.state == "quarantine":
            await self.leases.confirm(lease.id, lease.token)
        elif lease.state == "reserved":
            await self._start(lease)
        else:
            await self._serve(lease)

    async def _start(self, lease: Lease) -> None:
        self.started += lease.id not in self._seen
        self._seen.add(lease.id)
        if self.breaks_models:
            await self.leases.release(lease.id, lease.token, "the model does not load")
        else:
            await self.leases.bind(lease.id, lease.token, TTL_MS)

    async def _serve(self, lease: Lease) -> None:
        renewal = await self.leases.renew(lease.id, lease.token, TTL_MS)
        if isinstance(renewal, Refusal):
            return
        for topic, partition in renewal.lost:
            await self._assignments.release(lease.id, lease.token, topic, [partition])
        for topic, partition in renewal.wanted:
            await self._assignments.claim(lease.id, lease.token, topic, [partition])
        if renewal.state == "draining":
            await self.leases.release(lease.id, lease.token)
