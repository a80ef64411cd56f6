"""The batching policies that the simulator compares: the worker's own, and what other servers do.

The others are every request alone, a fixed delay (Triton, TorchServe), and a batch size found by additive increase and
multiplicative decrease (AIMD: Clipper, NSDI'17). Unless they are uninformed they know exactly what the device takes on
average, which no server does, and refuse with that what cannot be in time any more. Ours has to find it out.
"""

from __future__ import annotations

import random
from collections import deque
from typing import NamedTuple, Protocol

from contracts.serving_specs import BatchingSpec
from workers.ingest.batch_queue import BatchQueue
from workers.ingest.delivery import Delivery
from workers.ingest.handover import Handover
from workers.ingest.policy import DEPTH, Cut, Engine, Policy, Wait


class Device(NamedTuple):
    """How long a batch takes: `fixed` seconds and `per_row` for each row, with a relative `jitter`.

    A share `tail` of the batches takes twice as long. A batch for an idle device begins a `handover` after it was cut;
    one that was cut before the device freed begins at once.
    """

    fixed: float = 0.008
    per_row: float = 0.0001
    jitter: float = 0.03
    tail: float = 0.0
    handover: float = 0.0005
    max_rows: int = 64

    def seconds_on_average(self, rows: int) -> float:
        return self.fixed + self.per_row * rows

    def seconds(self, rows: int, dice: random.Random) -> float:
        factor = max(0.5, dice.gauss(1.0, self.jitter))
        return self.seconds_on_average(rows) * factor * (2.0 if dice.random() < self.tail else 1.0)

    @property
    def peak(self) -> float:
        """Rows per second in the largest batches."""
        return self.max_rows / self.seconds_on_average(self.max_rows)


class Run(NamedTuple):
    """A batch in the device: when it was launched, whether that was idle, and how long it computes."""

    batch: list[Delivery]
    launched: float
    was_idle: bool
    begins: float
    seconds: float


class Batching(Protocol):
    """A policy under test. Times are virtual seconds."""

    name: str

    def put(self, request: Delivery) -> None:
        """A request arrives."""

    def next(self, now: float, in_hand: int, engine_wait: float) -> list[Delivery] | float | None:
        """A batch to launch (it may be empty when all were refused), when to ask again, or None for nothing."""

    def expected(self, rows: int) -> float:
        """Seconds that a batch is expected to take."""

    def done(self, now: float, run: Run) -> None:
        """A batch is back."""


class Ours:
    """The worker's policy, queue and timing, with what an engine measures before the first request."""

    name = "headrace"

    def __init__(self, device: Device, objective: float) -> None:
        self._policy = Policy(BatchingSpec(max_batch_size=device.max_rows, slo_ms=objective * 1000))
        self._queue = BatchQueue()
        self._handover = Handover()
        dice = random.Random(0)
        self._policy.seed({rows: [device.seconds(rows, dice) for _ in range(5)] for rows in self._policy.buckets.sizes})
        self.reasons: dict[str, int] = {}

    def put(self, request: Delivery) -> None:
        self._policy.arrived(request.taken, request.rows)
        self._queue.put(request)

    def next(self, now: float, in_hand: int, engine_wait: float) -> list[Delivery] | float | None:
        if not self._queue:
            return None
        engine = Engine(in_hand, engine_wait, handover=self._handover.seconds, lead=self._handover.lead)
        decision = self._policy.decide(now, self._queue.waiting(None), engine)
        if isinstance(decision, Wait) and self._queue.refuse(None, decision.hopeless):
            decision = self._policy.decide(now, self._queue.waiting(None), engine)
        if isinstance(decision, Cut):
            self.reasons[decision.reason] = self.reasons.get(decision.reason, 0) + 1
            return self._queue.take(None, decision.rows, now, decision.hopeless)[0]
        return decision.until if isinstance(decision, Wait) else None

    def expected(self, rows: int) -> float:
        return self._policy.table.mean(rows)

    def done(self, now: float, run: Run) -> None:
        rows = len(run.batch)
        self._handover.ended(run.seconds - self._policy.table.mean(rows))
        if run.was_idle:
            self._handover.took(now - run.launched - run.seconds)
        self._policy.finished(now, rows, run.seconds)
        self._policy.answered(now, rows, sum(request.deadline < now for request in run.batch))


class _FirstInFirstOut:
    """What the others share: a queue in order of arrival, and who is thrown away when it would be taken."""

    def __init__(self, device: Device, *, is_informed: bool) -> None:
        self._device, self._is_informed = device, is_informed
        self._waiting: deque[Delivery] = deque()

    def put(self, request: Delivery) -> None:
        self._waiting.append(request)

    def _take(self, now: float, wait: float, most: int) -> list[Delivery]:
        batch: list[Delivery] = []
        done = now
        if self._is_informed:
            done += max(wait, self._device.handover) + self.expected(min(most, len(self._waiting)))
        while self._waiting and len(batch) < most:
            request = self._waiting.popleft()
            if request.deadline > done:
                batch.append(request)
        return batch

    def expected(self, rows: int) -> float:
        return self._device.seconds_on_average(rows)

    def done(self, now: float, run: Run) -> None:
        pass


class FixedDelay(_FirstInFirstOut):
    """Wait for a full batch or until the oldest request has waited `delay`."""

    def __init__(self, device: Device, delay: float, *, is_informed: bool = True) -> None:
        super().__init__(device, is_informed=is_informed)
        self._rows, self._delay = device.max_rows, delay
        self.name = f"delay {delay * 1000:.0f} ms"

    def next(self, now: float, in_hand: int, engine_wait: float) -> list[Delivery] | float | None:
        if not self._waiting or in_hand >= DEPTH:
            return None
        until = self._waiting[0].taken + self._delay
        if len(self._waiting) < self._rows and now < until:
            return until
        return self._take(now, engine_wait, self._rows)


class OneByOne(_FirstInFirstOut):
    """No batching."""

    name = "batch 1"

    def next(self, now: float, in_hand: int, engine_wait: float) -> list[Delivery] | float | None:
        return self._take(now, engine_wait, 1) if self._waiting and in_hand < DEPTH else None


class Aimd(_FirstInFirstOut):
    """The largest batch grows by two rows while batches take less than the objective, else shrinks by a tenth."""

    name = "AIMD"

    def __init__(self, device: Device, objective: float, *, is_informed: bool = True) -> None:
        super().__init__(device, is_informed=is_informed)
        self._most, self._rows, self._objective = device.max_rows, 1.0, objective

    def next(self, now: float, in_hand: int, engine_wait: float) -> list[Delivery] | float | None:
        # With a second batch in hand its estimate would contain the wait behind the first: one at a time.
        return self._take(now, engine_wait, int(self._rows)) if self._waiting and in_hand < 1 else None

    def done(self, now: float, run: Run) -> None:
        if run.seconds > self._objective:  # of the computing alone, as it was published; waiting is not in it
            self._rows = max(1.0, self._rows * 0.9)
        elif len(run.batch) >= int(self._rows):
            self._rows = min(self._most, self._rows + 2)


def policies(device: Device, objective: float, *, is_informed: bool = True) -> list[Batching]:
    """Fresh policies, ours first."""
    return [
        Ours(device, objective),
        OneByOne(device, is_informed=is_informed),
        FixedDelay(device, 0.005, is_informed=is_informed),
        FixedDelay(device, 0.010, is_informed=is_informed),
        Aimd(device, objective, is_informed=is_informed),
    ]
