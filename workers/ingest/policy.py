"""When to cut a batch, and how large: decisions over values and a `now`, without a clock of its own.

Batches form while the device is busy: one runs, one is ready, and the queue behind them grows by itself, so sizes
follow the load without a timer. On top of that stand predictions from measured times:

- A request that cannot be answered by its deadline even now is refused, since computing it helps nobody (the early drop
  of Nexus, SOSP'19, and Clockwork, OSDI'20). How many stay in the batch decides how long it takes, so whoever is
  refused may save the next. A reserve on top, learned from what came late, keeps late answers rare.
- The batch shrinks to save its most urgent request when the engine keeps up with room to spare at that size.
- While a batch runs, the ready one stays open until shortly before the engine frees, which `Handover` times.
- With a free engine a batch waits only if the operator allows a delay, the engine would otherwise fall behind and
  another arrival is expected before the most urgent request would suffer.

The simulator in `benchmarks` runs this very class.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import msgspec

from contracts.serving_specs import BatchingSpec
from workers.ingest.buckets import Buckets, batch_sizes
from workers.ingest.latency import ArrivalRate, LatencyTable
from workers.ingest.reserve import Reserve, most_reserve

DEPTH = 2
"""Batches an engine holds: one runs, one is ready. Deeper adds latency, not throughput."""
_SPARE = 1.5  # times the arrival rate: what a smaller batch must serve to be cut for the most urgent request's sake
_AWAITED = 0.1  # expected arrivals from which on a batch stays open that could not run yet anyway
_LATE_BINDING = 1.0  # seconds after its expected end at which a batch is no longer waited for
_KNEE = 0.95  # of the highest throughput
_PAYS = 0.5  # expected arrivals during a batch, per row of it, from which on a larger batch is worth waiting for


class Waiting(msgspec.Struct, frozen=True, gc=False):
    """What waits under one batch key: rows, when the oldest was taken, the earliest deadline."""

    rows: int
    oldest: float
    deadline: float


class Engine(msgspec.Struct, frozen=True, gc=False):
    """Batches that the engine holds, seconds until it is expected to be free (negative when that is over already) and
    how long an answer then travels; how long a batch travels to it, and how long before it frees the ready one is
    closed.
    """

    in_hand: int
    wait: float
    way_back: float = 0.0
    handover: float = 0.0
    lead: float = 0.001


class Cut(msgspec.Struct, frozen=True):
    """Cut a batch of at most `rows` rows now.

    `ready` is when a batch without rows would be answered; `seconds` is what rows add, None while nobody is refused by
    prediction.
    """

    rows: int
    reason: str
    ready: float
    seconds: Callable[[int], float] | None = None

    def hopeless(self, rows: int) -> float:
        """The deadline before which a request of a batch of so many rows cannot be answered in time."""
        return self.ready if self.seconds is None else self.ready + self.seconds(min(rows, self.rows))


class Wait(msgspec.Struct, frozen=True, gc=False):
    """Decide again at `until` (monotonic seconds), or when something changes.

    Requests whose deadline is before `hopeless` need not wait for that: they can be refused now, and leave room.
    """

    until: float
    hopeless: float = -math.inf


class Hold(msgspec.Struct, frozen=True, gc=False):
    """Nothing to do before the engine or the queue changes."""


Decision = Cut | Wait | Hold
_HOLD = Hold()


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
        self._pads = knobs.padding.batch
        self._objective = knobs.slo_ms / 1000 if knobs.slo_ms is not None else None
        self._follow_table()

    def _use(self, knobs: BatchingSpec) -> None:
        self.buckets = Buckets(batch_sizes(knobs))
        self.table = LatencyTable(self.buckets, is_stepped=knobs.padding.batch)
        self.reserve = Reserve()
        self._allowed = math.inf
        self._refuses = False
        self._rates: list[tuple[int, float]] = []
        self._knee = self.buckets.top
        self._revision = 0
        self._follow_ceiling()

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
        if not rows or not self._refuses or not (late or self.reserve.seconds):
            return
        most = Reserve.DOUBTFUL * self.table.deviation(rows)
        if late or self.reserve.seconds > most:  # otherwise it only falls, and is below the least bound already
            most = max(most, most_reserve(self._rates, self.rate.at(now), self._allowed))
        self.reserve.learn(late / rows, self.table.mean(rows), most)

    def _find_knee(self) -> int:
        """The smallest bucket near peak throughput of which two runs fit the objective: one may just be missed."""
        within = [
            (size, rate)
            for size, rate in self._rates
            if self._objective is None or 2 * self.table.p99(size) <= self._objective
        ] or self._rates[:1]
        peak = max((rate for _, rate in within), default=0.0)
        return next((size for size, rate in within if rate >= _KNEE * peak), self.buckets.top)

    def out_of_memory(self, rows: int) -> bool:
        """A batch of `rows` rows was too large for the device; True when that was not known."""
        if rows // 2 >= self.ceiling:
            return False
        self.ceiling = max(1, rows // 2)
        self._follow_ceiling()
        return True

    def _follow_ceiling(self) -> None:
        self.largest = int(min(self.buckets.top, self.ceiling))
        """Rows in a batch that the model and the memory of its device allow; what is larger runs in parts."""

    # --- what is decided ----------------------------------------------------------------------------------------------

    def decide(self, now: float, waiting: Waiting, engine: Engine) -> Decision:
        """Decide on arrival, when the engine has answered, and at the time that the last decision asked for."""
        if not waiting.rows or engine.in_hand >= DEPTH:
            return _HOLD
        self._allowed = waiting.deadline - waiting.oldest
        self._refuses = self.table.may_refuse(now)
        most = min(waiting.rows, self.largest)
        cut = self._in_time(now, most, waiting.deadline, engine) if self._refuses else Cut(most, "", now)
        if engine.in_hand:
            # A request that has to wait out the running batch may be hopeless now; one that comes later is not.
            until = now + engine.wait - engine.lead
            if self._allowed < 2 * self.table.mean(cut.rows):
                until += _LATE_BINDING  # nobody can wait out a batch: take who is there when it has really ended
            is_open = cut.rows < self.largest or waiting.deadline < cut.hopeless(cut.rows)
            if is_open and self._is_awaited(now, until, _AWAITED):
                return Wait(until, cut.hopeless(1) if self._refuses else -math.inf)
        if cut.rows >= min(self._knee, self.largest):
            return self._cut(cut, "full")
        if cut.rows < most:
            return Cut(cut.rows, "deadline", cut.ready, cut.seconds)
        if engine.in_hand or not self._delay:
            return self._cut(cut, "engine_free")
        return self._with_free_engine(now, cut, waiting)

    def _in_time(self, now: float, rows: int, deadline: float, engine: Engine) -> Cut:
        """The size that saves the most urgent request, if the engine keeps up with room to spare at it."""
        mean = self.table.mean
        ready = now + max(engine.wait, engine.handover) + engine.way_back + self.reserve.seconds
        if rows > 1 and ready + mean(1) <= deadline < ready + mean(rows):
            least = rows
            while ready + mean(least) > deadline:
                least = self.buckets.below(least)
            if least >= _SPARE * self.rate.at(now) * mean(least):
                rows = least
        return Cut(rows, "", ready, mean)

    def _with_free_engine(self, now: float, cut: Cut, waiting: Waiting) -> Decision:
        until, reason = waiting.oldest + self._delay, "delay"
        latest = waiting.deadline - self.reserve.seconds - self.table.mean(cut.rows + 1)
        if latest < until:
            until, reason = latest, "deadline"
        if until <= now:
            return self._cut(cut, reason)
        keeps_up = self.table.is_known and self.rate.at(now) * self.table.mean(cut.rows) < _PAYS * cut.rows
        if keeps_up or not self._is_awaited(now, until):
            return self._cut(cut, "engine_free")
        return Wait(until)

    def _is_awaited(self, now: float, until: float, expected: float = 1.0) -> bool:
        """Whether another arrival is expected by then."""
        return until > now and self.rate.at(now) * (until - now) >= expected

    def _cut(self, cut: Cut, reason: str) -> Cut:
        """Cut at a bucket's boundary when padding up to the next would compute fewer useful rows per second."""
        rows = cut.rows
        if self._pads and self.table.is_known:
            down = self.buckets.down(rows)
            if down < rows and down / self.table.mean(down) > rows / self.table.mean(rows):
                return Cut(down, "bucket", cut.ready, cut.seconds)
        return Cut(rows, reason, cut.ready, cut.seconds)
