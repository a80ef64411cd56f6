"""What a dead letter says: the record as it came, with headers that tell why, when and where it was put aside.

The record's own headers and bytes stay as they were, so that it can be looked at and sent again; everything that is
added starts with `dead-`, and such headers of the record itself are dropped, so that nobody can forge them.

    dead-reason    poison | invalid | unroutable
    dead-message   in words, at most 1 KiB; never quotes the input's values
    dead-source    <topic>/<partition>/<offset> of the request
    dead-model     <name>@<version> that was asked
    dead-digest    digest of that version's artefacts
    dead-worker    lease of the worker, dead-token its fencing token, dead-host its machine
    dead-time      Unix milliseconds
    dead-attempts  launches that ended with the engine or the worker, where that is why
    dead-size      bytes of the original body, where it was left out because it would not have fitted
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import msgspec

PREFIX = "dead-"
MAX_MESSAGE = 1024
REDRIVEN = "redriven"
"""Header of a request that was sent again from a dead letter: how many times by now."""
Reason = Literal["poison", "invalid", "unroutable"]
REASONS: tuple[Reason, ...] = ("poison", "invalid", "unroutable")

Pairs = Sequence[tuple[str, bytes | None]]


class Undertaker(msgspec.Struct, frozen=True):
    """Who puts records aside; the same for all of a worker's dead letters."""

    model: str
    digest: str
    worker: str
    token: int
    host: str


class DeadLetter(msgspec.Struct, frozen=True):
    """A dead letter as it is found in its topic. `headers` and `body` are the request's own."""

    offset: int
    request_id: str
    reason: str
    message: str
    source: str
    model: str
    digest: str
    worker: str
    token: str
    host: str
    time_ms: int
    attempts: int
    is_cut: bool
    """The body was too large to be kept; the request's topic still has it until its retention ends."""
    redriven: int
    headers: tuple[tuple[str, bytes | None], ...]
    body: bytes

    @property
    def job(self) -> str:
        """The job that it is a step of, by the id that its caller knows; "" when it is none."""
        found = dict(self.headers)
        return (found.get("job") or b"").decode(errors="replace") if found.get("step") else ""


def dead_headers(
    own: Iterable[tuple[str, bytes | None]],
    by: Undertaker,
    *,
    reason: Reason,
    message: str,
    source: str,
    time_ms: int,
    attempts: int = 0,
) -> list[tuple[str, bytes | None]]:
    """The headers of a dead letter for a record with these headers of its own."""
    found: list[tuple[str, bytes | None]] = [(name, value) for name, value in own if not name.startswith(PREFIX)]
    found += [
        ("dead-reason", reason.encode()),
        ("dead-message", _cut(message)),
        ("dead-source", source.encode()),
        ("dead-model", by.model.encode()),
        ("dead-digest", by.digest.encode()),
        ("dead-worker", by.worker.encode()),
        ("dead-token", b"%d" % by.token),
        ("dead-host", by.host.encode()),
        ("dead-time", b"%d" % time_ms),
    ]
    if attempts:
        found.append(("dead-attempts", b"%d" % attempts))
    return found


def without_body(headers: Pairs, size: int) -> list[tuple[str, bytes | None]]:
    """The headers of a dead letter whose body does not fit into a record together with them."""
    return [*headers, ("dead-size", b"%d" % size)]


def _cut(message: str) -> bytes:
    raw = message.encode(errors="replace")
    return raw if len(raw) <= MAX_MESSAGE else raw[: MAX_MESSAGE - 3].decode(errors="ignore").encode() + b"..."


def parse_dead_letter(offset: int, timestamp_ms: int, headers: Pairs, body: bytes | None) -> DeadLetter:
    """Read a record of a dead-letter topic; what it lacks is empty. Never raises: these records have failed before."""
    texts = {name: (value or b"").decode(errors="replace") for name, value in headers}
    return DeadLetter(
        offset=offset,
        request_id=texts.get("id", ""),
        reason=texts.get("dead-reason", ""),
        message=texts.get("dead-message", ""),
        source=texts.get("dead-source", ""),
        model=texts.get("dead-model", ""),
        digest=texts.get("dead-digest", ""),
        worker=texts.get("dead-worker", ""),
        token=texts.get("dead-token", ""),
        host=texts.get("dead-host", ""),
        time_ms=_number(texts.get("dead-time", "")) or timestamp_ms,
        attempts=_number(texts.get("dead-attempts", "")),
        is_cut="dead-size" in texts,
        redriven=_number(texts.get(REDRIVEN, "")),
        headers=tuple((name, value) for name, value in headers if not name.startswith(PREFIX)),
        body=body or b"",
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0  # noqa: PLR2004 - 64 bits


def redrive_headers(letter: DeadLetter, *, ttl_ms: int | None, version: int | None) -> list[tuple[str, bytes | None]]:
    """The headers under which a dead letter is sent again: its own id, a new count of attempts, a new time to live.

    `ttl_ms` None keeps the time to live that the request was given first; `version` replaces the one that it names. A
    step's job gets at least the time that the step gets.
    """
    first = dict(letter.headers).get("retry-ttl") or b""  # a retry carries only what was left of its time to live
    if ttl_ms is None and first.isdigit():
        ttl_ms = int(first)
    replaced = {"attempt", REDRIVEN} | ({"ttl"} if ttl_ms is not None else set())
    kept = []
    for name, value in letter.headers:
        if name in replaced or name.startswith("retry-"):
            continue
        if name == "job-ttl" and ttl_ms is not None and value is not None and value.isdigit():
            value = b"%d" % max(ttl_ms, int(value))  # noqa: PLW2901 - what was left of it then says nothing now
        kept.append((name, b"%d" % version if name == "version" and version is not None else value))
    if ttl_ms is not None:
        kept.append(("ttl", b"%d" % ttl_ms))
    return [*kept, (REDRIVEN, b"%d" % (letter.redriven + 1))]
