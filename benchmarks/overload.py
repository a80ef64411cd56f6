"""Twice what the model can do, for a minute: what is served, what is refused, and what it costs in memory.

    python -m benchmarks.overload [--seconds 60] [--load 2.0] [--ttl-ms 500]

Requests come at a multiple of the bare model's ceiling that is measured right before and after, from a process of its
own that does not wait for answers (`benchmarks.open_loop`). The model is `slow`, so the machine itself is not what is
overloaded. Every response's receipt says how long after the log's stamp its row was launched; a row that runs more than
50 ms after its time to live is waste. Writes build/bench/overload.json.

`goodput`: OK responses that reached their caller within the time to live. `ok`: all OK responses.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Mapping
from typing import Any

import uvloop

from benchmarks.bare import Ceiling, bare_process
from benchmarks.engine_models import BenchModel, prepare
from benchmarks.harness import (
    control,
    deploy,
    print_table,
    resident_mib,
    running_stack,
    wait_for_workers,
    write_results,
)
from contracts import topics
from contracts.adapters.kafka import Admin
from contracts.settings import KafkaSettings
from deploy.embedded.stack import EmbeddedStack

_SETTLE_SECONDS = 3.0  # of load before memory is looked at for the first time
_BARE_SECONDS = 1.0


async def measure(model: BenchModel, arguments: argparse.Namespace) -> dict[str, object]:
    """The figures of one run."""
    async with running_stack("embedded") as stack, bare_process(model) as bare:
        async with control(stack) as (registry, leases):
            await deploy(registry, model.folder, model.deployment)
            await wait_for_workers(leases, model.spec.key, 1)
        flags = await _flags(stack, model)
        before = await bare.measure(model.spec.batching.max_batch_size, _BARE_SECONDS)
        rate = arguments.load * before.rows_per_s
        print(f"{rate:,.0f} requests/s for {arguments.seconds:.0f} s …", file=sys.stderr)
        flags |= {"rate": rate, "ttl-ms": arguments.ttl_ms}
        await _open_loop(flags | {"seconds": _SETTLE_SECONDS})
        memory = resident_mib(stack)
        load = await _open_loop(flags | {"seconds": arguments.seconds})
        growth = {name: now - memory.get(name, 0.0) for name, now in resident_mib(stack).items()}
        after = await bare.measure(model.spec.batching.max_batch_size, _BARE_SECONDS)
    growth.pop("client")
    return _figures(load, (before, after), growth)


async def _flags(stack: EmbeddedStack, model: BenchModel) -> dict[str, object]:
    """Where requests go and where responses come from."""
    kafka = KafkaSettings(bootstrap=stack.kafka_bootstrap)
    topic = topics.requests(kafka.prefix, model.spec.name, model.spec.version)
    reply = topics.replies(kafka.prefix, "bench")
    admin = Admin(kafka)
    await admin.open()
    try:
        await admin.ensure_topic(reply, 1)
        count = (await admin.partition_counts())[topic]
    finally:
        await admin.close()
    return {"bootstrap": kafka.bootstrap, "topic": topic, "partitions": count, "reply": reply}


async def _open_loop(flags: Mapping[str, object]) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.open_loop"]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    printed, _ = await process.communicate()
    found: dict[str, Any] = json.loads(printed)
    return found


def _figures(load: dict[str, Any], bare: tuple[Ceiling, Ceiling], growth: Mapping[str, float]) -> dict[str, Any]:
    capacity = sum(ceiling.rows_per_s for ceiling in bare) / 2
    seconds, sent = load["seconds"], load["sent"]
    ok, answered = load["statuses"].get("OK", 0), sum(load["statuses"].values())
    return {
        "capacity_per_s": round(capacity, 1),
        "sent": sent,
        "sent_per_s": round(sent / seconds, 1),
        "load": round(sent / seconds / capacity, 2),
        "ok": ok,
        "goodput_per_s": round(load["in_time"] / seconds, 1),
        "goodput_ratio": round(load["in_time"] / seconds / capacity, 3),
        "ok_ratio": round(ok / seconds / capacity, 3),
        "launched_late": load["launched_late"],
        "typed_percent": round(100 * answered / max(1, sent), 3),
        "statuses": load["statuses"],
        "repeated": load["repeated"],
        "rows_per_batch": load["rows_per_batch"],
        "cuts": load["cuts"],
        "ok_p50_ms": load["ok_p50_ms"],
        "ok_p99_ms": load["ok_p99_ms"],
        "rss_growth_mib": {name: round(value, 1) for name, value in growth.items()},
        "rss_growth_mib_max": round(max(growth.values()), 1),
    }


async def _run(arguments: argparse.Namespace) -> int:
    figures = await measure(prepare("slow"), arguments)
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
