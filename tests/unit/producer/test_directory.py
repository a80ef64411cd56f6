from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from contracts.adapters.registry import RegisteredModel, RegistryState
from contracts.codec import PRIORITIES
from contracts.errors import ModelNotFound, TransportError
from contracts.names import ModelVersion
from contracts.specs import DeploymentSpec, ModelSpec, RouteSpec, TensorSpec, TopicSpec
from producer.directory import Directory

TENSOR = TensorSpec(name="x", datatype="FP32", shape=(-1, 1))


class FakeRegistry:
    """A registry in memory that counts how often it is read."""

    def __init__(self) -> None:
        self.state = RegistryState(revision=1, models={}, deployments={}, routes={})
        self.topic = TopicSpec()
        self.looks = self.reads = 0
        self.is_away = False

    def deploy(self, *names: str, **routes: int) -> None:
        keys = [ModelVersion.parse(name) for name in names]
        self.state = RegistryState(
            revision=self.state.revision + 1,
            models={key: RegisteredModel(spec=_spec(key), uri="nowhere") for key in keys},
            deployments={key: DeploymentSpec(model=key.model, version=key.version, topic=self.topic) for key in keys},
            routes={model: RouteSpec(default=version) for model, version in routes.items()},
        )

    async def revision(self) -> int:
        self.looks += 1
        if self.is_away:
            raise TransportError("Redis is away")
        return self.state.revision

    async def snapshot(self) -> RegistryState:
        self.reads += 1
        return self.state


class FakeKafka:
    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.asked = asyncio.Event()
        self.times_asked = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def partitions(self, topic: str) -> int:
        self.asked.set()
        self.times_asked += 1
        await self.may_answer.wait()
        return self.counts.get(topic, 8)


def _spec(key: ModelVersion) -> ModelSpec:
    return ModelSpec(name=key.model, version=key.version, backend="onnx", inputs=(TENSOR,), outputs=(TENSOR,))


@pytest.fixture
def registry() -> FakeRegistry:
    registry = FakeRegistry()
    registry.deploy("digits@1", "digits@2", "other@3", digits=2)
    return registry


@pytest.fixture
def kafka() -> FakeKafka:
    return FakeKafka()


@pytest.fixture
async def directory(registry: FakeRegistry, kafka: FakeKafka) -> Directory:
    directory = Directory(registry, kafka, prefix="p", refresh_seconds=0.5, longest_run=16)
    await directory.open()
    return directory


@asynccontextmanager
async def following(directory: Directory) -> AsyncIterator[None]:
    """Runs the refresh loop; with the test's virtual time, sleeping is free."""
    task = asyncio.get_running_loop().create_task(directory.refresh_loop())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize(
    ("model", "version", "topic"),
    [
        ("digits", None, "p.requests.digits.2"),
        ("digits", 1, "p.requests.digits.1"),
        ("digits@1", None, "p.requests.digits.1"),
        ("digits@1", 1, "p.requests.digits.1"),
        ("other", None, "p.requests.other.3"),
    ],
)
async def test_whatever_a_caller_writes_means_one_topic(
    directory: Directory, model: str, version: int | None, topic: str
) -> None:
    plan = await directory.plan(model, version)
    assert plan.topic == topic
    assert plan.partitioner.partitions == 8
    assert directory.plans[model if version is None else (model, version)] is plan


@pytest.mark.parametrize(
    ("model", "version"), [("nothing", None), ("digits", 9), ("digits@9", None), ("digits@1", 2), ("digits@x", None)]
)
async def test_what_is_not_deployed_is_not_found(directory: Directory, model: str, version: int | None) -> None:
    with pytest.raises(ModelNotFound):
        await directory.plan(model, version)


async def test_all_spellings_of_one_version_share_a_plan(directory: Directory) -> None:
    plans = [
        await directory.plan("digits", None),
        await directory.plan("digits", 2),
        await directory.plan("digits@2", None),
    ]
    assert len(set(map(id, plans))) == 1


async def test_however_many_ask_at_once_a_plan_is_made_once_and_nobody_gives_it_up_for_others(
    directory: Directory, kafka: FakeKafka
) -> None:
    kafka.may_answer.clear()
    asking = [asyncio.get_running_loop().create_task(directory.plan("digits", 2)) for _ in range(50)]
    await kafka.asked.wait()
    asking.pop(0).cancel()  # the one that began it
    kafka.may_answer.set()
    plans = await asyncio.gather(*asking)
    assert len(set(map(id, plans))) == 1
    assert kafka.times_asked == 1


async def test_a_known_name_costs_no_look_at_the_registry(directory: Directory, registry: FakeRegistry) -> None:
    await directory.plan("digits", None)
    looks = registry.looks
    for _ in range(10):
        await directory.plan("digits", None)
    assert registry.looks == looks


async def test_an_unknown_name_is_looked_up_at_once(directory: Directory, registry: FakeRegistry) -> None:
    registry.deploy("fresh@1")
    assert (await directory.plan("fresh", None)).key == ModelVersion("fresh", 1)


async def test_a_topic_that_does_not_exist_yet_is_a_transport_error(directory: Directory, kafka: FakeKafka) -> None:
    kafka.counts["p.requests.other.3"] = 0
    with pytest.raises(TransportError, match="does not exist yet"):
        await directory.plan("other", None)


@pytest.mark.parametrize(("deployed", "route", "found"), [("digits@1", 1, 1), ("other@3", None, None)])
async def test_a_plan_made_while_the_registry_changed_follows_the_change(
    directory: Directory, registry: FakeRegistry, kafka: FakeKafka, deployed: str, route: int | None, found: int | None
) -> None:
    kafka.may_answer.clear()
    asking = asyncio.get_running_loop().create_task(directory.plan("digits", None))
    await kafka.asked.wait()
    registry.deploy(deployed, **({} if route is None else {"digits": route}))
    await directory.open()
    kafka.may_answer.set()
    if found is None:
        with pytest.raises(ModelNotFound):
            await asking
        assert not directory.plans
    else:
        assert (await asking).key.version == directory.plans["digits"].key.version == found


@pytest.mark.looptime
async def test_the_copy_is_read_again_only_when_the_revision_moved(
    directory: Directory, registry: FakeRegistry
) -> None:
    await directory.plan("digits", None)
    async with following(directory):
        await asyncio.sleep(10)
        assert registry.reads == 1
        assert registry.looks == 19
        registry.deploy("digits@1", "digits@2", digits=1)
        await asyncio.sleep(1)
        assert registry.reads == 2
        assert "digits" not in directory.plans
        assert (await directory.plan("digits", None)).key.version == 1


@pytest.mark.looptime
async def test_while_redis_is_away_the_last_copy_serves_on_and_is_complained_about_once(
    directory: Directory, registry: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    async with following(directory):
        registry.is_away = True
        await asyncio.sleep(10)
        assert (await directory.plan("digits", None)).key.version == 2
        registry.is_away = False
        registry.deploy("digits@1")
        await asyncio.sleep(1)
        assert (await directory.plan("digits", None)).key.version == 1
    assert len(caplog.records) == 1


@pytest.mark.looptime
async def test_a_topic_that_has_grown_is_used_whole(directory: Directory, kafka: FakeKafka) -> None:
    plan = await directory.plan("digits", None)
    async with following(directory):
        kafka.counts[plan.topic] = 12
        await asyncio.sleep(31)
        assert plan.partitioner.partitions == 12


@pytest.mark.looptime
async def test_priorities_have_topics_of_their_own_where_the_deployment_says_so(
    directory: Directory, registry: FakeRegistry, kafka: FakeKafka
) -> None:
    plan = await directory.plan("digits", 1)
    assert {plan.place(priority)[0] for priority in PRIORITIES} == {plan.topic}
    assert kafka.times_asked == 1
    kafka.counts = {f"{plan.topic}.low": 3}
    async with following(directory):
        registry.topic = TopicSpec(lanes=True)
        registry.deploy("digits@1")
        await asyncio.sleep(0.6)
        plan = await directory.plan("digits", 1)
    assert [plan.place(priority)[0] for priority in PRIORITIES] == [
        f"{plan.topic}.high",
        plan.topic,
        f"{plan.topic}.low",
    ]
    assert [plan.topics[plan.place(priority)[0]].partitions for priority in PRIORITIES] == [8, 8, 3]


@pytest.mark.looptime
async def test_a_lane_that_is_still_to_be_made_is_looked_for_until_it_is_there(
    directory: Directory, registry: FakeRegistry, kafka: FakeKafka
) -> None:
    high = "p.requests.digits.1.high"
    kafka.counts = {high: 0}
    registry.topic = TopicSpec(lanes=True)
    registry.deploy("digits@1")
    async with following(directory):
        await asyncio.sleep(0.6)
        plan = await directory.plan("digits", 1)
        assert plan.place("high")[0] == plan.topic
        kafka.counts = {high: 8}
        await asyncio.sleep(0.6)
        assert plan.place("high")[0] == high
        registry.topic = TopicSpec()
        registry.deploy("digits@1")
        await asyncio.sleep(0.6)
        assert (await directory.plan("digits", 1)).place("high")[0] == plan.topic
