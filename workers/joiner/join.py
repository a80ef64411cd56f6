"""One join of one job: which parts came, whether it was fired, and what its markers settle.

Kafka is the store: the offsets of parts stay uncommitted until the join has been fired, so a crash reads them again.
Offsets alone cannot say more, for jobs overlap: a committed prefix cuts through finished ones, and whoever reads the
rest of such a job would take it for one that lacks a part. Hence the *marker*, a record in the same partition:

1. fired: what the join becomes is acknowledged, and only then is a marker written;
2. a part, be it the first of its branch, a repetition or late, is done when a marker covers its offset, not before;
3. a marker is closing when every branch is accounted for, at the latest `close_ms` after the deadline; an earlier one
   is done when a closing one has come;
4. a closing marker is done after `keep_ms`: so long may a worker that died have its branch run once more.

What is decided depends on the log alone: parts count in the order of their offsets, and firing twice makes the same
twice. Only a deadline may strike differently.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import NamedTuple

from contracts.messages import Hop, Ran, RequestHeaders
from contracts.parts import MarkerBody, PartHeaders, PartKind
from contracts.plans import Branch, Node, Part, Plan

Source = str | int
_MARKER_RETRY_MS = 1_000
_MARKER_ATTEMPTS = 5  # the first in full, the others without what could make them too large
_NO_PARTS: dict[Source, Part] = {}
_NO_SOURCES: set[str] = set()


class Patience(NamedTuple):
    """How long things are waited for, in milliseconds."""

    close_ms: int = 30_000
    """After the deadline, nobody waits for a missing branch any longer than this."""
    keep_ms: int = 30_000
    """How long a finished join is remembered: a lease's ttl and a handover. A branch may run twice until then."""
    linger_ms: int = 1_000
    """Parts of a finished join that still come in are covered together, by one more marker after this time."""


PATIENCE = Patience()


class JoinKey(NamedTuple):
    """A join of a job, in one branch of its maps."""

    job: str
    join: str
    branch: Branch


def key_of(hop: Hop) -> JoinKey:
    """The join that a part or a marker names."""
    return JoinKey(hop.job, hop.step, hop.branch)


class Why(Enum):
    """Why a join is fired."""

    READY = auto()
    """Whatever still comes would change nothing."""
    EXPIRED = auto()
    """Its time is over: what has not come counts as failed."""
    CANCELLED = auto()
    """The caller has gone."""
    REFUSED = auto()
    """There is no room for another job."""
    UNKNOWN = auto()
    """Nobody knows its plan (any more)."""


class Arrival(NamedTuple):
    """A part as it was read. `size` is what keeping it costs."""

    offset: int
    headers: PartHeaders
    part: Part
    size: int
    appended_ms: int
    ran: Ran | None = None

    @property
    def key(self) -> JoinKey:
        """The join that it is for."""
        return JoinKey(self.headers.hop.job, self.part.join, self.part.branch)


class Fire(NamedTuple):
    """Carry this out: publish what the join becomes, and report `fired` when all of it is acknowledged."""

    key: JoinKey
    plan: Plan
    why: Why
    parts: Mapping[Source, Part]
    headers: PartHeaders
    """Those of the first part: caller, tenant, lane and trace."""
    deadline_ms: int
    ran: Ran | None


class Mark(NamedTuple):
    """Carry this out: append the marker to the partition, and report `acknowledged`."""

    key: JoinKey
    headers: PartHeaders
    body: MarkerBody


class Forget(NamedTuple):
    """Nothing more can come of it."""

    key: JoinKey


Decision = Fire | Mark | Forget
IsReady = Callable[[Plan, str, Mapping[Source, Part]], bool]


class _Phase(Enum):
    OPEN = auto()
    FIRING = auto()
    FIRED = auto()
    CLOSED = auto()


class JoinState:
    """What is known of one join; `decide` says what is to be done now, `next_ms` when to ask again."""

    __slots__ = (
        "_close_ms",
        "_errors",
        "_expected",
        "_fire_ms",
        "_forget_ms",
        "_is_marked",
        "_is_starved",
        "_is_waiting",
        "_linger_ms",
        "_mark_ms",
        "_markers",
        "_outstanding",
        "_patience",
        "_phase",
        "_plan",
        "_ran",
        "_refused",
        "_seen",
        "_uncovered",
        "_untaken",
        "_values",
        "deadline_ms",
        "headers",
        "held_bytes",
        "key",
        "parts",
    )

    def __init__(self, key: JoinKey, headers: PartHeaders, patience: Patience) -> None:
        self.key = key
        self._patience = patience
        self.headers = headers
        self.parts: dict[Source, Part] = {}
        self.held_bytes = 0
        self.deadline_ms = 0
        self._plan: Plan | None = None
        self._ran: Ran | None = None
        self._phase = _Phase.OPEN
        self._refused = False
        self._is_waiting = self._is_starved = False
        self._seen: set[str] = set()
        self._expected: int | None = None
        self._values = self._errors = 0
        self._uncovered: list[int] = []
        self._markers: list[int] = []
        self._outstanding: MarkerBody | None = None
        self._is_marked = False
        self._untaken = 0
        self._fire_ms = self._close_ms = self._forget_ms = self._linger_ms = self._mark_ms = 0

    # --- what happens to it -------------------------------------------------------------------------------------------

    def offer(self, arrival: Arrival, plan: Plan, now_ms: int) -> None:
        """A part was read; the first of each source counts."""
        part, node = arrival.part, plan.by_name[arrival.part.join]
        if not self._uncovered:
            self._linger_ms = now_ms + self._patience.linger_ms
        self._uncovered.append(arrival.offset)
        if self._phase is _Phase.CLOSED:
            return
        if self._plan is None:
            self._begin(arrival, plan, node)
        if str(part.source) not in self._seen:
            self._seen.add(str(part.source))
            self._count(part, node)
            self._ran = arrival.ran or self._ran
            if self._phase is _Phase.OPEN and not self._is_starved:
                self.parts[part.source] = part
                self._values += part.kind == "value"
                self._errors += part.kind == "error"
                self.held_bytes += arrival.size

    def _begin(self, arrival: Arrival, plan: Plan, node: Node) -> None:
        self._plan, self.headers = plan, arrival.headers
        self.deadline_ms = arrival.appended_ms + arrival.headers.request.ttl_ms
        limit = node.timeout_ms
        self._fire_ms = self.deadline_ms if limit is None else min(self.deadline_ms, arrival.appended_ms + limit)
        if not self._close_ms:
            self._close_ms = self.deadline_ms + self._patience.close_ms

    def _count(self, part: Part, node: Node) -> None:
        if node.kind != "gather":
            self._expected = len(node.branches)
        elif part.source == node.branches[0]:  # the map: how many rows there are, or that there are none
            self._expected = 1 + (part.width if part.kind == "width" else 0)

    def starve(self) -> None:
        """There is no room for its values: what has come is noted, and nothing kept."""
        if self._phase is _Phase.OPEN:
            self._is_starved = True
            self._let_go()

    def refuse(self, *, answers: bool) -> None:
        """Close it unfired. The first join of a job `answers` the caller, the others wait until that is done."""
        if not self._refused:
            self._refused = True
            self._is_waiting = not answers

    def refusal_answered(self) -> None:
        """The caller was told."""
        if self._refused and self._phase is _Phase.OPEN:
            self._phase = _Phase.FIRED
            self._let_go()

    def fired(self) -> None:
        """What it became is acknowledged."""
        if self._phase is _Phase.FIRING:
            self._phase = _Phase.FIRED
        self._let_go()

    def acknowledged(self, marker: MarkerBody, now_ms: int) -> list[int]:
        """Our marker is in the log, wherever; returns the offsets that it settles."""
        if marker is self._outstanding:
            self._outstanding = None
        return self._cover(marker, now_ms)

    def not_taken(self, marker: MarkerBody, now_ms: int) -> list[int]:
        """Our marker is refused, or has nowhere to go; returns the offsets that it settles all the same.

        It is tried again without what makes it large; in the end the join is done without: offsets that are held for
        ever cost more than a join that is perhaps fired again.
        """
        if marker is not self._outstanding:
            return []
        self._outstanding = None
        self._untaken += 1
        self._mark_ms = now_ms + _MARKER_RETRY_MS
        return self._cover(marker, now_ms) if self._untaken >= _MARKER_ATTEMPTS else []

    def marked(self, offset: int, marker: MarkerBody, appended_ms: int) -> list[int]:
        """A marker was read, ours or that of another joiner; returns the offsets that it settles."""
        settled = self._cover(marker, appended_ms)
        if marker.is_closing:
            settled += self._markers
            self._markers.clear()
        self._markers.append(offset)
        return settled

    def _cover(self, marker: MarkerBody, appended_ms: int) -> list[int]:
        self._is_marked = True
        self._refused = self._refused or marker.is_refused
        covered = [offset for offset in self._uncovered if offset <= marker.last_offset]
        self._uncovered = [offset for offset in self._uncovered if offset > marker.last_offset]
        if self._phase is not _Phase.CLOSED:
            self._phase = _Phase.FIRED if self._phase is not _Phase.FIRING else self._phase
            self._seen.update(marker.seen)
            self._expected = marker.expected if marker.expected is not None else self._expected
            latest = appended_ms + self.headers.request.ttl_ms + self._patience.close_ms
            self._close_ms = self._close_ms or min(marker.until_unix_ms, latest)
        if marker.is_closing:
            self._close()
            self._forget_ms = max(self._forget_ms, appended_ms + self._patience.keep_ms)
        if self._phase is not _Phase.FIRING:
            self._let_go()
        return covered

    def _close(self) -> None:
        """It is only remembered from now on, for a while; there may be thousands like it."""
        self._phase = _Phase.CLOSED
        self._seen = _NO_SOURCES
        request, hop = self.headers.request, self.headers.hop
        plan, pipeline, step = map(sys.intern, (hop.plan, hop.pipeline, hop.step))
        hop = Hop(self.key.job, plan, pipeline, step, hop.branch)
        self.headers = PartHeaders(RequestHeaders(self.key.job, None, request.ttl_ms, hop=hop), hop, PartKind.MARKER)

    def _let_go(self) -> None:
        """It will not be fired again: its values are needed no more."""
        self.parts, self.held_bytes = _NO_PARTS, 0

    def forgotten(self) -> list[int]:
        """The offsets that end with it."""
        return self._markers

    # --- what is to be done -------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether it waits for parts before it can be fired."""
        return self._phase is _Phase.OPEN

    @property
    def _is_busy(self) -> bool:
        """Whether something that was decided is not acknowledged yet."""
        return self._phase is _Phase.FIRING or self._outstanding is not None

    @property
    def is_starved(self) -> bool:
        """Whether its values were not kept."""
        return self._is_starved

    @property
    def is_refused(self) -> bool:
        """Whether its job was not taken in."""
        return self._refused

    @property
    def held(self) -> int:
        """Records that are not settled."""
        return len(self._uncovered) + len(self._markers)

    @property
    def _is_over(self) -> bool:
        return self._refused or (self._expected is not None and len(self._seen) >= self._expected)

    def decide(self, now_ms: int, last_offset: int, is_ready: IsReady, *, is_cancelled: bool) -> Decision | None:
        """What is to be done now, if anything; to be carried out by whoever asked."""
        if self._phase is _Phase.OPEN:
            return self._decide_firing(now_ms, is_ready, is_cancelled=is_cancelled)
        if self._is_busy or now_ms < self._mark_ms:
            return None
        if self._phase is _Phase.FIRED:
            is_closing = self._is_over or now_ms >= self._close_ms
            return self._mark(last_offset, is_closing=is_closing) if is_closing or not self._is_marked else None
        if self._uncovered:
            return self._mark(last_offset, is_closing=True) if now_ms >= self._linger_ms else None
        return Forget(self.key) if now_ms >= self._forget_ms else None

    def _decide_firing(self, now_ms: int, is_ready: IsReady, *, is_cancelled: bool) -> Fire | None:
        plan = self._plan
        if plan is None or self._is_waiting:
            return None
        if self._refused:
            why = Why.REFUSED
        elif is_cancelled:
            why = Why.CANCELLED
        elif self._is_worth_asking(plan) and is_ready(plan, self.key.join, self.parts):
            why = Why.READY
        elif now_ms >= self._fire_ms:
            why = Why.EXPIRED
        else:
            return None
        self._phase = _Phase.FIRING
        return Fire(self.key, plan, why, self.parts, self.headers, self.deadline_ms, self._ran)

    def _is_worth_asking(self, plan: Plan) -> bool:
        """Thousands of rows are not looked through once for each: only when one of them can have decided it."""
        node = plan.by_name[self.key.join]
        if node.kind != "gather" or self._is_over:
            return True
        return self._values >= node.quorum if node.quorum else node.is_fail_fast and self._errors > 0

    def _mark(self, last_offset: int, *, is_closing: bool) -> Mark:
        body = MarkerBody(
            seen=() if is_closing or self._untaken else tuple(sorted(self._seen)),
            last_offset=last_offset,
            is_closing=is_closing,
            until_unix_ms=0 if is_closing else self._close_ms,
            expected=None if is_closing or self._untaken else self._expected,
            is_refused=self._refused,
        )
        self._outstanding = body
        return Mark(self.key, self.headers, body)

    def next_ms(self) -> int | None:
        """When `decide` may say something new without anything happening; None when something must happen."""
        if self._is_busy:
            return None
        if self._phase is _Phase.OPEN:
            return None if self._is_waiting else self._fire_ms
        if self._phase is _Phase.FIRED:
            is_due = self._is_over or not self._is_marked
            return max(self._mark_ms, 0 if is_due else self._close_ms)
        return max(self._mark_ms, self._linger_ms if self._uncovered else self._forget_ms)
