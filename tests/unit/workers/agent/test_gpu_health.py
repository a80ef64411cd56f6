"""What each event makes of a device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.pool import Health
from workers.agent.health import APPLICATION_XIDS, DeviceHealth, Reading, worse
from workers.devices.nvml import GpuEvent


@pytest.mark.parametrize("xid", sorted(APPLICATION_XIDS))
def test_an_application_fault_is_the_engines_until_the_third_in_five_minutes(xid: int) -> None:
    device = DeviceHealth()
    event = GpuEvent("GPU-1", xid=xid)
    assert [device.on_event(event, now) for now in (0.0, 100.0, 299.0)] == ["ok", "ok", "unhealthy"]


def test_application_faults_that_are_far_apart_are_forgiven() -> None:
    device = DeviceHealth()
    for number in range(20):
        assert device.on_event(GpuEvent("GPU-1", xid=31), number * 151.0) == "ok"


@pytest.mark.parametrize(
    ("event", "health"),
    [
        (GpuEvent("GPU-1", xid=48), "unhealthy"),
        (GpuEvent("GPU-1", xid=79), "lost"),
        (GpuEvent("GPU-1", is_double_bit=True), "unhealthy"),
        (GpuEvent(None), "unhealthy"),
        (GpuEvent("GPU-1", recovery_action=True), "ok"),
    ],
)
def test_each_kind_of_event_has_its_verdict(event: GpuEvent, health: Health) -> None:
    assert DeviceHealth().on_event(event, 0.0) == health


@pytest.mark.parametrize(
    ("readings", "health"),
    [
        ([Reading()], "ok"),
        ([Reading(clock_reasons=0x01)], "ok"),
        ([Reading(clock_reasons=0x40)], "degraded"),
        ([Reading(clock_reasons=0x08), Reading()], "ok"),
        ([Reading(double_bit_errors=3), Reading(double_bit_errors=3)], "ok"),
        ([Reading(double_bit_errors=3), Reading(double_bit_errors=4)], "unhealthy"),
        ([Reading(double_bit_errors=3), Reading(double_bit_errors=4), Reading(double_bit_errors=4)], "unhealthy"),
        ([Reading(remap_failed=True), Reading()], "unhealthy"),
        ([Reading(is_lost=True), Reading()], "lost"),
    ],
)
def test_readings_have_their_verdict(readings: list[Reading], health: Health) -> None:
    device = DeviceHealth()
    verdicts = [device.on_reading(reading) for reading in readings]
    assert verdicts[-1] == health


xids = st.builds(lambda xid: GpuEvent("GPU-1", xid=xid), st.integers(1, 150))


@given(st.lists(xids | st.builds(Reading, is_lost=st.booleans(), remap_failed=st.booleans()), max_size=20))
def test_a_device_never_gets_better_by_itself(inputs: list[GpuEvent | Reading]) -> None:
    device, before = DeviceHealth(), DeviceHealth().health
    for number, what in enumerate(inputs):
        health = device.on_event(what, number) if isinstance(what, GpuEvent) else device.on_reading(what)
        assert worse(before, health) == health
        before = health
