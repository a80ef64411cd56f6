from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from contracts import keys
from contracts.pool import LeaderGrant
from contracts.service import Deadline
from scheduler.leader import Leader
from scheduler.loop import Scheduler
from tests.helpers import FakeClock, wait_until
from tests.integration.scheduler.conftest import Stage
from tests.integration.scheduler.fake_fleet import PLANNING, deploy, environment


@asynccontextmanager
async def process(stage: Stage, log: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A scheduler as a user runs it."""
    variables = {**os.environ, **environment(stage.settings)}
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "scheduler"], env=variables, stderr=output, stdin=subprocess.DEVNULL
        )
    try:
        yield child
    finally:
        child.kill()
        await asyncio.to_thread(child.wait)


def says(log: Path, words: str) -> bool:
    return words in log.read_text(encoding="utf-8")


async def holder(stage: Stage) -> str | None:
    found: str | None = await stage.redis.command(
        "HGET", f"{keys.pool(stage.redis.prefix, stage.pool)}:leader", "holder"
    )
    return found


async def test_a_standby_leads_soon_after_the_leader_was_killed_and_evicts_nobody(
    stage: Stage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spec = await deploy(stage.registry, least=2)
    log = tmp_path / "scheduler.log"
    async with process(stage, log) as leader, stage.node().running():
        await wait_until(lambda: loads_are(stage, [8, 8]))
        before = await stage.state()
        async with stage.scheduler() as standby:
            leader.kill()
            killed = time.monotonic()
            await wait_until(lambda: standby.is_leading)
            assert time.monotonic() - killed < PLANNING.leader_ttl_seconds + 1
            await stage.registry.set_manual(spec.key, 3)
            await wait_until(lambda: loads_are(stage, [5, 5, 6]), "the new leader does not plan")
            after = await stage.state()
            assert {held.id for held in before.leases.values()} < {held.id for held in after.leases.values()}
            assert "did not let go" not in caplog.text


async def loads_are(stage: Stage, loads: list[int]) -> bool:
    return await stage.loads() == loads


async def test_a_leader_that_is_told_to_stop_resigns_and_exits_cleanly(stage: Stage, tmp_path: Path) -> None:
    log = tmp_path / "scheduler.log"
    async with process(stage, log) as child:
        await wait_until(lambda: says(log, "leading the pool"))
        child.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(child.wait, 10) == 0
        assert says(log, "resigned")
        assert await holder(stage) is None


async def test_a_paused_leader_that_wakes_up_writes_nothing(stage: Stage, tmp_path: Path) -> None:
    await deploy(stage.registry)
    log = tmp_path / "scheduler.log"
    async with process(stage, log) as leader:
        await wait_until(lambda: says(log, "leading the pool"))
        leader.send_signal(signal.SIGSTOP)
        async with stage.scheduler(), stage.node().running():
            await wait_until(lambda: loads_are(stage, [16]))
            leader.send_signal(signal.SIGCONT)
            await wait_until(lambda: says(log, "standing by"))
            assert not says(log, "start a worker")
            assert await stage.states() == {"active": 1}


async def test_the_leader_acts_no_more_once_it_is_not_sure_to_lead(stage: Stage) -> None:
    clock = FakeClock()
    leader = Leader(stage.leases, "me", ttl_seconds=6.0, renew_seconds=2.0, clock=clock)
    assert await leader.campaign()
    term = leader.term
    clock.advance(4.9)
    assert leader.term == term
    clock.advance(0.2)
    assert leader.term is None, "a sixth of the ttl is kept in reserve"
    assert await leader.campaign()
    assert leader.term == term, "nobody else led in the meantime"


async def test_a_leader_that_was_replaced_notices_at_its_next_renewal(stage: Stage) -> None:
    leader = Leader(stage.leases, "me", ttl_seconds=0.3, renew_seconds=0.1)
    assert await leader.campaign()
    await wait_until(lambda: leads_now(stage, "you"))
    assert not await leader.campaign()
    assert leader.term is None
    await leader.resign()
    assert await holder(stage) == "you"


async def leads_now(stage: Stage, name: str) -> bool:
    return isinstance(await stage.leases.acquire_leader(name, 60_000), LeaderGrant)


@pytest.mark.parametrize("has_started", [False, True])
async def test_a_scheduler_may_be_stopped_at_any_time_and_twice(stage: Stage, *, has_started: bool) -> None:
    scheduler = Scheduler(stage.settings)
    if has_started:
        await scheduler.start()
    await scheduler.stop(Deadline(1.0))
    await scheduler.stop(Deadline(1.0))
    assert not scheduler.is_leading
