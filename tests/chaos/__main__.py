"""Run faults under load and report: `python -m tests.chaos [--kafka embedded|home] [--repeats 10] [SCENARIO …]`.

Every request must be answered exactly once and by the hash of its own row, and no caller may see an error. Writes
build/bench/chaos.json. kill-broker needs an Apache Kafka distribution (KAFKA_HOME) and runs three brokers of it.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop

from benchmarks.harness import (
    PATIENCE_SECONDS,
    control,
    deploy,
    print_table,
    running_stack,
    wait_for_workers,
    write_results,
)
from contracts import telemetry
from contracts.adapters.redis import RedisDoor
from contracts.clock import SystemClock
from deploy.embedded.kafka_home import find_kafka_home, start_apache_kafka
from deploy.embedded.processes import Server
from deploy.embedded.stack import EmbeddedStack
from producer.client import InferenceClient
from tests.chaos import history
from tests.chaos.hostile import HOSTILE
from tests.chaos.load import FOLDER, MODEL, PARTITIONS, Load, deployment
from tests.chaos.pipelines import JOBS, PIPELINES
from tests.chaos.scenarios import SCENARIOS, Figures, Fleet
from tests.e2e.hostile_kit import hostile_fleet

_FAULTS = ("lost", "doubled", "mixed", "errors", "wrong_ids", "held", "keys_left")
"""Figures that must be 0."""


@asynccontextmanager
async def three_brokers(overrides: Mapping[str, str] | None = None) -> AsyncIterator[tuple[EmbeddedStack, Server]]:
    """A stack on three Apache Kafka brokers, replication 3, of which two must acknowledge."""
    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as folder:
        home, data = find_kafka_home(os.environ), Path(folder) / "kafka"
        kafka = await asyncio.to_thread(start_apache_kafka, home, data, brokers=3, overrides=overrides)
        env = {
            "HEADRACE_KAFKA__BOOTSTRAP": kafka.address,
            "HEADRACE_KAFKA__REPLICATION": "3",
            "HEADRACE_KAFKA__MIN_INSYNC": "2",
        }
        try:
            async with EmbeddedStack(Path(folder) / "stack", env=env) as stack:
                yield stack, kafka
        finally:
            await asyncio.to_thread(kafka.kill)  # its data goes away with it


async def run_scenario(
    name: str, stack: EmbeddedStack, repeats: int, in_flight: int, kafka: Server | None = None
) -> Figures:
    """One scenario; the row of the report. `kafka` is the broker when it is not the stack's own."""
    workers, act = SCENARIOS[name]
    async with (
        control(stack) as (registry, leases),
        await RedisDoor.open(stack.redis_url, timeout_seconds=PATIENCE_SECONDS) as redis,
    ):
        await deploy(registry, FOLDER, deployment(workers))
        await registry.set_manual(MODEL, None)  # an earlier scenario's
        await wait_for_workers(leases, MODEL, workers)
        async with InferenceClient(bootstrap=stack.kafka_bootstrap, redis=stack.redis_url, inbox="chaos") as client:
            load, since_ms = Load(client), SystemClock().unix_ms()
            async with load.running(in_flight):
                figures = await act(Fleet(stack, kafka or stack.kafka, redis, registry, leases, load), repeats)
            stats = client.stats()
    kafka_settings = stack.settings().kafka
    await history.settled(kafka_settings, MODEL, PARTITIONS)
    finals = await history.read_finals(kafka_settings, "chaos", since_ms)
    if name == "kill-broker":
        finals = history.sent_once(finals)
    for error in load.errors[:3]:
        print(f"{name}: a caller saw {error}", file=sys.stderr)
    return {
        "scenario": name,
        "requests": load.sent,
        "lost": load.lost,
        "doubled": history.judge(name, finals, load.answered, lambda _: 1 + stats.rebuilds),
        "mixed": load.mixed,
        "errors": len(load.errors),
        "repeats": stats.duplicate + stats.late,
        **figures,
    }


async def run_hostile(name: str, repeats: int, in_flight: int, *, env: dict[str, str] | None = None) -> Figures:
    """One scenario of requests that harm their model, on a stack of its own."""
    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as folder:
        async with hostile_fleet(Path(folder), env or {}, workers=2) as fleet:
            return {"scenario": name, **await HOSTILE[name](fleet, repeats, in_flight)}


async def _run(arguments: argparse.Namespace) -> int:
    names = arguments.scenarios or [name for name in (*SCENARIOS, *HOSTILE, *PIPELINES) if name != "kill-broker"]
    rows = []
    for name in names:
        if name in HOSTILE:
            rows.append(await run_hostile(name, arguments.repeats, arguments.in_flight))
        elif name in PIPELINES:
            rows.append({"scenario": name, **await PIPELINES[name](arguments.jobs, arguments.in_flight)})
        elif name == "kill-broker":
            async with three_brokers() as (stack, kafka):
                rows.append(await run_scenario(name, stack, arguments.repeats, arguments.in_flight, kafka))
        else:
            async with running_stack(arguments.kafka) as stack:
                rows.append(await run_scenario(name, stack, arguments.repeats, arguments.in_flight))
        print_table([rows[-1]])
    write_results(f"chaos-{arguments.kafka}" if arguments.kafka != "embedded" else "chaos", {"rows": rows})
    return int(any(row.get(fault) for row in rows for fault in _FAULTS))


def main() -> None:
    """Read the arguments, disturb, report."""
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument(
        "scenarios",
        nargs="*",
        choices=[*SCENARIOS, *HOSTILE, *PIPELINES, []],
        metavar="SCENARIO",
        help=", ".join((*SCENARIOS, *HOSTILE, *PIPELINES)),
    )
    parser.add_argument("--kafka", choices=["embedded", "home"], default="embedded")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=JOBS, help="of each pipeline")
    parser.add_argument("--in-flight", type=int, default=256)
    telemetry.configure_logging("chaos", level="WARNING")
    sys.exit(uvloop.run(_run(parser.parse_args())))


if __name__ == "__main__":
    main()
