"""Throughput and latency of the whole path on the smallest useful request: one row of 64 floats, answered by its hash.

    python -m benchmarks.echo [--broker embedded|home|all] [--requests N] [--in-flight N] [--profile-seconds S]

Client, broker, scheduler, agent, ingest and engine share this machine. Every answer is compared with the hash of the
row that was sent, so a lost, repeated or exchanged row is counted. Writes build/bench/echo.json for the embedded log
and build/bench/echo-apache.json for Apache Kafka.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import uvloop

from benchmarks.harness import (
    control,
    cpu_seconds,
    deploy,
    percentile,
    print_table,
    running_stack,
    wait_for_workers,
    write_results,
)
from contracts.names import ModelVersion
from contracts.specs import DeploymentSpec, DeviceSpec, WorkersSpec
from deploy.embedded.servers import KafkaChoice
from deploy.embedded.stack import EmbeddedStack
from producer.client import InferenceClient

MODEL = ModelVersion("rowhash", 1)
FOLDER = Path(__file__).resolve().parent.parent / "deploy/fleet/models/rowhash/1"
_row_hash = cast("Callable[[Any], Any]", runpy.run_path(str(FOLDER / "model.py"))["row_hash"])
_WARM_UP = 3_000
_SEQUENTIAL = 2_000
_TTL_SECONDS = 60.0


class Echo:
    """Sends rows and judges the answers."""

    def __init__(self, client: InferenceClient, requests: int) -> None:
        self._client = client
        self._rows = np.random.default_rng(7).random((requests, 1, 64), np.float32)
        self._expected = _row_hash(self._rows.reshape(requests, 64)).ravel()
        self._answers = np.zeros(requests, np.int64)
        self.latencies = np.zeros(requests)
        self.mixed = 0

    async def _ask(self, index: int) -> None:
        started = time.perf_counter()
        response = await self._client.infer(
            MODEL.model, {"row": self._rows[index]}, version=1, ttl_seconds=_TTL_SECONDS
        )
        self.latencies[index] = time.perf_counter() - started
        self._answers[index] += 1
        if int.from_bytes(response.outputs[0].data, "little") != self._expected[index]:
            self.mixed += 1

    async def run(self, in_flight: int, first: int, last: int) -> float:
        """Send rows first to last with `in_flight` callers; returns the seconds."""
        numbers = iter(range(first, last))

        async def caller() -> None:
            for index in numbers:
                await self._ask(index)

        started = time.perf_counter()
        await asyncio.gather(*(caller() for _ in range(in_flight)))
        return time.perf_counter() - started

    @property
    def lost(self) -> int:
        """Requests without an answer."""
        return int((self._answers == 0).sum())


async def measure(stack: EmbeddedStack, name: str, requests: int, in_flight: int) -> dict[str, object]:
    """One broker's figures."""
    deployment = DeploymentSpec(
        model=MODEL.model,
        version=MODEL.version,
        workers=WorkersSpec(min=1, max=4),
        device=DeviceSpec(kind="cpu", compute=25, memory_mib=128),
        allow_code=True,
    )
    async with control(stack) as (registry, leases):
        await deploy(registry, FOLDER, deployment)
        await wait_for_workers(leases, MODEL, 1)
    async with InferenceClient(bootstrap=stack.kafka_bootstrap, redis=stack.redis_url, inbox="bench") as client:
        echo = Echo(client, _WARM_UP + _SEQUENTIAL + requests)
        await echo.run(in_flight, 0, _WARM_UP)
        await echo.run(1, _WARM_UP, _WARM_UP + _SEQUENTIAL)
        print(f"{name}: {requests:,} requests, {in_flight} in flight …", file=sys.stderr)
        before = cpu_seconds(stack)
        seconds = await echo.run(in_flight, _WARM_UP + _SEQUENTIAL, _WARM_UP + _SEQUENTIAL + requests)
        after = cpu_seconds(stack)
        stats = client.stats()
    alone = echo.latencies[_WARM_UP : _WARM_UP + _SEQUENTIAL] * 1000
    loaded = echo.latencies[_WARM_UP + _SEQUENTIAL :] * 1000
    return {
        "broker": name,
        "requests": requests,
        "requests_per_s_256": round(requests / seconds),
        "p50_ms_1": percentile(alone, 50),
        "p99_ms_1": percentile(alone, 99),
        "p50_ms_256": percentile(loaded, 50),
        "p99_ms_256": percentile(loaded, 99),
        "cpu_us": {name: round((after[name] - before.get(name, 0.0)) / requests * 1e6, 1) for name in after},
        "lost": echo.lost,
        "doubled": stats.duplicate,
        "mixed": echo.mixed,
    }


async def _run(arguments: argparse.Namespace) -> int:
    choices: list[KafkaChoice] = ["embedded"]
    if arguments.broker == "home" or (arguments.broker == "all" and os.environ.get("KAFKA_HOME")):
        choices = ["home"] if arguments.broker == "home" else ["embedded", "home"]
    rows = []
    for choice in choices:
        async with running_stack(choice) as stack:
            name = "embedded" if choice == "embedded" else "apache"
            rows.append(await measure(stack, name, arguments.requests, arguments.in_flight))
            write_results("echo" if choice == "embedded" else "echo-apache", rows[-1])
    print_table(rows)
    return int(any(row["lost"] or row["doubled"] or row["mixed"] for row in rows))


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(prog="benchmarks.echo", description=__doc__)
    parser.add_argument("--broker", choices=["embedded", "home", "all"], default="all")
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--in-flight", type=int, default=256)
    sys.exit(uvloop.run(_run(parser.parse_args())))


if __name__ == "__main__":
    main()
