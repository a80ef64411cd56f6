"""Lanes: topics beside a request topic, made when a deployment asks for them and drained as long as they are there."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from contracts import topics
from contracts.specs import DeploymentSpec
from scheduler.snapshot import Wanted
from scheduler.topics import topics_of
from scheduler.view import describe
from tests.unit.scheduler.fleet_model import FleetModel, cpu, spec, topic_of

DIGITS = "digits@2"
TOPIC = topic_of(DIGITS)
LANES = [topics.lane(TOPIC, priority) for priority in topics.LANES]


def with_lanes(wanted: DeploymentSpec, *, lanes: bool = True) -> DeploymentSpec:
    return DeploymentSpec.model_validate({**wanted.model_dump(), "topic": {"lanes": lanes}})


def fleet_of(workers: tuple[int, int] = (1, 8), *, partitions: int = 32) -> FleetModel:
    fleet = FleetModel([cpu(cores=8)], {DIGITS: with_lanes(spec(DIGITS, workers))})
    fleet.partitions |= dict.fromkeys(LANES, partitions)
    return fleet


def owners(fleet: FleetModel, topic: str) -> dict[int, str]:
    return {partition: owner for (name, partition), owner in fleet.own.items() if name == topic}


def test_lanes_have_as_many_partitions_as_their_request_topic_and_are_made_only_when_asked_for() -> None:
    wanted = with_lanes(spec(DIGITS, (1, 4)))
    found = topics_of({DIGITS: Wanted(wanted)}, "headrace")
    assert [found[lane] for lane in LANES] == [found[TOPIC]] * 2
    found = topics_of({DIGITS: Wanted(with_lanes(wanted, lanes=False))}, "headrace")
    assert [found[lane].partitions for lane in LANES] == [0, 0]
    pipeline = topics_of({DIGITS: Wanted(spec(DIGITS, (1, 4)), joins=4)}, "headrace")
    assert not {topic for topic in pipeline if topics.lane_of(topic)}


def test_lanes_that_do_not_exist_yet_are_wanted_of_nobody() -> None:
    fleet = fleet_of(partitions=0)
    fleet.settle()
    assert {topic for topic, _ in fleet.own} == {TOPIC}
    fleet.partitions |= dict.fromkeys(LANES, 32)
    fleet.settle()
    assert {topic for topic, _ in fleet.own} == {TOPIC, *LANES}


def test_lanes_that_nobody_asks_for_any_more_are_drained_as_long_as_they_are_there() -> None:
    fleet = fleet_of()
    fleet.settle()
    fleet.demand[DIGITS] = Wanted(spec(DIGITS, (1, 8)))
    for workers in (2, 0, 3):
        fleet.scale(DIGITS, workers)
        fleet.settle()
        assert owners(fleet, TOPIC) == owners(fleet, LANES[0]) == owners(fleet, LANES[1])
        assert len(owners(fleet, LANES[0])) == (32 if workers else 0)


@settings(deadline=None, max_examples=40)
@given(
    steps=st.lists(st.tuples(st.integers(0, 5), st.integers(0, 8), st.booleans()), min_size=1, max_size=6),
    fewer=st.integers(1, 32),
    data=st.data(),
)
def test_whoever_drains_a_partition_drains_those_of_its_lanes(
    steps: list[tuple[int, int, bool]], fewer: int, data: st.DataObject
) -> None:
    fleet = fleet_of(partitions=fewer)
    for workers, turns, is_full in steps:
        fleet.scale(DIGITS, workers)
        fleet.partitions |= dict.fromkeys(LANES, 32) if is_full else {}
        for _ in range(turns):
            fleet.tick()
            if fleet.leases:
                fleet.work(data.draw(st.sampled_from(sorted(fleet.leases))))
    fleet.settle()
    base = owners(fleet, TOPIC)
    for lane in LANES:
        count = fleet.partitions[lane] if base else 0
        assert owners(fleet, lane) == {partition: base[partition] for partition in range(count)}


def test_a_view_of_the_fleet_shows_lanes_beside_their_topic() -> None:
    fleet = fleet_of()
    fleet.settle()
    (shown,) = describe(fleet.snapshot(), fleet.demand)["deployments"]
    assert shown["others"] == []
    assert shown["topic"] == TOPIC
    lanes: dict[str, Any] = shown["lanes"]
    assert {name: lane["topic"] for name, lane in lanes.items()} == dict(zip(topics.LANES, LANES, strict=True))
    assert {lane["partitions"] for lane in lanes.values()} == {32}
    assert shown["workers"][0]["owned"] == 96
