"""The judge of the answers in the log sees a second one, and lets pass what at least once allows."""

from __future__ import annotations

import pytest

from tests.chaos.history import Final, doubled, judge, sent_once


def final(request: str, worker: str = "w1", says: str = "OK 3", record: str = "") -> Final:
    return Final(request, worker, says.encode(), (record or f"{worker} {says}").encode())


def test_each_answered_once_is_right() -> None:
    assert doubled([final("a"), final("b"), final("c", "w2")]) == {}


def test_another_worker_may_say_the_same_again() -> None:
    assert doubled([final("a"), final("b"), final("a", "w2")]) == {}


@pytest.mark.parametrize("worker", ["w1", "w2"])
@pytest.mark.parametrize("says", ["OK 4", "DEADLINE_EXCEEDED"])
def test_nobody_may_say_something_else(worker: str, says: str) -> None:
    assert doubled([final("a"), final("b"), final("a", worker, says)]) == {"a": "was answered in two ways"}


def test_a_worker_that_answers_again_without_cause_is_seen() -> None:
    history = [final("a", record="1"), final("b"), final("a", record="2")]
    assert doubled(history) == {"a": "was answered again by w1"}
    assert doubled(history, lambda _: 2) == {}
    assert doubled([*history, final("a")], lambda _: 2) == {"a": "was answered again by w1"}


def test_the_very_record_may_be_sent_again_and_nothing_else() -> None:
    again = [final("a", record="1"), final("a", record="1"), final("b")]
    assert doubled(again) == {"a": "was answered again by w1"}
    assert doubled(sent_once(again)) == {}
    assert doubled(sent_once([*again, final("a", record="2")])) == {"a": "was answered again by w1"}


def test_a_history_without_the_answers_that_callers_got_judges_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert judge("scale", [final("a"), final("a")], answered=1) == 1
    assert "scale: a was answered again by w1" in capsys.readouterr().out
    with pytest.raises(AssertionError, match="2 were answered, but the log knows 1"):
        judge("scale", [final("a")], answered=2)
