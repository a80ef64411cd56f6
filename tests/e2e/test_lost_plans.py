"""What Redis and the reply topics may lose while jobs are on their way, and how soon the fleet is well again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from contracts import keys, topics
from contracts.adapters.kafka import Partition, Producer, Reader
from contracts.adapters.redis import RedisDoor
from contracts.codec import encode_headers, encode_request
from contracts.dead_letters import DeadLetter, parse_dead_letter
from contracts.errors import HeadraceError
from contracts.messages import ReplyAddress, RequestHeaders, Status
from contracts.settings import KafkaSettings
from contracts.tensors import Tensor
from tests.e2e.pipeline_kit import CHAIN, FAN, PipelineFleet, pipeline_fleet, row
from tests.e2e.test_joins import QUICK_LEASES, kill_joiner
from tests.helpers import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120), pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[PipelineFleet]:
    async with pipeline_fleet(tmp_path_factory.mktemp("lost"), env=QUICK_LEASES) as running:
        await running.apply(FAN, CHAIN)
        yield running


async def letters(fleet: PipelineFleet, name: str) -> list[DeadLetter]:
    settings = KafkaSettings(bootstrap=fleet.stack.kafka_bootstrap)
    reader, place = Reader(settings, "test.letters"), Partition(topics.dead("headrace", name), 0)
    await reader.open()
    try:
        reader.assign([place])
        first, end = (await reader.bounds([place]))[place]
        reader.begin(place, first)
        found: list[DeadLetter] = []
        while len(found) < end - first:
            records = (await reader.poll(timeout_ms=100)).get(place, ())
            found += [parse_dead_letter(r.offset, r.timestamp, r.headers, r.value) for r in records]
        return found
    finally:
        await reader.close()


async def submit_bare(fleet: PipelineFleet, name: str, reply: ReplyAddress | None, body: bytes) -> None:
    producer = Producer(KafkaSettings(bootstrap=fleet.stack.kafka_bootstrap))
    await producer.open()
    try:
        record = body, encode_headers(RequestHeaders(name, reply, 20_000))
        await producer.publish_many(topics.requests("headrace", "fan", 1), 0, [record], timeout_seconds=10)
    finally:
        await producer.close()


async def test_an_answer_that_has_nowhere_to_go_is_a_dead_letter(fleet: PipelineFleet) -> None:
    name, topic = "lost", "headrace.requests.relay.1"
    body = encode_request([Tensor.from_numpy("row", row(5))])
    await submit_bare(fleet, name, ReplyAddress(topic, 0, "nobody"), body)

    async def is_kept() -> bool:
        return any(letter.request_id == name for letter in await letters(fleet, "fan"))

    await wait_until(is_kept, "no dead letter", timeout=20)
    (letter,) = [letter for letter in await letters(fleet, "fan") if letter.request_id == name]
    assert letter.reason == "unroutable"
    assert letter.model == "fan@1"
    assert topics.parse_joins("headrace", letter.source.split("/")[0]) is not None
    assert dict(letter.headers)["status"] == Status.OK.value.encode()


async def test_a_submission_that_cannot_be_begun_and_names_no_caller_is_a_dead_letter(fleet: PipelineFleet) -> None:
    await submit_bare(fleet, "unreadable", None, b"\xc1")

    async def is_kept() -> bool:
        return any(letter.request_id == "unreadable" for letter in await letters(fleet, "fan"))

    await wait_until(is_kept, "no dead letter", timeout=20)


async def drop_plans(fleet: PipelineFleet) -> int:
    async with await RedisDoor.open(fleet.stack.redis_url) as redis:
        found = await redis.command("KEYS", keys.plan("headrace", "*"))
        return int(await redis.command("DEL", *found)) if found else 0


async def test_plans_that_redis_loses_under_load_cost_nobody_an_answer(fleet: PipelineFleet) -> None:
    """Workers are new, so they must look plans up; joiners are killed for the same reason."""
    dropped, jobs = 0, []
    for number in range(120):
        shape = ("fan", "chain")[number % 2]
        jobs.append(await fleet.client.submit(shape, {"row": row(number)}, ttl_seconds=60))
        dropped += await drop_plans(fleet) if number % 5 == 0 else 0
        if number == 40:
            await wait_until(lambda: kill_joiner(fleet), "there is no joiner", timeout=30)
    answers = await asyncio.gather(*(job.result() for job in jobs))
    for number, answer in enumerate(answers):
        tensor, added = ("row", 3) if number % 2 else ("head", 1)
        assert answer[tensor].to_numpy()[0, 1] == number + added
    assert dropped

    async def is_back() -> bool:
        async with await RedisDoor.open(fleet.stack.redis_url) as redis:
            return len(await redis.command("KEYS", keys.plan("headrace", "*"))) == 2

    await wait_until(is_back, "the client does not put its plans back", timeout=15)


async def test_when_redis_loses_everything_jobs_end_and_apply_brings_the_fleet_back(
    fleet: PipelineFleet, tmp_path: Path
) -> None:
    jobs = [await fleet.client.submit("fan", {"row": row(number)}, ttl_seconds=8) for number in range(50)]
    async with await RedisDoor.open(fleet.stack.redis_url) as redis:
        await redis.command("FLUSHALL")
    ends = await asyncio.gather(*(job.result() for job in jobs), return_exceptions=True)
    assert not [end for end in ends if isinstance(end, BaseException) and not isinstance(end, HeadraceError)]
    for version in (1, 2, 3):
        await fleet.deploy(version)
    await fleet.apply(FAN, CHAIN)
    for version in (1, 2, 3):
        await fleet.workers(version)

    async def is_answered() -> bool:
        try:
            answer = await fleet.client.infer("fan", {"row": row(7)}, ttl_seconds=5)
        except HeadraceError:
            return False
        return bool(answer["head"].to_numpy()[0, 1] == 8)

    await wait_until(is_answered, "no job is answered any more", timeout=60)
