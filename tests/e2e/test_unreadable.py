"""A record that nobody can decode is given up; whatever lies before, behind and beside it is answered."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from benchmarks.harness import control, deploy, running_stack, wait_for_workers
from contracts import topics
from contracts.adapters.kafka import Admin, Partition, Reader
from contracts.codec import decode_response, encode_headers, encode_request
from contracts.messages import ReplyAddress, RequestHeaders, Status
from contracts.tensors import Tensor
from deploy.embedded.stack import EmbeddedStack
from producer.client import InferenceClient
from tests.chaos.load import FOLDER, MODEL, PARTITIONS, deployment, key_of
from tests.contract.log_raw import UNREADABLE, RawClient, batch_with_headers
from tests.helpers import wait_until

BEFORE_AND_BEHIND = 3


async def ask_every_partition(client: InferenceClient) -> None:
    row = np.ones((1, 64), np.float32)
    async with asyncio.timeout(20):
        await asyncio.gather(
            *(
                client.infer(MODEL.model, {"row": row}, version=MODEL.version, key=key_of(partition))
                for partition in range(PARTITIONS)
                for _ in range(BEFORE_AND_BEHIND)
            )
        )


@pytest.mark.timeout(90)
async def test_what_cannot_be_decoded_is_stepped_over() -> None:
    topic = topics.requests("headrace", MODEL.model, MODEL.version)
    async with running_stack("embedded") as stack:
        async with control(stack) as (registry, leases):
            await deploy(registry, FOLDER, deployment(1))
            await wait_for_workers(leases, MODEL, 1)
        async with InferenceClient(bootstrap=stack.kafka_bootstrap, redis=stack.redis_url, inbox="t") as client:
            await ask_every_partition(client)
            bad = batch_with_headers([(b"no request", [])] + [UNREADABLE] * 2)
            with RawClient(stack.kafka_bootstrap) as raw:
                answers = raw.produce(topic, bad, bad)  # into partitions 0 and 1
            assert [answer.error_code for answer in answers] == [0, 0]
            await ask_every_partition(client)
            await ask_every_partition(client)
            await good_ones_in_one_batch_with_bad_ones(stack, topic)


async def good_ones_in_one_batch_with_bad_ones(stack: EmbeddedStack, topic: str) -> None:
    """What lies between and behind them is answered."""
    replies = topics.replies("headrace", "raw")
    settings = stack.settings().kafka
    admin, reader = Admin(settings), Reader(settings)
    await admin.open()
    await admin.ensure_topic(replies, 1)
    await admin.close()
    row = encode_request([Tensor.from_numpy("row", np.ones((1, 64), np.float32))])
    names = [f"good-{number}" for number in range(3)]
    good = [
        (row, [(key.encode(), value) for key, value in encode_headers(RequestHeaders(name, address, 30_000))])
        for address in [ReplyAddress(replies, 0, "raw")]
        for name in names
    ]
    with RawClient(stack.kafka_bootstrap) as raw:
        raw.produce(topic, batch_with_headers([UNREADABLE, good[0], UNREADABLE, UNREADABLE, *good[1:], UNREADABLE]))
    await reader.open()
    try:
        reader.assign([Partition(replies, 0)])
        reader.begin(Partition(replies, 0), 0)
        found: dict[str, Status] = {}

        async def answered() -> bool:
            for records in (await reader.poll(timeout_ms=50)).values():
                responses = [decode_response(each.headers, each.value)[0] for each in records]
                found.update({response.id: response.status for response in responses})
            return len(found) == len(names)

        await wait_until(answered, "what shares a batch with unreadable records is not answered", timeout=20)
        assert found == dict.fromkeys(names, Status.OK)
    finally:
        await reader.close()
