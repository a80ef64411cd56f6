"""An agent starts, watches and ends real processes as a real pool says."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from functools import partial

import pytest

from contracts.pool import Grant, NodeReport, cpu_device_id, cpu_report
from tests.helpers import wait_until
from tests.integration.agent.kit import Fleet, is_alive
from workers.agent.processes import Process
from workers.slots import slots_path


async def test_a_node_is_registered_with_its_cores_and_lives(fleet: Fleet) -> None:
    async with fleet.agent():
        state = await fleet.leases.state()
        node, device = state.nodes[fleet.node], state.devices[cpu_device_id(fleet.node)]
        assert (node.state, node.host, node.cores, node.memory_mib) == ("ready", socket.gethostname(), 4, 4000)
        assert (device.compute_cap, device.memory_mib, device.lease_slots) == (400, 4000, 64)
        before = node.heartbeat_unix_ms

        async def beats() -> bool:
            return (await fleet.leases.state()).nodes[fleet.node].heartbeat_unix_ms > before

        await wait_until(beats, "no second heartbeat")
        assert (await fleet.leases.state()).nodes[fleet.node].stats.keys() == {"workers", "load", "memory_used_mib"}


async def test_a_reserved_lease_gets_both_processes_at_once(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_KAFKA__PASSWORD", "canary")
    async with fleet.agent(fleet.settings(heartbeat_seconds=1.0)):
        started = time.monotonic()
        grant = await fleet.worker()
        assert time.monotonic() - started < 1.5
        ingest, engine = fleet.seen(grant, "ingest"), fleet.seen(grant, "engine")
        common = ["--lease", grant.lease, "--token", str(grant.token), "--run-dir", str(fleet.folder)]
        assert (ingest["arguments"], engine["arguments"]) == ([*common, "--node", fleet.node], common)
        assert ingest["environment"]["HEADRACE_KAFKA__PASSWORD"] == "canary"
        assert "canary" not in engine["environment"].values()
        assert os.getsid(ingest["pid"]) == ingest["pid"]  # neither our terminal nor our death reaches it


async def test_a_lease_without_a_device_has_no_engine(fleet: Fleet) -> None:
    async with fleet.agent():
        grant = await fleet.commit(mode="none")
        await wait_until(lambda: fleet.pid(grant, "ingest"))
        assert not (fleet.folder / f"{grant.lease}.engine.log").exists()


async def test_the_lease_of_a_pipeline_gets_a_joiner_and_nothing_else(fleet: Fleet) -> None:
    async with fleet.agent():
        grant = await fleet.commit(models=())
        await wait_until(lambda: fleet.pid(grant, "joiner"))
        seen = fleet.seen(grant, "joiner")
        common = ["--lease", grant.lease, "--token", str(grant.token), "--run-dir", str(fleet.folder)]
        assert seen["arguments"] == [*common, "--node", fleet.node]
        assert not (fleet.folder / f"{grant.lease}.engine.log").exists()
        fleet.kill(grant, "joiner")
        await wait_until(partial(fleet.is_over, grant))
        assert await fleet.used() == (0, 0)


@pytest.mark.parametrize("stem", ["lease", "stubborn"])
async def test_a_killed_ingest_frees_its_device_in_less_than_two_seconds(fleet: Fleet, stem: str) -> None:
    async with fleet.agent(fleet.settings(heartbeat_seconds=1.0)):
        grant, other = await fleet.worker(stem), await fleet.worker()
        engine = fleet.pid(grant, "engine")
        assert engine is not None
        assert await fleet.used() == (200, 2)
        killed = fleet.kill(grant, "ingest")
        await wait_until(lambda: fleet.is_over(grant), "the lease was not confirmed")
        assert time.monotonic() - killed < 2.0
        assert not is_alive(engine)
        assert await fleet.used() == (100, 1)
        assert fleet.pid(other, "ingest")
        left = sorted(path.suffixes[-1] for path in fleet.folder.glob(f"{grant.lease}*"))
        assert left == [".log", ".log", ".seen", ".seen"]
        assert not slots_path(grant.lease).exists()


def has_new_engine(fleet: Fleet, grant: Grant, before: int | None) -> bool:
    return fleet.pid(grant, "engine") not in (None, before)


async def test_a_killed_engine_is_started_again_under_the_same_lease(fleet: Fleet) -> None:
    async with fleet.agent():
        grant = await fleet.worker()
        ingest = fleet.pid(grant, "ingest")
        times = []
        for _ in range(2):
            before = fleet.pid(grant, "engine")
            killed = fleet.kill(grant, "engine")
            await wait_until(partial(has_new_engine, fleet, grant, before), "no new engine")
            times.append(time.monotonic() - killed)
        assert fleet.pid(grant, "ingest") == ingest
        assert times[1] > 0.5  # the second death within a minute is answered with patience
        held = await fleet.lease(grant)
        assert held is not None
        assert (held.state, held.token) == ("active", grant.token)


async def test_a_worker_that_cannot_start_gives_its_lease_back_with_the_reason(fleet: Fleet) -> None:
    async with fleet.agent():
        last, _ = await fleet.leases.events("$", 0)
        grant = await fleet.commit("hopeless")
        await wait_until(lambda: fleet.is_over(grant), "the lease was not given back")
        _, events = await fleet.leases.events(last, 0)
        reasons = [event.detail for event in events if event.kind == "end" and event.lease == grant.lease]
        assert reasons == ["ingest exited with status 3"]
        assert await fleet.used() == (0, 0)
        assert (fleet.folder / f"{grant.lease}.ingest.log").exists()


async def test_a_run_folder_whose_path_is_too_long_is_told_as_the_reason(fleet: Fleet) -> None:
    deep = fleet.folder / ("d" * 90)
    async with fleet.agent(fleet.settings(run_dir=deep)):
        last, _ = await fleet.leases.events("$", 0)
        grant = await fleet.commit()
        await wait_until(lambda: fleet.is_over(grant), "the lease was not given back")
        _, events = await fleet.leases.events(last, 0)
        assert any("choose a shorter run_dir" in event.detail for event in events if event.kind == "end")


@pytest.mark.parametrize("stem", ["lease", "stubborn"])
async def test_a_worker_whose_lease_is_over_is_killed_after_the_grace(fleet: Fleet, stem: str) -> None:
    async with fleet.agent():
        grant = await fleet.worker(stem)
        ended = time.monotonic()
        await fleet.leases.release(grant.lease, grant.token, "expired")
        pids = [fleet.pid(grant, "ingest"), fleet.pid(grant, "engine")]
        await wait_until(lambda: fleet.is_over(grant), "the lease was not confirmed")
        assert 0.3 <= time.monotonic() - ended < 2.0
        assert not any(pid and is_alive(pid) for pid in pids)


async def test_what_an_engine_started_is_killed_with_it(fleet: Fleet) -> None:
    async with fleet.agent():
        grant = await fleet.worker("parent")
        child = fleet.folder / f"{grant.lease}.child"
        await wait_until(child.exists)
        pid = int(child.read_text())
        assert is_alive(pid)
        fleet.kill(grant, "engine")
        await wait_until(lambda: not is_alive(pid), "the engine's child lives on")


async def test_a_stop_drains_the_workers_and_gives_everything_back(fleet: Fleet) -> None:
    async with fleet.agent():
        grants = [await fleet.worker() for _ in range(3)]
        pids = [fleet.pid(grant, "ingest") for grant in grants] + [fleet.pid(grant, "engine") for grant in grants]
    assert not any(pid and is_alive(pid) for pid in pids)
    state = await fleet.leases.state()
    assert state.leases == {}
    assert state.devices[cpu_device_id(fleet.node)].health == "unhealthy"  # nothing is granted to a node that goes
    async with fleet.agent():
        assert (await fleet.leases.state()).devices[cpu_device_id(fleet.node)].health == "ok"


async def test_a_stop_kills_what_does_not_end_in_time(fleet: Fleet) -> None:
    async with fleet.agent(fleet.settings(drain_seconds=0.3)):
        grant = await fleet.worker("stubborn")
        pids = [fleet.pid(grant, "ingest"), fleet.pid(grant, "engine")]
    assert not any(pid and is_alive(pid) for pid in pids)
    assert await fleet.is_over(grant)


async def test_another_agent_that_registers_the_node_is_answered_by_registering_again(fleet: Fleet) -> None:
    async with fleet.agent():
        grant = await fleet.worker()
        state = await fleet.leases.state()
        report = NodeReport(id=fleet.node, host="other", cores=4, memory_mib=4000)
        await fleet.leases.register_node(report, [cpu_report(fleet.node, 4, 4000)])

        async def is_ours_again() -> bool:
            node = (await fleet.leases.state()).nodes[fleet.node]
            return node.host == socket.gethostname() and node.incarnation > state.nodes[fleet.node].incarnation

        await wait_until(is_ours_again)
        assert fleet.pid(grant, "ingest")
        assert not await fleet.is_over(grant)


async def test_a_node_that_was_given_up_ends_its_workers_and_comes_back(fleet: Fleet) -> None:
    async with fleet.agent():
        grant = await fleet.worker()
        await fleet.leases.expire_nodes(suspect_ms=0, dead_ms=0)
        await wait_until(lambda: fleet.is_over(grant), "the lease was not confirmed")
        assert not fleet.pid(grant, "ingest")

        async def is_ready() -> bool:
            return (await fleet.leases.state()).nodes[fleet.node].state == "ready"

        await wait_until(is_ready)


async def test_recovery_is_quick_every_time(fleet: Fleet) -> None:
    times = []
    async with fleet.agent(fleet.settings(heartbeat_seconds=1.0)):
        for _ in range(5):
            grant = await fleet.worker()
            killed = fleet.kill(grant, "ingest")
            await wait_until(partial(fleet.is_over, grant), "the lease was not confirmed")
            times.append(time.monotonic() - killed)
    times.sort()
    print(f"kill -9 of an ingest to confirmed lease: median {times[2] * 1e3:.0f} ms, worst {times[-1] * 1e3:.0f} ms")
    assert times[-1] < 1.0


async def test_signal_to_an_ended_process_reaches_nobody(fleet: Fleet) -> None:
    process = Process.spawn(["/bin/sleep", "60"], environment={}, log=fleet.folder / "sleep.log")
    ended = asyncio.Event()
    process.watch(ended.set)
    process.send(signal.SIGTERM)
    await ended.wait()
    process.send(signal.SIGKILL)
    process.kill()
    assert (process.status, process.is_alive) == (-15, False)
    assert Process.adopt(process.identity) is None
