"""The worker's batching policy against the ones that other servers use, on a virtual clock."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from benchmarks.policy_chart import draw
from benchmarks.policy_simulator import LOADS, Device, Load, Ours, Simulation, compare

DEVICE = Device()


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.name)
def test_ours_answers_at_least_as_much_in_time_as_any_other(load: Load) -> None:
    ours, *others = compare(load, seconds=4.0)
    for other in others:
        assert ours.goodput >= other.goodput, other.policy
    alone = 1 / DEVICE.seconds_on_average(1)
    assert ours.goodput >= 5 * max(others[0].goodput, alone)
    assert ours.launched_late == 0


def test_under_overload_goodput_stays_at_the_engines_peak() -> None:
    ours = compare(Load("overload", 1.5), seconds=4.0)[0]
    assert ours.goodput >= 0.9 * DEVICE.peak


def test_a_single_request_at_a_time_is_not_kept_waiting() -> None:
    outcome = Simulation(Ours(DEVICE, 0.050), Load("trickle", 0.002), DEVICE, 0.050).run(30.0)
    assert outcome.batches
    assert max(outcome.batches) <= 2
    assert sorted(outcome.latencies)[len(outcome.latencies) // 2] < 1.1 * DEVICE.seconds_on_average(1)


def test_the_picture_is_wellformed_and_names_every_policy() -> None:
    outcomes = compare(Load("a <b> & c", 0.5), seconds=0.5)
    picture = draw(outcomes, DEVICE.peak)
    root = ET.fromstring(picture)  # noqa: S314 - our own text
    assert root.tag.endswith("svg")
    assert all(outcome.policy in picture for outcome in outcomes)
