"""GPUs in the pool, played by a fixture: registration and health."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts.pool import Health
from tests.helpers import wait_until
from tests.integration.agent.kit import ROOT, Fleet
from workers.devices.fake_nvml import FakeNvml

FIXTURE = ROOT / "tests" / "unit" / "workers" / "devices" / "h200.yaml"


def play(**extra: Any) -> FakeNvml:
    nvml = FakeNvml(yaml.safe_load(Path(FIXTURE).read_text()) | extra)
    nvml.open()
    return nvml


async def health(fleet: Fleet, device: str) -> Health:
    return (await fleet.leases.state()).devices[device].health


async def test_gpus_stand_in_the_pool_beside_the_cores(fleet: Fleet) -> None:
    nvml = play()
    async with fleet.agent(nvml=nvml):
        state = await fleet.leases.state()
        gpus = [device for device in state.devices_of(fleet.node) if device.kind == "gpu"]
        assert [(gpu.id, gpu.compute_cap, gpu.memory_mib, gpu.lease_slots) for gpu in gpus] == [
            (nvml.uuid(0), 100, 140275, 4),
            (nvml.uuid(1), 100, 140275, 4),
        ]
        assert len(state.devices_of(fleet.node)) == 3
        assert state.nodes[fleet.node].labels == {"driver": "570.124.06", "cuda": "12.8"}
        grant = await fleet.worker(device=nvml.uuid(1), mode="whole")
        assert fleet.seen(grant, "engine")["environment"]["CUDA_VISIBLE_DEVICES"] == nvml.uuid(1)
        nvml.close()


@pytest.mark.parametrize(("xid", "expected"), [(48, "unhealthy"), (79, "lost")])
async def test_a_fatal_event_reaches_the_pool(fleet: Fleet, xid: int, expected: Health) -> None:
    nvml = play(timeline=[{"t": 0.3, "device": 0, "xid": xid}])
    async with fleet.agent(nvml=nvml):

        async def is_known() -> bool:
            return await health(fleet, nvml.uuid(0)) == expected

        await wait_until(is_known, "the pool did not hear of it")
        assert await health(fleet, nvml.uuid(1)) == "ok"
        nvml.close()


async def test_the_workers_of_a_lost_gpu_are_ended(fleet: Fleet) -> None:
    nvml = play(timeline=[{"t": 1.5, "device": 0, "xid": 79}])
    async with fleet.agent(nvml=nvml):
        grant = await fleet.worker(device=nvml.uuid(0), mode="slice")
        await wait_until(lambda: fleet.is_over(grant), "the lease lives on")
        assert not fleet.pid(grant, "engine")
        nvml.close()


async def test_an_application_fault_leaves_its_gpu_in_the_pool(fleet: Fleet) -> None:
    timeline = [{"t": 0.0, "device": 0, "xid": 31}, {"t": 0.1, "device": 1, "xid": 95}]
    nvml = play(timeline=timeline)
    async with fleet.agent(nvml=nvml):

        async def is_known() -> bool:
            return await health(fleet, nvml.uuid(1)) == "unhealthy"

        await wait_until(is_known)  # the later event has arrived
        assert await health(fleet, nvml.uuid(0)) == "ok"
        nvml.close()


async def test_a_device_stays_ill_when_the_node_registers_again(fleet: Fleet) -> None:
    nvml = play(timeline=[{"t": 0.2, "device": 0, "xid": 48}])
    async with fleet.agent(nvml=nvml):

        async def is_ill() -> bool:
            return await health(fleet, nvml.uuid(0)) == "unhealthy"

        await wait_until(is_ill)
        before = (await fleet.leases.state()).nodes[fleet.node].incarnation
        await fleet.leases.expire_nodes(suspect_ms=0, dead_ms=0)

        async def is_back() -> bool:
            return (await fleet.leases.state()).nodes[fleet.node].incarnation > before

        await wait_until(is_back)
        assert await is_ill()
        nvml.close()
