"""What a joiner keeps is bounded: values, joins that are over, records without a marker, what is read again."""

from __future__ import annotations

import tracemalloc

import pytest

from tests.pipelines.history import CLOSE_MS, KEEP_MS, TTL, History
from workers.joiner.join import Fire, Mark, Why
from workers.joiner.table import JOIN_BYTES, PART_BYTES

ONE = JOIN_BYTES + PART_BYTES + 10
"""A join with one part."""
HOUR_MS = 3_600_000


def finish(history: History, decisions: list[object]) -> int:
    """Carry decisions out until there are none; returns how many jobs were refused."""
    refused = 0
    while decisions:
        for decision in decisions:
            if isinstance(decision, Fire):
                refused += decision.why is Why.REFUSED
                history.table.fired(decision)
            elif isinstance(decision, Mark):
                history.append(decision)
                history.table.acknowledged(decision.key, decision.body, history.now)
        decisions = [*history.catch_up()]
    return refused


def test_a_hundred_clients_and_one_slow_branch_fill_a_joiner_to_its_bound_and_no_further() -> None:
    size, room = 10_000, 100
    one = JOIN_BYTES + PART_BYTES + size
    history = History(max_bytes=room * one)
    refused, most = 0, 0
    for turn in range(20):
        for client in range(100):
            history.part(f"{client}-{turn}", "both", "a", size=size)
        refused += finish(history, [*history.catch_up()])
        most = max(most, history.table.burden.held_bytes)
    assert refused == 2000 - room
    assert most <= room * one + (refused + 1) * JOIN_BYTES
    for client in range(100):  # the slow branch comes, and makes room
        history.part(f"{client}-0", "both", "b", size=size)
    assert finish(history, [*history.catch_up()]) == 0
    history.now += KEEP_MS
    finish(history, [*history.due()])
    assert history.table.burden == (0, 0, 0)
    history.part("new", "both", "a", size=size)
    assert finish(history, [*history.catch_up()]) == 0


def test_what_a_join_is_said_to_cost_is_about_what_it_does() -> None:
    history, count = History(max_bytes=1 << 40), 2000
    tracemalloc.start()
    try:
        for number in range(count):
            history.part(f"j{number}", "both", "a", ttl=HOUR_MS)
        before, _ = tracemalloc.get_traced_memory()
        history.catch_up()
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held < history.table.burden.held_bytes


def test_a_backlog_that_is_far_too_much_is_read_without_being_kept_and_refused_at_its_end() -> None:
    history, jobs = History(max_bytes=10 * (ONE + 100_000)), 500
    for number in range(jobs):
        history.part(f"j{number}", "both", "a", size=100_000)
    history.restart()
    decisions = history.catch_up()
    assert history.table.burden.held_bytes < 21 * (ONE + 100_000) + jobs * JOIN_BYTES
    refused = finish(history, [*decisions])
    assert 0 < jobs - refused <= 20
    history.now += TTL + CLOSE_MS
    finish(history, [*history.due()])
    history.now += KEEP_MS
    finish(history, [*history.due()])
    assert history.table.burden == (0, 0, 0)
    assert history.commit_point == len(history.records)


def test_of_a_backlog_what_was_fired_before_is_not_refused_for_want_of_room() -> None:
    history = History(max_bytes=0)
    history.max_bytes = 1 << 20
    history.restart()
    history.part("j", "any", "a", size=5000)
    fire, mark = history.fire()
    assert fire.why is Why.READY
    history.append(mark)
    history.max_bytes = 0
    history.restart(0)
    assert history.catch_up() == []
    history.max_bytes = 1 << 20
    history.part("j", "any", "b")
    (closing,) = history.catch_up()
    assert isinstance(closing, Mark)
    assert not closing.body.is_refused


def test_a_starved_job_is_answered_once_though_it_has_two_joins() -> None:
    history = History(max_bytes=0)
    history.part("j", "both", "a")
    history.part("j", "rows", "crops", width=3)
    history.restart()
    decisions = history.catch_up()
    assert [decision.why for decision in decisions if isinstance(decision, Fire)] == [Why.REFUSED]
    assert finish(history, [*decisions]) == 1
    assert history.table.burden.open_joins == 0


def test_alarms_of_jobs_that_ended_are_forgotten_long_before_they_would_ring() -> None:
    history = History(max_bytes=1 << 40)
    for turn in range(6):
        for number in range(1000):
            history.part(f"{turn}-{number}", "both", "a", ttl=6 * HOUR_MS)
            history.part(f"{turn}-{number}", "both", "b", ttl=6 * HOUR_MS)
            if number % 50 == 0:
                finish(history, [*history.catch_up()])
        finish(history, [*history.catch_up()])
        history.now += KEEP_MS
        finish(history, [*history.due()])
    assert history.table.burden == (0, 0, 0)
    assert len(history.table._alarms) <= 2000
    assert not history.table._alarmed


@pytest.mark.parametrize("join", ["both", "any"])
def test_a_marker_that_the_log_does_not_take_holds_no_offset_for_ever(join: str) -> None:
    history = History()
    history.part("j", join, "a")
    history.part("j", join, "b" if join == "both" else "a")
    _, mark = history.fire()
    tries = 1
    while 0 not in history.done:
        history.table.not_taken(mark.key, mark.body, history.now)
        assert history.due() == [], "not again at once"
        history.now += 1000
        for decision in history.due():
            assert isinstance(decision, Mark)
            assert decision.body.seen == ()
            mark, tries = decision, tries + 1
        assert tries < 10
    history.now += TTL + CLOSE_MS
    while history.table.burden.held_records:
        for decision in history.due():
            assert isinstance(decision, Mark)
            history.table.not_taken(decision.key, decision.body, history.now)
        history.now += KEEP_MS
    assert history.done == {0, 1}


def test_a_marker_that_was_too_large_is_read_like_any_other() -> None:
    history = History()
    history.part("j", "any", "a")
    _, mark = history.fire()
    history.table.not_taken(mark.key, mark.body, history.now)
    history.now += 1000
    (brief,) = history.due()
    assert isinstance(brief, Mark)
    history.close(brief)
    assert 0 in history.done
    history.restart(0)
    assert history.catch_up() == []
    history.now += TTL + CLOSE_MS
    (closing,) = history.due()
    assert isinstance(closing, Mark)
    assert closing.body.is_closing
