"""What a machine offers to the pool, read from a fixture that plays the driver."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts.errors import ConfigurationError
from tests.helpers import FakeClock
from workers.devices import cpu
from workers.devices.discovery import read_gpus
from workers.devices.fake_nvml import FakeNvml
from workers.devices.inventory import Gpu, Machine, device_reports, gpu_report, node_report, usable_memory_mib
from workers.devices.nvml import SLOWDOWN_BITS, GpuEvent, GpuLost, Memory, NvmlAbsent, NvmlError, PynvmlBackend

FIXTURE = Path(__file__).parent / "h200.yaml"
MIB = 1024 * 1024


@pytest.fixture
def fixture() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(FIXTURE.read_text())
    return loaded


def opened(fixture: dict[str, Any], clock: FakeClock | None = None) -> FakeNvml:
    nvml = FakeNvml(fixture, clock or FakeClock())
    nvml.open()
    return nvml


def test_an_h200_is_registered_with_what_leases_may_use_of_it() -> None:
    nvml = FakeNvml.load(FIXTURE)
    nvml.open()
    report = gpu_report(read_gpus(nvml)[0])
    assert report.id == "GPU-4d5f1c1e-2f2b-4d0e-9a53-0a4b7a3f0001"
    assert (report.kind, report.name, report.health) == ("gpu", "NVIDIA H200", "ok")
    assert (report.compute_cap, report.lease_slots) == (100, 4)
    assert report.memory_mib == (150754820096 - 650000000 - 150754820096 * 2 // 100) // MIB == 140275
    assert report.labels == {"cc": "9.0", "pci": "0000:18:00.0", "numa": "0"}
    assert (nvml.driver_version(), nvml.cuda_version(), nvml.device_count()) == ("570.124.06", "12.8", 2)
    nvml.close()


def test_a_machine_offers_its_gpus_and_its_cores() -> None:
    gpus = (Gpu(0, "GPU-1", memory=Memory(100 * MIB, 0, 0)),)
    machine = Machine("n1", "n1.local", "boot", cores=8, memory_mib=32_000, gpus=gpus, driver="570", cuda="12.8")
    reports = device_reports(machine)
    assert [(report.id, report.compute_cap, report.memory_mib) for report in reports] == [
        ("GPU-1", 100, 98),
        ("CPU-n1-0", 800, 32_000),
    ]
    assert reports[1].lease_slots == 128
    assert node_report(machine).labels == {"driver": "570", "cuda": "12.8"}


def test_a_lost_gpu_is_registered_by_its_id_so_that_its_leases_end(fixture: dict[str, Any]) -> None:
    fixture["devices"][1]["failure"] = {"mode": "fallen_off_bus"}
    healthy, lost = read_gpus(opened(fixture))
    assert (gpu_report(healthy).health, gpu_report(lost).health) == ("ok", "lost")
    assert gpu_report(lost).id == fixture["devices"][1]["uuid"]


def test_a_gpu_in_mig_mode_is_shown_but_not_offered(fixture: dict[str, Any]) -> None:
    fixture["devices"][0]["mig"] = {"mode_current": "enabled"}
    report = gpu_report(read_gpus(opened(fixture))[0])
    assert (report.health, report.labels["mig"]) == ("unhealthy", "on")


def test_a_gpu_that_admits_one_process_has_one_lease_slot(fixture: dict[str, Any]) -> None:
    fixture["devices"][0]["compute_mode"] = "exclusive_process"
    assert gpu_report(read_gpus(opened(fixture))[0]).lease_slots == 1


def test_memory_that_the_driver_keeps_can_never_be_more_than_all() -> None:
    assert usable_memory_mib(Memory(100 * MIB, 200 * MIB, 0)) == 0


def test_the_timeline_is_played_by_the_clock(fixture: dict[str, Any]) -> None:
    clock = FakeClock()
    fixture["timeline"] = [{"t": 5.0, "device": 0, "xid": 79}, {"t": 2.0, "device": 1, "xid": 31}, {"t": 9.0}]
    nvml = opened(fixture, clock)
    assert nvml.wait_event(0.0) is None
    clock.advance(2.0)
    assert nvml.wait_event(0.0) == GpuEvent(fixture["devices"][1]["uuid"], xid=31)
    assert nvml.wait_event(0.0) is None
    clock.advance(3.0)
    assert nvml.wait_event(0.0) == GpuEvent(fixture["devices"][0]["uuid"], xid=79)
    with pytest.raises(GpuLost):
        nvml.memory(0)
    assert nvml.memory(1).total == 150754820096
    clock.advance(4.0)
    assert nvml.wait_event(0.0) == GpuEvent(None)


def test_readings_come_from_the_fixture(fixture: dict[str, Any]) -> None:
    fixture["devices"][0] |= {
        "clocks_throttle_reasons": {"gpu_idle": True, "hw_thermal_slowdown": True},
        "failure": {"mode": "ecc_uncorrectable"},
        "remapped_rows": {"failure_occurred": True},
        "processes": [{"pid": 12, "used_memory_bytes": 5}],
    }
    nvml = opened(fixture)
    assert nvml.clock_reasons(0) & SLOWDOWN_BITS == 0x40
    assert (nvml.double_bit_errors(0), nvml.double_bit_errors(1)) == (1, 0)
    assert (nvml.remap_failed(0), nvml.remap_failed(1)) == (True, False)
    assert [(process.pid, process.memory_bytes) for process in nvml.processes(0)] == [(12, 5)]
    assert (nvml.utilization(0), nvml.temperature(0), nvml.power_watts(0)) == (0, 34, 95.0)
    with pytest.raises(NvmlError):
        nvml.name(2)


@pytest.mark.parametrize("content", ["", "[1]", "devices: 3", "a: [", "devices"])
def test_a_fixture_that_cannot_be_used_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match=r"broken\.yaml"):
        FakeNvml.load(path)


def test_a_machine_without_a_driver_has_no_gpus() -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has a driver")
    backend = PynvmlBackend()
    with pytest.raises(NvmlAbsent):
        backend.open()
    backend.close()


def test_the_machine_tells_its_cores_and_memory() -> None:
    assert cpu.usable_cores() >= 1
    assert cpu.used_memory_mib() >= 0
    assert cpu.memory_mib() > 100
    assert cpu.boot_id() == cpu.boot_id()
