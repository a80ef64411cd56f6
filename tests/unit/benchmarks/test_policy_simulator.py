"""The worker's batching policy against the ones that other servers use, on a virtual clock."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from benchmarks.batching_policies import Device, Ours
from benchmarks.policy_chart import Panel, draw
from benchmarks.policy_simulator import LOADS, Cell, Load, Simulation, compare

DEVICE = Device()
POISSON_80, POISSON_95, BURSTY_70, _, OVERLOAD_150, _ = LOADS


@pytest.mark.parametrize("load", [POISSON_80, BURSTY_70, OVERLOAD_150], ids=lambda load: load.name)
def test_ours_is_ahead_of_every_other_policy(load: Load) -> None:
    """As many answers in time and quicker below capacity, more of them above; the others know the device exactly."""
    outcomes = compare(load, seconds=3.0)
    cell = Cell.of(outcomes)
    assert cell.late <= 0.01
    assert outcomes[0].goodput >= 5 * max(outcomes[1].goodput, 1 / DEVICE.seconds_on_average(1))
    assert outcomes[0].launched_late == 0
    if load.share < 1:
        assert cell.goodput >= 1.0
        assert cell.p50 < 1.0
        assert cell.p99 < 1.0
    else:
        assert cell.goodput > 1.01
        assert outcomes[0].goodput >= 0.95 * DEVICE.peak


@pytest.mark.parametrize(
    ("device", "load", "objective"),
    [
        (DEVICE, POISSON_95, 0.030),  # an objective of hardly two batches
        (Device(0.002, 0.0003), BURSTY_70, 0.030),  # rows cost more than the batch
        (Device(0.020, 0.00005), OVERLOAD_150, 0.050),
        (Device(handover=0.0), POISSON_80, 0.050),  # closing a batch late costs the others nothing
    ],
)
def test_ours_is_not_behind_where_others_are_at_their_best(device: Device, load: Load, objective: float) -> None:
    cell = Cell.of(compare(load, seconds=3.0, objective=objective, device=device))
    assert cell.goodput >= 0.995
    assert cell.late <= 0.01
    if load.share < 1:
        assert cell.p50 <= 1.02
        assert cell.p99 <= 1.02


def test_batches_that_take_twice_as_long_now_and_then_do_not_upset_it() -> None:
    cell = Cell.of(compare(POISSON_95, seconds=3.0, device=Device(tail=0.01)))
    assert cell.goodput >= 0.995
    assert cell.late <= 0.01


def test_a_single_request_at_a_time_is_not_kept_waiting() -> None:
    outcome = Simulation(Ours(DEVICE, 0.050), Load("trickle", 0.002), DEVICE, 0.050).run(30.0)
    assert outcome.batches
    assert max(outcome.batches) <= 2
    assert outcome.latency_ms(50) < 1.1 * 1000 * (DEVICE.seconds_on_average(1) + DEVICE.handover)


def test_the_picture_is_wellformed_and_names_every_policy_and_load() -> None:
    bars = [(load, policy, 5.0) for load in ("a <b> & c", "d") for policy in ("ours", "theirs")]
    picture = draw([Panel("goodput", bars, 10.0, "{:.1f}"), Panel("p50", bars, 10.0, "{:.0f}")])
    root = ET.fromstring(picture)  # noqa: S314 - our own text
    texts = {element.text for element in root.iter() if element.tag.endswith("text")}
    assert {"goodput", "p50", "ours", "theirs", "a <b> & c", "d", "5.0", "5"} <= texts
