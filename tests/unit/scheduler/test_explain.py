from __future__ import annotations

import json

import pytest

from contracts.errors import ConfigurationError
from contracts.settings import load_settings
from contracts.specs import DeploymentSpec
from scheduler.actions import Commit, Drain, Evict, Hold, Wait, Want, ranges
from scheduler.explain import obstacles, why_unowned, why_waiting
from scheduler.planner import muster_all
from scheduler.settings import SchedulerSettings
from scheduler.snapshot import Backoff, Wanted
from scheduler.topics import topics_of
from scheduler.view import describe
from tests.unit.scheduler.fleet_model import NOW, FleetModel, cpu, gpu, node, spec, topic_of

DIGITS = "digits@2"


def waiting(fleet: FleetModel) -> str:
    (wait,) = (action for action in fleet.plan() if isinstance(action, Wait))
    return why_waiting(fleet.snapshot(), fleet.demand, wait)


def test_without_any_device_the_way_out_is_an_agent() -> None:
    assert "start an agent" in waiting(FleetModel([], {DIGITS: spec(DIGITS)}))


def test_a_full_pool_says_what_is_full_by_how_much() -> None:
    fleet = FleetModel([cpu(memory_mib=100), gpu("a")], {DIGITS: spec(DIGITS)})
    assert waiting(fleet) == (
        "no device takes 25 % compute and 256 MiB of a cpu (1 full, 1 of another kind, "
        "for example CPU-n1-0 has 100 MiB left of 100)"
    )


def test_obstacles_name_every_device_that_does_not_take_a_worker() -> None:
    fleet = FleetModel([cpu("n1"), cpu("n2"), gpu("a")], {DIGITS: spec(DIGITS)})
    fleet.nodes["n2"] = node("n2", "suspect")
    found = obstacles(fleet.snapshot().pool, spec(DIGITS))
    assert [(one.device, one.code) for one in found] == [("CPU-n2-0", "UNAVAIL"), ("GPU-a", "PLACE")]


def test_failed_starts_and_missing_models_are_told_apart() -> None:
    fleet = FleetModel([cpu()], {DIGITS: spec(DIGITS)})
    fleet.backoff = {DIGITS: Backoff(3, NOW + 5_000, "no such file")}
    assert "3 starts in a row failed (no such file)" in waiting(fleet)
    fleet.demand[DIGITS] = Wanted(spec(DIGITS), is_registered=False)
    assert "is not registered" in waiting(fleet)


def reasons(fleet: FleetModel) -> str:
    snapshot = fleet.snapshot()
    (crew,) = muster_all(snapshot, fleet.demand, fleet.now)
    return why_unowned(snapshot, crew)


def test_partitions_that_nobody_drains_say_what_they_wait_for() -> None:
    fleet = FleetModel([cpu()], {DIGITS: spec(DIGITS, (1, 1))})
    assert reasons(fleet) == "partitions 0-7: there is no worker"
    fleet.tick()
    assert "still loading" in reasons(fleet)
    (name,) = fleet.leases
    fleet.bind(name)
    assert "next tick" in reasons(fleet)
    fleet.tick()
    assert f"worker {name} is about to take them" in reasons(fleet)
    fleet.work(name)
    assert reasons(fleet) == ""


def test_the_description_is_plain_data_and_complete() -> None:
    fleet = FleetModel([cpu(), gpu("a")], {DIGITS: spec(DIGITS, (2, 4)), "big@1": spec("big@1", memory_mib=99_000)})
    fleet.settle()
    gone = next(name for name, held in fleet.leases.items() if held.deployment == DIGITS)
    fleet.scale(DIGITS, 1)
    fleet.end(gone)
    shown = json.loads(json.dumps(describe(fleet.snapshot(), fleet.demand)))
    big, digits = shown["deployments"]
    assert (big["wanted"], big["waiting"]["missing"], big["unowned"]) == (1, 1, list(range(32)))
    assert (digits["wanted"], digits["by_hand"], digits["active"], digits["ending"]) == (1, True, 1, 1)
    assert digits["unowned"] == list(range(8))
    assert [worker["partitions"] for worker in digits["workers"]] == ["", "8-15"]
    assert digits["workers"][0]["expires_seconds"] is None
    assert [device["workers"] for device in shown["nodes"][0]["devices"]] == [2, 0]


def test_a_deployment_that_is_gone_is_shown_until_its_leases_are() -> None:
    fleet = FleetModel([cpu()], {DIGITS: spec(DIGITS)})
    fleet.settle()
    del fleet.demand[DIGITS]
    (shown,) = describe(fleet.snapshot(), fleet.demand)["deployments"]
    assert (shown["is_deployed"], shown["active"], shown["wanted"]) == (False, 1, 0)


def test_actions_read_as_sentences() -> None:
    fleet = FleetModel([cpu()], {DIGITS: spec(DIGITS)})
    (commit,) = fleet.plan()
    assert isinstance(commit, Commit)
    assert str(commit) == f"start a worker of {DIGITS} on n1: lease {commit.lease}, 25 % and 256 MiB of CPU-n1-0"
    assert str(Want("t", {0: "a", 1: "a", 3: "a", 2: None})) == "t: 0-1, 3 to a; 2 to nobody"
    assert str(Evict("t", (4,))) == "take t 4 from owners that did not let go"
    assert str(Drain("a", DIGITS, "why")) == f"let lease a of {DIGITS} finish: why"
    assert str(Hold("n1", "cordoned")) == "node n1 is empty: cordoned"
    assert ranges([3, 1, 2, 7]) == "1-3, 7"
    assert ranges(()) == ""


def test_every_deployment_has_topics_for_requests_and_retries_and_every_model_one_for_dead_letters() -> None:
    wanted = {name: Wanted(DeploymentSpec.model_validate(spec(name).model_dump())) for name in ("a@1", "a@2", "b@1")}
    found = topics_of(wanted, "headrace")
    retries = [f"headrace.retry.{name}" for name in ("a.1", "a.2", "b.1")]
    assert sorted(name for name, plan in found.items() if plan.partitions) == sorted(
        [topic_of("a@1"), topic_of("a@2"), topic_of("b@1"), "headrace.dead.a", "headrace.dead.b", *retries]
    )
    assert found["headrace.retry.a.1"].partitions == 3  # one for each delay
    assert found[topic_of("a@1")].partitions == 32
    assert found[topic_of("a@1")].configs == {"retention.ms": "86400000"}
    assert found["headrace.dead.a"].partitions == 1


def test_settings_that_contradict_each_other_are_refused_with_the_reason() -> None:
    with pytest.raises(ConfigurationError, match="leader_ttl_seconds must be at least three times"):
        load_settings(SchedulerSettings, {}, scheduler={"leader_renew_seconds": 3})
    with pytest.raises(ConfigurationError, match="dead_seconds must be at least three times"):
        load_settings(SchedulerSettings, {}, scheduler={"dead_seconds": 4})


def test_a_misspelt_variable_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigurationError, match="did you mean HEADRACE_SCHEDULER__TICK_SECONDS"):
        load_settings(SchedulerSettings, {"HEADRACE_SCHEDULER__TICK_SECOND": "1"})
