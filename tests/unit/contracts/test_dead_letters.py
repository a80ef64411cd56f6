"""What a dead letter keeps of its record, and what it never takes over from it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contracts.dead_letters import (
    MAX_MESSAGE,
    Undertaker,
    dead_headers,
    parse_dead_letter,
    redrive_headers,
    without_body,
)

BY = Undertaker("m@1", "sha256:1", "lease", 5, "host")
headers = st.lists(
    st.tuples(st.sampled_from(["id", "re", "v", "ttl", "attempt", "dead-reason", "dead-source", "x"]), st.binary()),
    max_size=8,
)


@given(headers, st.text(max_size=3000), st.binary(max_size=50))
def test_the_record_is_kept_and_nothing_of_it_is_believed(
    own: list[tuple[str, bytes]], message: str, body: bytes
) -> None:
    made = dead_headers(own, BY, reason="poison", message=message, source="t/0/7", time_ms=9, attempts=3)
    letter = parse_dead_letter(4, 1, made, body)
    assert letter.headers == tuple(pair for pair in own if not pair[0].startswith("dead-"))
    assert (letter.reason, letter.source, letter.attempts, letter.time_ms) == ("poison", "t/0/7", 3, 9)
    assert (letter.worker, letter.token, letter.host, letter.digest) == ("lease", "5", "host", "sha256:1")
    assert len(dict(made)["dead-message"]) <= MAX_MESSAGE
    assert letter.body == body
    assert not letter.is_cut
    assert parse_dead_letter(4, 1, without_body(made, 9), None).is_cut


@given(headers, st.binary())
def test_any_record_can_be_read_as_a_letter(pairs: list[tuple[str, bytes]], body: bytes) -> None:
    letter = parse_dead_letter(0, 3, pairs, body)
    again = dict(redrive_headers(letter, ttl_ms=None, version=None))
    assert "attempt" not in again
    assert int(again["redriven"]) == letter.redriven + 1
