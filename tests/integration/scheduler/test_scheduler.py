from __future__ import annotations

import asyncio
import time

from pydantic import SecretStr

from contracts import topics
from contracts.adapters.kafka import Admin
from contracts.adapters.redis import RedisDoor
from contracts.adapters.registry import Registry
from contracts.names import ModelVersion
from contracts.settings import KafkaSettings, RedisSettings
from deploy.embedded.processes import Server
from scheduler.observe import look
from scheduler.view import describe
from tests.helpers import wait_until
from tests.integration.scheduler.conftest import Stage
from tests.integration.scheduler.fake_fleet import deploy, scheduler_settings

DIGITS = ModelVersion("digits", 1)


async def test_a_worker_is_started_and_gets_every_partition_when_a_node_registers(stage: Stage) -> None:
    await deploy(stage.registry)
    async with stage.scheduler():
        await wait_until(lambda: stage_has_topic(stage), "the topic was not made")
        assert await stage.states() == {}
        async with stage.node().running():
            await wait_until(lambda: has_loads(stage, [16]))
            assert await stage.states() == {"active": 1}


async def stage_has_topic(stage: Stage) -> bool:
    admin = Admin(stage.settings.kafka)
    await admin.open()
    try:
        counts = await admin.partition_counts()
    finally:
        await admin.close()
    dead = topics.dead(stage.settings.kafka.prefix, "digits")
    return (counts.get(stage.topic()), counts.get(dead)) == (16, 1)


async def has_loads(stage: Stage, loads: list[int], model: str = "digits") -> bool:
    return await stage.loads(model) == loads


async def has_states(stage: Stage, states: dict[str, int], model: str = "digits") -> bool:
    return await stage.states(model) == states


async def test_scaling_by_hand_moves_the_partitions_and_ends_the_surplus_workers(stage: Stage) -> None:
    await deploy(stage.registry)
    async with stage.scheduler(), stage.node().running():
        await wait_until(lambda: has_loads(stage, [16]))
        await stage.registry.set_manual(DIGITS, 4)
        await wait_until(lambda: has_loads(stage, [4, 4, 4, 4]))
        await stage.registry.set_manual(DIGITS, 1)
        await wait_until(lambda: has_loads(stage, [16]))
        await wait_until(lambda: has_states(stage, {"active": 1}))


async def test_a_worker_that_stops_renewing_is_reaped_and_replaced(stage: Stage) -> None:
    await deploy(stage.registry, least=2)
    node = stage.node()
    async with stage.scheduler(), node.running():
        await wait_until(lambda: has_loads(stage, [8, 8]))
        victim = next(iter((await stage.state()).leases))
        node.frozen.add(victim)

        async def is_replaced() -> bool:
            state = await stage.state()
            return state.leases[victim].state == "quarantine" and await stage.loads() == [8, 8]

        await wait_until(is_replaced)
        state = await stage.state()
        assert state.leases[victim].reason == "expired"
        assert next(iter(state.devices.values())).lease_count == 3, "the share is free only when the agent confirms"


async def test_the_work_of_a_silent_node_moves_and_its_share_returns_after_the_ttl(stage: Stage) -> None:
    await deploy(stage.registry)
    async with stage.scheduler():
        async with stage.node("n1").running():
            await wait_until(lambda: has_loads(stage, [16]))
            first = next(iter((await stage.state()).leases))
        async with stage.node("n2").running():
            await wait_until(lambda: has_loads(stage, [16]), "nobody took over")
            await wait_until(lambda: is_forgotten(stage, first), "the share of the dead node was not confirmed")
            state = await stage.state()
            assert state.nodes["n1"].state == "dead"
            assert [lease.node for lease in state.leases.values()] == ["n2"]


async def is_forgotten(stage: Stage, lease: str) -> bool:
    return lease not in (await stage.state()).leases


async def test_a_drained_node_hands_over_and_is_cordoned(stage: Stage) -> None:
    await deploy(stage.registry)
    async with stage.scheduler(), stage.node("n1").running(), stage.node("n2").running():
        await wait_until(lambda: has_loads(stage, [16]))
        (lease,) = (await stage.state()).leases.values()
        assert await stage.leases.set_node_state(lease.node, "draining") is None

        async def is_cordoned() -> bool:
            state = await stage.state()
            return state.nodes[lease.node].state == "cordoned" and lease.id not in state.leases

        await wait_until(is_cordoned)
        await wait_until(lambda: has_loads(stage, [16]))


async def test_a_removed_deployment_leaves_no_lease_and_no_assignment(stage: Stage) -> None:
    await deploy(stage.registry, least=2)
    async with stage.scheduler(), stage.node().running():
        await wait_until(lambda: has_loads(stage, [8, 8]))
        await stage.registry.delete_deployment(DIGITS)

        async def is_gone() -> bool:
            state = await stage.state()
            return not state.leases and not state.topics

        await wait_until(is_gone)


async def test_a_change_of_the_registry_through_another_pool_is_noticed(stage: Stage) -> None:
    async with stage.scheduler() as scheduler, stage.node().running():
        await wait_until(lambda: scheduler.is_leading)
        await deploy(Registry(stage.redis, "elsewhere"))
        started = time.monotonic()
        await wait_until(lambda: has_loads(stage, [16]))
        assert time.monotonic() - started < 3


async def test_a_model_that_does_not_load_is_tried_ever_more_rarely_and_its_repair_at_once(stage: Stage) -> None:
    await deploy(stage.registry, least=3)
    node = stage.node()
    node.breaks_models = True
    async with stage.scheduler(), node.running():
        await wait_until(lambda: explains(stage, "2 starts in a row failed (the model does not load)"))
        assert node.started == 4, "after the first failure one worker at a time, a second later"
        node.breaks_models = False
        await stage.registry.put_deployment(
            (await stage.registry.deployments())[DIGITS].model_copy(update={"allow_code": True})
        )
        await wait_until(lambda: has_states(stage, {"active": 3}), timeout=3)


async def explains(stage: Stage, words: str) -> bool:
    seen = await look(stage.leases, stage.registry, prefix=stage.settings.kafka.prefix)
    waiting = describe(seen.snapshot, seen.demand)["deployments"][0]["waiting"]
    return waiting is not None and waiting["missing"] == 3 and words in waiting["explanation"]


async def test_what_is_shown_names_workers_partitions_and_devices(stage: Stage) -> None:
    await deploy(stage.registry, least=2)
    await deploy(stage.registry, "large", least=4)
    async with stage.scheduler(), stage.node(cores=1).running():
        await wait_until(lambda: has_loads(stage, [8, 8]))
        await wait_until(lambda: has_loads(stage, [8, 8], "large"))
        seen = await look(stage.leases, stage.registry, prefix=stage.settings.kafka.prefix)
        shown = describe(seen.snapshot, seen.demand)
        digits, large = shown["deployments"]
        assert [worker["owned"] for worker in digits["workers"]] == [8, 8]
        assert (digits["wanted"], digits["active"], digits["waiting"], digits["unowned"]) == (2, 2, None, [])
        assert large["waiting"]["missing"] == 2
        assert "compute left" in large["waiting"]["explanation"]
        assert shown["nodes"][0]["devices"][0]["compute_free"] == 0


async def test_without_kafka_workers_start_and_get_their_partitions_when_it_is_back(
    any_redis_settings: RedisSettings, own_log: Server
) -> None:
    own_log.kill()
    kafka = KafkaSettings(bootstrap=own_log.address, request_timeout_seconds=1.0)
    async with await RedisDoor.from_settings(any_redis_settings) as redis:
        stage = Stage(redis, scheduler_settings(any_redis_settings, kafka))
        await deploy(stage.registry)
        async with stage.scheduler(), stage.node().running():
            await wait_until(lambda: has_states(stage, {"active": 1}))
            assert (await stage.state()).topics == {}
            await asyncio.to_thread(own_log.start)
            await wait_until(lambda: has_loads(stage, [16]), "the topic was not made after Kafka came back", timeout=15)


async def test_the_scheduler_outlives_a_restart_of_redis(own_redis: Server, log_settings: KafkaSettings) -> None:
    redis_settings = RedisSettings(url=SecretStr(own_redis.address))
    settings = scheduler_settings(redis_settings, log_settings)
    async with await RedisDoor.from_settings(redis_settings) as redis:
        stage = Stage(redis, settings)
        await deploy(stage.registry)
        async with stage.scheduler() as scheduler:
            await wait_until(lambda: scheduler.is_leading)
            await asyncio.to_thread(own_redis.kill)
            await wait_until(lambda: not scheduler.is_leading, "it still trusts a grant that it cannot renew")
            await asyncio.to_thread(own_redis.start)
            async with stage.node().running():
                await wait_until(lambda: has_loads(stage, [16]))
