"""Twice what the model can do, for a minute: what is served, what is refused, and what it costs in memory.

    python -m benchmarks.overload [--seconds 60] [--load 2.0] [--ttl-ms 500]

Arrivals are open loop: requests come when they come, whatever the service does, at a multiple of the bare model's
ceiling that is measured right before and after. The model is `sim`, so the machine itself is not what is overloaded.
Every response's receipt says how long after the log's stamp its row was launched; a row that runs more than 50 ms
after its time to live is waste. Writes build/bench/overload.json.

`goodput`: OK responses that reached their caller within the time to live. `ok`: all OK responses.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import uvloop

from benchmarks.bare import Ceiling, bare_process
from benchmarks.engine_models import BenchModel, prepare
from benchmarks.harness import (
    control,
    deploy,
    percentile,
    print_table,
    resident_mib,
    running_stack,
    wait_for_workers,
    write_results,
)
from contracts.errors import HeadraceError
from contracts.messages import Response, Status
from producer.client import InferenceClient

_LATE_MS = 50  # that a row may be launched after its time to live: one batch is ahead of it
_MAX_IN_FLIGHT = 100_000
_SETTLE_SECONDS = 3.0  # of load before memory is looked at for the first time
_TICK_SECONDS = 0.002
_BURST = 64  # requests begun before responses get their turn, when the sender has fallen behind
_BARE_SECONDS = 1.0


class OpenLoop:
    """Sends at a rate and collects what comes back."""

    def __init__(self, client: InferenceClient, model: BenchModel, ttl_seconds: float) -> None:
        self._client, self._model, self._ttl = client, model, ttl_seconds
        self._inputs = model.sample(1)
        self.sent = 0
        self.statuses: Counter[str] = Counter()
        self.untyped: Counter[str] = Counter()
        """Requests that ended in an exception instead of a response, by its class."""
        self.in_time = 0
        self.launched_late = 0
        self.latencies: list[float] = []

    async def _ask(self) -> None:
        started = time.perf_counter()
        try:
            response = await self._client.infer(
                self._model.spec.name,
                self._inputs,
                version=self._model.spec.version,
                ttl_seconds=self._ttl,
                raise_on_error=False,
            )
        except HeadraceError as exc:
            self.untyped[type(exc).__name__] += 1
        else:
            self._count(response, time.perf_counter() - started)

    def _count(self, response: Response, seconds: float) -> None:
        self.statuses[response.status.value] += 1
        if response.status is not Status.OK:
            return
        self.latencies.append(seconds)
        self.in_time += seconds <= self._ttl
        receipt = response.receipt
        self.launched_late += receipt.queued_us + receipt.batched_us > self._ttl * 1e6 + _LATE_MS * 1000

    async def run(self, per_second: float, seconds: float) -> float:
        """Send evenly for `seconds`; when every request has ended, returns how long the sending took."""
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            while (elapsed := time.perf_counter() - started) < seconds:
                due = int(elapsed * per_second) - self.sent
                for _ in range(min(due, _BURST)):
                    group.create_task(self._ask())
                    self.sent += 1
                await asyncio.sleep(0 if due > _BURST else _TICK_SECONDS)
        return elapsed


async def measure(model: BenchModel, arguments: argparse.Namespace) -> dict[str, object]:
    """The figures of one run."""
    async with running_stack("embedded") as stack, bare_process(model) as bare:
        async with control(stack) as (registry, leases):
            await deploy(registry, model.folder, model.deployment)
            await wait_for_workers(leases, model.spec.key, 1)
        client = InferenceClient(
            bootstrap=stack.kafka_bootstrap, redis=stack.redis_url, inbox="bench", max_in_flight=_MAX_IN_FLIGHT
        )
        async with client:
            before = await bare.measure(32, _BARE_SECONDS)
            rate = arguments.load * before.rows_per_s
            print(f"{rate:,.0f} requests/s for {arguments.seconds:.0f} s …", file=sys.stderr)
            load = OpenLoop(client, model, arguments.ttl_ms / 1000)
            await load.run(rate, _SETTLE_SECONDS)
            memory = resident_mib(stack)
            load = OpenLoop(client, model, arguments.ttl_ms / 1000)
            seconds = await load.run(rate, arguments.seconds)
            growth = {name: now - memory.get(name, 0.0) for name, now in resident_mib(stack).items()}
            after = await bare.measure(32, _BARE_SECONDS)
            expired_here = client.stats().expired
    return _figures(load, seconds, (before, after), growth) | {"answered_by_client_itself": expired_here}


def _figures(
    load: OpenLoop, seconds: float, bare: tuple[Ceiling, Ceiling], growth: Mapping[str, float]
) -> dict[str, Any]:
    capacity = sum(ceiling.rows_per_s for ceiling in bare) / 2
    ok = load.statuses[Status.OK.value]
    answered = sum(load.statuses.values())
    return {
        "capacity_per_s": round(capacity, 1),
        "sent": load.sent,
        "sent_per_s": round(load.sent / seconds, 1),
        "load": round(load.sent / seconds / capacity, 2),
        "ok": ok,
        "goodput_per_s": round(load.in_time / seconds, 1),
        "goodput_ratio": round(load.in_time / seconds / capacity, 3),
        "ok_ratio": round(ok / seconds / capacity, 3),
        "launched_late": load.launched_late,
        "typed_percent": round(100 * answered / max(1, load.sent), 3),
        "statuses": dict(load.statuses),
        "untyped": dict(load.untyped),
        "ok_p50_ms": round(percentile_ms(load.latencies, 50), 1),
        "ok_p99_ms": round(percentile_ms(load.latencies, 99), 1),
        "rss_growth_mib": {name: round(value, 1) for name, value in growth.items()},
        "rss_growth_mib_max": round(max(growth.values()), 1),
    }


def percentile_ms(seconds: list[float], percent: float) -> float:
    """A percentile of latencies, in milliseconds."""
    return float(percentile(seconds, percent)) * 1000


async def _run(arguments: argparse.Namespace) -> int:
    figures = await measure(prepare("sim"), arguments)
    print_table([{"figure": name, "value": value} for name, value in figures.items()])
    write_results("overload", figures)
    return 0


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(prog="benchmarks.overload", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--load", type=float, default=2.0, help="multiple of the bare model's ceiling")
    parser.add_argument("--ttl-ms", type=int, default=500)
    sys.exit(uvloop.run(_run(parser.parse_args())))


if __name__ == "__main__":
    main()
