from typing import get_args

import pytest

from contracts import pool
from contracts.states import LEASE, NODE, REQUEST, StateTable


@pytest.mark.parametrize("table", [LEASE, NODE, REQUEST], ids=lambda table: table.name)
def test_every_edge_leads_to_a_state_and_one_state_is_final(table: StateTable) -> None:
    assert all(after in table.edges for ends in table.edges.values() for after in ends)
    assert [state for state in table.edges if table.is_final(state)] in (["deleted"], ["committed"])


@pytest.mark.parametrize("table", [LEASE, NODE, REQUEST], ids=lambda table: table.name)
def test_the_end_can_be_reached_from_every_state(table: StateTable) -> None:
    for start in table.edges:
        reached, todo = {start}, [start]
        while todo:
            fresh = table.edges[todo.pop()] - reached
            reached |= fresh
            todo += fresh
        assert any(table.is_final(state) for state in reached), start


def test_the_pool_and_the_tables_know_the_same_states() -> None:
    assert set(LEASE.edges) - {"deleted"} == set(get_args(pool.LeaseState))
    assert set(NODE.edges) - {"deleted"} == set(get_args(pool.NodeState))


def test_capacity_returns_only_through_quarantine() -> None:
    assert [state for state in LEASE.edges if "deleted" in LEASE.edges[state]] == ["quarantine"]
    assert LEASE.edges["quarantine"] == {"deleted"}


def test_an_absent_edge_raises_and_names_the_ways_there_are() -> None:
    assert LEASE.check("reserved", "active") == "active"
    with pytest.raises(ValueError, match="a lease that is quarantine cannot become active; it can become deleted"):
        LEASE.check("quarantine", "active")
    with pytest.raises(ValueError, match="it can become nothing"):
        REQUEST.check("committed", "queued")


def test_an_unknown_state_raises() -> None:
    with pytest.raises(ValueError, match="'asleep' is no state of a node"):
        NODE.allows("asleep", "ready")
    with pytest.raises(ValueError, match="'asleep' is no state of a node"):
        NODE.allows("ready", "asleep")
