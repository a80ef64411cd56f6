"""When to cut a batch, and how large: decisions over values and a `now`, without a clock of its own.

Batches form while the device is busy: one runs, one is ready, and the queue behind them grows by itself, so sizes
follow the load without a timer. On top of that stand three predictions, all from measured times per bucket:

- A request that cannot be answered by its deadline even now is refused at once, since computing it helps nobody. The
  batch shrinks to save its most urgent request, but never below the size at which the engine keeps up with the
  arrivals: under overload that would trade many answers for one.
- With a free engine a batch waits only if the operator allows a delay (or states an objective, `slo_ms`), if the engine
  would otherwise fall behind, and if another arrival is expected before the most urgent request would suffer.
- While a batch runs, the ready one stays open until shortly before the engine frees: that costs no one anything.

A guard lowers the cap when answers come late all the same. The simulator in `benchmarks` runs this very class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from contracts.serving_specs import BatchingSpec
from workers.ingest.buckets import Buckets, batch_sizes
from workers.ingest.latency import ArrivalRate, LatencyTable

DEPTH = 2
"""Batches an engine holds: one runs, one is ready. Deeper adds latency, not throughput."""
_LEAD_SECONDS = 0.001  # the ready batch is closed this long before the engine frees: a timer's error and one copy
_MIN_SLACK_SECONDS = 0.002
_SLACK_OF_OBJECTIVE = 0.08
_KNEE = 0.95  # of the highest throughput
_KEEPS_UP = 1.05  # of the arrival rate
_PAYS = 0.5  # expected arrivals during a batch, per row of it, from which on a larger batch is worth waiting for


class Waiting(NamedTuple):
    """What waits under one batch key: rows, when the oldest was taken, the earliest deadline."""

    rows: int
    oldest: float
    deadline: float


class Engine(NamedTuple):
    """Batches that the engine holds, seconds until it is expected to be free, and how long an answer then travels."""

    in_hand: int
    wait: float
    way_back: float = 0.0


class Cut(NamedTuple):
    """Cut a batch of at most `rows` rows now, leaving out requests whose deadline is before `hopeless`."""

    rows: int
    reason: str
    hopeless: float


class Wait(NamedTuple):
    """Decide again at `until` (monotonic seconds), or when something changes.

    Requests whose deadline is before `hopeless` need not wait for that: they can be refused now, and leave room.
    """

    until: float
    hopeless: float = -math.inf


class Hold(NamedTuple):
    """Nothing to do before the engine or the queue changes."""


Decision = Cut | Wait | Hold
_HOLD = Hold()


class MissGuard:
    """Lowers the cap on batch sizes while answers come late, and raises it again with care.

    Under overload every request that is taken is about to expire, and no smaller batch would save it. So there is a
    margin, too, by which requests must be better than predicted: others wait that are.
    """

    WINDOW_SECONDS = 5.0
    CLEAN_WINDOWS = 20
    TOLERATED = 0.01
    MARGINS = (0.002, 0.05)
    """The first step of the margin and its end, in seconds; it doubles, and shrinks by a tenth per clean window."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets
        self.cap = buckets.top
        self.margin = 0.0
        self._answered = self._late = self._clean = 0
        self._window_ends = 0.0

    def observe(self, now: float, answered: int, late: int) -> bool:
        """`late` of `answered` rows came after their deadline; True when a window is over and is to be judged."""
        self._answered += answered
        self._late += late
        return now >= self._window_ends

    def judge(self, now: float, floor: int) -> None:
        """Draw the conclusion from a window and begin the next; the cap does not fall below `floor`."""
        if self._late > self.TOLERATED * self._answered:
            self._clean = 0
            self.margin = min(max(2 * self.margin, self.MARGINS[0]), self.MARGINS[1])
            lower = min(self._buckets.below(self.cap), int(self.cap * 0.9))
            self.cap = max(1, min(self.cap, max(lower, floor)))
        elif self._answered:
            self._clean += 1
            self.margin = 0.9 * self.margin if self.margin > self.MARGINS[0] else 0.0
            if self._clean >= self.CLEAN_WINDOWS and self.cap < self._buckets.top:
                self._clean = 0
                self.cap = self._buckets.up(self.cap + 1)
        self._answered = self._late = 0
        self._window_ends = now + self.WINDOW_SECONDS


class Policy:
    """Decides for one model; fed with arrivals and with what batches took."""

    def __init__(self, knobs: BatchingSpec) -> None:
        self.rate = ArrivalRate()
        self.ceiling: float = math.inf
        """Rows that the device has memory for, as far as it was found out; lasts as long as this worker."""
        self._seeds: Mapping[int, Sequence[float]] = {}
        self._use(knobs)
        self.configure(knobs)

    def configure(self, knobs: BatchingSpec) -> None:
        """Take new knobs. What was learned is kept unless the buckets change."""
        if batch_sizes(knobs) != self.buckets.sizes:
            self._use(knobs)
            self.table.seed(self._seeds)
        self.knobs = knobs
        self._delay = knobs.delay_seconds
        self._objective = knobs.slo_ms / 1000 if knobs.slo_ms is not None else None
        self._slack = max(_MIN_SLACK_SECONDS, _SLACK_OF_OBJECTIVE * (self._objective or 0.0))
        self._follow_table()

    def _use(self, knobs: BatchingSpec) -> None:
        self.buckets = Buckets(batch_sizes(knobs))
        self.table = LatencyTable(self.buckets)
        self.guard = MissGuard(self.buckets)
        self._rates: list[tuple[int, float]] = []
        self._knee = self.buckets.top
        self._revision = 0

    # --- what is learned ----------------------------------------------------------------------------------------------

    def arrived(self, now: float, rows: int) -> None:
        """Rows were queued."""
        self.rate.observe(now, rows)

    def seed(self, seconds: Mapping[int, Sequence[float]]) -> None:
        """Predict from what batches took before the first request, by rows, until real ones say more."""
        if seconds:
            self._seeds = seconds
            self.table.seed(seconds)
            self._follow_table()

    def finished(self, now: float, rows: int, seconds: float) -> None:
        """A batch of `rows` rows took the engine `seconds`."""
        self.table.observe(now, rows, seconds)
        if self.table.revision != self._revision:
            self._follow_table()

    def _follow_table(self) -> None:
        self._revision = self.table.revision
        self._rates = self.table.rates()
        self._knee = self._find_knee()

    def answered(self, now: float, rows: int, late: int) -> None:
        """The rows of a batch were answered, `late` of them after their deadline."""
        if self.guard.observe(now, rows, late):
            self.guard.judge(now, self.sustaining(now))

    def _find_knee(self) -> int:
        """The smallest bucket near peak throughput of which two runs fit the objective: one may just be missed."""
        within = [
            (size, rate)
            for size, rate in self._rates
            if self._objective is None or 2 * self.table.p99(size) <= self._objective
        ] or self._rates[:1]
        peak = max((rate for _, rate in within), default=0.0)
        return next((size for size, rate in within if rate >= _KNEE * peak), self.buckets.top)

    def sustaining(self, now: float, allowed: float = math.inf) -> int:
        """The smallest bucket at which requests that may take `allowed` seconds are served as fast as they arrive.

        Where none is: the one that serves most. Of the requests that arrive while a batch runs only those are in time
        that come late enough to outlast the next one, so a larger batch is not always the better one.
        """
        arriving = self.rate.at(now)
        best, most = 1, 0.0
        for size, rate in self._rates:
            in_time = arriving * (allowed - self._slack - self.table.p99(size))
            served = rate if in_time >= size else rate * in_time / size
            if served > most:
                best, most = size, served
                if served >= _KEEPS_UP * arriving:
                    break
        return best

    def out_of_memory(self, rows: int) -> bool:
        """A batch of `rows` rows was too large for the device; True when that was not known."""
        if rows // 2 >= self.ceiling:
            return False
        self.ceiling = max(1, rows // 2)
        return True

    @property
    def largest(self) -> int:
        """Rows in a batch that the model and the memory of its device allow; what is larger runs in parts."""
        return int(min(self.buckets.top, self.ceiling))

    @property
    def cap(self) -> int:
        """Rows in a batch, at most."""
        return int(min(self.buckets.top, self.guard.cap, self.ceiling))

    # --- what is decided ----------------------------------------------------------------------------------------------

    def decide(self, now: float, waiting: Waiting, engine: Engine) -> Decision:
        """Decide on arrival, when the engine has answered, and at the time that the last decision asked for."""
        if not waiting.rows or engine.in_hand >= DEPTH:
            return _HOLD
        cap = self.cap
        rows, hopeless = self._in_time(now, min(waiting.rows, cap), waiting, engine.wait + engine.way_back)
        if engine.in_hand:
            # A request that has to wait out the running batch may be hopeless now; one that comes later is not.
            until = now + engine.wait - _LEAD_SECONDS
            if (rows < cap or waiting.deadline < hopeless) and self._is_awaited(now, until):
                return Wait(until, hopeless)
        if rows >= min(self._knee, cap):
            return self._cut(rows, "full", hopeless)
        if rows < min(waiting.rows, cap):
            return Cut(rows, "deadline", hopeless)
        if engine.in_hand:
            return self._cut(rows, "engine_free", hopeless)
        return self._with_free_engine(now, rows, hopeless, waiting)

    def _in_time(self, now: float, rows: int, waiting: Waiting, wait: float) -> tuple[int, float]:
        """How many rows can be answered in time, and the deadline before which a request cannot."""
        if not self.table.may_refuse(now):
            return rows, now
        p99, ready, deadline = self.table.p99, now + wait + self._slack + self.guard.margin, waiting.deadline
        if ready + p99(rows) > deadline:
            least = self.sustaining(now, deadline - waiting.oldest)
            while rows > least and ready + p99(rows) > deadline:
                rows = max(self.buckets.below(rows), least)
        return rows, ready + p99(rows)

    def _with_free_engine(self, now: float, rows: int, hopeless: float, waiting: Waiting) -> Decision:
        until, reason = waiting.oldest + self._delay, "delay"
        latest = waiting.deadline - self._slack - self.table.p99(rows + 1)
        if latest < until:
            until, reason = latest, "deadline"
        if until <= now:
            return self._cut(rows, reason if self._delay else "engine_free", hopeless)
        keeps_up = self.table.is_known and self.rate.at(now) * self.table.mean(rows) < _PAYS * rows
        if keeps_up or not self._is_awaited(now, until):
            return self._cut(rows, "engine_free", hopeless)
        return Wait(until)

    def _is_awaited(self, now: float, until: float) -> bool:
        """Whether another arrival is expected by then."""
        return until > now and self.rate.at(now) * (until - now) >= 1

    def _cut(self, rows: int, reason: str, hopeless: float) -> Cut:
        """Cut at a bucket's boundary when padding up to the next would compute fewer useful rows per second."""
        if self.knobs.padding.batch and self.table.is_known:
            down = self.buckets.down(rows)
            if down < rows and down / self.table.mean(down) > rows / self.table.mean(rows):
                return Cut(down, "bucket", hopeless)
        return Cut(rows, reason, hopeless)
