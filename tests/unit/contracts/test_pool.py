import msgspec
import pytest

from contracts.pool import (
    Device,
    Grant,
    Lease,
    Mode,
    PoolState,
    Refusal,
    Share,
    TopicAssignments,
    admission,
    cpu_device_id,
    cpu_report,
    parse_partitions,
    partition_name,
)


def gpu(**changes: object) -> Device:
    device = Device(
        id="GPU-1", node="n1", kind="gpu", name="H200", memory_mib=1000, compute_cap=100, lease_slots=4, mode="free"
    )
    return msgspec.structs.replace(device, **changes)


def lease(name: str, token: int, **changes: object) -> Lease:
    made = Lease(
        id=name, token=token, deployment="digits@2", models=("digits@2",), tenant="", node="n1", mode="slice",
        shares=(), state="active", expires_unix_ms=1, created_unix_ms=0,
    )  # fmt: skip
    return msgspec.structs.replace(made, **changes)


def test_two_cores_are_200_percent() -> None:
    report = cpu_report("n1", cores=2, memory_mib=4000)
    assert (report.id, report.compute_cap, report.lease_slots) == ("CPU-n1-0", 200, 32)
    assert cpu_device_id("n1", numa=1) == "CPU-n1-1"


def test_a_free_device_gives_a_slice() -> None:
    assert admission(gpu(), Share("GPU-1", 1000, 100), "slice") is None


@pytest.mark.parametrize(
    ("device", "share", "mode", "code"),
    [
        (gpu(health="lost"), Share("GPU-1", 1, 1), "slice", "UNAVAIL"),
        (gpu(), Share("GPU-1", 1, 1), "cpu", "PLACE"),
        (gpu(kind="cpu"), Share("GPU-1", 1, 1), "slice", "PLACE"),
        (gpu(), Share("GPU-1", 1, 1), "none", "PLACE"),
        (gpu(mode="mps", lease_count=1), Share("GPU-1", 1, 1), "slice", "MODE"),
        (gpu(mode="whole", lease_count=1), Share("GPU-1", 1, 1), "whole", "MODE"),
        (gpu(mode="mig", lease_count=1, mask=0b0110), Share("GPU-1", 1, 1, 0b0100), "mig", "PLACE"),
        (gpu(mode="slice", lease_count=4), Share("GPU-1", 1, 1), "slice", "FULL"),
        (gpu(mode="slice", lease_count=1, memory_used_mib=600), Share("GPU-1", 401, 1), "slice", "FULL"),
        (gpu(mode="slice", lease_count=1, compute_used=80), Share("GPU-1", 1, 21), "slice", "FULL"),
    ],
)
def test_a_device_refuses_with_a_reason(device: Device, share: Share, mode: Mode, code: str) -> None:
    refusal = admission(device, share, mode)
    assert refusal is not None
    assert refusal.code == code
    assert "GPU-1" in str(refusal)


def test_a_degraded_device_still_serves() -> None:
    assert admission(gpu(health="degraded"), Share("GPU-1", 1, 1), "slice") is None


def test_a_refusal_without_detail_prints_its_code() -> None:
    assert str(Refusal("TERM")) == "TERM"
    assert Grant("l", 1, 2) != Grant("l", 2, 2)


def test_partitions_survive_the_round_trip_through_their_names() -> None:
    keys = [("headrace.requests.digits.2", 10), ("headrace.requests.digits.2", 9), ("a", 0)]
    assert list(parse_partitions(map(partition_name, keys))) == sorted(keys)


def test_a_topic_tells_who_should_drain_and_who_drains() -> None:
    topic = TopicAssignments(
        topic="t",
        want={0: "a", 1: "b", 2: "b"},
        own={0: ("a", 1), 1: ("a", 1), 3: ("a", 1)},
        unsettled_since={1: 1000, 2: 1000, 3: 1400},
    )
    assert [topic.is_settled(partition) for partition in range(4)] == [True, False, False, False]
    assert topic.wanted_by("b") == (1, 2)
    assert topic.owned_by("a") == (0, 1, 3)
    assert topic.overdue(1500, 400) == (1,)
    assert topic.overdue(1500, 50) == (1, 3)
    assert topic.overdue(1400, 400) == ()


def test_the_state_lists_live_leases_by_age_and_devices_by_node() -> None:
    state = PoolState(
        devices={"GPU-1": gpu(), "GPU-0": gpu(id="GPU-0"), "x": gpu(id="x", node="n2")},
        leases={
            "b": lease("b", 5),
            "a": lease("a", 7),
            "c": lease("c", 6, state="quarantine"),
            "d": lease("d", 8, deployment="other@1"),
        },
    )
    assert [found.id for found in state.leases_of("digits@2")] == ["b", "a"]
    assert [device.id for device in state.devices_of("n1")] == ["GPU-0", "GPU-1"]


def test_a_share_that_would_add_capacity_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="cannot be negative"):
        Share("GPU-1", -1, 10)
