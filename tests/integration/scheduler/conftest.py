"""A pool of the test's own in Redis, a scheduler over it, and what a test asks them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from contracts import topics
from contracts.adapters.leases import Leases
from contracts.adapters.redis import RedisDoor
from contracts.adapters.registry import Registry
from contracts.pool import PoolState
from contracts.service import Deadline
from contracts.settings import KafkaSettings, RedisSettings
from scheduler.loop import Scheduler
from scheduler.settings import SchedulerSettings
from tests.integration.scheduler.fake_fleet import FakeNode, scheduler_settings


class Stage:
    """Redis, registry, nodes and the settings of the schedulers to come."""

    def __init__(self, redis: RedisDoor, settings: SchedulerSettings) -> None:
        self.redis = redis
        self.settings = settings
        self.pool = settings.redis.pool
        self.leases = Leases(redis, self.pool)
        self.registry = Registry(redis, self.pool)

    def node(self, name: str = "n1", *, cores: int = 4) -> FakeNode:
        return FakeNode(self.redis, self.pool, name, cores=cores)

    @asynccontextmanager
    async def scheduler(self) -> AsyncIterator[Scheduler]:
        service = Scheduler(self.settings)
        await service.start()
        try:
            yield service
        finally:
            await service.stop(Deadline(5.0))

    async def state(self) -> PoolState:
        return await self.leases.state()

    def topic(self, model: str = "digits") -> str:
        return topics.requests(self.settings.kafka.prefix, model, 1)

    async def loads(self, model: str = "digits") -> list[int]:
        """How many partitions each lease owns, fewest first."""
        known = (await self.state()).topics.get(self.topic(model))
        return sorted(Counter(owner for owner, _ in known.own.values()).values()) if known else []

    async def states(self, model: str = "digits") -> dict[str, int]:
        leases = (await self.state()).leases.values()
        return dict(Counter(lease.state for lease in leases if lease.deployment == f"{model}@1"))


@pytest.fixture
async def stage(any_redis_settings: RedisSettings, log_settings: KafkaSettings) -> AsyncIterator[Stage]:
    async with await RedisDoor.from_settings(any_redis_settings) as redis:
        yield Stage(redis, scheduler_settings(any_redis_settings, log_settings))
