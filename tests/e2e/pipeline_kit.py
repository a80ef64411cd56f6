"""A stack that serves a relay model in several versions, and pipelines over it as `headrace apply` registers them."""

from __future__ import annotations

import textwrap
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import control, wait_for_workers
from contracts.adapters.kafka import Record
from contracts.adapters.leases import Leases
from contracts.adapters.registry import RegisteredModel, Registry
from contracts.codec import decode_response
from contracts.messages import Response
from contracts.names import ModelVersion
from contracts.settings import KafkaSettings
from contracts.specs import DeploymentSpec, DeviceSpec, TopicSpec, WorkersSpec, parse_model
from deploy.cli.history import scan
from deploy.cli.lag import Lags
from deploy.embedded.servers import KafkaChoice
from deploy.embedded.stack import EmbeddedStack
from producer.client import InferenceClient
from tests.e2e.fleet_kit import apply

FOLDER = Path(__file__).resolve().parents[1] / "models/relay/1"
PARTITIONS = 8
RAISE, SLOW, HANG, FLAKY, REFUSE, WEDGE = 1, 2, 3, 4, 5, 6

CHAIN = """
name: chain
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}]
steps:
  one: {model: relay@1, inputs: {row: input.row}}
  two: {model: relay@2, inputs: {row: one.row}}
  three: {model: relay@3, inputs: {row: two.row}}
outputs: {row: three.row, first: one.row}
topic: {partitions: 4}
"""
FAN = """
name: fan
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}]
steps:
  head: {model: relay@1, inputs: {row: input.row}}
  a: {model: relay@1, inputs: {row: head.row}}
  b: {model: relay@2, inputs: {row: head.row}}
  c: {model: relay@3, inputs: {row: head.row}}
  d: {model: relay@2, inputs: {row: head.row}}
  vote: {reduce: mean, inputs: {score: [a.score, b.score, c.score, d.score]}}
outputs: {score: vote.score, head: head.row}
topic: {partitions: 4}
"""


def fused(pipeline: str) -> str:
    """The same pipeline in one worker, under another name."""
    name = pipeline.split("name: ", 1)[1].split("\n", 1)[0]
    return (
        pipeline.replace(f"name: {name}", f"name: {name}-fused")
        + "fused: true\nworkers: {min: 1, max: 1}\ndevice: {kind: cpu, compute: 10}\n"
    )


def row(value: float, wish: int = 0, *, at: int = 0, high: float = 0.5) -> np.ndarray[Any, np.dtype[np.float32]]:
    """One row that can be told from others; the step number `at` (from 0) fails on it as wished."""
    return np.array([[wish, value, high, at]], np.float32)


@dataclass
class PipelineFleet:
    """The running stack, a client on it, and the way to the control plane."""

    stack: EmbeddedStack
    client: InferenceClient
    registry: Registry
    leases: Leases
    folder: Path

    async def apply(self, *pipelines: str, routes: Mapping[str, Any] | None = None) -> None:
        """Register pipelines as `headrace apply` does, and wait for their joiners."""
        text = "models: ./models\npipelines:\n"
        for pipeline in pipelines:
            block = textwrap.indent(pipeline.strip(), "    ")
            text += "  -" + block[3:] + "\n"
        if routes:
            text += f"routes: {dict(routes)!r}\n"
        (self.folder / "models").mkdir(exist_ok=True)
        path = self.folder / "fleet.yaml"
        path.write_text(text)
        for one in (await apply(self.registry, path, replace=True)).pipelines:
            await wait_for_workers(self.leases, one.spec.key, one.spec.workers.min)

    async def deploy(self, version: int, workers: int = 1) -> None:
        """Serve one version of the relay."""
        spec = parse_model((FOLDER / "model.yaml").read_text(), "relay").model_copy(update={"version": version})
        await self.registry.put_models([RegisteredModel(spec=spec, uri=str(FOLDER))])
        await self.registry.put_deployment(
            DeploymentSpec(
                model="relay",
                version=version,
                workers=WorkersSpec(min=workers, max=4),
                device=DeviceSpec(kind="cpu", compute=20, memory_mib=64),
                topic=TopicSpec(partitions=PARTITIONS),
                allow_code=True,
            )
        )

    async def records(self, head: str, job: str) -> list[Record]:
        """What is in the log of a job, in topics whose names begin so; oldest first."""
        found = await scan(
            self.kafka,
            lambda topic: topic.startswith(head),
            lambda _, headers: job.encode() in (headers.get("job"), headers.get("id")),
            since_ms=0,
        )
        return found.records

    async def answers(self, job: str) -> list[Response]:
        """What was written to reply topics for a job, whoever read it."""
        return [decode_response(r.headers, r.value)[0] for r in await self.records("headrace.replies.", job)]

    async def holds_nothing(self, pipelines: Mapping[str, int]) -> bool:
        """Whether all requests to the relays and to these pipelines, with so many partitions each, are committed; and
        the parts of those that are not fused.
        """
        keys = {ModelVersion(name, 1): count for name, count in pipelines.items()}
        relays = {ModelVersion("relay", version): PARTITIONS for version in (1, 2, 3)}
        lags = Lags(self.kafka)
        try:
            joins = await lags.read_joins({key: n for key, n in keys.items() if not key.model.endswith("-fused")})
            return set((await lags.read(keys | relays) | joins).values()) == {0}
        finally:
            await lags.close()

    @property
    def kafka(self) -> KafkaSettings:
        return KafkaSettings(bootstrap=self.stack.kafka_bootstrap)

    async def workers(self, version: int, count: int = 1) -> None:
        """Wait for a version's workers."""
        await wait_for_workers(self.leases, ModelVersion("relay", version), count)


@asynccontextmanager
async def pipeline_fleet(
    folder: Path, *, workers: int = 1, env: Mapping[str, str] | None = None, kafka: KafkaChoice | None = None
) -> AsyncIterator[PipelineFleet]:
    """Serve three versions of the relay, on Apache Kafka where there is one unless `kafka` says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    async with (
        EmbeddedStack(folder / "stack", kafka=kafka, env=dict(env or {})) as stack,
        control(stack) as (registry, leases),
        InferenceClient(bootstrap=stack.kafka_bootstrap, redis=stack.redis_url, inbox="pipes") as client,
    ):
        fleet = PipelineFleet(stack, client, registry, leases, folder)
        for version in (1, 2, 3):
            await fleet.deploy(version, workers)
        for version in (1, 2, 3):
            await fleet.workers(version, workers)
        yield fleet
