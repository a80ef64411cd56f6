"""Faults hit whom they name, as often as they say."""

from __future__ import annotations

import json

import pytest
from kio.schema.errors import ErrorCode

from deploy.embedded.log_faults import Faults
from deploy.embedded.log_wire import Api, LogError


def faults_of(**fault: object) -> Faults:
    faults = Faults()
    assert "error" not in faults.command(json.dumps({"set": fault}).encode())
    return faults


def meets(faults: Faults, api: Api, *topics: str | None) -> list[str]:
    """What happens to one request that names these topics."""
    seen = []
    for topic in topics:
        try:
            faults.check(api, topic)
            seen.append("done")
        except LogError as error:
            seen.append(error.code.name)
        except OSError:
            seen.append("disk full")
    seconds = faults.settle()
    return [*seen, "dropped"] if seconds is None else [*seen, f"{seconds:g} s"] if seconds else seen


def test_without_faults_nothing_happens() -> None:
    assert meets(Faults(), Api.PRODUCE, "t") == ["done"]


def test_a_refusal_meets_the_topic_and_api_it_names() -> None:
    faults = faults_of(kind="refuse", api="produce", topic="t", code="NOT_ENOUGH_REPLICAS")
    assert meets(faults, Api.PRODUCE, "t", "u") == ["not_enough_replicas", "done"]
    assert meets(faults, Api.FETCH, "t") == ["done"]
    assert meets(faults, Api.PRODUCE, None) == ["done"]


def test_a_fault_without_names_meets_everything() -> None:
    faults = faults_of(kind="disk_full")
    assert meets(faults, Api.PRODUCE, "t") == ["disk full"]
    assert meets(faults, Api.INIT_PRODUCER_ID, None) == ["disk full"]


def test_times_counts_requests_not_their_parts() -> None:
    faults = faults_of(kind="not_leader", times=2)
    for _ in range(2):
        assert meets(faults, Api.PRODUCE, "t", "u") == ["not_leader_or_follower"] * 2
    assert meets(faults, Api.PRODUCE, "t", "u") == ["done", "done"]


def test_a_request_that_is_looked_at_again_spends_nothing() -> None:
    faults = faults_of(kind="drop_answer", times=1)
    faults.check(Api.FETCH, "t")
    faults.begin()
    assert faults.settle() == 0
    assert meets(faults, Api.FETCH, "t") == ["done", "dropped"]
    assert meets(faults, Api.FETCH, "t") == ["done"]


def test_delays_add_up_and_a_dropped_answer_is_not_waited_for() -> None:
    faults = faults_of(kind="delay", ms=200)
    faults.command(b'{"set": {"kind": "delay", "ms": 50}}')
    assert meets(faults, Api.METADATA, "t") == ["done", "0.25 s"]
    faults.command(b'{"set": {"kind": "drop_answer"}}')
    assert meets(faults, Api.METADATA, "t") == ["done", "dropped"]


def test_the_door_lists_and_clears() -> None:
    faults = faults_of(kind="refuse", times=3, code="leader_not_available")
    meets(faults, Api.PRODUCE, "t")
    (listed,) = faults.command(b"{}")["faults"]
    assert (listed["kind"], listed["times"], listed["code"]) == ("refuse", 2, ErrorCode.leader_not_available.name)
    assert faults.command(b'{"clear": true}') == {"faults": []}
    assert meets(faults, Api.PRODUCE, "t") == ["done"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"nonsense",
        b"[]",
        b"3",
        b'{"set": {}}',
        b'{"set": {"kind": "explode"}}',
        b'{"set": {"kind": "refuse", "code": "no"}}',
        b'{"set": {"kind": "refuse", "api": "no"}}',
        b'{"set": {"kind": "delay", "much": 1}}',
    ],
)
def test_what_the_door_does_not_understand_it_says(line: bytes) -> None:
    faults = Faults()
    answer = faults.command(line)
    assert "error" in answer or answer == {"faults": []}
    assert meets(faults, Api.PRODUCE, "t") == ["done"]
