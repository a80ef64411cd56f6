"""What the benchmarks share: a stack with one deployment that is ready, percentiles, and where results go."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from contracts.adapters.leases import Leases
from contracts.adapters.redis import RedisDoor
from contracts.adapters.registry import RegisteredModel, Registry
from contracts.names import ModelVersion
from contracts.specs import DeploymentSpec, parse_model
from deploy.embedded.servers import KafkaChoice
from deploy.embedded.stack import EmbeddedStack

RESULTS = Path("build/bench")
_READY_SECONDS = 60.0
PATIENCE_SECONDS = 15.0
"""For a look at the pool: the load of a measurement may keep this process, or Redis, from the cores for seconds."""


@asynccontextmanager
async def running_stack(kafka: KafkaChoice) -> AsyncIterator[EmbeddedStack]:
    """A stack on a folder that goes away with it."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        async with EmbeddedStack(Path(folder), kafka=kafka) as stack:
            yield stack


@asynccontextmanager
async def control(stack: EmbeddedStack) -> AsyncIterator[tuple[Registry, Leases]]:
    """The registry and the pool of a stack."""
    async with await RedisDoor.open(stack.redis_url, timeout_seconds=PATIENCE_SECONDS) as redis:
        yield Registry(redis), Leases(redis)


async def deploy(registry: Registry, folder: Path, deployment: DeploymentSpec) -> None:
    """Register the model in `folder` and ask for its deployment."""
    await registry.put_models([_read(folder)])
    await registry.put_deployment(deployment)


def _read(folder: Path) -> RegisteredModel:
    path = folder / "model.yaml"
    return RegisteredModel(spec=parse_model(path.read_text(encoding="utf-8"), str(path)), uri=str(folder))


async def wait_for_workers(leases: Leases, key: ModelVersion, count: int) -> float:
    """Wait until `count` workers are active and hold every partition that is wanted of them; returns the seconds."""
    started = time.monotonic()
    while time.monotonic() - started < _READY_SECONDS:
        state = await leases.state()
        active = {
            name for name, lease in state.leases.items() if lease.deployment == str(key) and lease.state == "active"
        }
        others = [lease for lease in state.leases.values() if lease.deployment == str(key) and lease.id not in active]
        topics = [
            topic for topic in state.topics.values() if topic.topic.endswith(f".requests.{key.model}.{key.version}")
        ]
        settled = all(topic.want and all(map(topic.is_settled, topic.want)) for topic in topics)
        spread = {lease for topic in topics for lease in topic.want.values()} == active
        if len(active) == count and not others and topics and settled and spread:
            return time.monotonic() - started
        await asyncio.sleep(0.02)
    msg = f"{key} did not have {count} settled workers within {_READY_SECONDS:.0f} s"
    raise TimeoutError(msg)


def cpu_seconds(stack: EmbeddedStack) -> dict[str, float]:
    """CPU seconds that each process of a stack, and this one, has used so far."""
    return {name: sum(map(_cpu_seconds, numbers)) for name, numbers in _processes(stack).items()}


def resident_mib(stack: EmbeddedStack) -> dict[str, float]:
    """Resident memory of the same processes, in MiB; of shared memory each counts what it touched."""
    return {name: sum(map(_resident_mib, numbers)) for name, numbers in _processes(stack).items()}


def _processes(stack: EmbeddedStack) -> dict[str, list[int]]:
    pids = {"client": [os.getpid()], "broker": [child.pid for child in stack.kafka.children]}
    pids["redis"] = [child.pid for child in stack.redis.children]
    pids |= {name: [child.pid] for name, child in stack.processes.items()}
    for pid in stack.worker_pids():
        command = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
        name = next((part.rpartition(".")[2] for part in command if part.startswith("workers.")), "worker")
        pids.setdefault(name, []).append(pid)
    return pids


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident_mib(pid: int) -> float:
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE") / 2**20


def percentile(values: npt.NDArray[np.float64] | Sequence[float], percent: float) -> float:
    """The percentile of some values, 0 for none."""
    return float(np.percentile(values, percent)) if np.size(values) else 0.0


def write_results(name: str, figures: Mapping[str, object]) -> Path:
    """Write figures as build/bench/<name>.json, with the machine they were seen on."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}.json"
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    path.write_text(json.dumps({**figures, "machine": machine}, indent=2) + "\n", encoding="utf-8")
    return path


def print_table(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows of the same keys as an aligned table."""
    columns = list(rows[0])
    cells = [columns, *([_text(row[column]) for column in columns] for row in rows)]
    widths = [max(len(line[index]) for line in cells) for index in range(len(columns))]
    for line in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_text(part)}" for name, part in value.items())
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
