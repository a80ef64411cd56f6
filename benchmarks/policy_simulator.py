"""Batching policies against each other on a virtual clock.

    python -m benchmarks.policy_simulator [--seconds N] [--objective-ms N] [--grid] [--uninformed] [--svg PATH]

Ours is the worker's own policy and queue; beside it stand what other servers do (`benchmarks.batching_policies`). The
engine is imaginary: a batch takes a fixed time and a little more per row, with some jitter, as a device does. Requests
arrive at a Poisson rate, in bursts, or faster than the engine can go. What counts is goodput: answers within the
objective per second. Of every run the first second does not count: all of them learn in it.

`--grid` sets ours against the best of the others in each of 108 cells: three devices, three objectives, six loads, and
batches of which 1 % take twice as long.
"""

from __future__ import annotations

import argparse
import heapq
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from benchmarks.batching_policies import Batching, Device, Run, policies
from benchmarks.harness import percentile, print_table, write_results
from benchmarks.policy_chart import Panel, draw
from contracts.adapters.kafka import Partition
from workers.draining.claim import Claim
from workers.ingest.delivery import Delivery, Origin

WARM_UP_SECONDS = 1.0
_claim = Claim(Partition("simulated", 0), 0)


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


LOADS = (
    Load("poisson 80 %", 0.8),
    Load("poisson 95 %", 0.95),
    Load("bursty 70 %", 0.7, 4.0),
    Load("bursty 90 %", 0.9, 4.0),
    Load("overload 150 %", 1.5),
    Load("overload 200 %", 2.0),
)
DEVICES = (Device(), Device(0.002, 0.0003), Device(0.020, 0.00005))
TAILS = (0.0, 0.01)
OBJECTIVES = (0.030, 0.050, 0.100)


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

    @property
    def late(self) -> float:
        """The share of the answers that came after the objective."""
        return 1 - self.in_time / max(1, len(self.latencies))

    def latency_ms(self, share: float) -> float:
        """A percentile of the answers' latencies."""
        return percentile(np.array(self.latencies) * 1000, share)

    def row(self) -> dict[str, object]:
        return {
            "load": self.load,
            "policy": self.policy,
            "goodput_per_s": round(self.goodput),
            "p50_ms": self.latency_ms(50),
            "p99_ms": self.latency_ms(99),
            "late_percent": 100 * self.late,
            "mean_batch": float(np.mean(self.batches)) if self.batches else 0.0,
        }


class Simulation:
    """One policy, one load, one device; all requests may take `objective` seconds."""

    def __init__(self, policy: Batching, load: Load, device: Device, objective: float, seed: int = 1) -> None:
        self._policy, self._device, self._objective = policy, device, objective
        self._load, self._dice, self._seed = load, random.Random(seed + 1), seed
        self._running: deque[Run] = deque()
        self._free_at = 0.0
        self._events: list[tuple[float, int, str]] = []
        self._numbers = count()

    def run(self, seconds: float) -> Outcome:
        """Run for so many virtual seconds of arrivals after the first, and until the last one is answered."""
        outcome = Outcome(self._policy.name, self._load.name, seconds)
        ends, dice = WARM_UP_SECONDS + seconds, random.Random(self._seed)
        arrivals: Iterator[float] = iter(self._load.arrivals(self._device, ends, dice))
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
            answer = self._policy.next(now, len(self._running), self._expected_wait(now))
            if answer is None:
                return
            if isinstance(answer, float):
                self._at(max(answer, now + 1e-6), "ask")
                return
            if not answer:  # all were refused: what is left may be launched
                continue
            outcome.batches.append(len(answer))
            outcome.launched_late += sum(request.deadline < now for request in answer)
            begins = max(now + self._device.handover, self._free_at)
            run = Run(answer, now, not self._running, begins, self._device.seconds(len(answer), self._dice))
            self._free_at = begins + run.seconds
            self._running.append(run)
            self._at(self._free_at, "done")

    def _expected_wait(self, now: float) -> float:
        """What a worker would expect: the mean for what runs, counted from when it began."""
        if not self._running:
            return 0.0
        return self._running[0].begins - now + sum(self._policy.expected(len(run.batch)) for run in self._running)

    def _finish(self, now: float, outcome: Outcome) -> None:
        run = self._running.popleft()
        for request in run.batch:
            if request.taken >= WARM_UP_SECONDS:
                outcome.latencies.append(now - request.taken)
                outcome.in_time += request.deadline >= now
        self._policy.done(now, run)


def _request(now: float, deadline: float) -> Delivery:
    origin = Origin(_claim, cast("object", None), "", None)  # type: ignore[arg-type]  # nothing looks at the record
    return Delivery(origin, inputs=(), parameters={}, rows=1, batch_key=None, taken=now, deadline=deadline, queued_us=0)


def compare(
    load: Load,
    *,
    seconds: float = 20.0,
    objective: float = 0.050,
    device: Device | None = None,
    is_informed: bool = True,
    seed: int = 1,
) -> list[Outcome]:
    """All policies under one load, ours first."""
    device = device or Device()
    contenders = policies(device, objective, is_informed=is_informed)
    return [Simulation(policy, load, device, objective, seed).run(seconds) for policy in contenders]


class Cell(NamedTuple):
    """Ours against the best that any of the others achieves: at least as much in time, and how long answers take."""

    goodput: float
    p50: float
    p99: float
    late: float

    @classmethod
    def of(cls, outcomes: Sequence[Outcome]) -> Cell:
        """Latencies are set against those of policies that answer hardly less than the best of the others."""
        ours, *others = outcomes
        most = max(other.goodput for other in others)
        peers = [other for other in others if other.goodput >= 0.99 * most]
        p50, p99 = (min(peer.latency_ms(share) for peer in peers) for share in (50, 99))
        return cls(ours.goodput / most, ours.latency_ms(50) / p50, ours.latency_ms(99) / p99, ours.late)


def grid(seconds: float, *, is_informed: bool = True) -> list[dict[str, object]]:
    """A row for each cell."""
    rows: list[dict[str, object]] = []
    for shape in DEVICES:
        for tail in TAILS:
            device = shape._replace(tail=tail)
            for objective in OBJECTIVES:
                for load in LOADS:
                    outcomes = compare(
                        load, seconds=seconds, objective=objective, device=device, is_informed=is_informed
                    )
                    cell = Cell.of(outcomes)
                    rows.append(
                        {
                            "device": f"{device.fixed * 1000:g} ms + {device.per_row * 1000:g}/row",
                            "slow_percent": 100 * tail,
                            "objective_ms": objective * 1000,
                            "load": load.name,
                            "goodput_ratio": cell.goodput,
                            "p50_ratio": cell.p50,
                            "p99_ratio": cell.p99,
                            "late_percent": 100 * cell.late,
                        }
                    )
    return rows


def main() -> None:
    """Print the comparison, write build/bench/policy.json and, if asked, the picture."""
    parser = argparse.ArgumentParser(description="Batching policies against each other on a virtual clock.")
    parser.add_argument("--seconds", type=float, default=20.0, help="virtual seconds per run")
    parser.add_argument("--objective-ms", type=float, default=50.0, help="the latency that counts as in time")
    parser.add_argument("--grid", action="store_true", help="ours against the best of the others in every cell")
    parser.add_argument("--uninformed", action="store_true", help="the others are not told what the device takes")
    parser.add_argument("--svg", type=Path, help="draw the picture of the documentation into this file")
    arguments = parser.parse_args()
    device, is_informed = Device(), not arguments.uninformed
    print(
        f"engine: {device.fixed * 1000:g} ms and {device.per_row * 1e6:g} µs per row, {device.peak:,.0f} rows/s in "
        f"batches of {device.max_rows}, {1 / device.seconds_on_average(1):,.0f} one by one"
    )
    if arguments.grid:
        rows = grid(arguments.seconds, is_informed=is_informed)
    else:
        rows = [
            outcome.row()
            for load in LOADS
            for outcome in compare(
                load, seconds=arguments.seconds, objective=arguments.objective_ms / 1000, is_informed=is_informed
            )
        ]
    print_table(rows)
    print(f"written: {write_results('policy', {'peak_per_s': device.peak, 'outcomes': rows})}")
    if arguments.svg:
        arguments.svg.write_text(draw(_panels(device, arguments.seconds)), encoding="utf-8")
        print(f"drawn: {arguments.svg}")


def _panels(device: Device, seconds: float) -> list[Panel]:
    found = {
        objective: [outcome for load in LOADS for outcome in compare(load, seconds=seconds, objective=objective)]
        for objective in OBJECTIVES[:2]
    }
    panels = [
        Panel(
            f"answers within {objective * 1000:g} ms, per second",
            [(outcome.load, outcome.policy, outcome.goodput) for outcome in outcomes],
            device.peak,
            "{:,.0f}",
        )
        for objective, outcomes in found.items()
    ]
    medians = [(each.load, each.policy, each.latency_ms(50)) for each in found[OBJECTIVES[1]]]
    return [*panels, Panel("median latency in ms, 50 ms wanted", medians, 50.0, "{:.1f}")]


if __name__ == "__main__":
    main()
