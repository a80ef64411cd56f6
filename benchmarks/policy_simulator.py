"""Batching policies against each other on a virtual clock.

    python -m benchmarks.policy_simulator [--seconds N] [--objective-ms N] [--svg PATH]

Ours is the worker's own policy and queue; beside it stand what other servers do: every request alone, a fixed delay,
and a batch size found by additive increase and multiplicative decrease. The engine is imaginary: a batch takes a fixed
time and a little more per row, with some jitter, as a device does. Requests arrive at a Poisson rate, in bursts, or
half again as fast as the engine can go. What counts is goodput: answers within the objective per second.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np

from benchmarks.harness import percentile, print_table, write_results
from benchmarks.policy_chart import draw
from contracts.adapters.kafka import Partition
from contracts.serving_specs import BatchingSpec
from workers.draining.claim import Claim
from workers.ingest.batch_queue import BatchQueue
from workers.ingest.delivery import Delivery, Origin
from workers.ingest.policy import DEPTH, Cut, Engine, Policy, Wait

_claim = Claim(Partition("simulated", 0), 0)


class Device(NamedTuple):
    """How long a batch takes: `fixed` seconds and `per_row` for each row, with a relative `jitter`."""

    fixed: float = 0.008
    per_row: float = 0.0001
    jitter: float = 0.03
    max_rows: int = 64

    def seconds_on_average(self, rows: int) -> float:
        return self.fixed + self.per_row * rows

    def seconds(self, rows: int, dice: random.Random) -> float:
        return self.seconds_on_average(rows) * max(0.5, dice.gauss(1.0, self.jitter))

    @property
    def peak(self) -> float:
        """Rows per second in the largest batches."""
        return self.max_rows / self.seconds_on_average(self.max_rows)


class Load(NamedTuple):
    """Arrivals: `share` of the engine's peak rate, `cv2` the squared variation of the gaps (1 is Poisson)."""

    name: str
    share: float
    cv2: float = 1.0

    def arrivals(self, device: Device, seconds: float, dice: random.Random) -> list[float]:
        """Times of arrival. Gaps above Poisson's variation are drawn from two exponentials with balanced means."""
        rate, now, times = self.share * device.peak, 0.0, []
        skew = ((self.cv2 - 1) / (self.cv2 + 1)) ** 0.5
        chance = (1 + skew) / 2
        while now < seconds:
            quick = dice.random() < chance
            now += dice.expovariate(2 * rate * (chance if quick else 1 - chance))
            times.append(now)
        return times


LOADS = (Load("poisson 80 %", 0.8), Load("bursty 70 %", 0.7, 4.0), Load("overload 150 %", 1.5))


class Batching(Protocol):
    """A policy under test. Times are virtual seconds."""

    name: str

    def put(self, request: Delivery) -> None:
        """A request arrives."""

    def next(self, now: float, in_hand: int, engine_wait: float) -> list[Delivery] | float | None:
        """A batch to launch (it may be empty when all were refused), when to ask again, or None for nothing."""

    def expected(self, rows: int) -> float:
        """Seconds that a batch is expected to take."""

    def done(self, now: float, batch: list[Delivery], seconds: float) -> None:
        """A batch took the engine `seconds`."""


class Ours:
    """The worker's policy and queue."""

    name = "headrace"

    def __init__(self, device: Device, objective: float) -> None:
        self._policy = Policy(BatchingSpec(max_batch_size=device.max_rows, slo_ms=objective * 1000))
        self._queue = BatchQueue()
        self.reasons: dict[str, int] = {}

    def put(self, request: Delivery) -> None:
        self._policy.arrived(request.taken, request.rows)
        self._queue.put(request)

    def next(self, now: float, in_hand: int, engine_wait: float) -> list[Delivery] | float | None:
        if not self._queue:
            return None
        engine = Engine(in_hand, engine_wait)
        decision = self._policy.decide(now, self._queue.waiting(None), engine)
        if isinstance(decision, Wait) and self._queue.refuse(None, decision.hopeless):
            decision = self._policy.decide(now, self._queue.waiting(None), engine)
        if isinstance(decision, Cut):
            self.reasons[decision.reason] = self.reasons.get(decision.reason, 0) + 1
            return self._queue.take(None, decision.rows, now, decision.hopeless)[0]
        return decision.until if isinstance(decision, Wait) else None

    def expected(self, rows: int) -> float:
        return self._policy.table.mean(rows)

    def done(self, now: float, batch: list[Delivery], seconds: float) -> None:
        self._policy.finished(now, len(batch), seconds)
        self._policy.answered(now, len(batch), sum(request.deadline < now for request in batch))


class _FirstInFirstOut:
    """What the others share: a queue in order of arrival.

    Requests that cannot be in time any more are thrown away when they would be taken. For that they are told what the
    device takes for a batch of that size, which ours has to find out.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._waiting: deque[Delivery] = deque()

    def put(self, request: Delivery) -> None:
        self._waiting.append(request)

    def _take(self, now: float, wait: float, most: int) -> list[Delivery]:
        batch: list[Delivery] = []
        done = now + wait + self.expected(min(most, len(self._waiting)))
        while self._waiting and len(batch) < most:
            request = self._waiting.popleft()
            if request.deadline > done:
                batch.append(request)
        return batch

    def expected(self, rows: int) -> float:
        return self._device.seconds_on_average(rows)

    def done(self, now: float, batch: list[Delivery], seconds: float) -> None:
        pass


class FixedDelay(_FirstInFirstOut):
    """Wait for a full batch or until the oldest request has waited `delay`."""

    def __init__(self, device: Device, delay: float) -> None:
        super().__init__(device)
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

    def __init__(self, device: Device, objective: float) -> None:
        super().__init__(device)
        self._most, self._rows, self._objective = device.max_rows, 1.0, objective

    def next(self, now: float, in_hand: int, engine_wait: float) -> list[Delivery] | float | None:
        # With a second batch in hand its estimate would contain the wait behind the first: one at a time.
        return self._take(now, engine_wait, int(self._rows)) if self._waiting and in_hand < 1 else None

    def done(self, now: float, batch: list[Delivery], seconds: float) -> None:
        if seconds > self._objective:  # of the computing alone, as it was published; waiting is not in it
            self._rows = max(1.0, self._rows * 0.9)
        elif len(batch) >= int(self._rows):
            self._rows = min(self._most, self._rows + 2)


@dataclass
class Outcome:
    """What a policy achieved under a load."""

    policy: str
    load: str
    seconds: float
    in_time: int = 0
    launched_late: int = 0
    latencies: list[float] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    @property
    def goodput(self) -> float:
        return self.in_time / self.seconds

    def row(self) -> dict[str, object]:
        answered = np.array(self.latencies) * 1000
        return {
            "load": self.load,
            "policy": self.policy,
            "goodput_per_s": round(self.goodput),
            "p50_ms": percentile(answered, 50),
            "p99_ms": percentile(answered, 99),
            "mean_batch": float(np.mean(self.batches)) if self.batches else 0.0,
        }


def policies(device: Device, objective: float) -> list[Batching]:
    """Fresh policies, ours first."""
    return [
        Ours(device, objective),
        OneByOne(device),
        FixedDelay(device, 0.005),
        FixedDelay(device, 0.010),
        Aimd(device, objective),
    ]


class Simulation:
    """One policy, one load, one device; all requests may take `objective` seconds."""

    def __init__(self, policy: Batching, load: Load, device: Device, objective: float, seed: int = 1) -> None:
        self._policy, self._device, self._objective = policy, device, objective
        self._load, self._dice, self._seed = load, random.Random(seed + 1), seed
        self._running: deque[tuple[list[Delivery], float]] = deque()
        self._free_at = 0.0
        self._events: list[tuple[float, int, str]] = []
        self._numbers = count()

    def run(self, seconds: float) -> Outcome:
        """Run for so many virtual seconds of arrivals, and until the last one is answered."""
        outcome = Outcome(self._policy.name, self._load.name, seconds)
        arrivals: Iterator[float] = iter(self._load.arrivals(self._device, seconds, random.Random(self._seed)))
        upcoming = next(arrivals, None)
        while upcoming is not None or self._events:
            if upcoming is not None and (not self._events or upcoming <= self._events[0][0]):
                now = upcoming
                self._policy.put(_request(now, now + self._objective))
                upcoming = next(arrivals, None)
            else:
                now, _, kind = heapq.heappop(self._events)
                if kind == "done":
                    self._finish(now, outcome)
            self._launch(now, outcome)
        return outcome

    def _at(self, when: float, kind: str) -> None:
        heapq.heappush(self._events, (when, next(self._numbers), kind))

    def _launch(self, now: float, outcome: Outcome) -> None:
        while True:
            wait = self._expected_wait(now)
            answer = self._policy.next(now, len(self._running), wait)
            if answer is None:
                return
            if isinstance(answer, float):
                self._at(max(answer, now + 1e-6), "ask")
                return
            if not answer:  # all were refused: what is left may be launched
                continue
            outcome.batches.append(len(answer))
            outcome.launched_late += sum(request.deadline < now for request in answer)
            seconds = self._device.seconds(len(answer), self._dice)
            self._free_at = max(now, self._free_at) + seconds
            self._running.append((answer, seconds))
            for request in answer:
                request.launched = now
            self._at(self._free_at, "done")

    def _expected_wait(self, now: float) -> float:
        """What a worker would expect: the mean for what runs, counted from when it began."""
        if not self._running:
            return 0.0
        batch = self._running[0][0]
        began = self._free_at - sum(seconds for _, seconds in self._running)
        return max(0.0, began + self._policy.expected(len(batch)) - now)

    def _finish(self, now: float, outcome: Outcome) -> None:
        batch, seconds = self._running.popleft()
        for request in batch:
            outcome.latencies.append(now - request.taken)
            outcome.in_time += request.deadline >= now
        self._policy.done(now, batch, seconds)


def _request(now: float, deadline: float) -> Delivery:
    origin = Origin(_claim, cast("object", None), "", None)  # type: ignore[arg-type]  # nothing looks at the record
    return Delivery(origin, inputs=(), parameters={}, rows=1, batch_key=None, taken=now, deadline=deadline, queued_us=0)


def compare(
    load: Load, *, seconds: float = 20.0, objective: float = 0.050, device: Device | None = None, seed: int = 1
) -> list[Outcome]:
    """All policies under one load, ours first."""
    device = device or Device()
    return [Simulation(policy, load, device, objective, seed).run(seconds) for policy in policies(device, objective)]


def main() -> None:
    """Print the comparison, write build/bench/policy.json and, if asked, the picture."""
    parser = argparse.ArgumentParser(description="Batching policies against each other on a virtual clock.")
    parser.add_argument("--seconds", type=float, default=20.0, help="virtual seconds per run")
    parser.add_argument("--objective-ms", type=float, default=50.0, help="the latency that counts as in time")
    parser.add_argument("--svg", type=Path, help="draw the goodput into this file")
    arguments = parser.parse_args()
    device = Device()
    outcomes = [
        outcome
        for load in LOADS
        for outcome in compare(load, seconds=arguments.seconds, objective=arguments.objective_ms / 1000)
    ]
    rows = [outcome.row() for outcome in outcomes]
    alone = 1 / device.seconds_on_average(1)
    print(
        f"engine: {device.fixed * 1000:g} ms and {device.per_row * 1e6:g} µs per row, {device.peak:,.0f} rows/s in "
        f"batches of {device.max_rows}, {alone:,.0f} one by one; objective {arguments.objective_ms:g} ms"
    )
    print_table(rows)
    print(f"written: {write_results('policy', {'peak_per_s': device.peak, 'outcomes': rows})}")
    if arguments.svg:
        arguments.svg.write_text(draw(outcomes, device.peak), encoding="utf-8")
        print(f"drawn: {arguments.svg}")


if __name__ == "__main__":
    main()
