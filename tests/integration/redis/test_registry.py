import asyncio

import pytest

from contracts.adapters.leases import Leases
from contracts.adapters.redis import RedisDoor
from contracts.adapters.registry import RegisteredModel, Registry
from contracts.errors import ConfigurationError, TransportError
from contracts.names import ModelVersion
from contracts.pool import Demand
from contracts.specs import DeploymentSpec, ModelSpec, RouteSpec, TensorSpec, WorkersSpec

DIGITS = ModelVersion("digits", 2)
TENSOR = TensorSpec(name="x", datatype="FP32", shape=(-1, 64))


def model(version: int) -> RegisteredModel:
    spec = ModelSpec(name="digits", version=version, backend="onnx", inputs=(TENSOR,), outputs=(TENSOR,))
    return RegisteredModel(spec=spec, uri=f"file:///models/digits/{version}", digest=f"sha256:{version}")


async def test_what_was_put_comes_back_in_one_snapshot(redis: RedisDoor) -> None:
    registry = Registry(redis)
    empty = await registry.snapshot()
    assert (empty.revision, empty.models, empty.deployments, empty.routes) == (0, {}, {}, {})
    deployment = DeploymentSpec(model="digits", version=2, workers=WorkersSpec(min=1, max=4))
    assert await registry.put_models([model(1), model(2)])
    assert await registry.put_deployment(deployment)
    assert await registry.put_route("digits", RouteSpec(default=2))
    snapshot = await registry.snapshot()
    assert snapshot.revision == await registry.revision() == 3
    assert snapshot.models == {ModelVersion("digits", 1): model(1), DIGITS: model(2)}
    assert (snapshot.deployments, snapshot.routes) == ({DIGITS: deployment}, {"digits": RouteSpec(default=2)})
    assert await registry.get_model(DIGITS) == model(2)
    assert await registry.get_model(ModelVersion("digits", 3)) is None
    assert await registry.models() == snapshot.models
    assert await registry.deployments() == snapshot.deployments
    assert await registry.routes() == snapshot.routes


async def test_the_revision_rises_only_with_a_real_change(redis: RedisDoor) -> None:
    registry = Registry(redis)
    assert await registry.put_models([model(1)])
    assert not await registry.put_models([model(1)])
    assert not await registry.delete_deployment(DIGITS)
    assert await registry.revision() == 1
    assert await registry.put_route("digits", RouteSpec(default=1))
    assert await registry.delete_route("digits")
    assert not await registry.delete_route("digits")
    assert await registry.revision() == 3


@pytest.mark.parametrize("name", ["digits.1", "a..b", "Digits"])
async def test_no_route_has_a_name_that_no_model_can_have(name: str, redis: RedisDoor) -> None:
    with pytest.raises(ConfigurationError, match="no valid model name"):
        await Registry(redis).put_route(name, RouteSpec(default=1))


async def test_concurrent_writers_never_share_a_revision(redis: RedisDoor) -> None:
    registry = Registry(redis)
    await asyncio.gather(*(registry.put_models([model(version)]) for version in range(1, 11)))
    snapshot = await registry.snapshot()
    assert (snapshot.revision, len(snapshot.models)) == (10, 10)


async def test_workers_set_by_hand_stay_until_they_are_given_back(redis: RedisDoor) -> None:
    registry = Registry(redis)
    assert await registry.demand() == {}
    await registry.set_manual(DIGITS, 0, "maintenance")
    await registry.set_manual(ModelVersion("a.b", 1), 3)
    demand = await registry.demand()
    assert demand[DIGITS] == Demand(manual=0, reason="maintenance", since_unix_ms=demand[DIGITS].since_unix_ms)
    assert demand[ModelVersion("a.b", 1)].manual == 3
    await registry.set_manual(DIGITS, None)
    assert set(await registry.demand()) == {ModelVersion("a.b", 1)}


async def test_a_change_wakes_whoever_follows_the_pool(redis: RedisDoor) -> None:
    registry, pool = Registry(redis), Leases(redis)
    start, _ = await pool.events("$", 0)
    await registry.put_deployment(DeploymentSpec(model="digits", version=2))
    await registry.put_deployment(DeploymentSpec(model="digits", version=2))
    await registry.set_manual(DIGITS, 3)
    _, events = await pool.events(start, 0)
    assert [(event.kind, event.detail) for event in events] == [
        ("registry", "deployments 1"),
        ("demand", "digits@2"),
    ]


async def test_a_spec_of_another_version_is_reported_not_misread(redis: RedisDoor) -> None:
    registry = Registry(redis)
    await redis.command("HSET", f"{redis.prefix}:registry:routes", "digits", '{"default": 2, "novelty": 1}')
    with pytest.raises(TransportError, match="RouteSpec that this version cannot read"):
        await registry.snapshot()
