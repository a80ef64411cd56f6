"""What a step of a pipeline costs, chained through topics and fused in one worker.

    python -m benchmarks.pipelines [--kafka embedded|home] [--jobs N] [--seconds S]

- A hop: jobs of three steps and of one, one at a time in turn; a hop is half of what the former take longer. The
  steps answer a row with itself, so nothing but the path is measured.
- A fused step: the same two pipelines with `fused: true`.
- The chain ratio: a chain of three whose second step is a device of 8 ms a batch and 20 µs a row, at 256 in flight,
  over that step alone at 256 in flight; both are measured twice in turn.

What the machine and the log cost in that minute stands beside it, and not among the figures: the same hop between the
plainest workers there can be (`benchmarks.plain`), and what three of them in a row pass on at 256 in flight.

Every answer is compared with what was asked. Writes build/bench/pipelines.json.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import uvloop

from benchmarks.harness import cpu_seconds, percentile, print_table, running_stack, write_results
from benchmarks.plain import call, plain_chain
from contracts.service import settle_heap
from deploy.cli.apply import carry_out, plan_changes
from deploy.cli.connection import open_control
from deploy.cli.pipelines import with_deployments
from deploy.cli.readiness import await_ready
from deploy.cli.repository import read_fleet
from deploy.embedded.stack import EmbeddedStack
from producer.client import InferenceClient

FLEET = Path(__file__).resolve().parent / "pipelines.yaml"
CHAINED = ("one-step", "three-steps")
FUSED = ("fused-one-step", "fused-three-steps")
ALONE, CHAIN = "sim", "around-sim"
IN_FLIGHT = 256
_EXTRA_STEPS = 2
_READY_SECONDS = 90.0
_TTL_SECONDS = 60.0
_WARM_JOBS = 200
_PLAIN_LONE, _PLAIN_LOAD = 500, 10_000


class Jobs:
    """Asks, and judges the answers."""

    def __init__(self, client: InferenceClient) -> None:
        self._client = client
        self._rows = np.random.default_rng(3).standard_normal((4096, 1, 16), np.float32)
        self._numbers = itertools.count()
        self.mixed = 0

    async def ask(self, name: str) -> float:
        """One job; how long its caller waited, in seconds."""
        row = self._rows[next(self._numbers) % len(self._rows)]
        started = time.perf_counter()
        response = await self._client.infer(name, {"row": row}, version=1, ttl_seconds=_TTL_SECONDS)
        seconds = time.perf_counter() - started
        self.mixed += not np.array_equal(response["row"].to_numpy(), row)
        return seconds

    async def one_at_a_time(self, names: tuple[str, str], jobs: int) -> tuple[list[float], list[float]]:
        """Latencies of two pipelines, asked in turn so that a busy moment of the machine meets both."""
        short, long = [], []
        for index in range(_WARM_JOBS + jobs):
            pair = await self.ask(names[0]), await self.ask(names[1])
            if index >= _WARM_JOBS:
                short.append(pair[0])
                long.append(pair[1])
        return short, long

    async def per_second(self, name: str, seconds: float) -> float:
        """Answers a second at 256 in flight, after a quarter of the time to warm up."""
        answered: list[float] = []
        until = time.perf_counter() + 1.25 * seconds

        async def caller() -> None:
            while time.perf_counter() < until:
                await self.ask(name)
                answered.append(time.perf_counter())

        settle_heap()
        await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
        return sum(until - seconds <= at < until for at in answered) / seconds


async def deploy_fleet(stack: EmbeddedStack) -> None:
    """Register the fleet of this benchmark and wait for its workers."""
    fleet = read_fleet(FLEET)
    async with open_control(stack.settings()) as control:
        await carry_out(control.registry, fleet, await plan_changes(control.registry, fleet))
        await await_ready(control, [str(one.key) for one in with_deployments(fleet).deployments], _READY_SECONDS)


def cost(short: list[float], long: list[float]) -> dict[str, float]:
    """What one further step costs, in milliseconds: against the median of the short ones."""
    base = percentile(short, 50)
    extra = [(seconds - base) / _EXTRA_STEPS * 1000 for seconds in long]
    return {"p50": percentile(extra, 50), "p99": percentile(extra, 99)}


async def plain_figures(bootstrap: str) -> dict[str, float]:
    """What a hop between plain workers takes, and how many records a second one of them passes on, and a chain."""
    length = 1 + _EXTRA_STEPS
    lone, loaded = {}, {}
    for workers in (1, length):
        async with plain_chain(bootstrap, workers) as ends:
            await call(bootstrap, *ends, in_flight=1, count=_WARM_JOBS)
            lone[workers] = (await call(bootstrap, *ends, in_flight=1, count=_PLAIN_LONE))["p50_ms"]
            loaded[workers] = (await call(bootstrap, *ends, in_flight=IN_FLIGHT, count=_PLAIN_LOAD))["per_s"]
    return {
        "hop_ms_p50": round((lone[length] - lone[1]) / _EXTRA_STEPS, 3),
        "alone_per_s": round(loaded[1], 1),
        "chain_per_s": round(loaded[length], 1),
    }


async def measure(stack: EmbeddedStack, jobs: int, seconds: float) -> dict[str, object]:
    """All figures, on a stack of its own."""
    await deploy_fleet(stack)
    async with InferenceClient(bootstrap=stack.kafka_bootstrap, redis=stack.redis_url, inbox="bench") as client:
        work = Jobs(client)
        chained = await work.one_at_a_time(CHAINED, jobs)
        plain = await plain_figures(stack.kafka_bootstrap)
        fused = await work.one_at_a_time(FUSED, jobs)
        rates: dict[str, list[float]] = {ALONE: [], CHAIN: []}
        cpu = partial(cpu_seconds, stack)
        used: dict[str, float] = {}
        for name in (ALONE, CHAIN) * 2:
            before = cpu()
            rates[name].append(await work.per_second(name, seconds))
            used[name] = sum(cpu().values()) - sum(before.values())
        fastest = {name: await work.per_second(name, seconds) for name in (CHAINED[1], FUSED[1])}
    hop, step = cost(*chained), cost(*fused)
    alone, chain = (sum(rates[name]) / len(rates[name]) for name in (ALONE, CHAIN))
    return {
        "hop_ms_p50": round(hop["p50"], 3),
        "hop_ms_p99": round(hop["p99"], 3),
        "fused_us_per_step": round(step["p50"] * 1000, 1),
        "fused_us_per_step_p99": round(step["p99"] * 1000, 1),
        "chain_ratio": round(chain / alone, 3),
        "alone_per_s": round(alone, 1),
        "chain_per_s": round(chain, 1),
        "chained_three_steps_per_s": round(fastest[CHAINED[1]], 1),
        "fused_three_steps_per_s": round(fastest[FUSED[1]], 1),
        "one_step_ms_p50": round(percentile(chained[0], 50) * 1000, 3),
        "three_steps_ms_p50": round(percentile(chained[1], 50) * 1000, 3),
        "fused_one_step_ms_p50": round(percentile(fused[0], 50) * 1000, 3),
        "fused_three_steps_ms_p50": round(percentile(fused[1], 50) * 1000, 3),
        "chain_cpu_us_per_job": round(used[CHAIN] / (1.25 * seconds * rates[CHAIN][-1]) * 1e6, 1),
        "mixed": work.mixed,
        **{f"plain_{name}": value for name, value in plain.items()},
    }


async def _run(arguments: argparse.Namespace) -> int:
    async with running_stack(arguments.kafka) as stack:
        figures = await measure(stack, arguments.jobs, arguments.seconds)
    print_table([{"figure": name, "value": value} for name, value in figures.items()])
    write_results("pipelines" if arguments.kafka == "embedded" else "pipelines-apache", figures)
    return int(bool(figures["mixed"]))


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(prog="benchmarks.pipelines", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kafka", choices=["embedded", "home"], default="embedded")
    parser.add_argument("--jobs", type=int, default=2000, help="measured one at a time, of each kind")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each load")
    sys.exit(uvloop.run(_run(parser.parse_args())))


if __name__ == "__main__":
    main()
