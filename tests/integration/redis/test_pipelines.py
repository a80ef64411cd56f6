"""Pipelines in the registry, and compiled plans by digest."""

from __future__ import annotations

import pytest

from contracts import keys
from contracts.adapters.plans import PlanStore, digest_of
from contracts.adapters.redis import RedisDoor
from contracts.adapters.registry import RegisteredPipeline, Registry
from contracts.errors import InvalidRequest
from contracts.names import ModelVersion

PIPELINE = RegisteredPipeline(name="read-page", version=3, spec={"name": "read-page", "steps": {}}, joins=8)


async def test_a_pipeline_is_registered_until_it_is_deleted(redis: RedisDoor) -> None:
    registry = Registry(redis)
    assert await registry.put_pipeline(PIPELINE)
    assert not await registry.put_pipeline(PIPELINE)
    assert await registry.get_pipeline(PIPELINE.key) == PIPELINE
    assert (await registry.snapshot()).pipelines == {ModelVersion("read-page", 3): PIPELINE}
    assert await registry.delete_pipeline(PIPELINE.key)
    assert await registry.get_pipeline(PIPELINE.key) is None


async def test_a_plan_is_kept_while_it_is_used(redis: RedisDoor) -> None:
    store, raw = PlanStore(redis, keep_seconds=100), b"\x93\x00\xff plan"
    digest = digest_of(raw)
    assert await store.get(digest) is None
    await store.put(digest, raw)
    await redis.command("PEXPIRE", keys.plan(redis.prefix, digest), 1000)
    await store.put(digest, raw)
    assert await store.get(digest) == raw
    assert 99_000 < await redis.command("PTTL", keys.plan(redis.prefix, digest)) <= 100_000
    await redis.command("PEXPIRE", keys.plan(redis.prefix, digest), 1000)
    await store.keep(digest, raw)
    assert 99_000 < await redis.command("PTTL", keys.plan(redis.prefix, digest)) <= 100_000
    assert store.keep_seconds == 5
    assert PlanStore(redis, keep_seconds=8).keep_seconds == 2


async def test_a_plan_that_redis_has_lost_is_put_back_by_those_who_use_it(redis: RedisDoor) -> None:
    store, raw = PlanStore(redis, keep_seconds=100), b"a plan"
    digest = digest_of(raw)
    await store.keep(digest, raw)
    assert await store.get(digest) == raw
    await redis.command("PEXPIRE", keys.plan(redis.prefix, digest), 50_000)
    assert not await store.restore(digest, raw)
    assert await redis.command("PTTL", keys.plan(redis.prefix, digest)) <= 50_000
    await redis.command("DEL", keys.plan(redis.prefix, digest))
    assert await store.restore(digest, raw)
    assert await store.get(digest) == raw


async def test_nobody_is_given_another_plan_than_the_one_asked_for(redis: RedisDoor) -> None:
    store = PlanStore(redis)
    await store.put(digest_of(b"mine"), b"somebody else's")
    with pytest.raises(InvalidRequest, match="another one"):
        await store.get(digest_of(b"mine"))
