"""Joins in a running fleet: branches meet, whatever dies meanwhile, and nothing is left behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import numpy as np
import pytest
import pytest_asyncio

from contracts import topics
from contracts.adapters.kafka import Partition, Producer, Reader
from contracts.adapters.registry import RegisteredPipeline
from contracts.codec import decode_response, encode_headers, encode_request
from contracts.errors import DeadlineExceeded, PoisonRequest
from contracts.messages import ReplyAddress, RequestHeaders, Response, Status
from contracts.settings import KafkaSettings
from contracts.tensors import Tensor
from tests.e2e.pipeline_kit import FAN, RAISE, SLOW, PipelineFleet, pipeline_fleet, row
from tests.helpers import wait_until

pytestmark = [pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]

QUICK_LEASES = {
    "HEADRACE_LEASE__TTL_SECONDS": "3",
    "HEADRACE_LEASE__RENEW_SECONDS": "0.5",
    "HEADRACE_LEASE__MARGIN_SECONDS": "0.5",
    "HEADRACE_LEASE__HANDOVER_SECONDS": "2",
    "HEADRACE_JOINER__HANDOVER_DRAIN_SECONDS": "1",
    "HEADRACE_JOINER__HANDOVER_COMMIT_SECONDS": "0.5",
}
"""Finished joins are remembered for a lease's ttl and a handover: 5 s, so that a test can wait for it."""
HEAD = """
version: 1
inputs: [{name: row, datatype: FP32, shape: [-1, 4]}]
topic: {partitions: 2}
"""
EITHER = f"""
name: either
{HEAD}
steps:
  quick: {{model: relay@1, inputs: {{row: input.row}}}}
  slow: {{model: relay@2, inputs: {{row: {{const: [[{SLOW}, 0, 0, 0]], datatype: FP32}}}}}}
  first: {{reduce: first_of, inputs: {{row: [slow.row, quick.row]}}, require: first_of}}
outputs: {{row: first.row}}
"""
HURRIED = f"""
name: hurried
{HEAD}
steps:
  quick: {{model: relay@1, inputs: {{row: input.row}}}}
  slow: {{model: relay@2, inputs: {{row: {{const: [[{SLOW}, 0, 0, 0]], datatype: FP32}}}}}}
  mean: {{reduce: mean, inputs: {{row: [quick.row, slow.row]}}, require: best_effort, timeout_ms: 400}}
outputs: {{row: mean.row}}
"""
LATE = HURRIED.replace("name: hurried", "name: late").replace(", require: best_effort, timeout_ms: 400", "")
PICKY = f"""
name: picky
{HEAD}
steps:
  a: {{model: relay@1, inputs: {{row: input.row}}}}
  b: {{model: relay@2, inputs: {{row: input.row}}, when: {{tensor: input.row, op: max_at_least, value: 100}}}}
  both: {{reduce: concat, inputs: {{row: [a.row, b.row]}}}}
outputs: {{row: both.row}}
"""
ROWS = f"""
name: rows
{HEAD}
steps:
  each:
    map: {{over: input.row}}
    steps:
      one: {{model: relay@1, inputs: {{row: row.row}}}}
      two: {{model: relay@2, inputs: {{row: one.row}}}}
    outputs: {{row: two.row}}
outputs: {{row: each.row}}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineFleet]:
    async with pipeline_fleet(tmp_path_factory.mktemp("joins"), env=QUICK_LEASES) as running:
        yield running


async def held(fleet: PipelineFleet, name: str) -> dict[int, int]:
    """How many records of a pipeline's joins topic are not committed, by partition."""
    settings = KafkaSettings(bootstrap=fleet.stack.kafka_bootstrap)
    reader = Reader(settings, topics.joins_group("headrace", name, 1))
    await reader.open()
    try:
        topic, found = topics.joins("headrace", name, 1), []
        registered = await fleet.registry.snapshot()
        pipeline: RegisteredPipeline = next(p for key, p in registered.pipelines.items() if key.model == name)
        found = [Partition(topic, number) for number in range(pipeline.joins)]
        reader.assign(found)
        bounds, committed = await reader.bounds(found), await reader.committed(found)
        return {p.partition: bounds[p][1] - (committed[p] or 0) for p in found if bounds[p][1] > (committed[p] or 0)}
    finally:
        await reader.close()


async def test_branches_meet_and_nothing_is_left_behind(fleet: PipelineFleet) -> None:
    await fleet.apply(FAN, EITHER, HURRIED, LATE, PICKY, ROWS)
    client = fleet.client
    answers = await asyncio.gather(*(client.infer("fan", {"row": row(value, high=0.25)}) for value in range(50)))
    for value, answer in enumerate(answers):
        assert (answer.status, answer.model, answer.version) == (Status.OK, "fan", 1)
        assert answer["head"].to_numpy()[0, 1] == value + 1
        assert answer["score"].to_numpy().tolist() == [[0.25, 0.75, 0.0]]
    with pytest.raises(PoisonRequest, match=r"asked to raise"):
        await client.infer("fan", {"row": row(7, RAISE, at=1)})
    with pytest.raises(DeadlineExceeded):
        await client.infer("late", {"row": row(1)}, ttl_seconds=1.0)
    early = await client.infer("either", {"row": row(1)})
    assert early["row"].to_numpy()[0, 1] == 2
    assert early.parameters["missing"] == "slow"
    hurried = await client.infer("hurried", {"row": row(1)})
    assert hurried["row"].to_numpy()[0, 1] == 2
    assert hurried.receipt.total_us < 1_400_000
    picky = [await client.infer("picky", {"row": row(value)}) for value in (1, 101)]
    assert [answer["row"].rows for answer in picky] == [1, 2]
    await bare_submission(fleet)
    for count in (0, 1, 400):
        rows = np.concatenate([np.zeros((0, 4), np.float32), *(row(value) for value in range(count))])
        answer = await client.infer("rows", {"row": rows})
        assert answer["row"].to_numpy()[:, 1].tolist() == [value + 2 for value in range(count)]
    for name in ("fan", "either", "hurried", "late", "picky", "rows"):
        await wait_until(partial(nothing_held, fleet, name), f"{name} holds offsets", timeout=60)


async def bare_submission(fleet: PipelineFleet) -> None:
    """A client that knows nothing of plans sends a request like any other; the joiner compiles."""
    settings = KafkaSettings(bootstrap=fleet.stack.kafka_bootstrap)
    producer, reader = Producer(settings), Reader(settings)
    await asyncio.gather(producer.open(), reader.open())
    try:
        inbox = Partition(topics.replies("headrace", "pipes"), 0)
        reader.assign([inbox])
        reader.begin(inbox, (await reader.bounds([inbox]))[inbox][1])
        headers = RequestHeaders("bare-job", ReplyAddress(inbox.topic, 0, "nobody"), 20_000)
        record = encode_request([Tensor.from_numpy("row", row(5))]), encode_headers(headers)
        await producer.publish_many(topics.requests("headrace", "fan", 1), 0, [record], timeout_seconds=10)
        found: list[Response] = []

        async def answered() -> bool:
            for records in (await reader.poll(timeout_ms=100)).values():
                found.extend(decode_response(each.headers, each.value)[0] for each in records)
            return any(response.id == "bare-job" for response in found)

        await wait_until(answered, "the bare job has no answer")
        (answer,) = [response for response in found if response.id == "bare-job"]
        assert answer.status is Status.OK
        assert answer["head"].to_numpy()[0, 1] == 6
    finally:
        await asyncio.gather(producer.close(), reader.close())


async def nothing_held(fleet: PipelineFleet, name: str) -> bool:
    return not await held(fleet, name)


async def kill_joiner(fleet: PipelineFleet) -> bool:
    """SIGKILL the joiner that lives; False when there is none at the moment."""
    leases = (await fleet.leases.state()).leases.values()
    return any(fleet.stack.kill_worker(lease.id) for lease in leases if lease.deployment == "fan@1")


async def test_jobs_survive_the_death_of_joiners(fleet: PipelineFleet) -> None:
    await fleet.apply(FAN + "workers: {min: 2, max: 2}\n")  # so partitions also move from one to the other
    jobs = []
    for number in range(300):
        jobs.append(await fleet.client.submit("fan", {"row": row(number)}, ttl_seconds=60))
        if number % 100 == 50:
            await wait_until(lambda: kill_joiner(fleet), "no joiner comes back", timeout=30)
    answers = await asyncio.gather(*(job.result() for job in jobs))
    assert [answer["head"].to_numpy()[0, 1] for answer in answers] == [value + 1 for value in range(300)]
    await wait_until(lambda: nothing_held(fleet, "fan"), "offsets are held", timeout=60)
