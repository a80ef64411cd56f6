"""Several models in one deployment: they share its workers, and may move from one deployment to another."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.specs import DeploymentSpec
from scheduler.actions import Drain, Want
from scheduler.snapshot import Wanted
from tests.unit.scheduler.fleet_model import FleetModel, cpu, lease, topic_of

MODELS = ("a@1", "b@1", "c@1")


def shared(*models: str, workers: int = 1) -> DeploymentSpec:
    return DeploymentSpec.model_validate(
        {"models": list(models), "workers": {"min": workers, "max": 4}, "device": {"kind": "cpu"}}
    )


def fleet_of(*deployments: DeploymentSpec) -> FleetModel:
    fleet = FleetModel([cpu(cores=16)], {str(one.key): one for one in deployments})
    fleet.partitions = {topic_of(model): 16 for model in MODELS}
    return fleet


def deploy(fleet: FleetModel, *deployments: DeploymentSpec) -> None:
    fleet.demand = {str(one.key): Wanted(one) for one in deployments}


def owners(fleet: FleetModel, model: str) -> set[str]:
    return {owner for (topic, _), owner in fleet.own.items() if topic == topic_of(model)}


def test_workers_hold_all_models_and_share_the_partitions_of_each() -> None:
    fleet = fleet_of(shared("a@1", "b@1", workers=2))
    fleet.settle()
    assert [held.models for held in fleet.leases.values()] == [("a@1", "b@1")] * 2
    for model in ("a@1", "b@1"):
        held = [owner for (topic, _), owner in fleet.own.items() if topic == topic_of(model)]
        assert sorted(held.count(name) for name in fleet.leases) == [8, 8]


def test_a_model_that_joins_another_deployment_is_served_by_its_old_worker_until_the_new_one_is_warm() -> None:
    fleet = fleet_of(shared("a@1"), shared("b@1"))
    fleet.settle()
    (old,) = owners(fleet, "b@1")
    deploy(fleet, shared("a@1", "b@1"))
    fleet.tick()
    assert fleet.leases[old].state == "active"
    assert owners(fleet, "b@1") == {old}
    fleet.settle()
    (name,) = fleet.leases
    assert fleet.leases[name].models == ("a@1", "b@1")
    assert owners(fleet, "a@1") == owners(fleet, "b@1") == {name}


def test_a_worker_that_lacks_a_new_model_keeps_the_others_but_is_not_given_its_partitions() -> None:
    fleet = fleet_of(shared("a@1"))
    fleet.settle()
    (old,) = fleet.leases
    deploy(fleet, shared("a@1", "b@1"))
    actions = fleet.tick()
    assert not [action for action in actions if isinstance(action, Want | Drain)]
    assert owners(fleet, "a@1") == {old}


def test_what_is_left_of_a_deployment_whose_model_moved_has_no_topic_of_its_own() -> None:
    fleet = fleet_of(shared("a@1", "b@1"))
    fleet.leases["b-1"] = lease("b-1", deployment="b@1")
    assert [action.deployment for action in fleet.plan() if isinstance(action, Drain)] == ["b@1"]


@st.composite
def groupings(draw: st.DrawFn) -> Sequence[DeploymentSpec]:
    """Some of the models, in one to three deployments."""
    homes = draw(st.lists(st.integers(0, 3), min_size=3, max_size=3))
    found = []
    for home in range(3):
        models = [model for model, where in zip(MODELS, homes, strict=True) if where == home]
        if models:
            found.append(shared(*models, workers=draw(st.integers(1, 3))))
    return found


@settings(deadline=None, max_examples=40)
@given(steps=st.lists(groupings(), min_size=1, max_size=4), data=st.data())
def test_however_models_are_regrouped_nobody_stops_before_his_successor_can_serve(
    steps: list[Sequence[DeploymentSpec]], data: st.DataObject
) -> None:
    fleet = fleet_of()
    for grouping in steps:
        deploy(fleet, *grouping)
        for _ in range(data.draw(st.integers(0, 6))):
            check(fleet)
            if fleet.leases:
                fleet.work(data.draw(st.sampled_from(sorted(fleet.leases))))
        check(fleet)
    fleet.settle()
    served = {str(key): one for one in steps[-1] for key in one.keys}
    for model in MODELS:
        have = owners(fleet, model)
        assert len(have) == (served[model].workers.min if model in served else 0)
        assert all(fleet.leases[name].models == fleet.demand[str(served[model].key)].models for name in have)
    assert len(fleet.leases) == sum(one.workers.min for one in steps[-1])


def check(fleet: FleetModel) -> None:
    """A tick; nobody is wanted for what he does not hold, and nobody is drained who has partitions."""
    before = dict(fleet.own)
    for action in fleet.tick():
        if isinstance(action, Want):
            wanted = [fleet.leases[name] for name in action.wants.values() if name is not None]
            assert all(action.topic in map(topic_of, one.models) for one in wanted)
        elif isinstance(action, Drain):
            assert action.lease not in before.values()
