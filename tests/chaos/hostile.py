"""Requests that harm their model: only they may suffer from it. Each scenario returns a row of the report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator

import numpy as np

from benchmarks.harness import percentile
from contracts.clock import SystemClock
from contracts.messages import Status
from producer.settings import InboxSettings
from tests.chaos import history
from tests.e2e.hostile_kit import GOOD, HANG, KILL, PARTITIONS, RAISE, Fleet, row
from tests.e2e.hostile_kit import HOSTILE as HOSTILE_MODEL
from tests.helpers import wait_until

ROWS = 32
POISON_BATCHES = 100  # for each repeat
CRASH_REQUESTS = 500
_TTL_SECONDS = 120.0

Figures = dict[str, object]


class Judge:
    """Sends rows with what each asks for, and holds every answer against it."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.statuses: Counter[str] = Counter()
        self.mixed = 0
        self.answered = 0
        self.latencies: list[float] = []

    async def ask(self, wishes: list[int], in_flight: int) -> None:
        """Send one request for each wish; the answers come in their order."""
        number = 0
        requests = ({"row": row(wish, float(value))} for value, wish in enumerate(wishes))
        async for response in self._fleet.client.map(
            "hostile@1", requests, in_flight=in_flight, ordered=True, ttl_seconds=_TTL_SECONDS
        ):
            self.answered += 1
            self.statuses[f"{response.status}:{wishes[number] == GOOD}"] += 1
            if response.status is Status.OK:
                self.latencies.append(response.receipt.total_us / 1000)
                self.mixed += response["sum"].to_numpy().item() != float(number)
            number += 1

    def p99(self) -> float:
        """Of the answers that were good, in milliseconds."""
        return percentile(np.array(self.latencies), 99)


async def _judged(fleet: Fleet, judge: Judge, sent: int, bad: int, since_ms: int) -> Figures:
    """What must hold in every scenario: bad ones POISON, good ones OK, nobody mixed up, each answered once: workers may
    lose their engines here, but keep their partitions.
    """
    kafka = fleet.stack.settings().kafka
    await history.settled(kafka, HOSTILE_MODEL, PARTITIONS)
    finals = await history.read_finals(kafka, InboxSettings().name, since_ms)
    wrong = sent - judge.statuses["OK:True"] - judge.statuses["POISON:False"]
    return {
        "requests": sent,
        "ok": judge.statuses["OK:True"],
        "poison": judge.statuses["POISON:False"],
        "lost": sent - judge.answered,
        "doubled": history.judge("hostile", finals, judge.answered),
        "mixed": judge.mixed,
        "errors": wrong + abs(bad - judge.statuses["POISON:False"]),
    }


async def _letters(fleet: Fleet, before: int, bad: int) -> int:
    await wait_until(lambda: len(fleet.dead) - before >= bad, "dead letters are missing", timeout=30)
    return len(fleet.dead) - before


async def poison(fleet: Fleet, repeats: int, in_flight: int) -> Figures:
    """One raising row in each 32, beside the same load without."""
    batches, before, since_ms = POISON_BATCHES * repeats, len(fleet.dead), SystemClock().unix_ms()
    base = Judge(fleet)
    await base.ask([GOOD] * (ROWS * batches // 4), in_flight)
    cuts = await fleet.metric("headrace_worker_cuts_total", reason="retry")
    judge = Judge(fleet)
    await judge.ask([RAISE if number % ROWS == ROWS // 4 else GOOD for number in range(ROWS * batches)], in_flight)
    figures = await _judged(fleet, judge, ROWS * batches, batches, since_ms)
    forwards = await fleet.metric("headrace_worker_cuts_total", reason="retry") - cuts
    return {
        **figures,
        "dead_letters": await _letters(fleet, before, batches),
        "extra_forwards_each": round(forwards / batches, 2),
        "base_p99_ms": round(base.p99(), 1),
        "good_p99_ms": round(judge.p99(), 1),
        "p99_ratio": round(judge.p99() / max(base.p99(), 1e-9), 2),
    }


def _crashing(requests: int) -> Iterator[int]:
    harm = {requests // 5: KILL, 2 * requests // 5: HANG, 3 * requests // 5: KILL, 4 * requests // 5: KILL}
    return (harm.get(number, GOOD) for number in range(requests))


async def crash_poison(fleet: Fleet, repeats: int, in_flight: int) -> Figures:
    """Three rows that SIGKILL their engine and one that wedges it, among others."""
    requests, before, since_ms = CRASH_REQUESTS * repeats, len(fleet.dead), SystemClock().unix_ms()
    warm = Judge(fleet)
    await warm.ask([GOOD] * 200, in_flight)  # until the watchdog knows how long a batch takes
    deaths = await fleet.metric("headrace_engine_restarts_total")
    started = time.monotonic()
    judge = Judge(fleet)
    await judge.ask(list(_crashing(requests)), in_flight)
    seconds = time.monotonic() - started
    figures = await _judged(fleet, judge, requests, 4, since_ms)
    letters = await _letters(fleet, before, 4)
    attempts = [int(dict(letter.headers)["dead-attempts"] or "") for letter in fleet.dead[before:]]
    return {
        **figures,
        "dead_letters": letters,
        "attempts_max": max(attempts),
        "engine_deaths": int(await fleet.metric("headrace_engine_restarts_total") - deaths),
        "seconds": round(seconds, 1),
    }


Act = Callable[[Fleet, int, int], Awaitable[Figures]]
HOSTILE: dict[str, Act] = {"poison": poison, "crash-poison": crash_poison}
