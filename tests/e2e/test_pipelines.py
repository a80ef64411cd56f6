"""Pipelines in a running fleet: chains through the models' own topics, joins, failures, rollouts, killed workers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from contracts import topics
from contracts.adapters.compiled import compiled
from contracts.adapters.kafka import Admin, Partition, Reader, Record
from contracts.adapters.registry import RegisteredPipeline, RegistryState
from contracts.codec import decode_headers
from contracts.errors import DeadlineExceeded, Overloaded, PoisonRequest
from contracts.messages import Status
from contracts.names import ModelVersion
from contracts.plans import child_id
from contracts.settings import HeadraceSettings, KafkaSettings, RedisSettings
from deploy.cli.history import scan
from deploy.cli.inspection import describe as inspected
from deploy.cli.timeline import describe, lines_of
from tests.e2e.pipeline_kit import CHAIN, FAN, RAISE, SLOW, PipelineFleet, pipeline_fleet, row

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

QUICK = {
    "HEADRACE_LEASE__TTL_SECONDS": "4",
    "HEADRACE_LEASE__RENEW_SECONDS": "1",
    "HEADRACE_LEASE__MARGIN_SECONDS": "1",
}
RESCUED = """
name: rescued
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}]
steps:
  one: {model: relay@1, inputs: {row: input.row}}
  two: {model: relay@2, inputs: {row: one.row}, timeout_ms: 700, on_error: skip}
  three: {model: relay@3, inputs: {row: [two.row, input.row]}}
outputs: {row: three.row}
topic: {partitions: 2}
"""
FLOATING = """
name: floating
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}]
steps:
  one: {model: relay, inputs: {row: input.row}}
  two: {model: relay:steady, inputs: {row: one.row}}
outputs: {row: two.row}
limits: {open_jobs: 3}
topic: {partitions: 2}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineFleet]:
    async with pipeline_fleet(tmp_path_factory.mktemp("pipelines"), env=QUICK) as running:
        yield running


async def records_of(fleet: PipelineFleet, prefix: str) -> list[Record]:
    """Everything in the topics whose names begin so."""
    settings = KafkaSettings(bootstrap=fleet.stack.kafka_bootstrap)
    admin, reader = Admin(settings), Reader(settings)
    await admin.open()
    await reader.open()
    try:
        counts = await admin.partition_counts()
        found = [Partition(t, n) for t, count in counts.items() if t.startswith(prefix) for n in range(count)]
        reader.assign(found)
        bounds = await reader.bounds(found)
        left = {partition for partition, (first, end) in bounds.items() if first < end}
        records: list[Record] = []
        for partition in left:
            reader.begin(partition, bounds[partition][0])
        while left:
            for partition, batch in (await reader.poll(timeout_ms=100)).items():
                records += batch
                if batch[-1].offset + 1 >= bounds[partition][1]:
                    left.discard(partition)
        return records
    finally:
        await reader.close()
        await admin.close()


async def check_history(fleet: PipelineFleet) -> int:
    """Every record of a job has the id that follows from its place, however often it was made; returns how many."""
    count = 0
    for record in await records_of(fleet, "headrace.requests."):
        headers = decode_headers(record.headers)
        if headers.hop is not None and headers.hop.step:
            count += 1
            assert headers.id == child_id(headers.hop.job, headers.hop.step, headers.hop.branch)
    return count


async def test_a_chain_is_answered_once_by_the_pipeline_with_the_values_of_every_step(fleet: PipelineFleet) -> None:
    await fleet.apply(CHAIN, RESCUED, FLOATING, routes={"relay": {"default": 1, "labels": {"steady": 3}}})
    answers = await asyncio.gather(*(fleet.client.infer("chain", {"row": row(value)}) for value in range(50)))
    for value, answer in enumerate(answers):
        assert (answer.status, answer.model, answer.version) == (Status.OK, "chain", 1)
        assert (answer["row"].to_numpy()[0, 1], answer["first"].to_numpy()[0, 1]) == (value + 3, value + 1)
        assert answer.receipt.worker.startswith("relay-3-")
    assert await check_history(fleet) >= 150
    await failures(fleet)
    await cancelled(fleet)
    await rollout(fleet)


async def failures(fleet: PipelineFleet) -> None:
    """The first error ends the job, unless the pipeline says what instead."""
    with pytest.raises(PoisonRequest, match=r"step two: .*asked to raise"):
        await fleet.client.infer("chain", {"row": row(7, RAISE, at=1)})
    letters = await records_of(fleet, topics.dead("headrace", "relay"))
    assert [decode_headers(letter.headers).hop.step for letter in letters] == ["two"]  # type: ignore[union-attr]
    answer = await fleet.client.infer("rescued", {"row": row(7, RAISE, at=1)})
    assert answer["row"].to_numpy()[0, 1] == 8
    slow = await fleet.client.infer("rescued", {"row": row(7, SLOW, at=1)})
    assert slow["row"].to_numpy()[0, 1] == 10  # what was launched in time is not thrown away
    with pytest.raises(DeadlineExceeded):
        await fleet.client.infer("chain", {"row": row(7, SLOW, at=0)}, ttl_seconds=0.5)


async def cancelled(fleet: PipelineFleet) -> None:
    """A cancel by the id that the caller knows reaches the step that waits."""
    blockers = []
    for _ in range(2):  # one runs, one is ready, and what comes now waits in the queue
        blockers.append(await fleet.client.submit("relay@2", {"row": row(0, SLOW)}))
        await asyncio.sleep(0.3)
    handle = await fleet.client.submit("chain", {"row": row(1)}, ttl_seconds=20)
    await asyncio.sleep(0.3)
    await handle.cancel()
    await asyncio.gather(*(blocker.result() for blocker in blockers))
    before = len([r for r in await records_of(fleet, "headrace.requests.relay.3") if handle.id in str(r.headers)])
    assert before == 0


async def rollout(fleet: PipelineFleet) -> None:
    """Versions are pinned when a job is submitted; open jobs are limited then, too."""
    answer = await fleet.client.infer("floating", {"row": row(1)})
    assert answer["row"].to_numpy()[0, 1] == 3
    handles = [await fleet.client.submit("floating", {"row": row(1, SLOW)}) for _ in range(3)]
    with pytest.raises(Overloaded, match="3 jobs of floating@1 are open"):
        await fleet.client.submit("floating", {"row": row(1)})
    await fleet.apply(FLOATING, routes={"relay": {"default": 2, "labels": {"steady": 3}}})
    assert [(await handle.result())["row"].to_numpy()[0, 1] for handle in handles] == [3, 3, 3]
    answer = await fleet.client.infer("floating", {"row": row(1)})
    steps = [decode_headers(r.headers).hop for r in await records_of(fleet, "headrace.requests.relay.2")]
    assert ("floating@1", "one") in {(hop.pipeline, hop.step) for hop in steps if hop is not None}
    plans = {hop.plan for hop in steps if hop is not None and hop.pipeline == "floating@1"}
    assert len(plans) == 1


async def test_jobs_of_both_shapes_survive_the_death_of_workers_joiners_and_the_scheduler(fleet: PipelineFleet) -> None:
    await fleet.apply(CHAIN, FAN)
    jobs = [
        await fleet.client.submit(name, {"row": row(value)}, ttl_seconds=60)
        for value in range(200)
        for name in ("chain", "fan")
    ]
    for model, version in (("relay", 2), ("fan", 1), ("relay", 1)):
        owners = (await fleet.leases.state()).topics[topics.requests("headrace", model, version)].own
        fleet.stack.kill_worker(owners[0][0])
        await asyncio.sleep(0.3)
    fleet.stack.kill("scheduler")
    answers = [await job.result() for job in jobs]
    assert [answer["row"].to_numpy()[0, 1] for answer in answers[::2]] == [value + 3 for value in range(200)]
    assert [answer["head"].to_numpy()[0, 1] for answer in answers[1::2]] == [value + 1 for value in range(200)]
    assert await check_history(fleet) >= 200 * 8


async def test_a_job_is_traced_and_its_steps_are_inspected(fleet: PipelineFleet) -> None:
    await fleet.apply(FAN)
    answer = await fleet.client.infer("fan", {"row": row(4)})
    settings = HeadraceSettings(
        kafka=KafkaSettings(bootstrap=fleet.stack.kafka_bootstrap), redis=RedisSettings(url=fleet.stack.redis_url)
    )
    found = await scan(
        settings.kafka,
        lambda topic: topic.startswith("headrace."),
        lambda _, headers: answer.id.encode() in (headers.get("job"), headers.get("id")),
        since_ms=0,
    )
    timeline = describe(answer.id, lines_of(found.records, "headrace"))
    assert (timeline["pipeline"], timeline["status"]) == ("fan@1", "OK")
    steps = {step["step"]: step for step in timeline["steps"]}
    assert steps.keys() == {"head", "a", "b", "c", "d"}
    assert all(step["computed_ms"] > 0 and step["worker"] and step["batch_rows"] >= 1 for step in steps.values())
    assert len([event for event in timeline["events"] if event["kind"] == "part"]) == 4

    plan = compiled(*(await registered(fleet, ModelVersion("fan", 1))))
    (shown,) = inspected(found.records, "head", plan, 5)
    assert shown["inputs"]["row"]["data"] == [0, 4, 0.5, 0]
    assert shown["outputs"]["row"]["data"] == [0, 5, 0.5, -1]
    parts = inspected(found.records, "vote", plan, 5)
    assert {part["what"] for part in parts} == {f"value from {step}" for step in "abcd"}


async def registered(fleet: PipelineFleet, key: ModelVersion) -> tuple[RegisteredPipeline, RegistryState]:
    state = await fleet.registry.snapshot()
    return state.pipelines[key], state
