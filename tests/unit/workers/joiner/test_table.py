"""What becomes of parts and markers on one partition, told as short histories."""

from __future__ import annotations

import pytest

from tests.pipelines.history import CLOSE_MS, DEADLINE, KEEP_MS, LINGER_MS, PLAN, START, History
from workers.joiner.join import Fire, Mark, Why
from workers.joiner.table import JOIN_BYTES, PART_BYTES


def test_a_join_is_fired_when_its_last_branch_came_and_done_when_its_marker_is_acknowledged() -> None:
    history = History()
    history.part("j", "both", "b")
    assert history.catch_up() == []
    history.part("j", "both", "a")
    fire, mark = history.fire()
    assert (fire.why, list(fire.parts)) == (Why.READY, ["b", "a"])
    assert mark.body.is_closing
    assert history.commit_point == 0
    history.close(mark)
    assert history.done == {0, 1}
    history.now += KEEP_MS
    history.due()
    assert history.done == {0, 1, 2}
    assert history.table.burden == (0, 0, 0)


def test_jobs_overlap_and_a_successor_fires_nothing_that_was_fired() -> None:
    history = History()
    history.part("one", "both", "a")
    history.part("two", "both", "a")
    history.part("one", "both", "b")
    _, mark = history.fire()
    history.close(mark)
    history.restart()
    assert history.base == 1  # two is open; what is read again of one lacks a part
    assert history.catch_up() == []
    history.now = DEADLINE
    (fire,) = history.due()
    assert isinstance(fire, Fire)
    assert (fire.key.job, fire.why) == ("two", Why.EXPIRED)


def test_nothing_is_fired_before_the_end_of_the_log_is_reached() -> None:
    history = History()
    history.part("j", "both", "a")
    history.part("j", "both", "b")
    _, mark = history.fire()
    history.append(mark)
    history.restart(committed=0)
    history.table.offer(history.records[0][0], PLAN, history.now)  # type: ignore[arg-type]
    history.table.offer(history.records[1][0], PLAN, history.now)  # type: ignore[arg-type]
    history.read = 2
    assert not history.table.is_live
    assert history.table.next_ms() is None
    assert history.catch_up() == []
    assert history.done == {0, 1}


def test_what_was_fired_without_a_marker_is_fired_again_with_the_same_choice() -> None:
    history = History()
    history.part("j", "any", "b")
    (first,) = history.catch_up()
    history.part("j", "any", "a")
    history.restart()
    (second,) = history.catch_up()
    assert isinstance(first, Fire)
    assert isinstance(second, Fire)
    assert list(second.parts)[:1] == list(first.parts) == ["b"]


def test_an_early_join_gets_a_second_marker_and_the_first_is_done_only_with_it() -> None:
    history = History()
    history.part("j", "any", "b")
    _, early = history.fire()
    assert (early.body.is_closing, early.body.seen, early.body.expected) == (False, ("b",), 2)
    history.close(early)
    assert history.done == {0}
    history.restart()
    history.part("j", "any", "a")
    (late,) = history.catch_up()
    assert isinstance(late, Mark)
    assert late.body.is_closing
    history.close(late)
    assert history.done == {1, 2}


def test_a_branch_that_never_comes_is_given_up_after_the_deadline() -> None:
    history = History()
    history.part("j", "any", "b")
    _, early = history.fire()
    history.close(early)
    history.now = DEADLINE + CLOSE_MS - 1
    assert history.due() == []
    history.now += 1
    (closing,) = history.due()
    assert isinstance(closing, Mark)
    history.close(closing)
    assert history.done == {0, 1}


def test_a_successor_that_knows_only_the_early_marker_gives_up_at_the_same_time() -> None:
    history = History()
    history.part("j", "any", "b")
    _, early = history.fire()
    history.close(early)
    history.restart()
    assert history.base == 1
    assert history.catch_up() == []
    assert history.table.next_ms() == DEADLINE + CLOSE_MS


def test_repetitions_are_held_until_a_marker_covers_them() -> None:
    history = History()
    history.part("j", "both", "a")
    history.part("j", "both", "a")
    history.part("j", "both", "b")
    _, mark = history.fire()
    closing = history.close(mark)
    late = history.part("j", "both", "a")
    assert history.catch_up() == []
    assert late not in history.done
    history.now += LINGER_MS
    (again,) = history.due()
    assert isinstance(again, Mark)
    second = history.close(again)
    assert {late, closing} <= history.done
    assert second not in history.done


def test_a_marker_covers_only_what_its_joiner_had_read() -> None:
    history = History()
    history.part("j", "both", "a")
    history.part("j", "both", "b")
    _, mark = history.fire()
    unread = history.part("j", "both", "b")
    history.append(mark)
    history.table.acknowledged(mark.key, mark.body, history.now)
    history.catch_up()
    assert history.done == {0, 1}
    assert unread not in history.done


def test_a_joiner_obeys_the_marker_of_another() -> None:
    history = History()
    history.part("j", "any", "a")
    _, mark = history.fire()
    other = History()
    other.records = history.records
    history.append(mark)
    assert other.catch_up() == []
    assert other.done == {0}


def test_a_join_with_a_limit_of_its_own_is_fired_before_the_deadline() -> None:
    history = History()
    history.part("j", "soon", "a")
    history.now += 100
    assert history.catch_up() == []
    assert history.table.next_ms() == START + 500
    history.now = START + 500
    fire, mark = history.fire()
    assert fire.why is Why.EXPIRED
    assert not mark.body.is_closing


def test_a_table_that_is_given_away_fires_nothing_more_but_marks_what_it_fired() -> None:
    history = History()
    history.part("one", "both", "a")
    history.part("one", "both", "b")
    (fire,) = history.catch_up()
    assert isinstance(fire, Fire)
    history.table.close()
    history.part("two", "any", "a")
    assert history.catch_up() == []
    history.table.fired(fire)
    (mark,) = history.due()
    assert isinstance(mark, Mark)
    assert mark.key.job == "one"


@pytest.mark.parametrize("width", [0, 1, 3, 200])
def test_a_gather_waits_for_as_many_rows_as_its_map_has(width: int) -> None:
    history = History()
    for row in range(width):
        history.part("j", "rows", row)
    assert history.catch_up() == []
    history.part("j", "rows", "crops", width=width)
    fire, mark = history.fire()
    assert len(fire.parts) == width + 1
    assert mark.body.is_closing


def test_branches_of_a_map_are_joins_of_their_own() -> None:
    history = History()
    history.part("j", "both", "a", branch=(0,))
    history.part("j", "both", "b", branch=(1,))
    assert history.catch_up() == []
    history.part("j", "both", "b", branch=(0,))
    fire, _ = history.fire()
    assert fire.key.branch == (0,)


def test_without_room_a_new_job_is_refused_and_closed_while_known_ones_go_on() -> None:
    history = History(max_bytes=2 * (JOIN_BYTES + PART_BYTES + 10))
    history.part("one", "both", "a")
    history.part("two", "both", "a")
    history.catch_up()
    history.part("three", "both", "a")
    fire, mark = history.fire()
    assert (fire.key.job, fire.why) == ("three", Why.REFUSED)
    assert mark.body.is_closing
    assert mark.body.is_refused
    history.close(mark)
    history.part("three", "any", "a")  # another join of the job that was refused: closed without a word
    (other,) = history.catch_up()
    assert isinstance(other, Mark)
    assert other.body.is_refused
    history.part("one", "both", "b")
    (fired,) = history.catch_up()
    assert isinstance(fired, Fire)
    assert (fired.key.job, fired.why) == ("one", Why.READY)


def test_a_successor_knows_what_was_refused() -> None:
    history = History(max_bytes=0)
    history.part("j", "both", "a")
    fire, mark = history.fire()
    assert fire.why is Why.REFUSED
    history.append(mark)
    history.max_bytes = 1 << 20
    history.restart()
    history.part("j", "any", "a")
    decisions = history.catch_up()
    assert [type(decision) for decision in decisions] == [Mark]


def test_what_another_joiner_has_taken_in_is_not_refused() -> None:
    history = History(max_bytes=JOIN_BYTES + PART_BYTES)  # its first part is just below the bound
    history.part("j", "both", "a")
    history.part("j", "both", "b")
    history.restart()
    fire, _ = history.fire()
    assert fire.why is Why.READY


def test_a_cancelled_job_is_fired_at_once() -> None:
    history = History()
    history.part("j", "both", "a")
    history.part("k", "both", "a")
    assert history.catch_up() == []
    history.cancelled.add("j")
    history.table.cancel()
    fire, _ = history.fire()
    assert (fire.key.job, fire.why) == ("j", Why.CANCELLED)


def test_values_are_let_go_when_the_join_was_fired() -> None:
    history = History()
    history.part("j", "any", "a", size=1000)
    history.catch_up()
    assert history.table.burden.held_bytes == 1000 + JOIN_BYTES + PART_BYTES
    history.restart()
    history.fire()
    assert history.table.burden == (0, 1, JOIN_BYTES)


def test_a_part_written_after_its_job_was_over_is_counted_as_a_phantom() -> None:
    history = History()
    history.part("j", "both", "a", ttl=0)
    fire, _ = history.fire()
    assert fire.why is Why.EXPIRED
    assert history.table.phantoms == 1
