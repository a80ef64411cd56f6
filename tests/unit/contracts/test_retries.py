"""When a request is tried again, and what its copy remembers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.messages import DEFAULT_TTL_MS
from contracts.retries import (
    DELAYS_SECONDS,
    MAX_ATTEMPTS,
    Home,
    attempt_of,
    forward_headers,
    home_of,
    next_delay,
    retry_headers,
)


@pytest.mark.parametrize(
    ("attempt", "left", "delay"), [(1, 100, 0), (2, 100, 1), (3, 1000, 2), (4, 1000, None), (1, 5, None), (3, 60, None)]
)
def test_each_attempt_waits_longer_and_none_is_made_that_would_be_late(
    attempt: int, left: float, delay: int | None
) -> None:
    assert next_delay(attempt, left) == delay


@given(st.integers(10_000, 10_000_000), st.lists(st.integers(0, 5000), min_size=3, max_size=3))
def test_over_all_its_attempts_a_request_keeps_its_past_and_its_time_only_falls(ttl: int, waits: list[int]) -> None:
    headers: list[tuple[str, bytes | None]] = [("id", b"a"), ("ttl", b"%d" % ttl), ("x", b"y"), ("y", None)]
    left = ttl
    for attempt, waited in enumerate(waits, start=1):
        made = retry_headers(
            headers, attempt=attempt, left_ms=left, reason="memory", message="m", source=f"t.x/3/{attempt}", first_ms=11
        )
        assert home_of(made) == Home("t.x", 3)
        headers = forward_headers(made, int(DELAYS_SECONDS[attempt - 1] * 1000) + waited)
        found = dict(headers)
        assert len(found) == len(headers)
        assert int(found["ttl"] or "") <= left
        left = int(found["ttl"] or "")
        assert (found["id"], found["x"], found["y"], found["retry-first"]) == (b"a", b"y", None, b"11")
        assert found["retry-ttl"] == b"%d" % ttl
        assert found["attempt"] == b"%d" % (attempt + 1)
    assert int(dict(headers)["attempt"] or "") == MAX_ATTEMPTS


def test_a_record_that_does_not_say_where_it_came_from_has_no_home() -> None:
    assert home_of([("id", b"a")]) is None
    assert home_of([("retry-source", b"nonsense")]) is None
    assert home_of([("retry-source", None)]) is None
    assert home_of([("retry-source", b"t/-1/0")]) is None


def test_headers_that_are_null_stand_for_no_number() -> None:
    nulls = [("ttl", None), ("job-ttl", None), ("retry-first", None), ("retry-ttl", None)]
    assert forward_headers(nulls, 5)[:2] == [("ttl", b"0"), ("job-ttl", b"0")]
    made = dict(retry_headers(nulls, attempt=1, left_ms=7, reason="r", message="", source="t/0/1", first_ms=11))
    assert (made["ttl"], made["retry-first"], made["retry-ttl"]) == (b"7", b"11", b"")


@pytest.mark.parametrize(("raw", "attempt"), [(b"3", 3), (b"0", 1), (b"-1", 1), (b"x", 1), (None, 1), (b"9" * 5000, 1)])
def test_an_attempt_that_cannot_be_read_is_the_first(raw: bytes | None, attempt: int) -> None:
    assert attempt_of([("attempt", raw)]) == attempt
    assert attempt_of([]) == 1


def test_a_copy_of_a_request_without_a_time_to_live_remembers_the_default_not_what_was_left() -> None:
    made = dict(retry_headers([], attempt=1, left_ms=7, reason="r", message="", source="t/0/1", first_ms=11))
    assert (made["ttl"], made["retry-ttl"]) == (b"7", b"%d" % DEFAULT_TTL_MS)
