"""Requests that failed for a reason that passes: when they are tried again, and what travels with them meanwhile.

A worker copies such a request into the retry topic of its model version, which has one partition for each delay, so
that the head of a partition is always the first that is due. A forwarder holds it there until its append time plus the
delay, and then sends it back to the partition where it came from: not before that time, but never exactly at it.

    attempt         counts from 1; this copy's is one more than that of the launch that failed
    ttl             what is left of the time to live when the record is appended; of a job's step also job-ttl
    retry-class     why: memory, …; retry-message in words
    retry-source    <topic>/<partition>/<offset> of the launch that failed
    retry-first     Unix milliseconds at which the request was first appended
    retry-ttl       the time to live that it was given first
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from contracts.messages import DEFAULT_TTL_MS

MAX_ATTEMPTS = 4
DELAYS_SECONDS = (5.0, 30.0, 120.0)
"""Before the second, third and fourth attempt."""
_PREFIX = "retry-"
_TTLS = ("ttl", "job-ttl")
_MAX_MESSAGE = 300

Pairs = Iterable[tuple[str, bytes | None]]


class Home(NamedTuple):
    """Where a retry goes when it is due."""

    topic: str
    partition: int


def next_delay(attempt: int, left_seconds: float, delays: Sequence[float] = DELAYS_SECONDS) -> int | None:
    """Which delay the next attempt takes (an index); None when there is no further one, or no time left for it."""
    if attempt >= MAX_ATTEMPTS:
        return None
    index = min(attempt, len(delays)) - 1
    return index if left_seconds > delays[index] else None


def retry_headers(
    own: Pairs,
    *,
    attempt: int,
    left_ms: int,
    reason: str,
    message: str,
    source: str,
    first_ms: int,
    job_left_ms: int | None = None,
) -> list[tuple[str, bytes | None]]:
    """The headers of the copy of a request whose attempt number `attempt` failed."""
    pairs = list(own)
    known = dict(pairs)
    kept = [(name, value) for name, value in pairs if name not in ("attempt", *_TTLS) and not name.startswith(_PREFIX)]
    if job_left_ms is not None:
        kept.append(("job-ttl", b"%d" % max(0, job_left_ms)))
    return [
        *kept,
        ("attempt", b"%d" % (attempt + 1)),
        ("ttl", b"%d" % max(0, left_ms)),
        ("retry-class", reason.encode()),
        ("retry-message", message[:_MAX_MESSAGE].encode(errors="replace")),
        ("retry-source", source.encode()),
        ("retry-first", known.get("retry-first") or b"%d" % first_ms),
        ("retry-ttl", known.get("retry-ttl") or known.get("ttl", b"%d" % DEFAULT_TTL_MS) or b""),
    ]


def forward_headers(own: Pairs, waited_ms: int) -> list[tuple[str, bytes | None]]:
    """The headers of a retry that goes back after `waited_ms` in its topic."""
    return [(name, b"%d" % max(0, number(value) - waited_ms) if name in _TTLS else value) for name, value in own]


def home_of(own: Pairs) -> Home | None:
    """Where a retry came from; None when it does not say."""
    for name, value in own:
        if name == "retry-source":
            place, _, _ = (value or b"").decode(errors="replace").rpartition("/")
            topic, _, partition = place.rpartition("/")
            return Home(topic, int(partition)) if topic and partition.isdecimal() else None
    return None


def attempt_of(own: Pairs) -> int:
    """Which attempt a record is, as far as that can be read, even where other headers cannot."""
    return max(1, number(dict(own).get("attempt")))


def number(raw: bytes | None) -> int:
    """A header's number; 0 when it has none, or none that makes sense."""
    return int(raw) if raw is not None and raw.isdigit() and len(raw) <= 12 else 0  # noqa: PLR2004 - as the codec has it
