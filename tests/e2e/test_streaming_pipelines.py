"""Streams through pipelines: parts from the last step's worker to the caller, step by step and fused alike."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import pytest_asyncio

from benchmarks.harness import control, deploy, wait_for_workers
from contracts.adapters.compiled import compiled
from contracts.errors import (
    Cancelled,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    PoisonRequest,
    RequestError,
    StreamBroken,
)
from contracts.messages import Response, Status
from contracts.names import ModelVersion
from contracts.specs import DeploymentSpec, DeviceSpec, TopicSpec, WorkersSpec
from deploy.cli.history import scan
from deploy.cli.inspection import describe as inspected
from deploy.cli.timeline import describe, lines_of
from deploy.embedded.stack import EmbeddedStack
from producer.client import InferenceClient
from tests.e2e.conftest import headrace_program
from tests.e2e.fleet_kit import client_settings
from tests.e2e.pipeline_kit import PipelineFleet, fused
from tests.helpers import finished, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

Array = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
NOTHING, RAISE, KILL_ONCE, KILL_AND_DIFFER, SLOW, BULKY, KILL, REFUSE = range(8)
MODELS = Path(__file__).resolve().parents[1] / "models"
KINDS = ["told", "told-fused", "met", "met-fused"]
QUICK = {
    "HEADRACE_LEASE__TTL_SECONDS": "3",
    "HEADRACE_LEASE__RENEW_SECONDS": "0.5",
    "HEADRACE_LEASE__MARGIN_SECONDS": "0.5",
    "HEADRACE_WORKER__METRICS_PORT": "0",
}
HEAD = """
version: 1
inputs: [{name: plan, datatype: INT64, shape: [-1, 4]}]
topic: {partitions: 2}
"""
TOLD = f"""
name: told
{HEAD}
steps:
  lead: {{model: scribe@1, inputs: {{plan: input.plan}}}}
  count: {{model: counter@1, inputs: {{plan: lead.plan}}}}
  half: {{reduce: mean, inputs: {{figure: [count.number, {{const: [[0]], datatype: INT64}}]}}}}
outputs: {{figure: count.number, filler: count.filler, half: half.figure, parts: lead.parts}}
"""
MET = f"""
name: met
{HEAD}
steps:
  a: {{model: scribe@1, inputs: {{plan: input.plan}}}}
  b: {{model: scribe@1, inputs: {{plan: input.plan}}}}
  both: {{reduce: first_of, inputs: {{plan: [a.plan, b.plan]}}}}
  count: {{model: counter@1, inputs: {{plan: both.plan}}, timeout_ms: 60000}}
outputs: {{figure: count.number, filler: count.filler}}
"""
EASED = f"""
name: eased
{HEAD}
steps:
  count: {{model: counter@1, inputs: {{plan: input.plan}}, on_error: skip}}
outputs: {{figure: count.number}}
"""
COLLECTED = f"""
name: collected
{HEAD}
steps:
  count: {{model: counter@1, inputs: {{plan: input.plan}}}}
  lead: {{model: scribe@1, inputs: {{plan: input.plan}}, when: {{tensor: count.number, op: not_empty}}}}
outputs: {{figure: count.number, parts: lead.parts}}
"""


class Counting(NamedTuple):
    """The fleet, and the folder in which the counter leaves word."""

    fleet: PipelineFleet
    folder: Path
    address: dict[str, str]

    def stream(self, name: str, plan: dict[str, Array], ttl: float = 60.0) -> AsyncIterator[Response]:
        return self.fleet.client.stream(name, plan, ttl_seconds=ttl)


def plan(parts: int, trouble: int = NOTHING, at: int = 0, figure: int = 0) -> dict[str, Array]:
    return {"plan": np.array([[parts, trouble, at, figure]], np.int64)}


def figure(part: Response) -> int:
    return int(part["figure"].to_numpy().item())


async def read_into(found: list[int], stream: AsyncIterator[Response]) -> None:
    async for part in stream:
        found.append(figure(part))  # noqa: PERF401 - what came before an exception counts


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["embedded", "home"])
async def counting(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> AsyncIterator[Counting]:
    if request.param == "home" and not os.environ.get("KAFKA_HOME"):
        pytest.skip("KAFKA_HOME names no Apache Kafka")
    home = tmp_path_factory.mktemp("counting")
    folder = home / "counter"
    shutil.copytree(MODELS / "counter" / "1", folder)
    async with EmbeddedStack(home, kafka=request.param, env=QUICK) as stack, control(stack) as (registry, leases):
        for name, place in (("counter", folder), ("scribe", MODELS / "scribe" / "1")):
            spec = DeploymentSpec(
                model=name,
                version=1,
                workers=WorkersSpec(min=1, max=1),
                device=DeviceSpec(kind="cpu", compute=20, memory_mib=64),
                topic=TopicSpec(partitions=2),
                allow_code=True,
            )
            await deploy(registry, place, spec)
        async with InferenceClient(client_settings(stack)) as client:
            fleet = PipelineFleet(stack, client, registry, leases, home)
            await fleet.apply(TOLD, MET, EASED, COLLECTED, fused(TOLD), fused(MET))
            for name in ("counter", "scribe"):
                await wait_for_workers(leases, ModelVersion(name, 1), 1)
            address = {"HEADRACE_KAFKA__BOOTSTRAP": stack.kafka_bootstrap, "HEADRACE_REDIS__URL": stack.redis_url}
            yield Counting(fleet, folder, address)


@pytest.mark.parametrize("name", KINDS)
async def test_parts_come_once_and_in_order_under_the_jobs_id_and_the_pipelines_names(
    counting: Counting, name: str
) -> None:
    parts = [part async for part in counting.stream(name, plan(5))]
    assert [figure(part) for part in parts] == [part.index for part in parts] == [0, 1, 2, 3, 4]
    assert [part.status for part in parts] == [Status.PARTIAL] * 4 + [Status.OK]
    assert [part.final for part in parts] == [False] * 4 + [True]
    assert {part.id for part in parts} == {parts[0].id}
    assert {(part.model, part.version) for part in parts} == {(name, 1)}
    assert parts[-1].receipt.computed_us > 0
    if name.startswith("told"):
        assert [part["half"].to_numpy().item() for part in parts] == [0, 0.5, 1, 1.5, 2]
        assert [[output.name for output in part.outputs] for part in parts] == [
            *[["figure", "filler", "half"]] * 4,
            ["figure", "filler", "half", "parts"],
        ]


@pytest.mark.parametrize("name", KINDS)
async def test_whoever_does_not_stream_gets_all_parts_as_one_response(counting: Counting, name: str) -> None:
    response = await counting.fleet.client.infer(name, plan(4))
    assert response["figure"].to_numpy().tolist() == [[0], [1], [2], [3]]
    nothing = await counting.fleet.client.infer(name, plan(0))
    assert nothing.status is Status.OK
    assert "figure" in str(nothing.parameters["skipped"])
    (end,) = [part async for part in counting.stream(name, plan(0))]
    assert (end.parameters, {output.name for output in end.outputs}) == (
        nothing.parameters,
        {output.name for output in nothing.outputs},
    )


async def test_a_stream_in_the_middle_is_collected_before_the_job_goes_on(counting: Counting) -> None:
    (only,) = [part async for part in counting.stream("collected", plan(3))]
    assert (only["figure"].to_numpy().tolist(), only["parts"].to_numpy().tolist()) == ([[0], [1], [2]], [[3]])
    assert (only.index, only.final) == (0, True)


@pytest.mark.parametrize("name", KINDS)
async def test_streams_of_different_jobs_share_batches(counting: Counting, name: str) -> None:
    async def read(count: int) -> list[int]:
        return [figure(part) async for part in counting.stream(name, plan(count))]

    found = await asyncio.gather(*(read(count) for count in range(1, 13)))
    assert found == [[*range(count)] for count in range(1, 13)]


@pytest.mark.parametrize("name", ["told", "told-fused"])
async def test_a_stream_is_continued_after_its_engine_was_killed_and_broken_if_it_differs(
    counting: Counting, name: str
) -> None:
    for trouble in (KILL_ONCE, KILL_AND_DIFFER):
        (counting.folder / f"killed-{trouble}").unlink(missing_ok=True)
    parts = [part async for part in counting.stream(name, plan(6, KILL_ONCE, at=3))]
    assert [figure(part) for part in parts] == [0, 1, 2, 3, 4, 5]
    assert len({part.run for part in parts}) > 1
    found: list[int] = []
    with pytest.raises(StreamBroken, match="came out differently"):
        await read_into(found, counting.stream(name, plan(6, KILL_AND_DIFFER, at=3)))
    assert found == [0, 1, 2]


@pytest.mark.parametrize(("name", "worker"), [("met", "counter@1"), ("met-fused", "met-fused@1")])
async def test_a_stream_is_continued_by_the_worker_after_the_one_that_was_killed(
    counting: Counting, name: str, worker: str
) -> None:
    fleet = counting.fleet
    runs: list[str] = []
    found: list[int] = []
    async for part in counting.stream(name, plan(40, SLOW, figure=50)):
        found.append(figure(part))
        runs.append(part.run)
        if part.index == 3:
            state = await fleet.leases.state()
            (lease,) = [lease.id for lease in state.leases.values() if lease.deployment == worker]
            fleet.stack.kill_worker(lease)
    assert found == [*range(40)]
    assert len({*runs}) == 2
    await wait_for_workers(fleet.leases, ModelVersion.parse(worker), 1)


@pytest.mark.parametrize("name", ["told", "met-fused"])
async def test_leaving_the_loop_and_the_end_of_the_ttl_stop_the_model(counting: Counting, name: str) -> None:
    steps = counting.folder / "steps"
    steps.unlink(missing_ok=True)
    async for part in counting.stream(name, plan(10_000, SLOW, figure=10), ttl=120):
        if part.index == 3:
            break
    await wait_until(steps.exists, "the model was not stopped")
    assert int(steps.read_text()) < 1_000
    found: list[int] = []
    with pytest.raises(DeadlineExceeded, match="before the stream did"):  # says the worker
        await read_into(found, counting.stream(name, plan(10_000, SLOW, figure=20), ttl=0.7))
    assert found == [*range(len(found))]
    assert found


@pytest.mark.parametrize(("wish", "error"), [(RAISE, PoisonRequest), (REFUSE, InvalidRequest)])
@pytest.mark.parametrize("name", ["told", "told-fused"])
async def test_a_stream_that_fails_ends_its_job_and_no_other(
    name: str, wish: int, error: type[RequestError], counting: Counting
) -> None:
    async def read(inputs: dict[str, Array]) -> list[int]:
        return [figure(part) async for part in counting.stream(name, inputs)]

    failing, *good = await asyncio.gather(
        read(plan(5, wish, at=2)), *(read(plan(5)) for _ in range(3)), return_exceptions=True
    )
    assert isinstance(failing, error)
    assert "step count" in str(failing)
    assert good == [[0, 1, 2, 3, 4]] * 3


async def test_a_failure_is_made_good_only_for_whom_no_part_has_reached(counting: Counting) -> None:
    (end,) = [part async for part in counting.stream("eased", plan(5, RAISE, at=0))]
    assert (end.status, end.outputs, end.parameters) == (Status.OK, (), {"skipped": "figure"})
    found: list[int] = []
    with pytest.raises(StreamBroken):
        await read_into(found, counting.stream("eased", plan(5, RAISE, at=2)))
    assert found == [0, 1]


@pytest.mark.parametrize("name", ["told", "told-fused"])
async def test_a_part_that_no_record_holds_ends_the_job(counting: Counting, name: str) -> None:
    with pytest.raises(InternalError, match="a part of the result is above the limit"):
        await read_into([], counting.stream(name, plan(3, BULKY, figure=1_100_000)))
    sizes = [len(part["filler"].data) async for part in counting.stream(name, plan(4, BULKY, figure=400_000))]
    assert sizes == [400_004] * 4


@pytest.mark.parametrize("name", ["told", "told-fused"])
async def test_a_trace_shows_the_steps_of_a_stream_and_the_shell_prints_its_parts(
    counting: Counting, name: str
) -> None:
    parts = [part async for part in counting.stream(name, plan(4))]
    end = parts[-1]
    found = await scan(
        counting.fleet.stack.settings().kafka,
        lambda topic: topic.startswith("headrace."),
        lambda _, headers: end.id.encode() in (headers.get("job"), headers.get("id")),
        since_ms=0,
    )
    timeline = describe(end.id, lines_of(found.records, "headrace"))
    assert [(event["kind"], event["detail"]) for event in timeline["events"][-2:]] == [
        ("partial", f"3 of run {end.run}"),
        ("response", "OK, 3 parts before"),
    ]
    computed = sum(step["computed_ms"] for step in timeline["steps"])
    assert end.receipt.computed_us / 1000 == pytest.approx(computed)
    assert len(timeline["steps"]) == (1 if "fused" in name else 2)
    if name == "told":
        state = await counting.fleet.registry.snapshot()
        (shown,) = inspected(found.records, "count", compiled(state.pipelines[ModelVersion(name, 1)], state), 5)
        assert shown["inputs"]["plan"]["data"] == [4, 0, 0, 0]
    command = (headrace_program(), "infer", name, "--input", "plan=[[3, 0, 0, 0]]", "--stream")
    _, printed, _ = await finished(*command, env={**os.environ, **counting.address, "TERM": "dumb"})
    assert [line for line in printed.splitlines() if line.startswith("part ")] == ["part 0", "part 1", "part 2"]
    assert f"{name}@1 answered in" in printed.splitlines()[-1]


async def test_a_job_that_is_withdrawn_before_its_stream_began_has_no_parts(counting: Counting) -> None:
    client = counting.fleet.client
    blockers = [await client.submit("counter@1", plan(30, SLOW, figure=30)) for _ in range(3)]  # the last one waits
    handle = await client.submit("told", plan(5))
    await handle.cancel()
    with pytest.raises(Cancelled):
        await handle.result()
    assert [(await blocker.result()).status for blocker in blockers] == [Status.OK] * 3
