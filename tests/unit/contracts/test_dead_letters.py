"""What a dead letter keeps of its record, and what it never takes over from it."""

from __future__ import annotations

from hypothesis import example, given
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
NAMES = ["id", "re", "v", "ttl", "job", "step", "job-ttl", "retry-ttl", "attempt", "dead-reason", "dead-source", "x"]
headers = st.lists(st.tuples(st.sampled_from(NAMES), st.none() | st.binary()), max_size=8)


@given(headers, st.text(max_size=3000), st.binary(max_size=50))
def test_the_record_is_kept_and_nothing_of_it_is_believed(
    own: list[tuple[str, bytes | None]], message: str, body: bytes
) -> None:
    made = dead_headers(own, BY, reason="poison", message=message, source="t/0/7", time_ms=9, attempts=3)
    letter = parse_dead_letter(4, 1, made, body)
    assert letter.headers == tuple(pair for pair in own if not pair[0].startswith("dead-"))
    assert (letter.reason, letter.source, letter.attempts, letter.time_ms) == ("poison", "t/0/7", 3, 9)
    assert (letter.worker, letter.token, letter.host, letter.digest) == ("lease", "5", "host", "sha256:1")
    kept = dict(made)["dead-message"]
    assert kept is not None
    assert len(kept) <= MAX_MESSAGE
    assert letter.body == body
    assert not letter.is_cut
    assert parse_dead_letter(4, 1, without_body(made, 9), None).is_cut


@given(headers, st.none() | st.just(5), st.binary())
@example([("step", b"s"), ("job", None)], None, b"")
@example([("retry-ttl", None)], None, b"")
@example([("job-ttl", None)], 5, b"")
def test_any_record_can_be_read_as_a_letter(
    pairs: list[tuple[str, bytes | None]], ttl_ms: int | None, body: bytes
) -> None:
    letter = parse_dead_letter(0, 3, pairs, body)
    assert letter.job in ("", *((value or b"").decode(errors="replace") for name, value in pairs if name == "job"))
    again = dict(redrive_headers(letter, ttl_ms=ttl_ms, version=None))
    assert "attempt" not in again
    assert int(again["redriven"] or "") == letter.redriven + 1


@given(ttl=st.integers(0, 10**6), left=st.integers(0, 10**6), is_retried=st.booleans())
def test_a_step_that_is_sent_again_has_its_job_wait_for_it(ttl: int, left: int, *, is_retried: bool) -> None:
    own = [("id", b"child"), ("job", b"job-1"), ("step", b"two"), ("job-ttl", b"%d" % left), ("ttl", b"5")]
    own += [("retry-ttl", b"%d" % ttl)] if is_retried else []
    made = dead_headers(own, BY, reason="poison", message="", source="t/0/7", time_ms=9)
    letter = parse_dead_letter(4, 1, made, b"")
    assert letter.job == "job-1"
    again = dict(redrive_headers(letter, ttl_ms=None if is_retried else ttl, version=None))
    assert int(again["ttl"] or "") == ttl
    assert int(again["job-ttl"] or "") == max(ttl, left)
    kept = dict(redrive_headers(parse_dead_letter(1, 1, own[:5], b""), ttl_ms=None, version=None))
    assert kept["job-ttl"] == b"%d" % left


def test_a_request_that_is_no_step_has_no_job() -> None:
    assert not parse_dead_letter(4, 1, [("id", b"a"), ("job", b"a"), ("plan", b"0")], b"").job
