"""Plans that Redis has lost: made again, brought back, or waited for, and never for long."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from msgspec import structs

from contracts.adapters.plans import PlanStore
from contracts.adapters.registry import RegisteredPipeline, Registry, RegistryState
from contracts.errors import TransportError
from contracts.messages import Hop, Status
from contracts.names import ModelVersion
from contracts.plans import Plan
from contracts.specs import DeploymentSpec, RouteSpec
from workers.draining.lost_plans import LostPlans
from workers.draining.plan_cache import KEPT, MOST_AWAITED, PATIENCE_SECONDS, REFRESH_SECONDS, PlanCache, unknown_plan

SPEC: dict[str, Any] = {
    "name": "one", "version": 1, "inputs": [{"name": "a", "datatype": "FP32", "shape": [-1, 2]}],
    "steps": {"s": {"model": "m", "inputs": {"x": "input.a"}}}, "outputs": {"y": "s.y"},
}  # fmt: skip
PIPELINE = RegisteredPipeline(name="one", version=1, spec=SPEC, joins=1)
UNKNOWN = Hop("job", "0" * 32, "one@1")


class LoopClock:
    """The event loop's own time."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def unix_ms(self) -> int:
        return 0


class Store:
    """Plans in memory."""

    def __init__(self) -> None:
        self.plans: dict[str, bytes] = {}
        self.is_away = False

    async def get(self, digest: str) -> bytes | None:
        if self.is_away:
            raise TransportError("Redis is away")
        return self.plans.get(digest)

    async def restore(self, digest: str, raw: bytes) -> bool:
        return self.plans.setdefault(digest, raw) is raw


class Kafka:
    """Every topic has one partition."""

    async def partitions(self, _: str) -> int:
        return 1


class Pipelines:
    """A registry with one pipeline, whose only step has the version that the route says."""

    def __init__(self) -> None:
        self.reads = 0
        self.route_to(1)

    def route_to(self, version: int) -> None:
        served = {ModelVersion("m", v): DeploymentSpec(model="m", version=v) for v in (1, 2)}
        self.state = RegistryState(
            revision=version,
            models={},
            deployments=served,
            routes={"m": RouteSpec(default=version)},
            pipelines={PIPELINE.key: PIPELINE},
        )

    async def revision(self) -> int:
        return self.state.revision

    async def snapshot(self) -> RegistryState:
        self.reads += 1
        return self.state


class Bench:
    """A cache with all that it needs."""

    def __init__(self) -> None:
        self.store, self.pipelines = Store(), Pipelines()
        self.lost = LostPlans(cast("Registry", self.pipelines))
        kept = cast("PlanStore", self.store)
        self.cache = PlanCache(kept, cast("Any", Kafka()), LoopClock(), prefix="headrace", lost=self.lost)

    async def plan(self) -> Plan:
        """What the pipeline compiles to today."""
        return LostPlans._compiled(PIPELINE, self.pipelines.state) or pytest.fail("it should compile")

    async def got(self, hop: Hop) -> Plan | None:
        found: asyncio.Future[Plan | None] = asyncio.get_running_loop().create_future()
        self.cache.when(hop, found.set_result)
        return await found


@pytest.fixture
def bench() -> Bench:
    return Bench()


def hop_of(plan: Plan) -> Hop:
    return Hop("job", plan.digest, str(plan.pipeline))


@pytest.mark.looptime
async def test_a_plan_that_was_lost_is_made_again_and_stored(bench: Bench) -> None:
    plan = await bench.plan()
    assert await bench.got(hop_of(plan)) == plan
    assert bench.store.plans == {plan.digest: plan.encoded}
    assert asyncio.get_running_loop().time() < 0.1


@pytest.mark.looptime
async def test_a_plan_under_routes_of_before_is_waited_for_until_its_submitter_brings_it_back(bench: Bench) -> None:
    plan = await bench.plan()
    bench.pipelines.route_to(2)
    asyncio.get_running_loop().call_later(PATIENCE_SECONDS / 2, bench.store.plans.update, {plan.digest: plan.encoded})
    assert await bench.got(hop_of(plan)) == plan
    assert bench.pipelines.reads == 1, "the registry is read again only when it has moved"


@pytest.mark.looptime
async def test_a_plan_that_nobody_brings_back_is_unknown_after_a_while(bench: Bench) -> None:
    assert await bench.got(UNKNOWN) is None
    assert PATIENCE_SECONDS <= asyncio.get_running_loop().time() < PATIENCE_SECONDS + 1


@pytest.mark.looptime
async def test_plans_that_never_were_are_not_waited_for_in_any_number(bench: Bench) -> None:
    made_up = [Hop("job", f"{number:032x}", "one@1") for number in range(MOST_AWAITED + 10)]
    answers = [asyncio.ensure_future(bench.got(hop)) for hop in made_up]  # noqa: TID251 - gathered below
    await asyncio.sleep(1)
    assert sum(answer.done() for answer in answers) == 10
    assert await asyncio.gather(*answers) == [None] * len(made_up)


@pytest.mark.looptime
async def test_who_is_told_that_a_plan_is_unknown_may_ask_again(bench: Bench) -> None:
    plan = await bench.plan()
    bench.pipelines.route_to(2)
    answers: list[Plan | None] = []

    def then(found: Plan | None) -> None:
        answers.append(found)
        if found is None:
            bench.store.plans[plan.digest] = plan.encoded
            bench.cache.when(hop_of(plan), answers.append)

    bench.cache.when(hop_of(plan), then)
    await asyncio.sleep(PATIENCE_SECONDS + 2)
    assert answers == [None, plan]


@pytest.mark.looptime
async def test_a_plan_is_waited_for_as_long_as_redis_is_away(bench: Bench) -> None:
    plan = await bench.plan()
    bench.store.is_away = True
    asyncio.get_running_loop().call_later(10 * PATIENCE_SECONDS, setattr, bench.store, "is_away", False)
    assert await bench.got(hop_of(plan)) == plan


@pytest.mark.looptime
async def test_a_worker_puts_back_the_plans_that_it_uses_and_no_others(bench: Bench) -> None:
    plan = await bench.plan()
    bench.cache.add(plan)
    refreshing = asyncio.ensure_future(bench.cache.refresh_loop())  # noqa: TID251 - cancelled below
    await asyncio.sleep(REFRESH_SECONDS + 1)
    assert bench.store.plans == {}
    assert bench.cache.get(plan.digest) is plan
    await asyncio.sleep(REFRESH_SECONDS)
    assert bench.store.plans == {plan.digest: plan.encoded}
    bench.store.plans.clear()
    await asyncio.sleep(5 * REFRESH_SECONDS)
    assert bench.store.plans == {}
    refreshing.cancel()


@pytest.mark.looptime
async def test_plans_that_leave_the_cache_while_it_puts_others_back_do_not_end_the_worker(bench: Bench) -> None:
    plan = await bench.plan()
    for number in range(KEPT):
        bench.cache.add(structs.replace(plan, partitions=1 + number))
        bench.cache.get(list(bench.cache._plans)[-1])

    async def restore(digest: str, raw: bytes) -> bool:
        bench.cache.add(structs.replace(plan, partitions=1 + KEPT + len(bench.store.plans)))
        bench.store.plans[digest] = raw
        return True

    bench.store.restore = restore  # type: ignore[method-assign]  # rollouts meanwhile
    refreshing = asyncio.ensure_future(bench.cache.refresh_loop())  # noqa: TID251 - cancelled below
    await asyncio.sleep(REFRESH_SECONDS + 1)
    assert not refreshing.done()
    assert len(bench.store.plans) == KEPT
    refreshing.cancel()


@pytest.mark.looptime
async def test_a_pipeline_that_this_release_cannot_read_ends_the_jobs_that_need_it(bench: Bench) -> None:
    plan = await bench.plan()
    bench.pipelines.state.pipelines[PIPELINE.key] = PIPELINE.model_copy(
        update={"spec": {"steps": "of a later release"}}
    )
    assert await bench.got(hop_of(plan)) is None


@pytest.mark.looptime
async def test_names_of_pipelines_that_never_were_are_not_remembered(bench: Bench) -> None:
    for number in range(10):
        assert await bench.lost.again("0" * 32, f"made-up-{number}@1") is None
    assert not bench.lost._plans


def test_an_unknown_plan_is_no_fault_of_the_request() -> None:
    failure = unknown_plan("f" * 32)
    assert failure.status is Status.INTERNAL
    assert failure.retryable
