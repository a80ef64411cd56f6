"""The plans that a joiner makes: stored for as long as it makes jobs by them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from contracts.adapters.plans import PlanStore
from contracts.adapters.registry import RegisteredPipeline, Registry
from contracts.errors import InvalidRequest
from contracts.messages import Hop
from contracts.names import ModelVersion
from contracts.plans import Plan, decode
from contracts.specs import DeploymentSpec
from tests.helpers import FakeClock
from tests.pipeline_kit import compiled
from workers.draining.plan_cache import PlanCache
from workers.joiner.plans import Plans

KEY = ModelVersion("one", 1)
SPEC = {
    "name": "one", "version": 1, "inputs": [{"name": "a", "datatype": "FP32", "shape": [-1, 2]}],
    "steps": {"s": {"model": "m@1", "inputs": {"x": "input.a"}}}, "outputs": {"y": "s.y"},
}  # fmt: skip


class Store:
    """Plans with the times of their last refresh."""

    keep_seconds = 100.0

    def __init__(self) -> None:
        self.puts: list[str] = []

    async def keep(self, digest: str, _: bytes) -> None:
        self.puts.append(digest)

    async def get(self, _: str) -> bytes | None:
        message = "what is stored is another one"
        raise InvalidRequest(message)


class Kafka:
    """Every topic has one partition."""

    async def partitions(self, _: str) -> int:
        return 1


class Pipelines:
    """A registry with one pipeline."""

    async def snapshot(self) -> Any:
        pipeline = RegisteredPipeline(name="one", version=1, spec=SPEC, joins=1)
        return SimpleNamespace(
            pipelines={KEY: pipeline},
            models={},
            routes={},
            served={ModelVersion("m", 1): DeploymentSpec(model="m", version=1)},
        )


def plans_of(store: Store, clock: FakeClock) -> Plans:
    kept = cast("PlanStore", store)
    cache = PlanCache(kept, cast("Any", Kafka()), clock, prefix="headrace")
    return Plans(KEY, cache, kept, cast("Registry", Pipelines()), clock.monotonic)


async def test_a_plan_made_for_a_submission_without_one_is_stored_again_before_it_runs_out() -> None:
    store, clock = Store(), FakeClock()
    plans = plans_of(store, clock)
    for _ in range(30):
        await plans.current()
        clock.advance(10)
    assert len(store.puts) == 3
    assert set(store.puts) == {(await plans.current()).digest}


async def test_a_plan_that_is_stored_under_the_name_of_another_is_none() -> None:
    found: asyncio.Future[Plan | None] = asyncio.get_running_loop().create_future()
    plans_of(Store(), FakeClock()).when(Hop("job", "0" * 32, "one@1"), found.set_result)
    assert await found is None


def test_a_plan_of_a_later_release_is_refused() -> None:
    raw = compiled(SPEC).encoded
    assert decode(raw).encoded == raw
    fields = msgspec.msgpack.decode(raw)
    later = msgspec.msgpack.encode({**fields, "quota": 3})
    with pytest.raises(InvalidRequest, match="knows more than this one"):
        decode(later)
