from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts.codec import MAX_INLINE_BYTES
from contracts.errors import InvalidRequest
from contracts.messages import MAX_TTL_MS
from producer.admission import check_request_id, check_size, check_tensor_bytes, ttl_ms


@given(st.floats(min_value=0.001, max_value=MAX_TTL_MS / 1000))
def test_a_ttl_keeps_its_length_to_the_millisecond(seconds: float) -> None:
    assert abs(ttl_ms(seconds) - seconds * 1000) <= 0.5


def test_the_shortest_ttl_is_not_rounded_to_none() -> None:
    assert ttl_ms(1e-9) == 1


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf, MAX_TTL_MS / 1000 + 1])
def test_an_impossible_ttl_is_refused(seconds: float) -> None:
    with pytest.raises(InvalidRequest, match="ttl_seconds"):
        ttl_ms(seconds)


def test_a_body_of_exactly_the_limit_passes_and_one_byte_more_does_not() -> None:
    check_size(MAX_INLINE_BYTES)
    with pytest.raises(InvalidRequest, match=r"262,145 bytes; at most 262,144"):
        check_size(MAX_INLINE_BYTES + 1)


def test_an_enormous_input_is_refused_before_it_is_encoded() -> None:
    with pytest.raises(InvalidRequest, match="52,428,800"):
        check_tensor_bytes(50 * 1024 * 1024)


@pytest.mark.parametrize("name", ["", "ä", "a b", "x" * 65, "a/b"])
def test_a_request_id_that_no_header_may_carry_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="request_id"):
        check_request_id(name)


def test_a_callers_own_id_is_kept() -> None:
    assert check_request_id("order-17~b.2") == "order-17~b.2"
