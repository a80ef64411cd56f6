"""A door to each kind of server under a prefix of the test's own, and the check that no test leaves a key for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from contracts.adapters.redis import RedisDoor
from contracts.settings import RedisSettings
from tests.integration.redis.kit import Pool, keys_without_ttl, open_pool


@pytest.fixture
async def redis(redis_settings: RedisSettings) -> AsyncIterator[RedisDoor]:
    async with await RedisDoor.from_settings(redis_settings) as door:
        yield door
        assert await keys_without_ttl(door) == []


@pytest.fixture
async def pool(redis: RedisDoor) -> Pool:
    return await open_pool(redis)
