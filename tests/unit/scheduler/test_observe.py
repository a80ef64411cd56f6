"""A look at the pool knows of everything that led to what it shows."""

from __future__ import annotations

from typing import cast

from contracts.adapters.leases import Leases
from contracts.adapters.registry import Registry, RegistryState
from contracts.names import ModelVersion
from contracts.pool import Demand, Event, PoolState
from scheduler.observe import Observer
from scheduler.snapshot import Limits
from tests.unit.scheduler.fleet_model import NOW, spec

DIGITS = ModelVersion("digits", 2)


class Pool:
    """A pool in which a worker fails just before it is read."""

    def __init__(self) -> None:
        self.events_of_now: list[Event] = []
        self.may_fail = False

    async def state(self) -> PoolState:
        if self.may_fail:
            self.events_of_now += [
                Event(id=f"{NOW + 1}-0", kind="commit", lease="a", detail=str(DIGITS)),
                Event(id=f"{NOW + 2}-0", kind="end", lease="a", detail="the model does not load"),
            ]
        return PoolState(now_unix_ms=NOW + 3)

    async def events(self, last_id: str, _block_ms: int) -> tuple[str, list[Event]]:
        found, self.events_of_now = self.events_of_now, []
        return (found[-1].id if found else last_id), found


class Known:
    """A registry with one deployment."""

    async def snapshot(self) -> RegistryState:
        return RegistryState(revision=1, models={}, deployments={DIGITS: spec()}, routes={})

    async def demand(self) -> dict[ModelVersion, Demand]:
        return {}


async def test_a_failure_is_known_to_the_look_that_misses_its_worker_and_is_still_news_to_the_loop() -> None:
    pool = Pool()
    observer = Observer(cast("Leases", pool), cast("Registry", Known()), prefix="headrace", limits=Limits())
    assert await observer.follow(0) == 0
    pool.may_fail = True
    seen = await observer.observe({})
    assert seen.snapshot.backoff[str(DIGITS)].failures == 1
    assert await observer.follow(1_000) == 2, "what else came with it has to be planned for"
    assert await observer.follow(0) == 0
