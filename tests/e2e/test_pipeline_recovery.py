"""What single models can, in pipelines: retries, letters sent again, scaling down under load, cancels and deadlines."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from benchmarks.harness import wait_for_workers
from contracts import topics
from contracts.codec import decode_headers
from contracts.errors import Cancelled, DeadlineExceeded, PoisonRequest
from contracts.messages import ReplyAddress, Response, Status
from contracts.names import ModelVersion
from deploy.cli.timeline import describe, lines_of
from producer.handle import Handle
from tests.e2e.conftest import headrace_program
from tests.e2e.pipeline_kit import CHAIN, FAN, FLAKY, SLOW, PipelineFleet, fused, pipeline_fleet, row
from tests.helpers import finished, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

SHORT = {"HEADRACE_WORKER__RETRY_DELAYS_SECONDS": "[0.2, 0.2, 0.2]", "HEADRACE_WORKER__METRICS_PORT": "0"}
AGAIN = """
name: again
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}]
steps:
  one: {model: relay@1, inputs: {row: input.row}}
  two: {model: relay@2, inputs: {row: one.row}, retries: 2, timeout_ms: 20000}
  three: {model: relay@3, inputs: {row: two.row}}
outputs: {row: three.row}
topic: {partitions: 4}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineFleet]:
    async with pipeline_fleet(tmp_path_factory.mktemp("recovery"), env=SHORT) as running:
        await running.apply(AGAIN, FAN, CHAIN, fused(AGAIN), fused(FAN))
        yield running


def value(answer: Response) -> float:
    return float(answer["row"].to_numpy()[0, 1])


# --- retries and dead letters -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "base"), [("again", 1000), ("again-fused", 2000)])
async def test_a_step_that_fails_twice_and_then_works_is_no_failure_and_one_that_fails_thrice_is(
    fleet: PipelineFleet, name: str, base: float
) -> None:
    answer = await fleet.client.infer(name, {"row": row(base, FLAKY, at=1, high=2)}, ttl_seconds=30)
    assert value(answer) == base + 3
    assert answer.receipt.attempt == 1  # that of the last step
    with pytest.raises(PoisonRequest, match=r"step two: .*failed 3 times"):
        await fleet.client.infer(name, {"row": row(base + 10, FLAKY, at=1, high=3)}, ttl_seconds=30)


async def replayed(fleet: PipelineFleet, model: str, job: str, *options: str) -> str:
    """What `headrace dead replay` says of a job's letter."""
    known = fleet.stack.settings()
    address = {"HEADRACE_KAFKA__BOOTSTRAP": known.kafka.bootstrap, "HEADRACE_REDIS__URL": fleet.stack.redis_url}
    command = (headrace_program(), "dead", "replay", model, job, *options)
    _, output, errors = await finished(*command, env={**os.environ, **address, "TERM": "dumb"})
    return output + errors


@pytest.mark.parametrize(
    ("name", "box", "base"),
    [("again", "relay", 3000), ("again-fused", "again-fused", 4000), ("fan-fused", "fan-fused", 5000)],
)
async def test_a_letter_of_a_chain_or_a_fused_pipeline_that_is_sent_again_brings_its_job_to_its_answer(
    fleet: PipelineFleet, name: str, box: str, base: float
) -> None:
    at, times = (1, 3) if name.startswith("again") else (0, 1)  # before it forks: one letter, and one try
    inbox = ReplyAddress(topics.replies("headrace", "pipes"), 0, "nobody")
    job = f"letter-{name}"
    await fleet.client.publish(
        name, {"row": row(base, FLAKY, at=at, high=times)}, reply_to=inbox, request_id=job, ttl_seconds=30
    )

    async def answers(count: int) -> bool:
        return len(await fleet.answers(job)) >= count

    await wait_until(partial(answers, 1), "the job has no answer")
    await replayed(fleet, box, job, "--ttl", "30")
    await wait_until(partial(answers, 2), "the letter led to nothing")
    first, second = await fleet.answers(job)
    assert (first.status, second.status) == (Status.POISON, Status.OK)
    assert second.model == name
    tensor = second["head" if name.startswith("fan") else "row"].to_numpy()
    assert tensor[0, 1] == base + (1 if name.startswith("fan") else 3)


async def test_a_letter_of_a_step_goes_to_no_other_version_than_its_plan_has_pinned(fleet: PipelineFleet) -> None:
    with pytest.raises(PoisonRequest) as failed:
        await fleet.client.infer("chain", {"row": row(6000, FLAKY, at=1, high=1)}, request_id="pinned-job")
    assert "step two" in str(failed.value)
    said = await replayed(fleet, "relay", "pinned-job", "--to-version", "3")
    assert "plan has pinned the version" in said
    assert len(await fleet.answers("pinned-job")) == 1


# --- receipts ---------------------------------------------------------------------------------------------------------


async def test_the_receipt_of_a_job_adds_up_the_way_that_its_answer_waited_for(fleet: PipelineFleet) -> None:
    chained = await fleet.client.infer("chain", {"row": row(1)})
    steps = {step["step"]: step for step in await traced(fleet, chained.id)}
    assert steps.keys() == {"one", "two", "three"}
    for kind in ("queued", "batched", "computed"):
        total = sum(step[f"{kind}_ms"] for step in steps.values())
        assert getattr(chained.receipt, f"{kind}_us") / 1000 == pytest.approx(total)
    assert chained.receipt.worker == steps["three"]["worker"]
    slow = await fleet.client.infer("fan", {"row": row(1, SLOW, at=1)})  # all branches, one of them the last
    steps = {step["step"]: step for step in await traced(fleet, slow.id)}
    branches = {steps["head"]["computed_ms"] + steps[name]["computed_ms"] for name in "abcd"}
    assert any(slow.receipt.computed_us / 1000 == pytest.approx(branch) for branch in branches)
    explained = slow.receipt.queued_us + slow.receipt.batched_us + slow.receipt.computed_us
    assert explained + slow.receipt.returned_us == slow.receipt.total_us


async def traced(fleet: PipelineFleet, job: str) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = describe(job, lines_of(await fleet.records("headrace.", job), "headrace"))["steps"]
    return steps


async def test_the_receipt_of_a_fused_job_counts_its_time_in_the_log_once(fleet: PipelineFleet) -> None:
    one = await fleet.client.infer("again-fused", {"row": row(1, SLOW, at=1)})
    assert one.receipt.computed_us > 1_500_000  # of all steps, not the last
    blocker = await fleet.client.submit("again-fused", {"row": row(2, SLOW, at=0)})
    answer = await fleet.client.infer("again-fused", {"row": row(3)})
    await blocker.result()
    assert answer.receipt.queued_us + answer.receipt.batched_us + answer.receipt.computed_us <= answer.receipt.total_us


# --- scaling down under load ------------------------------------------------------------------------------------------


async def scaled(fleet: PipelineFleet, workers: int) -> None:
    """All models of the fan and its joiners on so many workers."""
    for version in (1, 2, 3):
        await fleet.deploy(version, workers)
    await fleet.apply(FAN + f"workers: {{min: {workers}, max: {workers}}}\n", AGAIN, CHAIN, fused(AGAIN), fused(FAN))
    for version in (1, 2, 3):
        await fleet.workers(version, workers)


async def test_nothing_is_lost_or_answered_twice_when_joiners_and_models_go_under_load(fleet: PipelineFleet) -> None:
    await scaled(fleet, 2)
    client, jobs = fleet.client, list[Handle]()
    is_over = False

    async def load() -> None:
        while not is_over or len(jobs) < 300:
            jobs.append(await client.submit("fan", {"row": row(len(jobs))}, ttl_seconds=60))
            await jobs[max(0, len(jobs) - 20)].result()  # twenty under way at any time

    async with asyncio.TaskGroup() as group:
        group.create_task(load(), name="load")
        await scaled(fleet, 1)
        is_over = True
    answers = [await job.result() for job in jobs]
    assert [answer["head"].to_numpy()[0, 1] for answer in answers] == [number + 1 for number in range(len(jobs))]
    names = Counter(answer.id for answer in answers)
    assert set(names.values()) == {1}
    await wait_for_workers(fleet.leases, ModelVersion("fan", 1), 1)


# --- cancels and deadlines of fused jobs ------------------------------------------------------------------------------


async def test_a_fused_job_that_is_cancelled_or_late_ends_and_leaves_the_worker_to_the_others(
    fleet: PipelineFleet,
) -> None:
    client = fleet.client
    running = [await client.submit("again-fused", {"row": row(number, SLOW, at=1)}) for number in range(2)]
    waiting = await client.submit("again-fused", {"row": row(7)})
    await waiting.cancel()
    with pytest.raises(Cancelled):
        await waiting.result()
    with pytest.raises(DeadlineExceeded):  # what runs is not interrupted; the client's own timer is 2 s behind
        await client.infer("again-fused", {"row": row(8, SLOW, at=0)}, ttl_seconds=0.6)
    assert [value(await job.result()) for job in running] == [3, 4]
    assert value(await client.infer("again-fused", {"row": row(9)})) == 12
    steps = [decode_headers(record.headers) for record in await fleet.records("headrace.requests.", waiting.id)]
    assert len(steps) == 1  # the submission; the rest is memory
