"""In which order `headrace trace` shows a job: what led to a record stands above it, and else the earlier one."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.messages import Ran, Receipt, RequestHeaders
from deploy.cli.lineage import in_order
from deploy.cli.timeline import Line, describe


class _Record:
    topic, partition, offset = "t", 0, 0


def after(step: str, *branch: int, attempt: int = 1) -> Ran:
    """The step that ended with a line."""
    return Ran(step, Receipt(attempt=attempt), branch)


def line(
    at: int, kind: str, step: str = "", *branch: int, ran: Ran | None = None, attempt: int = 1, receipt: Any = None
) -> Line:
    headers = None if kind in {"response", "partial"} else RequestHeaders("r", None, attempt=attempt)
    return Line(at, kind, step, branch, cast("Any", _Record), ran, "", headers, receipt)


FAN = [
    line(100, "submitted"),
    line(100, "asked", "head"),
    *(line(104, "asked", step, ran=after("head")) for step in "abc"),
    *(line(106, "part", "vote", ran=after(step)) for step in "abc"),
    line(106, "asked", "last", ran=after("b")),
    line(108, "response", ran=after("last")),
    line(108, "marker", "vote"),
]


@pytest.mark.parametrize("seed", range(8))
def test_a_fan_of_which_much_falls_into_one_millisecond_stands_in_the_order_of_its_steps(seed: int) -> None:
    mixed = random.Random(seed).sample(FAN, len(FAN))
    kinds = [f"{one.kind} {one.step}" for one in in_order(mixed)]
    assert kinds == [
        *("submitted ", "asked head", "asked a", "asked b", "asked c"),
        *(["part vote"] * 3),
        *("asked last", "response ", "marker vote"),
    ]


def test_a_broker_whose_clock_is_behind_puts_no_child_before_its_parent() -> None:
    lines = [
        line(100, "submitted"),
        line(40, "asked", "one"),
        line(110, "asked", "two", ran=after("one")),
        line(55, "asked", "three", ran=after("two")),
        line(45, "response", ran=after("three")),
    ]
    assert in_order(sorted(lines, key=lambda one: one.at_ms)) == lines
    assert [step["step"] for step in describe("r", in_order(lines[::-1]))["steps"]] == ["one", "two", "three"]


def test_rows_of_a_map_are_asked_in_the_order_of_their_numbers_and_not_of_their_digits() -> None:
    rows = [line(100, "asked", "read", row) for row in (10, 9, 2, 0, 11)]
    later = [line(101, "asked", "decode", row, ran=after("read", row)) for row in (9, 0)]
    assert [(one.step, one.branch) for one in in_order([*later, *rows])] == [
        *(("read", (row,)) for row in (0, 2, 9, 10, 11)),
        *(("decode", (row,)) for row in (0, 9)),
    ]


def test_an_attempt_stands_behind_the_retry_that_it_came_of_and_what_follows_behind_the_attempt() -> None:
    lines = [
        line(100, "asked", "one"),
        line(100, "retry", "one", attempt=2),
        line(100, "asked", "one", attempt=2),
        line(100, "retry", "one", attempt=3),
        line(100, "asked", "one", attempt=3),
        line(100, "asked", "two", ran=after("one", attempt=3)),
        line(100, "dead", "two"),
        line(100, "response", ran=after("two")),
    ]
    for seed in range(8):
        assert in_order(random.Random(seed).sample(lines, len(lines))) == lines


def test_the_retries_of_a_request_without_steps_are_told_apart_by_its_receipt() -> None:
    lines = [
        line(100, "asked"),
        line(103, "retry", attempt=2),
        line(90, "asked", attempt=2),
        line(80, "response", receipt=Receipt(attempt=2)),
    ]
    assert in_order(lines[::-1]) == lines


def test_what_cannot_be_read_or_goes_in_circles_is_shown_by_time() -> None:
    rubbish = Line(50, "joins", "", (), cast("Any", _Record), detail="unreadable")
    one, two = line(60, "asked", "one", ran=after("two")), line(61, "asked", "two", ran=after("one"))
    assert in_order([two, one, rubbish]) == [rubbish, one, two]


_kinds = st.sampled_from(["submitted", "asked", "part", "retry", "dead", "partial", "response", "marker", "odd"])
_steps = st.sampled_from(["", "a", "b", "c"])


@given(
    st.lists(
        st.builds(
            lambda at, kind, step, row, ran, attempt: line(at, kind, step, *row, ran=ran, attempt=attempt),
            st.integers(0, 5),
            _kinds,
            _steps,
            st.sampled_from([(), (0,), (1,)]),
            st.none() | st.builds(lambda step, attempt: after(step, attempt=attempt), _steps, st.integers(1, 2)),
            st.integers(1, 3),
        ),
        max_size=24,
    )
)
def test_nothing_is_lost_or_shown_twice_and_unrelated_records_stand_by_time(lines: list[Line]) -> None:
    found = in_order(lines)
    assert sorted(map(id, found)) == sorted(map(id, lines))
    unrelated = [one for one in found if one.kind == "odd"]
    alone = in_order(unrelated)
    assert [one.at_ms for one in alone] == sorted(one.at_ms for one in unrelated)
