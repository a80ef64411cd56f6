"""What happens to workers when their agent, or the pool, goes away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from contracts.adapters.leases import Leases
from contracts.adapters.redis import RedisDoor
from contracts.errors import ConfigurationError, TransportError
from contracts.service import Deadline
from contracts.settings import LeaseSettings, RedisSettings
from deploy.embedded.processes import Server
from tests.helpers import unique_name, wait_until
from tests.integration.agent.kit import ROOT, Fleet, is_alive
from workers.agent.agent import NodeAgent
from workers.agent.processes import Process
from workers.agent.records import Identity, RunFolder


@contextlib.contextmanager
def agent_process(fleet: Fleet, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """An agent as a user runs it, but for its workers."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HEADRACE_REDIS__URL": fleet.redis.url.get_secret_value(),
        "HEADRACE_REDIS__PREFIX": fleet.redis.prefix,
        "HEADRACE_REDIS__POOL": fleet.redis.pool,
        "HEADRACE_AGENT__LOCK_DIR": str(fleet.folder / "locks"),
        "HEADRACE_AGENT__HEARTBEAT_SECONDS": "0.3",
        **{f"HEADRACE_AGENT__{name.upper()}": value for name, value in settings.items()},
    }
    command = [sys.executable, "-P", "-m", "tests.integration.agent.agent_process"]
    command += ["--node", fleet.node, "--run-dir", str(fleet.folder)]
    with (fleet.folder / "agent.out").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def is_registered(fleet: Fleet) -> bool:
    return fleet.node in (await fleet.leases.state()).nodes


def no_orphans(fleet: Fleet) -> bool:
    """Workers that lost their parent are nobody's children: the leak guard does not see them."""
    return not any(is_alive(record.ingest.pid) for record in RunFolder(fleet.folder).load() if record.ingest)


async def reaped(pid: int | None) -> int:
    """How a worker's process ended that is a child of this test, because an agent inside it let go of it."""
    assert pid is not None
    _, status = await asyncio.to_thread(os.waitpid, pid, 0)
    return os.waitstatus_to_exitcode(status)


async def test_workers_survive_the_death_of_their_agent_and_are_adopted(fleet: Fleet) -> None:
    with agent_process(fleet) as process:
        await wait_until(lambda: is_registered(fleet), "the agent did not come up")
        kept, ended, broken = await fleet.worker(), await fleet.worker(), await fleet.worker()
        process.kill()
        process.wait()
    pids = [fleet.pid(kept, "ingest"), fleet.pid(kept, "engine")]
    assert all(pids)
    gone = [fleet.pid(ended, "ingest"), fleet.pid(ended, "engine")]
    await fleet.leases.release(ended.lease, ended.token, "expired")  # while no agent looked
    fleet.kill(broken, "ingest")

    async with fleet.agent():
        await wait_until(lambda: fleet.is_over(ended), "a worker without a lease was not ended")
        assert not any(pid and is_alive(pid) for pid in gone)
        await wait_until(lambda: fleet.is_over(broken), "a worker that died meanwhile was not settled")
        assert [fleet.pid(kept, "ingest"), fleet.pid(kept, "engine")] == pids
        assert await fleet.used() == (100, 1)

        killed = fleet.kill(kept, "engine")  # the adopted are looked after like our own
        await wait_until(lambda: fleet.pid(kept, "engine"), "no new engine")
        assert fleet.pid(kept, "ingest") == pids[0]
        killed = fleet.kill(kept, "ingest")
        await wait_until(lambda: fleet.is_over(kept), "the lease was not confirmed")
        assert time.monotonic() - killed < 2.0
    assert no_orphans(fleet)


async def test_an_agent_stopped_by_a_signal_drains_and_exits_with_zero(fleet: Fleet) -> None:
    with agent_process(fleet, metrics_port="0") as process:
        await wait_until(lambda: is_registered(fleet), "the agent did not come up")
        grant = await fleet.worker()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 10) == 0
    assert await fleet.is_over(grant)
    assert not fleet.pid(grant, "ingest")


async def test_an_agent_that_leaves_its_workers_hands_them_to_the_next(fleet: Fleet) -> None:
    async with fleet.agent(fleet.settings(leave_workers=True)):
        grant = await fleet.worker()
        pids = [fleet.pid(grant, "ingest"), fleet.pid(grant, "engine")]
    assert [fleet.pid(grant, "ingest"), fleet.pid(grant, "engine")] == pids
    async with fleet.agent():
        await asyncio.sleep(0.5)  # two heartbeats: nothing happens
        assert [fleet.pid(grant, "ingest"), fleet.pid(grant, "engine")] == pids
    assert await fleet.is_over(grant)
    for pid in pids:
        await reaped(pid)


async def test_a_process_that_no_record_tells_of_is_ended(fleet: Fleet) -> None:
    async with fleet.agent(fleet.settings(leave_workers=True)):
        grant = await fleet.worker()
        pids = [fleet.pid(grant, "ingest"), fleet.pid(grant, "engine")]
    (fleet.folder / f"{grant.lease}.json").unlink()
    async with fleet.agent():
        await wait_until(lambda: fleet.is_over(grant), "its lease was not given back")
        assert [await reaped(pid) for pid in pids] == [-signal.SIGKILL] * 2


async def test_a_pid_that_lives_again_is_not_taken_for_the_worker(fleet: Fleet) -> None:
    bystander = Process.spawn(["/bin/sleep", "60"], environment={}, log=fleet.folder / "sleep.log")
    ended = asyncio.Event()
    bystander.watch(ended.set)
    async with fleet.agent(fleet.settings(leave_workers=True)):
        grant = await fleet.worker()
        pids = [fleet.pid(grant, "ingest"), fleet.pid(grant, "engine")]
    for pid in pids:
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await reaped(pid)
    folder = RunFolder(fleet.folder)
    (record,) = folder.load()
    # Not the worker's own start: on a quick machine the bystander may have started within the same tick.
    reborn = Identity(bystander.identity.pid, f"{bystander.identity.started}0")
    folder.save(record.__class__(record.lease, record.boot_id, reborn, reborn))
    async with fleet.agent():
        await wait_until(lambda: fleet.is_over(grant), "its lease was not given back")
    assert bystander.is_alive
    bystander.kill()
    await ended.wait()


async def test_a_second_agent_in_the_same_folder_is_refused(fleet: Fleet) -> None:
    async with fleet.agent():
        with pytest.raises(ConfigurationError, match="another agent works in"):
            async with fleet.agent():
                pass


async def test_without_the_pool_for_one_ttl_all_workers_are_killed_and_the_node_comes_back(
    fleet: Fleet, own_redis: Server
) -> None:
    settings = RedisSettings(url=own_redis.address, prefix=unique_name(), pool=unique_name("pool"))
    lease = LeaseSettings(ttl_seconds=1.5, renew_seconds=0.4, margin_seconds=0.3)
    async with RedisDoor(own_redis.address, prefix=settings.prefix, timeout_seconds=0.5) as door:
        alone = Fleet(Leases(door, settings.pool), settings, fleet.folder)
        async with alone.agent(alone.settings(lease=lease, suspect_seconds=0.6)):
            grant = await alone.worker()
            pids = [alone.pid(grant, "ingest"), alone.pid(grant, "engine")]
            own_redis.children[0].pause()
            paused = time.monotonic()
            await wait_until(lambda: not any(pid and is_alive(pid) for pid in pids), "the workers live on")
            assert 1.2 < time.monotonic() - paused < 4.0
            own_redis.children[0].resume()
            await wait_until(lambda: alone.is_over(grant), "the lease was not settled")
            await alone.worker()


async def test_an_agent_starts_without_the_pool_and_kills_what_it_cannot_justify(fleet: Fleet) -> None:
    async with fleet.agent(fleet.settings(leave_workers=True)):
        grant = await fleet.worker()
        pids = [fleet.pid(grant, "ingest"), fleet.pid(grant, "engine")]
    nowhere = RedisDoor("redis://127.0.0.1:1/0", prefix="x", timeout_seconds=0.2)
    lease = LeaseSettings(ttl_seconds=1.0, renew_seconds=0.3, margin_seconds=0.2)
    agent = NodeAgent(fleet.settings(lease=lease), Leases(nowhere, "default"))
    starting = asyncio.get_running_loop().create_task(agent.start(), name="agent.start")
    assert [await reaped(pid) for pid in pids] == [-signal.SIGKILL] * 2
    await starting
    await agent.stop(Deadline(3.0))
    with pytest.raises(TransportError):
        await nowhere.command("PING")
    await nowhere.close()
    await fleet.leases.release(grant.lease, grant.token)
    await fleet.leases.confirm(grant.lease, grant.token)
