import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.errors import ConfigurationError
from contracts.lease import TrustWindow, check_node_timing, check_timing


def test_a_holder_is_in_doubt_until_its_first_renewal() -> None:
    window = TrustWindow(ttl_seconds=15, margin_seconds=3)
    assert not window.is_trusted(0.0)
    assert window.remaining(0.0) == 0.0
    assert window.renewed(100.0) == 112.0
    assert window.is_trusted(111.9)
    assert not window.is_trusted(112.0)
    assert window.remaining(110.0) == 2.0


def test_an_ended_lease_is_in_doubt_at_once() -> None:
    window = TrustWindow(ttl_seconds=15, margin_seconds=3)
    window.renewed(100.0)
    window.end()
    assert not window.is_trusted(100.0)


def test_the_late_answer_to_an_early_call_does_not_shorten_the_trust() -> None:
    window = TrustWindow(ttl_seconds=15, margin_seconds=3)
    window.renewed(105.0)
    assert window.renewed(100.0) == 117.0


def test_what_the_server_says_is_left_counts_when_it_is_less_than_the_ttl() -> None:
    window = TrustWindow(ttl_seconds=15, margin_seconds=3)
    assert window.deadline_after(100.0, granted_seconds=5.0) == 102.0
    assert window.deadline_after(100.0, granted_seconds=500.0) == 112.0


@given(
    ttl=st.floats(0.5, 60),
    margin_share=st.floats(0.01, 0.5),
    calls=st.lists(st.tuples(st.floats(0, 20), st.floats(0, 5), st.floats(0, 5)), min_size=1, max_size=20),
)
def test_the_holders_belief_is_a_subset_of_the_servers_grant(
    ttl: float, margin_share: float, calls: list[tuple[float, float, float]]
) -> None:
    window = TrustWindow(ttl_seconds=ttl, margin_seconds=ttl * margin_share)
    now = 0.0
    granted_until = float("-inf")
    for pause, way_there, way_back in calls:
        sent = now + pause
        executed = sent + way_there  # the server counts from here
        granted_until = max(granted_until, executed + ttl)
        now = executed + way_back
        window.renewed(sent)
        assert window.deadline < granted_until


def test_default_timing_is_accepted() -> None:
    check_timing(ttl_seconds=15, renew_seconds=5, margin_seconds=3)
    check_node_timing(heartbeat_seconds=1, suspect_seconds=3, dead_seconds=10)


@pytest.mark.parametrize(
    ("ttl", "renew", "margin", "complaint"),
    [
        (14.9, 5, 3, "three times the renew interval"),
        (15, 5, 10, "must be below ttl - renew"),
        (15, 0, 3, "must be above 0"),
        (15, 5, 0, "must be above 0"),
    ],
)
def test_timing_that_one_lost_renewal_breaks_is_refused(
    ttl: float, renew: float, margin: float, complaint: str
) -> None:
    with pytest.raises(ConfigurationError, match=complaint):
        check_timing(ttl_seconds=ttl, renew_seconds=renew, margin_seconds=margin)


def test_node_timing_that_one_lost_heartbeat_breaks_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="twice the heartbeat"):
        check_node_timing(heartbeat_seconds=2, suspect_seconds=3, dead_seconds=10)
    with pytest.raises(ConfigurationError, match="three times suspect"):
        check_node_timing(heartbeat_seconds=1, suspect_seconds=3, dead_seconds=8)
