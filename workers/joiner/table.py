"""All joins of one claimed partition: parts and markers in, decisions and settled offsets out.

After a claim the partition is read from the committed offset to the end of the log *without* deciding anything: a
marker further on may say that a join was fired long ago. Only then is what is due and unmarked fired.

A partition of parts is never paused, for the part that would complete a job may be the next one. Memory is bounded by
bytes instead: over the bound, the first part of an *unknown* job is refused, which answers and closes that job; jobs
that are known go on, and make room by ending. What was written before the claim may be any amount, and nothing of it
may be answered before its end is read: of jobs above the bound only the fact is kept then, so that they are *starved*,
and they are refused when no marker was found.

A part may be read before its plan has come. Until then nothing is decided of its join, and it is not forgotten: a
marker that was read meanwhile may be all that tells the part from one of an open job. When no plan comes, the join is
*doomed*, and ends its job like a refused one, once.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from typing import NamedTuple, Protocol

from contracts.parts import MarkerBody, PartHeaders
from contracts.plans import Plan
from workers.joiner.join import (
    PATIENCE,
    Arrival,
    Decision,
    Fire,
    Forget,
    IsReady,
    JoinKey,
    JoinState,
    Patience,
    Why,
    key_of,
)

PART_BYTES = 1024
"""What keeping a part costs beside its values."""
JOIN_BYTES = 1024
"""What a join costs, open or remembered."""
_REPLAY = 2  # times the bound: what an earlier owner has taken in and seen grow should go on
_STALE_ALARMS = 1000


class Burden(NamedTuple):
    """What a table holds."""

    open_joins: int
    held_records: int
    held_bytes: int


class Ids(Protocol):
    """Ids of jobs."""

    def __contains__(self, job: object, /) -> bool: ...

    def __len__(self) -> int: ...


class JoinTable:
    """The joins of one claim on one partition. Times are Unix milliseconds by the broker's clock."""

    def __init__(
        self,
        start: int,
        live_from: int,
        *,
        max_bytes: int,
        is_ready: IsReady,
        cancelled: Ids = frozenset(),
        patience: Patience = PATIENCE,
    ) -> None:
        """`start` is the first offset to read, `live_from` the log's end when the partition was claimed."""
        self._live_from = live_from
        self._next = start
        self._max_bytes = max_bytes
        self._is_ready = is_ready
        self._cancelled = cancelled
        self._patience = patience
        self._joins: dict[JoinKey, JoinState] = {}
        self._jobs: Counter[str] = Counter()
        self._refused: dict[str, bool] = {}  # whether the caller was told
        self._starved: set[str] = set()
        self._awaited: Counter[JoinKey] = Counter()
        self._doomed: set[JoinKey] = set()
        self._told_with: dict[str, list[JoinKey]] = {}
        self._touched: dict[JoinKey, None] = {}
        self._alarms: list[tuple[int, int, JoinKey]] = []
        self._alarmed: dict[JoinKey, int] = {}
        self._sequence = itertools.count()
        self._settled: list[int] = []
        self._bytes = 0
        self._is_closed = False
        self.phantoms = 0
        """Joins that were opened by a part whose job was over before the part was written."""

    # --- what was read ------------------------------------------------------------------------------------------------

    def read_to(self, offset: int) -> None:
        """Everything up to `offset`, inclusive, was read, or found not to exist."""
        self._next = max(self._next, offset + 1)

    @property
    def is_live(self) -> bool:
        """Whether the log was read to where it ended at the claim, so that decisions may be taken."""
        return self._next >= self._live_from

    def offer(self, arrival: Arrival, plan: Plan, now_ms: int) -> None:
        """A part was read."""
        self.read_to(arrival.offset)
        key = arrival.key
        is_known = key.job in self._jobs
        state = self._joins.get(key)
        if state is None:
            state = self._open(key, arrival.headers)
            self.phantoms += self.is_live and arrival.headers.request.ttl_ms == 0
        before = state.held_bytes
        if not self.is_live and key.job in self._starved:
            state.starve()
        state.offer(arrival._replace(size=arrival.size + PART_BYTES), plan, now_ms)
        most = self._max_bytes if self.is_live else _REPLAY * self._max_bytes
        if not is_known and self._held_bytes + state.held_bytes - before > most:
            self._refuse_first(state)
        self._bytes += state.held_bytes - before
        self._touched[key] = None

    def await_plan(self, key: JoinKey) -> None:
        """A part was read that cannot be offered yet."""
        self._awaited[key] += 1

    def plan_came(self, key: JoinKey) -> None:
        """It can be now, or never will be."""
        self._awaited[key] -= 1
        if not self._awaited[key]:
            del self._awaited[key]
            self._touched[key] = None

    def doom(self, arrival: Arrival, plan: Plan, now_ms: int) -> None:
        """A part was read whose plan nobody knows; `plan` stands in for it."""
        self._doomed.add(arrival.key)
        self.offer(arrival, plan, now_ms)

    @property
    def _held_bytes(self) -> int:
        return self._bytes + JOIN_BYTES * len(self._joins)

    def _refuse_first(self, state: JoinState) -> None:
        """There is no room for another job."""
        if self.is_live:
            self._refused[state.key.job] = False
            state.refuse(answers=True)
        else:
            self._starved.add(state.key.job)
            state.starve()

    def mark(self, offset: int, headers: PartHeaders, marker: MarkerBody, appended_ms: int) -> None:
        """A marker was read."""
        self.read_to(offset)
        key = key_of(headers.hop)
        state = self._joins.get(key) or self._open(key, headers)
        before = state.held_bytes
        self._settled += state.marked(offset, marker, appended_ms)
        self._bytes += state.held_bytes - before
        if marker.is_refused:
            self._refused[key.job] = True
        self._touched[key] = None

    def _open(self, key: JoinKey, headers: PartHeaders) -> JoinState:
        state = self._joins[key] = JoinState(key, headers, self._patience)
        self._jobs[key.job] += 1
        return state

    def _refuse(self, state: JoinState) -> None:
        """Another join of a job that was not taken in: closed without a word, once the caller has been told."""
        job, before = state.key.job, state.held_bytes
        state.refuse(answers=False)
        if self._refused[job]:
            state.refusal_answered()
        else:
            self._told_with.setdefault(job, []).append(state.key)
        self._bytes += state.held_bytes - before

    # --- what was carried out -----------------------------------------------------------------------------------------

    def fired(self, fire: Fire) -> None:
        """What a join became is acknowledged."""
        state = self._joins[fire.key]
        before = state.held_bytes
        state.fired()
        self._bytes += state.held_bytes - before
        self._touched[fire.key] = None
        if fire.why in (Why.REFUSED, Why.UNKNOWN):
            self._refused[fire.key.job] = True
            self._touched.update(dict.fromkeys(self._told_with.pop(fire.key.job, ())))

    def acknowledged(self, key: JoinKey, marker: MarkerBody, now_ms: int) -> None:
        """A marker of ours is acknowledged."""
        state = self._joins.get(key)
        if state is not None:
            self._settled += state.acknowledged(marker, now_ms)
            self._touched[key] = None

    def not_taken(self, key: JoinKey, marker: MarkerBody, now_ms: int) -> None:
        """The log does not take a marker of ours."""
        state = self._joins.get(key)
        if state is not None:
            self._settled += state.not_taken(marker, now_ms)
            self._touched[key] = None

    def cancel(self) -> None:
        """Fire at once what callers have gone from."""
        if self._cancelled:
            gone = {job for job in self._jobs if job in self._cancelled}
            self._touched.update((key, None) for key in self._joins if key.job in gone)

    def close(self) -> None:
        """Fire nothing more; what was fired still gets its marker."""
        self._is_closed = True

    # --- what is to be done -------------------------------------------------------------------------------------------

    def due(self, now_ms: int) -> list[Decision]:
        """What is to be carried out now; nothing while the log of before the claim is still being read."""
        if not self.is_live:
            return []
        while self._alarms and self._alarms[0][0] <= now_ms:
            _, _, key = heapq.heappop(self._alarms)
            self._alarmed.pop(key, None)
            self._touched[key] = None
        decisions: list[Decision] = []
        while self._touched:
            touched, self._touched = self._touched, {}
            for key in touched:
                state = self._joins.get(key)
                decision = None if state is None else self._decide(state, now_ms)
                if decision is not None:
                    decisions.append(decision)
        return decisions

    def _decide(self, state: JoinState, now_ms: int) -> Decision | None:
        if state.is_open and (self._is_closed or state.key in self._awaited):
            return None
        is_hopeless = state.is_starved or state.key in self._doomed
        if state.is_open and is_hopeless and state.key.job not in self._refused:
            self._refuse_first(state)
        elif state.is_open and state.key.job in self._refused:
            self._refuse(state)
        is_cancelled = state.key.job in self._cancelled
        decision = state.decide(now_ms, self._next - 1, self._is_ready, is_cancelled=is_cancelled)
        if isinstance(decision, Forget):
            if state.key not in self._awaited:
                self._forget(state)
            return None
        self._set_alarm(state)
        if isinstance(decision, Fire) and decision.why is Why.REFUSED and state.key in self._doomed:
            return decision._replace(why=Why.UNKNOWN)
        return decision

    def _set_alarm(self, state: JoinState) -> None:
        """One that rings too early does no harm, and sets the next."""
        alarm = state.next_ms()
        if alarm is not None and alarm < self._alarmed.get(state.key, alarm + 1):
            self._alarmed[state.key] = alarm
            heapq.heappush(self._alarms, (alarm, next(self._sequence), state.key))
            if len(self._alarms) > 2 * len(self._alarmed) + _STALE_ALARMS:  # deadlines of jobs that ended long before
                self._alarms = [(at, next(self._sequence), key) for key, at in self._alarmed.items()]
                heapq.heapify(self._alarms)

    def _forget(self, state: JoinState) -> None:
        self._settled += state.forgotten()
        del self._joins[state.key]
        self._alarmed.pop(state.key, None)
        self._doomed.discard(state.key)
        job = state.key.job
        self._jobs[job] -= 1
        if not self._jobs[job]:
            del self._jobs[job]
            self._refused.pop(job, None)
            self._told_with.pop(job, None)
            self._starved.discard(job)

    def next_ms(self) -> int | None:
        """When `due` is to be asked again if nothing happens before."""
        if not self.is_live:
            return None
        return 0 if self._touched else self._alarms[0][0] if self._alarms else None

    def settled(self) -> list[int]:
        """The offsets that are done since this was last asked."""
        settled, self._settled = self._settled, []
        return settled

    @property
    def burden(self) -> Burden:
        """What it holds."""
        states = self._joins.values()
        return Burden(sum(s.is_open for s in states), sum(s.held for s in states), self._held_bytes)
